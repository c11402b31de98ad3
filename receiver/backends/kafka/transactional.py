"""A transactional producer, used so that nothing of a transaction is lost, hangs, or ends another.

A commit does not look at sends that failed (aiokafka), so each is awaited before it. A request of which no answer came
may still be on its way, and would end the transaction after its own: a producer to which that happened is not used
again. Whoever starts one under a name ends what was left open under it, and shuts out whoever has it still.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiokafka import TopicPartition
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    TxnOffsetCommitRequest,
)
from aiokafka.structs import OffsetAndMetadata

from receiver.backends.kafka.connection import Connection, end_producer
from receiver.backends.kafka.inbox import BATCH_BYTES_MAX
from receiver.backends.kafka.known import Known, known_to
from receiver.backends.kafka.records import RawRecord

#: Below the time after which aiokafka would send the end of a transaction a second time, which could end a later one
#: (KAFKA-17754).
COMMIT_SECONDS_MAX = 10.0

#: While a transaction is open, nothing behind it is visible to others; a process that died leaves it open this long.
_TIMEOUT_MILLIS = 15_000
_REQUEST_TIMEOUT_MILLIS = 20_000

_REQUESTS = (AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, EndTxnRequest, TxnOffsetCommitRequest)


class Transactional:
    """Transactions under a name. `went_astray` once a request of one of them may still be on its way."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.went_astray = False
        self._producer = connection.producer(
            transactional_id=name,
            transaction_timeout_ms=_TIMEOUT_MILLIS,
            request_timeout_ms=_REQUEST_TIMEOUT_MILLIS,
            max_batch_size=BATCH_BYTES_MAX,
            max_request_size=2 * BATCH_BYTES_MAX,
            retry_backoff_ms=20,
        )
        send = self._producer.client.send

        async def watched(node_id: int, request: Any, **options: Any) -> Any:  # noqa: ANN401  # aiokafka's
            try:
                return await send(node_id, request, **options)
            except BaseException:
                self.went_astray |= isinstance(request, _REQUESTS)
                raise

        self._producer.client.send = watched

    async def start(self) -> None:
        """End what was left open under this name, and let nobody else go on with it."""
        await self._producer.start()

    async def close(self) -> None:
        """What was not committed is nowhere."""
        await end_producer(self._producer)

    async def partitions_count(self, topic: str) -> int:
        """How many partitions a topic has."""
        return len(await self._producer.partitions_for(topic))

    async def known(self, names: Sequence[str]) -> dict[str, Known]:
        """See `known`."""
        return await known_to(self._producer.client, names)

    def add(self, record: RawRecord, batches: list[BatchBuilder]) -> None:
        """Put a record into the last of the batches of its partition, or into a new one where there is no room."""
        key, value, timestamp_millis, headers = record
        if not batches or (
            batches[-1].append(timestamp=timestamp_millis, key=key, value=value, headers=headers) is None
        ):
            batches.append(self._producer.create_batch())
            batches[-1].append(timestamp=timestamp_millis, key=key, value=value, headers=headers)

    async def commit(
        self,
        batches: Iterable[tuple[TopicPartition, BatchBuilder]],
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        group: str,
    ) -> None:
        """Write the batches and the group's offsets, or neither. The caller limits the time."""
        producer = self._producer
        await producer.begin_transaction()
        sending = [
            _retrieved(await producer.send_batch(batch, where.topic, partition=where.partition))
            for where, batch in batches
        ]
        # Produced before the offsets, which alone would be waited for five times as long (BACKOFF_OVERRIDE).
        await asyncio.gather(*sending)
        await producer.send_offsets_to_transaction(offsets, group)
        await producer.commit_transaction()


def _retrieved(sent: asyncio.Future[Any]) -> asyncio.Future[Any]:
    """The same; that it failed is no news to anybody where the transaction did already."""
    sent.add_done_callback(lambda future: future.cancelled() or future.exception())
    return sent
