"""The program from outside: processes, sockets, signals, exit statuses."""

import asyncio
import json
import os
import subprocess
from pathlib import Path

import httpx2
import pytest

from tests.kill import Load, check, kill_rounds
from tests.limits import SECONDS_MAX
from tests.receiver_process import COMMAND, ReceiverProcess, run, tail

ENDED = {
    "id": "1",
    "source": "/s",
    "specversion": "1.0",
    "type": "org.camaraproject.qod.v0.qos-status-changed",
    "time": "2026-11-24T10:00:00Z",
    "data": {"sessionId": "s-1", "qosStatus": "UNAVAILABLE", "statusInfo": "NETWORK_TERMINATED"},
}


def post(receiver: ReceiverProcess, body: bytes, path: str = "", **headers: str) -> httpx2.Response:
    """Post a body with the receiver's token, unless `headers` has another."""
    known = {"authorization": f"Bearer {receiver.token}", "content-type": "application/json"}
    return httpx2.post(f"{receiver.edge_url}{path}", content=body, headers=known | headers, timeout=SECONDS_MAX)


@pytest.mark.long
async def test_nothing_is_lost_or_repeated_by_kills(tmp_path: Path) -> None:
    """Each notification that was answered 204 is on its topics once, in order, after SIGKILLs under load."""
    load = await kill_rounds(tmp_path / "node", rounds=6, seed=20261124)
    assert load.faults["no answer"], "no kill met a request in progress: nothing was tested"
    assert load.faults["repeated"]
    assert len(load.kept) > 100
    assert not check(tmp_path / "node", load)


@pytest.mark.long
async def test_sigterm_answers_what_was_begun(tmp_path: Path) -> None:
    """After SIGTERM under load the exit status is 0, and each notification that was answered 204 is on the topics."""
    load = Load(seed=1)
    load.receiver = receiver = ReceiverProcess(tmp_path / "node")
    running = asyncio.create_task(load.run())
    await load.more(101)
    load.stop()
    assert await asyncio.to_thread(receiver.terminate) == 0
    kept_by_first = dict(load.kept)
    load.receiver = await asyncio.to_thread(ReceiverProcess, tmp_path / "node")
    await running
    await asyncio.to_thread(load.receiver.wait_until_routed, 0)
    assert await asyncio.to_thread(load.receiver.terminate) == 0
    assert len(kept_by_first) > 100
    assert not check(tmp_path / "node", load)


@pytest.mark.long
def test_every_dialect_reaches_the_topics(tmp_path: Path) -> None:
    """The three dialects, on both paths, come out on the topics; a malformed body is 400 and a dead letter."""
    receiver = ReceiverProcess(tmp_path / "node")
    flat = {"eventType": "QOS_STATUS_CHANGED", "eventDetail": {"sessionId": "s-2", "qosStatus": "AVAILABLE"}}
    bare = {"sessionId": "s-3", "event": "SESSION_TERMINATED"}
    for body, path in ((ENDED, ""), (flat, ""), (bare, "/notifications"), (ENDED, "")):
        assert post(receiver, json.dumps(body).encode(), path).status_code == 204
    answer = post(receiver, b'{"specversion": "1.0"}')
    assert answer.status_code == 400
    assert answer.json()["code"] == "INVALID_ARGUMENT"
    receiver.wait_until_routed(5)
    assert receiver.terminate() == 0
    assert {record["key"] for record in tail(receiver.directory, "status")} == {"s-1", "s-2", "s-3"}
    assert [record["key"] for record in tail(receiver.directory, "unavailable")] == ["s-1", "s-3"]
    (dead,) = tail(receiver.directory, "dead-letter")
    assert dead["value"]["verdict"] == "malformed"


@pytest.mark.long
def test_a_second_serving_process_is_refused(tmp_path: Path) -> None:
    """A directory is served by one process at a time; the other ends with 1 and says why."""
    receiver = ReceiverProcess(tmp_path / "node")
    try:
        told = run("serve", "--data", str(receiver.directory), "--port", "0", "--ops-port", "0", expect=1)
        assert "another process serves" in told
    finally:
        assert receiver.terminate() == 0


@pytest.mark.long
def test_a_token_is_never_told(tmp_path: Path) -> None:
    """Tokens, right or wrong, in the header or the query, are in no log, no answer, no metric and no topic."""
    receiver = ReceiverProcess(tmp_path / "node", "--log-level", "debug")
    wrong = "canary-4f7a9c1e5b3d"
    answers = [
        post(receiver, json.dumps(ENDED).encode()),
        post(receiver, json.dumps(ENDED).encode(), authorization=f"Bearer {wrong}"),
        post(receiver, json.dumps(ENDED).encode(), authorization=f"Basic {wrong}"),
        post(receiver, json.dumps(ENDED).encode(), path=f"?access_token={wrong}", authorization=""),
        post(receiver, b"{", authorization=f"Bearer Bearer {receiver.token}"),
    ]
    assert [answer.status_code for answer in answers] == [204, 401, 401, 401, 400]
    receiver.wait_until_routed(2)
    told = (
        "".join(answer.text for answer in answers) + httpx2.get(f"{receiver.ops_url}/metrics", timeout=SECONDS_MAX).text
    )
    assert receiver.terminate() == 0
    told += receiver.log.read_text()
    told += json.dumps([tail(receiver.directory, topic) for topic in ("status", "sessions", "dead-letter")])
    assert wrong not in told
    assert receiver.token not in told


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_probes_are_answered(tmp_path: Path, method: str) -> None:
    """Senders that probe the endpoint before they post get an answer."""
    receiver = ReceiverProcess(tmp_path / "node")
    headers = {"webhook-request-origin": "operator.example"}
    answer = httpx2.request(method, receiver.edge_url, headers=headers, timeout=SECONDS_MAX)
    assert answer.status_code == 204
    assert ("webhook-allowed-origin" in answer.headers) is (method == "OPTIONS")
    assert receiver.terminate() == 0


@pytest.mark.long
def test_replay_brings_back_what_can_be_read_today(tmp_path: Path) -> None:
    """`replay` sends dead letters again, through the serving process and without one; nothing takes effect twice."""
    receiver = ReceiverProcess(tmp_path / "node")
    other = ENDED | {"type": "org.camaraproject.qos-booking.v0.status-changed"}
    assert post(receiver, json.dumps(other).encode()).status_code == 204
    receiver.wait_until_routed(1)
    run("replay", "--data", str(receiver.directory))
    receiver.wait_until_routed(2)
    assert receiver.terminate() == 0
    run("replay", "--data", str(receiver.directory))
    assert len(tail(receiver.directory, "dead-letter")) == 1


@pytest.mark.long
def test_another_prefix_is_refused(tmp_path: Path) -> None:
    """A directory whose topics have one prefix is not served under another, and goes on under its own."""
    receiver = ReceiverProcess(tmp_path / "data")
    receiver.post(json.dumps(ENDED).encode())
    receiver.terminate()
    environment = {**os.environ, "QOD_RECEIVER_PREFIX": "other"}
    command = [*COMMAND, "serve", "--data", str(tmp_path / "data"), "--port", "0", "--ops-port", "0"]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "there is no topic other.sessions in this directory" in refused.stderr
    again = ReceiverProcess(tmp_path / "data")
    assert again.terminate() == 0
