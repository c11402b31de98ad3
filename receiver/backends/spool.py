"""An inbox before the inbox: it keeps on disk what Kafka cannot take now, and drains it in order once Kafka can.

While nothing is wrong, appends go straight to Kafka. The first that fails goes to the disk, and so does everything
behind it until the disk is empty again, so that no notification of a session overtakes an older one. A failed append
may have arrived all the same, and is then in Kafka twice; the router recognizes repetitions.

While the disk drains, appends wait a moment for the batch on its way. Then only some go to the disk, fewer than it
lost, so that it holds less than before; the last ones go to Kafka. Otherwise senders that never pause would keep the
disk in use for ever, and could fill it faster than it drains, although nothing is wrong any more.

What Kafka has is noted on the disk (`spool_disk.py`). Draining continues even while that fails.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from receiver.backends.set_aside import SetAside
from receiver.backends.spool_disk import SpoolDisk, Unsent
from receiver.backoff import Backoff
from receiver.core.errors import Unavailable, Unwritable
from receiver.core.notification import Notification
from receiver.inbox import Inbox, Told, told_later
from receiver.reader import PassedOver, nobody

#: Directory beside the spools, for notifications that Kafka refuses.
SET_ASIDE = "set-aside"

_AGAIN_SECONDS_FIRST = 0.2
_AGAIN_SECONDS_MAX = 5.0
_TIDY_AGAIN_SECONDS = 10.0
#: If a batch takes longer, Kafka is slow rather than back, and appends do not wait for it.
_HOLD_SECONDS_MAX = 0.25


class FallibleInbox(Inbox, Protocol):
    """An inbox that may be unreachable."""

    def append(
        self,
        notification: Notification,
        otherwise: Callable[[Notification, asyncio.Future[None], Unavailable], None] | None = None,
    ) -> asyncio.Future[None]:
        """See the contract. If the append fails, `otherwise` settles the returned future in place of the error."""
        ...


class Gauges(Protocol):
    """Receives the state of a spool."""

    def spooled(self, spool: str, notifications_count: int, spool_bytes: int) -> None:
        """This many notifications and bytes wait on the disk, in the spool of that name."""
        ...

    def spool_failed(self, reason: str) -> None:
        """Draining failed."""
        ...

    def set_aside(self, count: int, reason: str) -> None:
        """`count` notifications that Kafka refuses are set aside. `reason` tells why one more is; empty if none was."""
        ...


class Held:
    """Appends that wait a moment for the batch on its way to Kafka, before `keep` writes them to the disk."""

    def __init__(self, keep: Callable[[Notification], asyncio.Future[None]]) -> None:
        self._keep = keep
        self._waiting: deque[tuple[Notification, asyncio.Future[None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def append(self, notification: Notification) -> asyncio.Future[None]:
        """Let it wait if others do, or if a batch is on its way; else keep it."""
        if self._timer is None and not self._waiting:
            return self._keep(notification)
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((notification, kept))
        return kept

    def begin(self) -> None:
        """A batch is on its way. No append waits for it longer than _HOLD_SECONDS_MAX."""
        self._timer = asyncio.get_running_loop().call_later(_HOLD_SECONDS_MAX, self.end)

    def end(self, count_max: int | None = None) -> None:
        """Keep all waiting appends, or `count_max` of them. New ones then do not wait, unless some still do."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for _ in range(len(self._waiting) if count_max is None else min(count_max, len(self._waiting))):
            notification, kept = self._waiting.popleft()
            self._keep(notification).add_done_callback(partial(_pass_on, kept))

    def hand_over(self, append: Callable[[Notification], asyncio.Future[None]]) -> None:
        """Pass all waiting appends to `append` instead."""
        waiting, self._waiting = self._waiting, deque()
        for notification, kept in waiting:
            append(notification).add_done_callback(partial(_pass_on, kept))


class Spool:
    """`receiver.inbox.Inbox` is the contract. `run` drains, for ever.

    It takes about `bytes_max` bytes at most; beyond that an append is Unavailable. `opened` is called with whether
    anything may be in the spool: before it is, and when all of it is in Kafka. `is_open` makes it begin so, if older
    notifications wait elsewhere.
    """

    def __init__(
        self,
        directory: Path,
        inbox: FallibleInbox,
        gauges: Gauges,
        *,
        bytes_max: int,
        append_timeout_seconds: float,
        appended: Callable[[int, float], None] = lambda _count, _seconds: None,
        opened: Callable[[bool], None] = lambda _is_open: None,
        is_open: bool = False,
        passed_over: PassedOver = nobody,
    ) -> None:
        self._set_aside = SetAside(directory.parent / SET_ASIDE, gauges, bytes_max=bytes_max)
        self._disk = SpoolDisk(
            directory,
            bytes_max=bytes_max,
            append_timeout_seconds=append_timeout_seconds,
            appended=appended,
            passed_over=passed_over,
        )
        self._held = Held(self._keep)
        self._inbox = inbox
        self._gauges = gauges
        self._unsent: Unsent | None = None
        self._filled = asyncio.Event()
        self._opened = opened
        self._set_open(is_open or self.count > 0)
        self._tell()

    @property
    def count(self) -> int:
        """The number of notifications on the disk."""
        return self._disk.count

    @property
    def notice(self) -> str:
        """Why notifications go to the disk, in words for an operator; empty while they do not."""
        waiting = (
            f"{self.count} notifications wait on disk: {self._inbox.trouble or 'draining'}" if self._is_open else ""
        )
        return "; ".join(filter(None, (waiting, self._set_aside.notice)))

    @property
    def trouble(self) -> str:
        """See the contract: empty while the disk can take what Kafka can't."""
        return self._disk.trouble if self._is_open else ""

    def append(self, notification: Notification) -> asyncio.Future[None]:
        """See the contract."""
        return self._held.append(notification) if self._is_open else self._inbox.append(notification, self._failed)

    def take(self, notification: Notification, told: Told) -> None:
        """See the contract."""
        told_later(self.append(notification), told)

    def keep(self, notification: Notification) -> asyncio.Future[None]:
        """Keep what Kafka did not take: on the disk, even if Kafka could take it now."""
        self._set_open(True)
        return self._keep(notification)

    async def run(self) -> None:
        """Drain the disk, and retry what was set aside, for ever."""
        trying = asyncio.create_task(self._set_aside.run(self._inbox))
        try:
            while True:
                await self.empty()
                is_tidy = await self._tidy()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if is_tidy else _TIDY_AGAIN_SECONDS):
                        await self._filled.wait()
        finally:
            trying.cancel()

    async def empty(self) -> None:
        """Drain until the disk is empty."""
        backoff = Backoff(_AGAIN_SECONDS_FIRST, _AGAIN_SECONDS_MAX)
        while self._is_open:
            try:
                try:
                    await self._drain()
                finally:
                    self._held.end()
            except Unavailable as error:
                self._gauges.spool_failed(error.message)
                await self._note()  # also checks that the disk can be written
                await asyncio.sleep(backoff.seconds())
            else:
                backoff.reset()

    def close(self) -> None:
        """Finish writing. Notifications that wait here are drained after the next start."""
        self._disk.close()

    def _set_open(self, is_open: bool) -> None:
        self._is_open = is_open
        self._opened(is_open)
        if is_open:
            self._filled.set()
        else:
            self._filled.clear()

    def _failed(self, notification: Notification, kept: asyncio.Future[None], _: Unavailable) -> None:
        self.keep(notification).add_done_callback(partial(_pass_on, kept))

    def _keep(self, notification: Notification) -> asyncio.Future[None]:
        return self._disk.append(notification, self._tell)

    async def _drain(self) -> None:
        """Send everything on the disk, then let appends go straight to Kafka again. Raises Unavailable."""
        drained_count = 0
        while self.count or self._disk.writing_count:
            if not self.count:
                await asyncio.sleep(0.001)
                continue
            if drained_count:
                self._held.begin()
            if self._unsent is None:
                self._unsent = await self._disk.read()
            next_position = await self._send(self._unsent)
            self._unsent = None
            drained_count = self._disk.pass_to(next_position)
            await self._note()
            self._held.end(drained_count // 2)
            self._tell()
        self._set_open(False)
        self._held.hand_over(self.append)
        self._tell()

    async def _note(self) -> bool:
        """Note on the disk what Kafka has. Returns whether that succeeded."""
        try:
            return await self._disk.note()
        except Unavailable as error:
            self._gauges.spool_failed(error.message)
            return False

    async def _tidy(self) -> bool:
        """Make the file small, without anything that Kafka has. Returns whether that succeeded."""
        is_noted = await self._note()
        try:
            await self._disk.shrink()
        except Unavailable as error:
            self._gauges.spool_failed(error.message)
            return False
        self._tell()
        return is_noted

    async def _send(self, read: Unsent) -> int:
        """Send these in order; returns the position behind them.

        Notifications that Kafka refuses as they are get set aside. Raises Unavailable if some were not kept: only those
        are sent the next time.
        """
        outcomes = await asyncio.gather(*map(self._inbox.append, read.notifications), return_exceptions=True)
        unsent, failed = list[Notification](), None
        for notification, outcome in zip(read.notifications, outcomes, strict=True):
            failure = await self._put_aside(notification, outcome) if isinstance(outcome, Unwritable) else outcome
            if isinstance(failure, BaseException):
                unsent.append(notification)
                failed = failed or failure
        if failed is not None:
            self._unsent = read._replace(notifications=unsent)
            taken_count, count = len(read.notifications) - len(unsent), len(read.notifications)
            raise Unavailable(f"Kafka took {taken_count} of {count}: {failed}", reason="kafka") from failed
        return read.next_position

    async def _put_aside(self, notification: Notification, why: Unwritable) -> Unavailable | None:
        """Set a notification aside. Returns why that failed, None on success."""
        try:
            await self._disk.write(self._set_aside.keep, notification, why.message)
        except Unavailable as error:
            return error
        return None

    def _tell(self) -> None:
        disk = self._disk
        self._gauges.spooled(disk.name, disk.count + disk.writing_count, disk.taken_bytes)


def _pass_on(kept: asyncio.Future[None], written: asyncio.Future[None]) -> None:
    if kept.done():
        return
    with contextlib.suppress(asyncio.CancelledError):
        error = written.exception()
        if error is None:
            kept.set_result(None)
        else:
            kept.set_exception(error)
        return
    kept.cancel()
