"""A partition of the inbox, and the right to decide on it.

The right is a transactional id of the partition's own. Opening a lane starts a producer with that id, which fences the
owner before: nothing of theirs can be committed any more. A lane is opened in this order, and no other neither loses
nor repeats:

    1  start the transactional producer; the coordinator ends what the owner before left open
    2  prove where the partitions end, and what was committed: no broker's word is believed for that; see `markers.py`
    3  settle what the coordinator's markers missed, until nothing hangs on any partition; see `settlement.py`
    4  restore the sessions up to the end of their partition, which lies behind the marker of step 3
    5  find out whether the committed position fits the log; see `standing.py`
    6  commit the position, and see it: nothing of the owner before is pending among the offsets either
    7  read on from there

A commit is one transaction: the messages, the states among them, and the position. It is done when all of that can be
read as committed. After any failure its outcome is unknown: the lane is lost, and opening it again finds out.

Some failures would come again for the same transaction: a record that the brokers refuse, and more bytes than go
through in the time for a commit. What was learned of these outlives the lane, so that the next one writes less, or a
dead letter in place of what can't be written (see `writing.py`).
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
#: So many sessions are asked for their partition. With another number of partitions, half of them at least belong into
#: another one; a few may have been written by somebody else.
_PLACED_MAX = 1_000
_MISPLACED_SHARE = 0.25


class Topics(NamedTuple):
    """The names that a lane reads and writes; `outputs` are those that its messages may name, sessions and dead letters
    among them.

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
        """Those of a prefix. The group's name is without it, the outputs' are with it."""
        names = TopicNames(prefix)
        return cls(names.inbox, names.sessions, names.dead_letters, names.full(group), outputs, remembered_seconds)

    @property
    def names(self) -> Sequence[str]:
        """The names of all topics, the inbox's first."""
        return [self.inbox, *self.outputs]


class Doubted(NamedTuple):
    """A doubt that was settled when a lane was opened, and what to tell an operator of it."""

    doubt: Doubt
    what: str


class KafkaLane:
    """`receiver.inbox.Lane` is the contract. Open it with `open`; close it whatever happens."""

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
        #: How what hung when the lane was opened was ended; None where nothing did.
        self.settled: Literal["committed", "aborted"] | None = None
        self.doubted: Doubted | None = None
        self._known: Mapping[str, Known] = {}
        self._place: Place | None = None  # where the group stood when it was opened
        self._ends: Mapping[TopicPartition, int] = {}  # how far its outputs are to be read then
        self._traces: Counter[str] = Counter()  # the position behind the last one told of, by the inbox's id
        self._place_before = Place(0)
        self._rebuilt_up_to = 0
        self._lost = ""

    async def open(self) -> None:
        """Take the right to the partition from whoever has it. Raises Unavailable and LaneLost."""
        try:
            await self._limits.read([self._topics.sessions, self._topics.dead_letters])
            await self._take()
            # First: what is found then in topics that are made anew meanwhile is noted for the ones before.
            self._known = await self._ask_topics()
            self._lessons.are_of(self._known[self._topics.inbox].topic_id)
            await self._settle()
            await self._restore()
            await self._stand()
            self._repeats = await recalled(self._connection, self._inbox, self._committed)
        except KAFKA_FAILURES as error:
            raise ClusterFailed(f"lane {self.partition} can't be opened: {type(error).__name__}") from error
        # Before anything is decided: now the position that can be read is the one at which the next transaction begins.
        # A doubt is noted with it, since by the next time the log may have grown beyond where it was.
        await self.commit((await self.oldest(0))[0], (), {}, self._clock_micros)

    def check(self, found: Mapping[str, Known]) -> str:
        """Compare the topics as they are found now with those that the lane was opened on; where they are others, it is
        lost. Returns what is wrong, in words for an operator.
        """
        for name in (self._topics.inbox, self._topics.sessions):
            before, now = self._known[name], found.get(name, self._known[name])
            if now.topic_id != before.topic_id:
                self._lost = f"{name} was made anew"
            elif now.partitions_count != before.partitions_count:
                # What it has read and decided on is right still.
                return f"{name} has {now.partitions_count} partitions, and had {before.partitions_count}"
        return self._lost

    @property
    def rebuilding(self) -> str:
        """What of its sessions is missing still, in words for an operator; empty once they are all there."""
        if self._committed >= self._rebuilt_up_to:
            return ""
        return f"{self._topics.sessions} was made anew, the inbox is read again for it up to {self._rebuilt_up_to}"

    async def close(self) -> None:
        """Give it back. What was not committed is nowhere."""
        producer, self._producer = self._producer, None
        feed, self._feed = self._feed, None
        if producer is not None:
            await producer.close()
        if feed is not None:
            await feed.close()

    @property
    def waits(self) -> tuple[str, float]:
        """What of a commit can't be read yet, in words for an operator, and for how many seconds; else empty and 0."""
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
        """What is in the inbox and is not brought, in words for an operator, and for how many seconds; else empty."""
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
            # No batch has both, what was decided before and what was not.
            end = self._rebuilt_up_to if position < self._rebuilt_up_to else None
            records = await feed.next(count_max, end)
            if not records and end is not None and feed.reached >= end:
                self._rebuilt_up_to = position  # all that was left is what ends transactions
        for each in records:
            if each.key is None and (why := unreadable(each)):
                self._passed_over(place_of(each), why)  # a letter comes of it
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
        """See the contract. Raises LaneLost whatever fails: nobody can tell then what became of it."""
        if self._lost or batch.position != self._committed:
            raise LaneLost(self._lost or f"the lane of partition {self.partition} does not stand at {batch.position}")
        if self.rebuilding:
            messages = [each for each in messages if each.topic == self._topics.sessions]
        messages = self._letters_known.without(messages)
        batches, written = await self._writing.batched(list(map(self._traced, messages)))
        if batch.positions:
            await self._expect_inbox()
        producer, began = self._opened(self._producer), time.monotonic()
        place = self._place_at(batch.next_position, clock_micros)
        if batch.next_position < self._rebuilt_up_to:
            place = self._place_before  # whoever opens the lane next has to begin with that again
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
        """Raises LaneLost where what was read may be another inbox's than this lane's.

        The broker that it was read from is asked, and after that: a broker knows of a topic before it leads one of its
        partitions, so the answer is about the log that was read, or about a later one.
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

    def _traced(self, message: Message) -> Message:
        """The same; a session's record or a dead letter with the id of the inbox that it came from."""
        inbox_id = self._known[self._topics.inbox].topic_id
        wanted = message.topic in {self._topics.sessions, self._topics.dead_letters}
        if not wanted or message.value is None or not inbox_id:
            return message
        return message._replace(headers=[*message.headers, (INBOX_ID, inbox_id)])

    async def _take(self) -> None:
        self._producer = Transactional(self._connection, fence_of(self._inbox), self._limits)
        call = self._producer.start(f"{self._topics.group}-{self.partition}")  # what earlier releases call the fence
        await limited(call, _OPEN_SECONDS_MAX, f"the lane of partition {self.partition} can't be taken")

    async def _settle(self) -> None:
        """End what hangs on the partitions that this lane writes, and shut the owner before out of each of them."""
        producer = self._opened(self._producer)
        markers, told = await self._attest(self._outputs)
        self._place = None if told.offset < 0 else noted_place(told.offset, told.metadata)
        ends = await self._soon(producer.ends(self._outputs, markers), "asked for its ends")
        decided = Settlement(commits=False, position=0)
        offsets: Mapping[TopicPartition, OffsetAndMetadata] = {}
        if any(each.hangs for each in ends.values()):
            committed = await self._furthest()
            # The opening of a lane commits a position of its inbox before anything else: so this is the inbox's id.
            inbox_id = (self._place_at(0, 0) if committed is None else committed).inbox_id
            seen = await tails(self._connection, ends, partial(self._behind, inbox_id))
            if committed is None:
                # Then the sessions tell it, which every notification with an effect has changed, but for dead letters.
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
        """How far any router has come for certain, whatever its group; None where no group tells it.

        Without the other groups' positions, a record that one of their routers committed would seem to be of the
        transaction that hangs.
        """
        inbox_id = self._known[self._topics.inbox].topic_id
        own = self._place if self._place is not None and self._place.is_ours else None
        others = await places_of_rivals(self._connection, self._topics.group, self._inbox)
        same = [each for each in others if each.inbox_id == (inbox_id if own is None else own.inbox_id)]
        return max([own, *same] if own is not None else same, key=lambda each: each.position, default=None)

    async def _attest(self, partitions: Sequence[TopicPartition]) -> Attested:
        """Prove how partitions end, and the group's position: after this lane's right was taken from its owner."""
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
        """These messages are committed."""
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
        """How far the lane came at least, should the group's offset be gone, or behind."""
        behind, inbox_id = trace_of(record, self.partition)
        self._traces[inbox_id] = max(self._traces[inbox_id], behind)

    def _behind(self, inbox_id: str, record: Any) -> int:  # noqa: ANN401  # aiokafka's
        """The position of `trace_of`; 0 where it is one of another inbox, or a record that should tell and does not."""
        behind, told = trace_of(record, self.partition)
        is_told = told or record.topic in {self._topics.sessions, self._topics.dead_letters}
        return 0 if inbox_id and is_told and told != inbox_id else behind

    async def _stand(self) -> None:
        """Find out where to read on, and settle what does not fit."""
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
            # What was remembered then depends on the clock as it was then.
            self._rebuilt_up_to, self._place_before = found.rebuilt_up_to, committed or self._place_before
            self._clock_micros = clock_micros
        self._committed = self._read_up_to = position
        feed.begin(position)

    async def _ask_standing(self, feed: Feed, committed: Place | None) -> tuple[Standing, int]:
        """Where the lane stands, and the offset of a marker of ours before which all of that is true."""
        inbox, sessions = self._known[self._topics.inbox], self._known[self._topics.sessions]
        beginning, end = await feed.bounds()
        reached = self._traces[inbox.topic_id]
        if committed is not None and committed.is_ours and committed.inbox_id in {"", inbox.topic_id}:
            reached = max(reached, committed.position)
        if reached > end:
            # Maybe it ends there only for who was asked. An end without a position beyond it needs no proof: what more
            # there is, is read. So markers get into the inbox in this case alone.
            end = (await self._attest([self._inbox])).markers[self._inbox]
        feed.end = end
        ids = {"inbox_id": inbox.topic_id, "sessions_id": sessions.topic_id}
        return standing(committed, self._traces, **ids, beginning=beginning, end=end), end

    async def _since_remembered(self, marker: int) -> int:
        """The position of the first notification that came since sessions are remembered."""
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
                return f"{position - was_at} notifications were removed before they were routed from {inbox}"
            case Doubt.SESSIONS_ANEW:
                return f"{self._topics.sessions} was made anew: its sessions are told again by the inbox"
            case Doubt.FOREIGN_POSITION:
                return f"another program's position in {inbox} does not count: it is read from {position} on"

    async def _ask_topics(self) -> Mapping[str, Known]:
        """What is known of the lane's topics. Raises Unavailable where nothing may be decided on them."""
        names = self._topics.names
        producer = self._opened(self._producer)
        found = await self._soon(producer.known(names))
        expect_topics(names, found)
        return found

    async def _expect_places(self) -> None:
        """Raises Unavailable where lanes have decided while the inbox had another number of partitions."""
        count = self._known[self._topics.inbox].partitions_count
        found = await places(self._connection, self._topics.group, self._topics.inbox, count)
        expect_partitions(self._topics.inbox, count, found.values())
        self._expect_placed(count)

    def _expect_placed(self, count: int) -> None:
        """Raises Unavailable where the sessions of this partition belong into others."""
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
