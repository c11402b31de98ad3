"""The limits of topics, the brokers' refusals of records, and the number of bytes to send at a time.

A *refusal* is about a record: the brokers would refuse it for ever, while they take others. So the record is never sent
again as it was. Every other error is a failure of the cluster, after which the same is tried again.

What is learned here is kept for the life of the process; it outlives connections and lanes.
"""

import asyncio
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    BrokerResponseError,
    CorruptRecordException,
    InvalidTimestampError,
    KafkaError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    UnsupportedForMessageFormatError,
    for_code,
    kafka_errors,
)
from aiokafka.protocol.produce import ProduceRequest, ProduceRequest_v8

from receiver.backends.kafka.connection import KafkaConnection, limited
from receiver.backends.kafka.records import notification_of
from receiver.core.errors import Unavailable
from receiver.core.notification import Notification


class InvalidRecordError(BrokerResponseError):  # type: ignore[misc]  # aiokafka has no types
    """A broker's validation of records refused one, such as by a schema."""

    errno = 87
    message = "INVALID_RECORD"
    description = "The broker does not take the record."


# aiokafka can read version 8 but does not offer it. In its answers brokers say why they refuse a record.
ProduceRequest._CLASSES = (*ProduceRequest._CLASSES, ProduceRequest_v8)  # noqa: SLF001
# Without this aiokafka would raise UnknownError, as for a fault of the broker.
kafka_errors[InvalidRecordError.errno] = InvalidRecordError

TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
#: The errors by which brokers refuse a batch because of a record in it. Nothing of such a batch was appended.
REFUSALS = (
    *TOO_LARGE,
    InvalidTimestampError,
    InvalidRecordError,
    PolicyViolationError,
    CorruptRecordException,
    UnsupportedForMessageFormatError,
)

#: A broker takes 1 MiB by default; this leaves room for what wraps a batch.
BATCH_BYTES_MAX = 900_000

_ANSWER_SECONDS_MAX = 5.0
_AGE_SECONDS_MAX = 10.0
_HOUR_MILLIS = 3_600_000
#: A record's timestamp type: the broker's time of the append (kafka.apache.org/documentation, message format).
_APPEND_TIME = 1
#: A bound above this counts as none: Kafka's own value for "none" is 2^63 - 1.
_BOUND_MILLIS_MAX = 10 * 365 * 24 * _HOUR_MILLIS
#: Room for a difference between our clock and the brokers', and for the time that a record is on its way.
_SLACK_MILLIS = 5 * 60_000
_END_MILLIS = 2**62
#: With steps that begin at an hour and double, 16 of them reach seven years.
_SHIFTS_MAX = 16
#: After this time without a refusal, the last guess was right.
_SHIFTING_SECONDS = 60.0
_RECORDS_MAX = 2**31

#: The times that a broker takes, as its refusal tells them: "... should be within [1764000000000, ...]".
_TIMES = re.compile(r"within \[(-?\d+), (-?\d+)\]")

#: A size learned from a refusal is forgotten after this time: the topic's settings may have been changing.
_LEARNED_SECONDS = 300.0
_NOTHING_LEARNED = 0, 0.0


class Bounds(NamedTuple):
    """A topic's limits: bytes of a batch, and how far times may lie before and after the broker's (None: no limit).

    `kept_millis` is for how long after its time a record is kept, None for ever.
    """

    batch_bytes_max: int
    before_millis: int | None
    after_millis: int | None
    kept_millis: int | None = None


#: For a topic whose settings can't be read: the defaults of brokers of 4.0.
_BOUNDS = Bounds(2**20, None, _HOUR_MILLIS)


def bounds_of(configs: Mapping[str, str]) -> Bounds:
    """The bounds in a topic's settings. A topic with LogAppendTime takes any time."""
    told = configs.get("max.message.bytes", "")
    batch_bytes_max = int(told) if told.isdecimal() else _BOUNDS.batch_bytes_max
    if configs.get("message.timestamp.type") == "LogAppendTime":
        return Bounds(batch_bytes_max, None, None)
    removes = "delete" in configs.get("cleanup.policy", "")
    kept = _millis(configs.get("retention.ms")) if removes else None
    # Before 3.6 there was one bound for both sides; until 4.0 it replaced those that were not set.
    either = _millis(configs.get("message.timestamp.difference.max.ms"))
    before = _millis(configs.get("message.timestamp.before.max.ms"))
    after = _millis(configs.get("message.timestamp.after.max.ms"))
    return Bounds(batch_bytes_max, either if before is None else before, either if after is None else after, kept)


def _millis(told: str | None) -> int | None:
    millis = int(told) if told is not None and told.isdecimal() else None
    return None if millis is None or millis > _BOUND_MILLIS_MAX else millis


async def configs_of(
    admin: AIOKafkaAdminClient, names: Collection[str]
) -> tuple[dict[str, dict[str, str]], dict[str, type[Exception]]]:
    """The settings of topics; for the topics without, the error that a broker gave. Raises Unavailable."""
    if not names:
        return {}, {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    asked = admin.describe_configs(resources)
    answers = await limited(asked, _ANSWER_SECONDS_MAX, "the topics' settings can't be read")
    told = [each for answer in answers for each in answer.resources]
    return (
        {name: {entry[0]: entry[1] for entry in entries} for code, _, _, name, entries in told if not code},
        {name: for_code(code) for code, _, _, name, _ in told if code},
    )


class Window(NamedTuple):
    """The times of records that a topic takes now, as far as is known. `shift` is the number of that guess."""

    begin_millis: int
    end_millis: int
    shift: int

    def clamped(self, millis: int) -> int:
        """The nearest time within the window."""
        return min(max(millis, self.begin_millis), self.end_millis)


def _now_millis() -> int:
    return time.time_ns() // 1_000_000


class Limits:
    """The limits of a cluster's topics, as the brokers tell them and as refusals teach them.

    `now_millis` is this machine's clock, which may be wrong.
    """

    def __init__(self, connection: KafkaConnection, now_millis: Callable[[], int] = _now_millis) -> None:
        self._connection = connection
        self._now_millis = now_millis
        self._bounds: dict[str, Bounds] = {}
        self._read_at: dict[str, float] = {}
        self._reading = asyncio.Lock()
        self._bytes_learned: dict[str, tuple[int, float]] = {}  # bytes, and until when they count
        self._lessons: dict[int, Lessons] = {}
        # How far our clock is ahead of the brokers', as far as refusals tell: Kafka has no request for its time.
        self._ahead_millis = 0
        self._shift = self._shifts_count = 0
        self._shifted_at = 0.0
        self._ahead_told: int | None = None
        self._unwritable_count, self._why, self._ahead_count = 0, "", 0

    @property
    def notice(self) -> str:
        """What could not be written or taken as it was, in words for an operator; empty if all could."""
        count, ahead = self._unwritable_count, self._ahead_count
        refused = f"{count} notifications are dead letters because of Kafka's refusals: {self._why}" if count else ""
        early = (
            f"{ahead} notifications were received by a clock that is more than an hour ahead of ours" if ahead else ""
        )
        return "; ".join(filter(None, (refused, early)))

    def unwritable(self, why: str) -> None:
        """Count a notification whose records can't be written."""
        self._unwritable_count += 1
        self._why = why

    async def read(self, topics: Collection[str], *, age_seconds_max: float = _AGE_SECONDS_MAX) -> None:
        """Read the topics' settings, unless those known are young enough. Where that fails, the known ones stay."""
        async with self._reading:  # a caller that comes during a read uses its result
            await self._read(topics, age_seconds_max)

    async def _read(self, topics: Collection[str], age_seconds_max: float) -> None:
        now = time.monotonic()
        old = [each for each in topics if now - self._read_at.get(each, -age_seconds_max) >= age_seconds_max]
        if not old:
            return
        self._read_at |= dict.fromkeys(old, now)
        try:
            async with self._connection.admin(_ANSWER_SECONDS_MAX) as admin:
                configs, _ = await configs_of(admin, old)
        except Unavailable:
            return
        for topic, config in configs.items():
            bounds = bounds_of(config)
            if bounds != self._bounds.get(topic):
                self._bounds[topic] = bounds
                self._bytes_learned.pop(topic, None)
                self._shift += 1

    def of(self, topic: str) -> Bounds:
        """The bounds of a topic; the brokers' defaults if its settings are not known."""
        return self._bounds.get(topic, _BOUNDS)

    def batch_bytes_max(self, topic: str) -> int:
        """The most bytes that a batch for a topic may have, its own header included."""
        bytes_max, until = self._bytes_learned.get(topic, _NOTHING_LEARNED)
        return bytes_max if time.monotonic() < until else self.of(topic).batch_bytes_max

    def notifications(self, records: Sequence[Any]) -> list[Notification]:
        """The notifications in fetched records of the inbox.

        The inbox's clock is the latest receipt, and sessions are forgotten by it. So an edge's time of a record that is
        more than an hour ahead of now is replaced by now. The broker's time of an append always counts.
        """
        latest_millis = self._now_millis() - self._ahead_millis + _HOUR_MILLIS
        found = []
        for each in records:
            if (each.timestamp or 0) > latest_millis and each.timestamp_type != _APPEND_TIME:
                self._ahead_count += 1
                found.append(notification_of(each, latest_millis - _HOUR_MILLIS))
            else:
                found.append(notification_of(each))
        return found

    def window(self, topic: str) -> Window:
        """The times by which a topic takes records now, and keeps them for at least half of its retention."""
        _, before, after, kept = self.of(topic)
        now = self._now_millis() - self._ahead_millis
        begin = 0 if before is None else now - before + min(before // 2, _SLACK_MILLIS)
        if kept is not None:
            begin = max(begin, now - kept // 2)
        end = _END_MILLIS if after is None else now + after - min(after // 2, _SLACK_MILLIS)
        return Window(max(0, begin), max(0, end), self._shift)

    def too_large(self, topic: str, batch_bytes: int, records_count: int) -> None:
        """Note a batch that was refused as too large: the topic takes less than its known settings say."""
        if batch_bytes <= self.batch_bytes_max(topic):
            bytes_max = batch_bytes // 2 if records_count > 1 else batch_bytes - 1
            self._bytes_learned[topic] = bytes_max, time.monotonic() + _LEARNED_SECONDS

    def watch(self, client: AIOKafkaClient) -> None:
        """Read the brokers' answers to a producer: they say which times they take, which aiokafka does not tell."""
        send = client.send

        async def watched(node_id: int, request: Any, **options: Any) -> Any:  # noqa: ANN401  # aiokafka's
            answer = await send(node_id, request, **options)
            if isinstance(request, ProduceRequest) and answer is not None:
                self._hear(answer)
            return answer

        client.send = watched

    def _hear(self, answer: Any) -> None:  # noqa: ANN401  # aiokafka's
        for topic, partitions in answer.topics:
            for _, code, *told in partitions:
                if code == InvalidTimestampError.errno and (found := _TIMES.search(str(told))):
                    _, before, after, _ = self.of(topic)
                    if after is not None:
                        self._ahead_told = self._now_millis() - (int(found[2]) - after)
                    elif before is not None:
                        self._ahead_told = self._now_millis() - (int(found[1]) + before)

    def mistimed(self, topic: str, window: Window) -> bool:
        """Note a batch that was refused for a time in that window. Whether another guess is left to try.

        Either our clock is wrong or the brokers'. Brokers tell which times they take (`_hear`). If they don't, times
        are tried in steps that can't miss the topic's window: to one side only if it has one bound, else to both.
        """
        if window.shift != self._shift:
            return True  # another guess was made since
        if self._ahead_told is not None and abs(self._ahead_told - self._ahead_millis) > _SLACK_MILLIS // 2:
            self._ahead_millis, self._ahead_told = self._ahead_told, None
            self._shift += 1
            return True
        self._shift += 1
        now = time.monotonic()
        if now - self._shifted_at > _SHIFTING_SECONDS:
            self._shifts_count = 0
        self._shifted_at = now
        if not self._shifts_count and self._ahead_millis:
            self._ahead_millis = 0  # a clock that was wrong may have been set
            return True
        self._shifts_count += 1
        if self._shifts_count > _SHIFTS_MAX:
            self._shifts_count = self._ahead_millis = 0
            return False
        _, before, after, _ = self.of(topic)
        if before is None:
            self._ahead_millis = max(after or _HOUR_MILLIS, 1_000) << self._shifts_count - 1
        elif after is None:
            self._ahead_millis = -(max(before, 1_000) << self._shifts_count - 1)
        else:
            sign = 1 if self._shifts_count % 2 else -1
            self._ahead_millis = sign * max((before + after) // 2, 1_000) * ((self._shifts_count + 1) // 2)
        return True

    def lessons(self, partition: int) -> "Lessons":
        """The lessons of a partition of the inbox."""
        return self._lessons.setdefault(partition, Lessons())

    def left_out(self) -> set[tuple[str, str]]:
        """Records that no lane could write and that come from no notification, by topic and key."""
        return set[tuple[str, str]]().union(*(each.left_out for each in self._lessons.values()))


class Effort:
    """The number of bytes to send at a time: as many as take about `seconds`, a part of the time limit.

    It begins low, doubles while sends are quick, and is halved when the time was not enough.
    """

    def __init__(self, seconds: float, *, bytes_first: int, bytes_min: int, bytes_max: int) -> None:
        self.bytes_max = bytes_first
        self._least, self._most = bytes_min, bytes_max
        self._seconds = seconds

    def took(self, sent_bytes: int, seconds: float) -> None:
        """The link took `sent_bytes` in this time. A few bytes tell nothing of it."""
        if sent_bytes < self._least:
            return
        if seconds > self._seconds:
            wanted = int(sent_bytes * self._seconds / seconds)
            self.bytes_max = max(self._least, self.bytes_max // 2, min(self.bytes_max, wanted))
        elif seconds < self._seconds / 2 and sent_bytes > self.bytes_max // 2:
            self.bytes_max = min(self._most, 2 * self.bytes_max)

    def failed(self) -> None:
        """Note that a send was not finished in time."""
        self.bytes_max = max(self._least, self.bytes_max // 2)


class Refused(KafkaError):  # type: ignore[misc]  # aiokafka has no types
    """A batch of a transaction was refused. `number` is the batch's place, `error` what the broker answered."""

    def __init__(self, number: int, error: KafkaError) -> None:
        super().__init__(type(error).__name__)
        self.number = number
        self.error = error


#: A transaction has ten seconds, and lanes share a link. 2,000 notifications of the usual size write 2 MiB.
_COMMIT_SECONDS = 2.5
_COMMIT_BYTES_FIRST, _COMMIT_BYTES_MIN, _COMMIT_BYTES_MAX = 2**21, 2**14, 2**24
_FETCH_BYTES_MIN, _FETCH_BYTES_MAX = 2**16, 2**22
#: A refused batch is cut into this many parts the next time, until the refused record is alone.
_CUTS = 16
_LEFT_OUT_MAX = 10_000


def commit_effort() -> Effort:
    """The effort for the bytes of a transaction."""
    return Effort(
        _COMMIT_SECONDS, bytes_first=_COMMIT_BYTES_FIRST, bytes_min=_COMMIT_BYTES_MIN, bytes_max=_COMMIT_BYTES_MAX
    )


class Lessons:
    """What the lanes of a partition learned. It outlives each of them."""

    def __init__(self) -> None:
        self.effort = commit_effort()
        self.fetch_bytes_max = _FETCH_BYTES_MAX
        #: Why a notification's records can't be written, by its position in the inbox.
        self.unwritable: dict[int, str] = {}
        #: The notifications whose dead letter was refused too: the next one is written without a body.
        self.bare: set[int] = set()
        #: Refused records that come from no notification, by topic and key: tombstones, and exported sessions.
        self.left_out: set[tuple[str, str]] = set()
        self._records_max: dict[str, int] = {}
        self._inbox_id = ""

    def are_of(self, inbox_id: str) -> None:
        """Forget lessons about positions if they are another inbox's."""
        if inbox_id != self._inbox_id:
            self._inbox_id = inbox_id
            self.unwritable.clear()
            self.bare.clear()

    def records_max(self, topic: str) -> int:
        """The most records of a batch: few while the refused one is looked for."""
        return self._records_max.get(topic, _RECORDS_MAX)

    def cut(self, topic: str, records_count: int) -> None:
        """Note that a batch of `records_count` records was refused for one of them."""
        self._records_max[topic] = max(1, records_count // _CUTS)

    def leave_out(self, topic: str, key: str) -> None:
        """Note a refused record that comes from no notification."""
        if len(self.left_out) >= _LEFT_OUT_MAX:
            self.left_out.clear()  # they are found again when they are refused again
        self.left_out.add((topic, key))

    def too_slow(self) -> None:
        """Note that a fetch or a transaction took too long."""
        self.effort.failed()
        self.fetch_bytes_max = max(_FETCH_BYTES_MIN, self.fetch_bytes_max // 2)

    def committed(self, position: int) -> None:
        """Note that all before this position is committed."""
        self._records_max.clear()
        self.fetch_bytes_max = min(_FETCH_BYTES_MAX, self.fetch_bytes_max + _FETCH_BYTES_MIN)
        for each in [each for each in self.unwritable if each < position]:
            del self.unwritable[each]
        self.bare = {each for each in self.bare if each >= position}
