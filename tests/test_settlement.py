"""Hanging transactions: a model of coordinator, markers and partitions, with every set of missing markers."""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import pytest

from receiver.backends.kafka.settlement import Settlement, Tail, settlement

OFFSETS = "offsets"
#: The possible records of a notification: none (a duplicate), a dead letter, a session alone, a change, an end.
SHAPES: Mapping[str, tuple[str, ...]] = {
    "duplicate": (),
    "letter": ("letters",),
    "unchanged": ("sessions",),
    "change": ("sessions", "status"),
    "end": ("sessions", "status", "unavailable"),
}
OUTPUTS = ("letters", "sessions", "status", "unavailable")
PARTITIONS = (*OUTPUTS, OFFSETS)

Rule = Callable[[int, Sequence[Tail]], Settlement]


class Transaction(NamedTuple):
    """A transaction over inbox positions from `begin` on, each with one of the shapes."""

    begin: int
    shapes: Sequence[str]

    @property
    def end(self) -> int:
        """The position behind it."""
        return self.begin + len(self.shapes)

    def records(self) -> Iterator[tuple[str, int]]:
        """The partition and the position of each record."""
        for position, shape in enumerate(self.shapes, self.begin):
            for partition in SHAPES[shape]:
                yield partition, position


class Brokers:
    """The partitions of one producer, whose marker ends all that it has open there."""

    def __init__(self) -> None:
        self.committed: dict[str, list[int]] = {name: [] for name in OUTPUTS}
        self.open: dict[str, list[int]] = {name: [] for name in OUTPUTS}
        self.position = 0
        self.pending: int | None = None

    def write(self, transaction: Transaction) -> None:
        """Append a transaction's records, and its position."""
        for partition, position in transaction.records():
            self.open[partition].append(position)
        self.pending = transaction.end

    def mark(self, partition: str, *, commits: bool) -> None:
        """Deliver a marker to a partition."""
        if partition == OFFSETS:
            self.position = self.pending if commits and self.pending is not None else self.position
            self.pending = None
        else:
            self.committed[partition] += self.open[partition] if commits else ()
            self.open[partition] = []

    def tails(self) -> list[Tail]:
        """The ends of the partitions as a lane reads them."""
        return [self._tail(name) for name in OUTPUTS]

    def _tail(self, name: str) -> Tail:
        committed, hanging = self.committed[name], self.open[name]
        behind = committed[-1] + 1 if committed else 0
        return Tail(behind, hangs=True, hanging=min(hanging), hanging_end=max(hanging) + 1) if hanging else Tail(behind)


def open_lane(brokers: Brokers, arrivals: Iterator[Collection[str]], rule: Rule = settlement) -> int:
    """Open a lane in as many attempts as necessary; each one's markers arrive as given. Returns its position."""
    while True:
        decided = rule(brokers.position, brokers.tails())
        arrived = next(arrivals)
        if decided.commits:
            brokers.pending = decided.position
        for name in PARTITIONS:
            if name in arrived and (name != OFFSETS or decided.commits):
                brokers.mark(name, commits=decided.commits)
        if any(brokers.open.values()):
            continue
        # The restored records tell the lane's position, which is committed again until it can be read.
        restored = [brokers.committed[name][-1] + 1 for name in ("sessions", "letters") if brokers.committed[name]]
        brokers.pending = max([brokers.position, *restored])
        if OFFSETS in arrived:
            brokers.mark(OFFSETS, commits=True)
            return brokers.position


def route(
    brokers: Brokers,
    shapes: Sequence[str],
    arrivals: Iterator[tuple[bool, int, Collection[str]]],
    openings: Iterator[Collection[str]],
    rule: Rule = settlement,
) -> None:
    """Route an inbox. Arrivals: a transaction's decision, its number of notifications, and where its marker arrived."""
    position = 0
    while position < len(shapes):
        commits, count, arrived = next(arrivals)
        transaction = Transaction(position, shapes[position : position + count])
        brokers.write(transaction)
        for name in arrived:
            brokers.mark(name, commits=commits)
        if commits and set(arrived) == set(PARTITIONS):
            position = transaction.end
        else:
            position = open_lane(brokers, openings, rule)


def wrong(brokers: Brokers, shapes: Sequence[str]) -> list[str]:
    """Records that are not there exactly once and in order, and partitions that hang."""
    due = Transaction(0, shapes).records()
    wanted: dict[str, list[int]] = {name: [] for name in OUTPUTS}
    for partition, position in due:
        wanted[partition].append(position)
    return [name for name in OUTPUTS if brokers.committed[name] != wanted[name] or brokers.open[name]]


def subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """All subsets, the whole set included."""
    for count in range(len(names) + 1):
        yield from itertools.combinations(names, count)


def forever(*first: Collection[str]) -> Iterator[Collection[str]]:
    """These arrivals, and then all markers arrive."""
    return itertools.chain(first, itertools.repeat(PARTITIONS))


@pytest.mark.parametrize("shapes", list(itertools.product(SHAPES, repeat=2)), ids="-".join)
def test_each_marker_may_be_missed(shapes: tuple[str, str]) -> None:
    """If any subset of partitions missed the marker, and then the settlement's, all records are there exactly once."""
    for commits, arrived, settled in itertools.product((True, False), subsets(PARTITIONS), subsets(PARTITIONS)):
        brokers = Brokers()
        decided = itertools.chain([(commits, 2, arrived)], itertools.repeat((True, 2, PARTITIONS)))
        route(brokers, shapes, decided, forever(settled))
        assert not wrong(brokers, shapes), (commits, arrived, settled)


def _random_life(seed: int, rule: Rule) -> tuple[Brokers, Sequence[str]]:
    chance = random.Random(seed)
    shapes = chance.choices(list(SHAPES), k=chance.randrange(1, 12))

    def arrived() -> Collection[str]:
        return PARTITIONS if chance.random() < 0.3 else [name for name in PARTITIONS if chance.random() < 0.6]

    def decided() -> Iterator[tuple[bool, int, Collection[str]]]:
        while True:
            yield chance.random() < 0.6, chance.randrange(1, 4), arrived()

    brokers = Brokers()
    route(brokers, shapes, decided(), iter(arrived, None), rule)
    return brokers, shapes


def test_lives_in_which_markers_are_missed_again_and_again() -> None:
    """If transactions and settlements miss markers at random, all records are there exactly once."""
    for seed in range(10_000):
        brokers, shapes = _random_life(seed, settlement)
        assert not wrong(brokers, shapes), f"seed {seed}"


def _always(*, commits: bool) -> Rule:
    def rule(position: int, tails: Sequence[Tail]) -> Settlement:
        hangs = any(each.hangs for each in tails)
        reached = max(max(each.committed, each.hanging_end) for each in tails)
        return Settlement(commits and hangs, max(position, reached) if commits and hangs else position)

    return rule


def _by_position_alone(position: int, tails: Sequence[Tail]) -> Settlement:
    hanging = [each.hanging for each in tails if each.hanging is not None]
    return Settlement(bool(hanging) and min(hanging) < position, position)


def _by_records_alone(position: int, tails: Sequence[Tail]) -> Settlement:
    decided = settlement(position, [each._replace(hanging=None if each.hanging is None else 10**9) for each in tails])
    return decided._replace(position=min(decided.position, 10**8))


@pytest.mark.parametrize(
    "rule",
    [_always(commits=True), _always(commits=False), _by_position_alone, _by_records_alone],
    ids=["always committed", "always aborted", "by the position alone", "by the records alone"],
)
def test_a_simpler_rule_would_be_wrong(rule: Rule) -> None:
    """The model shows a fault for every rule that looks at less."""
    found: Counter[str] = Counter()
    for seed in range(500):
        brokers, shapes = _random_life(seed, rule)
        found.update(wrong(brokers, shapes))
    assert found


@pytest.mark.parametrize(
    ("position", "tails", "expected"),
    [
        pytest.param(5, [Tail(5), Tail(4)], Settlement(False, 5), id="nothing hangs"),
        pytest.param(7, [Tail(5, True, 5, 7), Tail(7)], Settlement(True, 7), id="commit: the offsets, not all outputs"),
        pytest.param(5, [Tail(5, True, 5, 7), Tail(6)], Settlement(True, 7), id="commit: some outputs"),
        pytest.param(5, [Tail(7), Tail(6)], Settlement(False, 7), id="commit: all outputs, not the offsets"),
        pytest.param(5, [Tail(5, True, 5, 7), Tail(4, True, 6, 7)], Settlement(False, 5), id="nowhere"),
        pytest.param(5, [Tail(5, True, 5, 7), Tail(5)], Settlement(False, 5), id="abort: some outputs"),
        pytest.param(5, [Tail(5, True), Tail(5)], Settlement(False, 5), id="tombstones"),
    ],
)
def test_rows(position: int, tails: Sequence[Tail], expected: Settlement) -> None:
    """Each row of the module's table has its outcome."""
    assert settlement(position, tails) == expected
