"""The operations port over HTTP, with a real server and a real directory behind it."""

import asyncio
import hashlib
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import httpx2
import orjson
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

import receiver.metrics
from receiver.backends.sqlite.schema import FILE_NAME
from receiver.core.router import Router
from receiver.core.session import Verdict
from receiver.operations import LocalOperations
from receiver.ops import OpsApp
from receiver.telemetry import Telemetry
from tests.limits import SECONDS_MAX
from tests.nodes import Node, SqliteBackend, append, everything, forget, route, until
from tests.samples import SENDER, SESSION_ID, body, posted, told

SOURCE_OF_METRICS = Path(receiver.metrics.__file__).read_text()
TOKEN = "a token of the operations port"
UNKNOWN_TYPE = body(told("A1")[0]._replace(type="org.camaraproject.device-roaming.v0.roaming-status"))


class Ops(NamedTuple):
    """A served operations port, and the node behind it."""

    client: httpx2.AsyncClient
    node: Node
    telemetry: Telemetry
    troubles: dict[str, str]
    notices: dict[str, str]
    stopping: asyncio.Event

    async def json(self, path: str, **params: str) -> Any:  # noqa: ANN401  # JSON
        """The JSON of a path, which must answer 200."""
        response = await self.client.get(path, params=params)
        assert response.status_code == 200, response.text
        return response.json()


@asynccontextmanager
async def serving(node: Node, telemetry: Telemetry, token: str | None = None) -> AsyncIterator[Ops]:
    """Serve the operations port on a free port of the loopback interface."""
    troubles: dict[str, str] = {"inbox": ""}
    notices: dict[str, str] = {}
    stopping = asyncio.Event()
    app = OpsApp(
        reader=node.reader,
        operations=LocalOperations(node.reader, node.inbox, "qod"),
        telemetry=telemetry,
        session_counts=node.reader.session_counts,
        troubles=lambda: troubles,
        notices=lambda: notices,
        stopping=stopping,
        prefix="qod",
        token_sha256=None if token is None else hashlib.sha256(token.encode()).hexdigest(),
    )
    config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, ws="none")
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Without it asyncio leaves Nagle's algorithm on: the socket does not say that its protocol is TCP.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Its main loop would only check the time and signals, ten times a second.
        await server.startup([listener])
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=SECONDS_MAX) as client:
                yield Ops(client, node, telemetry, troubles, notices, stopping)
        finally:
            stopping.set()
            for each in server.servers:
                each.close()
            await until(lambda: not server.server_state.connections and not server.server_state.tasks)


@pytest.fixture
async def ops(node: Node, telemetry: Telemetry) -> AsyncIterator[Ops]:
    """An operations port without a token, of an empty node."""
    async with serving(node, telemetry) as served:
        yield served


@pytest.fixture
async def routed(ops: Ops, router: Router) -> Ops:
    """The same, with five records on the status topic, of three sessions, all but one available."""
    texts = [("A1", "s0"), ("A1", "s1"), ("A1", "s2"), ("U2:N", "s1"), ("U0.5", "s0")]
    await append(ops.node, *(posted(text, session_id=session_id) for text, session_id in texts))
    await route(ops.node, router)
    return ops


# Health.


async def test_the_paths_are_told(ops: Ops) -> None:
    """The root names every path."""
    told = (await ops.client.get("/")).text
    for path in ("/livez", "/readyz", "/metrics", "/topics", "/topics/{topic}", "/sessions", "/replay"):
        assert f" {path} " in told


async def test_livez(ops: Ops) -> None:
    """The process is alive whatever is wrong: a restart would not help."""
    ops.troubles["inbox"] = "the disk is full"
    response = await ops.client.get("/livez")
    assert (response.status_code, response.text) == (200, "ok\n")


async def test_readyz(ops: Ops) -> None:
    """The process is ready while nothing is wrong, else 503 names the fault; afterwards it is ready again."""
    assert await ops.json("/readyz") == {"ready": True, "checks": {"inbox": "ok"}}
    ops.troubles.update(inbox="the disk is full", shutdown="")
    response = await ops.client.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {"ready": False, "checks": {"inbox": "the disk is full", "shutdown": "ok"}}
    ops.troubles["inbox"] = ""
    assert (await ops.json("/readyz"))["ready"] is True


# Metrics.


async def metrics(ops: Ops) -> dict[tuple[str, str], float]:
    """Every sample of /metrics, by its name and its label's value."""
    response = await ops.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


async def test_every_metric_is_exposed(ops: Ops) -> None:
    """Each metric that telemetry declares is on /metrics, under its declared name."""
    declared = set(re.findall(r'"(qod_receiver_\w+)"', SOURCE_OF_METRICS))
    exposed = re.findall(r"^# TYPE (\S+) \S+$", (await ops.client.get("/metrics")).text, re.MULTILINE)
    assert len(declared) > 5
    assert {name.removesuffix("_info") for name in exposed} == declared


async def test_metrics_tell_sessions_and_readiness(routed: Ops) -> None:
    """Sessions are counted by their present status, and readiness is that of /readyz."""
    values = await metrics(routed)
    assert values["qod_receiver_sessions", "AVAILABLE"] == 2
    assert values["qod_receiver_sessions", "UNAVAILABLE"] == 1
    assert values["qod_receiver_sessions", "REQUESTED"] == 0
    assert values["qod_receiver_ready", ""] == 1
    routed.troubles["inbox"] = "the disk is full"
    assert (await metrics(routed))["qod_receiver_ready", ""] == 0


async def test_metrics_count_from_nothing(ops: Ops) -> None:
    """Every verdict has its series from the start, so that its first increase is seen."""
    values = await metrics(ops)
    verdicts = [label for name, label in values if name == "qod_receiver_notifications_total"]
    assert sorted(verdicts) == sorted(map(str, Verdict))


# Topics.


async def test_topics(routed: Ops) -> None:
    """The topics that exist are listed."""
    assert await routed.json("/topics") == {"topics": ["qod.sessions", "qod.status", "qod.unavailable"]}


@pytest.mark.parametrize("name", ["status", "qod.status"])
@pytest.mark.parametrize(
    ("params", "positions", "behind"),
    [
        ({}, [0, 1, 2, 3, 4], "0-5"),
        ({"from": "beginning", "limit": "2"}, [0, 1], "0-2"),
        ({"from": "3"}, [3, 4], "0-5"),
        ({"from": "0-3", "limit": "1"}, [3], "0-4"),
        ({"from": "end"}, [], "0-5"),
        ({"from": "0-99"}, [], "0-99"),
        ({"session": "s1"}, [1, 3], "0-5"),
        ({"session": "s1", "limit": "1"}, [], "0-1"),
        ({"session": "nobody"}, [], "0-5"),
    ],
)
async def test_a_topic_by_position(
    routed: Ops, name: str, params: dict[str, str], positions: list[int], behind: str
) -> None:
    """Records come from a position on; `next` is where to go on, whatever the filter left out."""
    page = await routed.json(f"/topics/{name}", **params)
    assert page["topic"] == "qod.status"
    assert [record["position"] for record in page["records"]] == positions
    assert page["next"] == behind


async def test_pages_follow_each_other(routed: Ops) -> None:
    """Going on from `next` gives every record once."""
    seen, start = [], "beginning"
    while (page := await routed.json("/topics/status", **{"from": start, "limit": "2"}))["records"]:
        seen += [record["position"] for record in page["records"]]
        start = page["next"]
    assert seen == [0, 1, 2, 3, 4]


async def test_a_record(routed: Ops) -> None:
    """A record shows its place, key, time, headers and value as JSON."""
    (record,) = (await routed.json("/topics/unavailable"))["records"]
    assert (record["topic"], record["partition"], record["position"], record["key"]) == ("qod.unavailable", 0, 0, "s1")
    assert record["timestamp"] == "2026-11-24T10:00:02Z"
    assert record["headers"]["verdict"] == "accepted"
    assert (record["value"]["qosStatus"], record["value"]["availableSeconds"]) == ("UNAVAILABLE", 1.0)


async def test_a_tombstone_is_null(routed: Ops, router: Router) -> None:
    """A tombstone is shown as a record without value."""
    batch, (oldest,) = await routed.node.lane.oldest(1)
    await forget(routed.node.lane, router, batch, oldest)
    last = (await routed.json("/topics/sessions"))["records"][-1]
    assert (last["key"], last["value"]) == (oldest.session_id, None)


# Sessions.


@pytest.mark.parametrize(
    ("params", "session_ids"),
    [
        ({}, ["s0", "s1", "s2"]),
        ({"limit": "1"}, ["s0"]),
        ({"qos_status": "AVAILABLE"}, ["s0", "s2"]),
        ({"qos_status": "unavailable"}, ["s1"]),
        ({"qos_status": "REQUESTED"}, []),
    ],
)
async def test_sessions(routed: Ops, params: dict[str, str], session_ids: list[str]) -> None:
    """Sessions come last touched first, filtered by status on request."""
    sessions = (await routed.json("/sessions", **params))["sessions"]
    assert [session["sessionId"] for session in sessions] == session_ids


async def test_a_session(routed: Ops) -> None:
    """A session is shown as on its topic, with the time when it was last touched."""
    (session,) = (await routed.json("/sessions", qos_status="UNAVAILABLE"))["sessions"]
    assert session == {
        "sessionId": "s1",
        "qosStatus": "UNAVAILABLE",
        "statusInfo": "NETWORK_TERMINATED",
        "time": "2026-11-24T10:00:02Z",
        "sender": SENDER,
        "availableSince": "2026-11-24T10:00:01Z",
        "availableSeconds": 1.0,
        "touchedAt": "2026-11-24T10:01:00Z",
    }


# Streams.


async def streamed(ops: Ops, path: str, count: int, **headers: str) -> list[tuple[str, Any]]:
    """The ids and records of the first events of a stream."""
    events: list[tuple[str, Any]] = []
    async with ops.client.sse(path, headers=headers) as source, asyncio.timeout(SECONDS_MAX):
        async for event in source:
            assert event.event == "record"
            events.append((event.id, orjson.loads(event.data)))
            if len(events) == count:
                break
    return events


async def test_a_stream_goes_on_after_the_last_event_seen(routed: Ops) -> None:
    """A client that comes back with the id of the last event gets the next one, and none twice."""
    first = await streamed(routed, "/topics/status?from=beginning", 2)
    rest = await streamed(routed, "/topics/status?from=beginning", 3, **{"Last-Event-ID": first[-1][0]})
    assert [record["position"] for _, record in [*first, *rest]] == [0, 1, 2, 3, 4]
    assert [identifier for identifier, _ in first] == ["0-1", "0-2"]
    assert [record for _, record in [*first, *rest]] == (await routed.json("/topics/status"))["records"]


async def test_a_stream_tells_what_comes(routed: Ops, router: Router) -> None:
    """Without a start a stream begins at the end, and sends every record that is committed from then on."""
    async with routed.client.sse("/topics/status") as source, asyncio.timeout(SECONDS_MAX):
        assert source.response.headers["content-type"].startswith("text/event-stream")
        await append(routed.node, posted("A1", session_id="s7"), posted("A1", session_id="s8"))
        await route(routed.node, router)
        events = aiter(source)
        records = [orjson.loads((await anext(events)).data) for _ in range(2)]
    assert [(record["position"], record["key"]) for record in records] == [(5, "s7"), (6, "s8")]


async def test_a_stream_of_one_session(routed: Ops) -> None:
    """A stream of one session has its records alone, with ids that lead past the others'."""
    events = await streamed(routed, "/topics/status?from=beginning&session=s1", 2)
    assert [(identifier, record["position"]) for identifier, record in events] == [("0-2", 1), ("0-4", 3)]


async def test_a_long_stream(ops: Ops, router: Router) -> None:
    """A stream sends more than it reads at once, in order."""
    await asyncio.gather(*(ops.node.inbox.append(posted("A1", session_id=f"s{number}")) for number in range(450)))
    await route(ops.node, router)
    events = await streamed(ops, "/topics/status?from=beginning", 450)
    assert [record["position"] for _, record in events] == list(range(450))


async def test_streams_end_at_a_shutdown(routed: Ops) -> None:
    """When the process drains, a stream ends by itself after its last record."""
    async with routed.client.sse("/topics/status?from=3") as source, asyncio.timeout(SECONDS_MAX):
        routed.stopping.set()
        positions = [orjson.loads(event.data)["position"] async for event in source]
    assert positions in ([], [3, 4])


async def test_streams_are_limited(routed: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit a stream is refused, until an open one is closed."""
    monkeypatch.setattr("receiver.ops._STREAMS_MAX", 2)
    headers = {"accept": "text/event-stream"}
    async with routed.client.sse("/topics/status"), routed.client.sse("/topics/sessions"):
        refused = await routed.client.get("/topics/status", headers=headers)
        assert_problem(refused, 429)
        assert "2 streams" in refused.json()["detail"]
    async with asyncio.timeout(SECONDS_MAX):
        for _ in range(3):
            while True:
                async with routed.client.stream("GET", "/topics/status", headers=headers) as response:
                    if response.status_code == 200:
                        break
                await asyncio.sleep(0.01)


# Replay.


@pytest.fixture
async def dead(ops: Ops, router: Router) -> Ops:
    """A port with four dead letters: 0 is readable today, 1 and 2 are not, 3 is in conflict for ever."""
    letters = [posted("A1#x", key=SENDER), posted(b"{"), posted(UNKNOWN_TYPE), posted("U9:N@other", session_id="taken")]
    await append(ops.node, posted("A1", session_id="taken"), *letters)
    await route(ops.node, router)
    return ops


async def replayed(ops: Ops, body: object, router: Router) -> tuple[int, list[str]]:
    """The number of replayed letters, and their verdicts."""
    response = await ops.client.post("/replay", content=orjson.dumps(body))
    assert response.status_code == 200, response.text
    count: int = response.json()["replayed"]
    return count, [decision.verdict.value for decision in await route(ops.node, router)]


@pytest.mark.parametrize(
    ("wanted", "verdicts"),
    [
        ({}, ["accepted", "unrecognized", "conflict"]),
        ({"verdicts": None}, ["accepted", "unrecognized", "conflict"]),
        ({"verdicts": ["malformed"]}, ["accepted"]),
        ({"verdicts": ["unrecognized", "conflict"]}, ["unrecognized", "conflict"]),
        ({"verdicts": ["duplicate"]}, []),
        ({"verdicts": []}, []),
        ({"from": "1"}, ["unrecognized", "conflict"]),
        ({"from": "0-3"}, ["conflict"]),
        ({"from": "end"}, []),
    ],
)
async def test_replay(dead: Ops, router: Router, wanted: dict[str, object], verdicts: list[str]) -> None:
    """The requested letters go through today's parser again, except for those that it still can't read."""
    assert await replayed(dead, wanted, router) == (len(verdicts), verdicts)


async def test_replay_without_a_body_takes_all(dead: Ops) -> None:
    """An empty body asks for every letter."""
    assert (await dead.client.post("/replay")).json() == {"replayed": 3}


async def test_replaying_twice_does_nothing_twice(dead: Ops, router: Router) -> None:
    """A replayed letter takes effect once, marked with its place, and leaves no second letter."""
    assert await replayed(dead, {}, router) == (3, ["accepted", "unrecognized", "conflict"])
    assert await replayed(dead, {}, router) == (3, ["duplicate", "unrecognized", "conflict"])
    records = await everything(dead.node.reader, "qod.status")
    assert [record.message.key for record in records] == ["taken", SESSION_ID]
    assert dict(records[1].message.headers)["origin"] == "replay:0-0"
    assert len(await everything(dead.node.reader, "qod.dead-letter")) == 4


async def test_nothing_to_replay(ops: Ops, router: Router) -> None:
    """Without dead letters nothing is replayed."""
    assert await replayed(ops, {}, router) == (0, [])


# Refusals.


def assert_problem(response: httpx2.Response, status_code: int) -> None:
    """The answer is a problem detail with this status."""
    assert (response.status_code, response.headers["content-type"]) == (status_code, "application/problem+json")
    problem = response.json()
    assert problem["status"] == status_code
    assert problem["title"]
    assert problem["detail"]


@pytest.mark.parametrize(
    ("path", "status_code"),
    [
        ("/nope", 404),
        ("/topics/nope", 404),
        ("/topics/status/more", 404),
        ("/topics/status?from=", 400),
        ("/topics/status?from=-1", 400),
        ("/topics/status?from=middle", 400),
        ("/topics/status?from=7-1", 400),
        (f"/topics/status?from={'9' * 19}", 400),
        (f"/topics/status?from=0-{'9' * 30}", 400),
        (f"/topics/status?from={'9' * 5000}", 400),
        ("/topics/status?limit=0", 400),
        ("/topics/status?limit=10001", 400),
        ("/topics/status?limit=-1", 400),
        ("/topics/status?limit=1e3", 400),
        ("/topics/status?limit=%C2%B2", 400),
        (f"/topics/status?limit={'9' * 5000}", 400),
        ("/sessions?limit=0", 400),
        ("/sessions?qos_status=GONE", 400),
        ("/sessions?qos_status=", 400),
        ("/sessions?status=AVAILABLE", 400),
        ("/topics/status?session_id=s1", 400),
        ("/replay", 405),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_bad_requests_are_problems(routed: Ops, path: str, status_code: int) -> None:
    """A request that can't be answered is refused with a problem detail, never with a failure of ours."""
    assert_problem(await routed.client.get(path), status_code)


async def test_a_bad_event_id_is_a_problem(routed: Ops) -> None:
    """A stream with an invalid id is refused."""
    headers = {"accept": "text/event-stream", "last-event-id": "yesterday"}
    assert_problem(await routed.client.get("/topics/status", headers=headers), 400)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"null",
        b'"all"',
        b'{"verdicts": ["nope"]}',
        b'{"verdicts": "malformed"}',
        b'{"verdicts": 5}',
        b'{"verdicts": [["malformed"]]}',
        b'{"verdicts": [null]}',
        b'{"from": 5}',
        b'{"from": null}',
        b'{"from": "yesterday"}',
        b'{"from": "7-1"}',
    ],
)
async def test_bad_replays_are_problems(dead: Ops, content: bytes) -> None:
    """A replay with an invalid body is refused, and replays nothing."""
    assert_problem(await dead.client.post("/replay", content=content), 400)
    assert dead.node.lane.lag == 0


async def test_a_body_has_a_limit(dead: Ops) -> None:
    """A body beyond 64 KiB is refused."""
    assert (await dead.client.post("/replay", content=b" " * 70_000)).status_code == 413
    assert dead.node.lane.lag == 0


async def test_the_methods_allowed_are_told(ops: Ops) -> None:
    """A method that a path doesn't have is refused with the allowed ones."""
    response = await ops.client.delete("/sessions")
    assert_problem(response, 405)
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}


async def test_a_file_that_cannot_be_read_is_a_problem(routed: Ops, backend: SqliteBackend) -> None:
    """If the backend fails the answer is 503, and the other paths go on."""
    connection = apsw.Connection(str(backend.directory / FILE_NAME))
    connection.execute("ALTER TABLE messages RENAME TO elsewhere")
    connection.close()
    assert_problem(await routed.client.get("/topics/status"), 503)
    assert len((await routed.json("/sessions"))["sessions"]) == 3


# The token.


@pytest.mark.parametrize(
    ("authorization", "right"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer {TOKEN}", True),
        (f"Bearer  {TOKEN}", True),
        (f"Basic {TOKEN}", False),
        (f"Bearer {TOKEN}x", False),
        (f"Bearer {TOKEN[:-1]}", False),
        ("Bearer", False),
        ("", False),
        (TOKEN, False),
        (hashlib.sha256(TOKEN.encode()).hexdigest(), False),
    ],
)
async def test_a_token(node: Node, telemetry: Telemetry, authorization: str, right: bool) -> None:
    """With a token configured, every path but the health checks requires it."""
    headers = {"authorization": authorization}
    async with serving(node, telemetry, TOKEN) as ops:
        for path in ("/metrics", "/topics", "/topics/status", "/sessions", "/nope", "/livez/"):
            response = await ops.client.get(path, headers=headers)
            assert (response.status_code != 401) is right
            if not right:
                assert_problem(response, 401)
                assert response.headers["www-authenticate"] == "Bearer"
                assert TOKEN not in response.text
        assert ((await ops.client.post("/replay", headers=headers)).status_code != 401) is right
        for path in ("/livez", "/readyz"):
            assert (await ops.client.get(path)).status_code == 200


async def test_no_token_is_wanted_where_none_is_configured(ops: Ops) -> None:
    """On the loopback interface the port may go without a token."""
    assert (await ops.client.get("/topics")).status_code == 200


async def test_pages_are_few_at_a_time(ops: Ops, router: Router) -> None:
    """While as many pages as allowed are sent, to readers that take nothing, another is refused; later it is sent."""
    for _ in range(40):
        await append(ops.node, posted(b"{" * 500_000))
    while ops.node.lane.lag:
        await route(ops.node, router)
    stalled = []
    for _ in range(8):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((ops.client.base_url.host, ops.client.base_url.port or 0))
        reader, writer = await asyncio.open_connection(sock=connection, limit=1)
        writer.write(b"GET /topics/dead-letter HTTP/1.1\r\nhost: localhost\r\n\r\n")
        stalled.append((reader, writer))
    refused = await ops.client.get("/topics/dead-letter")
    async with asyncio.timeout(SECONDS_MAX):
        while refused.status_code != 429:
            refused = await ops.client.get("/topics/dead-letter")
    assert (await ops.client.get("/sessions")).status_code == 429
    assert (await ops.client.get("/readyz")).status_code == 200
    for _, writer in stalled:
        writer.transport.abort()
    async with asyncio.timeout(SECONDS_MAX):
        while refused.status_code != 200:
            refused = await ops.client.get("/topics/dead-letter")
    assert 0 < len(refused.json()["records"]) < 40


# Pages in browsers.


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:9464"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "[::1]:9464"}, 200),
        ({"host": "router:9464"}, 200),
        ({"host": "qod.localhost:9464"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"host": "localhost:9464", "origin": "http://localhost:9464"}, 200),
        ({"host": "rebound.example.com:9464"}, 403),
        ({"host": "127.0.0.1.example.com"}, 403),
        ({"host": "localhost.example.com"}, 403),
        ({"host": "[::1].example.com"}, 200),
        ({"host": "example.com", "origin": "http://example.com"}, 403),
        ({"origin": "http://example.com"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "localhost:9464", "origin": "http://localhost:3000"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
async def test_no_page_of_another_site_is_answered(ops: Ops, headers: dict[str, str], status: int) -> None:
    """A browser's request for another site's page, or under a name that may be rebound, is refused, reads and posts
    alike.
    """
    for path in ("/", "/livez", "/readyz", "/metrics", "/topics", "/sessions", "/nonsense"):
        response = await ops.client.get(path, headers=headers)
        assert response.status_code == (404 if (status, path) == (200, "/nonsense") else status)
        assert response.headers["x-content-type-options"] == "nosniff"
    letters = await ops.client.post("/replay", json={}, headers=headers)
    learned = await ops.client.post("/learn", json={"notifications": []}, headers=headers)
    assert (letters.status_code, learned.status_code) == (status, status)


async def test_a_token_makes_up_for_a_name(node: Node, telemetry: Telemetry) -> None:
    """With a token, any name may lead to the port, since no page has the token. Other sites' pages are refused."""
    token = {"authorization": f"Bearer {TOKEN}", "host": "qod.example.com"}
    async with serving(node, telemetry, TOKEN) as ops:
        assert (await ops.client.get("/topics", headers=token)).status_code == 200
        assert (await ops.client.get("/livez", headers={"host": "qod.example.com"})).status_code == 200
        assert (await ops.client.get("/topics", headers={"host": "qod.example.com"})).status_code == 401
        for foreign in ({"origin": "https://example.com"}, {"sec-fetch-site": "cross-site"}):
            assert (await ops.client.get("/topics", headers={**token, **foreign})).status_code == 403
            assert (await ops.client.get("/livez", headers=foreign)).status_code == 403
