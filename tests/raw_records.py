"""Record batches made by hand, with any content, and their way into a real partition."""

import asyncio
import random
import struct
from collections.abc import Sequence
from typing import NamedTuple, Self

from aiokafka import TopicPartition, codec
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import for_code
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.util import calc_crc32c, encode_varint

from receiver.backends.kafka.connection import KafkaConnection

_HEADER = struct.Struct(">qiibIhiqqqhii")
_ENCODERS = {0: bytes, 1: codec.gzip_encode, 2: codec.snappy_encode, 3: codec.lz4_encode, 4: codec.zstd_encode}
CODECS = tuple(_ENCODERS)


class Raw(NamedTuple):
    """A record whose header names are bytes."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[bytes, bytes | None]] = ()
    millis: int = 1_795_514_400_000


def batch(records: Sequence[Raw], compression: int = 0, base_offset: int = 0) -> bytes:
    """A batch of the newest format, with a right checksum."""
    first = records[0].millis
    body = b"".join(_record(record, number, first) for number, record in enumerate(records))
    return sealed(_ENCODERS[compression](body), len(records), compression, base_offset, first)


def sealed(body: bytes, count: int, attributes: int = 0, base_offset: int = 0, first_millis: int = 0) -> bytes:
    """A batch with a right checksum that claims `count` records, whatever it contains."""
    checked = struct.pack(">hiqqqhii", attributes, count - 1, first_millis, first_millis, -1, -1, -1, count) + body
    length = _HEADER.size - 12 + len(body)
    return struct.pack(">qiibI", base_offset, length, -1, 2, calc_crc32c(checked)) + checked


class Partition:
    """A way into a partition that avoids all checks of a client."""

    def __init__(self, connection: KafkaConnection, topic: str, partition: int = 0) -> None:
        self._producer = connection.producer()
        self._topic, self._partition = topic, partition

    async def __aenter__(self) -> Self:
        """Connect."""
        await self._producer.start()
        await self._producer.partitions_for(self._topic)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect."""
        await self._producer.stop()

    async def send(self, data: bytes) -> str:
        """Append a batch; returns the broker's error, empty if it took the batch."""
        client = self._producer.client
        while (refused := await self._sent(client, data)) == "NotLeaderForPartitionError":
            # The broker may not know a new topic yet.
            await client.force_metadata_update()
            await asyncio.sleep(0.05)
        return refused

    async def _sent(self, client: AIOKafkaClient, data: bytes) -> str:
        leader = client.cluster.leader_for_partition(TopicPartition(self._topic, self._partition))
        request = ProduceRequest(
            transactional_id=None, required_acks=-1, timeout=30_000, topics=[(self._topic, [(self._partition, data)])]
        )
        response = await client.send(leader, request)
        ((_, ((_, code, *_),)),) = response.topics
        return "" if code == 0 else str(for_code(code).__name__)


def flipped(data: bytes, chance: random.Random, first: int = 0) -> bytes:
    """The data with some bytes behind `first` changed, cut off, doubled or inserted."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at = chance.randrange(first, max(first + 1, len(changed)))
        match chance.randrange(4):
            case 0 if at < len(changed):
                changed[at] = chance.randrange(256)
            case 1:
                del changed[at : at + chance.choice((1, 1, 4, 100))]
            case 2:
                changed[at:at] = chance.randbytes(chance.choice((1, 1, 4, 100)))
            case _ if at < len(changed):
                changed[at] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _record(record: Raw, offset: int, first_millis: int) -> bytes:
    body = bytearray(1)
    _number(body, record.millis - first_millis)
    _number(body, offset)
    for field in (record.key, record.value):
        _field(body, field)
    _number(body, len(record.headers))
    for name, value in record.headers:
        _field(body, name)
        _field(body, value)
    size = bytearray()
    _number(size, len(body))
    return bytes(size + body)


def _field(into: bytearray, field: bytes | None) -> None:
    _number(into, -1 if field is None else len(field))
    into += field or b""


def _number(into: bytearray, number: int) -> None:
    encode_varint(number, into.append)
