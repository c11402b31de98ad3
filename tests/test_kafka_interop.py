"""Our records read by others, and others' records read by us: Java's clients, and the SDK of CloudEvents."""

import asyncio
import hashlib
import json
import re
import secrets
import subprocess
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event, from_structured_event
from cloudevents.v1.kafka import KafkaMessage as OldKafkaMessage
from cloudevents.v1.kafka import from_binary

from receiver.backends.kafka.connection import KafkaConnection, Security
from receiver.backends.kafka.inbox import KafkaInbox
from receiver.backends.kafka.reader import KafkaReader
from receiver.backends.kafka.records import partition_of
from receiver.backends.kafka.topics import create
from receiver.core import rfc3339
from receiver.core.message import Record
from receiver.core.notification import Notification
from receiver.core.router import Router
from receiver.core.session import Session
from receiver.process.cluster import plan_of
from receiver.process.clustered import clustered
from receiver.process.part import Part
from receiver.process.routing import build_router
from receiver.reader import Cursor
from receiver.settings import Settings, load
from receiver.telemetry import Telemetry
from tests.kafka_cluster import Brokers, JavaRecord
from tests.limits import SECONDS_MAX
from tests.receiver_process import COMMAND
from tests.samples import HOUR, SENDER, bare, body, posted, told
from tests.test_schemas import SAMPLES, VALIDATORS

#: The key of a dead letter whose own key is too long.
CUT_KEY = "k" * 257

PARTITIONS = 3
TOKEN = "interop"
TOPICS = ("status", "unavailable", "sessions", "dead-letter")

#: Session ids of every length modulo four, beyond ASCII, beyond Unicode's first plane, and of the greatest length.
SESSION_IDS = [
    "s",
    "s2",
    "s-3",
    "s--4",
    "ä",
    "漢字",
    "🎉🎉",
    "a b:c,d=e/f\"g'h\\i",
    "é" * 256,
    "漢" * 256,
    "🎉" * 256,
    "x" * 256,
]
CONFORMING = [body(told(what, session_id)[0]) for session_id in SESSION_IDS for what in ("R1", "A2", "U3:N")]
BODIES = [
    *(sample.read_bytes() for sample in SAMPLES),
    *CONFORMING,
    *(bare(session_id) for session_id in SESSION_IDS),
    body(told("A1#ä-漢", "headers")[0], source="/ä/漢?q=🎉", id="ä-漢-🎉"),
    body(told("A5", "s")[0]),  # late
    b"{",
    b"\xff\xfe\x00not UTF-8",
    b'{\r\n\t"sessionId": "tabs"\r\n}',
]
FORGOTTEN = "forgotten"


class Site(NamedTuple):
    """A prefix and a directory of a test."""

    kafka: Brokers
    prefix: str
    settings: Settings
    config: Path

    @property
    def connection(self) -> KafkaConnection:
        """The connection to the cluster."""
        return KafkaConnection([self.kafka.bootstrap], Security().options())

    @property
    def router(self) -> Router:
        """The router with the site's settings."""
        return build_router(self.settings)

    @property
    def inbox(self) -> str:
        """The inbox topic."""
        return f"{self.prefix}.inbox"


def site_of(kafka: Brokers, prefix: str, directory: Path) -> Site:
    """Topics with three partitions, and a configuration with one sender."""
    config = directory / "qod.toml"
    config.write_text(
        f"prefix = '{prefix}'\ndata = '{directory / 'data'}'\n"
        f"[kafka]\nbootstrap_servers = '{kafka.bootstrap}'\npartitions = {PARTITIONS}\n"
        # A notification received 97 hours ago keeps its time.
        f"[retention]\ntopics_hours = 336\n"
        f"[[auth.tokens]]\nsender = '{SENDER}'\nsha256 = '{hashlib.sha256(TOKEN.encode()).hexdigest()}'\n"
    )
    site = Site(kafka, prefix, load(config, {}), config)
    asyncio.run(create(site.connection, plan_of(site.settings, site.router)))
    return site


@contextmanager
def process(site: Site, role: str) -> Iterator[dict[str, str]]:
    """A process in this role, and the addresses that it printed."""
    command = [*COMMAND, "serve", "--role", role, "--config", str(site.config), "--port", "0", "--ops-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        limit = threading.Timer(2 * SECONDS_MAX, running.kill)
        limit.start()
        try:
            assert running.stdout is not None
            yield dict(running.stdout.readline().split() for _ in range(1 if role == "router" else 2))
        finally:
            limit.cancel()
            running.terminate()
            running.wait(SECONDS_MAX)


class Written(NamedTuple):
    """The records of each topic after a run, as Java read them."""

    site: Site
    bodies: Sequence[bytes]
    inbox: Sequence[JavaRecord]
    topics: Mapping[str, Sequence[JavaRecord]]

    def records(self, topic: str) -> list[JavaRecord]:
        """The records of a topic, partition by partition, without tombstones."""
        found = sorted(self.topics[topic], key=lambda record: (record.partition, record.offset))
        return [record for record in found if record.value is not None]


@pytest.fixture(scope="module")
def written(kafka: Brokers, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The topics after notifications of every dialect went through an edge and a router."""
    site = site_of(kafka, f"t{secrets.token_hex(6)}", tmp_path_factory.mktemp("interop"))
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/cloudevents+json"}
    asyncio.run(_long_ago(site))
    bodies = []
    with (
        process(site, "router") as router,
        process(site, "edge") as edge,
        httpx2.Client(headers=headers, timeout=SECONDS_MAX) as client,
    ):

        def post(content: bytes) -> None:
            assert client.post(edge["Notifications:"], content=content).status_code in {204, 400}
            bodies.append(content)

        for content in BODIES:
            post(content)
        asyncio.run(_tombstone(site, post))
        _wait_until_routed(router["Operations:"], len(bodies) + 1)
    counts = {name: asyncio.run(_count(site, name)) for name in TOPICS} | {"inbox": len(bodies) + 1}
    with ThreadPoolExecutor(3) as pool:
        names = ("inbox", *TOPICS)
        reads = pool.map(lambda name: kafka.read_with_java(f"{site.prefix}.{name}", count=counts[name]), names)
        inbox, *others = reads
    return Written(site, bodies, inbox, dict(zip(TOPICS, others, strict=True)))


async def _long_ago(site: Site) -> None:
    """Append a notification that was received so long ago that its session is forgotten once another one comes."""
    inbox = KafkaInbox(site.connection, site.inbox, append_timeout_seconds=SECONDS_MAX)
    running = asyncio.create_task(inbox.run())
    await asyncio.wait_for(inbox.connected.wait(), SECONDS_MAX)
    long_ago = rfc3339.micros(datetime.now(UTC).isoformat()) - 97 * HOUR
    await inbox.append(posted("A1", session_id=FORGOTTEN, received_micros=long_ago))
    running.cancel()
    await asyncio.wait({running})


def _wait_until_routed(ops_url: str, count: int) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    decided = 0
    while decided < count:
        assert time.monotonic() < deadline, f"{decided} of {count} notifications were routed in time"
        time.sleep(0.05)
        text = httpx2.get(f"{ops_url}/metrics", timeout=SECONDS_MAX).text
        decided = sum(map(int, re.findall(r"^qod_receiver_notifications_total\S+ (\d+)", text, re.MULTILINE)))


async def _tombstone(site: Site, post: Callable[[bytes], None]) -> None:
    """Let the forgotten session end: when a notification comes, lanes look for such at most once a second."""
    beside = next(key for key in SESSION_IDS if partition_of(key, PARTITIONS) == partition_of(FORGOTTEN, PARTITIONS))
    async with reading(site, "sessions") as records, asyncio.timeout(SECONDS_MAX):
        while not any(record.message.value is None for record in records):
            await asyncio.sleep(0.2)
            post(bare(beside))
            await records.more()


class Records(list[Record]):
    """The records of a topic that were read so far."""

    def __init__(self, reader: KafkaReader, topic: str) -> None:
        super().__init__()
        self._reader = reader
        self._topic = topic
        self._cursor: Cursor | None = None

    async def more(self) -> None:
        """Read the records that are there by now."""
        if self._cursor is None:
            self._cursor = await self._reader.beginning(self._topic)
        self += await self._reader.records(self._topic, self._cursor, 1000)
        await asyncio.sleep(0.02)


@asynccontextmanager
async def reading(site: Site, name: str) -> AsyncIterator[Records]:
    """The records of a topic, to be read bit by bit."""
    reader = KafkaReader(site.connection, site.prefix)
    try:
        yield Records(reader, f"{site.prefix}.{name}")
    finally:
        await reader.close()


async def _count(site: Site, name: str) -> int:
    """The number of a topic's records, by its end."""
    async with reading(site, name) as records:
        before = -1
        while before < len(records):
            before = len(records)
            await records.more()
        return before


def decided(site: Site, inbox: Sequence[JavaRecord]) -> Mapping[str, Sequence[tuple[Any, ...]]]:
    """The expected records of each topic, partition by partition: partition, key, headers, value and timestamp."""
    topics: defaultdict[str, list[tuple[Any, ...]]] = defaultdict(list)
    sessions: dict[str, Session | None] = {}
    clock_micros = dict.fromkeys(range(PARTITIONS), 0)
    for record in sorted(inbox, key=lambda each: (each.partition, each.offset)):
        notification = notification_of(record)
        clock = clock_micros[record.partition] = max(clock_micros[record.partition], notification.received_micros)
        trace = f"{record.partition}-{record.offset}"
        decision = site.router.decide(notification, trace, sessions.get(notification.key), clock)
        sessions[notification.key] = decision.session
        for each in decision.messages:
            pairs = tuple((name, text.encode()) for name, text in each.headers)
            told = record.partition, each.key.encode(), pairs, each.value, each.timestamp_millis
            topics[each.topic.removeprefix(f"{site.prefix}.")].append(told)
    return topics


def notification_of(record: JavaRecord) -> Notification:
    """The notification in a record of the inbox, read a second way, by the documentation."""
    headers = {name: (value or b"").decode() for name, value in record.headers}
    assert record.key is not None
    assert record.value is not None
    return Notification(
        record.value,
        record.key.decode(),
        headers["sender"],
        rfc3339.micros(headers["received-at"]),
        headers.get("content-type", ""),
        headers["x-correlator"],
        headers.get("traceparent", ""),
    )


def _decided_headers(record: JavaRecord) -> Sequence[tuple[str, bytes | None]]:
    """The headers without those that a lane adds about its inbox."""
    return tuple((name, value) for name, value in record.headers if name != "inbox-id")


def test_java_reads_what_was_posted(written: Written) -> None:
    """Each notification is in the inbox byte for byte, with the headers of its request."""
    posted_ones = [record for record in written.inbox if record.key != FORGOTTEN.encode()]
    assert sorted(record.value or b"" for record in posted_ones) == sorted(written.bodies)
    for record in posted_ones:
        notification = notification_of(record)
        assert (notification.sender, notification.content_type) == (SENDER, "application/cloudevents+json")
        assert notification.received_micros // 1000 <= record.timestamp_millis  # the broker's, of the append


@pytest.mark.parametrize("topic", TOPICS)
def test_java_reads_what_was_decided(written: Written, topic: str) -> None:
    """Java reads keys, headers, values, timestamps and partitions as the router decided on them, in this order."""
    wanted = decided(written.site, written.inbox)[topic]
    assert [
        (record.partition, record.key, _decided_headers(record), record.value, record.timestamp_millis)
        for record in written.records(topic)
    ] == wanted
    assert len(wanted) >= len(SESSION_IDS) if topic != "dead-letter" else len(wanted) >= 5


def test_java_reads_the_tombstone(written: Written) -> None:
    """The end of a session is a null value behind its state, without headers."""
    states = [record for record in written.topics["sessions"] if record.key == FORGOTTEN.encode()]
    assert [record.value is None for record in sorted(states, key=lambda each: each.offset)] == [False, True]
    assert states[-1].headers == ()
    assert [record.key for record in written.topics["sessions"] if record.value is None] == [FORGOTTEN.encode()]


def test_java_would_choose_the_same_partitions(written: Written) -> None:
    """Each record is in the partition that Java's producer chooses for its key."""
    records = [*written.inbox, *(record for topic in TOPICS for record in written.topics[topic])]
    lies_in = {(record.key or b"").decode(): record.partition for record in records}
    assert {(record.key or b"").decode(): record.partition for record in reversed(records)} == lies_in
    assert set(lies_in) >= {*SESSION_IDS, SENDER}
    assert set(lies_in.values()) == set(range(PARTITIONS))
    scratch = f"{written.site.prefix}.scratch"
    asyncio.run(_create(written.site.connection, scratch))
    assert written.site.kafka.java_partitions(scratch, list(lies_in)) == lies_in


async def _create(connection: KafkaConnection, topic: str) -> None:
    async with connection.admin(SECONDS_MAX) as admin:
        await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])


@pytest.mark.parametrize("topic", TOPICS)
def test_the_sdk_of_cloudevents_reads_every_record(written: Written, topic: str) -> None:
    """The SDK's binding for Kafka, and the one before that, read each record as the event in its headers."""
    for record in written.records(topic):
        headers = {name: value or b"" for name, value in record.headers}
        event = from_binary_event(KafkaMessage(headers, record.key, record.value or b""))
        texts = {name: value.decode() for name, value in headers.items()}
        assert (event.get_specversion(), event.get_type()) == ("1.0", texts["ce_type"])
        assert (event.get_id(), event.get_source()) == (texts["ce_id"], texts["ce_source"])
        assert event.get_extension("partitionkey") == (record.key or b"").decode()
        assert event.get_datacontenttype() == "application/json"
        assert event.get_data() == json.loads(record.value or b"")
        if "ce_time" in texts:  # else the SDK makes one up
            time_told = event.get_time()
            assert time_told is not None
            assert rfc3339.micros(time_told.isoformat()) == rfc3339.micros(texts["ce_time"])
        old = from_binary(OldKafkaMessage(headers, record.key, record.value or b""))
        assert (old["id"], old["source"], old["type"]) == (texts["ce_id"], texts["ce_source"], texts["ce_type"])
        assert old.data == event.get_data()
        VALIDATORS[topic].validate(event.get_data())


def test_the_sdk_reads_the_inbox(written: Written) -> None:
    """A post in CloudEvents' structured mode is a structured event in the inbox, too."""
    records = [record for record in written.inbox if record.value in CONFORMING]
    assert len(records) == len(CONFORMING)
    for record in records:
        headers = {name: value or b"" for name, value in record.headers}
        event = from_structured_event(KafkaMessage(headers, record.key, record.value or b""))
        posted_event = json.loads(record.value or b"")
        assert (event.get_id(), event.get_type()) == (posted_event["id"], posted_event["type"])
        assert event.get_data() == posted_event["data"]


@asynccontextmanager
async def routing(site: Site, telemetry: Telemetry) -> AsyncIterator[None]:
    """A router, at work."""
    async with clustered(site.settings, telemetry, site.router, Part("router")) as node:
        jobs = [asyncio.ensure_future(job) for job in node.jobs()]
        try:
            yield
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.wait(jobs)


@pytest.fixture
def site(kafka: Brokers, topic_prefix: str, tmp_path: Path) -> Site:
    """Topics without a record."""
    return site_of(kafka, topic_prefix, tmp_path)


async def routed(site: Site, telemetry: Telemetry, behind: int, dead: int) -> tuple[Records, Records]:
    """The records of status and dead-letter, once these many are routed, which lie behind the dead letters."""
    async with (
        routing(site, telemetry),
        reading(site, "status") as statuses,
        reading(site, "dead-letter") as letters,
        asyncio.timeout(SECONDS_MAX),
    ):
        while sum(record.message.key.startswith("behind") for record in statuses) < behind:
            await statuses.more()
        while len(letters) < dead:
            await letters.more()
    return statuses, letters


def verdicts(records: Sequence[Record]) -> Counter[tuple[str, str]]:
    """Keys and verdicts, counted."""
    return Counter((record.message.key, dict(record.message.headers)["verdict"]) for record in records)


async def test_what_java_writes_into_the_inbox(site: Site, telemetry: Telemetry) -> None:
    """Records of Java's producer, with neither our headers nor our habits, are decided on or are dead letters."""
    behind = [f"behind-{number}" for number in range(24)]
    partitions = {partition_of(key, PARTITIONS) for key in behind}
    assert len(partitions) == PARTITIONS
    strange: list[tuple[str | None, str | None]] = [
        ("s", bare("s").decode()),
        ("ä-漢-🎉", bare("ä-漢-🎉").decode()),
        ("no body", None),
        (None, bare("no key").decode()),
        (None, "neither"),
        ("garbage", "\x00\x7f{[\\"),
        ("", ""),
        ("another", bare("s").decode()),
        ("k" * 10_000, bare("long key").decode()),
    ]
    records = [*strange, *((key, bare(key).decode()) for key in behind)]
    await asyncio.to_thread(site.kafka.write_with_java, site.inbox, records)
    dead = ["no body", "", "", "garbage", "", "another", CUT_KEY]
    statuses, letters = await routed(site, telemetry, len(behind), len(dead))
    assert verdicts(statuses) == Counter((key, "accepted") for key in ("s", "ä-漢-🎉", *behind))
    assert verdicts(letters) == Counter((key, "malformed") for key in dead)
    assert {json.loads(record.message.value or b"")["sender"] for record in [*statuses, *letters]} == {"unknown"}


async def test_what_others_write_into_the_inbox(site: Site, telemetry: Telemetry) -> None:
    """Records with headers, times or places that no client of ours would write stop no lane."""
    strange: list[tuple[bytes, dict[str, Any]]] = [
        (b"\xff\xfe", {"value": b"\x00\xff"}),
        (b"bytes", {"value": bare("bytes"), "headers": [("sender", b"\xff"), ("received-at", b"\xff")]}),
        (b"nulls", {"value": bare("nulls"), "headers": [("sender", None), ("received-at", b"yesterday")]}),
        (b"twice", {"value": bare("twice"), "headers": [("sender", b"a\nb\0c"), ("sender", b"again")]}),
        (b"year 1", {"value": bare("year 1"), "headers": [("received-at", b"0001-01-01T00:00:00Z")]}),
        (b"1970", {"value": bare("1970"), "timestamp_ms": 0}),
        (b"9999", {"value": bare("9999"), "headers": [("received-at", b"9999-01-01T00:00:00Z")]}),
        (b"10000", {"value": bare("10000"), "headers": [("received-at", b"9999-12-31T23:59:59-14:00")]}),
        (b"long", {"value": bare("long"), "headers": [("x-correlator", b"c" * 300_000)]}),
        (b"k" * 300_000, {"value": bare("long key")}),
        (b"large", {"value": b"x" * 880_000}),
        (b"surrogate", {"value": b'{"sessionId": "surrogate", "event": "\\ud800"}'}),
        (b"dead", {"value": b"dead already", "headers": [("origin", b"replay:0-3")]}),
    ]
    for compression in (None, "gzip", "lz4", "snappy", "zstd"):
        packed = {"compression_type": compression, "max_batch_size": 900_000}
        async with AIOKafkaProducer(bootstrap_servers=site.kafka.bootstrap, **packed) as producer:
            for partition in range(PARTITIONS):
                name = str(compression).encode()
                for key, record in [*(() if compression else strange), (name, {"value": bare(str(compression))})]:
                    await producer.send_and_wait(site.inbox, key=key, partition=partition, **record)
    async with AIOKafkaProducer(bootstrap_servers=site.kafka.bootstrap) as producer:
        for partition in range(PARTITIONS):
            await producer.send_and_wait(site.inbox, key=b"behind", partition=partition, value=bare("behind"))
    statuses, letters = await routed(site, telemetry, PARTITIONS, 4 * PARTITIONS)
    accepted = ["bytes", "nulls", "twice", "year 1", "1970", "9999", "10000", "long", "behind"]
    accepted += ["None", "gzip", "lz4", "snappy", "zstd"]
    dead = {"\ufffd\ufffd": "malformed", CUT_KEY: "malformed", "large": "malformed", "surrogate": "unrecognized"}
    assert verdicts(statuses) == Counter({(key, "accepted"): PARTITIONS for key in accepted})
    assert verdicts(letters) == Counter(dict.fromkeys(dead.items(), PARTITIONS))
