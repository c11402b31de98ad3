"""The shared parts of reading and writing an embedded node's file: its name, its tables, and the form of its errors."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zlib import crc32

import apsw

from receiver.backends.packing import Damaged
from receiver.core.errors import Unavailable
from receiver.core.topics import INBOX, SESSIONS

FILE_NAME = "qod.sqlite"
#: The suffix of FILE_NAME in the name of the mark's file, see mark.py.
MARK_NAME = "-mark"
#: A single node has one partition, so that its records read like a cluster's.
PARTITION = 0

SCHEMA_VERSION = 2
SCHEMA = """
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
    qos_status TEXT AS (value ->> 'qosStatus'),
    crc INTEGER                        -- NULL where an earlier release wrote the row
);
"""
#: The statement that upgrades a file of each older version to the present one.
UPGRADES = {1: "ALTER TABLE sessions ADD COLUMN crc INTEGER"}

#: Highest credible count of a damaged row: a row that stands for lost notifications may stand for many.
LOST_COUNT_MAX = 1 << 40

#: The checksum of a row that stands for lost notifications. It does not match the row's empty pack.
LOST_CRC = 1

_ROWS_AT_ONCE = (128, 16, 1)
_SYNCHRONOUS_FULL = 2

#: Commits wait this long for a reader that holds what they need; readers are short.
BUSY_TIMEOUT_MILLIS = 5_000


Identity = tuple[int, int]
"""The identity of a file, whatever its name: its device and inode."""


def identity(path: str | Path) -> Identity | None:
    """The identity of the file at a path, None if there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116  # a path object costs as much as the look
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def state_crc(key: bytes, timestamp_millis: int, headers: bytes, value: bytes | None) -> int:
    """The checksum of a row of sessions."""
    begin = (timestamp_millis & 0xFFFFFFFF) ^ (value is None)
    return crc32(value or b"", crc32(headers, crc32(key, begin)))


def inbox_name(sessions_topic: str) -> str:
    """The inbox's name in reported places of records."""
    return sessions_topic.removesuffix(SESSIONS) + INBOX


State = tuple[str, int, bytes, str | None, int]
"""A record of the sessions topic, without its position: key, timestamp in milliseconds, headers and value as JSON, and
the checksum of these."""


@contextmanager
def failing(what: str, damaged: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Raise Unavailable if the block fails; `what` begins the message. `damaged` is called if the file is damaged."""
    try:
        yield
    except (apsw.CorruptError, UnicodeDecodeError) as error:
        damaged()
        raise Unavailable(f"{what}: it is damaged", reason="store") from error
    except (apsw.Error, OSError, Damaged) as error:
        # The message goes to senders and logs: it names the kind of failure, not the file.
        kind = type(error).__name__.removesuffix("Error")
        raise Unavailable(f"{what}: {kind}", reason="store") from error


def only_row(connection: apsw.Connection, sql: str, bindings: Sequence[str | int] = ()) -> tuple[Any, ...]:
    """The only row of a query that always has one."""
    row: tuple[Any, ...] | None = connection.execute(sql, bindings).fetchone()
    if row is None:
        raise apsw.CorruptError("a row is missing")
    return row


def row_end(connection: apsw.Connection, first: int, count: object) -> int:
    """The position behind a row of the inbox that can't be read: its count may be damaged too."""
    following: tuple[int] | None = connection.execute(
        "SELECT position FROM inbox WHERE position > ? ORDER BY position LIMIT 1", (first,)
    ).fetchone()
    if following is not None:
        return following[0]
    return first + (count if isinstance(count, int) and 0 < count <= LOST_COUNT_MAX else 1)


def topic_numbers(connection: apsw.Connection) -> dict[str, int]:
    """The number of each topic, by name; bytes of a damaged name that can't be decoded are replaced."""
    rows = connection.execute("SELECT CAST(name AS BLOB), topic FROM topics")
    return {name.decode(errors="replace"): topic for name, topic in rows}


def checkpoint(connection: apsw.Connection) -> None:
    """Copy the log into the database, and empty it."""
    busy, _, _ = only_row(connection, "PRAGMA wal_checkpoint(TRUNCATE)")
    if busy:
        raise Unavailable("another program keeps the log from being checkpointed", reason="store")


def close(connection: apsw.Connection) -> None:
    """Close the connection, and ignore errors."""
    with suppress(apsw.Error):  # what was committed is in the log, if not in the database
        connection.close(force=True)


def insert_states(connection: apsw.Connection, first: int, states: Sequence[State]) -> None:
    """Insert rows in groups, for the reason that `Effects` in file.py gives."""
    at = 0
    for count in _ROWS_AT_ONCE:
        statement = f"INSERT INTO sessions VALUES {', '.join(['(?, ?, ?, ?, ?, ?)'] * count)}"  # noqa: S608  # question marks
        while len(states) - at >= count:
            bindings: list[int | str | bytes | None] = []
            for position, state in enumerate(states[at : at + count], first + at):
                bindings.append(position)
                bindings.extend(state)
            connection.execute(statement, bindings)
            at += count


def refuse_read_only(connection: apsw.Connection) -> None:
    """Raise Unavailable if the file can't be written."""
    # SQLite opens a read-only file all the same, and leaves a log beside it that nobody may write to.
    if connection.readonly("main"):
        raise Unavailable("the file may not be written to", reason="store")


def make_durable(connection: apsw.Connection) -> None:
    """Make every commit synced, and bring what is in the log already to the disk."""
    # The statement returns the mode before it is changed: whether that succeeds is known only at its end.
    (mode,) = only_row(connection, "PRAGMA journal_mode = wal")
    connection.execute("PRAGMA synchronous = full")
    if mode != "wal" or connection.pragma("synchronous") != _SYNCHRONOUS_FULL:
        raise Unavailable("the file system refuses a write-ahead log or syncing", reason="store")
    checkpoint(connection)
