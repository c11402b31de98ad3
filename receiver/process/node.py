"""The contract of what a process is made of, but for its ports: an inbox, a reader, and what runs beside them."""

from collections.abc import Collection, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from receiver.core.event import QosStatus
from receiver.core.session import Session
from receiver.inbox import Inbox
from receiver.reader import Reader


class Node(Protocol):
    """All of a process but its ports."""

    @property
    def inbox(self) -> Inbox:
        """Where the edge puts what it answers 204 for."""
        ...

    @property
    def reader(self) -> Reader:
        """The topics and the sessions, to look at."""
        ...

    def jobs(self) -> Sequence[Coroutine[Any, Any, None]]:
        """What runs for as long as it serves."""
        ...

    def troubles(self) -> Mapping[str, str]:
        """By part, why it can't do its work now, in words for an operator; empty while it can."""
        ...

    def notices(self) -> Mapping[str, str]:
        """By part, what an operator should know although the work is done."""
        ...

    async def sessions_of(self, sender: str, session_ids: Collection[str]) -> Sequence[Session]:
        """See Reader: those of them that this process decides on. Raises Unavailable."""
        ...

    def owns(self, session_id: str) -> bool:
        """Whether this process decides on a session, remembered or not."""
        ...

    async def session_counts(self) -> Mapping[QosStatus, int]:
        """How many sessions this process remembers, by status: over all routers they add up. Raises Unavailable."""
        ...
