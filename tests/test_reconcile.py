"""Reconciliation from outside: an operator that does not notify everything, a real receiver, and its topics.

The device numbers are those that the simulator has reserved: see `receiver/simulator/plan.py`.
"""

import asyncio
import io
import json
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from receiver.core import rfc3339
from receiver.process.directory import open_directory, open_reader
from receiver.process.embedded import EmbeddedNode
from receiver.process.reconciling import reconciler
from receiver.process.routing import build_router
from receiver.qod.reconciler import Schedule
from receiver.settings import load
from receiver.telemetry import Telemetry
from tests import simulated
from tests.faulty_api import SESSION, SESSION_ID, FaultyApi, answer, error
from tests.kafka_process import until
from tests.limits import SECONDS_MAX
from tests.nodes import until as eventually
from tests.receiver_process import ReceiverProcess, run, tail

NEVER_NOTIFIED = "+99904000001"
TOLD = "+99900000001"
#: A session of this many seconds is on a list that is compared, also on a busy machine.
LISTED_SECONDS = 12
COMPARED = "qod_receiver_reconciliations_total", {"outcome": "done"}


class Operator:
    """A simulator in a process, and requests of an application to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        form = {"grant_type": "client_credentials"}
        token = httpx2.post(f"{url}/token", data=form, auth=("demo", "demo"), timeout=SECONDS_MAX).json()[
            "access_token"
        ]
        headers = {"authorization": f"Bearer {token}"}
        self.client = httpx2.Client(base_url=f"{url}/v1/qod", headers=headers, timeout=SECONDS_MAX)

    def create(self, phone_number: str, duration: int, receiver: ReceiverProcess) -> str:
        """Create a session that the receiver is notified of, or should be; returns its id."""
        wanted = {
            "device": {"phoneNumber": phone_number},
            "qosProfile": "QOS_E",
            "duration": duration,
            "notificationUrl": receiver.edge_url,
            "notificationAuthToken": receiver.token,
        }
        answer = self.client.post("/sessions", json=wanted)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["sessionId"])

    def session(self, session_id: str) -> dict[str, Any]:
        """The session as the API has it."""
        found: dict[str, Any] = self.client.get(f"/sessions/{session_id}").json()
        return found


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operator]:
    """An operator whose API all receivers that are started from now on know, and ask all the time."""
    with simulated.serving(tmp_path, "--available-after", "0.2") as process:
        known(monkeypatch, process.url)
        yield Operator(process.url)


def known(monkeypatch: pytest.MonkeyPatch, url: str, **more: str) -> None:
    """Let all receivers that are started from now on know an API."""
    api = {"BASE_URL": f"{url}/v1", "TOKEN_URL": f"{url}/token", "CLIENT_ID": "demo", "CLIENT_SECRET": "demo"}
    quick = {"SENDER": "test", "RECONCILE_SECONDS": "0.3", "GRACE_SECONDS": "0"}
    for name, text in {**api, **quick, **more}.items():
        monkeypatch.setenv(f"QOD_RECEIVER_API__{name}", text)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], ReceiverProcess]]:
    """Starts receivers on one directory, one after the other; the last is ended with the test."""
    started: list[ReceiverProcess] = []

    def call() -> ReceiverProcess:
        started.append(ReceiverProcess(tmp_path / "data"))
        return started[-1]

    yield call
    for each in started:
        each.kill()


Start = Callable[[], ReceiverProcess]


def sessions(receiver: ReceiverProcess) -> dict[str, dict[str, Any]]:
    """The sessions table, by session."""
    told = httpx2.get(f"{receiver.ops_url}/sessions", params={"limit": 1000}, timeout=SECONDS_MAX).json()["sessions"]
    return {each["sessionId"]: each for each in told}


def available(session_id: str) -> bytes:
    """A notification of now."""
    event = {
        "id": str(uuid.uuid4()),
        "source": "/operators/test",
        "specversion": "1.0",
        "type": "org.camaraproject.qod.v0.qos-status-changed",
        "time": rfc3339.render(time.time_ns() // 1000),
        "data": {"sessionId": session_id, "qosStatus": "AVAILABLE"},
    }
    return json.dumps(event).encode()


def on_topic(receiver: ReceiverProcess, topic: str) -> list[tuple[str, str | None, str | None]]:
    """Status, reason and origin of each record."""
    return [
        (record["value"]["qosStatus"], record["value"].get("statusInfo"), record["headers"].get("origin"))
        for record in tail(receiver.directory, topic)
    ]


def has_no_device(directory: Path) -> bool:
    """Whether the receiver wrote no phone number, its log included."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return files != [] and not any(b"99904000001" in path.read_bytes() for path in files)


@pytest.mark.long
def test_a_session_that_is_never_notified(operator: Operator, start: Start) -> None:
    """A session without notifications is on the topics all the same, in order and once, marked, enriched, without the
    device.
    """
    receiver = start()
    session_id = operator.create(NEVER_NOTIFIED, LISTED_SECONDS, receiver)
    expires_at = ""

    def is_over() -> bool:
        nonlocal expires_at
        found = sessions(receiver).get(session_id, {})
        if found.get("qosStatus") == "AVAILABLE":
            expires_at = found["expiresAt"]
        return found.get("qosStatus") == "UNAVAILABLE"

    until(is_over, "the end")
    found = sessions(receiver)[session_id]
    assert (found["statusInfo"], found["qosProfile"], found["duration"]) == (
        "DURATION_EXPIRED",
        "QOS_E",
        LISTED_SECONDS,
    )
    assert len(found["deviceHash"]) == 64
    assert "device" not in found
    assert expires_at
    told = on_topic(receiver, "status")
    assert [each for each in told if each[0] != "REQUESTED"] == [
        ("AVAILABLE", None, "reconcile"),
        ("UNAVAILABLE", "DURATION_EXPIRED", "reconcile"),
    ]
    assert on_topic(receiver, "unavailable") == [("UNAVAILABLE", "DURATION_EXPIRED", "reconcile")]
    (end,) = tail(receiver.directory, "unavailable")
    assert end["value"]["availableSeconds"] == pytest.approx(LISTED_SECONDS, abs=1)
    assert end["value"]["unexpected"] is False
    receiver.terminate()
    assert has_no_device(receiver.directory)


@pytest.mark.long
def test_a_late_original_is_no_news(operator: Operator, start: Start) -> None:
    """A notification that is posted after its change was found by asking has no further effect, however late."""
    receiver = start()
    session_id = operator.create(NEVER_NOTIFIED, LISTED_SECONDS, receiver)
    until(lambda: sessions(receiver).get(session_id, {}).get("qosStatus") == "UNAVAILABLE", "the end")
    before = on_topic(receiver, "status")
    data = {"sessionId": session_id, "qosStatus": "UNAVAILABLE", "statusInfo": "DURATION_EXPIRED"}
    original = {
        "id": "the-original",
        "source": f"https://api.example.com/sessions/{session_id}",
        "specversion": "1.0",
        "type": "org.camaraproject.qod.v0.qos-status-changed",
        "time": sessions(receiver)[session_id]["expiresAt"],
        "data": data,
    }
    assert receiver.post(json.dumps(original).encode()) == [204]
    assert on_topic(receiver, "status") == before
    assert len(on_topic(receiver, "unavailable")) == 1


@pytest.mark.long
def test_an_ordinary_session_is_enriched(operator: Operator, start: Start) -> None:
    """Facts of senders stay as they are, and carry the API's facts from then on."""
    receiver = start()
    session_id = operator.create(TOLD, 60, receiver)
    until(lambda: "deviceHash" in sessions(receiver).get(session_id, {}), "facts")
    until(lambda: sessions(receiver)[session_id]["qosStatus"] == "AVAILABLE", "AVAILABLE")
    assert operator.client.delete(f"/sessions/{session_id}").status_code == 204
    until(lambda: sessions(receiver)[session_id]["qosStatus"] == "UNAVAILABLE", "the end")
    until(lambda: tail(receiver.directory, "unavailable"), "the end on the topic")
    (end,) = tail(receiver.directory, "unavailable")
    assert (end["value"]["qosProfile"], end["value"]["duration"]) == ("QOS_E", 60)
    assert end["value"]["deviceHash"] == sessions(receiver)[session_id]["deviceHash"]


@pytest.mark.long
def test_a_session_that_was_made_here_is_enriched_from_the_first(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`session create` tells the receiver of the session before its first notification can come."""
    with simulated.serving(tmp_path, "--available-after", "5") as process:  # also on a busy machine
        known(monkeypatch, process.url, RECONCILE_SECONDS="0")
        receiver = start()
        options = "--profile", "QOS_L", "--duration", "1", "--json", "--data", str(receiver.directory)
        session_id = json.loads(run("session", "create", "--phone", TOLD, *options))["sessionId"]
        until(lambda: sessions(receiver).get(session_id, {}).get("qosStatus") == "UNAVAILABLE", "the end")
    told = [
        (record["value"]["qosStatus"], record["headers"].get("origin"), record["value"]["qosProfile"])
        for record in tail(receiver.directory, "status")
    ]
    assert told == [
        ("REQUESTED", "client", "QOS_L"),
        ("AVAILABLE", None, "QOS_L"),
        ("UNAVAILABLE", None, "QOS_L"),
    ]
    hashes = {record["value"]["deviceHash"] for record in tail(receiver.directory, "status")}
    assert len(hashes) == 1
    files = [path.read_bytes() for path in receiver.directory.rglob("*") if path.is_file()]
    assert not any(TOLD.encode() in each for each in files)


def test_a_failing_api_disturbs_nobody(monkeypatch: pytest.MonkeyPatch, start: Start) -> None:
    """If the API refuses connections or does not answer, notifications are kept, and the operator is told."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        known(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}", TIMEOUT_SECONDS="0.5", ATTEMPTS_MAX="1")
        receiver = start()

        def notice() -> str:
            return str(httpx2.get(f"{receiver.ops_url}/readyz", timeout=SECONDS_MAX).json()["checks"].get("api", "ok"))

        until(lambda: notice() != "ok", "a notice")
        assert httpx2.get(f"{receiver.ops_url}/readyz", timeout=SECONDS_MAX).status_code == 200
        assert receiver.post(b'{"sessionId": "s-1", "event": "SESSION_TERMINATED"}') == [204]
    assert receiver.metric('qod_receiver_reconciliations_total{outcome="failed"}') >= 1
    assert "Traceback" not in receiver.log.read_text()
    assert receiver.terminate() == 0


@pytest.mark.long
async def test_what_is_not_routed_yet_is_told_once(
    operator: Operator, start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However far behind the router is, comparisons don't fill the inbox with the same facts again and again."""
    monkeypatch.setenv("QOD_RECEIVER_API__RECONCILE_SECONDS", "0")
    session_id = operator.create(NEVER_NOTIFIED, 600, start())
    until(lambda: operator.session(session_id)["qosStatus"] == "AVAILABLE", "AVAILABLE")
    settings = load(None, {"data": tmp_path / "unrouted"})
    telemetry = Telemetry(io.StringIO())
    with closing(open_directory(settings)) as node, closing(open_reader(settings)) as reader:
        async with reconciler(
            settings, EmbeddedNode(node, reader, settings, telemetry, build_router(settings))
        ) as made:
            schedule = Schedule(made, node.inbox, telemetry, interval_seconds=0.2, grace_seconds=0)
            running = asyncio.create_task(schedule.run())
            await eventually(lambda: (telemetry.registry.get_sample_value(*COMPARED) or 0) >= 10)
            running.cancel()
            await asyncio.wait({running})
        told = [json.loads(each.body)["data"]["qosStatus"] for each in (await node.lane.read(100)).notifications]
    assert not schedule.trouble
    assert "AVAILABLE" in told
    assert sorted(set(told)) == sorted(told)


@pytest.mark.long
@pytest.mark.parametrize("served", [True, False])
def test_reconcile_by_command(
    operator: Operator, start: Start, monkeypatch: pytest.MonkeyPatch, *, served: bool
) -> None:
    """A dry run lists the differences and routes nothing; the command routes them, and then there are no more."""
    monkeypatch.setenv("QOD_RECEIVER_API__RECONCILE_SECONDS", "0")
    receiver = start()
    session_id = operator.create(NEVER_NOTIFIED, 600, receiver)
    until(lambda: operator.session(session_id)["qosStatus"] == "AVAILABLE", "AVAILABLE")
    if not served:
        receiver.terminate()
    data = "--data", str(receiver.directory)
    listed = run("reconcile", "--dry-run", *data)
    assert session_id in listed
    assert "1 status, and facts of 0 other sessions, would be told" in listed
    assert "1 status, and facts of 0 other sessions, would be told" in run("reconcile", "--dry-run", *data)
    assert "1 status, and facts of 0 other sessions, went into the inbox" in run("reconcile", *data)
    if not served:
        receiver = start()
    until(lambda: session_id in sessions(receiver), "the session")
    assert "0 statuses, and facts of 0 other sessions, would be told" in run("reconcile", "--dry-run", *data)
    assert has_no_device(receiver.directory)


@pytest.mark.long
async def test_a_gateways_word_ends_nobody_and_a_mistaken_end_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway's 404 ends no session. The API's own does, until the API or the sender says that it is AVAILABLE."""
    times = {"startedAt": "2026-11-27T20:00:00Z", "expiresAt": "2036-11-27T20:00:00Z"}
    listed = {**SESSION, **times, "qosStatus": "AVAILABLE"}
    sessions_path = "GET /v1/qod/sessions"
    async with FaultyApi().listening() as api:
        api.routes[sessions_path] = answer(200, [listed])
        api.script(answer(404, {"message": "no Route matched with those values"}))
        known(monkeypatch, api.url)
        receiver = await asyncio.to_thread(ReceiverProcess, tmp_path / "data")

        def status() -> str:
            return str(sessions(receiver).get(SESSION_ID, {}).get("qosStatus"))

        def passed_over() -> float:
            return receiver.metric('qod_receiver_api_sessions_passed_over_total{why="unanswered"}')

        async def until_it_is(wanted: str) -> None:
            await asyncio.to_thread(until, lambda: status() == wanted, wanted)

        try:
            await until_it_is("AVAILABLE")
            api.routes[sessions_path] = answer(200, [])
            await asyncio.to_thread(until, lambda: passed_over() >= 3, "comparisons")
            assert await asyncio.to_thread(status) == "AVAILABLE"
            ready = await asyncio.to_thread(httpx2.get, f"{receiver.ops_url}/readyz", timeout=SECONDS_MAX)
            assert ready.status_code == 200
            assert "does not answer for 1 session that its list lacks" in ready.json()["checks"]["api"]
            api.script(error(404, "NOT_FOUND", "there is no such session"))
            await until_it_is("UNAVAILABLE")
            api.routes[sessions_path] = answer(200, [listed])
            await until_it_is("AVAILABLE")
            api.routes[sessions_path] = answer(200, [])
            await until_it_is("UNAVAILABLE")
            api.script(answer(404, {"message": "no Route matched with those values"}))

            def is_back() -> bool:
                assert receiver.post(available(SESSION_ID)) == [204]
                return status() == "AVAILABLE"

            await asyncio.to_thread(until, is_back, "AVAILABLE")
            told = await asyncio.to_thread(on_topic, receiver, "status")
        finally:
            receiver.kill()
    changes = [
        each[0] for each, before in zip(told, [None, *told], strict=False) if before is None or each[0] != before[0]
    ]
    assert changes == ["AVAILABLE", "UNAVAILABLE", "AVAILABLE", "UNAVAILABLE", "AVAILABLE"]


def test_devices_are_told_where_that_is_wanted(
    operator: Operator, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration may let the topics have the device itself; the log never has it."""
    monkeypatch.setenv("QOD_RECEIVER_API__DEVICE_IDENTIFIERS", "true")
    receiver = start()
    session_id = operator.create(NEVER_NOTIFIED, 60, receiver)
    until(lambda: session_id in sessions(receiver), "the session")
    assert sessions(receiver)[session_id]["device"] == {"phoneNumber": NEVER_NOTIFIED}
    receiver.terminate()
    assert NEVER_NOTIFIED not in receiver.log.read_text()


def test_without_an_api_there_is_nothing_to_compare(tmp_path: Path) -> None:
    """The command names the missing settings."""
    assert "api.base_url" in run("reconcile", "--data", str(tmp_path), expect=1)
