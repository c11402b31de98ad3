"""`export`: the content of a directory gets into a real cluster once, whatever is killed or cut off on the way."""

import asyncio
import contextlib
import json
import os
import pty
import random
import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import ConsumerRecord

from receiver.backends.kafka.reader import KafkaReader
from receiver.backends.kafka.records import partition_of
from receiver.core.errors import Unavailable
from receiver.core.event import QosStatus
from receiver.core.facts import Facts
from receiver.core.marks import split
from receiver.core.message import Record
from receiver.core.notification import RECONCILE, Notification
from receiver.core.session import MARKS_MAX, Session, apply, merged
from receiver.export import MILESTONES_NAME, Carried, Milestones, export
from receiver.process.cluster import connection_of
from receiver.process.directory import open_directory, open_reader
from receiver.process.routing import build_router
from receiver.qod import telling
from receiver.settings import KafkaSettings, RouteSettings, Settings
from receiver.telemetry import Telemetry
from tests.kafka_cluster import HOST, Brokers, Cluster
from tests.kafka_process import KafkaReceiver, Ports, until
from tests.limits import SECONDS_MAX
from tests.nodes import Node, commit
from tests.proxy import Proxy
from tests.receiver_process import COMMAND
from tests.samples import SECOND, SENDER, START, bare, body, posted, told


class Directory:
    """A data directory, the notifications in it, and the settings that carry it to a cluster."""

    def __init__(
        self, path: Path, bootstrap: str, prefix: str, routes: Sequence[str] = (), partitions: int = 3
    ) -> None:
        self.path = path
        self.bootstrap = bootstrap
        self.settings = Settings(
            data=path,
            prefix=prefix,
            kafka=KafkaSettings(bootstrap_servers=(bootstrap,), partitions=partitions),
            routes=tuple(RouteSettings(topic=each) for each in routes),
        )
        self.troubles: list[str] = []
        self.on_move: Callable[[int], None] = lambda _done: None
        #: A moment ago: older sessions would be forgotten.
        self._received_micros = time.time_ns() // 1000 - 60 * SECOND

    @property
    def partitions(self) -> int:
        """The number of each topic's partitions in the cluster."""
        return self.settings.kafka.partitions

    def keep(self, *notifications: Notification, routed: bool = True, batch_max: int = 500) -> None:
        """Keep notifications, each received a millisecond after the one before, and route all of them."""
        asyncio.run(self._keep(notifications, batch_max if routed else 0))

    def held(self) -> dict[str, Sequence[Record]]:
        """All of the directory's records, by topic."""
        return asyncio.run(self._held())

    async def carry(self, bootstrap: str = "", patience_seconds: float = SECONDS_MAX) -> dict[str, tuple[int, int]]:
        """Export it. By topic without the prefix: the records that were carried, and those that were there already."""
        kafka = self.settings.kafka.model_copy(update={"bootstrap_servers": (bootstrap or self.bootstrap,)})
        settings = self.settings.model_copy(update={"kafka": kafka})
        async with asyncio.timeout(SECONDS_MAX):
            carried = await export(
                settings, build_router(settings), Telemetry(StringIO()), self, patience_seconds=patience_seconds
            )
        return {self._name(each): (each.now_count, each.before_count) for each in carried}

    def carried(self) -> dict[str, tuple[int, int]]:
        """The same, from outside of a loop."""
        return asyncio.run(self.carry())

    def moved(self, what: str, done: int, total: int) -> None:
        """See receiver.export.Progress."""
        assert 0 <= done <= total, what
        self.on_move(done)

    def waiting(self, why: str) -> None:
        """See receiver.export.Progress."""
        self.troubles.append(why)

    def left_out(self, topic: str, what: str) -> None:
        """See receiver.export.Progress."""
        self.troubles.append(f"{topic} {what} left out")

    def ledger(self) -> dict[str, Any]:
        """The notes of the exports."""
        found: dict[str, Any] = json.loads((self.path / MILESTONES_NAME).read_bytes())
        return found

    def carried_count(self) -> int:
        """The number of carried records, by the notes."""
        if not (self.path / MILESTONES_NAME).exists():
            return 0
        return sum(sum(topics.values()) for topics in self.ledger()["positions"].values())

    def session_in_cluster(self, session_id: str) -> Session:
        """The cluster's state of a session."""

        async def find() -> Session:
            reader = KafkaReader(connection_of(self.settings), self.settings.prefix)
            async with asyncio.timeout(SECONDS_MAX):
                (found,) = [each for each in await reader.sessions(None, 1_000) if each.session_id == session_id]
                await reader.close()
            return found

        return asyncio.run(find())

    async def delete_topics(self) -> None:
        """Remove all topics from the cluster, and wait until they are gone."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        async with asyncio.timeout(SECONDS_MAX):
            await admin.start()
            mine = [name for name in await admin.list_topics() if name.startswith(f"{self.settings.prefix}.")]
            await admin.delete_topics(mine)
            while {*mine} & {*await admin.list_topics()}:  # noqa: ASYNC110  # there is no event to wait for
                await asyncio.sleep(0.05)
            await admin.close()

    def command(self, bootstrap: str = "") -> tuple[list[str], dict[str, str]]:
        """The command and its environment."""
        routes = json.dumps([each.model_dump(include={"topic"}) for each in self.settings.routes])
        given = {"PREFIX": self.settings.prefix, "KAFKA__PARTITIONS": str(self.partitions), "ROUTES": routes}
        environment = {**os.environ, **{f"QOD_RECEIVER_{name}": value for name, value in given.items()}}
        command = [*COMMAND, "export", "--kafka", bootstrap or self.bootstrap, "--data", str(self.path)]
        return command, {**environment, "COLUMNS": "120", "TERM": "xterm"}

    def run(self, bootstrap: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command."""
        command, environment = self.command(bootstrap)
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX, check=False
        )

    def _name(self, carried: Carried) -> str:
        return carried.topic.removeprefix(f"{self.settings.prefix}.")

    async def _keep(self, notifications: Sequence[Notification], batch_max: int) -> None:
        with self._opened() as node:
            kept = []
            for notification in notifications:
                self._received_micros += 1_000
                kept.append(node.inbox.append(notification._replace(received_micros=self._received_micros)))
            await asyncio.gather(*kept)
            router = build_router(self.settings)
            while batch_max and node.lane.lag:
                await commit(node.lane, router, await node.lane.read(batch_max))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Node]:
        opened = open_directory(self.settings)
        with contextlib.closing(opened), contextlib.closing(open_reader(self.settings)) as reader:
            yield Node(opened.inbox, opened.lane, reader, self.settings.prefix)

    async def _held(self) -> dict[str, Sequence[Record]]:
        with contextlib.closing(open_reader(self.settings)) as reader:
            return {
                topic: await reader.records(topic, await reader.beginning(topic), 1_000_000, 1 << 40)
                for topic in await reader.topics()
            }


class Told(NamedTuple):
    """The content of a record for a consumer, whichever way it came."""

    value: bytes | None
    headers: Sequence[tuple[str, str]]
    timestamp_millis: int


def in_directory(directory: Directory, records: Sequence[Record]) -> dict[str, list[Told]]:
    """The expected content of a directory's records in the cluster, by key and in order."""
    found: dict[str, list[Told]] = defaultdict(list)
    for _, _, message in records:
        trace = dict(message.headers)["inbox"]
        traced = f"export:{directory.ledger()['id']}:{trace}"
        # An event without an id has its place for one, and so has every dead letter.
        renewed = [
            (name, traced if text == trace and name in {"inbox", "ce_id"} else text) for name, text in message.headers
        ]
        found[message.key].append(Told(message.value, renewed, message.timestamp_millis))
    return dict(found)


def in_cluster(directory: Directory, *topics: str) -> dict[str, dict[str, list[Told]]]:
    """The content of the topics' records in the cluster, by topic and key, in order; each is in its key's partition."""
    found: dict[str, dict[str, list[Told]]] = {topic: defaultdict(list) for topic in topics}
    for each in asyncio.run(_consumed(directory, topics)):
        key = each.key.decode()
        assert each.partition == partition_of(key, directory.partitions)
        # Without the headers that a lane adds about its inbox.
        headers = [(name, text.decode()) for name, text in each.headers if name != "inbox-id"]
        found[each.topic][key].append(Told(each.value, headers, each.timestamp))
    return found


async def _consumed(directory: Directory, topics: Sequence[str]) -> Sequence[ConsumerRecord]:
    """All committed records, once no transaction is open any more."""
    found: list[ConsumerRecord] = []
    consumer = AIOKafkaConsumer(
        bootstrap_servers=directory.bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
    )
    latest = AIOKafkaConsumer(bootstrap_servers=directory.bootstrap)
    async with asyncio.timeout(SECONDS_MAX), consumer, latest:
        partitions = [TopicPartition(topic, each) for topic in topics for each in range(directory.partitions)]
        ends = await latest.end_offsets(partitions)
        consumer.assign(partitions)
        while any([await consumer.position(each) < end for each, end in ends.items()]):
            for some in (await consumer.getmany(timeout_ms=100)).values():
                found += some
    return found


def expect_all(directory: Directory) -> None:
    """The cluster has all of the directory's records, and no others; of sessions it has the newest state."""
    held = directory.held()
    found = in_cluster(directory, *held)
    for topic, records in held.items():
        some = found[topic]
        if topic == f"{directory.settings.prefix}.sessions":
            some = {key: states[-1:] for key, states in some.items()}
        assert some == in_directory(directory, records), topic


def lives(count: int, first: int = 0, sender: str = "acme") -> list[Notification]:
    """Sessions that begin, whose change is repeated, and that end; some events have no id, and there are as many dead
    letters.
    """
    told_of: list[Notification] = []
    for number in range(first, first + count):
        session_id = f"s{number:05}"
        begun = posted("A1", session_id=session_id, sender=sender)
        told_of += [begun, begun, posted("U2:N#" if number % 3 else "U2:N", session_id=session_id, sender=sender)]
        told_of.append(posted(b"nonsense", session_id="", sender=sender))
    return told_of


@pytest.fixture
def directory(kafka: Brokers, topic_prefix: str, tmp_path: Path) -> Directory:
    """An empty directory, and a cluster without topics for it."""
    return Directory(tmp_path / "data", kafka.bootstrap, topic_prefix)


def test_all_is_carried_once(kafka: Brokers, topic_prefix: str, tmp_path: Path) -> None:
    """Records get into the cluster unchanged but for their trace, sessions too; a second export carries new ones."""
    # More partitions than lanes that are open at once.
    directory = Directory(tmp_path / "data", kafka.bootstrap, topic_prefix, partitions=5)
    large = [posted(bytes([65 + number]) * 500_000, session_id="") for number in range(9)]
    directory.keep(*lives(120), posted(bare("bare"), session_id="bare"), *large, batch_max=150)
    directory.keep(posted("U3:E", session_id="waits"), routed=False)
    outcome = directory.run()
    assert (outcome.returncode, outcome.stderr) == (0, "")
    prefix = directory.settings.prefix
    assert outcome.stdout.splitlines()[:4] == [
        f"{prefix}.dead-letter: 129 records carried, 0 were there already",
        f"{prefix}.status: 242 records carried, 0 were there already",
        f"{prefix}.unavailable: 122 records carried, 0 were there already",
        f"{prefix}.sessions: 122 sessions carried, 0 were there already",
    ]
    assert f"serve --kafka {directory.bootstrap} --data {directory.path}" in outcome.stdout
    assert "token-secret" not in outcome.stdout  # no token was minted
    expect_all(directory)
    again = {"dead-letter": (0, 129), "status": (0, 242), "unavailable": (0, 122), "sessions": (0, 122)}
    assert directory.carried() == again
    expect_all(directory)
    directory.keep(posted("U9:D", session_id="s00007"), *lives(1, first=900))
    assert directory.carried() == {"dead-letter": (1, 129), "status": (3, 242), "unavailable": (2, 122)} | {
        "sessions": (2, 121)
    }
    expect_all(directory)


def test_a_bar_for_each_topic_is_drawn_where_somebody_looks(directory: Directory) -> None:
    """On a terminal each topic has a bar; the result is below."""
    directory.keep(*lives(5), routed=False)
    (directory.path / "token-secret").write_text("s" * 40)
    command, environment = directory.command()
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = ""
        with contextlib.suppress(OSError):  # at the end of a terminal
            while chunk := os.read(ours, 65_536):
                shown += chunk.decode(errors="replace")
        assert process.wait(SECONDS_MAX) == 0, shown
    os.close(ours)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    for what, count in (("inbox", 20), ("status", 10), ("unavailable", 5), ("dead-letter", 5), ("sessions", 5)):
        assert re.search(rf"{what} +━+ +{count}/{count}", plain), shown
    assert "token-secret" in plain
    expect_all(directory)


async def test_a_killed_export_goes_on_where_it_stood(
    kafka_cluster: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    """However often the process is killed, in the end nothing is missing and nothing is there twice."""
    routes = [f"more-{number}" for number in range(8)]
    directory = Directory(tmp_path / "data", kafka_cluster.bootstrap, topic_prefix, routes)
    await asyncio.to_thread(directory.keep, *lives(150))
    seed = random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    way = kafka_cluster.way()
    command, environment = directory.command(way.bootstrap)
    ((listen, target),) = way.proxies
    stood: list[int] = []
    async with Proxy(listen, target) as proxy:
        proxy.delay(0.001)
        # Killed some pieces after this many records were noted: among the records, anywhere, at the sessions.
        for noted, pieces in ((1, 100), (0, 300), (3_000, 400)):
            process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=subprocess.DEVNULL)
            passed = None
            async with asyncio.timeout(SECONDS_MAX):
                while process.returncode is None and (passed is None or proxy.faults["delayed"] < passed):
                    if passed is None and directory.carried_count() >= noted:
                        passed = proxy.faults["delayed"] + chance.randrange(pieces)
                    await asyncio.sleep(0.005)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            stood.append(directory.carried_count())
    assert 0 < stood[0] < 3_000, "the first was to be killed on its way"
    outcome = await asyncio.to_thread(directory.run)
    assert outcome.returncode == 0, f"seed {seed}: {outcome.stderr}"
    await asyncio.to_thread(expect_all, directory)


def test_a_router_goes_on_with_what_was_carried(directory: Directory, tmp_path: Path) -> None:
    """The cluster recognizes the directory's repetitions and skips nothing new; no export goes to routers at work."""
    known = lives(40, sender="anonymous")
    directory.keep(*known)
    assert directory.carried()["sessions"] == (40, 0)
    prefix = directory.settings.prefix
    topic = f"{prefix}.status"
    repeated = [each.body for each in known if each.key]
    fresh = [body(told("A1", f"t{number:05}")[0]) for number in range(20)]
    with KafkaReceiver(tmp_path / "serve", directory.bootstrap, prefix) as receiver:
        receiver.post(*repeated, body(told("U5:E", "s00003")[0]), *fresh)
        until(lambda: len(in_cluster(directory, topic)[topic]) == 60, "all that is new is routed")
        with pytest.raises(Unavailable, match=rf"1 router is at work on the cluster, in the group {prefix}\.router"):
            directory.carried()
        receiver.end()
    found = in_cluster(directory, topic)[topic]
    assert {key: len(some) for key, some in found.items() if len(some) != 2} == {
        **dict.fromkeys((f"t{number:05}" for number in range(20)), 1),
        "s00003": 3,
    }
    # The directory gets more events of the same session, and the cluster must get all of them.
    directory.keep(posted("U6:D", session_id="s00003", sender="anonymous"))
    assert directory.carried()["sessions"] == (1, 39)
    after = directory.session_in_cluster("s00003")
    assert (after.status_info, len(split(after.marks))) == ("DELETE_REQUESTED", 4)
    assert directory.carried()["sessions"] == (0, 40)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_end_that_the_api_told_does_not_revive(
    kafka: Brokers, topic_prefix: str, tmp_path: Path, order: tuple[int, int]
) -> None:
    """Whichever of two directories knows a session's end, and whichever is carried first, the cluster knows all of the
    session.
    """
    facts = Facts("QOS_E", 3_600, START + 3_600 * SECOND, "ab12")
    end = telling.Telling("s", QosStatus.UNAVAILABLE, None, START + 5 * SECOND, facts)
    both = [Directory(tmp_path / str(number), kafka.bootstrap, topic_prefix) for number in range(2)]
    both[0].keep(posted("A1#a", session_id="s"), telling.notification(end, RECONCILE, SENDER, START))
    both[1].keep(posted("A1#a", session_id="s"), posted("U2#b", session_id="s"), posted("A4#c", session_id="s"))
    for number in order:
        assert both[number].carried()["sessions"] == (1, 0)
    known = both[0].session_in_cluster("s")
    assert (known.qos_status, known.rank, known.facts, len(split(known.marks))) == (QosStatus.UNAVAILABLE, 2, facts, 4)
    _, verdict, _ = apply(known, told("A9", "s")[0], SENDER, START, START)[:3]
    assert verdict == "late"


def test_what_is_served_is_not_carried(directory: Directory) -> None:
    """While another process has the directory its export is refused, with the reason."""
    directory.keep(*lives(1))
    with contextlib.closing(open_directory(directory.settings)):
        outcome = directory.run()
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert outcome.stderr == f"qod-receiver: another process serves {directory.path}\n"


def test_without_kafka_it_ends_with_a_word(directory: Directory) -> None:
    """If no broker answers, the command says so and ends with 1, and nothing was changed."""
    directory.keep(*lives(1), routed=False)
    with contextlib.closing(Ports(1)) as ports:
        nowhere = f"{HOST}:{ports.first}"
        outcome = directory.run(nowhere)
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert outcome.stderr == f"qod-receiver: Kafka does not answer: {nowhere}: connection refused\n"
    assert directory.held() == {}


def test_without_brokers_there_is_nowhere_to_carry_to(tmp_path: Path) -> None:
    """The command needs brokers, from any source of settings."""
    outcome = subprocess.run(
        [*COMMAND, "export"], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS_MAX, check=False
    )
    assert outcome.returncode == 2
    assert "brokers are required" in outcome.stderr
    assert not list(tmp_path.iterdir())


def test_where_nothing_was_received_nothing_is_made(tmp_path: Path) -> None:
    """A directory without a file of the receiver's is refused, and gets no file."""
    outcome = Directory(tmp_path / "data", f"{HOST}:1", "qod").run()
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert outcome.stderr == f"qod-receiver: {tmp_path / 'data'} has nothing to export, there is no qod.sqlite in it\n"
    assert not list(tmp_path.iterdir())


async def test_kafka_may_go_away_on_the_way(kafka_cluster: Cluster, topic_prefix: str, tmp_path: Path) -> None:
    """A short failure is retried; a long one ends the export, and the next export goes on."""
    directory = Directory(tmp_path / "data", kafka_cluster.bootstrap, topic_prefix)
    await asyncio.to_thread(directory.keep, *lives(30), routed=False)
    way = kafka_cluster.way()
    ((listen, target),) = way.proxies
    async with Proxy(listen, target) as proxy:
        doing: list[asyncio.Task[None]] = []

        def end(done: int) -> None:
            if done and not doing:  # waiting notifications are routed, nothing is carried yet
                doing.append(asyncio.ensure_future(proxy.down()))

        directory.on_move = end
        with pytest.raises(Unavailable, match="connection refused; what was carried stays, and the next export goes"):
            await directory.carry(way.bootstrap, patience_seconds=0.5)
        assert len(directory.troubles) > 1, "it was not tried again"
        await doing.pop()
        await proxy.heal()
        proxy.delay(0.01)
        directory.troubles.clear()

        async def cut() -> None:
            while not directory.troubles:  # a repeatable request is repeated, unnoticed
                await asyncio.sleep(0.03)
                proxy.cut()

        def disturb(done: int) -> None:
            if done and not doing:
                doing.append(asyncio.ensure_future(cut()))

        directory.on_move = disturb
        carried = await directory.carry(way.bootstrap)
        assert directory.troubles, "it was cut off and did not notice"
        await doing.pop()
    assert carried == {"dead-letter": (30, 0), "status": (60, 0), "unavailable": (30, 0), "sessions": (30, 0)}
    await asyncio.to_thread(expect_all, directory)


def test_both_sides_know_how_far_it_came(directory: Directory) -> None:
    """Kafka may forget the export's position, and the file may be behind; but an older copy skips no record."""
    directory.keep(*lives(10))
    first = directory.carried()
    assert first == {"dead-letter": (10, 0), "status": (20, 0), "unavailable": (10, 0), "sessions": (10, 0)}
    noted = directory.ledger()
    forgotten = {"id": "another", "positions": noted["positions"]}  # nothing was committed under that name
    for ledger in ({"id": noted["id"], "positions": {}}, forgotten):
        (directory.path / MILESTONES_NAME).write_text(json.dumps(ledger))
        assert directory.carried() == {name: (0, count) for name, (count, _) in first.items()}
    (directory.path / MILESTONES_NAME).write_text(json.dumps(noted))
    expect_all(directory)
    (topics,) = noted["positions"].values()
    topics[f"{directory.settings.prefix}.status"] = 1_000
    (directory.path / MILESTONES_NAME).write_text(json.dumps(noted))
    with pytest.raises(Unavailable, match="status ends at 20, and 1000 records of it were carried before"):
        directory.carried()


def test_another_cluster_is_carried_to_from_the_beginning(directory: Directory) -> None:
    """Notes about one cluster don't count for another, nor for topics that were made anew."""
    directory.keep(*lives(10))
    first = directory.carried()
    noted = directory.ledger()
    elsewhere = {"another-cluster": dict.fromkeys(directory.held(), 10_000)}
    (directory.path / MILESTONES_NAME).write_text(json.dumps({"id": noted["id"], "positions": elsewhere}))
    assert directory.carried() == {name: (0, count) for name, (count, _) in first.items()}
    (directory.path / MILESTONES_NAME).write_text(json.dumps(noted))
    asyncio.run(directory.delete_topics())
    assert directory.carried() == first
    expect_all(directory)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"id": "x"}'])
def test_a_damaged_ledger_is_refused(content: bytes, tmp_path: Path) -> None:
    """No export begins anew because its position can't be read."""
    (tmp_path / MILESTONES_NAME).write_bytes(content)
    with pytest.raises(Unavailable, match="without it everything would be carried again"):
        Milestones(tmp_path)


def test_another_prefix_is_refused(directory: Directory) -> None:
    """Under a prefix that the directory was not served with nothing is routed and nothing carried."""
    directory.keep(*lives(1))
    directory.keep(posted("A1"), routed=False)
    held = directory.held()
    prefix = directory.settings.prefix
    directory.settings = directory.settings.model_copy(update={"prefix": f"{prefix}x"})
    with pytest.raises(
        Unavailable, match=rf"no topic {prefix}x\.sessions in this directory, but {prefix}\.dead-letter, "
    ):
        directory.carried()
    directory.settings = directory.settings.model_copy(update={"prefix": prefix})
    assert directory.held() == held


def test_a_route_that_is_gone_is_carried_still(directory: Directory) -> None:
    """Records of a topic that is no longer in the configuration are carried too."""
    settings = directory.settings
    directory.settings = settings.model_copy(update={"routes": (RouteSettings(topic="pager"),)})
    directory.keep(*lives(3))
    directory.settings = settings
    assert directory.carried()["pager"] == (6, 0)
    expect_all(directory)


# The memory of a session that both directory and cluster know.


def session(*events: str, touched: int = 0, sender: str = "acme", before: Session | None = None) -> Session:
    """A session's state after events, the last of which came at `touched` seconds."""
    after = before
    for each in events:
        after, _, _ = apply(after, told(each)[0], sender, START, START + touched * SECOND)[:3]
    assert after
    return after


A, AU, AUN = (session(*events) for events in (("A1#a",), ("A1#a", "U2#b"), ("A1#a", "U2#b", "U3:N#c")))


@pytest.mark.parametrize(
    ("ours", "theirs", "ahead", "marks"),
    [
        (A, A, A, "a"),
        (AU, A, AU, "ab"),
        (A, AU, AU, "ab"),
        (session("A1#a", touched=9), AU, AU, "ab"),
        (AUN, session("A1#a", "U2#b", "A9#d", touched=9), AUN, "cabd"),
        (session("A9#d", touched=9, before=A), AUN, AUN, "abcd"),
        (session("U5:D#e", touched=5, before=A), AUN, session("U5:D#e", before=A), "abce"),
    ],
)
def test_what_both_know_is_merged(ours: Session, theirs: Session, ahead: Session, marks: str) -> None:
    """The state that is ahead stays, every event is remembered once, and merging again changes nothing."""
    after = merged(ours, theirs)
    known = ahead.qos_status, ahead.status_info, ahead.time_micros
    assert (after.qos_status, after.status_info, after.time_micros) == known
    ids = {session(f"A1#{name}").marks.partition("|")[0]: name for name in "abcde"}
    assert "".join(ids[mark.partition("|")[0]] for mark in split(after.marks)) == marks
    assert after.touched_micros == max(ours.touched_micros, theirs.touched_micros)
    assert merged(ours, after) == after


def test_merged_memory_is_cut_as_a_routers() -> None:
    """Beyond its limit the merged memory forgets the oldest events, and knows up to which time."""
    ours = session(*(f"{'AU'[n % 2]}{n}" for n in range(MARKS_MAX - 10)), touched=1)
    theirs = session(*(f"{'AU'[n % 2]}{n}" for n in range(1_000, 1_020)), touched=2)
    after = merged(ours, theirs)
    assert split(after.marks) == [*split(ours.marks), *split(theirs.marks)][-MARKS_MAX:]
    assert after.marks_cut_micros == START + 9 * SECOND
    assert merged(ours, after) == after
    assert merged(ours, session("A1", sender="another")).sender == "another"
