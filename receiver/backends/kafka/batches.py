"""Batches of records that fit their topics' limits on bytes and timestamps."""

from typing import NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import InvalidTimestampError
from aiokafka.producer.message_accumulator import BatchBuilder

from receiver.backends.kafka.limits import BATCH_BYTES_MAX, TOO_LARGE, Lessons, Limits, Refused, Window
from receiver.backends.kafka.records import RawRecord

_NO_COMPRESSION = 0


class Filled(NamedTuple):
    """A batch for a partition.

    `marks` are the writer's marks of its records; `window` has the times that the topic takes.
    """

    where: TopicPartition
    builder: BatchBuilder
    marks: list[int]
    window: Window
    records_max: int

    @property
    def size(self) -> int:
        """The bytes of the batch, its own header included."""
        size: int = self.builder.size()
        return size


class Batches:
    """The batches of a transaction, in the order of their records."""

    def __init__(self, limits: Limits, lessons: Lessons) -> None:
        self.filled: list[Filled] = []
        self._limits = limits
        self._lessons = lessons
        self._last: dict[TopicPartition, Filled] = {}

    @property
    def bytes(self) -> int:
        """The bytes of all batches together."""
        return sum(each.size for each in self.filled)

    def add(self, where: TopicPartition, record: RawRecord, mark: int) -> bool:
        """Put a record into the last batch of its partition, or a new one. False: it is too large for its topic."""
        last = self._last.get(where)
        if last is None or len(last.marks) >= last.records_max or not _added(last, record):
            bytes_max = self._limits.batch_bytes_max(where.topic)
            empty = builder(min(bytes_max, BATCH_BYTES_MAX), transactional=True)
            window, records_max = self._limits.window(where.topic), self._lessons.records_max(where.topic)
            last = Filled(where, empty, [], window, records_max)
            _added(last, record)
            if last.size > bytes_max:
                return False
            self._last[where] = last
            self.filled.append(last)
        last.marks.append(mark)
        return True

    async def learn(self, refused: Refused) -> int | None:
        """Learn from a refusal, so that the next batches are other ones.

        Returns the mark of the record that can't be written at all, None if there is something left to try.
        """
        batch = self.filled[refused.number]
        topic, count = batch.where.topic, len(batch.marks)
        await self._limits.read([topic], age_seconds_max=0)
        if isinstance(refused.error, TOO_LARGE):
            self._limits.too_large(topic, batch.size, count)
        elif isinstance(refused.error, InvalidTimestampError) and self._limits.mistimed(topic, batch.window):
            pass
        elif count > 1:
            self._lessons.cut(topic, count)
        else:
            return batch.marks[0]
        return None

    def described(self, refused: Refused) -> str:
        """The refusal in words."""
        batch = self.filled[refused.number]
        return f"{batch.where.topic} refuses a batch of {len(batch.marks)}: {refused}"


def builder(bytes_max: int, *, transactional: bool) -> BatchBuilder:
    """An empty batch for up to `bytes_max` bytes of records. A first record of any size fits."""
    return BatchBuilder(bytes_max, _NO_COMPRESSION, is_transactional=int(transactional))


def _added(batch: Filled, record: RawRecord) -> bool:
    key, value, millis, headers = record
    begin_millis, end_millis, _ = batch.window
    if not begin_millis <= millis <= end_millis:
        millis = batch.window.clamped(millis)
    return batch.builder.append(timestamp=millis, key=key, value=value, headers=headers) is not None
