"""The backends as the contract tests open them. All differences between backends are here."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import apsw
import pytest

from receiver.backends.kafka.connection import KafkaConnection, Security
from receiver.backends.kafka.inbox import KafkaInbox
from receiver.backends.kafka.lane import KafkaLane, Topics
from receiver.backends.kafka.reader import KafkaReader
from receiver.backends.kafka.topics import TopicPlan, create
from receiver.backends.sqlite.node import ServedDirectory, SqliteReader
from receiver.backends.sqlite.schema import FILE_NAME
from receiver.core.message import Record
from receiver.core.notification import Notification
from receiver.core.router import Decision, Router
from receiver.core.session import Session
from receiver.inbox import Batch, Inbox, Lane
from receiver.reader import Reader
from tests.kafka_cluster import Brokers, Cluster
from tests.limits import SECONDS_MAX

SESSIONS_TOPIC = "qod.sessions"
COUNT_MAX = 10_000


async def _nothing() -> None:
    """Appends can be read at once."""


class Node(NamedTuple):
    """The inbox, the lane and the reader of an open backend."""

    inbox: Inbox
    lane: Lane
    reader: Reader
    prefix: str = "qod"
    settle: Callable[[], Awaitable[None]] = _nothing
    """Let the lane know all that was appended: one over a network knows it only when it asks."""

    def topic(self, name: str) -> str:
        """The full name of a topic."""
        return f"{self.prefix}.{name}"


class Backend(Protocol):
    """A backend for the contract tests: it can be opened again and again, and made to stand still."""

    prefix: str

    def opened(self, *, append_timeout_seconds: float = 30) -> AbstractAsyncContextManager[Node]:
        """Open the backend. All that was kept is there again."""
        ...

    def stalled(self) -> AbstractContextManager[None]:
        """Keep nothing for as long as the block lasts."""
        ...


class SqliteBackend:
    """A directory, as the embedded backend serves it."""

    prefix = "qod"

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @asynccontextmanager
    async def opened(self, *, append_timeout_seconds: float = 30) -> AsyncIterator[Node]:
        """Serve the directory, with a reader beside it."""
        node = ServedDirectory(
            self.directory, sessions_topic=SESSIONS_TOPIC, append_timeout_seconds=append_timeout_seconds
        )
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
        """Let another program lock the file for as long as the block lasts, so that no append gets to the disk."""
        other = apsw.Connection(str(self.directory / FILE_NAME))
        try:
            other.set_busy_timeout(60_000)  # a commit under way ends first
            other.execute("BEGIN EXCLUSIVE")
            yield
        finally:
            other.close(force=True)


class _AskingLane(KafkaLane):
    """A lane that asks for the end of the inbox before it reads, and reads up to there."""

    async def settle(self) -> None:
        assert self._feed is not None
        _, self._feed.end = await self._feed.bounds()

    async def read(self, count_max: int) -> Batch:
        await self.settle()
        batch = await super().read(count_max)
        assert self._feed is not None
        while len(batch.notifications) < count_max and batch.next_position < self._feed.end:
            more = await super().read(count_max - len(batch.notifications))
            batch = batch._replace(
                next_position=more.next_position,
                positions=[*batch.positions, *more.positions],
                notifications=[*batch.notifications, *more.notifications],
                sessions=batch.sessions | more.sessions,
            )
        return batch


class KafkaBackend:
    """Topics of its own on a real cluster, with one partition."""

    def __init__(self, cluster: Brokers, prefix: str) -> None:
        self.prefix = prefix
        self._cluster = cluster
        self._connection = KafkaConnection([cluster.bootstrap], Security().options())
        self.is_made = False

    @asynccontextmanager
    async def opened(self, *, append_timeout_seconds: float = 30) -> AsyncIterator[Node]:
        """Take the lane, with an inbox and a reader beside it."""
        names = [f"{self.prefix}.{name}" for name in ("dead-letter", "sessions", "status", "unavailable")]
        # The samples are from 2026: their records keep their times for ten years.
        plan = TopicPlan(self.prefix, names, 1, None, 168, 10 * 365 * 24)
        if not self.is_made:
            await create(self._connection, plan)
            self.is_made = True
        inbox = KafkaInbox(self._connection, plan.inbox, append_timeout_seconds=append_timeout_seconds)
        running = asyncio.create_task(inbox.run())
        topics = Topics.of(self.prefix, "router", names)
        lane = _AskingLane(self._connection, topics, 0)
        reader = KafkaReader(self._connection, self.prefix)
        try:
            async with asyncio.timeout(SECONDS_MAX):
                await inbox.connected.wait()
                await lane.open()
            yield Node(inbox, lane, reader, self.prefix, lane.settle)
        finally:
            running.cancel()
            await asyncio.wait({running})
            await lane.close()
            await reader.close()

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Pause the broker for as long as the block lasts."""
        if not isinstance(self._cluster, Cluster):
            pytest.skip("the cluster of KAFKA_BOOTSTRAP_SERVERS is not ours to disturb")
        self._cluster.pause(0)
        try:
            yield
        finally:
            self._cluster.resume(0)


async def until(done: Callable[[], bool]) -> None:
    """Wait for a condition by asking again and again, for a limited time."""
    async with asyncio.timeout(SECONDS_MAX):
        while not done():  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.002)


async def append(node: Node, *notifications: Notification) -> None:
    """Append notifications one after the other, so that their order is known."""
    for notification in notifications:
        await node.inbox.append(notification)
    await node.settle()


def decide(router: Router, batch: Batch) -> list[Decision]:
    """A router's decisions on a batch."""
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
    """Forget a session, as retention does."""
    await lane.commit(
        batch, [router.forget(session, batch.clock_micros)], {session.session_id: None}, batch.clock_micros
    )


async def route(node: Node, router: Router) -> list[Decision]:
    """Decide on all that is in the inbox, and commit it."""
    made: list[Decision] = []
    await node.settle()
    while node.lane.lag:
        made += await commit(node.lane, router, await node.lane.read(COUNT_MAX))
    return made


async def everything(reader: Reader, topic: str) -> Sequence[Record]:
    """All records of a topic; none if it does not exist."""
    if topic not in await reader.topics():
        return []
    cursor, found = await reader.beginning(topic), list[Record]()
    while records := await reader.records(topic, cursor, COUNT_MAX):
        found += records
    return found
