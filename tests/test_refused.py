"""A broker's refusal of a record stops no other record: batches or records too long, times out of bounds."""

import asyncio
import itertools
import os
import secrets
import subprocess
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from io import StringIO
from pathlib import Path

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from receiver.backends.kafka.connection import KafkaConnection, Security
from receiver.backends.kafka.inbox import KafkaInbox
from receiver.backends.kafka.lane import Topics
from receiver.backends.kafka.limits import Limits, configs_of
from receiver.backends.kafka.membership import Membership
from receiver.backends.kafka.topics import TopicPlan, create
from receiver.backends.spool import SET_ASIDE, Spool
from receiver.core.errors import Unavailable, Unwritable
from receiver.core.notification import Notification
from receiver.core.router import Router
from receiver.dispatcher import Dispatcher
from receiver.process.clustered import SPOOL
from receiver.telemetry import Telemetry
from tests.kafka_cluster import Cluster
from tests.kafka_process import KafkaReceiver, records, told_on, until
from tests.limits import SECONDS_MAX
from tests.receiver_process import COMMAND
from tests.samples import HOUR, SECOND, SESSION_ID, body, posted, told
from tests.test_export import Directory
from tests.test_kafka import PARTITIONS, Site

BATCH_BYTES_MAX = 100_000


@pytest.fixture(scope="module")
def narrow(can_run_kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:  # noqa: ARG001
    """A broker that takes batches of 100,000 bytes, and records of the last hour and the next."""
    properties = {
        "message.max.bytes": str(BATCH_BYTES_MAX),
        "log.message.timestamp.before.max.ms": "3600000",
        "log.message.timestamp.after.max.ms": "3600000",
    }
    with Cluster(tmp_path_factory.mktemp("narrow"), properties=properties) as cluster:
        yield cluster


@pytest.fixture
def prefix() -> str:
    """A prefix of topics that no other test has."""
    return f"t{secrets.token_hex(6)}"


def _serving(narrow: Cluster, prefix: str, directory: Path, *options: str, **settings: str) -> KafkaReceiver:
    # An append that took too long would be repeated, which is another test's subject.
    patient = {"KAFKA__APPEND_TIMEOUT_SECONDS": "60", "EDGE__APPEND_TIMEOUT_SECONDS": "60", "KAFKA__PARTITIONS": "1"}
    return KafkaReceiver(directory, narrow.bootstrap, prefix, *options, **patient, **settings)


def _sized(what: str, session_id: str, size: int) -> bytes:
    """A notification with a body of this many bytes."""
    content = body(told(what, session_id)[0], filling="")
    return content.replace(b'"filling":""', b'"filling":"%s"' % (b"x" * (size - len(content))))


def _now_micros() -> int:
    return time.time_ns() // 1000


def _at(micros: int, what: str, session_id: str) -> bytes:
    event, _ = told(what, session_id)
    return body(event._replace(time_micros=micros))


def _routed(narrow: Cluster, prefix: str, count: int, topic: str = "status") -> dict[str, list[str]]:
    """The ids of the events on a topic, by session, once there are this many."""
    found: dict[str, list[str]] = {}

    def enough() -> bool:
        nonlocal found
        found = told_on(narrow.bootstrap, f"{prefix}.{topic}", 1)
        return sum(map(len, found.values())) >= count

    until(enough, f"{count} events on {prefix}.{topic}")
    return found


def _inbox_end(narrow: Cluster, prefix: str) -> int:
    async def end() -> int:
        async with AIOKafkaConsumer(bootstrap_servers=narrow.bootstrap) as consumer:
            inbox = TopicPartition(f"{prefix}.inbox", 0)
            return int((await consumer.end_offsets([inbox]))[inbox])

    return asyncio.run(end())


def _set(narrow: Cluster, topic: str, **values: str) -> None:
    """Change settings of a topic, and wait until the broker applies them."""

    async def alter() -> None:
        configs = {name.replace("_", "."): value for name, value in values.items()}
        admin = AIOKafkaAdminClient(bootstrap_servers=narrow.bootstrap)
        await admin.start()
        try:
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs)])
            async with asyncio.timeout(SECONDS_MAX):
                told = dict[str, str]()
                while not configs.items() <= told.items():
                    told = (await configs_of(admin, [topic]))[0].get(topic, {})
                    await asyncio.sleep(0.1)
            await asyncio.sleep(0.5)  # the broker tells new settings a moment before it applies them
        finally:
            await admin.close()

    asyncio.run(alter())


def test_batches_keep_to_what_the_topic_takes(narrow: Cluster, prefix: str, tmp_path: Path) -> None:
    """480 notifications of 4 KB from 48 connections, and one more, are routed once with batches of 100,000 bytes."""
    sessions = [f"s{number}" for number in range(48)]
    with _serving(narrow, prefix, tmp_path) as receiver:

        def tell(session_id: str) -> list[int]:
            contents = [
                _sized(f"{'AU'[second % 2]}{second}#{session_id}-{second}", session_id, 4_000) for second in range(10)
            ]
            return [answer.status for answer in receiver.post(*contents)]

        with ThreadPoolExecutor(len(sessions)) as pool:
            statuses = Counter(status for each in pool.map(tell, sessions) for status in each)
        assert statuses == {204: 480}
        found = _routed(narrow, prefix, 480)
        assert [answer.status for answer in receiver.tell("last", "A1#last")] == [204]
        assert _routed(narrow, prefix, 481)["last"] == ["last"]
        assert {each: found[each] for each in sessions} == {
            each: [f"{each}-{second}" for second in range(10)] for each in sessions
        }
        assert _inbox_end(narrow, prefix) == 481


def test_a_limit_is_lowered_while_batches_are_on_their_way(narrow: Cluster, prefix: str, tmp_path: Path) -> None:
    """If the topic's limit falls, refused batches are cut, and nothing in them comes twice."""
    with _serving(narrow, prefix, tmp_path, "--role", "edge") as edge:
        assert [answer.status for answer in edge.post(_sized("A1#first", "first", 4_000))] == [204]
        _set(narrow, f"{prefix}.inbox", max_message_bytes="20000")

        def tell(number: int) -> list[int]:
            return [
                answer.status
                for answer in edge.post(*(_sized(f"A{n}#{number}-{n}", f"s{number}", 4_000) for n in range(10)))
            ]

        with ThreadPoolExecutor(24) as pool:
            statuses = Counter(status for each in pool.map(tell, range(24)) for status in each)
        assert statuses == {204: 240}
        until(lambda: edge.spooled() == 0 and _inbox_end(narrow, prefix) >= 241, "all in the inbox")
        kept = [each.key.decode() for each in records(narrow.bootstrap, f"{prefix}.inbox", 1)]
        assert Counter(kept) == {"first": 1, **{f"s{number}": 10 for number in range(24)}}


def test_one_too_long_for_the_inbox_is_set_aside(narrow: Cluster, prefix: str, tmp_path: Path) -> None:
    """A refused notification is on the disk, counted and reported; it is routed once the topic takes it."""
    with _serving(narrow, prefix, tmp_path, EDGE__BODY_BYTES_MAX="300000") as receiver:
        contents = [_sized("A1#a", "a", 4_000), _sized("A1#long", "long", 200_000), _sized("U2#b", "a", 4_000)]
        assert [answer.status for answer in receiver.post(*contents)] == [204, 204, 204]
        assert _routed(narrow, prefix, 2) == {"a": ["a", "b"]}
        until(lambda: receiver.samples("qod_receiver_set_aside_notifications")[""] == 1, "set aside")
        until(lambda: receiver.spooled() == 0, "the others drained")
        told_to_operators = receiver.get("/readyz")
        assert told_to_operators["ready"] is True
        assert "set aside" in told_to_operators["checks"]["spool"]
        assert [each.suffix for each in (tmp_path / SPOOL / SET_ASIDE).iterdir()] == [".json"]
        assert receiver.post(_sized("A1#c", "c", 4_000))[0].status == 204
        assert _routed(narrow, prefix, 3)["c"] == ["c"]
        for topic in ("inbox", "status"):
            _set(narrow, f"{prefix}.{topic}", max_message_bytes="1000000")
        receiver.end()
        receiver.start()
        assert _routed(narrow, prefix, 4)["long"] == ["long"]
        until(lambda: receiver.samples("qod_receiver_set_aside_notifications")[""] == 0, "nothing set aside")


def test_events_of_long_ago_are_routed(narrow: Cluster, prefix: str, tmp_path: Path) -> None:
    """On a topic that takes records of the last hour, an event of two hours ago is there, with its own time in the
    value.
    """
    with _serving(narrow, prefix, tmp_path) as receiver:
        now = _now_micros()
        for number, micros in enumerate((now, now - 2 * HOUR, now)):
            assert receiver.post(_at(micros, f"A1#{number}", f"s{number}"))[0].status == 204
            assert len(_routed(narrow, prefix, number + 1)) == number + 1
        assert receiver.samples("qod_receiver_lane_failures_total") == {}
        late = records(narrow.bootstrap, f"{prefix}.status", 1)[1]
        assert (
            orjson.loads(late.value)["time"]
            == orjson.loads(body(told("A1")[0]._replace(time_micros=now - 2 * HOUR)))["time"]
        )
        assert now - HOUR <= late.timestamp * 1000


def _left_by_a_clock_ahead(directory: Path, hours: int, count: int) -> None:
    """Leave notifications in the spool of an edge whose clock was ahead."""

    async def leave() -> None:
        nowhere = KafkaInbox(KafkaConnection(["127.0.0.1:9"], Security().options()), "inbox", append_timeout_seconds=1)
        spool = Spool(directory, nowhere, Telemetry(StringIO()), bytes_max=1 << 20, append_timeout_seconds=30)
        with closing(spool):
            await asyncio.gather(*(spool.append(each) for each in _ahead(hours, count)))

    asyncio.run(leave())


def _ahead(hours: int, count: int) -> Sequence[Notification]:
    received_micros = _now_micros() + hours * HOUR
    return [
        posted(
            _at(received_micros - SECOND, f"A1#{number}", f"s{number}"),
            session_id=f"s{number}",
            received_micros=received_micros + number,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("hours", [3, -3])
def test_an_edges_clock_was_wrong(narrow: Cluster, prefix: str, tmp_path: Path, hours: int) -> None:
    """Notifications received three hours ahead, or behind, are drained and routed once, beside new ones."""
    _left_by_a_clock_ahead(tmp_path / SPOOL / "0", hours, 300)
    with _serving(narrow, prefix, tmp_path) as receiver:
        assert receiver.tell("now", "A1#now")[0].status == 204
        found = _routed(narrow, prefix, 301)
        assert found == {"now": ["now"], **{f"s{number}": [str(number)] for number in range(300)}}
        until(lambda: receiver.spooled() == 0, "the spool is empty")
        assert _inbox_end(narrow, prefix) == 301


async def _forgotten(membership: Membership, inbox: KafkaInbox, now_micros: int) -> None:
    """Wait until no lane has a session: lanes look for those to forget when a notification comes."""
    lanes = membership.lanes
    async with asyncio.timeout(SECONDS_MAX):
        while len(lanes) < PARTITIONS or any(each.sessions for each in lanes.values()):
            await inbox.append(posted(b"moves the clock", key=SESSION_ID, received_micros=now_micros))
            await asyncio.sleep(0.1)


async def _told_again(inbox: KafkaInbox, notification: Notification) -> None:
    """Post like a sender that repeats a notification again and again."""
    for number in itertools.count():
        await inbox.append(notification._replace(received_micros=notification.received_micros + number))
        await asyncio.sleep(0.2)


async def _kept(inbox: KafkaInbox, notification: Notification) -> None:
    """Append, again if the broker does not know the new topic yet."""
    while True:
        await inbox.connected.wait()
        try:
            return await inbox.append(notification)
        except Unwritable:
            raise
        except Unavailable:
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("hours", [3, -3, 50])
async def test_our_own_clock_is_wrong(narrow: Cluster, prefix: str, hours: int) -> None:
    """If this machine's clock is wrong by hours, notifications are appended once and routed once all the same."""
    connection = KafkaConnection([narrow.bootstrap], Security().options())
    router = Router(prefix=prefix, forget_after_seconds=96 * 3600)
    plan = TopicPlan(prefix, router.topics, 1, None, 168, 168)
    topics = Topics.of(prefix, "router", router.topics)
    await create(connection, plan)
    limits = Limits(connection, lambda: _now_micros() // 1000 + hours * HOUR // 1000)
    inbox = KafkaInbox(connection, plan.inbox, append_timeout_seconds=60, limits=limits)
    membership = Membership(
        connection,
        topics,
        Telemetry(StringIO()),
        lambda lane: Dispatcher(lane, router, Telemetry(StringIO()), batch_max=100),
        limits,
    )
    running = [asyncio.create_task(inbox.run()), asyncio.create_task(membership.run())]
    try:
        async with asyncio.timeout(SECONDS_MAX):
            await inbox.connected.wait()
            for each in _ahead(hours, 200):
                await _kept(inbox, each)
            while True:
                found = await asyncio.to_thread(told_on, narrow.bootstrap, f"{prefix}.status", 1)
                if len(found) == 200:
                    break
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)
    assert found == {f"s{number}": [str(number)] for number in range(200)}
    assert len(await asyncio.to_thread(records, narrow.bootstrap, plan.inbox, 1)) == 200


def test_what_a_notification_came_to_is_refused(narrow: Cluster, prefix: str, tmp_path: Path) -> None:
    """A notification whose record its topic refuses is a dead letter, as short as necessary; all others are routed."""
    with _serving(narrow, prefix, tmp_path) as receiver:
        assert receiver.tell("first", "A1#first")[0].status == 204
        assert _routed(narrow, prefix, 1) == {"first": ["first"]}
        _set(narrow, f"{prefix}.status", max_message_bytes="1800")
        _set(narrow, f"{prefix}.dead-letter", max_message_bytes="1500")
        contents = [
            _at(_now_micros(), f"A1#{'x' * 1_700 if number == 50 else number}", f"s{number}") for number in range(100)
        ]
        assert {answer.status for answer in receiver.post(*contents)} == {204}
        found = _routed(narrow, prefix, 100)
        assert found == {"first": ["first"], **{f"s{number}": [str(number)] for number in range(100) if number != 50}}
        (letter,) = records(narrow.bootstrap, f"{prefix}.dead-letter", 1)
        value = orjson.loads(letter.value)
        assert letter.key == b"s50"
        assert f"{prefix}.status" in value["reason"]
        assert value["bodyBytes"] == len(contents[50])
        assert contents[50].startswith(b64decode(value["body"]))
        assert receiver.samples("qod_receiver_unwritable_total")[""] >= 1
        assert "1 notifications are dead letters" in receiver.checks()["lanes"]
        # Its session did not change, so a post or a replay takes effect when the topic has room.
        _set(narrow, f"{prefix}.status", max_message_bytes="100000")
        assert receiver.post(contents[50])[0].status == 204
        assert len(_routed(narrow, prefix, 101)["s50"]) == 1


async def test_a_sessions_end_is_refused(narrow: Cluster, prefix: str, telemetry: Telemetry) -> None:
    """If the sessions topic refused a session's tombstone, the session's next record is there."""
    site = Site(narrow, prefix)
    await create(site.connection, site.plan)
    now_micros = _now_micros()
    async with site.inbox() as inbox, site.routing(telemetry) as membership:
        # A broker may not know a new topic yet.
        await _kept(inbox, posted("A1#a", received_micros=now_micros - 98 * HOUR))
        await site.records("sessions", lambda found: len(found) == 1)
        # Less than a tombstone of this key takes, and enough for the marker of a transaction.
        await asyncio.to_thread(_set, narrow, f"{prefix}.sessions", max_message_bytes="90", cleanup_policy="compact")
        await _forgotten(membership, inbox, now_micros)
        await asyncio.to_thread(_set, narrow, f"{prefix}.sessions", max_message_bytes="9000", cleanup_policy="compact")
        # Again while it becomes a dead letter: the router learns within a second that the limit rose.
        telling = asyncio.create_task(_told_again(inbox, posted("U2:N#u", received_micros=now_micros)))
        await site.records("unavailable", lambda found: len(found) == 1)
        telling.cancel()
        found = await site.records("sessions", lambda found: len(found) >= 1)
    assert [b"UNAVAILABLE" in (each.message.value or b"") for each in found] == [False, True]


def test_narrow_topics_are_told_of(narrow: Cluster, prefix: str, tmp_path: Path) -> None:
    """`topics check` and the log of `serve` name the records that the edge lets in and a topic refuses."""
    settings = {"EDGE__BODY_BYTES_MAX": "300000"}
    with _serving(narrow, prefix, tmp_path, **settings) as receiver:
        _set(narrow, f"{prefix}.status", unclean_leader_election_enable="true")
        environment = {
            f"QOD_RECEIVER_{name}": value
            for name, value in {"PREFIX": prefix, "KAFKA__PARTITIONS": "1", **settings}.items()
        }
        command = [*COMMAND, "topics", "check", "--kafka", narrow.bootstrap]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **environment, "COLUMNS": "300"}, check=False
        )
        log = receiver.log.read_text()
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "has max.message.bytes=100000, not 316384: a longer record becomes a file on the edge's disk" in said
    assert "takes records of the last 3600 s" in said
    assert "unclean.leader.election.enable=true" in said
    assert "has max.message.bytes=100000, not 316384" in log


def test_a_directory_of_a_clock_ahead_is_exported(narrow: Cluster, prefix: str, tmp_path: Path) -> None:
    """The directory of a node whose clock was three hours ahead is exported, and so is a letter that is too long."""
    directory = Directory(tmp_path, narrow.bootstrap, prefix, partitions=1)
    directory.keep(*_ahead(3, 300), posted(b"{" + b"x" * 90_000))
    before = {topic.removeprefix(f"{prefix}."): len(each) for topic, each in directory.held().items()}
    assert before == {"status": 300, "sessions": 300, "dead-letter": 1}
    carried = {topic: now_count for topic, (now_count, _) in directory.carried().items()}
    assert carried == before
    assert directory.troubles == [] or all("refuses" in each or "Refused" in each for each in directory.troubles)
    assert _routed(narrow, prefix, 300) == {f"s{number}": [str(number)] for number in range(300)}
    (letter,) = records(narrow.bootstrap, f"{prefix}.dead-letter", 1)
    assert orjson.loads(letter.value)["bodyBytes"] == 90_001
    with _serving(narrow, prefix, tmp_path / "served") as receiver:
        assert receiver.post(_ahead(3, 1)[0].body, body(told("A1#n", "new")[0]))[0].status == 204
        assert len(_routed(narrow, prefix, 301)["new"]) == 1
