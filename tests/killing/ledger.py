"""The ledger of posts and answers: all that the senders know."""

from dataclasses import dataclass
from typing import NamedTuple

from tests.simulation.senders import Facts


class Told(NamedTuple):
    """An event of a steady session: its sender posts each event until it is kept, and only then the next one.

    `number` is its place in the session. `edge` is the one edge that gets the session's events; None for any edge.
    """

    number: int
    edge: int | None
    is_last: bool


class Posting(NamedTuple):
    """A post, which its sender may repeat; `facts` are its content."""

    sender: str
    body: bytes
    content_type: str
    facts: Facts
    told: Told | None = None


@dataclass(eq=False)
class Attempt:
    """One request. Times are seconds of a monotonic clock; `answered` is None if no answer came."""

    correlator: str
    edge: int
    posting: Posting
    began: float
    answered: float | None = None
    status: int | None = None

    @property
    def facts(self) -> Facts:
        """The content of the post."""
        return self.posting.facts

    @property
    def promised(self) -> bool:
        """Whether the answer says that the notification was kept."""
        return self.status == 204 or (self.status in {400, 415} and self.facts.kind == "malformed")


class Ledger:
    """Every attempt, by its unique correlator."""

    def __init__(self) -> None:
        self.attempts: dict[str, Attempt] = {}
        self.facts: dict[bytes, Facts] = {}

    def begin(self, edge: int, posting: Posting, now: float) -> Attempt:
        """Note an attempt that is about to be posted."""
        attempt = Attempt(f"a{len(self.attempts)}", edge, posting, now)
        self.attempts[attempt.correlator] = attempt
        self.facts[posting.body] = posting.facts
        return attempt
