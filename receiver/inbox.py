"""The contract between the two halves: the edge appends, a router reads, decides and commits.

The inbox is an ordered log in partitions. All notifications of a session are in one partition, in the order in which
they were appended. Positions start at 0 in each partition and have no gaps.

Durability   `append` is done when the notification would survive the death of this process and a power cut of its
             host, not before.
Order        within a partition, positions are the order; there is none between partitions.
Repetition   the inbox keeps every notification, repetitions included: the router recognizes them.
Failure      `append` raises Unavailable when it is not *known* that the notification was kept. It may have been kept
             all the same: the sender will post it again, and the router sees a duplicate.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeVar

from receiver.core.errors import Unavailable
from receiver.core.message import Message
from receiver.core.notification import Notification
from receiver.core.session import Session

T = TypeVar("T")

#: A group of appends has at most this many notifications.
_APPENDED_AT_ONCE = 256


class Batch(NamedTuple):
    """Consecutive notifications of one partition, with all that is needed to decide on them.

    `position` is where the lane stood. `positions` are those of the notifications, all before `next_position`.
    `sessions` has the state, as of `position`, of each remembered session that a notification's key names.
    `clock_micros` is the latest time of receipt before `position`. `unwritable` holds, by position, why the result of a
    notification can't be written: the notification becomes a dead letter.
    """

    position: int
    next_position: int
    positions: Sequence[int]
    notifications: Sequence[Notification]
    sessions: dict[str, Session]
    clock_micros: int
    unwritable: Mapping[int, str] = MappingProxyType({})


Told = Callable[[BaseException | None], None]
"""A callback for the outcome of one append, called once: None if it was kept, else the error."""


class Inbox(Protocol):
    """The log that the edge appends to before it answers 204."""

    def append(self, notification: Notification) -> asyncio.Future[None]:
        """Keep a notification durably, as the module defines it. The future raises Unavailable."""
        ...

    def take(self, notification: Notification, told: Told) -> None:
        """As `append`, but cheaper: without a future. `told` may be called before this returns."""
        ...

    @property
    def trouble(self) -> str:
        """Why nothing can be kept now, in words for an operator; empty while all is well."""
        ...


def tell_all(waiting: Iterable[Told], error: BaseException | None) -> None:
    """Call each callback, even if one of them raises."""
    for told in waiting:
        try:
            told(error)
        except Exception as failure:  # noqa: BLE001  # those behind it wait too
            context = {"message": "the outcome of an append could not be told", "exception": failure}
            asyncio.get_running_loop().call_exception_handler(context)


def told_later(kept: asyncio.Future[None], told: Told) -> None:
    """Call `told` with the outcome of an append."""
    kept.add_done_callback(lambda kept: told(_error_of(kept)))


def _error_of(kept: asyncio.Future[None]) -> BaseException | None:
    return Unavailable("the append was given up", reason="cancelled") if kept.cancelled() else kept.exception()


def future_of(take: Callable[[T, Told], None], what: T) -> asyncio.Future[None]:
    """The outcome of `take` as a future, which raises Unavailable."""
    kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    take(what, partial(_settle, kept))
    return kept


def _settle(kept: asyncio.Future[None], error: BaseException | None) -> None:
    if kept.done():
        return
    if error is None:
        kept.set_result(None)
    else:
        kept.set_exception(error)


class Lane(Protocol):
    """One partition and the right to decide on it, which one process at a time has.

    A lane is fenced: a process that lost it can't commit, and raises LaneLost when it tries. All methods raise
    Unavailable where the backend fails for now; the lane's position is then unchanged.
    """

    partition: int

    @property
    def bytes_max(self) -> int:
        """About how many bytes of messages one commit may have now; a single notification's messages may exceed it."""
        ...

    async def read(self, count_max: int) -> Batch:
        """The batch after the last one read, waiting until there is a notification.

        About `count_max` notifications at most: a batch ends where the inbox's own records end. While a commit is in
        progress, the sessions that it changes may be as they were before it, as they are after it, or missing.
        """
        ...

    def rewind(self) -> None:
        """Return to the position behind the last committed batch; batches read since then are dropped."""
        ...

    async def oldest(self, count_max: int) -> tuple[Batch, Sequence[Session]]:
        """The sessions that were touched longest ago, oldest first, and an empty batch to commit their end with."""
        ...

    async def commit(
        self, batch: Batch, messages: Sequence[Message], sessions: Mapping[str, Session | None], clock_micros: int
    ) -> None:
        """Make all results of the batch visible at once, or none: the messages on their topics, and the position
        behind the batch.

        `sessions` are the states that the messages on the sessions topic hold, by key; None marks a forgotten session.

        Raises Unavailable also where a topic refuses a message; the next `read` then reports it in `unwritable`.
        """
        ...

    @property
    def lag(self) -> int:
        """Notifications in the partition that are not yet committed, as far as this process knows."""
        ...


class LaneLost(Exception):
    """Another process owns the lane now, or ownership is uncertain: stop, and open the lane anew before going on."""


async def append_all(inbox: Inbox, notifications: Iterable[Notification]) -> None:
    """Append notifications, at most _APPENDED_AT_ONCE at a time. Raises Unavailable."""
    waiting = iter(notifications)
    while some := list(islice(waiting, _APPENDED_AT_ONCE)):
        await asyncio.gather(*map(inbox.append, some))
