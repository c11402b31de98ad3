"""Notification: a sender's post, verbatim, and how it is read. Pure.

CAMARA's releases come down to three dialects (see `Dialect`), told apart by the shape of the body, never by its path or
content type: senders mix these up. Within a dialect parsing is lenient, because hardly any sender posts again: a body
is an event if it says which session changed to which status. Any other odd part is read as None and noted in
`Event.oddities`; unknown parts are ignored. A body is malformed only if it has two possible meanings, or does not say
which session changed to which status.
"""

import re
from base64 import b64decode
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from receiver.core import rfc3339
from receiver.core.body import COMPRESSED, INFLATED_BYTES_MAX, decoded, elements, tree_of
from receiver.core.errors import Malformed
from receiver.core.event import Dialect, Event, Oddity, QosStatus, Unrecognized, canonical
from receiver.core.value import Value

Envelope = tuple[tuple[str, str], ...]
"""Headers that affect how a body is read: names in lower case, and values."""

CONTENT_ENCODING = "content-encoding"
#: CloudEvents' HTTP binding in binary mode: the attributes are headers (http-protocol-binding.md, 3.1).
_ATTRIBUTE = "ce-"


class Notification(Value, frozen=True):
    """A posted body, and what the edge knew of it.

    `key` is the session id if the body names one, else the sender. `content_type`, `correlator` and `traceparent` are
    empty if the sender gave none. `origin` is empty for an ordinary post; `replay:0-17` for the dead letter at that
    partition and position; `beside:/a` for a post to the unserved path /a; and one of API_ORIGINS for a notification
    made from the operator API's answer. `envelope` has the headers that affect reading, see `envelope_of`; it is mostly
    empty.
    """

    body: bytes
    key: str
    sender: str
    received_micros: int
    content_type: str
    correlator: str
    traceparent: str
    origin: str = ""
    envelope: Envelope = ()


#: Limits of the envelope. The headers that this release reads come first; the others are kept while there is room.
_ENVELOPE_TEXT_CHARS_MAX = 2_048
_ENVELOPE_CHARS_MAX = 8_192
_ENVELOPE_FIRST = (CONTENT_ENCODING, "ce-specversion", "ce-type", "ce-id", "ce-source", "ce-time")


def is_of_envelope(name: str) -> bool:
    """Whether a header, named in lower case, affects how a body is read."""
    return name == CONTENT_ENCODING or name.startswith(_ATTRIBUTE)


def envelope_of(headers: Mapping[str, str]) -> Envelope:
    """The headers, of those given in lower case, that affect how a body is read, in bounded length. The content type
    is not among them.

    They are kept beside the body, so that a later release can read what this one can't.
    """
    names = sorted(filter(is_of_envelope, headers), key=lambda name: (name not in _ENVELOPE_FIRST, name))
    found: list[tuple[str, str]] = []
    left = _ENVELOPE_CHARS_MAX
    for name in names:
        value = headers[name][:_ENVELOPE_TEXT_CHARS_MAX]
        if value and len(name) + len(value) <= left:
            found.append((name, value))
            left -= len(name) + len(value)
    return tuple(found)


def envelope_again(told: Iterable[tuple[str, str]]) -> Envelope:
    """An envelope read back from JSON, which has no tuples. Raises TypeError and ValueError for any other value."""
    return tuple((name, value) for name, value in told)


#: Origins of notifications from the operator's API: answers to our own requests, and comparisons of its sessions with
#: ours. They may have facts (see `facts.py`), and count for sessions of any sender.
CLIENT = "client"
RECONCILE = "reconcile"
API_ORIGINS = frozenset({CLIENT, RECONCILE})


#: Prefixes of the origins of a notification posted to an unserved path, and of a replayed dead letter.
BESIDE = "beside:"
REPLAY = "replay:"


#: The form of a sender's name in the configuration.
SENDER_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


class Kind(Value, frozen=True):
    """A kind of event that this release understands: its types, and the members that hold its facts."""

    types: re.Pattern[str]
    #: Other spellings of the type's last part, compared after everything but letters was removed.
    names: re.Pattern[str]
    #: The type of an event whose sender gave none.
    type: str
    id_members: tuple[str, ...]
    status_members: tuple[str, ...]


#: A row for each kind of event. Another API's events need a place in `Event` first; until then they are unrecognized.
KINDS = (
    Kind(
        re.compile(
            # 0.10 and Telefónica's 1.1 say qod.v0, 0.11 and 1.x quality-on-demand.v0 and .v1, the test plan of 1.x says
            # qod.v1, and the guidelines leave out the version, or append -event, or write api. before it.
            r"org\.camaraproject\.(api\.)?(qod|quality-on-demand)(\.v[0-9]+)?\.qos-status-changed(-event)?"
            r"|QOS_STATUS_CHANGED"
        ),
        # Models generated from CAMARA's files use the schema's name as the type: QosStatusChangedEvent (0.9),
        # EventQosStatusChanged (from 0.10 on).
        re.compile(r"(event|notification)?qosstatuschanged(event|notification)?"),
        "org.camaraproject.quality-on-demand.v1.qos-status-changed",
        ("sessionId",),
        ("qosStatus", "status"),
    ),
)

#: QualityOnDemand v0.8.1: the spelling of qod-api.yaml, then that of documentation/API_documentation/Notifications.md.
_BARE_EVENTS = frozenset({"SESSION_TERMINATED", "SESSION_TERMINATION"})

#: QualityOnDemand r4.1 limits a session id to 36 characters and an id to 256; other senders use longer ones. These
#: bounds keep a record's key and headers small.
_KEY_CHARS_MAX = 256
_TEXT_CHARS_MAX = 2_048
_INTEGERS = range(-(2**63), 2**64)


class _Members(Value, frozen=True):
    """The names of an envelope's members, None where it has no such member. The first id that is present counts."""

    type: str
    time: str | None
    source: str | None
    ids: tuple[str, ...]


_CLOUDEVENTS = _Members("type", "time", "source", ("id",))
#: v0.9.0-rc spells it eventid.
_EVENT = _Members("eventType", "eventTime", None, ("eventId", "eventid"))
_BARE = _Members("event", None, None, ())

# Looking up an enum's member takes ten times as long as looking up a name.
_CLOUD, _UNAVAILABLE = Dialect.CLOUDEVENTS, QosStatus.UNAVAILABLE
_ODD_TYPE, _ODD_ID, _ODD_SOURCE, _ODD_TIME = Oddity.TYPE, Oddity.ID, Oddity.SOURCE, Oddity.TIME
_ODD_STATUS_INFO, _ODD_JSON = Oddity.STATUS_INFO, Oddity.JSON

#: Edge and router both parse a body; on a node that runs both the second time soon follows. Larger bodies are rare.
_REMEMBERED_MAX = 2_048
_REMEMBERED_BYTES_MAX = 2_048


def parse(body: bytes, envelope: Envelope = (), inflated_bytes_max: int = INFLATED_BYTES_MAX) -> Event | Unrecognized:
    """The event in a body; `envelope` holds the headers posted with it.

    A compressed body may inflate to `inflated_bytes_max` bytes. Raises Malformed, with a message for the sender.
    """
    if not envelope and not body.startswith(COMPRESSED):
        return _parse_small(body) if len(body) <= _REMEMBERED_BYTES_MAX else _parse(body)
    headers = dict(envelope)
    codings = headers.pop(CONTENT_ENCODING, "")
    attributes = {name.removeprefix(_ATTRIBUTE): unquote(value) for name, value in headers.items()}
    return _parse(decoded(body, codings, inflated_bytes_max), attributes)


def split(
    body: bytes, envelope: Envelope = (), inflated_bytes_max: int = INFLATED_BYTES_MAX
) -> Sequence[tuple[bytes, Event | Unrecognized | None]]:
    """The parts of a batch (CloudEvents, JSON format, 4; or any array of notifications): each part's bytes, verbatim,
    and its event, None if it is malformed.

    Empty for a body that is not a batch, or has no readable part. Raises Malformed as `parse` does.
    """
    told = [
        (each, _told_or_none(each))
        for each in elements(decoded(body, dict(envelope).get(CONTENT_ENCODING, ""), inflated_bytes_max)) or ()
    ]
    return told if any(each is not None for _, each in told) else ()


def _told_or_none(body: bytes) -> Event | Unrecognized | None:
    with suppress(Malformed):
        return parse(body)
    return None


def _parse(body: bytes, attributes: Mapping[str, Any] | None = None) -> Event | Unrecognized:
    tree, is_odd = tree_of(body)
    oddities = [_ODD_JSON] if is_odd else []
    if type(tree) is str:  # JSON encoded twice
        tree = _inner_tree(tree.encode(errors="surrogatepass"))
    if type(tree) is list:
        raise Malformed("the body is an array without a readable notification")
    if type(tree) is not dict:
        raise Malformed("the body is not a JSON object")
    if "specversion" in tree and (detail := _object(tree, "data", "data_base64")) is not None:
        return _event(_CLOUD, _CLOUDEVENTS, tree, detail, oddities)
    inner = tree.get("event")
    is_bare = type(inner) is str and inner in _BARE_EVENTS
    if attributes and not is_bare and type(inner) is not dict and "eventDetail" not in tree:
        return _event(_CLOUD, _CLOUDEVENTS, attributes, tree, oddities)
    if type(inner) is str:
        return _bare(tree, inner, oddities)
    flat = inner if type(inner) is dict else tree
    if (detail := _object(flat, "eventDetail")) is not None:
        return _event(Dialect.EVENT, _EVENT, flat, detail, oddities)
    # No release has these shapes, but they hold all facts.
    if (detail := _object(tree, "data", "data_base64")) is not None and _is_whole(detail):
        return _event(_CLOUD, _CLOUDEVENTS, tree, detail, oddities)
    if _is_whole(flat):
        is_event = "eventType" in flat
        dialect, members = (Dialect.EVENT, _EVENT) if is_event else (_CLOUD, _CLOUDEVENTS)
        return _event(dialect, members, flat, flat, oddities)
    raise Malformed(_what_is_missing(tree, flat))


def _what_is_missing(tree: Mapping[str, Any], flat: Mapping[str, Any]) -> str:
    if "specversion" in tree:
        return "data must be an object"
    if "eventType" in flat or "eventDetail" in flat:
        return "eventDetail must be an object"
    return "no known notification: neither specversion (CloudEvents) nor event, eventType or eventDetail"


_parse_small = lru_cache(_REMEMBERED_MAX)(_parse)

_STATUSES: dict[str, QosStatus] = {str(status): status for status in QosStatus}


def _event(
    dialect: Dialect,
    members: _Members,
    envelope: Mapping[str, Any],
    detail: Mapping[str, Any],
    oddities: list[Oddity],
) -> Event | Unrecognized:
    kind_name = _optional(envelope, members.type, [], _ODD_TYPE)  # if unknown, noted below
    kind = None if kind_name is None else _kind(kind_name)
    if kind is None:
        kind = _kind_by_content(kind_name, detail)
        if kind is None:
            kind_name = _needed(envelope, members.type)
            return Unrecognized(kind_name, _any_session_id(detail), f"unknown event type {_quoted(kind_name)}")
        oddities.append(_ODD_TYPE)
    session_id = _session_id(detail, kind.id_members)
    status = _first(detail, kind.status_members)
    if status is None:
        raise Malformed(f"{kind.status_members[0]} is missing")
    qos_status = _STATUSES.get(status)
    if qos_status is None:
        name = kind_name or kind.type
        return Unrecognized(name, session_id, f"unknown {kind.status_members[0]} {_quoted(status)}")
    status_info = None
    if qos_status is _UNAVAILABLE:  # CAMARA has it for UNAVAILABLE only; some senders repeat an old one
        status_info = _optional(detail, "statusInfo", oddities, _ODD_STATUS_INFO)
    identifier = None
    for member in members.ids:
        if (identifier := _optional(envelope, member, oddities, _ODD_ID)) is not None:
            break
    return Event(
        session_id,
        qos_status,
        status_info,
        None if members.time is None else _time_micros(envelope, members.time, oddities),
        identifier,
        None if members.source is None else _optional(envelope, members.source, oddities, _ODD_SOURCE),
        kind_name or kind.type,
        dialect,
        tuple(oddities),
    )


def _bare(tree: Mapping[str, Any], name: str, oddities: list[Oddity]) -> Event | Unrecognized:
    """The event of a 0.8 body, which says only that a session ended: without a reason, a time and an id."""
    if name in _BARE_EVENTS:
        session_id = _session_id(tree, ("sessionId",))
        return Event(session_id, _UNAVAILABLE, None, None, None, None, name, Dialect.BARE, tuple(oddities))
    if _is_whole(tree):
        return _event(Dialect.BARE, _BARE, tree, tree, oddities)
    return Unrecognized(name[:_TEXT_CHARS_MAX], _any_session_id(tree), f"unknown event {_quoted(name)}")


@lru_cache(1024)
def _kind(name: str) -> Kind | None:
    return next((kind for kind in KINDS if kind.types.fullmatch(name)), None)


def _kind_by_content(name: str | None, detail: Mapping[str, Any]) -> Kind | None:
    """The kind of a complete event whose type is unknown or missing.

    An unknown type in CloudEvents' form may be another API's event that merely looks the same, unless its last part is
    the name of a kind. A missing or plain type is not another API's.
    """
    if not _is_whole(detail):
        return None
    if name is None:
        return KINDS[0]
    *before, last = re.split(r"[./:#]", name)
    letters = re.sub(r"[^a-z]", "", last.lower())
    return next((kind for kind in KINDS if kind.names.fullmatch(letters)), None if before else KINDS[0])


def _is_whole(detail: Mapping[str, Any]) -> bool:
    """Whether it says which session changed to which status, in the QoD API's own words."""
    status = detail.get("qosStatus")
    return type(status) is str and status in _STATUSES and _any_session_id(detail) is not None


def _object(tree: Mapping[str, Any], *names: str) -> Mapping[str, Any] | None:
    """The first member that is an object, or text with an object's JSON, plain or in Base64 (CloudEvents, 3.1.2)."""
    for name in names:
        value = tree.get(name)
        if type(value) is dict:
            return value
        if type(value) is str and value:
            with suppress(ValueError, Malformed):
                inner = _inner_tree(b64decode(value) if name.endswith("_base64") else value.encode())
                if type(inner) is dict:
                    return inner
    return None


def _inner_tree(text: bytes) -> Any:  # noqa: ANN401  # what JSON is
    return tree_of(text)[0]


def _needed(tree: Mapping[str, Any], member: str) -> str:
    value = _text(tree, member)
    if value is None:
        raise Malformed(f"{member} is missing")
    return value


def _text(tree: Mapping[str, Any], member: str) -> str | None:
    """A text member, converted if it is an integer; None if it is absent, null or empty, which senders mix up."""
    value = tree.get(member)
    if type(value) is not str:
        if value is None:
            return None
        # The guidelines' own example has a number for an id. Numbers beyond 64 bits are rounded to floats, so two ids
        # could become one.
        if type(value) is not int or value not in _INTEGERS:
            raise Malformed(f"{member} must be a string")
        return str(value)
    if len(value) > _TEXT_CHARS_MAX or not value.isprintable():
        raise Malformed(f"{member} must be at most {_TEXT_CHARS_MAX} printable characters")
    return value or None


def _optional(tree: Mapping[str, Any], member: str, oddities: list[Oddity], oddity: Oddity) -> str | None:
    """A member that an event can do without: None, with an oddity noted, if it is invalid."""
    value = tree.get(member)
    if value is None or (type(value) is str and len(value) <= _TEXT_CHARS_MAX and value.isprintable()):
        return value or None
    try:
        return _text(tree, member)
    except Malformed:
        oddities.append(oddity)
        return None


def _first(tree: Mapping[str, Any], members: tuple[str, ...]) -> str | None:
    for member in members:
        value = tree.get(member)
        if type(value) is not str or not value or len(value) > _TEXT_CHARS_MAX or not value.isprintable():
            value = _text(tree, member)
        if value is not None:
            return value
    return None


def _session_id(detail: Mapping[str, Any], members: tuple[str, ...]) -> str:
    session_id = _first(detail, members)
    if session_id is None:
        raise Malformed(f"{members[0]} is missing")
    if len(session_id) > _KEY_CHARS_MAX:
        raise Malformed(f"{members[0]} must be at most {_KEY_CHARS_MAX} characters")
    return canonical(session_id)


def _any_session_id(detail: Mapping[str, Any]) -> str | None:
    """The session that an unrecognized event may be about, so that it is kept beside that session's other events."""
    session_id = detail.get("sessionId")
    if type(session_id) is str and 0 < len(session_id) <= _KEY_CHARS_MAX and session_id.isprintable():
        return canonical(session_id)
    return None


def _time_micros(envelope: Mapping[str, Any], member: str, oddities: list[Oddity]) -> int | None:
    """The event's time, None if `rfc3339` can't read it: a guess could change the order of events."""
    time = envelope.get(member)
    if time is None or time == "":
        return None
    if type(time) is str:
        try:  # a third of what `suppress` costs
            micros = rfc3339.micros(time)
        except (ValueError, OverflowError):
            pass
        else:
            if micros in rfc3339.WRITABLE_MICROS:
                return micros
    oddities.append(_ODD_TIME)
    return None


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")  # noqa: PLR2004  # enough to recognize it
