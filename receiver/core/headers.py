"""Headers: the names of all records' headers, in the inbox and on the topics, and the trace of a record's cause. Pure.

schemas/README.md describes them for consumers.
"""

from urllib.parse import quote

from receiver.core import rfc3339
from receiver.core.event import Event
from receiver.core.notification import Notification
from receiver.core.session import Verdict

Headers = list[tuple[str, str]]

#: CloudEvents' attributes in binary mode (kafka-protocol-binding.md, 3.2).
CE_SPECVERSION = "ce_specversion"
CE_ID = "ce_id"
CE_SOURCE = "ce_source"
CE_TYPE = "ce_type"
CE_TIME = "ce_time"

#: Headers of the post.
CONTENT_TYPE = "content-type"
CORRELATOR = "x-correlator"
TRACEPARENT = "traceparent"

#: Facts that the edge adds.
SENDER = "sender"
RECEIVED_AT = "received-at"
ORIGIN = "origin"

#: The verdict; the notification's place in the inbox, such as `0-17`; and the id of the inbox's topic.
VERDICT = "verdict"
TRACE = "inbox"
INBOX_ID = "inbox-id"

#: A router's memory of a session.
MARKS = "marks"
MARKS_CUT = "marks-cut"
TOUCHED = "touched"
LEARNED = "learned"
MEMORY = frozenset({MARKS, MARKS_CUT, TOUCHED, LEARNED})

# Constant headers, made once.
_SPECVERSION = CE_SPECVERSION, "1.0"
_JSON = CONTENT_TYPE, "application/json"
_VERDICTS = {verdict: (VERDICT, verdict.value) for verdict in Verdict}

#: Positions are 64-bit integers.
_POSITION_DIGITS_MAX = 18


def event_headers(notification: Notification, trace: str, event: Event, verdict: Verdict) -> Headers:
    """Headers of the records that an event causes: CloudEvents' attributes in binary mode, and the trace back."""
    headers = [
        _SPECVERSION,
        (CE_ID, event.id or trace),
        (CE_SOURCE, event.source or _sender_source(notification.sender)),
        (CE_TYPE, event.type),
    ]
    if event.time_micros is not None:
        headers.append((CE_TIME, rfc3339.render(event.time_micros)))
    _add_tracing(headers, notification, trace, verdict)
    return headers


def letter_headers(notification: Notification, trace: str, verdict: Verdict) -> Headers:
    """Headers of a dead letter."""
    headers = [
        _SPECVERSION,
        (CE_ID, trace),
        (CE_SOURCE, _sender_source(notification.sender)),
        (CE_TYPE, "qod-receiver.dead-letter"),
        (CE_TIME, rfc3339.render(notification.received_micros)),
    ]
    _add_tracing(headers, notification, trace, verdict)
    return headers


def position_of(trace: str, partition: int) -> int | None:
    """The position in a trace such as `0-17`; None if it is not one of that partition."""
    number, _, position = trace.partition("-")
    is_position = position.isdecimal() and len(position) <= _POSITION_DIGITS_MAX
    return int(position) if is_position and number == str(partition) else None


def _add_tracing(headers: Headers, notification: Notification, trace: str, verdict: Verdict) -> None:
    headers += _JSON, _VERDICTS[verdict], (TRACE, trace)
    if notification.correlator:
        headers.append((CORRELATOR, notification.correlator))
    if notification.traceparent:
        headers.append((TRACEPARENT, notification.traceparent))
    if notification.origin:
        headers.append((ORIGIN, notification.origin))


def _sender_source(sender: str) -> str:
    """A URI reference for events whose dialect names no source."""
    return f"/senders/{quote(sender, safe='')}"
