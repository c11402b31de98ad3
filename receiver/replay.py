"""Dead letters sent through today's parser again.

A replayed letter goes into the inbox like a notification that has just come, with the time of receipt that it had and
marked with where it lay. What still can't be read leaves no second dead letter, and what was replayed before is a
duplicate: replaying twice does nothing twice.
"""

import asyncio
from collections.abc import AsyncIterator, Collection

from receiver.core.dead_letter import revived
from receiver.core.errors import Unwritable
from receiver.core.headers import VERDICT
from receiver.core.message import Record
from receiver.core.session import Verdict
from receiver.core.topics import TopicNames
from receiver.inbox import Inbox
from receiver.reader import Reader

REPLAYABLE = (Verdict.MALFORMED, Verdict.UNRECOGNIZED, Verdict.CONFLICT)

_PAGE = 500


class DeadLetters:
    """The topic of dead letters, and the inbox that they may go back to."""

    def __init__(self, reader: Reader, inbox: Inbox, prefix: str) -> None:
        self._reader = reader
        self._inbox = inbox
        self._topic = TopicNames(prefix).dead_letters

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
            if record.position < end[record.partition] and dict(record.message.headers).get(VERDICT) in wanted:
                yield record
        if all(position >= end[partition] for partition, position in cursor.items()):
            return
