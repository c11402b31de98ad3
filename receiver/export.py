"""Carrying what an embedded node keeps into a Kafka cluster: the way from one directory to many machines.

Carried are the records of the output topics, and the sessions. The inbox is not: what still waits in it is routed
first, and then all that it caused is in these. An export that is killed goes on where it stood:

- Records go in transactions under an id of the directory's own, and each commits the position behind its records to a
  group of that name. Kafka forgets the positions of a group after a week; so the milestones, a file in the directory,
  have them too. As with a lane: first start the producer, which ends what was left open, then read the position, then
  go on.
- Sessions are a router's memory. Only a lane may write that, so it is done by the lanes: they know what the cluster
  remembers, and what it lacks is written. A router that is at work in spite of all is fenced.

A record keeps everything but its trace: `0-17` is a place in the directory's inbox, and another one in the cluster's.
So it becomes `export:ID:0-17`, and so does a `ce_id` that was made of it, or consumers would take what the cluster
receives at that place for a repetition.
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

#: Behind all positions.
_NOTHING_LEFT = 2**63 - 1

#: So many records are read at a time. What a router wrote together, 2,000 by default, is unpacked as a whole for each.
_PAGE = 5_000
#: What a record takes besides its value and its headers' values, about.
_RECORD_BYTES = 512
_ANSWER_SECONDS_MAX = 30.0
#: Each lane has all sessions of its partition in memory.
_LANES_MAX = 4

#: So long may Kafka fail again and again while nothing gets on.
PATIENCE_SECONDS = 60.0
_AGAIN_SECONDS_FIRST = 0.2
_AGAIN_SECONDS_MAX = 5.0
_LOOK_SECONDS = 0.05


class Progress(Protocol):
    """Who is told how far it is."""

    def moved(self, what: str, done: int, total: int) -> None:
        """So many are done, of a topic's records or of what waits in the inbox."""
        ...

    def waiting(self, why: str) -> None:
        """Kafka failed; it is tried again."""
        ...

    def left_out(self, topic: str, what: str) -> None:
        """A record that the cluster does not take: the session's of this id, or the one that came of this place."""
        ...


class Carried(NamedTuple):
    """What of a topic that the directory holds was carried now, and what had been before."""

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
    """Carry what the settings' directory keeps into the settings' cluster, the sessions last.

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
            # To route under another prefix would be no harm that could be undone.
            raise TopicsUnfit(f"{settings.data} has not the prefix {prefix}, but {', '.join(held)}")
        connection, plan = connection_of(settings), plan_of(settings, router)
        await _expect_no_routers(connection, topics.group)
        # The records of a route that was taken out of the configuration are there still.
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
    """Whose export it is, and how far it came in which cluster: a file in the directory, for who has its lock.

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
            why = f"{self._path} can't be read, without which all would be carried once more: {type(error).__name__}"
            raise Unavailable(why, reason="store") from error

    def positions(self, cluster_id: str) -> Mapping[str, int]:
        """Where to go on in a cluster, by topic, as far as it is known here."""
        return self._positions.get(cluster_id, {})

    def note(self, cluster_id: str, topic: str, next_position: int) -> None:
        """All before this position was carried. It survives a power cut."""
        self._positions.setdefault(cluster_id, {})[topic] = next_position
        self._write()

    def _write(self) -> None:
        try:
            write_durably(self._path, json.dumps({"id": self.id, "positions": self._positions}).encode())
        except OSError as error:
            raise Unavailable(f"{self._path} can't be written: {error.strerror}", reason="store") from error


class _Exporter:
    """Carries from one directory to one cluster, and begins again where Kafka fails."""

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
        first: dict[str, int] = {}  # where each topic stood when it was first looked at
        await self._patiently(partial(self._carry_records, first))
        carried = []
        for topic, position in first.items():
            beginning, end = await self._range(topic)
            carried.append(Carried(topic, end - position, position - beginning))
        return carried

    async def carry_sessions(self) -> Carried:
        """Let the cluster know all sessions that the directory remembers. Raises Unavailable."""
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
        """What the cluster does not take: topics, and where the records came from or which sessions they are."""
        return sorted({*self._lessons.left_out, *self._limits.left_out()})

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The outcome of an attempt that Kafka does not fail. Raises Unavailable once that took too long."""
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
        """Where to go on with a topic, given what is committed, once nothing hangs on it. Raises Unavailable."""
        hanging = await writer.hanging(topic, self._behind)
        commits = False
        if hanging:
            cursor = {PARTITION: position}
            records = await self._reader.records(topic, cursor, _PAGE)
            # What caused a record orders the records of a topic as their own positions do, and stands in each of them.
            commits, reached = settlement(_caused(records[0]) if records else _NOTHING_LEFT, hanging)
            while done := [each.position for each in records if _caused(each) < reached]:
                position = done[-1] + 1
                records = await self._reader.records(topic, cursor, _PAGE)
        await writer.settle(topic, position, commits=commits)
        return position

    def _behind(self, record: Any) -> int:  # noqa: ANN401  # aiokafka's
        """The directory's inbox position behind what caused a record; 0 where it was not exported from here."""
        for name, text in record.headers:
            if name == TRACE and (text or b"").startswith(self._trace("").encode()):
                return _number(text.decode(errors="replace")) + 1
        return 0

    def _trace(self, trace: str) -> str:
        return f"export:{self._milestones.id}:{trace}"

    async def _standing(self, topics: Sequence[str]) -> tuple[str, Mapping[str, int]]:
        """Which cluster it is, and where to go on. Only while nobody else can commit under our name."""
        async with self._connection.admin(_ANSWER_SECONDS_MAX) as admin:
            told = await limited(admin.describe_cluster(), _ANSWER_SECONDS_MAX, "the cluster can't be described")
        cluster_id = str(told["cluster_id"])
        noted, committed = self._milestones.positions(cluster_id), await positions(self._connection, self._name, topics)
        standing = {}
        for topic in topics:
            # A topic that was made anew has nothing of what was carried to the one before.
            is_new = not any((await self._ends(topic)).values())
            standing[topic] = 0 if is_new else max(noted.get(topic, 0), committed.get(topic, 0))
        return cluster_id, standing

    async def _carry_sessions(
        self, partitions: Sequence[int], partitions_count: int, written: set[str], done_count: int, total: int
    ) -> tuple[int, int]:
        """Carry the sessions of some partitions: how many there are, and how many the cluster knew as well before.

        `written` are those that this export wrote already, or tried to.
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
        """Write what a lane does not remember of these sessions. How many of them it knew as well before."""
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
        """A message as it goes to the cluster."""
        texts = dict(message.headers)
        trace = texts.get(TRACE, "")
        place = self._trace(trace)
        if texts.get(CE_ID) == trace:
            texts[CE_ID] = place
        texts[TRACE] = place
        return message._replace(headers=list(texts.items()))

    async def _range(self, topic: str) -> tuple[int, int]:
        """The oldest record's position in the directory, and the one behind the newest's."""
        return (await self._reader.beginning(topic))[PARTITION], (await self._reader.end(topic))[PARTITION]

    async def _ends(self, topic: str) -> Mapping[int, int]:
        """Where the partitions of a topic end in the cluster."""
        try:
            return await self._cluster.end(topic)
        except KeyError:  # asked of a broker that had not heard of it yet
            raise ClusterFailed(f"there is no topic {topic}") from None


def _caused(record: Record) -> int:
    """The directory's inbox position of what caused a record."""
    return _number(dict(record.message.headers).get(TRACE, ""))


def _number(trace: str) -> int:
    """The position in a trace such as `0-17`, in the directory's own form or in the exported one."""
    position = trace.rpartition("-")[2]
    return int(position) if position.isdecimal() else 0


def _shares(records: Sequence[Record], bytes_max: int) -> Iterator[Sequence[Record]]:
    """Records in their order, so many at a time as one transaction may have."""
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
    """The topics that hold records, without the sessions."""
    names = [name for name in await reader.topics() if name != topics.sessions]
    return [name for name in names if await reader.beginning(name) != await reader.end(name)]


async def _route(lane: Lane, dispatcher: Dispatcher, progress: Progress, patience_seconds: float) -> None:
    """Route all that waits in the inbox. Raises Unavailable."""
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
    """Raises Unavailable where routers are at work: they would not learn of the sessions."""
    count = await members_count(connection, group)
    if count:
        raise Unavailable(
            f"{count} router{'s are' if count > 1 else ' is'} at work on the cluster, in the group {group}, and would "
            "not learn of the sessions: stop `serve` there, but for --role edge (who was killed is counted for 10 s)",
            reason="routers",
        )
