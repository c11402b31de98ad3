"""Notifications and messages as Kafka records, and the partitions of keys. Pure.

Keys are UTF-8 text, headers are text. A record goes to the partition that the Java client would choose for its key, so
that Kafka Streams and Flink find topics with the same number of partitions co-partitioned.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from struct import unpack_from
from types import MappingProxyType
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

#: The headers of a notification without an envelope.
_HEADERS = frozenset({SENDER, RECEIVED_AT, CORRELATOR, CONTENT_TYPE, TRACEPARENT, ORIGIN})
#: No edge writes longer texts. A notification made of a record must fit into records that brokers take.
_TEXT_CHARS_MAX = 2_048
_NAME_CHARS_MAX = 256
#: Kafka's own value for a record without a timestamp.
_NO_MILLIS = -1

_SEED = 0x9747B28C
_MULTIPLIER = 0x5BD1E995
_MASK = 0xFFFFFFFF


class RawRecord(NamedTuple):
    """A record as a producer takes it."""

    key: bytes
    value: bytes | None
    timestamp_millis: int
    headers: list[tuple[str, bytes]]


class FetchedRecord(Protocol):
    """A record as a consumer returns it: aiokafka's ConsumerRecord, as far as it is used."""

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
    """A notification as a record of the inbox."""
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
    """The inverse of `inbox_record`. Another program's record is read as well as possible; it becomes a dead letter.

    The record's own time counts as `latest_millis` if it is later than that.
    """
    headers = _texts(record.headers)
    received_at, stamped_micros = headers.get(RECEIVED_AT), _stamped_micros(record)
    if latest_millis is not None:
        stamped_micros = min(stamped_micros, latest_millis * 1000)
    try:
        received_micros = stamped_micros if received_at is None else rfc3339.micros(received_at)
    except (ValueError, OverflowError):
        received_micros = stamped_micros
    # The broker checked the record's own time, and an edge's header has no later one. A later time might be refused in
    # the records that the router writes, and with it the whole batch.
    if not 0 <= received_micros < stamped_micros + 1000:
        received_micros = stamped_micros
    sender = headers.get(SENDER, "unknown")
    return Notification(
        record.value or b"",
        # One character more than a session's key may have: a key that is cut becomes a dead letter.
        (record.key or b"").decode(errors="replace")[: _NAME_CHARS_MAX + 1],
        sender if len(sender) <= _NAME_CHARS_MAX else "unknown",
        received_micros,
        headers.get(CONTENT_TYPE, "")[:_TEXT_CHARS_MAX],
        headers.get(CORRELATOR, "")[:_TEXT_CHARS_MAX],
        headers.get(TRACEPARENT, "")[:_TEXT_CHARS_MAX],
        headers.get(ORIGIN, "")[:_TEXT_CHARS_MAX],
        () if _HEADERS.issuperset(headers) else envelope_of(headers),
    )


def output_records(
    messages: Iterable[Message], more: Mapping[str, list[tuple[str, bytes]]] = MappingProxyType({})
) -> Iterator[RawRecord]:
    """Messages as records of their topics; `more` has further headers by topic, for all but tombstones.

    The headers that consecutive messages have in common are encoded once, since encoding is the main cost.
    """
    texts: Sequence[tuple[str, str]] = ()
    headers: list[tuple[str, bytes]] = []
    for each in messages:
        if each.headers is not texts:
            begins_alike = each.headers == texts[: len(each.headers)]
            texts = each.headers
            headers = headers[: len(texts)] if begins_alike else [(name, text.encode()) for name, text in texts]
        whole = headers + more[each.topic] if each.topic in more and each.value is not None else headers
        yield RawRecord(each.key.encode(), each.value, each.timestamp_millis, whole)


def record_of(record: FetchedRecord) -> Record:
    """A record of an output topic."""
    key = (record.key or b"").decode(errors="replace")
    headers = list(_texts(record.headers).items())
    millis = _NO_MILLIS if record.timestamp is None else record.timestamp
    message = Message(record.topic, key, record.value, headers, millis)
    return Record(record.partition, record.offset, message)


def place_of(record: FetchedRecord) -> str:
    """The topic, partition and offset of a record, such as `qod.inbox-0-17`."""
    return f"{record.topic}-{record.partition}-{record.offset}"


def trace_of(record: FetchedRecord, partition: int) -> tuple[int, str]:
    """The position behind the notification that caused a record, and the id of its inbox, empty if not told.

    The position is 0 if no notification of `partition` caused it: for tombstones, and for exported records.
    """
    told = {name: text.decode(errors="replace") for name, text in record.headers if name in _TRACE and text}
    position = position_of(told.get(TRACE, ""), partition)
    return 0 if position is None else position + 1, told.get(INBOX_ID, "")


def _stamped_micros(record: FetchedRecord) -> int:
    """The record's own time in µs, or the nearest one that can be written."""
    millis = _NO_MILLIS if record.timestamp is None else record.timestamp
    return min(max(0, millis * 1000), rfc3339.WRITABLE_MICROS[-1])


def _texts(headers: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    try:
        return {name: value.decode() for name, value in headers if value is not None}
    except UnicodeDecodeError:
        return {name: value.decode(errors="replace") for name, value in headers if value is not None}
