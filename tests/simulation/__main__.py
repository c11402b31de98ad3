"""Many seeds of the simulation: `python -m tests.simulation --seeds 1000`.

The exit status is 1 if a promise was broken, or if an expected fault never happened.
"""

import argparse
import os
import time
from collections import Counter

from rich.console import Console
from rich.progress import track

from tests.simulation.campaign import missing, run_seeds


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them; a single one is lived again so")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time")
    arguments = parser.parse_args()
    console = Console()
    tally: Counter[str] = Counter()
    wrong, began = 0, time.monotonic()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    outcomes = run_seeds(seeds, arguments.jobs)
    for outcome in track(outcomes, "seeds", len(seeds), console=console, transient=True):
        tally += outcome.tally
        if outcome.wrong:
            wrong += 1
            console.print(f"seed {outcome.seed}: {outcome.wrong}", style="red", markup=False)
            for event in outcome.trace:
                console.print(f"    {event}", style="dim", markup=False)
    for what, count in sorted(tally.items()):
        console.print(f"{count:12,} {what}", markup=False, highlight=False)
    absent = missing(tally)
    for what in absent:
        console.print(f"never happened: {what}", style="red")
    console.print(f"{len(seeds):,} seeds in {time.monotonic() - began:.0f} s, {wrong} of them wrong")
    raise SystemExit(bool(wrong or absent))


if __name__ == "__main__":
    main()
