"""Dead letters sent through today's parser again.

A replayed letter goes into the inbox like a notification that has just come, with the time of receipt that it had and
marked with where it lay. What still can't be read leaves no second dead letter, and what was replayed before is a
duplicate: replaying twice does nothing twice.
"""

from base64 import b64decode
from collections.abc import AsyncIterator, Collection, Sequence

import orjson

from receiver.core import rfc3339
from receiver.core.errors import Malformed
from receiver.core.message import Record
from receiver.core.notification import Notification, envelope_of, parse, split
from receiver.core.session import Verdict
from receiver.reader import Reader

REPLAYABLE = (Verdict.MALFORMED, Verdict.UNRECOGNIZED, Verdict.CONFLICT)

_PAGE = 500
_HEADERS = ("content-type", "x-correlator", "traceparent")


async def letters(reader: Reader, topic: str, verdicts: Collection[str] | None, start: str) -> AsyncIterator[Record]:
    """The dead letters that are there now, from `start` on. Raises as `Operations.replay` does."""
    wanted = frozenset(REPLAYABLE if verdicts is None else map(Verdict, verdicts))
    try:
        cursor, end = await reader.cursor(topic, start), await reader.end(topic)
    except KeyError:
        return  # nothing died yet
    while records := await reader.records(topic, cursor, _PAGE):
        for record in records:
            if record.position < end[record.partition] and dict(record.message.headers).get("verdict") in wanted:
                yield record
        if all(position >= end[partition] for partition, position in cursor.items()):
            return


def revived(record: Record) -> Sequence[Notification]:
    """The notifications that a dead letter was, keyed as today's parser reads them: one, or those of a batch.

    None of it where it still can't be read, and for what another program wrote among the letters.
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
    content_type, correlator, traceparent = (headers.get(name, "") for name in _HEADERS)
    place = f"replay:{record.partition}-{record.position}"
    return [
        Notification(
            each,
            event.session_id or sender,
            sender,
            received_micros,
            content_type,
            correlator,
            traceparent,
            place,
            () if batch else envelope,
        )
        for each, event in found
        if event is not None
    ]
