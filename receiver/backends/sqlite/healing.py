"""Repairs a file when it is opened: fills in what it lost, and corrects what would stop everything that follows."""

import time
from typing import NamedTuple

import apsw

from receiver.backends.packing import Damaged, unpack_notifications
from receiver.backends.sqlite.salvage import fill, leap, tell_lost
from receiver.backends.sqlite.schema import PARTITION, inbox_name, only_row, row_end, topic_numbers
from receiver.reader import PassedOver

#: No sound clock is this far ahead of ours: twenty years.
_CLOCK_AHEAD_MICROS_MAX = 20 * 366 * 86_400 * 1_000_000


class End(NamedTuple):
    """The end of the inbox, and how many notifications may have been routed in the lost end of the file."""

    position: int
    lost_count: int


def heal(connection: apsw.Connection, sessions_topic: str, mark: int, tell: PassedOver) -> End:
    """Correct what would stop everything that follows. The inbox once reached `mark` at least."""
    with connection:
        end = _inbox_end(connection, inbox_name(sessions_topic), mark, tell)
        _extend(connection, sessions_topic)
        if end.lost_count:
            leap(connection, end.lost_count, sessions_topic, tell)
    return end


def _inbox_end(connection: apsw.Connection, inbox: str, mark: int, tell: PassedOver) -> End:
    """The end of the inbox, at least `mark`. Kept notifications that are missing get a row that marks them as lost."""
    position, clock_micros, inbox_position = only_row(
        connection, "SELECT position, clock_micros, inbox_position FROM lane"
    )
    last = connection.execute("SELECT position, count, crc, pack FROM inbox ORDER BY position DESC LIMIT 1").get
    there: int = inbox_position if last is None else _end_of(connection, *last)
    end = max(there, inbox_position, mark)
    now_micros = time.time_ns() // 1000
    if position > end or clock_micros > now_micros + _CLOCK_AHEAD_MICROS_MAX:
        (position,) = only_row(connection, "SELECT coalesce(min(position), ?) FROM inbox", (end,))
        tell(f"{inbox}-{PARTITION}-{position}", "damaged: how far routing was; it begins here again")
        connection.execute("UPDATE lane SET position = ?, clock_micros = 0", (position,))
    if end > (begin := max(there, position)):
        tell_lost(tell, inbox, begin, end)
        fill(connection, begin, end, now_micros)
    return End(int(end), end - position if mark > max(there, inbox_position) else 0)


def _extend(connection: apsw.Connection, sessions_topic: str) -> None:
    """Make no topic end before its records, as new ones would be refused for ever."""
    for name, number in topic_numbers(connection).items():
        sql = "SELECT position + max(1, count) FROM messages WHERE topic = ? ORDER BY position DESC LIMIT 1"
        if name == sessions_topic:
            sql = "SELECT max(position) + 1 FROM sessions WHERE ? NOTNULL"
        end = connection.execute(sql, (number,)).get
        connection.execute("UPDATE topics SET position = ? WHERE topic = ? AND position < ?", (end, number, end))


def _end_of(connection: apsw.Connection, first: int, count: object, crc: int, blob: bytes) -> int:
    """The position behind the last row of the inbox."""
    try:
        return first + len(unpack_notifications(blob, crc))
    except Damaged:
        return row_end(connection, first, count)
