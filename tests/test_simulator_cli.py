"""`qod-receiver simulate` as a process: its output and log, its end, and its refusals."""

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from receiver import cli
from receiver.simulator.plan import PRESETS, Plan, changed
from tests.limits import SECONDS_MAX
from tests.receiver_process import run
from tests.simulated import Process, serving

TOKEN = "the-secret-token-of-a-receiver"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(number: int, tmp_path: Path) -> None:
    """At SIGTERM and SIGINT it ends with 0, even while it waits for a receiver."""
    with socket.create_server(("127.0.0.1", 0)) as deaf, serving(tmp_path, "--available-after", "0") as simulator:
        create(simulator, f"http://127.0.0.1:{deaf.getsockname()[1]}/")
        wait_for_log(simulator, "granted")
        assert simulator.end(number) == 0
    events = [json.loads(line) for line in simulator.log.read_text().splitlines()]
    assert [event["failure"] for event in events if event["event"] == "posted"] == ["stopped"]


def test_a_client_that_breaks_off_is_no_failure(tmp_path: Path) -> None:
    """A request whose client leaves in the middle of its body is no fault of the simulator's, and none is logged."""
    with serving(tmp_path) as simulator:
        host, port = simulator.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(
                b"POST /token HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
                b"Content-Length: 100\r\n\r\ngrant_type="
            )
            httpx2.get(f"{simulator.url}/ledger/summary", timeout=SECONDS_MAX)  # by then the request has begun
        create(simulator, "http://127.0.0.1:9/")
        assert simulator.end(signal.SIGTERM) == 0
    assert "Exception" not in simulator.log.read_text()


def create(simulator: Process, url: str) -> str:
    """Create a session; returns its id."""
    with httpx2.Client(base_url=simulator.url, timeout=SECONDS_MAX) as client:
        form = {"grant_type": "client_credentials"}
        token = client.post("/token", data=form, auth=("demo", "demo")).json()["access_token"]
        request = {
            "device": {"phoneNumber": "+34600123456"},
            "qosProfile": "QOS_L",
            "duration": 3_600,
            "notificationUrl": f"{url}?apikey={TOKEN}",
            "notificationAuthToken": TOKEN,
        }
        headers = {"authorization": f"Bearer {token}"}
        answer = client.post("/v1/qod/sessions", json=request, headers=headers)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["sessionId"])


def wait_for_log(simulator: Process, text: str) -> None:
    """Wait until the log has a text."""
    with httpx2.Client(base_url=simulator.url, timeout=SECONDS_MAX) as client:
        for _ in range(10_000):
            client.get("/ledger/summary")
            if text in simulator.log.read_text():
                return
    raise AssertionError(simulator.log.read_text())


def test_the_log_tells_no_secrets(tmp_path: Path) -> None:
    """The log has every step and every post of a session, but no token and no device."""
    with serving(tmp_path, "--available-after", "0") as simulator:
        session_id = create(simulator, "http://127.0.0.1:1/")
        wait_for_log(simulator, "posted")
        assert simulator.end(signal.SIGTERM) == 0
    text = simulator.log.read_text()
    events = [json.loads(line) for line in text.splitlines()]
    assert [event["event"] for event in events] == ["session", "session", "posted"]
    assert {event["session_id"] for event in events} == {session_id}
    assert (events[-1]["answer"], events[-1]["failure"]) == (None, "no connection")
    for secret in (TOKEN, "34600123456", "demo"):
        assert secret not in text


@pytest.mark.skipif(shutil.which("curl") is None, reason="the lines that are printed want curl")
def test_the_lines_that_are_printed_create_a_session(tmp_path: Path) -> None:
    """The output fits a terminal of 80 columns and 24 lines, and a shell that runs it creates a session."""
    with serving(tmp_path) as simulator:
        lines = simulator.greeting.splitlines()
        assert len(lines) <= 22
        assert max(map(len, lines)) <= 80
        commands = simulator.greeting.partition("\n\n  ")[2]
        done = subprocess.run(
            ["bash", "-ec", commands],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "QOD_TOKEN": TOKEN},
            timeout=SECONDS_MAX,
        )
        created = json.loads(done.stdout)
        assert (created["qosStatus"], created["duration"]) == ("REQUESTED", 60)
        assert simulator.end(signal.SIGTERM) == 0


def test_options_reach_the_simulator(tmp_path: Path) -> None:
    """The output has speed, releases, seed and plan; the plan of the file overrides the preset."""
    plan = tmp_path / "plan.toml"
    plan.write_text("lost = 1\n")
    options = ("--speed", "60", "--dialect", "0.9,1.1", "--faults", "some", "--plan", str(plan), "--seed", "7")
    with serving(tmp_path, *options, "--available-after", "0", "--client", "me:mine") as simulator:
        assert "Speed 60, releases 0.9,1.1, faults some" in simulator.greeting
        assert "seed 7" in simulator.greeting
        create(simulator, "http://127.0.0.1:1/")
        wait_for_log(simulator, "granted")
        summary = httpx2.get(f"{simulator.url}/ledger/summary", timeout=SECONDS_MAX).json()
        assert (summary["entries"], summary["unsent"]) == (1, {"lost": 1})
        assert simulator.end(signal.SIGTERM) == 0


Simulate = Callable[..., tuple[int, str]]


@pytest.fixture
def simulate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Simulate:
    """Runs the command in this process, for cases that don't serve; returns its exit status, and its output."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*options: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            cli.run(["simulate", *options])
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out + printed.err

    return call


def test_the_plan_is_shown(simulate: Simulate) -> None:
    """--show-plan prints a plan that --plan accepts, with every line's meaning."""
    status, printed = simulate("--faults", "all", "--show-plan")
    assert status == 0
    assert changed(Plan(), printed) == PRESETS["all"]
    assert all("  # " in line for line in printed.splitlines())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--speed", "0"], "--speed"),
        (["--port", "70000"], "--port"),
        (["--dialect", "0.7"], "0.7: there are 0.8, 0.9, 0.9-flat, 0.10, 0.11, 1.0, 1.1, and all"),
        (["--dialect", ""], "--dialect"),
        (["--faults", "many"], "--faults"),
        (["--plan", "/nowhere.toml"], "--plan"),
        (["--client", "me"], "ID:SECRET"),
        (["--available-after", "-1"], "--available-after"),
        (["--log-level", "loud"], "--log-level"),
    ],
)
def test_wrong_usage_ends_with_2(options: list[str], complaint: str, simulate: Simulate) -> None:
    """A value that the help does not offer is refused, with the option's name or the choices."""
    status, printed = simulate(*options)
    assert status == 2
    assert complaint in printed


def test_a_wrong_plan_ends_with_2(tmp_path: Path, simulate: Simulate) -> None:
    """An impossible plan is refused before anything is served."""
    plan = tmp_path / "plan.toml"
    plan.write_text("lots = 1\n")
    status, printed = simulate("--plan", str(plan))
    assert status == 2
    assert "lots: Extra inputs" in printed


def test_a_port_in_use_ends_with_1() -> None:
    """A port in use is named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"can't listen on 127.0.0.1 port {port}" in run("simulate", "--port", port, expect=1)
