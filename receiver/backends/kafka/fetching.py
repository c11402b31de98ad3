"""A change to aiokafka's consumers: no content of a partition stops them.

aiokafka fails on a whole batch for one bad record, again at each attempt, and all records behind it wait. So the reader
below reads a batch that aiokafka failed on, record by record; all other batches are read as fast as before.

- In a header's name that is not UTF-8 (no broker checks that), wrong bytes are replaced.
- A record that can't be read is replaced by one whose value is its bytes, without a key, with the header `unreadable`
  that says why. So a lane keeps it as a dead letter, like all that is no notification.
- A batch with a wrong checksum may have been damaged on its way. It is fetched again, a few times, before it counts as
  unreadable.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from aiokafka import codec
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException, KafkaError
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from aiokafka.record.util import decode_varint_py as decode_varint  # the compiled one reads beyond the end
from aiokafka.structs import ConsumerRecord, TopicPartition

#: The header of a record that could not be read.
UNREADABLE = "unreadable"

#: An unreadable batch or record is cut to the longest body of a dead letter.
_BYTES_MAX = 512 * 1024
#: A batch with a wrong checksum is fetched this many times: one that was damaged on its way arrives whole then.
_FETCHES_MAX = 4
#: More records than any producer puts into a batch.
_OFFSETS_MAX = 1_000_000
#: At most this many batches with a wrong checksum are remembered.
_DAMAGED_MAX = 1_000

#: BaseOffset and Length in all formats; then, in version 2, PartitionLeaderEpoch, Magic, CRC, Attributes,
#: LastOffsetDelta, FirstTimestamp, MaxTimestamp, ProducerId, ProducerEpoch, BaseSequence, and the number of records.
_OVERHEAD = struct.Struct(">qi")
_HEADER = struct.Struct(">qiibIhiqqqhii")
_CHECKED_FROM = 21  # the CRC covers all from Attributes on
_MAGIC = 2
_LOG_APPEND_TIME = 0x08
_CONTROL = 0x20
_DECODERS = {1: codec.gzip_decode, 2: codec.snappy_decode, 3: codec.lz4_decode, 4: codec.zstd_decode}

_NONE: Iterator[ConsumerRecord] = iter(())

_damaged: dict[tuple[TopicPartition, int], int] = {}


class Head(NamedTuple):
    """A batch of a log: its first offset, the offset behind it, its producer. `is_control`: it ends a transaction."""

    offset: int
    next_offset: int
    is_control: bool
    producer_id: int
    producer_epoch: int


def heads(data: bytes) -> Iterator[Head]:
    """The heads of the batches in fetched data, without a batch that is cut off at the end."""
    at = 0
    while at + _HEADER.size <= len(data):
        end = at + _OVERHEAD.size + _OVERHEAD.unpack_from(data, at)[1]
        if not at < end <= len(data):
            return
        batch = data[at:end]
        offset, magic, producer_id, epoch = (_HEADER.unpack_from(batch)[each] for each in (0, 3, 9, 10))
        yield Head(offset, _next_offset(batch), magic >= _MAGIC and _is_control(batch), producer_id, epoch)
        at = end


class Batches:
    """aiokafka's MemoryRecords, which also knows the bytes of the last batch that was asked for."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._records = MemoryRecords(data)
        self._start = self._end = 0

    def has_next(self) -> bool:
        """See MemoryRecords."""
        return bool(self._records.has_next())

    def size_in_bytes(self) -> int:
        """See MemoryRecords."""
        return len(self._data)

    def next_batch(self) -> Any:  # noqa: ANN401  # aiokafka's
        """See MemoryRecords."""
        _, length = _OVERHEAD.unpack_from(self._data, self._end)
        self._start, self._end = self._end, self._end + _OVERHEAD.size + length
        return self._records.next_batch()

    def last(self) -> bytes:
        """The bytes of the last batch that was asked for."""
        return bytes(memoryview(self._data)[self._start : self._end])

    def next_offset(self) -> int:
        """The offset behind that batch. If it is damaged, the next batch's first offset is more reliable and taken."""
        batch = self.last()
        if not _is_whole(batch) and self.has_next():
            return int(_OVERHEAD.unpack_from(self._data, self._end)[0])
        return _next_offset(batch)

    def rest(self) -> "Batches":
        """The batches behind it."""
        return Batches(bytes(memoryview(self._data)[self._end :]))


class _FetchAgain(CorruptRecordException):  # type: ignore[misc]  # aiokafka has no types
    """Fetched again, the batch may be whole."""


class Records(fetcher.PartitionRecords):  # type: ignore[misc]  # aiokafka has no types
    """The records of a fetched partition. None stops those behind it."""

    next_fetch_offset: int
    _records: "Batches"
    _records_iterator: Iterator[ConsumerRecord] | None

    def __init__(self, tp: TopicPartition, *arguments: Any) -> None:  # noqa: ANN401  # aiokafka's
        super().__init__(tp, *arguments)
        self._began = self.next_fetch_offset

    def __next__(self) -> ConsumerRecord:
        """The next record, in order of their offsets."""
        try:
            return next(self._records_iterator or _NONE)
        except StopIteration:
            self._records_iterator = None  # as aiokafka does, which breaks a cycle
            raise
        except _FetchAgain:
            raise
        except Exception as error:  # noqa: BLE001  # a foreign record may raise anything in a parser
            self._records_iterator = self._recovered(self._records.last(), error)
        return next(self)

    def _recovered(self, batch: bytes, error: Exception) -> Iterator[ConsumerRecord]:
        """The records of a batch that aiokafka failed on, and those of the batches behind it."""
        base_offset = _OVERHEAD.unpack_from(batch)[0]
        if not _is_whole(batch):
            if self.next_fetch_offset > self._began:
                return  # the records before it come first; then it is fetched again, first of its fetch
            if not _is_damaged_for_good(self._tp, base_offset):
                raise _FetchAgain(f"{self._tp} at {self.next_fetch_offset} is damaged: {error}")
            yield self._unreadable(batch, "damaged: its checksum is wrong")
        else:
            yield from self._read_again(batch)
        self.next_fetch_offset = max(self.next_fetch_offset, self._records.next_offset())
        self._records = self._records.rest()
        yield from self._unpack_records()

    def _read_again(self, batch: bytes) -> Iterator[ConsumerRecord]:
        if _is_control(batch):
            return
        try:
            for record in _records_of(self._tp, batch):
                if record.offset >= self.next_fetch_offset:
                    self.next_fetch_offset = record.offset + 1
                    yield record
        except Exception as error:  # noqa: BLE001  # as above
            if self.next_fetch_offset < _next_offset(batch):
                yield self._unreadable(batch, f"no record: {type(error).__name__}")

    def _unreadable(self, batch: bytes, why: str) -> ConsumerRecord:
        record = _unreadable(self._tp, self.next_fetch_offset, batch, why)
        self.next_fetch_offset += 1
        return record


def unreadable(record: ConsumerRecord) -> str:
    """Why a record could not be read, in words; empty for a readable one."""
    return next((value or b"" for name, value in record.headers if name == UNREADABLE), b"").decode(errors="replace")


def _records_of(where: TopicPartition, batch: bytes) -> Iterator[ConsumerRecord]:
    """The records of a batch, one by one, each bad one replaced by an unreadable one. Raises any error of decoding."""
    base_offset, _, _, _, _, attributes, _, first_millis, max_millis, _, _, _, count = _HEADER.unpack_from(batch)
    data = bytearray(batch[_HEADER.size :])
    if decode := _DECODERS.get(attributes & 0x07):
        data = bytearray(decode(bytes(data)))
    at, offset = 0, base_offset - 1
    for _ in range(count):
        size, start = decode_varint(data, at)
        at = start + size
        if size <= 0 or at > len(data):
            raise CorruptRecordException("a record ends behind its batch")
        record = data[start:at]
        try:
            offset_delta, millis_delta, key, value, headers = _fields(record)
        except (IndexError, ValueError, KafkaError, struct.error) as error:
            offset += 1
            yield _unreadable(where, offset, bytes(record), f"no record: {type(error).__name__}")
            continue
        offset = base_offset + offset_delta
        millis = max_millis if attributes & _LOG_APPEND_TIME else first_millis + millis_delta
        yield _record(where, offset, millis, (key, value), headers)


def _fields(record: bytearray) -> tuple[int, int, bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]:
    """The delta of a record's offset, that of its timestamp in ms, its key, its value, and its headers."""
    _, at = decode_varint(record, 0)
    millis_delta, at = decode_varint(record, at)
    offset_delta, at = decode_varint(record, at)
    key, at = _field(record, at)
    value, at = _field(record, at)
    count, at = decode_varint(record, at)
    headers = []
    for _ in range(count):
        name, at = _field(record, at)
        text, at = _field(record, at)
        headers.append(((name or b"").decode(errors="replace"), text))
    if at != len(record) or count < 0:
        raise CorruptRecordException("a record that ends elsewhere")
    return offset_delta, millis_delta, key, value, headers


def _field(record: bytearray, at: int) -> tuple[bytes | None, int]:
    size, at = decode_varint(record, at)
    if size < 0:
        return None, at
    if at + size > len(record):
        raise CorruptRecordException("a field that ends behind its record")
    return bytes(record[at : at + size]), at + size


def _record(
    where: TopicPartition,
    offset: int,
    millis: int,
    content: tuple[bytes | None, bytes | None],
    headers: Sequence[tuple[str, bytes | None]],
) -> ConsumerRecord:
    sizes = (-1 if each is None else len(each) for each in content)
    return ConsumerRecord(where.topic, where.partition, offset, millis, 0, *content, None, *sizes, tuple(headers))


def _unreadable(where: TopicPartition, offset: int, data: bytes, why: str) -> ConsumerRecord:
    return _record(where, offset, -1, (None, data[:_BYTES_MAX]), [(UNREADABLE, why.encode())])


def _is_whole(batch: bytes) -> bool:
    """Whether a batch has the format of version 2 and a right checksum."""
    if len(batch) < _HEADER.size:
        return False
    header = _HEADER.unpack_from(batch)
    return bool(header[3] == _MAGIC and header[4] == calc_crc32c(batch[_CHECKED_FROM:]))


def _is_control(batch: bytes) -> bool:
    return bool(_HEADER.unpack_from(batch)[5] & _CONTROL)


def _next_offset(batch: bytes) -> int:
    """The offset behind a batch, as far as it can be known."""
    base_offset = _OVERHEAD.unpack_from(batch)[0]
    if len(batch) < _HEADER.size:
        return int(base_offset) + 1
    header = _HEADER.unpack_from(batch)
    is_likely = header[3] >= _MAGIC and 0 <= header[6] < _OFFSETS_MAX
    return int(base_offset) + 1 + (header[6] if is_likely else 0)


def _is_damaged_for_good(where: TopicPartition, base_offset: int) -> bool:
    """Count a fetch of a damaged batch. Whether that was the last attempt."""
    fetches = _damaged.pop((where, base_offset), 0) + 1
    _damaged[where, base_offset] = fetches
    while len(_damaged) > _DAMAGED_MAX:
        del _damaged[next(iter(_damaged))]
    return fetches >= _FETCHES_MAX


def install() -> None:
    """Let every consumer of this process read like this."""
    fetcher.MemoryRecords = Batches
    fetcher.PartitionRecords = Records
