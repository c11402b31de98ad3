"""An inbox before the inbox: it keeps on disk what Kafka cannot take now, and drains it in order when it can again.

While nothing is wrong it is not there: appends go straight to Kafka. The first that fails goes to the disk, and so
does all that comes behind it until the disk is empty again, so that no notification of a session overtakes an older
one. What failed may have arrived all the same, and is then there twice; the router knows repetitions.

While the disk is being emptied, appends wait a moment for the batch on its way, and then only so many of them go to
the disk that it holds less than before; the last ones go to Kafka. Else senders that never pause would keep it in use
for ever, and could fill it faster than it empties, with nothing wrong any more.

The disk is the embedded node's: the same file, the same syncs, the same care after a failure.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from receiver.backends.sqlite import SqliteInbox
from receiver.backends.sqlite_file import Effects, Lock, SqliteFile
from receiver.backends.sqlite_view import SqliteView
from receiver.errors import Unavailable
from receiver.inbox import Inbox, LaneLost
from receiver.notification import Notification

_NO_EFFECTS = Effects((), (), ())
#: What is sent at a time: enough for a few batches, few enough to be sent again when one of them fails.
_DRAIN_MAX = 2_000
_BACKOFF_SECONDS_FIRST = 0.2
_BACKOFF_SECONDS_MAX = 5.0
_RETAIN_ROWS_MAX = 10_000
#: What a notification takes on disk besides its body, its index and SQLite's own included, is seldom more.
_ROW_BYTES = 512
#: Kafka is slow rather than back where a batch takes longer; appends don't wait for that.
_HOLD_SECONDS_MAX = 0.25


class FallibleInbox(Inbox, Protocol):
    """An inbox that may be away."""

    def append(
        self,
        notification: Notification,
        otherwise: Callable[[Notification, asyncio.Future[None], Unavailable], None] | None = None,
    ) -> asyncio.Future[None]:
        """See the contract. Where it fails, `otherwise` settles what was returned, in place of the error."""
        ...


class Gauges(Protocol):
    """What is told of a spool."""

    def spooled(self, spool: str, notifications_count: int, spool_bytes: int) -> None:
        """So much waits on the disk, in the spool of that name."""
        ...

    def spool_failed(self, reason: str) -> None:
        """Draining did not succeed."""
        ...


class _Sent(NamedTuple):
    """What Kafka has, while the disk has not noted it yet."""

    next_position: int
    spool_bytes: int


class Spool:
    """`receiver.inbox.Inbox` is the contract. `run` drains, for ever.

    It takes at most about `bytes_max` bytes; beyond that an append is Unavailable. `opened` is told whether anything
    may lie here: before it does, and when it is all in Kafka. `is_open` begins so, for something older lies elsewhere.
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
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._name = directory.name
        self._lock = Lock(directory)
        try:
            self._file = SqliteFile(directory, "")
            self._file.open()
            self._view = SqliteView(directory, "")
        except BaseException:
            self._lock.release()
            raise
        self._writer, self._reader = ThreadPoolExecutor(1, "spool-writer"), ThreadPoolExecutor(1, "spool-reader")
        self._disk = SqliteInbox(
            self._file, self._writer, append_timeout_seconds=append_timeout_seconds, appended=appended
        )
        self._inbox = inbox
        self._gauges = gauges
        self._bytes_max = bytes_max
        self._position = self._view.position()
        self._bytes = self._view.inbox_bytes(self._position)
        self._writing = 0
        self._filled = asyncio.Event()
        self._sent: _Sent | None = None
        self._held: deque[tuple[Notification, asyncio.Future[None]]] = deque()
        self._holding: asyncio.TimerHandle | None = None
        self._opened = opened
        self._set_open(is_open or self.count > 0)
        self._tell()

    @property
    def count(self) -> int:
        """How many notifications wait on the disk."""
        return self._file.end - self._position

    @property
    def notice(self) -> str:
        """Why notifications go to the disk, in words for an operator; empty while they don't."""
        return f"{self.count} notifications wait on disk: {self._inbox.trouble or 'draining'}" if self._is_open else ""

    @property
    def trouble(self) -> str:
        """See the contract: empty as long as the disk can take what Kafka can't."""
        if not self._is_open:
            return ""
        if self._bytes >= self._bytes_max:
            return self._full()
        return self._disk.trouble

    def append(self, notification: Notification) -> asyncio.Future[None]:
        """See the contract."""
        if not self._is_open:
            return self._inbox.append(notification, self._failed)
        if self._holding is None and not self._held:
            return self._keep(notification)
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held.append((notification, kept))
        return kept

    def keep(self, notification: Notification) -> asyncio.Future[None]:
        """Keep what Kafka did not take, on the disk whatever Kafka would say now."""
        self._set_open(True)
        return self._keep(notification)

    async def run(self) -> None:
        """Drain whatever comes to lie here."""
        while True:
            await self._filled.wait()
            await self.empty()

    async def empty(self) -> None:
        """Drain until nothing lies here."""
        backoff_seconds = _BACKOFF_SECONDS_FIRST
        while self._is_open:
            try:
                try:
                    await self._drain()
                finally:
                    self._let_in()
            except LaneLost:
                # A commit that failed was kept all the same.
                self._position, self._sent = self._view.position(), None
            except Unavailable as error:
                self._gauges.spool_failed(error.message)
                await asyncio.sleep(backoff_seconds)
                backoff_seconds = min(2 * backoff_seconds, _BACKOFF_SECONDS_MAX)
            else:
                backoff_seconds = _BACKOFF_SECONDS_FIRST

    def close(self) -> None:
        """Finish what is being written. What waits here is drained after the next start."""
        self._writer.shutdown()
        self._reader.shutdown()
        self._view.close()
        self._file.close()
        self._lock.release()

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
        if self._bytes >= self._bytes_max:
            refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            refused.set_exception(Unavailable(self._full(), reason="spool"))
            return refused
        size = len(notification.body) + _ROW_BYTES
        self._bytes += size
        self._writing += 1
        written = self._disk.append(notification)
        written.add_done_callback(lambda done: self._written(done, size))
        return written

    def _written(self, written: asyncio.Future[None], size: int) -> None:
        self._writing -= 1
        if written.cancelled() or written.exception() is not None:
            self._bytes -= size
        self._tell()

    async def _drain(self) -> None:
        """Send what lies here until nothing does, then let appends go straight again. Raises Unavailable."""
        loop = asyncio.get_running_loop()
        drained_count = 0
        while self.count or self._writing:
            if not self.count:
                await asyncio.sleep(0.001)
                continue
            if drained_count:
                self._holding = loop.call_later(_HOLD_SECONDS_MAX, self._let_in)
            if self._sent is None:
                notifications, next_position = await loop.run_in_executor(
                    self._reader, self._view.inbox, self._position, _DRAIN_MAX
                )
                await self._send(notifications)
                self._sent = _Sent(next_position, sum(len(each.body) + _ROW_BYTES for each in notifications))
            now_micros = time.time_ns() // 1000
            await loop.run_in_executor(
                self._writer, self._file.commit, self._position, self._sent.next_position, _NO_EFFECTS, now_micros
            )
            drained_count = self._sent.next_position - self._position
            self._position = self._sent.next_position
            self._bytes = max(0, self._bytes - self._sent.spool_bytes)
            self._sent = None
            self._let_in(drained_count // 2)
            await loop.run_in_executor(self._writer, self._file.retain, now_micros, now_micros, _RETAIN_ROWS_MAX)
            self._tell()
        self._bytes = 0
        self._set_open(False)
        held, self._held = self._held, deque()
        for notification, kept in held:
            self.append(notification).add_done_callback(partial(_pass_on, kept))
        self._tell()

    def _let_in(self, count_max: int | None = None) -> None:
        """Write those that wait, or so many of them; who comes next waits no more, unless some still do."""
        if self._holding is not None:
            self._holding.cancel()
            self._holding = None
        for _ in range(len(self._held) if count_max is None else min(count_max, len(self._held))):
            notification, kept = self._held.popleft()
            self._keep(notification).add_done_callback(partial(_pass_on, kept))

    async def _send(self, notifications: Sequence[Notification]) -> None:
        """Send these in order, each again and again until it is kept; those behind a failure wait for it."""
        unsent = list(notifications)
        outcomes = await asyncio.gather(*map(self._inbox.append, unsent), return_exceptions=True)
        failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failed:
            raise Unavailable(f"Kafka took {len(unsent) - len(failed)} of {len(unsent)}: {failed[0]}", reason="kafka")

    def _full(self) -> str:
        return f"the spool is full: {self._bytes_max} bytes wait for Kafka"

    def _tell(self) -> None:
        self._gauges.spooled(self._name, self.count + self._writing, self._bytes)


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
