"""The data of the oracles, and their findings."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import orjson

from receiver.core.topics import DEAD_LETTER
from tests.killing.ledger import Attempt
from tests.killing.topics import Standing
from tests.simulation.oracle import Row
from tests.simulation.senders import Facts

#: The kinds of faults.
WRONGS = (
    "lost",
    "repeated",
    "phantom",
    "differs",
    "out of order",
    "torn",
    "wrong final state",
    "repeated dead letters",
)

#: The topics of an event: it is on all whose condition it meets, or on none. The last two are routes of the receivers.
FAN_OUT: Mapping[str, Callable[[Row], bool]] = {
    "status": lambda _: True,
    "unavailable": lambda row: row.verdict == "accepted" and row.value["qosStatus"] == "UNAVAILABLE",
    "alerts": lambda row: row.verdict == "accepted" and bool(row.value.get("unexpected")),
    "acme": lambda row: row.verdict == "accepted" and row.value["sender"] == "acme",
}
ROUTES = ({"topic": "alerts", "unexpected": True}, {"topic": "acme", "sender": "acme"})
OUTPUTS = (*FAN_OUT, DEAD_LETTER)


class Topics(NamedTuple):
    """The cluster's content: the inbox, the topics by their names without the prefix, and the sessions."""

    inbox: Sequence[Standing]
    outputs: Mapping[str, Sequence[Standing]]
    sessions: Sequence[Standing]


class Findings:
    """The faults, by kind, with a line on each; `told` has other observations."""

    def __init__(self) -> None:
        self.wrong: Counter[str] = Counter()
        self.details: list[str] = []
        self.told: Counter[str] = Counter()

    def add(self, kind: str, detail: str) -> None:
        """Add a fault."""
        assert kind in WRONGS
        self.wrong[kind] += 1
        self.details.append(f"{kind}: {detail}")


def row_of(record: Standing) -> Row:
    """A record in the form of the simulation's oracle."""
    headers, value = record.headers, orjson.loads(record.value or b"{}")
    value.pop("reason", None)
    return Row(
        record.key,
        headers["inbox"],
        headers["verdict"],
        headers["x-correlator"],
        headers["ce_id"],
        value,
        record.millis,
    )


def content_of(facts: Facts) -> tuple[object, ...]:
    """The part of an event that is equal in events of the same content."""
    return facts.session_id, facts.type, facts.micros, facts.qos_status, facts.status_info


def named(attempt: Attempt) -> str:
    """An attempt in words, for a detail."""
    return f"{attempt.correlator} (edge {attempt.edge} answered {attempt.status} at {attempt.answered})"
