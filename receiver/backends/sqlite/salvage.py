"""Salvage of a damaged file: every readable row, and the places of the unreadable ones.

SQLite stops at the first page that it can't interpret, and refuses to write near it. So readable rows are copied into a
new file, which takes the old one's place; the old one is set aside.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from receiver.backends.directory import make_private, sync_directory
from receiver.backends.packing import Damaged, unpack_messages, unpack_notifications
from receiver.backends.sqlite.schema import (
    BUSY_TIMEOUT_MILLIS,
    LOST_CRC,
    PARTITION,
    SCHEMA,
    SCHEMA_VERSION,
    checkpoint,
    close,
    inbox_name,
    only_row,
    row_end,
    state_crc,
)
from receiver.reader import PassedOver

#: At most this many damaged files are set aside; beyond that the latest replaces the last one.
_SET_ASIDE_MAX = 3
#: Behind an unreadable row this many positions are tried one by one, then in longer and longer steps.
_STEPS_OF_ONE = 4_096
_POSITION_MAX = (1 << 63) - 1

#: The columns of each table, beginning with the one that orders it; texts as bytes, since they may be invalid.
_TABLES = {
    "inbox": "position, count, written_micros, crc, pack",
    "messages": "rowid, topic, position, count, written_micros, crc, pack",
    "sessions": "position, CAST(key AS BLOB), timestamp_millis, headers, CAST(value AS BLOB), {crc}",
}


class Hole(NamedTuple):
    """Unreadable rows at `first` or behind it, and before `behind`."""

    first: int
    behind: int


def rows(connection: apsw.Connection, table: str) -> Iterator[tuple[Any, ...] | Hole]:
    """All rows of a table, in order, with a Hole for unreadable ones."""
    has_crc = connection.pragma("user_version") == SCHEMA_VERSION
    columns = _TABLES[table].format(crc="crc" if has_crc else "NULL")
    by = columns.partition(",")[0]
    at: int | None = -_POSITION_MAX
    while at is not None:
        began = at
        try:
            for row in connection.execute(
                f"SELECT {columns} FROM {table} NOT INDEXED WHERE {by} >= ? ORDER BY {by}",  # noqa: S608  # of this module
                (at,),
            ):
                began = row[0] + 1
                yield row
        except (apsw.CorruptError, apsw.IOError):
            at = _behind(connection, table, by, began)
            yield Hole(began, _POSITION_MAX if at is None else at)
        else:
            return


def _behind(connection: apsw.Connection, table: str, by: str, at: int) -> int | None:
    """The position from which rows can be read again, None if there is none."""

    def found(position: int) -> int | None:
        try:
            row = connection.execute(
                f"SELECT {by} FROM {table} NOT INDEXED WHERE {by} >= ? ORDER BY {by} LIMIT 1",  # noqa: S608  # of this module
                (position,),
            ).fetchone()
        except (apsw.CorruptError, apsw.IOError):
            return None
        return _POSITION_MAX if row is None else int(row[0])

    first = found(at)
    if first is not None:  # only the content of a row is unreadable
        return None if first == _POSITION_MAX else first + 1
    low, step = at, 1
    while found(high := min(low + step, _POSITION_MAX)) is None:
        if high == _POSITION_MAX:
            return None
        low, step = high, 1 if high - at < _STEPS_OF_ONE else 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if found(middle) is None else (low, middle)
    behind = found(high)
    return None if behind is None or behind == _POSITION_MAX else behind


class Standing(NamedTuple):
    """The row of `lane`."""

    position: int
    clock_micros: int
    inbox_position: int


def standing(connection: apsw.Connection) -> Standing | None:
    """The row of `lane`, None where it can't be read."""
    try:
        return Standing(*only_row(connection, "SELECT position, clock_micros, inbox_position FROM lane"))
    except (apsw.CorruptError, apsw.IOError):
        return None


def salvage(path: str, sessions_topic: str, end: int, tell: PassedOver) -> None:
    """Rebuild a file from what can be read of it, set the old one aside, and report each loss.

    `end` is a lower bound of the inbox's end. Raises apsw.Error if next to nothing can be read; the file is unchanged.
    """
    made = f"{path}-salvage"
    for leftover in (made, f"{made}-journal"):
        Path(leftover).unlink(missing_ok=True)
    old = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        old.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        old.set_busy_timeout(BUSY_TIMEOUT_MILLIS)
        checkpoint(old)
        make_private(made)
        new = apsw.Connection(made, flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            new.execute("PRAGMA auto_vacuum = incremental; PRAGMA synchronous = full")
            _copy(old, new, sessions_topic, end, tell)
        finally:
            close(new)
    finally:
        close(old)
    tell(_set_aside(path, made), "the file was damaged: it is set aside, and readable rows are in a new one")


def _set_aside(path: str, made: str) -> str:
    """Put the new file into the old one's place, which is never empty meanwhile. Returns the old one's new name."""
    names = [f"{path}-damaged-{number}" for number in range(1, _SET_ASIDE_MAX + 1)]
    aside = next((name for name in names if not Path(name).exists()), names[-1])
    Path(aside).unlink(missing_ok=True)
    Path(aside).hardlink_to(path)
    for companion in ("-wal", "-shm"):  # the old file does not need them any more
        Path(path + companion).unlink(missing_ok=True)
    Path(made).replace(path)
    sync_directory(Path(path).parent)
    return Path(aside).name


def _copy(old: apsw.Connection, new: apsw.Connection, sessions_topic: str, end: int, tell: PassedOver) -> None:
    """Fill the empty `new` with what can be read of `old`.

    `end` is a lower bound of the inbox's end. Each loss is reported with its place. Raises apsw.CorruptError if not
    even the topics' names can be read.
    """
    topics: list[Any] = old.execute("SELECT topic, CAST(name AS BLOB), position FROM topics").fetchall()
    names = {number: name.decode(errors="replace") for number, name, _ in topics}
    lane = standing(old)
    new.execute("BEGIN IMMEDIATE")
    new.execute(SCHEMA)
    inbox = inbox_name(sessions_topic)
    position, end = _copy_inbox(old, new, lane, end, inbox, tell)
    new.execute(
        "INSERT INTO lane VALUES (?, ?, ?, ?)", (PARTITION, position, 0 if lane is None else lane.clock_micros, end)
    )
    behind = {names[number]: each for number, _, each in topics}
    others = {name: each for name, each in behind.items() if name != sessions_topic}
    ends = _copy_messages(old, new, names, others, tell)
    ends[sessions_topic] = _copy_states(old, new, sessions_topic, tell)
    for number, name in names.items():
        new.execute("INSERT INTO topics VALUES (?, ?, ?)", (number, name, max(behind[name], ends.get(name, 0))))
    if end > position:
        leap(new, end - position, sessions_topic, tell)
    new.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    new.execute("COMMIT")


def fill(connection: apsw.Connection, begin: int, end: int, written_micros: int) -> None:
    """Put a row in the place of lost notifications: it is read as damaged, and so becomes a dead letter."""
    connection.execute(
        "INSERT OR IGNORE INTO inbox VALUES (?, ?, ?, ?, x'')", (begin, end - begin, written_micros, LOST_CRC)
    )


def tell_lost(tell: PassedOver, inbox: str, begin: int, end: int) -> None:
    """Report notifications that were kept and are missing."""
    lost = end - begin
    tell(f"{inbox}-{PARTITION}-{begin}", f"lost: {lost} notification{'' if lost == 1 else 's'} that had been kept")


def leap(connection: apsw.Connection, lost_count: int, sessions_topic: str, tell: PassedOver) -> None:
    """Move the ends of all topics behind every position that a lost record may have had.

    Consumers remember such positions, and would take new records there for old ones. A notification has at most one
    record on a topic. A session has one more when it is forgotten.
    """
    (sessions_count,) = only_row(connection, "SELECT count(*) FROM sessions")
    topics: list[Any] = connection.execute("SELECT topic, name, position FROM topics").fetchall()
    for number, name, position in topics:
        behind = position + lost_count + (lost_count + sessions_count if name == sessions_topic else 0)
        connection.execute("UPDATE topics SET position = ? WHERE topic = ?", (behind, number))
    places = ", ".join(f"{name}-{PARTITION}-{position}" for _, name, position in topics)
    tell(places, f"records from here on may be lost; new ones have positions {lost_count} further on at least")


def _copy_inbox(  # noqa: PLR0917  # both files, what is known, and the callback
    old: apsw.Connection, new: apsw.Connection, lane: Standing | None, end: int, inbox: str, tell: PassedOver
) -> tuple[int, int]:
    """Copy the rows of the inbox, damaged ones included. Returns the position of routing and the end of the inbox."""
    at: int | None = None if lane is None else lane.position
    routed = 0 if lane is None else lane.position
    written_micros = 0
    for row in rows(old, "inbox"):
        if isinstance(row, Hole):
            if row.first < routed:
                tell(f"{inbox}-{PARTITION}-{max(0, row.first)}", "unreadable: notifications that were routed")
            continue
        first, count, written_micros, crc, blob = row
        if at is None or (first < routed and at == routed):
            at = first
        if first > max(at, routed):
            tell_lost(tell, inbox, max(at, routed), first)
            fill(new, max(at, routed), first, written_micros)
        new.execute("INSERT OR IGNORE INTO inbox VALUES (?, ?, ?, ?, ?)", (first, count, written_micros, crc, blob))
        try:
            at = first + len(unpack_notifications(blob, crc))
        except Damaged:
            at = row_end(old, first, count)
    beginning = at = at or 0
    end = max(end, at, 0 if lane is None else lane.inbox_position)
    if end > max(at, routed):
        tell_lost(tell, inbox, max(at, routed), end)
        fill(new, max(at, routed), end, written_micros)
    if lane is not None:
        return lane.position, end
    beginning = only_row(new, "SELECT coalesce(min(position), ?) FROM inbox", (end,))[0]
    tell(f"{inbox}-{PARTITION}-{beginning}", "unreadable: how far routing was; it begins here again")
    return beginning, end


def _copy_messages(
    old: apsw.Connection,
    new: apsw.Connection,
    names: Mapping[int, str],
    positions: Mapping[str, int],
    tell: PassedOver,
) -> dict[str, int]:
    """Copy the rows of all topics but the sessions topic. Returns where each topic ends. `positions` are the ends that
    the topics should have.
    """
    ends: dict[str, int] = {}
    has_hole = False
    for row in rows(old, "messages"):
        if isinstance(row, Hole):
            has_hole = True
            continue
        _, number, first, _, written_micros, crc, blob = row
        name = names.get(number, "")
        try:
            count = len(unpack_messages(name, blob, crc))
        except Damaged:
            tell(f"{name}-{PARTITION}-{first}", "damaged, with all records of its row")
            continue
        if name in ends and first > ends[name]:
            tell(f"{name}-{PARTITION}-{ends[name]}", f"unreadable, up to position {first - 1}")
        ends[name] = first + count
        new.execute(
            "INSERT OR IGNORE INTO messages VALUES (?, ?, ?, ?, ?, ?)",
            (number, first, count, written_micros, crc, blob),
        )
    for name in positions:
        # Retention may have emptied a topic without rows, unless some rows can't be read.
        if (name in ends or has_hole) and ends.get(name, 0) < positions[name]:
            tell(f"{name}-{PARTITION}-{ends.get(name, 0)}", f"unreadable, up to position {positions[name] - 1}")
    return ends


def _copy_states(old: apsw.Connection, new: apsw.Connection, sessions_topic: str, tell: PassedOver) -> int:
    """Copy the records of sessions. Returns where their topic ends."""
    end = 0
    for row in rows(old, "sessions"):
        if isinstance(row, Hole):
            tell(f"{sessions_topic}-{PARTITION}-{max(end, row.first)}", "unreadable, and what is beside it")
            continue
        position, key, millis, headers, value, crc = row
        end = position + 1
        with suppress(TypeError, ValueError):
            known = state_crc(key, millis, headers, value)
            if crc is None or crc == known:
                new.execute(
                    "INSERT OR IGNORE INTO sessions VALUES (?, ?, ?, ?, ?, ?)",
                    (position, key.decode(), millis, headers, None if value is None else value.decode(), known),
                )
                continue
        tell(f"{sessions_topic}-{PARTITION}-{position}", "damaged: its checksum is wrong")
    return end
