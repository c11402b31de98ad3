"""Many small records in one blob: what a commit wrote together is one row of the file. Pure.

A row for each record costs a B-tree insertion each; packed, sixty-four of them cost little more than one. A blob is the
length of its index, the index, and the payloads one behind the other. The index is JSON, an array for each record that
begins with the length of its payload (null: none). Its row keeps the CRC-32 of the blob, so that a flipped bit is found
before anything is made of it.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import orjson

from receiver.core.message import Message
from receiver.core.notification import Notification, envelope_again

_INDEX_BYTES = struct.Struct("<I")

#: What is raised where a blob has a checksum that is right, and is another program's all the same.
_NOT_OURS = (ValueError, TypeError, struct.error)


class Pack(NamedTuple):
    """Records in one blob: how many, and the CRC-32 of the blob."""

    size: int
    crc: int
    blob: bytes


class Damaged(Exception):
    """The blob is not what was written."""


def pack_notifications(notifications: Sequence[Notification]) -> Pack:
    """Notifications as one blob."""
    return _pack(
        [_known(each) for each in notifications],
        [each.body for each in notifications],
    )


def _known(notification: Notification) -> tuple[Any, ...]:
    """What the index has of a notification: all but its body, of which it has the length."""
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
    # Earlier releases had no envelope, and read packs without one.
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
