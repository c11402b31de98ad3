"""Dead letters: the record of a notification that could not be used, and the notification read back from it. Pure."""

from base64 import b64decode, b64encode
from collections.abc import Sequence

import orjson

from receiver.core import rfc3339
from receiver.core.errors import Malformed
from receiver.core.headers import (
    CE_ID,
    CE_SOURCE,
    CE_SPECVERSION,
    CE_TIME,
    CE_TYPE,
    CONTENT_TYPE,
    CORRELATOR,
    INBOX_ID,
    TRACE,
    TRACEPARENT,
    VERDICT,
    letter_headers,
)
from receiver.core.message import Message, Record, bytes_of
from receiver.core.notification import REPLAY, Notification, envelope_of, parse, split
from receiver.core.session import Verdict

#: A letter's body is cut here, so that brokers accept the letter: Base64 makes the body a third longer.
LETTER_BODY_BYTES_MAX = 512 * 1024
#: The most bytes that Kafka's own numbers and the headers' names take around a record and its batch.
_WRAPPING_BYTES = 512
_WORDS_MAX = 256
#: The headers that a shortened letter keeps.
_HEADERS = frozenset({CE_SPECVERSION, CE_ID, CE_SOURCE, CE_TYPE, CE_TIME, CONTENT_TYPE, VERDICT, TRACE, INBOX_ID})
#: Headers of the post, which are in the letter's value.
_POSTED = (CONTENT_TYPE, CORRELATOR, TRACEPARENT)


def letter_message(topic: str, notification: Notification, trace: str, verdict: Verdict, reason: str) -> Message:
    """The dead letter of a notification. `reason` states why the notification could not be used."""
    body = notification.body[:LETTER_BODY_BYTES_MAX]
    cut = {"bodyBytes": len(notification.body)} if len(body) < len(notification.body) else {}
    posted = notification.content_type, notification.correlator, notification.traceparent
    value = orjson.dumps(
        {
            "verdict": verdict,
            "reason": reason,
            "sender": notification.sender,
            "receivedAt": rfc3339.render(notification.received_micros),
            "body": b64encode(body).decode(),
            **cut,
            "headers": {
                name: text for name, text in (*zip(_POSTED, posted, strict=True), *notification.envelope) if text
            },
        }
    )
    headers = letter_headers(notification, trace, verdict)
    return Message(topic, notification.key, value, headers, notification.received_micros // 1000)


def revived(record: Record) -> Sequence[Notification]:
    """The notifications in a dead letter, with the keys that today's parser gives them: one, or those of a batch.

    Empty if they still can't be read, or if another program wrote the record.
    """
    try:
        told = orjson.loads(record.message.value or b"{}")
        body, headers, sender = b64decode(told["body"]), told["headers"], told["sender"]
        received_micros = rfc3339.micros(told["receivedAt"])
        if not all(type(text) is str for text in (sender, *headers.values())):
            return ()
        envelope = envelope_of(headers)
        batch = split(body, envelope)
        found = batch or [(body, parse(body, envelope))]
    except (Malformed, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return ()
    if received_micros not in rfc3339.WRITABLE_MICROS:
        return ()
    content_type, correlator, traceparent = (headers.get(name, "") for name in _POSTED)
    return [
        Notification(
            each,
            event.session_id or sender,
            sender,
            received_micros,
            content_type,
            correlator,
            traceparent,
            f"{REPLAY}{record.partition}-{record.position}",
            () if batch else envelope,
        )
        for each, event in found
        if event is not None
    ]


def fitting(letter: Message, batch_bytes_max: int) -> Message:
    """The letter, shortened if a batch of at most `batch_bytes_max` bytes would not hold it."""
    value_bytes_max = batch_bytes_max - _WRAPPING_BYTES - (bytes_of(letter) - len(letter.value or b""))
    return letter if len(letter.value or b"") <= value_bytes_max else shortened(letter, value_bytes_max)


def shortened(letter: Message, value_bytes_max: int) -> Message:
    """The letter with a value of at most `value_bytes_max` bytes, if that is possible.

    First the body is cut, then everything but the reason. The whole notification is still in the inbox. `bodyBytes`
    states the original length of the body.
    """
    told = orjson.loads(letter.value or b"{}")
    body = b64decode(told.get("body", ""))
    told.setdefault("bodyBytes", len(body))
    excess = len(orjson.dumps(told)) - value_bytes_max
    kept = max(0, len(body) - (excess + 3) // 4 * 3 - 3)
    value = orjson.dumps({**told, "body": b64encode(body[:kept]).decode()})
    if len(value) <= value_bytes_max:
        return letter._replace(value=value)
    bare = {name: str(told.get(name, ""))[:_WORDS_MAX] for name in ("verdict", "reason", "sender", "receivedAt")}
    headers = [(name, text[:_WORDS_MAX]) for name, text in letter.headers if name in _HEADERS]
    return letter._replace(
        value=orjson.dumps({**bare, "body": "", "bodyBytes": told["bodyBytes"], "headers": {}}), headers=headers
    )
