"""`serve --kafka` in processes, senders that post to them, and the topics as a consumer reads them."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx2
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord

from tests.kafka_cluster import HOST, Cluster
from tests.limits import SECONDS_MAX
from tests.receiver_process import COMMAND
from tests.samples import body, told

PARTITIONS = 4
#: The suffix of an event's id that was routed as late.
LATE = " late"

_POLL_SECONDS = 0.05
_HEADERS = {"content-type": "application/cloudevents+json"}


def until(done: Callable[[], object], what: str, pause_seconds: float = _POLL_SECONDS) -> float:
    """Wait for a condition by asking again and again; returns the seconds that took."""
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < SECONDS_MAX, f"after {SECONDS_MAX:g} s still not: {what}"
        time.sleep(pause_seconds)
    return time.monotonic() - began


class Ports:
    """Consecutive ports that no other program gets while this process lives, whether our process listens or not."""

    def __init__(self, count: int) -> None:
        self._held: list[socket.socket] = []
        while not self._held:
            with contextlib.suppress(OSError, OverflowError):
                self._hold(count)

    @property
    def first(self) -> int:
        """The lowest port."""
        port: int = self._held[0].getsockname()[1]
        return port

    def close(self) -> None:
        """Give the ports back."""
        for held in self._held:
            held.close()
        self._held.clear()

    def _hold(self, count: int) -> None:
        try:
            for index in range(count):
                held = socket.socket()
                self._held.append(held)
                held.bind((HOST, self.first + index if index else 0))
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # lets the server bind it, which sets it too
        except BaseException:
            self.close()
            raise


def refused(directory: Path, bootstrap: str, prefix: str, *options: str, **settings: str) -> tuple[int, list[str]]:
    """Start a receiver that must fail; returns its exit status and the lines of its output."""
    receiver = KafkaReceiver(directory, bootstrap, prefix, *options, **settings)
    try:
        receiver.launch()
        assert receiver.process
        status = receiver.process.wait(SECONDS_MAX)
    finally:
        receiver.close()
    return status, receiver.log.read_text().splitlines()


class KafkaReceiver:
    """`qod-receiver serve --kafka` in a process group, which can be started again on its directory.

    `settings` are spelled as in the environment, without QOD_RECEIVER_. Its port for notifications stays the same, and
    so do the operations ports, one for each process. A later start may have other `options`.
    """

    def __init__(self, directory: Path, bootstrap: str, prefix: str, *options: str, **settings: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.bootstrap, self.prefix = bootstrap, prefix
        self.log = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None
        workers = int(options[options.index("--workers") + 1]) + 1 if "--workers" in options else 1
        self._ports = Ports(1 + workers)
        self.edge_url = f"http://{HOST}:{self._ports.first}/notifications"
        self.ops_urls = [f"http://{HOST}:{self._ports.first + 1 + index}" for index in range(workers)]
        self._out = directory / "out"
        self._command = [*COMMAND, "serve", "--data", str(directory), "--kafka", bootstrap]
        self._command += ["--port", str(self._ports.first), "--ops-port", str(self._ports.first + 1)]
        self.options = options
        given = {"PREFIX": prefix, "AUTH__ANONYMOUS": "true", "KAFKA__PARTITIONS": str(PARTITIONS), **settings}
        self._environment = {**os.environ, **{f"QOD_RECEIVER_{name}": value for name, value in given.items()}}

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def ops_url(self) -> str:
        """The URL of its operations port, the first if there are several."""
        return self.ops_urls[0]

    def start(self) -> float:
        """Start it, and wait until its ports listen; returns the seconds that took."""
        self.launch()
        return until(self._is_serving, "serving")

    def launch(self) -> None:
        """Start it without waiting."""
        with self.log.open("ab") as log, self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [*self._command, *self.options],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env=self._environment,
                process_group=0,
            )

    def kill(self) -> None:
        """Kill the process that was started, as a power cut would."""
        process = self.running()
        process.kill()
        process.wait()

    def end(self, number: signal.Signals = signal.SIGTERM, *, group: bool = False) -> float:
        """Ask it, or all of its processes, to end; the exit status must be 0. Returns the seconds that took."""
        process = self.running()
        began = time.monotonic()
        (os.killpg if group else os.kill)(process.pid, number)
        status = process.wait(SECONDS_MAX)
        assert status == 0, f"ended with {status}: {self.complaints()}"
        return time.monotonic() - began

    def close(self) -> None:
        """Kill all of its processes."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._ports.close()

    def running(self) -> subprocess.Popen[bytes]:
        """Its process, which runs."""
        assert self.process is not None
        assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.complaints()}"
        return self.process

    def printed(self) -> str:
        """Its whole standard output."""
        return self._out.read_text()

    def complaints(self) -> str:
        """The end of its log, without the lines of requests and batches."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join([each for each in lines if not re.search(r'"event":"(request|batch)"', each)][-40:])

    def get(self, path: str, worker: int = 0) -> Any:  # noqa: ANN401  # any JSON
        """The answer of its operations port, whatever the status."""
        return httpx2.get(f"{self.ops_urls[worker]}{path}", timeout=SECONDS_MAX).json()

    def checks(self, worker: int = 0) -> Mapping[str, str]:
        """The checks of /readyz, by part."""
        checks: Mapping[str, str] = self.get("/readyz", worker)["checks"]
        return checks

    def samples(self, name: str, worker: int = 0) -> Mapping[str, float]:
        """The samples of a metric, by their labels as text."""
        text = httpx2.get(f"{self.ops_urls[worker]}/metrics", timeout=SECONDS_MAX).text
        found = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
        return {labels: float(value) for labels, value in found}

    def spooled(self, worker: int = 0) -> float:
        """The number of notifications that wait on its disk."""
        return sum(self.samples("qod_receiver_spool_notifications", worker).values())

    def lanes(self, worker: int = 0) -> set[str]:
        """The partitions that it routes."""
        return {re.sub(r"\D", "", labels) for labels in self.samples("qod_receiver_inbox_lag", worker)}

    def post(self, *contents: bytes, timeout_seconds: float = SECONDS_MAX) -> list["Answer"]:
        """Post bodies one after the other."""
        with httpx2.Client(timeout=timeout_seconds) as client:
            return [self._post(client, content) for content in contents]

    def tell(self, session_id: str, *events: str) -> list["Answer"]:
        """Post events of a session, spelled as in `samples`."""
        return self.post(*(body(told(each, session_id)[0]) for each in events))

    def _post(self, client: httpx2.Client, content: bytes) -> "Answer":
        began = time.monotonic()
        answer = client.post(self.edge_url, content=content, headers=_HEADERS)
        return Answer(began, time.monotonic() - began, answer.status_code, answer.headers.get("retry-after"))

    def _is_serving(self) -> bool:
        self.running()
        return "Operations:" in self.printed()


class Answer(NamedTuple):
    """The answer to a notification; the status is 0 if there was none."""

    at: float
    seconds: float
    status: int
    retry_after: str | None = None


class Load:
    """Senders that post their sessions' events in order, each event until it is kept.

    Each sender begins a new session after a while, so that sessions are in every partition; their ids have the load's
    name. If they are `scattered`, each request has its own connection, and may come to another worker than the one
    before. Runs in a thread.
    """

    def __init__(
        self,
        name: str,
        *edge_urls: str,
        senders: int = 8,
        events: int = 10,
        pause_seconds: float = 0.02,
        scattered: bool = False,
    ) -> None:
        self.answers: list[Answer] = []
        self.kept: dict[str, list[str]] = {}
        self._name = name
        self._urls = edge_urls
        self._senders = senders
        self._events = events
        self._pause_seconds = pause_seconds
        self._kept_alive_max = 0 if scattered else 2 * senders
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(SECONDS_MAX)
        assert not self._thread.is_alive()
        if error is None and self._error is not None:
            raise self._error

    @property
    def count(self) -> int:
        """The number of events that were kept."""
        return sum(map(len, self.kept.values()))

    def more(self, count: int = 20) -> None:
        """Wait until `count` more events were kept."""
        wanted = self.count + count
        until(lambda: self.count >= wanted, f"{count} more events kept")

    def statuses(self) -> Counter[int]:
        """The number of answers of each status."""
        return Counter(answer.status for answer in self.answers)

    def between(self, begin: float, end: float) -> list[float]:
        """The seconds that the answers took to posts between two times, sorted."""
        return sorted(answer.seconds for answer in self.answers if begin <= answer.at <= end)

    def check(self, bootstrap: str, prefix: str) -> float:
        """Wait until all events are routed, each once and in order; returns the seconds that took."""
        assert not self._thread.is_alive(), "a load that goes on is never routed"
        kept = {session_id: ids for session_id, ids in self.kept.items() if ids}
        found: dict[str, list[str]] = {}

        def is_routed() -> bool:
            nonlocal found
            found = told_on(bootstrap, f"{prefix}.status")
            found = {session_id: ids for session_id, ids in found.items() if session_id in kept}
            return sum(map(len, found.values())) >= self.count

        seconds = until(is_routed, f"{self.count} events on {prefix}.status")
        wrong = {each: (kept[each], found.get(each)) for each in kept if found.get(each) != kept[each]}
        assert not wrong, f"{len(wrong)} sessions were told as the first and are on the topic as the second: {wrong}"
        return seconds

    def _run(self) -> None:
        try:
            asyncio.run(self._tell_all())
        except BaseException as error:  # noqa: BLE001  # raised again where the end is awaited
            self._error = error

    async def _tell_all(self) -> None:
        limits = httpx2.Limits(max_connections=2 * self._senders, max_keepalive_connections=self._kept_alive_max)
        async with httpx2.AsyncClient(timeout=SECONDS_MAX, limits=limits) as client, asyncio.TaskGroup() as tasks:
            for number in range(self._senders):
                tasks.create_task(self._tell(client, self._urls[number % len(self._urls)], number))

    async def _tell(self, client: httpx2.AsyncClient, url: str, number: int) -> None:
        generation = 0
        while not self._stopping.is_set():
            session_id = f"{self._name}-{number}-{generation}"
            generation += 1
            self.kept[session_id] = []
            for second in range(self._events):
                event, _ = told(f"{'AU'[second % 2]}{second}", session_id)
                assert event.id
                while await self._post(client, url, body(event)) != 204:  # noqa: ASYNC110  # a repeated post, not a poll
                    await asyncio.sleep(0.1)
                self.kept[session_id].append(event.id)
                await asyncio.sleep(self._pause_seconds)
                if self._stopping.is_set():
                    return

    async def _post(self, client: httpx2.AsyncClient, url: str, content: bytes) -> int:
        began, status, retry_after = time.monotonic(), 0, None
        with contextlib.suppress(httpx2.HTTPError):
            answer = await client.post(url, content=content, headers=_HEADERS)
            status, retry_after = answer.status_code, answer.headers.get("retry-after")
        self.answers.append(Answer(began, time.monotonic() - began, status, retry_after))
        return status


def records(bootstrap: str, topic: str, partitions_count: int = PARTITIONS) -> Sequence[ConsumerRecord]:
    """All committed records of a topic, in the order of each partition, once no transaction is open any more."""
    return asyncio.run(_records(bootstrap, topic, partitions_count))


async def _records(bootstrap: str, topic: str, partitions_count: int) -> Sequence[ConsumerRecord]:
    found: list[ConsumerRecord] = []
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
    )
    latest = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    async with asyncio.timeout(SECONDS_MAX), consumer, latest:
        partitions = [TopicPartition(topic, each) for each in range(partitions_count)]
        ends = await latest.end_offsets(partitions)
        consumer.assign(partitions)
        while any([await consumer.position(each) < end for each, end in ends.items()]):
            for some in (await consumer.getmany(timeout_ms=100)).values():
                found += some
    return found


def told_on(bootstrap: str, topic: str, partitions_count: int = PARTITIONS) -> dict[str, list[str]]:
    """The ids of the events on a topic, by session, in the order of the topic."""
    found: dict[str, list[str]] = defaultdict(list)
    for record in records(bootstrap, topic, partitions_count):
        headers = dict(record.headers)
        late = LATE if b'"late":true' in record.value else ""
        found[record.key.decode()].append(headers["ce_id"].decode() + late)
    return dict(found)


@contextlib.contextmanager
def paused(cluster: Cluster, broker: int = 0) -> Iterator[None]:
    """Pause a broker for as long as the block lasts."""
    cluster.pause(broker)
    try:
        yield
    finally:
        cluster.resume(broker)


def children(process_id: int) -> list[int]:
    """The children of a process that it has not waited for."""
    return [int(each) for each in Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()]


def lives(process_id: int) -> bool:
    """Whether a process has not ended; a zombie has."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
