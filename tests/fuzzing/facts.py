"""Changes of a session's status as senders spell them: every release's shape, and oddities of their members."""

import json
import random
import uuid
from base64 import b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, NamedTuple
from urllib.parse import quote

from tests.fuzzing.expected import TYPE, Change, Unknown, micros_of

Tree = dict[str, Any]

#: A time that is half a year or more from its receipt counts as none. These are on either side, with a day for a run.
_NEAR_DAYS, _FAR_DAYS = 182, 184
_SECOND = timedelta(seconds=1)

KNOWN_TYPES = (
    "QOS_STATUS_CHANGED",
    "org.camaraproject.qod.v0.qos-status-changed",
    "org.camaraproject.qod.v1.qos-status-changed",
    "org.camaraproject.quality-on-demand.v0.qos-status-changed",
    TYPE,
    "org.camaraproject.quality-on-demand.v27.qos-status-changed",
    "org.camaraproject.qod.qos-status-changed",
    "org.camaraproject.api.qod.v0.qos-status-changed",
    "org.camaraproject.qod.v0.qos-status-changed-event",
)
SCHEMA_NAMES = (
    *("QosStatusChangedEvent", "EventQosStatusChanged", "QosStatusChanged", "CloudEvent", "7", "qos_status_changed"),
    *("com.example.qod.QosStatusChangedEvent", "https://operator.example/events#qos-status-changed"),
)
FOREIGN_TYPES = (
    "org.camaraproject.qod-provisioning.v0.status-changed",
    "org.camaraproject.dedicated-network.v0.network-status-changed",
    "org.camaraproject.device-roaming-status.v1.roaming-on",
    "org.camaraproject.quality-on-demand.v2.qos-status-predicted",
    "com.example.something",
)
REASONS = ("NETWORK_TERMINATED", "DURATION_EXPIRED", "DELETE_REQUESTED")
_LETTERS = "abcXYZ019-_.:/~ éñßжش漢字✓😀%+&=\"'\\<>{}"


class Spelled:
    """A notification in the making: its meaning, the members of its envelope, those of its detail, and its tags.

    `is_plain`: no member needs the type to be read, so the notification may have any type, or none.
    """

    def __init__(self, change: Change) -> None:
        self.change = change
        self.told: Change | Unknown | None = change
        self.envelope: Tree = {"type": change.type, "id": change.id, "source": change.source}
        self.envelope["time"] = None if change.time is None else _plain(change.time)
        self.detail: Tree = {"sessionId": change.session_id, "qosStatus": change.status}
        if change.info is not None:
            self.detail["statusInfo"] = change.info
        self.tags: list[str] = []
        self.is_plain = True

    def read(self, **members: object) -> None:
        """Set how these members must be read."""
        if isinstance(self.told, Change):
            self.told = self.told._replace(**members)  # type: ignore[arg-type]  # the names of members


def _plain(micros: int) -> str:
    return (datetime.fromtimestamp(0, UTC) + timedelta(microseconds=micros)).isoformat().replace("+00:00", "Z")


def printable(chance: random.Random, length_max: int = 30) -> str:
    """Text in several scripts, without blanks at its ends."""
    text = "".join(chance.choices(_LETTERS, k=chance.randint(1, length_max))).strip()
    return text or "x"


def session_id(chance: random.Random) -> str:
    """A UUID."""
    return str(uuid.UUID(int=chance.getrandbits(128), version=4))


def change(chance: random.Random, now: datetime) -> Change:
    """A change of a session of its own."""
    status = chance.choices(("AVAILABLE", "UNAVAILABLE", "REQUESTED"), (5, 5, 1))[0]
    info = chance.choice((*REASONS, None)) if status == "UNAVAILABLE" else None
    time = now - timedelta(microseconds=chance.randrange(90_000_000) if chance.random() < 0.8 else 86_000_000_000)
    source = chance.choice(("/operators/acme", "https://operator.example/qod", "urn:x"))
    kind = chance.choice(KNOWN_TYPES) if chance.random() < 0.5 else TYPE
    return Change(session_id(chance), status, info, micros_of(time), f"{chance.getrandbits(64):x}", source, kind)


# Times: how a time is written, and how it must be read.


def _offset(time: datetime, chance: random.Random) -> datetime:
    minutes = chance.choice((60, 120, -300, 330, 345, -570, 0, 840, -720))
    return time.astimezone(timezone(timedelta(minutes=minutes)))


def _zulu(time: datetime, spec: str = "auto") -> str:
    return f"{time.replace(tzinfo=None).isoformat(timespec=spec)}Z"


def _whole(time: datetime) -> datetime:
    return time.replace(microsecond=0)


class Written(NamedTuple):
    """A time as it is written, and as it must be read."""

    text: object
    time: datetime | None


TIMES: dict[str, Callable[[datetime, random.Random], Written]] = {
    "seconds": lambda t, _: Written(_zulu(_whole(t)), _whole(t)),
    "milliseconds": lambda t, _: Written(_zulu(t, "milliseconds"), t.replace(microsecond=t.microsecond // 1000 * 1000)),
    "microseconds": lambda t, _: Written(_zulu(t, "microseconds"), t),
    "nanoseconds": lambda t, c: Written(f"{_zulu(t, 'microseconds')[:-1]}{c.randrange(1000):03}Z", t),
    "many digits": lambda t, c: Written(f"{_zulu(t, 'microseconds')[:-1]}{'9' * c.randrange(50)}Z", t),
    "offset": lambda t, c: Written(_offset(t, c).isoformat(), t),
    "offset without colon": lambda t, c: Written(_offset(_whole(t), c).strftime("%Y-%m-%dT%H:%M:%S%z"), _whole(t)),
    "offset of hours": lambda t, _: Written(f"{_zulu(_whole(t) + 2 * 3600 * _SECOND)[:-1]}+02", _whole(t)),
    "no seconds": lambda t, _: Written(f"{_zulu(t)[:16]}Z", _whole(t).replace(second=0)),
    "no zone": lambda t, _: Written(_zulu(t)[:-1], t),
    "no zone, no seconds": lambda t, _: Written(_zulu(t)[:16], _whole(t).replace(second=0)),
    "lower case": lambda t, _: Written(_zulu(t).lower(), t),
    "blank": lambda t, _: Written(_zulu(t).replace("T", " "), t),
    "comma": lambda t, _: Written(_zulu(t, "microseconds").replace(".", ","), t),
    "zone's name": lambda t, c: Written(f"{_offset(t, c).isoformat()}[{c.choice(('Europe/Madrid', 'Etc/GMT+1'))}]", t),
    "UTC's name": lambda t, _: Written(f"{_zulu(t)}[UTC]", t),
    "leap second": lambda t, _: Written(f"{_zulu(t)[:17]}60Z", _whole(t).replace(second=0) + 60 * _SECOND),
    "months off": lambda t, c: _shifted(t, c, 1, _NEAR_DAYS),
}
#: Texts that are no time, with `%Y` and so on for the parts of one; and values that are no text.
_NO_TIMES = (
    *("yesterday", "%Y-%m-%d", "%Y-%m-%dT%H", "%Y%m%dT%H%M%SZ", "%Y/%m/%dT%H:%M:%SZ", "%Y-W%V-%uT%H:%M:%SZ"),
    *("%Y-%m-%dT%H:%M:%SZZ", "%Y-%m-%dT%H:%M:%SZ ", "%Y-%m-%dT%H:%M:%S CET", "%Y-%m-%dT%H.123Z", "1774000000"),
    *("%Y-%m-%dT%HZ", "%Y-%m-%dT%H%MZ", "%Y-%m-%dT%H:%M:%S.Z", "%Y-%m-%dT%H:%M:%S:123Z", "%Y-%m-%dT24:00:00Z"),
    *("%a, %d %b %Y %H:%M:%S GMT", "%Y-13-%dT%H:%M:%SZ", "%Y-%m-32T%H:%M:%SZ", "%Y-%m-%dT%H:61:%SZ"),
    *("%Y-%m-%dT%H:%M:%S[UTC]", "%Y-%m-%dT%H:%M:%S.545218America/Los_Angeles", "%Y-%m-%dT%H:%M:%S+24:00"),
    *("0000-01-01T00:00:00Z", "%Y-%m-%dT%H:%M:%SZ[" + "x" * 65 + "]", "٢٠٢٦-%m-%dT%H:%M:%SZ", "\ud800", "%"),
)
_NO_TEXTS: tuple[object, ...] = (1774000000, 1774000000.5, {}, [], True, False, 10**30, {"a": "2026"})


def _no_time(time: datetime, chance: random.Random) -> Written:
    text = chance.choice(_NO_TIMES)
    return Written(time.strftime(text) if "%" in text else text, None)


UNREAD_TIMES: dict[str, Callable[[datetime, random.Random], Written]] = {
    "time: none": _no_time,
    "time: no text": lambda _, c: Written(c.choice(_NO_TEXTS), None),
    "time: absent": lambda _t, c: Written(c.choice((None, "")), None),
    "time: far": lambda t, c: _shifted(t, c, _FAR_DAYS, 9_000)._replace(time=None),
    "time: of no clock": lambda _t, c: Written(
        c.choice(("0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "9999-12-31T23:59:59.9999999Z")), None
    ),
}


def _shifted(time: datetime, chance: random.Random, least: int, most: int) -> Written:
    shifted = time + chance.choice((1, -1)) * timedelta(days=chance.randrange(least, most))
    return Written(_zulu(shifted), shifted)


def _time(spelled: Spelled, chance: random.Random) -> None:
    table = TIMES if chance.random() < 0.7 else UNREAD_TIMES
    name = chance.choice(list(table))
    written = table[name](datetime.fromtimestamp(0, UTC) + timedelta(microseconds=spelled.change.time or 0), chance)
    spelled.envelope["time"] = written.text
    spelled.read(time=None if written.time is None else micros_of(written.time))
    spelled.tags.append(f"time: {name}" if table is TIMES else name)


# Optional texts of an event, and how they must be read.

Text = tuple[object, str | None]

TEXTS: dict[str, Callable[[random.Random], Text]] = {
    "other scripts": lambda c: ((text := f"{c.getrandbits(40):x}{printable(c)}"), text),
    "long": lambda c: ((text := f"{c.getrandbits(64):x}".ljust(2048, "i")), text),
    "a number": lambda c: ((number := c.choice((c.getrandbits(63), -c.getrandbits(62), 2**64 - 1, 0))), str(number)),
    "absent": lambda c: (c.choice((None, "", ...)), None),
    "too long": lambda c: ("i" * c.choice((2049, 5000)), None),
    "a number beyond 64 bits": lambda c: (c.choice((2**64, -(2**63) - 1, 10**40, 10**400)), None),
    "no text": lambda c: (c.choice(({}, [], True, False, 1.5, ["x"], {"a": 1}, -0.0)), None),
    "no printable text": lambda c: (
        c.choice(("a\0b", "a\x7fb", "\u202e", "a\tb", "\ud800", "x\udc00y", "/s\r\nx: y", "\u2028", "\ufeffs")),
        None,
    ),
}


def _text(spelled: Spelled, chance: random.Random, member: str) -> None:
    name = chance.choice(list(TEXTS))
    value, read = TEXTS[name](chance)
    place, key = (spelled.detail, "statusInfo") if member == "info" else (spelled.envelope, member)
    place[key] = value
    if value is ...:
        del place[key]
    if member != "info" or spelled.change.status == "UNAVAILABLE":
        spelled.read(**{member: read})
    spelled.tags.append(f"{member}: {name}")


# The session, its status, and the type of the event.

SESSIONS: dict[str, Callable[[random.Random], tuple[object, str]]] = {
    "in capitals": lambda c: ((text := session_id(c)).upper(), text),
    "half in capitals": lambda c: ((text := session_id(c))[:18].upper() + text[18:], text),
    "no UUID": lambda c: ((text := f"S-{c.getrandbits(80):X}"), text),
    "other scripts": lambda c: ((text := f"{c.getrandbits(80):x}{printable(c)}"), text),
    "long": lambda c: ((text := f"{c.getrandbits(80):x}".ljust(256, "s")), text),
    "a number": lambda c: ((number := c.getrandbits(62)), str(number)),
}
NO_SESSIONS: tuple[object, ...] = (
    *(..., None, "", ["s-1"], {"s": 1}, True, 1.5, 10**30, "s" * 257, "s" * 3000, "s\n1", "s\u202e1", "\ud800", "\0"),
)
NO_STATUSES: tuple[object, ...] = (..., None, "", ["AVAILABLE"], {}, False, 1.5, "A" * 3000, "A\0")
UNKNOWN_STATUSES: tuple[object, ...] = ("SUSPENDED", "available", "Available", 1, "AVAILABLE ", "可用", "A" * 2048)
#: Values in place of a detail that are none.
NO_DETAILS: tuple[object, ...] = (..., None, [], 7, True, "", "{", "[]", "no JSON", [{"sessionId": "s"}])


def _session(spelled: Spelled, chance: random.Random) -> None:
    name = chance.choice(list(SESSIONS))
    value, read = SESSIONS[name](chance)
    spelled.detail["sessionId"] = value
    spelled.read(session_id=read)
    spelled.is_plain &= isinstance(value, str)
    spelled.tags.append(f"session: {name}")


def _type(spelled: Spelled, chance: random.Random) -> None:
    name, value, read = chance.choice(
        (
            ("a schema's name", chance.choice(SCHEMA_NAMES), None),
            ("a number", 7, "7"),
            ("absent", chance.choice((None, "", ...)), TYPE),
            ("no text", chance.choice(([TYPE], {}, True, "a\0", 1.5, "x" * 3000, "\ud800")), TYPE),
            ("foreign", chance.choice(FOREIGN_TYPES), None),
        )
    )
    spelled.envelope["type"] = value
    if value is ...:
        del spelled.envelope["type"]
    told = spelled.told
    if name == "foreign" and isinstance(told, Change):
        spelled.told = Unknown(told.session_id)
    else:
        spelled.read(type=read or value)
    spelled.tags.append(f"type: {name}")


def _put(place: Tree, member: str, value: object) -> None:
    place[member] = value
    if value is ...:
        del place[member]


def _fail(spelled: Spelled, chance: random.Random) -> None:
    """Make the notification tell no change."""
    name = chance.choice(("session", "status", "unknown status", "status elsewhere"))
    told = spelled.told
    spelled.is_plain = False
    if name == "session":
        _put(spelled.detail, "sessionId", chance.choice(NO_SESSIONS))
        spelled.told = None
    elif name == "status":
        _put(spelled.detail, "qosStatus", chance.choice(NO_STATUSES))
        spelled.told = None
    elif name == "unknown status" and isinstance(told, Change):
        spelled.detail["qosStatus"] = chance.choice(UNKNOWN_STATUSES)
        spelled.told = Unknown(told.session_id)
    else:
        spelled.detail["status"] = spelled.detail.pop("qosStatus")  # older releases' name
    spelled.tags.append(f"member: {name}" if spelled.told is told else f"missing: {name}")


def spelled(told: Change, chance: random.Random, *, plain: bool) -> Spelled:
    """The notification of a change, with oddities. `plain`: without any, so that it tells the whole change."""
    made = Spelled(told)
    if plain:
        return made
    oddities: Sequence[tuple[float, Callable[[], None]]] = (
        (0.4, lambda: _time(made, chance)),
        (0.15, lambda: _text(made, chance, "id")),
        (0.15, lambda: _text(made, chance, "source")),
        (0.15, lambda: _text(made, chance, "info")),
        (0.15, lambda: _session(made, chance)),
    )
    for share, odd in oddities:
        if chance.random() < share:
            odd()
    if chance.random() < 0.15:
        _fail(made, chance)
    elif made.is_plain and chance.random() < 0.2:
        _type(made, chance)
    return made


# Shapes.


class Shaped(NamedTuple):
    """The tree of a body (or its text), the attributes that go into headers, and its meaning."""

    tree: object
    headers: dict[str, str]
    told: Change | Unknown | None
    tags: Sequence[str]


Shape = Callable[[Spelled, random.Random], object]
_NO_ID = {"id": None, "source": None, "time": None}


def _cloudevent(spelled: Spelled, _: random.Random) -> Tree:
    return {"specversion": "1.0", **spelled.envelope, "datacontenttype": "application/json", "data": spelled.detail}


def _event(spelled: Spelled, _: random.Random) -> Tree:
    spelled.read(source=None)
    names = {"id": "eventId", "type": "eventType", "time": "eventTime"}
    envelope = {names[name]: value for name, value in spelled.envelope.items() if name in names}
    return {**envelope, "eventDetail": spelled.detail}


def _with_text(spelled: Spelled, chance: random.Random) -> Tree:
    return {**_cloudevent(spelled, chance), "data": json.dumps(spelled.detail)}


def _with_base64(spelled: Spelled, chance: random.Random) -> Tree:
    tree = _cloudevent(spelled, chance)
    del tree["data"]
    more = chance.choice(({}, {"data": None}, {"data": 7}))
    return {**tree, **more, "data_base64": b64encode(json.dumps(spelled.detail).encode()).decode()}


def _odd_version(spelled: Spelled, chance: random.Random) -> Tree:
    return {**_cloudevent(spelled, chance), "specversion": chance.choice((None, "0.3", 1, [], "2.0", ""))}


def _hybrid(spelled: Spelled, chance: random.Random) -> Tree:
    """A body with members of two dialects: what CloudEvents calls data counts."""
    other = {"sessionId": session_id(chance), "qosStatus": "UNAVAILABLE"}
    event = {"eventType": "QOS_STATUS_CHANGED", "eventDetail": other}
    return {**_cloudevent(spelled, chance), **chance.choice(({"event": event}, event, other))}


def _without_version(spelled: Spelled, chance: random.Random) -> Tree:
    tree = _cloudevent(spelled, chance)
    del tree["specversion"]
    return tree


def _small_id(spelled: Spelled, chance: random.Random) -> Tree:
    tree = _event(spelled, chance)
    if "eventId" in tree:
        tree["eventid"] = tree.pop("eventId")
    return chance.choice((tree, {"event": tree}))


def _bare(spelled: Spelled, chance: random.Random) -> Tree:
    name = chance.choice(("SESSION_TERMINATED", "SESSION_TERMINATION"))
    spelled.read(status="UNAVAILABLE", info=None, type=name, **_NO_ID)
    return {**spelled.envelope, "event": name, "sessionId": spelled.detail["sessionId"]}


def _named_bare(spelled: Spelled, chance: random.Random) -> Tree:
    name = chance.choice(("QOS_STATUS_CHANGED", "SESSION_STATUS", "x"))
    spelled.read(type=name, **_NO_ID)
    return {"event": name, **spelled.detail}


def _alone(spelled: Spelled, _: random.Random) -> Tree:
    spelled.read(type=TYPE, **_NO_ID)
    return dict(spelled.detail)


def _nearly_alone(spelled: Spelled, _: random.Random) -> Tree:
    spelled.read(type=TYPE, id=None, source=None)
    return {**spelled.detail, "time": spelled.envelope["time"]}


def _flat(spelled: Spelled, chance: random.Random) -> Tree:
    tree = chance.choice((_cloudevent, _without_version))(spelled, chance)
    del tree["data"]
    return {**tree, **spelled.detail}


def _flat_event(spelled: Spelled, chance: random.Random) -> Tree:
    tree = _event(spelled, chance)
    del tree["eventDetail"]
    return {"eventType": None, **tree, **spelled.detail}


#: Shapes for any members.
SHAPES: dict[str, Shape] = {
    "CloudEvents": _cloudevent,
    "0.9, wrapped": lambda s, c: {"event": _event(s, c)},
    "0.9, flat": _event,
    "0.9 with a subscription": lambda s, c: {"event": _event(s, c), "eventSubscriptionId": session_id(c)},
    "0.9 with eventid": _small_id,
    "0.9, detail as text": lambda s, c: {**_event(s, c), "eventDetail": json.dumps(s.detail)},
    "0.9 with event null": lambda s, c: {"event": c.choice((None, 3, [])), **_event(s, c)},
    "data as text": _with_text,
    "data_base64": _with_base64,
    "odd specversion": _odd_version,
    "hybrid": _hybrid,
    "the body as text": lambda s, c: json.dumps(_cloudevent(s, c)),
}
#: Shapes for a session that is text and a status of the API's.
WHOLE_SHAPES: dict[str, Shape] = {
    "no specversion": _without_version,
    "data's members beside": _flat,
    "0.9, detail's members beside": _flat_event,
}
#: Shapes for these if the type is known too: they leave it out.
BARE_SHAPES: dict[str, Shape] = {
    "0.8": _bare,
    "0.8 with another name": _named_bare,
    "data alone": _alone,
    "data and time alone": _nearly_alone,
}
PLAIN_SHAPES = ("CloudEvents", "data as text", "data_base64", "the body as text")
BINARY = "binary mode"


def shaped(told: Change, chance: random.Random, *, plain: bool = False, within: bool = False) -> Shaped:
    """A notification of a change. `plain`: it tells the whole change. `within`: it is part of a batch."""
    made = spelled(told, chance, plain=plain)
    shapes = dict(SHAPES)
    if plain:
        shapes = {name: SHAPES[name] for name in PLAIN_SHAPES}
    elif made.is_plain:
        shapes |= WHOLE_SHAPES
        if made.told is not None and not any(tag.startswith("type: ") for tag in made.tags):
            shapes |= BARE_SHAPES
    if not within and (attributes := _attributes(made)) is not None:
        shapes[BINARY] = lambda s, _: s.detail
    name = "CloudEvents" if chance.random() < 0.4 else chance.choice(list(shapes))
    tree = shapes[name](made, chance)
    if not plain and name in SHAPES and chance.random() < 0.03:
        tree = _without_detail(made, tree, chance)
    headers = attributes or {} if name == BINARY else {}
    return Shaped(tree, headers, made.told, (*made.tags, f"shape: {name}"))


def _without_detail(made: Spelled, tree: object, chance: random.Random) -> object:
    """The tree with a value for its detail that is none."""
    if not isinstance(tree, dict) or "data_base64" in tree or not {"data", "eventDetail"} & tree.keys():
        return tree
    if tree.keys() >= {"data", "event"} or tree.keys() >= {"data", "eventDetail"} or "sessionId" in tree:
        return tree  # a body of two dialects, which then tells another change
    tree = dict(tree)
    _put(tree, "data" if "data" in tree else "eventDetail", chance.choice(NO_DETAILS))
    made.told = None
    made.tags.append("missing: detail")
    return tree


def _attributes(made: Spelled) -> dict[str, str] | None:
    """The headers of binary mode (CloudEvents' HTTP binding, 3.1.3), None if a member is no text."""
    told = {name: value for name, value in made.envelope.items() if value not in (None, "")}
    if not all(isinstance(value, str) for value in told.values()):
        return None
    try:
        headers = {f"ce-{name}": quote(value, safe="!#$&'()*+,/:;=?@[]^_`{|}~<>-.") for name, value in told.items()}
    except UnicodeEncodeError:
        return None
    short = all(len(value) < 400 for value in headers.values())
    return {"ce-specversion": "1.0", **headers} if short else None
