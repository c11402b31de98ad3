"""The expected topics and sessions of an inbox: the documented rules, written as plainly as possible.

It shares nothing with the program, not even the parser: the sender tells the meaning of a body.
"""

from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tests.simulation.senders import Facts

_CLOCKS_DIFFER = 10_000_000
_DAY = 86_400 * 1_000_000


class Kept(NamedTuple):
    """A notification in the inbox."""

    position: int
    body: bytes
    key: str
    sender: str
    received: int
    content_type: str
    correlator: str
    facts: Facts


class Row(NamedTuple):
    """A record that must be on a topic. `value` leaves out the reason, which is prose."""

    key: str
    trace: str
    verdict: str
    correlator: str
    identifier: str
    value: Mapping[str, Any]
    millis: int


@dataclass
class Remembered:
    """The expected memory of a session. `heard` are the events taken into account, with their times in µs."""

    sender: str
    status: str
    info: str | None
    time: int
    touched: int
    since: int | None
    seconds: float | None
    heard: list[tuple[Facts, int]] = field(default_factory=list)
    cut: int | None = None
    #: The times of all ends, also of those by which a repetition is no longer recognized.
    ends: list[int] = field(default_factory=list)
    granted_by: Facts | None = None


class Truth:
    """The expected results of the first notifications of an inbox."""

    def __init__(self, inbox: Sequence[Kept], forget_micros: int, heard_max: int) -> None:
        self.topics: dict[str, list[Row]] = {"status": [], "unavailable": [], "dead-letter": []}
        self.sessions: dict[str, Remembered] = {}
        self.verdicts: Counter[str] = Counter()
        self.clock = 0
        self._forget_micros = forget_micros
        self._heard_max = heard_max
        for kept in inbox:
            self.clock = max(self.clock, kept.received)
            verdict = self._hear(kept)
            self.verdicts[verdict] += 1
            if verdict in {"malformed", "unrecognized", "conflict"}:
                self._bury(kept, verdict)
            elif verdict in {"accepted", "late"}:
                self._tell(kept, verdict)

    def forgotten(self, session: Remembered) -> bool:
        """Whether the time of a session has come."""
        return self.clock - session.touched > self._forget_micros

    def _hear(self, kept: Kept) -> str:
        facts = kept.facts
        if facts.kind != "event":
            return facts.kind
        time = kept.received if facts.micros is None else facts.micros
        session = self.sessions.get(facts.session_id)
        if session is not None and self.forgotten(session):
            self.verdicts["known again after it was forgotten"] += 1
            session = None
        if session is None:
            since = time if facts.qos_status == "AVAILABLE" else None
            session = Remembered(
                kept.sender, facts.qos_status, facts.status_info, time, self.clock, since, None, [(facts, time)]
            )
            session.ends += [time] if facts.qos_status == "UNAVAILABLE" else []
            self.sessions[facts.session_id] = session
            return "accepted"
        if (
            kept.facts.micros is None
            and kept.facts.qos_status == "UNAVAILABLE"
            and session.time - time <= _CLOCKS_DIFFER
        ):
            time = max(time, session.time)  # a difference of clocks must not lose an end
        return self._hear_of(session, kept, time)

    def _hear_of(self, session: Remembered, kept: Kept, time: int) -> str:  # noqa: PLR0911  # one for each row
        facts = kept.facts
        if session.sender != kept.sender:
            return "conflict"
        same_id = [heard for heard, _ in session.heard if facts.id is not None and _identity(heard) == _identity(facts)]
        if any(_change(heard) == _change(facts) for heard in same_id):
            return "duplicate"
        if any(_content(heard) == _content(facts) for heard, _ in session.heard):
            return "duplicate"
        self.verdicts["an id used twice"] += bool(same_id)
        now, told = _rank(session.status, session.info), _rank(facts.qos_status, facts.status_info)
        if told <= now and session.cut is not None and time <= session.cut:
            self.verdicts["too old to tell"] += 1
            return "conflict"
        session.heard.append((facts, time))
        session.ends += [time] if facts.qos_status == "UNAVAILABLE" else []
        session.touched = self.clock
        if len(session.heard) > self._heard_max:
            _, oldest = session.heard.pop(0)
            session.cut = oldest if session.cut is None else max(session.cut, oldest)
        if (session.status, session.info) == (facts.qos_status, facts.status_info):
            session.time = max(session.time, time)
            return "unchanged"
        if told < now or (told == now and time < session.time):
            self._grant(session, facts)
            return "late"
        self._change(session, facts, time)
        return "accepted"

    def _change(self, session: Remembered, facts: Facts, time: int) -> None:
        if facts.qos_status == "AVAILABLE":
            session.since, session.seconds = time, None
        elif session.status == "AVAILABLE" and session.since is not None:
            session.seconds = max(0, time - session.since) / 1_000_000
        session.status, session.info, session.time = facts.qos_status, facts.status_info, time

    def _grant(self, session: Remembered, late: Facts) -> None:
        """Let a late AVAILABLE grant availability, if no event did yet and an end came after it."""
        after = [time for time in session.ends if late.micros is not None and time >= late.micros]
        if late.qos_status == "AVAILABLE" and late.micros is not None and session.since is None and after:
            self.verdicts["granted late"] += 1
            session.since, session.seconds = late.micros, (min(after) - late.micros) / 1_000_000
            session.granted_by = late

    def _tell(self, kept: Kept, verdict: str) -> None:
        facts, session = kept.facts, self.sessions[kept.facts.session_id]
        time = kept.received if facts.micros is None else facts.micros
        value: dict[str, Any] = {
            "sessionId": facts.session_id,
            "qosStatus": facts.qos_status,
            "time": _text(time),
            "receivedAt": _text(kept.received),
            "sender": kept.sender,
            "late": verdict == "late",
        }
        if facts.status_info is not None:
            value["statusInfo"] = facts.status_info
        if facts.qos_status == "UNAVAILABLE":
            value["unexpected"] = facts.status_info not in {"DURATION_EXPIRED", "DELETE_REQUESTED"}
            if verdict == "accepted" and session.seconds is not None:
                value["availableSeconds"] = session.seconds
        if session.since is not None and session.granted_by is facts and verdict == "late":
            value["availableSince"], value["availableSeconds"] = _text(session.since), session.seconds
        millis = (time if kept.received - _DAY <= time <= kept.received else kept.received) // 1000
        trace = f"0-{kept.position}"
        row = Row(facts.session_id, trace, verdict, kept.correlator, facts.id or trace, value, millis)
        self.topics["status"].append(row)
        if verdict == "accepted" and facts.qos_status == "UNAVAILABLE":
            self.topics["unavailable"].append(row)

    def _bury(self, kept: Kept, verdict: str) -> None:
        value = {
            "verdict": verdict,
            "sender": kept.sender,
            "receivedAt": _text(kept.received),
            "body": b64encode(kept.body).decode(),
            "headers": {"content-type": kept.content_type, "x-correlator": kept.correlator},
        }
        trace = f"0-{kept.position}"
        row = Row(kept.key, trace, verdict, kept.correlator, trace, value, kept.received // 1000)
        self.topics["dead-letter"].append(row)


def session_value(session_id: str, session: Remembered) -> dict[str, Any]:
    """The session's value as its topic must have it."""
    value: dict[str, Any] = {
        "sessionId": session_id,
        "qosStatus": session.status,
        "time": _text(session.time),
        "sender": session.sender,
    }
    if session.info is not None:
        value["statusInfo"] = session.info
    if session.since is not None:
        value["availableSince"] = _text(session.since)
    if session.seconds is not None:
        value["availableSeconds"] = session.seconds
    return value


def _identity(facts: Facts) -> tuple[str, str | None]:
    return facts.source or "", facts.id


def _change(facts: Facts) -> tuple[object, ...]:
    return facts.type, facts.qos_status, facts.status_info


def _content(facts: Facts) -> tuple[object, ...]:
    return facts.session_id, facts.type, facts.micros, facts.qos_status, facts.status_info


def _rank(status: str, info: str | None) -> int:
    return 0 if status == "REQUESTED" else 1 if info is None else 2


def _text(micros: int) -> str:
    seconds, rest = divmod(micros, 1_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return text + (f".{rest:06d}".rstrip("0") if rest else "") + "Z"
