"""What a lane writes: messages in batches that their topics take, and something else in place of what they refuse."""

from collections import OrderedDict
from collections.abc import Sequence

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

#: How old what is known of the topics' limits may be; a refusal tells of a change at once.
_AGE_SECONDS_MAX = 300.0
_AGE_SECONDS_SOON = 1.0


#: Dead letters that are remembered, the last ones of the partition.
LETTERS_MAX = 2_000


class Letters:
    """The dead letters that a partition has, the last ones.

    A notification whose append was not answered is appended again, and may then stand in the inbox twice. Most of these
    are repetitions that their session tells; what died has no session.
    """

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._seen: OrderedDict[int, None] = OrderedDict()

    def without(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages but for the letters that are known, or come twice."""
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
        """It is written, and the last one now."""
        self._seen[hash((letter.key, letter.value))] = None
        if len(self._seen) > LETTERS_MAX:
            self._seen.popitem(last=False)


class Writing:
    """Of the lanes of a partition, one after the other: what is learned is kept in `limits`."""

    def __init__(self, limits: Limits, partition: int, dead_letters: str) -> None:
        self._limits = limits
        self._lessons = limits.lessons(partition)
        self._partition = partition
        self._dead_letters = dead_letters

    async def batched(self, messages: Sequence[Message]) -> tuple[Batches, Sequence[Message]]:
        """The messages in batches, marked by their places among those returned.

        Raises Unavailable where one does not fit its topic: its notification is to be decided on anew, see Batch.
        """
        topics = {message.topic for message in messages}
        await self._limits.read(topics, age_seconds_max=_AGE_SECONDS_MAX)
        if self._lessons.left_out:
            messages = [each for each in messages if not self._is_left_out(each)]
        written = list(map(self._fitting, messages)) if self._dead_letters in topics else messages
        batches, unfit = self._filled(written)
        if unfit:  # unless there is more room since a moment ago
            await self._limits.read({message.topic for message in unfit}, age_seconds_max=_AGE_SECONDS_SOON)
            batches, unfit = self._filled(written)
        for message in unfit:
            self._cannot_write(message, f"{message.topic} takes no record of {bytes_of(message)} bytes")
        if unfit:
            raise ClusterFailed(f"{unfit[0].topic} does not take what was decided")
        return batches, written

    async def learn(self, error: BaseException, batches: Batches, written: Sequence[Message]) -> str:
        """Why a transaction failed. What to do about it is remembered for the lane that comes next."""
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
        """Batches of these messages, and those that fit into none."""
        batches, unfit = Batches(self._limits, self._lessons), list[Message]()
        places = {topic: TopicPartition(topic, self._partition) for topic in {message.topic for message in written}}
        for mark, (message, record) in enumerate(zip(written, output_records(written), strict=True)):
            if not batches.add(places[message.topic], record, mark):
                unfit.append(message)
        return batches, unfit

    def _fitting(self, message: Message) -> Message:
        """The message, a dead letter made so short that its topic takes it."""
        if message.topic != self._dead_letters:
            return message
        if self._position_of(message) in self._lessons.bare:
            return shortened(message, 0)
        return fitting(message, self._limits.batch_bytes_max(message.topic))

    def _is_left_out(self, message: Message) -> bool:
        """Whether a record is one that can't be written. What a notification came to never is, see `unwritable`;
        and as its session lives on, the record that ends it is tried again.
        """
        record = message.topic, message.key
        if self._position_of(message) is None:
            return record in self._lessons.left_out
        self._lessons.left_out.discard(record)
        return False

    def _cannot_write(self, message: Message, why: str) -> None:
        """Its topic takes no such message: another is written in its place, or none where it is no notification's."""
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
        """The position of the notification that a message came of; None where that is no notification of this inbox."""
        return position_of(dict(message.headers).get(TRACE, ""), self._partition)
