"""The brokers, the proxies and the receivers: all that can be killed."""

import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from receiver.core.topics import SESSIONS
from tests.kafka_cluster import HOST, Cluster
from tests.killing.findings import ROUTES
from tests.killing.topics import not_routed
from tests.limits import SECONDS_MAX
from tests.proxy import KafkaProxy

PREFIX = "kill"
GROUP = f"{PREFIX}.router"
PARTITIONS = 4
EDGES = 2
ROUTERS = 3  # the last one comes and goes
#: Topics with one replica: a partition of theirs can lack a leader while all other topics have theirs.
UNREPLICATED = ("acme", "unavailable")

_POLL_SECONDS = 0.05


class Receiver:
    """`qod-receiver serve` in a process, which can be started again on the same directory and port."""

    def __init__(self, name: str, directory: Path, options: Sequence[str], settings: Mapping[str, str]) -> None:
        directory.mkdir(parents=True)
        self.name = name
        self.directory = directory
        self.ops_url = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._command = [sys.executable, "-m", "receiver", "serve", "--data", str(directory), "--ops-port", "0"]
        self._command += options
        self._environment = {**os.environ, **settings}

    @property
    def runs(self) -> bool:
        """Whether its process was started and not ended by this site."""
        return self.process is not None

    def start(self, guard: int) -> None:
        """Start it, in the process group of `guard`, and wait until its ports listen."""
        out = self.directory / "out"
        with (self.directory / "log").open("ab") as log, out.open("wb") as printed:
            self.process = process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=log,
                env=self._environment,
                process_group=guard,
            )
        deadline = time.monotonic() + SECONDS_MAX
        while not (found := re.search(r"^Operations: +(\S+)$", out.read_text(), re.MULTILINE)):
            assert process.poll() is None, f"{self.name} ended with {process.returncode}: {self.log_end()}"
            assert time.monotonic() < deadline, f"{self.name} does not start: {self.log_end()}"
            time.sleep(_POLL_SECONDS)
        self.ops_url = found[1]

    def kill(self) -> None:
        """Kill it, as a power cut of the process would."""
        process = self._leave()
        process.kill()
        process.wait()

    def end(self) -> None:
        """Ask it to end. It must do so in time, with exit status 0."""
        process = self._leave()
        process.terminate()
        try:
            status = process.wait(SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self.name} did not end in {SECONDS_MAX:g} s: {self.log_end()}") from None
        assert status == 0, f"{self.name} ended with {status}: {self.log_end()}"

    def pause(self) -> None:
        """Pause it."""
        self._living().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after a pause."""
        self._living().send_signal(signal.SIGCONT)

    async def spooled(self, client: httpx2.AsyncClient) -> int:
        """The number of notifications that wait on its disk."""
        text = (await client.get(f"{self.ops_url}/metrics")).text
        return sum(
            int(float(each)) for each in re.findall(r"^qod_receiver_spool_notifications\S* (\S+)$", text, re.MULTILINE)
        )

    async def has_lanes(self, client: httpx2.AsyncClient) -> bool:
        """Whether it has a lane. Raises httpx2.HTTPError."""
        return bool(await self._metrics(client, "qod_receiver_inbox_lag"))

    def log_end(self) -> str:
        """The last lines of its log that are not about requests."""
        lines = (self.directory / "log").read_text(errors="replace").splitlines()
        return "\n".join([each for each in lines if '"event":"request"' not in each][-20:])

    async def _metrics(self, client: httpx2.AsyncClient, name: str) -> list[int]:
        """The values of a metric, by label."""
        text = (await client.get(f"{self.ops_url}/metrics")).text
        return [int(float(each)) for each in re.findall(rf"^{name}{{\S* (\S+)$", text, re.MULTILINE)]

    def _living(self) -> subprocess.Popen[bytes]:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}: {self.log_end()}"
        return self.process

    def _leave(self) -> subprocess.Popen[bytes]:
        process, self.process = self._living(), None
        return process


class Site:
    """All brokers, proxies and receivers. Each receiver has its own way to the brokers, with `proxies` on it."""

    def __init__(self, directory: Path, brokers: int, session_hours: float, seed: int) -> None:
        self.directory = directory
        self.secret = secrets.token_hex(32)
        # A transaction that times out is ended soon after.
        properties = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": "500"}
        self.cluster = Cluster(directory / "kafka", brokers, ways=EDGES + ROUTERS, properties=properties)
        self._held: list[socket.socket] = []
        self.edges: list[Receiver] = []
        self.routers: list[Receiver] = []
        self.edge_urls: list[str] = []
        self.proxies: dict[str, list[KafkaProxy]] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        settings = {
            "PREFIX": PREFIX,
            "AUTH__MINT_SECRET": self.secret,
            "KAFKA__PARTITIONS": str(PARTITIONS),
            "RETENTION__SESSION_HOURS": str(session_hours),
            "ROUTES": json.dumps(ROUTES),
            "LOG__FORMAT": "json",
        }
        environment = {f"QOD_RECEIVER_{name}": value for name, value in settings.items()}
        for number in range(EDGES + ROUTERS):
            is_edge = number < EDGES
            name = f"edge-{number}" if is_edge else f"router-{number - EDGES}"
            way = self.cluster.way(number)
            options = ["--kafka", way.bootstrap, "--role", "edge" if is_edge else "router"]
            if is_edge:
                port = self._reserve()
                options += ["--port", str(port)]
                self.edge_urls.append(f"http://{HOST}:{port}/notifications")
            receiver = Receiver(name, directory / name, options, environment)
            (self.edges if is_edge else self.routers).append(receiver)
            self.proxies[name] = [
                KafkaProxy(listen, target, seed=seed + 100 * number + at)
                for at, (listen, target) in enumerate(way.proxies)
            ]

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self.cluster.start)
            await _make_unreplicated(self.cluster)
            self._guard = _guard()
            for proxy in self._all_proxies():
                await proxy.up()
            for receiver in [*self.edges, *self.routers[:-1]]:
                await self.start(receiver)
            await _compact_often(self.cluster)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def start(self, receiver: Receiver) -> None:
        """Start a receiver."""
        assert self._guard
        await asyncio.to_thread(receiver.start, self._guard.pid)

    async def heal(self) -> None:
        """Let everything run, and end all faults of the proxies."""
        for proxy in self._all_proxies():
            await proxy.heal()
        for broker in range(self.cluster.count):
            if broker not in self.cluster.running():
                self.cluster.resume(broker)
        await asyncio.to_thread(self.cluster.start)
        for receiver in [*self.edges, *self.routers]:
            if receiver.runs:
                receiver.resume()
            elif receiver is not self.routers[-1]:
                await self.start(receiver)

    async def drain(self) -> str:
        """Wait until all kept notifications are routed; returns in words what still waits after a long while."""
        deadline = time.monotonic() + SECONDS_MAX
        waiting = "nobody was asked"
        async with httpx2.AsyncClient(timeout=10) as client:
            while time.monotonic() < deadline:
                spooled = {each.name: await each.spooled(client) for each in self.edges}
                lags = await not_routed(self.cluster.bootstrap, f"{PREFIX}.inbox", GROUP, PARTITIONS)
                if not lags and not any(spooled.values()):
                    return ""
                waiting = f"spooled {spooled}, committed and end by partition {lags}"
                await asyncio.sleep(0.5)
        return waiting

    async def end(self) -> None:
        """End all receivers in order."""
        await asyncio.gather(*(asyncio.to_thread(each.end) for each in [*self.edges, *self.routers] if each.runs))

    async def open_partitions(self) -> Sequence[TopicPartition]:
        """The partitions, of topics with one replica, that have an open transaction: their end lies beyond what is
        committed.
        """
        wanted = [TopicPartition(f"{PREFIX}.{name}", each) for name in UNREPLICATED for each in range(PARTITIONS)]
        ends = []
        for isolation in ("read_uncommitted", "read_committed"):
            async with AIOKafkaConsumer(
                bootstrap_servers=self.cluster.bootstrap, isolation_level=isolation
            ) as consumer:
                ends.append(await consumer.end_offsets(wanted))
        return [where for where, end in ends[0].items() if end > ends[1][where]]

    def faults(self) -> Counter[str]:
        """The proxies' faults, and the receivers' lines about them."""
        found: Counter[str] = Counter()
        for proxy in self._all_proxies():
            found.update({f"network: {kind}": count for kind, count in proxy.faults.items()})
        for receiver in [*self.edges, *self.routers]:
            with (receiver.directory / "log").open(errors="replace") as log:
                for line in log:
                    if '"event":"request"' not in line and '"event":"batch"' not in line:
                        found[f"log: {_summary(line)}"] += 1
        return found

    def _all_proxies(self) -> list[KafkaProxy]:
        return [proxy for some in self.proxies.values() for proxy in some]

    def _reserve(self) -> int:
        """A port that no other program gets meanwhile, whether an edge listens on it or not: see Cluster."""
        held = socket.socket()
        held.bind((HOST, 0))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.append(held)
        port: int = held.getsockname()[1]
        return port

    async def _close(self) -> None:
        for receiver in [*self.edges, *self.routers]:
            if receiver.process is not None:
                receiver.process.kill()
                receiver.process.wait()
        if self._guard is not None:
            self._guard.communicate()
        for proxy in self._all_proxies():
            await proxy.down()
        self.cluster.close()
        for held in self._held:
            held.close()


async def _make_unreplicated(cluster: Cluster) -> None:
    """Make topics with a single replica, so that each broker that is away leaves some partitions without a leader.

    All other topics have a replica per broker, three at most.
    """
    async with _admin(cluster) as admin:
        topics = [NewTopic(f"{PREFIX}.{name}", PARTITIONS, 1) for name in UNREPLICATED]
        answer = await admin.create_topics(topics)
        assert not any(each[1] for each in answer.topic_errors), answer


@asynccontextmanager
async def _admin(cluster: Cluster) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def _compact_often(cluster: Cluster) -> None:
    """Have the sessions topic compacted all the time: lanes then open from what compaction leaves."""
    configs = {
        "cleanup.policy": "compact",
        "delete.retention.ms": str(86_400_000),
        "min.insync.replicas": str(min(2, cluster.count)),
        "min.cleanable.dirty.ratio": "0.01",
        "segment.ms": "5000",
    }
    resource = ConfigResource(ConfigResourceType.TOPIC, f"{PREFIX}.{SESSIONS}", configs)
    async with _admin(cluster) as admin:
        for answer in await admin.alter_configs([resource]):
            assert not any(each[0] for each in answer.resources), answer


def _guard() -> subprocess.Popen[bytes]:
    """A process that leads the receivers' group, and kills it when this process ends in any way: see Cluster."""
    shell = shutil.which("sh")
    assert shell
    return subprocess.Popen([shell, "-c", "read -r _; kill -KILL 0"], stdin=subprocess.PIPE, process_group=0)


def _summary(line: str) -> str:
    """The subject of a line of a log, without the parts that differ each time."""
    try:
        fields = json.loads(line)
        event, _, more = str(fields["event"]).partition("\n")
        if found := re.search(r"coro=<(\S+)", more):  # the task that asyncio's line is about
            event += f" {found[1]}"
        reason = str(fields.get("reason") or fields.get("exception", "")).splitlines()[-1:]
    except (ValueError, KeyError, TypeError):
        return f"unreadable {line.strip()[:60]}"
    return f"{event} {re.sub(r'[0-9]+', '#', ' '.join(reason))}".strip()[:110]
