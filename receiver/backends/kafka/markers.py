"""The markers of our own transactions in a partition, as proofs that a broker knows all that was there before.

A broker that is cut off from the controllers alone is deposed and does not know it: it goes on answering reads as the
leader that it was. KIP-207 guards against leaders that are too new, not against deposed ones.

    I    What a broker gives to readers is below its high watermark: all in-sync replicas have it, so the next leader
         has it too. So a deposed leader's records are right. Only the end that it tells is wrong, and with it every
         conclusion from that end. So records need no proof, and ends do.
    II   At the end of a transaction the coordinator writes a marker into each of its partitions. A deposed coordinator
         can't: it must first write the end into its own log, and answers once the in-sync replicas have it, which
         don't follow it any more. Nor can a deposed leader take the marker: the coordinator waits for the in-sync
         replicas there too, and then asks the true leader.
    III  So a marker of ours that is read lies behind all that was in the partition when its transaction began. A
         broker that tells an end behind our marker has all of that, whether it leads or not.

So an opened lane, which has taken its right by starting its producer, ends a transaction without records by another
producer, and believes no end that is not behind that marker. The lane's own producer can't be used: its marker would
end what hangs. A group's position is proven likewise: a coordinator that has just taken a position of ours, which is
never committed, has all that was committed before.

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
    """The producer of a marker: no other one has the same id and epoch."""

    producer_id: int
    epoch: int


def leader_of(client: Any, where: TopicPartition) -> int:  # noqa: ANN401  # aiokafka's
    """The id of a partition's leader, as far as the client knows. Raises LeaderNotAvailableError."""
    leader = client.cluster.leader_for_partition(where)
    if leader is None or leader < 0:
        raise LeaderNotAvailableError(where)
    return int(leader)


async def marker_offset(client: Any, where: TopicPartition, since: int, writer: Writer) -> int:  # noqa: ANN401
    """The offset of a writer's first marker at or behind an offset. Waits until a broker has it.

    Raises KafkaError; waits for ever, so the caller limits the time.
    """
    offset = since
    while True:
        try:
            data = await _fetched(client, where, offset)
        except KafkaError as error:
            if not error.retriable:
                raise
            await look_elsewhere(client)
            continue
        for head in heads(data):
            if head.is_control and (head.producer_id, head.producer_epoch) == writer and head.offset >= since:
                return head.offset
            offset = max(offset, head.next_offset)
        if not data:
            await look_elsewhere(client)  # a deposed leader never gets more


async def look_elsewhere(client: Any) -> None:  # noqa: ANN401  # aiokafka's
    """Have the client ask again for the leaders, and wait a moment: a deposed leader has no newer answer."""
    client.force_metadata_update()
    await asyncio.sleep(_RETRY_SECONDS)


async def _fetched(client: Any, where: TopicPartition, offset: int) -> bytes:  # noqa: ANN401  # aiokafka's
    """The bytes of a partition's log from an offset on; empty if there are none yet."""
    wanted = [(where.topic, [(where.partition, offset, _BYTES_MAX)])]
    request = FetchRequest(_WAIT_MILLIS, 1, _BYTES_MAX, _UNCOMMITTED, wanted)
    answer = await client.send(leader_of(client, where), request)
    ((_, ((_, code, *_, data),)),) = answer.topics
    if code:
        raise for_code(code)
    return bytes(data or b"")
