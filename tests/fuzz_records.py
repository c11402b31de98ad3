"""Records of other programs in our topics, on a real broker: `python -m tests.fuzz_records --count 100000`.

Valid records and mutations of them go into the inbox, the sessions, the status and the dead letters, in batches of
every codec. Then a router's lanes decide, and readers read everything. In the end no lane and no reader has stopped,
every valid notification is on the status topic once, and every valid session is remembered as its last valid record
tells. In addition, raw batches that no broker would take are read as if from a broker. The exit status is 1 if anything
is wrong.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import orjson
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from receiver.backends.kafka.connection import KafkaConnection, Security
from receiver.backends.kafka.fetching import Batches, Records
from receiver.backends.kafka.lane import Topics
from receiver.backends.kafka.membership import Membership
from receiver.backends.kafka.reader import KafkaReader
from receiver.backends.kafka.records import inbox_record, notification_of, output_records, partition_of, record_of
from receiver.backends.kafka.topics import TopicPlan, create
from receiver.console import record_line
from receiver.core.dead_letter import revived
from receiver.core.message import Message
from receiver.core.router import Router
from receiver.core.session import Session
from receiver.core.session_record import NoSession, session_of
from receiver.dispatcher import Dispatcher
from receiver.telemetry import Telemetry
from tests.kafka_cluster import Cluster, unavailable_reason
from tests.raw_records import CODECS, Partition, Raw, batch, flipped, sealed
from tests.samples import SECOND, START, body, posted, told

_PARTITIONS = 2
_BATCH = 100
_RECORD_BYTES_MAX = 1_000_000
#: A run without progress for this long is stuck.
_STUCK_SECONDS = 120.0
_HUGE = 400_000


class Written(NamedTuple):
    """A record for a topic. `told`: it is still valid, so its content must be found there. `name` is its mutation's."""

    raw: Raw
    told: bool
    name: str


class Outcome(NamedTuple):
    """The counts of a run, and what is wrong."""

    happened: Counter[str]
    wrong: Sequence[str]


Mutation = Callable[[Raw, random.Random], Raw]


def _with(name: bytes, value: bytes | None) -> Mutation:
    return lambda raw, _: raw._replace(headers=[*raw.headers, (name, value)])


def _without(raw: Raw, chance: random.Random) -> Raw:
    dropped = chance.randrange(len(raw.headers))
    return raw._replace(headers=[each for at, each in enumerate(raw.headers) if at != dropped])


def _set(name: bytes, value: Callable[[random.Random], bytes | None]) -> Mutation:
    def mutated(raw: Raw, chance: random.Random) -> Raw:
        return raw._replace(headers=[each for each in raw.headers if each[0] != name] + [(name, value(chance))])

    return mutated


def _garbage(chance: random.Random) -> bytes:
    return chance.choice(
        (b"", b"\0", b"\xff\xfe", b"9" * 5_000, chance.randbytes(20), "\u0661".encode(), b"-1", b"{}", b"\xed\xa0\x80")
    )


def _junk(chance: random.Random) -> bytes:
    """Bytes that are JSON or not, and never a notification or a session."""
    deep = chance.choice((200, 300, 900))
    return chance.choice(
        (
            _garbage(chance),
            b"[" * deep + b"]" * deep,
            b'{"sessionId":"s","qosStatus":"AVAILABLE","time":"x","sender":7}',
            b'{"sessionId":null}',
            b"null",
            b"1e400",
            chance.randbytes(200),
        )
    )


def _huge(chance: random.Random) -> bytes:
    return b"x" * chance.randrange(_HUGE, 2 * _HUGE)


#: Mutations that leave a record valid.
HARMLESS: dict[str, Mutation] = {
    "none": lambda raw, _: raw,
    "name not UTF-8": lambda raw, chance: _with(chance.choice((b"\xff", b"a\xc3", b"\xed\xa0\x80")), b"1")(raw, chance),
    "empty name": _with(b"", b""),
    "null header": _with(b"more", None),
    "value not UTF-8": _with(b"more", b"\xff\xfe"),
    "many headers": lambda raw, _: raw._replace(headers=[*raw.headers, *[(b"more", b"1")] * 300]),
    "other order": lambda raw, _: raw._replace(headers=list(reversed(raw.headers))),
}
#: Mutations that leave a record valid too; they are seldom used, as they are large.
HARMLESS_HUGE: dict[str, Mutation] = {
    "huge header": lambda raw, chance: _with(b"more", _huge(chance))(raw, chance),
    "huge name": lambda raw, chance: _with(_huge(chance), b"1")(raw, chance),
}
#: Mutations after which a record may be valid or not.
HARMFUL: dict[str, Mutation] = {
    "key null": lambda raw, _: raw._replace(key=None),
    "key garbage": lambda raw, chance: raw._replace(key=_garbage(chance)),
    "value null": lambda raw, _: raw._replace(value=None),
    "value junk": lambda raw, chance: raw._replace(value=_junk(chance)),
    "value flipped": lambda raw, chance: raw._replace(value=flipped(raw.value or b"{}", chance)),
    "no headers": lambda raw, _: raw._replace(headers=()),
    "header missing": _without,
    "no timestamp": lambda raw, _: raw._replace(millis=-1),
    "odd timestamp": lambda raw, chance: raw._replace(millis=chance.choice((-2, 0, -(1 << 60)))),
    "all garbage": lambda _, chance: Raw(_garbage(chance), _junk(chance), [(_garbage(chance), _garbage(chance))]),
    **{
        f"{name} garbage": _set(name.encode(), _garbage)
        for name in ("sender", "received-at", "x-correlator", "content-type", "traceparent", "origin", "inbox")
    },
    **{f"{name} garbage": _set(name.encode(), _garbage) for name in ("marks", "touched", "marks-cut", "learned")},
}
HARMFUL_HUGE: dict[str, Mutation] = {
    "key huge": lambda raw, chance: raw._replace(key=_huge(chance)),
    "value huge": lambda raw, chance: raw._replace(value=_huge(chance)),
    "facts huge": lambda raw, chance: raw._replace(
        value=(raw.value or b"{}").replace(b'"sessionId"', b'"qosProfile":"' + _huge(chance) + b'","sessionId"'),
        headers=[*raw.headers, (b"origin", b"client")],
    ),
    **{
        f"{name} huge": _set(name.encode(), _huge)
        for name in ("sender", "x-correlator", "content-type", "traceparent", "origin", "marks", "learned", "verdict")
    },
}


class Fuzz:
    """Topics of a run on a cluster, the records written to them, and the expected results."""

    def __init__(self, bootstrap: str, prefix: str, count: int, seed: int) -> None:
        self.happened: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._chance = random.Random(seed)
        self._count = count
        self._bootstrap = bootstrap
        self._connection = KafkaConnection([bootstrap], Security().options())
        self._router = Router(prefix=prefix, forget_after_seconds=1e9)
        self._plan = TopicPlan(prefix, self._router.topics, _PARTITIONS, None, 168, 168)
        self._topics = Topics.of(prefix, "router", self._router.topics)
        self._log = StringIO()
        self._telemetry = Telemetry(self._log)
        self._partition = 0
        self._sessions: dict[str, Session] = {}
        self._posted: dict[str, str] = {}

    async def run(self) -> Outcome:
        """Write, route and read all records."""
        self._read_raw(self._count // 10)
        await self._create()
        await self._write()
        await self._route()
        await self._look()
        return Outcome(self.happened, self.wrong)

    async def _create(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        await admin.start()
        # A compacted topic takes no record without a key, but a cluster may be set up otherwise.
        await admin.create_topics([NewTopic(self._topics.sessions, _PARTITIONS, 1)])
        await admin.close()
        await create(self._connection, self._plan)

    async def _write(self) -> None:
        shares = {self._topics.inbox: 50, self._topics.sessions: 30, f"{self._plan.prefix}.status": 10}
        shares[self._topics.dead_letters] = 10
        makers = {self._topics.inbox: self._notification, self._topics.sessions: self._session}
        for topic, share in shares.items():
            make = makers.get(topic, self._output)
            for partition in range(_PARTITIONS):
                async with Partition(self._connection, topic, partition) as way:
                    self._partition = partition
                    left = self._count * share // 100 // _PARTITIONS
                    while left > 0:
                        some = [make() for _ in range(min(left, self._chance.randrange(1, 2 * _BATCH)))]
                        left -= len(some)
                        await self._append(way, some)

    async def _append(self, way: Partition, some: Sequence[Written]) -> None:
        codec = self._chance.choice(CODECS)
        size = sum(
            len(each.raw.value or b"") + sum(len(v or b"") + len(n) for n, v in each.raw.headers) for each in some
        )
        refused = (
            "too much at once"
            if size > _RECORD_BYTES_MAX
            else await way.send(batch([each.raw for each in some], codec))
        )
        if not refused:
            self._note(some)
        elif len(some) > 1:
            half = len(some) // 2
            await self._append(way, some[:half])
            await self._append(way, some[half:])
        else:
            self.happened[f"refused: {refused}"] += 1
            if some[0].told and size < _RECORD_BYTES_MAX:
                self.wrong.append(f"the broker refused {some[0].name}: {refused}")

    def _note(self, some: Sequence[Written]) -> None:
        for each in some:
            self.happened[each.name] += 1
            if each.told and each.name.startswith("inbox"):
                self._posted[(each.raw.key or b"").decode()] = each.name
            elif each.told and each.name.startswith("session"):
                message = Message("", (each.raw.key or b"").decode(), each.raw.value, _texts(each.raw), 0)
                session = session_of(message)
                assert session is not None
                self._sessions[session.session_id] = session

    def _mutated(self, raw: Raw, what: str) -> Written:
        rare = self._chance.random() < 0.004
        harmless = self._chance.random() < 0.4
        kinds = (HARMLESS_HUGE if rare else HARMLESS) if harmless else (HARMFUL_HUGE if rare else HARMFUL)
        name = self._chance.choice(list(kinds))
        return Written(kinds[name](raw, self._chance), harmless, f"{what}: {name}")

    def _notification(self) -> Written:
        session_id = self._id(60)
        text = self._chance.choice(("A1", "R1", "U1:N", "U1"))
        notification = posted(body(told(text, session_id)[0]), key=session_id, sender="acme")
        key, value, millis, headers = inbox_record(notification)
        return self._mutated(Raw(key, value, [(name.encode(), text) for name, text in headers], millis), "inbox")

    def _session(self) -> Written:
        # Few keys, so that invalid records lie behind valid ones of the same session.
        message = self._message("sessions", self._id(10))
        written = self._mutated(self._raw(message), "session")
        if not written.told:
            try:
                session_of(
                    Message(
                        "", (written.raw.key or b"").decode(errors="replace"), written.raw.value, _texts(written.raw), 0
                    )
                )
            except NoSession:
                return written
            # The mutation is still a session, or a tombstone: it gets a key that is not looked up afterwards.
            return written._replace(raw=written.raw._replace(key=b"x"))
        return written

    def _id(self, bits: int) -> str:
        """A session's id whose partition is the one that is written."""
        while True:
            session_id = f"{self._chance.getrandbits(bits):x}"
            if partition_of(session_id, _PARTITIONS) == self._partition:
                return session_id

    def _output(self) -> Written:
        name = self._chance.choice(("status", "dead-letter"))
        written = self._mutated(self._raw(self._message(name, f"o{self._chance.getrandbits(40):x}")), "output")
        return written._replace(told=False)

    def _message(self, name: str, session_id: str) -> Message:
        session: Session | None = None
        for text in self._chance.choice((["A1"], ["A1", "U2:N"], ["U2:N", "A1"], ["R0"])):
            event, sender = told(text, session_id)
            content = b"nonsense" if name == "dead-letter" else body(event)
            micros = START + self._chance.randrange(100) * SECOND
            notification = posted(content, key=session_id, sender=sender, received_micros=micros)
            decision = self._router.decide(notification, "export:0-7", session, micros)
            session = decision.session
        return next(each for each in decision.messages if each.topic.endswith(f".{name}"))

    @staticmethod
    def _raw(message: Message) -> Raw:
        ((key, value, millis, headers),) = output_records([message])
        return Raw(key, value, [(name.encode(), text) for name, text in headers], millis)

    async def _route(self) -> None:
        """Have a router's process decide on all records. Every session that was written must be restored."""

        def dispatcher(lane: object) -> Dispatcher:
            return Dispatcher(lane, self._router, self._telemetry, batch_max=500)  # type: ignore[arg-type]

        membership = Membership(self._connection, self._topics, self._telemetry, dispatcher)
        running = asyncio.create_task(membership.run())
        since, before = time.monotonic(), -1
        try:
            while len(membership.lanes) < _PARTITIONS or any(lane.lag for lane in membership.lanes.values()):
                await asyncio.sleep(0.1)
                lag = sum(lane.lag for lane in membership.lanes.values()) if membership.lanes else -1
                if lag != before:
                    since, before = time.monotonic(), lag
                if time.monotonic() - since > _STUCK_SECONDS:
                    self.wrong.append(f"stuck with a lag of {lag}: {membership.trouble}")
                    return
            remembered = {key: each for lane in membership.lanes.values() for key, each in lane.sessions.items()}
        finally:
            running.cancel()
            await asyncio.wait({running})
        self.happened["sessions remembered"] = len(remembered)
        for session_id, session in self._sessions.items():
            if remembered.get(session_id) != session:
                self.wrong.append(f"{session_id} is {remembered.get(session_id)}, wanted {session}")
        self._expect_no_failures()

    def _expect_no_failures(self) -> None:
        samples = [sample for metric in self._telemetry.registry.collect() for sample in metric.samples]
        count = {sample.name: sample.value for sample in samples}
        self.happened["passed over"] = int(count["qod_receiver_records_passed_over_total"])
        for sample in samples:
            if sample.name == "qod_receiver_lane_failures_total" and sample.value:
                self.wrong.append(f"lane {sample.labels} failed {sample.value:g} times")

    async def _look(self) -> None:
        """Read all topics and count their records. Every valid notification must be there once."""
        reader = KafkaReader(self._connection, self._plan.prefix)
        seen: Counter[str] = Counter()
        for topic in await reader.topics():
            cursor = await reader.beginning(topic)
            while records := await reader.records(topic, cursor, 5_000):
                for record in records:
                    orjson.dumps(record.fields())
                    record_line(record)
                    if topic == self._topics.dead_letters:
                        revived(record)
                    elif topic.endswith(".status") and dict(record.message.headers).get("verdict") == "accepted":
                        seen[record.message.key] += 1
                self.happened[f"read from {topic.rpartition('.')[2]}"] += len(records)
        sessions = {each.session_id: each for each in await reader.sessions(None, 10_000_000)}
        await reader.session_counts()
        await reader.close()
        for key, name in self._posted.items():
            if seen[key] != 1 or key not in sessions:
                self.wrong.append(f"{name}: {key} is on status {seen[key]} times, as a session {key in sessions}")
        for session_id, session in self._sessions.items():
            if sessions.get(session_id) != session:
                self.wrong.append(f"a reader sees {session_id} as {sessions.get(session_id)}, wanted {session}")

    def _read_raw(self, count: int) -> None:
        """Read batches that mostly no broker would take as a consumer reads them, each between two whole ones."""
        for number in range(count):
            first, odd, last = (batch([self._notification().raw for _ in range(3)], 0, offset) for offset in (0, 3, 6))
            intact = self._chance.random() < 0.5
            body_bytes = flipped(odd[61:], self._chance)
            odd = (
                sealed(body_bytes, 3, self._chance.choice((0, 0, 0, *range(8))), 3)
                if intact
                else odd[:17] + flipped(odd[17:], self._chance)
            )
            if not intact:
                odd = odd[:8] + (len(odd) - 12).to_bytes(4, "big") + odd[12:]
            self._read_batches(TopicPartition("raw", number), (first, odd, last))

    def _read_batches(self, where: TopicPartition, batches: Sequence[bytes]) -> None:
        position = 0
        offsets: list[int] = []
        for _ in range(20):
            # A broker sends the batch that has the position, and those behind it.
            data = b"".join(batches[min(position, 8) // 3 :])
            records = Records(where, Batches(data), (), position, None, None, True, 0)  # aiokafka's arguments
            try:
                for record in records:
                    offsets.append(record.offset)
                    decided = self._router.decide(notification_of(record), "0-0", None, START)
                    for raw in output_records(decided.messages):
                        size = len(raw.key) + len(raw.value or b"") + sum(len(text) for _, text in raw.headers)
                        if size > _RECORD_BYTES_MAX:
                            self.wrong.append(f"a record of {size} bytes would be written")
                    record_of(record)
            except KafkaError:
                self.happened["raw: fetched again"] += 1
            position = records.next_fetch_offset
            if offsets and offsets[-1] >= 8:
                break
        self.happened["raw: batches of which one is odd"] += 1
        if not {*offsets} <= {*range(9)}:
            self.happened["raw: offsets that no broker lets in"] += 1
            return
        if not {0, 1, 2, 6, 7, 8} <= set(offsets) or offsets != sorted(set(offsets)):
            self.wrong.append(f"raw: {offsets} of {batches[1].hex()}")


def _texts(raw: Raw) -> list[tuple[str, str]]:
    texts = {
        name.decode(errors="replace"): value.decode(errors="replace")
        for name, value in raw.headers
        if value is not None
    }
    return list(texts.items())


async def fuzz(bootstrap: str, prefix: str, count: int, seed: int) -> Outcome:
    """Write `count` records to the topics of a prefix, and check what becomes of them."""
    return await Fuzz(bootstrap, prefix, count, seed).run()


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    if reason := unavailable_reason():
        raise SystemExit(f"there is no Kafka to write to: {reason}")
    with tempfile.TemporaryDirectory(prefix="fuzz-records-") as directory, Cluster(Path(directory)) as cluster:
        outcome = asyncio.run(fuzz(cluster.bootstrap, "fuzz", arguments.count, arguments.seed))
    for name, count in sorted(outcome.happened.items()):
        print(f"{count:9} {name}")
    for each in outcome.wrong[:50]:
        print(f"WRONG: {each[:600]}")
    print(f"seed {arguments.seed}: {len(outcome.wrong)} wrong")
    raise SystemExit(bool(outcome.wrong))


if __name__ == "__main__":
    main()
