"""A writer that is no lane: its records and its position in one transaction. Also Kafka's knowledge of a group.

A writer's name is its transactional id, and also the group that keeps its positions, one for each topic that it writes
to. Starting under a name ends what was left open under it, and fences a writer that is still at work. So a writer
starts, asks for its position, settles what hangs (see `settlement.py`), and goes on from there.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import for_code
from aiokafka.structs import OffsetAndMetadata

from receiver.backends.kafka.batches import Batches
from receiver.backends.kafka.connection import KafkaConnection, limited, persistently
from receiver.backends.kafka.failures import ClusterFailed
from receiver.backends.kafka.limits import Lessons, Limits, Refused
from receiver.backends.kafka.producer import Transactional
from receiver.backends.kafka.records import output_records, partition_of
from receiver.backends.kafka.scan import tails
from receiver.backends.kafka.settlement import Tail
from receiver.core.dead_letter import fitting
from receiver.core.errors import Unavailable
from receiver.core.headers import TRACE
from receiver.core.message import Message

T = TypeVar("T")

_ANSWER_SECONDS_MAX = 30.0
#: Longer than a transaction's own limits, whose errors tell more.
_TRANSACTION_SECONDS_MAX = 60.0
#: A writer has one position for a whole topic, but a group keeps positions by partition.
_PARTITION = 0


class Writer:
    """Transactions under a name. After any failure only `close` may be called.

    `lessons` keeps for the next writer which records the cluster refuses. A refused dead letter is shortened; another
    record is left out, by its topic and its origin (`Lessons.left_out`).
    """

    def __init__(
        self, connection: KafkaConnection, name: str, dead_letters: str, limits: Limits, lessons: Lessons
    ) -> None:
        self._connection = connection
        self._name = name
        self._dead_letters = dead_letters
        self._limits, self._lessons = limits, lessons
        self._producer = Transactional(connection, name, limits)

    async def start(self) -> None:
        """End what was left open under this name, and fence other writers of it. Raises Unavailable."""
        await limited(self._producer.start(), _ANSWER_SECONDS_MAX, "Kafka does not answer")

    async def close(self) -> None:
        """Close the producer. What was not committed has no effect."""
        await self._producer.close()

    async def hanging(self, topic: str, behind: Callable[[Any], int]) -> Sequence[Tail]:
        """How the partitions of a topic end, if something hangs on any of them, else empty. Raises Unavailable.

        `behind` gives this writer's position behind the cause of a record, 0 for another writer's record.
        """
        partitions = await self._partitions(topic)
        ends = await limited(self._producer.ends(partitions), _ANSWER_SECONDS_MAX, f"no ends of {topic}")
        if not any(each.hangs for each in ends.values()):
            return ()
        return list((await tails(self._connection, ends, behind)).values())

    async def settle(self, topic: str, next_position: int, *, commits: bool) -> None:
        """End what hangs on a topic, if anything does, and commit a position. Raises Unavailable."""
        partitions = await self._partitions(topic)
        offsets = _offsets(topic, next_position)
        ends = await limited(self._producer.ends(partitions), _ANSWER_SECONDS_MAX, f"no ends of {topic}")
        since = {each: end for each, (_, end) in ends.items()}
        await self._known(self._producer.end(since, offsets if commits else {}, self._name, commits=commits), topic)
        await self._known(self._producer.commit((), offsets, self._name), topic)

    async def commit(self, topic: str, messages: Sequence[Message], next_position: int) -> None:
        """Write messages to a topic and the position behind their origins, or neither.

        Raises Unavailable; the outcome is unknown then.
        """
        partitions_count = len(await self._partitions(topic))
        await self._limits.read([topic])
        batches, written = self._batched(messages, partitions_count)
        began = time.monotonic()
        try:
            call = self._producer.commit(batches.filled, _offsets(topic, next_position), self._name)
            await self._known(call, topic)
        except Unavailable as error:
            await self._learn(error.__cause__, batches, written)
            raise
        self._lessons.effort.took(batches.bytes, time.monotonic() - began)

    async def _known(self, transaction: Awaitable[object], topic: str) -> None:
        await limited(transaction, _TRANSACTION_SECONDS_MAX, f"a transaction of {topic} failed")
        if self._producer.went_astray:
            raise ClusterFailed(f"a transaction of {topic} went astray")

    def _batched(self, messages: Sequence[Message], partitions_count: int) -> tuple[Batches, Sequence[Message]]:
        """The messages that can be written, and batches of them, marked by their places among these messages."""
        batches = Batches(self._limits, self._lessons)
        written = [self._fitting(each) for each in messages if origin_of(each) not in self._lessons.left_out]
        for mark, (message, record) in enumerate(zip(written, output_records(written), strict=True)):
            where = TopicPartition(message.topic, partition_of(message.key, partitions_count))
            if not batches.add(where, record, mark):
                self._lessons.leave_out(*origin_of(message))
        return batches, written

    def _fitting(self, message: Message) -> Message:
        if message.topic != self._dead_letters:
            return message
        return fitting(message, self._limits.batch_bytes_max(message.topic))

    async def _learn(self, error: BaseException | None, batches: Batches, written: Sequence[Message]) -> None:
        if isinstance(error, TimeoutError):
            self._lessons.too_slow()
        elif isinstance(error, Refused):
            mark = await batches.learn(error)
            if mark is not None:
                self._lessons.leave_out(*origin_of(written[mark]))

    async def _partitions(self, topic: str) -> Sequence[TopicPartition]:
        count = await limited(self._producer.partitions_count(topic), _ANSWER_SECONDS_MAX, f"no partitions of {topic}")
        return [TopicPartition(topic, each) for each in range(count)]


def _offsets(topic: str, next_position: int) -> Mapping[TopicPartition, OffsetAndMetadata]:
    return {TopicPartition(topic, _PARTITION): OffsetAndMetadata(next_position, "")}


def origin_of(message: Message) -> tuple[str, str]:
    """The topic of a record, and the trace of its notification, or its key if it has none."""
    return message.topic, dict(message.headers).get(TRACE, message.key)


async def positions(connection: KafkaConnection, name: str, topics: Sequence[str]) -> Mapping[str, int]:
    """A writer's committed positions, by topic. Raises Unavailable."""
    partitions = [TopicPartition(topic, _PARTITION) for topic in topics]
    async with connection.admin(_ANSWER_SECONDS_MAX) as admin:
        told = await _asked(partial(admin.list_consumer_group_offsets, name, partitions=partitions), name)
    return {each.topic: committed.offset for each, committed in told.items() if committed.offset >= 0}


async def members_count(connection: KafkaConnection, group: str) -> int:
    """The number of consumers that are members of a group now. Raises Unavailable."""
    async with connection.admin(_ANSWER_SECONDS_MAX) as admin:
        return await _asked(partial(_members_count, admin, group), group)


async def _members_count(admin: AIOKafkaAdminClient, group: str) -> int:
    (answer,) = await admin.describe_consumer_groups([group])
    ((code, _, _, _, _, members),) = answer.groups
    if code:
        raise for_code(code)
    return len(members)


async def _asked(ask: Callable[[], Awaitable[T]], group: str) -> T:
    return await limited(persistently(ask), _ANSWER_SECONDS_MAX, f"the group {group} can't be asked")
