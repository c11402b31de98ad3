"""The writing of a lane: batches that fit their topics, and other records in place of refused ones."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from aiokafka import TopicPartition

from receiver.backends.kafka.batches import Batches
from receiver.backends.kafka.failures import ClusterFailed
from receiver.backends.kafka.limits import Limits, Refused
from receiver.backends.kafka.records import output_records
from receiver.core.dead_letter import fitting, shortened
from receiver.core.errors import Unavailable
from receiver.core.headers import TRACE, position_of
from receiver.core.message import Message, bytes_of
from receiver.inbox import LaneLost

#: The topics' limits are read at least this often; a refusal has them read at once.
_AGE_SECONDS_MAX = 300.0
_AGE_SECONDS_SOON = 1.0


#: The number of a partition's last dead letters that are remembered.
LETTERS_MAX = 2_000


class Letters:
    """The last dead letters of a partition.

    A notification whose append was not answered is appended again, and may be in the inbox twice. A session recognizes
    most repetitions, but a dead letter has no session.
    """

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._seen: OrderedDict[int, None] = OrderedDict()

    def without(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages without letters that are known already, or come twice."""
        begun, news = set[int](), list[Message]()
        for message in messages:
            if message.topic == self._topic:
                found = hash((message.key, message.value))
                if found in self._seen or found in begun:
                    continue
                begun.add(found)
            news.append(message)
        return news

    def add(self, letter: Message) -> None:
        """Remember a letter that was written, as the last one."""
        self._seen[hash((letter.key, letter.value))] = None
        if len(self._seen) > LETTERS_MAX:
            self._seen.popitem(last=False)


class Writing:
    """The batches of a partition's lanes, one lane after the other. Lessons are kept in `limits`.

    `more_headers` are added, by topic, to all records but tombstones.
    """

    def __init__(self, limits: Limits, partition: int, dead_letters: str) -> None:
        self._limits = limits
        self._lessons = limits.lessons(partition)
        self._partition = partition
        self._dead_letters = dead_letters
        self.more_headers: Mapping[str, list[tuple[str, bytes]]] = {}

    async def batched(self, messages: Sequence[Message]) -> tuple[Batches, Sequence[Message]]:
        """Batches of the messages, and the messages as written; the batches' marks are places among these.

        Raises Unavailable if one does not fit its topic: its notification is decided on anew, see Batch.
        """
        topics = {message.topic for message in messages}
        await self._limits.read(topics, age_seconds_max=_AGE_SECONDS_MAX)
        if self._lessons.left_out:
            messages = [each for each in messages if not self._is_left_out(each)]
        written = list(map(self._fitting, messages)) if self._dead_letters in topics else messages
        batches, unfit = self._filled(written)
        if unfit:  # unless a limit was raised a moment ago
            await self._limits.read({message.topic for message in unfit}, age_seconds_max=_AGE_SECONDS_SOON)
            batches, unfit = self._filled(written)
        for message in unfit:
            self._cannot_write(message, f"{message.topic} takes no record of {bytes_of(message)} bytes")
        if unfit:
            raise ClusterFailed(f"{unfit[0].topic} does not take a record of the batch")
        return batches, written

    async def learn(self, error: BaseException, batches: Batches, written: Sequence[Message]) -> str:
        """Why a transaction failed, in words. The remedy is remembered for the next lane."""
        if not isinstance(error, Refused):
            if isinstance(error, TimeoutError):
                self._lessons.too_slow()
            return error.message if isinstance(error, Unavailable) else type(error).__name__
        why = batches.described(error)
        mark = await batches.learn(error)
        if mark is not None:
            self._cannot_write(written[mark], why)
        return why

    def _filled(self, written: Sequence[Message]) -> tuple[Batches, Sequence[Message]]:
        """Batches of these messages, and the messages that fit into none."""
        batches, unfit = Batches(self._limits, self._lessons), list[Message]()
        places = {topic: TopicPartition(topic, self._partition) for topic in {message.topic for message in written}}
        records = output_records(written, self.more_headers)
        for mark, (message, record) in enumerate(zip(written, records, strict=True)):
            if not batches.add(places[message.topic], record, mark):
                unfit.append(message)
        return batches, unfit

    def _fitting(self, message: Message) -> Message:
        """The message; a dead letter is shortened so that its topic takes it."""
        if message.topic != self._dead_letters:
            return message
        if self._position_of(message) in self._lessons.bare:
            return shortened(message, 0)
        more_bytes = sum(len(name) + len(text) + 4 for name, text in self.more_headers.get(message.topic, ()))
        return fitting(message, self._limits.batch_bytes_max(message.topic) - more_bytes)

    def _is_left_out(self, message: Message) -> bool:
        """Whether a record without a notification can't be written. A notification's record is never left out, see
        `unwritable`. It shows that its session lives on, so the session's tombstone is tried again later.
        """
        record = message.topic, message.key
        if self._position_of(message) is None:
            return record in self._lessons.left_out
        self._lessons.left_out.discard(record)
        return False

    def _cannot_write(self, message: Message, why: str) -> None:
        """Note that a topic refuses a message: a notification's is replaced by another, any other is left out."""
        position = self._position_of(message)
        if position is None:
            self._lessons.leave_out(message.topic, message.key)
        elif message.topic != self._dead_letters:
            self._lessons.unwritable[position] = why
            self._limits.unwritable(why)
        elif position in self._lessons.bare:
            raise LaneLost(f"partition {self._partition}: {why}, not even the shortest dead letter")
        else:
            self._lessons.bare.add(position)

    def _position_of(self, message: Message) -> int | None:
        """The position of the notification that caused a message; None if no notification of this inbox did."""
        return position_of(dict(message.headers).get(TRACE, ""), self._partition)
