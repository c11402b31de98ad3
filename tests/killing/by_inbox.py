"""The oracle by the inbox: it computes the expected records anew, and compares every record in content and order.

They are computed twice: by the simulation's oracle, which shares no code with the program, and to the byte by the
program's own pure router.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import orjson

from receiver.core import rfc3339
from receiver.core.marks import micros_of, split
from receiver.core.message import Message
from receiver.core.notification import Notification
from receiver.core.router import Router
from receiver.core.session import MARKS_MAX, Session
from receiver.core.session_record import session_from
from receiver.core.topics import DEAD_LETTER, SESSIONS
from tests.killing.findings import FAN_OUT, OUTPUTS, Findings, Topics, named, row_of
from tests.killing.ledger import Attempt, Ledger
from tests.killing.topics import Standing
from tests.simulation.oracle import Kept, Remembered, Row, Truth, session_value
from tests.simulation.senders import Facts


class _Expected(NamedTuple):
    """The expected records, by topic and place in the inbox. `dead` has the places of letters that are there twice."""

    rows: Mapping[str, Mapping[str, Row]]
    messages: Mapping[str, Mapping[str, Message]]
    sessions: Mapping[str, Remembered]
    truths: Sequence[Truth]
    last: Mapping[str, Message]


def by_inbox(ledger: Ledger, topics: Topics, router: Router, forget_seconds: float) -> Findings:
    """Compare the inbox with the ledger, and the topics with the expected records."""
    findings = Findings()
    sound = _check_inbox(findings, ledger, topics.inbox)
    expected = _expected(sound, ledger, router, forget_seconds)
    for truth in expected.truths:
        findings.told.update(truth.verdicts)
    found = {name: _by_place(findings, name, topics.outputs[name]) for name in OUTPUTS}
    for name in OUTPUTS:
        _check_records(findings, name, found[name], expected, router)
    _check_fan_out(findings, found, expected)
    _check_sessions(findings, topics.sessions, expected)
    return findings


def _check_inbox(findings: Findings, ledger: Ledger, inbox: Sequence[Standing]) -> Sequence[Standing]:
    """The inbox has all that was promised and nothing else, in the order of the answers; returns what was posted."""
    where: dict[str, str] = {}
    began: dict[tuple[int, str], float] = {}
    sound = []
    for record in inbox:
        correlator = record.headers["x-correlator"]
        attempt = ledger.attempts.get(correlator)
        if (
            attempt is None
            or attempt.facts.kind == "refused"
            or (record.value, record.headers["sender"]) != (attempt.posting.body, attempt.posting.sender)
            or record.key != _key(attempt, record.key)
        ):
            findings.add("phantom", f"inbox {record.place} ({correlator}) was never posted")
            continue
        sound.append(record)
        if correlator in where:
            findings.told["appended twice"] += 1
            continue
        where[correlator] = record.place
        findings.told["answered 503 and kept"] += attempt.status == 503
        findings.told["not answered and kept"] += attempt.status is None
        told = attempt.edge, record.key
        if attempt.promised and attempt.answered is not None and attempt.answered < began.get(told, 0):
            behind = f"behind one that edge {attempt.edge} was told only after it had answered {attempt.status}"
            findings.add("out of order", f"inbox {record.place} ({correlator}, session {record.key}) lies {behind}")
        began[told] = max(began.get(told, 0), attempt.began)
    for attempt in ledger.attempts.values():
        if attempt.promised and attempt.correlator not in where:
            findings.add("lost", f"{named(attempt)} is not in the inbox")
    return sound


def _expected(inbox: Sequence[Standing], ledger: Ledger, router: Router, forget_seconds: float) -> _Expected:
    rows: dict[str, dict[str, Row]] = {name: {} for name in OUTPUTS}
    messages: dict[str, dict[str, Message]] = {name: {} for name in OUTPUTS}
    sessions: dict[str, Remembered] = {}
    last: dict[str, Message] = {}
    truths = []
    first = {record.headers["x-correlator"]: record.place for record in reversed(inbox)}
    again = {record.place for record in inbox} - set(first.values())
    for partition, records in _by_partition(inbox).items():
        truth = Truth([_kept(record, ledger.facts) for record in records], round(forget_seconds * 1_000_000), MARKS_MAX)
        truths.append(truth)
        sessions.update(truth.sessions)
        for row in truth.topics["status"]:
            placed = _placed(row, partition)
            for name, belongs in FAN_OUT.items():
                if belongs(placed):
                    rows[name][placed.trace] = placed
        for row in truth.topics[DEAD_LETTER]:
            placed = _placed(row, partition)
            if placed.trace not in again:
                rows[DEAD_LETTER][placed.trace] = placed
        for place, message in _routed(records, router):
            name = message.topic.rpartition(".")[2]
            if name == SESSIONS:
                last[message.key] = message
            elif name != DEAD_LETTER or place not in again:
                messages[name][place] = message
    return _Expected(rows, messages, sessions, truths, last)


def _routed(records: Iterable[Standing], router: Router) -> Iterator[tuple[str, Message]]:
    """The program's own router's messages for a partition, with the places of their notifications."""
    states: dict[str, Session | None] = {}
    clock_micros = 0
    for record in records:
        headers = record.headers
        notification = Notification(
            record.value or b"",
            record.key,
            headers["sender"],
            rfc3339.micros(headers["received-at"]),
            headers.get("content-type", ""),
            headers["x-correlator"],
            headers.get("traceparent", ""),
        )
        clock_micros = max(clock_micros, notification.received_micros)
        decision = router.decide(notification, record.place, states.get(record.key), clock_micros)
        states[record.key] = decision.session
        for message in decision.messages:
            yield record.place, message


def _by_place(findings: Findings, name: str, records: Sequence[Standing]) -> Mapping[str, Standing]:
    """Records by the place in the inbox that they name, which rises within a partition."""
    found: dict[str, Standing] = {}
    latest: dict[int, int] = {}
    findings.told[f"on {name}"] = len(records)
    for record in records:
        place = record.headers["inbox"]
        if place in found:
            kind = "repeated dead letters" if name == DEAD_LETTER else "repeated"
            findings.add(kind, f"{name} {record.place} is {found[place].place} again, of inbox {place}")
            continue
        found[place] = record
        partition, _, offset = place.partition("-")
        if int(partition) != record.partition or int(offset) < latest.get(record.partition, 0):
            findings.add("out of order", f"{name} {record.place} is of inbox {place}, behind {latest}")
        latest[record.partition] = max(latest.get(record.partition, 0), int(offset))
    return found


def _check_records(
    findings: Findings, name: str, found: Mapping[str, Standing], expected: _Expected, router: Router
) -> None:
    """Each record is right to the byte. Other checks find missing ones, as they know the whole event."""
    for place, record in found.items():
        row, message = expected.rows[name].get(place), expected.messages[name].get(place)
        if row is None and message is None:
            findings.add("phantom", f"{name} {record.place}: inbox {place} comes to no such record")
            continue
        if row is None or message is None:
            findings.add("differs", f"{name} {record.place}: the two oracles disagree on inbox {place}")
            continue
        if row_of(record) != row:
            findings.add("differs", f"{name} {record.place} is {row_of(record)}, wanted {row}")
        here = Message(router.topic(name), record.key, record.value, list(record.headers.items()), record.millis)
        if here != message._replace(headers=list(message.headers)):
            findings.add("differs", f"{name} {record.place} is {here}, wanted {message}")
    for place in expected.messages[name].keys() ^ expected.rows[name].keys():
        findings.add("differs", f"{name}: the two oracles disagree on inbox {place}")
    if name == DEAD_LETTER:
        for place in expected.rows[name].keys() - found.keys():
            findings.add("lost", f"inbox {place} has no dead letter")


def _check_fan_out(findings: Findings, found: Mapping[str, Mapping[str, Standing]], expected: _Expected) -> None:
    for place, row in expected.rows["status"].items():
        wanted = {name for name, belongs in FAN_OUT.items() if belongs(row)}
        here = {name for name in wanted if place in found[name]}
        if not here:
            findings.add("lost", f"inbox {place} ({row.correlator}, {row.verdict}) is on no topic")
        elif here != wanted:
            findings.add("torn", f"inbox {place} ({row.correlator}) is on {sorted(here)}, not {sorted(wanted - here)}")


def _check_sessions(findings: Findings, records: Sequence[Standing], expected: _Expected) -> None:
    """Each session's newest record is the expected state. Sessions whose time has come may be gone."""
    newest = {record.key: record for record in _in_order(findings, records)}
    truth_of = {session_id: truth for truth in expected.truths for session_id in truth.sessions}
    for session_id, wanted in expected.sessions.items():
        record = newest.pop(session_id, None)
        if record is None or record.value is None:
            if not truth_of[session_id].forgotten(wanted):
                findings.add("wrong final state", f"session {session_id} is missing, wanted {wanted}")
            findings.told["forgotten"] += 1
            continue
        message, where = expected.last[session_id], f"session {session_id} at sessions {record.place}"
        here = (record.value, dict(record.headers), record.millis)
        if here != (message.value, dict(message.headers), message.timestamp_millis):
            findings.add("wrong final state", f"{where} is {here}, wanted {message}")
            continue
        session = session_from(record.value, record.headers)
        remembered = [micros_of(mark) for mark in split(session.marks)]
        known = orjson.loads(record.value), remembered, session.marks_cut_micros, session.touched_micros
        times = [time for _, time in wanted.heard]
        if known != (session_value(session_id, wanted), times, wanted.cut, wanted.touched):
            findings.add("wrong final state", f"{where} is {known}, wanted {wanted}")
    for session_id, record in newest.items():
        if record.value is not None:
            findings.add("phantom", f"session {session_id} at sessions {record.place} was never told of")


def _in_order(findings: Findings, records: Sequence[Standing]) -> Iterator[Standing]:
    latest: dict[int, int] = {}
    findings.told["on sessions"] = len(records)
    for record in records:
        yield record
        if record.value is None:  # a tombstone comes from no notification
            continue
        partition, _, offset = record.headers["inbox"].partition("-")
        before = latest.get(record.partition, -1)
        if int(offset) == before:
            findings.add("repeated", f"sessions {record.place} is of inbox {partition}-{offset}, as one before")
        elif int(offset) < before or int(partition) != record.partition:
            findings.add("out of order", f"sessions {record.place} is of inbox {partition}-{offset}, behind {before}")
        latest[record.partition] = max(before, int(offset))


def _key(attempt: Attempt, key: str) -> str:
    """The key that a notification must have; a malformed one's may be its session's or its sender's."""
    if attempt.facts.kind == "event":
        return attempt.facts.session_id
    return attempt.posting.sender if attempt.facts.kind == "malformed" else key


def _by_partition(inbox: Sequence[Standing]) -> Mapping[int, Sequence[Standing]]:
    found: dict[int, list[Standing]] = defaultdict(list)
    for record in inbox:
        found[record.partition].append(record)
    return found


def _kept(record: Standing, facts: Mapping[bytes, Facts]) -> Kept:
    body, headers = record.value or b"", record.headers
    received = rfc3339.micros(headers["received-at"])
    content_type, correlator = headers.get("content-type", ""), headers["x-correlator"]
    return Kept(record.offset, body, record.key, headers["sender"], received, content_type, correlator, facts[body])


def _placed(row: Row, partition: int) -> Row:
    """Let the simulation's oracle, which knows one partition, judge several."""
    trace = f"{partition}-{row.trace.partition('-')[2]}"
    return row._replace(trace=trace, identifier=trace if row.identifier == row.trace else row.identifier)
