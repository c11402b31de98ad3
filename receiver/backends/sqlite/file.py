"""The writing side of the file of an embedded node: inbox, topics and sessions in one SQLite database. No threads.

One connection writes and checkpoints, and an exclusive lock beside the file keeps a second serving process out.
Readers (`tail`, `sessions`) open connections of their own, read only, at any time.

Durability: WAL with synchronous=FULL, so that COMMIT returns after the log was synced. Checked at every opening,
because builds of SQLite differ in their default.

Failure: after any error in a transaction its connection is not used again. SQLite on Linux can't know what a failed
sync left on the disk: pages of the log may count as clean that never got there. A log written on behind them would end,
after a power cut, where they are missing; and a checkpoint that a power cut interrupts would leave a database that only
they could mend. So the file is opened anew, and before SQLite looks at it the log is written over itself and synced.
Then a checkpoint copies it into the database, syncs that, and the log begins again from nothing.

A full disk: what opens the file, commits or removes may use the reserve, appends may not. The log is at most half the
reserve, and an opening gives back what it took: the log is empty then. Retention gives free pages back to the disk
while the reserve is not whole.
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
#: What one append writes at most, and what part of the reserve: a row of a megabyte takes a few milliseconds.
_APPEND_BYTES_MAX = 1024 * 1024
_APPEND_PART = 8
#: Free pages are given back to the disk a part of the reserve at a time, as others move in their place through the log,
#: and so often after each retention.
_GIVEN_BACK_PART = 16
_GIVEN_BACK_TIMES_MAX = 16
#: What is removed of a kind at once: SQLite looks at each page that a row takes.
_REMOVED_BYTES_MAX = 16 * 1024 * 1024
#: SQLite's file system cuts what is longer than 128 KiB, for it never asks for so much.
_PIECE_BYTES = 65_536


#: The file is looked for at its place at most so often; each look costs some microseconds.
_LOOK_SECONDS = 0.1
#: A file that is damaged again so soon is left to people.
_SALVAGE_SECONDS_MIN = 60.0


class Effects(NamedTuple):
    """What a batch caused, as it is written: made ready beforehand, because the thread that writes should not have to
    ask for the interpreter more often than it must. Each time it does, a busy loop lets it wait for milliseconds.

    `packs` are by topic; `replaced` are the positions of the records that `states` take the place of.
    """

    packs: Sequence[tuple[str, Pack]]
    states: Sequence[State]
    replaced: Sequence[int]


T = TypeVar("T")


class SqliteFile:
    """The writing side. Use it from one thread at a time. Every method raises Unavailable when the file fails.

    `end` is the position of the next notification. `append_bytes_max` is what the bodies of one append should have at
    most, beside the last. The log has about `log_bytes_max` bytes at most, and no more than half the reserve.
    `is_suspect` may be set by whoever found that SQLite can't read the file: then it is made anew from what can be
    read. `passed_over` is told of what is lost.
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
        self._reserve = None if vfs else Reserve(directory)  # which is a file of the machine's
        self.append_bytes_max = _APPEND_BYTES_MAX
        self._checkpoint_bytes = log_bytes_max
        if self._reserve is not None:
            self.append_bytes_max = min(_APPEND_BYTES_MAX, self._reserve.size_bytes // _APPEND_PART)
            self._checkpoint_bytes = min(log_bytes_max, self._reserve.size_bytes // 2)
        self._directory = directory
        self._path = os.fspath(directory / FILE_NAME)
        self._vfs = vfs  # SQLite's name for a file system; the empty one is the machine's
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
        """Open the file, or create it, and make what it holds durable. Done by every method where it is needed."""
        self._with_reserve(self._try_to_open)
        if self._reserve is not None:
            self._reserve.make()

    def close(self) -> None:
        """Close the connection; what was committed stays."""
        if self._connection is not None:
            # Nothing failed on it, so the log may be copied into the database and removed.
            self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        self._give_up()
        if self._mark is not None:
            self._mark.close()
            self._mark = None

    def expect(self, topics: Sequence[str]) -> None:
        """Have these topics be there, before the first record on them."""
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            for topic in topics:
                self._advance(connection, topic, 0)
            connection.execute("COMMIT")

    def look(self) -> None:
        """Raise Unavailable where the file is not at its place any more: nobody would find what is kept in it.

        A log that is missing alone is made anew: what is in it is copied into the file before.
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
                self._reserve.is_safe = False  # look again before the next
            if not self.is_suspect:
                raise self._told(error) from error.__cause__
            self._insert(pack, now_micros)  # into a file that is made anew
        self.end += pack.size
        if self._mark is not None:
            self._mark.write(self.end)
        self.look()

    def commit(self, position: int, next_position: int, effects: Effects, clock_micros: int) -> int:
        """Write everything that the notifications from `position` to `next_position` caused, or nothing.

        Returns the position of the first of the states. Raises LaneLost where the lane does not stand at `position`:
        somebody else committed.
        """
        return self._with_reserve(lambda: self._commit(position, next_position, effects, clock_micros))

    def retain(self, inbox_micros: int, topics_micros: int, rows_max: int) -> int:
        """Remove committed notifications, messages and tombstones written before the times given.

        From the oldest on, at most `rows_max` rows of each kind and so many bytes, so that nobody waits long; returns
        how many were removed, and `rows_max` at least where there may be more. What was written by a clock that ran
        ahead holds up all behind it until its time comes, so that no topic ever has a gap.
        """
        removed = self._with_reserve(lambda: self._retain(inbox_micros, topics_micros, rows_max))
        if self._reserve is not None:
            for _ in range(_GIVEN_BACK_TIMES_MAX):
                if self._reserve.make() or not self._with_reserve(self._give_back):
                    break
        return removed

    @property
    def full(self) -> str:
        """Why nothing is appended: the disk has no room for that and the reserve. Empty where it has."""
        if self._reserve is None or self._reserve.is_safe or self._reserve.make():
            return ""
        return _full(self._reserve)

    def shrink(self) -> None:
        """Give all that is free in the file back to the disk: for a file that has next to nothing in it."""
        self._with_reserve(self._shrink)

    def taken_bytes(self) -> int:
        """What the file takes on the disk, without the pages that are free in it; its log and index included."""
        with self._connected() as connection:
            pages_count = connection.pragma("page_count") - connection.pragma("freelist_count")
        beside = [self._directory / f"{FILE_NAME}{suffix}" for suffix in ("-wal", "-shm")]
        return int(pages_count) * _PAGE_BYTES + sum(path.stat().st_size for path in beside if path.exists())

    def file_bytes(self) -> int:
        """How long the file itself is."""
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
        """Give some free pages back to the disk; whether there were any."""
        size_bytes = 0 if self._reserve is None else self._reserve.size_bytes
        with self._connected() as connection:
            pages_count: int = connection.pragma("page_count")
            for _ in connection.execute(f"PRAGMA incremental_vacuum({size_bytes // _GIVEN_BACK_PART // _PAGE_BYTES})"):
                pass  # each step gives a page
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return bool(pages_count > connection.pragma("page_count"))

    def _shrink(self) -> None:
        with self._connected() as connection:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _with_reserve(self, call: Callable[[], T]) -> T:
        """Do something, with the room of the reserve where the disk has no other."""
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
        """The error, which says what is to be done where that is to make room."""
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
        """Make the file anew from what can be read of it, and set the old one aside."""
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
        """The sessions kept are those of one sessions topic, which goes on where it was."""
        (sessions_count,) = only_row(connection, "SELECT EXISTS (SELECT 1 FROM sessions)")
        if sessions_count and self._sessions_topic not in self._topics:
            names = ", ".join(sorted(self._topics))
            message = f"there is no topic {self._sessions_topic} in this directory, but {names}: is the prefix another?"
            raise Unavailable(message, reason="store")

    def _rewrite_log(self) -> None:
        """Bring the log to the disk, whatever became of earlier syncs: a page written again is not clean.

        SQLite reads it with the first statement, so this comes before that.
        """
        try:
            flags = [apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_READWRITE, 0]
            log = apsw.VFSFile(self._vfs, f"{self._path}-wal", flags)
        except apsw.CantOpenError:
            return  # there is none
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
        """The connection, which is not used again if anything fails."""
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
        """The number of a topic, and the position of the first of `count` messages that go there now."""
        number = self._topics.get(topic)
        if number is None:
            connection.execute("INSERT INTO topics (name, position) VALUES (?, ?)", (topic, self._topics_begin))
            number = self._topics[topic] = connection.last_insert_rowid()
        (end,) = only_row(
            connection, "UPDATE topics SET position = position + ? WHERE topic = ? RETURNING position", (count, number)
        )
        return number, end - count


#: What SQLite, and Python, may call it that there is no room.
_NO_ROOM = (apsw.FullError, apsw.IOError, apsw.CantOpenError, OSError)


def _full(reserve: Reserve) -> str:
    return f"the disk of the data directory is full: {reserve.wanted_bytes // 1024} KiB of room are wanted"
