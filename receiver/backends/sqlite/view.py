"""The reading side of the file of an embedded node. Synchronous; no threads, no loop."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import apsw
import orjson

from receiver.backends.packing import Damaged, unpack_messages, unpack_notifications
from receiver.backends.sqlite.schema import (
    BUSY_TIMEOUT_MILLIS,
    FILE_NAME,
    PARTITION,
    SCHEMA_VERSION,
    Identity,
    close,
    failing,
    identity,
    inbox_name,
    only_row,
    row_end,
    state_crc,
    topic_numbers,
)
from receiver.core import rfc3339
from receiver.core.event import QosStatus
from receiver.core.message import Message, Record
from receiver.core.notification import Notification
from receiver.core.session import Session
from receiver.core.session_record import NoSession, session_from
from receiver.reader import PassedOver, nobody, within

#: The status of a session's row, null if the row is damaged: SQLite fails on invalid JSON.
_STATUS = "CASE WHEN json_valid(value) THEN value ->> 'qosStatus' END"
_TOLD_MAX = 10_000
#: Bytes of records of sessions shown at once.
_SESSIONS_BYTES_MAX = 16 * 1024 * 1024


class SqliteView:
    """The reading side: a connection of its own that writes nothing. Use it from one thread at a time.

    Each method sees the file that is in its place then, as of one moment, and holds nothing afterwards. Raises
    Unavailable if the file is missing or can't be read. Damaged rows are skipped, and each is reported once. If the
    file itself is damaged, so that SQLite can't read it, `damaged` is called.
    """

    def __init__(
        self,
        directory: Path,
        sessions_topic: str,
        passed_over: PassedOver = nobody,
        damaged: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = directory / FILE_NAME
        self._passed_over = passed_over
        self._damaged = damaged
        self._told: set[str] = set()
        self._sessions_topic = sessions_topic
        self._found: Sequence[Identity | None] = ()
        self._open_connection: apsw.Connection | None = None
        with ExitStack() as stack:
            stack.callback(self.close)
            with self._connected(f"no readable {FILE_NAME} in {directory}") as connection:
                only_row(connection, "SELECT count(*) FROM lane")  # fail here rather than later
            stack.pop_all()

    @contextmanager
    def _connected(self, failed: str) -> Iterator[apsw.Connection]:
        """A connection to the file that is in its place now."""
        with failing(failed, self._damaged):
            if self._open_connection is None or self._find() != self._found:
                self.close()
                connection = apsw.Connection(os.fspath(self._path), flags=apsw.SQLITE_OPEN_READONLY)
                connection.set_busy_timeout(BUSY_TIMEOUT_MILLIS)
                # Files of earlier releases have no checksums of sessions, until they are served by this one.
                self._crc = "crc" if connection.pragma("user_version") == SCHEMA_VERSION else "NULL"
                self._open_connection, self._found = connection, self._find()
            yield self._open_connection

    def _find(self) -> Sequence[Identity | None]:
        """The identities of the file in its place and of its log. A connection does not see a new log."""
        return identity(self._path), identity(f"{self._path}-wal")

    def close(self) -> None:
        """Close the connection."""
        connection, self._open_connection = self._open_connection, None
        if connection is not None:
            close(connection)

    def position(self) -> int:
        """The position of the first notification not yet committed."""
        return self._one("SELECT position FROM lane")

    def clock_micros(self) -> int:
        """The inbox's clock, as of the last commit."""
        return self._one("SELECT clock_micros FROM lane")

    def inbox(self, position: int, count_max: int, bytes_max: int = sys.maxsize) -> tuple[list[Notification], int]:
        """The notifications from `position` on, and the position behind them.

        They are whole rows, so there may be a few more than `count_max` and `bytes_max`. A damaged row comes alone, as
        one notification with the damaged bytes as its body.
        """
        notifications: list[Notification] = []
        at, read_bytes = position, 0
        with self._connected("the inbox can't be read") as connection:
            for first, count, written_micros, crc, blob in connection.execute(
                "SELECT position, count, written_micros, crc, pack FROM inbox WHERE position >= coalesce("
                "(SELECT max(position) FROM inbox WHERE position <= ?1), ?1) ORDER BY position",
                (position,),
            ):
                if first > at and notifications:
                    break
                try:
                    found = unpack_notifications(blob, crc)
                except Damaged:
                    if notifications:
                        break
                    behind = row_end(connection, first, count)
                    if behind <= position:
                        continue
                    at = behind
                    self._tell(inbox_name(self._sessions_topic), first, f"damaged, with all {at - first} of its row")
                    micros = written_micros if written_micros in rfc3339.WRITABLE_MICROS else 0
                    body = blob if isinstance(blob, bytes) else b""
                    return [Notification(body, "damaged", "damaged", micros, "", "", "")], at
                if first + len(found) <= position:
                    continue
                some = found[max(0, position - first) :]
                notifications += some
                at = first + len(found)
                read_bytes += sum([len(each.body) for each in some])
                if len(notifications) >= count_max or read_bytes >= bytes_max:
                    break
        return notifications, at

    def sessions(self, positions: Iterable[int]) -> dict[str, Session]:
        """The states of the sessions with records at these positions, by key."""
        with self._connected("the sessions can't be read") as connection:
            where = "WHERE value IS NOT NULL AND position IN (SELECT value FROM json_each(?))"
            found = self._read(connection, where, (orjson.dumps(list(positions)).decode(),))
            return {key: session for key, session, _ in found}

    def standing(self) -> dict[str, int]:
        """The position of each remembered session's record on the sessions topic, by key."""
        with self._connected("the sessions can't be read") as connection:
            try:
                return dict(connection.execute("SELECT key, position FROM sessions WHERE value IS NOT NULL"))
            except UnicodeDecodeError:  # a damaged row, which its checksum shows when it is read
                rows = connection.execute("SELECT CAST(key AS BLOB), position FROM sessions WHERE value IS NOT NULL")
                return {key.decode(errors="replace"): position for key, position in rows if isinstance(key, bytes)}

    def oldest_sessions(self, count_max: int) -> list[Session]:
        """The sessions that were touched longest ago."""
        return self._sessions("WHERE value IS NOT NULL ORDER BY position", (), count_max)

    def newest_sessions(self, qos_status: QosStatus | None, count_max: int) -> list[Session]:
        """The sessions that were touched last, latest first."""
        if qos_status is None:
            return self._sessions("WHERE value IS NOT NULL ORDER BY position DESC", (), count_max)
        return self._sessions(f"WHERE {_STATUS} = ? ORDER BY position DESC", (qos_status.value,), count_max)

    def sessions_of(self, sender: str, session_ids: Iterable[str]) -> list[Session]:
        """The sessions of a sender that are not UNAVAILABLE, and those with these ids."""
        return self._sessions(
            "WHERE value IS NOT NULL AND (key IN (SELECT value FROM json_each(?)) OR "
            "CASE WHEN json_valid(value) THEN value ->> 'qosStatus' <> ? AND value ->> 'sender' = ? END)",
            (orjson.dumps(list(session_ids)).decode(), QosStatus.UNAVAILABLE.value, sender),
            None,
        )

    def session_counts(self) -> dict[QosStatus, int]:
        """The number of remembered sessions in each status."""
        with self._connected("the sessions can't be read") as connection:
            counts = dict(
                connection.execute(
                    f"SELECT CAST({_STATUS} AS BLOB) status, count(*) FROM sessions "  # noqa: S608  # written above
                    "WHERE value IS NOT NULL GROUP BY status"
                )
            )
        return {qos_status: counts.get(qos_status.value.encode(), 0) for qos_status in QosStatus}

    def topics(self) -> list[str]:
        """The names of the topics, sorted."""
        with self._connected("the topics can't be read") as connection:
            return sorted(topic_numbers(connection))

    def beginning(self, topic: str) -> int:
        """The position of the oldest record kept, or the end if there is none. Raises KeyError."""
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

    def records(self, topic: str, position: int, count_max: int, bytes_max: int = sys.maxsize) -> list[Record]:
        """At most `count_max` records from `position` on, with at most `bytes_max` bytes unless it is a single one."""
        with self._connected("the topic can't be read") as connection:
            some = self._states if topic == self._sessions_topic else self._messages
            return list(within(some(connection, topic, position), count_max, bytes_max))

    def _states(self, connection: apsw.Connection, topic: str, position: int) -> Iterator[Record]:
        for row in connection.execute(self._rows("WHERE position >= ? ORDER BY position"), (position,)):
            try:
                at, key, millis, headers, value = self._whole(row)
                message = Message(topic, key.decode(), value, _pairs(headers), millis)
            except (NoSession, ValueError, TypeError) as error:
                self._tell(topic, row[0], str(error))
            else:
                yield Record(PARTITION, at, message)

    def _messages(self, connection: apsw.Connection, topic: str, position: int) -> Iterator[Record]:
        expected: int | None = None
        for first, count, crc, blob in connection.execute(
            "SELECT m.position, m.count, crc, pack FROM messages m JOIN topics t USING (topic) "
            "WHERE t.name = ? AND m.position >= coalesce((SELECT max(position) "
            "FROM messages WHERE topic = t.topic AND position <= ?), 0) ORDER BY m.position",
            (topic, position),
        ):
            try:
                messages = unpack_messages(topic, blob, crc)
            except Damaged:
                self._tell(topic, first, f"damaged, with all {count} records of its row")
                expected = None
                continue
            if expected is not None and first > expected:
                self._tell(topic, expected, f"missing, with all up to position {first - 1}")
            expected = first + len(messages)
            for at, message in enumerate(messages, first):
                if at >= position:
                    yield Record(PARTITION, at, message)

    def _sessions(self, where: str, bindings: tuple[str | int, ...], count_max: int | None) -> list[Session]:
        with self._connected("the sessions can't be read") as connection:
            sessions: list[Session] = []
            taken_bytes = 0
            for _, session, row_bytes in islice(self._read(connection, where, bindings), count_max):
                taken_bytes += row_bytes
                if count_max is not None and taken_bytes > _SESSIONS_BYTES_MAX:
                    break
                sessions.append(session)
            return sessions

    def _read(
        self, connection: apsw.Connection, where: str, bindings: tuple[str | int, ...]
    ) -> Iterator[tuple[str, Session, int]]:
        """The keys and sessions of rows, and the lengths of the rows. Invalid rows are reported and skipped."""
        for row in connection.execute(self._rows(where), bindings):
            try:
                _, key, _, headers, value = self._whole(row)
                found = session_from(value or b"", dict(_pairs(headers)))
                yield key.decode(), found, len(headers) + len(value or b"")
            except (NoSession, ValueError, TypeError) as error:
                self._tell(self._sessions_topic, row[0], str(error))

    def _rows(self, where: str) -> str:
        return (
            f"SELECT position, CAST(key AS BLOB), timestamp_millis, headers, CAST(value AS BLOB), {self._crc} "  # noqa: S608  # written in this class
            f"FROM sessions {where}"
        )

    @staticmethod
    def _whole(row: tuple[Any, ...]) -> tuple[int, bytes, int, bytes, bytes | None]:
        """A row of sessions without its checksum. Raises NoSession if the checksum is wrong."""
        position, key, millis, headers, value, crc = row
        if not (type(key) is type(headers) is bytes and type(millis) is int):
            raise NoSession("damaged: its columns are of other types")
        if crc is not None and crc != state_crc(key, millis, headers, value):
            raise NoSession("damaged: its checksum is wrong")
        return position, key, millis, headers, value

    def _tell(self, topic: str, position: int, why: str) -> None:
        """Report a skipped record, once, since every read may meet it again."""
        place = f"{topic}-{PARTITION}-{position}"
        if place not in self._told and len(self._told) < _TOLD_MAX:
            self._told.add(place)
            self._passed_over(place, why)

    def _one(self, sql: str, *bindings: str | int) -> int:
        with self._connected("the file can't be read") as connection:
            (value,) = only_row(connection, sql, bindings)
        return int(value)


def _pairs(headers: bytes) -> list[tuple[str, str]]:
    return [(name, text) for name, text in orjson.loads(headers)]
