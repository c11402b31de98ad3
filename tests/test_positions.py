"""Positions that don't count: those of other programs, and those of an inbox that was made anew, or is shorter."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete

from receiver.backends.kafka.inbox import KafkaInbox
from receiver.backends.kafka.lane import KafkaLane, Topics
from receiver.backends.kafka.limits import Limits
from receiver.backends.kafka.standing import Doubt
from receiver.core.notification import Notification
from receiver.inbox import LaneLost
from receiver.process.part import Part
from tests.kafka_cluster import Brokers
from tests.limits import SECONDS_MAX
from tests.samples import posted
from tests.test_topics_anew import ALL, PARTITIONS, SESSIONS, Site, routed_once, until_true


@pytest.fixture
def site(kafka: Brokers, topic_prefix: str, tmp_path: Path) -> Site:
    """Topics that are not made yet."""
    return Site(kafka, topic_prefix, tmp_path)


async def _kept_without_a_router(site: Site) -> None:
    """Each session is available, once; then an end of each is kept, and no router runs."""
    await routed_once(site)
    async with site.node(Part("edge")) as edge:
        await site.post(edge, "U2:N")


async def _all_are_routed(site: Site) -> None:
    async with site.node(Part("router")) as router:
        assert await site.keys("unavailable", len(SESSIONS)) == SESSIONS
        assert "another program's position" in router.notices()["lanes"]


async def test_a_reader_with_the_routers_group_skips_nothing(site: Site) -> None:
    """Offsets that another program commits for the routers' group are reported, and notifications before them are
    routed.
    """
    await _kept_without_a_router(site)
    reader = AIOKafkaConsumer(
        site.topic("inbox"),
        bootstrap_servers=site.bootstrap,
        group_id=f"{site.prefix}.router",
        auto_offset_reset="earliest",
        enable_auto_commit=True,
    )
    async with reader:
        read = 0
        async with asyncio.timeout(SECONDS_MAX):
            while read < len(SESSIONS):
                read += sum(map(len, (await reader.getmany(timeout_ms=100)).values()))
    assert not any([(await site.offset(each)).metadata for each in range(PARTITIONS)]), "nothing was committed"
    await _all_are_routed(site)


@pytest.mark.parametrize("name", ["dead-letter", "sessions"])
async def test_a_record_of_another_program_skips_nothing(site: Site, name: str) -> None:
    """A record with a position of the inbox and without the inbox's id moves no lane."""
    await _kept_without_a_router(site)
    rows = {each.partition: each.message for each in await site.told("sessions", len(SESSIONS))}
    async with AIOKafkaProducer(bootstrap_servers=site.bootstrap) as producer:
        for partition, row in rows.items():
            offset = (await site.offset(partition)).offset
            headers = [(each, text.encode()) for each, text in row.headers if each not in {"inbox", "inbox-id"}]
            headers.append(("inbox", f"{partition}-{offset + 1}".encode()))
            key, value = (row.key.encode(), row.value) if name == "sessions" else (b"foreign", b"{}")
            await producer.send_and_wait(site.topic(name), value, key, partition=partition, headers=headers)
    await _all_are_routed(site)


async def _make_all(site: Site) -> None:
    for name in ALL:
        await site.make(name, 1)


@asynccontextmanager
async def _lane(site: Site, limits: Limits | None = None) -> AsyncIterator[KafkaLane]:
    """The lane of the only partition."""
    topics = Topics.of(site.prefix, "router", [site.topic(name) for name in ALL[1:]])
    lane = KafkaLane(site.connection, topics, 0, limits=limits)
    try:
        await lane.open()
        yield lane
    finally:
        await lane.close()


async def _append(site: Site, *notifications: Notification) -> None:
    inbox = KafkaInbox(site.connection, site.topic("inbox"), append_timeout_seconds=60)
    running = asyncio.create_task(inbox.run())
    try:
        async with asyncio.timeout(SECONDS_MAX):
            await inbox.connected.wait()
            for each in notifications:
                await inbox.append(each)
    finally:
        running.cancel()
        await asyncio.wait({running})


def _starting(sessions: Sequence[str]) -> Sequence[Notification]:
    return [posted("A1", session_id=each) for each in sessions]


async def test_nothing_of_another_inbox_is_decided_on(site: Site) -> None:
    """Notifications that a lane reads in an inbox that was made anew a moment ago can't be committed."""
    await _make_all(site)
    await _append(site, *_starting(SESSIONS[:3]))
    async with _lane(site) as lane:
        batch = await lane.read(3)
        await lane.commit(batch, (), {}, batch.clock_micros)
        await site.delete("inbox")
        await site.make("inbox", 1)
        await _append(site, *_starting(SESSIONS))

        async def go_on() -> None:
            batch = await lane.read(3)
            assert batch.position == 3
            await lane.commit(batch, (), {}, batch.clock_micros)

        with pytest.raises(LaneLost, match=r"made anew|has nothing at"):
            await asyncio.wait_for(go_on(), SECONDS_MAX)
    async with _lane(site) as lane:
        assert (await lane.read(1)).positions == [0]


async def test_what_is_removed_under_an_open_lane_is_told(site: Site) -> None:
    """Notifications that are removed before a running lane has read them are reported, as at its opening."""
    await _make_all(site)
    large = b"x" * 60_000
    await _append(site, *(posted(large, key=each) for each in SESSIONS))
    limits = Limits(site.connection)
    limits.lessons(0).fetch_bytes_max = 2**16  # so that most of them are not fetched yet
    async with _lane(site, limits) as lane:
        assert (await lane.read(1)).positions == [0]
        async with site.admin() as admin:
            inbox = TopicPartition(site.topic("inbox"), 0)
            await admin.delete_records({inbox: RecordsToDelete(len(SESSIONS) - 1)})

        async def go_on() -> None:
            while (await lane.read(1)).position < len(SESSIONS) - 1:
                pass

        with pytest.raises(LaneLost, match="has nothing at"):
            await asyncio.wait_for(go_on(), SECONDS_MAX)
    async with _lane(site) as lane:
        assert lane.doubted is not None
        assert lane.doubted.doubt is Doubt.INBOX_REMOVED
        assert (await lane.read(1)).positions == [len(SESSIONS) - 1]


async def _ends_at(consumer: AIOKafkaConsumer, inbox: TopicPartition, end: int) -> bool:
    return bool((await consumer.end_offsets([inbox]))[inbox] == end)


async def test_the_end_of_a_transaction_is_no_notification(site: Site) -> None:
    """A marker at the end of the inbox makes no lag, and records behind it are read."""
    await _make_all(site)
    inbox = TopicPartition(site.topic("inbox"), 0)
    other = AIOKafkaProducer(bootstrap_servers=site.bootstrap, transactional_id=f"{site.prefix}-other")
    async with other, other.transaction():
        await other.send_and_wait(inbox.topic, b"x", b"key", partition=0)
    async with AIOKafkaConsumer(bootstrap_servers=site.bootstrap) as consumer:
        await until_true(lambda: _ends_at(consumer, inbox, 2))
    async with _lane(site) as lane:
        batch = await lane.read(10)
        assert batch.positions == [0]
        await lane.commit(batch, (), {}, batch.clock_micros)
        reading = asyncio.create_task(lane.read(10))
        await until_true(lambda: lane.lag == 0, lambda: f"a lag of {lane.lag}")
        await _append(site, posted("A1"))
        batch = await asyncio.wait_for(reading, SECONDS_MAX)
        assert (batch.position, batch.positions) == (1, [2])
        await lane.commit(batch, (), {}, batch.clock_micros)
        assert lane.lag == 0
