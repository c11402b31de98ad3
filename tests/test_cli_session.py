"""`qod-receiver session`, in this process and in others, with a simulator for its API and with servers that fail."""

import asyncio
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import jwt
import pytest

from receiver import cli
from tests.faulty_api import SESSION, SESSION_ID, FaultyApi, answer, cut, error
from tests.limits import SECONDS_MAX
from tests.receiver_process import COMMAND, ReceiverProcess
from tests.simulated import Process, serving

PHONE, NAI, IPV4, IPV6 = "+34600111222", "jane.doe@example.org", "203.0.113.77", "2001:db8::77"
SECRETS = (PHONE[1:], PHONE[3:], NAI, IPV4, IPV6)
DEVICE = ("--phone", PHONE, "--nai", NAI, "--ipv4", f"{IPV4}:50000", "--ipv6", IPV6)
WANTED = ("--profile", "QOS_E", "--duration", "3600")
PUBLIC_URL = "https://qod.example.com/notifications"
URL = ("--notification-url", PUBLIC_URL)


class Outcome(NamedTuple):
    """The result of a command: its exit status and its output."""

    status: int
    out: str
    err: str

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """The sessions in the output for programs."""
        return [json.loads(line) for line in self.out.splitlines()]


Session = Callable[..., Outcome]


@pytest.fixture
def session(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Session:
    """Runs a command of `session` in this process, in an empty directory and without settings in the environment."""
    for name in list(os.environ):
        if name.upper().startswith("QOD_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            cli.run(["session", *arguments])
        printed = capsys.readouterr()
        return Outcome(int(caught.value.code or 0), printed.out, printed.err)

    return call


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """`qod-receiver simulate`, whose sessions begin at once."""
    with serving(tmp_path_factory.mktemp("simulator"), "--available-after", "0") as process:
        yield process


def environment(url: str) -> dict[str, str]:
    """The settings of an API at a URL, as environment variables."""
    settings = {
        "BASE_URL": f"{url}/v1",
        "TOKEN_URL": f"{url}/token",
        "CLIENT_ID": "demo",
        "CLIENT_SECRET": "demo",
        "SENDER": "simulator",
    }
    return {f"QOD_RECEIVER_API__{name}": value for name, value in settings.items()}


@pytest.fixture
def api(simulator: Process, session: Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """Runs a command of `session` with the simulator as its API, and ends all sessions afterwards."""
    for name, value in environment(simulator.url).items():
        monkeypatch.setenv(name, value)
    yield session
    for each in session("list", "--json").sessions:
        session("delete", each["sessionId"])


def made(api: Session, *more: str) -> str:
    """Create a session; returns its id."""
    outcome = api("create", *DEVICE, *WANTED, *URL, "--json", *more)
    assert outcome.status == 0, outcome.err
    return str(outcome.sessions[0]["sessionId"])


def assert_discreet(*outcomes: Outcome) -> None:
    """Assert that the output has no identifier of a device, and no token."""
    printed = "".join(outcome.out + outcome.err for outcome in outcomes)
    assert not [secret for secret in SECRETS if secret in printed]
    assert not re.search(r"eyJ[A-Za-z0-9_-]+\.", printed), "a token was printed"


def test_the_life_of_a_session_for_programs(api: Session) -> None:
    """With --json each command prints one object a line, with the API's names, and without the device."""
    outcomes = [api("create", *DEVICE, *WANTED, *URL, "--json")]
    session_id = outcomes[0].sessions[0]["sessionId"]
    assert outcomes[0].sessions[0] == {
        "sessionId": session_id,
        "qosStatus": outcomes[0].sessions[0]["qosStatus"],
        "qosProfile": "QOS_E",
        "duration": 3600,
    }
    outcomes += [api("get", session_id, "--json"), api("list", "--json"), api("delete", session_id)]
    assert [outcome.status for outcome in outcomes] == [0] * 4
    assert outcomes[1].sessions == outcomes[2].sessions
    assert set(outcomes[1].sessions[0]) == {
        "sessionId",
        "qosStatus",
        "qosProfile",
        "duration",
        "startedAt",
        "expiresAt",
    }
    assert outcomes[3].out == f"session {session_id} is deleted\n"
    outcomes += [api("get", session_id), api("delete", session_id), api("list", "--json")]
    assert [outcome.status for outcome in outcomes[4:]] == [1, 1, 0]
    assert outcomes[4].err == outcomes[5].err == f"qod-receiver: the API has no session {session_id}\n"
    assert outcomes[6].out == ""
    assert_discreet(*outcomes)


def test_the_life_of_a_session_for_people(api: Session) -> None:
    """Without --json each command prints lines and a table with the same content."""
    outcomes = [api("create", *DEVICE, *WANTED, *URL)]
    found = re.search(r"^session +(\S+)$", outcomes[0].out, re.MULTILINE)
    assert found
    assert re.search(r"^profile +QOS_E$", outcomes[0].out, re.MULTILINE)
    outcomes += [api("get", found[1]), api("list")]
    assert re.search(r"^status +AVAILABLE$", outcomes[1].out, re.MULTILINE)
    assert re.search(r"^expires +\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", outcomes[1].out, re.MULTILINE)
    assert re.search(r"^session +status +profile +since +expires *$", outcomes[2].out, re.MULTILINE)
    assert re.search(rf"^{found[1]} +AVAILABLE +QOS_E +\S+Z +\S+Z *$", outcomes[2].out, re.MULTILINE)
    assert "1 session" in outcomes[2].out
    api("delete", found[1])
    assert api("list").out == "the API has no sessions of ours\n"
    assert_discreet(*outcomes)


def test_a_device_is_shown_to_who_asks(api: Session) -> None:
    """Only --show-device prints the device's identifiers."""
    session_id = made(api)
    device = {
        "phoneNumber": PHONE,
        "networkAccessIdentifier": NAI,
        "ipv4Address": {"publicAddress": IPV4, "publicPort": 50_000},
        "ipv6Address": IPV6,
    }
    assert api("get", session_id, "--show-device", "--json").sessions[0]["device"] == device
    assert api("list", "--show-device", "--json").sessions[0]["device"] == device
    for outcome in (api("get", session_id, "--show-device"), api("list", "--show-device")):
        assert all(secret in outcome.out for secret in (PHONE, NAI, IPV4, "50000", IPV6))


def test_a_device_that_has_a_session(api: Session) -> None:
    """A refusal of the API is shown with its code, and the status is 1."""
    made(api)
    outcome = api("create", *DEVICE, *WANTED, *URL)
    assert (outcome.status, outcome.out) == (1, "")
    assert re.fullmatch(
        r"qod-receiver: the QoD API answers 409 \(CONFLICT\): the device has a session already "
        r"\(x-correlator [0-9a-f-]{36}\)\n",
        outcome.err,
    )
    assert_discreet(outcome)


def test_notifications_come_to_the_receiver(tmp_path: Path, api: Session) -> None:
    """A session notifies the receiver that serves the directory, with a token that is accepted there."""
    receiver = ReceiverProcess(tmp_path / "data", mint=False)
    try:
        outcome = api("create", *DEVICE, *WANTED, "--data", str(tmp_path / "data"), "--json")
        assert outcome.status == 0, outcome.err
        assert f"go to {receiver.edge_url}, which a sender elsewhere can't reach" in outcome.err
        receiver.wait_until_routed(1)
        found = httpx2.get(f"{receiver.ops_url}/sessions", timeout=SECONDS_MAX).json()
    finally:
        receiver.kill()
    assert_discreet(outcome)
    session = next(each for each in found["sessions"] if each["sessionId"] == outcome.sessions[0]["sessionId"])
    assert (session["qosStatus"], session["sender"]) == ("AVAILABLE", "simulator")


async def run(*arguments: str, **variables: str) -> Outcome:
    """Runs a command of `session` in a process, beside a server in this one."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("QOD_")}
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        "session",
        *arguments,
        env={**inherited, "NO_COLOR": "1", "COLUMNS": "200", **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(SECONDS_MAX):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Outcome(process.returncode, out.decode(), err.decode())


@pytest.mark.parametrize(
    ("given", "url", "warned"),
    [
        ({"QOD_RECEIVER_EDGE__PUBLIC_URL": PUBLIC_URL}, PUBLIC_URL, False),
        ({}, "http://127.0.0.1:8080/notifications", True),
        ({"QOD_RECEIVER_EDGE__PORT": "81", "QOD_RECEIVER_EDGE__PATH": "/x"}, "http://127.0.0.1:81/x", True),
        ({"QOD_RECEIVER_EDGE__HOST": "::"}, "http://[::1]:8080/notifications", True),
        (
            {"QOD_RECEIVER_EDGE__HOST": "0.0.0.0"},  # noqa: S104  # nothing listens there
            "http://127.0.0.1:8080/notifications",
            True,
        ),
        ({"QOD_RECEIVER_EDGE__HOST": "::1"}, "http://[::1]:8080/notifications", True),
    ],
)
async def test_what_is_posted(given: dict[str, str], url: str, warned: bool, tmp_path: Path) -> None:
    """A creation has the receiver's URL, and a token for its sender that outlives the session by an hour."""
    async with FaultyApi().listening() as api:
        api.script(answer(201, SESSION))
        secret = "s" * 32
        variables = {**environment(api.url), **given, "QOD_RECEIVER_AUTH__MINT_SECRET": secret}
        outcome = await run("create", "--phone", PHONE, *WANTED, "--data", str(tmp_path), **variables)
    assert outcome.status == 0, outcome.err
    assert ("a sender elsewhere can't reach" in outcome.err) == warned
    assert (url in outcome.err) == warned
    posted = json.loads(api.posts()[0].body)
    token = posted.pop("notificationAuthToken")
    assert posted == {
        "device": {"phoneNumber": PHONE},
        "qosProfile": "QOS_E",
        "duration": 3600,
        "notificationUrl": url,
    }
    claims = jwt.decode(token, secret, algorithms=["HS256"])
    assert claims["sub"] == "simulator"
    assert claims["exp"] - 2 * 3600 == pytest.approx(time.time(), abs=SECONDS_MAX)
    assert token not in outcome.out + outcome.err
    assert_discreet(outcome)


async def test_a_creation_whose_answer_is_lost(tmp_path: Path) -> None:
    """The creation was posted once, and the output says where to look for the session."""
    async with FaultyApi().listening() as api:
        api.script(cut(201, {**SESSION, "device": {"phoneNumber": PHONE}}))
        outcome = await run("create", *DEVICE, *WANTED, *URL, "--data", str(tmp_path), **environment(api.url))
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.endswith("; it may have been created: see `session list`\n")
    assert len(api.posts()) == 1
    assert_discreet(outcome)


async def test_an_api_that_quotes_the_device(tmp_path: Path) -> None:
    """A device in the API's error is not printed, nor are characters that control a terminal."""
    async with FaultyApi().listening() as api:
        api.script(error(400, "INVALID_ARGUMENT", f"\x1b[31m{PHONE} and {NAI} at {IPV4} or {IPV6}"))
        outcome = await run("create", *DEVICE, *WANTED, *URL, "--data", str(tmp_path), **environment(api.url))
    assert outcome.status == 1
    assert "answers 400 (INVALID_ARGUMENT): [31m… and … at … or …" in outcome.err
    assert_discreet(outcome)


async def test_an_id_need_not_be_a_uuid(tmp_path: Path) -> None:
    """A session with any id is shown and ended by that id."""
    made_here = {**SESSION, "sessionId": "qod-7f3a9c"}
    async with FaultyApi().listening() as api:
        api.routes = {
            "POST /v1/qod/sessions": answer(201, made_here),
            "GET /v1/qod/sessions/qod-7f3a9c": answer(200, made_here),
            "DELETE /v1/qod/sessions/qod-7f3a9c": answer(204),
        }
        create = "create", "--phone", PHONE, *WANTED, *URL, "--data", str(tmp_path), "--json"
        outcomes = [await run(*create, **environment(api.url))]
        session_id = outcomes[0].sessions[0]["sessionId"]
        outcomes += [await run(command, session_id, **environment(api.url)) for command in ("get", "delete")]
    assert [outcome.status for outcome in outcomes] == [0, 0, 0], outcomes
    assert outcomes[2].out == "session qod-7f3a9c is deleted\n"


async def test_what_can_not_be_read_is_named() -> None:
    """A list with odd sessions shows the others, and names the odd ones on standard error."""
    odd = [{**SESSION, "sessionId": "s\u202e1", "qosStatus": "GRACE"}, {**SESSION, "sessionId": "s2", "qosStatus": "X"}]
    async with FaultyApi().listening() as api:
        api.script(answer(200, [*odd, SESSION]))
        outcome = await run("list", "--json", **environment(api.url))
        assert [each["sessionId"] for each in outcome.sessions] == [SESSION_ID]
        assert "a session can't be read: s2: qosStatus must be one of" in outcome.err
        assert outcome.err.count("a session can't be read") == 2
        api.script(answer(200, odd))
        outcome = await run("list", **environment(api.url))
    assert (outcome.status, outcome.out) == (0, "")


async def test_a_gateways_404_is_no_word_on_a_session() -> None:
    """Neither `get` nor `delete` says that there is no session if only a gateway says so."""
    async with FaultyApi().listening() as api:
        api.script(answer(404, {"message": "no Route matched with those values"}))
        for command in "get", "delete":
            outcome = await run(command, SESSION_ID, **environment(api.url))
            assert outcome.status == 1
            assert "answers 404: no Route matched with those values, which is not the API's own word" in outcome.err


async def test_the_key_of_a_gateway_is_sent_and_not_shown() -> None:
    """Headers of the settings are sent with each request, and no command prints their values."""
    key = "the-key-of-the-gateway"
    async with FaultyApi().listening() as api:
        api.script(answer(200, []))
        variables = {**environment(api.url), "QOD_RECEIVER_API__HEADERS": json.dumps({"X-Api-Key": key})}
        outcome = await run("list", **variables)
        api.script(error(403, "PERMISSION_DENIED", "no"))
        refused = await run("list", **variables)
    assert (outcome.status, refused.status) == (0, 1)
    assert {asked.headers.get("x-api-key") for asked in (*api.asked, *api.tokens_asked)} == {key}
    assert key not in outcome.out + outcome.err + refused.out + refused.err


async def test_what_the_api_tells_is_harmless() -> None:
    """Characters that control a terminal are escaped in the output."""
    async with FaultyApi().listening() as api:
        api.script(answer(200, [{**SESSION, "device": {"networkAccessIdentifier": "a\x1b[31m\u202e"}}]))
        outcome = await run("list", "--show-device", **environment(api.url))
    assert outcome.status == 0, outcome.err
    assert r"a\x1b[31m\u202e" in outcome.out


@pytest.mark.parametrize(
    "arguments",
    [("create", *DEVICE, *WANTED), ("list",), ("get", SESSION_ID), ("delete", SESSION_ID)],
    ids=["create", "list", "get", "delete"],
)
def test_without_an_api_it_is_told_how_to_get_one(arguments: tuple[str, ...], session: Session, tmp_path: Path) -> None:
    """Without a configured API each command names the settings that it needs, and how to try it out."""
    outcome = session(*arguments)
    assert (outcome.status, outcome.out) == (1, "")
    for wanted in ("api.base_url", "check-config", "simulate --port 9090", *environment("http://127.0.0.1:9090")):
        assert wanted in outcome.err
    assert "=http://127.0.0.1:9090/v1\n" in outcome.err
    assert "=http://127.0.0.1:9090/token\n" in outcome.err
    assert list(tmp_path.iterdir()) == []
    assert_discreet(outcome)


def test_what_it_says_to_set_is_enough(session: Session, simulator: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suggested lines are settings that work."""
    told = session("list").err.replace("http://127.0.0.1:9090", simulator.url)
    for name, value in re.findall(r"(QOD_RECEIVER_\w+)=(\S+)", told):
        monkeypatch.setenv(name, value)
    assert session("list").status == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("create", *WANTED), "a device is required"),
        (("create", "--phone", PHONE[1:], *WANTED), "a phone number has"),
        (("create", "--phone", f"{PHONE}x", *WANTED), "a phone number has"),
        (("create", PHONE, *WANTED), "a device is named by --phone"),
        (("create", *DEVICE, *WANTED, NAI), "a device is named by --phone"),
        (("create", "--ipv4", f"{IPV4}:99999", *WANTED), "IPv4 address"),
        (("create", "--ipv6", f"{IPV6}/64", *WANTED), "IPv6 address"),
        (("create", "--nai", "", *WANTED), "network access identifier"),
        (("create", *DEVICE, "--profile", "QOS_X", "--duration", "60"), "--profile"),
        (("create", *DEVICE, "--profile", "QOS_E", "--duration", "0"), "--duration"),
        (("create", *DEVICE, "--profile", "QOS_E", "--duration", "86401"), "--duration"),
        (("create", *DEVICE, "--profile", "QOS_E"), "--duration"),
        (("create", *DEVICE, "--duration", "60"), "--profile"),
        (("create", *DEVICE, *WANTED, "--server-ipv4", "x"), "server's IPv4 address"),
        (("create", *DEVICE, *WANTED, "--server-ipv6", "x"), "server's IPv6 address"),
        (("create", *DEVICE, *WANTED, "--notification-url", "ftp://x"), "--notification-url"),
        (("create", *DEVICE, *WANTED, f"--telephone={PHONE}"), "--telephone"),
        (("get", ""), "a session's id is 1 to 256 printable characters"),
        (("delete", "x" * 257), "a session's id is 1 to 256 printable characters"),
        (("delete", "a\x1b[31m"), "a session's id is 1 to 256 printable characters"),
        (("get",), "ID"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...], complaint: str, session: Session) -> None:
    """A request that the API would refuse is refused before anything else, without a word of the device."""
    outcome = session(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert complaint in outcome.err
    assert_discreet(outcome)


def test_a_port_that_is_not_known(api: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the edge takes any port and does not run, the command asks for a URL."""
    monkeypatch.setenv("QOD_RECEIVER_EDGE__PORT", "0")
    outcome = api("create", *DEVICE, *WANTED)
    assert outcome.status == 2
    assert "--notification-url" in outcome.err
    assert_discreet(outcome)
