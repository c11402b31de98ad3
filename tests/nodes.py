"""The backends as the contract tests open them. What differs from one backend to another stands here alone."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import apsw

from receiver.backends.sqlite import SqliteNode, SqliteReader
from receiver.backends.sqlite_schema import FILE_NAME
from receiver.inbox import Batch, Inbox, Lane
from receiver.message import Record
from receiver.notification import Notification
from receiver.reader import Reader
from receiver.router import Decision, Router
from receiver.session import Session

SESSIONS_TOPIC = "qod.sessions"
COUNT_MAX = 10_000


class Node(NamedTuple):
    """The three sides of an open backend."""

    inbox: Inbox
    lane: Lane
    reader: Reader


class SqliteBackend:
    """A directory, as the embedded backend serves it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @asynccontextmanager
    async def opened(self, *, append_timeout_seconds: float = 30) -> AsyncIterator[Node]:
        """Serve the directory, with a reader beside."""
        node = SqliteNode(self.directory, sessions_topic=SESSIONS_TOPIC, append_timeout_seconds=append_timeout_seconds)
        try:
            reader = SqliteReader(self.directory, SESSIONS_TOPIC)
            try:
                yield Node(node.inbox, node.lane, reader)
            finally:
                reader.close()
        finally:
            node.close()

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """While this lasts, nothing gets to the disk: another program has the file to itself."""
        other = apsw.Connection(str(self.directory / FILE_NAME))
        try:
            other.execute("BEGIN EXCLUSIVE")
            yield
        finally:
            other.close(force=True)


async def until(done: Callable[[], bool]) -> None:
    """Wait for what nobody tells of: a minute at most."""
    async with asyncio.timeout(60):
        while not done():  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.002)


async def append(node: Node, *notifications: Notification) -> None:
    """Append one after the other, so that their order is known."""
    for notification in notifications:
        await node.inbox.append(notification)


def decide(router: Router, batch: Batch) -> list[Decision]:
    """What a router comes to on a batch."""
    made: list[Decision] = []
    sessions, clock_micros = dict(batch.sessions), batch.clock_micros
    for position, notification in zip(batch.positions, batch.notifications, strict=True):
        clock_micros = max(clock_micros, notification.received_micros)
        decision = router.decide(notification, f"0-{position}", sessions.get(notification.key), clock_micros)
        if decision.session is not None:
            sessions[notification.key] = decision.session
        made.append(decision)
    return made


async def commit(lane: Lane, router: Router, batch: Batch) -> list[Decision]:
    """Decide on a batch and commit it."""
    made = decide(router, batch)
    clock_micros = max([batch.clock_micros, *(each.received_micros for each in batch.notifications)])
    messages = [message for decision in made for message in decision.messages]
    sessions = {decision.session.session_id: decision.session for decision in made if decision.session is not None}
    await lane.commit(batch, messages, sessions, clock_micros)
    return made


async def forget(lane: Lane, router: Router, batch: Batch, session: Session) -> None:
    """End the life of a session."""
    await lane.commit(
        batch, [router.forget(session, batch.clock_micros)], {session.session_id: None}, batch.clock_micros
    )


async def route(node: Node, router: Router) -> list[Decision]:
    """Decide on all that is in the inbox."""
    made: list[Decision] = []
    while node.lane.lag:
        made += await commit(node.lane, router, await node.lane.read(COUNT_MAX))
    return made


async def everything(reader: Reader, topic: str) -> Sequence[Record]:
    """All records of a topic; none where it does not exist."""
    if topic not in await reader.topics():
        return []
    return await reader.records(topic, await reader.beginning(topic), COUNT_MAX)
