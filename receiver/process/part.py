"""The part of a receiver that one process plays, where several share a cluster."""

from typing import Literal, NamedTuple

from receiver.backends.shared_spool import SharedSpool


class Part(NamedTuple):
    """What of the whole a process is: its role, and which of several edges that share a spool.

    A router may be started together with edges, which it must not take with it.
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
        """Whether it may end at its start for the cluster's sake: senders that find no edge never post again."""
        return not self.receives and not self.beside_edges

    @property
    def routes(self) -> bool:
        """Whether it decides on what was received."""
        return self.role != "edge"


WHOLE = Part()
