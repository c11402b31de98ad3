"""Where a lane begins to read, given all that tells of it. Pure.

A position counts only in the log that it was noted for. A topic that is deleted and made anew, or restored, has the
same name and other positions; so the id of the inbox topic stands beside each position: in the metadata of the group's
offset, and in a header of each record of a session. What doesn't fit is a doubt. It is settled at once, in the way that
loses nothing that was kept, and told:

| what is found | what is done |
| --- | --- |
| positions of another inbox topic only | begin at the beginning; sessions tell what of it they know |
| a position beyond the end of the log | begin with what came since sessions are remembered: all before was decided |
| a position before the beginning | begin at the beginning: what was between was removed before it was routed |
| another sessions topic than at the last commit | read the inbox up to the position again, for the sessions alone |
| a position that no router noted | go on behind what sessions tell, or begin at the beginning |

What is read again has no second effect as long as its session is remembered.

A position is a router's where the router's mark stands beside it: which of its transactions committed the offset, or
the id of the inbox in a record's header. Whoever reads the inbox with the routers' group, resets its offsets, or copies
records into our topics leaves positions that nobody decided up to: they count for nothing.
"""

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

from receiver.backends.kafka.failures import TopicsUnfit

#: Behind it stands, in an offset's metadata, which transaction committed it; see `producer.py`.
MARK = "#"
_TRANSACTION = re.compile(r"\d+\.\d+\.\d+")


class Doubt(StrEnum):
    """What did not fit when a lane was opened."""

    INBOX_ANEW = "inbox_anew"
    INBOX_SHORTER = "inbox_shorter"
    INBOX_REMOVED = "inbox_removed"
    SESSIONS_ANEW = "sessions_anew"
    FOREIGN_POSITION = "foreign_position"


class Place(NamedTuple):
    """How far a lane came, in which topics; `topic_id`s are empty where an older release, or broker, told none.

    `partitions_count` is the number of the inbox's partitions, 0 where it is not told. `is_ours`: a router noted it.
    """

    position: int
    clock_micros: int = 0
    inbox_id: str = ""
    sessions_id: str = ""
    partitions_count: int = 0
    is_ours: bool = True

    @property
    def metadata(self) -> str:
        """All but the position, as the group keeps it beside the offset."""
        return f"{self.clock_micros} {self.inbox_id} {self.sessions_id} {self.partitions_count}"


def place_of(position: int, metadata: str) -> Place:
    """The inverse of `Place.metadata`, with a transaction's mark behind it. An older release told the clock alone."""
    told, _, mark = metadata.partition(MARK)
    words, is_ours = told.split(" "), _TRANSACTION.fullmatch(mark) is not None
    clock_micros = int(words[0]) if words[0].isdecimal() else 0
    if len(words) == 4 and words[3].isdecimal():  # noqa: PLR2004  # what `metadata` writes
        return Place(position, clock_micros, words[1], words[2], int(words[3]), is_ours)
    return Place(position, clock_micros, is_ours=is_ours)


class Standing(NamedTuple):
    """Where to begin: at `position`, or where this is None at the first record since sessions are remembered.

    Up to `rebuilt_up_to` all was decided before, and is read for the sessions alone.
    """

    position: int | None
    doubt: Doubt | None = None
    rebuilt_up_to: int = 0


def standing(
    committed: Place | None, traces: Mapping[str, int], *, inbox_id: str, sessions_id: str, beginning: int, end: int
) -> Standing:
    """Where a lane stands in an inbox that has this id, and reaches from `beginning` to `end`.

    `committed` is the group's, None where it has none. `traces` are the positions behind the last notifications that
    sessions tell of, by the id of the inbox that these were in.
    """
    found = [(each, told) for told, each in traces.items() if each and (not inbox_id or told == inbox_id)]
    foreign = committed is not None and not committed.is_ours
    if foreign:
        committed = None
    if committed is not None and (not committed.inbox_id or not inbox_id or committed.inbox_id == inbox_id):
        # Where the offsets topic missed a commit's marker, the position is behind what sessions tell. A trace that lies
        # beyond the end is of a log that was longer once.
        ahead = [each for each in found if committed.position < each[0] <= end]
        found = [(committed.position, committed.inbox_id), *ahead]
        # A record without an id is an older release's, behind the position, or not ours.
        foreign = bool(inbox_id) and max(found)[0] < traces.get("", 0) <= end
    elif not found and not foreign and (committed is not None or any(traces.values())):
        return Standing(beginning, Doubt.INBOX_ANEW)
    if not found:
        return Standing(beginning, Doubt.FOREIGN_POSITION if foreign else None)
    position, told = max(found)
    if position > end:
        # Without an id, more often than not it is another log.
        is_same = bool(told and inbox_id)
        return Standing(None, Doubt.INBOX_SHORTER) if is_same else Standing(beginning, Doubt.INBOX_ANEW)
    if position < beginning:
        return Standing(beginning, Doubt.INBOX_REMOVED)
    sessions_before = committed.sessions_id if committed is not None else ""
    if sessions_before and sessions_id and sessions_before != sessions_id:
        return Standing(beginning, Doubt.SESSIONS_ANEW, position)
    return Standing(position, Doubt.FOREIGN_POSITION if foreign else None)


def expect_partitions(inbox: str, count: int, places: Iterable[Place]) -> None:
    """Raises Unavailable where lanes have decided while the inbox had another number of partitions."""
    counts = {each.partitions_count for each in places} - {0, count}
    if counts:
        raise TopicsUnfit(
            f"{inbox} has {count} partitions, and had {counts.pop()} when its sessions were written: "
            "keys would be in other partitions than before"
        )
