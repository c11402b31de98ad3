"""A whole run: the site, the load and the chaos, and then the judgement."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import NamedTuple

from receiver.process.routing import build_router
from receiver.settings import Settings
from tests.killing.by_inbox import by_inbox
from tests.killing.by_ledger import by_ledger
from tests.killing.chaos import Chaos
from tests.killing.findings import OUTPUTS, ROUTES, Findings, Topics
from tests.killing.ledger import Ledger
from tests.killing.load import Load
from tests.killing.site import PARTITIONS, PREFIX, Site
from tests.killing.topics import read
from tests.limits import SECONDS_MAX

_ENOUGH_SECONDS_MAX = 2 * SECONDS_MAX
_WANTED_SECONDS_MAX = 120.0
_PROGRESS_SECONDS = 1.0
#: The right statuses of a receiver: kept, kept as a dead letter (400, 415), refused for its token, and try again.
_ANSWERS = frozenset({204, 400, 401, 415, 503})
#: Lines of the receivers' logs that show a mistake of theirs. Outages and fences are warnings; asyncio's lines about
#: abandoned clients are noise.
_DEFECTS = ("log: undecidable", "log: edge_failed", "log: unreadable", "log: Exception ")


class Plan(NamedTuple):
    """The plan of a run. If sessions are forgotten within it, only the inbox's oracle judges it.

    A run goes on beyond its time until the `wanted` faults have happened, but not for ever.
    """

    seconds: float
    seed: int
    brokers: int = 1
    rate: float = 120
    pace: float = 1
    session_hours: float = 96
    wanted: Collection[str] = ()

    @property
    def forgets(self) -> bool:
        """Whether sessions are forgotten in the run."""
        return self.session_hours * 3600 < self.seconds + 3600


class Outcome(NamedTuple):
    """The result of a run. `troubles` are faults that the oracles don't judge."""

    kills: int
    tally: Counter[str]
    judged: dict[str, Findings]
    troubles: list[str]

    @property
    def right(self) -> bool:
        """Whether nothing is wrong."""
        return not self.troubles and not any(findings.wrong for findings in self.judged.values())


async def run(directory: Path, plan: Plan, told: Callable[[str], None] = lambda _: None) -> Outcome:
    """Run the plan; `told` gets news of its progress. The directory keeps everything."""
    troubles: list[str] = []

    async def attempted(call: Awaitable[object], seconds: float) -> None:
        try:
            await asyncio.wait_for(call, seconds)
        except Exception as error:  # noqa: BLE001  # whatever it is, the rest is still judged
            troubles.append(f"{type(error).__name__}: {_all_of(error)}")

    async with Site(directory, plan.brokers, plan.session_hours, plan.seed) as site:
        load = Load(site.edge_urls, site.secret, plan.seed, plan.rate)
        chaos = Chaos(site, plan.seed + 2, plan.pace)
        loading, raging = asyncio.create_task(load.run()), asyncio.create_task(chaos.run())
        began = time.monotonic()
        while not (loading.done() or raging.done() or _is_enough(plan, chaos, time.monotonic() - began)):
            await asyncio.sleep(_PROGRESS_SECONDS)
            seconds = time.monotonic() - began
            told(f"{seconds:.0f} of {plan.seconds:.0f} s, {chaos.kills} kills, {load.tally['answered 204']} kept")
        chaos.stop()
        told("letting it all run")
        await attempted(raging, _ENOUGH_SECONDS_MAX)
        await attempted(site.heal(), _ENOUGH_SECONDS_MAX)
        load.stop()
        await attempted(loading, _ENOUGH_SECONDS_MAX)
        told("waiting until all is routed")
        if waiting := await site.drain():
            troubles.append(f"not routed: {waiting}")
        await attempted(site.end(), _ENOUGH_SECONDS_MAX)
        told("reading the topics")
        topics = await _topics(site.cluster.bootstrap)
        tally = chaos.tally + load.tally + site.faults()
    told("judging")
    router = build_router(
        Settings.model_validate(
            {"prefix": PREFIX, "routes": ROUTES, "retention": {"session_hours": plan.session_hours}}
        )
    )
    judged = {"by the inbox": by_inbox(load.ledger, topics, router, plan.session_hours * 3600)}
    if not plan.forgets:
        judged["by the ledger"] = by_ledger(load.ledger, topics)
    troubles += [f"{count} x {name}" for name, count in tally.items() if name.startswith(_DEFECTS)]
    statuses = {attempt.status for attempt in load.ledger.attempts.values()}
    troubles += [f"an answer {status}" for status in statuses - _ANSWERS - {None}]
    outcome = Outcome(chaos.kills, tally, judged, troubles)
    if not outcome.right:
        await asyncio.to_thread(_write, directory, load.ledger, topics, outcome)
    return outcome


def _is_enough(plan: Plan, chaos: Chaos, seconds: float) -> bool:
    happened = all(chaos.tally[name] for name in plan.wanted)
    return seconds > plan.seconds and (happened or seconds > plan.seconds + _WANTED_SECONDS_MAX)


async def _topics(bootstrap: str) -> Topics:
    inbox = await read(bootstrap, f"{PREFIX}.inbox", PARTITIONS)
    outputs = {name: await read(bootstrap, f"{PREFIX}.{name}", PARTITIONS) for name in OUTPUTS}
    return Topics(inbox, outputs, await read(bootstrap, f"{PREFIX}.sessions", PARTITIONS))


def _write(directory: Path, ledger: Ledger, topics: Topics, outcome: Outcome) -> None:
    """Write all that is needed to find a cause."""
    with (directory / "ledger.jsonl").open("w") as file:
        for attempt in ledger.attempts.values():
            posting = attempt.posting
            fields = attempt.correlator, attempt.edge, attempt.began, attempt.answered, attempt.status
            told = posting.sender, posting.body.decode(errors="replace"), posting.told
            file.write(json.dumps([*fields, *told]) + "\n")
    for name, records in {"inbox": topics.inbox, **topics.outputs, "sessions": topics.sessions}.items():
        with (directory / f"{name}.jsonl").open("w") as file:
            for record in records:
                value = None if record.value is None else record.value.decode(errors="replace")
                file.write(json.dumps([record.place, record.key, value, dict(record.headers), record.millis]) + "\n")
    with (directory / "wrong.txt").open("w") as file:
        for trouble in outcome.troubles:
            file.write(f"{trouble}\n")
        for name, findings in outcome.judged.items():
            for detail in findings.details:
                file.write(f"{name}: {detail}\n")


def _all_of(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(map(_all_of, error.exceptions))
    return f"{type(error).__name__}: {error}"
