"""Carries what an embedded node keeps into a Kafka cluster: the way from one directory to many machines.

The records of the output topics and the sessions are carried. The inbox is not: notifications that still wait in it are
routed first, and everything they cause is in the topics. An export that is killed resumes where it stopped:

- Records go in transactions under an id of the directory's own, and each commits the position behind its records to a
  consumer group of that name. Kafka forgets a group's positions after a week, so a file in the directory, the
  milestones, keeps them too. The order is a lane's: start the producer, which ends open transactions; read the
  position; go on.
- Sessions are a router's memory. Only a lane may write them, so lanes carry them: a lane knows what the cluster
  remembers, and writes what is missing. It fences any router that runs nevertheless.

A record keeps everything but its trace: `0-17` is a place in the directory's inbox, and another one in the cluster's.
It becomes `export:ID:0-17`, and so does a `ce_id` that was made of the trace. Otherwise consumers would take what the
cluster receives at that place for a repetition.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar
from uuid import uuid4

from receiver.backends.directory import write_durably
from receiver.backends.kafka.connection import KafkaConnection, limited
from receiver.backends.kafka.failures import ClusterFailed, TopicsUnfit
from receiver.backends.kafka.lane import KafkaLane, Topics
from receiver.backends.kafka.limits import Lessons, Limits
from receiver.backends.kafka.reader import KafkaReader
from receiver.backends.kafka.records import partition_of
from receiver.backends.kafka.settlement import settlement
from receiver.backends.kafka.writer import Writer, members_count, positions
from receiver.backends.sqlite.schema import FILE_NAME, PARTITION
from receiver.backoff import Backoff
from receiver.core.errors import Unavailable
from receiver.core.headers import CE_ID, TRACE
from receiver.core.message import Message, Record
from receiver.core.router import Router
from receiver.core.session import merged
from receiver.core.session_record import NoSession, session_message, session_of, traced
from receiver.core.topics import TopicNames
from receiver.dispatcher import Dispatcher
from receiver.inbox import Lane, LaneLost
from receiver.process.cluster import connection_of, plan_of, prepare
from receiver.process.directory import open_directory, open_reader
from receiver.reader import PassedOver, Reader
from receiver.settings import Settings
from receiver.telemetry import Telemetry

T = TypeVar("T")

MILESTONES_NAME = "export.json"

#: A position behind all others.
_NOTHING_LEFT = 2**63 - 1

#: Records read at a time. Each read unpacks whole groups of records that a router wrote together, 2,000 by default.
_PAGE = 5_000
#: About the bytes that a record takes besides its value and its headers' values.
_RECORD_BYTES = 512
_ANSWER_SECONDS_MAX = 30.0
#: Each lane has all sessions of its partition in memory.
_LANES_MAX = 4

#: Kafka may fail repeatedly for this long without progress.
PATIENCE_SECONDS = 60.0
_AGAIN_SECONDS_FIRST = 0.2
_AGAIN_SECONDS_MAX = 5.0
_LOOK_SECONDS = 0.05


class Progress(Protocol):
    """Receives the progress of an export."""

    def moved(self, what: str, done: int, total: int) -> None:
        """`done` of `total` are done: records of a topic, or notifications that wait in the inbox."""
        ...

    def waiting(self, why: str) -> None:
        """Kafka failed; the export tries again."""
        ...

    def left_out(self, topic: str, what: str) -> None:
        """The cluster refuses a record. `what` is the session's id, or the place that the record came from."""
        ...


class Carried(NamedTuple):
    """How much of a topic in the directory was carried now, and how much earlier."""

    topic: str
    now_count: int
    before_count: int


async def export(
    settings: Settings,
    router: Router,
    telemetry: Telemetry,
    progress: Progress,
    *,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Sequence[Carried]:
    """Carry the records and then the sessions of the settings' directory into the settings' cluster.

    Raises Unavailable: where the directory is served or holds nothing, where routers are at work on the cluster, and
    where Kafka or the file fails for longer than `patience_seconds`. What was carried by then stays carried.
    """
    if not (settings.data / FILE_NAME).exists():
        raise Unavailable(f"{settings.data} has nothing to export, there is no {FILE_NAME} in it", reason="store")
    async with AsyncExitStack() as stack:
        served = stack.enter_context(closing(open_directory(settings)))
        reader = stack.enter_context(closing(open_reader(settings, telemetry.passed_over)))
        prefix = settings.prefix
        topics = Topics.of(prefix, settings.kafka.group, router.topics)
        held = await reader.topics()
        if held and topics.sessions not in held:
            # Routing under another prefix could not be undone.
            raise TopicsUnfit(f"{settings.data} has not the prefix {prefix}, but {', '.join(held)}")
        connection, plan = connection_of(settings), plan_of(settings, router)
        await _expect_no_routers(connection, topics.group)
        # A route that was removed from the configuration may still have records.
        names = sorted({*plan.names, *await _filled(reader, topics)})
        await prepare(connection, plan._replace(names=names), create_missing=settings.kafka.create_topics)
        dispatcher = Dispatcher(served.lane, router, telemetry, batch_max=settings.router.batch_max)
        await _route(served.lane, dispatcher, progress, patience_seconds)
        cluster = KafkaReader(connection, prefix)
        stack.push_async_callback(cluster.close)
        milestones = Milestones(settings.data)
        exporter = _Exporter(
            connection=connection,
            cluster=cluster,
            topics=topics,
            reader=reader,
            router=router,
            name=TopicNames(prefix).full(f"export.{milestones.id}"),
            milestones=milestones,
            progress=progress,
            patience_seconds=patience_seconds,
            passed_over=telemetry.passed_over,
        )
        return [*await exporter.carry_records(), await exporter.carry_sessions()]


class Milestones:
    """The id of the export and its progress in each cluster: a file in the directory, for the holder of its lock.

    Raises Unavailable where the file can't be read or written.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / MILESTONES_NAME
        self.id = str(uuid4())
        self._positions: dict[str, dict[str, int]] = {}
        if not self._path.exists():
            self._write()
            return
        try:
            told = json.loads(self._path.read_bytes())
            self.id, self._positions = str(told["id"]), told["positions"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            why = f"{self._path} can't be read; without it everything would be carried again: {type(error).__name__}"
            raise Unavailable(why, reason="store") from error

    def positions(self, cluster_id: str) -> Mapping[str, int]:
        """The positions to continue from in a cluster, by topic, as far as this file knows."""
        return self._positions.get(cluster_id, {})

    def note(self, cluster_id: str, topic: str, next_position: int) -> None:
        """Note durably that everything before this position was carried."""
        self._positions.setdefault(cluster_id, {})[topic] = next_position
        self._write()

    def _write(self) -> None:
        try:
            write_durably(self._path, json.dumps({"id": self.id, "positions": self._positions}).encode())
        except OSError as error:
            raise Unavailable(f"{self._path} can't be written: {error.strerror}", reason="store") from error


class _Exporter:
    """Carries from one directory to one cluster, and starts again where Kafka fails."""

    def __init__(
        self,
        *,
        connection: KafkaConnection,
        cluster: KafkaReader,
        topics: Topics,
        reader: Reader,
        router: Router,
        name: str,
        milestones: Milestones,
        progress: Progress,
        patience_seconds: float,
        passed_over: PassedOver,
    ) -> None:
        self._passed_over = passed_over
        self._connection = connection
        self._cluster = cluster
        self._topics = topics
        self._reader = reader
        self._router = router
        self._milestones = milestones
        self._progress = progress
        self._patience_seconds = patience_seconds
        self._name = name
        self._got_on = 0.0
        self._limits, self._lessons = Limits(connection), Lessons()

    async def carry_records(self) -> Sequence[Carried]:
        """Carry the records of all topics but the sessions'. Raises Unavailable."""
        first: dict[str, int] = {}  # each topic's position at the first attempt
        await self._patiently(partial(self._carry_records, first))
        carried = []
        for topic, position in first.items():
            beginning, end = await self._range(topic)
            carried.append(Carried(topic, end - position, position - beginning))
        return carried

    async def carry_sessions(self) -> Carried:
        """Write the sessions that the directory remembers and the cluster does not. Raises Unavailable."""
        topic = self._topics.sessions
        total = sum((await self._reader.session_counts()).values())
        done_count = now_count = before_count = 0
        if total:
            partitions = sorted(await self._patiently(partial(self._ends, topic)))
            for at in range(0, len(partitions), _LANES_MAX):
                written: set[str] = set()
                share = partial(
                    self._carry_sessions, partitions[at : at + _LANES_MAX], len(partitions), written, done_count, total
                )
                share_count, there_count = await self._patiently(share)
                done_count += share_count
                now_count += len(written)
                before_count += there_count
        return Carried(topic, now_count, before_count)

    def left_out(self) -> Sequence[tuple[str, str]]:
        """Records that the cluster refuses, as topic and session id or place of origin."""
        return sorted({*self._lessons.left_out, *self._limits.left_out()})

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The outcome of an attempt, repeated while Kafka fails. Raises ClusterFailed if that lasts too long."""
        self._got_on = began = time.monotonic()
        backoff = Backoff(_AGAIN_SECONDS_FIRST, _AGAIN_SECONDS_MAX)
        while True:
            try:
                await _expect_no_routers(self._connection, self._topics.group)
                return await attempt()
            except (ClusterFailed, LaneLost) as error:
                if time.monotonic() - self._got_on > self._patience_seconds:
                    why = f"{error}; what was carried stays, and the next export goes on from there"
                    raise ClusterFailed(why) from error
                self._progress.waiting(str(error))
            if self._got_on > began:
                began = self._got_on
                backoff.reset()
            await asyncio.sleep(backoff.seconds())

    async def _carry_records(self, first: dict[str, int]) -> None:
        topics = await _filled(self._reader, self._topics)
        writer = Writer(self._connection, self._name, self._topics.dead_letters, self._limits, self._lessons)
        try:
            await writer.start()
            cluster_id, standing = await self._standing(topics)
            for topic in topics:
                await self._carry_topic(writer, topic, cluster_id, standing[topic], first)
        finally:
            await writer.close()

    async def _carry_topic(
        self, writer: Writer, topic: str, cluster_id: str, position: int, first: dict[str, int]
    ) -> None:
        beginning, end = await self._range(topic)
        if position > end:
            why = f"{topic} ends at {end}, and {position} records of it were carried before: is this an older copy?"
            raise Unavailable(why, reason="store")
        position = await self._settled(writer, topic, max(position, beginning))
        cursor = {PARTITION: position}
        since = first.setdefault(topic, cursor[PARTITION])
        self._progress.moved(topic, cursor[PARTITION] - since, end - since)
        while records := await self._reader.records(topic, cursor, _PAGE):
            for some in _shares(records, self._lessons.effort.bytes_max):
                position = some[-1].position + 1
                messages = [self._retraced(record.message) for record in some]
                await writer.commit(topic, messages, position)
                self._milestones.note(cluster_id, topic, position)
                self._got_on = time.monotonic()
                self._progress.moved(topic, position - since, end - since)

    async def _settled(self, writer: Writer, topic: str, position: int) -> int:
        """Settle what hangs on a topic, then commit and return the position to go on from. Raises Unavailable."""
        hanging = await writer.hanging(topic, self._behind)
        commits = False
        if hanging:
            cursor = {PARTITION: position}
            records = await self._reader.records(topic, cursor, _PAGE)
            # Every record has the inbox position of its cause, in the same order as the records' own positions.
            commits, reached = settlement(_caused(records[0]) if records else _NOTHING_LEFT, hanging)
            while done := [each.position for each in records if _caused(each) < reached]:
                position = done[-1] + 1
                records = await self._reader.records(topic, cursor, _PAGE)
        await writer.settle(topic, position, commits=commits)
        return position

    def _behind(self, record: Any) -> int:  # noqa: ANN401  # aiokafka's
        """The inbox position in the directory behind a record's cause; 0 if the record was not exported from here."""
        for name, text in record.headers:
            if name == TRACE and (text or b"").startswith(self._trace("").encode()):
                return _number(text.decode(errors="replace")) + 1
        return 0

    def _trace(self, trace: str) -> str:
        return f"export:{self._milestones.id}:{trace}"

    async def _standing(self, topics: Sequence[str]) -> tuple[str, Mapping[str, int]]:
        """The cluster's id, and the position to continue from on each topic. Call it only once the writer has started,
        so that no other process can commit under our name.
        """
        async with self._connection.admin(_ANSWER_SECONDS_MAX) as admin:
            told = await limited(admin.describe_cluster(), _ANSWER_SECONDS_MAX, "the cluster can't be described")
        cluster_id = str(told["cluster_id"])
        noted, committed = self._milestones.positions(cluster_id), await positions(self._connection, self._name, topics)
        standing = {}
        for topic in topics:
            # A topic that was made anew has none of the records carried to its predecessor.
            is_new = not any((await self._ends(topic)).values())
            standing[topic] = 0 if is_new else max(noted.get(topic, 0), committed.get(topic, 0))
        return cluster_id, standing

    async def _carry_sessions(
        self, partitions: Sequence[int], partitions_count: int, written: set[str], done_count: int, total: int
    ) -> tuple[int, int]:
        """Carry the sessions of some partitions. Returns how many there are, and how many the cluster knew before.

        `written` collects the ids that this export wrote or tried to write, also in earlier attempts.
        """
        seen_count = there_count = 0
        async with AsyncExitStack() as stack:
            told = self._passed_over
            lanes = {each: KafkaLane(self._connection, self._topics, each, told, self._limits) for each in partitions}
            for lane in lanes.values():
                stack.push_async_callback(lane.close)
            opened = await asyncio.gather(*(lane.open() for lane in lanes.values()), return_exceptions=True)
            for failure in filter(None, opened):
                raise failure
            cursor = await self._reader.beginning(self._topics.sessions)
            while records := await self._reader.records(self._topics.sessions, cursor, _PAGE):
                shares: dict[int, list[Record]] = {}
                for record in records:
                    if record.message.value is not None:
                        partition = partition_of(record.message.key, partitions_count)
                        shares.setdefault(partition, []).append(record)
                for partition in shares.keys() & lanes.keys():
                    for some in _shares(shares[partition], lanes[partition].bytes_max):
                        there_count += await self._remember(lanes[partition], some, written)
                        seen_count += len(some)
                        self._got_on = time.monotonic()
                        self._progress.moved(self._topics.sessions, done_count + seen_count, total)
        return seen_count, there_count

    async def _remember(self, lane: KafkaLane, records: Sequence[Record], written: set[str]) -> int:
        """Write the sessions that a lane does not remember. Returns how many of them the cluster knew before."""
        empty, _ = await lane.oldest(0)
        clock_micros = empty.clock_micros
        sessions, messages = {}, []
        there_count = 0
        for _, position, message in records:
            try:
                ours = session_of(message)
            except NoSession as error:
                self._passed_over(f"{message.topic}-{PARTITION}-{position}", str(error))
                continue
            if ours is None:
                continue
            clock_micros = max(clock_micros, ours.touched_micros)
            after, theirs = ours, lane.sessions.get(message.key)
            if theirs is not None and not self._router.is_forgotten(theirs, ours.touched_micros):
                after = merged(ours, theirs)
            if after == theirs:
                there_count += message.key not in written
            elif not self._router.is_forgotten(after, clock_micros):
                sessions[message.key] = after
                told = self._retraced(message._replace(headers=traced(message)))
                messages.append(session_message(message.topic, after, told.headers, after.touched_micros // 1000))
        if messages:
            written.update(sessions)
            await lane.commit(empty, messages, sessions, clock_micros)
        return there_count

    def _retraced(self, message: Message) -> Message:
        """The message with its trace renamed for the cluster."""
        texts = dict(message.headers)
        trace = texts.get(TRACE, "")
        place = self._trace(trace)
        if texts.get(CE_ID) == trace:
            texts[CE_ID] = place
        texts[TRACE] = place
        return message._replace(headers=list(texts.items()))

    async def _range(self, topic: str) -> tuple[int, int]:
        """The position of the oldest record in the directory, and the position behind the newest."""
        return (await self._reader.beginning(topic))[PARTITION], (await self._reader.end(topic))[PARTITION]

    async def _ends(self, topic: str) -> Mapping[int, int]:
        """The end of each partition of a topic in the cluster."""
        try:
            return await self._cluster.end(topic)
        except KeyError:  # the broker that was asked does not know the topic yet
            raise ClusterFailed(f"there is no topic {topic}") from None


def _caused(record: Record) -> int:
    """The inbox position, in the directory, of a record's cause."""
    return _number(dict(record.message.headers).get(TRACE, ""))


def _number(trace: str) -> int:
    """The position in a trace such as `0-17`, in the directory's form or the exported one."""
    position = trace.rpartition("-")[2]
    return int(position) if position.isdecimal() else 0


def _shares(records: Sequence[Record], bytes_max: int) -> Iterator[Sequence[Record]]:
    """The records in order, in shares that fit a transaction of `bytes_max` bytes."""
    share: list[Record] = []
    share_bytes = 0
    for record in records:
        value, headers = record.message.value or b"", record.message.headers
        record_bytes = _RECORD_BYTES + len(value) + sum([len(text) for _, text in headers])
        if share and share_bytes + record_bytes > bytes_max:
            yield share
            share, share_bytes = [], 0
        share.append(record)
        share_bytes += record_bytes
    if share:
        yield share


async def _filled(reader: Reader, topics: Topics) -> Sequence[str]:
    """The topics that hold records, except the sessions topic."""
    names = [name for name in await reader.topics() if name != topics.sessions]
    return [name for name in names if await reader.beginning(name) != await reader.end(name)]


async def _route(lane: Lane, dispatcher: Dispatcher, progress: Progress, patience_seconds: float) -> None:
    """Route all notifications that wait in the inbox. Raises Unavailable."""
    total = left = lane.lag
    if not total:
        return
    got_on = time.monotonic()
    routing = asyncio.create_task(dispatcher.run())
    try:
        while lane.lag:
            progress.moved("inbox", total - lane.lag, total)
            await asyncio.wait({routing}, timeout=_LOOK_SECONDS)
            if routing.done():
                await routing
            if lane.lag < left:
                left, got_on = lane.lag, time.monotonic()
            elif time.monotonic() - got_on > patience_seconds:
                raise Unavailable("what waits in the inbox can't be routed, see the log", reason="store")
        progress.moved("inbox", total, total)
    finally:
        routing.cancel()
        await asyncio.wait({routing})


async def _expect_no_routers(connection: KafkaConnection, group: str) -> None:
    """Raises Unavailable where routers are at work, as they would not learn of the sessions."""
    count = await members_count(connection, group)
    if count:
        raise Unavailable(
            f"{count} router{'s are' if count > 1 else ' is'} at work on the cluster, in the group {group}, and would "
            "not learn of the sessions: stop `serve` there, except with --role edge (killed ones count for 10 s)",
            reason="routers",
        )
