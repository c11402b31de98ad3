"""The intake: authenticate → admit → parse → append → 204, in three steps that do not wait.

    begin    reads the head, finds the sender, and admits the request
    keep     parses the body and appends its notifications
    settle   makes the answer, and reports to metrics and log

`app.py` calls them for an ASGI request, and waits between them; `express.py` calls them for a request that has arrived
whole. If a step raises, the next step is `settle`, which is given the error.

The answers, by outcome (the `outcome` of metrics and log lines):

    kept, unrecognized   204   it is durable; of a batch, every event is
    malformed            400   kept as a dead letter all the same
    unsupported          415   likewise: not a notification, with a content type or coding that is not JSON's
    any other refusal    4xx   nothing was kept; the Refused that was raised has status, code and reason (a body that
                               is too large only when inflated, also 413, is kept)
    unavailable          503   nothing is known to be kept; Retry-After says when to retry (also for our own defects)
    disconnected         -     the sender disconnected before its body had arrived
    probe                204   GET, HEAD and OPTIONS: a sender checks whether the receiver is there
    not_found            404   another path; a post there with a valid token becomes a dead letter

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
hold a token, at once or later. Raises Refused and Unavailable."""

_METHODS = "POST, GET, HEAD, OPTIONS"
_NOTHING_HERE = "there is nothing here; see the notificationUrl that was registered"
#: On other paths every refusal is answered 404, except those after which a request may be posted again.
_TOLD_BESIDE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.TOO_MANY_REQUESTS})
_PROBE = "probe"
_MORE_HEADERS = {
    HTTPStatus.UNAUTHORIZED: [(b"www-authenticate", b"Bearer")],
    HTTPStatus.METHOD_NOT_ALLOWED: [(b"allow", _METHODS.encode())],
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: [(b"accept-encoding", b"gzip, deflate, identity")],  # RFC 9110, 15.5.16
}
_PATH_CHARS_MAX = 200
#: Shorter than any token.
_PART_CHARS_MAX = 19
_NOT_ADMITTED = -1


class Limits(NamedTuple):
    """The limits of a request. The connection's own limits (`connection.py`) apply first."""

    body_bytes_max: int
    query_tokens: bool = False
    token_headers: Sequence[bytes] = ()  # in lower case
    trusted_proxies: Sequence[Network] = ()


class Answer(NamedTuple):
    """An answer other than the empty 204, which most requests get."""

    status: int
    headers: RawHeaders
    content: bytes = b""


class Request:
    """A request from its head to its answer, with the fields of its log line.

    `beside` is its path if that is not one of ours, else None. `sender` is the sender of its token; `is_proved` says
    that the token is valid. `admitted_bytes` count in the admission. `refusal` is the answer to a body that is kept all
    the same.
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
        # Unique without asking the system for randomness on every request.
        self._correlators = map(f"{secrets.token_hex(6)}-{{:x}}".format, itertools.count(1))

    def head(self, headers: RawHeaders, query: bytes = b"", http_version: str = "1.1") -> Head:
        """The parts of a head that are used."""
        limits = self.limits
        return read_head(headers, limits.token_headers, query if limits.query_tokens else b"", http_version)

    def request(self, head: Head, peer: str, beside: str | None = None) -> Request:
        """A request whose head has arrived, from the address `peer`; see `Request`."""
        return Request(head, peer, self._clock_nanos() // 1000, beside)

    def begin(self, request: Request, arrived_bytes: int = 0) -> Awaitable[None] | None:
        """Admit a request; `arrived_bytes` of its body have arrived. A returned awaitable must be awaited first.

        Raises Refused and Unavailable, and so does the awaitable.
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
        """Count more bytes of the body that have arrived. Raises Refused."""
        if request.admitted_bytes + more_bytes > self.limits.body_bytes_max:
            raise self._too_large()
        self._admission.grow(request.sender, more_bytes)
        request.admitted_bytes += more_bytes

    def keep(self, request: Request, body: bytes, told: Told) -> None:
        """Append the body, each event of a batch as a notification of its own; `told` is called once, with the outcome.

        A body that is kept but refused is refused by `settle`.
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
        """The notifications in a body. Sets the request's outcome, session id and refusal."""
        if request.beside is not None:
            # The whole body becomes a dead letter, which a replay can read.
            request.refusal = _not_found(why="not_found_kept")
            letter = _notification(request, body, None)
            return [letter._replace(origin=f"{BESIDE}{_shown(request.beside)}")]
        head, limit = request.head, min(self.limits.body_bytes_max, INFLATED_BYTES_MAX)
        try:
            if not body.startswith(b"{") or head.envelope:
                batch = dict(split(body, head.envelope, limit))  # equal elements hold the same event
                if batch:
                    content_type = head.content_type.replace("cloudevents-batch", "cloudevents")
                    plain = head._replace(content_type=content_type, envelope=())
                    notifications = [_notification(request, part, event, plain) for part, event in batch.items()]
                    if len(batch) > 1:  # the log line covers all of them
                        request.session_id = ""
                        request.outcome = "kept"
                    return notifications
            return [_notification(request, body, parse(body, head.envelope, limit))]
        except Malformed as error:
            # The sender, who is answered, may never look; the dead letter informs the operator.
            request.refusal = error if head.is_json or error.status != HTTPStatus.BAD_REQUEST else _no_json()
            return [_notification(request, body, None)]

    def settle(self, request: Request, error: BaseException | None = None) -> Answer | None:
        """End a request. `error` is why it failed, if it did. Returns the answer, None for the empty 204.

        After a disconnect there is no answer, and the request's `status_code` is 0.
        """
        self.leave(request)
        error = error or request.refusal
        answer = None if error is None else self._failed(request, error)
        request.duration_seconds = round(time.perf_counter() - request.began, 6)
        self._telemetry.request(request)
        return answer

    def leave(self, request: Request) -> None:
        """Give back what a request holds in the admission, if anything."""
        if request.admitted_bytes != _NOT_ADMITTED:
            self._admission.leave(request.sender, request.admitted_bytes)
            request.admitted_bytes = _NOT_ADMITTED

    def probe(self, request: Request, method: str, *, names_origin: bool) -> Answer:
        """Answer a sender that checks whether the receiver is there before it posts, or retries (Horizon, CloudEvents).

        `names_origin` says that it asks whether an origin is allowed.
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
            # CloudEvents 1.0.2, http-webhook.md, 4: notifications of every origin with a token are accepted.
            headers += [(b"webhook-allowed-origin", b"*"), (b"webhook-allowed-rate", b"*")]
        return self.settle(request, error) or Answer(HTTPStatus.NO_CONTENT.value, headers)

    def nothing_here(self, request: Request) -> Answer | None:
        """Answer a request for another path that is not a POST."""
        return self.settle(request, _not_found())

    def _failed(self, request: Request, error: BaseException) -> Answer | None:
        if isinstance(error, Disconnected):
            request.outcome, request.status_code = "disconnected", 0
            return None
        if request.beside is not None and isinstance(error, Refused) and error.status not in _TOLD_BESIDE:
            error = _not_found(sender=error.sender)
        if not isinstance(error, Refused | Unavailable):  # our own defects are 503 too: senders give up on 500
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
        """Report a refusal for investigation: the reason, and the address it came from."""
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
    """The notification to keep. Sets the request's session id and outcome from the event (None: it has none)."""
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
    """Waits for the outcomes of all events of a batch, then reports one: an error if any event failed. The sender then
    repeats the batch, when the outcome of each event is known.
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
    """A path as the log and a dead letter show it: short, with long parts, which could be tokens, cut."""
    parts = [part if len(part) <= _PART_CHARS_MAX else f"{part[:4]}…" for part in path[:_PATH_CHARS_MAX].split("/")]
    return "".join(each if each.isprintable() else "?" for each in "/".join(parts))
