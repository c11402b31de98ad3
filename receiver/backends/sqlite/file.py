"""The writing side of the file of an embedded node: inbox, topics and sessions in one SQLite database. No threads.

One connection writes and checkpoints, and an exclusive lock beside the file keeps out a second serving process. Readers
(`tail`, `sessions`) open read-only connections of their own at any time.

Durability: WAL with synchronous=FULL, so that COMMIT returns after the log was synced. This is checked at every
opening, because builds of SQLite differ in their default.

Failure: after any error in a transaction its connection is not used again. SQLite on Linux can't know what a failed
sync left on the disk: pages of the log may count as clean that never got there. A log continued behind them would end,
after a power cut, where they are missing; and a power cut during a checkpoint would leave a database that only the
missing pages could repair. So the file is reopened, and before SQLite reads it the log is written over itself and
synced. Then a checkpoint copies the log into the database and syncs that, and the log starts empty.

A full disk: opening the file, commits and removals may use the reserve, appends may not. The log is at most half the
reserve, and after an opening that half is free again, since the log is empty then. Retention gives free pages back to
the disk while the reserve is not whole.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import apsw
import orjson

from receiver.backends.directory import make_private
from receiver.backends.packing import Pack
from receiver.backends.reserve import Reserve
from receiver.backends.sqlite.healing import heal
from receiver.backends.sqlite.mark import Mark
from receiver.backends.sqlite.salvage import salvage
from receiver.backends.sqlite.schema import (
    BUSY_TIMEOUT_MILLIS,
    FILE_NAME,
    MARK_NAME,
    PARTITION,
    SCHEMA,
    SCHEMA_VERSION,
    UPGRADES,
    Identity,
    State,
    checkpoint,
    close,
    failing,
    identity,
    insert_states,
    make_durable,
    only_row,
    refuse_read_only,
    topic_numbers,
)
from receiver.core.errors import Unavailable
from receiver.inbox import LaneLost
from receiver.reader import PassedOver, nobody

#: 16 MiB of log between checkpoints: small enough to replay at once, large enough that a page is copied once for many
#: commits that touched it.
_CHECKPOINT_BYTES_MAX = 16 * 1024 * 1024
_PAGE_BYTES = 4_096
#: The most that one append writes, also as a part of the reserve: a row of a megabyte takes a few milliseconds.
_APPEND_BYTES_MAX = 1024 * 1024
_APPEND_PART = 8
#: Free pages are given back to the disk in steps of this part of the reserve, as pages are moved through the log, and
#: at most this many times after each retention.
_GIVEN_BACK_PART = 16
_GIVEN_BACK_TIMES_MAX = 16
#: Bytes of each kind removed at once: SQLite reads every page that a row takes.
_REMOVED_BYTES_MAX = 16 * 1024 * 1024
#: SQLite's file system cuts pieces longer than 128 KiB, since SQLite itself never writes so much.
_PIECE_BYTES = 65_536


#: Least time between two checks that the file is in its place; each costs some microseconds.
_LOOK_SECONDS = 0.1
#: A file that is damaged again this soon is left to the operator.
_SALVAGE_SECONDS_MIN = 60.0


class Effects(NamedTuple):
    """The effects of a batch in the form in which they are written. They are prepared beforehand, so that the writing
    thread asks for the interpreter as rarely as possible: each time a busy loop may keep it waiting for milliseconds.

    `packs` are by topic; `replaced` are the positions of the records that `states` replace.
    """

    packs: Sequence[tuple[str, Pack]]
    states: Sequence[State]
    replaced: Sequence[int]


T = TypeVar("T")


class SqliteFile:
    """The writing side. Use it from one thread at a time. Every method raises Unavailable when the file fails.

    `end` is the position of the next notification. `append_bytes_max` is the most bytes that the bodies of one append
    should have, apart from the last body. The log has about `log_bytes_max` bytes at most, and no more than half the
    reserve. A reader that finds the file unreadable to SQLite may set `is_suspect`; the file is then rebuilt from what
    can be read. `passed_over` is called for each loss.
    """

    def __init__(
        self,
        directory: Path,
        sessions_topic: str,
        *,
        passed_over: PassedOver = nobody,
        vfs: str = "",
        log_bytes_max: int = _CHECKPOINT_BYTES_MAX,
    ) -> None:
        self._reserve = None if vfs else Reserve(directory)  # only for the machine's own file system
        self.append_bytes_max = _APPEND_BYTES_MAX
        self._checkpoint_bytes = log_bytes_max
        if self._reserve is not None:
            self.append_bytes_max = min(_APPEND_BYTES_MAX, self._reserve.size_bytes // _APPEND_PART)
            self._checkpoint_bytes = min(log_bytes_max, self._reserve.size_bytes // 2)
        self._directory = directory
        self._path = os.fspath(directory / FILE_NAME)
        self._vfs = vfs  # SQLite's name of a file system; "" is the machine's own
        self._sessions_topic = sessions_topic
        self._passed_over = passed_over
        self._connection: apsw.Connection | None = None
        self._topics: dict[str, int] = {}
        self._mark: Mark | None = None
        self._identity: Identity | None = None
        self._log_identity: Identity | None = None
        self._look_at = 0.0
        self._salvage_at = 0.0
        self.is_suspect = False
        self.end = 0
        self._topics_begin = 0

    def open(self) -> None:
        """Open or create the file, and make its content durable. Every other method does this if needed."""
        self._with_reserve(self._try_to_open)
        if self._reserve is not None:
            self._reserve.make()

    def close(self) -> None:
        """Close the connection; committed data stays."""
        if self._connection is not None:
            # Nothing failed on it, so the log may be copied into the database and removed.
            self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        self._give_up()
        if self._mark is not None:
            self._mark.close()
            self._mark = None

    def expect(self, topics: Sequence[str]) -> None:
        """Make these topics exist before their first records."""
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            for topic in topics:
                self._advance(connection, topic, 0)
            connection.execute("COMMIT")

    def look(self) -> None:
        """Raise Unavailable if the file is not at its place any more, since readers would not find what is kept in it.

        If only the log is missing, its content is copied into the file, and a new log is made.
        """
        with failing("the file can't be looked for"):
            if self.is_suspect:
                self.open()
            if self._vfs or self._connection is None or (now := time.monotonic()) < self._look_at:
                return
            self._expect_in_place()
            if identity(f"{self._path}-wal") != self._log_identity:
                checkpoint(self._connection)
                self._give_up()
                self._open()
        self._look_at = now + _LOOK_SECONDS

    def append(self, pack: Pack, now_micros: int) -> None:
        """Keep the packed notifications durably, or not at all."""
        if self._connection is None:
            self.open()
        if self.full:
            raise Unavailable(self.full, reason="store")
        try:
            self._insert(pack, now_micros)
        except Unavailable as error:
            if self._reserve is not None:
                self._reserve.is_safe = False  # check again before the next append
            if not self.is_suspect:
                raise self._told(error) from error.__cause__
            self._insert(pack, now_micros)  # into the rebuilt file
        self.end += pack.size
        if self._mark is not None:
            self._mark.write(self.end)
        self.look()

    def commit(self, position: int, next_position: int, effects: Effects, clock_micros: int) -> int:
        """Write everything that the notifications from `position` to `next_position` caused, or nothing.

        Returns the position of the first of the states. Raises LaneLost if the lane is not at `position`, because of
        another commit.
        """
        return self._with_reserve(lambda: self._commit(position, next_position, effects, clock_micros))

    def retain(self, inbox_micros: int, topics_micros: int, rows_max: int) -> int:
        """Remove committed notifications, messages and tombstones written before the times given.

        The oldest go first, at most `rows_max` rows and some bytes of each kind, to keep it short. Returns how many
        were removed; it is at least `rows_max` if there may be more. A row written by a clock that ran ahead holds up
        all rows behind it until its time comes, so that no topic ever has a gap.
        """
        removed = self._with_reserve(lambda: self._retain(inbox_micros, topics_micros, rows_max))
        if self._reserve is not None:
            for _ in range(_GIVEN_BACK_TIMES_MAX):
                if self._reserve.make() or not self._with_reserve(self._give_back):
                    break
        return removed

    @property
    def full(self) -> str:
        """Why nothing is appended: the disk lacks room for it beside the reserve. Empty if there is room."""
        if self._reserve is None or self._reserve.is_safe or self._reserve.make():
            return ""
        return _full(self._reserve)

    def shrink(self) -> None:
        """Give all free pages of the file back to the disk, for a file with next to nothing in it."""
        self._with_reserve(self._shrink)

    def taken_bytes(self) -> int:
        """The bytes that the file takes on the disk, without its free pages, but with its log and index."""
        with self._connected() as connection:
            pages_count = connection.pragma("page_count") - connection.pragma("freelist_count")
        beside = [self._directory / f"{FILE_NAME}{suffix}" for suffix in ("-wal", "-shm")]
        return int(pages_count) * _PAGE_BYTES + sum(path.stat().st_size for path in beside if path.exists())

    def file_bytes(self) -> int:
        """The length of the file itself, in bytes."""
        with failing("the file can't be found"):
            return (self._directory / FILE_NAME).stat().st_size

    def _commit(self, position: int, next_position: int, effects: Effects, clock_micros: int) -> int:
        self.look()
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "UPDATE lane SET position = ?, clock_micros = ? WHERE partition = ? AND position = ?",
                (next_position, clock_micros, PARTITION, position),
            )
            if connection.changes() != 1:
                raise LaneLost(f"the lane of partition {PARTITION} no longer stands at {position}")
            for topic, pack in effects.packs:
                number, first = self._advance(connection, topic, pack.size)
                connection.execute(
                    "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?)",
                    (number, first, pack.size, clock_micros, pack.crc, pack.blob),
                )
            _, first = self._advance(connection, self._sessions_topic, len(effects.states))
            insert_states(connection, first, effects.states)
            if effects.replaced:
                connection.execute(
                    "DELETE FROM sessions WHERE position IN (SELECT value FROM json_each(?))",
                    (orjson.dumps(effects.replaced).decode(),),
                )
            connection.execute("COMMIT")
        return first

    def _retain(self, inbox_micros: int, topics_micros: int, rows_max: int) -> int:
        removed = there_is_more = 0
        self.look()
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE lane SET inbox_position = ? WHERE partition = ?", (self.end, PARTITION))
            for select, delete, before_micros in (
                (
                    "SELECT position, written_micros, length(pack) FROM inbox "
                    "WHERE position + count <= (SELECT position FROM lane) ORDER BY position LIMIT ?",
                    "DELETE FROM inbox WHERE position <= ?",
                    inbox_micros,
                ),
                (
                    "SELECT rowid, written_micros, length(pack) FROM messages ORDER BY rowid LIMIT ?",
                    "DELETE FROM messages WHERE rowid <= ?",
                    topics_micros,
                ),
                (
                    "SELECT position, timestamp_millis * 1000, 0 FROM sessions WHERE value IS NULL "
                    "ORDER BY position LIMIT ?",
                    "DELETE FROM sessions WHERE value IS NULL AND position <= ?",
                    topics_micros,
                ),
            ):
                last: int | None = None
                taken_bytes = 0
                for row, written_micros, row_bytes in connection.execute(select, (rows_max,)):
                    if isinstance(written_micros, int) and written_micros >= before_micros:
                        break
                    last = row
                    taken_bytes += row_bytes or 0
                    if taken_bytes >= _REMOVED_BYTES_MAX:
                        there_is_more = rows_max
                        break
                if last is not None:
                    connection.execute(delete, (last,))
                    removed += connection.changes()
            connection.execute("COMMIT")
        return max(removed, there_is_more)

    def _give_back(self) -> bool:
        """Give some free pages back to the disk. Returns whether there were any."""
        size_bytes = 0 if self._reserve is None else self._reserve.size_bytes
        with self._connected() as connection:
            pages_count: int = connection.pragma("page_count")
            for _ in connection.execute(f"PRAGMA incremental_vacuum({size_bytes // _GIVEN_BACK_PART // _PAGE_BYTES})"):
                pass  # each step frees one page
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return bool(pages_count > connection.pragma("page_count"))

    def _shrink(self) -> None:
        with self._connected() as connection:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _with_reserve(self, call: Callable[[], T]) -> T:
        """The outcome of a call, retried with the reserve freed if the disk is full."""
        try:
            return call()
        except Unavailable as error:
            if self._reserve is None or not isinstance(error.__cause__, _NO_ROOM):
                raise
            if not self._reserve.release():
                raise self._told(error) from error.__cause__
        try:
            return call()
        except Unavailable as error:
            raise self._told(error) from error.__cause__

    def _told(self, error: Unavailable) -> Unavailable:
        """The error; if the disk is full, one that says so."""
        if self._reserve is None or not isinstance(error.__cause__, _NO_ROOM):
            return error
        is_full = isinstance(error.__cause__, apsw.FullError) or not self._reserve.make()
        return Unavailable(_full(self._reserve), reason="store") if is_full else error

    def _try_to_open(self) -> None:
        with failing("the file can't be opened"):
            self._give_up()
            self._open()

    def _insert(self, pack: Pack, now_micros: int) -> None:
        with self._connected() as connection:
            connection.execute(
                "INSERT INTO inbox VALUES (?, ?, ?, ?, ?)", (self.end, pack.size, now_micros, pack.crc, pack.blob)
            )

    def _give_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            close(connection)

    def _open(self) -> apsw.Connection:
        if not self.is_suspect:
            try:
                return self._open_as_it_is()
            except apsw.CorruptError:
                self.is_suspect = True
        self._salvage()
        return self._open_as_it_is()

    def _open_as_it_is(self) -> apsw.Connection:
        self._expect_in_place()
        connection = self._connect()
        try:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            connection.set_busy_timeout(BUSY_TIMEOUT_MILLIS)
            refuse_read_only(connection)
            self._rewrite_log()
            if self._reserve is not None and not (self._directory / FILE_NAME).stat().st_size:
                connection.execute("PRAGMA auto_vacuum = incremental")  # can't be changed later
            make_durable(connection)
            connection.wal_autocheckpoint(max(self._checkpoint_bytes // _PAGE_BYTES, 1))
            self._create(connection)
            self._topics = topic_numbers(connection)
            self._refuse_other_prefix(connection)
            if self._mark is None:
                self._mark = Mark(f"{self._path}{MARK_NAME}", self._vfs)
            self.end, lost_count = heal(connection, self._sessions_topic, self._mark.read(), self._passed_over)
            # Of topics whose names are lost, too, records may have been read: an event has two of a session's at most.
            self._topics_begin = 2 * lost_count
            self._mark.write(self.end)
        except BaseException:
            close(connection)
            raise
        self._connection = connection
        if not self._vfs:
            self._identity, self._log_identity = identity(self._path), identity(f"{self._path}-wal")
        return connection

    def _expect_in_place(self) -> None:
        if self._identity is not None and (found := identity(self._path)) != self._identity:
            what = "deleted or moved" if found is None else "replaced by another"
            raise Unavailable(f"the file was {what} while it was served: put it back, or start anew", reason="store")

    def _salvage(self) -> None:
        """Rebuild the file from what can be read of it, and set the old one aside."""
        if self._vfs or time.monotonic() < self._salvage_at:
            raise apsw.CorruptError("damaged")
        self._salvage_at = time.monotonic() + _SALVAGE_SECONDS_MIN
        self._give_up()
        self._expect_in_place()
        mark = 0 if self._mark is None else self._mark.read()
        salvage(self._path, self._sessions_topic, mark, self._passed_over)
        self._identity = identity(self._path)
        self.is_suspect = False

    def _refuse_other_prefix(self, connection: apsw.Connection) -> None:
        """Raise Unavailable if the sessions kept belong to another sessions topic."""
        (sessions_count,) = only_row(connection, "SELECT EXISTS (SELECT 1 FROM sessions)")
        if sessions_count and self._sessions_topic not in self._topics:
            names = ", ".join(sorted(self._topics))
            message = (
                f"there is no topic {self._sessions_topic} in this directory, but {names}: is the prefix different?"
            )
            raise Unavailable(message, reason="store")

    def _rewrite_log(self) -> None:
        """Bring the log to the disk, whatever earlier syncs did: rewritten pages are not clean, so they get synced.

        SQLite reads the log with its first statement, so this must come before.
        """
        try:
            flags = [apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_READWRITE, 0]
            log = apsw.VFSFile(self._vfs, f"{self._path}-wal", flags)
        except apsw.CantOpenError:
            return  # there is no log
        try:
            size = log.xFileSize()
            for offset in range(0, size, _PIECE_BYTES):
                log.xWrite(log.xRead(min(_PIECE_BYTES, size - offset), offset), offset)
            log.xSync(apsw.SQLITE_SYNC_NORMAL)
        finally:
            log.xClose()

    def _connect(self) -> apsw.Connection:
        if self._vfs:
            return apsw.Connection(self._path, vfs=self._vfs)
        if self._identity is None:
            make_private(self._path)
        return apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READWRITE)

    def _create(self, connection: apsw.Connection) -> None:
        version = connection.pragma("user_version")
        if version in UPGRADES:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(UPGRADES[version])
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
        elif version == 0:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(SCHEMA)
            connection.execute("INSERT INTO lane VALUES (?, 0, 0, 0)", (PARTITION,))
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
        elif version != SCHEMA_VERSION:
            message = f"the file has schema version {version}, this release knows {SCHEMA_VERSION}"
            raise Unavailable(message, reason="store")

    @contextmanager
    def _connected(self) -> Iterator[apsw.Connection]:
        """The connection, which is given up if the block fails."""
        with failing("the file can't be written"):
            try:
                if self.is_suspect:
                    self._give_up()
                yield self._connection or self._open()
            except BaseException as error:
                self._give_up()
                self.is_suspect |= isinstance(error, apsw.CorruptError)
                raise

    def _advance(self, connection: apsw.Connection, topic: str, count: int) -> tuple[int, int]:
        """The number of a topic, and the position of the first of `count` new messages on it."""
        number = self._topics.get(topic)
        if number is None:
            connection.execute("INSERT INTO topics (name, position) VALUES (?, ?)", (topic, self._topics_begin))
            number = self._topics[topic] = connection.last_insert_rowid()
        (end,) = only_row(
            connection, "UPDATE topics SET position = position + ? WHERE topic = ? RETURNING position", (count, number)
        )
        return number, end - count


#: Errors that may mean a full disk.
_NO_ROOM = (apsw.FullError, apsw.IOError, apsw.CantOpenError, OSError)


def _full(reserve: Reserve) -> str:
    return f"the disk of the data directory is full: {reserve.wanted_bytes // 1024} KiB of room are needed"
