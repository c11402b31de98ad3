"""A real receiver in a process, for tests that look at it from outside."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2

from tests.limits import SECONDS_MAX

#: The first argument is the limit, the others are the command.
_LIMITED = 'ulimit -n "$0" && exec "$@"'

COMMAND = (sys.executable, "-m", "receiver")


class ReceiverProcess:
    """`qod-receiver serve` on a directory, on free ports, with a token of its own unless `mint` is false.

    Its output goes to the file `out` in that directory, its log to `log`. `descriptors_max` limits its open files; None
    leaves that to the system.
    """

    def __init__(self, directory: Path, *options: str, mint: bool = True, descriptors_max: int | None = None) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.token = run("token", "mint", "--data", str(directory), "--sender", "test").strip() if mint else ""
        self.log = directory / "log"
        self._out = directory / "out"
        limited = () if descriptors_max is None else ("sh", "-c", _LIMITED, str(descriptors_max))
        with self.log.open("ab") as log, self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [*limited, *COMMAND, "serve", "--data", str(directory), "--port", "0", "--ops-port", "0", *options],
                stdout=out,
                stderr=log,
            )
        self.edge_url, self.ops_url = self._wait_until_serving()

    def printed(self) -> str:
        """Its standard output up to its readiness."""
        httpx2.get(f"{self.ops_url}/livez", timeout=SECONDS_MAX)  # answered only when it is ready
        return self._out.read_text()

    def post(self, *bodies: bytes) -> list[int]:
        """Post bodies one after the other, wait until they are routed, and return the answers' status codes."""
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        before = self._decided()
        with httpx2.Client(timeout=SECONDS_MAX, headers=headers) as client:
            answers = [client.post(self.edge_url, content=body).status_code for body in bodies]
        self.wait_until_routed(before + sum(answer in {204, 400} for answer in answers))
        return answers

    def kill(self) -> None:
        """Kill the process, as a power cut would."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """Ask it to end, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS_MAX)

    def metric(self, sample: str) -> float:
        """The value of a sample on /metrics, such as `qod_receiver_inbox_lag{partition="0"}`."""
        text = httpx2.get(f"{self.ops_url}/metrics", timeout=SECONDS_MAX).text
        found = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
        assert found, f"no {sample} in {text}"
        return float(found[1])

    def wait_until_routed(self, count: int) -> None:
        """Wait until `count` notifications have been decided on since this process started, and none waits."""
        deadline = time.monotonic() + SECONDS_MAX
        while time.monotonic() < deadline:
            if self._decided() >= count and self.metric('qod_receiver_inbox_lag{partition="0"}') == 0:
                return
            time.sleep(0.05)
        raise AssertionError(f"{self._decided()} of {count} notifications were routed in time")

    def _decided(self) -> int:
        text = httpx2.get(f"{self.ops_url}/metrics", timeout=SECONDS_MAX).text
        return sum(map(int, re.findall(r"^qod_receiver_notifications_total\S+ (\d+)", text, re.MULTILINE)))

    def _wait_until_serving(self) -> tuple[str, str]:
        deadline = time.monotonic() + SECONDS_MAX
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"exit status {self.process.returncode}: {self.log.read_text()}")
            try:
                told = json.loads((self.directory / "serve.json").read_bytes())
            except (OSError, ValueError):
                told = {}
            if told.get("pid") == self.process.pid:
                return told["edge_url"], told["ops_url"]
            time.sleep(0.02)
        raise AssertionError(f"not serving in time: {self.log.read_text()}")


def run(*arguments: str, expect: int = 0) -> str:
    """Standard output of a command, whose exit status must be the expected one."""
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == expect, f"exit status {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout if expect == 0 else done.stdout + done.stderr


def tail(directory: Path, topic: str) -> list[dict[str, Any]]:
    """All records of a topic, read by the `tail` command."""
    lines = run("tail", topic, "--data", str(directory), "--from", "beginning", "--no-follow", "--json")
    return [json.loads(line) for line in lines.splitlines()]
