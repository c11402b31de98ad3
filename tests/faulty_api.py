"""A QoD API whose answers, right or wrong, are scripted by a test, and its authorization server on the same port.

It reads and writes HTTP on a bare socket, so an answer can be wrong in ways that no server library allows.
"""

import asyncio
import contextlib
import gzip
import json
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from receiver.settings import ApiSettings

SESSION_ID = "3f2b8c1e-0d5a-4b7e-9c64-1a2b3c4d5e6f"
SESSION = {"sessionId": SESSION_ID, "qosStatus": "REQUESTED", "qosProfile": "QOS_E", "duration": 60}


class Asked(NamedTuple):
    """A request as it was received."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


#: Writes an answer, or a part of one; the connection is closed behind it.
Reply = Callable[[asyncio.StreamWriter], Awaitable[None]]


def answer(status: int, told: object = None, **headers: str) -> Reply:
    """A whole answer. `told` is its JSON, or bytes in place of JSON. `retry_after` is a header."""
    content = told if isinstance(told, bytes) else b"" if told is None else json.dumps(told).encode()
    return _written(_head(status, len(content), headers) + content)


def error(status: int, code: str, message: str, **headers: str) -> Reply:
    """CAMARA's ErrorInfo."""
    return answer(status, {"status": status, "code": code, "message": message}, **headers)


def encoded(status: int, told: object, encoding: str, content: bytes | None = None, **headers: str) -> Reply:
    """An answer with a content coding, whatever was asked for. `content` is sent in place of the coded JSON."""
    text = json.dumps(told).encode()
    if content is None:
        content = zlib.compress(text) if encoding == "deflate" else gzip.compress(text)
    return answer(status, content, content_encoding=encoding, **headers)


def cut(status: int, told: object) -> Reply:
    """An answer that breaks off in its middle."""
    content = json.dumps(told).encode()
    return _written(_head(status, len(content), {}) + content[: len(content) // 2])


def hung_up() -> Reply:
    """No answer: the connection is closed."""
    return _written(b"")


def garbage() -> Reply:
    """Bytes that are not HTTP."""
    return _written(b"\x16\x03\x01 no HTTP\r\n\r\n")


def huge(status: int) -> Reply:
    """An answer without an end."""

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {status} -\r\nconnection: close\r\n\r\n[".encode())
        while True:
            writer.write(b" " * 1024 * 1024)
            await writer.drain()

    return write


def silent() -> Reply:
    """No byte until the client gives up."""

    async def wait(_: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    return wait


def trickling() -> Reply:
    """An answer sent byte by byte, so slowly that its end never arrives."""

    async def write(writer: asyncio.StreamWriter) -> None:
        for byte in _head(200, 10_000, {}) + b" " * 10_000:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.02)

    return write


class FaultyApi:
    """Answers each request with the next of `replies`, and all further ones with the last. Tokens are numbered from 1.

    `routes` has constant answers by method and path, such as `GET /v1/qod/sessions`.
    """

    def __init__(self) -> None:
        self.replies: list[Reply] = [answer(200, SESSION)]
        self.asked: list[Asked] = []
        self.routes: dict[str, Reply] = {}
        self.tokens_asked: list[Asked] = []
        self.grant: Callable[[Asked], Reply] | None = None  # in place of a token
        self.tokens = 0
        self.token_reply: Reply | None = None
        self.token_life_seconds = 3_600.0
        self.url = ""
        self._serving: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def listening(self, port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator["FaultyApi"]:
        """Listen on this port, or on a free one."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", port, ssl=tls, limit=1024 * 1024)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    def settings(self, **changes: Any) -> ApiSettings:  # noqa: ANN401  # any setting's type
        """Settings of a client of this API."""
        api = {
            "base_url": f"{self.url}/v1",
            "token_url": f"{self.url}/token",
            "client_id": "demo",
            "client_secret": "the-secret-of-the-client",
            "sender": "operator",
            "timeout_seconds": 30,
        }
        return ApiSettings(**{**api, **changes})

    def script(self, *replies: Reply) -> None:
        """Replace the scripted answers from now on."""
        self.replies = list(replies)

    def posts(self) -> Sequence[Asked]:
        """The requests to create a session."""
        return [each for each in self.asked if each.method == "POST"]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = await _request(reader)
            await self._reply(asked)(writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _reply(self, asked: Asked) -> Reply:
        if asked.path == "/token":
            self.tokens += 1
            self.tokens_asked.append(asked)
            if self.grant is not None:
                return self.grant(asked)
            token = {"access_token": f"token-{self.tokens}", "expires_in": self.token_life_seconds}
            return self.token_reply or answer(200, token)
        self.asked.append(asked)
        if (always := self.routes.get(f"{asked.method} {asked.path}")) is not None:
            return always
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


async def _request(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    request_line, *lines = head.rstrip().split("\r\n")
    headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)}
    method, path, _ = request_line.split(" ")
    return Asked(method, path, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


def _head(status: int, length: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} -", "content-type: application/json", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {text}" for name, text in headers.items()]
    lines += [] if status == 204 else [f"content-length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


def _written(content: bytes) -> Reply:
    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(content)

    return write
