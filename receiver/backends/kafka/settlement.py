"""The outcome of a hanging transaction, decided from the data alone. Pure.

A coordinator's word is no proof. Brokers of 4.x call a transaction complete although a partition without a leader never
got its marker (KAFKA-20734), and an unclean election can remove a marker (KAFKA-20716). The transaction's records there
*hang*: they are neither committed nor aborted, and the next marker of the same producer id decides, whatever that
marker is about. So a lane keeps three rules:

    I    It begins no transaction before all records of the previous one can be read as committed. So at most one
         transaction of a lane hangs; it is the last one, and it hangs with all that it wrote to a partition.
    II   Before it decides anything, its owner ends what hangs, by one transaction without records over all partitions
         that the lane writes. On each partition the markers of that transaction also shut out requests of the
         previous owner that are still on their way.
    III  The data tell how to end it. A commit marker on any partition proves that the coordinator had decided to
         commit, so the rest is committed too. Without such a proof all of it is aborted, and done again.

An inbox position tells which transaction a record belongs to: a transaction's records are caused by positions from the
committed one on. `C` is the committed position as it can be read. The table has each case, for a transaction that began
at position s and ends at n. "Some" means at least one partition; the offsets topic counts as a partition.

    decided   marker arrived at                    seen                                        then
    commit    all                                  nothing hangs, C = n                        nothing to end
    commit    the offsets, not all outputs         something hangs below C                     commit
    commit    some outputs, not the offsets        C = s, and a committed record is at C       commit, position of it
                                                   or beyond
    commit    all outputs, not the offsets         nothing hangs, C = s, and a committed       position of it
                                                   record is at C or beyond
    commit    nowhere                              all hangs, C = s, nothing at C or beyond    abort, done again
    abort     all, some outputs, or the offsets    C = s, nothing committed at C or beyond     abort, done again
    abort     nowhere                              the same, and all hangs                     abort, done again

The fifth row is sound because of rule I: the lane did not count that commit as done. The transaction that ends a
hanging one may miss markers itself; what it leaves is again a row of this table, with the same outcome. A transaction
without positions (tombstones, and the writes of an export through a lane) has records on one partition only, so either
outcome is whole; it is aborted and done again.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Tail(NamedTuple):
    """The end of an output partition, by the inbox positions that caused its records.

    `committed` is the position behind the cause of the last committed record, 0 if there is none. `hangs`: records lie
    beyond the last stable offset. `hanging` is the least position that caused one of these, None if none has a
    position; `hanging_end` is behind the greatest.
    """

    committed: int = 0
    hangs: bool = False
    hanging: int | None = None
    hanging_end: int = 0


class Settlement(NamedTuple):
    """How a lane goes on: whether what hangs is committed, and the position from which it reads."""

    commits: bool
    position: int


def settlement(committed_position: int, tails: Iterable[Tail]) -> Settlement:
    """How to end what hangs, given the committed position and the ends of all partitions that the lane writes."""
    tails = list(tails)
    hanging = min((each.hanging for each in tails if each.hanging is not None), default=None)
    reached = max((each.committed for each in tails), default=0)
    commits = hanging is not None and (reached > committed_position or hanging < committed_position)
    if commits:
        reached = max(reached, *(each.hanging_end for each in tails))
    return Settlement(commits, max(committed_position, reached))
