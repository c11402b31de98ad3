"""Dead letters sent through today's parser again.

A replayed letter goes into the inbox like a notification that has just come, with the time of receipt that it had and
marked with where it lay. What still can't be read leaves no second dead letter, and what was replayed before is a
duplicate: replaying twice does nothing twice.
"""

import asyncio
from base64 import b64decode
from collections.abc import AsyncIterator, Collection, Sequence

import orjson

from receiver.core import rfc3339
from receiver.core.errors import Malformed, Unwritable
from receiver.core.message import Record
from receiver.core.notification import Notification, envelope_of, parse, split
from receiver.core.router import DEAD_LETTER
from receiver.core.session import Verdict
from receiver.inbox import Inbox
from receiver.reader import Reader

REPLAYABLE = (Verdict.MALFORMED, Verdict.UNRECOGNIZED, Verdict.CONFLICT)

_PAGE = 500
_HEADERS = ("content-type", "x-correlator", "traceparent")


class DeadLetters:
    """The topic of dead letters, and the inbox that they may go back to."""

    def __init__(self, reader: Reader, inbox: Inbox, prefix: str) -> None:
        self._reader = reader
        self._inbox = inbox
        self._topic = f"{prefix}.{DEAD_LETTER}"

    async def replay(self, verdicts: Collection[str] | None = None, start: str = "beginning") -> int:
        """Append the dead letters from `start` on, those of `verdicts` (None: all), to the inbox; returns how many.

        Those are skipped that today's parser refuses as it did before. Raises Unavailable, and ValueError for a
        `start` or a verdict that is none.
        """
        count = 0
        async for record in letters(self._reader, self._topic, verdicts, start):
            if notifications := revived(record):
                try:
                    await asyncio.gather(*map(self._inbox.append, notifications))
                except Unwritable:
                    continue  # the letter stays where it is, and those behind it go on
                count += 1
        return count


async def letters(reader: Reader, topic: str, verdicts: Collection[str] | None, start: str) -> AsyncIterator[Record]:
    """The dead letters that are there now, from `start` on. Raises as `replay` does."""
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
