"""The posts of the demonstration and their results, for the screen and the comparison."""

from collections import Counter
from collections.abc import Mapping, Sequence

from receiver.core.message import Record
from receiver.demo.comparison import Comparison, Outcome, Routed, State, compare
from receiver.demo.ledger import Ledger, Post


class Tally:
    """Everything so far, in order. `asked` is the total number of sessions to be created."""

    def __init__(self, ledger: Ledger, asked: int) -> None:
        self.ledger = ledger
        self.asked = asked
        self.routed: list[Routed] = []
        self.verdicts: Mapping[str, int] = {}
        self.taken = 0
        self.sessions: Mapping[str, State] = {}
        self._numbers: dict[str, int] = {}
        self._numbered = 0

    @property
    def posts(self) -> Sequence[Post]:
        """The posts, in the order of their beginnings."""
        return [post for post in self.ledger.posts if post.is_made]

    @property
    def settled_posts(self) -> Sequence[Post]:
        """The first of these posts, up to one that has not ended."""
        return [post for post in self.ledger.posts[: self.ledger.settled] if post.is_made]

    def record(self, topic: str, record: Record) -> None:
        """Add a record of the output. Its post must be in the ledger already."""
        for post in self.ledger.posts[self._numbered :]:
            self._numbers[post.session_id] = post.session
        self._numbered = len(self.ledger.posts)
        key = record.message.key
        fields = record.fields()
        self.routed.append(Routed(topic, self._numbers.get(key, 0), key, fields["value"], fields["headers"]))

    @property
    def alerts(self) -> list[Routed]:
        """The unexpected ends."""
        return [routed for routed in self.routed if routed.is_unexpected]

    @property
    def statuses(self) -> Counter[str]:
        """The number of sessions in each status, as far as told."""
        return Counter(status for status, _ in self.sessions.values())

    @property
    def is_quiet(self) -> bool:
        """Whether every session was created and has ended, and no post is still to come."""
        return self.ledger.is_quiet and len(self.ledger.lives) == self.asked

    @property
    def unaware(self) -> int:
        """Sessions whose end no post told rightly: it was lost or unusable, or the release does not tell it."""
        return sum(self.sessions.get(id_) != state for id_, state in self.ledger.lives.items())

    def comparison(self) -> Comparison:
        """Compare what was sent with the output."""
        outcome = Outcome(self.routed, self.sessions, self.verdicts, self.taken)
        found = compare(self.ledger.posts, outcome)
        if not self.is_quiet:
            faults = [*found.faults, f"{len(self.ledger.lives)} of {self.asked} sessions were played to their end"]
            found = found._replace(faults=faults)
        return found
