"""The fate of notifications when something fails, for each receiver: `python -m tests.benchmarks.scenarios`.

Each receiver runs in turn on a real broker, which is stopped, is paused, refuses one topic, or loses its answers, while
the receiver is killed. A consumer reads the committed records of the topics. The printed table has wrong outcomes in
bold; the exit status is 1 if one of ours is wrong.

With `--url` the same is done to a receiver that runs already; a scenario that needs a command that was not given is
left out. Its unavailable topic is made to refuse records for a moment.
"""

import argparse
import asyncio
import importlib.metadata
import os
import platform
import secrets
import sys
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2

from tests.benchmarks.peers import receivers
from tests.benchmarks.peers.trial import Answer, CommandedBroker, Found, OwnBroker, Running, Trial, own_broker
from tests.kafka_cluster import KAFKA_VERSION, Cluster, unavailable_reason

OUTAGE_COUNT = 20
CONNECTIONS = 12
REPEATED_COUNT = 6
SENDERS = 24
LOAD_SECONDS = 3.0
#: The broker's answers are lost for this long, and the sender waits this long for its own.
LOST_SECONDS = 3.0


class Cell(NamedTuple):
    """An outcome in words, and whether it is right."""

    text: str
    right: bool


Cells = Mapping[str, Cell]

FIRST_POST = "the broker is gone, a notification is posted"
SECOND_POST = "the sender posts it again"
READINESS = "the readiness check meanwhile"
AFTER_OUTAGE = "then kill -9, the broker back, restart"
AFTER_OUTAGE_ALONE = "then the broker back"
FAN_OUT_POSTS = "the broker refuses the second topic, posted twice"
AFTER_FAN_OUT = "then kill -9, mended, restart"
AFTER_FAN_OUT_ALONE = "then mended"
COPIES = f"the broker stands still, {OUTAGE_COUNT} are posted twice, it goes on"
CONCURRENT = f"{REPEATED_COUNT}, each on {CONNECTIONS} connections at once"
LOST_ANSWER = "the broker's answer to an append is lost, posted again"
LOAD = "kill -9 under load, nothing is posted again"

ROWS = (
    *(FIRST_POST, SECOND_POST, READINESS, AFTER_OUTAGE, AFTER_OUTAGE_ALONE),
    *(FAN_OUT_POSTS, AFTER_FAN_OUT, AFTER_FAN_OUT_ALONE, COPIES, CONCURRENT, LOST_ANSWER, LOAD),
)


async def outage(trial: Trial) -> Cells:
    """The broker is gone, and the receiver is killed before it is back: what was answered 2xx must not be lost."""
    session = trial.new()
    before = await trial.readiness()
    await trial.broker.away("gone")
    try:
        first, again = await trial.post(session), await trial.post(session)
        status, told = during = await trial.readiness()
        await trial.kill()
    finally:
        await trial.broker.back()
    await trial.start()
    found = await _found(trial, {session: [first, again]})
    return {
        FIRST_POST: Cell(str(first), first.kept),
        SECOND_POST: Cell(str(again), again.kept),
        READINESS: Cell(
            f"{status}, {'as before' if during == before else textwrap.shorten(told, 90, placeholder=' …')}",
            during != before,
        ),
        AFTER_OUTAGE if trial.can_kill else AFTER_OUTAGE_ALONE: one(found[session], first, again),
    }


async def fan_out(trial: Trial) -> Cells:
    """One of two topics can't be written, and the receiver is killed meanwhile: both must have it, or none."""
    session = trial.new()
    async with trial.refused_topic():
        first, again = await trial.post(session), await trial.post(session)
        await trial.kill()
    await trial.start()
    found = await _found(trial, {session: [first, again]})
    return {
        FAN_OUT_POSTS: Cell(f"{first}; {again}", first.kept and again.kept),
        AFTER_FAN_OUT if trial.can_kill else AFTER_FAN_OUT_ALONE: one(found[session], first, again),
    }


async def copies(trial: Trial) -> Cells:
    """The broker is paused while several notifications are posted, each of them twice; then it goes on."""
    sessions = [trial.new() for _ in range(OUTAGE_COUNT)]
    await trial.broker.away("still")
    try:
        first = await asyncio.gather(*map(trial.post, sessions))
        again = await asyncio.gather(*map(trial.post, sessions))
    finally:
        await trial.broker.back()
    answers = {session: pair for session, *pair in zip(sessions, first, again, strict=True)}
    return {COPIES: many(await _found(trial, answers), answers)}


async def concurrent(trial: Trial) -> Cells:
    """Nothing fails, but the sender posts the same on many connections at the same moment."""
    answers = {}
    for session in [trial.new() for _ in range(REPEATED_COUNT)]:
        answers[session] = await asyncio.gather(*(trial.post(session) for _ in range(CONNECTIONS)))
    return {CONCURRENT: many(await _found(trial, answers), answers)}


async def lost_answer(trial: Trial) -> Cells:
    """The broker has a record and its answer is lost; the sender, whose own answer is late, posts again."""
    assert isinstance(trial.broker, OwnBroker)
    session, proxy = trial.new(), trial.broker.proxy
    lost_before = proxy.faults["answer lost"]
    proxy.lose_answers()
    try:
        first = await trial.post(session, seconds_max=LOST_SECONDS)
        assert proxy.faults["answer lost"] > lost_before, "no answer was lost"
    finally:
        await proxy.heal()
    again = await trial.post(session)
    answers = {session: [first, again]}
    return {LOST_ANSWER: one((await _found(trial, answers))[session], first, again)}


async def load(trial: Trial) -> Cells:
    """Many senders post as fast as they are answered when the receiver is killed; they never post anything again."""
    answers: dict[str, list[Answer]] = {}
    ending = asyncio.Event()

    async def send(client: httpx2.AsyncClient) -> None:
        while not ending.is_set():
            session = trial.new()
            answers[session] = [await trial.post(session, client=client)]

    async with (
        httpx2.AsyncClient(limits=httpx2.Limits(max_connections=SENDERS)) as client,
        asyncio.TaskGroup() as tasks,
    ):
        for _ in range(SENDERS):
            tasks.create_task(send(client))
        await asyncio.sleep(LOAD_SECONDS)
        await trial.kill()
        ending.set()
    await trial.start()
    found = await _found(trial, answers)
    answered = [session for session, some in answers.items() if some[0].kept]
    lost = sum(not found[session].everywhere for session in answered)
    torn = sum(found[session].torn for session in answers)
    repeated = sum(found[session].copies for session in answers)
    text = f"{lost} of {len(answered):,} lost" + _also(torn, "on one topic only") + _also(repeated, "copies")
    return {LOAD: Cell(text, not lost and not torn and not repeated)}


#: The needs of scenarios, in words for a user who has not met them.
AWAY, KILL, PROXY = "--away and --back", "--kill and --start", "a broker that is started here"


class Scenario(NamedTuple):
    """A scenario and its needs."""

    run: Callable[[Trial], Awaitable[Cells]]
    needs: frozenset[str]


SCENARIOS = {
    "outage": Scenario(outage, frozenset({AWAY})),
    "fan-out": Scenario(fan_out, frozenset()),
    "copies": Scenario(copies, frozenset({AWAY})),
    "concurrent": Scenario(concurrent, frozenset()),
    "lost-answer": Scenario(lost_answer, frozenset({PROXY})),
    "load": Scenario(load, frozenset({KILL})),
}


def one(found: Found, *answers: Answer) -> Cell:
    """The fate of one notification."""
    answered = any(answer.kept for answer in answers)
    if found == (1, 1):
        return Cell("kept once", right=True)
    if found == (0, 0):
        return Cell("lost" if answered else "not kept, the sender knows", right=False)
    if found.torn:
        so = "lost there" if answered else "the sender knows"
        return Cell(f"{found.status} on status, {found.unavailable} on unavailable: {so}", right=False)
    return Cell(f"kept {max(found)} times", right=False)


def many(found: Mapping[str, Found], answers: Mapping[str, Sequence[Answer]]) -> Cell:
    """The fate of several notifications."""
    answered = [session for session, some in answers.items() if any(answer.kept for answer in some)]
    kept = sum(found[session].everywhere for session in answers)
    lost = sum(not found[session].everywhere for session in answered)
    torn = sum(found[session].torn for session in answers)
    refused = len(answers) - len(answered)
    records = max(sum(each) for each in zip(*(found[session] for session in answers), strict=True))
    text = f"{kept} of {len(answers)} kept" + _also(lost, "lost") + _also(torn, "on one topic only")
    text += f", {records} records of them" if records > kept else ", each once" if kept else ""
    right = all(found[session] == (1, 1) for session in answers) and not refused
    return Cell(text + _also(refused, "never answered 2xx"), right)


def _also(count: int, what: str) -> str:
    return f", {count} {what}" if count else ""


async def _found(trial: Trial, answers: Mapping[str, Sequence[Answer]]) -> Mapping[str, Found]:
    return await trial.look([session for session, some in answers.items() if any(answer.kept for answer in some)])


async def play(trial: Trial, names: Sequence[str], having: frozenset[str] = frozenset({AWAY, KILL, PROXY})) -> Cells:
    """The outcomes of these scenarios, one after the other, without those whose needs are not met."""
    cells: dict[str, Cell] = {}
    for name in names:
        scenario = SCENARIOS[name]
        if lacking := scenario.needs - having:
            _progress(f"  {name} is left out: it needs {' and '.join(sorted(lacking))}")
            continue
        await trial.warm_up()
        began = time.monotonic()
        outcomes = await scenario.run(trial)
        for row, cell in outcomes.items():
            cells[row] = cell
            _progress(f"  {row}: {cell.text}{'' if cell.right else '   <-- wrong'}")
        _progress(f"  ({name} took {time.monotonic() - began:.0f} s)")
    return cells


@asynccontextmanager
async def started(kind: str, broker: OwnBroker, directory: Path) -> AsyncIterator[receivers.Receiver]:
    """A receiver of a kind behind the broker's proxy, on new topics."""
    prefix = f"{kind}-{secrets.token_hex(4)}"
    await receivers.make_topics(broker.bootstrap, prefix)
    receiver = receivers.Receiver(kind, directory / prefix, broker.behind_proxy, prefix)
    try:
        await asyncio.to_thread(receiver.start)
        yield receiver
    except BaseException:
        _progress(receiver.log_end())
        raise
    finally:
        await asyncio.to_thread(receiver.close)


async def compare(kinds: Sequence[str], names: Sequence[str]) -> dict[str, Cells]:
    """The outcomes for each kind, on a broker of our own."""
    table = {}
    with tempfile.TemporaryDirectory() as directory, Cluster(Path(directory) / "kafka") as cluster:
        async with own_broker(cluster) as broker:
            for kind in kinds:
                _progress(receivers.KINDS[kind])
                async with started(kind, broker, Path(directory)) as receiver:
                    table[kind] = await play(Trial(receiver, broker), names)
    return table


async def judge(arguments: argparse.Namespace) -> Cells:
    """The outcomes for a receiver that runs already."""
    receiver = Running(
        arguments.url,
        arguments.token,
        arguments.status_topic,
        arguments.unavailable_topic,
        arguments.readiness_url or arguments.url,
        arguments.kill,
        arguments.start,
    )
    can_kill, can_outage = bool(arguments.kill and arguments.start), bool(arguments.away and arguments.back)
    having = frozenset({KILL} if can_kill else ()) | frozenset({AWAY} if can_outage else ())
    broker = CommandedBroker(arguments.kafka, arguments.away, arguments.back)
    return await play(Trial(receiver, broker, can_kill=can_kill), arguments.scenarios, having)


def render(table: Mapping[str, Cells]) -> str:
    """The outcomes as a table in Markdown, by the heading of each column."""
    rows = [row for row in ROWS if any(row in cells for cells in table.values())]
    lines = [["scenario", *table], ["---"] * (1 + len(table))]
    for row in rows:
        cells = [column.get(row, Cell("", right=True)) for column in table.values()]
        lines.append([row, *(cell.text if cell.right else f"**{cell.text}**" for cell in cells)])
    return "\n".join(f"| {' | '.join(text.replace('|', '/') for text in line)} |" for line in lines)


def versions() -> str:
    """The versions of what was compared."""
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("aiokafka", "fastapi", "uvicorn"))
    python = f"Python {platform.python_version()}, {packages}"
    return f"Kafka {KAFKA_VERSION}, Bento {receivers.bento_version()}, {python}, {os.cpu_count()} cores"


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known, kinds = list(SCENARIOS), list(receivers.KINDS)
    parser.add_argument(
        "--scenarios", nargs="+", choices=known, default=known, metavar="NAME", help=f"of {', '.join(known)}"
    )
    parser.add_argument("--kinds", nargs="+", choices=kinds, metavar="NAME", help=f"of {', '.join(kinds)}")
    running = parser.add_argument_group("a receiver that runs already")
    running.add_argument("--url", help="where notifications are posted to")
    running.add_argument("--token", default="", help="the bearer token to post with")
    running.add_argument("--kafka", metavar="HOST:PORT", help="a broker to read the topics from")
    running.add_argument("--status-topic", metavar="TOPIC", help="what has every notification")
    running.add_argument("--unavailable-topic", metavar="TOPIC", help="what has those that are UNAVAILABLE, too")
    running.add_argument("--readiness-url", metavar="URL", help="its readiness check")
    for name, what in (
        ("--away", "takes the broker away, such as `docker stop kafka`"),
        ("--back", "brings it back"),
        ("--kill", "ends the receiver with SIGKILL, such as `docker kill receiver`"),
        ("--start", "starts it again"),
    ):
        running.add_argument(name, default="", metavar="COMMAND", help=what)
    arguments = parser.parse_args()
    if arguments.url and not (arguments.kafka and arguments.status_topic and arguments.unavailable_topic):
        parser.error("--url wants --kafka, --status-topic and --unavailable-topic")
    if arguments.url and arguments.kinds:
        parser.error("--kinds are started here, --url is running: one of them")
    return arguments


def main() -> None:
    """Run as a command."""
    arguments = _arguments()
    if arguments.url:
        table = {arguments.url: asyncio.run(judge(arguments))}
    else:
        if reason := unavailable_reason():
            sys.exit(reason)
        kinds = arguments.kinds or list(receivers.KINDS)
        for kind in kinds:
            if reason := receivers.missing(kind):
                _progress(f"{receivers.KINDS[kind].upper()} IS LEFT OUT: {reason}")
        kinds = [kind for kind in kinds if not receivers.missing(kind)]
        outcomes = asyncio.run(compare(kinds, arguments.scenarios))
        table = {receivers.KINDS[kind]: cells for kind, cells in outcomes.items()}
        print(f"{versions()}\n")
    print(render(table))
    judged = [arguments.url or receivers.KINDS[kind] for kind in receivers.OURS]
    sys.exit(any(not cell.right for heading in judged for cell in table.get(heading, {}).values()))


if __name__ == "__main__":
    main()
