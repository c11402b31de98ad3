"""Strangers and greedy senders against a running receiver: `python -m tests.strangers`.

A good sender posts at a steady rate, half of it on kept connections and half on new ones. Meanwhile attackers open
silent connections and open them again when they are closed, connections with half a head, and chunked posts of another
sender that stop in the middle. The output is the share of the good sender's posts that are answered 204, their times,
and whether the operations port answers. All of it is on the loopback interface, and limited in number and time.

Without --url it starts a receiver with 1,024 descriptors.
"""

import argparse
import asyncio
import ipaddress
import resource
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import uvloop

from tests.receiver_process import ReceiverProcess, run
from tests.samples import body, told

_DESCRIPTORS = 1024
_ANSWER_SECONDS_MAX = 10.0
_BODY = body(told("A1")[0])
_GREEDY_HEAD = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n" + "x" * 1000


class Target(NamedTuple):
    """A receiver, and two of its senders."""

    url: str
    ops_url: str
    token: str
    greedy_token: str

    def head(self, token: str) -> str:
        """The head of a post, without the headers of its body."""
        parts = urlsplit(self.url)
        return f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {token}\r\n"


class Seen(NamedTuple):
    """The good sender's results: milliseconds of each 204, the number of posts without one, and the same of the other
    port.
    """

    kept_alive: list[float]
    new: list[float]
    live: list[float]
    failed: dict[str, int]

    def __str__(self) -> str:
        told = []
        for name, millis in (("kept alive", self.kept_alive), ("new", self.new), ("/livez", self.live)):
            count = len(millis) + self.failed[name]
            p99 = statistics.quantiles(millis, n=100)[98] if len(millis) > 1 else float("nan")
            told.append(f"{name} {100 * len(millis) / count:6.2f} % of {count}, p99 {p99:7.1f} ms")
        return "   ".join(told)


class _Stranger(asyncio.Protocol):
    """A connection that sends some bytes, and then nothing more."""

    def __init__(self, words: bytes, closed: Callable[[], object]) -> None:
        self._words = words
        self._closed = closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        cast("asyncio.WriteTransport", transport).write(self._words)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        del exc
        self._closed()


@asynccontextmanager
async def _strangers(target: Target, count: int, words: bytes) -> AsyncIterator[None]:
    """`count` connections for as long as the block lasts; closed ones are opened again, ten times each on average."""
    parts, left = urlsplit(target.url), 10 * count
    wanted = asyncio.Semaphore(count)
    transports: set[asyncio.BaseTransport] = set()

    async def keep_on() -> None:
        nonlocal left
        while left:
            await wanted.acquire()
            left -= 1
            try:
                transport, _ = await asyncio.get_running_loop().create_connection(
                    lambda: _Stranger(words, wanted.release), parts.hostname or "", parts.port or 80
                )
            except OSError:
                wanted.release()
                await asyncio.sleep(0.01)
                continue
            transports.add(transport)

    making = asyncio.create_task(keep_on())
    try:
        while len(transports) < count and left:  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.05)
        yield
    finally:
        making.cancel()
        for transport in transports:
            transport.close()


async def _post(target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    length = f"Content-Type: application/json\r\nContent-Length: {len(_BODY)}\r\n\r\n"
    writer.write((target.head(target.token) + length).encode() + _BODY)
    return (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")


async def _good_sender(target: Target, seconds: float, rate: float, answer_seconds_max: float) -> Seen:
    """Post at a rate on both kinds of connections, and ask the operations port ten times a second."""
    seen = Seen([], [], [], dict.fromkeys(("kept alive", "new", "/livez"), 0))
    edge, ops = urlsplit(target.url), urlsplit(target.ops_url)
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def timed(name: str, millis: list[float], ask: Callable[[], object]) -> None:
        began = time.perf_counter()
        good = False
        with suppress(OSError, EOFError, TimeoutError):
            async with asyncio.timeout(answer_seconds_max):
                good = bool(await ask())  # type: ignore[misc]
        if good:
            millis.append(1000 * (time.perf_counter() - began))
        else:
            seen.failed[name] += 1

    async def kept_alive() -> bool:
        connection = idle.pop() if idle else await asyncio.open_connection(edge.hostname, edge.port)
        good = await _post(target, *connection)
        idle.append(connection)
        return good

    async def new() -> bool:
        reader, writer = await asyncio.open_connection(edge.hostname, edge.port)
        try:
            return await _post(target, reader, writer)
        finally:
            writer.close()

    async def live() -> bool:
        reader, writer = await asyncio.open_connection(ops.hostname, ops.port)
        try:
            writer.write(b"GET /livez HTTP/1.1\r\nHost: %b\r\n\r\n" % ops.netloc.encode())
            return (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        finally:
            writer.close()

    begin, tasks = time.monotonic(), []
    for number in range(round(seconds * rate)):
        await asyncio.sleep(max(0, begin + number / rate - time.monotonic()))
        tasks += [
            asyncio.create_task(timed("kept alive", seen.kept_alive, kept_alive)),
            asyncio.create_task(timed("new", seen.new, new)),
        ]
        if number % max(1, round(rate / 10)) == 0:
            tasks.append(asyncio.create_task(timed("/livez", seen.live, live)))
    await asyncio.gather(*tasks)
    for _, writer in idle:
        writer.close()
    return seen


async def play(  # noqa: PLR0917  # the name, the number and the bytes of each attack
    target: Target,
    count: int,
    stalled: int,
    seconds: float,
    rate: float,
    answer_seconds_max: float = _ANSWER_SECONDS_MAX,
) -> list[tuple[str, Seen]]:
    """Make all attacks, one after the other; returns the good sender's results of each. It waits this long for an
    answer.
    """
    greedy = (target.head(target.greedy_token) + _GREEDY_HEAD).encode()
    attacks = (
        ("nobody else", 0, b""),
        (f"{count} silent connections", count, b""),
        (f"{count} with half a head", count, b"POST /notifications HTTP/1.1\r\nHost: a\r\n"),
        (f"{stalled} stalled posts of one sender", stalled, greedy),
    )
    seen = []
    for name, connections, words in attacks:
        async with _strangers(target, connections, words):
            seen.append((name, await _good_sender(target, seconds, rate, answer_seconds_max)))
        print(f"{name:40} {seen[-1][1]}", flush=True)
    return seen


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="where to post to; else a receiver is started")
    parser.add_argument("--ops-url", help="its operations port", default="http://127.0.0.1:9464")
    parser.add_argument("--token", help="the good sender's", default="")
    parser.add_argument("--greedy-token", help="the greedy sender's", default="")
    parser.add_argument("--count", type=int, default=3000, choices=range(10_001), metavar="0..10000")
    parser.add_argument("--stalled", type=int, default=1100, choices=range(10_001), metavar="0..10000")
    parser.add_argument("--seconds", type=int, default=20, choices=range(1, 301), metavar="1..300")
    parser.add_argument("--rate", type=int, default=50, choices=range(1, 501), metavar="1..500")
    given = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with TemporaryDirectory() as directory:
        receiver = None
        if given.url is None:
            options = "--log-level", "warning"
            receiver = ReceiverProcess(Path(directory) / "data", *options, descriptors_max=_DESCRIPTORS)
            greedy = run("token", "mint", "--data", str(receiver.directory), "--sender", "greedy").strip()
            target = Target(receiver.edge_url, receiver.ops_url, receiver.token, greedy)
        else:
            target = Target(given.url, given.ops_url, given.token, given.greedy_token)
        for url in (target.url, target.ops_url):
            if not ipaddress.ip_address(urlsplit(url).hostname or "").is_loopback:
                sys.exit(f"{url} is not on the loopback interface: this is an attack")
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        try:
            uvloop.run(play(target, given.count, given.stalled, given.seconds, given.rate))
        finally:
            if receiver is not None:
                receiver.terminate()


if __name__ == "__main__":
    main()
