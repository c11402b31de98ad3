"""The edge: authenticate → admit → parse → append → 204. A Starlette application for the notification path.

Its answers, by outcome (the `outcome` of metrics and log lines):

    kept, unrecognized   204   it is durable; of a batch each event is
    malformed            400   kept as a dead letter all the same
    unsupported          415   likewise: no notification, and of a content type or coding that is none of JSON's
    any other refusal    4xx   nothing was kept; the Refused that was raised has status, code and reason (413 of what is
                               too large only when it is inflated is kept)
    unavailable          503   nothing is known to be kept; Retry-After says when to come again (our own defects too)
    disconnected         -     the sender went away before its body had arrived
    probe                204   GET, HEAD and OPTIONS: a sender that looks whether we are here
    not_found            404   another path; what was posted there with a right token is a dead letter

Never 500, and never 410, which would end the feed (QualityOnDemand r1.2, Generic410). The headers are looked at first,
then the limits, and only then is the body read.

A notification doesn't pass through Starlette's middleware and routing table: these cost 10 µs, as much as all the rest
that the edge does. What is not a notification does. And there is a way that is shorter still: `take` and `settle` are
the edge without ASGI, for the request that nearly all are; see `express.py`.
"""

import asyncio
import itertools
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from receiver.core.body import INFLATED_BYTES_MAX
from receiver.core.errors import Malformed, Refused, Unavailable
from receiver.core.event import Event, Unrecognized
from receiver.core.notification import BESIDE, Envelope, Notification, envelope_of, parse, split
from receiver.edge.admission import Admission
from receiver.edge.arriving import Arriving, Disconnected, expect_length
from receiver.edge.peers import Network, sender_address
from receiver.inbox import Inbox
from receiver.request_lines import Fields
from receiver.telemetry import Telemetry

Authenticate = Callable[..., str | Coroutine[Any, Any, str]]
"""Finds the sender's name by the value of Authorization (None: there is none) and those of the further headers that may
have a token, at once or later. Raises Refused and Unavailable."""

RawHeaders = Sequence[tuple[bytes, bytes]]
"""Headers as ASGI has them: names in lower case, in the order in which they came."""

#: CAMARA Commonalities, CAMARA_common.yaml, XCorrelator. A value outside it is dropped, not refused.
_CORRELATOR = re.compile(rb"[a-zA-Z0-9\-_:;./<>{}]{1,256}")
#: W3C Trace Context: the version ff and ids of zeros alone are invalid.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

#: Two readers of two that differ could see two requests.
_ONCE = {b"host": "Host", b"authorization": "Authorization", b"content-type": "Content-Type"}
_WANTED = frozenset({*_ONCE, b"content-length", b"x-correlator", b"traceparent"})

_CONTENT_TYPE_CHARS_MAX = 2_048
_METHODS = "POST, GET, HEAD, OPTIONS"
_NOTHING_HERE = "there is nothing here; see the notificationUrl that was registered"
#: What is refused for these may be posted again, so it is told although its path is wrong too.
_ABOUT_SIZE = frozenset({HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.TOO_MANY_REQUESTS})
_SLASHES = re.compile("//+")
_BLANKS = frozenset({b" ", b"\t"})
_PATH_CHARS_MAX = 200
#: Short of what a token has.
_PART_CHARS_MAX = 19
_NO_CONTENT: Message = {"type": "http.response.body", "body": b""}


class Limits(NamedTuple):
    """What a request may have. The connection's own limits (`connection.py`) come before these."""

    body_bytes_max: int
    query_tokens: bool = False
    token_headers: Sequence[bytes] = ()  # in lower case
    trusted_proxies: Sequence[Network] = ()


class Taken(NamedTuple):
    """A request that is being kept. `kept` is done when its answer is known; `settle` tells it."""

    kept: asyncio.Future[None]
    line: Fields
    began: float

    @property
    def correlator(self) -> bytes:
        """What the answer's x-correlator is."""
        return str(self.line["correlator"]).encode()


class Edge:
    """The ASGI endpoint of the notification path."""

    def __init__(
        self,
        *,
        authenticate: Authenticate,
        admission: Admission,
        inbox: Inbox,
        telemetry: Telemetry,
        limits: Limits,
        clock_nanos: Callable[[], int] = time.time_ns,
    ) -> None:
        self._authenticate = authenticate
        self._admission = admission
        self._inbox = inbox
        self._telemetry = telemetry
        self._limits = limits
        self._wanted = _WANTED.union(limits.token_headers)
        self._clock_nanos = clock_nanos
        # Unique without asking the system for randomness at every request.
        self._correlators = map(f"{secrets.token_hex(6)}-{{:x}}".format, itertools.count(1))

    async def __call__(self, scope: Scope, receive: Receive, send: Send, *, beside: bool = False) -> None:
        """Answer one request; see the module for the answers. One `beside` our paths is kept, but not found."""
        if scope["method"] != "POST":
            await self._probe(scope, receive, send)
            return
        began, line = time.perf_counter(), self._line()
        try:
            await self._take(line, scope, receive, beside=beside)
        except Disconnected:
            line["outcome"] = "disconnected"
            line["status_code"] = 0
        except Exception as error:  # noqa: BLE001  # a fault of ours too is 503: senders give up on 500
            if beside and isinstance(error, Refused) and error.status not in _ABOUT_SIZE:
                error = error if error.status == HTTPStatus.NOT_FOUND else _not_found(sender=error.sender)
            await self._refuse(line, error, scope)(scope, receive, send)
        else:
            headers = [(b"x-correlator", str(line["correlator"]).encode())]
            await send({"type": "http.response.start", "status": 204, "headers": headers})
            await send(_NO_CONTENT)
        line["duration_seconds"] = round(time.perf_counter() - began, 6)
        self._telemetry.request(line)

    def take(self, raw_headers: RawHeaders, body: bytes) -> Taken | None:
        """Begin to keep a notification that is here as a whole; None where its answer is not simply 204."""
        began, line = time.perf_counter(), self._line()
        headers, fault = _headers(raw_headers, self._wanted)
        content_type = headers.get(b"content-type", b"")
        body_bytes = len(body)
        if fault or body_bytes > self._limits.body_bytes_max or not _is_json(content_type):
            return None
        if not body.startswith(b"{") or _envelope(headers):  # a batch, a coding, or attributes in headers
            return None
        try:
            others = self._other_tokens(headers) if self._limits.token_headers else ()
            sender = self._authenticate(headers.get(b"authorization"), *others)
            if not isinstance(sender, str):
                sender.close()
                return None
            line["sender"] = sender
            event = parse(body)
            self._admission.enter(sender, body_bytes, time.monotonic())
        except Exception:  # noqa: BLE001  # whatever it is, the long way comes to it too, and tells
            return None
        line["correlator"] = _text(headers, b"x-correlator", _CORRELATOR) or next(self._correlators)
        return Taken(self._inbox.append(_notification(line, headers, body, event)), line, began)

    def settle(self, taken: Taken) -> Response | None:
        """End what `take` began, once it is kept or is not; the answer to give, None being the 204."""
        kept, line, began = taken
        self._admission.leave(str(line["sender"]), int(line["body_bytes"]))
        error = Unavailable("the append was given up", reason="cancelled") if kept.cancelled() else kept.exception()
        response = None if error is None else self._refuse(line, error)
        line["duration_seconds"] = round(time.perf_counter() - began, 6)
        self._telemetry.request(line)
        return response

    def _line(self) -> Fields:
        return {
            "received_micros": self._clock_nanos() // 1000,
            "outcome": "kept",
            "status_code": 204,
            "sender": "",
            "session_id": "",
            "correlator": "",
            "body_bytes": 0,
        }

    def _other_tokens(self, headers: Mapping[bytes, bytes]) -> Sequence[bytes]:
        return [headers[name] for name in self._limits.token_headers if name in headers]

    def _refuse(self, line: Fields, error: BaseException, scope: Scope | None = None) -> Response:
        """The answer to a request that failed, as its line tells it. Without a scope it is no refusal."""
        if not isinstance(error, Refused | Unavailable):
            self._telemetry.edge_failed(str(line["correlator"]), error)
            error = Unavailable("the notification can't be taken now", reason="defect")
        response = refusal_response(error, str(line["correlator"]))
        line["outcome"] = error.reason if isinstance(error, Refused) else "unavailable"
        line["status_code"] = response.status_code
        if isinstance(error, Refused):
            line["sender"] = line["sender"] or error.sender
            if scope is not None:
                self._tell_refusal(line, error.why, error.message, scope)
        return response

    def _tell_refusal(self, line: Fields, why: str, message: str, scope: Scope) -> None:
        """Let a refusal be investigated: why, and who it was."""
        forwarded = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        peer = scope.get("client")
        address = sender_address(peer[0], forwarded, self._limits.trusted_proxies) if peer else ""
        self._telemetry.refused(int(line["status_code"]), why, message, line, address, _shown(scope["path"]))

    async def _take(self, line: Fields, scope: Scope, receive: Receive, *, beside: bool) -> None:
        """Take a notification in, and write into its line what is known of it."""
        headers, fault = _headers(scope["headers"], self._wanted, scope["http_version"])
        line["correlator"] = _text(headers, b"x-correlator", _CORRELATOR) or next(self._correlators)
        if fault:
            raise Refused(HTTPStatus.BAD_REQUEST, "INVALID_ARGUMENT", fault, reason="bad_request", why="headers")
        authorization = headers.get(b"authorization")
        if authorization is None and self._limits.query_tokens:
            authorization = _query_token(scope["query_string"])
        sender = self._authenticate(authorization, *self._other_tokens(headers))
        line["sender"] = sender = sender if isinstance(sender, str) else await sender
        # Whoever refuses a connection for want of room spares the senders' ones.
        scope.setdefault("state", {})["sender"] = sender
        expect_length(headers, self._limits.body_bytes_max)
        arriving = Arriving(self._admission, sender)
        try:
            body = await arriving.body(receive, self._limits.body_bytes_max)
            if beside:
                await self._keep_beside(line, headers, body, _shown(scope["path"]))
                raise _not_found(why="not_found_kept")
            await self._keep(line, headers, body)
        finally:
            arriving.leave()

    async def _keep_beside(self, line: Fields, headers: Mapping[bytes, bytes], body: bytes, path: str) -> None:
        """Keep what was posted where nothing is served: a dead letter as a whole, which a replay reads."""
        notification = _notification(line, headers, body, None, _envelope(headers))
        await self._inbox.append(notification._replace(origin=f"{BESIDE}{path}"))

    async def _keep(self, line: Fields, headers: Mapping[bytes, bytes], body: bytes) -> None:
        """Keep what was posted, each event of a batch as a notification of its own. Raises Refused and Unavailable."""
        envelope, limit = _envelope(headers), min(self._limits.body_bytes_max, INFLATED_BYTES_MAX)
        content_type = headers.get(b"content-type", b"")
        refusal: Refused | None = None
        notifications = []
        try:
            if not body.startswith(b"{") or envelope:
                plain = {**headers, b"content-type": content_type.replace(b"cloudevents-batch", b"cloudevents")}
                batch = split(body, envelope, limit)
                notifications = [_notification(line, plain, part, event) for part, event in batch]
                if len(batch) > 1:  # its line is about all of them
                    line["session_id"] = ""
                    line["outcome"] = "kept"
            if not notifications:
                event = parse(body, envelope, limit)
                notifications = [_notification(line, headers, body, event, envelope)]
        except Malformed as error:
            # The answer tells the sender, who may never look; the dead letter tells us.
            notifications = [_notification(line, headers, body, None, envelope)]
            refusal = error if _is_json(content_type) or error.status != HTTPStatus.BAD_REQUEST else _no_json()
        line["body_bytes"] = len(body)
        # All or nothing: what is repeated because of one that was not kept is known by then.
        kept = await asyncio.gather(*map(self._inbox.append, notifications), return_exceptions=True)
        for failure in filter(None, (*kept, refusal)):
            raise failure

    async def _probe(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer senders that ask whether we are here before they post, or post again (Horizon, CloudEvents)."""
        method, line = scope["method"], self._line()
        line["outcome"] = "probe"
        if method not in ("GET", "HEAD", "OPTIONS"):
            line["outcome"] = "method_not_allowed"
            response = _error(HTTPStatus.METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", f"use one of {_METHODS}")
            response.headers["allow"] = _METHODS
        elif self._inbox.trouble:
            response = refusal_response(Unavailable("notifications can't be kept now", reason="unavailable"), "")
        else:
            response = Response(status_code=204, headers={"allow": _METHODS})
            origin = Request(scope).headers.get("webhook-request-origin")
            if method == "OPTIONS" and origin is not None:
                # CloudEvents 1.0.2, http-webhook.md, 4: we take notifications of every origin that has a token.
                response.headers["webhook-allowed-origin"] = "*"
                response.headers["webhook-allowed-rate"] = "*"
        await response(scope, receive, send)
        line["status_code"] = response.status_code
        if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            self._tell_refusal(line, "method_not_allowed", f"use one of {_METHODS}", scope)
        self._telemetry.request(line)

    def nothing_here(self, status: HTTPStatus, scope: Scope) -> Response:
        """The answer to a request for another path that posts nothing."""
        line = self._line()
        line["outcome"], line["status_code"] = "not_found", status.value
        self._tell_refusal(line, "not_found", _NOTHING_HERE, scope)
        self._telemetry.request(line)
        return _error(status, status.name, _NOTHING_HERE)


class EdgeApp(Starlette):
    """The application of the public port: the edge on its paths, and CAMARA's error body for whatever else."""

    def __init__(self, edge: Edge, path: str) -> None:
        super().__init__(exception_handlers={HTTPException: self._nothing_here})
        self.edge = edge
        # Senders of release 0.8 append /notifications to the URL that they are given.
        self.paths = frozenset({path, f"{path}/notifications"})

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:  # type: ignore[override]
        """See ASGI. What it returns is awaited by the server; to do that here would be one more coroutine."""
        if scope["type"] == "http":
            path = scope["path"]
            if path in self.paths or _SLASHES.sub("/", path).rstrip("/") in self.paths:
                return self.edge(scope, receive, send)
            if scope["method"] == "POST":
                return self.edge(scope, receive, send, beside=True)
        return super().__call__(scope, receive, send)

    async def _nothing_here(self, request: Request, error: Exception) -> Response:
        status = HTTPStatus(error.status_code) if isinstance(error, HTTPException) else HTTPStatus.NOT_FOUND
        return self.edge.nothing_here(status, request.scope)


def _notification(
    line: Fields,
    headers: Mapping[bytes, bytes],
    body: bytes,
    event: Event | Unrecognized | None,
    envelope: Envelope = (),
) -> Notification:
    """What to keep of a request; its line learns what the event tells (None: nothing)."""
    sender = str(line["sender"])
    session_id = None if event is None else event.session_id
    if session_id is not None:
        line["session_id"] = session_id
    if type(event) is Unrecognized:
        line["outcome"] = "unrecognized"
    line["body_bytes"] = len(body)
    return Notification(
        body,
        session_id or sender,
        sender,
        int(line["received_micros"]),
        headers.get(b"content-type", b"").decode("latin-1")[:_CONTENT_TYPE_CHARS_MAX],
        str(line["correlator"]),
        _text(headers, b"traceparent", _TRACEPARENT),
        "",
        envelope,
    )


def _envelope(headers: Mapping[bytes, bytes]) -> Envelope:
    if headers.keys() <= _WANTED:
        return ()
    return envelope_of({name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()})


def refusal_response(error: Refused | Unavailable, correlator: str) -> Response:
    """The answer to a request that failed."""
    if isinstance(error, Unavailable):
        response = _error(HTTPStatus.SERVICE_UNAVAILABLE, "UNAVAILABLE", error.message)
    else:
        response = _error(error.status, error.code, error.message)
    if error.retry_after_seconds is not None:
        response.headers["retry-after"] = str(error.retry_after_seconds)
    if response.status_code == HTTPStatus.UNAUTHORIZED:
        response.headers["www-authenticate"] = "Bearer"
    if response.status_code == HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
        response.headers["accept-encoding"] = "gzip, deflate, identity"  # RFC 9110, 15.5.16
    if correlator:
        response.headers["x-correlator"] = correlator
    return response


def _error(status: HTTPStatus, code: str, message: str) -> Response:
    # CAMARA Commonalities, CAMARA_common.yaml, ErrorInfo: all three members, a message of at most 512 characters.
    content = orjson.dumps({"status": status.value, "code": code, "message": message[:512]})
    return Response(content, status.value, media_type="application/json")


def _headers(
    headers: RawHeaders, wanted: Collection[bytes], http_version: str = "1.1"
) -> tuple[dict[bytes, bytes], str]:
    """The headers that matter here, and what is wrong with them. One that stands twice with one value stands once."""
    found: dict[bytes, bytes] = {}
    fault = ""
    for name, value in headers:
        if value[-1:] in _BLANKS:  # RFC 9112, 5.1: they are no part of it, and the parser leaves them
            value = value.rstrip(b" \t")  # noqa: PLW2901
        if name in wanted:
            if name in _ONCE and found.get(name, value) != value:
                fault = f"more than one {_ONCE[name]} header"
            found[name] = value
        elif name.startswith(b"ce-"):
            found[name] = value
        elif name == b"content-encoding":
            found[name] = b"%b, %b" % (found[name], value) if name in found else value
    # RFC 9112, 3.2: of HTTP/1.1 it is required, before that it was not known.
    if b"host" not in found and http_version != "1.0":
        fault = "no Host header"
    content_type = found.get(b"content-type")
    if content_type is not None and b"," in content_type:
        found[b"content-type"] = _unmerged(content_type)
    return found, fault


def _unmerged(value: bytes) -> bytes:
    """A value that a proxy made of two equal ones, `a, a`, as it was."""
    parts = {part.strip() for part in value.split(b",")}
    return parts.pop() if len(parts) == 1 else value


def _text(headers: Mapping[bytes, bytes], name: bytes, pattern: re.Pattern[bytes]) -> str:
    value = headers.get(name)
    return value.decode() if value is not None and pattern.fullmatch(value) else ""


@lru_cache(256)
def _is_json(content_type: bytes) -> bool:
    """Whether a body of this type may be JSON. A missing type is read as JSON; `+json:` is one sender's spelling."""
    kind = content_type.split(b";")[0].strip().rstrip(b":").lower()
    return kind in (b"", b"application/json", b"text/json") or kind.endswith(b"+json")


def _no_json() -> Refused:
    text = "Content-Type must be application/cloudevents+json or application/json"
    return Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE", text, reason="unsupported")


def _not_found(*, why: str = "not_found", sender: str = "") -> Refused:
    status = HTTPStatus.NOT_FOUND
    return Refused(status, status.name, _NOTHING_HERE, reason="not_found", why=why, sender=sender)


def _shown(path: str) -> str:
    """A path as the log and a dead letter show it: short, and hardly anything of a part that could be a token."""
    parts = [part if len(part) <= _PART_CHARS_MAX else f"{part[:4]}…" for part in path[:_PATH_CHARS_MAX].split("/")]
    return "".join(each if each.isprintable() else "?" for each in "/".join(parts))


def _query_token(query_string: bytes) -> bytes | None:
    """A token in the query, as 0.8 (`apikey`) and CloudEvents (`access_token`) have it, as if in Authorization."""
    for part in query_string.split(b"&"):
        name, _, value = part.partition(b"=")
        if name in (b"access_token", b"apikey"):
            return b"Bearer " + unquote_to_bytes(value)
    return None
