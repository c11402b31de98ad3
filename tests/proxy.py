"""A TCP proxy between a client and a server that makes the faults of networks."""

import asyncio
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

#: API keys (kafka.apache.org/protocol).
PRODUCE, END_TXN = 0, 26

_CHUNK_BYTES = 64 * 1024
_CHUNKS_MAX = 256  # that wait in one direction; then the proxy stops reading, as a full pipe would


class Proxy:
    """Listens on one address and connects to another. It passes everything on until it is told otherwise.

    `faults` counts what was done: connections that were `reset`, and chunks that were `delayed`, `held`, `swallowed`,
    or whose `answer lost`.
    """

    def __init__(self, listen: tuple[str, int], target: tuple[str, int], *, seed: int = 0) -> None:
        self.listen, self.target = listen, target
        self.faults: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._delay_seconds = self._jitter_seconds = 0.0
        self._seconds_per_byte = 0.0
        self._free_at = {True: 0.0, False: 0.0}  # by direction
        self._swallowing = False
        self._cut_after_seconds: float | None = None  # while answers are lost
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.down()

    def delay(self, seconds: float, jitter_seconds: float = 0) -> None:
        """Delay each chunk by `seconds` in each direction, and up to the jitter more, in order."""
        self._delay_seconds, self._jitter_seconds = seconds, jitter_seconds

    def narrow(self, bytes_per_second: float) -> None:
        """Let at most this many bytes a second through in each direction, of all connections together."""
        self._seconds_per_byte = 1 / bytes_per_second

    def cut(self) -> None:
        """Reset all connections now."""
        for writers in list(self._connections.values()):
            self._reset(writers)

    async def down(self) -> None:
        """Reset all connections and refuse new ones until `up`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._connections)
        self.cut()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def up(self) -> None:
        """Take connections again."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, *self.listen)
            self.listen = self._server.sockets[0].getsockname()  # the port may have been 0

    def hold(self) -> None:
        """Hold everything back in both directions until `heal`, which delivers it: a short partition."""
        self._flowing.clear()

    def black_hole(self) -> None:
        """Swallow everything in both directions, also the ends of connections, until `heal`, which resets all
        connections.
        """
        self._swallowing = True
        self._flowing.clear()

    def lose_answers(self, cut_after_seconds: float = 0) -> None:
        """Deliver what clients send and drop what servers answer, until `heal`.

        A connection is reset some time after the first answer that it lost. New connections are treated likewise, so a
        client gets no further than its first request on each.
        """
        self._cut_after_seconds = cut_after_seconds

    async def heal(self) -> None:
        """End all faults, and take connections."""
        self._delay_seconds = self._jitter_seconds = self._seconds_per_byte = 0
        self._cut_after_seconds = None
        if self._swallowing:  # bytes are missing from the middle of streams
            self._swallowing = False
            self.cut()
        self._flowing.set()
        await self.up()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        writers = self._connections[task] = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
            writers.append(far_writer)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, far_writer, writers, answers=False))
                pumps.create_task(self._pump(far_reader, writer, writers, answers=True))
        except (OSError, ExceptionGroup):  # one end is gone, so the other is closed too
            self._reset(writers)
        except asyncio.CancelledError:  # by `down`; the server would log the cancellation
            self._reset(writers)
        finally:
            del self._connections[task]
            for each in writers:
                each.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        writers: list[asyncio.StreamWriter],
        *,
        answers: bool,
    ) -> None:
        """Carry one direction of a connection to its end."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_MAX)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._deliver(waiting, writer))
            lost = False
            chunk = b"-"
            while chunk:
                chunk = await self._read(reader, answers=answers)
                if chunk and self._swallowing:
                    self.faults["swallowed"] += 1
                elif chunk and answers and self._cut_after_seconds is not None:
                    self.faults["answer lost"] += 1
                    if not lost:
                        lost = True
                        loop.call_later(self._cut_after_seconds, self._reset, writers)
                else:
                    await self._take_turn(len(chunk), answers=answers)
                    seconds = self._delay_seconds + self._random.uniform(0, self._jitter_seconds)
                    self.faults["delayed"] += seconds > 0
                    await waiting.put((loop.time() + seconds, chunk))

    async def _read(self, reader: asyncio.StreamReader, *, answers: bool) -> bytes:  # noqa: ARG002  # for KafkaProxy
        """The next chunk of a direction; empty at its end."""
        return await reader.read(_CHUNK_BYTES)

    async def _take_turn(self, size: int, *, answers: bool) -> None:
        """Wait for the time in which a narrow link carries these bytes and all before them."""
        now = asyncio.get_running_loop().time()
        free_at = self._free_at[answers] = max(now, self._free_at[answers]) + size * self._seconds_per_byte
        if free_at > now:
            await asyncio.sleep(free_at - now)

    async def _deliver(self, waiting: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        """Write each chunk at its time; an empty one ends the direction."""
        loop = asyncio.get_running_loop()
        while True:
            due, chunk = await waiting.get()
            await asyncio.sleep(due - loop.time())
            self.faults["held"] += not self._flowing.is_set()
            await self._flowing.wait()
            if not chunk:
                writer.write_eof()
                return
            writer.write(chunk)
            await writer.drain()

    def _reset(self, writers: list[asyncio.StreamWriter]) -> None:
        """End a connection at both ends with a reset, once."""
        for writer in writers:
            connection = writer.get_extra_info("socket")
            if connection.fileno() != -1 and not writer.is_closing():
                self.faults["reset"] += writer is writers[0]
                # With a linger time of 0 the kernel sends a reset instead of an orderly end.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()


class KafkaProxy(Proxy):
    """A proxy that reads the API keys of Kafka's requests.

    `passed` counts the requests by API key, `held` those that were held back.
    """

    def __init__(self, listen: tuple[str, int], target: tuple[str, int], *, seed: int = 0) -> None:
        super().__init__(listen, target, seed=seed)
        self.passed: Counter[int] = Counter()
        self.held: Counter[int] = Counter()
        self._holding: dict[int, tuple[asyncio.Event, Callable[[], bool]]] = {}

    def hold_back(self, api_key: int, when: Callable[[], bool] = lambda: True) -> None:
        """Hold back the requests of an API, and all that comes behind them on their connections.

        If a condition is given, only the requests that come while it is met are held back.
        """
        self._holding[api_key] = asyncio.Event(), when
        self.held[api_key] = 0

    def let_through(self, api_key: int) -> None:
        """Deliver the requests of an API again, beginning with those that were held back."""
        released, _ = self._holding.pop(api_key)
        released.set()

    async def heal(self) -> None:
        """End all faults, holding back included."""
        for api_key in list(self._holding):
            self.let_through(api_key)
        await super().heal()

    async def _read(self, reader: asyncio.StreamReader, *, answers: bool) -> bytes:
        if answers:
            return await super()._read(reader, answers=answers)
        try:
            # RequestHeader (kafka.apache.org/protocol): the size of what follows, then the API key.
            size = await reader.readexactly(4)
            request = size + await reader.readexactly(int.from_bytes(size))
        except asyncio.IncompleteReadError:
            return b""
        api_key = int.from_bytes(request[4:6])
        if (holding := self._holding.get(api_key)) is not None and holding[1]():
            self.held[api_key] += 1
            await holding[0].wait()
        self.passed[api_key] += 1
        return request
