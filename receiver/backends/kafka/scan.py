"""Reading a range of a partition up to a known end, and reading how partitions end."""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from receiver.backends.kafka.connection import KafkaConnection, end_consumer, limited
from receiver.backends.kafka.failures import ClusterFailed
from receiver.backends.kafka.producer import Ends
from receiver.backends.kafka.settlement import Tail

#: A consumer that delivers nothing for this long, though records exist, is stuck (aiokafka 1154, 847).
STUCK_SECONDS = 30.0
_ANSWER_SECONDS_MAX = 30.0
_POLL_MILLIS = 100
#: The search for a writer's last record begins this far back; behind it are only markers and others' records.
_TAIL_RECORDS_FIRST = 100


@asynccontextmanager
async def reading(connection: KafkaConnection, isolation_level: str) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer for `between`, for as long as the block lasts. Raises Unavailable."""
    consumer = connection.consumer(isolation_level=isolation_level, auto_offset_reset="earliest")
    try:
        await limited(consumer.start(), _ANSWER_SECONDS_MAX, "Kafka does not answer")
        yield consumer
    finally:
        await end_consumer(consumer)


async def beginning_of(consumer: AIOKafkaConsumer, partition: TopicPartition) -> int:
    """Where a partition begins; from a deposed leader, where it began a while ago. Raises Unavailable."""
    consumer.assign([partition])
    begins: dict[TopicPartition, int] = await limited(
        consumer.beginning_offsets([partition]), _ANSWER_SECONDS_MAX, f"no beginning of {partition.topic}"
    )
    return begins[partition]


async def between(consumer: AIOKafkaConsumer, partition: TopicPartition, begin: int, end: int) -> AsyncIterator[Any]:
    """The records of a partition from one offset up to another. Raises Unavailable."""
    consumer.assign([partition])
    consumer.seek(partition, begin)
    what = f"{partition.topic} can't be read in partition {partition.partition}"
    position, since = -1, time.monotonic()
    while position < end:
        call = consumer.getmany(partition, timeout_ms=_POLL_MILLIS)
        for each in (await limited(call, _ANSWER_SECONDS_MAX, what)).get(partition, ()):
            if each.offset < end:
                yield each
        before, position = position, await limited(consumer.position(partition), _ANSWER_SECONDS_MAX, what)
        if position > before:
            since = time.monotonic()
        elif time.monotonic() - since > STUCK_SECONDS:
            raise ClusterFailed(f"{what}: no record arrives from {position} of {end} on")


async def tails(
    connection: KafkaConnection, ends: Mapping[TopicPartition, Ends], behind: Callable[[Any], int]
) -> dict[TopicPartition, Tail]:
    """How partitions end. Raises Unavailable.

    `behind` gives the writer's position behind the cause of a record, 0 for a record without one.
    """
    found = {}
    async with reading(connection, "read_committed") as readable, reading(connection, "read_uncommitted") as all_of_it:
        for partition, (stable, end) in ends.items():
            committed = await _last(readable, partition, stable, behind)
            hanging, hanging_end = None, 0
            if stable < end:
                async for each in between(all_of_it, partition, stable, end):
                    if position := behind(each):
                        hanging = position - 1 if hanging is None else min(hanging, position - 1)
                        hanging_end = max(hanging_end, position)
            found[partition] = Tail(committed, stable < end, hanging, hanging_end)
    return found


async def _last(consumer: AIOKafkaConsumer, partition: TopicPartition, end: int, behind: Callable[[Any], int]) -> int:
    """The writer's position by the last record before `end` that tells one; 0 if none does."""
    begin = await beginning_of(consumer, partition)
    count, upto = _TAIL_RECORDS_FIRST, end
    while True:
        at, found = max(begin, end - count), 0
        async for each in between(consumer, partition, at, upto):
            found = behind(each) or found
        if found or at == begin:
            return found
        count, upto = 10 * count, at
