"""A process whose store is a Kafka cluster: an edge with its spool, routers' lanes, or both."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from receiver.backends.kafka.failures import ClusterFailed, TopicsUnfit
from receiver.backends.kafka.inbox import KafkaInbox
from receiver.backends.kafka.lane import KafkaLane, Topics
from receiver.backends.kafka.limits import Limits
from receiver.backends.kafka.membership import Membership
from receiver.backends.kafka.reader import KafkaReader
from receiver.backends.shared_spool import DistantSpool, SharedSpool
from receiver.backends.spool import Spool
from receiver.core.errors import Unavailable
from receiver.core.event import QosStatus
from receiver.core.router import Router
from receiver.core.session import Session
from receiver.dispatcher import Dispatcher
from receiver.inbox import Inbox
from receiver.process.cluster import connection_of, group_of, plan_of, prepare
from receiver.process.part import Part
from receiver.reader import is_asked_for
from receiver.settings import Settings
from receiver.telemetry import Telemetry

SPOOL = "spool"
_OWN_SPOOL = "0"

#: At the start the cluster has this long to answer; after that the edge accepts notifications without it.
_FIRST_SECONDS_MAX = 3.0
_AGAIN_SECONDS = 2.0
_PREPARE_SECONDS_MAX = 60.0

#: Longest time between a lane's transactions.
_PACE_SECONDS_MAX = 0.25

#: Sessions looked through before other tasks get a turn.
_SLICE = 5_000


class ClusteredNode:
    """`receiver.process.node.Node` over a cluster, which may be unreachable. Raises Unavailable without a spool."""

    def __init__(self, settings: Settings, telemetry: Telemetry, router: Router, part: Part) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self._connection = connection_of(settings)
        self._limits = Limits(self._connection)
        self._plan = plan_of(settings, router)
        self._prepared = False
        self._kafka_inbox = KafkaInbox(
            self._connection,
            self._plan.inbox,
            append_timeout_seconds=settings.kafka.append_timeout_seconds,
            appended=telemetry.appended,
            limits=self._limits,
        )
        self._membership = self._member(router) if part.routes else None
        self._shared = part.shared
        self._spool: Spool | DistantSpool | None = None
        self._left: list[Spool] = []
        if part.receives:
            self._spool = self._distant(part.shared) if part.worker and part.shared else self._own()
        self.inbox: Inbox = self._spool or self._kafka_inbox
        self.reader = KafkaReader(self._connection, settings.prefix, telemetry.passed_over)

    async def prepare(self, seconds_max: float) -> None:
        """Check and create the topics. Raises Unavailable, TopicsUnfit if a topic is at fault."""
        try:
            async with asyncio.timeout(seconds_max):
                creates, group = self._settings.kafka.create_topics, group_of(self._settings)
                differences = await prepare(self._connection, self._plan, create_missing=creates, group=group)
        except TimeoutError:
            raise ClusterFailed(f"Kafka did not answer within {seconds_max:g} s") from None
        self._prepared = True
        for each in differences:
            self._telemetry.topic_differs(each.topic, each.what)

    def wait_for_cluster(self, why: str) -> None:
        """Go on without the cluster, and report the reason."""
        self._telemetry.cluster_failed(why)
        self._kafka_inbox.trouble = why
        if self._membership is not None:
            self._membership.failed(why)

    def jobs(self) -> Sequence[Coroutine[Any, Any, None]]:
        """See Node."""
        match self._spool:
            case None:
                return (self._connect(),)
            case DistantSpool():
                return self._connect(), self._spool.run()
            case Spool() if self._shared is not None:
                return self._connect(), self._drain(self._spool), self._shared.serve(self._spool)
            case Spool():
                return self._connect(), self._drain(self._spool)

    def troubles(self) -> Mapping[str, str]:
        """See Node. An edge with its spool is ready without Kafka, since it keeps notifications there."""
        return {"inbox": self.inbox.trouble} if self._spool else self._router_trouble()

    def notices(self) -> Mapping[str, str]:
        """See Node."""
        told: dict[str, str] = {}
        if self._membership is not None:
            told["lanes"] = "; ".join(filter(None, (self._membership.notice, self._limits.notice)))
        if passed_over := self._telemetry.passed_over_notice:
            told["records"] = passed_over
        if self._spool is None:
            return told
        return {"kafka": self._kafka_inbox.trouble, "spool": self._spool.notice, **self._router_trouble(), **told}

    async def sessions_of(self, sender: str, session_ids: Collection[str]) -> Sequence[Session]:
        """See Node: only sessions of this process's lanes."""
        wanted, found = frozenset(session_ids), []
        for lane in list(self._lanes().values()):
            for count, session in enumerate(lane.sessions.snapshot()):
                if is_asked_for(session, sender, wanted):
                    found.append(session)
                if count % _SLICE == _SLICE - 1:
                    await asyncio.sleep(0)
        return found

    def owns(self, session_id: str) -> bool:
        """See Node."""
        return self._kafka_inbox.partition_of(session_id) in self._lanes()

    async def session_counts(self) -> Mapping[QosStatus, int]:
        """See Node: only sessions of this process's lanes."""
        counts = Counter(dict.fromkeys(QosStatus, 0))
        for lane in self._lanes().values():
            counts.update(lane.sessions.counts)
        return counts

    async def close(self) -> None:
        """Close everything open. Notifications in a spool are sent after the next start."""
        self._close_spools()
        await self.reader.close()

    async def _connect(self) -> None:
        """Prepare the topics, with any number of attempts; then keep inbox and lanes connected, for ever."""
        while not self._prepared:
            await asyncio.sleep(_AGAIN_SECONDS)
            try:
                await self.prepare(_PREPARE_SECONDS_MAX)
            except Unavailable as error:
                self.wait_for_cluster(error.message)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._kafka_inbox.run())
            if self._membership is not None:
                tasks.create_task(self._membership.run())

    def _lanes(self) -> Mapping[int, KafkaLane]:
        return {} if self._membership is None else self._membership.lanes

    def _router_trouble(self) -> Mapping[str, str]:
        return {} if self._membership is None else {"router": self._membership.trouble}

    def _member(self, router: Router) -> Membership:
        settings = self._settings

        def dispatcher(lane: KafkaLane) -> Dispatcher:
            batch_max = settings.router.batch_max
            return Dispatcher(lane, router, self._telemetry, batch_max=batch_max, pace_seconds_max=_PACE_SECONDS_MAX)

        remembered_seconds = settings.retention.session_hours * 3600
        topics = Topics.of(settings.prefix, settings.kafka.group, router.topics, remembered_seconds)
        return Membership(self._connection, topics, self._telemetry, dispatcher, self._limits)

    def _distant(self, shared: SharedSpool) -> DistantSpool:
        return DistantSpool(
            shared, self._kafka_inbox, append_timeout_seconds=self._settings.edge.append_timeout_seconds
        )

    def _own(self) -> Spool:
        directory = self._settings.data / SPOOL
        try:
            for path in sorted(directory.glob("*")):
                if path.name.isdecimal() and path.name != _OWN_SPOOL:
                    self._left.append(self._opened(path))
            opened = (lambda _: None) if self._shared is None else self._shared.set_open
            return self._opened(directory / _OWN_SPOOL, opened, is_open=any(spool.count for spool in self._left))
        except BaseException:
            self._close_spools()
            raise

    def _opened(
        self, directory: Path, opened: Callable[[bool], None] = lambda _: None, *, is_open: bool = False
    ) -> Spool:
        return Spool(
            directory,
            self._kafka_inbox,
            self._telemetry,
            bytes_max=self._settings.kafka.spool_bytes_max,
            append_timeout_seconds=self._settings.edge.append_timeout_seconds,
            opened=opened,
            is_open=is_open,
            passed_over=self._telemetry.passed_over,
        )

    async def _drain(self, spool: Spool) -> None:
        """Drain for ever. Spools of an earlier release, which had one for each edge, come first: they are older."""
        for each in self._left:
            await each.empty()
        await spool.run()

    def _close_spools(self) -> None:
        for spool in (*self._left, self._spool):
            if isinstance(spool, Spool):
                spool.close()


@asynccontextmanager
async def clustered(
    settings: Settings, telemetry: Telemetry, router: Router, part: Part
) -> AsyncIterator[ClusteredNode]:
    """A node of the settings' cluster, for as long as the block lasts.

    A cluster that is unreachable, or whose topics can't be used, is waited for in the background. Raises Unavailable if
    the spool can't be opened; and if the topics can't be used, for a process that may refuse (`Part.may_refuse`).
    """
    node = ClusteredNode(settings, telemetry, router, part)
    try:
        try:
            await node.prepare(_FIRST_SECONDS_MAX)
        except Unavailable as error:
            if isinstance(error, TopicsUnfit) and part.may_refuse:
                raise
            node.wait_for_cluster(error.message)
        yield node
    finally:
        await node.close()
