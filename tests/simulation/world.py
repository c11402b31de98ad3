"""One seed: the embedded node from its first life to its last, its disk, and its senders.

The edge, the inbox, the lane, the dispatcher and the router are the program's own. Two things differ: the file is
opened with another VFS and with locks that need no shared memory, and the view reads over the file's connection, which
is safe as calls run one at a time.
"""

import asyncio
import hashlib
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, cast

import apsw

import receiver.core.session
from receiver.backends.packing import Pack
from receiver.backends.sqlite.file import Effects, SqliteFile
from receiver.backends.sqlite.node import SqliteInbox, SqliteLane
from receiver.backends.sqlite.schema import failing
from receiver.backends.sqlite.view import SqliteView
from receiver.core.errors import Refused, Unavailable
from receiver.core.router import Router
from receiver.core.session import Verdict
from receiver.dispatcher import Dispatcher
from receiver.edge.admission import Admission
from receiver.edge.app import EdgeApp
from receiver.edge.intake import Intake, Limits
from receiver.inbox import Batch, Lane
from receiver.request_lines import Line
from receiver.telemetry import Telemetry
from tests.simulation.checks import (
    FORGET_SECONDS,
    MARKS_MAX,
    PREFIX,
    SESSIONS,
    Attempt,
    History,
    Violation,
    check_disk,
    check_inbox,
    check_open_file,
    check_sessions,
    check_topics,
    kept_from,
)
from tests.simulation.disk import Disk, Faults, SimVFS
from tests.simulation.loop import Killed, SimLoop, SimThread
from tests.simulation.oracle import Truth
from tests.simulation.senders import SECOND, SENDERS, Post, Senders

#: The beginning of every world: 2026-11-24T10:00:00Z.
_BEGINNING = 1_795_514_400 * SECOND

_LIVES = 5
_POSTS_A_LIFE = 36
_BATCH_MAX = 8
_CHECKPOINT_PAGES = 24
_APPEND_TIMEOUT_SECONDS = 2.0
_INBOX_SECONDS, _TOPICS_SECONDS = 6, 10


class NodeFile(SqliteFile):
    """The program's file, on a simulated disk."""

    def __init__(self, vfs: SimVFS, history: History | None) -> None:
        super().__init__(Path(), SESSIONS, passed_over=_unexpected, vfs=vfs.name)
        self.vfs = vfs
        self._history = history

    def borrow(self) -> apsw.Connection:
        """The present connection, for the view."""
        return self._connection or self._open()

    def append(self, pack: Pack, now_micros: int) -> None:
        """See SqliteFile."""
        with self.vfs.doing("append"):
            super().append(pack, now_micros)

    def commit(self, position: int, next_position: int, effects: Effects, clock_micros: int) -> int:
        """See SqliteFile."""
        with self.vfs.doing("commit"):
            return super().commit(position, next_position, effects, clock_micros)

    def retain(self, inbox_micros: int, topics_micros: int, rows_max: int) -> int:
        """See SqliteFile. What it may remove is noted before."""
        with failing("the file can't be opened"):
            self.borrow()
        if self._history is not None and self.vfs.left is None:
            self._history.record(NodeView(self))
        with self.vfs.doing("retention"):
            return super().retain(inbox_micros, topics_micros, rows_max)

    def _open(self) -> apsw.Connection:
        with self.vfs.doing("opening"):
            connection = super()._open()
            connection.wal_autocheckpoint(_CHECKPOINT_PAGES)
            return connection

    def _connect(self) -> apsw.Connection:
        connection = super()._connect()
        connection.pragma("locking_mode", "exclusive")
        return connection


class NodeView(SqliteView):
    """The reader, over the file's own connection."""

    def __init__(self, file: NodeFile) -> None:
        self._sessions_topic = SESSIONS
        self._crc = "crc"
        self._told: set[str] = set()
        self._passed_over = _unexpected
        self._borrowed = cast("apsw.Connection", _Borrowed(file))

    @contextmanager
    def _connected(self, failed: str) -> Iterator[apsw.Connection]:
        with failing(failed):
            yield self._borrowed


def _unexpected(place: str, why: str) -> None:
    """Fail: nothing damages this disk. What it loses was never promised."""
    raise Violation(f"{place} is told to be damaged: {why}")


class _Borrowed:
    def __init__(self, file: NodeFile) -> None:
        self._file = file

    def execute(self, sql: str, bindings: Sequence[str | int] = ()) -> apsw.Cursor:
        return self._file.borrow().execute(sql, bindings)


class Parts(NamedTuple):
    """The parts of a node; a mutant replaces one of them."""

    file: type[NodeFile] = NodeFile
    view: type[NodeView] = NodeView
    inbox: type[SqliteInbox] = SqliteInbox
    lane: type[SqliteLane] = SqliteLane
    router: type[Router] = Router
    dispatcher: type[Dispatcher] = Dispatcher


class World:
    """Everything that follows from one seed. `tally` counts events, `trace` has them in order."""

    def __init__(self, seed: int, parts: Parts | None = None) -> None:
        self.tally: Counter[str] = Counter()
        self.trace: list[object] = []
        self.attempts: dict[str, Attempt] = {}
        self.alive = False
        self.random = Random(seed)
        self.senders = Senders(Random(self.random.getrandbits(64)))
        self.history = History()
        self.waiting: list[tuple[float, Post]] = []
        self.unexpected: list[str] = []
        self._seed = seed
        self._parts = parts or Parts()
        self._disk = Disk()
        self._seconds = 0.0
        self._skew_micros = 0
        self.position = 0  # the lane's durable position
        self._events = 0

    def run(self) -> None:
        """Run all lives. Raises Violation."""
        random.seed(self._seed)  # for the dispatcher's back-off
        with _few_marks(), _unheard():
            for life in range(_LIVES):
                self._live(life, self._faults(), last=False)
                self._check(last=False)
                self._seconds += self.random.choice((0.1, 2, 5))
            self._live(_LIVES, Faults(), last=True)
            self._check(last=True)

    def now_micros(self, seconds: float) -> int:
        """The wall clock, in microseconds."""
        return _BEGINNING + round(seconds * SECOND) + self._skew_micros

    def event(self, *what: object) -> int:
        """Note an event; returns the number of events before it."""
        self.trace.append(what)
        self._events += 1
        return self._events

    def jump(self) -> None:
        """Set the wall clock forward or back."""
        seconds = self.random.choice((-20, -3, 30, FORGET_SECONDS + 5))
        self.tally["clock set back" if seconds < 0 else "clock set forward"] += 1
        self._skew_micros += seconds * SECOND

    def end_all_sessions(self) -> None:
        """Set the clock so far forward that every session is forgotten."""
        self._skew_micros += (FORGET_SECONDS + 100) * SECOND

    def _faults(self) -> Faults:
        chance = self.random
        crash = chance.choice(("kill", "power cut", "power cut"))
        at = chance.choice(("operation", "operation", "sync", "time", "end"))
        full = chance.random() < 0.15
        first_bad_sync = chance.randrange(1, 40)
        bad_syncs = range(first_bad_sync, first_bad_sync + chance.choice((1, 1, 2, 5)))
        syncs_bad = chance.random() < 0.3
        crash_at = chance.randrange(1, 300) if at == "operation" else None
        crash_at_sync = chance.randrange(1, 45) if at == "sync" else None
        if syncs_bad and chance.random() < 0.5:
            # A crash is worst while the node recovers.
            crash_at, crash_at_sync = None, bad_syncs[-1] + chance.randrange(1, 4)
        return Faults(
            crash,
            crash_at,
            crash_at_sync,
            chance.uniform(0.2, 2) if at == "time" else None,
            chance.randrange(1, 250) if full else None,
            chance.choice((0.05, 0.5, 2)),
            bad_syncs if syncs_bad else range(0),
        )

    def _live(self, life: int, faults: Faults, *, last: bool) -> None:
        slow_share = 0.01 if self.random.random() < 0.3 and not last else 0.0
        loop = SimLoop(Random(self.random.getrandbits(64)), self._seconds, slow_share=slow_share, slow_seconds=2.5)
        vfs = SimVFS(self._disk, faults, Random(self.random.getrandbits(64)), self.tally, loop.time)
        self.event("life", life, faults)
        self.alive = True
        node = _Node(self, self._parts, vfs, loop)

        def between() -> None:
            if vfs.left is not None:
                raise Killed

        def die() -> None:
            vfs.crash(faults.crash)
            raise Killed

        loop.between = between
        loop.set_exception_handler(self._surprise)
        if faults.crash_at_seconds is not None:
            loop.call_later(faults.crash_at_seconds, die)
        try:
            if node.start():
                between()
                loop.run_until_complete(node.live(_POSTS_A_LIFE, last=last))
                self.tally["stopped in order"] += 1
                self._raise_the_unexpected()
            else:
                self.tally["could not start"] += 1
        except Killed:
            pass
        finally:  # also where something wrong was found, which ends the story
            loop.between = lambda: None
            self._end(loop, node)
        self._seconds = loop.time()
        self._disk = vfs.left or self._disk
        self.event("operations", len(vfs.operations), hashlib.sha256(repr(vfs.operations).encode()).hexdigest())
        vfs.unregister()

    def _end(self, loop: SimLoop, node: "_Node") -> None:
        """Close everything. If a crash ended the life, none of this has an effect."""
        if tasks := asyncio.all_tasks(loop):
            self.alive = False
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.alive = False
        node.file.close()
        loop.close()
        for post in node.in_flight.values():
            self.again(post, loop.time(), None)
        node.in_flight.clear()

    def again(self, post: Post, seconds: float, status: int | None) -> None:
        """Let a sender that was not answered 2xx try again, or give up."""
        if post.attempts <= post.patience:
            self.tally["posted again after no answer" if status is None else f"posted again after {status}"] += 1
            self.waiting.append((seconds + self.random.choice((0.01, 0.3, 2.0)), post))

    def _check(self, *, last: bool) -> None:
        vfs = SimVFS(self._disk.copy(), Faults(), Random(0), Counter(), lambda: 0.0)
        file = NodeFile(vfs, None)
        view = NodeView(file)
        try:
            file.open()
            check_disk(file.borrow())
            position = check_open_file(file, view, self.history, self.position)
            # A kill keeps what was not synced, and the next power cut may lose it.
            history = self.history.copy()
            history.record(view)
            check_inbox(history, self.attempts, file.end)
            if last and position != file.end:
                raise Violation(f"the lane stopped at {position} of {file.end}")
            kept = kept_from(history, position, self.senders.facts)
            truth = Truth(kept, FORGET_SECONDS * SECOND, MARKS_MAX)
            check_topics(history, truth)
            ended = check_sessions(view, truth, all_ended=last)
        except (apsw.Error, Unavailable) as error:
            raise Violation(f"what is on the disk can't be read: {error}") from error
        finally:
            file.close()
            vfs.unregister()
        self.event("verdicts", sorted(truth.verdicts.items()))
        if last:
            self.tally.update(truth.verdicts)
            self.tally["session ended"] += ended
            self.tally.update(f"sent to {made.strip('_').replace('_', ' ')}" for made in self.senders.made)
            self.tally["removed by retention"] += len(history.inbox) - len(view_of_inbox(self._disk))
            kept_correlators = {each.correlator for each in kept}
            for correlator, attempt in self.attempts.items():
                if correlator in kept_correlators and attempt.status == HTTPStatus.SERVICE_UNAVAILABLE:
                    self.tally["answered 503 and kept all the same"] += 1

    def _surprise(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if self.alive:
            self.unexpected.append(f"{context.get('message')}: {context.get('exception')!r}")

    def _raise_the_unexpected(self) -> None:
        if self.unexpected:
            raise Violation(f"the program failed: {self.unexpected}")


def view_of_inbox(disk: Disk) -> Sequence[object]:
    """The notifications that a disk still has."""
    vfs = SimVFS(disk.copy(), Faults(), Random(0), Counter(), lambda: 0.0)
    file = NodeFile(vfs, None)
    try:
        return NodeView(file).inbox(0, 1_000_000)[0]
    finally:
        file.close()
        vfs.unregister()


class _Node:
    """One life of the program."""

    def __init__(self, world: World, parts: Parts, vfs: SimVFS, loop: SimLoop) -> None:
        self.in_flight: dict[str, Post] = {}
        self.file = parts.file(vfs, world.history)
        self._world = world
        self._parts = parts
        self._loop = loop
        self._writer, self._reader = SimThread(), SimThread()
        self._telemetry = _Witness(world)
        self._calls: set[asyncio.Task[None]] = set()

    def start(self) -> bool:
        """Open the file and join the parts, as `service.run` does; returns whether that was possible."""
        world, parts = self._world, self._parts
        try:
            self.file.open()
            self._inbox = parts.inbox(
                self.file,
                self._writer,
                append_timeout_seconds=_APPEND_TIMEOUT_SECONDS,
                clock_nanos=self._nanos,
            )
            self.lane = parts.lane(
                view=parts.view(self.file),
                file=self.file,
                inbox=self._inbox,
                writer=self._writer,
                reader=self._reader,
                sessions_topic=SESSIONS,
            )
        except Unavailable:
            return False
        router = parts.router(prefix=PREFIX, forget_after_seconds=FORGET_SECONDS)
        self._dispatcher = parts.dispatcher(self.lane, router, self._telemetry, batch_max=_BATCH_MAX)
        intake = Intake(
            authenticate=_authenticate,
            admission=Admission(in_flight_max=10_000, in_flight_bytes_max=1 << 30),
            inbox=self._inbox,
            telemetry=self._telemetry,
            limits=Limits(body_bytes_max=65_536),
            clock_nanos=self._nanos,
        )
        self._edge = EdgeApp(intake, "/")
        if self.file.vfs.left is None:
            # All that is visible now is durable.
            view = NodeView(self.file)
            world.history.record(view)
            world.position = view.position()
        world.event("started", self.file.end)
        return True

    async def live(self, posts_count: int, *, last: bool) -> None:
        """Serve until all is posted, and in the last life until all is routed."""
        world = self._world
        routing = asyncio.create_task(self._dispatcher.run())
        retaining = asyncio.create_task(self._retain())
        if world.random.random() < 0.5 and not last:
            self._loop.call_later(world.random.uniform(0.1, 2), world.jump)
        await self._post_all(posts_count, last=last)
        if last:
            # Sessions are forgotten by the inbox's clock, when a notification comes.
            for _ in range(3):
                world.end_all_sessions()
                world.waiting.append((0.0, world.senders.last_word(self._nanos() // 1000)))
                await self._post_all(0, last=True)
                await asyncio.sleep(3)
        for _ in range(1000 if last else world.random.randrange(3)):
            if not self.lane.lag or routing.done():
                break
            await asyncio.sleep(0.1)
        for task in (routing, retaining):
            if task.done():
                raise Violation(f"the program failed: {task.exception()!r}")
            task.cancel()
        await asyncio.gather(routing, retaining, return_exceptions=True)
        await asyncio.gather(*self._calls)

    def _nanos(self) -> int:
        return self._world.now_micros(self._loop.time()) * 1000

    async def _post_all(self, new_count: int, *, last: bool) -> None:
        """Post new notifications and repetitions; in the last life all repetitions."""
        world = self._world
        while new_count > 0 or (last and (world.waiting or self.in_flight)):
            await asyncio.sleep(world.random.expovariate(1) * world.random.choice((0.001, 0.02, 0.2)))
            for _ in range(world.random.choice((1, 1, 1, 2, 5, 12))):
                due = [each for each in world.waiting if each[0] <= self._loop.time()]
                if due:
                    each = world.random.choice(due)
                    world.waiting.remove(each)
                    self._start_call(each[1])
                elif new_count > 0:
                    new_count -= 1
                    self._start_call(world.senders.next(self._nanos() // 1000))

    def _start_call(self, post: Post) -> None:
        world = self._world
        correlator = f"{post.number}.{post.attempts}"
        post.attempts += 1
        attempt = world.attempts[correlator] = Attempt(post, world.event("post", correlator))
        self.in_flight[correlator] = post
        call = asyncio.create_task(self._call(correlator, post, attempt))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _call(self, correlator: str, post: Post, attempt: Attempt) -> None:
        """Post once. The client stops waiting after a while, and the edge goes on all the same."""
        world = self._world
        call = asyncio.create_task(self._serve(correlator, post, attempt))
        done, _ = await asyncio.wait({call}, timeout=world.random.choice((0.005, 1, 10)))
        status = attempt.status if done else None
        if done and world.random.random() < 0.04:
            world.tally["answer lost"] += 1
            status = None
        del self.in_flight[correlator]
        if status is None or status == HTTPStatus.SERVICE_UNAVAILABLE:
            world.again(post, self._loop.time(), status)
        await call

    async def _serve(self, correlator: str, post: Post, attempt: Attempt) -> None:
        world = self._world
        middle = world.random.randrange(len(post.body) + 1) if world.random.random() < 0.2 else len(post.body)
        pieces = [post.body[:middle], post.body[middle:]] if middle < len(post.body) else [post.body]

        async def receive() -> dict[str, Any]:
            if len(pieces) == 2:
                await asyncio.sleep(0.001)
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

        async def send(message: Any) -> None:  # noqa: ANN401  # ASGI's own type
            if message["type"] == "http.response.start" and world.alive:
                attempt.status = message["status"]
                attempt.answered = world.event("answer", correlator, attempt.status)
                world.tally[f"answered {attempt.status}"] += 1

        headers = [(b"host", b"node"), (b"x-correlator", correlator.encode()), *post.headers]
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": "/",
            "query_string": b"",
            "headers": headers,
        }
        await self._edge(scope, receive, send)

    async def _retain(self) -> None:
        while True:
            await asyncio.sleep(self._world.random.choice((0.3, 1, 2)))
            now = self._nanos() // 1000
            arguments = (
                now - _INBOX_SECONDS * SECOND,
                now - _TOPICS_SECONDS * SECOND,
                self._world.random.choice((1, 50)),
            )
            try:
                await self._loop.run_in_executor(self._writer, self.file.retain, *arguments)
            except Unavailable as error:
                self._world.event("retention failed", error.message)


class _Witness(Telemetry):
    """Telemetry that notes what the program reports."""

    def __init__(self, world: World) -> None:
        super().__init__(StringIO())
        self._world = world

    def request(self, line: Line) -> None:
        self._world.event("request", line.correlator, line.outcome)

    def refused(self, status: int, why: str, message: str, line: Line, address: str, path: str) -> None:  # noqa: PLR0917  # as the original
        del message, line, address, path
        self._world.event("refused", status, why)

    def batch(self, lane: Lane, batch: Batch, verdicts: Sequence[Verdict], messages_count: int, seconds: float) -> None:
        del seconds
        self._world.position = batch.next_position
        told = batch.position, batch.next_position, len(verdicts), messages_count, lane.lag
        self._world.event("batch", *told)

    def undecidable(self, trace: str, error: Exception) -> None:
        self._world.unexpected.append(f"the router failed on {trace}: {error!r}")

    def lane_failed(self, partition: int, reason: str) -> None:
        del partition
        self._world.tally["commit failed and kept all the same"] += "kept" in reason
        self._world.tally["lane failed"] += 1
        self._world.event("lane failed", reason)


async def _authenticate(authorization: bytes | None) -> str:
    sender = (authorization or b"").removeprefix(b"Bearer ").decode()
    if sender not in SENDERS:
        raise Refused(HTTPStatus.UNAUTHORIZED, "UNAUTHENTICATED", "the token is not known", reason="unauthenticated")
    return sender


@contextmanager
def _unheard() -> Iterator[None]:
    """Silence SQLite's log of failures that it ignores, such as those of a checkpoint while it closes."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def _few_marks() -> Iterator[None]:
    """Let sessions remember so few events that they reach the limit."""
    before, receiver.core.session.MARKS_MAX = receiver.core.session.MARKS_MAX, MARKS_MAX
    try:
        yield
    finally:
        receiver.core.session.MARKS_MAX = before
