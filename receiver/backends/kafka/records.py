"""Notifications and messages as Kafka records, and where they go. Pure.

Keys are UTF-8 text, headers are text. A record goes to the partition that the Java client would choose for its key, so
that Kafka Streams and Flink find topics with the same number of partitions co-partitioned.
"""

from collections.abc import Iterable, Iterator, Sequence
from struct import unpack_from
from typing import NamedTuple, Protocol

from receiver import rfc3339
from receiver.message import Message, Record
from receiver.notification import Notification

_SEED = 0x9747B28C
_MULTIPLIER = 0x5BD1E995
_MASK = 0xFFFFFFFF


class RawRecord(NamedTuple):
    """What a producer is given."""

    key: bytes
    value: bytes | None
    timestamp_millis: int
    headers: list[tuple[str, bytes]]


class FetchedRecord(Protocol):
    """What a consumer gives: aiokafka's ConsumerRecord, as far as it is used."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


def partition_of(key: str, partitions_count: int) -> int:
    """The partition of a key: Java's murmur2, without its sign (Utils.murmur2, Utils.toPositive)."""
    data = key.encode()
    size = len(data)
    mixed = _SEED ^ size
    for block in unpack_from(f"<{size >> 2}I", data):
        spread = block * _MULTIPLIER & _MASK
        mixed = mixed * _MULTIPLIER & _MASK ^ ((spread ^ spread >> 24) * _MULTIPLIER & _MASK)
    if rest := data[size & ~3 :]:
        mixed = (mixed ^ int.from_bytes(rest, "little")) * _MULTIPLIER & _MASK
    mixed = (mixed ^ mixed >> 13) * _MULTIPLIER & _MASK
    return ((mixed ^ mixed >> 15) & 0x7FFFFFFF) % partitions_count


def inbox_record(notification: Notification) -> RawRecord:
    """A notification as it lies in the inbox."""
    body, key, sender, received_micros, content_type, correlator, traceparent, origin = notification
    headers = [
        ("sender", sender.encode()),
        ("received-at", rfc3339.render(received_micros).encode()),
        ("x-correlator", correlator.encode()),
    ]
    if content_type:
        headers.append(("content-type", content_type.encode()))
    if traceparent:
        headers.append(("traceparent", traceparent.encode()))
    if origin:
        headers.append(("origin", origin.encode()))
    return RawRecord(key.encode(), body, received_micros // 1000, headers)


def notification_of(record: FetchedRecord) -> Notification:
    """The inverse. What another program wrote into the inbox is read as well as it can be, to end as a dead letter."""
    headers = _texts(record.headers)
    received_at, stamped_micros = headers.get("received-at"), record.timestamp * 1000
    try:
        received_micros = stamped_micros if received_at is None else rfc3339.micros(received_at)
    except (ValueError, OverflowError):
        received_micros = stamped_micros
    # The broker checked the record's own time, which ours agrees with to the millisecond. Another could not be written
    # again, or would be refused with all that is decided behind it.
    if not 0 <= received_micros < stamped_micros + 1000:
        received_micros = stamped_micros
    return Notification(
        record.value or b"",
        (record.key or b"").decode(errors="replace"),
        headers.get("sender", "unknown"),
        received_micros,
        headers.get("content-type", ""),
        headers.get("x-correlator", ""),
        headers.get("traceparent", ""),
        headers.get("origin", ""),
    )


def output_records(messages: Iterable[Message]) -> Iterator[RawRecord]:
    """Messages as they go to their topics. Those that follow each other may share their headers, which is the cost."""
    texts: Sequence[tuple[str, str]] = ()
    headers: list[tuple[str, bytes]] = []
    for _, key, value, message_headers, timestamp_millis in messages:
        if message_headers is not texts:
            texts, headers = message_headers, [(name, text.encode()) for name, text in message_headers]
        yield RawRecord(key.encode(), value, timestamp_millis, headers)


def record_of(record: FetchedRecord) -> Record:
    """A record of an output topic."""
    key = (record.key or b"").decode(errors="replace")
    headers = list(_texts(record.headers).items())
    message = Message(record.topic, key, record.value, headers, record.timestamp)
    return Record(record.partition, record.offset, message)


def _texts(headers: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    return {name: value.decode(errors="replace") for name, value in headers if value is not None}
