"""An inbox before the inbox: it keeps on disk what Kafka cannot take now, and drains it in order when it can again.

While nothing is wrong it is not there: appends go straight to Kafka. The first that fails goes to the disk, and so
does all that comes behind it until the disk is empty again, so that no notification of a session overtakes an older
one. What failed may have arrived all the same, and is then there twice; the router knows repetitions.

While the disk is being emptied, appends wait a moment for the batch on its way, and then only so many of them go to
the disk that it holds less than before; the last ones go to Kafka. Else senders that never pause would keep it in use
for ever, and could fill it faster than it empties, with nothing wrong any more.

The disk is the embedded node's: the same file, the same syncs, the same care after a failure. What Kafka has is noted
there and removed. While that fails draining goes on all the same: what is not noted is sent again after a restart.
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

from receiver.backends.directory import Lock, make_directory
from receiver.backends.packing import Pack
from receiver.backends.set_aside import SetAside
from receiver.backends.sqlite.file import Effects, SqliteFile
from receiver.backends.sqlite.node import SqliteInbox
from receiver.backends.sqlite.view import SqliteView
from receiver.core.errors import Unavailable, Unwritable
from receiver.core.notification import Notification
from receiver.inbox import Inbox, LaneLost, Told, told_later
from receiver.reader import PassedOver, nobody

#: Beside the spools: what Kafka does not take.
SET_ASIDE = "set-aside"

_NO_EFFECTS = Effects((), (), ())
#: What is sent at a time: enough for a few batches, few enough to be sent again when one of them fails.
_DRAIN_MAX = 2_000
_DRAIN_BYTES_MAX = 8 * 1024 * 1024
_BACKOFF_SECONDS_FIRST = 0.2
_BACKOFF_SECONDS_MAX = 5.0
_RETAIN_ROWS_MAX = 10_000
_TIDY_AGAIN_SECONDS = 10.0
#: What a notification takes on disk besides its body, its index and SQLite's own included, is seldom more.
_ROW_BYTES = 512
#: Of what the spool may take, its log may take so much.
_LOG_PART = 16
#: An empty file is made small again when it takes so much.
_SHRINK_BYTES = 1024 * 1024
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

    def set_aside(self, count: int, reason: str) -> None:
        """So many lie beside the spool that Kafka does not take; the reason why one more does, else empty."""
        ...


class _Read(NamedTuple):
    """What was read from the disk: all before a position, and what of that Kafka does not have yet."""

    unsent: Sequence[Notification]
    next_position: int


class _SpoolFile(SqliteFile):
    """A file that knows what it takes on the disk, see `SqliteFile.taken_bytes`."""

    measured_bytes = 0

    def open(self) -> None:
        """See SqliteFile."""
        super().open()
        self.measured_bytes = self.taken_bytes()

    def append(self, pack: Pack, now_micros: int) -> None:
        """See SqliteFile."""
        super().append(pack, now_micros)
        self.measured_bytes = self.taken_bytes()

    def remove(self, position: int, next_position: int) -> None:
        """Note that Kafka has what is between the positions, and remove it. Raises LaneLost and Unavailable."""
        now_micros = time.time_ns() // 1000
        if next_position > position:
            self.commit(position, next_position, _NO_EFFECTS, now_micros)
        self.retain(now_micros, now_micros, _RETAIN_ROWS_MAX)
        self.measured_bytes = self.taken_bytes()

    def shrink(self) -> None:
        """See SqliteFile; where that gives back more than it costs."""
        if self.file_bytes() > _SHRINK_BYTES:
            super().shrink()
            self.measured_bytes = self.taken_bytes()


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
        passed_over: PassedOver = nobody,
    ) -> None:
        make_directory(directory.parent)
        make_directory(directory)
        self._name = directory.name
        self._lock = Lock(directory)
        try:
            self._file = _SpoolFile(directory, "", log_bytes_max=bytes_max // _LOG_PART, passed_over=passed_over)
            self._file.open()
            self._view = SqliteView(directory, "", passed_over, self._suspect)
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
        self._position = self._noted = self._view.position()
        self._writing = self._writing_bytes = 0
        self._set_aside = SetAside(directory.parent / SET_ASIDE, gauges, bytes_max=bytes_max)
        self._read: _Read | None = None
        self._filled = asyncio.Event()
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
        waiting = (
            f"{self.count} notifications wait on disk: {self._inbox.trouble or 'draining'}" if self._is_open else ""
        )
        return "; ".join(filter(None, (waiting, self._set_aside.notice)))

    @property
    def trouble(self) -> str:
        """See the contract: empty as long as the disk can take what Kafka can't."""
        if not self._is_open:
            return ""
        if self._taken_bytes >= self._bytes_max:
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

    def take(self, notification: Notification, told: Told) -> None:
        """See the contract."""
        told_later(self.append(notification), told)

    def keep(self, notification: Notification) -> asyncio.Future[None]:
        """Keep what Kafka did not take, on the disk whatever Kafka would say now."""
        self._set_open(True)
        return self._keep(notification)

    async def run(self) -> None:
        """Drain whatever comes to lie here, and try again what was set aside."""
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
        """Drain until nothing lies here."""
        backoff_seconds = _BACKOFF_SECONDS_FIRST
        while self._is_open:
            try:
                try:
                    await self._drain()
                finally:
                    self._let_in()
            except Unavailable as error:
                self._gauges.spool_failed(error.message)
                await self._note()  # and find out whether the disk can be written, without any traffic
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

    def _suspect(self) -> None:
        self._file.is_suspect = True

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
        if self._taken_bytes >= self._bytes_max:
            refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            refused.set_exception(Unavailable(self._full(), reason="spool"))
            return refused
        size = len(notification.body) + _ROW_BYTES
        self._writing_bytes += size
        self._writing += 1
        written = self._disk.append(notification)
        written.add_done_callback(lambda done: self._written(done, size))
        return written

    def _written(self, written: asyncio.Future[None], size: int) -> None:
        self._writing -= 1
        self._writing_bytes -= size
        if not written.cancelled():
            written.exception()  # is told to whoever waits for it
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
            if self._read is None:
                found = await loop.run_in_executor(
                    self._reader, self._view.inbox, self._position, _DRAIN_MAX, _DRAIN_BYTES_MAX
                )
                self._read = _Read(*found)
            next_position = await self._send(self._read)
            self._read = None
            drained_count = next_position - self._position
            self._position = next_position
            await self._note()
            self._let_in(drained_count // 2)
            self._tell()
        self._set_open(False)
        held, self._held = self._held, deque()
        for notification, kept in held:
            self.append(notification).add_done_callback(partial(_pass_on, kept))
        self._tell()

    async def _note(self) -> bool:
        """Note on the disk what Kafka has; whether that succeeded."""
        loop, position = asyncio.get_running_loop(), self._position
        try:
            await loop.run_in_executor(self._writer, self._file.remove, self._noted, position)
        except LaneLost:
            # A commit that failed was kept all the same.
            self._noted = await loop.run_in_executor(self._reader, self._view.position)
            return False
        except Unavailable as error:
            self._gauges.spool_failed(error.message)
            self._disk.trouble = error.message
            return False
        self._noted = position
        self._disk.trouble = self._file.full
        return True

    async def _tidy(self) -> bool:
        """Leave the file small and without anything that Kafka has; whether that succeeded."""
        is_noted = await self._note()
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, self._file.shrink)
        except Unavailable as error:
            self._gauges.spool_failed(error.message)
            return False
        self._tell()
        return is_noted

    def _let_in(self, count_max: int | None = None) -> None:
        """Write those that wait, or so many of them; who comes next waits no more, unless some still do."""
        if self._holding is not None:
            self._holding.cancel()
            self._holding = None
        for _ in range(len(self._held) if count_max is None else min(count_max, len(self._held))):
            notification, kept = self._held.popleft()
            self._keep(notification).add_done_callback(partial(_pass_on, kept))

    async def _send(self, read: _Read) -> int:
        """Send these in order; returns the position behind them.

        What Kafka does not take as it is, is set aside. Raises Unavailable where some were not kept: those alone are
        sent the next time.
        """
        outcomes = await asyncio.gather(*map(self._inbox.append, read.unsent), return_exceptions=True)
        unsent, failed = list[Notification](), None
        for notification, outcome in zip(read.unsent, outcomes, strict=True):
            failure = await self._put_aside(notification, outcome) if isinstance(outcome, Unwritable) else outcome
            if isinstance(failure, BaseException):
                unsent.append(notification)
                failed = failed or failure
        if failed is not None:
            self._read = read._replace(unsent=unsent)
            taken_count, count = len(read.unsent) - len(unsent), len(read.unsent)
            raise Unavailable(f"Kafka took {taken_count} of {count}: {failed}", reason="kafka") from failed
        return read.next_position

    async def _put_aside(self, notification: Notification, why: Unwritable) -> Unavailable | None:
        """Why it could not be put aside, None where it was."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._writer, self._set_aside.keep, notification, why.message)
        except Unavailable as error:
            return error
        return None

    @property
    def _taken_bytes(self) -> int:
        return self._file.measured_bytes + self._writing_bytes

    def _full(self) -> str:
        return f"the spool is full: it takes {self._bytes_max} bytes of the disk"

    def _tell(self) -> None:
        self._gauges.spooled(self._name, self.count + self._writing, self._taken_bytes)


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
