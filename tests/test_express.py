"""The fast path through the edge: which requests take it, and that its answers are the same."""

import asyncio
import gzip
import re
from collections.abc import AsyncIterator

import pytest

from receiver.core.notification import Notification
from receiver.telemetry import Telemetry
from tests.limits import SECONDS_MAX
from tests.nodes import Node, SqliteBackend
from tests.samples import TYPE, bare, body, told
from tests.test_connection import BODY, LIMITS, PATIENT, Answer, Served, chunked, edge_app, post, serving

OTHER = body(told("U2:N", session_id="another")[0])
DATA = b'{"sessionId": "s-1", "qosStatus": "UNAVAILABLE"}'
UNKNOWN = body(told("A1")[0], type="org.camaraproject.qos-booking.v0.status-changed")


def went_short(served: Served) -> bool:
    """Whether the requests on all connections took the fast path: uvicorn keeps a cycle for one that it served."""
    return bool(served.connections) and all(each.cycle is None for each in served.connections)


@pytest.fixture
async def served(node: Node, telemetry: Telemetry) -> AsyncIterator[Served]:
    """A server of the edge."""
    async with serving(edge_app(node, telemetry), LIMITS | PATIENT, node) as found:
        yield found


SHORT = {
    "a notification": post(),
    "another kind of type": post(BODY, "X-More: 1"),
    "its own correlator": post(BODY, "X-Correlator: abc-1"),
    "a bad correlator": post(BODY, "X-Correlator: a b"),
    "a trace": post(BODY, "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    "an unknown type": post(UNKNOWN),
    "a time that is none": post(body(told("A1")[0], time="noon")),
    "a member twice": post(BODY[:-1] + b', "type": "%b"}' % TYPE.encode()),
    "an old dialect": post(bare()).replace(b"POST /notifications ", b"POST /notifications/notifications "),
    "keep-alive": post(BODY, "Connection: keep-alive"),
    "many blank lines": post(BODY[:-1] + b"\r\n\r\n" * 1_000 + b"}"),
    "a wrong token": post(token="wrong-token-of-twenty-characters"),
    "no notification": post(b"{"),
    "an empty body": post(b""),
    "two authorizations": post(BODY, "Authorization: Bearer x"),
    "a text": post().replace(b"application/cloudevents+json", b"text/plain"),
    "no text": post(b"<event/>").replace(b"application/cloudevents+json", b"text/xml"),
    "a batch": post(b"[" + BODY + b"," + OTHER + b"]"),
    "no batch": post(b"[" + BODY + b"," + OTHER),
    "gzip": post(gzip.compress(BODY, mtime=0), "Content-Encoding: gzip"),
    "gzip that is not told": post(gzip.compress(BODY, mtime=0)),
    "a coding that is none": post(BODY, "Content-Encoding: gzip"),
    "an unknown coding": post(b"\x0b\x02\x80", "Content-Encoding: br"),
    "binary mode": post(DATA, "ce-specversion: 1.0", f"ce-type: {TYPE}", "ce-id: e-1", "ce-source: /s"),
    "a byte order mark": post(b"\xef\xbb\xbf" + BODY),
}
LONG = {
    "too large": post(BODY[:-1] + b" " * 70_000 + b"}"),
    "chunks": post(chunked(BODY), framing="Transfer-Encoding: chunked"),
    "connection: close": post(BODY, "Connection: close"),
    "an upgrade": post(BODY, "Connection: Upgrade", "Upgrade: h2c"),
    "1.0": post().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "another method": post().replace(b"POST", b"PUT"),
    "another path": post().replace(b"/notifications", b"/nowhere"),
    "a query": post().replace(b"/notifications", b"/notifications?a=b"),
}


@pytest.mark.parametrize("request_", [*SHORT.values(), *LONG.values()], ids=[*SHORT, *LONG])
async def test_nobody_can_tell_the_way(served: Served, request_: bytes) -> None:
    """A request in one piece is answered and kept like one in two, and so is its repetition."""
    answers: list[Answer | None] = []
    for pieces in ((request_,), (request_,), (request_[:-1], request_[-1:])):
        client = await served.connect()
        await client.send(*pieces, pause_seconds=0.05)
        answers.append(await client.answer())
    made = re.compile(r"^[0-9a-f]{12}-[0-9a-f]+$")  # a correlator of ours
    for answer in answers:
        assert answer is not None
        answer.headers["x-correlator"] = made.sub("made", answer.headers.get("x-correlator", ""))
    assert answers[0] == answers[1] == answers[2]
    kept = [each._replace(received_micros=0, correlator=made.sub("", each.correlator)) for each in await served.kept()]
    third = len(kept) // 3
    assert kept[:third] == kept[third : 2 * third] == kept[2 * third :]


@pytest.mark.parametrize(
    ("request_", "count"), [(each, 1) for each in SHORT.values()] + [(each, 0) for each in LONG.values()]
)
async def test_what_goes_the_short_way(served: Served, request_: bytes, count: int) -> None:
    """Exactly the requests to our paths that come in one piece take the fast path, whatever their answer."""
    client = await served.connect()
    await client.send(request_)
    await client.answer()
    assert went_short(served) == count


async def test_one_after_the_other(served: Served) -> None:
    """On a kept connection every request has its answer, whichever path the one before took."""
    client = await served.connect()
    statuses = []
    requests = [post(), post(b"{"), post(OTHER), post(token="wrong-token-of-twenty-characters"), post()] * 3
    for number, request in enumerate(requests):
        await client.send(*((request,) if number % 2 else (request[:50], request[50:])), pause_seconds=0.01)
        statuses.append(await client.status())
    assert statuses == [204, 400, 204, 401, 204] * 3


@pytest.mark.parametrize("behind", [post(OTHER), post(b"{"), post(OTHER)[:90], post(OTHER) * 3])
async def test_what_comes_before_the_answer_waits_for_it(
    backend: SqliteBackend, telemetry: Telemetry, behind: bytes
) -> None:
    """A sender that doesn't wait for answers gets all of them, in order."""
    async with backend.opened() as node, serving(edge_app(node, telemetry), LIMITS | PATIENT, node) as served:
        client = await served.connect()
        with backend.stalled():
            await client.send(post(), behind, pause_seconds=0.1)
        if not behind.endswith(b"}"):
            await client.send(post(OTHER)[90:])
        assert await client.status() == 204
        for _ in range(max(1, behind.count(b"POST"))):
            assert await client.status() == (400 if behind.endswith(b"{") else 204)


async def test_what_cannot_be_kept_is_503(backend: SqliteBackend, telemetry: Telemetry) -> None:
    """A notification on the fast path that was not kept is 503 with CAMARA's body, and the connection goes on."""
    async with (
        backend.opened(append_timeout_seconds=0.2) as node,
        serving(edge_app(node, telemetry), LIMITS | PATIENT, node) as served,
    ):
        client = await served.connect()
        with backend.stalled():
            await client.send(post())
            answer = await client.answer()
        assert went_short(served)
        assert answer is not None
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        assert b'"code":"UNAVAILABLE"' in answer.content
        async with asyncio.timeout(SECONDS_MAX):
            status = None
            while status != 204:
                await client.send(post(OTHER))
                status = await client.status()


async def test_a_sender_that_goes_away_is_kept(backend: SqliteBackend, telemetry: Telemetry) -> None:
    """An accepted notification is kept although its sender did not wait for the answer."""
    async with backend.opened() as node, serving(edge_app(node, telemetry), LIMITS | PATIENT, node) as served:
        client = await served.connect()
        with backend.stalled():
            await client.send(post())
            await asyncio.sleep(0.1)
            client.end()
            await asyncio.sleep(0.1)
        kept: list[Notification] = []
        async with asyncio.timeout(SECONDS_MAX):
            while not kept:
                kept += await served.kept()
                await asyncio.sleep(0.01)
        assert [each.body for each in kept] == [BODY]
