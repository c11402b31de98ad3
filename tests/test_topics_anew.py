"""Topics that are deleted and made anew, cut short, or grown, under routers and edges that know the old ones."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.structs import OffsetAndMetadata

from receiver.backends.kafka.connection import KafkaConnection, Security
from receiver.backends.kafka.known import known
from receiver.backends.kafka.reader import KafkaReader
from receiver.core.errors import Unavailable
from receiver.core.message import Record
from receiver.process.clustered import ClusteredNode, clustered
from receiver.process.part import WHOLE, Part
from receiver.process.routing import build_router
from receiver.settings import Settings
from receiver.telemetry import Telemetry
from tests.kafka_cluster import Brokers
from tests.receiver_process import COMMAND
from tests.samples import posted

SESSIONS = [f"s{number:03}" for number in range(40)]
PARTITIONS = 2
ALL = ("inbox", "sessions", "status", "unavailable", "dead-letter")
WAIT_SECONDS_MAX = 120


class Site:
    """A cluster's topics of one prefix, nodes on them, and an administrator's client."""

    def __init__(self, kafka: Brokers, prefix: str, directory: Path) -> None:
        self.bootstrap, self.prefix, self._directory = kafka.bootstrap, prefix, directory
        self.connection = KafkaConnection(kafka.bootstrap.split(","), Security().options())

    def topic(self, name: str) -> str:
        """The full name."""
        return f"{self.prefix}.{name}"

    @asynccontextmanager
    async def node(self, part: Part = WHOLE, **more: Any) -> AsyncIterator[ClusteredNode]:  # noqa: ANN401  # settings
        """A node at work, with a directory for its role."""
        kafka = {"bootstrap_servers": self.bootstrap, "partitions": PARTITIONS} | more.pop("kafka", {})
        given = {"prefix": self.prefix, "data": self._directory / part.role, "kafka": kafka, **more}
        settings = Settings.model_validate(given)
        async with clustered(settings, Telemetry(StringIO()), build_router(settings), part) as node:
            jobs = [asyncio.create_task(job) for job in node.jobs()]
            try:
                yield node
            finally:
                for job in jobs:
                    job.cancel()
                await asyncio.wait(jobs)

    async def post(self, node: ClusteredNode, spec: str, sessions: Sequence[str] = SESSIONS) -> None:
        """Keep an event of each of these sessions."""
        await asyncio.gather(*(node.inbox.append(posted(spec, session_id=each)) for each in sessions))
        await until_true(lambda: not node.notices()["spool"])

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        """An administrator's client."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    async def delete(self, name: str) -> None:
        """Delete a topic, and wait until it is gone."""
        async with self.admin() as admin:
            await admin.delete_topics([self.topic(name)])
        await until_true(lambda: self._is_gone(name))

    async def _is_gone(self, name: str) -> bool:
        return not await known(self.connection, [self.topic(name)])

    async def make(self, name: str, partitions: int = PARTITIONS) -> None:
        """Make a topic."""
        configs = {"cleanup.policy": "compact"} if name == "sessions" else {}
        async with self.admin() as admin:
            await admin.create_topics([NewTopic(self.topic(name), partitions, 1, topic_configs=configs)])

    async def told(self, name: str, count: int) -> Sequence[Record]:
        """All records of a topic, once there are this many."""
        reader = KafkaReader(self.connection, self.prefix)
        found: list[Record] = []
        try:
            cursor = await reader.beginning(self.topic(name))

            async def is_enough() -> bool:
                found.extend(await reader.records(self.topic(name), cursor, 10_000))
                return len(found) >= count

            await until_true(is_enough, lambda: f"{len(found)} of {count} records on {name}")
        finally:
            await reader.close()
        return found

    async def keys(self, name: str, count: int) -> Sequence[str]:
        """The sessions of a topic's records, sorted."""
        return sorted(each.message.key for each in await self.told(name, count))

    async def offset(self, partition: int) -> OffsetAndMetadata:
        """The position of the routers' group."""
        async with self.admin() as admin:
            at = TopicPartition(self.topic("inbox"), partition)
            return (await admin.list_consumer_group_offsets(f"{self.prefix}.router", partitions=[at]))[at]

    async def set_offset(self, partition: int, offset: int, metadata: str) -> None:
        """Commit a position for the routers' group."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap, group_id=f"{self.prefix}.router", enable_auto_commit=False
        )
        async with consumer:
            at = TopicPartition(self.topic("inbox"), partition)
            consumer.assign([at])
            await consumer.commit({at: OffsetAndMetadata(offset, metadata)})


async def until_true(ask: Callable[[], object], told: Callable[[], str] = str) -> None:
    """Wait until the answer is true."""
    try:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while True:
                answer = ask()
                if await answer if asyncio.iscoroutine(answer) else answer:
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not in time: {told()}") from None


@pytest.fixture
def site(kafka: Brokers, topic_prefix: str, tmp_path: Path) -> Site:
    """Topics that are not made yet."""
    return Site(kafka, topic_prefix, tmp_path)


async def routed_once(site: Site) -> None:
    """Each session is available, once, and no router runs."""
    async with site.node() as node:
        await site.post(node, "A1")
        assert await site.keys("status", len(SESSIONS)) == SESSIONS
        await until_true(lambda: not any(node.troubles().values()))


async def test_an_inbox_made_anew_is_read_from_its_beginning(site: Site) -> None:
    """Positions in a deleted inbox don't count in the next one of its name: all of its notifications are routed."""
    await routed_once(site)
    await site.delete("inbox")
    async with site.node() as node:
        await site.post(node, "U2:N")
        assert await site.keys("unavailable", len(SESSIONS)) == SESSIONS


async def test_an_inbox_made_anew_may_be_longer_already(site: Site) -> None:
    """A new inbox that has grown beyond the old one's positions is read from its beginning all the same."""
    await routed_once(site)
    await site.delete("inbox")
    async with site.node(Part("edge")) as edge:
        await site.post(edge, "U2:N")
        await site.post(edge, "U2:N", [f"t{each}" for each in SESSIONS])
    async with site.node(Part("router")):
        assert len(await site.keys("unavailable", 2 * len(SESSIONS))) == 2 * len(SESSIONS)


async def test_an_inbox_is_made_anew_under_a_router(site: Site) -> None:
    """A router notices that its inbox was made anew, and reads it from its beginning."""
    async with site.node() as node:
        await site.post(node, "A1")
        assert await site.keys("status", len(SESSIONS)) == SESSIONS
        await site.delete("inbox")
        await site.make("inbox")
        await site.post(node, "U2:N")
        assert await site.keys("unavailable", len(SESSIONS)) == SESSIONS
        await until_true(lambda: "inbox" in node.notices()["lanes"])


async def test_a_position_of_another_inbox_does_not_count(site: Site) -> None:
    """A position that a backup brought beside an inbox with another id is reported, and the whole inbox is read."""
    await routed_once(site)
    before = [await site.offset(partition) for partition in range(PARTITIONS)]
    await site.delete("inbox")
    async with site.node(Part("edge")) as edge:
        await site.post(edge, "U2:N")
    for partition, (offset, metadata) in enumerate(before):
        await site.set_offset(partition, offset, metadata)
    async with site.node(Part("router")) as router:
        assert await site.keys("unavailable", len(SESSIONS)) == SESSIONS
        await until_true(lambda: "inbox" in router.notices()["lanes"])


async def test_a_position_beyond_the_end_is_no_place_to_wait_at(site: Site) -> None:
    """A log shorter than its position is read again as far as sessions are remembered, without an effect."""
    await routed_once(site)
    for partition in range(PARTITIONS):
        offset, metadata = await site.offset(partition)
        await site.set_offset(partition, offset + 1_000, metadata)
    async with site.node() as node:
        await site.post(node, "U2:N")
        assert await site.keys("unavailable", len(SESSIONS)) == SESSIONS
        assert len(await site.keys("status", 2 * len(SESSIONS))) == 2 * len(SESSIONS)
        assert "ends before" in node.notices()["lanes"]


async def test_what_was_removed_before_it_was_routed_is_told(site: Site) -> None:
    """If the oldest record of the inbox is beyond the position, the router says how many are missing."""
    await routed_once(site)
    async with site.node(Part("edge")) as edge:
        await site.post(edge, "U2:N")
    ends = await _ends(site, "inbox")
    async with site.admin() as admin:
        await admin.delete_records({at: RecordsToDelete(end - 1) for at, end in ends.items()})
    async with site.node(Part("router")) as router:
        assert len(await site.keys("unavailable", PARTITIONS)) == PARTITIONS
        assert "were removed before" in router.notices()["lanes"]


async def _ends(site: Site, name: str) -> dict[TopicPartition, int]:
    partitions = [TopicPartition(site.topic(name), each) for each in range(PARTITIONS)]
    async with AIOKafkaConsumer(bootstrap_servers=site.bootstrap) as consumer:
        ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
        return ends


@pytest.mark.parametrize("running", [True, False])
async def test_sessions_are_built_again(site: Site, running: bool) -> None:
    """Sessions of a topic made anew are rebuilt from the inbox: repetitions have no effect, ends have."""
    async with site.node() as node:
        await site.post(node, "A1")
        assert await site.keys("status", len(SESSIONS)) == SESSIONS
        if running:
            await site.delete("sessions")
            await site.make("sessions")
            await until_true(lambda: "sessions" in node.notices()["lanes"] and not any(node.troubles().values()))
            await site.post(node, "A1")
            await site.post(node, "U2:N")
            await site.told("unavailable", len(SESSIONS))
    if not running:
        await site.delete("sessions")
        async with site.node() as node:
            await site.post(node, "A1")
            await site.post(node, "U2:N")
            await site.told("unavailable", len(SESSIONS))
            assert "sessions" in node.notices()["lanes"]
    found = await site.told("status", 2 * len(SESSIONS))
    verdicts = [dict(each.message.headers)["verdict"] for each in found]
    assert verdicts == ["accepted"] * 2 * len(SESSIONS)
    assert len({each.message.key for each in await site.told("sessions", len(SESSIONS))}) == len(SESSIONS)


@pytest.mark.parametrize("name", ["sessions", "status", "inbox"])
async def test_a_topic_that_is_gone_is_told(site: Site, name: str) -> None:
    """Without one of its topics a router decides nothing, is not ready, and says so all the time."""
    async with site.node() as node:
        await site.post(node, "A1")
        assert await site.keys("status", len(SESSIONS)) == SESSIONS
        await site.delete(name)
        await until_true(lambda: "there is no topic" in node.notices()["router"])
        await asyncio.gather(*(node.inbox.append(posted("U2:N", session_id=each)) for each in SESSIONS))
        for _ in range(300):
            assert "there is no topic" in node.notices()["router"]
            await asyncio.sleep(0.05)


async def _grow(site: Site, count: int, *names: str) -> None:
    async with site.admin() as admin:
        await admin.create_partitions({site.topic(name): NewPartitions(count) for name in names})


async def _counts(site: Site, *names: str) -> list[int]:
    found = await known(site.connection, [site.topic(name) for name in names])
    return [found[site.topic(name)].partitions_count for name in names]


async def test_a_topic_that_comes_later_has_the_partitions_of_the_inbox(site: Site) -> None:
    """A new route's topic has as many partitions as the inbox, and a new inbox as many as the other topics, whatever is
    set.
    """
    await routed_once(site)
    settings = {"kafka": {"partitions": 5}, "routes": [{"topic": "extra"}]}
    async with site.node(Part("router"), **settings) as router:
        await until_true(lambda: not any(router.troubles().values()))
        assert await _counts(site, "inbox", "extra") == [PARTITIONS, PARTITIONS]
    await site.delete("inbox")
    async with site.node(Part("router"), **settings) as router:
        await until_true(lambda: not any(router.troubles().values()))
        assert await _counts(site, "inbox", "extra") == [PARTITIONS, PARTITIONS]


@pytest.mark.parametrize("names", [("inbox",), ALL])
async def test_partitions_that_were_added_are_refused(site: Site, names: Sequence[str]) -> None:
    """With more partitions than its sessions were written with no router starts, and an edge keeps all on its disk."""
    await routed_once(site)
    await _grow(site, 5, *names)
    with pytest.raises(Unavailable, match=r"has 5 partitions, and had 2|has 2 partitions, .*inbox has 5") as refused:
        async with site.node(Part("router")):
            pass
    assert refused.value.reason == "topics"
    assert "5" in await _check_said(site)
    for part in (Part("edge"), Part()):
        async with site.node(part) as edge:
            await asyncio.gather(*(edge.inbox.append(posted("A1", session_id=each)) for each in SESSIONS))
            assert not edge.troubles()["inbox"]
            assert f"{len(SESSIONS)} notifications wait on disk" in edge.notices()["spool"]
            assert "partitions" in edge.notices()["kafka"]
    assert len(await site.told("status", len(SESSIONS))) == len(SESSIONS)
    assert await _counts(site, "inbox") == [5]
    assert sum((await _all_ends(site, "inbox", 5)).values()) == len(SESSIONS)


async def _check_said(site: Site) -> str:
    """The differences that `topics check` reports."""
    command = [*COMMAND, "topics", "check", "--kafka", site.bootstrap]
    environment = {**os.environ, "QOD_RECEIVER_PREFIX": site.prefix, "QOD_RECEIVER_KAFKA__PARTITIONS": "5"}
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 1
    return said.decode()


async def test_partitions_are_added_under_a_router(site: Site) -> None:
    """A router whose topics get more partitions says so and opens none of them; repetitions then have no effect."""
    async with site.node(Part("router")) as router, site.node(Part("edge")) as edge:
        await site.post(edge, "A1")
        assert await site.keys("status", len(SESSIONS)) == SESSIONS
        await _grow(site, 5, *ALL)
        await until_true(lambda: "5 partitions, and had 2" in router.troubles()["router"])
        await until_true(lambda: "5 partitions" in edge.notices()["kafka"])
        await asyncio.gather(*(edge.inbox.append(posted("A1", session_id=each)) for each in SESSIONS))
        await until_true(lambda: f"{len(SESSIONS)} notifications wait on disk" in edge.notices()["spool"])
        assert not edge.troubles()["inbox"]
    assert len(await site.told("status", len(SESSIONS))) == len(SESSIONS)


async def test_sessions_of_another_number_of_partitions_are_refused(site: Site) -> None:
    """Without the group's positions the sessions show that their keys were in other partitions."""
    await routed_once(site)
    await _grow(site, 5, *ALL)
    for partition in range(PARTITIONS):
        await site.set_offset(partition, 0, "")
    async with site.node(Part("router")) as router:
        await until_true(lambda: "with another number of partitions than 5" in router.troubles()["router"])
        assert len(await site.told("status", len(SESSIONS))) == len(SESSIONS)


async def test_an_inbox_of_another_number_is_made_under_an_edge(site: Site) -> None:
    """An edge whose inbox gets another number of partitions sends nothing there, until it has the right number."""
    await routed_once(site)
    async with site.node(Part("edge")) as edge:
        await site.post(edge, "U2:N")
        await site.delete("inbox")
        await site.make("inbox", 5)
        await until_true(lambda: "5 partitions" in edge.notices()["kafka"])
        await asyncio.gather(*(edge.inbox.append(posted("A3", session_id=each)) for each in SESSIONS))
        assert f"{len(SESSIONS)} notifications wait on disk" in edge.notices()["spool"]
        assert not edge.troubles()["inbox"]
        assert sum((await _all_ends(site, "inbox", 5)).values()) == 0
        await site.delete("inbox")
        await site.make("inbox")
        await until_true(lambda: not edge.notices()["spool"])


async def _all_ends(site: Site, name: str, count: int) -> dict[TopicPartition, int]:
    async with AIOKafkaConsumer(bootstrap_servers=site.bootstrap) as consumer:
        ends: dict[TopicPartition, int] = await consumer.end_offsets(
            [TopicPartition(site.topic(name), each) for each in range(count)]
        )
        return ends
