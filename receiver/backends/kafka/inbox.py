"""The inbox as a Kafka topic: appends of a moment share a batch for each partition.

Durability is the cluster's: acks=all, so that every replica in sync has it, which `min.insync.replicas` counts.

A producer of aiokafka's can't be trusted after a batch of its failed or took too long: its sequence has a gap that the
broker refuses everything behind (aiokafka 1017), and the batch may still be on its way. So it is replaced. What it was
still sending may arrive all the same; the router knows repetitions.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder

from receiver.backends.kafka.connection import KAFKA_FAILURES, Connection, end_producer, limited
from receiver.backends.kafka.records import inbox_record, partition_of
from receiver.errors import Unavailable
from receiver.notification import Notification

#: What settles the outcome of an append that failed, in place of the error.
Otherwise = Callable[[Notification, asyncio.Future[None], Unavailable], None]
Waiting = tuple[Notification, asyncio.Future[None], Otherwise]

#: A broker takes 1 MiB unless it is told otherwise; this leaves room for what wraps a batch.
BATCH_BYTES_MAX = 900_000

#: aiokafka counts wrongly beyond 2^31 records of one partition.
_RECORDS_MAX = 2**30

_START_SECONDS_MAX = 10.0
#: So old is what is known of the number of partitions.
_METADATA_MILLIS = 2_000
_BACKOFF_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)


class KafkaInbox:
    """`receiver.inbox.Inbox` is the contract. `run` keeps a producer at work, for ever."""

    def __init__(
        self,
        connection: Connection,
        topic: str,
        *,
        append_timeout_seconds: float,
        appended: Callable[[int, float], None] = lambda _count, _seconds: None,
    ) -> None:
        self.topic = topic
        self.trouble = "no connection to Kafka yet"
        # Asking for it each time is a call of the system.
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._timeout_seconds = append_timeout_seconds
        self._tell = appended
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
            self._settle((waiting,), Unavailable(self.trouble, reason="kafka"))
            return kept
        partition = partition_of(notification.key, self._partitions_count)
        self._waiting[partition].append(waiting)
        if partition not in self._sending:
            self._send_soon(partition)
        return kept

    def partition_of(self, key: str) -> int | None:
        """Where what has this key is appended; None before it was connected for the first time."""
        return partition_of(key, self._partitions_count) if self._partitions_count else None

    async def run(self) -> None:
        """Connect, and connect anew whenever the producer is worn out."""
        failures = 0
        while True:
            try:
                producer = await self._connected()
            except Unavailable as error:
                self.trouble = error.message
                await asyncio.sleep(_BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)])
                failures += 1
                continue
            failures = 0
            self._producer, self.trouble = producer, ""
            self._records_count = 0
            self._worn.clear()
            self.connected.set()
            try:
                while not self._worn.is_set():
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_METADATA_MILLIS / 1000):
                            await self._worn.wait()
                    self._look(producer)
            finally:
                self.connected.clear()
                self._give_up(self.trouble or "the connection to Kafka is being renewed")
                for task in self._sending.values():
                    task.cancel()
                await end_producer(producer)

    async def _connected(self) -> AIOKafkaProducer:
        producer = self._connection.producer(
            enable_idempotence=True,
            max_batch_size=BATCH_BYTES_MAX,
            max_request_size=2 * BATCH_BYTES_MAX,
            request_timeout_ms=round(self._timeout_seconds * 1000),
            metadata_max_age_ms=_METADATA_MILLIS,
        )
        try:
            await limited(producer.start(), _START_SECONDS_MAX, "Kafka does not answer")
            partitions = await limited(producer.partitions_for(self.topic), _START_SECONDS_MAX, "no inbox topic")
        except BaseException:
            await end_producer(producer)
            raise
        if self._partitions_count and len(partitions) != self._partitions_count:
            await end_producer(producer)
            raise Unavailable(self._otherwise(len(partitions)), reason="topics")
        if not self._partitions_count:
            self._partitions_count = len(partitions)
            self._waiting = [deque() for _ in partitions]
        return producer

    def _look(self, producer: AIOKafkaProducer) -> None:
        """Send nothing more to a topic that was made anew with another number of partitions, or grew."""
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
        """Send a batch of what waits for a partition."""
        producer = self._producer
        if producer is None:
            return
        began = time.monotonic()
        batch, self._in_flight[partition] = self._batch(producer, partition)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await (await producer.send_batch(batch, self.topic, partition=partition))
        except KAFKA_FAILURES as error:
            slow = isinstance(error, TimeoutError)
            why = f"longer than {self._timeout_seconds:g} s" if slow else f"no append: {type(error).__name__}"
            if self._producer is producer:
                self._give_up(f"Kafka took {why}")
                self._worn.set()
            return
        if self._producer is not producer:
            return  # it was given up meanwhile, and what was sent is kept elsewhere
        group = self._in_flight.pop(partition)
        self._records_count += len(group)
        self._tell(len(group), time.monotonic() - began)
        self._settle(group, None)
        if self._records_count > _RECORDS_MAX:
            self._worn.set()

    def _batch(self, producer: AIOKafkaProducer, partition: int) -> tuple[BatchBuilder, Sequence[Waiting]]:
        waiting, group = self._waiting[partition], []
        batch = producer.create_batch()
        while waiting:
            key, value, timestamp_millis, headers = inbox_record(waiting[0][0])
            if batch.append(timestamp=timestamp_millis, key=key, value=value, headers=headers) is None:
                break
            group.append(waiting.popleft())
        return batch, group

    def _give_up(self, trouble: str) -> None:
        """Refuse all that was begun, at once and in order: what is appended from now on may be kept elsewhere."""
        self._producer, self.trouble = None, trouble
        for partition, waiting in enumerate(self._waiting):
            group = [*self._in_flight.pop(partition, ()), *waiting]
            waiting.clear()
            self._settle(group, Unavailable(trouble, reason="kafka"))

    @staticmethod
    def _settle(group: Sequence[Waiting], error: Unavailable | None) -> None:
        for notification, kept, otherwise in group:
            if kept.done():
                continue
            if error is None:
                kept.set_result(None)
            else:
                otherwise(notification, kept, error)


def _refuse(_: Notification, kept: asyncio.Future[None], error: Unavailable) -> None:
    kept.set_exception(error)
