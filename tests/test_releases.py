"""Stores that earlier releases wrote, opened by the code of today."""

import gzip
import tarfile
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import OffsetAndMetadata

from receiver.backends.kafka.connection import KafkaConnection, Security
from receiver.backends.kafka.lane import KafkaLane
from receiver.backends.kafka.records import notification_of
from receiver.backends.kafka.topics import TopicPlan, create
from receiver.backends.packing import unpack_notifications
from receiver.backends.sqlite.schema import FILE_NAME
from receiver.core.notification import Notification
from receiver.core.router import Router
from tests.kafka_cluster import Brokers
from tests.nodes import KafkaBackend, Node, SqliteBackend, append, everything, route
from tests.samples import decisions

RELEASES = sorted(path for path in (Path(__file__).parent / "releases").iterdir() if path.is_dir())
TOPICS = ("status", "unavailable")


async def _is_gone_on_with(node: Node, router: Router, kept: Sequence[Notification]) -> None:
    """All that was kept has its effect once, and repeating it has none."""
    assert 0 < node.lane.lag < len(kept)
    await route(node, router)
    wanted = [message for each in decisions(router, kept) for message in each.messages]
    for name in TOPICS:
        topic = f"{node.prefix}.{name}"
        found = [(each.message.key, each.message.value) for each in await everything(node.reader, topic)]
        assert found == [(each.key, each.value) for each in wanted if each.topic == topic]
        assert found
    sessions = {each.session_id: each.qos_status for each in await node.reader.sessions(None, 1_000)}
    ends = {each.session.session_id: each.session.qos_status for each in decisions(router, kept) if each.session}
    assert sessions == ends
    before = {name: len(await everything(node.reader, f"{node.prefix}.{name}")) for name in TOPICS}
    await append(node, *kept)
    await route(node, router)
    assert {name: len(await everything(node.reader, f"{node.prefix}.{name}")) for name in TOPICS} == before


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
async def test_a_directory_of_an_earlier_release(release: Path, tmp_path: Path, router: Router) -> None:
    """A directory that another release's process left when it was killed is opened, and nothing is lost or repeated."""
    with tarfile.open(release / "directory.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    with apsw.Connection(str(tmp_path / FILE_NAME)) as other:
        rows: Any = other.execute("SELECT pack, crc FROM inbox ORDER BY position").fetchall()
    other.close()
    kept = [notification for blob, crc in rows for notification in unpack_notifications(blob, crc)]
    async with SqliteBackend(tmp_path).opened() as node:
        await _is_gone_on_with(node, router, kept)


@asynccontextmanager
async def _cluster_of(release: Path, kafka: Brokers, prefix: str) -> AsyncIterator[list[Notification]]:
    """Topics with all that a release wrote, and what it had kept."""
    lines = [orjson.loads(line) for line in gzip.decompress((release / "topics.jsonl.gz").read_bytes()).splitlines()]
    names = [f"{prefix}.{name}" for name in ("dead-letter", "sessions", *TOPICS)]
    connection = KafkaConnection(kafka.bootstrap.split(","), Security().options())
    await create(connection, TopicPlan(prefix, names, 1, None, 168, 168))
    kept: list[Notification] = []
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
        for line in (each for each in lines if "group" not in each):
            topic = f"{prefix}.{line['topic'].partition('.')[2]}"
            key, value = (None if line[name] is None else b64decode(line[name]) for name in ("key", "value"))
            headers = [(name, b64decode(text)) for name, text in line["headers"]]
            # The release's own timestamps would let the broker remove the records one day.
            millis = time.time_ns() // 1_000_000
            written = await producer.send_and_wait(topic, value, key, partition=0, headers=headers, timestamp_ms=millis)
            if line["topic"] == "qod.inbox":
                assert written.offset == line["position"]
                record = SimpleNamespace(
                    topic=topic,
                    partition=0,
                    offset=written.offset,
                    key=key,
                    value=value,
                    headers=headers,
                    timestamp=line["timestamp"],
                    timestamp_type=0,
                )
                kept.append(notification_of(record))
    for line in (each for each in lines if "group" in each):
        group = f"{prefix}.{line['group'].partition('.')[2]}"
        options = {"bootstrap_servers": kafka.bootstrap, "group_id": group, "enable_auto_commit": False}
        async with AIOKafkaConsumer(**options) as consumer:
            where = TopicPartition(f"{prefix}.inbox", line["partition"])
            consumer.assign([where])
            await consumer.commit({where: OffsetAndMetadata(line["position"], line["metadata"])})
    yield kept


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
async def test_topics_of_an_earlier_release(release: Path, kafka: Brokers, topic_prefix: str) -> None:
    """Topics that another release wrote are gone on with from its position, and nothing is lost or repeated."""
    router = Router(prefix=topic_prefix, forget_after_seconds=96 * 3600)
    async with _cluster_of(release, kafka, topic_prefix) as kept:
        backend = KafkaBackend(kafka, topic_prefix)
        backend.is_made = True
        async with backend.opened() as node:
            assert isinstance(node.lane, KafkaLane)
            assert node.lane.doubted is None
            await _is_gone_on_with(node, router, kept)
