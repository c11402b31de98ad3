"""The inbox as a Kafka topic: simultaneous appends share a batch for each partition.

Durability is the cluster's: with acks=all every in-sync replica has the record; `min.insync.replicas` is their least
number.

An aiokafka producer can't be trusted after one of its batches failed or took too long: its sequence has a gap, behind
which the broker refuses everything (aiokafka 1017), and the batch may still be on its way. So the producer is replaced.
Batches that it was still sending may arrive all the same; the router recognizes repetitions.

A batch that is refused for a record in it is different: the brokers have nothing of it. So the next batch takes its
sequence numbers, as with Java's client (adjustSequencesDueToFailedBatch), and no append is in doubt. The batch is
halved until the refused record is alone.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import InvalidTimestampError, KafkaError
from aiokafka.producer.message_accumulator import BatchBuilder

from receiver.backends.kafka.batches import builder
from receiver.backends.kafka.connection import KAFKA_FAILURES, KafkaConnection, end_producer, limited
from receiver.backends.kafka.failures import ClusterFailed, TopicsUnfit
from receiver.backends.kafka.limits import BATCH_BYTES_MAX, REFUSALS, TOO_LARGE, Effort, Limits, Window
from receiver.backends.kafka.records import inbox_record, partition_of
from receiver.backoff import Backoff
from receiver.core.errors import Unavailable, Unwritable
from receiver.core.notification import Notification
from receiver.inbox import Told, told_later

#: Settles the future of an append that failed, in place of raising the error.
Otherwise = Callable[[Notification, asyncio.Future[None], Unavailable], None]
Waiting = tuple[Notification, asyncio.Future[None], Otherwise]

_BATCH_BYTES_MIN = 2**14
#: The part of an append's time limit that a batch should take: batches of several partitions share a link.
_PART_OF_TIME = 0.25

#: aiokafka counts wrongly beyond 2^31 records of one partition.
_RECORDS_MAX = 2**30

_START_SECONDS_MAX = 10.0
#: The number of partitions is checked this often.
_LOOK_SECONDS_PARTITIONS = 2.0
_AGAIN_SECONDS_FIRST = 0.1
_AGAIN_SECONDS_MAX = 2.0
#: A refused record is sent alone this many times before it is given up: it may have been damaged on its way.
_TRIES = 3
#: The topic's limits are read anew this often.
_LOOK_SECONDS = 60.0
_AGE_SECONDS_MAX = 0.5


class _Sending(NamedTuple):
    """A batch on its way, the appends in it, and the times that the topic takes."""

    where: TopicPartition
    builder: BatchBuilder
    group: Sequence[Waiting]
    window: Window


class KafkaInbox:
    """`receiver.inbox.Inbox` is the contract. `run` keeps a producer at work, for ever."""

    def __init__(
        self,
        connection: KafkaConnection,
        topic: str,
        *,
        append_timeout_seconds: float,
        appended: Callable[[int, float], None] = lambda _count, _seconds: None,
        limits: Limits | None = None,
    ) -> None:
        self.topic = topic
        self.trouble = "no connection to Kafka yet"
        # Asking for the loop each time would cost a system call.
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._timeout_seconds = append_timeout_seconds
        self._tell = appended
        self._limits = limits or Limits(connection)
        self._effort = Effort(
            append_timeout_seconds * _PART_OF_TIME,
            bytes_first=BATCH_BYTES_MAX,
            bytes_min=_BATCH_BYTES_MIN,
            bytes_max=BATCH_BYTES_MAX,
        )
        self._counts_max: dict[int, int] = {}  # while the refused record is looked for
        self._tries = 0
        self._producer: AIOKafkaProducer | None = None
        self._partitions_count = 0
        self._waiting: list[deque[Waiting]] = []
        self._sending: dict[int, asyncio.Task[None]] = {}
        self._in_flight: dict[int, Sequence[Waiting]] = {}
        self._worn = asyncio.Event()
        self._records_count = 0
        self.connected = asyncio.Event()

    def append(self, notification: Notification, otherwise: Otherwise | None = None) -> asyncio.Future[None]:
        """See the contract."""
        kept: asyncio.Future[None] = self._loop.create_future()
        waiting = notification, kept, otherwise or _refuse
        if self._producer is None:
            self._settle((waiting,), ClusterFailed(self.trouble))
            return kept
        partition = partition_of(notification.key, self._partitions_count)
        self._waiting[partition].append(waiting)
        if partition not in self._sending:
            self._send_soon(partition)
        return kept

    def take(self, notification: Notification, told: Told) -> None:
        """See the contract."""
        told_later(self.append(notification), told)

    def partition_of(self, key: str) -> int | None:
        """The partition of a key; None before the first connection."""
        return partition_of(key, self._partitions_count) if self._partitions_count else None

    async def run(self) -> None:
        """Connect, and again whenever the producer must be replaced."""
        backoff = Backoff(_AGAIN_SECONDS_FIRST, _AGAIN_SECONDS_MAX)
        while True:
            try:
                producer = await self._connected()
            except Unavailable as error:
                self.trouble = error.message
                await asyncio.sleep(backoff.seconds())
                continue
            backoff.reset()
            self._producer, self.trouble = producer, ""
            self._records_count = 0
            self._worn.clear()
            self.connected.set()
            try:
                await self._watch(producer)
            finally:
                self.connected.clear()
                self._give_up(self.trouble or "the connection to Kafka is being renewed")
                for task in self._sending.values():
                    task.cancel()
                await end_producer(producer)

    async def _watch(self, producer: AIOKafkaProducer) -> None:
        """Wait until the producer must be replaced."""
        while not self._worn.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS_PARTITIONS):  # `wait_for` would lose a cancellation
                    await self._worn.wait()
            self._look(producer)
            if not self._worn.is_set():
                await self._limits.read([self.topic], age_seconds_max=_LOOK_SECONDS)

    async def _connected(self) -> AIOKafkaProducer:
        producer = self._connection.producer(
            enable_idempotence=True,
            max_batch_size=BATCH_BYTES_MAX,
            max_request_size=2 * BATCH_BYTES_MAX,
            request_timeout_ms=round(self._timeout_seconds * 1000),
        )
        self._limits.watch(producer.client)
        try:
            await limited(producer.start(), _START_SECONDS_MAX, "Kafka does not answer")
            partitions = await limited(producer.partitions_for(self.topic), _START_SECONDS_MAX, "no inbox topic")
            await self._limits.read([self.topic])
        except BaseException:
            await end_producer(producer)
            raise
        if self._partitions_count and len(partitions) != self._partitions_count:
            await end_producer(producer)
            raise TopicsUnfit(self._otherwise(len(partitions)))
        if not self._partitions_count:
            self._partitions_count = len(partitions)
            self._waiting = [deque() for _ in partitions]
        return producer

    def _look(self, producer: AIOKafkaProducer) -> None:
        """Stop sending if the topic has another number of partitions: it was made anew, or grew."""
        found = producer.client.cluster.partitions_for_topic(self.topic)
        if found is not None and len(found) != self._partitions_count and self._producer is producer:
            self._give_up(self._otherwise(len(found)))
            self._worn.set()

    def _otherwise(self, count: int) -> str:
        had = f"it had {self._partitions_count} when notifications were first appended"
        return f"{self.topic} has {count} partitions, {had}: keys would be in other partitions than before"

    def _send_soon(self, partition: int) -> None:
        task = asyncio.create_task(self._send(partition))
        self._sending[partition] = task
        task.add_done_callback(lambda _: self._sent(partition))

    def _sent(self, partition: int) -> None:
        del self._sending[partition]
        if self._waiting[partition]:
            self._send_soon(partition)

    async def _send(self, partition: int) -> None:
        """Send one batch of the appends that wait for a partition."""
        producer = self._producer
        if producer is None:
            return
        began = time.monotonic()
        sending = self._batch(TopicPartition(self.topic, partition))
        if not sending.group:
            return
        self._in_flight[partition] = sending.group
        queued: Any = None
        try:
            async with asyncio.timeout(self._timeout_seconds):
                sent = await producer.send_batch(sending.builder, self.topic, partition=partition)
                queued = producer._message_accumulator._batches[sending.where][-1]  # noqa: SLF001
                await sent
        except KAFKA_FAILURES as error:
            # A batch that was sent twice may have been appended the first time.
            if isinstance(error, REFUSALS) and queued is not None and queued.retry_count == 1:
                _take_back(producer, sending)
                await self._limits.read([self.topic], age_seconds_max=_AGE_SECONDS_MAX)
                if self._producer is producer:
                    self._refused(sending, error)
            elif self._producer is producer:
                self._failed(error)
            return
        if self._producer is producer:  # else it was given up meanwhile, and its notifications are kept elsewhere
            self._taken(sending, time.monotonic() - began)

    def _batch(self, where: TopicPartition) -> _Sending:
        """The next batch. Appends that fit no batch are settled as Unwritable."""
        waiting, group = self._waiting[where.partition], list[Waiting]()
        count_max = self._counts_max.get(where.partition, _RECORDS_MAX)
        record_bytes_max, window = self._limits.batch_bytes_max(self.topic), self._limits.window(self.topic)
        bytes_max = min(record_bytes_max, self._effort.bytes_max)
        batch = builder(bytes_max, transactional=False)
        while waiting and len(group) < count_max:
            key, value, timestamp_millis, headers = inbox_record(waiting[0][0])
            timestamp = window.clamped(timestamp_millis)
            if batch.append(timestamp=timestamp, key=key, value=value, headers=headers) is None:
                break
            if batch.size() > record_bytes_max:  # the first record may have any size
                why = f"{self.topic} takes no batch of {batch.size()} bytes"
                self._settle((waiting.popleft(),), Unwritable(why, reason="refused"))
                batch = builder(bytes_max, transactional=False)
                continue
            group.append(waiting.popleft())
        return _Sending(where, batch, group, window)

    def _taken(self, sending: _Sending, seconds: float) -> None:
        partition = sending.where.partition
        group = self._in_flight.pop(partition)
        self._effort.took(sending.builder.size(), seconds)
        self._tries = 0
        if partition in self._counts_max:
            self._counts_max[partition] *= 2
            if self._counts_max[partition] > len(self._waiting[partition]):
                del self._counts_max[partition]
        self._records_count += len(group)
        self._tell(len(group), seconds)
        self._settle(group, None)
        if self._records_count > _RECORDS_MAX:
            self._worn.set()

    def _refused(self, sending: _Sending, error: KafkaError) -> None:
        """Put a refused batch back, to be sent smaller, with other times, or without the record at fault."""
        partition, count = sending.where.partition, len(sending.group)
        del self._in_flight[partition]
        waiting = self._waiting[partition]
        waiting.extendleft(reversed(sending.group))
        if isinstance(error, TOO_LARGE):
            self._limits.too_large(self.topic, sending.builder.size(), count)
        elif isinstance(error, InvalidTimestampError) and self._limits.mistimed(self.topic, sending.window):
            pass
        elif count > 1:
            self._counts_max[partition] = count // 2
        elif self._tries < _TRIES - 1:
            self._tries += 1
        else:
            self._tries = 0
            why = f"{self.topic} refuses it: {type(error).__name__}"
            self._settle((waiting.popleft(),), Unwritable(why, reason="refused"))

    def _failed(self, error: BaseException) -> None:
        slow = isinstance(error, TimeoutError)
        if slow:
            self._effort.failed()
        why = f"longer than {self._timeout_seconds:g} s" if slow else f"no append: {type(error).__name__}"
        self._give_up(f"Kafka took {why}")
        self._worn.set()

    def _give_up(self, trouble: str) -> None:
        """Fail all pending appends, at once and in order: later ones may be kept elsewhere."""
        self._producer, self.trouble = None, trouble
        for partition, waiting in enumerate(self._waiting):
            group = [*self._in_flight.pop(partition, ()), *waiting]
            waiting.clear()
            self._settle(group, ClusterFailed(trouble))

    @staticmethod
    def _settle(group: Sequence[Waiting], error: Unavailable | None) -> None:
        for notification, kept, otherwise in group:
            if kept.done():
                continue
            if error is None:
                kept.set_result(None)
            else:
                otherwise(notification, kept, error)


def _take_back(producer: AIOKafkaProducer, sending: _Sending) -> None:
    """Give the next batch the sequence numbers of one that the brokers have nothing of."""
    numbers = producer._txn_manager._sequence_numbers  # noqa: SLF001
    numbers[sending.where] -= len(sending.group)


def _refuse(_: Notification, kept: asyncio.Future[None], error: Unavailable) -> None:
    kept.set_exception(error)
