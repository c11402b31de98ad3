"""What both sides of the file of an embedded node agree on: its name, its tables, and what is made of its failures."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import apsw

from receiver.backends.packing import Damaged
from receiver.errors import Unavailable

FILE_NAME = "qod.sqlite"
#: A single node has one partition, so that its records read like a cluster's.
PARTITION = 0

SCHEMA_VERSION = 1
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
    qos_status TEXT AS (value ->> 'qosStatus')
);
"""

#: Commits wait this long for a reader that holds what they need; readers are short.
BUSY_TIMEOUT_MILLIS = 5_000


@contextmanager
def failing(what: str) -> Iterator[None]:
    """Raise Unavailable where the block fails, with `what` for its sender and the log."""
    try:
        yield
    except (apsw.Error, OSError, Damaged) as error:
        # The message goes to senders and logs: it names the kind of failure, not the file.
        kind = type(error).__name__.removesuffix("Error")
        raise Unavailable(f"{what}: {kind}", reason="store") from error


def only_row(connection: apsw.Connection, sql: str, bindings: Sequence[str | int] = ()) -> tuple[Any, ...]:
    """The only row of a query that always has one."""
    found: tuple[Any, ...]
    (found,) = connection.execute(sql, bindings)
    return found


def close(connection: apsw.Connection) -> None:
    """Close it, whatever becomes of it."""
    with suppress(apsw.Error):  # what was committed is in the log, if not in the database
        connection.close(force=True)
