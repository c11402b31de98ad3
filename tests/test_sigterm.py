"""SIGTERM at any moment of the life of `serve`."""

import os
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kafka_cluster import Brokers
from tests.receiver_process import COMMAND

_SECONDS_MAX = 120
#: The number of lives that end at random moments, each from its own seed.
LIVES = 8
#: Settings of a broker that does not exist: every part of the start waits for it.
NOWHERE = ("--kafka", "127.0.0.1:9")


def _start(directory: Path, *options: str) -> subprocess.Popen[bytes]:
    directory.mkdir()
    command = [*COMMAND, "serve", "--data", str(directory), "--port", "0", "--ops-port", "0", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0)


def _wait_until_caught(process: subprocess.Popen[bytes]) -> None:
    """Wait until the program has its handler for SIGTERM, which it sets before all else."""
    deadline = time.monotonic() + _SECONDS_MAX
    bit = 1 << (signal.SIGTERM - 1)
    while time.monotonic() < deadline:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1]
        if int(caught, 16) & bit:
            return
        time.sleep(0.002)
    raise AssertionError("SIGTERM was not caught in time")


def _serving_seconds(directory: Path, options: tuple[str, ...]) -> float:
    """The seconds from there until it serves."""
    process = _start(directory, *options)
    try:
        _wait_until_caught(process)
        began = time.monotonic()
        assert process.stdout is not None
        while b"Operations:" not in process.stdout.readline():
            assert process.poll() is None
        return time.monotonic() - began
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _end(directory: Path, options: tuple[str, ...], seconds: float, *, group: bool) -> str:
    """Send SIGTERM to a process after this time; returns what is wrong with its end."""
    process = _start(directory, *options)
    try:
        _wait_until_caught(process)
        time.sleep(seconds)
        (os.killpg if group else os.kill)(process.pid, signal.SIGTERM)
        _, said = process.communicate(timeout=_SECONDS_MAX)
        return "" if process.returncode == 0 else f"{process.returncode} after {seconds:.3f} s: {said.decode()}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [(), NOWHERE, (*NOWHERE, "--role", "router"), (*NOWHERE, "--workers", "2")],
    ids=["one file", "no broker", "router", "workers"],
)
def test_it_ends_well_whenever_it_is_told_to(tmp_path: Path, options: tuple[str, ...]) -> None:
    """After SIGTERM at any moment, to the process or to its whole group, the exit status is 0."""
    longest = 1.3 * _serving_seconds(tmp_path / "measured", options)
    chance = random.Random(20261127)  # not a secret
    moments = [chance.uniform(0, longest) for _ in range(LIVES)]
    with ThreadPoolExecutor(2) as lives:
        ended = [
            lives.submit(_end, tmp_path / str(number), options, moment, group=number % 2 == 1)
            for number, moment in enumerate(moments)
        ]
    wrong = [each.result() for each in ended if each.result()]
    assert not wrong, f"{len(wrong)} of {LIVES}: {wrong}"


def test_it_ends_well_beside_a_broker(
    kafka: Brokers, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same while topics are made and lanes are opened."""
    monkeypatch.setenv("QOD_RECEIVER_PREFIX", topic_prefix)
    test_it_ends_well_whenever_it_is_told_to(tmp_path, ("--kafka", kafka.bootstrap))
