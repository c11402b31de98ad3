"""The embedded backend: one directory, one serving process, nothing else to install.

`file.py` and `view.py` access the file; this module makes them asynchronous. One thread writes, in the order of the
requests, so appends and commits take turns. Appends that arrive while it writes wait together and share the next sync.
"""

import asyncio
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar, TypeVarTuple, Unpack

import orjson

from receiver.backends.directory import Lock, make_directory
from receiver.backends.packing import pack_messages, pack_notifications
from receiver.backends.sqlite.file import Effects, SqliteFile
from receiver.backends.sqlite.schema import PARTITION, State, state_crc
from receiver.backends.sqlite.view import SqliteView
from receiver.core.errors import Unavailable
from receiver.core.event import QosStatus
from receiver.core.message import Message, Record
from receiver.core.notification import Notification
from receiver.core.session import Session
from receiver.inbox import Batch, LaneLost, Told, future_of, tell_all
from receiver.reader import PAGE_BYTES_MAX, Cursor, PassedOver, Reader, nobody

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: One append writes at most this many notifications: a row of some 300 KB, and a few milliseconds for those behind it.
GROUP_MAX = 512


#: The wait for more appends ends after this many turns of the loop without a new one; a turn takes some microseconds. A
#: sender's connections all wait for the same sync, and when it is done they all post again within a few turns.
_QUIET_TURNS = 4
_GATHER_SECONDS_MAX = 0.002


#: Notifications kept in memory for a router that keeps up: half a second of full load, with at most this many bytes.
_TAIL_MAX = 10_000
_TAIL_BYTES_MAX = 16 * 1024 * 1024

#: Sessions whose state is kept in memory, about a kilobyte each: most events of a session come soon after another.
#: Their records have at most this many bytes; a state takes some three times its record.
_RECENT_MAX = 20_000
_RECENT_BYTES_MAX = 16 * 1024 * 1024

#: Bytes read at once, apart from the rest of a row, and bytes of messages in one commit. Twice as much of each is in
#: memory, as one batch is decided on while the one before it is committed.
_READ_BYTES_MAX = 4 * 1024 * 1024
_COMMIT_BYTES_MAX = 8 * 1024 * 1024


class Tail:
    """The notifications appended last, so that a router that keeps up need not read them from the file.

    Those that were taken, or exceed the limits, are dropped here; they are in the file.
    """

    def __init__(self) -> None:
        self._rows: deque[tuple[int, Sequence[Notification]]] = deque()
        self._count = self._bytes = 0

    def add(self, position: int, notifications: Sequence[Notification]) -> None:
        """Keep the notifications that are in the file from `position` on."""
        self._rows.append((position, notifications))
        self._weigh(notifications, 1)
        while self._count > _TAIL_MAX or self._bytes > _TAIL_BYTES_MAX:
            self._drop()

    def take(self, position: int, count_max: int) -> list[Notification]:
        """The notifications from `position` on, in whole rows; none if they are not here."""
        while self._rows and self._rows[0][0] < position:
            self._drop()
        taken: list[Notification] = []
        before_bytes = self._bytes
        while self._rows and self._rows[0][0] == position + len(taken) and len(taken) < count_max:
            taken += self._drop()
            if before_bytes - self._bytes >= _READ_BYTES_MAX:
                break
        return taken

    def _drop(self) -> Sequence[Notification]:
        _, notifications = self._rows.popleft()
        self._weigh(notifications, -1)
        return notifications

    def _weigh(self, notifications: Sequence[Notification], sign: int) -> None:
        self._count += sign * len(notifications)
        self._bytes += sign * sum([len(each.body) for each in notifications])


class SqliteInbox:
    """The inbox with group commit. `receiver.inbox.Inbox` is the contract."""

    def __init__(
        self,
        file: SqliteFile,
        writer: Executor,
        *,
        append_timeout_seconds: float,
        appended: Callable[[int, float], None] = lambda _count, _seconds: None,
        clock_nanos: Callable[[], int] = time.time_ns,
    ) -> None:
        self._file = file
        self._writer = writer
        self._timeout_seconds = append_timeout_seconds
        self._tell = appended
        self._clock_nanos = clock_nanos
        self._began = 0.0
        self._waiting: deque[tuple[Notification, Told]] = deque()
        self._group: Sequence[tuple[Notification, Told]] = ()
        self._busy = False
        self._stuck = False
        self._deadline: asyncio.TimerHandle | None = None
        self.trouble = ""
        self.appended = asyncio.Event()
        self.tail = Tail()

    def append(self, notification: Notification) -> asyncio.Future[None]:
        """See the contract."""
        return future_of(self.take, notification)

    def take(self, notification: Notification, told: Told) -> None:
        """See the contract. Many appends share one sync; none waits longer than the time limit."""
        if self._stuck:
            told(Unavailable(self.trouble, reason="timeout"))
            return
        self._waiting.append((notification, told))
        if not self._busy:
            loop = asyncio.get_running_loop()
            self._busy = True
            self._began = loop.time()
            self._gather(loop, 0, 0)

    def _gather(self, loop: asyncio.AbstractEventLoop, seen: int, quiet_turns: int) -> None:
        """Write once no more appends arrive: each write costs a sync and two changes of thread, whatever its size."""
        count = len(self._waiting)
        quiet_turns = 0 if count > seen else quiet_turns + 1
        if quiet_turns == _QUIET_TURNS or count >= GROUP_MAX or loop.time() - self._began > _GATHER_SECONDS_MAX:
            self._write(loop)
        else:
            loop.call_soon(self._gather, loop, count, quiet_turns)

    def _write(self, loop: asyncio.AbstractEventLoop) -> None:
        self._group = self._next_group()
        self._deadline = loop.call_later(self._timeout_seconds, self._expire)
        pack = pack_notifications([notification for notification, _ in self._group])
        writing = loop.run_in_executor(self._writer, self._file.append, pack, self._clock_nanos() // 1000)
        writing.add_done_callback(self._written)

    def _next_group(self) -> Sequence[tuple[Notification, Told]]:
        waiting, bytes_max = self._waiting, self._file.append_bytes_max
        group = list[tuple[Notification, Told]]()
        group_bytes = 0
        while waiting and len(group) < GROUP_MAX and group_bytes < bytes_max:
            group.append(waiting.popleft())
            group_bytes += len(group[-1][0].body)
        return group

    def _written(self, outcome: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        if self._deadline is not None:
            self._deadline.cancel()
        group, self._group = self._group, ()
        was_stuck, self._stuck = self._stuck, False
        error = outcome.exception()
        self.trouble = "" if error is None else str(error)
        now = loop.time()
        if error is None:
            notifications = [notification for notification, _ in group]
            self.tail.add(self._file.end - len(notifications), notifications)
            self.appended.set()
            self._tell(len(group), now - self._began)
        self._began = now
        if not was_stuck:
            tell_all((told for _, told in group), error)
        if self._waiting:
            self._gather(loop, 0, 0)
        else:
            self._busy = False

    def _expire(self) -> None:
        self._stuck = True
        self.trouble = f"the disk took longer than {self._timeout_seconds:g} s"
        refused = [told for _, told in (*self._group, *self._waiting)]
        self._waiting.clear()
        tell_all(refused, Unavailable(self.trouble, reason="timeout"))


class SqliteLane:
    """The only lane of an embedded node. `receiver.inbox.Lane` is the contract.

    It keeps the position of each session's record, some 200 bytes a session, and the states used last. Other states are
    read when needed.
    """

    partition = PARTITION
    bytes_max = _COMMIT_BYTES_MAX

    def __init__(
        self,
        *,
        view: SqliteView,
        file: SqliteFile,
        inbox: SqliteInbox,
        writer: Executor,
        reader: Executor,
        sessions_topic: str,
    ) -> None:
        self._sessions_topic = sessions_topic
        self._view = view
        self._file = file
        self._inbox = inbox
        self._writer = writer
        self._reader = reader
        self._committed = self._read_up_to = view.position()
        self._clock_micros = view.clock_micros()
        self._standing = view.standing()
        self._recent: OrderedDict[str, tuple[Session, int]] = OrderedDict()  # with the length of its record
        self._recent_bytes = 0

    @property
    def lag(self) -> int:
        """See the contract."""
        return self._file.end - self._committed

    async def read(self, count_max: int) -> Batch:
        """See the contract."""
        position, clock_micros = self._read_up_to, self._clock_micros
        while True:
            self._inbox.appended.clear()
            notifications: Sequence[Notification] = self._inbox.tail.take(position, count_max)
            next_position = position + len(notifications)
            if not notifications:
                notifications, next_position = await self._look(self._view.inbox, position, count_max, _READ_BYTES_MAX)
            if notifications:
                break
            await self._inbox.appended.wait()
        sessions = await self._states({each.key for each in notifications})
        self._read_up_to = next_position
        # Counted from the end: a gap in the file comes before these notifications.
        positions = range(next_position - len(notifications), next_position) if len(notifications) > 1 else [position]
        return Batch(position, next_position, positions, notifications, sessions, clock_micros)

    def rewind(self) -> None:
        """See the contract."""
        self._read_up_to = self._committed

    async def oldest(self, count_max: int) -> tuple[Batch, Sequence[Session]]:
        """See the contract."""
        sessions = await self._look(self._view.oldest_sessions, count_max)
        return Batch(self._committed, self._committed, (), (), {}, self._clock_micros), sessions

    async def commit(
        self, batch: Batch, messages: Sequence[Message], sessions: Mapping[str, Session | None], clock_micros: int
    ) -> None:
        """See the contract."""
        loop = asyncio.get_running_loop()
        effects, keys = self._effects(messages)
        try:
            first = await loop.run_in_executor(
                self._writer, self._file.commit, batch.position, batch.next_position, effects, clock_micros
            )
        except LaneLost as error:
            # The lock keeps all others out, so it was this process: a commit that failed was kept all the same.
            await self._look(self._find_out)
            raise Unavailable("an earlier commit turned out to be kept", reason="store") from error
        for position, (key, state) in enumerate(zip(keys, effects.states, strict=True), first):
            if state[3] is None:
                self._standing.pop(key, None)
            else:
                self._standing[key] = position
            self._remember(key, sessions.get(key), len(state[2]) + len(state[3] or ""))
        self._committed, self._clock_micros = batch.next_position, clock_micros

    def _remember(self, key: str, session: Session | None, record_bytes: int) -> None:
        _, before_bytes = self._recent.pop(key, (None, 0))
        self._recent_bytes -= before_bytes
        if session is not None:
            self._recent[key] = session, record_bytes
            self._recent_bytes += record_bytes
        while len(self._recent) > _RECENT_MAX or self._recent_bytes > _RECENT_BYTES_MAX:
            _, (_, freed_bytes) = self._recent.popitem(last=False)
            self._recent_bytes -= freed_bytes

    async def _look(self, call: Callable[[Unpack[Ts]], T], *arguments: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, call, *arguments)

    async def _states(self, keys: set[str]) -> dict[str, Session]:
        states = {key: self._recent[key][0] for key in keys if key in self._recent}
        elsewhere = [self._standing[key] for key in keys if key in self._standing and key not in states]
        return states | await self._look(self._view.sessions, elsewhere) if elsewhere else states

    def _effects(self, messages: Sequence[Message]) -> tuple[Effects, Sequence[str]]:
        by_topic: defaultdict[str, list[Message]] = defaultdict(list)
        for message in messages:
            by_topic[message.topic].append(message)
        newest: dict[str, Message] = {}
        for message in by_topic.pop(self._sessions_topic, ()):
            newest.pop(message.key, None)  # to be at the place of the last record of its key, not the first
            newest[message.key] = message
        return (
            Effects(
                [(topic, pack_messages(some)) for topic, some in by_topic.items()],
                [_state(message) for message in newest.values()],
                [self._standing[key] for key in newest if key in self._standing],
            ),
            list(newest),
        )

    def _find_out(self) -> None:
        self._recent.clear()
        self._recent_bytes = 0
        self._committed, self._clock_micros = self._view.position(), self._view.clock_micros()
        self._standing = self._view.standing()


def _state(message: Message) -> State:
    key, value, millis = message.key, message.value, message.timestamp_millis
    headers = orjson.dumps(message.headers)
    crc = state_crc(key.encode(), millis, headers, value)
    return key, millis, headers, None if value is None else value.decode(), crc


class SqliteReader(Reader):
    """Reads from any process. `receiver.reader.Reader` is the contract."""

    def __init__(
        self,
        directory: Path,
        sessions_topic: str,
        passed_over: PassedOver = nobody,
        damaged: Callable[[], None] = lambda: None,
    ) -> None:
        self._view = SqliteView(directory, sessions_topic, passed_over, damaged)
        self._thread = ThreadPoolExecutor(1, "sqlite-reader")

    def close(self) -> None:
        """Close the file."""
        self._thread.shutdown()
        self._view.close()

    async def topics(self) -> Sequence[str]:
        """See the contract."""
        return await self._run(self._view.topics)

    async def beginning(self, topic: str) -> Cursor:
        """See the contract."""
        return {PARTITION: await self._run(lambda: self._view.beginning(topic))}

    async def end(self, topic: str) -> Cursor:
        """See the contract."""
        return {PARTITION: await self._run(lambda: self._view.end(topic))}

    async def records(
        self, topic: str, cursor: Cursor, count_max: int, bytes_max: int = PAGE_BYTES_MAX
    ) -> Sequence[Record]:
        """See the contract."""
        records = await self._run(lambda: self._view.records(topic, cursor[PARTITION], count_max, bytes_max))
        if records:
            cursor[PARTITION] = records[-1].position + 1
        return records

    async def sessions(self, qos_status: QosStatus | None, count_max: int) -> Sequence[Session]:
        """See the contract."""
        return await self._run(lambda: self._view.newest_sessions(qos_status, count_max))

    async def sessions_of(self, sender: str, session_ids: Collection[str]) -> Sequence[Session]:
        """See the contract."""
        return await self._run(lambda: self._view.sessions_of(sender, session_ids))

    async def session_counts(self) -> dict[QosStatus, int]:
        """See the contract."""
        return await self._run(self._view.session_counts)

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


class ServedDirectory:
    """A directory that this process serves: its lock, its file, and the inbox and the lane over it."""

    def __init__(
        self,
        directory: Path,
        *,
        sessions_topic: str,
        append_timeout_seconds: float,
        appended: Callable[[int, float], None] = lambda _count, _seconds: None,
        passed_over: PassedOver = nobody,
    ) -> None:
        make_directory(directory)
        with ExitStack() as stack:
            stack.callback(Lock(directory).release)
            self._file = SqliteFile(directory, sessions_topic, passed_over=passed_over)
            stack.callback(self._file.close)
            self._file.open()
            self._view = SqliteView(directory, sessions_topic, passed_over, self.suspect)
            stack.callback(self._view.close)
            self._reader = stack.enter_context(ThreadPoolExecutor(1, "sqlite-lane"))
            self._writer = stack.enter_context(ThreadPoolExecutor(1, "sqlite-writer"))
            self.inbox = SqliteInbox(
                self._file, self._writer, append_timeout_seconds=append_timeout_seconds, appended=appended
            )
            self.lane = self._lane(sessions_topic)
            self._opened = stack.pop_all()

    def _lane(self, sessions_topic: str) -> SqliteLane:
        def opened() -> SqliteLane:
            return SqliteLane(
                view=self._view,
                file=self._file,
                inbox=self.inbox,
                writer=self._writer,
                reader=self._reader,
                sessions_topic=sessions_topic,
            )

        try:
            return opened()
        except Unavailable:
            if not self._file.is_suspect:
                raise
            self._file.open()
            return opened()

    def expect(self, topics: Sequence[str]) -> None:
        """Make these topics exist for readers before their first records. Call it before anything else."""
        self._file.expect(topics)

    def suspect(self) -> None:
        """Have the file rebuilt from what can be read of it, at the next write."""
        self._file.is_suspect = True

    async def look(self) -> None:
        """Check that the file is in its place. Raises Unavailable."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, self._file.look)
        except Unavailable as error:
            self.inbox.trouble = error.message
            raise

    async def retain(self, inbox_micros: int, topics_micros: int, rows_max: int) -> int:
        """Remove what is older than the times given; see SqliteFile.retain.

        It writes even if there is nothing to remove, so it also finds out, without any traffic, whether the file can be
        written.
        """
        try:
            removed = await asyncio.get_running_loop().run_in_executor(
                self._writer, self._file.retain, inbox_micros, topics_micros, rows_max
            )
        except Unavailable as error:
            self.inbox.trouble = error.message
            raise
        self.inbox.trouble = self._file.full
        return removed

    def close(self) -> None:
        """Finish writing, close the file, and let another process serve the directory."""
        self._opened.close()
