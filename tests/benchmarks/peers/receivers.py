"""Receivers of each kind as processes, on topics of their own: our program and those that it is compared with.

Each takes the same notifications with the same token and writes them to two topics, `PREFIX.status` and, for
UNAVAILABLE, `PREFIX.unavailable`. Each receiver ends with the process that started it, however that ends.
"""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx2

from receiver.backends.kafka.connection import KafkaConnection, Security
from receiver.backends.kafka.topics import TopicPlan, create

#: The name of each kind in a table.
KINDS = {
    "ours": "qod-receiver",
    "ours-split": "qod-receiver, edge and router apart",
    "bento-a": "Bento as documented",
    "bento-b": "Bento, marked after",
    "handler": "FastAPI handler",
}
OURS = ("ours", "ours-split")
PARTITIONS = 12
START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 45

_HOST = "127.0.0.1"
_HERE = Path(__file__).parent
_CONFIGURATIONS = {"bento-a": _HERE / "bento-docs-advice.yaml", "bento-b": _HERE / "bento-mark-after.yaml"}


def missing(kind: str) -> str:
    """Why a kind can't be started on this machine; empty if it can."""
    if kind in _CONFIGURATIONS and shutil.which("bento") is None:
        return "there is no bento on the PATH: go install github.com/warpstreamlabs/bento/cmd/bento@v1.20.0"
    return ""


def bento_version() -> str:
    """The version of the Bento on the PATH; without an official build only its Go module tells it."""
    bento, go = shutil.which("bento"), shutil.which("go")
    if bento is None:
        return "none"
    told = subprocess.run([bento, "--version"], capture_output=True, text=True, check=False).stdout
    if go is not None:
        told += subprocess.run([go, "version", "-m", bento], capture_output=True, text=True, check=False).stdout
    version = re.search(r"(?:Version: |\smod\s+\S+\s+)(v?\d\S*)", told)
    return version[1] if version else "of unknown version"


async def make_topics(bootstrap: str, prefix: str, partitions: int = PARTITIONS) -> None:
    """Make the topics of a prefix, the same for every kind. Raises Unavailable."""
    names = [f"{prefix}.{name}" for name in ("dead-letter", "sessions", "status", "unavailable")]
    await create(
        KafkaConnection([bootstrap], Security().options()), TopicPlan(prefix, names, partitions, None, 168, 168)
    )


class _How(NamedTuple):
    """How a kind is started, and what answers once each of its processes serves."""

    commands: Sequence[Sequence[str]]
    environment: Mapping[str, str]
    readiness_urls: Sequence[str]


class Receiver:
    """A receiver of a kind on a broker, whose address may be a proxy's. Its topics must exist; `start` starts it.

    Its data and its log are in `directory`, and it has the same port at each start. `options` are more arguments for
    our own program.
    """

    def __init__(self, kind: str, directory: Path, bootstrap: str, prefix: str, options: Sequence[str] = ()) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.kind = kind
        self.token = f"token-of-{prefix}"
        self.status_topic, self.unavailable_topic = f"{prefix}.status", f"{prefix}.unavailable"
        self.log = directory / "log"
        self.processes: Sequence[subprocess.Popen[bytes]] = ()
        self._guard: subprocess.Popen[bytes] | None = None
        self._reserved = [_reserved() for _ in range(3)]
        ports = [each.getsockname()[1] for each in self._reserved]
        self.url = f"http://{_HOST}:{ports[0]}/notifications"
        if kind in OURS:
            serve = ["serve", "--kafka", bootstrap, "--data", str(directory / "data")]
            edge = ["--port", str(ports[0]), "--ops-port", str(ports[1]), *options]
            router = ["--role", "router", "--ops-port", str(ports[2])]
            parts = [[*serve, *edge]] if kind == "ours" else [[*serve, "--role", "edge", *edge], [*serve, *router]]
            self._how = _ours(parts, prefix, self.token, ports[1 : 1 + len(parts)])
        else:
            self._how = _peer(kind, bootstrap, prefix, self.token, ports[0])
        self.readiness_url = self._how.readiness_urls[0]

    @property
    def pids(self) -> Sequence[int]:
        """The processes that were started, without their children."""
        return [each.pid for each in self.processes]

    def start(self) -> None:
        """Start it, and wait until it takes requests."""
        shell = shutil.which("sh")
        assert shell
        # It leads a process group which the receiver and all its children join. It reads a pipe that is closed when
        # this process ends in any way; then it kills the group.
        command = [shell, "-c", "read -r _; kill -KILL 0"]
        self._guard = subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0)
        environment = {**os.environ, **self._how.environment}
        with self.log.open("ab") as log:
            self.processes = [
                subprocess.Popen(each, env=environment, stdout=log, stderr=log, process_group=self._guard.pid)
                for each in self._how.commands
            ]
        deadline = time.monotonic() + START_SECONDS_MAX
        for url in (self.url, *self._how.readiness_urls):
            while not self._answers(url):
                assert time.monotonic() < deadline, f"{self.kind} does not serve in time: {self.log_end()}"
                time.sleep(0.02)

    def kill(self) -> None:
        """Kill all of its processes with SIGKILL."""
        if self._guard is not None:
            self._guard.communicate()
            self._guard = None
        for process in self.processes:
            process.wait()
        self.processes = ()

    def stop(self) -> None:
        """Ask it to end, and after a while kill what is left."""
        for process in self.processes:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS_MAX
        while any(process.poll() is None for process in self.processes) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.kill()

    def close(self) -> None:
        """Kill all of its processes, and give the ports back."""
        self.kill()
        for each in self._reserved:
            each.close()

    def log_end(self) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    def _answers(self, url: str) -> bool:
        ended = [each.returncode for each in self.processes if each.poll() is not None]
        assert not ended, f"{self.kind} ended with {ended}: {self.log_end()}"
        try:
            httpx2.get(url, timeout=5)
        except httpx2.HTTPError:
            return False
        return True


def _ours(parts: Sequence[Sequence[str]], prefix: str, token: str, ops_ports: Sequence[int]) -> _How:
    known = [{"sender": "benchmark", "sha256": hashlib.sha256(token.encode()).hexdigest()}]
    environment = {
        "QOD_RECEIVER_PREFIX": prefix,
        "QOD_RECEIVER_AUTH__TOKENS": json.dumps(known),
        "QOD_RECEIVER_KAFKA__PARTITIONS": str(PARTITIONS),
    }
    commands = [[sys.executable, "-m", "receiver", *part] for part in parts]
    return _How(commands, environment, [f"http://{_HOST}:{port}/readyz" for port in ops_ports])


def _peer(kind: str, bootstrap: str, prefix: str, token: str, port: int) -> _How:
    environment = {"KAFKA": bootstrap, "TOKEN": token, "PORT": str(port), "TOPIC_PREFIX": prefix, "LOG_LEVEL": "WARN"}
    if kind == "handler":
        command = [sys.executable, "-m", "tests.benchmarks.peers.handler"]
        return _How([command], environment, [f"http://{_HOST}:{port}/health"])
    bento = shutil.which("bento")
    assert bento, missing(kind)
    command = [bento, "-c", str(_CONFIGURATIONS[kind])]
    return _How([command], environment, [f"http://{_HOST}:{port}/ready"])


def _reserved() -> socket.socket:
    """A socket on a port that no other program is given, but which a receiver can bind."""
    reserved = socket.socket()
    reserved.bind((_HOST, 0))
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return reserved
