"""Kills on a real Kafka, checked from outside: `python -m tests.kill_kafka --seconds 600 --seed 1`.

While senders post, two edges, two routers and a third that comes and goes are killed, paused, restarted, and cut off
from a broker, which is killed, paused and restarted too. In the end ledger, inbox and topics are compared: see
`tests/killing/`. The exit status is 1 if anything is wrong, or if a long run lacked one of the faults. The directory of
a run with a fault found stays, with all logs, the ledger, and every record.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.kafka_cluster import unavailable_reason
from tests.killing.chaos import HAPPENED, HAPPENED_TO_BROKERS
from tests.killing.findings import WRONGS
from tests.killing.run import Outcome, Plan, run

#: A run of this length must have had every kind of fault.
LONG_SECONDS = 480
_DETAILS_MAX = 20


def report(plan: Plan, outcome: Outcome) -> str:
    """Print what happened, and the table of what is wrong."""
    tally = outcome.tally
    by_inbox = outcome.judged["by the inbox"].told
    lines = [
        f"seed {plan.seed}, {plan.seconds:g} s, brokers: {plan.brokers}",
        "happened: " + ", ".join(f"{name} {tally[name]}" for name in sorted(tally) if not name.startswith("log: ")),
        "seen: " + ", ".join(f"{name} {count}" for name, count in sorted(by_inbox.items())),
        *(f"{tally[name]:7} {name}" for name in sorted(tally) if name.startswith("log: ")),
        f"{outcome.kills} kills, {tally['answered 204']} notifications answered 204, "
        f"{sum(count for name, count in by_inbox.items() if name.startswith('on '))} records",
        " " * 14 + "".join(f"{name:>{len(name) + 2}}" for name in WRONGS),
    ]
    for judge, findings in outcome.judged.items():
        counts = "".join(f"{findings.wrong[name]:{len(name) + 2}}" for name in WRONGS)
        lines.append(f"{judge:14}{counts}")
        lines += [f"  {detail[:600]}" for detail in findings.details[:_DETAILS_MAX]]
    lines += [f"trouble: {each}" for each in outcome.troubles]
    return "\n".join(lines)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--brokers", type=int, choices=(1, 3), default=1)
    parser.add_argument("--rate", type=float, default=120, help="notifications a second, about")
    parser.add_argument("--pace", type=float, default=1, help="2 lets things go wrong twice as often")
    parser.add_argument("--session-hours", type=float, default=96, help="0.01 lets sessions be forgotten after 36 s")
    arguments = parser.parse_args()
    if reason := unavailable_reason():
        raise SystemExit(f"there is no Kafka to kill: {reason}")
    happened = HAPPENED if arguments.brokers == 1 else (*HAPPENED, *HAPPENED_TO_BROKERS)
    plan = Plan(**vars(arguments), wanted=happened if arguments.seconds >= LONG_SECONDS else ())
    print(f"seed {plan.seed}", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="kill-kafka-"))

    def told(news: str) -> None:
        if sys.stdout.isatty():
            print(f"\r{news:60}", end="", flush=True)

    outcome = asyncio.run(run(directory, plan, told))
    print(f"\n{report(plan, outcome)}")
    missing = [name for name in plan.wanted if not outcome.tally[name]]
    if missing:
        print(f"never happened: {', '.join(missing)}")
    if outcome.right:
        shutil.rmtree(directory)
    else:
        print(f"WRONG; everything is in {directory}")
    raise SystemExit(bool(missing) or not outcome.right)


if __name__ == "__main__":
    main()
