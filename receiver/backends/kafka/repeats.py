"""Notifications that an edge appended twice because the answer was lost.

An edge that does not learn the outcome of a batch appends all of it again, with the same bytes and headers down to the
microsecond of receipt. No other records are equal like that, since an edge counts equal elements of one request once.
The second record of such a pair has no effect, whatever its session remembers.
"""

from aiokafka import TopicPartition

from receiver.backends.kafka.connection import KafkaConnection
from receiver.backends.kafka.limits import BATCH_BYTES_MAX
from receiver.backends.kafka.records import FetchedRecord
from receiver.backends.kafka.scan import beginning_of, between, reading
from receiver.core.headers import RECEIVED_AT

#: At least this many of the last records are remembered, and up to twice as many. A lost answer repeats one batch, with
#: 9,000 of the shortest records at most.
REPEATS_MAX = 16_384
#: An opened lane reads this many records before its position again, then four times as many, and so on until they have
#: twice the bytes of a batch.
_RECALL_FIRST = 256
_RECALL_BYTES_MAX = 2 * BATCH_BYTES_MAX


class Repeats:
    """The last records of a partition of the inbox, by content: at least REPEATS_MAX, at most twice as many."""

    def __init__(self) -> None:
        self._newer: dict[int, int] = {}
        self._older: dict[int, int] = {}

    def has(self, record: FetchedRecord) -> bool:
        """Whether an equal record stands before this one in the partition. If not, this one is remembered.

        Digests have 64 bits, with a key of this process: the chance that a record equals another's is one in 10^14.
        """
        headers = record.headers
        if len(headers) < 2 or headers[1][0] != RECEIVED_AT:  # noqa: PLR2004  # another program's, on purpose
            return False
        digest, offset = hash((record.key, record.value, tuple(headers))), record.offset
        found = self._newer.get(digest)
        if found is None:
            found = self._older.get(digest)
        if found is not None:
            return found < offset  # an equal offset: this very record is read again
        if len(self._newer) >= REPEATS_MAX:
            self._older, self._newer = self._newer, {}
        self._newer[digest] = offset
        return False


async def recalled(connection: KafkaConnection, inbox: TopicPartition, position: int) -> Repeats:
    """The last records before a position. Raises Unavailable."""
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
