"""The demonstration: a real receiver with a directory of its own, a small sender, and what comes out, live.

The sender knows what should become of each post, so the demonstration is a check too: it fails where the receiver
answered or routed anything otherwise.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.live import Live

from receiver import auth, embedded, service
from receiver.demo.screen import Lines, Screen, summary
from receiver.demo.sender import DIALECTS, plan
from receiver.demo.tally import Tally
from receiver.reader import Cursor, Reader
from receiver.router import DEAD_LETTER
from receiver.secret_file import mint_secret
from receiver.settings import EdgeSettings, LogSettings, OpsSettings, Settings

#: What the feed shows of the topics that the router writes.
_TOPICS = ("status", "unavailable", DEAD_LETTER)

_SEED = 7
_FRAME_SECONDS = 0.1
#: The last post comes this long before the end, so that what it caused is seen.
_REST_SECONDS = 1.0
#: So long it waits for what should still come out.
_SETTLE_SECONDS = 10.0
_TOKEN_SECONDS = 2 * 3_600
_PAGE = 500


async def demonstrate(console: Console, seconds: float, sessions: int, port: int) -> bool:
    """Play `sessions` sessions within `seconds`, and show what comes of it. Whether all came out as it should.

    Ctrl-C ends it early, and cleanly.
    """
    with TemporaryDirectory(prefix="qod-demo-") as directory:
        settings = Settings(
            data=Path(directory),
            edge=EdgeSettings(port=port),
            ops=OpsSettings(port=0),
            log=LogSettings(level="warning"),
        )
        async with contextlib.AsyncExitStack() as stack:
            serving, addresses = await _serve(settings)
            stack.push_async_callback(_stop, serving)
            client = await stack.enter_async_context(httpx2.AsyncClient(timeout=30))
            reader = stack.enter_context(contextlib.closing(embedded.open_reader(settings)))
            tally = Tally(plan(sessions, seconds - _REST_SECONDS, datetime.now(UTC), _SEED))
            now = time.time()
            tokens = {name: auth.mint(mint_secret(settings), name, _TOKEN_SECONDS, now) for name in DIALECTS}
            watching = asyncio.create_task(_watch(tally, reader, client, addresses.ops_url, settings.prefix))
            playing = asyncio.create_task(_play(tally, client, addresses.edge_url, tokens))
            for task in (watching, playing):
                stack.callback(task.cancel)
            with _shown(console, tally, addresses.edge_url, seconds) as show:
                began = time.monotonic()
                while (passed := time.monotonic() - began) < seconds + _SETTLE_SECONDS:
                    show(passed)
                    broken = serving.done() or any(task.done() and task.exception() for task in (watching, playing))
                    if broken or (passed >= seconds and tally.is_complete):
                        break
                    await asyncio.sleep(_FRAME_SECONDS)
            # Ctrl-C reaches the receiver; the others notice only that it does not answer.
            interrupted = broken and bool((await asyncio.wait([serving], timeout=_SETTLE_SECONDS))[0])
    console.print(summary(tally, interrupted=interrupted), soft_wrap=True)
    return interrupted or not tally.faults()


async def _serve(settings: Settings) -> tuple[asyncio.Task[None], service.Addresses]:
    """A receiver that listens. Raises what kept it from that."""
    listening: asyncio.Future[service.Addresses] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(service.run(settings, ready=listening.set_result))
    await asyncio.wait((serving, listening), return_when=asyncio.FIRST_COMPLETED)
    if not listening.done():
        await serving
    return serving, await listening


async def _stop(serving: asyncio.Task[None]) -> None:
    """Stop the receiver as an operator would."""
    if not serving.done():
        signal.raise_signal(signal.SIGTERM)
    await serving


async def _play(tally: Tally, client: httpx2.AsyncClient, edge_url: str, tokens: Mapping[str, str]) -> None:
    """Post all of the plan, each at its time and one after the other."""
    began = time.monotonic()
    for post in tally.plan.posts:
        await asyncio.sleep(max(0, began + post.at_seconds - time.monotonic()))
        headers = {"authorization": f"Bearer {tokens[post.sender]}", **post.headers}
        answer = await client.post(edge_url + post.path_suffix, content=post.body, headers=headers)
        tally.posted.append((post, answer.status_code))


async def _watch(tally: Tally, reader: Reader, client: httpx2.AsyncClient, ops_url: str, prefix: str) -> None:
    """Keep the tally up with what comes out, for ever."""
    cursors: dict[str, Cursor] = {}
    while True:
        there = await reader.topics()
        for name in _TOPICS:
            topic = f"{prefix}.{name}"
            if topic in there:
                cursor = cursors.setdefault(topic, await reader.beginning(topic))
                for record in await reader.records(topic, cursor, _PAGE):
                    tally.record(name, record)
        tally.sessions = {session.session_id: session for session in await reader.sessions(None, len(tally.plan.ends))}
        tally.verdicts = _verdicts((await client.get(f"{ops_url}/metrics")).text)
        await asyncio.sleep(_FRAME_SECONDS)


def _verdicts(metrics: str) -> Mapping[str, int]:
    """How often each verdict was given, by the metrics of the operations port."""
    return {
        sample.labels["verdict"]: int(sample.value)
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == "qod_receiver_notifications_total"
    }


@contextlib.contextmanager
def _shown(console: Console, tally: Tally, edge_url: str, seconds: float) -> Iterator[Callable[[float], None]]:
    """Shows the tally, live on a terminal, and anew at each call with the time that has passed."""
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
