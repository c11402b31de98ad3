"""The operations of a receiver, beside receiving, that an operator can start. The operations port offers them, and the
commands call them.

`LocalOperations` uses an open reader and inbox; `process/distant.py` asks the process that serves a directory.
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
    """The contract. All methods raise Unavailable where nothing can be kept now."""

    @property
    def is_deferred(self) -> bool:
        """Whether appended notifications wait until a process serves the directory again."""
        ...

    async def replay(self, verdicts: Collection[str] | None = None, start: str = "beginning") -> int:
        """Append the dead letters from `start` on to the inbox; returns how many.

        `verdicts` limits them to those verdicts (None: all). Letters that today's parser still refuses are skipped.
        Raises ValueError for an invalid `start` or verdict.
        """
        ...

    async def learn(self, notifications: Sequence[Notification]) -> None:
        """Append notifications that were made of the operator API's answers."""
        ...


class LocalOperations:
    """The operations by means of a reader and an inbox."""

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
                    continue  # the letter stays a dead letter; the next ones are replayed
                count += 1
        return count

    async def learn(self, notifications: Sequence[Notification]) -> None:
        """See the contract."""
        await append_all(self._inbox, notifications)
