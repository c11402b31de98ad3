"""A partition of the inbox, and the right to decide on it.

The right is a transactional id of the partition's own. Opening a lane starts a producer with that id, which fences the
previous owner: nothing of it can be committed any more. A lane is opened in this order; any other order loses or
repeats something:

    1  start the transactional producer; the coordinator ends what the previous owner left open
    2  prove where the partitions end, and what was committed, without trusting any broker; see `markers.py`
    3  settle what missed the coordinator's markers, until nothing hangs on any partition; see `settlement.py`
    4  restore the sessions up to the end of their partition, which lies behind the marker of step 3
    5  check that the committed position fits the log; see `standing.py`
    6  commit the position, and read it back: then no offset of the previous owner is pending either
    7  read on from there

A commit is one transaction: the messages, the states among them, and the position. It is done when all of that can be
read as committed. After any failure its outcome is unknown: the lane is lost, and opening it again finds the outcome.

Two failures would repeat for the same transaction: a record that the brokers refuse, and more bytes than pass in the
time of a commit. What was learned of these outlives the lane. So the next lane writes less, or a dead letter in place
of the refused record (see `writing.py`).
"""

import time
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal, NamedTuple, Self, TypeVar

from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndMetadata

from receiver.backends.kafka.connection import KAFKA_FAILURES, KafkaConnection, limited
from receiver.backends.kafka.failures import ClusterFailed, TopicsUnfit
from receiver.backends.kafka.feed import Feed
from receiver.backends.kafka.fetching import unreadable
from receiver.backends.kafka.known import Known, expect_topics, places
from receiver.backends.kafka.limits import Limits
from receiver.backends.kafka.producer import Attested, Transactional, fence_of
from receiver.backends.kafka.records import (
    partition_of,
    place_of,
    record_of,
    trace_of,
)
from receiver.backends.kafka.repeats import Repeats, recalled
from receiver.backends.kafka.rivals import places_of_rivals
from receiver.backends.kafka.scan import beginning_of, between, reading, tails
from receiver.backends.kafka.session_table import SessionTable
from receiver.backends.kafka.settlement import Settlement, settlement
from receiver.backends.kafka.standing import Doubt, Place, Standing, expect_partitions, standing
from receiver.backends.kafka.standing import place_of as noted_place
from receiver.backends.kafka.writing import LETTERS_MAX, Letters, Writing
from receiver.core.errors import Unavailable
from receiver.core.headers import INBOX_ID
from receiver.core.message import Message
from receiver.core.session import Session
from receiver.core.session_record import NoSession, session_of
from receiver.core.topics import TopicNames
from receiver.inbox import Batch, LaneLost
from receiver.reader import PassedOver, nobody

T = TypeVar("T")

_OPEN_SECONDS_MAX = 30.0
#: This many sessions are checked for their partition. If the number of partitions changed, at least half of them belong
#: into another one. Another program may have written a few.
_PLACED_MAX = 1_000
_MISPLACED_SHARE = 0.25


class Topics(NamedTuple):
    """The names of a lane's topics. `outputs` are the topics of its messages, sessions and dead letters among them.

    Sessions are remembered for `remembered_seconds` after their last event.
    """

    inbox: str
    sessions: str
    dead_letters: str
    group: str
    outputs: Sequence[str]
    remembered_seconds: float

    @classmethod
    def of(cls, prefix: str, group: str, outputs: Sequence[str], remembered_seconds: float = 96 * 3600.0) -> Self:
        """The topics of a prefix. `group` is given without the prefix, `outputs` with it."""
        names = TopicNames(prefix)
        return cls(names.inbox, names.sessions, names.dead_letters, names.full(group), outputs, remembered_seconds)

    @property
    def names(self) -> Sequence[str]:
        """The names of all topics, the inbox's first."""
        return [self.inbox, *self.outputs]


class Doubted(NamedTuple):
    """A doubt that was settled when a lane was opened, and its message for an operator."""

    doubt: Doubt
    what: str


class KafkaLane:
    """`receiver.inbox.Lane` is the contract. Open it with `open`, and always close it."""

    def __init__(
        self,
        connection: KafkaConnection,
        topics: Topics,
        partition: int,
        passed_over: PassedOver = nobody,
        limits: Limits | None = None,
    ) -> None:
        self.partition = partition
        self._passed_over = passed_over
        self._limits = limits or Limits(connection)
        self._lessons = self._limits.lessons(partition)
        self._writing = Writing(self._limits, partition, topics.dead_letters)
        self.sessions = SessionTable()
        self._topics = topics
        self._inbox = TopicPartition(topics.inbox, partition)
        self._states = TopicPartition(topics.sessions, partition)
        self._letters = TopicPartition(topics.dead_letters, partition)
        self._outputs = [TopicPartition(topic, partition) for topic in topics.outputs]
        self._letters_known = Letters(topics.dead_letters)
        self._repeats = Repeats()
        self._connection = connection
        self._producer: Transactional | None = None
        self._feed: Feed | None = None
        self._committed = self._read_up_to = 0
        self._clock_micros = 0
        #: How a transaction that hung when the lane was opened was ended; None if none did.
        self.settled: Literal["committed", "aborted"] | None = None
        self.doubted: Doubted | None = None
        self._known: Mapping[str, Known] = {}
        self._place: Place | None = None  # the group's position when the lane was opened
        self._ends: Mapping[TopicPartition, int] = {}  # up to where the outputs are read when the lane is opened
        self._traces: Counter[str] = Counter()  # the position behind the last one told of, by the inbox's id
        self._place_before = Place(0)
        self._rebuilt_up_to = 0
        self._lost = ""

    async def open(self) -> None:
        """Take the right to the partition from its owner. Raises Unavailable and LaneLost."""
        try:
            await self._limits.read([self._topics.sessions, self._topics.dead_letters])
            await self._take()
            # First, so that what is read later from a topic that is made anew meanwhile is noted with the old id.
            self._known = await self._ask_topics()
            inbox_id = self._known[self._topics.inbox].topic_id
            self._lessons.are_of(inbox_id)
            if inbox_id:  # sessions and dead letters tell which inbox their positions are of
                told = [(INBOX_ID, inbox_id.encode())]
                self._writing.more_headers = {self._topics.sessions: told, self._topics.dead_letters: told}
            await self._settle()
            await self._restore()
            await self._stand()
            self._repeats = await recalled(self._connection, self._inbox, self._committed)
        except KAFKA_FAILURES as error:
            raise ClusterFailed(f"lane {self.partition} can't be opened: {type(error).__name__}") from error
        # Before any decision: so the readable position is the one at which the next transaction begins. It also records
        # that a doubt is settled, since by the next opening the log may have grown beyond the old position.
        await self.commit((await self.oldest(0))[0], (), {}, self._clock_micros)

    def check(self, found: Mapping[str, Known]) -> str:
        """Compare the topics as they are now with those that the lane was opened on. A lane of another topic is lost.

        Returns the difference, in words for an operator; empty if there is none.
        """
        for name in (self._topics.inbox, self._topics.sessions):
            before, now = self._known[name], found.get(name, self._known[name])
            if now.topic_id != before.topic_id:
                self._lost = f"{name} was made anew"
            elif now.partitions_count != before.partitions_count:
                # Its decisions so far are still right.
                return f"{name} has {now.partitions_count} partitions, and had {before.partitions_count}"
        return self._lost

    @property
    def rebuilding(self) -> str:
        """Which part of the sessions is still missing, in words for an operator; empty once all are there."""
        if self._committed >= self._rebuilt_up_to:
            return ""
        return f"{self._topics.sessions} was made anew; it is rebuilt from the inbox, up to {self._rebuilt_up_to}"

    async def close(self) -> None:
        """Give the partition back. What was not committed has no effect."""
        producer, self._producer = self._producer, None
        feed, self._feed = self._feed, None
        if producer is not None:
            await producer.close()
        if feed is not None:
            await feed.close()

    @property
    def waits(self) -> tuple[str, float]:
        """Which part of a commit can't be read yet, in words for an operator, and for how many seconds."""
        producer = self._producer
        if producer is None or not producer.waits_for:
            return "", 0.0
        return producer.waits_for, time.monotonic() - producer.waits_since

    @property
    def lag(self) -> int:
        """See the contract."""
        return 0 if self._feed is None else self._feed.lag(self._committed, self._read_up_to)

    @property
    def stalls(self) -> tuple[str, float]:
        """Which records of the inbox don't arrive, in words for an operator, and for how many seconds."""
        return ("", 0.0) if self._feed is None else self._feed.stalls

    @property
    def bytes_max(self) -> int:
        """See the contract."""
        return self._lessons.effort.bytes_max

    async def read(self, count_max: int) -> Batch:
        """See the contract."""
        feed = self._opened(self._feed)
        position, clock_micros = self._read_up_to, self._clock_micros
        records: Sequence[Any] = ()
        while not records:
            if self._lost:
                raise LaneLost(self._lost)
            # A batch lies on one side of the position up to which all was decided before.
            end = self._rebuilt_up_to if position < self._rebuilt_up_to else None
            records = await feed.next(count_max, end)
            if not records and end is not None and feed.reached >= end:
                self._rebuilt_up_to = position  # only markers of transactions were left
        for each in records:
            if each.key is None and (why := unreadable(each)):
                self._passed_over(place_of(each), why)  # it becomes a dead letter
        self._read_up_to = records[-1].offset + 1
        records = [each for each in records if not self._repeats.has(each)]
        notifications = self._limits.notifications(records)
        keys = {each.key for each in notifications}
        return Batch(
            position,
            self._read_up_to,
            [each.offset for each in records],
            notifications,
            {key: session for key in keys if (session := self.sessions.get(key)) is not None},
            clock_micros,
            {each: why for each, why in self._lessons.unwritable.items() if position <= each < self._read_up_to},
        )

    def rewind(self) -> None:
        """See the contract."""
        self._read_up_to = self._committed
        self._opened(self._feed).reached = self._committed

    async def oldest(self, count_max: int) -> tuple[Batch, Sequence[Session]]:
        """See the contract."""
        sessions = list(islice(self.sessions.values(), count_max))
        return Batch(self._committed, self._committed, (), (), {}, self._clock_micros), sessions

    async def commit(
        self, batch: Batch, messages: Sequence[Message], sessions: Mapping[str, Session | None], clock_micros: int
    ) -> None:
        """See the contract. Raises LaneLost after any failure: the outcome is unknown then."""
        if self._lost or batch.position != self._committed:
            raise LaneLost(self._lost or f"the lane of partition {self.partition} does not stand at {batch.position}")
        if self.rebuilding:
            messages = [each for each in messages if each.topic == self._topics.sessions]
        messages = self._letters_known.without(messages)
        batches, written = await self._writing.batched(messages)
        if batch.positions:
            await self._expect_inbox()
        producer, began = self._opened(self._producer), time.monotonic()
        place = self._place_at(batch.next_position, clock_micros)
        if batch.next_position < self._rebuilt_up_to:
            place = self._place_before  # the next opening has to rebuild the sessions again
        try:
            await producer.commit(batches.filled, self._offsets(place), self._topics.group)
        except BaseException as error:
            lost, self._producer = self._producer, None
            if lost is not None:
                await lost.close()
            if isinstance(error, (Unavailable, *KAFKA_FAILURES)):
                why = await self._writing.learn(error, batches, written)
                raise LaneLost(f"partition {self.partition}: {why}") from error
            raise
        self._lessons.effort.took(batches.bytes, time.monotonic() - began)
        self._note(messages, sessions)
        self._committed, self._clock_micros = batch.next_position, clock_micros
        self._lessons.committed(self._committed)
        if producer.went_astray:
            raise LaneLost(f"partition {self.partition}: a request went astray")

    async def _expect_inbox(self) -> None:
        """Raises LaneLost if the records read may be from another inbox than this lane's.

        Asks the broker that sent the records, after it sent them: a broker knows of a topic before it leads one of its
        partitions, so its answer is about the log that was read, or about a later one.
        """
        name = self._topics.inbox
        known, broker = self._known[name], self._opened(self._feed).broker
        if not known.topic_id or broker is None:
            return
        found = (await self._soon(self._opened(self._producer).known([name], broker))).get(name)
        if found is None or found.topic_id != known.topic_id:
            self._lost = f"{name} is gone" if found is None else f"{name} was made anew"
            raise LaneLost(self._lost)

    def _offsets(self, place: Place) -> Mapping[TopicPartition, OffsetAndMetadata]:
        return {self._inbox: OffsetAndMetadata(place.position, place.metadata)}

    def _place_at(self, position: int, clock_micros: int) -> Place:
        inbox, sessions = self._known[self._topics.inbox], self._known[self._topics.sessions]
        return Place(position, clock_micros, inbox.topic_id, sessions.topic_id, inbox.partitions_count)

    async def _take(self) -> None:
        self._producer = Transactional(self._connection, fence_of(self._inbox), self._limits)
        call = self._producer.start(f"{self._topics.group}-{self.partition}")  # earlier releases' transactional id
        await limited(call, _OPEN_SECONDS_MAX, f"the lane of partition {self.partition} can't be taken")

    async def _settle(self) -> None:
        """End what hangs on the partitions that this lane writes, and shut the previous owner out of each of them."""
        producer = self._opened(self._producer)
        markers, told = await self._attest(self._outputs)
        self._place = None if told.offset < 0 else noted_place(told.offset, told.metadata)
        ends = await self._soon(producer.ends(self._outputs, markers), "asked for its ends")
        decided = Settlement(commits=False, position=0)
        offsets: Mapping[TopicPartition, OffsetAndMetadata] = {}
        if any(each.hangs for each in ends.values()):
            committed = await self._furthest()
            # A lane commits a position before it decides: so the id there is that of the inbox that was decided on.
            inbox_id = (self._place_at(0, 0) if committed is None else committed).inbox_id
            seen = await tails(self._connection, ends, partial(self._behind, inbox_id))
            if committed is None:
                # Then the sessions tell it: every notification with an effect has changed one, except for dead letters.
                committed = self._place_at(seen[self._states].committed, 0)
                del seen[self._letters]
            decided = settlement(committed.position, seen.values())
            if decided.commits:
                self._place = committed._replace(position=decided.position)
                offsets = self._offsets(self._place)
            self.settled = "committed" if decided.commits else "aborted"
        ending = producer.end(markers, offsets, self._topics.group, commits=decided.commits)
        self._ends = await self._soon(ending, "settled")

    async def _furthest(self) -> Place | None:
        """The furthest position that a router of any group committed; None if no group has one.

        Without the other groups' positions, a record that one of their routers committed would seem to belong to the
        hanging transaction.
        """
        inbox_id = self._known[self._topics.inbox].topic_id
        own = self._place if self._place is not None and self._place.is_ours else None
        others = await places_of_rivals(self._connection, self._topics.group, self._inbox)
        same = [each for each in others if each.inbox_id == (inbox_id if own is None else own.inbox_id)]
        return max([own, *same] if own is not None else same, key=lambda each: each.position, default=None)

    async def _attest(self, partitions: Sequence[TopicPartition]) -> Attested:
        """Prove where partitions end, and the group's position, after the right was taken from the previous owner."""
        witness = Transactional(self._connection, f"{fence_of(self._inbox)}-witness", self._limits)
        what = f"the ends of partition {self.partition} can't be proven"
        try:
            await limited(witness.start(), _OPEN_SECONDS_MAX, what)
            attesting = witness.attest(partitions, self._inbox, self._topics.group)
            return await limited(attesting, _OPEN_SECONDS_MAX, what)
        finally:
            await witness.close()

    async def _restore(self) -> None:
        async with reading(self._connection, "read_committed") as consumer:
            begin = await beginning_of(consumer, self._states)
            async for each in between(consumer, self._states, begin, self._ends[self._states]):
                self._restore_one(each)
            begin, end = await beginning_of(consumer, self._letters), self._ends[self._letters]
            async for each in between(consumer, self._letters, max(begin, end - LETTERS_MAX), end):
                self._letters_known.add(record_of(each).message)
                self._note_trace(each)

    def _note(self, messages: Sequence[Message], sessions: Mapping[str, Session | None]) -> None:
        """Take over the states and letters of committed messages."""
        for message in messages:
            if message.topic == self._topics.sessions:
                self.sessions.put(message.key, sessions[message.key])
            elif message.topic == self._topics.dead_letters:
                self._letters_known.add(message)

    def _restore_one(self, record: Any) -> None:  # noqa: ANN401  # aiokafka's
        message = record_of(record).message
        try:
            session = session_of(message)
        except NoSession as error:
            self._passed_over(place_of(record), unreadable(record) or str(error))
            return
        self.sessions.put(message.key, session)
        if session is not None:
            self._note_trace(record)
            self._clock_micros = max(self._clock_micros, session.touched_micros)

    def _note_trace(self, record: Any) -> None:  # noqa: ANN401  # aiokafka's
        """Note the least position that the lane reached, in case the group's offset is missing or behind."""
        behind, inbox_id = trace_of(record, self.partition)
        self._traces[inbox_id] = max(self._traces[inbox_id], behind)

    def _behind(self, inbox_id: str, record: Any) -> int:  # noqa: ANN401  # aiokafka's
        """The position of `trace_of`; 0 for another inbox's, or if a record that should have an inbox's id has none."""
        behind, told = trace_of(record, self.partition)
        is_told = told or record.topic in {self._topics.sessions, self._topics.dead_letters}
        return 0 if inbox_id and is_told and told != inbox_id else behind

    async def _stand(self) -> None:
        """Find the position to read on from, and settle a doubt about it."""
        await self._expect_places()
        committed = self._place
        feed = await Feed.opened(self._connection, self._opened(self._producer), self._inbox, self._lessons)
        self._feed = feed
        found, end = await self._ask_standing(feed, committed)
        if await self._ask_topics() != self._known:
            raise ClusterFailed("topics are being made anew")
        clock_micros = self._clock_micros
        if committed is not None and committed.is_ours:
            self._clock_micros = max(self._clock_micros, committed.clock_micros)
        position = await self._since_remembered(end) if found.position is None else found.position
        if found.doubt is not None:
            self.doubted = Doubted(found.doubt, self._told(found.doubt, committed, position))
        if found.rebuilt_up_to:
            # Which sessions are remembered depends on the clock, which must run through the same times again.
            self._rebuilt_up_to, self._place_before = found.rebuilt_up_to, committed or self._place_before
            self._clock_micros = clock_micros
        self._committed = self._read_up_to = position
        feed.begin(position)

    async def _ask_standing(self, feed: Feed, committed: Place | None) -> tuple[Standing, int]:
        """Where the lane stands, and the inbox's end, which a marker proves if a known position lies beyond it."""
        inbox, sessions = self._known[self._topics.inbox], self._known[self._topics.sessions]
        beginning, end = await feed.bounds()
        reached = self._traces[inbox.topic_id]
        if committed is not None and committed.is_ours and committed.inbox_id in {"", inbox.topic_id}:
            reached = max(reached, committed.position)
        if reached > end:
            # A deposed leader may have told that end, so a marker must prove it. An end at or behind the position needs
            # no proof: whatever more there is, is read. So the inbox gets markers in this case alone.
            end = (await self._attest([self._inbox])).markers[self._inbox]
        feed.end = end
        ids = {"inbox_id": inbox.topic_id, "sessions_id": sessions.topic_id}
        return standing(committed, self._traces, **ids, beginning=beginning, end=end), end

    async def _since_remembered(self, marker: int) -> int:
        """The position of the first notification within the time for which sessions are remembered."""
        millis = max(0, self._clock_micros // 1000 - round(self._topics.remembered_seconds * 1000))
        return await self._soon(self._opened(self._producer).first_since(self._inbox, millis, marker))

    def _told(self, doubt: Doubt, committed: Place | None, position: int) -> str:
        inbox, was_at = self._topics.inbox, 0 if committed is None else committed.position
        match doubt:
            case Doubt.INBOX_ANEW:
                return f"{inbox} is another topic than the one that sessions came from: it is read from its beginning"
            case Doubt.INBOX_SHORTER:
                return f"{inbox} ends before what was routed: it is read again from {position} on"
            case Doubt.INBOX_REMOVED:
                return f"{position - was_at} notifications of {inbox} were removed before they were routed"
            case Doubt.SESSIONS_ANEW:
                return f"{self._topics.sessions} was made anew: its sessions are rebuilt from the inbox"
            case Doubt.FOREIGN_POSITION:
                return f"another program's position in {inbox} does not count: it is read from {position} on"

    async def _ask_topics(self) -> Mapping[str, Known]:
        """The lane's topics as brokers know them. Raises Unavailable if they are unfit for decisions."""
        names = self._topics.names
        producer = self._opened(self._producer)
        found = await self._soon(producer.known(names))
        expect_topics(names, found)
        return found

    async def _expect_places(self) -> None:
        """Raises TopicsUnfit if lanes have decided while the inbox had another number of partitions."""
        count = self._known[self._topics.inbox].partitions_count
        found = await places(self._connection, self._topics.group, self._topics.inbox, count)
        expect_partitions(self._topics.inbox, count, found.values())
        self._expect_placed(count)

    def _expect_placed(self, count: int) -> None:
        """Raises TopicsUnfit if the sessions of this partition belong into others."""
        some = list(islice(self.sessions, _PLACED_MAX))
        misplaced = [each for each in some if partition_of(each, count) != self.partition]
        if len(misplaced) > _MISPLACED_SHARE * len(some):
            raise TopicsUnfit(
                f"{self._topics.sessions} was written with another number of partitions than {count}: "
                f"{misplaced[0]} is in {self.partition}, and belongs into {partition_of(misplaced[0], count)}"
            )

    async def _soon(self, call: Awaitable[T], what: str = "asked") -> T:
        return await limited(call, _OPEN_SECONDS_MAX, f"partition {self.partition} can't be {what}")

    def _opened(self, client: T | None) -> T:
        if client is None:
            raise LaneLost(f"the lane of partition {self.partition} is closed")
        return client
