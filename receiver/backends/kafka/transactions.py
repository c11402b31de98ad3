"""Records and how far their writer came, in one transaction; and what Kafka knows of a group.

It is for writers that are no lane. The name of one is its transactional id, and the group that keeps its positions, one
for each topic that it writes to. Whoever starts under the same name ends what was left open, and shuts out whoever is
at work still. So a writer first starts, then asks where it stood, and then goes on from there.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    TxnOffsetCommitRequest,
)
from aiokafka.structs import OffsetAndMetadata

from receiver.backends.kafka.connection import Connection, end_producer, limited
from receiver.backends.kafka.inbox import BATCH_BYTES_MAX
from receiver.backends.kafka.records import output_records, partition_of
from receiver.errors import Unavailable
from receiver.message import Message

T = TypeVar("T")

#: A writer that died leaves its transaction open so long, unless it starts again before.
_TRANSACTION_TIMEOUT_MILLIS = 15_000
#: Below the time after which aiokafka would send the end of a transaction a second time (KAFKA-17754).
_COMMIT_SECONDS_MAX = 10.0
_REQUEST_TIMEOUT_MILLIS = 20_000
_ANSWER_SECONDS_MAX = 30.0
_RETRY_SECONDS = 0.2
#: A position is a writer's own, and of the whole topic; but a group keeps it for a partition.
_PARTITION = 0

_TRANSACTION_REQUESTS = (AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, EndTxnRequest, TxnOffsetCommitRequest)


class Writer:
    """Transactions under a name. After anything failed it is not used again, but for `close`."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._name = name
        self._producer = connection.producer(
            transactional_id=name,
            transaction_timeout_ms=_TRANSACTION_TIMEOUT_MILLIS,
            request_timeout_ms=_REQUEST_TIMEOUT_MILLIS,
            max_batch_size=BATCH_BYTES_MAX,
            max_request_size=2 * BATCH_BYTES_MAX,
            retry_backoff_ms=20,
        )
        self._indefinite = False
        send = self._producer.client.send

        async def watched(node_id: int, request: Any, **options: Any) -> Any:  # noqa: ANN401  # aiokafka's
            try:
                return await send(node_id, request, **options)
            except BaseException:
                self._indefinite |= isinstance(request, _TRANSACTION_REQUESTS)
                raise

        self._producer.client.send = watched

    async def start(self) -> None:
        """End what was left open under this name, and let nobody else go on with it. Raises Unavailable."""
        await limited(self._producer.start(), _ANSWER_SECONDS_MAX, "Kafka does not answer")

    async def close(self) -> None:
        """What was not committed is nowhere."""
        await end_producer(self._producer)

    async def commit(self, topic: str, messages: Sequence[Message], next_position: int) -> None:
        """Write messages to a topic, and the position behind what they came from, or neither.

        Raises Unavailable; nobody can tell then whether it was done.
        """
        call = self._transact(topic, messages, next_position)
        await limited(call, _COMMIT_SECONDS_MAX, f"a transaction of {topic} failed")
        if self._indefinite:
            # A request of this transaction may still be on its way, and would end the next one.
            raise Unavailable(f"a transaction of {topic} went astray", reason="kafka")

    async def _transact(self, topic: str, messages: Sequence[Message], next_position: int) -> None:
        producer = self._producer
        batches = self._batches(messages, len(await producer.partitions_for(topic)))
        await producer.begin_transaction()
        sending = [
            _retrieved(await producer.send_batch(batch, topic, partition=partition))
            for partition, some in batches.items()
            for batch in some
        ]
        # A commit does not look at sends that failed.
        await asyncio.gather(*sending)
        offsets = {TopicPartition(topic, _PARTITION): OffsetAndMetadata(next_position, "")}
        await producer.send_offsets_to_transaction(offsets, self._name)
        await producer.commit_transaction()

    def _batches(self, messages: Sequence[Message], partitions_count: int) -> Mapping[int, Sequence[BatchBuilder]]:
        batches: dict[int, list[BatchBuilder]] = {}
        for message, (key, value, timestamp_millis, headers) in zip(messages, output_records(messages), strict=True):
            some = batches.setdefault(partition_of(message.key, partitions_count), [])
            if not some or some[-1].append(timestamp=timestamp_millis, key=key, value=value, headers=headers) is None:
                some.append(self._producer.create_batch())
                some[-1].append(timestamp=timestamp_millis, key=key, value=value, headers=headers)
        return batches


def _retrieved(sent: asyncio.Future[Any]) -> asyncio.Future[Any]:
    """The same; that it failed is no news to anybody where the transaction did already."""
    sent.add_done_callback(lambda future: future.cancelled() or future.exception())
    return sent


async def positions(connection: Connection, name: str, topics: Sequence[str]) -> Mapping[str, int]:
    """Where a writer stands, by topic, as far as Kafka knows. Raises Unavailable."""
    partitions = [TopicPartition(topic, _PARTITION) for topic in topics]
    async with connection.admin(_ANSWER_SECONDS_MAX) as admin:
        told = await _asked(partial(admin.list_consumer_group_offsets, name, partitions=partitions), name)
    return {each.topic: committed.offset for each, committed in told.items() if committed.offset >= 0}


async def members_count(connection: Connection, group: str) -> int:
    """How many consumers are members of a group now. Raises Unavailable."""
    async with connection.admin(_ANSWER_SECONDS_MAX) as admin:
        return await _asked(partial(_members_count, admin, group), group)


async def _members_count(admin: AIOKafkaAdminClient, group: str) -> int:
    (answer,) = await admin.describe_consumer_groups([group])
    ((code, _, _, _, _, members),) = answer.groups
    if code:
        raise for_code(code)
    return len(members)


async def _asked(ask: Callable[[], Awaitable[T]], group: str) -> T:
    return await limited(_persistently(ask), _ANSWER_SECONDS_MAX, f"the group {group} can't be asked")


async def _persistently(ask: Callable[[], Awaitable[T]]) -> T:
    """The answer about a group whose coordinator may be moving, or in a new cluster be made only now."""
    while True:
        try:
            return await ask()
        except KafkaError as error:
            if not error.retriable:
                raise
            await asyncio.sleep(_RETRY_SECONDS)
