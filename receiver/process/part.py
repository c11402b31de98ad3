"""The part of a receiver that one of several processes plays."""

from typing import Literal, NamedTuple

from receiver.backends.shared_spool import SharedSpool


class Part(NamedTuple):
    """A process's role, and its number among edges that share a spool.

    `beside_edges` marks a router that is started together with edges and must not end them.
    """

    role: Literal["all", "edge", "router"] = "all"
    worker: int = 0
    shared: SharedSpool | None = None
    beside_edges: bool = False

    @property
    def receives(self) -> bool:
        """Whether senders can post here."""
        return self.role != "router"

    @property
    def may_refuse(self) -> bool:
        """Whether it may exit at its start because of the cluster: senders that find no edge would never post again."""
        return not self.receives and not self.beside_edges

    @property
    def routes(self) -> bool:
        """Whether it decides on notifications."""
        return self.role != "edge"


WHOLE = Part()
