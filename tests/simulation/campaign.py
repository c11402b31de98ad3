"""Many seeds, one after the other or on several cores, and the events that must happen in all of them together."""

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from tests.simulation.checks import Violation
from tests.simulation.loop import Stuck
from tests.simulation.world import Parts, World

#: The events that a campaign must have. A campaign without one of them has shown nothing about it.
WANTED = (
    "kill",
    "power cut",
    "unsynced write lost",
    "sector torn",
    "size change lost",
    "shortening lost",
    "creation or deletion lost",
    "crash in append",
    "crash in commit",
    "crash in a checkpoint",
    "crash in retention",
    "crash in opening",
    "crash in between calls",
    "disk full",
    "sync failed in append",
    "sync failed in commit",
    "sync failed in opening",
    "could not start",
    "lane failed",
    "commit failed and kept all the same",
    "clock set back",
    "clock set forward",
    "answer lost",
    "answered 204",
    "answered 400",
    "answered 401",
    "answered 415",
    "answered 503",
    "answered 503 and kept all the same",
    "posted again after 503",
    "posted again after no answer",
    "accepted",
    "duplicate",
    "unchanged",
    "late",
    "conflict",
    "unrecognized",
    "malformed",
    "too old to tell",
    "an id used twice",
    "granted late",
    "session ended",
    "known again after it was forgotten",
    "removed by retention",
    "stopped in order",
)


class Outcome(NamedTuple):
    """The result of a seed: its events, its fault (empty: none), and the end of a failed seed's trace."""

    seed: int
    tally: Counter[str]
    wrong: str
    trace: tuple[object, ...] = ()


def run_seed(seed: int, parts: Parts | None = None) -> Outcome:
    """Run one seed."""
    world = World(seed, parts)
    try:
        world.run()
    except (Violation, Stuck) as error:
        return Outcome(seed, world.tally, f"{type(error).__name__}: {error}", tuple(world.trace[-30:]))
    return Outcome(seed, world.tally, "")


def run_seeds(seeds: Iterable[int], jobs: int) -> Iterator[Outcome]:
    """Run all seeds, in order."""
    if jobs == 1:
        yield from map(run_seed, seeds)
    else:
        with ProcessPoolExecutor(jobs) as processes:
            yield from processes.map(run_seed, seeds, chunksize=8)


def missing(tally: Counter[str]) -> list[str]:
    """The expected events that never happened."""
    return [what for what in WANTED if not tally[what]]
