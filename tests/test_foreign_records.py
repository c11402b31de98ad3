"""Records of other programs in our topics: none of them stops a lane, a reader or a view."""

import asyncio
import secrets
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from zlib import crc32

import apsw
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException

from receiver.backends.kafka.fetching import Batches, Records, unreadable
from receiver.backends.kafka.records import inbox_record, output_records
from receiver.backends.kafka.topics import create
from receiver.backends.sqlite.schema import FILE_NAME
from receiver.core.dead_letter import revived
from receiver.core.event import QosStatus
from receiver.core.message import Message, Record
from receiver.core.router import Router
from receiver.telemetry import Telemetry
from tests.fuzz_records import fuzz
from tests.kafka_cluster import Brokers
from tests.nodes import SqliteBackend, append, everything, route
from tests.raw_records import Partition, Raw, batch
from tests.samples import body, decisions, posted, told
from tests.test_kafka import Site, until

HUGE = b"x" * 900_000
DEEP = b"[" * 900 + b"]" * 900


def kept(session_id: str, *more: tuple[bytes, bytes | None]) -> Raw:
    """A valid notification as a record of the inbox, with more headers."""
    key, value, millis, headers = inbox_record(posted(body(told("A1", session_id)[0]), session_id=session_id))
    return Raw(key, value, [*((name.encode(), text) for name, text in headers), *more], millis)


def remembered(session_id: str, *more: tuple[bytes, bytes | None]) -> Raw:
    """A session's record, with more headers."""
    router = Router(prefix="qod", forget_after_seconds=1e9)
    (decision,) = decisions(router, [posted(body(told("A1", session_id)[0]), session_id=session_id)])
    ((key, value, millis, headers), *_) = output_records(decision.messages)
    return Raw(key, value, [*((name.encode(), text) for name, text in headers), *more], millis)


#: By name, another program's record in the inbox, and whether its notification counts.
INBOX = {
    "a header's name that is not UTF-8": (kept("odd", (b"\xff", b"1")), True),
    "a header without a value": (kept("odd", (b"more", None)), True),
    "an enormous header that is none of ours": (kept("odd", (b"more", HUGE)), True),
    "no timestamp": (kept("odd")._replace(millis=-1), True),
    "a timestamp before all calendars": (kept("odd")._replace(millis=-(1 << 60)), True),
    "an enormous correlator": (kept("odd", (b"x-correlator", HUGE)), True),
    "an enormous sender": (kept("odd", (b"sender", HUGE)), True),
    "enormous facts": (
        kept("odd", (b"origin", b"client"))._replace(
            value=b'{"specversion":"1.0","type":"QOS_STATUS_CHANGED","data":{"sessionId":"odd","qosStatus":"AVAILABLE",'
            b'"qosProfile":"' + HUGE + b'"}}'
        ),
        False,
    ),
    "no key": (kept("odd")._replace(key=None), False),
    "an enormous key": (kept("odd")._replace(key=HUGE), False),
    "a key that is not UTF-8": (kept("odd")._replace(key=b"\xff\xfe"), False),
    "nothing at all": (Raw(None, None), False),
    "an enormous value": (Raw(b"odd", HUGE), False),
    "a value that is nested too deeply": (Raw(b"odd", DEEP), False),
    "a time of receipt out of all bounds": (kept("odd", (b"received-at", b"9" * 5_000)), True),
}
SESSIONS = {
    "a header's name that is not UTF-8": (remembered("odd", (b"\xff", b"1")), True),
    "no headers": (remembered("odd")._replace(headers=()), False),
    "no key": (remembered("odd")._replace(key=None), False),
    "another key": (remembered("odd")._replace(key=b"other"), False),
    "no JSON": (remembered("odd")._replace(value=b"\xff"), False),
    "another JSON": (remembered("odd")._replace(value=b'{"sessionId":"odd"}'), False),
    "nested too deeply": (remembered("odd")._replace(value=DEEP), False),
    "marks of another release": (remembered("odd", (b"marks", b"?")), False),
    "a time out of all bounds": (remembered("odd", (b"touched", b"9" * 5_000)), False),
    "an inbox that has no end": (remembered("odd", (b"inbox", b"0-" + b"9" * 5_000)), True),
    "enormous marks": (remembered("odd", (b"marks", HUGE)), False),
}


class Noting(Telemetry):
    """Notes the places of the records that were passed over."""

    places: Sequence[str] = ()

    def passed_over(self, place: str, why: str) -> None:
        """See Telemetry."""
        super().passed_over(place, why)
        self.places = [*self.places, place]


@pytest.fixture
async def foreign(kafka: Brokers) -> Site:
    """Topics that take any record; the sessions topic is not compacted."""
    site = Site(kafka, f"t{secrets.token_hex(6)}")
    site.plan = site.plan._replace(partitions=1)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(site.topics.sessions, 1, 1)])
    await admin.close()
    await create(site.connection, site.plan)
    return site


@pytest.mark.parametrize("name", INBOX)
async def test_no_record_of_the_inbox_stops_a_lane(foreign: Site, telemetry: Telemetry, name: str) -> None:
    """The records behind it are routed. If it is a notification it is routed too, else it is a dead letter."""
    odd, is_valid = INBOX[name]
    async with Partition(foreign.connection, foreign.topics.inbox) as partition:
        for records in ([kept("before"), odd, kept("behind")], [kept("last")]):
            assert await partition.send(batch(records)) == ""
    async with foreign.routing(telemetry):
        found = await foreign.records("status", lambda some: "last" in {each.message.key for each in some})
    keys = [each.message.key for each in found]
    assert keys == ["before", *(["odd"] if is_valid else []), "behind", "last"]
    if not is_valid:
        letters = await foreign.records("dead-letter", bool)
        assert [dict(letter.message.headers)["inbox"] for letter in letters] == ["0-1"]
        assert [letter.fields()["value"]["verdict"] for letter in letters] == ["malformed"]


@pytest.mark.parametrize("name", SESSIONS)
async def test_no_session_stops_a_lane_nor_a_reader(foreign: Site, name: str) -> None:
    """The sessions around it are remembered. If it is a session it is too, else it is counted and reported with its
    place.
    """
    odd, is_valid = SESSIONS[name]
    async with Partition(foreign.connection, foreign.topics.sessions) as partition:
        for records in ([remembered("before"), odd, remembered("behind")], [remembered("last")]):
            assert await partition.send(batch(records)) == ""
    telemetry = Noting(StringIO())
    async with foreign.routing(telemetry) as membership:
        await until(lambda: len(membership.lanes) == 1)
        known = set(membership.lanes[0].sessions)
    assert known == {"before", "behind", "last", *(["odd"] if is_valid else [])}
    assert [*telemetry.places] == ([] if is_valid else [f"{foreign.topics.sessions}-0-1"])
    shown = await foreign.records("sessions", lambda some: len(some) == 4)
    assert len([record.fields() for record in shown]) == 4


def test_what_is_passed_over_is_counted() -> None:
    """The metric counts each record that can't be read."""
    telemetry = Telemetry(StringIO())
    telemetry.passed_over("qod.sessions-0-17", "marks is missing")
    assert telemetry.registry.get_sample_value("qod_receiver_records_passed_over_total") == 1


def read(data: bytes, position: int = 0) -> Records:
    """The records of a fetched partition."""
    return Records(
        TopicPartition(secrets.token_hex(4), 0), Batches(data), (), position, None, None, True, 0
    )  # aiokafka's


def test_the_client_is_the_one_that_was_mended() -> None:
    """Every consumer uses our records, and the client's own still have the members that these rely on."""
    assert (fetcher.MemoryRecords, fetcher.PartitionRecords) == (Batches, Records)
    records = fetcher.PartitionRecords(
        TopicPartition("t", 0), Batches(batch([Raw(b"k", b"v")])), (), 0, None, None, True, 0
    )
    assert hasattr(records, "_unpack_records")
    assert [(each.offset, each.key, each.value) for each in records] == [(0, b"k", b"v")]
    assert records.next_fetch_offset == 1


@pytest.mark.parametrize("compression", range(5))
def test_a_name_that_is_not_utf8_costs_no_record(compression: int) -> None:
    """All records of its batch are there, only those behind a position, and the next batch too."""
    raws = [Raw(b"a", b"1"), Raw(b"b", None, [(b"\xff", b"x"), (b"y", None)], 1_795_514_400_007), Raw(None, b"3")]
    data = batch(raws, compression) + batch([Raw(b"d", b"4")], compression, base_offset=3)
    found = list(read(data))
    assert [(each.offset, each.key, each.value) for each in found] == [
        (0, b"a", b"1"),
        (1, b"b", None),
        (2, None, b"3"),
        (3, b"d", b"4"),
    ]
    assert (found[1].headers, found[1].timestamp) == ((("\ufffd", b"x"), ("y", None)), 1_795_514_400_007)
    assert [each.offset for each in read(data, 2)] == [2, 3]
    assert not any(map(unreadable, found))


def test_a_damaged_batch_is_fetched_again_before_it_is_passed_over() -> None:
    """A batch that was damaged on its way is read the next time; one damaged for good is one unreadable record."""
    before, damaged, behind = (batch([Raw(b"k", b"vvvv")] * 3, base_offset=3 * number) for number in range(3))
    data = before + damaged[:-3] + b"!!!" + behind
    where = TopicPartition(secrets.token_hex(4), 0)

    def fetched(position: int, what: bytes) -> Records:
        return Records(where, Batches(what), (), position, None, None, True, 0)  # aiokafka's

    records = fetched(0, data)
    assert [each.offset for each in records] == [0, 1, 2]
    assert records.next_fetch_offset == 3
    for _ in range(3):
        with pytest.raises(CorruptRecordException):
            next(fetched(3, damaged[:-3] + b"!!!" + behind))
    assert [each.offset for each in fetched(3, damaged + behind)] == [3, 4, 5, 6, 7, 8]
    found = list(fetched(3, damaged[:-3] + b"!!!" + behind))
    assert [each.offset for each in found] == [3, 6, 7, 8]
    assert unreadable(found[0]) == "damaged: its checksum is wrong"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"body": 7, "headers": {}, "sender": "s", "receivedAt": "x"}',
        b'{"body": "e30=", "headers": 7, "sender": "s", "receivedAt": "2026-11-24T10:00:00Z"}',
    ],
)
def test_no_foreign_letter_is_replayed(value: bytes) -> None:
    """A record that is no letter of ours among the dead letters is not sent again."""
    assert revived(Record(0, 1, Message("qod.dead-letter", "k", value, [], 0))) == ()


@pytest.mark.parametrize("value", [b"\xff", DEEP, b"", b"{"])
def test_any_record_can_be_shown(value: bytes) -> None:
    """A value that is no JSON is shown in Base64, whatever the record's time."""
    for millis in (-1, 1 << 62, -(1 << 62)):
        shown = Record(0, 1, Message("t", "k", value, [], millis)).fields()
        assert shown["value"] is None
        assert isinstance(shown["valueBase64"], str)


async def test_no_damaged_row_stops_a_file(tmp_path: Path, router: Router) -> None:
    """A view passes over unreadable rows of a file, and reads all others."""
    backend = SqliteBackend(tmp_path)
    async with backend.opened() as node:
        for number in range(4):
            await append(node, posted(body(told("A1", f"s{number}")[0]), session_id=f"s{number}"))
            await route(node, router)
    with apsw.Connection(str(tmp_path / FILE_NAME)) as other:
        values = {"s1": (b"\xff", "{}"), "s2": (b"[]", '{"sessionId": 7}')}
        for position, (key, (headers, value)) in enumerate(values.items(), 1_000):
            other.execute("DELETE FROM sessions WHERE key = ?", (key,))
            other.execute("INSERT INTO sessions VALUES (?, ?, 0, ?, ?, NULL)", (-position, key, headers, value))
        other.execute("UPDATE messages SET pack = x'00' WHERE position = 1")
        pack = b"\xff\xff\xff\xff\x00"  # its checksum is right, but it has no known form
        other.execute("UPDATE messages SET crc = ?, pack = ? WHERE position = 2", (crc32(pack), pack))
    file = tmp_path / FILE_NAME
    other.close()
    damaged = file.read_bytes().replace(b'{"sessionId":"s0"', b'}"sessionId":"s0"')
    assert damaged != file.read_bytes()
    file.write_bytes(damaged)
    async with backend.opened() as node:
        assert [each.session_id for each in await node.reader.sessions(None, 10)] == ["s3"]
        assert [each.session_id for each in await node.reader.sessions(QosStatus.AVAILABLE, 10)] == ["s3"]
        assert [each.session_id for each in await node.reader.sessions_of("acme", ["s0", "s1"])] == ["s3"]
        assert (await node.reader.session_counts())[QosStatus.AVAILABLE] >= 1
        assert [each.message.key for each in await everything(node.reader, "qod.status")] == ["s3"]
        for number in range(4):
            await append(node, posted(body(told("U2:N", f"s{number}")[0]), session_id=f"s{number}"))
        verdicts = [decision.verdict for decision in await route(node, router)]
        assert verdicts == ["accepted"] * 4


async def test_nothing_that_others_write_stops_us(kafka: Brokers, topic_prefix: str) -> None:
    """Records mutated in every way stop no lane and no reader, and no valid one is passed over."""
    seed = secrets.randbelow(1 << 32)
    async with asyncio.timeout(600):
        outcome = await fuzz(kafka.bootstrap, topic_prefix, 3_000, seed)
    assert not outcome.wrong, f"seed {seed}"
    assert outcome.happened["passed over"] > 100
