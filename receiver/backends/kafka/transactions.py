"""Records and how far their writer came, in one transaction; and what Kafka knows of a group.

It is for writers that are no lane. The name of one is its transactional id, and the group that keeps its positions, one
for each topic that it writes to. Whoever starts under the same name ends what was left open, and shuts out whoever is
at work still. So a writer first starts, then asks where it stood, and then goes on from there.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import for_code
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import OffsetAndMetadata

from receiver.backends.kafka.connection import Connection, limited, persistently
from receiver.backends.kafka.records import output_records, partition_of
from receiver.backends.kafka.transactional import COMMIT_SECONDS_MAX, Transactional
from receiver.errors import Unavailable
from receiver.message import Message

T = TypeVar("T")

_ANSWER_SECONDS_MAX = 30.0
#: A position is a writer's own, and of the whole topic; but a group keeps it for a partition.
_PARTITION = 0


class Writer:
    """Transactions under a name. After anything failed it is not used again, but for `close`."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._name = name
        self._producer = Transactional(connection, name)

    async def start(self) -> None:
        """End what was left open under this name, and let nobody else go on with it. Raises Unavailable."""
        await limited(self._producer.start(), _ANSWER_SECONDS_MAX, "Kafka does not answer")

    async def close(self) -> None:
        """What was not committed is nowhere."""
        await self._producer.close()

    async def commit(self, topic: str, messages: Sequence[Message], next_position: int) -> None:
        """Write messages to a topic, and the position behind what they came from, or neither.

        Raises Unavailable; nobody can tell then whether it was done.
        """
        call = self._transact(topic, messages, next_position)
        await limited(call, COMMIT_SECONDS_MAX, f"a transaction of {topic} failed")
        if self._producer.went_astray:
            raise Unavailable(f"a transaction of {topic} went astray", reason="kafka")

    async def _transact(self, topic: str, messages: Sequence[Message], next_position: int) -> None:
        partitions_count = await self._producer.partitions_count(topic)
        batches: dict[int, list[BatchBuilder]] = {}
        for message, record in zip(messages, output_records(messages), strict=True):
            self._producer.add(record, batches.setdefault(partition_of(message.key, partitions_count), []))
        sending = [(TopicPartition(topic, each), batch) for each, some in batches.items() for batch in some]
        offsets = {TopicPartition(topic, _PARTITION): OffsetAndMetadata(next_position, "")}
        await self._producer.commit(sending, offsets, self._name)


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
    return await limited(persistently(ask), _ANSWER_SECONDS_MAX, f"the group {group} can't be asked")
