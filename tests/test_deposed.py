"""A broker that is cut off from the controllers alone is deposed, and goes on answering as the leader that it was."""

from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from aiokafka.admin import NewTopic

from receiver.backends.kafka.connection import persistently
from receiver.process.part import Part
from tests.kafka_cluster import Brokers, Cluster
from tests.quorum import Quorum
from tests.test_topics_anew import ALL, PARTITIONS, SESSIONS, Site, until_true

LAST = [f"z{number:03}" for number in range(40)]


class Brigade(NamedTuple):
    """Three brokers, and the links between their controllers."""

    cluster: Cluster
    quorum: Quorum


@pytest.fixture(scope="module")
def brigade(can_run_kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brigade]:  # noqa: ARG001
    """Three brokers, one of which can be deposed without noticing."""
    cluster = Cluster(tmp_path_factory.mktemp("deposed"), 3, linked=True)
    with Quorum(cluster.links) as quorum, cluster:
        yield Brigade(cluster, quorum)
        quorum.cut_off(None)


class Stage:
    """Topics, some of them led by the broker to be deposed. `site` knows only the other two brokers."""

    def __init__(self, brigade: Brigade, prefix: str, directory: Path, led: Collection[str]) -> None:
        self.brigade = brigade
        self._cluster = brigade.cluster
        self._prefix, self._directory, self._led = prefix, directory, led
        self.deposed = -1
        self.site = self._site(range(3))

    async def set_up(self) -> None:
        """Make the topics, led by a broker that is not the routers' group's coordinator."""
        async with self.site.admin() as admin:
            coordinator = await persistently(partial(admin.find_coordinator, f"{self._prefix}.router"))
            self.deposed = 1 if coordinator == 0 else 0
            others = [each for each in range(3) if each != self.deposed]
            topics = []
            for name in ALL:
                replicas = [self.deposed, *others] if name in self._led else [*others, self.deposed]
                configs = {"cleanup.policy": "compact" if name == "sessions" else "delete"}
                assigned = dict.fromkeys(range(PARTITIONS), replicas)
                topics.append(
                    NewTopic(self.site.topic(name), -1, -1, replica_assignments=assigned, topic_configs=configs)
                )
            await admin.create_topics(topics)
        self.site = self._site(others)
        await until_true(lambda: all(self._leader(each, name) >= 0 for each in range(3) for name in ALL))

    async def depose(self) -> None:
        """Cut the broker off, and wait until the others see it lead nothing."""
        self.brigade.quorum.cut_off(self.deposed)
        other = (self.deposed + 1) % 3
        await until_true(lambda: all(self._leader(other, name) not in {self.deposed, -1} for name in self._led))
        assert all(self._leader(self.deposed, name) == self.deposed for name in self._led), "it knows already"

    async def heal(self) -> None:
        """Connect the broker again."""
        self.brigade.quorum.cut_off(None)
        await until_true(lambda: all(self._leader(self.deposed, name) != self.deposed for name in self._led))

    @property
    def address(self) -> str:
        """The address of the broker to be deposed."""
        return str(self._cluster.addresses[self.deposed])

    def _site(self, brokers: Collection[int]) -> Site:
        addresses = ",".join(str(self._cluster.addresses[each]) for each in brokers)
        return Site(Brokers(addresses), self._prefix, self._directory)

    def _leader(self, asked: int, name: str) -> int:
        leaders = self._cluster.metadata(asked).leaders
        return min(leaders.get((self.site.topic(name), each), -1) for each in range(PARTITIONS))


@pytest.mark.parametrize("led", [("sessions",), ("sessions", "inbox")], ids="+".join)
async def test_nothing_is_decided_on_what_a_deposed_leader_tells(
    brigade: Brigade, topic_prefix: str, tmp_path: Path, led: Collection[str]
) -> None:
    """A router whose lanes open beside a deposed leader knows all sessions: repeated ends have no effect."""
    stage = Stage(brigade, topic_prefix, tmp_path, led)
    await stage.set_up()
    site = stage.site
    async with site.node(Part("edge")) as edge:
        async with site.node(Part("router")):
            await site.post(edge, "A1", LAST)
            assert len(await site.keys("status", len(LAST))) == len(LAST)
        await stage.depose()
        async with site.node(Part("router")):
            await site.post(edge, "U2:N#end")
            assert await site.keys("unavailable", len(SESSIONS)) == SESSIONS
        async with site.node(Part("router"), kafka={"bootstrap_servers": stage.address}) as router:
            await until_true(lambda: not any(router.troubles().values()), lambda: str(router.troubles()))
            await stage.heal()
            await site.post(edge, "U2:N#end")
            await site.post(edge, "U2:N", LAST)
            told = await site.keys("unavailable", len(SESSIONS) + len(LAST))
            assert told == [*SESSIONS, *LAST]


async def test_a_router_leaves_a_leader_that_was_deposed(brigade: Brigade, topic_prefix: str, tmp_path: Path) -> None:
    """A router that reads its inbox from a deposed leader goes on with the next leader."""
    stage = Stage(brigade, topic_prefix, tmp_path, ("inbox",))
    await stage.set_up()
    site = stage.site
    async with site.node(Part("edge")) as edge, site.node(Part("router")):
        await site.post(edge, "A1")
        assert await site.keys("status", len(SESSIONS)) == SESSIONS
        await stage.depose()
        await site.post(edge, "U2:N")
        assert await site.keys("unavailable", len(SESSIONS)) == SESSIONS
        await stage.heal()
