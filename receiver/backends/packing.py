"""Many small records in one blob: the records of one commit are one row of the file. Pure.

A row for each record costs a B-tree insertion each; packed, sixty-four of them cost little more than one. A blob is the
length of its index, the index, and the payloads one after the other. The index is JSON, an array for each record that
begins with the length of its payload (null: none). The row keeps the CRC-32 of the blob, so that a flipped bit is found
before the blob is used.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import orjson

from receiver.core.message import Message
from receiver.core.notification import Notification, envelope_again

_INDEX_BYTES = struct.Struct("<I")

#: Errors of a blob with a valid checksum that another program wrote.
_NOT_OURS = (ValueError, TypeError, struct.error)


class Pack(NamedTuple):
    """Records in one blob: their number, and the CRC-32 of the blob."""

    size: int
    crc: int
    blob: bytes


class Damaged(Exception):
    """The blob is not as it was written."""


def pack_notifications(notifications: Sequence[Notification]) -> Pack:
    """Notifications as one blob."""
    return _pack(
        [_known(each) for each in notifications],
        [each.body for each in notifications],
    )


def _known(notification: Notification) -> tuple[Any, ...]:
    """The index entry of a notification: everything but its body, with the body's length."""
    known = (
        len(notification.body),
        notification.key,
        notification.sender,
        notification.received_micros,
        notification.content_type,
        notification.correlator,
        notification.traceparent,
        notification.origin,
    )
    # Packs without envelopes are as in earlier releases, which had none.
    return (*known, notification.envelope) if notification.envelope else known


def unpack_notifications(blob: bytes, crc: int) -> list[Notification]:
    """The inverse. Raises Damaged."""
    try:
        return [_notification(payload or b"", *known) for payload, known in _unpack(blob, crc)]
    except _NOT_OURS:
        raise Damaged from None


def _notification(body: bytes, *known: Any) -> Notification:  # noqa: ANN401  # what JSON is
    notification = Notification(body, *known)
    if not notification.envelope:
        return notification
    return notification._replace(envelope=envelope_again(notification.envelope))


def pack_messages(messages: Sequence[Message]) -> Pack:
    """Messages of one topic as one blob."""
    return _pack(
        [
            (None if each.value is None else len(each.value), each.key, each.timestamp_millis, each.headers)
            for each in messages
        ],
        [each.value or b"" for each in messages],
    )


def unpack_messages(topic: str, blob: bytes, crc: int) -> list[Message]:
    """The inverse. Raises Damaged."""
    try:
        return [
            Message(topic, key, payload, [(name, text) for name, text in headers], timestamp_millis)
            for payload, (key, timestamp_millis, headers) in _unpack(blob, crc)
        ]
    except _NOT_OURS:
        raise Damaged from None


def _pack(index: Sequence[Any], payloads: Sequence[bytes]) -> Pack:
    index_json = orjson.dumps(index)
    blob = b"".join((_INDEX_BYTES.pack(len(index_json)), index_json, *payloads))
    return Pack(len(index), crc32(blob), blob)


def _unpack(blob: bytes, crc: int) -> Iterator[tuple[bytes | None, list[Any]]]:
    if crc32(blob) != crc:
        raise Damaged
    (index_bytes,) = _INDEX_BYTES.unpack_from(blob)
    at = _INDEX_BYTES.size + index_bytes
    for payload_bytes, *known in orjson.loads(memoryview(blob)[_INDEX_BYTES.size : at]):
        if payload_bytes is None:
            yield None, known
        else:
            yield blob[at : at + payload_bytes], known
            at += payload_bytes
