"""What an edge appended twice, as its answer was lost.

An edge that does not learn what became of a batch appends all of it again, with the same bytes and headers down to the
microsecond of its receipt: nothing else is like that, for an edge takes equal elements of one request for one. The
second one of such a pair has no effect, whatever its session remembers.
"""

from aiokafka import TopicPartition

from receiver.backends.kafka.connection import KafkaConnection
from receiver.backends.kafka.limits import BATCH_BYTES_MAX
from receiver.backends.kafka.records import FetchedRecord
from receiver.backends.kafka.scan import beginning_of, between, reading
from receiver.core.headers import RECEIVED_AT

#: Most records that are remembered; as many before them may be, too. A batch, which is what one lost answer brings
#: twice, has 9,000 of the shortest at most.
REPEATS_MAX = 16_384
#: Of those before a position so many are read again, and then four times as many. Twice what a batch has is enough.
_RECALL_FIRST = 256
_RECALL_BYTES_MAX = 2 * BATCH_BYTES_MAX


class Repeats:
    """The last records of a partition of the inbox, by what is in them: so many, and at most as many again."""

    def __init__(self) -> None:
        self._newer: dict[int, int] = {}
        self._older: dict[int, int] = {}

    def has(self, record: FetchedRecord) -> bool:
        """Whether the record stands before itself in the partition; else it is remembered.

        Digests have 64 bits, with a key of this process: among so many the chance of two alike is one in 10^14.
        """
        headers = record.headers
        if len(headers) < 2 or headers[1][0] != RECEIVED_AT:  # noqa: PLR2004  # another program's, which may mean it
            return False
        digest, offset = hash((record.key, record.value, tuple(headers))), record.offset
        found = self._newer.get(digest)
        if found is None:
            found = self._older.get(digest)
        if found is not None:
            return found < offset  # else it is read again
        if len(self._newer) >= REPEATS_MAX:
            self._older, self._newer = self._newer, {}
        self._newer[digest] = offset
        return False


async def recalled(connection: KafkaConnection, inbox: TopicPartition, position: int) -> Repeats:
    """What was read last before a position. Raises Unavailable."""
    repeats = Repeats()
    upto, count, bytes_found = position, _RECALL_FIRST, 0
    async with reading(connection, "read_committed") as consumer:
        begin = await beginning_of(consumer, inbox)
        while begin < upto and count <= REPEATS_MAX and bytes_found < _RECALL_BYTES_MAX:
            at = max(begin, position - count)
            async for each in between(consumer, inbox, at, upto):
                repeats.has(each)
                bytes_found += len(each.value or b"") + sum(len(value or b"") for _, value in each.headers)
            upto, count = at, 4 * count
    return repeats
