"""Limits on connections and answers on them: a real server on a real socket, with clients that send raw bytes."""

import asyncio
import hashlib
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from io import StringIO
from typing import Any, NamedTuple

import orjson
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.testing import capture_logs

from receiver.core.notification import Notification
from receiver.edge.admission import Admission
from receiver.edge.app import EdgeApp
from receiver.edge.auth import Credentials, StaticToken
from receiver.edge.intake import Intake, Limits
from receiver.edge.issuers import Authenticator
from receiver.process.ports import build_server
from receiver.settings import EdgeSettings, Settings
from receiver.telemetry import Telemetry
from tests.limits import SECONDS_MAX
from tests.nodes import Node, SqliteBackend, until
from tests.samples import SENDER, body, told

TOKEN = "a-token-of-twenty-characters"
GREEDY_TOKEN = "another-token-of-30-characters"
BODY = body(told("A1")[0])
#: Long enough to make and read a request on a busy machine.
LIMIT_SECONDS = 1.0

BODY_BYTES_MAX = 65_536
LIMITS: dict[str, Any] = {
    "header_bytes_max": 2048,
    "header_timeout_seconds": LIMIT_SECONDS,
    "body_timeout_seconds": LIMIT_SECONDS,
    "idle_timeout_seconds": LIMIT_SECONDS,
}
#: For tests without time limits, so that a slow machine changes nothing.
PATIENT: dict[str, Any] = {
    "header_timeout_seconds": SECONDS_MAX,
    "body_timeout_seconds": SECONDS_MAX,
    "idle_timeout_seconds": SECONDS_MAX,
}


class Answer(NamedTuple):
    """One answer, as it was received."""

    status: int
    headers: dict[str, str]
    content: bytes


class Client:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *pieces: bytes, pause_seconds: float = 0) -> None:
        """Send pieces, each before the next. It is no error if the server takes no more."""
        for piece in pieces:
            if self._writer.is_closing():
                return
            with suppress(ConnectionError):
                self._writer.write(piece)
                await asyncio.wait_for(self._writer.drain(), SECONDS_MAX)
            await asyncio.sleep(pause_seconds)

    async def answer(self, *, head: bool = False) -> Answer | None:
        """The next answer, None if the connection was closed instead. An answer to HEAD has no content."""
        async with asyncio.timeout(SECONDS_MAX):
            try:
                text = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            except (asyncio.IncompleteReadError, ConnectionError):
                return None
            first, *lines = text.split("\r\n")[:-2]
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            length = 0 if head else int(headers.get("content-length", 0))
            return Answer(int(first.split()[1]), headers, await self._reader.readexactly(length))

    async def status(self) -> int | None:
        """The status of the next answer, None if there is none."""
        answer = await self.answer()
        return None if answer is None else answer.status

    async def answers(self) -> list[Answer]:
        """All answers until the connection is closed."""
        found = []
        while (answer := await self.answer()) is not None:
            found.append(answer)
        return found

    async def closed(self) -> bool:
        """Whether the connection is closed before any more bytes."""
        async with asyncio.timeout(SECONDS_MAX):
            try:
                return await self._reader.read() == b""
            except ConnectionError:
                return True

    def end(self) -> None:
        """Close it from this side."""
        self._writer.close()

    def end_sending(self) -> None:
        """End the sending side."""
        self._writer.write_eof()

    def reset(self) -> None:
        """Reset the connection."""
        self._writer.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self._writer.transport.abort()

    def put(self, piece: bytes) -> None:
        """Send a piece without the event loop."""
        with socket.socket(fileno=os.dup(self._writer.transport.get_extra_info("socket").fileno())) as plain:
            assert plain.send(piece) == len(piece)


class Served(NamedTuple):
    """A server, its clients, and the node behind it if there is one."""

    port: int
    clients: list[Client]
    node: Node | None
    connections: set[Any]
    """The server's side of them."""

    async def connect(self) -> Client:
        """A new connection."""
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    async def kept(self) -> Sequence[Notification]:
        """All notifications in the inbox; to be asked for once."""
        assert self.node is not None
        return (await self.node.lane.read(1000)).notifications if self.node.lane.lag else []


@asynccontextmanager
async def serving(app: ASGIApp, limits: dict[str, Any], node: Node | None = None) -> AsyncIterator[Served]:
    """Serve an application on a free port, with these limits on its connections."""
    server = build_server(app, Settings(edge=EdgeSettings(**limits)), Telemetry(StringIO()))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Its main loop would only check the time and signals, ten times a second.
        await server.startup([listener])
        clients: list[Client] = []
        try:
            yield Served(listener.getsockname()[1], clients, node, server.server_state.connections)
        finally:
            for client in clients:
                client.end()
            for each in server.servers:
                each.close()
            await until(lambda: not server.server_state.connections and not server.server_state.tasks)


def edge_app(node: Node, telemetry: Telemetry) -> EdgeApp:
    """The public port's application, with one token."""
    tokens = [
        StaticToken(sender, hashlib.sha256(token.encode()).digest())
        for sender, token in ((SENDER, TOKEN), ("greedy", GREEDY_TOKEN))
    ]
    intake = Intake(
        authenticate=Authenticator(Credentials(tokens=tokens), {}),
        # Half of this is less than 1,100 stalled bodies of 1,000 bytes.
        admission=Admission(in_flight_max=4000, in_flight_bytes_max=2_000_000, share=64, share_bytes=BODY_BYTES_MAX),
        inbox=node.inbox,
        telemetry=telemetry,
        limits=Limits(BODY_BYTES_MAX),
    )
    return EdgeApp(intake, "/notifications")


@pytest.fixture
async def strict(node: Node, telemetry: Telemetry) -> AsyncIterator[Served]:
    """The edge with limits of 0.3 s and 2 KiB."""
    async with serving(edge_app(node, telemetry), LIMITS, node) as served:
        yield served


@pytest.fixture
async def patient(node: Node, telemetry: Telemetry) -> AsyncIterator[Served]:
    """The edge with a limit of 2 KiB and very long time limits."""
    async with serving(edge_app(node, telemetry), LIMITS | PATIENT, node) as served:
        yield served


def post(content: bytes = BODY, *lines: str, token: str = TOKEN, framing: str | None = None) -> bytes:
    """A request. `framing` replaces its Content-Length."""
    length = f"Content-Length: {len(content)}" if framing is None else framing
    head = [
        "POST /notifications HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {token}",
        "Content-Type: application/cloudevents+json",
        length,
        *lines,
    ]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + content


def chunked(*chunks: bytes) -> bytes:
    """A chunked body with its end."""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def each_byte(content: bytes) -> list[bytes]:
    """Pieces of one byte."""
    return [content[index : index + 1] for index in range(len(content))]


def assert_refused(answer: Answer | None, *statuses: int) -> None:
    """The answer is CAMARA's error body with one of these statuses, or the connection was closed without one."""
    if answer is None:
        return
    assert answer.status in statuses
    assert answer.headers["content-type"] == "application/json"
    content = orjson.loads(answer.content)
    assert content.keys() == {"status", "code", "message"}
    assert content["status"] == answer.status
    assert content["code"].isupper()


# Time.


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([], None),
        ([b"\r\n"] * 20, None),
        (each_byte(post())[:20], 408),
        (each_byte(b"POST /notifications HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100)[:20], 408),
        ([post()[:60]], 408),
        ([post()[: -len(BODY)], *each_byte(BODY)[:20]], 408),
        ([post()[:-1]], 408),
        ([post(b"", framing="Transfer-Encoding: chunked"), *[b"1\r\nx\r\n"] * 20], 408),
        ([post(b"", framing="Transfer-Encoding: chunked"), *each_byte(b"0" * 30)[:20]], 408),
    ],
    ids=["silence", "blank lines", "slow line", "slow header", "half a head", "slow body", "no end", "chunks", "size"],
)
async def test_a_slow_client_is_dropped(strict: Served, pieces: list[bytes], status: int | None) -> None:
    """A connection that takes longer than its limit is closed, with 408 if a request had begun; nothing is kept."""
    client = await strict.connect()
    began = time.monotonic()
    sending = asyncio.create_task(client.send(*pieces, pause_seconds=0.1))
    answer = await client.answer()
    took_seconds = time.monotonic() - began
    sending.cancel()
    if status is None:
        assert answer is None
    else:
        assert answer is not None
        assert_refused(answer, status)
        assert await client.closed()
    assert took_seconds > 0.8 * LIMIT_SECONDS
    assert not await strict.kept()


async def test_an_idle_connection_is_closed(strict: Served) -> None:
    """Between requests a connection may be silent for its limit; after that it is closed without an answer."""
    client = await strict.connect()
    await client.send(post())
    assert await client.status() == 204
    began = time.monotonic()
    assert await client.closed()
    assert time.monotonic() - began > 0.8 * LIMIT_SECONDS


async def test_the_slow_harm_nobody(node: Node, telemetry: Telemetry) -> None:
    """Beside 200 slow connections every request on a kept connection is answered."""
    async with serving(edge_app(node, telemetry), LIMITS | {"idle_timeout_seconds": SECONDS_MAX}, node) as served:
        slow = [await served.connect() for _ in range(200)]
        for number, client in enumerate(slow):
            await client.send(post()[: 40 + number])
        good = await served.connect()
        for _ in range(15):
            await good.send(post())
            assert await good.status() == 204
            await asyncio.sleep(0.1 * LIMIT_SECONDS)
        for client in slow:
            assert_refused(await client.answer(), 408)
            assert await client.closed()
        assert len(await served.kept()) == 15


@pytest.mark.long
async def test_the_applications_time_is_its_own() -> None:
    """An answer that takes longer than every limit arrives whole, whether it begins late or comes in pieces."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await asyncio.sleep(3 * LIMIT_SECONDS)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"o", "more_body": True})
        await asyncio.sleep(3 * LIMIT_SECONDS)
        await send({"type": "http.response.body", "body": b"k"})

    async with serving(app, LIMITS) as served:
        clients = [await served.connect() for _ in range(2)]
        for client, request in zip(clients, (post(), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), strict=True):
            await client.send(request)
        for client in clients:
            answer = await client.answer()
            assert answer is not None
            assert (answer.status, answer.content) == (200, b"ok")


async def test_who_reads_no_answers_is_dropped() -> None:
    """A client that leaves its answers unread is closed after the limit on silence."""
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": b"x" * 1_000_000, "more_body": True})
        await receive()
        ended.set()

    async with serving(app, LIMITS) as served:
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await asyncio.wait_for(ended.wait(), SECONDS_MAX)


# The head.


HEADER_8_MIB = b"X: " + b"x" * 8 * 1024 * 1024 + b"\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [post(BODY, f"X: {'x' * 2048}")],
        [post(BODY, *(f"X-{number}: {'x' * 10}" for number in range(200)))],
        [post(BODY, *(f"X-{number}: {'x' * 10}" for number in range(200)))[:2100], b"x" * 500],
        [post().replace(b"/notifications", b"/notifications?" + b"x" * 2048)],
        [post()[:100], b"x" * 1000, b"x" * 1000, b"x" * 1000],
        [post(b"")[:-2] + b"X:" + b"x" * 2048],
        each_byte(b"GET / HTTP/1.1\r\nX: " + b"x" * 2200),
        [post()[: -len(BODY) - 2] + HEADER_8_MIB + b"\r\n" + BODY],
        [post()[: -len(BODY) - 2], *[HEADER_8_MIB[:65536]] * 128],
        [post() + post(BODY, f"X: {'x' * 2048}")],
        [post(b"", framing="Transfer-Encoding: chunked") + b"0\r\n", *[b"X: x\r\n"] * 600],
        [post(b"", framing="Transfer-Encoding: chunked") + b"1;", *[b"x" * 500] * 6],
    ],
    ids=[
        "one header",
        "many headers",
        "two pieces",
        "query",
        "four pieces",
        "unfinished",
        "bytes",
        "8 MiB",
        "8 MiB in pieces",
        "second request",
        "trailers",
        "chunk extension",
    ],
)
async def test_a_long_head_is_refused(patient: Served, pieces: list[bytes]) -> None:
    """A head beyond the limit gets 431 or a closed connection, in any number of pieces, and is not kept in memory."""
    client = await patient.connect()
    sending = asyncio.create_task(client.send(*pieces))
    answers = await client.answers()
    sending.cancel()
    for answer in answers:
        if answer.status != 204:
            assert_refused(answer, 431)
    assert len(await patient.kept()) == sum(answer.status == 204 for answer in answers) <= 1


async def test_a_head_may_be_as_long_as_the_limit(patient: Served) -> None:
    """A head below the limit is accepted in one piece and byte by byte, also right behind a long body."""
    padding = LIMITS["header_bytes_max"] - len(post(b"", "X: ")) - 40
    request = post(BODY, f"X: {'x' * padding}")
    long = post(BODY[:-1] + b',"more":"' + b"x" * 30_000 + b'"}')
    for pieces in ([request], each_byte(request), [long + request[:500], request[500:1000], request[1000:]]):
        client = await patient.connect()
        await client.send(*pieces)
        for _ in range(2 if pieces[0].startswith(long) else 1):
            answer = await client.answer()
            assert answer is not None
            assert answer.status == 204


async def test_nothing_after_a_refusal_is_read(patient: Served) -> None:
    """Behind a refused head, in the same piece, no request is accepted."""
    client = await patient.connect()
    await client.send(post(BODY, f"X: {'x' * 4096}") + post())
    assert_refused(await client.answer(), 431)
    assert await client.closed()
    assert not await patient.kept()


async def test_trailers_are_no_headers(patient: Served) -> None:
    """A token in the trailer of a chunked body does not authenticate its request."""
    request = post(b"", framing="Transfer-Encoding: chunked").replace(b"Authorization", b"X-Nothing")
    trailer = f"0\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    client = await patient.connect()
    await client.send(request + chunked(BODY)[: -len(b"0\r\n\r\n")] + trailer)
    assert_refused(await client.answer(), 401)
    assert not await patient.kept()


# The body.


@pytest.mark.parametrize(
    "pieces",
    [
        [post()],
        each_byte(post()),
        [post(chunked(BODY), framing="Transfer-Encoding: chunked")],
        [post(chunked(*each_byte(BODY)), framing="Transfer-Encoding: chunked")],
        each_byte(post(chunked(BODY[:100], BODY[100:]), framing="Transfer-Encoding: chunked")),
        [b"\r\n" + post()],
        [post().replace(b"Host: localhost", b"Host: x\r\nX-Many: a, b")],
        [post().replace(b"POST /n", b"POST http://localhost/n")],
        [post().replace(b"/notifications", b"/%6eotifications/notifications?x=y")],
        [post(BODY, "X-Latin: \xe9\xff")],
        [post(BODY, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAA")],
        each_byte(post(BODY, "Connection: upgrade", "Upgrade: websocket")),
        [post(BODY, "Host: localhost", "Content-Type: application/cloudevents+json", f"authorization: Bearer {TOKEN}")],
        [post().replace(b"POST /n", b"POST //n").replace(b"ns HTTP", b"ns// HTTP")],
        [post(chunked(BODY), "Connection: upgrade", "Upgrade: h2c", framing="Transfer-Encoding: chunked")],
        [post().replace(b"\r\n", b" \t\r\n").replace(b"1.1 \t", b"1.1").replace(b"\r\n \t", b"\r\n")],
    ],
    ids=[
        "whole",
        "bytes",
        "one chunk",
        "many chunks",
        "chunks and bytes",
        "blank line",
        "list",
        "absolute",
        "escaped",
        "latin",
        "Java's client",
        "websocket",
        "doubled headers",
        "slashes",
        "chunks and upgrade",
        "blanks behind",
    ],
)
async def test_what_is_sound_is_kept(patient: Served, pieces: list[bytes]) -> None:
    """A notification that is cut in any way is answered 204 and kept verbatim; the connection goes on."""
    client = await patient.connect()
    for _ in range(2):
        await client.send(*pieces)
        answer = await client.answer()
        assert answer is not None
        assert answer.status == 204
        assert answer.content == b""
        assert "content-length" not in answer.headers
    assert [each.body for each in await patient.kept()] == [BODY, BODY]


async def test_an_upgrade_may_be_slow_too(strict: Served) -> None:
    """A request to upgrade to another protocol has the limits of any request."""
    client = await strict.connect()
    await client.send(post(BODY, "Connection: upgrade", "Upgrade: h2c")[:-1])
    assert_refused(await client.answer(), 408)
    assert await client.closed()


@pytest.mark.parametrize(
    "framing", ["Content-Length: 65537", "Content-Length: 99999999999", f"Content-Length: {2**63}"]
)
async def test_a_declared_body_that_is_too_large_is_not_waited_for(patient: Served, framing: str) -> None:
    """A body that is announced beyond the limit is 413 before any of it came."""
    client = await patient.connect()
    await client.send(post(b"", framing=framing))
    answer = await client.answer()
    assert answer is not None
    assert_refused(answer, 413)


async def test_a_chunked_body_is_too_large_when_it_is(patient: Served) -> None:
    """A chunked body is 413 once it is beyond the limit, and a request behind it is answered."""
    client = await patient.connect()
    request = post(chunked(*[b"x" * 10_000] * 50), framing="Transfer-Encoding: chunked")
    await client.send(request, post())
    for status in (413, 204):
        assert await client.status() == status
    assert len(await patient.kept()) == 1


async def test_more_than_was_declared_is_another_request(patient: Served) -> None:
    """Bytes behind the announced length are no part of the notification: they are refused as a request."""
    client = await patient.connect()
    await client.send(post(BODY + b'{"more": true}', framing=f"Content-Length: {len(BODY)}"))
    answers = await client.answers()
    assert [answer.status for answer in answers] in ([204], [204, 400])
    assert [each.body for each in await patient.kept()] == [BODY]


async def test_a_refused_body_has_a_time_limit_too(strict: Served) -> None:
    """A client that was answered before its body may finish the body within a limit, and gets no second answer."""
    client = await strict.connect()
    await client.send(post(token="wrong")[:-10])
    assert_refused(await client.answer(), 401)
    assert await client.closed()


async def test_a_body_broken_after_the_answer_gets_no_other(patient: Served) -> None:
    """A request that was answered is not answered again when the rest of its body is malformed."""
    client = await patient.connect()
    await client.send(post(b"", token="wrong", framing="Transfer-Encoding: chunked"))
    assert_refused(await client.answer(), 401)
    await client.send(b"no number\r\n")
    assert await client.closed()


async def test_100_continue(patient: Served) -> None:
    """A client that expects 100-continue gets it when the body is to be read."""
    client = await patient.connect()
    request = post(BODY, "Expect: 100-continue")
    for _ in range(2):
        await client.send(request[: -len(BODY)])
        assert await client.status() == 100
        await client.send(BODY)
        assert await client.status() == 204


async def test_100_continue_is_not_said_in_vain(patient: Served) -> None:
    """A client that is refused before the body gets no 100 Continue; its next request is not taken for the body."""
    client = await patient.connect()
    await client.send(post(BODY, "Expect: 100-continue", token="wrong")[: -len(BODY)])
    assert_refused(await client.answer(), 401)
    await client.send(post())
    assert await client.closed()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (post(b"", "Expect: 100-continue", token="wrong", framing="Content-Length: 100000"), 401),
        (b"POST /notifications HTTP/1.1\r\nbroken\r\n\r\n", 400),
        (post(b"", "X-Long: " + "x" * 20_000), 431),
    ],
    ids=["expecting", "broken", "long"],
)
async def test_a_refusal_reaches_a_sender_that_sends_on(patient: Served, request_: bytes, status: int) -> None:
    """A sender that goes on sending, and reads later, reads the refusal, and then the end of the connection."""

    def asked() -> bytes:
        with socket.create_connection(("127.0.0.1", patient.port), SECONDS_MAX) as plain:
            plain.sendall(request_)
            for _ in range(20):
                plain.sendall(b"x" * 1_000)
                time.sleep(0.01)  # a connection that is closed is reset by now
            return b"".join(iter(lambda: plain.recv(65_536), b""))

    answer = await asyncio.to_thread(asked)
    assert answer.startswith(b"HTTP/1.1 %d " % status)


async def test_a_sender_that_never_stops_is_cut_off(patient: Served) -> None:
    """The further bytes of a refused sender are read for a limited time."""
    client = await patient.connect()
    await client.send(b"broken\r\n\r\n")
    async with asyncio.timeout(SECONDS_MAX):
        while patient.connections:
            await client.send(b"x" * 65_536)
    assert await client.status() in {400, None}


# Malformed requests.

_HEAD = "POST /notifications HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + TOKEN + "\r\n"
_LENGTH = f"Content-Length: {len(BODY)}\r\n"


@pytest.mark.parametrize(
    "head",
    [
        _HEAD + _LENGTH + "Transfer-Encoding: chunked\r\n\r\n",
        _HEAD + "Transfer-Encoding: chunked\r\n" + _LENGTH + "\r\n",
        (_HEAD + _LENGTH + "\r\n").replace("\r\n", "\n"),
        (_HEAD + _LENGTH).replace("\r\n", "\n", 1) + "\r\n",
        _HEAD + _LENGTH + "X: a\r\n b\r\n\r\n",
        _HEAD + _LENGTH + "X: a\r\n\tb\r\n\r\n",
        _HEAD + _LENGTH + _LENGTH + "\r\n",
        _HEAD + _LENGTH + "Content-Length: 5\r\n\r\n",
        _HEAD + f"Content-Length: {len(BODY)}, {len(BODY)}\r\n\r\n",
        _HEAD + f"Content-Length: +{len(BODY)}\r\n\r\n",
        _HEAD + f"Content-Length: -{len(BODY)}\r\n\r\n",
        _HEAD + f"Content-Length: 0x{len(BODY):x}\r\n\r\n",
        _HEAD + "Content-Length: 1_0\r\n\r\n",
        _HEAD + "Content-Length: \r\n\r\n",
        _HEAD + f"Content-Length: {'9' * 30}\r\n\r\n",
        _HEAD + f"Content-Length : {len(BODY)}\r\n\r\n",
        _HEAD + "Transfer-Encoding: xchunked\r\n\r\n",
        _HEAD + "Transfer-Encoding: \x0bchunked\r\n\r\n",
        _HEAD + "Transfer-Encoding: chunked, identity\r\n\r\n",
        _HEAD + "Transfer-Encoding: identity\r\n\r\n",
        _HEAD + "Transfer-Encoding : chunked\r\n\r\n",
        _HEAD + "X: a\0b\r\n" + _LENGTH + "\r\n",
        _HEAD + "X\0: a\r\n" + _LENGTH + "\r\n",
        _HEAD + "X y: a\r\n" + _LENGTH + "\r\n",
        _HEAD + ": a\r\n" + _LENGTH + "\r\n",
        _HEAD + "no colon\r\n" + _LENGTH + "\r\n",
        _HEAD.replace("/notifications", "notifications") + _LENGTH + "\r\n",
        _HEAD.replace("/notifications", "*") + _LENGTH + "\r\n",
        _HEAD.replace("/notifications", "//[") + _LENGTH + "\r\n",
        _HEAD.replace("/notifications", "/notific\0ations") + _LENGTH + "\r\n",
        _HEAD.replace("/notifications", "/notific\xe4tions") + _LENGTH + "\r\n",
        _HEAD.replace("/notifications", "/a b") + _LENGTH + "\r\n",
        _HEAD.replace("HTTP/1.1", "HTTP/1.9") + _LENGTH + "\r\n",
        _HEAD.replace("HTTP/1.1", "HTTP/3") + _LENGTH + "\r\n",
        _HEAD.replace("POST", "PoST") + _LENGTH + "\r\n",
        _HEAD.replace("POST", "CONNECT") + _LENGTH + "\r\n",
        _HEAD.replace("POST /notifications", "CONNECT localhost:80") + "Connection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        _HEAD.replace("Host: localhost\r\n", "") + _LENGTH + "\r\n",
        _HEAD + "Host: other\r\n" + _LENGTH + "\r\n",
        _HEAD + "Content-Type: text/json\r\nContent-Type: application/json\r\n" + _LENGTH + "\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "\0" * 100,
        "{}\r\n\r\n",
    ],
)
async def test_malformed_heads(patient: Served, head: str) -> None:
    """A head that two readers could read in two ways gets a clear 4xx or a closed connection, and nothing is kept."""
    content = head.encode("latin-1") + BODY
    for pieces in ([content], each_byte(content)):
        client = await patient.connect()
        await client.send(*pieces)
        assert_refused(await client.answer(), 400, 404, 405, 413)
    # A post to another path with a right token is kept as a dead letter.
    assert {each.origin[:7] for each in await patient.kept()} <= {"beside:"}


@pytest.mark.parametrize(
    "content",
    [
        b"x\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"5\nhello\n0\n\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"fffffffffffffffffffff\r\nhello",
        b"5;\0\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nbad trailer\r\n\r\n",
        b"5\r\nhello\r\n0\r\n: x\r\n\r\n",
    ],
)
async def test_malformed_chunks(patient: Served, content: bytes) -> None:
    """A malformed chunked body gets a clear 4xx or a closed connection, and nothing is kept."""
    request = post(content, framing="Transfer-Encoding: chunked")
    for pieces in ([request], each_byte(request)):
        client = await patient.connect()
        await client.send(*pieces)
        assert_refused(await client.answer(), 400)
        assert await client.closed()
    assert not await patient.kept()


# Pipelined requests.


async def test_pipelined_requests_are_answered_in_order(patient: Served) -> None:
    """Pipelined requests are answered in order, and kept in order."""
    client = await patient.connect()
    posts = [post(body(told(f"A{number}")[0]), f"x-correlator: {number}") for number in range(10)]
    await client.send(b"".join(posts), b"GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    answers = await client.answers()
    assert [answer.status for answer in answers] == [204] * 10 + [404]
    assert [answer.headers.get("x-correlator") for answer in answers[:-1]] == [str(number) for number in range(10)]
    assert [each.correlator for each in await patient.kept()] == [str(number) for number in range(10)]


@pytest.mark.parametrize(
    "behind",
    [
        b"\0",
        b"GET / HTTP/1.1\r\nbad\r\n\r\n",
        post(BODY, f"X: {'x' * 4096}"),
        post(b"no number\r\n", framing="Transfer-Encoding: chunked"),
        post() + post(b"5\r\nhelloX", framing="Transfer-Encoding: chunked"),
    ],
)
async def test_a_refusal_does_not_overtake_an_answer(patient: Served, behind: bytes) -> None:
    """A malformed request behind a valid one, in the same piece, doesn't change the answer to the valid one."""
    client = await patient.connect()
    await client.send(post() + behind)
    answers = await client.answers()
    assert answers[0].status == 204
    kept = behind.startswith(post())
    assert [answer.status for answer in answers[1 : 1 + kept]] == [204] * kept
    for answer in answers[1 + kept :]:
        assert_refused(answer, 400, 431)
    assert len(await patient.kept()) == 1 + kept


@pytest.mark.long
@pytest.mark.parametrize("behind", [post()[:50], post()[:-5], post() + post()[:-5]], ids=["head", "body", "third"])
async def test_a_slow_request_behind_another_does_not_change_its_answer(behind: bytes) -> None:
    """While one request is being answered, the next one is not answered in its place, however slow it is."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await asyncio.sleep(3 * LIMIT_SECONDS)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with serving(app, LIMITS) as served:
        client = await served.connect()
        await client.send(post() + behind)
        answers = await client.answers()
        whole = 1 + behind.startswith(post())
        assert [answer.status for answer in answers[:whole]] == [204] * whole
        for answer in answers[whole:]:
            assert_refused(answer, 408)


async def test_thousands_of_pipelined_requests_are_all_answered(patient: Served) -> None:
    """Any number of pipelined requests are answered in order, and few are in memory."""
    client = await patient.connect()
    protocol: Any = None
    posts = [post(body(told(f"A{number}")[0]), f"x-correlator: {number}") for number in range(300)]
    request = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
    sending = asyncio.create_task(client.send(b"".join(posts), *[request * 2_000] * 2))
    for number in range(300):
        answer = await client.answer()
        assert answer is not None
        assert (answer.status, answer.headers["x-correlator"]) == (204, str(number))
    most = 0
    for _ in range(4_000):
        (protocol,) = patient.connections
        most = max(most, len(protocol.pipeline))
        assert await client.status() == 404
    assert most < 200
    await sending
    kept = await patient.kept()
    assert [each.correlator for each in kept] == [str(number) for number in range(300)]


@pytest.mark.parametrize("count", [1, 2, 40, 200])
@pytest.mark.parametrize("rest", [b"", post()[:60], post()[:-1]])
async def test_who_has_said_all_gets_its_answers(
    backend: SqliteBackend, telemetry: Telemetry, count: int, rest: bytes
) -> None:
    """A client that ends its sending side behind its requests gets every answer, and then it is closed."""
    async with backend.opened() as node, serving(edge_app(node, telemetry), LIMITS | PATIENT, node) as served:
        client = await served.connect()
        with backend.stalled():
            await client.send(b"".join(post(body(told(f"A{number}")[0])) for number in range(count)) + rest)
            client.end_sending()
            await asyncio.sleep(0.1)
        answers = [answer.status for answer in await client.answers()]
        assert answers == [204] * count
        assert len(await served.kept()) == count


async def test_a_stream_ends_with_its_reader() -> None:
    """When a client ends its side during an endless answer, the application hears at once that it left."""
    left = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        if (await receive())["type"] == "http.disconnect":
            left.set()

    async with serving(app, LIMITS | PATIENT) as served:
        client = await served.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await client.status() == 200
        client.end_sending()
        await asyncio.wait_for(left.wait(), SECONDS_MAX)


async def test_who_leaves_without_its_answer_is_told_of(backend: SqliteBackend, telemetry: Telemetry) -> None:
    """When a connection breaks before its answer, the log says so and a metric counts it."""
    with capture_logs() as logs:
        async with backend.opened() as node, serving(edge_app(node, telemetry), LIMITS | PATIENT, node) as served:
            for pieces in ([post()], [post()[:50], post()[50:]]):
                client = await served.connect()
                with backend.stalled():
                    await client.send(*pieces, pause_seconds=0.1)
                    client.reset()
                    await until(lambda: not served.connections)
            await until(lambda: node.lane.lag > 1)
    told_of = [(each["reason"], each["address"]) for each in logs if each["event"] == "connection_ended"]
    assert told_of == [("unanswered", "127.0.0.1")] * 2


# Room.


async def test_the_longest_idle_makes_room(node: Node, telemetry: Telemetry) -> None:
    """A new connection beyond the limit takes the place of the longest idle one; silent ones go first."""
    limits = LIMITS | PATIENT | {"connections_max": 3}
    with capture_logs() as logs:
        async with serving(edge_app(node, telemetry), limits, node) as served:
            first, second = [await served.connect() for _ in range(2)]
            for client in (first, second):
                await client.send(post())
                assert await client.status() == 204
            silent = await served.connect()
            await until(lambda: len(served.connections) == 3)
            third = await served.connect()
            assert await silent.closed()
            await third.send(post())
            assert await third.status() == 204
            await first.send(post())
            assert await first.status() == 204
            fourth = await served.connect()
            assert await second.closed()
            for client in (first, third, fourth):
                await client.send(post())
                assert await client.status() == 204
    assert [each["reason"] for each in logs if each["event"] == "connection_ended"] == ["room_made"] * 2


async def test_slow_ones_make_room(node: Node, telemetry: Telemetry) -> None:
    """Connections in the middle of a head or a body make room too, with 503."""
    limits = LIMITS | PATIENT | {"connections_max": 2}
    async with serving(edge_app(node, telemetry), limits, node) as served:
        slow = []
        for pieces in (post()[:40], post()[:-5]):
            client = await served.connect()
            await client.send(pieces)
            slow.append(client)
            await until(lambda: all(each.is_receiving for each in served.connections))
        for client in slow:
            good = await served.connect()
            answer = await client.answer()
            assert_refused(answer, 503)
            assert answer is not None
            assert int(answer.headers["retry-after"]) > 0
            await good.send(post())
            assert await good.status() == 204


async def test_who_waits_for_an_answer_makes_no_room(backend: SqliteBackend, telemetry: Telemetry) -> None:
    """If every connection has a request that is being answered, a new one is answered 503 and closed."""
    limits = LIMITS | PATIENT | {"connections_max": 3}
    async with backend.opened() as node, serving(edge_app(node, telemetry), limits, node) as served:
        with backend.stalled():
            waiting = [await served.connect() for _ in range(3)]
            for client, pieces in zip(waiting, ([post()], [post()[:50], post()[50:]], [post(), post()]), strict=True):
                await client.send(*pieces, pause_seconds=0.05)
            for _ in range(3):
                answer = await (await served.connect()).answer()
                assert_refused(answer, 503)
                assert answer is None or int(answer.headers["retry-after"]) > 0
        for client in waiting:
            assert await client.status() == 204


@pytest.mark.parametrize(("trusted", "left"), [([], 2), (["127.0.0.0/8"], 5)])
async def test_an_address_has_a_share(node: Node, telemetry: Telemetry, trusted: list[str], left: int) -> None:
    """Beyond its share the connections of one address make room for each other, unless it is a trusted proxy's."""
    limits = LIMITS | PATIENT | {"connections_per_address_max": 2, "trusted_proxies": trusted}
    async with serving(edge_app(node, telemetry), limits, node) as served:
        clients = [await served.connect() for _ in range(5)]
        await until(lambda: len(served.connections) == left)
        with socket.create_connection(("127.0.0.1", served.port), source_address=("127.0.0.2", 0)):
            await until(lambda: len(served.connections) == left + 1)
        await clients[-1].send(post())
        assert await clients[-1].status() == 204


async def test_silent_strangers_shut_nobody_out(node: Node, telemetry: Telemetry) -> None:
    """With 500 silent connections and room for 50, every new connection is answered."""
    limits = LIMITS | PATIENT | {"connections_max": 50}
    async with serving(edge_app(node, telemetry), limits, node) as served:
        kept_alive = await served.connect()
        for number in range(500):
            stranger = await served.connect()
            if number % 3:
                await stranger.send(b"GET / HTTP/1.1\r\nHost"[: number % 20])
            if number % 10 == 0:
                for good in (kept_alive, await served.connect()):
                    await good.send(post())
                    assert await good.status() == 204
        assert len(served.connections) <= 60


@pytest.mark.long
async def test_stalled_bodies_harm_no_other_sender(node: Node, telemetry: Telemetry) -> None:
    """With 1,100 stalled chunked posts of one sender, that sender gets 429 beyond its half, and others are answered."""
    limits = LIMITS | PATIENT | {"connections_max": 2000, "connections_per_address_max": 2000}
    async with serving(edge_app(node, telemetry), limits, node) as served:
        head = post(b"", token=GREEDY_TOKEN, framing="Transfer-Encoding: chunked")
        for _ in range(1100):
            await (await served.connect()).send(head + b"400\r\n" + b"x" * 1000)
        statuses = []
        for number in range(50):
            good = await served.connect()
            await good.send(post(), post()[:70], post()[70:])
            statuses += [await good.status(), await good.status()]
            if number == 0:
                await served.clients[1099].send(b"x")
                assert await served.clients[1099].status() == 429
        assert statuses == [204] * 100


@pytest.mark.long
async def test_a_process_that_stood_still_reads_first(node: Node, telemetry: Telemetry) -> None:
    """Bytes that came while the loop stood still for longer than all limits are read and answered, not timed out."""
    async with serving(edge_app(node, telemetry), LIMITS, node) as served:
        idle, slow = await served.connect(), await served.connect()
        await slow.send(post()[:50])
        await idle.send(post())
        assert await idle.status() == 204
        # Into the sockets at once, before the loop stands still.
        idle.put(post())
        slow.put(post()[50:])
        time.sleep(3 * LIMIT_SECONDS)  # noqa: ASYNC251  # the subject of the test
        assert await idle.status() == 204
        assert await slow.status() == 204


@pytest.mark.parametrize("host", [b"Host: localhost\r\n", b""])
async def test_http_1_0(patient: Served, host: bytes) -> None:
    """An HTTP/1.0 request without a host is answered, and its connection closed."""
    client = await patient.connect()
    await client.send(post().replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Host: localhost\r\n", host))
    assert [answer.status for answer in await client.answers()] == [204]
    assert len(await patient.kept()) == 1


async def test_head(patient: Served) -> None:
    """HEAD is answered without content, and the connection goes on."""
    client = await patient.connect()
    for path, status in ((b"/notifications", 204), (b"/nothing", 404), (b"/notifications", 204)):
        await client.send(b"HEAD " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = await client.answer(head=True)
        assert answer is not None
        assert answer.status == status


async def test_connection_close(patient: Served) -> None:
    """A client that asks for the connection to be closed gets its answer first."""
    client = await patient.connect()
    await client.send(post(BODY, "Connection: close"))
    (answer,) = await client.answers()
    assert (answer.status, answer.headers["connection"]) == (204, "close")


async def test_who_goes_away_in_the_middle_leaves_nothing(patient: Served) -> None:
    """A sender that disconnects before its body has arrived is not kept, and does no harm."""
    client = await patient.connect()
    await client.send(post()[:-1])
    client.end()
    other = await patient.connect()
    await other.send(post())
    assert await other.status() == 204
    assert len(await patient.kept()) == 1
