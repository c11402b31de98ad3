"""A process on a cluster: spools of earlier edges, a disk that empties, and its report on itself."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from receiver.backends.kafka.connection import KafkaConnection, Security
from receiver.backends.kafka.inbox import KafkaInbox
from receiver.backends.kafka.reader import KafkaReader
from receiver.backends.spool import Spool
from receiver.core.errors import Unavailable
from receiver.core.topics import SESSIONS
from receiver.process.clustered import SPOOL, ClusteredNode, clustered
from receiver.process.part import Part
from receiver.process.routing import build_router
from receiver.settings import Settings
from receiver.telemetry import Telemetry
from tests.kafka_cluster import Brokers, Cluster
from tests.kafka_process import paused, records
from tests.limits import SECONDS_MAX
from tests.nodes import SqliteBackend, until
from tests.samples import posted

#: More appends than wait for the same sync, so that one is always in progress.
SENDERS = 64


class _Failures(Telemetry):
    """Notes why a spool could not be emptied."""

    def __init__(self) -> None:
        super().__init__(StringIO())
        self.failures: list[str] = []

    def spool_failed(self, reason: str) -> None:
        """See Telemetry."""
        self.failures.append(reason)


def _settings(kafka: Brokers, prefix: str, directory: Path) -> Settings:
    return Settings.model_validate(
        {
            "prefix": prefix,
            "data": directory,
            "kafka": {"bootstrap_servers": kafka.bootstrap, "partitions": 1, "append_timeout_seconds": 0.5},
        }
    )


@asynccontextmanager
async def _running(*jobs: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@asynccontextmanager
async def _node(settings: Settings, part: Part, telemetry: Telemetry) -> AsyncIterator[ClusteredNode]:
    """A node at work."""
    async with clustered(settings, telemetry, build_router(settings), part) as node, _running(*node.jobs()):
        yield node


async def _leave(directory: Path, session_ids: Sequence[str]) -> None:
    """Leave notifications in a spool, as a process does that ends while Kafka is away."""
    nowhere = KafkaInbox(KafkaConnection(["127.0.0.1:9"], Security().options()), "inbox", append_timeout_seconds=1)
    spool = Spool(directory, nowhere, Telemetry(StringIO()), bytes_max=1 << 20, append_timeout_seconds=30)
    with closing(spool):
        await asyncio.gather(*(spool.append(posted("A1", session_id=each)) for each in session_ids))


def _keys(kafka: Brokers, prefix: str) -> list[str]:
    return sorted(each.key.decode() for each in records(kafka.bootstrap, f"{prefix}.inbox", 1))


async def test_spools_that_an_earlier_release_left_are_sent_first(
    kafka: Brokers, topic_prefix: str, tmp_path: Path, telemetry: Telemetry
) -> None:
    """One edge brings the spools of five edges into one order: new notifications come behind all that they hold."""
    settings = _settings(kafka, topic_prefix, tmp_path)
    spools = tmp_path / SPOOL
    for number in range(5):
        await _leave(spools / str(number), [f"s{number}"])
    (spools / "not-a-spool").mkdir()
    async with clustered(settings, telemetry, build_router(settings), Part("edge")) as node:
        for number in range(1, 5):
            await node.inbox.append(posted("U2", session_id=f"s{number}"))
        with pytest.raises(Unavailable, match="another process serves"):
            ClusteredNode(settings, telemetry, build_router(settings), Part())
        async with _running(*node.jobs()):
            await until(lambda: not node.notices()["spool"])
    assert _spools(telemetry) == {"0", "1", "2", "3", "4"}
    found = await asyncio.to_thread(records, kafka.bootstrap, f"{topic_prefix}.inbox", 1)
    # On a busy machine an answer may come too late, and the notification is sent again.
    assert list(dict.fromkeys((each.key.decode(), b"UNAVAILABLE" in each.value) for each in found)) == [
        *((f"s{number}", False) for number in (1, 2, 3, 4, 0)),
        *((f"s{number}", True) for number in range(1, 5)),
    ]


def _spools(telemetry: Telemetry) -> set[str]:
    """The spools that a process has reported."""
    name = "qod_receiver_spool_notifications"
    return {
        sample.labels["spool"] for each in telemetry.registry.collect() for sample in each.samples if each.name == name
    }


async def test_a_disk_is_emptied_under_load(
    kafka_cluster: Cluster, topic_prefix: str, tmp_path: Path, telemetry: Telemetry
) -> None:
    """Senders that never pause don't keep the disk in use once Kafka is back, and none of them waits long."""
    settings = _settings(kafka_cluster, topic_prefix, tmp_path)
    loop = asyncio.get_running_loop()
    stopping, seconds, told = False, [0.0], 0

    async def post(number: int) -> None:
        nonlocal told
        second = 0
        while not stopping:
            began = loop.time()
            second += 1
            await node.inbox.append(posted(f"{'AU'[second % 2]}{second}", session_id=f"s{number}"))
            told += 1
            seconds.append(loop.time() - began)

    async with _node(settings, Part("edge"), telemetry) as node:
        await until(lambda: not node.notices()["kafka"])
        async with asyncio.TaskGroup() as senders:
            for number in range(SENDERS):
                senders.create_task(post(number))
            with paused(kafka_cluster):
                await until(lambda: bool(node.notices()["spool"]))
                told = 0
                await until(lambda: told > 20 * SENDERS)
            seconds.clear()
            await until(lambda: not node.notices()["spool"])
            stopping = True
        assert max(seconds) < SECONDS_MAX / 10
    found = await asyncio.to_thread(records, kafka_cluster.bootstrap, f"{topic_prefix}.inbox", 1)
    assert len(found) >= told


async def test_what_was_sent_is_not_sent_again(kafka: Brokers, topic_prefix: str, tmp_path: Path) -> None:
    """If the disk can't note what Kafka has taken, it is noted later, and not sent to Kafka once more."""
    settings, telemetry = _settings(kafka, topic_prefix, tmp_path), _Failures()
    directory = tmp_path / SPOOL / "0"
    await _leave(directory, [f"s{number}" for number in range(3)])
    made = clustered(settings, telemetry, build_router(settings), Part("edge"))
    async with made as node, AsyncExitStack() as running:
        with SqliteBackend(directory).stalled():
            await running.enter_async_context(_running(*node.jobs()))
            await until(lambda: "the file can't be written: Busy" in telemetry.failures)
        await until(lambda: not node.notices()["spool"])
    assert await asyncio.to_thread(_keys, kafka, topic_prefix) == ["s0", "s1", "s2"]


async def test_a_record_that_is_no_session_is_passed_over_and_told(
    kafka: Brokers, topic_prefix: str, tmp_path: Path, telemetry: Telemetry
) -> None:
    """Another program's record among the sessions stops no partition, and is counted."""
    settings = _settings(kafka, topic_prefix, tmp_path)
    async with _node(settings, Part("router"), telemetry) as node:
        await until(lambda: not node.troubles()["router"])
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
        await producer.send_and_wait(f"{topic_prefix}.{SESSIONS}", json.dumps({"not": "ours"}).encode(), key=b"s")
    async with _node(settings, Part("router"), telemetry) as node:
        await until(lambda: not node.troubles()["router"])
    assert telemetry.registry.get_sample_value("qod_receiver_records_passed_over_total") == 1


async def test_a_reader_goes_on_behind_an_outage(
    kafka_cluster: Cluster, topic_prefix: str, tmp_path: Path, telemetry: Telemetry
) -> None:
    """A reader that can't read says so within its limit, and reads again once Kafka answers."""
    settings = _settings(kafka_cluster, topic_prefix, tmp_path)
    connection = KafkaConnection([kafka_cluster.bootstrap], Security().options())
    reader = KafkaReader(connection, topic_prefix)
    try:
        with pytest.raises(Unavailable, match=f"there is no topic {topic_prefix}.sessions"):
            await reader.sessions(None, 10)
        async with clustered(settings, telemetry, build_router(settings), Part("router")):
            assert await reader.sessions(None, 10) == []
        with paused(kafka_cluster):
            async with asyncio.timeout(SECONDS_MAX):
                with pytest.raises(Unavailable):
                    await reader.topics()
        assert len(await reader.topics()) == 4
    finally:
        await reader.close()
