"""Routers that share the work through Kafka alone, and an edge that goes on without Kafka."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from copy import copy
from pathlib import Path
from typing import Any, Self

import pytest
from aiokafka import TopicPartition

from receiver.backends.kafka.connection import KafkaConnection, Security
from receiver.backends.kafka.inbox import KafkaInbox
from receiver.backends.kafka.lane import KafkaLane, Topics
from receiver.backends.kafka.membership import Membership
from receiver.backends.kafka.reader import KafkaReader
from receiver.backends.kafka.scan import reading
from receiver.backends.kafka.topics import TopicPlan, create
from receiver.backends.spool import Spool
from receiver.core.errors import Unavailable
from receiver.core.message import Record
from receiver.core.notification import Notification
from receiver.core.router import Router
from receiver.dispatcher import Dispatcher
from receiver.telemetry import Telemetry
from tests.kafka_cluster import Brokers, Cluster
from tests.limits import SECONDS_MAX
from tests.nodes import COUNT_MAX
from tests.proxy import Proxy
from tests.samples import posted

PARTITIONS = 4
_SPOOL_BYTES_MAX = 4 * 1024 * 1024


class Site:
    """Topics of a test on the cluster, and the parts that run on them."""

    def __init__(self, brokers: Brokers, prefix: str) -> None:
        self.connection = KafkaConnection([brokers.bootstrap], Security().options())
        self.router = Router(prefix=prefix, forget_after_seconds=96 * 3600)
        self.plan = TopicPlan(prefix, self.router.topics, PARTITIONS, None, 168, 168)
        self.topics = Topics.of(prefix, "router", self.router.topics)
        self.prefix = prefix

    def through(self, bootstrap: str) -> Self:
        """The same on another way to the brokers."""
        other = copy(self)
        other.connection = KafkaConnection([bootstrap], Security().options())
        return other

    async def ends(self) -> int:
        """The number of records in the inbox."""
        async with reading(self.connection, "read_uncommitted") as consumer:
            places = [TopicPartition(self.plan.inbox, each) for each in range(PARTITIONS)]
            return sum((await consumer.end_offsets(places)).values())

    @asynccontextmanager
    async def inbox(self, append_timeout_seconds: float = 30) -> AsyncIterator[KafkaInbox]:
        """An inbox at work."""
        inbox = KafkaInbox(self.connection, self.plan.inbox, append_timeout_seconds=append_timeout_seconds)
        async with _running(inbox.run()):
            async with asyncio.timeout(SECONDS_MAX):
                await inbox.connected.wait()
            yield inbox

    @asynccontextmanager
    async def routing(self, telemetry: Telemetry) -> AsyncIterator[Membership]:
        """A router process's part."""

        def dispatcher(lane: KafkaLane) -> Dispatcher:
            return Dispatcher(lane, self.router, telemetry, batch_max=100)

        membership = Membership(self.connection, self.topics, telemetry, dispatcher)
        async with _running(membership.run()):
            yield membership

    async def records(self, name: str, enough: Callable[[Sequence[Record]], bool]) -> Sequence[Record]:
        """All records of a topic, once there are enough."""
        reader, topic = KafkaReader(self.connection, self.prefix), f"{self.prefix}.{name}"
        found: list[Record] = []
        try:
            async with asyncio.timeout(SECONDS_MAX):
                cursor: dict[int, int] = {}
                while not enough(found):
                    with suppress(Unavailable):  # a broker that was paused may be away for a moment
                        cursor = cursor or dict(await reader.beginning(topic))
                        found += await reader.records(topic, cursor, COUNT_MAX)
                    await asyncio.sleep(0.02)
        finally:
            await reader.close()
        return found


@asynccontextmanager
async def _running(call: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(call)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.fixture
async def site(kafka: Brokers, topic_prefix: str) -> Site:
    """Four partitions without a record."""
    made = Site(kafka, topic_prefix)
    await create(made.connection, made.plan)
    return made


async def until(done: Callable[[], bool]) -> None:
    """Wait for a condition by asking again and again, for a minute at most."""
    async with asyncio.timeout(SECONDS_MAX):
        while not done():  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.02)


async def test_routers_share_the_partitions(site: Site, telemetry: Telemetry) -> None:
    """Two routers have each partition once; when one ends the other has all, and nothing is lost or repeated."""
    sessions = [f"s{number:03}" for number in range(60)]
    async with site.inbox() as inbox, site.routing(telemetry) as first:
        await asyncio.gather(*(inbox.append(posted("A1", session_id=each)) for each in sessions))
        await until(lambda: len(first.lanes) == PARTITIONS)
        async with site.routing(Telemetry()) as second:
            await until(lambda: bool(second.lanes) and len(first.lanes) + len(second.lanes) == PARTITIONS)
            await asyncio.gather(*(inbox.append(posted("U2:N", session_id=each)) for each in sessions))
            await site.records("unavailable", lambda found: len(found) >= len(sessions))
        await until(lambda: len(first.lanes) == PARTITIONS)
        await asyncio.gather(*(inbox.append(posted("A1", session_id=f"t{each}")) for each in sessions))
        records = await site.records("status", lambda found: len(found) >= 3 * len(sessions))
    told = [(record.message.key, dict(record.message.headers)["verdict"]) for record in records]
    assert len(told) == 3 * len(sessions)
    for each in sessions:
        assert [verdict for key, verdict in told if key == each] == ["accepted", "accepted"]
        assert [verdict for key, verdict in told if key == f"t{each}"] == ["accepted"]


async def test_a_dead_letter_that_was_appended_twice_dies_once(site: Site, telemetry: Telemetry) -> None:
    """An append whose answer was lost is made again, maybe after the lane moved; a second request is another letter."""
    letter = posted("A1", session_id="s")._replace(body=b"no notification")
    again = letter._replace(received_micros=letter.received_micros + 1)
    async with site.inbox() as inbox:
        async with site.routing(telemetry):
            await inbox.append(letter)
            await inbox.append(letter)
            await inbox.append(again)
            await site.records("dead-letter", lambda found: len(found) >= 2)
        async with site.routing(Telemetry()):
            await inbox.append(letter)
            await inbox.append(posted("A1", session_id="s"))
            await site.records("status", bool)
    records = await site.records("dead-letter", bool)
    assert len(records) == 2


async def test_the_spool_keeps_what_kafka_cannot(
    site: Site, kafka_cluster: Cluster, telemetry: Telemetry, tmp_path: Path
) -> None:
    """While the broker is paused appends are kept on disk; then they are routed, once each, in order per session."""
    async with site.inbox(append_timeout_seconds=3) as inbox:
        spool = _spool(tmp_path, inbox, telemetry)
        try:
            async with _running(spool.run()):
                await spool.append(posted("A1", session_id="s"))
                await until(lambda: not spool.notice)  # a busy broker may have taken longer
                kafka_cluster.pause(0)
                try:
                    await spool.append(posted("U2", session_id="s"))
                    for number in range(3, 20):
                        await spool.append(posted(f"{'AU'[number % 2 == 0]}{number}", session_id="s"))
                    assert "wait on disk" in spool.notice
                    assert spool.trouble == ""
                finally:
                    kafka_cluster.resume(0)
                await until(lambda: not spool.notice)
        finally:
            spool.close()
        async with site.routing(telemetry):
            records = await site.records("status", lambda found: len(found) >= 19)
    assert [record.message.value is not None and b'"late":true' in record.message.value for record in records] == (
        [False] * 19
    )


async def test_a_spool_is_drained_after_a_restart(
    site: Site, kafka_cluster: Cluster, telemetry: Telemetry, tmp_path: Path
) -> None:
    """Notifications on the disk of a process that ended go to Kafka after the next start."""
    async with site.inbox(append_timeout_seconds=3) as inbox:
        spool = _spool(tmp_path, inbox, telemetry)
        kafka_cluster.pause(0)
        try:
            await spool.append(posted("A1", session_id="s"))
        finally:
            spool.close()
            kafka_cluster.resume(0)
    async with site.inbox() as inbox:
        spool = _spool(tmp_path, inbox, telemetry)
        try:
            assert spool.count == 1
            async with _running(spool.run()), site.routing(telemetry):
                (record,) = await site.records("status", bool)
            assert record.message.key == "s"
        finally:
            spool.close()


async def test_routers_of_two_groups(site: Site, telemetry: Telemetry) -> None:
    """With routers in two groups each event has its effect once, and both report the other."""
    other = copy(site)
    other.topics = Topics.of(site.prefix, "router-b", site.router.topics)
    sessions = [f"s{number:02}" for number in range(40)]
    async with site.inbox() as inbox, site.routing(telemetry) as first, other.routing(Telemetry()) as second:
        for what in ("A1", "U2:N"):
            await asyncio.gather(*(_kept(inbox, posted(what, session_id=each)) for each in sessions))
            await until(lambda: all(map(_is_done, (first, second))))
        ends = await site.records("unavailable", lambda found: len(found) >= len(sessions))
        await until(lambda: "router-b" in first.notice and f"{site.prefix}.router" in second.notice)
    assert sorted(record.message.key for record in ends) == sessions


@pytest.mark.parametrize("between", ["nothing", "another router"])
async def test_a_batch_is_appended_twice(
    site: Site, kafka_cluster: Cluster, telemetry: Telemetry, tmp_path: Path, between: str
) -> None:
    """If Kafka's answer to a batch is lost, the inbox has all of it twice and it has its effects once: 400 changes of
    one session, more than it remembers, and 3,000 dead letters, whichever router decides on the second ones.
    """
    times = range(400)
    flaps = [posted(f"{'AU'[second % 2]}{second}#{second}", session_id="flaps") for second in times]
    broken = [posted(b'{"n":%d}' % number, key="acme") for number in range(3_000)]
    way = kafka_cluster.way()
    ((listen, target),) = way.proxies
    through = site.through(way.bootstrap)
    async with Proxy(listen, target) as proxy, through.inbox(append_timeout_seconds=2) as inbox:
        spool = _spool(tmp_path, inbox, telemetry)
        try:
            await _kept(inbox, posted("A1", session_id="first"))
            before = await site.ends()
            proxy.lose_answers()
            await asyncio.gather(*map(spool.append, [*flaps, *broken]))
            assert spool.count == len(flaps) + len(broken)
            assert await site.ends() - before == spool.count, "the broker took none of it"
            if between == "another router":
                async with site.routing(telemetry):
                    await site.records("status", lambda found: len(found) > len(flaps))
                    await site.records("dead-letter", lambda found: len(found) >= len(broken))
            await proxy.heal()
            async with _running(spool.run()):
                await until(lambda: not spool.notice)
            await _kept(inbox, posted("U2:N", session_id="flaps"))
            await _kept(inbox, posted(b"last", key="acme"))
        finally:
            spool.close()
    assert await site.ends() - before >= 2 * (len(flaps) + len(broken))
    async with site.routing(telemetry):
        letters = await site.records("dead-letter", lambda found: any(b"bGFzdA==" in _value(each) for each in found))
        statuses = await site.records("status", lambda found: any(b"NETWORK" in _value(each) for each in found))
    assert len(letters) == len(broken) + 1
    assert [record.message.key for record in statuses].count("flaps") == len(flaps) + 1


def _is_done(router: Membership) -> bool:
    """Whether it has committed all that it knows of, on each partition."""
    return len(router.lanes) == PARTITIONS and not any(lane.lag for lane in router.lanes.values())


def _value(record: Record) -> bytes:
    return record.message.value or b""


async def _kept(inbox: KafkaInbox, notification: Notification) -> None:
    """Append, again if the broker does not know the new topic yet."""
    while True:
        async with asyncio.timeout(SECONDS_MAX):
            await inbox.connected.wait()
        try:
            return await inbox.append(notification)
        except Unavailable:
            await asyncio.sleep(0.1)


async def test_a_full_spool_refuses(site: Site, kafka_cluster: Cluster, telemetry: Telemetry, tmp_path: Path) -> None:
    """Beyond its bytes the spool takes nothing more, and says so."""
    async with site.inbox(append_timeout_seconds=3) as inbox:
        spool = _spool(tmp_path, inbox, telemetry, bytes_max=200_000)
        kafka_cluster.pause(0)
        try:
            outcomes = await asyncio.gather(
                *(spool.append(posted("A1")._replace(body=b"x" * 20_000)) for _ in range(20)), return_exceptions=True
            )
            refused = [each for each in outcomes if isinstance(each, Unavailable)]
            assert 0 < len(refused) < 20
            assert {each.reason for each in refused} == {"spool"}
            assert "full" in spool.trouble
        finally:
            spool.close()
            kafka_cluster.resume(0)


@pytest.mark.parametrize("body_bytes", [0, 60_000])
async def test_a_spool_takes_no_more_of_the_disk_than_it_may(
    body_bytes: int, site: Site, kafka_cluster: Cluster, telemetry: Telemetry, tmp_path: Path
) -> None:
    """The spool's limit counts the file with its log and index; once Kafka has all, the file is small, and takes as
    much again.
    """
    counts = []
    async with site.inbox(append_timeout_seconds=2) as inbox:
        spool = _spool(tmp_path, inbox, telemetry, bytes_max=_SPOOL_BYTES_MAX)
        try:
            async with _running(spool.run()):
                for outage in range(3):
                    kafka_cluster.pause(0)
                    try:
                        counts.append(await _fill(spool, f"{outage}", body_bytes))
                        assert _SPOOL_BYTES_MAX / 2 < _spool_bytes(tmp_path) < 1.1 * _SPOOL_BYTES_MAX
                    finally:
                        kafka_cluster.resume(0)
                    await until(lambda: not spool.notice and _spool_bytes(tmp_path) < _SPOOL_BYTES_MAX / 8)
        finally:
            spool.close()
    assert min(counts) > 0.9 * max(counts)


async def _fill(spool: Spool, name: str, body_bytes: int) -> int:
    """Append many notifications at a time until one is refused; returns how many were kept."""
    count = 0
    while True:
        appends = []
        for number in range(20 if body_bytes else 200):
            notification = posted("A1", session_id=f"{name}-{count + number}")
            appends.append(spool.append(notification._replace(body=notification.body + b" " * body_bytes)))
        outcomes = await asyncio.gather(*appends, return_exceptions=True)
        count += sum(each is None for each in outcomes)
        if any(outcomes):
            assert {each.reason for each in outcomes if isinstance(each, Unavailable)} == {"spool"}
            return count


def _spool_bytes(directory: Path) -> int:
    files = (directory / "spool").glob("qod.sqlite*")
    return sum(path.stat().st_blocks * 512 for path in files)


def _spool(directory: Path, inbox: KafkaInbox, telemetry: Telemetry, bytes_max: int = 1 << 30) -> Spool:
    return Spool(directory / "spool", inbox, telemetry, bytes_max=bytes_max, append_timeout_seconds=30)
