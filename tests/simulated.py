"""Simulators on free ports, in this process and in others, a client of theirs, and a socket that they post to.

The socket reads raw HTTP, so it also records requests that a server would have refused.
"""

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx2
import structlog

from receiver.simulator.server import Options, simulating
from tests.limits import SECONDS_MAX
from tests.receiver_process import COMMAND

T = TypeVar("T")

TOKEN = "a-token-that-senders-present"
#: Loaded once for all tests: the system's trusted certificates are many files.
_TRUST = ssl.create_default_context()
CLOUDEVENTS = {"0.10", "0.11", "1.0", "1.1"}


class Answer(NamedTuple):
    """The answer of a socket, given once `after` is set: a status with headers. None closes the connection instead."""

    status: int | None = 204
    headers: Mapping[str, str] = {}
    after: Callable[[], Awaitable[object]] | None = None


@dataclass(eq=False)
class Received:
    """A request as it was received, whole or not."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    is_whole: bool
    began: float
    ended: float

    @property
    def tree(self) -> dict[str, Any]:
        """The body as JSON."""
        tree: dict[str, Any] = json.loads(self.body)
        return tree


class Sink:
    """A socket that receives notifications. `answer` chooses the answer to each request."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.answer: Callable[[Received], Answer] = lambda _: Answer()
        self.url = ""
        self._serving: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None) -> AsyncIterator["Sink"]:
        """Listen on a free port for as long as the block lasts."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=tls)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/notifications"
        try:
            yield self
        finally:
            server.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (received := await _request(reader)) is not None:
                self.received.append(received)
                answer = self.answer(received)
                if answer.after is not None:
                    await answer.after()
                if answer.status is None or not received.is_whole:
                    break
                lines = [f"HTTP/1.1 {answer.status} -", *(f"{name}: {text}" for name, text in answer.headers.items())]
                lines += [] if answer.status == 204 else ["content-length: 0"]
                writer.write("\r\n".join([*lines, "", ""]).encode())
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


async def _request(reader: asyncio.StreamReader) -> Received | None:
    """The next request of a connection; None at the connection's end."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    began = time.monotonic()
    request_line, *lines = head.rstrip().split("\r\n")
    headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", "0"))
    try:
        body = await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        body = error.partial
    return Received(request_line.split(" ")[1], headers, body, len(body) == length, began, time.monotonic())


class Process(NamedTuple):
    """A simulator in a process, its first output, and its log."""

    running: subprocess.Popen[str]
    greeting: str
    log: Path

    @property
    def url(self) -> str:
        """Its URL without a path."""
        return self.greeting.split()[1].removesuffix("/v1")

    def end(self, number: int) -> int:
        """Send a signal, and return the exit status."""
        self.running.send_signal(number)
        return self.running.wait(SECONDS_MAX)


@contextlib.contextmanager
def serving(directory: Path, *options: str) -> Iterator[Process]:
    """`qod-receiver simulate` on a free port."""
    log = directory / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [*COMMAND, "simulate", "--port", "0", *options], stdout=subprocess.PIPE, stderr=errors, text=True
        ) as running,
    ):
        try:
            assert running.stdout is not None
            lines: list[str] = []
            while not lines or not lines[-1].rstrip().endswith("}'"):
                line = running.stdout.readline()
                assert line, log.read_text()
                lines.append(line)
            yield Process(running, "".join(lines), log)
        finally:
            running.kill()


class Simulated:
    """A simulator, and a client of it with all rights."""

    def __init__(self, url: str, client: httpx2.AsyncClient) -> None:
        self.url = url
        self.client = client
        self.sessions_url = f"{url}/v1/qod/sessions"
        self._phones = 0

    async def token(self, *client: str) -> str:
        """An access token of a client, by its id and its secret; by default of the client that always exists."""
        form = {"grant_type": "client_credentials"}
        client_id, secret = client or ("demo", "demo")
        answer = await self.client.post(f"{self.url}/token", data=form, auth=(client_id, secret))
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    async def create(self, **changes: object) -> dict[str, Any]:
        """Create a session of a device that has none; returns the API's answer."""
        answer = await self.client.post(self.sessions_url, json=self.wanted(**changes))
        assert answer.status_code == 201, answer.text
        session: dict[str, Any] = answer.json()
        return session

    def wanted(self, **changes: object) -> dict[str, Any]:
        """A request to create a session; a member that is None is left out."""
        self._phones += 1
        request = {
            "device": {"phoneNumber": f"+34600{self._phones:06d}"},
            "qosProfile": "QOS_E",
            "duration": 60,
            "notificationAuthToken": TOKEN,
            **changes,
        }
        return {name: value for name, value in request.items() if value is not None}

    async def get(self, session_id: str) -> httpx2.Response:
        """The session, or the API's error."""
        return await self.client.get(f"{self.sessions_url}/{session_id}")

    async def delete(self, session_id: str) -> httpx2.Response:
        """End the session as its client."""
        return await self.client.delete(f"{self.sessions_url}/{session_id}")

    async def terminate(self, session_id: str) -> httpx2.Response:
        """End the session as the network."""
        return await self.client.post(f"{self.url}/sessions/{session_id}/terminate")

    async def summary(self) -> dict[str, Any]:
        """The ledger's counts."""
        summary: dict[str, Any] = (await self.client.get(f"{self.url}/ledger/summary")).json()
        return summary

    async def entries(self) -> list[dict[str, Any]]:
        """All entries of the ledger."""
        return await self._pages("ledger", "entries")

    async def lives(self) -> list[dict[str, Any]]:
        """All sessions of the ledger."""
        return await self._pages("ledger/sessions", "sessions")

    async def until_status(self, session_id: str, status: str) -> dict[str, Any]:
        """Wait until the session has a status; returns the session."""

        async def found() -> dict[str, Any] | None:
            session: dict[str, Any] = (await self.get(session_id)).json()
            return session if session.get("qosStatus") == status else None

        return await until(found)

    async def until_gone(self, session_id: str) -> None:
        """Wait until the session can't be read."""

        async def gone() -> bool:
            return (await self.get(session_id)).status_code == 404

        await until(gone)

    async def until_ended(self) -> None:
        """Wait until no session is active, and no post is pending or planned."""

        async def ended() -> bool:
            summary = await self.summary()
            active = summary["statuses"]["REQUESTED"] + summary["statuses"]["AVAILABLE"]
            return not (active or any(summary["posts"].values()))

        await until(ended)

    async def until_quiet(self) -> None:
        """Wait until no post is pending or planned."""

        async def quiet() -> bool:
            return not any((await self.summary())["posts"].values())

        await until(quiet)

    async def _pages(self, path: str, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        start = 1
        while True:
            page = (await self.client.get(f"{self.url}/{path}", params={"from": start, "limit": 500})).json()
            found += page[name]
            if page["next"] == start:
                return found
            start = page["next"]


@contextlib.asynccontextmanager
async def simulated(options: Options) -> AsyncIterator[Simulated]:
    """A simulator that serves, and a client of it."""
    with quiet(), socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        options = options if options.trust else options._replace(trust=_TRUST)
        async with simulating(options, listener), httpx2.AsyncClient(timeout=SECONDS_MAX, verify=_TRUST) as client:
            found = Simulated(f"http://127.0.0.1:{listener.getsockname()[1]}", client)
            client.headers["authorization"] = f"Bearer {await found.token()}"
            yield found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A log that drops the simulator's lines."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    try:
        yield
    finally:
        structlog.reset_defaults()


async def until(condition: Callable[[], Awaitable[T | None]]) -> T:
    """Wait until a condition gives something, and return it."""
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            if found := await condition():
                return found
            await asyncio.sleep(0.01)


def told(received: Sequence[Received]) -> list[tuple[str, str | None]]:
    """Status and reason of each CloudEvent, in the order of arrival."""
    data = [each.tree["data"] for each in received]
    return [(each["qosStatus"], each.get("statusInfo")) for each in data]
