"""The disk of a spool: the embedded backend's file, with the same syncs and the same care after a failure.

It is read from its beginning. What Kafka has is noted and removed. While noting fails, the note lags behind, and the
notifications that it misses are sent again after a restart.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, TypeVar, TypeVarTuple, Unpack

from receiver.backends.directory import Lock, make_directory
from receiver.backends.packing import Pack
from receiver.backends.sqlite.file import Effects, SqliteFile
from receiver.backends.sqlite.node import SqliteInbox
from receiver.backends.sqlite.view import SqliteView
from receiver.core.errors import Unavailable
from receiver.core.notification import Notification
from receiver.inbox import LaneLost
from receiver.reader import PassedOver, nobody

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_NO_EFFECTS = Effects((), (), ())
#: Notifications sent at a time: enough for a few batches, few enough to be sent again when one of them fails.
_READ_MAX = 2_000
_READ_BYTES_MAX = 8 * 1024 * 1024
_RETAIN_ROWS_MAX = 10_000
#: The bytes that a notification takes on disk besides its body, index and SQLite's own included, are seldom more.
_ROW_BYTES = 512
#: The log may take this part of the spool's bytes.
_LOG_PART = 16
#: An empty file is made small again from this size on.
_SHRINK_BYTES = 1024 * 1024


class Unsent(NamedTuple):
    """Notifications before a position that were read from the disk, and that Kafka does not have yet."""

    notifications: Sequence[Notification]
    next_position: int


class _SpoolFile(SqliteFile):
    """A file that tracks its size on the disk, see `SqliteFile.taken_bytes`."""

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
        """Note that Kafka has everything between the positions, and remove it. Raises LaneLost and Unavailable."""
        now_micros = time.time_ns() // 1000
        if next_position > position:
            self.commit(position, next_position, _NO_EFFECTS, now_micros)
        self.retain(now_micros, now_micros, _RETAIN_ROWS_MAX)
        self.measured_bytes = self.taken_bytes()

    def shrink(self) -> None:
        """See SqliteFile; only where that gives back more than it costs."""
        if self.file_bytes() > _SHRINK_BYTES:
            super().shrink()
            self.measured_bytes = self.taken_bytes()


class SpoolDisk:
    """A directory's notifications, of about `bytes_max` bytes at most. `count` of them are not in Kafka.

    Raises Unavailable if the directory can't be used.
    """

    def __init__(
        self,
        directory: Path,
        *,
        bytes_max: int,
        append_timeout_seconds: float,
        appended: Callable[[int, float], None] = lambda _count, _seconds: None,
        passed_over: PassedOver = nobody,
    ) -> None:
        make_directory(directory.parent)
        make_directory(directory)
        self.name = directory.name
        self._bytes_max = bytes_max
        with ExitStack() as stack:
            stack.callback(Lock(directory).release)
            self._file = _SpoolFile(directory, "", log_bytes_max=bytes_max // _LOG_PART, passed_over=passed_over)
            stack.callback(self._file.close)
            self._file.open()
            self._view = SqliteView(directory, "", passed_over, self._suspect)
            stack.callback(self._view.close)
            self._position = self._noted = self._view.position()
            self._reader = stack.enter_context(ThreadPoolExecutor(1, "spool-reader"))
            self._writer = stack.enter_context(ThreadPoolExecutor(1, "spool-writer"))
            self._opened = stack.pop_all()
        self._inbox = SqliteInbox(
            self._file, self._writer, append_timeout_seconds=append_timeout_seconds, appended=appended
        )
        self._writing_bytes = 0
        self.writing_count = 0

    @property
    def count(self) -> int:
        """The number of notifications on the disk that are not in Kafka."""
        return self._file.end - self._position

    @property
    def taken_bytes(self) -> int:
        """The bytes that they take, with those being written."""
        return self._file.measured_bytes + self._writing_bytes

    @property
    def trouble(self) -> str:
        """Why nothing can be kept here, in words for an operator; empty while all is well."""
        if self.taken_bytes >= self._bytes_max:
            return f"the spool is full: it takes {self._bytes_max} bytes of the disk"
        return self._inbox.trouble

    def append(self, notification: Notification, written: Callable[[], None]) -> asyncio.Future[None]:
        """Keep a notification; `written` is called when that is done or has failed. The future raises Unavailable."""
        if self.taken_bytes >= self._bytes_max:
            refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            refused.set_exception(Unavailable(self.trouble, reason="spool"))
            return refused
        size = len(notification.body) + _ROW_BYTES
        self._writing_bytes += size
        self.writing_count += 1
        kept = self._inbox.append(notification)

        def done(kept: asyncio.Future[None]) -> None:
            self.writing_count -= 1
            self._writing_bytes -= size
            if not kept.cancelled():
                kept.exception()  # its other waiters report it
            written()

        kept.add_done_callback(done)
        return kept

    async def read(self) -> Unsent:
        """The oldest notifications, a few batches of them."""
        found = asyncio.get_running_loop().run_in_executor(
            self._reader, self._view.inbox, self._position, _READ_MAX, _READ_BYTES_MAX
        )
        return Unsent(*await found)

    def pass_to(self, position: int) -> int:
        """Count everything before the position as being in Kafka. Returns how many notifications that adds."""
        passed_count = position - self._position
        self._position = position
        return passed_count

    async def note(self) -> bool:
        """Note what Kafka has, and remove it. Returns whether that succeeded. Raises Unavailable if the disk fails."""
        position = self._position
        try:
            await self.write(self._file.remove, self._noted, position)
        except LaneLost:
            # An earlier commit was kept although it failed.
            self._noted = await asyncio.get_running_loop().run_in_executor(self._reader, self._view.position)
            return False
        except Unavailable as error:
            self._inbox.trouble = error.message
            raise
        self._noted = position
        self._inbox.trouble = self._file.full
        return True

    async def shrink(self) -> None:
        """Make an empty file small. Raises Unavailable."""
        await self.write(self._file.shrink)

    async def write(self, call: Callable[[Unpack[Ts]], T], *arguments: *Ts) -> T:
        """The outcome of a blocking call, made on the thread where everything that writes to this disk takes turns."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, call, *arguments)

    def close(self) -> None:
        """Finish writing, and let another process use the directory."""
        self._opened.close()

    def _suspect(self) -> None:
        self._file.is_suspect = True
