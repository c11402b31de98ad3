"""What becomes of a transaction that hangs, decided from the data alone. Pure.

A coordinator's word is no proof. Brokers of 4.x call a transaction complete although a partition without a leader never
got its marker (KAFKA-20734), and an unclean election takes a marker away (KAFKA-20716). What the transaction wrote
there *hangs*: it is neither committed nor aborted, and the next marker of the same producer id decides, whatever that
marker is about. So a lane keeps three rules:

    I    It begins no transaction before all that the one before wrote can be read as committed. So at most one
         transaction of a lane hangs, it is the last one, and it hangs with all that it wrote to a partition.
    II   Before it decides anything, its owner ends what hangs, in one transaction without records over all partitions
         that the lane writes. The markers of that transaction also shut out, partition by partition, whatever of the
         owner before may still be on its way.
    III  How it is ended follows from the data. A commit marker that arrived anywhere proves that the coordinator had
         decided to commit, so the rest is committed too. Without such a proof all of it is aborted, and done again.

An inbox position tells which transaction a record belongs to: a transaction's records are caused by positions from the
committed one on. `C` is the committed position as it can be read. The table has each case, for a transaction that began
at position s and ends at n; "some" means at least one partition, and the offsets topic is a partition like any other.

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

The fifth row is sound because of rule I: nobody took that commit for done. The transaction that ends a hanging one may
miss markers itself; what it leaves is again a row of this table, with the same outcome. A transaction without positions
(tombstones, and what an export writes through a lane) has records on one partition only, so any outcome is whole; it is
aborted and done again.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Tail(NamedTuple):
    """The end of an output partition, as inbox positions that caused its records.

    `committed` is the position behind the last record that can be read as committed, 0 where there is none. `hangs`:
    records lie beyond the last stable offset; `hanging` is the least position among these, None where none has one;
    `hanging_end` is behind the greatest.
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
    """What becomes of what hangs, given the committed position and the ends of all partitions that the lane writes."""
    tails = list(tails)
    hanging = min((each.hanging for each in tails if each.hanging is not None), default=None)
    reached = max((each.committed for each in tails), default=0)
    commits = hanging is not None and (reached > committed_position or hanging < committed_position)
    if commits:
        reached = max(reached, *(each.hanging_end for each in tails))
    return Settlement(commits, max(committed_position, reached))
