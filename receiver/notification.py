"""Notification: what a sender posted, verbatim, and how it is read. Pure.

CAMARA's releases come down to three dialects (see `Dialect`), told apart by the shape of the body, never by its path or
content type: senders mix these up. Within a dialect we are lenient, because hardly any sender posts again: what is
missing but not needed is None, what is unknown is passed over. A body is malformed only where it could be read in two
ways, or where it doesn't tell which session changed to what.
"""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from receiver import rfc3339
from receiver.errors import Malformed
from receiver.event import Dialect, Event, QosStatus, Unrecognized


class Notification(NamedTuple):
    """A posted body, and what the edge knew of it.

    `key` is the session id where the body names one, else the sender. `content_type`, `correlator` and `traceparent`
    are empty where the sender gave none. `origin` is empty for what was posted, `replay:0-17` for the dead letter that
    lies at that partition and position, `beside:/a` for what was posted to /a, where nothing is served, and one of
    API_ORIGINS for what the operator's API told.
    """

    body: bytes
    key: str
    sender: str
    received_micros: int
    content_type: str
    correlator: str
    traceparent: str
    origin: str = ""


#: What the answer to a request of our own told, and what was found by comparing the API's sessions with ours. Such a
#: notification may have facts (see `facts.py`), and its word counts whoever the session's sender is.
CLIENT = "client"
RECONCILE = "reconcile"
API_ORIGINS = frozenset({CLIENT, RECONCILE})


#: What the origin begins with of a notification that was posted beside our paths.
BESIDE = "beside:"


#: What a sender is called in a configuration.
SENDER_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


class Kind(NamedTuple):
    """A kind of event that this release understands: the types that it goes by, and the members that tell its facts."""

    types: re.Pattern[str]
    id_members: tuple[str, ...]
    status_members: tuple[str, ...]


#: Another API's events become a row here, once they have a place in `Event`; until then they are unrecognized.
KINDS = (
    Kind(
        re.compile(
            # 0.10 and Telefónica's 1.1 say qod.v0, 0.11 and 1.x quality-on-demand.v0 and .v1, the test plan of 1.x says
            # qod.v1, and the guidelines leave out the version, or append -event, or write api. before it.
            r"org\.camaraproject\.(api\.)?(qod|quality-on-demand)(\.v[0-9]+)?\.qos-status-changed(-event)?"
            r"|QOS_STATUS_CHANGED"
        ),
        ("sessionId",),
        ("qosStatus", "status"),
    ),
)

#: QualityOnDemand v0.8.1, qod-api.yaml; documentation/API_documentation/Notifications.md spells it the other way.
_BARE_EVENTS = frozenset({"SESSION_TERMINATED", "SESSION_TERMINATION"})

#: QualityOnDemand r4.1 limits a session id to 36 characters and an id to 256; other senders' are longer. These bounds
#: keep a record's key and headers small.
_KEY_CHARS_MAX = 256
_TEXT_CHARS_MAX = 2_048


#: The edge parses, and so does the router, which on a node that does both is soon after. Larger bodies are rare.
_REMEMBERED_MAX = 2_048
_REMEMBERED_BYTES_MAX = 2_048


def parse(body: bytes) -> Event | Unrecognized:
    """The event that a body tells of. Raises Malformed, with a message for the sender."""
    return _parse_small(body) if len(body) <= _REMEMBERED_BYTES_MAX else _parse(body)


def _parse(body: bytes) -> Event | Unrecognized:
    tree = _json(body)
    if type(tree) is not dict:
        raise Malformed("the body is not a JSON object")
    if "specversion" in tree:
        detail = _object(tree, "data")
        return _event(Dialect.CLOUDEVENTS, tree, detail, _name(tree, "type"), _text(tree, "id"), _text(tree, "time"))
    inner = tree.get("event")
    if type(inner) is str:
        return _bare(tree, inner)
    flat = inner if type(inner) is dict else tree
    if "eventType" in flat or "eventDetail" in flat:
        detail = _object(flat, "eventDetail")
        # v0.9.0-rc spells it eventid.
        identifier = _text(flat, "eventId") or _text(flat, "eventid")
        return _event(Dialect.EVENT, {}, detail, _name(flat, "eventType"), identifier, _text(flat, "eventTime"))
    raise Malformed("no known notification: neither specversion (CloudEvents) nor event, eventType or eventDetail")


_parse_small = lru_cache(_REMEMBERED_MAX)(_parse)

_STATUSES: dict[str, QosStatus] = {str(status): status for status in QosStatus}


def _event(  # noqa: PLR0917  # what an envelope may have
    dialect: Dialect,
    attributes: Mapping[str, Any],
    detail: Mapping[str, Any],
    kind_name: str,
    identifier: str | None,
    time: str | None,
) -> Event | Unrecognized:
    kind = _kind(kind_name)
    if kind is None:
        return Unrecognized(kind_name, _any_session_id(detail), f"unknown event type {_quoted(kind_name)}")
    session_id = _session_id(detail, kind.id_members)
    time_micros = None if time is None else _micros(time)
    source = _text(attributes, "source")
    status, status_info = _first(detail, kind.status_members), _text(detail, "statusInfo")
    if status is None:
        raise Malformed(f"{kind.status_members[0]} is missing")
    qos_status = _STATUSES.get(status)
    if qos_status is None:
        return Unrecognized(kind_name, session_id, f"unknown {kind.status_members[0]} {_quoted(status)}")
    if qos_status is not QosStatus.UNAVAILABLE:
        status_info = None  # CAMARA: it applies to UNAVAILABLE alone; some senders repeat an old one
    return Event(session_id, qos_status, status_info, time_micros, identifier, source, kind_name, dialect)


def _bare(tree: Mapping[str, Any], name: str) -> Event | Unrecognized:
    """0.8 tells only that a session ended: not why, not when, and without an id."""
    if name not in _BARE_EVENTS:
        return Unrecognized(name[:_TEXT_CHARS_MAX], _any_session_id(tree), f"unknown event {_quoted(name)}")
    session_id = _session_id(tree, ("sessionId",))
    return Event(session_id, QosStatus.UNAVAILABLE, None, None, None, None, name, Dialect.BARE)


@lru_cache(1024)
def _kind(name: str) -> Kind | None:
    return next((kind for kind in KINDS if kind.types.fullmatch(name)), None)


def _json(body: bytes) -> Any:  # noqa: ANN401  # what JSON is
    try:
        tree = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed(_not_json(body, error)) from None
    try:
        # What we would write for it is what was sent: then no name stands twice, nor is anything spelled oddly.
        if orjson.dumps(tree) == body:
            return tree
    except orjson.JSONEncodeError:
        # It writes 254 levels. How many the slower reader below takes depends on who calls it.
        raise Malformed("the body is nested too deeply") from None
    try:
        json.loads(body, object_pairs_hook=_once_each)
    except ValueError:
        raise Malformed("the body is not JSON that every reader reads alike") from None
    return tree


def _once_each(pairs: list[tuple[str, Any]]) -> None:
    """Refuse a name that stands twice: of two readers each could take another value for the session's id."""
    if len({name for name, _ in pairs}) < len(pairs):
        raise Malformed("a member stands twice in one object")


def _not_json(body: bytes, error: orjson.JSONDecodeError) -> str:
    if not body.strip():
        return "the body is empty"
    if body.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in body[:4]:
        return "the body is not UTF-8: it looks like UTF-16 or UTF-32"
    if body.startswith(b"\xef\xbb\xbf"):
        return "the body begins with a byte order mark, which JSON may not"
    return f"the body is not JSON: {error}"


def _object(tree: Mapping[str, Any], member: str) -> dict[str, Any]:
    value = tree.get(member)
    if type(value) is not dict:
        raise Malformed(f"{member} must be an object")
    return value


def _name(tree: Mapping[str, Any], member: str) -> str:
    value = _text(tree, member)
    if value is None:
        raise Malformed(f"{member} is missing")
    return value


def _text(tree: Mapping[str, Any], member: str) -> str | None:
    """A member that is text, or was meant to be; None where it is absent, null or empty, which senders mix up."""
    value = tree.get(member)
    if type(value) is not str:
        if value is None:
            return None
        # The guidelines' own example has a number for an id. One of more than 64 bits was rounded to a float, as many
        # others may be: two ids would become one.
        if type(value) is not int:
            raise Malformed(f"{member} must be a string")
        return str(value)
    if len(value) > _TEXT_CHARS_MAX or not value.isprintable():
        raise Malformed(f"{member} must be at most {_TEXT_CHARS_MAX} printable characters")
    return value or None


def _first(tree: Mapping[str, Any], members: tuple[str, ...]) -> str | None:
    for member in members:
        if (value := _text(tree, member)) is not None:
            return value
    return None


def _session_id(detail: Mapping[str, Any], members: tuple[str, ...]) -> str:
    session_id = _first(detail, members)
    if session_id is None:
        raise Malformed(f"{members[0]} is missing")
    if len(session_id) > _KEY_CHARS_MAX:
        raise Malformed(f"{members[0]} must be at most {_KEY_CHARS_MAX} characters")
    return session_id


def _any_session_id(detail: Mapping[str, Any]) -> str | None:
    """The session that an event which we don't know may be about, so that it lies beside that session's others."""
    session_id = detail.get("sessionId")
    if type(session_id) is str and 0 < len(session_id) <= _KEY_CHARS_MAX and session_id.isprintable():
        return session_id
    return None


def _micros(time: str) -> int:
    """RFC 3339, and what senders take for it: no seconds, no zone (UTC), any fraction, a blank or lower case."""
    if len(time) >= len("2026-03-20T09:16") and time[4] == time[7] == "-" and time[10] in "Tt ":
        try:
            micros = rfc3339.micros(time.upper())
        except (ValueError, OverflowError):
            pass
        else:
            if micros in rfc3339.WRITABLE_MICROS:
                return micros
    raise Malformed(f"no RFC 3339 time: {_quoted(time)}")


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")  # noqa: PLR2004  # enough to know it by
