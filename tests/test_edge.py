"""The edge as an ASGI application, over a real inbox: requests, answers, and what is kept."""

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Sequence
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jwt
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message
from structlog.testing import capture_logs

from receiver.core.notification import Notification
from receiver.core.router import Router
from receiver.core.session import Verdict
from receiver.edge.admission import Admission
from receiver.edge.app import EdgeApp
from receiver.edge.auth import Credentials, Issuer, StaticToken
from receiver.edge.intake import Intake, Limits
from receiver.edge.issuers import Authenticator, KeySource
from receiver.operations import LocalOperations
from receiver.telemetry import Telemetry
from tests.nodes import Node, SqliteBackend, everything, route, until
from tests.samples import SENDER, SESSION_ID, bare, body, told

TOKEN = "a-token/of+twenty=characters"
BEARER = f"Bearer {TOKEN}"
BODY = body(told("A1")[0])
UNKNOWN = body(told("A1")[0]._replace(type="org.camaraproject.device-roaming.v0.roaming-status"))
BODY_BYTES_MAX = 4096
IN_FLIGHT_MAX = 4
IN_FLIGHT_BYTES_MAX = 3 * BODY_BYTES_MAX
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ISSUER = "https://issuer.example"

NOTHING: list[bytes] = []


class Answer(NamedTuple):
    """The application's answer, and how often it asked for a piece of the body."""

    status: int
    headers: dict[str, str]
    content: bytes
    reads: int

    @property
    def code(self) -> str:
        """The code of CAMARA's error body; empty if there is none."""
        return str(orjson.loads(self.content)["code"]) if self.content else ""


class Request:
    """One request to an application. Its body comes in pieces; the last ones may be withheld."""

    def __init__(
        self,
        *pieces: bytes,
        method: str = "POST",
        path: str = "/notifications",
        query: str = "",
        http_version: str = "1.1",
        more: Sequence[tuple[str, str]] = (),
        **headers: str | None,
    ) -> None:
        known: dict[str, str | None] = {
            "host": "localhost",
            "authorization": BEARER,
            "content_type": "application/cloudevents+json",
            "content_length": str(sum(map(len, pieces))),
        }
        named = [(name.replace("_", "-"), value) for name, value in (known | headers).items() if value is not None]
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": http_version,
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in [*named, *more]],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        self.pieces = list(pieces)
        self.reads = 0
        #: Once it is set, the rest of the body comes, or the sender is gone.
        self.on = asyncio.Event()
        self.on.set()
        self.goes_away = False

    async def receive(self) -> Message:
        """See ASGI."""
        self.reads += 1
        await self.on.wait()
        if self.reads <= len(self.pieces):
            last = self.reads == len(self.pieces) and not self.goes_away
            return {"type": "http.request", "body": self.pieces[self.reads - 1], "more_body": not last}
        return {"type": "http.disconnect"}


class Door(NamedTuple):
    """An edge, the inbox behind it, and its metrics and log."""

    app: EdgeApp
    node: Node
    telemetry: Telemetry
    admission: Admission

    async def ask(self, request: Request) -> Answer | None:
        """The answer to a request, None if there was none."""
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        await self.app(request.scope, request.receive, send)
        if not sent:
            return None
        start, *rest = sent
        assert [message["type"] for message in sent] == ["http.response.start"] + ["http.response.body"] * len(rest)
        assert not rest[-1].get("more_body")
        headers = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
        assert len(headers) == len(start["headers"])
        content = b"".join(message["body"] for message in rest)
        assert_documented(start["status"], headers, content)
        return Answer(start["status"], headers, content, request.reads)

    async def answer(self, *pieces: bytes, **what: Any) -> Answer:  # noqa: ANN401  # Request's arguments
        """The answer to a request, which must get one."""
        answer = await self.ask(Request(*pieces or (BODY,), **what))
        assert answer is not None
        return answer

    async def kept(self) -> Sequence[Notification]:
        """The notifications kept since the last call."""
        lane = self.node.lane
        if not lane.lag:
            return []
        batch = await lane.read(1000)
        await lane.commit(batch, [], {}, batch.clock_micros)
        return batch.notifications

    def outcomes(self) -> dict[tuple[str, str], float]:
        """The number of requests by outcome and sender, as on /metrics."""
        self.telemetry.flush()
        return {
            (sample.labels["outcome"], sample.labels["sender"]): sample.value
            for family in text_string_to_metric_families(generate_latest(self.telemetry.registry).decode())
            for sample in family.samples
            if sample.name == "qod_receiver_http_requests_total"
        }

    async def assert_all_given_back(self) -> None:
        """Nothing is in flight any more, and requests get in."""
        assert self.admission.in_flight == (0, 0)
        answers = await asyncio.gather(*[self.ask(Request(BODY)) for _ in range(IN_FLIGHT_MAX // 2)])
        assert [answer and answer.status for answer in answers] == [204] * len(answers)


#: Every possible answer: its status, its codes, and its headers.
DOCUMENTED = {
    204: ({""}, set()),
    400: ({"INVALID_ARGUMENT"}, set()),
    401: ({"UNAUTHENTICATED"}, {"www-authenticate"}),
    403: ({"PERMISSION_DENIED"}, set()),
    404: ({"NOT_FOUND"}, set()),
    405: ({"METHOD_NOT_ALLOWED"}, {"allow"}),
    413: ({"PAYLOAD_TOO_LARGE"}, set()),
    415: ({"UNSUPPORTED_MEDIA_TYPE"}, {"accept-encoding"}),
    429: ({"TOO_MANY_REQUESTS"}, {"retry-after"}),
    503: ({"UNAVAILABLE"}, {"retry-after"}),
}


def assert_documented(status: int, headers: dict[str, str], content: bytes) -> None:
    """The answer is a documented one, with CAMARA's error body if it is an error."""
    codes, wanted = DOCUMENTED[status]
    assert wanted <= headers.keys()
    if "retry-after" in wanted:
        assert int(headers["retry-after"]) > 0
    if status == 204:
        assert content == b""
        return
    error = orjson.loads(content)
    assert error.keys() == {"status", "code", "message"}
    assert error["status"] == status
    assert error["code"] in codes
    assert 0 < len(error["message"]) <= 512
    assert headers["content-type"] == "application/json"
    assert headers["content-length"] == str(len(content))


def door(
    node: Node,
    telemetry: Telemetry,
    *,
    path: str = "/notifications",
    query_tokens: bool = False,
    anonymous: bool = False,
    rate_per_second: float = 0,
) -> Door:
    """An edge with one token, small limits, and an issuer whose keys are not available."""
    credentials = Credentials(
        tokens=[
            StaticToken(SENDER, hashlib.sha256(TOKEN.encode()).digest()),
            StaticToken("old", hashlib.sha256(b"expired").digest(), not_after=1),
        ],
        issuers=[Issuer(ISSUER, "us", ["HS256"])],
        anonymous=anonymous,
    )
    # Port 1 refuses connections.
    keys = KeySource("http://127.0.0.1:1/", refresh_min_seconds=30, refresh_max_seconds=3600, timeout_seconds=1)
    admission = Admission(
        in_flight_max=IN_FLIGHT_MAX,
        in_flight_bytes_max=IN_FLIGHT_BYTES_MAX,
        rate_per_second=rate_per_second,
        rate_burst=2,
    )
    intake = Intake(
        authenticate=Authenticator(credentials, {ISSUER: keys}),
        admission=admission,
        inbox=node.inbox,
        telemetry=telemetry,
        limits=Limits(BODY_BYTES_MAX, query_tokens, [b"x-qod-token"], [ip_network("127.0.0.1/32")]),
    )
    return Door(EdgeApp(intake, path), node, telemetry, admission)


@pytest.fixture
async def edge(node: Node, telemetry: Telemetry) -> Door:
    """An edge over an empty inbox."""
    return door(node, telemetry)


def signed(claims: dict[str, object], key: str) -> str:
    """The value of Authorization with a JWT of the issuer whose keys are not available."""
    return "Bearer " + jwt.encode(
        {"iss": ISSUER, "aud": "us", "exp": time.time() + 60} | claims, key, headers={"kid": "k"}
    )


KEY = "a key that nobody can fetch, of 32 bytes and more"
LARGE = BODY[:-1] + b',"more":"' + b"x" * BODY_BYTES_MAX + b'"}'
CHUNKED: dict[str, Any] = {"content_length": None, "transfer_encoding": "chunked"}


# Each answer.


@pytest.mark.parametrize(
    ("request_", "status", "outcome", "kept"),
    [
        (partial(Request, BODY), 204, "kept", [BODY]),
        (partial(Request, BODY[:50], BODY[50:]), 204, "kept", [BODY]),
        (partial(Request, BODY[:50], b"", BODY[50:], b""), 204, "kept", [BODY]),
        (partial(Request, BODY, **CHUNKED), 204, "kept", [BODY]),
        (partial(Request, bare(), path="/notifications/notifications"), 204, "kept", [bare()]),
        (partial(Request, UNKNOWN), 204, "unrecognized", [UNKNOWN]),
        (partial(Request, b"{"), 400, "malformed", [b"{"]),
        (partial(Request, b""), 400, "malformed", [b""]),
        (partial(Request, b"\xff" * 10), 400, "malformed", [b"\xff" * 10]),
        (partial(Request, b"[" * 2000 + b"]" * 2000), 400, "malformed", [b"[" * 2000 + b"]" * 2000]),
        (partial(Request, BODY, host=None), 400, "bad_request", NOTHING),
        (partial(Request, BODY, more=[("host", "localhost")]), 204, "kept", [BODY]),
        (partial(Request, BODY, more=[("host", "localhost \t")]), 204, "kept", [BODY]),
        (partial(Request, BODY, more=[("host", "other")]), 400, "bad_request", NOTHING),
        (partial(Request, BODY, more=[("authorization", BEARER)]), 204, "kept", [BODY]),
        (partial(Request, BODY, more=[("authorization", "Basic eDp5")]), 204, "kept", [BODY]),
        (partial(Request, BODY, authorization="Basic eDp5", more=[("authorization", BEARER)]), 204, "kept", [BODY]),
        (partial(Request, BODY, more=[("content-type", "application/json")]), 400, "bad_request", NOTHING),
        (partial(Request, BODY, more=[("content-type", "application/cloudevents+json")] * 2), 204, "kept", [BODY]),
        (partial(Request, BODY, more=[("x-other", "a"), ("x-other", "b")]), 204, "kept", [BODY]),
        (partial(Request, BODY, host=None, http_version="1.0"), 204, "kept", [BODY]),
        (partial(Request, BODY, host=None, http_version="2"), 400, "bad_request", NOTHING),
        (partial(Request, BODY, authorization=f"{BEARER}, {BEARER}"), 204, "kept", [BODY]),
        (partial(Request, BODY, authorization="Bearer gateways", x_qod_token=BEARER), 204, "kept", [BODY]),
        (partial(Request, BODY, authorization=None, x_qod_token=TOKEN), 204, "kept", [BODY]),
        (partial(Request, BODY, authorization="Bearer gateways", x_qod_token="wrong"), 401, "unauthenticated", NOTHING),
        (partial(Request, BODY, authorization=None), 401, "unauthenticated", NOTHING),
        (partial(Request, BODY, authorization=""), 401, "unauthenticated", NOTHING),
        (partial(Request, BODY, authorization=TOKEN), 204, "kept", [BODY]),
        (partial(Request, BODY, authorization=TOKEN[:-1]), 401, "unauthenticated", NOTHING),
        (partial(Request, BODY, authorization=BEARER[:-1]), 401, "unauthenticated", NOTHING),
        (partial(Request, BODY, authorization="Bearer expired"), 401, "unauthenticated", NOTHING),
        (partial(Request, BODY, authorization=f"Basic {TOKEN}"), 204, "kept", [BODY]),
        (partial(Request, BODY, authorization=f"{BEARER}\xe9"), 401, "unauthenticated", NOTHING),
        (partial(Request, BODY, authorization="\xff\xfe"), 401, "unauthenticated", NOTHING),
        (partial(Request, BODY, authorization="Bearer " + "x" * 10_000), 401, "unauthenticated", NOTHING),
        (partial(Request, BODY, authorization="Bearer a.b.c"), 401, "unauthenticated", NOTHING),
        (partial(Request, BODY, content_type="text/plain"), 204, "kept", [BODY]),
        (partial(Request, b"<event/>", content_type="text/xml"), 415, "unsupported", [b"<event/>"]),
        (partial(Request, LARGE), 413, "too_large", NOTHING),
        (partial(Request, LARGE, content_length="9" * 4000), 413, "too_large", NOTHING),
        (partial(Request, LARGE, **CHUNKED), 413, "too_large", NOTHING),
        (partial(Request, LARGE[:2000], LARGE[2000:], **CHUNKED), 413, "too_large", NOTHING),
        (partial(Request, BODY, content_length=str(BODY_BYTES_MAX + 1)), 413, "too_large", NOTHING),
    ],
)
async def test_answers(edge: Door, request_: partial[Request], status: int, outcome: str, kept: list[bytes]) -> None:
    """Each request has its answer and its outcome, and a notification to be kept is kept verbatim."""
    answer = await edge.ask(request_())
    assert answer is not None
    assert answer.status == status
    assert [each.body for each in await edge.kept()] == kept
    ((told_outcome, sender), count) = next(iter(edge.outcomes().items()))
    assert (told_outcome, count) == (outcome, 1)
    # An expired token still names its sender.
    expired = "expired" in (request_.keywords.get("authorization") or "")
    assert sender == ("old" if expired else "" if status == 401 or outcome == "bad_request" else SENDER)
    assert len(edge.outcomes()) == 1
    assert re.fullmatch(r"[\w-]+", answer.headers["x-correlator"])
    assert TOKEN.encode() not in answer.content
    await edge.assert_all_given_back()


async def test_a_body_may_be_as_large_as_the_limit(edge: Door) -> None:
    """A body of the greatest length is kept, with its length announced or chunked."""
    content = BODY[:-1] + b',"more":"' + b"x" * (BODY_BYTES_MAX - len(BODY) - 10) + b'"}'
    assert len(content) == BODY_BYTES_MAX
    assert (await edge.answer(content)).status == 204
    assert (await edge.answer(content, **CHUNKED)).status == 204
    assert [each.body for each in await edge.kept()] == [content, content]


@pytest.mark.parametrize("behind", ["", " ", "\t", " \t "])
async def test_a_notification_is_kept_with_what_the_edge_knows(edge: Door, behind: str) -> None:
    """Key, sender, time of receipt, content type, correlator and traceparent are kept beside the body, without trailing
    blanks.
    """
    before_micros = time.time_ns() // 1000
    what = {"content_type": "application/json; charset=UTF-8", "x_correlator": "c-1", "traceparent": TRACEPARENT}
    assert (await edge.answer(**{name: value + behind for name, value in what.items()})).status == 204
    (kept,) = await edge.kept()
    assert before_micros <= kept.received_micros <= time.time_ns() // 1000
    assert kept == Notification(
        BODY, SESSION_ID, SENDER, kept.received_micros, what["content_type"], "c-1", TRACEPARENT
    )


@pytest.mark.parametrize(("content", "key"), [(b"{", SENDER), (UNKNOWN, SESSION_ID), (bare("s-1"), "s-1")])
async def test_the_key_is_the_session_where_there_is_one(edge: Door, content: bytes, key: str) -> None:
    """A body that names no session is kept under its sender."""
    await edge.answer(content)
    assert [each.key for each in await edge.kept()] == [key]


async def test_a_token_that_names_no_sender_is_forbidden(node: Node, telemetry: Telemetry) -> None:
    """A valid token whose sender has no usable name is 403."""
    credentials = Credentials(issuers=[Issuer(ISSUER, "us", ["HS256"])])
    credentials.replace_keys(ISSUER, {"k": KEY})
    admission = Admission(in_flight_max=1, in_flight_bytes_max=BODY_BYTES_MAX, share_bytes=BODY_BYTES_MAX)
    intake = Intake(
        authenticate=Authenticator(credentials, {}),
        admission=admission,
        inbox=node.inbox,
        telemetry=telemetry,
        limits=Limits(BODY_BYTES_MAX),
    )
    forbidding = Door(EdgeApp(intake, "/notifications"), node, telemetry, admission)
    assert (await forbidding.answer(authorization=signed({"sub": "no name"}, KEY))).status == 403
    assert (await forbidding.answer(authorization=signed({"sub": "name"}, KEY))).status == 204
    assert forbidding.outcomes() == {("forbidden", ""): 1, ("kept", "name"): 1}


async def test_keys_that_cannot_be_had_are_no_reason_for_401(edge: Door) -> None:
    """While an issuer's keys can't be fetched its tokens are 503, to be sent again."""
    answer = await edge.answer(authorization=signed({"sub": "x"}, KEY))
    assert (answer.status, answer.headers["retry-after"], answer.reads) == (503, "30", 0)
    assert edge.outcomes() == {("unavailable", ""): 1}
    assert not await edge.kept()


async def test_an_inbox_that_cannot_keep_is_503(backend: SqliteBackend, telemetry: Telemetry) -> None:
    """While nothing can be kept, posts and probes get 503 with Retry-After; afterwards all is well."""
    async with backend.opened(append_timeout_seconds=2) as node:
        edge = door(node, telemetry)
        with backend.stalled():
            for content in (BODY, b"{", UNKNOWN):
                answer = await edge.answer(content)
                assert (answer.status, answer.headers["retry-after"]) == (503, "5")
            for method in ("GET", "HEAD", "OPTIONS"):
                assert (await edge.answer(method=method)).status == 503
        assert edge.outcomes() == {("unavailable", SENDER): 3, ("probe", ""): 3}
        await until(lambda: not node.inbox.trouble)
        assert (await edge.answer(bare("s-1"))).status == 204
        assert (await edge.answer(method="GET")).status == 204
        assert (await edge.kept())[-1].key == "s-1"
        await edge.assert_all_given_back()


# The order of the checks.

_WRONG: list[dict[str, Any]] = [
    {"host": None},
    {"authorization": "Bearer wrong"},
    {"content_length": str(BODY_BYTES_MAX + 1)},
]


@pytest.mark.parametrize(("first", "status"), [(0, 400), (1, 401), (2, 413)])
async def test_headers_come_first(edge: Door, first: int, status: int) -> None:
    """Of several faults the first in this order is reported: headers, token, length; and no body is read."""
    faults: dict[str, Any] = {}
    for fault in _WRONG[first:]:
        faults |= fault
    answer = await edge.answer(b"{", **faults)
    assert (answer.status, answer.reads) == (status, 0)
    assert not await edge.kept()


async def test_limits_come_before_the_body(node: Node, telemetry: Telemetry) -> None:
    """A sender beyond its rate gets 429 without the body being read, after its own faults are reported."""
    edge = door(node, telemetry, rate_per_second=0.01)
    for _ in range(2):
        assert (await edge.answer()).status == 204
    answer = await edge.answer(b"{")
    assert (answer.status, answer.code, answer.reads) == (429, "TOO_MANY_REQUESTS", 0)
    assert 90 <= int(answer.headers["retry-after"]) <= 100
    assert (await edge.answer(LARGE)).status == 413
    assert (await edge.answer(authorization="Bearer wrong")).status == 401
    assert edge.outcomes()["throttled", SENDER] == 1
    assert len(await edge.kept()) == 2


async def test_what_is_in_flight_is_limited(edge: Door) -> None:
    """One sender has half of the requests at a time, whatever it announces; beyond that it gets 429 at once."""
    for length in ("10", str(BODY_BYTES_MAX), None):
        held = [Request(BODY, content_length=length) for _ in range(IN_FLIGHT_MAX // 2)]
        for request in held:
            request.on.clear()
        asking = [asyncio.create_task(edge.ask(request)) for request in held]
        await until(lambda held=held: all(request.reads for request in held))  # type: ignore[misc]
        assert edge.admission.in_flight == (len(held), 0)
        answer = await edge.answer()
        assert (answer.status, answer.headers["retry-after"], answer.reads) == (429, "1", 0)
        for request in held:
            request.on.set()
        assert [answer and answer.status for answer in await asyncio.gather(*asking)] == [204] * len(held)
        assert (await edge.answer()).status == 204


async def test_bytes_count_as_they_come(node: Node, telemetry: Telemetry) -> None:
    """Each piece of a body counts when it has arrived: beyond the sender's half it is 429."""
    edge = door(node, telemetry)
    half = IN_FLIGHT_BYTES_MAX // 2
    pieces = [b"x" * 1000] * (half // 1000 // 2)
    held = [Request(*pieces, content_length=None) for _ in range(2)]
    for request in held:
        request.goes_away = True
    stalled = asyncio.Event()

    async def receive(request: Request = held[0]) -> Message:
        if request.reads == len(pieces):
            await stalled.wait()
        return await Request.receive(request)

    held[0].receive = receive  # type: ignore[method-assign]
    asking = asyncio.create_task(edge.ask(held[0]))
    await until(lambda: edge.admission.in_flight == (1, len(pieces) * 1000))
    answer = await edge.answer(*[b"x" * 1000] * 4)
    assert (answer.status, answer.reads) == (429, 4)
    assert (await edge.answer()).status == 204
    stalled.set()
    assert await asking is None
    await edge.assert_all_given_back()


@pytest.mark.parametrize("pieces", [(), (b"",), (BODY[:20],), (BODY,), (BODY[:20], BODY[20:])])
async def test_who_goes_away_is_not_kept(edge: Door, pieces: tuple[bytes, ...]) -> None:
    """A sender that disconnects before its body has ended gets no answer, is not kept, and blocks nothing."""
    for _ in range(IN_FLIGHT_MAX + 1):
        request = Request(*pieces, content_length=str(len(BODY)))
        request.goes_away = True
        assert await edge.ask(request) is None
    assert not await edge.kept()
    assert edge.outcomes() == {("disconnected", SENDER): IN_FLIGHT_MAX + 1}
    await edge.assert_all_given_back()


async def test_who_is_cancelled_holds_nothing_back(edge: Door) -> None:
    """A request that the server gives up, at a shutdown that took too long, gives back what it held."""
    request = Request(BODY)
    request.on.clear()
    asking = asyncio.create_task(edge.ask(request))
    await until(lambda: bool(request.reads))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await edge.assert_all_given_back()


# Headers.


@pytest.mark.parametrize(
    ("content_type", "taken"),
    [
        (None, True),
        ("", True),
        ("application/json", True),
        ("application/cloudevents+json", True),
        ("application/cloudevents+json; charset=UTF-8", True),
        ("application/json;charset=utf-8", True),
        ("APPLICATION/JSON", True),
        ("Application/CloudEvents+JSON ; x=y", True),
        ("application/vnd.operator+json", True),
        ("text/json", True),
        ("application/json:", True),
        ("application/xml", False),
        ("application/cloudevents", False),
        ("application/cloudevents-batch", False),
        ("application/x-www-form-urlencoded", False),
        ("multipart/form-data; boundary=json", False),
        ("json", False),
        ("application/jsonp", False),
        ("\xe9", False),
    ],
)
async def test_content_types(edge: Door, content_type: str | None, taken: bool) -> None:
    """JSON is accepted under any type; a body that is no JSON is 400 if its type says JSON, else 415, and kept too."""
    assert (await edge.answer(content_type=content_type)).status == 204
    assert (await edge.answer(b"<event/>", content_type=content_type)).status == (400 if taken else 415)
    assert [each.content_type for each in await edge.kept()] == [content_type or ""] * 2


@pytest.mark.parametrize(
    ("correlator", "echoed"),
    [
        ("b4333c46-49c0-4f62-80d7-f0ef930f1c46", True),
        ("a_b:c;d./<e>{f}", True),
        ("x" * 256, True),
        ("x" * 257, False),
        ("a b", False),
        ("a,b", False),
        ("a\nb", False),
        ("\xe9", False),
        ("", False),
        (None, False),
    ],
)
async def test_correlators(edge: Door, correlator: str | None, echoed: bool) -> None:
    """A correlator within CAMARA's pattern is echoed and kept; else one is made, another for each request."""
    made = set()
    for content in (BODY, b"{", BODY[:10]):
        answer = await edge.answer(content, x_correlator=correlator)
        made.add(answer.headers["x-correlator"])
        (kept,) = await edge.kept()
        assert kept.correlator == answer.headers["x-correlator"]
        assert (kept.correlator == correlator) is echoed
        assert re.fullmatch(r"[a-zA-Z0-9\-_:;./<>{}]{1,256}", kept.correlator)
    assert len(made) == (1 if echoed else 3)


@pytest.mark.parametrize(
    "faults",
    [
        {"authorization": None},
        {"content_encoding": "br", "content_type": "text/plain"},
        {"content_length": "5000"},
        {"host": None},
        {"more": [("host", "a")]},
        {"more": [("authorization", "a")]},
    ],
)
async def test_refusals_have_a_correlator_too(edge: Door, faults: dict[str, Any]) -> None:
    """Each answer to a wrong notification has its correlator."""
    assert (await edge.answer(b"{", x_correlator="c-1", **faults)).headers["x-correlator"] == "c-1"


@pytest.mark.parametrize(
    ("traceparent", "kept"),
    [
        (TRACEPARENT, True),
        (TRACEPARENT[:-2] + "00", True),
        ("01" + TRACEPARENT[2:], True),
        (TRACEPARENT.upper(), False),
        (TRACEPARENT[:-1], False),
        (TRACEPARENT + "0", False),
        ("ff" + TRACEPARENT[2:], False),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", False),
        (f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01", False),
        (f" {TRACEPARENT}", False),
        ("\xe9", False),
        ("", False),
        (None, False),
    ],
)
async def test_traceparents(edge: Door, traceparent: str | None, kept: bool) -> None:
    """A traceparent is kept if W3C Trace Context calls it valid, and no other is a reason to refuse."""
    assert (await edge.answer(traceparent=traceparent)).status == 204
    assert [each.traceparent for each in await edge.kept()] == [traceparent if kept else ""]


@pytest.mark.parametrize(
    ("authorization", "query", "switched_on", "status"),
    [
        (None, f"access_token={TOKEN}", True, 204),
        (None, f"apikey={TOKEN}", True, 204),
        (None, f"a=b&access_token={TOKEN}&c", True, 204),
        (None, "access_token=a-token%2Fof%2Btwenty%3Dcharacters", True, 204),
        (None, "access_token=wrong", True, 401),
        (None, "access_token=", True, 401),
        (None, "access_token=%ff%", True, 401),
        (None, f"token={TOKEN}", True, 401),
        (None, "", True, 401),
        (BEARER, "access_token=wrong", True, 204),
        ("Bearer wrong", f"access_token={TOKEN}", True, 401),
        (None, f"access_token={TOKEN}", False, 401),
        (None, f"apikey={TOKEN}", False, 401),
    ],
)
async def test_query_tokens(  # noqa: PLR0917  # the columns of a table
    node: Node, telemetry: Telemetry, authorization: str | None, query: str, switched_on: bool, status: int
) -> None:
    """A token in the query is accepted if that is switched on and Authorization has none."""
    edge = door(node, telemetry, query_tokens=switched_on)
    assert (await edge.answer(authorization=authorization, query=query)).status == status


@pytest.mark.parametrize(
    ("authorization", "switched_on", "status", "sender"),
    [
        (None, True, 204, "anonymous"),
        (BEARER, True, 204, SENDER),
        ("Bearer wrong", True, 401, ""),
        (None, False, 401, ""),
    ],
)
async def test_anonymous_senders(  # noqa: PLR0917  # the columns of a table
    node: Node, telemetry: Telemetry, authorization: str | None, switched_on: bool, status: int, sender: str
) -> None:
    """A sender without a token may post if that is switched on; a wrong token is refused all the same."""
    edge = door(node, telemetry, anonymous=switched_on)
    assert (await edge.answer(authorization=authorization)).status == status
    assert [each.sender for each in await edge.kept()] == ([sender] if status == 204 else [])


# Paths and methods.


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/a/b", 204),
        ("/a/b/notifications", 204),
        ("/a/b/", 204),
        ("/a/b//", 204),
        ("//a/b", 204),
        ("/a//b", 204),
        ("///a///b///notifications///", 204),
        ("/a/b/notifications/", 204),
        ("/a/b/./", 404),
        ("/a//", 404),
        ("/a/b/notifications/notifications", 404),
        ("/a/b/Notifications", 404),
        ("/notifications", 404),
        ("/a", 404),
        ("/", 404),
        ("", 404),
        ("//", 404),
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS", "HEAD"])
async def test_paths(node: Node, telemetry: Telemetry, path: str, status: int, method: str) -> None:
    """The configured path is served, and the same with /notifications appended; no other path is, by any method."""
    answer = await door(node, telemetry, path="/a/b").answer(path=path, method=method)
    assert answer.status == status


@pytest.mark.parametrize(
    ("what", "status", "outcome", "sender", "kept"),
    [
        ({}, 404, "not_found", SENDER, [BODY]),
        ({"content_type": "text/plain"}, 404, "not_found", SENDER, [BODY]),
        ({"x_qod_token": BEARER, "authorization": "Bearer gateways"}, 404, "not_found", SENDER, [BODY]),
        ({"authorization": "Bearer wrong"}, 404, "not_found", "", NOTHING),
        ({"authorization": "Bearer expired"}, 404, "not_found", "old", NOTHING),
        ({"authorization": None}, 404, "not_found", "", NOTHING),
        ({"host": None}, 404, "not_found", "", NOTHING),
        ({"content_length": "99999"}, 413, "too_large", SENDER, NOTHING),
        ({"method": "GET"}, 404, "not_found", "", NOTHING),
        ({"method": "PUT"}, 404, "not_found", "", NOTHING),
    ],
)
async def test_what_is_posted_beside_is_kept_for_a_right_token(  # noqa: PLR0917  # the columns of a table
    edge: Door, what: dict[str, Any], status: int, outcome: str, sender: str, kept: list[bytes]
) -> None:
    """A post to another path is 404 for every sender, and with a right token it becomes a dead letter."""
    answer = await edge.answer(path="/wrong/hook", **what)
    assert answer.status == status
    assert edge.outcomes() == {(outcome, sender): 1}
    found = await edge.kept()
    assert [each.body for each in found] == kept
    assert {each.origin for each in found} <= {"beside:/wrong/hook"}
    assert edge.admission.in_flight == (0, 0)


async def test_what_is_posted_beside_has_no_effect_until_it_is_replayed(edge: Door, router: Router) -> None:
    """A post to another path is a dead letter that names the path, whatever its body; replayed it has its effect."""
    assert (await edge.answer(path="/Notifications")).status == 404
    (decision,) = await route(edge.node, router)
    assert decision.verdict is Verdict.UNRECOGNIZED
    (letter,) = await everything(edge.node.reader, "qod.dead-letter")
    assert orjson.loads(letter.message.value or b"")["reason"].startswith("posted to /Notifications, where nothing is")
    assert await LocalOperations(edge.node.reader, edge.node.inbox, "qod").replay() == 1
    (replayed,) = await route(edge.node, router)
    assert replayed.verdict is Verdict.ACCEPTED


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ({"more": [("host", "other")]}, {"status_code": 400, "why": "headers"}),
        ({"content": b"{"}, {"status_code": 400, "why": "malformed", "sender": SENDER}),
        ({"authorization": None}, {"status_code": 401, "why": "no_token", "sender": ""}),
        ({"authorization": "Bearer wrong"}, {"status_code": 401, "why": "unknown_token", "sender": ""}),
        ({"authorization": "Bearer expired"}, {"status_code": 401, "why": "expired_token", "sender": "old"}),
        ({"content": b"a=b", "content_type": "text/plain"}, {"status_code": 415, "sender": SENDER}),
        ({"content_length": "99999"}, {"status_code": 413, "why": "too_large", "sender": SENDER}),
        ({"path": "/x"}, {"status_code": 404, "why": "not_found_kept", "sender": SENDER, "path": "/x"}),
        ({"path": "/x", "authorization": None}, {"status_code": 404, "why": "not_found", "path": "/x"}),
        ({"path": f"/a/{TOKEN.replace('/', '')}/b", "method": "GET"}, {"status_code": 404, "path": "/a/a-to…/b"}),
        ({"path": "/x\n\x1b[2J", "method": "GET"}, {"status_code": 404, "path": "/x??[2J"}),
        ({"method": "PUT"}, {"status_code": 405, "why": "method_not_allowed"}),
        ({"authorization": None, "x_forwarded_for": "203.0.113.9"}, {"address": "203.0.113.9"}),
        ({"authorization": None, "x_forwarded_for": "10.9.9.9, 203.0.113.9"}, {"address": "203.0.113.9"}),
        ({"authorization": None, "x_forwarded_for": "203.0.113.9, 127.0.0.1"}, {"address": "203.0.113.9"}),
        ({"authorization": None, "x_forwarded_for": "203.0.113.9, no address"}, {"address": "127.0.0.1"}),
        ({"authorization": None, "client": ("192.0.2.1", 1), "x_forwarded_for": "a"}, {"address": "192.0.2.1"}),
        ({"authorization": None, "client": ("192.0.2.1", 1), "x_forwarded_for": "1.1.1.1"}, {"address": "192.0.2.1"}),
        ({"authorization": None, "client": ("::ffff:127.0.0.1", 1), "x_forwarded_for": "::1"}, {"address": "::1"}),
        ({"authorization": None, "client": None}, {"address": ""}),
    ],
)
async def test_a_refusal_can_be_investigated(edge: Door, what: dict[str, Any], told: dict[str, Any]) -> None:
    """The log has a warning with the refused request, the reason and the sender; a metric counts it."""
    what = dict(what)
    client = what.pop("client", ("127.0.0.1", 1))
    request = Request(what.pop("content", BODY), **what)
    request.scope["client"] = client
    with capture_logs() as logs:
        answer = await edge.ask(request)
    assert answer is not None
    (line,) = [each for each in logs if each["event"] == "refused"]
    assert line["log_level"] == "warning"
    assert line["reason"]
    assert ("path" in line) is (answer.status == 404)
    assert {name: line[name] for name in told} == told
    assert TOKEN not in str(logs)
    text = generate_latest(edge.telemetry.registry).decode()
    assert f'qod_receiver_refusals_total{{reason="{line["why"]}",status="{answer.status}"}} 1.0' in text


async def test_refusals_do_not_flood_the_log(edge: Door) -> None:
    """Of one kind there are ten lines in ten seconds, of each other kind too, and every one is counted."""
    with capture_logs() as logs:
        for _ in range(50):
            assert (await edge.answer(authorization="Bearer wrong")).status == 401
        assert (await edge.answer(authorization="Bearer expired")).status == 401
    whys = [each["why"] for each in logs if each["event"] == "refused"]
    assert whys == ["unknown_token"] * 10 + ["expired_token"]
    text = generate_latest(edge.telemetry.registry).decode()
    assert 'qod_receiver_refusals_total{reason="unknown_token",status="401"} 50.0' in text


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE", "QUERY", "post"])
async def test_other_methods(edge: Door, method: str) -> None:
    """A request that is neither a post nor a probe is 405 with the allowed methods, and is not read."""
    answer = await edge.answer(method=method)
    assert (answer.status, answer.code, answer.reads) == (405, "METHOD_NOT_ALLOWED", 0)
    assert answer.headers["allow"] == "POST, GET, HEAD, OPTIONS"
    assert not await edge.kept()


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("path", ["/notifications", "/notifications/notifications"])
@pytest.mark.parametrize("origin", [None, "eventemitter.example.com"])
async def test_probes(edge: Door, method: str, path: str, origin: str | None) -> None:
    """A probe needs no token; CloudEvents' handshake is answered to OPTIONS that ask for it."""
    what = {"webhook_request_origin": origin, "webhook_request_rate": "120", "authorization": None}
    answer = await edge.answer(method=method, path=path, **what)
    assert (answer.status, answer.headers["allow"], answer.reads) == (204, "POST, GET, HEAD, OPTIONS", 0)
    granted = {name: value for name, value in answer.headers.items() if name.startswith("webhook-")}
    handshake = method == "OPTIONS" and origin is not None
    assert granted == ({"webhook-allowed-origin": "*", "webhook-allowed-rate": "*"} if handshake else {})
    assert not await edge.kept()


# Any request.


ODD_HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            ["host", "authorization", "content-type", "x-correlator", "traceparent", "transfer-encoding", "x-other"]
        ),
        st.one_of(
            st.sampled_from(["", BEARER, "application/json", "text/plain", TRACEPARENT, "Bearer a.b.c", "localhost"]),
            # All that the parser lets through: no control characters.
            st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, blacklist_characters="\x7f"), max_size=40),
        ),
    ),
    max_size=6,
)
_ENVELOPE_MEMBERS = ("specversion", "id", "source", "type", "time", "data", "event")
MEMBERS = st.sampled_from(
    [*_ENVELOPE_MEMBERS, "sessionId", "qosStatus", "statusInfo", "eventType", "eventDetail", "eventTime"]
) | st.text(max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MEMBERS, inner, max_size=5),
    max_leaves=10,
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Bytes, JSON with the members that matter, and a real notification with a change in it."""
    kind = draw(st.sampled_from(["bytes", "json", "cut", "changed"]))
    if kind == "bytes":
        return draw(st.binary(max_size=100))
    if kind == "json":
        return json.dumps(draw(JSON)).encode()
    if kind == "cut":
        return BODY[: draw(st.integers(0, len(BODY)))]
    tree = orjson.loads(BODY)
    where = draw(st.sampled_from([tree, tree["data"]]))
    where[draw(st.sampled_from(sorted(where)))] = draw(JSON)
    return json.dumps(tree).encode()


class Thrown(NamedTuple):
    """A request of any kind, as hypothesis prints it."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[str, str]]
    pieces: list[bytes]
    length_told: bool
    goes_away: bool


THROWN = st.builds(
    Thrown,
    method=st.sampled_from(["POST"] * 8 + ["GET", "HEAD", "OPTIONS", "PUT"]),
    path=st.sampled_from(["/notifications"] * 5 + ["/notifications/notifications", "/", "/\xe9\ud800"]),
    query=st.sampled_from([b"", b"access_token=%ff", b"apikey", b"&&=;%"]),
    headers=ODD_HEADERS,
    pieces=st.lists(bodies(), min_size=1, max_size=3) | bodies().map(lambda content: [content]),
    length_told=st.booleans(),
    goes_away=st.sampled_from([False] * 5 + [True]),
)


def test_whatever_comes_has_a_documented_answer() -> None:
    """Any headers and bodies get a documented answer, never an exception; only 204, 400, 404 and 415 may be kept."""
    with TemporaryDirectory() as directory, asyncio.Runner() as runner:
        opened = SqliteBackend(Path(directory)).opened()
        node = runner.run(opened.__aenter__())
        telemetry = Telemetry()
        plain, open_to_all = door(node, telemetry), door(node, telemetry, query_tokens=True, anonymous=True)
        statuses = set()

        async def throw(thrown: Thrown) -> None:
            named = {name for name, _ in thrown.headers}
            changed: dict[str, Any] = {name.replace("-", "_"): None for name in named}
            if not thrown.length_told:
                changed["content_length"] = None
            for edge in (plain, open_to_all):
                request = Request(*thrown.pieces, more=thrown.headers, **changed)
                request.scope |= {"method": thrown.method, "path": thrown.path, "query_string": thrown.query}
                request.goes_away = thrown.goes_away
                answer = await edge.ask(request)
                kept = [each.body for each in await edge.kept()]
                if answer is None:
                    assert thrown.goes_away
                    assert not kept
                    continue
                statuses.add(answer.status)
                if thrown.method == "POST" and answer.status == 204:
                    assert kept == [b"".join(thrown.pieces)]
                else:
                    assert kept in ([], [b"".join(thrown.pieces)] if answer.status in {400, 404, 415} else [])

        @settings(max_examples=300)
        @given(THROWN)
        def examples(thrown: Thrown) -> None:
            runner.run(throw(thrown))

        try:
            examples()
            for edge in (plain, open_to_all):
                runner.run(edge.assert_all_given_back())
        finally:
            runner.run(opened.__aexit__(None, None, None))
        assert statuses >= {204, 400, 401, 404, 405}
