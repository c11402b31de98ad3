"""The oracle by the ledger: it compares the topics with posts and answers, by counting, without the inbox."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import orjson

from receiver.core import rfc3339
from receiver.core.topics import DEAD_LETTER
from tests.killing.findings import FAN_OUT, Findings, Topics, content_of, named, row_of
from tests.killing.ledger import Attempt, Ledger
from tests.killing.topics import Standing


def by_ledger(ledger: Ledger, topics: Topics) -> Findings:
    """Compare the topics with posts and answers. It judges wrongly if sessions are forgotten meanwhile."""
    findings = Findings()
    told = {name: _check_posted(findings, ledger, name, topics.outputs[name]) for name in FAN_OUT}
    _check_together(findings, topics.outputs)
    _check_letters(findings, ledger, topics.outputs[DEAD_LETTER])
    _check_steady(findings, ledger, topics, {content for content, _ in told["status"]})
    return findings


def _check_posted(
    findings: Findings, ledger: Ledger, name: str, records: Sequence[Standing]
) -> Sequence[tuple[tuple[object, ...], Standing]]:
    """Each record tells what its request told, and no two records of a topic tell the same."""
    seen: dict[tuple[object, ...], str] = {}
    told = []
    for record in records:
        attempt = ledger.attempts.get(record.headers["x-correlator"])
        if attempt is None or attempt.facts.kind != "event":
            findings.add("phantom", f"{name} {record.place} was never posted")
            continue
        facts, value = attempt.facts, orjson.loads(record.value or b"{}")
        spoken = facts.session_id, facts.qos_status, facts.status_info, attempt.posting.sender
        time = value["receivedAt"] if facts.micros is None else rfc3339.render(facts.micros)
        here = value["sessionId"], value["qosStatus"], value.get("statusInfo"), value["sender"]
        if (here, value["time"], record.key) != (spoken, time, facts.session_id):
            findings.add("phantom", f"{name} {record.place} is {value}, {named(attempt)} told {facts}")
        content = content_of(facts)
        if content in seen:
            findings.add("repeated", f"{name} {record.place} tells what {seen[content]} does: {content}")
        seen[content] = record.place
        told.append((content, record))
    return told


def _check_together(findings: Findings, outputs: Mapping[str, Sequence[Standing]]) -> None:
    """The records of an event are on all of their topics."""
    rows = {record.headers["inbox"]: row_of(record) for record in outputs["status"]}
    for name, belongs in FAN_OUT.items():
        wanted = {place for place, row in rows.items() if belongs(row)}
        for place in wanted ^ {record.headers["inbox"] for record in outputs[name]}:
            findings.add("torn", f"inbox {place} is on {'status' if place in wanted else name} alone of the two")


def _check_letters(findings: Findings, ledger: Ledger, letters: Sequence[Standing]) -> None:
    """A malformed notification that was kept has one dead letter."""
    seen: set[str] = set()
    for record in letters:
        correlator = record.headers["x-correlator"]
        if correlator not in ledger.attempts:
            findings.add("phantom", f"{DEAD_LETTER} {record.place} was never posted")
        if correlator in seen:
            findings.add("repeated dead letters", f"{DEAD_LETTER} {record.place} is {correlator} again")
        seen.add(correlator)
    for attempt in ledger.attempts.values():
        if attempt.promised and attempt.facts.kind in {"malformed", "unrecognized"} and attempt.correlator not in seen:
            findings.add("lost", f"{named(attempt)} has no dead letter")


def _check_steady(findings: Findings, ledger: Ledger, topics: Topics, told: set[tuple[object, ...]]) -> None:
    """Steady sessions are whole and in order on their topics, and ended as their senders told."""
    order: dict[str, list[Standing]] = defaultdict(list)
    for record in topics.outputs["status"]:
        order[record.key].append(record)
    newest = {record.key: record for record in topics.sessions}
    steady = {
        content_of(attempt.facts): attempt
        for attempt in ledger.attempts.values()
        if attempt.posting.told is not None and attempt.promised
    }
    for content, attempt in steady.items():
        if content not in told:
            findings.add("lost", f"{named(attempt)}, {attempt.facts}, is not on status")
        if attempt.posting.told is not None and attempt.posting.told.is_last:
            _check_end(findings, attempt, newest.get(attempt.facts.session_id))
    for session_id, records in order.items():
        _check_order(findings, ledger, session_id, records)


def _check_end(findings: Findings, attempt: Attempt, record: Standing | None) -> None:
    value = {} if record is None else orjson.loads(record.value or b"{}")
    if (value.get("qosStatus"), value.get("statusInfo")) != (attempt.facts.qos_status, attempt.facts.status_info):
        findings.add("wrong final state", f"{named(attempt)} ended {attempt.facts}, the session is {value}")


def _check_order(findings: Findings, ledger: Ledger, session_id: str, records: Sequence[Standing]) -> None:
    """The records of one edge's notifications are in order. With two edges, an overtaken one is late."""
    found = [
        (attempt.posting.told, record.headers["verdict"] == "late")
        for record in records
        if (attempt := ledger.attempts.get(record.headers["x-correlator"])) is not None
    ]
    told = [(each, is_late) for each, is_late in found if each is not None]
    numbers = [each.number for each, is_late in told if each.edge is not None or not is_late]
    surprises = any(is_late and each.edge is not None for each, is_late in told)
    if numbers != sorted(numbers) or surprises:
        findings.add("out of order", f"session {session_id}: {told}, at status {[each.place for each in records]}")
