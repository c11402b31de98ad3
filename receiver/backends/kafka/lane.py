"""A partition of the inbox, and the right to decide on it.

The right is a transactional id of the partition's own. Who opens a lane starts a producer with that id, and this fences
whoever had it before: nothing of theirs can be committed any more. Only then is there anything worth reading. So a lane
is opened in this order, which is the only one that neither loses nor repeats:

    1  start the transactional producer; what the owner before left open is ended by that
    2  restore the sessions up to the end of their partition
    3  read the committed position
    4  read on from there

A commit is one transaction: the messages, the states among them, and the position. A commit does not look at sends that
failed (aiokafka), so each is awaited before it. After any failure nobody can tell what became of it: the lane is lost,
and whoever opens it next finds out by these same steps.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import OffsetAndMetadata

from receiver.backends.kafka.connection import KAFKA_FAILURES, Connection, ended, limited, persistently
from receiver.backends.kafka.records import notification_of, output_records, record_of
from receiver.backends.kafka.transactional import COMMIT_SECONDS_MAX, Transactional
from receiver.errors import Unavailable
from receiver.event import QosStatus
from receiver.inbox import Batch, LaneLost
from receiver.message import Message
from receiver.notification import Notification
from receiver.session import Session
from receiver.session_record import session_from

T = TypeVar("T")

_OPEN_SECONDS_MAX = 30.0
_POLL_MILLIS = 100
#: So long may there be records that a consumer doesn't bring, before it is taken for stuck (aiokafka 1154, 847).
_STUCK_SECONDS = 30.0
_FETCH_BYTES_MAX = 16 * 1024 * 1024
#: Dead letters that are remembered, the last ones of the partition.
_LETTERS_MAX = 2_000


class Topics(NamedTuple):
    """The names that a lane reads and writes, besides those in its messages."""

    inbox: str
    sessions: str
    dead_letters: str
    group: str


class KafkaLane:
    """`receiver.inbox.Lane` is the contract. Open it with `opened`; close it whatever happens."""

    def __init__(self, connection: Connection, topics: Topics, partition: int) -> None:
        self.partition = partition
        self.sessions: OrderedDict[str, Session] = OrderedDict()  # in the order in which they were last touched
        self.session_counts: Counter[QosStatus] = Counter()
        self._topics = topics
        self._inbox = TopicPartition(topics.inbox, partition)
        self._states = TopicPartition(topics.sessions, partition)
        self._letters = TopicPartition(topics.dead_letters, partition)
        self._letters_seen: OrderedDict[int, None] = OrderedDict()
        self._connection = connection
        self._producer: Transactional | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._committed = self._read_up_to = 0
        self._clock_micros = 0
        self._waiting: list[Any] = []
        self._end = 0
        self._looked_at = 0.0

    async def open(self) -> None:
        """Take the right to the partition from whoever has it. Raises Unavailable."""
        try:
            await self._take()
            await self._restore()
            await self._stand()
        except KAFKA_FAILURES as error:
            raise Unavailable(
                f"lane {self.partition} can't be opened: {type(error).__name__}", reason="kafka"
            ) from error

    async def close(self) -> None:
        """Give it back. What was not committed is nowhere."""
        producer, self._producer = self._producer, None
        consumer, self._consumer = self._consumer, None
        if producer is not None:
            await producer.close()
        if consumer is not None:
            await ended(consumer.stop())

    @property
    def lag(self) -> int:
        """See the contract."""
        known = self._consumer and self._consumer.highwater(self._inbox)
        return max(self._end, known or 0, self._read_up_to) - self._committed

    async def read(self, count_max: int) -> Batch:
        """See the contract."""
        consumer = self._opened(self._consumer)
        position, clock_micros = self._read_up_to, self._clock_micros
        records: Sequence[Any] = ()
        since = time.monotonic()
        consumer.resume(self._inbox)
        while not records:
            if consumer.assignment() and (await self._known(consumer.position(self._inbox))) != position:
                consumer.seek(self._inbox, position)
            found = await self._known(
                consumer.getmany(self._inbox, timeout_ms=_POLL_MILLIS, max_records=count_max), "read"
            )
            records = [each for each in found.get(self._inbox, ()) if each.offset >= position]
            if not records:
                since = await self._look_for_the_end(consumer, position, since)
        if len(found[self._inbox]) < count_max:
            # The client would fetch at once what little has come by now, and hold it until the next batch, which then
            # is as old as that, and more is waiting in Kafka. Paused, it fetches all when it is time.
            consumer.pause(self._inbox)
        notifications: list[Notification] = list(map(notification_of, records))
        keys = {each.key for each in notifications}
        self._read_up_to = records[-1].offset + 1
        return Batch(
            position,
            self._read_up_to,
            [each.offset for each in records],
            notifications,
            {key: self.sessions[key] for key in keys if key in self.sessions},
            clock_micros,
        )

    def rewind(self) -> None:
        """See the contract."""
        self._read_up_to = self._committed

    async def oldest(self, count_max: int) -> tuple[Batch, Sequence[Session]]:
        """See the contract."""
        sessions = [session for session, _ in zip(self.sessions.values(), range(count_max), strict=False)]
        return Batch(self._committed, self._committed, (), (), {}, self._clock_micros), sessions

    async def commit(
        self, batch: Batch, messages: Sequence[Message], sessions: Mapping[str, Session | None], clock_micros: int
    ) -> None:
        """See the contract. Raises LaneLost whatever fails: nobody can tell then what became of it."""
        if batch.position != self._committed:
            raise LaneLost(f"the lane of partition {self.partition} does not stand at {batch.position}")
        messages = [each for each in messages if each.topic != self._topics.dead_letters or self._is_new(each)]
        producer = self._opened(self._producer)
        try:
            async with asyncio.timeout(COMMIT_SECONDS_MAX):
                await self._transact(producer, batch.next_position, messages, clock_micros)
        except BaseException as error:
            lost, self._producer = self._producer, None
            if lost is not None:
                await lost.close()
            if isinstance(error, KAFKA_FAILURES):
                raise LaneLost(f"partition {self.partition}: {type(error).__name__}") from error
            raise
        for message in messages:
            if message.topic == self._topics.sessions:
                self._remember(message.key, sessions[message.key])
        self._committed, self._clock_micros = batch.next_position, clock_micros
        if producer.went_astray:
            raise LaneLost(f"partition {self.partition}: a request went astray")

    async def _transact(
        self, producer: Transactional, next_position: int, messages: Sequence[Message], clock_micros: int
    ) -> None:
        batches: dict[str, list[BatchBuilder]] = {}
        for message, record in zip(messages, output_records(messages), strict=True):
            producer.add(record, batches.setdefault(message.topic, []))
        sending = [(TopicPartition(topic, self.partition), batch) for topic, some in batches.items() for batch in some]
        offsets = {self._inbox: OffsetAndMetadata(next_position, str(clock_micros))}
        await producer.commit(sending, offsets, self._topics.group)

    async def _take(self) -> None:
        self._producer = Transactional(self._connection, f"{self._topics.group}-{self.partition}")
        call = self._producer.start()
        await limited(call, _OPEN_SECONDS_MAX, f"the lane of partition {self.partition} can't be taken")

    async def _restore(self) -> None:
        consumer = self._connection.consumer(isolation_level="read_committed", auto_offset_reset="earliest")
        try:
            await limited(consumer.start(), _OPEN_SECONDS_MAX, "Kafka does not answer")
            async for each in self._all(consumer, self._states, None):
                self._restore_one(each)
            async for each in self._all(consumer, self._letters, _LETTERS_MAX):
                self._is_new(record_of(each).message)
        finally:
            await ended(consumer.stop())

    async def _all(
        self, consumer: AIOKafkaConsumer, partition: TopicPartition, count_max: int | None
    ) -> AsyncIterator[Any]:
        """The records of a partition up to its end, None for all of them, else about the last so many."""
        consumer.assign([partition])
        # Asked only now: an open transaction of the owner before would have held it down.
        ends = await limited(consumer.end_offsets([partition]), _OPEN_SECONDS_MAX, f"no end of {partition.topic}")
        begins = await limited(
            consumer.beginning_offsets([partition]), _OPEN_SECONDS_MAX, f"no beginning of {partition.topic}"
        )
        end, begin = ends[partition], begins[partition]
        consumer.seek(partition, begin if count_max is None else max(begin, end - count_max))
        position, since = -1, time.monotonic()
        while position < end:
            found = await self._known(consumer.getmany(partition, timeout_ms=_POLL_MILLIS), "restored")
            for each in found.get(partition, ()):
                yield each
            before, position = position, await self._known(consumer.position(partition), "restored")
            if position > before:
                since = time.monotonic()
            elif time.monotonic() - since > _STUCK_SECONDS:
                raise Unavailable(f"{partition.topic} ends at {end}, nothing comes from {position} on", reason="kafka")

    def _is_new(self, letter: Message) -> bool:
        """Whether a dead letter is not among the last ones, to which it is added.

        A notification whose append was not answered is appended again, and may then stand in the inbox twice. Most of
        these are repetitions that their session tells; what died has no session.
        """
        found = hash((letter.key, letter.value))
        if found in self._letters_seen:
            return False
        self._letters_seen[found] = None
        if len(self._letters_seen) > _LETTERS_MAX:
            self._letters_seen.popitem(last=False)
        return True

    def _restore_one(self, record: Any) -> None:  # noqa: ANN401  # aiokafka's
        message = record_of(record).message
        if message.value is None:
            self._remember(message.key, None)
        else:
            headers = dict(message.headers)
            session = session_from(message.value, headers)
            self._remember(message.key, session)
            # Should the group's offset be gone, this is how far the lane came at least.
            self._committed = max(self._committed, self._behind(headers.get("inbox", "")))
            self._clock_micros = max(self._clock_micros, session.touched_micros)

    def _behind(self, trace: str) -> int:
        """The position behind a notification of this partition; 0 for one that lay in a directory and was exported."""
        partition, _, position = trace.partition("-")
        return int(position) + 1 if partition == str(self.partition) and position.isdecimal() else 0

    def _remember(self, key: str, session: Session | None) -> None:
        """The newest state of a session, None for its end."""
        before = self.sessions.pop(key, None)
        if before is not None:
            self.session_counts[before.qos_status] -= 1
        if session is not None:
            self.sessions[key] = session
            self.session_counts[session.qos_status] += 1

    async def _stand(self) -> None:
        committed = await limited(self._ask_committed(), _OPEN_SECONDS_MAX, "no committed position")
        if committed is not None and committed.offset >= 0:
            self._committed = max(self._committed, committed.offset)
            if committed.metadata.isdecimal():
                self._clock_micros = max(self._clock_micros, int(committed.metadata))
        consumer = self._connection.consumer(
            auto_offset_reset="earliest", fetch_max_bytes=_FETCH_BYTES_MAX, max_partition_fetch_bytes=_FETCH_BYTES_MAX
        )
        self._consumer = consumer
        await limited(consumer.start(), _OPEN_SECONDS_MAX, "Kafka does not answer")
        consumer.assign([self._inbox])
        beginning = await limited(consumer.beginning_offsets([self._inbox]), _OPEN_SECONDS_MAX, "no beginning")
        self._committed = max(self._committed, beginning[self._inbox])
        self._read_up_to = self._committed
        consumer.seek(self._inbox, self._committed)
        self._end = (await limited(consumer.end_offsets([self._inbox]), _OPEN_SECONDS_MAX, "no end"))[self._inbox]

    async def _ask_committed(self) -> OffsetAndMetadata | None:
        async with self._connection.admin(_OPEN_SECONDS_MAX) as admin:
            ask = partial(admin.list_consumer_group_offsets, self._topics.group, partitions=[self._inbox])
            told: Mapping[TopicPartition, OffsetAndMetadata] = await persistently(ask)
        return told.get(self._inbox)

    async def _look_for_the_end(self, consumer: AIOKafkaConsumer, position: int, since: float) -> float:
        """Ask now and then whether there is something that the consumer doesn't bring. Raises LaneLost."""
        now = time.monotonic()
        if now - self._looked_at > _STUCK_SECONDS / 3:
            self._looked_at = now
            self._end = (await self._known(consumer.end_offsets([self._inbox])))[self._inbox]
        if self._end <= position:
            return now
        if now - since > _STUCK_SECONDS:
            raise LaneLost(f"partition {self.partition}: the consumer is stuck at {position} of {self._end}")
        return since

    async def _known(self, call: Awaitable[T], what: str = "asked") -> T:
        return await limited(call, _OPEN_SECONDS_MAX, f"partition {self.partition} can't be {what}")

    def _opened(self, client: T | None) -> T:
        if client is None:
            raise LaneLost(f"the lane of partition {self.partition} is closed")
        return client
