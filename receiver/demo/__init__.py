"""The demonstration: a real receiver with a directory of its own, the simulator, and the results, live.

The simulator's ledger has all posts and their answers, so the demonstration is a check too: it fails if the receiver's
output does not match what was sent.
"""

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.live import Live

from receiver.core.topics import DEAD_LETTER, TopicNames
from receiver.demo import application
from receiver.demo.application import Application
from receiver.demo.ledger import Ledger
from receiver.demo.screen import Lines, Screen, summary
from receiver.demo.tally import Tally
from receiver.edge import auth
from receiver.process.addresses import Addresses
from receiver.process.directory import open_reader
from receiver.process.ports import listening, url_of
from receiver.process.run import run
from receiver.reader import Cursor, Reader
from receiver.secret_file import mint_secret
from receiver.settings import EdgeSettings, LogSettings, OpsSettings, Settings
from receiver.simulator.server import simulating

#: The topics that the feed shows.
_TOPICS = ("status", "unavailable", DEAD_LETTER)

#: A seed whose first dozen sessions meet most of the plan's faults.
SEED = 93
#: Outcomes of a request that leave a notification in the inbox.
_TAKEN = ("kept", "unrecognized", "malformed")
_HOST = "127.0.0.1"
_OPERATOR = "operator"
_FRAME_SECONDS = 0.1
#: The last post comes this long before the end, so that what it caused is seen.
_REST_SECONDS = 1.0
#: Extra time for the remaining posts, on a machine that is too slow, and then for the remaining output.
_POSTED_SECONDS_MAX = 120.0
_SETTLE_SECONDS = 10.0
_TOKEN_SECONDS = 2 * 3_600
_PAGE = 500


async def demonstrate(console: Console, seconds: float, sessions: int, port: int, seed: int = SEED) -> bool:
    """Play `sessions` sessions within `seconds`, and show the results. Returns whether all output is right.

    Ctrl-C ends it early and cleanly.
    """
    with TemporaryDirectory(prefix="qod-demo-") as directory:
        settings = Settings(
            data=Path(directory),
            edge=EdgeSettings(port=port),
            ops=OpsSettings(port=0),
            log=LogSettings(level="error"),  # refusals are on the screen
        )
        async with contextlib.AsyncExitStack() as stack:
            serving, addresses = await _serve(settings)
            stack.push_async_callback(_stop, serving)
            listener = stack.enter_context(listening(_HOST, 0))
            played_seconds = seconds - _REST_SECONDS
            options = application.options(played_seconds, seed)
            await stack.enter_async_context(simulating(options, listener))
            client = httpx2.AsyncClient(timeout=30, trust_env=False, verify=application.TRUST)
            await stack.enter_async_context(client)
            reader = stack.enter_context(contextlib.closing(open_reader(settings)))
            simulator_url = url_of(_HOST, listener)
            tally = Tally(Ledger(client, simulator_url), sessions)
            token = auth.mint(mint_secret(settings), _OPERATOR, _TOKEN_SECONDS, time.time())
            receiver = application.Receiver(addresses.edge_url, token)
            playing = Application(client, simulator_url).play(receiver, sessions, played_seconds, seed)
            watching = _watch(tally, reader, client, addresses.ops_url, TopicNames(settings.prefix))
            tasks = [asyncio.create_task(playing), asyncio.create_task(watching)]
            for task in tasks:
                stack.callback(task.cancel)
            with _shown(console, tally, addresses.edge_url, seconds) as show:
                broken = await _until_done(tally, [serving, *tasks], seconds, show)
            # Ctrl-C reaches the receiver; the other tasks only notice that it does not answer.
            interrupted = broken and bool((await asyncio.wait([serving], timeout=_SETTLE_SECONDS))[0])
            if broken and not interrupted:
                await asyncio.gather(*(task for task in tasks if task.done()))
    console.print(summary(tally, interrupted=interrupted), soft_wrap=True)
    return interrupted or not tally.comparison().faults


async def _serve(settings: Settings) -> tuple[asyncio.Task[None], Addresses]:
    """A receiver that listens. Raises the error that prevented it."""
    ready: asyncio.Future[Addresses] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(run(settings, ready=ready.set_result))
    await asyncio.wait((serving, ready), return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        await serving
    return serving, await ready


async def _stop(serving: asyncio.Task[None]) -> None:
    """Stop the receiver with a signal, as an operator would."""
    if not serving.done():
        signal.raise_signal(signal.SIGTERM)
    await serving


async def _until_done(
    tally: Tally, tasks: Sequence[asyncio.Task[None]], seconds: float, show: Callable[[float], None]
) -> bool:
    """Show progress until the output is whole, or time is up. Returns whether a task failed, or Ctrl-C ended one."""
    serving, *others = tasks
    began = time.monotonic()
    end_seconds = seconds + _POSTED_SECONDS_MAX
    while (passed := time.monotonic() - began) < end_seconds:
        show(passed)
        if serving.done() or any(task.done() and task.exception() for task in others):
            return True
        if passed >= seconds and tally.is_quiet:
            if not tally.comparison().faults:
                return False
            end_seconds = min(end_seconds, passed + _SETTLE_SECONDS)
        await asyncio.sleep(_FRAME_SECONDS)
    return False


async def _watch(tally: Tally, reader: Reader, client: httpx2.AsyncClient, ops_url: str, names: TopicNames) -> None:
    """Update the tally with new output, for ever."""
    cursors: dict[str, Cursor] = {}
    while True:
        # The ledger is read before the topics, so that it has the post of every record.
        await tally.ledger.follow()
        there = await reader.topics()
        for name in _TOPICS:
            topic = names.full(name)
            if topic in there:
                cursor = cursors.setdefault(topic, await reader.beginning(topic))
                for record in await reader.records(topic, cursor, _PAGE):
                    tally.record(name, record)
        sessions = await reader.sessions(None, tally.asked)
        tally.sessions = {each.session_id: (each.qos_status.value, each.status_info) for each in sessions}
        metrics = (await client.get(f"{ops_url}/metrics")).text
        tally.verdicts = _counts(metrics, "qod_receiver_notifications_total", "verdict")
        outcomes = _counts(metrics, "qod_receiver_http_requests_total", "outcome")
        tally.taken = sum(outcomes[outcome] for outcome in _TAKEN)
        await asyncio.sleep(_FRAME_SECONDS)


def _counts(metrics: str, name: str, label: str) -> Counter[str]:
    """The values of a metric on the operations port, by one of its labels."""
    counts: Counter[str] = Counter()
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == name:
                counts[sample.labels[label]] += int(sample.value)
    return counts


@contextlib.contextmanager
def _shown(console: Console, tally: Tally, edge_url: str, seconds: float) -> Iterator[Callable[[float], None]]:
    """Shows the tally, live on a terminal; the block calls the yielded function with the time that has passed."""
    if not console.is_terminal or console.is_dumb_terminal:
        lines = Lines(tally, console)
        yield lambda _: lines.show()
        lines.show()
        return
    screen = Screen(tally, f"at {edge_url}", seconds)
    with Live(screen, console=console, auto_refresh=False) as live:

        def show(passed: float) -> None:
            screen.passed_seconds = passed
            live.refresh()

        yield show
        live.refresh()
