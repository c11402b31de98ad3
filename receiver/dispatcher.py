"""The loop that joins inbox and topics: read, decide, commit.

It knows neither HTTP nor any backend. Decisions depend on the inbox alone (see `core/router.py`), so the loop may be
stopped anywhere: reading the same notifications again gives the same messages.

One batch is decided on while the batch before it is being committed. Until that commit is done, the states of its
sessions come from its decisions. If the commit fails, everything read and decided since is dropped, and the loop
restarts behind the last commit.
"""

import asyncio

from receiver.backoff import Backoff
from receiver.core.errors import Unavailable
from receiver.core.event import Oddity
from receiver.core.message import Message, bytes_of_all
from receiver.core.router import Decision, Router
from receiver.core.session import Session, Verdict
from receiver.inbox import Batch, Lane
from receiver.telemetry import Telemetry

#: The loop is shared with the edge: after this many decisions, about a millisecond, requests get a turn.
_SLICE = 64

#: Least time between the starts of two batches, unless the last one was full: a commit has a fixed cost, whatever its
#: size. A notification that arrives alone does not wait for others.
_PACE_SECONDS = 0.02
#: A lane spends only part of its time on commits, less the more there is to do. The pace is the last commit's duration
#: times _PACE_COMMITS, plus that duration once more for every _PACE_NOTIFICATIONS notifications in the batch.
_PACE_COMMITS = 2
_PACE_NOTIFICATIONS = 32

_FORGET_INTERVAL_SECONDS = 1.0
_FORGET_MAX = 256

_COMMIT_SECONDS_MAX = 10.0

_AGAIN_SECONDS_FIRST = 0.05
_AGAIN_SECONDS_MAX = 5.0


class Dispatcher:
    """Drives one lane.

    `pace_seconds_max` is the longest time between batches under load: long where another machine does the work of a
    commit, as Kafka's brokers do; short where senders wait for it, as they do for a file.
    """

    def __init__(
        self,
        lane: Lane,
        router: Router,
        telemetry: Telemetry,
        *,
        batch_max: int,
        pace_seconds_max: float = _PACE_SECONDS,
    ) -> None:
        self._lane = lane
        self._router = router
        self._telemetry = telemetry
        self._batch_max = batch_max
        self._pace_seconds = _PACE_SECONDS
        self._pace_seconds_max = pace_seconds_max
        telemetry.lane_opened(lane)

    @staticmethod
    def _loop_seconds() -> float:
        return asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Route for ever, with growing pauses while the backend fails. Raises LaneLost."""
        backoff = Backoff(_AGAIN_SECONDS_FIRST, _AGAIN_SECONDS_MAX)
        while True:
            began = self._loop_seconds()
            try:
                await self._flow()
            except Unavailable as error:
                self._telemetry.lane_failed(self._lane.partition, error.message)
                if self._loop_seconds() - began > _AGAIN_SECONDS_MAX:
                    backoff.reset()
                await asyncio.sleep(backoff.seconds())

    async def _flow(self) -> None:
        """Route until the backend fails. Raises Unavailable and LaneLost."""
        self._lane.rewind()
        committing: asyncio.Task[None] | None = None
        decided = _Decided({}, 0)
        rest: Batch | None = None
        forget_at = next_at = 0.0
        try:
            while True:
                if self._loop_seconds() < next_at:
                    await asyncio.sleep(next_at - self._loop_seconds())
                if self._loop_seconds() >= forget_at:
                    if committing is not None:
                        await committing
                        committing = None
                    await self._forget()
                    forget_at = self._loop_seconds() + _FORGET_INTERVAL_SECONDS
                batch = rest or await self._read(committing)
                began = self._loop_seconds()
                is_full = len(batch.notifications) >= self._batch_max
                decided, batch, rest = await self._decide(batch, decided)
                next_at = 0.0 if is_full or rest else began + self._pace_seconds
                if committing is not None:
                    await committing
                committing = asyncio.create_task(self._commit(batch, decided, began))
        finally:
            if committing is not None:
                # Its outcome decides where to go on, and at a shutdown it is the last batch.
                await asyncio.wait({committing}, timeout=_COMMIT_SECONDS_MAX)
                committing.cancel()

    async def _read(self, committing: asyncio.Task[None] | None) -> Batch:
        """The next batch. Raises at once if the commit in progress fails meanwhile."""
        if committing is None:
            return await self._lane.read(self._batch_max)
        reading = asyncio.create_task(self._lane.read(self._batch_max))
        try:
            await asyncio.wait({reading, committing}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                await committing
            return await reading
        finally:
            reading.cancel()

    async def _decide(self, batch: Batch, before: "_Decided") -> tuple["_Decided", Batch, Batch | None]:
        """Decide on a batch. `before` holds the decisions on the previous batch, whose commit may still be under way.

        A batch ends early where its messages exceed the bytes of a commit. Returns the decisions, the part of the batch
        that they are about, and the rest of the batch (None: there is none).
        """
        sessions = batch.sessions | before.sessions
        decided = _Decided({}, max(batch.clock_micros, before.clock_micros))
        bytes_max = self._lane.bytes_max
        for index, notification in enumerate(batch.notifications):
            if decided.bytes > bytes_max:
                return decided, *_parted(batch, index, sessions, decided.clock_micros)
            if index % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            decided.clock_micros = max(decided.clock_micros, notification.received_micros)
            key = notification.key
            session = sessions.get(key)
            decision = self._decide_one(batch, index, session, decided.clock_micros)
            if decision.session is not session and decision.session is not None:
                sessions[key] = decided.sessions[key] = decision.session
            decided.add(decision)
        return decided, batch, None

    def _decide_one(self, batch: Batch, index: int, session: Session | None, clock_micros: int) -> Decision:
        notification, position = batch.notifications[index], batch.positions[index]
        trace = f"{self._lane.partition}-{position}"
        if batch.unwritable and (why := batch.unwritable.get(position)):
            self._telemetry.unwritable(trace, why)
            return self._router.give_up(notification, trace, session, why)
        try:
            return self._router.decide(notification, trace, session, clock_micros)
        except Exception as error:  # noqa: BLE001  # one undecidable notification must not stop all behind it
            self._telemetry.undecidable(trace, error)
            why = f"the router failed: {type(error).__name__}"
            return self._router.give_up(notification, trace, session, why)

    async def _commit(self, batch: Batch, decided: "_Decided", began: float) -> None:
        committing_at = self._loop_seconds()
        await self._lane.commit(batch, decided.messages, decided.sessions, decided.clock_micros)
        self._set_pace(len(batch.notifications), self._loop_seconds() - committing_at)
        self._telemetry.batch(self._lane, batch, decided.verdicts, len(decided.messages), self._loop_seconds() - began)
        self._telemetry.odd(decided.oddities)

    def _set_pace(self, notifications_count: int, commit_seconds: float) -> None:
        """Set the time between batches, given the last one."""
        wanted = commit_seconds * (_PACE_COMMITS + notifications_count / _PACE_NOTIFICATIONS)
        self._pace_seconds = min(max(_PACE_SECONDS, wanted), self._pace_seconds_max)

    async def _forget(self) -> None:
        """Write the tombstones of sessions whose time has come, at most _FORGET_MAX at once."""
        batch, oldest = await self._lane.oldest(_FORGET_MAX)
        clock_micros = batch.clock_micros
        ended = [session for session in oldest if self._router.is_forgotten(session, clock_micros)]
        if ended:
            tombstones = [self._router.forget(session, clock_micros) for session in ended]
            forgotten = dict.fromkeys((session.session_id for session in ended), None)
            await self._lane.commit(batch, tombstones, forgotten, clock_micros)


class _Decided:
    """The result of a batch: the sessions it changed, in their state behind it, and its messages."""

    def __init__(self, sessions: dict[str, Session], clock_micros: int) -> None:
        self.sessions = sessions
        self.clock_micros = clock_micros
        self.messages: list[Message] = []
        self.bytes = 0
        self.verdicts: list[Verdict] = []
        self.oddities: list[Oddity] = []

    def add(self, decision: Decision) -> None:
        """Add a decision, except for its session."""
        self.verdicts.append(decision.verdict)
        if decision.messages:
            self.messages += decision.messages
            self.bytes += bytes_of_all(decision.messages)
        if decision.oddities:
            self.oddities += decision.oddities


def _parted(batch: Batch, count: int, sessions: dict[str, Session], clock_micros: int) -> tuple[Batch, Batch]:
    """The first `count` notifications of a batch, and the rest; `sessions` and the clock are the state between them."""
    (_, end, positions, notifications, *_), at = batch, batch.positions[count]
    head = batch._replace(next_position=at, positions=positions[:count], notifications=notifications[:count])
    return head, Batch(at, end, positions[count:], notifications[count:], sessions, clock_micros, batch.unwritable)
