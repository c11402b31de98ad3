"""The topics: the plan for each, the differences from it, and the making of missing topics.

All topics that are keyed by session have the same number of partitions. Otherwise a session's records would lie in
partitions of different numbers, and joins would miss them. The number is never changed: keys would move.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code

from receiver.backends.kafka.connection import KafkaConnection, limited
from receiver.backends.kafka.failures import ClusterFailed
from receiver.backends.kafka.limits import bounds_of, configs_of
from receiver.core.dead_letter import LETTER_BODY_BYTES_MAX
from receiver.core.topics import TopicNames

_ADMIN_SECONDS_MAX = 30.0
#: Brokers learn of a new topic one after the other, and a client asks a random one.
_NEWS_SECONDS_MAX = 10.0
_NEWS_INTERVAL_SECONDS = 0.2
_REPLICAS_WANTED = 3
_HOUR_MILLIS = 3_600_000
#: Tombstones of sessions and markers of transactions are kept for at least a day, so that a restoring lane reads them.
_DELETE_RETENTION_MILLIS = 24 * _HOUR_MILLIS

#: Kafka never compacts the newest segment, and an opening of a lane reads all of it: so it is kept small.
_SEGMENT_BYTES = 64 * 1024 * 1024

#: The router gives a record its event's time within the day before receipt.
_BEFORE_MILLIS_WANTED = 24 * _HOUR_MILLIS
_AFTER_MILLIS_WANTED = 60_000
#: Enough for a session with all its marks, or an event with the longest texts.
_RECORD_BYTES = 64 * 1024


class TopicPlan(NamedTuple):
    """The configuration's plan of the topics. `replication_factor` None: three, or fewer with fewer brokers."""

    prefix: str
    names: Sequence[str]  # with the prefix, without the inbox
    partitions: int
    replication_factor: int | None
    inbox_hours: float
    topics_hours: float
    record_bytes_max: int = 0  # the longest record that edges append

    @property
    def inbox(self) -> str:
        """The name of the inbox topic."""
        return TopicNames(self.prefix).inbox

    @property
    def sessions(self) -> str:
        """The name of the sessions topic."""
        return TopicNames(self.prefix).sessions

    @property
    def dead_letters(self) -> str:
        """The name of the topic of dead letters."""
        return TopicNames(self.prefix).dead_letters

    def bytes_wanted(self, topic: str) -> int:
        """The bytes of the longest record that a topic should take."""
        if topic == self.inbox:
            return self.record_bytes_max
        if topic == self.dead_letters:
            return min(self.record_bytes_max, LETTER_BODY_BYTES_MAX) * 4 // 3 + 1024  # in Base64
        return _RECORD_BYTES

    def instead(self, topic: str) -> str:
        """What a longer record becomes, in words for an operator."""
        if topic == self.inbox:
            return "a file on the edge's disk"
        return "a shorter one" if topic == self.dead_letters else "a dead letter"

    def wanted(self, brokers_count: int) -> dict[str, "Wanted"]:
        """The plan of each topic, for a cluster of `brokers_count` brokers."""
        replicas = self.replication_factor or min(_REPLICAS_WANTED, brokers_count)
        in_sync = {"min.insync.replicas": str(2 if replicas >= _REPLICAS_WANTED else 1)}
        found = {}
        for name in (self.inbox, *self.names):
            hours = self.inbox_hours if name == self.inbox else self.topics_hours
            configs = {"cleanup.policy": "delete", "retention.ms": str(round(hours * _HOUR_MILLIS))}
            if name == self.inbox:
                # Retention counts from the append: so a spool that waited for long, or an edge's wrong clock, does not
                # have a record removed before it is routed. The time of receipt is in its headers.
                configs["message.timestamp.type"] = "LogAppendTime"
            if name == self.sessions:
                configs = {"cleanup.policy": "compact", "delete.retention.ms": str(_DELETE_RETENTION_MILLIS)}
                configs |= {"segment.bytes": str(_SEGMENT_BYTES), "segment.ms": str(_HOUR_MILLIS)}
            found[name] = Wanted(self.partitions, replicas, configs | in_sync)
        return found


class Wanted(NamedTuple):
    """The plan of one topic."""

    partitions: int
    replication_factor: int
    configs: Mapping[str, str]


class TopicDifference(NamedTuple):
    """A difference of a topic from its plan. `fatal`: no process may run with it."""

    topic: str
    what: str
    fatal: bool


async def create(connection: KafkaConnection, plan: TopicPlan) -> list[str]:
    """Make the topics that are missing, and return their names. Raises Unavailable."""
    async with connection.admin(_ADMIN_SECONDS_MAX) as admin:
        described = await limited(admin.describe_topics(), _ADMIN_SECONDS_MAX, "the topics can't be listed")
        existing = {each["topic"]: len(each["partitions"]) for each in described}
        # The partitions that already have keys count, whatever the setting says.
        counts = [existing[name] for name in (plan.inbox, plan.sessions) if name in existing]
        plan = plan._replace(partitions=counts[0] if counts else plan.partitions)
        wanted = plan.wanted(await _brokers_count(admin))
        missing = [name for name in wanted if name not in existing]
        if missing:
            new = [
                NewTopic(
                    name, wanted[name].partitions, wanted[name].replication_factor, topic_configs=wanted[name].configs
                )
                for name in missing
            ]
            answer = await limited(admin.create_topics(new), _ADMIN_SECONDS_MAX, "the topics can't be made")
            for name, code, *message in answer.topic_errors:
                error = for_code(code)
                if code and error is not TopicAlreadyExistsError:
                    told = message[0] if message and message[0] else error.__name__
                    raise ClusterFailed(f"the topic {name} can't be made: {told}")
    return missing


async def check(connection: KafkaConnection, plan: TopicPlan, *, made: bool = False) -> list[TopicDifference]:
    """All differences from the plan. Raises Unavailable.

    If the topics were `made` a moment ago, it waits a little for brokers that don't know them yet.
    """
    async with connection.admin(_ADMIN_SECONDS_MAX) as admin:
        deadline = time.monotonic() + (_NEWS_SECONDS_MAX if made else 0)
        while True:
            differences, unknown = await _differences(admin, plan)
            if not unknown or time.monotonic() >= deadline:
                return differences
            await asyncio.sleep(_NEWS_INTERVAL_SECONDS)


async def _differences(admin: AIOKafkaAdminClient, plan: TopicPlan) -> tuple[list[TopicDifference], bool]:
    """All differences from the plan, and whether a broker did not know a topic."""
    names = [plan.inbox, *plan.names]
    # All topics are listed: with auto-creation a request by name would make the missing ones.
    described = await limited(admin.describe_topics(), _ADMIN_SECONDS_MAX, "the topics can't be read")
    partitions = {each["topic"]: each["partitions"] for each in described if each["topic"] in names}
    configs, errors = await configs_of(admin, list(partitions))
    differences = [TopicDifference(name, "does not exist", fatal=True) for name in names if name not in partitions]
    replicas = {name: min(len(each["replicas"]) for each in some) for name, some in partitions.items()}
    # A broker that is down is not counted, but still has its replicas.
    wanted = plan.wanted(max([await _brokers_count(admin), *replicas.values()]))
    inbox_count = len(partitions[plan.inbox]) if plan.inbox in partitions else plan.partitions
    for name, count in {name: len(some) for name, some in partitions.items()}.items():
        if count != inbox_count:
            what = f"has {count} partitions, {plan.inbox} has {inbox_count}"
            differences.append(TopicDifference(name, what, fatal=True))
        elif count != wanted[name].partitions:
            what = f"has {count} partitions, the configuration says {wanted[name].partitions}"
            differences.append(TopicDifference(name, what, fatal=False))
        if replicas[name] != wanted[name].replication_factor:
            what = f"has {replicas[name]} replicas, not {wanted[name].replication_factor}"
            differences.append(TopicDifference(name, what, fatal=False))
    for name, found in configs.items():
        for key, value in wanted[name].configs.items():
            if found.get(key) != value:
                # A sessions topic that deletes by age would make the router forget sessions.
                fatal = key == "cleanup.policy" and name == plan.sessions
                differences.append(TopicDifference(name, f"has {key}={found.get(key)}, not {value}", fatal))
        differences += [TopicDifference(name, what, fatal=False) for what in _narrownesses(plan, name, found)]
    differences += [
        TopicDifference(name, f"has settings that can't be read: {error.__name__}", fatal=False)
        for name, error in errors.items()
    ]
    return differences, len(partitions) < len(names) or UnknownTopicOrPartitionError in errors.values()


def _narrownesses(plan: TopicPlan, name: str, configs: Mapping[str, str]) -> Iterator[str]:
    """Settings by which a topic refuses or changes records that edges let in, or may lose records."""
    batch_bytes_max, before_millis, after_millis, _ = bounds_of(configs)
    wanted = plan.bytes_wanted(name)
    if batch_bytes_max < wanted:
        instead = plan.instead(name)
        yield f"has max.message.bytes={batch_bytes_max}, not {wanted}: a longer record becomes {instead}"
    if before_millis is not None and before_millis < _BEFORE_MILLIS_WANTED:
        yield f"takes records of the last {before_millis // 1000} s: those of older events get a later time"
    if after_millis is not None and after_millis < _AFTER_MILLIS_WANTED:
        yield f"takes records of the next {after_millis // 1000} s: clocks must not differ by more"
    if configs.get("unclean.leader.election.enable") == "true":
        yield "has unclean.leader.election.enable=true: confirmed records may be lost"


async def _brokers_count(admin: AIOKafkaAdminClient) -> int:
    told = await limited(admin.describe_cluster(), _ADMIN_SECONDS_MAX, "the cluster can't be described")
    return len(told["brokers"])
