"""What comes next in a partition of the inbox, and how far it goes.

The consumer may take a broker for the leader that was deposed, and such a one has nothing more to tell, for as long as
it is asked. So the consumer asks again and again who leads, and how far the partition goes is asked of somebody else.
What stands there and is not brought is told.
"""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import Any, Self, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from receiver.backends.kafka.connection import KafkaConnection, end_consumer, limited
from receiver.backends.kafka.limits import Lessons
from receiver.backends.kafka.producer import Transactional
from receiver.backends.kafka.scan import STUCK_SECONDS
from receiver.core.errors import Unavailable
from receiver.inbox import LaneLost

T = TypeVar("T")

_ANSWER_SECONDS_MAX = 30.0
_POLL_MILLIS = 100
#: So often a lane that nothing comes to asks where its inbox ends.
_LOOK_SECONDS = 3.0
#: A leader that was deposed has less than was read before; within this time another one is asked.
_OUTSIDE_SECONDS_MAX = 3.0


class Feed:
    """The records of a partition behind a position, one batch after the other. Make it with `opened`, and `close` it.

    `end` is where the partition ends, as far as is known. What is before `reached` was read: behind the last record
    there may be ends of transactions, which are no records. `broker` brought the last batch.
    """

    def __init__(
        self, consumer: AIOKafkaConsumer, producer: Transactional, inbox: TopicPartition, lessons: Lessons
    ) -> None:
        self.end = self.reached = 0
        self.broker: int | None = None
        self._consumer, self._producer, self._inbox, self._lessons = consumer, producer, inbox, lessons
        self._client = consumer._client  # noqa: SLF001
        self._looked_at = self._stalled_since = self._outside_since = 0.0

    @classmethod
    async def opened(
        cls, connection: KafkaConnection, producer: Transactional, inbox: TopicPartition, lessons: Lessons
    ) -> Self:
        """A feed that is nowhere yet. Raises Unavailable."""
        consumer = connection.consumer(
            # A position that is not in the log is a doubt, and no reason to begin elsewhere.
            auto_offset_reset="none",
            fetch_max_bytes=lessons.fetch_bytes_max,
            max_partition_fetch_bytes=lessons.fetch_bytes_max,
        )
        found = cls(consumer, producer, inbox, lessons)
        try:
            await found._soon(consumer.start())
        except BaseException:
            await found.close()
            raise
        return found

    async def close(self) -> None:
        """Let go of what was fetched."""
        await end_consumer(self._consumer)

    async def bounds(self) -> tuple[int, int]:
        """Where the partition begins and ends, as a broker tells it that may lead it no more. Raises Unavailable."""
        begins = await self._soon(self._consumer.beginning_offsets([self._inbox]))
        ends = await self._soon(self._consumer.end_offsets([self._inbox]))
        return begins[self._inbox], ends[self._inbox]

    def begin(self, position: int) -> None:
        """Stand at a position, at first."""
        self.reached = position
        self._consumer.assign([self._inbox])
        self._consumer.seek(self._inbox, position)

    def lag(self, committed: int, read_up_to: int) -> int:
        """How many notifications are not committed, as far as is known."""
        # What was read and is no notification is not waited for.
        begin = self.reached if committed == read_up_to else committed
        return max(self.end, self._consumer.highwater(self._inbox) or 0, self.reached) - begin

    @property
    def stalls(self) -> tuple[str, float]:
        """What is there and is not brought, in words for an operator, and for how many seconds; else empty and 0."""
        if not self._stalled_since:
            return "", 0.0
        return f"nothing comes from {self.reached} of {self.end} on", time.monotonic() - self._stalled_since

    async def next(self, count_max: int, end: int | None) -> Sequence[Any]:
        """The records from `reached` on, and before `end` where it is given; none where none came in a while.

        Raises LaneLost where the partition has nothing there, or does not bring what it has. Raises Unavailable.
        """
        consumer, begin = self._consumer, self.reached
        if await self._soon(consumer.position(self._inbox)) != begin:
            consumer.seek(self._inbox, begin)
        consumer.resume(self._inbox)
        records = await self._fetched(count_max)
        self.broker = self._client.cluster.leader_for_partition(self._inbox)
        self.reached = await self._soon(consumer.position(self._inbox))
        if records and len(records) < count_max:
            # The client would fetch at once what little has come by now, and hold it until the next batch, which then
            # is as old as that, and more is waiting in Kafka. Paused, it fetches all when it is time.
            consumer.pause(self._inbox)
        records = [each for each in records if each.offset >= begin]
        if end is not None and self.reached > end:
            records = [each for each in records if each.offset < end]
            self.reached = records[-1].offset + 1 if records else end
        if records or self.reached > begin:
            self._stalled_since = self._outside_since = 0.0
        else:
            await self._look_for_the_end()
        return records

    async def _fetched(self, count_max: int) -> Sequence[Any]:
        polling = self._consumer.getmany(self._inbox, timeout_ms=_POLL_MILLIS, max_records=count_max)
        try:
            records: Sequence[Any] = (await self._soon(polling, "read")).get(self._inbox, ())
        except Unavailable as error:
            if not isinstance(error.__cause__, OffsetOutOfRangeError):
                raise
            self._outside_since = self._outside_since or time.monotonic()
            if time.monotonic() - self._outside_since > _OUTSIDE_SECONDS_MAX:  # whoever opens it next finds out why
                raise LaneLost(f"{self._inbox.topic} has nothing at {self.reached}") from error
            self._client.force_metadata_update()
            await asyncio.sleep(_POLL_MILLIS / 1000)
            return ()
        return records

    async def _look_for_the_end(self) -> None:
        """Ask now and then whether there is something that the consumer doesn't bring. Raises LaneLost."""
        now = time.monotonic()
        if now - self._looked_at > _LOOK_SECONDS:
            self._looked_at = now
            self.end = (await self._soon(self._producer.ends([self._inbox])))[self._inbox].end
        if self.end <= self.reached:
            self._stalled_since = 0.0
            return
        self._stalled_since = self._stalled_since or now
        if now - self._stalled_since > STUCK_SECONDS:
            self._lessons.too_slow()
            why = f"the consumer is stuck at {self.reached} of {self.end}"
            raise LaneLost(f"partition {self._inbox.partition}: {why}")

    async def _soon(self, call: Awaitable[T], what: str = "asked") -> T:
        return await limited(call, _ANSWER_SECONDS_MAX, f"partition {self._inbox.partition} can't be {what}")
