"""Marks: a session's memory of its events, which recognizes repetitions. Pure.

A mark is one event that was taken into account, as text:

    6f1e90d2b3a4c5f7|U.1764000000000000.1c291ca3|1764000000000000
    identity         status, time, kind          time that orders

The identity is a digest of the event's source and id, dashes if it had no id. The status is the first letter of its
name. The first time is the event's own, in microseconds, empty if it had none. The kind is a digest of type and reason.
The last time is the one used to order the event.

The marks of a session are one text, the oldest first, with commas between. That is the form of the session's record,
too, and a search in a text costs next to nothing: some gateways make hundreds of events of one session.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from zlib import crc32

from receiver.core.event import Event, QosStatus

#: A digest of 64 bits: among 256 of them the probability of a collision is 1 in 10^14.
_DIGEST_BYTES = 8
_IDENTITY_CHARS, _KIND_CHARS = 16, 8
_NO_ID = "-" * _IDENTITY_CHARS

_MARK = r"(?:[0-9a-f]{16}|-{16})\|[RAU]\.(?:-?[0-9]{1,18})?\.[0-9a-f]{8}\|-?[0-9]{1,18}"
_MARKS = re.compile(f"{_MARK}(?:,{_MARK})*")


def mark_of(event: Event, micros: int) -> str:
    """The mark of an event; `micros` is the time used to order it."""
    identity = _NO_ID
    if event.id is not None:
        # CloudEvents 1.0.2, spec.md, "id": an event is identified by source and id together, never by id alone.
        text = f"{event.source or ''}\0{event.id}"
        identity = blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()
    told = "" if event.time_micros is None else event.time_micros
    return f"{identity}|{event.qos_status[0]}.{told}.{_kind(event.type, event.status_info)}|{micros}"


def are_marks(text: str) -> bool:
    """Whether a text has the form of marks."""
    return _MARKS.fullmatch(text) is not None


def split(marks: str) -> Sequence[str]:
    """The marks one by one."""
    return marks.split(",")


def micros_of(mark: str) -> int:
    """The time, in microseconds, that orders the event of a mark."""
    return int(mark[mark.rindex("|") + 1 :])


def find(marks: str, mark: str) -> tuple[bool, bool]:
    """Whether a mark is of the same event; and if not, whether one has the same id."""
    content_end = mark.rindex("|") + 1
    if mark[_IDENTITY_CHARS:content_end] in marks:  # status, time and kind
        return True, False
    identity = mark[: _IDENTITY_CHARS + 1]
    at = -1 if mark.startswith(_NO_ID) else marks.find(identity)
    reuses_id = at >= 0
    kind = mark[content_end - 1 - _KIND_CHARS : content_end]
    while at >= 0:
        status_at = at + _IDENTITY_CHARS + 1
        kind_end = marks.index("|", status_at) + 1
        if marks[status_at] == mark[_IDENTITY_CHARS + 1] and marks.endswith(kind, status_at, kind_end):
            return True, False
        at = marks.find(identity, kind_end)
    return False, reuses_id


def times(marks: str, qos_status: QosStatus) -> Sequence[int]:
    """The ordering times, in microseconds, of the events with a status."""
    letter = qos_status[0]
    return [micros_of(mark) for mark in split(marks) if mark[_IDENTITY_CHARS + 1] == letter]


def joined(marks: Sequence[str], count_max: int) -> tuple[str, int | None]:
    """The newest marks as one text, and the latest ordering time of those cut off, None if none is."""
    cut = marks[:-count_max]
    return ",".join(marks[-count_max:]), max(map(micros_of, cut), default=None)


@lru_cache(1024)
def _kind(event_type: str, status_info: str | None) -> str:
    text = f"{event_type}\0{status_info or ''}"
    return f"{crc32(text.encode()):08x}"
