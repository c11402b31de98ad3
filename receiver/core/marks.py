"""Marks: a session's memory of its events, which recognizes repetitions. Pure."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from zlib import crc32

from receiver.core.event import Event, QosStatus
from receiver.core.value import Value

#: A digest of 64 bits: among 256 of them the probability of a collision is 1 in 10^14.
_DIGEST_BYTES = 8


class Mark(Value, frozen=True, array_like=True):
    """One event that was taken into account.

    `identity` is a digest of the event's source and id, None if it had no id. `kind` is a digest of its type and
    reason. `told_micros` is the event's own time, None if it had none; `micros` is the time used to order it.
    """

    identity: str | None
    qos_status: QosStatus
    told_micros: int | None
    kind: str
    micros: int


def mark_of(event: Event, micros: int) -> Mark:
    """The mark of an event; `micros` is the time used to order it."""
    identity = None
    if event.id is not None:
        # CloudEvents 1.0.2, spec.md, "id": an event is identified by source and id together, never by id alone.
        text = f"{event.source or ''}\0{event.id}"
        identity = blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()
    return Mark(identity, event.qos_status, event.time_micros, _kind(event.type, event.status_info), micros)


def find(marks: Iterable[Mark], mark: Mark) -> tuple[bool, bool]:
    """Whether a mark is of the same event; and if not, whether one has the same id."""
    identity, status, told_micros, kind = mark.identity, mark.qos_status, mark.told_micros, mark.kind
    reuses_id = False
    for known in marks:
        has_id = identity is not None and known.identity == identity
        if known.qos_status is status and known.kind == kind and (has_id or known.told_micros == told_micros):
            return True, False
        reuses_id = reuses_id or has_id
    return False, reuses_id


def times(marks: Iterable[Mark], qos_status: QosStatus) -> Sequence[int]:
    """The ordering times, in microseconds, of the events with a status."""
    return [mark.micros for mark in marks if mark.qos_status is qos_status]


@lru_cache(1024)
def _kind(event_type: str, status_info: str | None) -> str:
    text = f"{event_type}\0{status_info or ''}"
    return f"{crc32(text.encode()):08x}"
