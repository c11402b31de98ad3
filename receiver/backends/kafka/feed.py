"""The next records of a partition of the inbox, and where the partition ends.

The consumer may read from a deposed leader, which never gets another record. So the consumer asks for the leader again
and again, and another client asks where the partition ends. Records that are there but don't arrive are reported.
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
#: While no record arrives, a lane asks at this interval where its inbox ends.
_LOOK_SECONDS = 3.0
#: A deposed leader may have less than was read before; within this time another broker is asked.
_OUTSIDE_SECONDS_MAX = 3.0


class Feed:
    """The records of a partition behind a position, batch by batch. Make it with `opened`, and `close` it.

    `end` is the last known end of the partition. All before `reached` was read, including markers of transactions,
    which are no records. `broker` is the id of the broker that sent the last batch.
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
        """A feed without a position; `begin` gives it one. Raises Unavailable."""
        consumer = connection.consumer(
            # A position that is not in the log is a doubt; the client must not begin elsewhere by itself.
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
        """Close the consumer, and free what it fetched."""
        await end_consumer(self._consumer)

    async def bounds(self) -> tuple[int, int]:
        """Where the partition begins and ends, as told by a broker that may be a deposed leader. Raises Unavailable."""
        begins = await self._soon(self._consumer.beginning_offsets([self._inbox]))
        ends = await self._soon(self._consumer.end_offsets([self._inbox]))
        return begins[self._inbox], ends[self._inbox]

    def begin(self, position: int) -> None:
        """Set the first position."""
        self.reached = position
        self._consumer.assign([self._inbox])
        self._consumer.seek(self._inbox, position)

    def lag(self, committed: int, read_up_to: int) -> int:
        """The number of notifications that are not committed, as far as is known."""
        # Markers that were read behind the last notification don't count.
        begin = self.reached if committed == read_up_to else committed
        return max(self.end, self._consumer.highwater(self._inbox) or 0, self.reached) - begin

    @property
    def stalls(self) -> tuple[str, float]:
        """Which records don't arrive, in words for an operator, and for how many seconds; if none, empty and 0."""
        if not self._stalled_since:
            return "", 0.0
        return f"no record arrives from {self.reached} of {self.end} on", time.monotonic() - self._stalled_since

    async def next(self, count_max: int, end: int | None) -> Sequence[Any]:
        """The records from `reached` on, and before `end` if it is given; none if none arrived in a while.

        Raises LaneLost if `reached` is outside the log, or if existing records don't arrive. Raises Unavailable.
        """
        consumer, begin = self._consumer, self.reached
        if await self._soon(consumer.position(self._inbox)) != begin:
            consumer.seek(self._inbox, begin)
        consumer.resume(self._inbox)
        records = await self._fetched(count_max)
        self.broker = self._client.cluster.leader_for_partition(self._inbox)
        self.reached = await self._soon(consumer.position(self._inbox))
        if records and len(records) < count_max:
            # The client would fetch the few records of now at once, and hold them until the next batch. That would be
            # small and old, while more records wait in Kafka. Paused, it fetches all of them when they are wanted.
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
            if time.monotonic() - self._outside_since > _OUTSIDE_SECONDS_MAX:  # the next opening finds out why
                raise LaneLost(f"{self._inbox.topic} has nothing at {self.reached}") from error
            self._client.force_metadata_update()
            await asyncio.sleep(_POLL_MILLIS / 1000)
            return ()
        return records

    async def _look_for_the_end(self) -> None:
        """Ask now and then whether records exist that don't arrive. Raises LaneLost if that lasts."""
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
