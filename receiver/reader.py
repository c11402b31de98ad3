"""The contract for reading topics while they are written, as `tail`, `sessions` and the operations port do.

A reader changes nothing. It sees only what was committed, and skips without an error what retention has removed. All
methods raise Unavailable when the backend can't be read now.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import orjson

from receiver.core import rfc3339
from receiver.core.event import QosStatus
from receiver.core.message import Record, bytes_of
from receiver.core.session import Session
from receiver.core.session_record import session_value

#: Positions are 64-bit integers to every backend.
_POSITION_DIGITS_MAX = 18

Cursor = dict[int, int]
"""A reader's position on a topic: the next position to read, by partition."""


def cursor_text(cursor: Cursor) -> str:
    """A cursor as text, such as `0-17,1-4`: partitions and positions."""
    return ",".join(f"{partition}-{position}" for partition, position in sorted(cursor.items()))


#: Bytes that a reader returns at once, as the backend keeps them, unless a single record is longer.
PAGE_BYTES_MAX = 4 * 1024 * 1024

PassedOver = Callable[[str, str], None]
"""A callback for unreadable records: the record's place, such as `qod.sessions-0-17`, and the reason."""


def nobody(_place: str, _why: str) -> None:
    """Ignore unreadable records."""


class Reader(Protocol):
    """Topics by position, and the table of sessions."""

    async def topics(self) -> Sequence[str]:
        """The names of the output topics that exist, sorted."""
        ...

    async def beginning(self, topic: str) -> Cursor:
        """The positions of the oldest records kept. Raises KeyError for a topic that does not exist."""
        ...

    async def end(self, topic: str) -> Cursor:
        """The positions behind the newest records. Raises KeyError for a topic that does not exist."""
        ...

    async def records(
        self, topic: str, cursor: Cursor, count_max: int, bytes_max: int = PAGE_BYTES_MAX
    ) -> Sequence[Record]:
        """At most `count_max` records from `cursor` on, in the order of each partition; empty where there are none yet.

        They have at most `bytes_max` bytes, unless a single record is longer. The cursor is moved behind them.
        """
        ...

    async def cursor(self, topic: str, start: str) -> Cursor:
        """The cursor for `start`: `beginning`, `end`, a cursor's text, or one position for every partition.

        Raises KeyError for a topic that does not exist, ValueError for any other text.
        """
        if start == "end":
            return await self.end(topic)
        cursor = await self.beginning(topic)
        if start == "beginning":
            return cursor
        if _is_position(start):
            return dict.fromkeys(cursor, int(start))
        for part in start.split(","):
            partition, _, position = part.partition("-")
            if not (_is_position(partition) and _is_position(position) and int(partition) in cursor):
                raise ValueError(f"{start!r} is neither beginning, end, a position, nor PARTITION-POSITION,…")
            cursor[int(partition)] = int(position)
        return cursor

    async def sessions(self, qos_status: QosStatus | None, count_max: int) -> Sequence[Session]:
        """The sessions remembered, last touched first; fewer than `count_max` where they are very long."""
        ...

    async def sessions_of(self, sender: str, session_ids: Collection[str]) -> Sequence[Session]:
        """The sessions of a sender that are not UNAVAILABLE, and all sessions with these ids, of any sender."""
        ...

    async def session_counts(self) -> dict[QosStatus, int]:
        """How many sessions are remembered in each status."""
        ...


def session_fields(session: Session) -> dict[str, Any]:
    """A session as `sessions` and the operations port show it: the record's value, and when it was last touched."""
    return {**orjson.loads(session_value(session)), "touchedAt": rfc3339.render(session.touched_micros)}


def within(records: Iterable[Record], count_max: int, bytes_max: int) -> Iterator[Record]:
    """The first records, at most `count_max` and `bytes_max` bytes, but always one."""
    taken_bytes = 0
    for record in islice(records, count_max):
        taken_bytes += bytes_of(record.message)
        if taken_bytes > bytes_max and taken_bytes > bytes_of(record.message):
            return
        yield record


def is_asked_for(session: Session, sender: str, session_ids: Collection[str]) -> bool:
    """Whether a session belongs to the result of `Reader.sessions_of`."""
    return session.session_id in session_ids or (
        session.qos_status is not QosStatus.UNAVAILABLE and session.sender == sender
    )


def _is_position(text: str) -> bool:
    return text.isdecimal() and len(text) <= _POSITION_DIGITS_MAX
