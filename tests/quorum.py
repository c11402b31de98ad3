"""The links between a cluster's controllers, through which one broker can be cut off from the controllers alone.

Such a broker is deposed and does not know it: it goes on answering reads and metadata as the leader that it was.
"""

import asyncio
import contextlib
import re
import struct
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from tests.kafka_cluster import HOST, Address
from tests.limits import SECONDS_MAX

_CHUNK_BYTES = 64 * 1024


class Quorum:
    """Carries all connections to the controllers. `links` has, for each, the address to listen on and the one to
    connect to.

    It runs in a thread, since a cluster outlives the loop of a test.
    """

    def __init__(self, links: Sequence[tuple[Address, Address]]) -> None:
        self._links = links
        self._cut_off: int | None = None
        self._open: set[tuple[int, int, asyncio.StreamWriter]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        for number, (near, _) in enumerate(self._links):
            listening = asyncio.start_server(lambda *ends, to=number: self._carry(to, *ends), near.host, near.port)
            asyncio.run_coroutine_threadsafe(listening, self._loop).result(SECONDS_MAX)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(SECONDS_MAX)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut_off(self, broker: int | None) -> None:
        """Cut a broker off from the other controllers, in both directions; None: connect all again."""
        done: Future[None] = Future()
        self._loop.call_soon_threadsafe(self._cut, broker, done)
        done.result(SECONDS_MAX)

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _cut(self, broker: int | None, done: "Future[None]") -> None:
        self._cut_off = broker
        for source, to, writer in self._open:
            if self._is_cut(source, to):
                writer.transport.abort()
        done.set_result(None)

    def _is_cut(self, source: int, to: int) -> bool:
        return source != to and self._cut_off in {source, to}

    async def _carry(self, to: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            first = await reader.readexactly(4)
            first += await reader.readexactly(struct.unpack(">i", first)[0])
            source = _source(first)
            if self._is_cut(source, to):
                return
            far = self._links[to][1]
            far_reader, far_writer = await asyncio.open_connection(HOST, far.port)
            ends.append(far_writer)
            links = {(source, to, each) for each in ends}
            self._open |= links
            try:
                far_writer.write(first)
                await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
            finally:
                self._open -= links
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for each in ends:
                each.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    writer.close()


def _source(request: bytes) -> int:
    """The broker that a connection comes from, by the client id of its first request; -1 if it is no broker."""
    size = struct.unpack_from(">h", request, 12)[0]
    found = re.search(rb"\d+", request[14 : 14 + max(0, size)])
    return int(found[0]) if found else -1
