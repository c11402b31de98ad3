"""The expected results of a request: the right answers, and for each of them the records on the topics."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum
from hashlib import blake2b
from typing import NamedTuple

#: The type of an event whose sender told none: that of the latest release.
TYPE = "org.camaraproject.quality-on-demand.v1.qos-status-changed"
EXPECTED_ENDS = frozenset({"DURATION_EXPIRED", "DELETE_REQUESTED"})
CLOSED = 0
"""In place of a status: the connection was closed without an answer."""

Line = tuple[str, ...]
"""A record in words that can be compared: its topic, and what matters of it."""

NONE = "-"
#: In place of a time: the time of receipt. In place of an id: the notification's place in the inbox.
RECEIVED = "received"
PLACE = "place"
#: In place of a record: any record, with the sender and the body that follow.
ANY = "any"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Change(NamedTuple):
    """The right reading of a change of a session's status. Times are microseconds since 1970, None for the receipt.

    The fields behind `type` are the expected result. `state` is the session's state afterwards, None if it is the
    change's.
    """

    session_id: str
    status: str
    info: str | None
    time: int | None
    id: str | None
    source: str | None
    type: str = TYPE
    verdict: str = "accepted"
    state: "State | None" = None


class State(NamedTuple):
    """A session's state. Times are as in Change."""

    status: str
    info: str | None
    time: int | None
    since: int | None = None
    seconds: float | None = None
    granted: bool = False  # by this change, which came late


class Unknown(NamedTuple):
    """A well-formed notification of an unknown type or status. `session_id` is None if it names none."""

    session_id: str | None


class Part(NamedTuple):
    """A part that is kept separately: its bytes, its meaning (None: no notification), and the headers of its dead
    letter.
    """

    body: bytes
    told: Change | Unknown | None
    headers: Mapping[str, str]


class Sent(NamedTuple):
    """The edge's knowledge of a request beside its body."""

    sender: str
    traceparent: str
    origin: str = ""


class End(Enum):
    """How a connection ends with a request."""

    NOT = "it goes on"
    CLOSED = "the receiver closes it"
    SENDING = "we say that we send no more, and the receiver closes it"
    LEAVING = "we close it behind the answer"
    GONE = "we close it without waiting for an answer"


class Request(NamedTuple):
    """A request and its right results: for each right status, the lines that must be on the topics.

    `correlator` is what the answer must have, empty if one is made. `ends`: the connection ends with this request; an
    answer before its close must be one of `after`. `pause` is how many bytes are sent before 100 Continue came.
    """

    raw: bytes
    right: Mapping[int, Sequence[Line]]
    tags: Sequence[str]
    method: str = "POST"
    correlator: str = ""
    ends: End = End.NOT
    after: frozenset[int] = frozenset()
    pause: int = 0


def micros_of(time: datetime) -> int:
    """Microseconds since 1970."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def text_of(micros: int | None) -> str:
    """A time as records spell it: UTC, without trailing zeros."""
    if micros is None:
        return RECEIVED
    text = (_EPOCH + timedelta(microseconds=micros)).replace(tzinfo=None).isoformat()
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}Z"


def digest(body: bytes) -> str:
    """The digest that stands for a body in a line."""
    return f"{len(body)} bytes, {blake2b(body, digest_size=12).hexdigest()}"


def lines_of(part: Part, sent: Sent) -> list[Line]:
    """The records of kept parts."""
    told = part.told
    if sent.origin:
        return [_letter(part, sent, "unrecognized", sent.sender)]
    if told is None:
        return [_letter(part, sent, "malformed", sent.sender)]
    if isinstance(told, Unknown):
        return [_letter(part, sent, "unrecognized", told.session_id or sent.sender)]
    if told.verdict == "conflict":
        return [_letter(part, sent, "conflict", told.session_id)]
    if told.verdict == "duplicate":
        return []
    state = told.state or _state(told)
    lines = [_session(told, state, sent)]
    if told.verdict != "unchanged":
        line = _status(told, state, sent)
        lines.append(("status", *line))
        if told.status == "UNAVAILABLE" and told.verdict == "accepted":
            lines.append(("unavailable", *line))
    return lines


def any_of(body: bytes, sender: str) -> Line:
    """One record of any kind: a change of status or a dead letter with this body."""
    return (ANY, sender, digest(body))


def _state(told: Change) -> State:
    return State(told.status, told.info, told.time, told.time if told.status == "AVAILABLE" else None)


def _seconds(seconds: float | None) -> str:
    return NONE if seconds is None else f"{seconds:.6f}"


def _since(state: State) -> str:
    if state.since is None:
        return RECEIVED if state.status == "AVAILABLE" else NONE
    return text_of(state.since)


def _session(told: Change, state: State, sent: Sent) -> Line:
    since, seconds = _since(state), _seconds(state.seconds)
    fact = told.session_id, state.status, state.info or NONE, text_of(state.time)
    return ("sessions", *fact, sent.sender, since, seconds, told.verdict)


def _status(told: Change, state: State, sent: Sent) -> Line:
    is_end = told.status == "UNAVAILABLE"
    tells = state.granted or (is_end and told.verdict == "accepted")
    fact = told.session_id, told.status, told.info or NONE, text_of(told.time), sent.sender
    unexpected = str(told.info not in EXPECTED_ENDS) if is_end else NONE
    since = _since(state) if state.granted else NONE
    seconds = _seconds(state.seconds) if tells else NONE
    identity = told.id or PLACE, told.source or f"/senders/{sent.sender}", told.type
    traced = told.verdict, sent.traceparent or NONE
    return (*fact, unexpected, since, seconds, *identity, *traced)


def _letter(part: Part, sent: Sent, verdict: str, key: str) -> Line:
    headers = {**part.headers, "traceparent": sent.traceparent}
    told = (f"{name}={value}" for name, value in sorted(headers.items()) if value)
    return ("dead-letter", key, verdict, sent.sender, digest(part.body), sent.origin or NONE, *told)
