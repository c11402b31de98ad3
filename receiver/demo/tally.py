"""What the demonstration posted and what came of it, beside what should have."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from receiver.demo.sender import Plan, Post
from receiver.message import Record
from receiver.session import Session


class Routed(NamedTuple):
    """A record that came out, on a topic without its prefix; `session` is the number of its session, 0 for none."""

    topic: str
    session: int
    record: Record


class Tally:
    """All that happened so far, in order."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.posted: list[tuple[Post, int]] = []
        self.routed: list[Routed] = []
        self.verdicts: Mapping[str, int] = {}
        self.sessions: Mapping[str, Session] = {}

    def record(self, topic: str, record: Record) -> None:
        """A record came out."""
        end = self.plan.ends.get(record.message.key)
        self.routed.append(Routed(topic, end.session if end else 0, record))

    @property
    def alerts(self) -> list[Routed]:
        """The ends that nobody asked for."""
        return [routed for routed in self.routed if routed.topic == "unavailable" and _is_unexpected(routed.record)]

    @property
    def statuses(self) -> Counter[str]:
        """How many sessions are in each status."""
        return Counter(session.qos_status.value for session in self.sessions.values())

    @property
    def right_ends(self) -> int:
        """How many sessions have come to what their sender told last."""
        return sum(
            id_ in self.sessions and tuple(self.sessions[id_][2:4]) == tuple(end[1:])
            for id_, end in self.plan.ends.items()
        )

    @property
    def is_complete(self) -> bool:
        """Whether as much came out as should."""
        return len(self.posted) == len(self.plan.posts) and not self.faults()

    def faults(self) -> list[str]:
        """What came out otherwise than the sender meant it, one line each."""
        lines = [
            f"{post.words} of session {post.session}: answered {status_code} in place of {post.status_code}"
            for post, status_code in self.posted
            if status_code != post.status_code
        ]
        wanted = Counter(post.verdict for post in self.plan.posts if post.verdict)
        lines += [
            f"{verdict}: {self.verdicts.get(verdict, 0)} in place of {wanted[verdict]}"
            for verdict in sorted({*wanted, *self.verdicts})
            if self.verdicts.get(verdict, 0) != wanted[verdict]
        ]
        unexpected = sum(end.unexpected for end in self.plan.ends.values())
        if len(self.alerts) != unexpected:
            lines.append(f"unexpected ends: {len(self.alerts)} in place of {unexpected}")
        if self.right_ends != len(self.plan.ends):
            lines.append(f"sessions in the right state: {self.right_ends} in place of {len(self.plan.ends)}")
        return lines


def _is_unexpected(record: Record) -> bool:
    value = record.fields()["value"]
    return isinstance(value, dict) and value["unexpected"] is True
