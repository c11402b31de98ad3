"""The inbox and the topics, read by a client that sees committed records."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

_SECONDS_MAX = 300
_POLL_MILLIS = 500
#: A lane's own header with the inbox's topic id. No notification causes it, so the oracles leave it out.
_INBOX_ID = "inbox-id"
_FETCH_BYTES_MAX = 8 * 1024 * 1024


class Standing(NamedTuple):
    """A record of a topic."""

    partition: int
    offset: int
    key: str
    value: bytes | None
    headers: Mapping[str, str]
    millis: int

    @property
    def place(self) -> str:
        """Its place, as headers spell the place of a notification in the inbox."""
        return f"{self.partition}-{self.offset}"


async def read(bootstrap: str, topic: str, partitions_count: int) -> Sequence[Standing]:
    """All committed records, by partition and offset, once no transaction is open any more."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        isolation_level="read_committed",
        enable_auto_commit=False,
        max_partition_fetch_bytes=_FETCH_BYTES_MAX,
    )
    partitions = [TopicPartition(topic, each) for each in range(partitions_count)]
    found: list[Standing] = []
    async with asyncio.timeout(_SECONDS_MAX):
        ends = await _ends(bootstrap, partitions)
        await consumer.start()
        try:
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            for each in partitions:
                # An open transaction holds this up until it ends.
                while await consumer.position(each) < ends[each]:
                    for some in (await consumer.getmany(each, timeout_ms=_POLL_MILLIS)).values():
                        found += [
                            Standing(
                                record.partition,
                                record.offset,
                                (record.key or b"").decode(),
                                record.value,
                                {name: value.decode() for name, value in record.headers if name != _INBOX_ID},
                                record.timestamp,
                            )
                            for record in some
                        ]
        finally:
            await consumer.stop()
    return sorted(found, key=lambda each: (each.partition, each.offset))


async def not_routed(bootstrap: str, inbox: str, group: str, partitions_count: int) -> dict[int, tuple[int, int]]:
    """For each partition with waiting notifications: the committed position, and the end of the inbox."""
    partitions = [TopicPartition(inbox, each) for each in range(partitions_count)]
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    async with asyncio.timeout(_SECONDS_MAX):
        await admin.start()
        try:
            told = await admin.list_consumer_group_offsets(group, partitions=partitions)
        finally:
            await admin.close()
        ends = await _ends(bootstrap, partitions)
    committed = {each: max(0, told[each].offset) if each in told else 0 for each in partitions}
    return {each.partition: (committed[each], ends[each]) for each in partitions if committed[each] != ends[each]}


async def _ends(bootstrap: str, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
    """The ends of partitions, uncommitted records included."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await consumer.start()
    try:
        ends: Mapping[TopicPartition, int] = await consumer.end_offsets(partitions)
    finally:
        await consumer.stop()
    return ends
