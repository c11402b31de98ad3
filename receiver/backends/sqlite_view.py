"""The reading side of the file of an embedded node. Synchronous; no threads, no loop."""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import apsw
import orjson

from receiver.backends.packing import Damaged, unpack_messages, unpack_notifications
from receiver.backends.sqlite_schema import BUSY_TIMEOUT_MILLIS, FILE_NAME, PARTITION, close, failing, only_row
from receiver.event import QosStatus
from receiver.message import Message, Record
from receiver.notification import Notification
from receiver.reader import PassedOver, nobody
from receiver.session import Session
from receiver.session_record import NoSession, session_from

#: The status of a session's row, null where the row is damaged: SQLite fails on what is no JSON.
_STATUS = "CASE WHEN json_valid(value) THEN value ->> 'qosStatus' END"
_TOLD_MAX = 10_000


class SqliteView:
    """The reading side: a connection of its own that writes nothing. Use it from one thread at a time.

    Each method sees the file as it was at one moment, and holds nothing afterwards. Raises Unavailable where the
    file is missing or can't be read.
    """

    def __init__(self, directory: Path, sessions_topic: str, passed_over: PassedOver = nobody) -> None:
        path = directory / FILE_NAME
        self._passed_over = passed_over
        self._told: set[str] = set()
        self._sessions_topic = sessions_topic
        with failing(f"no readable {FILE_NAME} in {directory}"):
            self._connection = apsw.Connection(os.fspath(path), flags=apsw.SQLITE_OPEN_READONLY)
            self._connection.set_busy_timeout(BUSY_TIMEOUT_MILLIS)
            only_row(self._connection, "SELECT count(*) FROM lane")  # fails here rather than later

    def close(self) -> None:
        """Close the connection."""
        close(self._connection)

    def position(self) -> int:
        """The position of the first notification not yet committed."""
        return self._one("SELECT position FROM lane")

    def inbox_bytes(self, position: int) -> int:
        """How much the notifications from `position` on take, about."""
        return self._one("SELECT coalesce(sum(length(pack)), 0) FROM inbox WHERE position >= ?", position)

    def clock_micros(self) -> int:
        """The inbox's clock, as of the last commit."""
        return self._one("SELECT clock_micros FROM lane")

    def inbox(self, position: int, count_max: int, bytes_max: int = sys.maxsize) -> tuple[list[Notification], int]:
        """The notifications from `position` on, and the position behind them.

        Whole rows, so a few more than `count_max` and `bytes_max` at times. A row that is damaged comes alone, as one
        notification that has the damaged bytes for its body.
        """
        notifications: list[Notification] = []
        at, read_bytes = position, 0
        with failing("the inbox can't be read"):
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
                read_bytes += len(blob)
                if len(notifications) >= count_max or read_bytes >= bytes_max:
                    break
        return notifications, at

    def sessions(self, positions: Iterable[int]) -> dict[str, Session]:
        """The states of the sessions whose records stand at these positions, by key."""
        with failing("the sessions can't be read"):
            where = "WHERE value IS NOT NULL AND position IN (SELECT value FROM json_each(?))"
            return dict(self._read(where, (orjson.dumps(list(positions)).decode(),)))

    def standing(self) -> dict[str, int]:
        """Where the record of each session that is remembered stands on the sessions topic."""
        with failing("the sessions can't be read"):
            return dict(self._connection.execute("SELECT key, position FROM sessions WHERE value IS NOT NULL"))

    def oldest_sessions(self, count_max: int) -> list[Session]:
        """The sessions that were touched longest ago."""
        return self._sessions("WHERE value IS NOT NULL ORDER BY position LIMIT ?", (count_max,))

    def newest_sessions(self, qos_status: QosStatus | None, count_max: int) -> list[Session]:
        """The sessions that were touched last, last first."""
        if qos_status is None:
            return self._sessions("WHERE value IS NOT NULL ORDER BY position DESC LIMIT ?", (count_max,))
        return self._sessions(f"WHERE {_STATUS} = ? ORDER BY position DESC LIMIT ?", (qos_status.value, count_max))

    def sessions_of(self, sender: str, session_ids: Iterable[str]) -> list[Session]:
        """The sessions of a sender that are not UNAVAILABLE, and those with these ids."""
        return self._sessions(
            "WHERE value IS NOT NULL AND (key IN (SELECT value FROM json_each(?)) OR "
            "CASE WHEN json_valid(value) THEN value ->> 'qosStatus' <> ? AND value ->> 'sender' = ? END)",
            (orjson.dumps(list(session_ids)).decode(), QosStatus.UNAVAILABLE.value, sender),
        )

    def session_counts(self) -> dict[QosStatus, int]:
        """How many sessions are remembered in each status."""
        with failing("the sessions can't be read"):
            counts = dict(
                self._connection.execute(
                    f"SELECT {_STATUS} status, count(*) FROM sessions WHERE value IS NOT NULL GROUP BY status"  # noqa: S608  # written below
                )
            )
        return {qos_status: counts.get(qos_status.value, 0) for qos_status in QosStatus}

    def topics(self) -> list[str]:
        """The names of the topics, sorted."""
        with failing("the topics can't be read"):
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
        with failing("the topic can't be read"):
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
            for first, count, crc, blob in self._connection.execute(
                "SELECT m.position, m.count, crc, pack FROM messages m JOIN topics t USING (topic) "
                "WHERE t.name = ? AND m.position + m.count > ? AND m.position >= coalesce((SELECT max(position) "
                "FROM messages WHERE topic = t.topic AND position <= ?), 0) ORDER BY m.position",
                (topic, position, position),
            ):
                try:
                    messages = unpack_messages(topic, blob, crc)
                except Damaged:
                    self._tell(topic, first, f"damaged, with all {count} records of its row")
                    continue
                records += [
                    Record(PARTITION, at, message) for at, message in enumerate(messages, first) if at >= position
                ]
                if len(records) >= count_max:
                    break
            return records[:count_max]

    def _sessions(self, where: str, bindings: tuple[str | int, ...]) -> list[Session]:
        with failing("the sessions can't be read"):
            return [session for _, session in self._read(where, bindings)]

    def _read(self, where: str, bindings: tuple[str | int, ...]) -> Iterator[tuple[str, Session]]:
        """The sessions of rows, by key; what is none is told and passed over."""
        for position, key, value, headers in self._connection.execute(
            f"SELECT position, key, value, headers FROM sessions {where}",  # noqa: S608  # written above, not by a user
            bindings,
        ):
            try:
                yield key, session_from(value, dict(_pairs(headers)))
            except (NoSession, ValueError, TypeError) as error:
                self._tell(self._sessions_topic, position, str(error))

    def _tell(self, topic: str, position: int, why: str) -> None:
        """Tell of a record that is passed over, once: it may be met with every look."""
        place = f"{topic}-{PARTITION}-{position}"
        if place not in self._told and len(self._told) < _TOLD_MAX:
            self._told.add(place)
            self._passed_over(place, why)

    def _one(self, sql: str, *bindings: str | int) -> int:
        with failing("the file can't be read"):
            (value,) = only_row(self._connection, sql, bindings)
        return int(value)


def _pairs(headers: bytes) -> list[tuple[str, str]]:
    return [(name, text) for name, text in orjson.loads(headers)]
