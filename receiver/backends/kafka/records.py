"""Notifications and messages as Kafka records, and where they go. Pure.

Keys are UTF-8 text, headers are text. A record goes to the partition that the Java client would choose for its key, so
that Kafka Streams and Flink find topics with the same number of partitions co-partitioned.
"""

from collections.abc import Iterable, Iterator, Sequence
from struct import unpack_from
from typing import NamedTuple, Protocol

from receiver.core import rfc3339
from receiver.core.headers import (
    CONTENT_TYPE,
    CORRELATOR,
    INBOX_ID,
    ORIGIN,
    RECEIVED_AT,
    SENDER,
    TRACE,
    TRACEPARENT,
    position_of,
)
from receiver.core.message import Message, Record
from receiver.core.notification import Notification, envelope_of

_TRACE = frozenset({TRACE, INBOX_ID})

#: What nearly all notifications have in headers.
_HEADERS = frozenset({SENDER, RECEIVED_AT, CORRELATOR, CONTENT_TYPE, TRACEPARENT, ORIGIN})
#: What is longer than this no edge wrote. What is made of a record must fit into one that brokers take.
_TEXT_CHARS_MAX = 2_048
_NAME_CHARS_MAX = 256
#: Kafka's own word for a record without a timestamp.
_NO_MILLIS = -1

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
    timestamp: int | None
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
    received_micros = notification.received_micros
    headers = [
        (SENDER, notification.sender.encode()),
        (RECEIVED_AT, rfc3339.render(received_micros).encode()),
        (CORRELATOR, notification.correlator.encode()),
    ]
    if notification.content_type:
        headers.append((CONTENT_TYPE, notification.content_type.encode()))
    if notification.traceparent:
        headers.append((TRACEPARENT, notification.traceparent.encode()))
    if notification.origin:
        headers.append((ORIGIN, notification.origin.encode()))
    headers += [(name, value.encode()) for name, value in notification.envelope]
    return RawRecord(notification.key.encode(), notification.body, received_micros // 1000, headers)


def notification_of(record: FetchedRecord, latest_millis: int | None = None) -> Notification:
    """The inverse. What another program wrote into the inbox is read as well as it can be, to end as a dead letter.

    It was received at `latest_millis` at the latest, if that is given, whatever time the record has.
    """
    headers = _texts(record.headers)
    received_at, stamped_micros = headers.get(RECEIVED_AT), _stamped_micros(record)
    if latest_millis is not None:
        stamped_micros = min(stamped_micros, latest_millis * 1000)
    try:
        received_micros = stamped_micros if received_at is None else rfc3339.micros(received_at)
    except (ValueError, OverflowError):
        received_micros = stamped_micros
    # The broker checked the record's own time, which ours agrees with to the millisecond. Another could not be written
    # again, or would be refused with all that is decided behind it.
    if not 0 <= received_micros < stamped_micros + 1000:
        received_micros = stamped_micros
    sender = headers.get(SENDER, "unknown")
    return Notification(
        record.value or b"",
        # Cut, it is no session's key: a letter comes of it.
        (record.key or b"").decode(errors="replace")[: _NAME_CHARS_MAX + 1],
        sender if len(sender) <= _NAME_CHARS_MAX else "unknown",
        received_micros,
        headers.get(CONTENT_TYPE, "")[:_TEXT_CHARS_MAX],
        headers.get(CORRELATOR, "")[:_TEXT_CHARS_MAX],
        headers.get(TRACEPARENT, "")[:_TEXT_CHARS_MAX],
        headers.get(ORIGIN, "")[:_TEXT_CHARS_MAX],
        () if _HEADERS.issuperset(headers) else envelope_of(headers),
    )


def output_records(messages: Iterable[Message]) -> Iterator[RawRecord]:
    """Messages as they go to their topics. Of those that follow each other the headers are encoded once, as far as they
    begin alike: that is the cost.
    """
    texts: Sequence[tuple[str, str]] = ()
    headers: list[tuple[str, bytes]] = []
    for each in messages:
        if each.headers is not texts:
            begins_alike = each.headers == texts[: len(each.headers)]
            texts = each.headers
            headers = headers[: len(texts)] if begins_alike else [(name, text.encode()) for name, text in texts]
        yield RawRecord(each.key.encode(), each.value, each.timestamp_millis, headers)


def record_of(record: FetchedRecord) -> Record:
    """A record of an output topic."""
    key = (record.key or b"").decode(errors="replace")
    headers = list(_texts(record.headers).items())
    millis = _NO_MILLIS if record.timestamp is None else record.timestamp
    message = Message(record.topic, key, record.value, headers, millis)
    return Record(record.partition, record.offset, message)


def place_of(record: FetchedRecord) -> str:
    """Where a record stands, such as `qod.inbox-0-17`."""
    return f"{record.topic}-{record.partition}-{record.offset}"


def trace_of(record: FetchedRecord, partition: int) -> tuple[int, str]:
    """The position behind the notification that caused a record, and the id of its inbox where that is told.

    0 where it was none of `partition`: for tombstones, and for what was exported from a directory.
    """
    told = {name: text.decode(errors="replace") for name, text in record.headers if name in _TRACE and text}
    position = position_of(told.get(TRACE, ""), partition)
    return 0 if position is None else position + 1, told.get(INBOX_ID, "")


def _stamped_micros(record: FetchedRecord) -> int:
    """The record's own time, as near to it as can be written."""
    millis = _NO_MILLIS if record.timestamp is None else record.timestamp
    return min(max(0, millis * 1000), rfc3339.WRITABLE_MICROS[-1])


def _texts(headers: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    try:
        return {name: value.decode() for name, value in headers if value is not None}
    except UnicodeDecodeError:
        return {name: value.decode(errors="replace") for name, value in headers if value is not None}
