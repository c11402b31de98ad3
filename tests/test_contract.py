"""The promises of `inbox.py` and `reader.py`, kept by every backend."""

import asyncio
from contextlib import AsyncExitStack, suppress
from itertools import pairwise
from pathlib import Path

import pytest

from receiver.core.errors import Unavailable
from receiver.core.event import QosStatus
from receiver.core.message import Message, Record
from receiver.core.notification import Notification
from receiver.core.router import Router
from receiver.inbox import LaneLost
from receiver.reader import Cursor, cursor_text
from tests.limits import SECONDS_MAX
from tests.nodes import (
    COUNT_MAX,
    Backend,
    KafkaBackend,
    Node,
    SqliteBackend,
    append,
    commit,
    decide,
    everything,
    forget,
    route,
)
from tests.samples import HOUR, SECOND, SESSION_ID, START, posted


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.long)])
def backend(request: pytest.FixtureRequest, tmp_path: Path, topic_prefix: str) -> Backend:
    """An empty backend of each kind, one after the other: the contract holds for all."""
    if request.param == "sqlite":
        return SqliteBackend(tmp_path)
    return KafkaBackend(request.getfixturevalue("kafka"), topic_prefix)


@pytest.fixture
def router(backend: Backend) -> Router:
    """The router of the backend's topics, which remembers a session for 96 hours."""
    return Router(prefix=backend.prefix, forget_after_seconds=96 * 3600)


def numbered(count: int, text: str = "A1", first: int = 0) -> list[Notification]:
    """One notification for each of several sessions, whose ids have their numbers."""
    return [posted(text, session_id=f"s{number:04}") for number in range(first, first + count)]


async def persistently(node: Node, *notifications: Notification) -> None:
    """Append as a patient sender does, again after each refusal."""
    async with asyncio.timeout(SECONDS_MAX):
        for notification in notifications:
            while True:
                try:
                    await node.inbox.append(notification)
                except Unavailable:
                    await asyncio.sleep(0.02)
                else:
                    break


# The inbox.


async def test_a_notification_is_read_as_it_was_appended(node: Node) -> None:
    """Body, key, sender, time and headers come out of the inbox as they went in, whatever bytes the body has."""
    odd = Notification(bytes(range(256)), "k✓", "acme é", START, "text/plain; x=\x01", "c", "t", "replay:0-3")
    wrapped = posted("A1")._replace(envelope=(("ce-id", "✓"), ("content-encoding", "gzip")))
    given = [odd, posted("A1"), wrapped, odd._replace(body=b"")]
    await append(node, *given)
    batch = await node.lane.read(COUNT_MAX)
    assert list(batch.notifications) == given


async def test_what_was_appended_survives(backend: Backend) -> None:
    """A notification whose `append` returned is there after the backend was opened anew, in its order."""
    given = numbered(3)
    async with backend.opened() as node:
        await append(node, *given)
    async with backend.opened() as node:
        assert node.lane.lag == len(given)
        assert list((await node.lane.read(COUNT_MAX)).notifications) == given


async def test_order_is_that_of_appending(backend: Backend) -> None:
    """Positions begin at 0, have no gaps, and follow the order of appending, also across a reopening."""
    given = numbered(6)
    for part in (given[:2], given[2:5], given[5:]):
        async with backend.opened() as node:
            await append(node, *part)
    async with backend.opened() as node:
        batch = await node.lane.read(COUNT_MAX)
        assert list(batch.positions) == list(range(6))
        assert list(batch.notifications) == given


async def test_appended_together_each_is_kept_once(node: Node) -> None:
    """Each of a thousand simultaneous appends is kept once, at a position of its own."""
    given = numbered(1000)
    await asyncio.gather(*map(node.inbox.append, given))
    read: list[Notification] = []
    positions: list[int] = []
    while len(read) < len(given):
        batch = await node.lane.read(COUNT_MAX)
        read += batch.notifications
        positions += batch.positions
    assert positions == list(range(len(given)))
    assert sorted(read, key=repr) == sorted(given, key=repr)


async def test_a_sender_that_went_away_harms_nobody(node: Node) -> None:
    """An append that its caller gave up leaves the others that share its sync kept."""
    appends = [node.inbox.append(each) for each in numbered(3)]
    await asyncio.sleep(0)
    appends[1].cancel()
    await asyncio.gather(appends[0], appends[2])
    keys = [each.key for each in (await node.lane.read(COUNT_MAX)).notifications]
    assert {"s0000", "s0002"} <= set(keys)


async def test_an_append_that_takes_too_long_is_refused(backend: Backend, router: Router) -> None:
    """After the time limit senders are told to come again, and so are new ones, until the backend goes on."""
    async with backend.opened(append_timeout_seconds=0.5) as node:
        await persistently(node, *numbered(1))
        assert node.inbox.trouble == ""
        with backend.stalled():
            late = await asyncio.gather(*map(node.inbox.append, numbered(3, first=1)), return_exceptions=True)
            assert [isinstance(each, Unavailable) for each in late] == [True] * 3
            assert "0.5 s" in node.inbox.trouble
            with pytest.raises(Unavailable) as caught:
                await node.inbox.append(numbered(1, first=9)[0])
            assert caught.value.retry_after_seconds
        await persistently(node, *numbered(2, first=4))
        assert node.inbox.trouble == ""
        await route(node, router)
        keys = [record.message.key for record in await everything(node.reader, node.topic("status"))]
    # Refused ones may have been kept; the others were, each has its effect once.
    assert {"s0000", "s0004", "s0005"} <= set(keys)
    assert len(set(keys)) == len(keys)
    assert set(keys) <= {f"s{number:04}" for number in range(6)}


# The lane.


@pytest.mark.parametrize("count_max", [1, 2, 3, 100])
async def test_batches_follow_each_other(node: Node, router: Router, count_max: int) -> None:
    """Each batch begins where the one before it ended, and together they are the inbox."""
    await append(node, *numbered(7))
    batches = [await node.lane.read(count_max)]
    while batches[-1].next_position < 7:
        batches.append(await node.lane.read(count_max))
    assert batches[0].position == 0
    assert all(before.next_position == behind.position for before, behind in pairwise(batches))
    assert [at for batch in batches for at in batch.positions] == list(range(7))
    for batch in batches:
        assert batch.notifications
        assert len(batch.positions) == len(batch.notifications)
        await commit(node.lane, router, batch)


async def test_reading_waits_for_a_notification(node: Node) -> None:
    """`read` comes back with the notification that is appended while it waits."""
    reading = asyncio.create_task(node.lane.read(COUNT_MAX))
    await asyncio.sleep(0.01)
    assert not reading.done()
    await append(node, *numbered(1))
    assert [each.key for each in (await reading).notifications] == ["s0000"]


async def test_rewinding_reads_the_same_again(node: Node, router: Router) -> None:
    """Notifications that were read and not committed are read again after a rewind; committed ones are not."""
    await append(node, *numbered(3))
    first = await node.lane.read(1)
    await commit(node.lane, router, first)
    dropped = [await node.lane.read(1), await node.lane.read(1)]
    node.lane.rewind()
    again = [await node.lane.read(1), await node.lane.read(1)]
    assert [batch.notifications for batch in again] == [batch.notifications for batch in dropped]
    assert again[0].position == first.next_position


async def test_what_is_not_committed_is_read_again_after_reopening(backend: Backend, router: Router) -> None:
    """A new owner begins behind the last batch that was committed."""
    async with backend.opened() as node:
        await append(node, *numbered(3))
        await commit(node.lane, router, await node.lane.read(1))
        await node.lane.read(1)
    async with backend.opened() as node:
        batch = await node.lane.read(COUNT_MAX)
        assert list(batch.positions) == list(range(1, 3))
        assert node.lane.lag == 2


async def test_nothing_is_visible_before_the_commit(node: Node, router: Router) -> None:
    """Topics and sessions change when a batch is committed, and only then."""
    await append(node, *numbered(2), posted(b"{", key="broken"), posted("U2:N"))
    batch = await node.lane.read(COUNT_MAX)
    made = decide(router, batch)
    assert not [record for topic in await node.reader.topics() for record in await everything(node.reader, topic)]
    assert await node.reader.sessions(None, COUNT_MAX) == []
    await commit(node.lane, router, batch)
    wanted = {message for decision in made for message in map(_comparable, decision.messages)}
    there = [record for topic in await node.reader.topics() for record in await everything(node.reader, topic)]
    assert {_comparable(record.message) for record in there} == wanted
    assert len(there) == len(wanted)
    assert {session.session_id for session in await node.reader.sessions(None, COUNT_MAX)} == {
        "s0000",
        "s0001",
        SESSION_ID,
    }


def _comparable(message: Message) -> Message:
    """The headers without those that a lane adds about its inbox."""
    return message._replace(headers=tuple((name, text) for name, text in message.headers if name != "inbox-id"))


async def test_a_commit_counts_once(node: Node, router: Router) -> None:
    """A committed batch can't be committed again, and none of its records is there twice."""
    await append(node, *numbered(2))
    batch = await node.lane.read(COUNT_MAX)
    await commit(node.lane, router, batch)
    before = await everything(node.reader, node.topic("status"))
    with pytest.raises((LaneLost, Unavailable)):
        await commit(node.lane, router, batch)
    assert await everything(node.reader, node.topic("status")) == before


async def test_a_lane_goes_on_after_a_commit_in_vain(node: Node, router: Router) -> None:
    """After a refused commit the lane stands where it stood: it rewinds, reads on and commits."""
    await append(node, *numbered(1))
    batch = await node.lane.read(COUNT_MAX)
    await commit(node.lane, router, batch)
    with suppress(Unavailable, LaneLost):
        await commit(node.lane, router, batch)
    await append(node, posted("U2:N", session_id="s0000"))
    node.lane.rewind()
    made = await commit(node.lane, router, await node.lane.read(COUNT_MAX))
    assert [decision.verdict for decision in made] == ["accepted"]
    assert len(await everything(node.reader, node.topic("status"))) == 2


async def test_of_two_owners_at_most_one_can_commit(backend: Backend, router: Router) -> None:
    """If two open the same lane, one is refused, or the other can't commit any more."""
    refused = 0
    async with AsyncExitStack() as stack:
        owners = [await stack.enter_async_context(backend.opened())]
        await append(owners[0], *numbered(1))
        batch = await owners[0].lane.read(COUNT_MAX)
        try:
            owners.append(await stack.enter_async_context(backend.opened()))
        except Unavailable:
            refused += 1
        for owner in owners:
            try:
                await commit(owner.lane, router, batch)
            except LaneLost:
                refused += 1
        assert refused == 1
        assert len(await everything(owners[-1].reader, owners[-1].topic("status"))) == 1


async def test_a_closed_lane_can_be_opened_again(backend: Backend) -> None:
    """Closing gives the lane back."""
    for count in range(3):
        async with backend.opened() as node:
            assert node.lane.lag == count
            await append(node, posted("A1"))


async def test_sessions_are_restored(backend: Backend, router: Router) -> None:
    """A batch brings its notifications' sessions as the last commit left them, whoever made it."""
    async with backend.opened() as node:
        await append(node, posted("A1#x"), posted("A1", session_id="other"))
        made = await route(node, router)
    async with backend.opened() as node:
        again = posted("A1#x", received_micros=START + 61 * SECOND)
        await append(node, again, posted("A1", session_id="new"))
        batch = await node.lane.read(COUNT_MAX)
        assert batch.sessions == {SESSION_ID: made[0].session}
        assert [decision.verdict for decision in await commit(node.lane, router, batch)] == ["duplicate", "accepted"]


async def test_the_newest_state_counts(node: Node, router: Router) -> None:
    """Of several states of a session in one batch the last is remembered, and is its only record that stays."""
    await append(node, posted("A1"), posted("U2"), posted("A3"), posted("U4:N"))
    made = await route(node, router)
    await append(node, posted("A9"))
    assert (await node.lane.read(COUNT_MAX)).sessions == {SESSION_ID: made[-1].session}
    assert await node.reader.sessions(None, COUNT_MAX) == [made[-1].session]


async def test_a_tombstone_forgets(backend: Backend, router: Router) -> None:
    """After a tombstone a session is only on the topic, where the tombstone is its last record."""
    async with backend.opened() as node:
        await append(node, posted("A1"), posted("A1", session_id="other"))
        await route(node, router)
        batch, oldest = await node.lane.oldest(1)
        assert [session.session_id for session in oldest] == [SESSION_ID]
        assert not batch.notifications
        await forget(node.lane, router, batch, oldest[0])
        assert [session.session_id for session in (await node.lane.oldest(9))[1]] == ["other"]
    async with backend.opened() as node:
        assert [session.session_id for session in await node.reader.sessions(None, COUNT_MAX)] == ["other"]
        record = [
            each for each in await everything(node.reader, node.topic("sessions")) if each.message.key == SESSION_ID
        ][-1]
        assert record.message.value is None
        await append(node, posted("A1"))
        batch = await node.lane.read(COUNT_MAX)
        assert batch.sessions == {}
        assert [decision.verdict for decision in await commit(node.lane, router, batch)] == ["accepted"]
        assert len(await node.reader.sessions(None, COUNT_MAX)) == 2


async def test_the_oldest_are_those_touched_longest_ago(node: Node, router: Router) -> None:
    """Sessions come in the order in which they were last touched, within one batch as across batches."""
    await append(node, *numbered(4))
    await route(node, router)
    await append(node, posted("U2", session_id="s0001"), posted("U2", session_id="s0000"))
    await append(node, posted("A3", session_id="s0001"))
    await route(node, router)
    order = ["s0002", "s0003", "s0000", "s0001"]
    assert [session.session_id for session in (await node.lane.oldest(9))[1]] == order
    assert [session.session_id for session in (await node.lane.oldest(3))[1]] == order[:3]
    assert [session.session_id for session in await node.reader.sessions(None, 9)] == order[::-1]


async def test_the_clock_is_the_latest_receipt_committed(backend: Backend, router: Router) -> None:
    """A batch's clock is the latest time of receipt before it, even if later notifications were received earlier."""
    async with backend.opened() as node:
        await append(node, posted("A1", received_micros=START + HOUR), posted("A2", received_micros=START))
        await route(node, router)
        await append(node, posted("A3", received_micros=START + SECOND))
        assert (await node.lane.read(COUNT_MAX)).clock_micros == START + HOUR
    async with backend.opened() as node:
        assert (await node.lane.read(COUNT_MAX)).clock_micros == START + HOUR
        assert (await node.lane.oldest(1))[0].clock_micros == START + HOUR


async def test_lag(backend: Backend, router: Router) -> None:
    """The lag is the number of appended notifications that are not committed, read or not."""
    async with backend.opened() as node:
        assert node.lane.lag == 0
        await append(node, *numbered(3))
        assert node.lane.lag == 3
        batch = await node.lane.read(1)
        assert node.lane.lag == 3
        await commit(node.lane, router, batch)
        assert node.lane.lag == 3 - len(batch.notifications)
    async with backend.opened() as node:
        assert node.lane.lag == 3 - len(batch.notifications)
        await route(node, router)
        assert node.lane.lag == 0


# The reader.


@pytest.fixture
async def routed(node: Node, router: Router) -> Node:
    """A node with ten records on the status topic, from two batches."""
    for part in (numbered(4), numbered(6, first=4)):
        await append(node, *part)
        await route(node, router)
    return node


@pytest.mark.parametrize(
    ("start", "first"),
    [("beginning", 0), ("end", 999), ("0", 0), ("3", 3), ("0-3", 3), ("0-10", 10), ("0-999", 999)],
)
async def test_cursors(routed: Node, start: str, first: int) -> None:
    """A reader begins at the beginning, the end, or a position, as told."""
    topic = routed.topic("status")
    wanted = [each for each in await everything(routed.reader, topic) if each.position >= first]
    assert await routed.reader.records(topic, await routed.reader.cursor(topic, start), COUNT_MAX) == wanted
    # In Kafka markers of transactions have positions too: two of the lane's opening, and one between the batches.
    assert len(wanted) in {0, 10, 10 - first, 12 - first, 13 - first}


@pytest.mark.parametrize(
    "start", ["", "-1", "middle", "0-", "-3", "0-x", "7-1", "0-1,", "0-1,7-1", "0:1", "1.5", "0-1-2", "Beginning"]
)
async def test_what_is_no_cursor(routed: Node, start: str) -> None:
    """Any other text raises ValueError with that text."""
    with pytest.raises(ValueError, match="beginning, end, a position") as caught:
        await routed.reader.cursor(routed.topic("status"), start)
    assert repr(start) in str(caught.value)


@pytest.mark.parametrize("start", ["beginning", "end", "3"])
async def test_a_topic_that_does_not_exist(routed: Node, start: str) -> None:
    """A topic without a record raises KeyError."""
    with pytest.raises(KeyError):
        await routed.reader.cursor(routed.topic("nope"), start)


@pytest.mark.parametrize("count_max", [1, 3, 4, 7, 10, 11])
async def test_paging(routed: Node, count_max: int) -> None:
    """Page by page a reader gets every record once, in order, and its cursor stands behind them."""
    cursor: Cursor = await routed.reader.beginning(routed.topic("status"))
    seen: list[Record] = []
    while records := await routed.reader.records(routed.topic("status"), cursor, count_max):
        assert len(records) <= count_max
        assert int(cursor_text(cursor).removeprefix("0-")) > records[-1].position
        seen += records
    assert [record.message.key for record in seen] == [f"s{number:04}" for number in range(10)]
    assert sorted({record.position for record in seen}) == [record.position for record in seen]
    assert cursor == await routed.reader.end(routed.topic("status"))


async def test_a_reader_goes_on_with_what_comes(routed: Node, router: Router) -> None:
    """A cursor at the end stays there until there are more records, and then goes on with them."""
    cursor = await routed.reader.end(routed.topic("status"))
    assert await routed.reader.records(routed.topic("status"), cursor, COUNT_MAX) == []
    await append(routed, posted("A1"))
    await route(routed, router)
    (record,) = await routed.reader.records(routed.topic("status"), cursor, COUNT_MAX)
    assert record.message.key == SESSION_ID
    assert await routed.reader.records(routed.topic("status"), cursor, COUNT_MAX) == []


async def test_a_record_is_what_was_committed(node: Node, router: Router) -> None:
    """A record has the message's key, value, headers and timestamp, and its place."""
    await append(node, posted("U2:N"))
    (decision,) = await route(node, router)
    for message in decision.messages:
        (record,) = await everything(node.reader, message.topic)
        assert record.partition == 0
        assert record.position in {0, 2}  # in Kafka it is behind two markers of the lane's opening
        assert _comparable(record.message) == _comparable(message)


async def test_topics_are_told(node: Node, router: Router) -> None:
    """Every topic with a record is listed, in the order of the names, without the inbox."""
    await append(node, posted("A1"), posted(b"{"), posted("U2:N"))
    await route(node, router)
    names = ["dead-letter", "sessions", "status", "unavailable"]
    assert await node.reader.topics() == [node.topic(name) for name in names]


@pytest.fixture
async def sessions(node: Node, router: Router) -> Node:
    """A node with five sessions: s0 and s3 available, s1 and s4 unavailable, s2 requested."""
    texts = ["A1", "U1", "R1", "A1", "U1:N"]
    await append(node, *(posted(text, session_id=f"s{number}") for number, text in enumerate(texts)))
    await route(node, router)
    return node


@pytest.mark.parametrize(
    ("qos_status", "count_max", "session_ids"),
    [
        (None, 9, ["s4", "s3", "s2", "s1", "s0"]),
        (None, 2, ["s4", "s3"]),
        (QosStatus.AVAILABLE, 9, ["s3", "s0"]),
        (QosStatus.AVAILABLE, 1, ["s3"]),
        (QosStatus.UNAVAILABLE, 9, ["s4", "s1"]),
        (QosStatus.REQUESTED, 9, ["s2"]),
    ],
)
async def test_sessions_by_status(
    sessions: Node, qos_status: QosStatus | None, count_max: int, session_ids: list[str]
) -> None:
    """The sessions of a status come last touched first, up to the number asked for."""
    found = await sessions.reader.sessions(qos_status, count_max)
    assert [session.session_id for session in found] == session_ids


async def test_session_counts(sessions: Node, router: Router) -> None:
    """Every status has its count of sessions, without forgotten ones."""
    counts = {QosStatus.REQUESTED: 1, QosStatus.AVAILABLE: 2, QosStatus.UNAVAILABLE: 2}
    assert await sessions.reader.session_counts() == counts
    batch, (oldest,) = await sessions.lane.oldest(1)
    await forget(sessions.lane, router, batch, oldest)
    assert await sessions.reader.session_counts() == counts | {QosStatus.AVAILABLE: 1}
