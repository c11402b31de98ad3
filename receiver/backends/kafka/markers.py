"""The ends of our own transactions in a partition, as proofs that who tells of it knows all that was there before.

A broker that is cut off from the controllers, and from nothing else, is deposed and doesn't know: it goes on answering
reads as the leader that it was. KIP-207 guards against leaders that are too new, not against such ones.

    I    What a broker gives to readers is below its high watermark: all replicas in sync have it, so the next leader
         has it too. A deposed leader tells the beginning of the truth. Only where it says that a partition ends is
         wrong, and with it all that is concluded from an end. So records need no proof, and ends do.
    II   Who ends a transaction has the coordinator write a marker into each of its partitions. A deposed coordinator
         can't: it has to write the end into its own log first, and answers once the replicas in sync have it, which
         don't follow it any more. Nor can a deposed leader take the marker: the coordinator waits for the replicas in
         sync there too, and goes on to the leader that is one.
    III  So our marker, once it is read, lies behind all that was in the partition when its transaction was begun. A
         broker that says that the partition ends behind our marker has all of that, whoever leads.

A lane of which the right was taken from its owner before, by starting its producer, therefore ends a transaction that
has no records, of another producer, and believes no end that is not behind its marker. The lane's own producer can't
do it: its marker would end what hangs. A group's position is proven likewise: a coordinator that has just taken a
position of ours, which is never committed, has all that was committed before.

None of this holds where a leader is elected uncleanly, which `topics check` warns of.
"""

import asyncio
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, LeaderNotAvailableError, for_code
from aiokafka.protocol.fetch import FetchRequest

from receiver.backends.kafka.fetching import heads

_WAIT_MILLIS = 20
_RETRY_SECONDS = 0.1
_BYTES_MAX = 1 << 20
_UNCOMMITTED = 0


class Writer(NamedTuple):
    """Whose markers these are: no other producer has the same id and epoch."""

    producer_id: int
    epoch: int


def leader_of(client: Any, where: TopicPartition) -> int:  # noqa: ANN401  # aiokafka's
    """Who leads a partition, as far as the client knows. Raises LeaderNotAvailableError."""
    leader = client.cluster.leader_for_partition(where)
    if leader is None or leader < 0:
        raise LeaderNotAvailableError(where)
    return int(leader)


async def marker_offset(client: Any, where: TopicPartition, since: int, writer: Writer) -> int:  # noqa: ANN401
    """The offset of the first marker of a writer at or behind an offset, once a broker has it.

    Raises KafkaError; waits for ever, so the caller limits the time.
    """
    offset = since
    while True:
        try:
            data = await _fetched(client, where, offset)
        except KafkaError as error:
            if not error.retriable:
                raise
            await _look_elsewhere(client)
            continue
        for head in heads(data):
            if head.is_control and (head.producer_id, head.producer_epoch) == writer and head.offset >= since:
                return head.offset
            offset = max(offset, head.next_offset)
        if not data:
            await _look_elsewhere(client)  # it may be a deposed one that has nothing more to tell


async def _look_elsewhere(client: Any) -> None:  # noqa: ANN401  # aiokafka's
    client.force_metadata_update()
    await asyncio.sleep(_RETRY_SECONDS)


async def _fetched(client: Any, where: TopicPartition, offset: int) -> bytes:  # noqa: ANN401  # aiokafka's
    """What a partition has from an offset on, as it lies in the log; empty where there is nothing yet."""
    wanted = [(where.topic, [(where.partition, offset, _BYTES_MAX)])]
    request = FetchRequest(_WAIT_MILLIS, 1, _BYTES_MAX, _UNCOMMITTED, wanted)
    answer = await client.send(leader_of(client, where), request)
    ((_, ((_, code, *_, data),)),) = answer.topics
    if code:
        raise for_code(code)
    return bytes(data or b"")
