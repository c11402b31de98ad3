"""Checks the files of a directory, row by row, and changes none of them.

The files may be served meanwhile, and may be read-only to us.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import apsw
import orjson

from receiver.backends.packing import Damaged, unpack_messages, unpack_notifications
from receiver.backends.sqlite.mark import read_mark
from receiver.backends.sqlite.salvage import Hole, rows, standing
from receiver.backends.sqlite.schema import (
    BUSY_TIMEOUT_MILLIS,
    FILE_NAME,
    LOST_CRC,
    MARK_NAME,
    PARTITION,
    SCHEMA_VERSION,
    close,
    inbox_name,
    row_end,
    state_crc,
)
from receiver.core.session_record import NoSession, session_from
from receiver.core.topics import TopicNames

#: SQLite reports at most this many faults of one file.
_COMPLAINTS_MAX = 20


class Finding(NamedTuple):
    """A fault: the file, as its path in the directory; the place in it, such as `qod.inbox-0-17`; and the fault."""

    file: str
    place: str
    what: str


class Checked(NamedTuple):
    """A file that was checked, the number of readable rows, and whether the file is one that was set aside."""

    file: str
    rows_count: int
    is_set_aside: bool = False


def check(directory: Path, prefix: str) -> Iterator[Finding | Checked]:
    """The faults of each file of a directory, spools included, each file's followed by a summary of the file.

    Raises OSError if the directory can't be read.

    Raises OSError where the directory can't be read.
    """
    for found in sorted([directory, *directory.rglob("*/")]):
        for path in sorted(found.glob(f"{FILE_NAME}*")):
            name = str(path.relative_to(directory))
            if path.name == FILE_NAME:
                yield from _check(path, name, TopicNames(prefix).sessions)
            elif path.name.startswith(f"{FILE_NAME}-damaged-"):
                yield Checked(name, 0, is_set_aside=True)
        if (found / f"{FILE_NAME}{MARK_NAME}").exists() and not (found / FILE_NAME).exists():
            name = str((found / FILE_NAME).relative_to(directory))
            yield Finding(name, "", f"missing, though it once held {read_mark(f'{found / FILE_NAME}{MARK_NAME}')}")


def _check(path: Path, name: str, sessions_topic: str) -> Iterator[Finding | Checked]:
    count = 0
    try:
        # Read before the file: whatever is kept meanwhile is behind the mark.
        mark = read_mark(f"{path}{MARK_NAME}")
        with _opened(path) as connection:
            for complaint, *_ in connection.execute(f"PRAGMA integrity_check({_COMPLAINTS_MAX})"):
                if complaint != "ok":
                    yield Finding(name, "", f"SQLite: {' '.join(str(complaint).split())}")
            for each in _check_rows(connection, sessions_topic, mark):
                if each is None:
                    count += 1
                else:
                    yield Finding(name, *each)
    except (apsw.Error, OSError) as error:
        yield Finding(name, "", f"can't be read: {error}")
    yield Checked(name, count)


@contextmanager
def _opened(path: Path) -> Iterator[apsw.Connection]:
    """The file, opened read-only; or a copy of it, if SQLite can't write the index that it needs beside the file."""
    log = Path(f"{path}-wal")
    if os.access(path.parent, os.W_OK) or Path(f"{path}-shm").exists():
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            connection.set_busy_timeout(BUSY_TIMEOUT_MILLIS)
            yield connection
        finally:
            close(connection)
        return
    with TemporaryDirectory() as directory:
        copy = Path(directory) / path.name
        shutil.copyfile(path, copy)
        if log.exists():
            shutil.copyfile(log, f"{copy}-wal")
        connection = apsw.Connection(str(copy))
        try:
            yield connection
        finally:
            close(connection)


def _check_rows(connection: apsw.Connection, sessions_topic: str, mark: int) -> Iterator[tuple[str, str] | None]:
    """A place and its fault, or None for a sound row."""
    version = connection.pragma("user_version")
    if version > SCHEMA_VERSION:
        yield "", f"of schema version {version}, this release knows {SCHEMA_VERSION}"
        return
    yield from _check_inbox(connection, inbox_name(sessions_topic), mark)
    yield from _check_messages(connection)
    yield from _check_states(connection, sessions_topic)


def _check_inbox(connection: apsw.Connection, inbox: str, mark: int) -> Iterator[tuple[str, str] | None]:
    lane = standing(connection)
    if lane is None:
        yield f"{inbox}-{PARTITION}", "unreadable: how far routing is"
    at: int | None = None
    for row in rows(connection, "inbox"):
        if isinstance(row, Hole):
            continue
        first, count, _, crc, blob = row
        if at is not None and first > at:
            yield f"{inbox}-{PARTITION}-{at}", f"missing: {_notifications(first - at)}"
        try:
            at = first + len(unpack_notifications(blob, crc))
        except Damaged:
            at = row_end(connection, first, count)
            what = "lost before" if crc == LOST_CRC and blob == b"" else "damaged"
            yield f"{inbox}-{PARTITION}-{first}", f"{what}: {_notifications(at - first)}"
        else:
            yield None
    there = max(at or 0, 0 if lane is None else lane.position)
    end = max(mark, there if lane is None else lane.inbox_position)
    if end > there:
        yield f"{inbox}-{PARTITION}-{there}", f"missing: {_notifications(end - there)} that had been kept"


def _check_messages(connection: apsw.Connection) -> Iterator[tuple[str, str] | None]:
    try:
        topics: list[Any] = connection.execute("SELECT topic, CAST(name AS BLOB) FROM topics").fetchall()
    except (apsw.CorruptError, apsw.IOError):
        yield "topics", "unreadable: their names"
        topics = []
    names = {number: name.decode(errors="replace") for number, name in topics}
    ends: dict[int, int] = {}
    for row in rows(connection, "messages"):
        if isinstance(row, Hole):
            continue
        _, number, first, count, _, crc, blob = row
        name = names.get(number, "")
        if number in ends and isinstance(first, int) and first > ends[number]:
            yield f"{name}-{PARTITION}-{ends[number]}", f"missing: {_records(first - ends[number])}"
        try:
            ends[number] = first + len(unpack_messages(name, blob, crc))
        except Damaged:
            if isinstance(count, int) and isinstance(first, int):
                ends[number] = first + count
            yield f"{name}-{PARTITION}-{first}", f"damaged: {_records(count)}"
        else:
            yield None


def _check_states(connection: apsw.Connection, sessions_topic: str) -> Iterator[tuple[str, str] | None]:
    position = -1
    for row in rows(connection, "sessions"):
        if isinstance(row, Hole):
            yield f"{sessions_topic}-{PARTITION}-{position + 1}", "unreadable, and what is beside it"
            continue
        position, key, millis, headers, value, crc = row
        try:
            is_whole = crc is None or crc == state_crc(key, millis, headers, value)
            if is_whole and value is not None:
                session_from(value, dict(orjson.loads(headers)))
        except (NoSession, ValueError, TypeError) as error:
            yield f"{sessions_topic}-{PARTITION}-{position}", f"damaged: {error}"
        else:
            yield None if is_whole else (f"{sessions_topic}-{PARTITION}-{position}", "damaged: its checksum is wrong")


def _notifications(count: object) -> str:
    return f"{count} notification{'' if count == 1 else 's'}"


def _records(count: object) -> str:
    return f"{count} record{'' if count == 1 else 's'}"
