"""Reading for operators: topics by position, and the table of sessions as the compacted topic has it."""

import asyncio
import heapq
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from receiver.backends.kafka.connection import KafkaConnection, ended, limited
from receiver.backends.kafka.failures import TopicsUnfit
from receiver.backends.kafka.records import record_of
from receiver.backends.kafka.session_table import SessionTable
from receiver.core.errors import Unavailable
from receiver.core.event import QosStatus
from receiver.core.message import Record
from receiver.core.session import Session
from receiver.core.session_record import NoSession, session_of
from receiver.core.topics import TopicNames
from receiver.reader import PAGE_BYTES_MAX, Cursor, PassedOver, Reader, is_asked_for, nobody, within

_SECONDS_MAX = 10.0
#: A broker that does not answer within this time may be paused: then another one is asked.
_REQUEST_TIMEOUT_MILLIS = 4_000
_POLL_MILLIS = 200
#: More than a page, so that a page seldom needs two fetches.
_FETCH_BYTES_MAX = 2 * PAGE_BYTES_MAX
_PAGE = 5_000
#: Tombstones are kept for a day. A table that was updated longer ago than this is read anew, as it may lack some.
_TABLE_SECONDS_MAX = 12 * 3_600.0


class KafkaReader(Reader):
    """`receiver.reader.Reader` is the contract. It connects at the first call, and reads committed records."""

    def __init__(self, connection: KafkaConnection, prefix: str, passed_over: PassedOver = nobody) -> None:
        self._connection = connection
        self._passed_over = passed_over
        self._names = TopicNames(prefix)
        self._consumer: AIOKafkaConsumer | None = None
        self._lock = asyncio.Lock()
        self._table = SessionTable()
        self._table_cursor: Cursor = {}
        self._table_updated = 0.0

    async def close(self) -> None:
        """Close the connection."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await ended(consumer.stop())

    async def topics(self) -> Sequence[str]:
        """See the contract."""
        async with self._connected() as consumer:
            names = (await self._metadata(consumer)).topics()
        return sorted(name for name in names if self._names.is_ours(name) and name != self._names.inbox)

    async def beginning(self, topic: str) -> Cursor:
        """See the contract."""
        async with self._connected() as consumer:
            return await self._offsets(consumer, consumer.beginning_offsets, topic)

    async def end(self, topic: str) -> Cursor:
        """See the contract."""
        async with self._connected() as consumer:
            return await self._offsets(consumer, consumer.end_offsets, topic)

    async def records(
        self, topic: str, cursor: Cursor, count_max: int, bytes_max: int = PAGE_BYTES_MAX
    ) -> Sequence[Record]:
        """See the contract."""
        async with self._connected() as consumer:
            return await self._records(consumer, topic, cursor, count_max, bytes_max)

    async def sessions(self, qos_status: QosStatus | None, count_max: int) -> Sequence[Session]:
        """See the contract."""
        async with self._connected() as consumer:
            await self._update_table(consumer)
        # The table has the last session first within each partition; between partitions the time decides.
        wanted = (session for session in self._table.last_first() if qos_status in (None, session.qos_status))
        return heapq.nlargest(count_max, wanted, key=lambda session: session.touched_micros)

    async def sessions_of(self, sender: str, session_ids: Collection[str]) -> Sequence[Session]:
        """See the contract."""
        async with self._connected() as consumer:
            await self._update_table(consumer)
        wanted = frozenset(session_ids)
        return [session for session in self._table.values() if is_asked_for(session, sender, wanted)]

    async def session_counts(self) -> dict[QosStatus, int]:
        """See the contract."""
        async with self._connected() as consumer:
            await self._update_table(consumer)
        return {qos_status: self._table.counts[qos_status] for qos_status in QosStatus}

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AIOKafkaConsumer]:
        """The consumer, for one caller at a time. One that failed is not used again."""
        async with self._lock:
            if self._consumer is None:
                self._consumer = await self._started()
            try:
                yield self._consumer
            except Unavailable:
                await self.close()
                raise

    async def _started(self) -> AIOKafkaConsumer:
        consumer = self._connection.consumer(
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            request_timeout_ms=_REQUEST_TIMEOUT_MILLIS,
            fetch_max_bytes=_FETCH_BYTES_MAX,
        )
        try:
            await limited(consumer.start(), _SECONDS_MAX, "Kafka does not answer")
        except BaseException:
            await ended(consumer.stop())
            raise
        return consumer

    async def _offsets(self, consumer: AIOKafkaConsumer, ask: Any, topic: str) -> Cursor:  # noqa: ANN401  # aiokafka's
        numbers = (await self._metadata(consumer)).partitions_for_topic(topic)
        if numbers is None:
            raise KeyError(topic)
        partitions = [TopicPartition(topic, each) for each in sorted(numbers)]
        found = await limited(ask(partitions), _SECONDS_MAX, "the positions can't be asked")
        return {each.partition: offset for each, offset in found.items()}

    async def _metadata(self, consumer: AIOKafkaConsumer) -> Any:  # noqa: ANN401  # aiokafka's
        # The consumer's own metadata has only its assigned topics.
        metadata = consumer._client.fetch_all_metadata()  # noqa: SLF001
        return await limited(metadata, _SECONDS_MAX, "the topics can't be listed")

    async def _records(
        self, consumer: AIOKafkaConsumer, topic: str, cursor: Cursor, count_max: int, bytes_max: int = PAGE_BYTES_MAX
    ) -> Sequence[Record]:
        """At most `count_max` records from a cursor on; none only if there are none up to the end."""
        ends = await self._offsets(consumer, consumer.end_offsets, topic)
        beginnings = await self._offsets(consumer, consumer.beginning_offsets, topic)
        for partition, beginning in beginnings.items():
            cursor[partition] = max(cursor.get(partition, 0), beginning)
        wanted = [TopicPartition(topic, each) for each, end in ends.items() if cursor[each] < end]
        if not wanted:
            return []
        consumer.assign(wanted)
        for each in wanted:
            consumer.seek(each, cursor[each.partition])
        records, moved = await limited(
            _found(consumer, ends, count_max, bytes_max), _SECONDS_MAX, "the topic can't be read"
        )
        cursor.update(moved)
        return records

    async def _update_table(self, consumer: AIOKafkaConsumer) -> None:
        topic = self._names.sessions
        now = time.monotonic()
        if now - self._table_updated > _TABLE_SECONDS_MAX:
            self._table.clear()
            self._table_cursor.clear()
        if topic not in (await self._metadata(consumer)).topics():
            raise TopicsUnfit(f"there is no topic {topic}")
        while records := await self._records(consumer, topic, self._table_cursor, _PAGE):
            for record in records:
                try:
                    session = session_of(record.message)
                except NoSession as error:
                    self._passed_over(f"{topic}-{record.partition}-{record.position}", str(error))
                    continue
                self._table.put(record.message.key, session)
        self._table_updated = now


async def _found(
    consumer: AIOKafkaConsumer, ends: Cursor, count_max: int, bytes_max: int
) -> tuple[Sequence[Record], Cursor]:
    """Records of the assigned partitions, and the cursor behind them; no records only at the partitions' ends."""
    partitions = consumer.assignment()
    while True:
        found = await consumer.getmany(*partitions, timeout_ms=_POLL_MILLIS, max_records=count_max)
        # The positions pass aborted records and markers of transactions too, which `found` does not have.
        cursor = {each.partition: await consumer.position(each) for each in partitions}
        if any(found.values()) or all(position >= ends[partition] for partition, position in cursor.items()):
            records = [record_of(each) for some in found.values() for each in some]
            taken = list(within(records, count_max, bytes_max))
            for record in reversed(records[len(taken) :]):
                cursor[record.partition] = record.position
            return taken, cursor
