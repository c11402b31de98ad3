"""Strangers, greedy senders, few descriptors and a paused process: a real receiver in a process."""

import json
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from receiver.process.ports import connections_that_fit
from receiver.telemetry import Telemetry
from tests.limits import SECONDS_MAX
from tests.receiver_process import ReceiverProcess, run
from tests.samples import body, told
from tests.strangers import Target, play

BODY = body(told("A1")[0])


def logged(receiver: ReceiverProcess, event: str) -> list[dict[str, Any]]:
    """The lines of its log about an event."""
    lines = [json.loads(line) for line in receiver.log.read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def request(receiver: ReceiverProcess) -> bytes:
    """A post of a notification."""
    head = f"POST /notifications HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {receiver.token}\r\n"
    return f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY


def connected(url: str) -> socket.socket:
    """A connection to a port of ours."""
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=SECONDS_MAX)


@pytest.mark.long
async def test_nobody_is_harmed_by_strangers(tmp_path: Path) -> None:
    """With more connections than descriptors, and stalled posts, each good post and /livez is answered."""
    receiver = ReceiverProcess(tmp_path / "data", "--log-level", "warning", descriptors_max=400)
    greedy = run("token", "mint", "--data", str(receiver.directory), "--sender", "greedy").strip()
    target = Target(receiver.edge_url, receiver.ops_url, receiver.token, greedy)
    for name, seen in await play(target, 600, 300, seconds=2, rate=15, answer_seconds_max=SECONDS_MAX):
        assert not any(seen.failed.values()), f"beside {name}: {seen.failed}"
        assert len(seen.kept_alive) == len(seen.new) == 30
    (line,) = logged(receiver, "descriptors")
    assert (line["level"], line["descriptors_max"], line["connections_max"]) == ("warning", 400, 176)
    # Ten lines of a kind in ten seconds, and a count that is complete.
    assert 1 <= len(logged(receiver, "connection_ended")) < 400
    assert receiver.metric('qod_receiver_connections_ended_total{port="edge",reason="room_made"}') > 1000
    assert receiver.terminate() == 0


@pytest.mark.long
def test_a_lack_of_descriptors_is_survived(tmp_path: Path) -> None:
    """While no descriptor is free the process does not spin, and once there are some both ports answer."""
    receiver = ReceiverProcess(tmp_path / "data")
    process_id = receiver.process.pid
    open_count = len(list(Path(f"/proc/{process_id}/fd").iterdir()))
    hard = resource.prlimit(process_id, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(process_id, resource.RLIMIT_NOFILE, (open_count + 3, hard))
    strangers = [connected(receiver.edge_url) for _ in range(20)]
    before = ticks(process_id)
    time.sleep(2)
    assert ticks(process_id) - before < os.sysconf("SC_CLK_TCK")
    resource.prlimit(process_id, resource.RLIMIT_NOFILE, (hard, hard))
    assert httpx2.get(f"{receiver.ops_url}/livez", timeout=SECONDS_MAX).status_code == 200
    assert receiver.post(BODY) == [204]
    for stranger in strangers:
        stranger.close()
    assert receiver.terminate() == 0


def ticks(process_id: int) -> int:
    """The processor time of a process, in the system's ticks."""
    return sum(map(int, Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[11:13]))


@pytest.mark.long
def test_a_process_that_stood_still_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that were sent while the process was paused for longer than its limits are answered once it goes on."""
    for name in ("HEADER", "BODY", "IDLE"):
        monkeypatch.setenv(f"QOD_RECEIVER_EDGE__{name}_TIMEOUT_SECONDS", "1")
    receiver = ReceiverProcess(tmp_path / "data")
    begun, whole, idle = [connected(receiver.edge_url) for _ in range(3)]
    idle.sendall(request(receiver))
    assert idle.recv(1000).startswith(b"HTTP/1.1 204")
    begun.sendall(request(receiver)[:70])
    receiver.process.send_signal(signal.SIGSTOP)
    begun.sendall(request(receiver)[70:])
    for connection in (whole, idle):
        connection.sendall(request(receiver))
    whole.shutdown(socket.SHUT_WR)
    time.sleep(4)
    receiver.process.send_signal(signal.SIGCONT)
    for connection in (begun, whole, idle):
        assert connection.recv(1000).startswith(b"HTTP/1.1 204")
        connection.close()
    assert receiver.terminate() == 0


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    """The limit on descriptors, which is restored."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(("wanted", "fitting", "soft"), [(100, 100, 512), (289, 289, 513), (400, 400, 624)])
def test_the_limit_on_descriptors_is_raised(limits: tuple[int, int], wanted: int, fitting: int, soft: int) -> None:
    """The soft limit is raised as far as the connections, files and the other port need it, and no further."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, limits[1]))
    assert connections_that_fit(wanted, Telemetry(StringIO())) == fitting
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, limits[1])


def test_what_is_more_than_the_system_allows_is_cut(limits: tuple[int, int]) -> None:
    """Beyond the hard limit there are fewer connections than wanted."""
    hard = limits[1]
    if hard == resource.RLIM_INFINITY:
        pytest.skip("there is no hard limit here")
    assert connections_that_fit(hard, Telemetry(StringIO())) == hard - 224
