from collections import Counter

import pytest

from tests.simulation.campaign import missing, run_seed, run_seeds
from tests.simulation.mutants import MUTANTS
from tests.simulation.world import World

SEEDS = 300


@pytest.mark.long
def test_every_promise_holds_whatever_crashes() -> None:
    """Over many seeds nothing is lost, repeated, torn or out of order, and every fault was tried."""
    tally: Counter[str] = Counter()
    for outcome in run_seeds(range(SEEDS), jobs=2):
        assert not outcome.wrong, f"python -m tests.simulation --seeds 1 --first {outcome.seed}: {outcome.wrong}"
        tally += outcome.tally
    assert not missing(tally), f"never happened: {missing(tally)}"


@pytest.mark.parametrize("seed", [3, 20, 234])
def test_a_seed_is_lived_again_alike(seed: int) -> None:
    """The same seed makes the same world, down to each operation on the disk."""
    worlds = [World(seed), World(seed)]
    for world in worlds:
        world.run()
    assert worlds[0].trace == worlds[1].trace


@pytest.mark.long
@pytest.mark.parametrize("mistake", MUTANTS)
def test_a_mistake_is_found(mistake: str) -> None:
    """A program with one of these mistakes breaks a promise within a few seeds."""
    # The trusted log is the rarest: it needs two failed syncs and a power cut within the next few.
    seeds = range(230, 530)
    assert any(run_seed(seed, MUTANTS[mistake]).wrong for seed in seeds), f"no seed shows it: {mistake}"
