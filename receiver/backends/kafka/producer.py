"""A transactional producer, used so that no part of a transaction is lost, hangs, or ends another transaction.

aiokafka's commit ignores failed sends, so each send is awaited before it. A request without an answer may still be on
its way, and could end the next transaction: a producer with such a request is not used again. A coordinator's
confirmation proves nothing (see `settlement.py`), so a commit is done when all that it wrote can be read as committed.

Starting a producer under a name ends the transaction that was left open under it, and fences every other producer of
that name.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    TxnOffsetCommitRequest,
)
from aiokafka.structs import OffsetAndMetadata

from receiver.backends.kafka.batches import Filled
from receiver.backends.kafka.connection import KafkaConnection, end_producer, persistently
from receiver.backends.kafka.failures import ClusterFailed
from receiver.backends.kafka.known import Known, known_to
from receiver.backends.kafka.limits import BATCH_BYTES_MAX, REFUSALS, Limits, Refused
from receiver.backends.kafka.markers import Writer, leader_of, look_elsewhere, marker_offset
from receiver.backends.kafka.standing import MARK
from receiver.core.topics import INBOX

#: Below the time after which aiokafka would send the end of a transaction a second time, which could end a later one
#: (KAFKA-17754).
COMMIT_SECONDS_MAX = 10.0

#: A process that died leaves its transaction open this long, and nothing behind it is visible to consumers.
_TIMEOUT_MILLIS = 15_000
_REQUEST_TIMEOUT_MILLIS = 20_000

#: Markers are written after a commit is confirmed, mostly within milliseconds; where a partition's leader moves, within
#: seconds. A partition that missed its marker never gets it; the next opening of the lane settles that.
_VISIBLE_SECONDS_MAX = 15.0
_LOOK_SECONDS_FIRST = 0.002
_LOOK_SECONDS_MAX = 0.1

#: ListOffsets' code for the newest offset, and its isolation levels (kafka.apache.org/protocol).
_LATEST = -1
_UNCOMMITTED, _COMMITTED = 0, 1
_LATEST_OF_ALL, _LATEST_COMMITTED = (_UNCOMMITTED, _LATEST), (_COMMITTED, _LATEST)

_REQUESTS = (AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, EndTxnRequest, TxnOffsetCommitRequest)


def fence_of(inbox: TopicPartition) -> str:
    """The transactional id that is the right to decide on a partition of the inbox, whatever the routers' group."""
    return f"{inbox.topic.removesuffix(f'.{INBOX}')}.router-{inbox.partition}"


class Ends(NamedTuple):
    """A partition's end, for readers of committed records and for all. They differ while a transaction is open."""

    stable: int
    end: int

    @property
    def hangs(self) -> bool:
        """Whether a transaction is open."""
        return self.stable < self.end


class Attested(NamedTuple):
    """What `markers.py` proves: the offsets of our markers, by partition, and a group's position."""

    markers: Mapping[TopicPartition, int]
    committed: OffsetAndMetadata


class Transactional:
    """Transactions under a name. `went_astray`: a request of one of them may still be on its way.

    `waits_for` says which part of the last commit can't be read yet, and `waits_since` (monotonic clock, seconds) since
    when; it is empty while nothing is waited for.
    """

    def __init__(self, connection: KafkaConnection, name: str, limits: Limits) -> None:
        self._connection, self._name, self._limits = connection, name, limits
        self.went_astray = False
        self.waits_for = ""
        self.waits_since = 0.0
        self._transactions_count = 0
        self._producer = connection.producer(
            transactional_id=name,
            transaction_timeout_ms=_TIMEOUT_MILLIS,
            request_timeout_ms=_REQUEST_TIMEOUT_MILLIS,
            max_batch_size=BATCH_BYTES_MAX,
            max_request_size=2 * BATCH_BYTES_MAX,
            retry_backoff_ms=20,
        )
        limits.watch(self._producer.client)
        send = self._producer.client.send

        async def watched(node_id: int, request: Any, **options: Any) -> Any:  # noqa: ANN401  # aiokafka's
            try:
                return await send(node_id, request, **options)
            except BaseException:
                self.went_astray |= isinstance(request, _REQUESTS)
                raise

        self._producer.client.send = watched

    async def start(self, former_name: str = "") -> None:
        """End what was left open under this name, or a former one, and fence other producers of both."""
        if former_name and former_name != self._name:
            former = Transactional(self._connection, former_name, self._limits)
            try:
                await former.start()
            finally:
                await former.close()
        await self._producer.start()

    async def close(self) -> None:
        """Close the producer. What was not committed has no effect."""
        await end_producer(self._producer)

    async def partitions_count(self, topic: str) -> int:
        """The number of a topic's partitions."""
        return len(await self._producer.partitions_for(topic))

    async def known(self, names: Sequence[str], broker: int | None = None) -> dict[str, Known]:
        """See `known`. If `broker` is given, that broker is asked."""
        return await known_to(self._producer.client, names, broker)

    async def commit(
        self,
        batches: Sequence[Filled],
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        group: str,
    ) -> None:
        """Write the batches and the group's offsets, or neither, and wait until both can be read.

        Raises Refused if the brokers would refuse a batch again, Unavailable, and other KAFKA_FAILURES.
        """
        producer = self._producer
        offsets = self._marked(offsets)
        async with asyncio.timeout(COMMIT_SECONDS_MAX):
            await producer.begin_transaction()
            sending = [
                _retrieved(await producer.send_batch(each.builder, each.where.topic, partition=each.where.partition))
                for each in batches
            ]
            # All sends are awaited before the commit, which would ignore one that failed.
            written = _taken(await asyncio.gather(*sending, return_exceptions=True))
            await producer.send_offsets_to_transaction(dict(offsets), group)
            await producer.commit_transaction()
        ends: dict[TopicPartition, int] = {}
        for each, metadata in zip(batches, written, strict=True):
            # If a batch was sent twice, the broker may not know its offset any more.
            ends[each.where] = metadata.offset + len(each.marks) if metadata.offset >= 0 else -1
        await self._wait_until_visible(ends, offsets, group)

    async def attest(self, partitions: Sequence[TopicPartition], position: TopicPartition, group: str) -> Attested:
        """Write a marker behind all that the partitions have, and ask for a group's position in the partition
        `position`, by a transaction without effect.

        Raises KafkaError; asks until it is answered, so the caller limits the time.
        """
        # Even a deposed leader's end is not behind the marker.
        since = await self.ends(partitions)
        await self._begin(partitions)
        # Only a true coordinator takes a position, so its next answer has all that was committed.
        await self._producer.send_offsets_to_transaction({position: OffsetAndMetadata(0, "")}, group)
        coordinator = self._producer._sender._coordinators[CoordinationType.GROUP]  # noqa: SLF001
        committed = await self._committed(coordinator, position, group)
        await self._producer.abort_transaction()
        return Attested(await self._markers({each: ends.end for each, ends in since.items()}), committed)

    async def end(
        self,
        since: Mapping[TopicPartition, int],
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        group: str,
        *,
        commits: bool,
    ) -> Mapping[TopicPartition, int]:
        """End what hangs on partitions, by a transaction without records, and wait until consumers can read behind
        it. `since` has an offset in each partition at which to begin the search for the marker; the markers' offsets
        are returned.

        `offsets` are committed with it; they are empty if it aborts. Raises Unavailable, and other KAFKA_FAILURES.
        """
        async with asyncio.timeout(COMMIT_SECONDS_MAX):
            await self._begin(since)
            if offsets:
                await self._producer.send_offsets_to_transaction(dict(self._marked(offsets)), group)
            await (self._producer.commit_transaction() if commits else self._producer.abort_transaction())
        try:
            async with asyncio.timeout(_VISIBLE_SECONDS_MAX):
                markers = await self._markers(since)
        except TimeoutError:
            why = f"after {_VISIBLE_SECONDS_MAX:g} s, a partition has no marker of a transaction"
            raise ClusterFailed(why) from None
        await self._wait(lambda: self._still_open(markers))
        return markers

    async def _begin(self, partitions: Iterable[TopicPartition]) -> None:
        await self._producer.begin_transaction()
        for each in partitions:
            self._producer._txn_manager.maybe_add_partition_to_txn(each)  # noqa: SLF001  # aiokafka adds it at a send

    async def _markers(self, since: Mapping[TopicPartition, int]) -> Mapping[TopicPartition, int]:
        """The offsets of the last transaction's markers, which are not before the given offsets."""
        client, writer = self._producer.client, Writer(*self._producer._txn_manager._pid_and_epoch)  # noqa: SLF001
        asked = [marker_offset(client, each, offset, writer) for each, offset in since.items()]
        return dict(zip(since, await asyncio.gather(*asked), strict=True))

    async def ends(
        self, partitions: Sequence[TopicPartition], markers: Mapping[TopicPartition, int] | None = None
    ) -> Mapping[TopicPartition, Ends]:
        """Where partitions end, as told by any leader or, if `markers` are given, by leaders that have them.

        Raises KafkaError; asks until it is answered, so the caller limits the time.
        """
        # In this order: an end that was read first can't be beyond a stable offset that has passed it since.
        ends, stable = await self._proven(partitions, markers or {}, _LATEST_COMMITTED)
        return {each: Ends(stable[each], end) for each, end in ends.items()}

    async def first_since(self, partition: TopicPartition, millis: int, marker: int) -> int:
        """The offset of the first record of a time or later; the marker's offset if there is none before it.

        Raises KafkaError; asks until it is answered, so the caller limits the time.
        """
        _, found = await self._proven([partition], {partition: marker}, (_UNCOMMITTED, millis))
        return marker if found[partition] < 0 else min(marker, found[partition])

    async def _proven(
        self, partitions: Sequence[TopicPartition], markers: Mapping[TopicPartition, int], question: tuple[int, int]
    ) -> Sequence[Mapping[TopicPartition, int]]:
        """Where partitions end, and ListOffsets' answer to a question, as told by leaders that have the markers."""
        for topic in {each.topic for each in partitions}:
            await self._producer.partitions_for(topic)  # makes the client ask for their leaders
        while True:
            ends, found = await persistently(partial(self._asked, partitions, _LATEST_OF_ALL, question))
            if all(ends[each] > offset for each, offset in markers.items()):
                return ends, found
            await look_elsewhere(self._producer.client)

    async def committed(self, partition: TopicPartition, group: str) -> OffsetAndMetadata:
        """A group's offset, -1 if there is none. Raises KafkaError."""
        coordinator = await self._producer._sender._find_coordinator(CoordinationType.GROUP, group)  # noqa: SLF001
        return await self._committed(coordinator, partition, group)

    async def _committed(self, coordinator: int, partition: TopicPartition, group: str) -> OffsetAndMetadata:
        sender, client = self._producer._sender, self._producer.client  # noqa: SLF001
        request = OffsetFetchRequest(group, [(partition.topic, [partition.partition])])
        try:
            answer = await client.send(coordinator, request, group=ConnectionGroup.COORDINATION)
            if code := getattr(answer, "error_code", 0):
                raise for_code(code)
            ((_, ((_, offset, metadata, code),)),) = answer.topics
            if code:
                raise for_code(code)
        except KafkaError:
            sender._coordinator_dead(CoordinationType.GROUP)  # noqa: SLF001
            raise
        return OffsetAndMetadata(offset, metadata)

    def _marked(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> dict[TopicPartition, OffsetAndMetadata]:
        """The offsets with a mark of this transaction alone: so they can be told from those of all earlier ones."""
        self._transactions_count += 1
        producer_id, epoch = self._producer._txn_manager._pid_and_epoch  # noqa: SLF001
        mark = f"{producer_id}.{epoch}.{self._transactions_count}"
        return {
            each: OffsetAndMetadata(offset.offset, f"{offset.metadata}{MARK}{mark}") for each, offset in offsets.items()
        }

    async def _wait_until_visible(
        self, ends: Mapping[TopicPartition, int], offsets: Mapping[TopicPartition, OffsetAndMetadata], group: str
    ) -> None:
        unknown = [each for each, end in ends.items() if end < 0]
        if unknown:
            ends = {**ends, **await self._ends(unknown, _UNCOMMITTED)}
        await self._wait(lambda: self._not_visible(ends, offsets, group))

    async def _wait(self, missing: Callable[[], Awaitable[str]]) -> None:
        """Ask again and again until nothing is missing. Raises Unavailable."""
        self.waits_since = time.monotonic()
        look_seconds = _LOOK_SECONDS_FIRST
        try:
            async with asyncio.timeout(_VISIBLE_SECONDS_MAX):
                while True:
                    try:
                        self.waits_for = await missing()
                    except KafkaError as error:
                        self.waits_for = f"no answer about it: {type(error).__name__}"
                    if not self.waits_for:
                        return
                    await asyncio.sleep(look_seconds)
                    look_seconds = min(2 * look_seconds, _LOOK_SECONDS_MAX)
        except TimeoutError:
            raise ClusterFailed(f"after {_VISIBLE_SECONDS_MAX:g} s, {self.waits_for}") from None
        finally:
            self.waits_for = ""

    async def _not_visible(
        self, ends: Mapping[TopicPartition, int], offsets: Mapping[TopicPartition, OffsetAndMetadata], group: str
    ) -> str:
        stable, *committed = await asyncio.gather(
            self._ends(list(ends), _COMMITTED), *(self.committed(each, group) for each in offsets)
        )
        for where, end in ends.items():
            if stable[where] < end:
                told = f"can be read up to {stable[where]} only, of {end}"
                return f"{where.topic} of partition {where.partition} {told}"
        for (where, wanted), found in zip(offsets.items(), committed, strict=True):
            if found != wanted:
                return f"the position of {where.topic}, partition {where.partition}, is still {found.offset}"
        return ""

    async def _still_open(self, markers: Mapping[TopicPartition, int]) -> str:
        stable = await self._ends(list(markers), _COMMITTED)
        for where, marker in markers.items():
            if stable[where] <= marker:
                told = f"before {marker}: it can be read up to {stable[where]} only"
                return f"{where.topic} has an open transaction in partition {where.partition}, {told}"
        return ""

    async def _ends(self, partitions: Sequence[TopicPartition], isolation: int) -> dict[TopicPartition, int]:
        """Where partitions end for an isolation level, by one request to each leader. Raises KafkaError."""
        (found,) = await self._asked(partitions, (isolation, _LATEST))
        return found

    async def _asked(
        self, partitions: Sequence[TopicPartition], *questions: tuple[int, int]
    ) -> Sequence[dict[TopicPartition, int]]:
        """ListOffsets' answers for isolation levels and times, asked one after the other. Raises KafkaError.

        All answers about a partition come from the same broker.
        """
        client = self._producer.client
        try:
            asked: dict[int, list[TopicPartition]] = defaultdict(list)
            for each in partitions:
                asked[leader_of(client, each)].append(each)
            answers = await asyncio.gather(*(self._answers(leader, some, questions) for leader, some in asked.items()))
        except KafkaError:
            client.force_metadata_update()  # the next attempt may ask another broker
            raise
        return [dict(chain.from_iterable(each[number].items() for each in answers)) for number in range(len(questions))]

    async def _answers(
        self, leader: int, partitions: Sequence[TopicPartition], questions: Sequence[tuple[int, int]]
    ) -> Sequence[dict[TopicPartition, int]]:
        answers = []
        for isolation, millis in questions:
            topics: dict[str, list[tuple[int, int]]] = defaultdict(list)
            for each in partitions:
                topics[each.topic].append((each.partition, millis))
            answer = await self._producer.client.send(leader, OffsetRequest(-1, isolation, list(topics.items())))
            found = {}
            for topic, told in answer.topics:
                for partition, code, _, offset, *_ in told:
                    if code:
                        raise for_code(code)
                    found[TopicPartition(topic, partition)] = offset
            answers.append(found)
        return answers


def _taken(outcomes: Sequence[Any]) -> Sequence[Any]:
    """The outcomes of batches. Raises a refusal before any other failure, since it makes those behind it fail."""
    failures = [(number, each) for number, each in enumerate(outcomes) if isinstance(each, BaseException)]
    for number, failure in failures:
        if isinstance(failure, REFUSALS):
            raise Refused(number, failure) from failure
    for _, failure in failures:
        raise failure
    return outcomes


def _retrieved(sent: asyncio.Future[Any]) -> asyncio.Future[Any]:
    """The same future, with its exception retrieved: the transaction may have failed by another one already."""
    sent.add_done_callback(lambda future: future.cancelled() or future.exception())
    return sent
