"""The simulator's API, over a socket."""

import asyncio
import base64
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
import yaml
from openapi_spec_validator import validate

from receiver.simulator.oauth import Client, Tokens, Unauthorized, client_of
from receiver.simulator.plan import Plan
from receiver.simulator.server import Options
from tests.limits import SECONDS_MAX
from tests.simulated import serving, simulated

OPENAPI = Path(__file__).parent.parent / "schemas" / "qod-api.openapi.yaml"

READ = "qod:sessions:read"
WRITE = "qod:sessions:write"

#: Settings with which nothing happens by itself during a test.
STILL = Options(speed=0.001)
AT_ONCE = Options(available_after_seconds=0)


@pytest.mark.long
async def test_a_session_is_requested_then_available_then_gone() -> None:
    """A new session is REQUESTED; once granted it has its times; after its time it can't be read and is not listed."""
    async with simulated(Options(speed=100, available_after_seconds=30)) as simulator:
        created = await simulator.create(duration=200, applicationServer={"ipv4Address": "192.0.2.1"})
        assert UUID(created["sessionId"])
        assert created == {
            "sessionId": created["sessionId"],
            "device": {"phoneNumber": "+34600000001"},
            "qosProfile": "QOS_E",
            "qosStatus": "REQUESTED",
            "duration": 200,
        }
        available = await simulator.until_status(created["sessionId"], "AVAILABLE")
        started, expires = (datetime.fromisoformat(available[name]) for name in ("startedAt", "expiresAt"))
        assert expires - started == timedelta(seconds=2)
        assert available["duration"] == 200
        assert (await simulator.client.get(simulator.sessions_url)).json() == [available]
        await simulator.until_gone(created["sessionId"])
        assert (await simulator.client.get(simulator.sessions_url)).json() == []
        (life,) = await simulator.lives()
        assert [(each["qosStatus"], each["statusInfo"]) for each in life["states"]] == [
            ("REQUESTED", None),
            ("AVAILABLE", None),
            ("UNAVAILABLE", "DURATION_EXPIRED"),
        ]
        requested_at, available_at, ended_at = (datetime.fromisoformat(each["at"]) for each in life["states"])
        assert available_at == started
        assert available_at - requested_at >= timedelta(seconds=0.3)
        assert abs(ended_at - expires) < timedelta(seconds=10)


async def test_a_deleted_session_is_gone() -> None:
    """DELETE answers 204 once, then 404, and so does GET; an id may be written in either case."""
    async with simulated(STILL) as simulator:
        session_id = (await simulator.create())["sessionId"]
        assert (await simulator.get(session_id.upper())).status_code == 200
        deleted = await simulator.delete(session_id)
        assert (deleted.status_code, deleted.content) == (204, b"")
        assert (await simulator.delete(session_id)).status_code == 404
        answer = await simulator.get(session_id)
        assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


async def test_what_the_network_ends_can_be_read_for_a_while() -> None:
    """A session that the network ended is UNAVAILABLE to GET for 360 s, not listed, and can't be deleted."""
    async with simulated(Options(speed=200, available_after_seconds=0)) as simulator:
        session_id = (await simulator.create(duration=86_400))["sessionId"]
        await simulator.until_status(session_id, "AVAILABLE")
        assert (await simulator.terminate(session_id)).status_code == 204
        ended = (await simulator.get(session_id)).json()
        assert ended["qosStatus"] == "UNAVAILABLE"
        assert datetime.fromisoformat(ended["startedAt"]) < datetime.fromisoformat(ended["expiresAt"])
        assert (await simulator.client.get(simulator.sessions_url)).json() == []
        assert (await simulator.delete(session_id)).status_code == 404
        assert (await simulator.terminate(session_id)).status_code == 409
        await simulator.until_gone(session_id)
        assert (await simulator.terminate(session_id)).status_code == 404


async def test_the_network_may_refuse_or_say_nothing() -> None:
    """A refused session goes from REQUESTED to UNAVAILABLE without a start; a stuck one stays REQUESTED."""
    async with simulated(Options(plan=Plan(refused=1), available_after_seconds=0)) as simulator:
        refused = await simulator.until_status((await simulator.create())["sessionId"], "UNAVAILABLE")
        assert "startedAt" not in refused
    async with simulated(Options(plan=Plan(stuck=1), available_after_seconds=0)) as simulator:
        stuck, other = await simulator.create(), await simulator.create()
        assert (await simulator.terminate(other["sessionId"])).status_code == 204
        assert (await simulator.get(stuck["sessionId"])).json() == stuck


IDENTIFIERS = (
    {"phoneNumber": "+34600999999"},
    {"networkAccessIdentifier": "device@operator.example"},
    {"ipv4Address": {"publicAddress": "192.0.2.7", "publicPort": 5000}},
    {"ipv6Address": "2001:db8::7"},
)


@pytest.mark.parametrize("identifier", IDENTIFIERS, ids=lambda identifier: next(iter(identifier)))
async def test_a_device_has_one_session(identifier: dict[str, Any]) -> None:
    """A device with a session gets 409 by any identifier in common, until the session has ended."""
    async with simulated(STILL) as simulator:
        everything = {name: value for each in IDENTIFIERS for name, value in each.items()}
        first = await simulator.create(device=everything)
        again = await simulator.client.post(simulator.sessions_url, json=simulator.wanted(device=identifier))
        assert (again.status_code, again.json()["code"]) == (409, "CONFLICT")
        await simulator.create(device={"ipv4Address": {"publicAddress": "192.0.2.7", "publicPort": 5001}})
        await simulator.delete(first["sessionId"])
        assert (await simulator.create(device=identifier))["device"] == identifier


async def test_a_device_is_free_once_its_session_has_expired() -> None:
    """The end of a session, by any cause, frees its device."""
    async with simulated(Options(speed=1000, available_after_seconds=0)) as simulator:
        device = {"phoneNumber": "+34600999999"}
        await simulator.until_gone((await simulator.create(device=device, duration=1))["sessionId"])
        await simulator.terminate((await simulator.create(device=device, duration=86_400))["sessionId"])
        await simulator.create(device=device)


WRONG_BODIES: tuple[tuple[Any, str, str], ...] = (
    (b"", "INVALID_ARGUMENT", "there is no body"),
    (b" ", "INVALID_ARGUMENT", "there is no body"),
    (b"{", "INVALID_ARGUMENT", "the body is not JSON"),
    (b"[]", "INVALID_ARGUMENT", "the body:"),
    (b"\xff", "INVALID_ARGUMENT", "the body is not JSON"),
    ({"device": None}, "INVALID_ARGUMENT", "device:"),
    ({"device": {}}, "INVALID_ARGUMENT", "device: must have one of phoneNumber, networkAccessIdentifier, ipv4Address"),
    ({"device": {"phoneNumber": "600000001"}}, "INVALID_ARGUMENT", "device.phoneNumber:"),
    ({"device": {"phoneNumber": "+0600000001"}}, "INVALID_ARGUMENT", "device.phoneNumber:"),
    ({"device": {"phoneNumber": "+34600000001\n"}}, "INVALID_ARGUMENT", "device.phoneNumber:"),
    ({"device": {"phoneNumber": "+3460000000100000"}}, "INVALID_ARGUMENT", "device.phoneNumber:"),
    ({"device": {"phoneNumber": 34600000001}}, "INVALID_ARGUMENT", "device.phoneNumber:"),
    ({"device": {"ipv4Address": {}}}, "INVALID_ARGUMENT", "device.ipv4Address.publicAddress:"),
    ({"device": {"ipv4Address": {"publicAddress": "1.2.3"}}}, "INVALID_ARGUMENT", "device.ipv4Address.publicAddress:"),
    (
        {"device": {"ipv4Address": {"publicAddress": "192.0.2.1", "publicPort": 65_536}}},
        "OUT_OF_RANGE",
        "device.ipv4Address.publicPort:",
    ),
    ({"device": {"ipv6Address": "fe80::1%eth0"}}, "INVALID_ARGUMENT", "device.ipv6Address: must not have a zone"),
    ({"device": {"phoneNumber": "+34600000001", "ipv6Address": None}}, "INVALID_ARGUMENT", "device.ipv6Address:"),
    ({"qosProfile": None}, "INVALID_ARGUMENT", "qosProfile:"),
    ({"qosProfile": "QOS_X"}, "INVALID_ARGUMENT", "qosProfile:"),
    ({"duration": None}, "INVALID_ARGUMENT", "duration:"),
    ({"duration": 0}, "OUT_OF_RANGE", "duration:"),
    ({"duration": 86_401}, "OUT_OF_RANGE", "duration:"),
    ({"duration": 1.5}, "INVALID_ARGUMENT", "duration:"),
    ({"duration": "60"}, "INVALID_ARGUMENT", "duration:"),
    ({"duration": True}, "INVALID_ARGUMENT", "duration:"),
    ({"notificationUrl": "ftp://receiver.example/"}, "INVALID_ARGUMENT", "notificationUrl: must be an http"),
    ({"notificationUrl": "http://user@receiver.example/"}, "INVALID_ARGUMENT", "notificationUrl:"),
    ({"notificationUrl": "http://receiver.example:70000/"}, "INVALID_ARGUMENT", "notificationUrl:"),
    ({"notificationUrl": "http://[2001:db8:::1]/"}, "INVALID_ARGUMENT", "notificationUrl:"),
    ({"notificationUrl": "/notifications"}, "INVALID_ARGUMENT", "notificationUrl:"),
    ({"notificationUrl": "http://receiver.example/\r\nx: y"}, "INVALID_ARGUMENT", "notificationUrl:"),
    ({"notificationUrl": f"http://receiver.example/{'x' * 2048}"}, "INVALID_ARGUMENT", "notificationUrl:"),
    ({"notificationAuthToken": "x" * 4097}, "INVALID_ARGUMENT", "notificationAuthToken:"),
    ({"notificationAuthToken": " x"}, "INVALID_ARGUMENT", "notificationAuthToken:"),
    ({"notificationAuthToken": "\u00e9"}, "INVALID_ARGUMENT", "notificationAuthToken:"),
    ({"notificationAuthToken": ""}, "INVALID_ARGUMENT", "notificationAuthToken:"),
    ({"notificationAuthToken": "a\r\nx: y"}, "INVALID_ARGUMENT", "notificationAuthToken:"),
    ({"applicationServer": {"ipv4Address": 1}}, "INVALID_ARGUMENT", "applicationServer.ipv4Address:"),
)


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a simulator where nothing happens by itself."""
    clients = ("--client", f"reader:r:{READ}", "--client", f"writer:w:{WRITE}")
    with serving(tmp_path_factory.mktemp("still"), "--speed", "0.001", *clients) as simulator:
        yield simulator.url


@pytest.fixture
def asked(still: str) -> Iterator[httpx2.Client]:
    """A client of that simulator, with a token with all rights."""
    with httpx2.Client(base_url=still, timeout=SECONDS_MAX) as client:
        client.headers["authorization"] = f"Bearer {access_token(client, secret='demo')}"
        yield client


def access_token(client: httpx2.Client, client_id: str = "demo", *, secret: str) -> str:
    """An access token of a client."""
    form = {"grant_type": "client_credentials"}
    return str(client.post("/token", data=form, auth=(client_id, secret)).json()["access_token"])


@pytest.mark.parametrize(("wrong", "code", "message"), WRONG_BODIES, ids=lambda value: str(value)[:60])
def test_a_wrong_request_is_told_what_is_wrong(
    wrong: bytes | dict[str, Any], code: str, message: str, asked: httpx2.Client
) -> None:
    """An invalid body gets 400, CAMARA's code, and a message that begins with the member."""
    if isinstance(wrong, bytes):
        answer = asked.post("/v1/qod/sessions", content=wrong, headers={"content-type": "application/json"})
    else:
        right: dict[str, Any] = {"device": {"phoneNumber": "+34600000001"}, "qosProfile": "QOS_E", "duration": 60}
        answer = asked.post("/v1/qod/sessions", json=right | wrong)
    told = answer.json()
    assert (answer.status_code, told["status"], told["code"]) == (400, 400, code)
    assert told["message"].startswith(message)


@pytest.mark.parametrize(
    "right",
    [
        {"device": {"phoneNumber": "+12345"}},
        {"device": {"networkAccessIdentifier": "one"}, "duration": 60.0},
        {"device": {"networkAccessIdentifier": "two"}, "duration": 86_400, "unknown": 1},
        {"device": {"networkAccessIdentifier": "three", "unknown": None}, "qosProfile": "QOS_L"},
        {"device": {"networkAccessIdentifier": "four"}, "notificationUrl": "https://[2001:db8::1]:8443/a?b=c"},
        {"device": {"networkAccessIdentifier": "five"}, "notificationUrl": "http://receiver_1:8080"},
        {"device": {"networkAccessIdentifier": "six"}, "notificationAuthToken": "Bearer x"},
        {"device": {"networkAccessIdentifier": "seven"}, "notificationAuthToken": "x" * 4096},
    ],
    ids=lambda right: str(right)[:80],
)
def test_a_right_request_is_taken(right: dict[str, Any], asked: httpx2.Client) -> None:
    """A valid request creates a session, and the answer has its members in the API's form."""
    answer = asked.post("/v1/qod/sessions", json={"qosProfile": "QOS_S", "duration": 1} | right)
    assert answer.status_code == 201, answer.text
    created = answer.json()
    assert answer.headers["location"] == f"/v1/qod/sessions/{created['sessionId']}"
    assert created["device"] == {name: value for name, value in right["device"].items() if name != "unknown"}
    assert isinstance(created["duration"], int)


OPERATIONS = (
    ("POST", "/v1/qod/sessions", WRITE),
    ("GET", "/v1/qod/sessions", READ),
    ("GET", "/v1/qod/sessions/3fa85f64-5717-4562-b3fc-2c963f66afa6", READ),
    ("DELETE", "/v1/qod/sessions/3fa85f64-5717-4562-b3fc-2c963f66afa6", WRITE),
)


@pytest.mark.parametrize(("method", "path", "scope"), OPERATIONS)
def test_each_operation_wants_a_token_with_its_scope(method: str, path: str, scope: str, asked: httpx2.Client) -> None:
    """Without a token or with an unknown one: 401. Without the scope: 403. With it: neither."""
    for wrong in (None, "Bearer nonsense", "Basic ZGVtbzpkZW1v", "Bearer", ""):
        headers = {} if wrong is None else {"authorization": wrong}
        answer = httpx2.request(method, f"{asked.base_url}{path}", headers=headers, timeout=SECONDS_MAX)
        assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHENTICATED")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    reader, writer = access_token(asked, "reader", secret="r"), access_token(asked, "writer", secret="w")
    allowed, refused = (reader, writer) if scope == READ else (writer, reader)
    answer = asked.request(method, path, headers={"authorization": f"Bearer {refused}"})
    assert (answer.status_code, answer.json()["code"]) == (403, "PERMISSION_DENIED")
    assert answer.headers["www-authenticate"] == f'Bearer error="insufficient_scope", scope="{scope}"'
    answer = asked.request(method, path, headers={"authorization": f"bearer {allowed}"})
    assert answer.status_code in {200, 400, 404}


@pytest.mark.parametrize(
    ("request_line", "headers", "status", "code"),
    [
        ("POST /v1/qod/sessions", {"content-type": "text/plain"}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST /v1/qod/sessions", {"content-type": "application/cloudevents+json"}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST /v1/qod/sessions", {}, 400, "INVALID_ARGUMENT"),
        ("PUT /v1/qod/sessions", {}, 405, "METHOD_NOT_ALLOWED"),
        ("POST /v1/qod/sessions/x", {}, 405, "METHOD_NOT_ALLOWED"),
        ("GET /token", {}, 405, "METHOD_NOT_ALLOWED"),
        ("GET /v1/qod/sessions/not-a-uuid", {}, 404, "NOT_FOUND"),
        ("GET /v1/qod/sessions/", {}, 404, "NOT_FOUND"),
        ("GET /v2/qod/sessions", {}, 404, "NOT_FOUND"),
        ("GET /ledger?from=0", {}, 400, "INVALID_ARGUMENT"),
        ("GET /ledger?limit=x", {}, 400, "INVALID_ARGUMENT"),
        ("GET /ledger/sessions?form=1", {}, 400, "INVALID_ARGUMENT"),
        ("POST /sessions/nobody/terminate", {}, 404, "NOT_FOUND"),
    ],
)
def test_every_refusal_has_the_same_body(
    request_line: str, headers: dict[str, str], status: int, code: str, asked: httpx2.Client
) -> None:
    """For any wrong request the answer is CAMARA's error."""
    method, path = request_line.split()
    answer = asked.request(method, path, headers=headers, content=b"{}" if "content-type" in headers else b"")
    assert (answer.status_code, answer.json()["status"], answer.json()["code"]) == (status, status, code)
    assert set(answer.json()) == {"status", "code", "message"}
    assert status != 405 or answer.headers["allow"]


def test_a_body_has_a_limit(asked: httpx2.Client) -> None:
    """A body of more than 64 KiB is not read to its end."""
    answer = asked.post("/v1/qod/sessions", content=b" " * 70_000, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "CONTENT_TOO_LARGE")


@pytest.mark.parametrize(("given", "echoed"), [("a-1_:;./<>{}", True), ("not this one", False), ("x" * 257, False)])
def test_the_correlator_is_echoed(given: str, echoed: bool, asked: httpx2.Client) -> None:
    """An x-correlator that fits CAMARA's pattern comes back, on success and refusal; else another is made."""
    for path in ("/v1/qod/sessions", "/v1/nothing"):
        answered = asked.get(path, headers={"x-correlator": given}).headers["x-correlator"]
        assert (answered == given) is echoed
        assert re.fullmatch(r"[a-zA-Z0-9\-_:;./<>{}]{1,256}", answered)


async def test_a_session_is_its_clients_alone() -> None:
    """Another client can neither read, list nor end it; but the device is busy for all."""
    options = STILL._replace(clients=[client_of("other:o")])
    async with simulated(options) as simulator:
        request = simulator.wanted()
        session = await simulator.create(**request)
        simulator.client.headers["authorization"] = f"Bearer {await simulator.token('other', 'o')}"
        assert (await simulator.get(session["sessionId"])).status_code == 404
        assert (await simulator.delete(session["sessionId"])).status_code == 404
        assert (await simulator.client.get(simulator.sessions_url)).json() == []
        assert (await simulator.client.post(simulator.sessions_url, json=request)).status_code == 409


async def test_sessions_have_a_limit() -> None:
    """Beyond the limit of sessions a request gets 429."""
    async with simulated(STILL._replace(sessions_max=2)) as simulator:
        await simulator.create()
        last = await simulator.create()
        answer = await simulator.client.post(simulator.sessions_url, json=simulator.wanted())
        assert (answer.status_code, answer.json()["code"]) == (429, "TOO_MANY_REQUESTS")
        await simulator.delete(last["sessionId"])
        await simulator.create()


def basic(credentials: str) -> dict[str, str]:
    """The header of HTTP Basic."""
    return {"authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}"}


FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    ("headers", "form", "status", "error"),
    [
        (basic("demo:demo"), "", 400, "invalid_request"),
        (basic("demo:demo"), "grant_type", 400, "invalid_request"),
        (basic("demo:demo"), "grant_type=client_credentials&grant_type=client_credentials", 400, "invalid_request"),
        (basic("demo:demo"), "grant_type=client_credentials&client_secret=demo", 400, "invalid_request"),
        (basic("demo:demo"), "grant_type=password", 400, "unsupported_grant_type"),
        (basic("demo:demo"), "grant_type=client_credentials&scope=openid", 400, "invalid_scope"),
        (basic("reader:r"), f"grant_type=client_credentials&scope={WRITE}", 400, "invalid_scope"),
        (basic("demo:wrong"), "grant_type=client_credentials", 401, "invalid_client"),
        (basic("nobody:"), "grant_type=client_credentials", 401, "invalid_client"),
        (basic("demo"), "grant_type=client_credentials", 401, "invalid_client"),
        ({"authorization": "Bearer x"}, "grant_type=client_credentials", 401, "invalid_client"),
        ({"authorization": "Basic !"}, "grant_type=client_credentials", 401, "invalid_client"),
        ({}, "grant_type=client_credentials&client_id=demo&client_secret=x", 401, "invalid_client"),
        ({}, "grant_type=client_credentials", 401, "invalid_client"),
        (basic("demo:demo") | {"content-type": "application/json"}, "{}", 400, "invalid_request"),
    ],
)
def test_tokens_are_refused_as_oauth_wants(
    headers: dict[str, str], form: str, status: int, error: str, still: str
) -> None:
    """RFC 6749, 5.2: each refusal has its error, and a wrong client is challenged."""
    answer = httpx2.post(f"{still}/token", headers=FORM | headers, content=form, timeout=SECONDS_MAX)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert set(answer.json()) == {"error", "error_description"}
    assert (status == 401) is ("www-authenticate" in answer.headers)


@pytest.mark.parametrize(
    ("headers", "form", "scope"),
    [
        (basic("demo:demo"), "grant_type=client_credentials", f"{READ} {WRITE}"),
        (basic("d%65mo:demo"), "grant_type=client_credentials", f"{READ} {WRITE}"),
        (basic("demo:demo"), f"grant_type=client_credentials&scope={WRITE}%20{READ}", f"{READ} {WRITE}"),
        (basic("demo:demo"), f"grant_type=client_credentials&scope={READ}", READ),
        (basic("writer:w"), "grant_type=client_credentials", WRITE),
        ({}, "grant_type=client_credentials&client_id=demo&client_secret=demo", f"{READ} {WRITE}"),
    ],
)
def test_tokens_are_granted_as_oauth_wants(headers: dict[str, str], form: str, scope: str, still: str) -> None:
    """RFC 6749, 5.1: the answer has a bearer token, its life and its scope, and may not be cached."""
    answer = httpx2.post(f"{still}/token", headers=FORM | headers, content=form, timeout=SECONDS_MAX)
    assert answer.status_code == 200
    token = answer.json()
    assert (token["token_type"], token["expires_in"], token["scope"]) == ("Bearer", 3600, scope)
    assert answer.headers["cache-control"] == "no-store"


def test_an_expired_token_lets_nobody_in() -> None:
    """At the second of its expiry a token is invalid; another simulator's always is."""
    tokens = Tokens({"demo": Client("demo", "demo")}, b"k" * 32, 60)
    form = b"grant_type=client_credentials&client_id=demo&client_secret=demo"
    token = tokens.grant(None, form, 1_000.0)[0]["access_token"]
    assert tokens.bearer(f"Bearer {token}", READ, 1_059.9) == "demo"
    with pytest.raises(Unauthorized, match="expired"):
        tokens.bearer(f"Bearer {token}", READ, 1_060.0)
    with pytest.raises(Unauthorized, match="the access token is unknown"):
        Tokens({}, b"l" * 32, 60).bearer(f"Bearer {token}", READ, 1_000.0)


@pytest.mark.parametrize("text", ["", "a", "a:", ":b", "a:b:openid", f"a:b:{READ},"])
def test_a_client_that_is_none_is_refused(text: str) -> None:
    """A client needs an id, a secret, and known scopes."""
    with pytest.raises(ValueError, match="ID:SECRET"):
        client_of(text)


def test_the_openid_configuration_leads_to_the_tokens(still: str) -> None:
    """The document names this server as the issuer, by the name in the request, and the URL of its tokens."""
    url = still.replace("127.0.0.1", "localhost")
    found = httpx2.get(f"{url}/.well-known/openid-configuration", timeout=SECONDS_MAX).json()
    assert found["issuer"] == url
    assert found["token_endpoint"] == f"{url}/token"
    assert found["scopes_supported"] == [READ, WRITE]
    assert found["grant_types_supported"] == ["client_credentials"]
    assert httpx2.get(found["jwks_uri"], timeout=SECONDS_MAX).json() == {"keys": []}


async def test_the_ledger_is_bounded() -> None:
    """The oldest entries and sessions are removed first, and counted; the counts include removed ones."""
    options = Options(plan=Plan(lost=1, stuck=0), ledger_max=3, speed=1000, available_after_seconds=0)
    async with simulated(options) as simulator:
        for _ in range(5):
            await simulator.create(duration=1, notificationUrl="http://127.0.0.1:1/")
        await simulator.until_ended()
        summary = await simulator.summary()
        assert (summary["sessions"], summary["entries"]) == (5, 10)
        assert summary["dropped"] == {"entries": 7, "sessions": 2}
        assert [entry["sequence"] for entry in await simulator.entries()] == [8, 9, 10]
        assert [life["session"] for life in await simulator.lives()] == [3, 4, 5]
        page = (await simulator.client.get(f"{simulator.url}/ledger?from=9&limit=1")).json()
        assert ([entry["sequence"] for entry in page["entries"]], page["next"], page["dropped"]) == ([9], 10, 7)
        page = (await simulator.client.get(f"{simulator.url}/ledger?from=11")).json()
        assert (page["entries"], page["next"]) == ([], 11)


async def test_the_back_door_tells_what_there_is(still: str) -> None:
    """The root lists every path of the application, and the reserved devices."""
    text = httpx2.get(still, timeout=SECONDS_MAX).text
    for path in ("/token", "/v1/qod/sessions/ID", "/ledger/summary", "/ledger/sessions", "/sessions/ID/terminate"):
        assert path in text
    assert "+99907…  is told its end before its beginning" in text


def test_requests_in_one_moment_get_one_session_for_a_device(asked: httpx2.Client) -> None:
    """Of many simultaneous requests for a session of one device, one gets it."""

    async def ask() -> list[int]:
        headers = {"authorization": asked.headers["authorization"]}
        async with httpx2.AsyncClient(base_url=str(asked.base_url), headers=headers, timeout=SECONDS_MAX) as client:
            request = {"device": {"phoneNumber": "+34600777777"}, "qosProfile": "QOS_E", "duration": 60}
            answers = await asyncio.gather(*(client.post("/v1/qod/sessions", json=request) for _ in range(20)))
            return sorted(answer.status_code for answer in answers)

    assert asyncio.run(ask()) == [201] + [409] * 19


DOCUMENT: dict[str, Any] = yaml.safe_load(OPENAPI.read_text())


def test_the_openapi_document_is_valid() -> None:
    """The description of the API is OpenAPI."""
    validate(DOCUMENT)


#: Telefónica's Quality on Demand API 0.10.0, operation by operation: scope, and the statuses that it names.
SEED = {
    ("/qod/sessions", "post"): ("createQodSession", WRITE, {"201", "400", "401", "403", "409"}),
    ("/qod/sessions", "get"): ("listQodSessions", READ, {"200", "401"}),
    ("/qod/sessions/{sessionId}", "get"): ("getQodSession", READ, {"200", "404"}),
    ("/qod/sessions/{sessionId}", "delete"): ("deleteQodSession", WRITE, {"204", "404"}),
}


def test_the_openapi_document_has_the_apis_facts() -> None:
    """Operations, scopes, statuses, members and limits are those of the API, except for more refusals."""
    for (path, method), (operation_id, scope, statuses) in SEED.items():
        operation = DOCUMENT["paths"][path][method]
        assert operation["operationId"] == operation_id
        assert operation["security"] == [{"openIdConnect": [scope]}]
        assert set(operation["responses"]) >= statuses
        assert all(status.startswith("4") for status in set(operation["responses"]) - statuses)
    schemas = DOCUMENT["components"]["schemas"]
    create = schemas["CreateSessionRequest"]
    assert set(create["required"]) == {"device", "qosProfile", "duration"}
    assert set(create["properties"]) == {
        *create["required"],
        "applicationServer",
        "notificationUrl",
        "notificationAuthToken",
    }
    assert create["properties"]["qosProfile"]["enum"] == ["QOS_E", "QOS_S", "QOS_M", "QOS_L"]
    duration = create["properties"]["duration"]
    assert (duration["type"], duration["minimum"], duration["maximum"]) == ("integer", 1, 86_400)
    assert set(schemas["SessionInfo"]["properties"]) == {
        "sessionId",
        "device",
        "qosProfile",
        "qosStatus",
        "startedAt",
        "expiresAt",
        "duration",
    }
    assert schemas["Device"]["properties"]["phoneNumber"]["pattern"] == r"^\+[1-9][0-9]{4,14}$"
    assert set(schemas["ErrorResponse"]["properties"]) == {"status", "code", "message"}


@pytest.mark.long
def test_the_api_is_as_the_openapi_document_says(tmp_path: Path) -> None:
    """Schemathesis finds no answer that the document lacks, and no accepted or refused request against it."""
    silent = tmp_path / "silent.toml"
    silent.write_text("lost = 1\n")  # its URLs are made up, and lead anywhere
    with serving(tmp_path, "--speed", "0.001", "--available-after", "0", "--plan", str(silent)) as simulator:
        with httpx2.Client(base_url=simulator.url, timeout=SECONDS_MAX) as client:
            token = access_token(client, secret="demo")
        command = [
            str(Path(sys.executable).with_name("st")),
            *("run", str(OPENAPI), "--url", f"{simulator.url}/v1", "--header", f"Authorization: Bearer {token}"),
            *("--max-examples", "25", "--seed", "1", "--generation-database", "none", "--no-color"),
        ]
        environment = {**os.environ, "COLUMNS": "120"}
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS_MAX, env=environment, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 selected / 4 total" in done.stdout
    assert re.search(r"(\d+) generated, \1 passed", done.stdout), done.stdout
