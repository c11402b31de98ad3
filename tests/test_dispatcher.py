import asyncio
import gc
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Literal

import pytest

from receiver.core.errors import Unavailable
from receiver.core.message import Message
from receiver.core.notification import Notification
from receiver.core.router import Decision, Router
from receiver.core.session import Session, Verdict
from receiver.dispatcher import Dispatcher
from receiver.inbox import Batch, Lane, LaneLost
from receiver.telemetry import Telemetry
from tests.limits import SECONDS_MAX
from tests.nodes import COUNT_MAX, SESSIONS_TOPIC, Node, append, everything, until
from tests.samples import HOUR, SECOND, START, bare, body, decisions, posted, told

Fault = Literal["before", "after", "lost"]


class Watched(Router):
    """A router that notes its progress, and fails on given bodies."""

    def __init__(self, *fatal: bytes) -> None:
        super().__init__(prefix="qod", forget_after_seconds=96 * 3600)
        self.fatal = fatal
        self.decided_up_to = 0

    def decide(self, notification: Notification, trace: str, session: Session | None, clock_micros: int) -> Decision:
        """Decide, unless the body is one of the fatal ones."""
        self.decided_up_to = int(trace.partition("-")[2]) + 1
        if notification.body in self.fatal:
            raise ZeroDivisionError("a defect of ours")
        return super().decide(notification, trace, session, clock_micros)


class Hindered:
    """A real lane with faults at chosen commits: before the commit, or after it, without an answer.

    A commit of notifications meets its fault only once the next batch was decided on, if there is one. `oldest` and
    `read` fail a given number of times.
    """

    def __init__(
        self,
        lane: Lane,
        router: Watched,
        faults: Mapping[int, Fault],
        *,
        reads_failing: int = 0,
        oldest_failing: int = 0,
    ) -> None:
        self.partition = lane.partition
        self.bytes_max = lane.bytes_max
        self.commits = 0
        self.free = asyncio.Event()
        self.free.set()
        self._lane = lane
        self._router = router
        self._faults = faults
        self._reads_failing = reads_failing
        self._oldest_failing = oldest_failing

    @property
    def lag(self) -> int:
        """See Lane."""
        return self._lane.lag

    async def read(self, count_max: int) -> Batch:
        """Fail, or read."""
        if self._reads_failing:
            self._reads_failing -= 1
            raise Unavailable("no reading", reason="test")
        return await self._lane.read(count_max)

    def rewind(self) -> None:
        """See Lane."""
        self._lane.rewind()

    async def oldest(self, count_max: int) -> tuple[Batch, Sequence[Session]]:
        """Fail, or return the oldest."""
        if self._oldest_failing:
            self._oldest_failing -= 1
            raise Unavailable("no oldest", reason="test")
        return await self._lane.oldest(count_max)

    async def commit(
        self, batch: Batch, messages: Sequence[Message], sessions: Mapping[str, Session | None], clock_micros: int
    ) -> None:
        """Commit, with the fault that is planned for this commit."""
        fault = self._faults.get(self.commits)
        self.commits += 1
        if fault is not None:
            await until(lambda: not self._router.decided_up_to <= batch.next_position < batch.position + self.lag)
        await self.free.wait()
        if fault == "lost":
            raise LaneLost
        if fault == "before":
            raise Unavailable("not committed", reason="test")
        await self._lane.commit(batch, messages, sessions, clock_micros)
        if fault == "after":
            raise Unavailable("committed, but who knows", reason="test")


@asynccontextmanager
async def running(
    lane: Lane, router: Router, telemetry: Telemetry, batch_max: int
) -> AsyncIterator[asyncio.Task[None]]:
    """A dispatcher at work; what it raises is raised here."""
    task = asyncio.create_task(Dispatcher(lane, router, telemetry, batch_max=batch_max).run())
    try:
        yield task
    finally:
        if not task.cancelling():
            task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def dispatch(lane: Lane, router: Router, telemetry: Telemetry, batch_max: int) -> None:
    """Run a dispatcher until all is routed, then stop it."""
    async with running(lane, router, telemetry, batch_max) as task:
        await until(lambda: not lane.lag or task.done())


def story() -> list[Notification]:
    """Notifications of interleaved sessions with every verdict, most of which depend on an earlier batch.

    Their times of receipt go to and fro.
    """
    texts = ["A1#a", "A1#a", "A2#b", "U5:N#c", "A3#d", "A9#c", "U6:N@other", "U5:N#c", "R0#e", "U7:D#f"]
    given = [posted(text, session_id=session_id) for text in texts for session_id in ("s1", "s2", "s3")]
    given[11:11] = [posted(b"{", key="acme")]
    given += [posted(bare("s4"), session_id="s4"), posted(body(told("A1")[0], type="org.example.another"), key="s1")]
    return [each._replace(received_micros=START + index * 7 % 10 * SECOND) for index, each in enumerate(given)]


async def assert_outcome(node: Node, notifications: Sequence[Notification]) -> None:
    """The topics hold the messages of a router that never fails: all, in order, once."""
    made = decisions(Watched(), notifications)
    messages = [message for decision in made for message in decision.messages]
    for topic in {message.topic for message in messages} - {SESSIONS_TOPIC}:
        records = await everything(node.reader, topic)
        wanted = [message for message in messages if message.topic == topic]
        assert [_comparable(record.message) for record in records] == list(map(_comparable, wanted))
        assert [record.position for record in records] == list(range(len(wanted)))
    sessions = {each.session_id: each for each in (decision.session for decision in made) if each is not None}
    found = await node.reader.sessions(None, COUNT_MAX)
    assert {session.session_id: session for session in found} == sessions
    assert len(found) == len(sessions)


def _comparable(message: Message) -> Message:
    return message._replace(headers=tuple((name, text) for name, text in message.headers))


def sample(telemetry: Telemetry, name: str) -> float:
    """A metric's value, summed over its labels."""
    metrics = telemetry.registry.collect()
    return sum(sample.value for metric in metrics for sample in metric.samples if sample.name == name)


@pytest.mark.parametrize("batch_max", [1, 2, 3, 7, 100])
async def test_batches_do_not_matter(node: Node, telemetry: Telemetry, batch_max: int) -> None:
    """For any cut of the inbox into batches the result is the same, and each notification is counted once."""
    given = story()
    await append(node, *given)
    await dispatch(node.lane, Watched(), telemetry, batch_max)
    await assert_outcome(node, given)
    assert {decision.verdict for decision in decisions(Watched(), given)} == set(Verdict)
    assert sample(telemetry, "qod_receiver_notifications_total") == len(given)
    odd = sum(len(decision.oddities) for decision in decisions(Watched(), given))
    assert sample(telemetry, "qod_receiver_oddities_total") == odd > 0


@pytest.mark.parametrize("batch_max", [1, 2, 5])
@pytest.mark.parametrize(
    "faults",
    [
        {0: "before"},
        {1: "before"},
        {2: "before"},
        {1: "before", 2: "before", 3: "before"},
        {0: "before", 2: "before", 4: "before", 6: "before"},
        {0: "after"},
        {1: "after"},
        {1: "after", 2: "before"},
        {1: "before", 2: "after", 3: "after"},
    ],
    ids=str,
)
async def test_a_commit_that_fails_loses_and_repeats_nothing(
    node: Node, telemetry: Telemetry, caplog: pytest.LogCaptureFixture, faults: dict[int, Fault], batch_max: int
) -> None:
    """If a commit fails whose next batch was decided on already, all take effect in order and once."""
    given = story()
    await append(node, *given)
    router = Watched()
    lane = Hindered(node.lane, router, faults)
    await dispatch(lane, router, telemetry, batch_max)
    await assert_outcome(node, given)
    assert lane.commits > len(faults)
    assert sample(telemetry, "qod_receiver_lane_failures_total") == len(faults)
    gc.collect()
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


async def test_what_comes_while_it_runs_is_routed(node: Node, telemetry: Telemetry) -> None:
    """Notifications that are appended to an idle lane, one by one or many at once, are routed."""
    given = story()
    async with running(node.lane, Watched(), telemetry, 4):
        for part in (given[:1], given[1:2], given[2:20], given[20:]):
            await append(node, *part)
            await until(lambda: not node.lane.lag)
    await assert_outcome(node, given)


async def test_reading_that_fails_is_tried_again(node: Node, telemetry: Telemetry) -> None:
    """A lane that can't be read, or can't tell its oldest sessions, is counted and tried again."""
    given = story()
    await append(node, *given)
    router = Watched()
    await dispatch(Hindered(node.lane, router, {}, reads_failing=2, oldest_failing=1), router, telemetry, 100)
    await assert_outcome(node, given)
    assert sample(telemetry, "qod_receiver_lane_failures_total") == 3


async def test_back_off(node: Node, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the backend fails, the longest pause doubles from 50 ms up to 5 s, and chance picks below it."""
    longest: list[float] = []

    def shortest(least: float, most: float) -> float:
        longest.append(most)
        return least

    monkeypatch.setattr("random.uniform", shortest)
    await append(node, *story())
    router = Watched()
    await dispatch(Hindered(node.lane, router, {}, reads_failing=9), router, telemetry, 100)
    assert longest == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


async def test_a_lost_lane_ends_it(node: Node, telemetry: Telemetry) -> None:
    """A dispatcher that lost its lane stops, and none of its last batch is there."""
    await append(node, *story())
    router = Watched()
    with pytest.raises(LaneLost):
        await dispatch(Hindered(node.lane, router, {0: "lost"}), router, telemetry, 5)
    assert await node.reader.topics() == []


async def test_a_stop_waits_for_the_last_commit(node: Node, telemetry: Telemetry) -> None:
    """A dispatcher that is stopped during a commit ends when the commit is done, and the commit counts."""
    given = story()
    await append(node, *given)
    router = Watched()
    lane = Hindered(node.lane, router, {})
    lane.free.clear()
    async with running(lane, router, telemetry, 100) as task:
        await until(lambda: lane.commits > 0)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        lane.free.set()
    await assert_outcome(node, given)
    assert lane.lag == 0


# A notification that the router fails on.


@pytest.mark.parametrize("batch_max", [1, 2, 100])
async def test_one_poisonous_notification_stops_nothing(node: Node, telemetry: Telemetry, batch_max: int) -> None:
    """A notification that the router fails on becomes a dead letter, its session untouched; the rest goes on."""
    poison = posted("U3:N", session_id="s1")
    await append(
        node, posted("A1", session_id="s1"), poison, posted("A1", session_id="s2"), posted("U5", session_id="s1")
    )
    await dispatch(node.lane, Watched(poison.body), telemetry, batch_max)
    (letter,) = await everything(node.reader, "qod.dead-letter")
    assert dict(letter.message.headers)["inbox"] == "0-1"
    assert letter.fields()["value"]["reason"] == "the router failed: ZeroDivisionError"
    statuses = [record.fields()["value"] for record in await everything(node.reader, "qod.status")]
    assert [(each["sessionId"], each["qosStatus"]) for each in statuses] == [
        ("s1", "AVAILABLE"),
        ("s2", "AVAILABLE"),
        ("s1", "UNAVAILABLE"),
    ]
    assert statuses[2]["availableSeconds"] == 4.0


# Forgetting.


async def until_remembered(node: Node, router: Router, telemetry: Telemetry, count: int) -> None:
    """Run a dispatcher until this many sessions are left."""
    async with running(node.lane, router, telemetry, 1000), asyncio.timeout(SECONDS_MAX):
        while len(await node.reader.sessions(None, COUNT_MAX)) > count:  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.002)


async def test_sessions_are_forgotten_by_the_inboxs_clock(node: Node, router: Router, telemetry: Telemetry) -> None:
    """A session ends with a tombstone once the inbox's clock, and no other, is far enough past its last event."""
    old, new = posted("U1:N", session_id="old"), posted("A1", session_id="new", received_micros=START + 97 * HOUR)

    async def remembered() -> list[str]:
        await dispatch(node.lane, router, telemetry, 100)
        return [session.session_id for session in await node.reader.sessions(None, COUNT_MAX)]

    await append(node, old)
    assert await remembered() == ["old"]
    await append(node, new)
    assert await remembered() == ["new", "old"]
    # It forgets at its start, and now and then, by what was committed, whatever the wall clock says.
    await until_remembered(node, router, telemetry, 1)
    records = [record for record in await everything(node.reader, SESSIONS_TOPIC) if record.message.key == "old"]
    assert [record.message.value for record in records] == [None]
    assert records[0].message.timestamp_millis == (START + 97 * HOUR) // 1000
    await append(node, old._replace(received_micros=START + 97 * HOUR))
    assert await remembered() == ["old", "new"]
    assert len(await everything(node.reader, "qod.status")) == 3


async def test_more_are_forgotten_than_go_at_once(node: Node, router: Router, telemetry: Telemetry) -> None:
    """When more sessions are to be forgotten than one commit takes, the least recently touched go first."""
    await asyncio.gather(*(node.inbox.append(posted("A1", session_id=f"s{number}")) for number in range(300)))
    await dispatch(node.lane, router, telemetry, 1000)
    await append(node, posted("A1", session_id="new", received_micros=START + 97 * HOUR))
    await dispatch(node.lane, router, telemetry, 1000)
    await until_remembered(node, router, telemetry, 45)
    left = [session.session_id for session in await node.reader.sessions(None, COUNT_MAX)]
    assert left[0] == "new"
    assert len(left) == 45
