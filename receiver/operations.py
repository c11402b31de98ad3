"""The operations of a receiver: what an operator has it do beside receiving. The operations port offers them, and the
commands call them.

`LocalOperations` has what it needs open itself; `process/distant.py` asks the process that serves a directory.
"""

import asyncio
from collections.abc import Collection, Sequence
from typing import Protocol

from receiver.core.dead_letter import revived
from receiver.core.errors import Unwritable
from receiver.core.notification import Notification
from receiver.core.topics import TopicNames
from receiver.inbox import Inbox, append_all
from receiver.reader import Reader
from receiver.replay import letters


class Operations(Protocol):
    """All raise Unavailable where nothing can be kept now."""

    @property
    def is_deferred(self) -> bool:
        """Whether what they append waits until a process serves the directory again."""
        ...

    async def replay(self, verdicts: Collection[str] | None = None, start: str = "beginning") -> int:
        """Append the dead letters from `start` on, those of `verdicts` (None: all), to the inbox; returns how many.

        Those are skipped that today's parser refuses as it did before. Raises ValueError for a `start` or a verdict
        that is none.
        """
        ...

    async def learn(self, notifications: Sequence[Notification]) -> None:
        """Append what the operator's API told."""
        ...


class LocalOperations:
    """`Operations` is the contract; here by a reader and an inbox."""

    def __init__(self, reader: Reader, inbox: Inbox, prefix: str, *, is_deferred: bool = False) -> None:
        self.is_deferred = is_deferred
        self._reader = reader
        self._inbox = inbox
        self._dead_letters = TopicNames(prefix).dead_letters

    async def replay(self, verdicts: Collection[str] | None = None, start: str = "beginning") -> int:
        """See the contract."""
        count = 0
        async for record in letters(self._reader, self._dead_letters, verdicts, start):
            if notifications := revived(record):
                try:
                    await asyncio.gather(*map(self._inbox.append, notifications))
                except Unwritable:
                    continue  # the letter stays where it is, and those behind it go on
                count += 1
        return count

    async def learn(self, notifications: Sequence[Notification]) -> None:
        """See the contract."""
        await append_all(self._inbox, notifications)
