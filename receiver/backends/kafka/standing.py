"""The position at which a lane begins to read, from all that was noted about it. Pure.

A position counts only in the log that it was noted for. A topic that is deleted and made anew, or restored, has the
same name and other positions. So each position is noted with the inbox topic's id: in the metadata of the group's
offset, and in a header of each record of a session. A position that does not fit is a doubt. It is settled at once,
without the loss of a kept notification, and reported:

| doubt | settled by |
| --- | --- |
| positions of another inbox topic only | beginning at the beginning; sessions recognize what they have already |
| a position beyond the end of the log | beginning at the first record of a remembered session; all before is decided |
| a position before the beginning | beginning at the beginning: retention removed what was between, unrouted |
| another sessions topic than at the last commit | reading the inbox up to the position again, for the sessions alone |
| a position that no router noted | going on behind the positions in sessions, or beginning at the beginning |

A notification that is read again has no second effect as long as its session is remembered.

A router marks the positions that it notes: with the transaction that committed the offset, or with the id of the inbox
in a record's header. Another program that reads the inbox with the routers' group, resets its offsets, or copies
records into our topics leaves positions without that mark; they don't count.
"""

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

from receiver.backends.kafka.failures import TopicsUnfit

#: In an offset's metadata this sign precedes the id of the transaction that committed it; see `producer.py`.
MARK = "#"
_TRANSACTION = re.compile(r"\d+\.\d+\.\d+")
#: The metadata that release 0.1.0 wrote: a clock in microseconds, and nothing else.
_CLOCK = re.compile(r"\d{15,17}")


class Doubt(StrEnum):
    """Why the noted position did not fit when a lane was opened."""

    INBOX_ANEW = "inbox_anew"
    INBOX_SHORTER = "inbox_shorter"
    INBOX_REMOVED = "inbox_removed"
    SESSIONS_ANEW = "sessions_anew"
    FOREIGN_POSITION = "foreign_position"


class Place(NamedTuple):
    """The position of a lane, and the ids of its topics. An id is empty if an older release, or broker, told none.

    `partitions_count` is the number of the inbox's partitions, 0 if not told. `is_ours`: a router noted the position.
    """

    position: int
    clock_micros: int = 0
    inbox_id: str = ""
    sessions_id: str = ""
    partitions_count: int = 0
    is_ours: bool = True

    @property
    def metadata(self) -> str:
        """All but the position, as text for the metadata of the group's offset."""
        return f"{self.clock_micros} {self.inbox_id} {self.sessions_id} {self.partitions_count}"


def place_of(position: int, metadata: str) -> Place:
    """The inverse of `Place.metadata`, with a transaction's mark behind it. An older release wrote only the clock."""
    told, _, mark = metadata.partition(MARK)
    words = told.split(" ")
    is_ours = _TRANSACTION.fullmatch(mark) is not None or _CLOCK.fullmatch(metadata) is not None
    clock_micros = int(words[0]) if words[0].isdecimal() else 0
    if len(words) == 4 and words[3].isdecimal():  # noqa: PLR2004  # what `metadata` writes
        return Place(position, clock_micros, words[1], words[2], int(words[3]), is_ours)
    return Place(position, clock_micros, is_ours=is_ours)


class Standing(NamedTuple):
    """Where to begin: at `position`, or if it is None at the first record for which sessions are remembered.

    Notifications before `rebuilt_up_to` were decided on before, and are read for the sessions alone.
    """

    position: int | None
    doubt: Doubt | None = None
    rebuilt_up_to: int = 0


def standing(
    committed: Place | None, traces: Mapping[str, int], *, inbox_id: str, sessions_id: str, beginning: int, end: int
) -> Standing:
    """Where a lane stands in an inbox that has this id, and reaches from `beginning` to `end`.

    `committed` is the group's place, None if it has none. `traces` are the positions behind the last notifications that
    sessions name, by the id of the notifications' inbox.
    """
    found = [(each, told) for told, each in traces.items() if each and (not inbox_id or told == inbox_id)]
    foreign = committed is not None and not committed.is_ours
    if foreign:
        committed = None
    if committed is not None and (not committed.inbox_id or not inbox_id or committed.inbox_id == inbox_id):
        # If the offsets topic missed a commit's marker, the position is behind the traces. A trace beyond the end is of
        # a log that was longer once.
        ahead = [each for each in found if committed.position < each[0] <= end]
        found = [(committed.position, committed.inbox_id), *ahead]
        # A record without an id is an older release's, which the position has passed, or another program's.
        foreign = bool(inbox_id) and max(found)[0] < traces.get("", 0) <= end
    elif not found and not foreign and (committed is not None or any(traces.values())):
        return Standing(beginning, Doubt.INBOX_ANEW)
    if not found:
        return Standing(beginning, Doubt.FOREIGN_POSITION if foreign else None)
    position, told = max(found)
    if position > end:
        # Without an id it is more likely another log.
        is_same = bool(told and inbox_id)
        return Standing(None, Doubt.INBOX_SHORTER) if is_same else Standing(beginning, Doubt.INBOX_ANEW)
    if position < beginning:
        return Standing(beginning, Doubt.INBOX_REMOVED)
    sessions_before = committed.sessions_id if committed is not None else ""
    if sessions_before and sessions_id and sessions_before != sessions_id:
        return Standing(beginning, Doubt.SESSIONS_ANEW, position)
    return Standing(position, Doubt.FOREIGN_POSITION if foreign else None)


def expect_partitions(inbox: str, count: int, places: Iterable[Place]) -> None:
    """Raises TopicsUnfit if lanes have decided while the inbox had another number of partitions."""
    counts = {each.partitions_count for each in places} - {0, count}
    if counts:
        raise TopicsUnfit(
            f"{inbox} has {count} partitions, and had {counts.pop()} when its sessions were written: "
            "keys would be in other partitions than before"
        )
