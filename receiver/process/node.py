"""The contract of a process without its ports: an inbox, a reader, and the jobs beside them."""

from collections.abc import Collection, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from receiver.core.event import QosStatus
from receiver.core.session import Session
from receiver.inbox import Inbox
from receiver.reader import Reader


class Node(Protocol):
    """All parts of a process except its ports."""

    @property
    def inbox(self) -> Inbox:
        """The inbox that the edge appends to before it answers 204."""
        ...

    @property
    def reader(self) -> Reader:
        """A reader of the topics and the sessions."""
        ...

    def jobs(self) -> Sequence[Coroutine[Any, Any, None]]:
        """Jobs that run for as long as the process serves."""
        ...

    def troubles(self) -> Mapping[str, str]:
        """For each part, why it can't work now, in words for an operator; empty while it can."""
        ...

    def notices(self) -> Mapping[str, str]:
        """For each part, what an operator should know although it works; empty if there is nothing."""
        ...

    async def sessions_of(self, sender: str, session_ids: Collection[str]) -> Sequence[Session]:
        """As `Reader.sessions_of`, but only sessions that this process decides on. Raises Unavailable."""
        ...

    def owns(self, session_id: str) -> bool:
        """Whether this process decides on a session, remembered or not."""
        ...

    async def session_counts(self) -> Mapping[QosStatus, int]:
        """The number of sessions that this process remembers, by status; the sum over all routers is the total. Raises
        Unavailable.
        """
        ...
