"""A link to the broker that is too slow for large sends: sends become smaller, and nothing piles up."""

import asyncio
import gc
import re
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from receiver.backends.kafka.connection import KafkaConnection, Security
from receiver.backends.kafka.inbox import KafkaInbox
from receiver.backends.kafka.lane import KafkaLane, Topics
from receiver.backends.kafka.limits import Limits
from receiver.backends.kafka.topics import TopicPlan, create
from receiver.backends.spool import Spool
from receiver.core.message import Message
from receiver.core.router import Router
from receiver.inbox import LaneLost
from receiver.telemetry import Telemetry
from tests.kafka_cluster import Brokers, Cluster
from tests.kafka_process import KafkaReceiver, told_on, until
from tests.limits import SECONDS_MAX
from tests.proxy import Proxy
from tests.samples import posted

BYTES_PER_SECOND = 1_000_000
#: 2,000 changes of 8 sessions write about 25 MB: a session's memory grows with each, and is written each time.
SESSIONS, CHANGES = 8, 250
#: The most by which a process may grow during its work, also after failures. It once grew by 80 MiB for each lost lane.
GROWTH_KIB_MAX = 150 * 1024


class Link:
    """A way to the broker that can be made narrow."""

    def __init__(self, cluster: Cluster) -> None:
        way = cluster.way()
        self.bootstrap = way.bootstrap
        ((listen, target),) = way.proxies
        self.proxy = Proxy(listen, target)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._do(self.proxy.up())

    def narrow(self, bytes_per_second: float = BYTES_PER_SECOND) -> None:
        """Make it slow from now on."""
        self._loop.call_soon_threadsafe(self.proxy.narrow, bytes_per_second)

    def close(self) -> None:
        """Close it for good."""
        self._do(self.proxy.down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, action: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(action, self._loop).result(30)


@pytest.fixture
def link(kafka_cluster: Cluster) -> Iterator[Link]:
    """A way to the shared cluster."""
    made = Link(kafka_cluster)
    try:
        yield made
    finally:
        made.close()


async def _fill(kafka: Brokers, prefix: str) -> None:
    """Let sessions change often, before a router runs."""
    connection = KafkaConnection([kafka.bootstrap], Security().options())
    router = Router(prefix=prefix, forget_after_seconds=96 * 3600)
    plan = TopicPlan(prefix, router.topics, 1, None, 168, 168)
    await create(connection, plan)
    inbox = KafkaInbox(connection, plan.inbox, append_timeout_seconds=60)
    running = asyncio.create_task(inbox.run())
    try:
        await inbox.connected.wait()
        for change in range(CHANGES):
            spelled = f"{'AU'[change % 2]}{change}"
            await asyncio.gather(*(inbox.append(posted(spelled, session_id=f"s{each}")) for each in range(SESSIONS)))
    finally:
        running.cancel()
        await asyncio.wait({running})


def _resident_kib(receiver: KafkaReceiver) -> int:
    told = Path(f"/proc/{receiver.running().pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", told)
    assert found
    return int(found[1])


def test_a_router_gets_on_over_a_slow_link(kafka: Brokers, link: Link, topic_prefix: str, tmp_path: Path) -> None:
    """2,000 notifications that write 25 MB are routed over 1 MB/s, once each, and the process hardly grows."""
    asyncio.run(_fill(kafka, topic_prefix))
    link.narrow()
    with KafkaReceiver(tmp_path, link.bootstrap, topic_prefix, "--role", "router", KAFKA__PARTITIONS="1") as router:
        until(lambda: router.lanes() == {"0"}, "a lane")
        before = most = _resident_kib(router)

        def is_done() -> bool:
            nonlocal most
            most = max(most, _resident_kib(router))
            return list(router.samples("qod_receiver_inbox_lag").values()) == [0]

        until(is_done, "nothing to route")
        found = told_on(kafka.bootstrap, f"{topic_prefix}.status", 1)
    assert {session_id: len(ids) for session_id, ids in found.items()} == {
        f"s{each}": CHANGES for each in range(SESSIONS)
    }
    assert all(len(ids) == len(set(ids)) for ids in found.values())
    assert most - before < GROWTH_KIB_MAX


async def test_an_edge_drains_over_a_slow_link(
    link: Link, topic_prefix: str, tmp_path: Path, telemetry: Telemetry
) -> None:
    """Notifications on the disk get into four partitions although a batch for each takes longer than the limit."""
    connection = KafkaConnection([link.bootstrap], Security().options())
    plan = TopicPlan(
        topic_prefix, Router(prefix=topic_prefix, forget_after_seconds=96 * 3600).topics, 4, None, 168, 168
    )
    await create(connection, plan)
    inbox = KafkaInbox(connection, plan.inbox, append_timeout_seconds=2)
    spool = Spool(tmp_path / "0", inbox, telemetry, bytes_max=1 << 30, append_timeout_seconds=60)
    size = 20_000
    await asyncio.gather(
        *(spool.append(posted(b"{%d" % number + b"x" * size, key=f"s{number}")) for number in range(1_000))
    )
    link.narrow()
    running = [asyncio.create_task(inbox.run()), asyncio.create_task(spool.run())]
    try:
        async with asyncio.timeout(SECONDS_MAX):
            while spool.notice:  # noqa: ASYNC110  # there is no event to wait for
                await asyncio.sleep(0.05)
    finally:
        for each in running:
            each.cancel()
        await asyncio.wait(running)
        spool.close()


def _large() -> dict[int, int]:
    """The sizes of all large buffers of this process, by address. The proxy lives here too, and holds less."""
    referred = (held for each in gc.get_objects() for held in gc.get_referents(each))
    buffers = (held for held in referred if isinstance(held, bytes | bytearray))
    return {id(held): len(held) for held in buffers if len(held) > 600_000}


async def test_what_a_lost_lane_held_is_freed(link: Link, topic_prefix: str) -> None:
    """Commits that take too long become smaller until one is done, and no lane leaves its records in memory."""
    connection = KafkaConnection([link.bootstrap], Security().options())
    plan = TopicPlan(
        topic_prefix, Router(prefix=topic_prefix, forget_after_seconds=96 * 3600).topics, 1, None, 168, 168
    )
    await create(connection, plan)
    topics = Topics.of(topic_prefix, "router", plan.names)
    limits = Limits(connection)
    first = limits.lessons(0).effort.bytes_max
    before = _large()  # other tests' own
    for lost_count in range(10):
        link.narrow(1e9)
        lane = KafkaLane(connection, topics, 0, limits=limits)
        await lane.open()
        link.narrow(50_000)
        batch, _ = await lane.oldest(0)
        count = lane.bytes_max // 10_000
        messages = [Message(f"{topic_prefix}.status", f"k{each}", b"x" * 10_000, (), 0) for each in range(count)]
        try:
            await lane.commit(batch, messages, {}, 0)
            break
        except LaneLost:
            assert lane.bytes_max <= first >> lost_count + 1
        finally:
            await lane.close()
        assert not [size for where, size in _large().items() if before.get(where) != size]
    assert lost_count > 0
