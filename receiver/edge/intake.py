"""The intake: authenticate → admit → parse → append → 204, in three steps that wait for nothing.

    begin    looks at the head, finds the sender, and lets the request in
    keep     parses the body and appends what it tells
    settle   makes the answer, and tells metrics and log

`app.py` calls them for a request as ASGI has it, and waits between them; `express.py` for a request that is here as a
whole. A step that raises is the last one before `settle`, which is told the error.

The answers, by outcome (the `outcome` of metrics and log lines):

    kept, unrecognized   204   it is durable; of a batch each event is
    malformed            400   kept as a dead letter all the same
    unsupported          415   likewise: no notification, and of a content type or coding that is none of JSON's
    any other refusal    4xx   nothing was kept; the Refused that was raised has status, code and reason (413 of what is
                               too large only when it is inflated is kept)
    unavailable          503   nothing is known to be kept; Retry-After says when to come again (our own defects too)
    disconnected         -     the sender went away before its body had arrived
    probe                204   GET, HEAD and OPTIONS: a sender that looks whether we are here
    not_found            404   another path; what was posted there with a right token is a dead letter

Never 500, and never 410, which would end the feed (QualityOnDemand r1.2, Generic410).
"""

import itertools
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import orjson

from receiver.core.body import INFLATED_BYTES_MAX
from receiver.core.errors import Malformed, ReceiverError, Refused, Unavailable
from receiver.core.event import Event, Unrecognized
from receiver.core.notification import BESIDE, Notification, parse, split
from receiver.edge.admission import Admission
from receiver.edge.arriving import Disconnected
from receiver.edge.head import Head, RawHeaders, read_head
from receiver.edge.peers import Network, sender_address
from receiver.inbox import Inbox, Told
from receiver.telemetry import Telemetry

Authenticate = Callable[..., str | Coroutine[Any, Any, str]]
"""Finds the sender's name by the value of Authorization (None: there is none) and those of the further headers that may
have a token, at once or later. Raises Refused and Unavailable."""

_METHODS = "POST, GET, HEAD, OPTIONS"
_NOTHING_HERE = "there is nothing here; see the notificationUrl that was registered"
#: Beside our paths all refusals are told as 404, but for those after which a request may be posted again.
_TOLD_BESIDE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.TOO_MANY_REQUESTS})
_PROBE = "probe"
_MORE_HEADERS = {
    HTTPStatus.UNAUTHORIZED: [(b"www-authenticate", b"Bearer")],
    HTTPStatus.METHOD_NOT_ALLOWED: [(b"allow", _METHODS.encode())],
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: [(b"accept-encoding", b"gzip, deflate, identity")],  # RFC 9110, 15.5.16
}
_PATH_CHARS_MAX = 200
#: Short of what a token has.
_PART_CHARS_MAX = 19
_NOT_ADMITTED = -1


class Limits(NamedTuple):
    """What a request may have. The connection's own limits (`connection.py`) come before these."""

    body_bytes_max: int
    query_tokens: bool = False
    token_headers: Sequence[bytes] = ()  # in lower case
    trusted_proxies: Sequence[Network] = ()


class Answer(NamedTuple):
    """An answer, but for the empty 204 that nearly all requests get."""

    status: int
    headers: RawHeaders
    content: bytes = b""


class Request:
    """A request from its head to its answer, and what its line in the log tells.

    `beside` is its path where that is none of ours, else None. `sender` is whose token it has; `is_proved` tells that
    the token is valid. `admitted_bytes` are those that count in the admission. `refusal` is the answer to what is kept
    all the same.
    """

    __slots__ = (
        "admitted_bytes",
        "began",
        "beside",
        "body_bytes",
        "correlator",
        "duration_seconds",
        "head",
        "is_proved",
        "outcome",
        "peer",
        "received_micros",
        "refusal",
        "sender",
        "session_id",
        "status_code",
    )

    def __init__(self, head: Head, peer: str, received_micros: int, beside: str | None = None) -> None:
        self.head = head
        self.peer = peer
        self.beside = beside
        self.received_micros = received_micros
        self.outcome = "kept"
        self.status_code = 204
        self.sender = self.session_id = self.correlator = ""
        self.body_bytes = 0
        self.duration_seconds = 0.0
        self.is_proved = False
        self.admitted_bytes = _NOT_ADMITTED
        self.began = time.perf_counter()
        self.refusal: Refused | None = None


class Intake:
    """The three steps; see the module."""

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
        self.limits = limits
        self._clock_nanos = clock_nanos
        # Unique without asking the system for randomness at every request.
        self._correlators = map(f"{secrets.token_hex(6)}-{{:x}}".format, itertools.count(1))

    def head(self, headers: RawHeaders, query: bytes = b"", http_version: str = "1.1") -> Head:
        """What matters of a head."""
        limits = self.limits
        return read_head(headers, limits.token_headers, query if limits.query_tokens else b"", http_version)

    def request(self, head: Head, peer: str, beside: str | None = None) -> Request:
        """A request whose head is here, from the address `peer`; see `Request`."""
        return Request(head, peer, self._clock_nanos() // 1000, beside)

    def begin(self, request: Request, arrived_bytes: int = 0) -> Awaitable[None] | None:
        """Let a request in, so many bytes of whose body are here. What is returned is to be awaited before it is in.

        Raises Refused and Unavailable, and so does what is returned.
        """
        head = request.head
        request.correlator = head.correlator or next(self._correlators)
        if head.fault:
            raise Refused(HTTPStatus.BAD_REQUEST, "INVALID_ARGUMENT", head.fault, reason="bad_request", why="headers")
        sender = self._authenticate(*head.tokens)
        if not isinstance(sender, str):
            return self._admit_later(request, sender, arrived_bytes)
        self._admit(request, sender, arrived_bytes)
        return None

    async def _admit_later(self, request: Request, sender: Awaitable[str], arrived_bytes: int) -> None:
        self._admit(request, await sender, arrived_bytes)

    def _admit(self, request: Request, sender: str, arrived_bytes: int) -> None:
        request.sender = sender
        request.is_proved = True
        if request.head.length > self.limits.body_bytes_max:
            raise self._too_large()
        self._admission.enter(sender, arrived_bytes, time.monotonic())
        request.admitted_bytes = arrived_bytes

    def count(self, request: Request, more_bytes: int) -> None:
        """Count more bytes of the body, which have arrived. Raises Refused."""
        if request.admitted_bytes + more_bytes > self.limits.body_bytes_max:
            raise self._too_large()
        self._admission.grow(request.sender, more_bytes)
        request.admitted_bytes += more_bytes

    def keep(self, request: Request, body: bytes, told: Told) -> None:
        """Append what was posted, each event of a batch as a notification of its own; `told` hears once that is known.

        A body that is kept and refused all the same is refused by `settle`.
        """
        request.body_bytes = len(body)
        if body.startswith(b"{") and request.beside is None and not request.head.envelope:
            try:
                event = parse(body)
            except Malformed:
                pass  # as below
            else:
                self._inbox.take(_notification(request, body, event), told)
                return
        notifications = self._read(request, body)
        if len(notifications) > 1:
            told = _Together(len(notifications), told)
        for notification in notifications:
            self._inbox.take(notification, told)

    def _read(self, request: Request, body: bytes) -> Sequence[Notification]:
        """What is to be kept of a body, and in the request what is to be told of it."""
        if request.beside is not None:
            # A dead letter as a whole, which a replay reads.
            request.refusal = _not_found(why="not_found_kept")
            letter = _notification(request, body, None)
            return [letter._replace(origin=f"{BESIDE}{_shown(request.beside)}")]
        head, limit = request.head, min(self.limits.body_bytes_max, INFLATED_BYTES_MAX)
        try:
            if not body.startswith(b"{") or head.envelope:
                batch = dict(split(body, head.envelope, limit))  # equal elements are one: they tell the same
                if batch:
                    content_type = head.content_type.replace("cloudevents-batch", "cloudevents")
                    plain = head._replace(content_type=content_type, envelope=())
                    notifications = [_notification(request, part, event, plain) for part, event in batch.items()]
                    if len(batch) > 1:  # the line is about all of them
                        request.session_id = ""
                        request.outcome = "kept"
                    return notifications
            return [_notification(request, body, parse(body, head.envelope, limit))]
        except Malformed as error:
            # The answer tells the sender, who may never look; the dead letter tells us.
            request.refusal = error if head.is_json or error.status != HTTPStatus.BAD_REQUEST else _no_json()
            return [_notification(request, body, None)]

    def settle(self, request: Request, error: BaseException | None = None) -> Answer | None:
        """End a request, which failed with an error where there is one; the answer to give, None being the 204.

        One whose sender went away has no answer: its `status_code` is 0.
        """
        self.leave(request)
        error = error or request.refusal
        answer = None if error is None else self._failed(request, error)
        request.duration_seconds = round(time.perf_counter() - request.began, 6)
        self._telemetry.request(request)
        return answer

    def leave(self, request: Request) -> None:
        """Give back what a request held, if it held anything."""
        if request.admitted_bytes != _NOT_ADMITTED:
            self._admission.leave(request.sender, request.admitted_bytes)
            request.admitted_bytes = _NOT_ADMITTED

    def probe(self, request: Request, method: str, *, names_origin: bool) -> Answer:
        """Answer a sender that asks whether we are here before it posts, or posts again (Horizon, CloudEvents).

        `names_origin` tells that it wants to know whether an origin is allowed.
        """
        request.outcome = _PROBE
        error: ReceiverError | None = None
        headers = [(b"allow", _METHODS.encode())]
        if method not in ("GET", "HEAD", "OPTIONS"):
            status = HTTPStatus.METHOD_NOT_ALLOWED
            error = Refused(status, status.name, f"use one of {_METHODS}", reason="method_not_allowed")
        elif self._inbox.trouble:
            error = Unavailable("notifications can't be kept now", reason="unavailable")
        elif method == "OPTIONS" and names_origin:
            # CloudEvents 1.0.2, http-webhook.md, 4: we take notifications of every origin that has a token.
            headers += [(b"webhook-allowed-origin", b"*"), (b"webhook-allowed-rate", b"*")]
        return self.settle(request, error) or Answer(HTTPStatus.NO_CONTENT.value, headers)

    def nothing_here(self, request: Request) -> Answer | None:
        """Answer a request for another path that posts nothing."""
        return self.settle(request, _not_found())

    def _failed(self, request: Request, error: BaseException) -> Answer | None:
        if isinstance(error, Disconnected):
            request.outcome, request.status_code = "disconnected", 0
            return None
        if request.beside is not None and isinstance(error, Refused) and error.status not in _TOLD_BESIDE:
            error = _not_found(sender=error.sender)
        if not isinstance(error, Refused | Unavailable):  # a fault of ours too is 503: senders give up on 500
            self._telemetry.edge_failed(request.correlator, error)
            error = Unavailable("the notification can't be taken now", reason="defect")
        answer = error_answer(error, request.correlator)
        request.status_code = answer.status
        if isinstance(error, Refused):
            request.outcome = error.reason
            request.sender = request.sender or error.sender
            self._tell_refusal(request, error)
        elif request.outcome != _PROBE:
            request.outcome = "unavailable"
        return answer

    def _tell_refusal(self, request: Request, error: Refused) -> None:
        """Let a refusal be investigated: why, and whose request it was."""
        address = (
            sender_address(request.peer, request.head.forwarded, self.limits.trusted_proxies) if request.peer else ""
        )
        path = _shown(request.beside or "")
        self._telemetry.refused(request.status_code, error.why, error.message, request, address, path)

    def _too_large(self) -> Refused:
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        message = f"a body has at most {self.limits.body_bytes_max} bytes"
        return Refused(status, "PAYLOAD_TOO_LARGE", message, reason="too_large")


def _notification(
    request: Request, body: bytes, event: Event | Unrecognized | None, head: Head | None = None
) -> Notification:
    """What to keep of a request; its line learns what the event tells (None: nothing)."""
    head = head or request.head
    sender = request.sender
    session_id = None if event is None else event.session_id
    if session_id is not None:
        request.session_id = session_id
    if type(event) is Unrecognized:
        request.outcome = "unrecognized"
    return Notification(
        body,
        session_id or sender,
        sender,
        request.received_micros,
        head.content_type,
        request.correlator,
        head.traceparent,
        "",
        head.envelope,
    )


class _Together:
    """Hears of all events of a batch, and tells a failure or that there was none once all are known: what is repeated
    because one was not kept is known by then.
    """

    def __init__(self, count: int, told: Told) -> None:
        self._count = count
        self._told = told
        self._error: BaseException | None = None

    def __call__(self, error: BaseException | None) -> None:
        self._count -= 1
        self._error = self._error or error
        if not self._count:
            self._told(self._error)


def error_answer(error: Refused | Unavailable, correlator: str) -> Answer:
    """The answer to a request that failed."""
    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "UNAVAILABLE"
    if isinstance(error, Refused):
        status, code = error.status, error.code
    # CAMARA Commonalities, CAMARA_common.yaml, ErrorInfo: all three members, a message of at most 512 characters.
    content = orjson.dumps({"status": status.value, "code": code, "message": error.message[:512]})
    headers = [(b"content-length", b"%d" % len(content)), (b"content-type", b"application/json")]
    if error.retry_after_seconds is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_seconds))
    headers += _MORE_HEADERS.get(status, ())
    if correlator:
        headers.append((b"x-correlator", correlator.encode()))
    return Answer(status.value, headers, content)


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
