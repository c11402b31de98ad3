"""The lanes of this process: it is a member of the routers' consumer group, with a lane for each assigned partition.

The group only assigns the partitions. The lane's own fence keeps two processes from deciding on the same one. So
nothing stops during a rebalance: lanes that stay go on, and the new owner fences one that moved at the latest.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

from receiver.backends.kafka.connection import KafkaConnection, ended, limited
from receiver.backends.kafka.known import Known, expect_topics, watch
from receiver.backends.kafka.lane import KafkaLane, Topics
from receiver.backends.kafka.limits import Limits
from receiver.backends.kafka.rivals import watch_rivals
from receiver.core.errors import Unavailable
from receiver.dispatcher import Dispatcher
from receiver.inbox import LaneLost
from receiver.telemetry import Telemetry

SESSION_TIMEOUT_MILLIS = 10_000
_HEARTBEAT_MILLIS = 2_000
_JOIN_SECONDS_MAX = 60.0
_POLL_SECONDS = 1.0
#: A process that was paused may have lost its partitions. It must learn so, by the next heartbeat, before it opens a
#: lane again: the opening would fence the new owner.
_REOPEN_SECONDS = 3.0
#: Markers are written within milliseconds, or within about a second while a partition's leader moves.
_WAIT_SECONDS_USUAL = 2.0
_REOPEN_SECONDS_SOON = 0.5


class Membership:
    """Runs a dispatcher for each lane that this process owns. `run` ends when it is cancelled."""

    def __init__(
        self,
        connection: KafkaConnection,
        topics: Topics,
        telemetry: Telemetry,
        dispatcher: Callable[[KafkaLane], Dispatcher],
        limits: Limits | None = None,
    ) -> None:
        self.lanes: dict[int, KafkaLane] = {}
        self._trouble = "not yet a member of the group"
        self._topics_trouble = ""
        self._lane_troubles: dict[int, str] = {}
        self._doubts: dict[int, str] = {}
        self._rivalry = ""
        self._connection = connection
        self._limits = limits or Limits(connection)
        self._topics = topics
        self._telemetry = telemetry
        self._dispatcher = dispatcher
        self._tasks: dict[int, asyncio.Task[None]] = {}

    @property
    def trouble(self) -> str:
        """Why some of its partitions are not routed, in words for an operator; empty while all are."""
        if self._trouble or self._topics_trouble:
            return self._trouble or self._topics_trouble
        behind = {each: lane.rebuilding for each, lane in self.lanes.items() if lane.rebuilding}
        behind |= {each: self._lane_troubles.get(each, "") for each in self._tasks.keys() - self.lanes.keys()}
        if not behind:
            return self._waiting()
        why = next(filter(None, behind.values()), "being opened")
        return f"not routed: partition {', '.join(map(str, sorted(behind)))}: {why}"

    @property
    def notice(self) -> str:
        """The doubts of its lanes and how they were settled, and other groups that have routers.

        In words for an operator.
        """
        told = dict.fromkeys(self._doubts.values())
        where = {what: [str(each) for each, doubt in sorted(self._doubts.items()) if doubt == what] for what in told}
        doubts = [f"partition {', '.join(some)}: {what}" for what, some in where.items()]
        return "; ".join([*doubts, *filter(None, [self._rivalry])])

    def failed(self, why: str) -> None:
        """Note why it can't be a member now."""
        self._trouble = why

    async def run(self) -> None:
        """Be a member, for ever: after a failure it joins again."""
        # Lanes and the group wait long for a Kafka that is away, so a task of its own notices that it is.
        watching = asyncio.create_task(watch(self._connection, self._topics.names, self._look))
        group, inbox = self._topics.group, self._topics.inbox
        guarding = asyncio.create_task(watch_rivals(self._connection, group, inbox, self._meet))
        try:
            while True:
                try:
                    await self._be_member()
                except Unavailable as error:
                    self.failed(error.message)
                    self._telemetry.membership_failed(error.message)
                await asyncio.sleep(random.uniform(0.5, 2))  # noqa: S311  # so that not all come back at once
        finally:
            watching.cancel()
            guarding.cancel()
            await self._share(())
            await asyncio.wait({watching, guarding})

    async def _be_member(self) -> None:
        consumer = self._connection.consumer(
            group_id=self._topics.group,
            session_timeout_ms=SESSION_TIMEOUT_MILLIS,
            rebalance_timeout_ms=3 * SESSION_TIMEOUT_MILLIS,
            heartbeat_interval_ms=_HEARTBEAT_MILLIS,
            partition_assignment_strategy=(StickyPartitionAssignor,),
            auto_offset_reset="earliest",
        )
        listener = _Listener(consumer)
        consumer.subscribe([self._topics.inbox], listener=listener)
        try:
            await limited(consumer.start(), _JOIN_SECONDS_MAX, "the routers' group can't be joined")
            self._trouble = ""
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS):
                        await listener.changed.wait()
                if listener.changed.is_set():
                    listener.changed.clear()
                    await self._share([each.partition for each in listener.partitions])
                # Every partition is paused, so nothing arrives. A member that does not poll is removed from the group.
                await limited(consumer.getmany(timeout_ms=0), _JOIN_SECONDS_MAX, "the routers' group was left")
        finally:
            await ended(consumer.stop())

    def _meet(self, groups: Sequence[str]) -> None:
        """Note the other groups that have routers of the same inbox."""
        told = (
            f"routers of other groups decide on {self._topics.inbox} too, use the same kafka.group: {', '.join(groups)}"
        )
        if groups and not self._rivalry:
            self._telemetry.membership_failed(told)
        self._rivalry = told if groups else ""

    def _look(self, found: dict[str, Known] | str) -> None:
        """Note the topics as brokers know them now, or why they can't be asked."""
        if isinstance(found, str):
            self._topics_trouble = found
            return
        wrong = [lane.check(found) for lane in self.lanes.values()]
        try:
            expect_topics(self._topics.names, found)
        except Unavailable as error:
            wrong.insert(0, error.message)
        self._topics_trouble = next(filter(None, wrong), "")

    async def _share(self, partitions: Sequence[int]) -> None:
        """Run a lane for each of these partitions, and no other."""
        leaving = [self._tasks.pop(partition) for partition in list(self._tasks) if partition not in partitions]
        for task in leaving:
            task.cancel()
        if leaving:
            await asyncio.wait(leaving)
        for partition in partitions:
            if partition not in self._tasks:
                self._tasks[partition] = asyncio.create_task(self._own(partition))

    async def _own(self, partition: int) -> None:
        """Route a partition, and open its lane again whenever it is lost."""
        while True:
            told = self._telemetry.passed_over
            lane = KafkaLane(self._connection, self._topics, partition, told, self._limits)
            pause_seconds = _REOPEN_SECONDS_SOON
            try:
                self._telemetry.lane_waits(partition, lambda: lane.waits[1])  # noqa: B023  # until it is closed
                await lane.open()
                if lane.doubted is not None:
                    self._doubts[partition] = lane.doubted.what
                    self._telemetry.lane_doubted(partition, *lane.doubted)
                if lane.settled is not None:
                    self._telemetry.lane_settled(partition, lane.settled)
                self.lanes[partition] = lane
                self._lane_troubles.pop(partition, None)
                await self._dispatcher(lane).run()
            except Unavailable as error:
                self._lane_failed(partition, error.message)
            except LaneLost as error:
                self._lane_failed(partition, str(error))
                pause_seconds = _REOPEN_SECONDS
            except Exception as error:  # noqa: BLE001  # a mistake of ours must not end a partition's routing
                self._lane_failed(partition, f"a fault of the router's own: {error!r}")
                pause_seconds = _REOPEN_SECONDS
            finally:
                self.lanes.pop(partition, None)
                self._telemetry.lane_closed(partition)
                await lane.close()
            await asyncio.sleep(pause_seconds * random.uniform(1, 1.5))  # noqa: S311  # not a secret

    def _waiting(self) -> str:
        """Which lanes wait for longer than usual, for a commit to become readable or for records of their inbox.

        In words for an operator; empty if none.
        """
        late = (
            f"partition {partition}: for {seconds:.0f} s, {what}"
            for partition, lane in sorted(self.lanes.items())
            for what, seconds in (lane.waits, lane.stalls)
            if seconds > _WAIT_SECONDS_USUAL
        )
        return "; ".join(late)

    def _lane_failed(self, partition: int, why: str) -> None:
        self._lane_troubles[partition] = why
        self._telemetry.lane_failed(partition, why)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Only notes the group's assignment: no heartbeat is sent while it is called."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self.partitions: Sequence[TopicPartition] = ()
        self.changed = asyncio.Event()
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: object) -> None:
        """The partitions may come back in a moment; the lanes go on."""

    async def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        """Note the partitions of this member."""
        self._consumer.pause(*assigned)
        self.partitions = list(assigned)
        self.changed.set()
