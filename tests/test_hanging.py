"""Hanging transactions: a partition without a leader at the end of its transaction never gets the marker.

Brokers of 4.x call such a transaction complete (KAFKA-20734). Its records there are neither committed nor aborted,
until the next marker of the same producer id comes, whatever that one is about.
"""

import asyncio
from asyncio.subprocess import DEVNULL
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from receiver.backends.kafka.connection import KafkaConnection, Security
from receiver.backends.kafka.inbox import KafkaInbox
from tests.kafka_cluster import Cluster
from tests.kafka_process import KafkaReceiver, told_on
from tests.limits import SECONDS_MAX
from tests.proxy import END_TXN, PRODUCE, KafkaProxy
from tests.samples import posted
from tests.test_export import Directory

PARTITIONS = 8
SESSIONS = [f"s{number:03}" for number in range(80)]
#: A transaction times out after 15 s; on a slow machine a broker may take longer to end it.
_ATTEMPTS = 5
_TOPICS = ("status", "unavailable", "sessions")


@pytest.fixture(scope="module")
def cluster(can_run_kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:  # noqa: ARG001
    """Three brokers, of which one can be stopped; it then leads partitions without another replica."""
    properties = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": "500"}
    with Cluster(tmp_path_factory.mktemp("hanging"), 3, properties=properties) as made:
        yield made


class Stage:
    """A router that reaches the brokers through proxies, and an inbox that does not."""

    def __init__(self, cluster: Cluster, directory: Path, prefix: str) -> None:
        self.cluster = cluster
        self.prefix = prefix
        way = cluster.way()
        self.bootstrap = way.bootstrap
        self.proxies = [KafkaProxy(listen, target) for listen, target in way.proxies]
        self._directory = directory
        self.router = self._router()
        self._connection = KafkaConnection(cluster.bootstrap.split(","), Security().options())

    async def start(self) -> None:
        """Start the router, and wait until it routes all partitions."""
        await asyncio.to_thread(self.router.start)
        await until(lambda: len(self.router.lanes()) == PARTITIONS, "all lanes are open")

    async def start_in_group(self, group: str) -> None:
        """Let a router of another group take over."""
        self.router.close()
        self.router = self._router(KAFKA__GROUP=group)
        await self.start()

    async def append(self, spelled: str) -> None:
        """Append an event of each session to the inbox."""
        inbox = KafkaInbox(self._connection, f"{self.prefix}.inbox", append_timeout_seconds=60)
        running = asyncio.create_task(inbox.run())
        try:
            async with asyncio.timeout(SECONDS_MAX):
                await inbox.connected.wait()
                await asyncio.gather(*(inbox.append(posted(spelled, session_id=each)) for each in SESSIONS))
        finally:
            running.cancel()
            await asyncio.wait({running})

    async def ends(self, isolation: str, *, without: int | None = None) -> dict[TopicPartition, int]:
        """The ends of the output topics' partitions, except those that a stopped broker leads."""
        leaders = self.cluster.metadata().leaders
        partitions = [
            TopicPartition(f"{self.prefix}.{topic}", number)
            for topic in _TOPICS
            for number in range(PARTITIONS)
            if leaders[f"{self.prefix}.{topic}", number] not in {without, -1}
        ]
        async with AIOKafkaConsumer(bootstrap_servers=self.cluster.bootstrap, isolation_level=isolation) as consumer:
            found: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
        return found

    async def open_partitions(self, *, without: int | None = None) -> set[TopicPartition]:
        """The partitions with an open transaction: their end is beyond what is committed."""
        uncommitted = await self.ends("read_uncommitted", without=without)
        committed = await self.ends("read_committed", without=without)
        return {each for each, end in uncommitted.items() if committed[each] < end}

    def hold_back(self) -> None:
        """Hold back the ends of transactions, once records were written."""
        before = self._writes_count()
        for proxy in self.proxies:
            proxy.hold_back(END_TXN, when=lambda: self._writes_count() > before)

    def let_through(self, *, lost: bool = False) -> None:
        """Let transactions end again; the requests held back arrive now, or are lost with their connections."""
        for proxy in self.proxies:
            if lost:
                proxy.cut()
            proxy.let_through(END_TXN)

    async def all_have_written(self, count: int = PARTITIONS) -> None:
        """Wait until this many writers want to end a transaction."""
        await until(lambda: sum(each.held[END_TXN] for each in self.proxies) >= count, "all of them commit")

    def _router(self, **settings: str) -> KafkaReceiver:
        settings |= {"KAFKA__PARTITIONS": str(PARTITIONS), "KAFKA__REPLICATION_FACTOR": "1"}
        return KafkaReceiver(self._directory, self.bootstrap, self.prefix, "--role", "router", **settings)

    def _writes_count(self) -> int:
        return sum(each.passed[PRODUCE] for each in self.proxies)

    def _leading(self) -> int:
        """A broker that leads some of the partitions that a lane writes, and not all of them."""
        leaders = self.cluster.metadata().leaders
        for number in range(PARTITIONS):
            led = {leaders[f"{self.prefix}.{topic}", number] for topic in _TOPICS}
            if len(led) > 1:
                return min(led)
        pytest.fail(f"each lane has one broker: {leaders}")

    async def end_without_a_broker(self, then: Callable[[], None] = lambda: None) -> None:
        """Let transactions end while some of their partitions have no leader, and then have one again.

        `then` is called once the leader is gone; without it the transactions end by their time limit.
        """
        broker = self._leading()
        await asyncio.to_thread(self.cluster.kill, broker)
        alive = self.cluster.running()
        await until(
            lambda: all(broker not in self.cluster.metadata(each).leaders.values() for each in alive),
            "the others know that the broker is away",
        )
        then()
        async with asyncio.timeout(SECONDS_MAX):
            while await self.open_partitions(without=broker):  # noqa: ASYNC110  # there is no event to wait for
                await asyncio.sleep(0.1)
        await asyncio.to_thread(self.cluster.start)

    async def leave_open(self, spelled: str) -> None:
        """Kill the router while it commits an event of each session."""
        self.hold_back()
        await self.append(spelled)
        await self.all_have_written()
        self.router.kill()

    async def leave_hanging(self, spelled: str, then: Callable[[], None] = lambda: None) -> None:
        """As `leave_open`, and let the transactions end while some of their partitions have no leader."""
        await self.leave_open(spelled)
        await self.end_without_a_broker(then)
        assert await self.open_partitions(), "nothing hangs, so nothing was tried"

    async def all_routed(self) -> None:
        """Wait until the router has routed all, and consumers see its records."""

        def is_done() -> bool:
            lags = self.router.samples("qod_receiver_inbox_lag")
            return len(lags) == PARTITIONS and not any(lags.values())

        await until(is_done, "no lag")
        async with asyncio.timeout(SECONDS_MAX):
            while await self.open_partitions():  # noqa: ASYNC110  # the same
                await asyncio.sleep(0.1)

    async def committed(self) -> bool:
        """Whether any lane committed a position beyond its beginning."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.cluster.bootstrap)
        await admin.start()
        try:
            positions = await admin.list_consumer_group_offsets(f"{self.prefix}.router")
        finally:
            await admin.close()
        return any(each.offset > 0 for each in positions.values())

    async def told(self, topic: str) -> Counter[int]:
        """The number of sessions with this many records on a topic, repeated ones counted too."""
        found = await asyncio.to_thread(told_on, self.cluster.bootstrap, f"{self.prefix}.{topic}", PARTITIONS)
        return Counter(len(found.get(each, ())) for each in SESSIONS)


@asynccontextmanager
async def staged(cluster: Cluster, directory: Path, prefix: str, *, routed: bool = True) -> AsyncIterator[Stage]:
    """A stage whose router routes all partitions, unless `routes` is false."""
    stage = Stage(cluster, directory, prefix)
    try:
        for proxy in stage.proxies:
            await proxy.up()
        if routed:
            await stage.start()
        yield stage
    finally:
        stage.router.close()
        for proxy in stage.proxies:
            await proxy.down()


async def until(done: Callable[[], object], what: str) -> None:
    """Wait for a condition by asking again and again."""
    try:
        async with asyncio.timeout(SECONDS_MAX):
            while not await asyncio.to_thread(done):  # noqa: ASYNC110  # the same
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"after {SECONDS_MAX:g} s still not: {what}")


async def test_what_hangs_of_a_dead_owner_is_not_committed(cluster: Cluster, tmp_path: Path, topic_prefix: str) -> None:
    """A transaction that timed out while partitions had no leader is not committed by the lane's next owner."""
    async with staged(cluster, tmp_path, topic_prefix) as stage:
        await stage.leave_hanging("U1:N")
        stage.let_through(lost=True)
        await stage.start()
        await stage.all_routed()
        assert await stage.told("status") == await stage.told("unavailable") == {1: len(SESSIONS)}


async def test_what_hangs_is_judged_by_the_positions_of_all_groups(
    cluster: Cluster, tmp_path: Path, topic_prefix: str
) -> None:
    """Records that a router of another group committed do not make a hanging transaction look committed."""
    async with staged(cluster, tmp_path, topic_prefix) as stage:
        await stage.append("R1")
        await stage.all_routed()
        await stage.start_in_group("second")
        await stage.append("A2")
        await stage.all_routed()
        await stage.leave_hanging("U3:N")
        stage.let_through(lost=True)
        await stage.start_in_group("router")
        await stage.all_routed()
        assert await stage.told("status") == {3: len(SESSIONS)}
        assert await stage.told("unavailable") == {1: len(SESSIONS)}


async def test_what_was_committed_is_not_aborted_with_the_next(
    cluster: Cluster, tmp_path: Path, topic_prefix: str
) -> None:
    """A commit whose marker is missing on some partitions is not undone when the next transaction is aborted."""
    for attempt in range(_ATTEMPTS):
        async with staged(cluster, tmp_path / str(attempt), f"{topic_prefix}-{attempt}") as stage:
            await stage.leave_hanging("A1", stage.let_through)
            committed = await stage.committed()
            await stage.start()
            await stage.leave_open("U2:N")
            stage.let_through(lost=True)
            await stage.start()
            await stage.all_routed()
            assert await stage.told("status") == {2: len(SESSIONS)}
            assert await stage.told("unavailable") == {1: len(SESSIONS)}
        if committed:
            return
    pytest.fail("all transactions timed out before their commit could arrive")


@pytest.mark.parametrize("commits", [False, True], ids=["timed out", "committed"])
async def test_what_hangs_of_an_export_is_there_once(
    cluster: Cluster, tmp_path: Path, topic_prefix: str, monkeypatch: pytest.MonkeyPatch, *, commits: bool
) -> None:
    """An export that was killed, and whose last transaction hangs on some partitions, is carried on exactly once."""
    monkeypatch.setenv("QOD_RECEIVER_KAFKA__REPLICATION_FACTOR", "1")
    directory = Directory(tmp_path / "data", str(cluster.addresses[0]), topic_prefix, partitions=PARTITIONS)
    await asyncio.to_thread(directory.keep, *(posted("U1:N", session_id=each) for each in SESSIONS))
    async with staged(cluster, tmp_path / "router", topic_prefix, routed=False) as stage:
        stage.hold_back()
        command, environment = directory.command(stage.bootstrap)
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=DEVNULL, stderr=DEVNULL)
        try:
            await stage.all_have_written(1)
        finally:
            process.kill()
            await process.wait()
        await stage.end_without_a_broker(stage.let_through if commits else lambda: None)
        assert await stage.open_partitions(), "nothing hangs, so nothing was tried"
        if not commits:
            stage.let_through(lost=True)
        done = await asyncio.to_thread(directory.run)
        assert done.returncode == 0, done.stderr
        assert await stage.told("status") == await stage.told("unavailable") == {1: len(SESSIONS)}
