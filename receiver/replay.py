"""Dead letters sent through today's parser again.

A replayed letter goes into the inbox like a new notification, with its original time of receipt and marked with the
letter's place. If it still can't be read, it leaves no second dead letter. If it was replayed before, it is a
duplicate, so a second replay has no effect.
"""

from collections.abc import AsyncIterator, Collection

from receiver.core.headers import VERDICT
from receiver.core.message import Record
from receiver.core.session import Verdict
from receiver.reader import Reader

REPLAYABLE = (Verdict.MALFORMED, Verdict.UNRECOGNIZED, Verdict.CONFLICT)

_PAGE = 500


async def letters(reader: Reader, topic: str, verdicts: Collection[str] | None, start: str) -> AsyncIterator[Record]:
    """The dead letters from `start` to the present end. Raises as `Operations.replay` does."""
    wanted = frozenset(REPLAYABLE if verdicts is None else map(Verdict, verdicts))
    try:
        cursor, end = await reader.cursor(topic, start), await reader.end(topic)
    except KeyError:
        return  # there is no dead letter yet
    while records := await reader.records(topic, cursor, _PAGE):
        for record in records:
            if record.position < end[record.partition] and dict(record.message.headers).get(VERDICT) in wanted:
                yield record
        if all(position >= end[partition] for partition, position in cursor.items()):
            return
