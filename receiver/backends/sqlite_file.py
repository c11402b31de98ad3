"""The file of an embedded node: inbox, topics and sessions in one SQLite database. Synchronous; no threads, no loop.

One connection writes and checkpoints, and an exclusive lock beside the file keeps a second serving process out.
Readers (`tail`, `sessions`) open connections of their own, read only, at any time.

Durability: WAL with synchronous=FULL, so that COMMIT returns after the log was synced. Checked at every opening,
because builds of SQLite differ in their default.

Failure: after any error in a transaction its connection is not used again. SQLite on Linux can't know what a failed
sync left on the disk: pages may count as clean that never got there, and a log written on behind them would end, after
a power cut, where they are missing. So the file is opened anew, and nothing is written before a checkpoint has copied
what the log holds into the database and synced that, and the log begins again from nothing.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import orjson

from receiver.backends.packing import Damaged, Pack, unpack_messages, unpack_notifications
from receiver.errors import Unavailable
from receiver.event import QosStatus
from receiver.inbox import LaneLost
from receiver.message import Message, Record
from receiver.notification import Notification
from receiver.router import session_from
from receiver.session import Session

FILE_NAME = "qod.sqlite"
LOCK_NAME = "lock"

#: A single node has one partition, so that its records read like a cluster's.
PARTITION = 0

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE inbox (
    position INTEGER PRIMARY KEY,      -- of its first notification
    count INTEGER NOT NULL,
    written_micros INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    pack BLOB NOT NULL
);
CREATE TABLE lane (
    partition INTEGER PRIMARY KEY,
    position INTEGER NOT NULL,         -- of the first notification not yet committed
    clock_micros INTEGER NOT NULL,
    inbox_position INTEGER NOT NULL    -- of the next notification: retention may have emptied the inbox
);
CREATE TABLE topics (
    topic INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    position INTEGER NOT NULL          -- of the next message
);
CREATE TABLE messages (
    topic INTEGER NOT NULL,
    position INTEGER NOT NULL,         -- of its first message
    count INTEGER NOT NULL,
    written_micros INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    pack BLOB NOT NULL,
    UNIQUE (topic, position)
);
-- The sessions topic, compacted as it is written: the newest record of each key. Its order is the order in which the
-- sessions were last touched, so its beginning is where to look for those to forget. There is no index by key: keys are
-- random, and a page of it would be written for each session in a batch. The lane keeps one in memory.
CREATE TABLE sessions (
    position INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    timestamp_millis INTEGER NOT NULL,
    headers BLOB NOT NULL,             -- JSON
    value TEXT,                        -- JSON, NULL for a tombstone
    qos_status TEXT AS (value ->> 'qosStatus')
);
"""

#: Commits wait this long for a reader that holds what they need; readers are short.
_BUSY_TIMEOUT_MILLIS = 5_000
#: 16 MiB of log between checkpoints: small enough to replay at once, large enough that a page is copied once for many
#: commits that touched it.
_CHECKPOINT_PAGES = 4_096
_ROWS_AT_ONCE = (128, 16, 1)


State = tuple[str, int, bytes, str | None]
"""A record of the sessions topic, without its position: key, timestamp in milliseconds, headers and value as JSON."""


class Effects(NamedTuple):
    """What a batch caused, as it is written: made ready beforehand, because the thread that writes should not have to
    ask for the interpreter more often than it must. Each time it does, a busy loop lets it wait for milliseconds.

    `packs` are by topic; `replaced` are the positions of the records that `states` take the place of.
    """

    packs: Sequence[tuple[str, Pack]]
    states: Sequence[State]
    replaced: Sequence[int]


class Inside(NamedTuple):
    """What one reading of the inbox gives: `next_position` lies behind what was read."""

    position: int
    next_position: int
    notifications: Sequence[Notification]
    clock_micros: int


class SqliteFile:
    """The writing side. Use it from one thread at a time. Every method raises Unavailable when the file fails.

    `end` is the position of the next notification.
    """

    def __init__(self, directory: Path, sessions_topic: str) -> None:
        self._path = directory / FILE_NAME
        self._sessions_topic = sessions_topic
        self._connection: apsw.Connection | None = None
        self._topics: dict[str, int] = {}
        self.end = 0

    def open(self) -> None:
        """Open the file, or create it, and make what it holds durable. Done by every method where it is needed."""
        with _failing("the file can't be opened"):
            self._open()

    def close(self) -> None:
        """Close the connection; what was committed stays."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close(force=True)

    def append(self, pack: Pack, now_micros: int) -> None:
        """Keep the packed notifications durably, or not at all."""
        with self._connected() as connection:
            connection.execute(
                "INSERT INTO inbox VALUES (?, ?, ?, ?, ?)", (self.end, pack.size, now_micros, pack.crc, pack.blob)
            )
        self.end += pack.size

    def commit(self, position: int, next_position: int, effects: Effects, clock_micros: int) -> int:
        """Write everything that the notifications from `position` to `next_position` caused, or nothing.

        Returns the position of the first of the states. Raises LaneLost where the lane does not stand at `position`:
        somebody else committed.
        """
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
            _insert_states(connection, first, effects.states)
            if effects.replaced:
                connection.execute(
                    "DELETE FROM sessions WHERE position IN (SELECT value FROM json_each(?))",
                    (orjson.dumps(effects.replaced).decode(),),
                )
            connection.execute("COMMIT")
        return first

    def retain(self, inbox_micros: int, topics_micros: int, rows_max: int) -> int:
        """Remove committed notifications, messages and tombstones written before the times given.

        At most `rows_max` rows of each kind, oldest first, so that nobody waits long; returns how many were removed.
        """
        removed = 0
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE lane SET inbox_position = ? WHERE partition = ?", (self.end, PARTITION))
            for statement, before in (
                (
                    "DELETE FROM inbox WHERE position IN (SELECT position FROM (SELECT position, written_micros "
                    "FROM inbox WHERE position + count <= (SELECT position FROM lane) ORDER BY position LIMIT ?) "
                    "WHERE written_micros < ?)",
                    inbox_micros,
                ),
                (
                    "DELETE FROM messages WHERE rowid IN (SELECT id FROM (SELECT rowid AS id, written_micros "
                    "FROM messages ORDER BY rowid LIMIT ?) WHERE written_micros < ?)",
                    topics_micros,
                ),
                (
                    "DELETE FROM sessions WHERE position IN (SELECT position FROM sessions "
                    "WHERE value IS NULL ORDER BY position LIMIT ?) AND timestamp_millis * 1000 < ?",
                    topics_micros,
                ),
            ):
                connection.execute(statement, (rows_max, before))
                removed += connection.changes()
            connection.execute("COMMIT")
        return removed

    def _open(self) -> apsw.Connection:
        connection = self._connect()
        try:
            connection.set_busy_timeout(_BUSY_TIMEOUT_MILLIS)
            _refuse_read_only(connection)
            for pragma, wanted in (("journal_mode", "wal"), ("synchronous", "full")):
                connection.execute(f"PRAGMA {pragma} = {wanted}")
            _make_durable(connection)
            connection.wal_autocheckpoint(_CHECKPOINT_PAGES)
            self._create(connection)
            self._topics = dict(connection.execute("SELECT name, topic FROM topics"))
            (self.end,) = _row(
                connection,
                "SELECT max(inbox_position, coalesce((SELECT position + count FROM inbox "
                "ORDER BY position DESC LIMIT 1), 0)) FROM lane",
            )
        except BaseException:
            connection.close(force=True)
            raise
        self._connection = connection
        return connection

    def _connect(self) -> apsw.Connection:
        return apsw.Connection(os.fspath(self._path))

    def _create(self, connection: apsw.Connection) -> None:
        version = connection.pragma("user_version")
        if version == 0:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_SCHEMA)
            connection.execute("INSERT INTO lane VALUES (?, 0, 0, 0)", (PARTITION,))
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            connection.execute("COMMIT")
        elif version != _SCHEMA_VERSION:
            message = f"the file has schema version {version}, this release knows {_SCHEMA_VERSION}"
            raise Unavailable(message, reason="store")

    @contextmanager
    def _connected(self) -> Iterator[apsw.Connection]:
        """The connection, which is not used again if anything fails."""
        with _failing("the file can't be written"):
            try:
                yield self._connection or self._open()
            except BaseException:
                self.close()
                raise

    def _advance(self, connection: apsw.Connection, topic: str, count: int) -> tuple[int, int]:
        """The number of a topic, and the position of the first of `count` messages that go there now."""
        number = self._topics.get(topic)
        if number is None:
            connection.execute("INSERT INTO topics (name, position) VALUES (?, 0)", (topic,))
            number = self._topics[topic] = connection.last_insert_rowid()
        (end,) = _row(
            connection, "UPDATE topics SET position = position + ? WHERE topic = ? RETURNING position", (count, number)
        )
        return number, end - count


class SqliteView:
    """The reading side: a connection of its own that writes nothing. Use it from one thread at a time.

    Each method sees the file as it was at one moment, and holds nothing afterwards. Raises Unavailable where the
    file is missing or can't be read.
    """

    def __init__(self, directory: Path, sessions_topic: str) -> None:
        path = directory / FILE_NAME
        self._sessions_topic = sessions_topic
        with _failing(f"no readable {FILE_NAME} in {directory}"):
            self._connection = apsw.Connection(os.fspath(path), flags=apsw.SQLITE_OPEN_READONLY)
            self._connection.set_busy_timeout(_BUSY_TIMEOUT_MILLIS)
            _row(self._connection, "SELECT count(*) FROM lane")  # fails here rather than later

    def close(self) -> None:
        """Close the connection."""
        self._connection.close(force=True)

    def position(self) -> int:
        """The position of the first notification not yet committed."""
        return self._one("SELECT position FROM lane")

    def inbox(self, position: int, count_max: int) -> Inside:
        """The notifications from `position` on: whole rows, so a few more than `count_max` at times.

        A row that is damaged comes alone, as one notification that has the damaged bytes for its body.
        """
        notifications: list[Notification] = []
        at = position
        with _failing("the inbox can't be read"):
            (clock_micros,) = _row(self._connection, "SELECT clock_micros FROM lane")
            for first, count, written_micros, crc, blob in self._connection.execute(
                "SELECT position, count, written_micros, crc, pack FROM inbox WHERE position >= ? ORDER BY position",
                (position,),
            ):
                try:
                    notifications += unpack_notifications(blob, crc)
                except Damaged:
                    if notifications:
                        break
                    notifications.append(Notification(blob, "damaged", "damaged", written_micros, "", "", ""))
                    at = first + count
                    break
                at = first + count
                if len(notifications) >= count_max:
                    break
        return Inside(position, at, notifications, clock_micros)

    def sessions(self, positions: Iterable[int]) -> dict[str, Session]:
        """The states of the sessions whose records stand at these positions, by key."""
        with _failing("the sessions can't be read"):
            return {
                key: session_from(value, _pairs(headers))
                for key, headers, value in self._connection.execute(
                    "SELECT key, headers, value FROM sessions WHERE position IN (SELECT value FROM json_each(?))",
                    (orjson.dumps(list(positions)).decode(),),
                )
            }

    def standing(self) -> dict[str, int]:
        """Where the record of each session that is remembered stands on the sessions topic."""
        with _failing("the sessions can't be read"):
            return dict(self._connection.execute("SELECT key, position FROM sessions WHERE value IS NOT NULL"))

    def oldest_sessions(self, count_max: int) -> list[Session]:
        """The sessions that were touched longest ago."""
        return self._sessions("WHERE value IS NOT NULL ORDER BY position LIMIT ?", (count_max,))

    def newest_sessions(self, qos_status: QosStatus | None, count_max: int) -> list[Session]:
        """The sessions that were touched last, last first."""
        if qos_status is None:
            return self._sessions("WHERE value IS NOT NULL ORDER BY position DESC LIMIT ?", (count_max,))
        return self._sessions("WHERE qos_status = ? ORDER BY position DESC LIMIT ?", (qos_status.value, count_max))

    def session_counts(self) -> dict[QosStatus, int]:
        """How many sessions are remembered in each status."""
        with _failing("the sessions can't be read"):
            counts = dict(
                self._connection.execute(
                    "SELECT qos_status, count(*) FROM sessions WHERE value IS NOT NULL GROUP BY qos_status"
                )
            )
        return {qos_status: counts.get(qos_status.value, 0) for qos_status in QosStatus}

    def topics(self) -> list[str]:
        """The names of the topics, sorted."""
        with _failing("the topics can't be read"):
            return [name for (name,) in self._connection.execute("SELECT name FROM topics ORDER BY name")]

    def beginning(self, topic: str) -> int:
        """The position of the oldest record kept, or the end where there is none. Raises KeyError."""
        end = self.end(topic)
        if topic == self._sessions_topic:
            return self._one("SELECT coalesce((SELECT min(position) FROM sessions), ?)", end)
        number = self._one("SELECT topic FROM topics WHERE name = ?", topic)
        return self._one("SELECT coalesce((SELECT min(position) FROM messages WHERE topic = ?), ?)", number, end)

    def end(self, topic: str) -> int:
        """The position of the next record. Raises KeyError."""
        found = self._one("SELECT coalesce((SELECT position FROM topics WHERE name = ?), -1)", topic)
        if found < 0:
            raise KeyError(topic)
        return found

    def records(self, topic: str, position: int, count_max: int) -> list[Record]:
        """At most `count_max` records from `position` on."""
        with _failing("the topic can't be read"):
            if topic == self._sessions_topic:
                return [
                    Record(
                        PARTITION,
                        at,
                        Message(topic, key, None if value is None else value.encode(), _pairs(headers), millis),
                    )
                    for at, key, millis, headers, value in self._connection.execute(
                        "SELECT position, key, timestamp_millis, headers, value FROM sessions "
                        "WHERE position >= ? ORDER BY position LIMIT ?",
                        (position, count_max),
                    )
                ]
            records: list[Record] = []
            for first, crc, blob in self._connection.execute(
                "SELECT m.position, crc, pack FROM messages m JOIN topics t USING (topic) "
                "WHERE t.name = ? AND m.position + m.count > ? AND m.position >= coalesce((SELECT max(position) "
                "FROM messages WHERE topic = t.topic AND position <= ?), 0) ORDER BY m.position",
                (topic, position, position),
            ):
                records += [
                    Record(PARTITION, at, message)
                    for at, message in enumerate(unpack_messages(topic, blob, crc), first)
                    if at >= position
                ]
                if len(records) >= count_max:
                    break
            return records[:count_max]

    def _sessions(self, where: str, bindings: tuple[str | int, ...]) -> list[Session]:
        with _failing("the sessions can't be read"):
            return [
                session_from(value, _pairs(headers))
                for value, headers in self._connection.execute(
                    f"SELECT value, headers FROM sessions {where}",  # noqa: S608  # written above, not by a user
                    bindings,
                )
            ]

    def _one(self, sql: str, *bindings: str | int) -> int:
        with _failing("the file can't be read"):
            (value,) = _row(self._connection, sql, bindings)
        return int(value)


class Lock:
    """The right to serve a directory: held by one process at a time, and given back when it ends, however it ends."""

    def __init__(self, directory: Path) -> None:
        self._descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise Unavailable(f"another process serves {directory}", reason="locked") from error

    def release(self) -> None:
        """Give the right back."""
        os.close(self._descriptor)


def _refuse_read_only(connection: apsw.Connection) -> None:
    # SQLite opens a file all the same that it may not write to, and leaves a log beside it that nobody may.
    if connection.readonly("main"):
        raise Unavailable("the file may not be written to", reason="store")


def _make_durable(connection: apsw.Connection) -> None:
    if connection.pragma("journal_mode") != "wal" or connection.pragma("synchronous") != 2:  # noqa: PLR2004  # FULL
        raise Unavailable("the file system refuses a write-ahead log or syncing", reason="store")
    busy, _, _ = _row(connection, "PRAGMA wal_checkpoint(TRUNCATE)")
    if busy:
        raise Unavailable("another program keeps the log from being checkpointed", reason="store")


def _row(connection: apsw.Connection, sql: str, bindings: Sequence[str | int] = ()) -> tuple[Any, ...]:
    """The only row of a query that always has one."""
    row: tuple[Any, ...]
    (row,) = connection.execute(sql, bindings)
    return row


def _pairs(headers: bytes) -> list[tuple[str, str]]:
    return [(name, text) for name, text in orjson.loads(headers)]


def _insert_states(connection: apsw.Connection, first: int, states: Sequence[State]) -> None:
    """Insert rows many at a time, for the reason that Effects gives."""
    at = 0
    for count in _ROWS_AT_ONCE:
        statement = f"INSERT INTO sessions VALUES {', '.join(['(?, ?, ?, ?, ?)'] * count)}"  # noqa: S608  # question marks
        while len(states) - at >= count:
            bindings: list[int | str | bytes | None] = []
            for position, state in enumerate(states[at : at + count], first + at):
                bindings.append(position)
                bindings.extend(state)
            connection.execute(statement, bindings)
            at += count


@contextmanager
def _failing(what: str) -> Iterator[None]:
    try:
        yield
    except (apsw.Error, OSError, Damaged) as error:
        # The message goes to senders and logs: it names the kind of failure, not the file.
        kind = type(error).__name__.removesuffix("Error")
        raise Unavailable(f"{what}: {kind}", reason="store") from error
