"""Notifications that were received long ago, or by a clock that is behind, are kept for as long as new ones."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from receiver.backends.kafka.topics import create
from receiver.core import rfc3339
from receiver.telemetry import Telemetry
from tests.kafka_cluster import Cluster
from tests.limits import SECONDS_MAX
from tests.samples import HOUR, body, posted, told
from tests.test_kafka import PARTITIONS, Site

DAY_MILLIS = 24 * 3_600_000
#: Longer ago than topics keep records.
LONG_AGO_MICROS = 10 * 24 * HOUR


@pytest.fixture(scope="module")
def sweeping(can_run_kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:  # noqa: ARG001
    """A broker that removes old records twice a second."""
    properties = {"log.retention.check.interval.ms": "500", "log.initial.task.delay.ms": "100"}
    with Cluster(tmp_path_factory.mktemp("sweeping"), properties=properties) as cluster:
        yield cluster


async def _made(bootstrap: str, topic: str, partitions_count: int) -> None:
    """A topic that takes its records' times from their writers, and keeps them for a week."""
    configs = {"retention.ms": str(7 * DAY_MILLIS), "cleanup.policy": "delete"}
    configs["message.timestamp.after.max.ms"] = str(2**63 - 1)
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, partitions_count, 1, topic_configs=configs)])
    finally:
        await admin.close()


async def _swept(bootstrap: str, topic: str) -> None:
    """Wait until the broker has looked through all its logs once, as its removal of two old records shows.

    It goes round its logs. The second record is written once the first is gone, so a whole round lies between.
    """
    where = TopicPartition(topic, 0)
    await _made(bootstrap, topic, 1)
    async with (
        AIOKafkaProducer(bootstrap_servers=bootstrap) as producer,
        AIOKafkaConsumer(bootstrap_servers=bootstrap) as consumer,
        asyncio.timeout(SECONDS_MAX),
    ):
        for _ in range(2):
            millis = time.time_ns() // 1_000_000 - 10 * DAY_MILLIS
            sent = await producer.send_and_wait(topic, b"old", partition=0, timestamp_ms=millis)
            while (await consumer.beginning_offsets([where]))[where] <= sent.offset:  # noqa: ASYNC110  # no event
                await asyncio.sleep(0.05)


async def _begins(bootstrap: str, topics: Sequence[str]) -> Mapping[str, int]:
    """The number of removed records of each topic."""
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap) as consumer:
        partitions = [TopicPartition(topic, each) for topic in topics for each in range(PARTITIONS)]
        begins = await consumer.beginning_offsets(partitions)
    return {topic: sum(at for where, at in begins.items() if where.topic == topic) for topic in topics}


@pytest.mark.parametrize("stamps", ["the broker", "the edge"])
async def test_what_was_received_long_ago_is_not_removed(
    sweeping: Cluster, topic_prefix: str, telemetry: Telemetry, stamps: str
) -> None:
    """Twenty notifications from before the topics' retention stay in the inbox until they are routed, and then on the
    topics, each with the time of its receipt, whether the broker or the edge gives the inbox's records their times.
    """
    site = Site(sweeping, topic_prefix)
    if stamps == "the edge":  # as in a topic of an earlier release
        await _made(sweeping.bootstrap, site.plan.inbox, PARTITIONS)
    await create(site.connection, site.plan)
    received_micros = time.time_ns() // 1000 - LONG_AGO_MICROS
    contents = {f"s{number}": body(told("U1:N", f"s{number}")[0]) for number in range(20)}
    async with site.inbox() as inbox:
        for session_id, content in contents.items():
            await inbox.append(posted(content, session_id=session_id, received_micros=received_micros))
    await _swept(sweeping.bootstrap, f"{topic_prefix}-old")
    assert await _begins(sweeping.bootstrap, [site.plan.inbox]) == {site.plan.inbox: 0}
    async with site.routing(telemetry):
        await site.records("status", lambda found: len(found) >= len(contents))
    await _swept(sweeping.bootstrap, f"{topic_prefix}-older")
    written = [f"{topic_prefix}.{name}" for name in ("status", "unavailable", "sessions")]
    assert await _begins(sweeping.bootstrap, written) == dict.fromkeys(written, 0)
    records = await site.records("status", lambda found: len(found) >= len(contents))
    receipt = f'"receivedAt":"{rfc3339.render(received_micros)}"'.encode()
    assert [receipt in (each.message.value or b"") for each in records] == [True] * len(contents)


@pytest.mark.parametrize("stamps", ["the broker", "the edge"])
async def test_a_clock_ahead_forgets_no_session(
    sweeping: Cluster, topic_prefix: str, telemetry: Telemetry, stamps: str
) -> None:
    """After notifications of a clock that is 200 hours ahead each session is still remembered, and a repetition has no
    effect; if the broker gives the inbox no times of its own, that clock is reported.
    """
    site = Site(sweeping, topic_prefix)
    if stamps == "the edge":
        await _made(sweeping.bootstrap, site.plan.inbox, PARTITIONS)
    await create(site.connection, site.plan)
    now_micros = time.time_ns() // 1000
    keys = [f"s{number}" for number in range(20)]
    ends = [posted(f"U1:N#{key}", session_id=key, received_micros=now_micros) for key in keys]
    async with site.inbox() as inbox, site.routing(telemetry) as membership:
        await asyncio.gather(*map(inbox.append, ends))
        await site.records("unavailable", lambda found: len(found) >= len(keys))
        ahead = [posted("R1", session_id=f"{key}-", received_micros=now_micros + 200 * HOUR) for key in keys]
        await asyncio.gather(*map(inbox.append, ahead))
        await site.records("status", lambda found: len(found) >= 2 * len(keys))
        again = [each._replace(received_micros=now_micros + HOUR // 3600) for each in ends]
        last = [posted("U2:N", session_id=f"{key}-", received_micros=now_micros + HOUR // 3600) for key in keys]
        await asyncio.gather(*map(inbox.append, [*again, *last]))
        found = await site.records("unavailable", lambda found: len(found) >= 2 * len(keys))
        counts = [sum(len(lane.sessions) for lane in membership.lanes.values()), "ahead" in membership._limits.notice]  # noqa: SLF001
    assert sorted(each.message.key for each in found) == sorted([*keys, *(f"{key}-" for key in keys)])
    assert counts == [2 * len(keys), stamps == "the edge"]
