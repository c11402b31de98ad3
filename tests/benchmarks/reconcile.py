"""The cost of a comparison with the operator's API: `python -m tests.benchmarks.reconcile`.

The API lists sessions that are all known, as is usual. The processor time is that of the comparing process, the
answering API included; "longest turn" is the longest time for which the event loop ran nothing else, in processor time
too. Sessions that are missing on the list are requested one by one, and that is measured against a simulator.
"""

import argparse
import asyncio
import io
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import uvloop

from receiver.core import rfc3339
from receiver.inbox import append_all
from receiver.process.directory import open_directory, open_reader
from receiver.process.embedded import EmbeddedNode
from receiver.process.ports import garbage_kept_off
from receiver.process.reconciling import reconciler
from receiver.process.routing import build_router
from receiver.qod.client import QodClient
from receiver.qod.reconciler import Reconciler
from receiver.settings import ApiSettings, Settings
from receiver.telemetry import Telemetry
from tests import simulated
from tests.faulty_api import FaultyApi, answer
from tests.limits import SECONDS_MAX

_ROUNDS = 3
_ASKED, _ASKED_AT_ONCE = 800, 8
_SECOND = 1_000_000


class Turns:
    """The times for which other tasks had the loop, in processor time of its thread."""

    def __init__(self) -> None:
        self.longest_seconds = 0.0

    async def watch(self) -> None:
        """Ask for a turn again and again."""
        before = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            self.longest_seconds = max(self.longest_seconds, now - before)
            before = now


def _listed(count: int) -> list[dict[str, Any]]:
    now = time.time_ns() // 1000
    return [
        {
            "sessionId": str(uuid.UUID(int=number)),
            "device": {"phoneNumber": f"+34600{number:06d}"},
            "qosProfile": "QOS_E",
            "qosStatus": "AVAILABLE",
            "duration": 86_400,
            "startedAt": rfc3339.render(now - 3600 * _SECOND + number),
            "expiresAt": rfc3339.render(now + 82_800 * _SECOND + number),
        }
        for number in range(count)
    ]


@asynccontextmanager
async def _comparing(count: int, directory: Path) -> AsyncIterator[Reconciler]:
    """A reconciler of sessions that are all known already, on SQLite."""
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(FaultyApi().listening())
        api.script(answer(200, _listed(count)))
        settings = Settings(data=directory, api=api.settings(timeout_seconds=SECONDS_MAX))
        node = stack.enter_context(closing(open_directory(settings)))
        reader = stack.enter_context(closing(open_reader(settings)))
        served = EmbeddedNode(node, reader, settings, Telemetry(io.StringIO()), build_router(settings))
        jobs = [asyncio.ensure_future(job) for job in served.jobs()]
        made = await stack.enter_async_context(reconciler(settings, served))
        await append_all(node.inbox, made.notifications(await made.compare()))
        while node.lane.lag:  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.1)
        yield made
        for job in jobs:
            job.cancel()


async def _compare(count: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with _comparing(count, Path(directory) / "data") as made:
            for _ in range(_ROUNDS):
                turns = Turns()
                with garbage_kept_off():
                    began = time.process_time()
                    found = await made.compare()
                    seconds = time.process_time() - began
                    watching = asyncio.create_task(turns.watch())
                    assert await made.compare() == found == []
                    watching.cancel()
                print(
                    f"{count:6} sessions: {seconds / count * 1000:.3f} ms each, {seconds:.2f} s in all, "
                    f"longest turn {turns.longest_seconds * 1000:.1f} ms"
                )


async def _ask(url: str) -> None:
    api = {"base_url": f"{url}/v1", "token_url": f"{url}/token", "client_id": "demo", "client_secret": "demo"}
    settings = ApiSettings(**api, sender="operator", timeout_seconds=SECONDS_MAX)  # type: ignore[arg-type]
    async with QodClient(settings, quotes=False) as client:

        async def some() -> None:
            for _ in range(_ASKED // _ASKED_AT_ONCE):
                assert await client.get(str(uuid.UUID(int=0))) is None

        began = time.process_time()
        await asyncio.gather(*(some() for _ in range(_ASKED_AT_ONCE)))
        seconds = time.process_time() - began
    print(f"asked for one by one: {seconds / _ASKED * 1000:.3f} ms each")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, nargs="+", default=[2_000, 60_000])
    for count in parser.parse_args().sessions:
        uvloop.run(_compare(count))
    with (
        tempfile.TemporaryDirectory() as directory,
        simulated.serving(Path(directory), "--log-level", "warning") as api,
    ):
        uvloop.run(_ask(api.url))


if __name__ == "__main__":
    main()
