"""`serve --kafka` from outside: roles, commands beside it, and a cluster that goes away and comes back."""

import asyncio
import json
import os
import secrets
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from receiver.cli import run as command
from tests.kafka_cluster import Brokers, Cluster
from tests.kafka_process import PARTITIONS, KafkaReceiver, Load, paused, records, refused, told_on, until
from tests.limits import SECONDS_MAX
from tests.proxy import Proxy
from tests.receiver_process import COMMAND
from tests.samples import body, told

#: An append waits this long for Kafka: longer than a busy machine takes to write to its disk.
APPEND_SECONDS = 10
ALL_WELL = "ok"
#: Longer than a commit, a session and a transaction may take.
STANDSTILL_SECONDS = 17.0
#: A type that no router knows today.
BOOKED = "org.camaraproject.qos-booking.v0.status-changed"

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def whole(kafka: Brokers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaReceiver]:
    """One process in all roles."""
    with KafkaReceiver(tmp_path_factory.mktemp("whole"), kafka.bootstrap, _prefix()) as receiver:
        yield receiver


class Pair(NamedTuple):
    """An edge and a router of one cluster."""

    edge: KafkaReceiver
    router: KafkaReceiver


@pytest.fixture(scope="module")
def pair(kafka: Brokers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """An edge and a router, each in a process."""
    prefix = _prefix()
    with (
        KafkaReceiver(tmp_path_factory.mktemp("edge"), kafka.bootstrap, prefix, "--role", "edge") as edge,
        KafkaReceiver(tmp_path_factory.mktemp("router"), kafka.bootstrap, prefix, "--role", "router") as router,
    ):
        yield Pair(edge, router)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command with settings in its environment; returns its exit status, its output and its log."""

    def run(*arguments: str, **settings: str) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "200")
        for name, value in {"KAFKA__PARTITIONS": str(PARTITIONS), **settings}.items():
            monkeypatch.setenv(f"QOD_RECEIVER_{name}", value)
        with pytest.raises(SystemExit) as ended:
            command(arguments)
        told = capsys.readouterr()
        return ended.value.code or 0, told.out, told.err  # type: ignore[return-value]  # it is a number

    return run


def _prefix() -> str:
    return f"t{secrets.token_hex(6)}"


def _remake(bootstrap: str, topic: str, partitions: int) -> None:
    """Make a topic again with a broker's defaults."""

    async def remake() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        try:
            await admin.delete_topics([topic])
            async with asyncio.timeout(SECONDS_MAX):
                while topic in await admin.list_topics():  # noqa: ASYNC110  # there is no event to wait for
                    await asyncio.sleep(0.05)
            await admin.create_topics([NewTopic(topic, partitions, 1)])
        finally:
            await admin.close()

    asyncio.run(remake())


def _lines(printed: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.splitlines()]


def _unrecognized(session_id: str) -> bytes:
    return body(told("A1", session_id)[0], type=BOOKED)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--role", "edge"), "Invalid value for --role: one process serves a data directory"),
        (("--role", "router"), "Invalid value for --role: one process serves a data directory"),
        (("--workers", "2"), "Invalid value for --workers: one process serves a data directory"),
        (
            ("--role", "router", "--workers", "2", "--kafka", "127.0.0.1:9"),
            "Invalid value for --workers: a router is one process: start more of them instead",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: tuple[str, ...], told: str, cli: Command) -> None:
    """A role needs a cluster, and a router is one process; else the exit status is 2, with a hint."""
    status, _, said = cli("serve", *arguments)
    assert status == 2
    assert told in " ".join(said.split())


def test_what_is_posted_is_routed(whole: KafkaReceiver, cli: Command) -> None:
    """A notification is answered 204, routed to its topics, and shown by the commands and on the operations port."""
    place = "--kafka", whole.bootstrap
    assert [answer.status for answer in whole.tell("seen", "A1", "U2:N")] == [204, 204]
    assert [answer.status for answer in whole.post(b"{")] == [400]
    until(lambda: whole.get("/sessions")["sessions"], "a session")
    _, out, _ = cli("tail", "status", *place, "--no-follow", "--json", "--session", "seen", PREFIX=whole.prefix)
    assert [record["value"]["qosStatus"] for record in _lines(out)] == ["AVAILABLE", "UNAVAILABLE"]
    _, out, _ = cli("tail", "unavailable", *place, "--no-follow", "--json", "--session", "seen")
    assert [record["value"]["statusInfo"] for record in _lines(out)] == ["NETWORK_TERMINATED"]
    _, out, _ = cli("sessions", *place, "--json")
    assert [session["qosStatus"] for session in _lines(out) if session["sessionId"] == "seen"] == ["UNAVAILABLE"]
    _, out, _ = cli("tail", "dead-letter", *place, "--no-follow")
    assert "malformed" in out
    topics = [f"{whole.prefix}.{name}" for name in ("dead-letter", "sessions", "status", "unavailable")]
    assert whole.get("/topics") == {"topics": topics}
    seen = whole.get("/topics/status?session=seen")["records"]
    assert [record["value"]["qosStatus"] for record in seen] == ["AVAILABLE", "UNAVAILABLE"]
    assert {session["sessionId"] for session in whole.get("/sessions?qos_status=UNAVAILABLE")["sessions"]} == {"seen"}
    until(lambda: set(whole.checks().values()) == {ALL_WELL}, "all parts well")
    assert set(whole.checks()) == {"inbox", "kafka", "lanes", "router", "shutdown", "spool"}
    assert whole.samples("qod_receiver_sessions")['qos_status="UNAVAILABLE"'] == 1
    assert set(whole.samples("qod_receiver_inbox_lag").values()) == {0}
    assert len(whole.lanes()) == PARTITIONS
    assert whole.spooled() == 0


def test_records_are_streamed_as_they_come(whole: KafkaReceiver) -> None:
    """A follower gets each record at once, and goes on where it was cut off."""
    headers = {"accept": "text/event-stream"}
    with (
        httpx2.Client(timeout=SECONDS_MAX) as client,
        client.stream("GET", f"{whole.ops_url}/topics/status", headers=headers) as stream,
    ):
        lines = stream.iter_lines()
        assert next(lines) == ": connected"
        whole.tell("streamed", "A1", "U2")
        told_of = [line for line in (next(lines) for _ in range(6)) if line]
        identifier = told_of[0].removeprefix("id: ")
        assert json.loads(told_of[2].removeprefix("data: "))["key"] == "streamed"
    headers["last-event-id"] = identifier
    with (
        httpx2.Client(timeout=SECONDS_MAX) as client,
        client.stream("GET", f"{whole.ops_url}/topics/status", headers=headers) as stream,
    ):
        data = next(line for line in stream.iter_lines() if line.startswith("data: "))
        assert json.loads(data.removeprefix("data: "))["value"]["qosStatus"] == "UNAVAILABLE"


def test_a_follower_is_interrupted(whole: KafkaReceiver) -> None:
    """Ctrl-C ends `tail` without a message, and with status 0."""
    command = [*COMMAND, "tail", "status", "--kafka", whole.bootstrap, "--from", "beginning"]
    environment = {**os.environ, "QOD_RECEIVER_PREFIX": whole.prefix}
    whole.tell("followed", "A1")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout
            assert "AVAILABLE" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=SECONDS_MAX)
        finally:
            process.kill()
    assert (process.returncode, said) == (0, "")


def test_the_settings_in_force_name_the_cluster(cli: Command) -> None:
    """`check-config` shows where the brokers were named."""
    status, out, _ = cli("check-config", "--kafka", "127.0.0.1:9,localhost:10")
    assert status == 0
    (line,) = (line for line in out.splitlines() if line.startswith("bootstrap_servers"))
    assert line.split("  # ") == ['bootstrap_servers = ["127.0.0.1:9", "localhost:10"]', "--kafka on the command line"]


def test_each_part_tells_of_itself(pair: Pair) -> None:
    """An edge is ready by itself and routes nothing; a router receives nothing, and is ready as a member."""
    edge, router = pair
    assert [answer.status for answer in edge.tell("told", "A1", "U2:N")] == [204, 204]
    until(lambda: router.get("/readyz")["ready"], "the router a member")
    until(lambda: edge.get("/sessions")["sessions"], "a session")
    assert set(edge.checks()) == {"inbox", "kafka", "shutdown", "spool"}
    assert set(router.checks()) == {"lanes", "router", "shutdown"}
    assert set(edge.checks().values()) == set(router.checks().values()) == {ALL_WELL}
    assert edge.lanes() == set()
    assert len(router.lanes()) == PARTITIONS
    assert sum(edge.samples("qod_receiver_sessions").values()) == 0
    assert router.samples("qod_receiver_sessions")['qos_status="UNAVAILABLE"'] == 1
    assert router.samples("qod_receiver_spool_notifications") == {}
    assert "Notifications:" not in router.printed()
    with pytest.raises(httpx2.ConnectError):
        router.tell("nobody", "A1")


@pytest.mark.parametrize("how", ["all", "edge", "router", "command"])
def test_dead_letters_are_replayed(how: str, whole: KafkaReceiver, pair: Pair, cli: Command) -> None:
    """A dead letter can be replayed into the inbox from any process, and leaves no second letter."""
    asked = {"all": whole, "edge": pair.edge, "router": pair.router, "command": whole}[how]
    posted_at = pair.edge if how == "router" else asked
    dead_letters, inbox = f"{asked.prefix}.dead-letter", f"{asked.prefix}.inbox"
    posted_at.post(_unrecognized(how))
    until(lambda: how in {each.key.decode() for each in records(asked.bootstrap, dead_letters)}, "a dead letter")
    dead = len(records(asked.bootstrap, dead_letters))
    if how == "command":
        status, out, _ = cli("replay", "--kafka", asked.bootstrap, "--verdict", "unrecognized", PREFIX=asked.prefix)
        assert status == 0
        count = int(out.split()[0])
    else:
        count = httpx2.post(f"{asked.ops_url}/replay", json={"verdicts": ["unrecognized"]}, timeout=SECONDS_MAX).json()[
            "replayed"
        ]
    assert count >= 1
    again = [each for each in records(asked.bootstrap, inbox) if "origin" in dict(each.headers)]
    assert how in {each.key.decode() for each in again}
    asked.tell(how, "A3") if how != "router" else pair.edge.tell(how, "A3")
    until(lambda: how in told_on(asked.bootstrap, f"{asked.prefix}.status"), "routed behind it")
    assert len(records(asked.bootstrap, dead_letters)) == dead


def test_topics_are_made_and_checked(kafka: Brokers, tmp_path: Path, cli: Command) -> None:
    """`topics` makes missing topics and names each difference; a router refuses fatal ones."""
    prefix, place = _prefix(), ("--kafka", kafka.bootstrap)
    assert cli("topics", "check", *place, PREFIX=prefix)[::2] == (
        1,
        "qod-receiver: 5 differences, 5 of them unusable for a receiver\n",
    )
    status, (line,) = refused(
        tmp_path / "data", kafka.bootstrap, prefix, "--role", "router", KAFKA__CREATE_TOPICS="false"
    )
    assert status == 1
    assert line.startswith(f"qod-receiver: {prefix}.inbox does not exist; ")
    assert cli("sessions", *place)[::2] == (1, f"qod-receiver: there is no topic {prefix}.sessions\n")
    status, _, said = cli("replay", *place)
    assert status == 1
    assert f"{prefix}.inbox does not exist" in said
    status, out, _ = cli("topics", "create", *place)
    assert (status, out.splitlines()[-1]) == (0, "5 topics created")
    assert cli("topics", "create", *place)[:2] == (0, "0 topics created\n")
    assert cli("topics", "check", *place)[:2] == (0, "the topics are as the configuration says\n")


def test_differences_are_named(kafka: Brokers, tmp_path: Path, cli: Command) -> None:
    """Other partitions, replicas, policies and retention are each reported, and fatal differences are counted."""
    prefix, place = _prefix(), ("--kafka", kafka.bootstrap)
    cli("topics", "create", *place, "--partitions", "3", PREFIX=prefix, ROUTES='[{"topic": "extra"}]')
    _, out, _ = cli("topics", "check", *place)
    assert out.count("has 3 partitions, the configuration says 4") == 6
    settings = {"KAFKA__PARTITIONS": "3", "KAFKA__REPLICATION_FACTOR": "2", "RETENTION__TOPICS_HOURS": "1"}
    status, out, said = cli("topics", "check", *place, **settings)
    assert (status, said) == (1, "qod-receiver: 10 differences, 0 of them unusable for a receiver\n")
    assert out.count("has 1 replicas, not 2") == 6
    assert out.count("has retention.ms=604800000, not 3600000") == 4
    _remake(kafka.bootstrap, f"{prefix}.status", partitions=2)
    _remake(kafka.bootstrap, f"{prefix}.sessions", partitions=3)
    settings = {"KAFKA__PARTITIONS": "3", "KAFKA__REPLICATION_FACTOR": "1", "RETENTION__TOPICS_HOURS": "168"}
    _, out, said = cli("topics", "check", *place, **settings)
    assert said.endswith(", 2 of them unusable for a receiver\n")
    assert "has cleanup.policy=delete, not compact" in out
    assert f"has 2 partitions, {prefix}.inbox has 3" in out
    status, (line,) = refused(tmp_path / "data", kafka.bootstrap, prefix, "--role", "router")
    assert status == 1
    assert line == (
        f"qod-receiver: {prefix}.status has 2 partitions, {prefix}.inbox has 3; "
        f"{prefix}.sessions has cleanup.policy=delete, not compact"
    )


def test_an_outage_is_bridged(kafka_cluster: Cluster, tmp_path: Path) -> None:
    """While the broker is paused all notifications are kept on disk, also over a kill; then they are routed, once and
    in order.

    The first answers wait for the append's time limit, all others for the disk alone.
    """
    prefix = _prefix()
    settings = {"KAFKA__APPEND_TIMEOUT_SECONDS": str(APPEND_SECONDS)}
    with KafkaReceiver(tmp_path / "node", kafka_cluster.bootstrap, prefix, **settings) as receiver:
        until(lambda: set(receiver.checks().values()) == {ALL_WELL}, "all parts well")
        with Load("outage", receiver.edge_url) as load:
            load.more()
            with paused(kafka_cluster):
                began = time.monotonic()
                until(lambda: receiver.spooled() >= 50, "on disk")
                load.more(100)
                seconds = load.between(began, time.monotonic())
                ready = receiver.get("/readyz")
                assert ready["ready"]
                assert "notifications wait on disk: Kafka " in ready["checks"]["spool"]
                assert ready["checks"]["kafka"] != ALL_WELL
                assert set(load.statuses()) == {204}
                assert statistics.median(seconds) < APPEND_SECONDS
                spooled = receiver.spooled()
                receiver.kill()
                started = receiver.start()
                assert receiver.spooled() >= spooled
                load.more(50)
            drained = until(lambda: receiver.spooled() == 0, "drained")
            until(lambda: set(receiver.checks().values()) == {ALL_WELL}, "all parts well")
            load.more()
        routed = load.check(kafka_cluster.bootstrap, prefix)
        receiver.end()
    assert "Traceback" not in receiver.log.read_text()
    print(f"{len(seconds)} answers, median {statistics.median(seconds):.3f} s, longest {seconds[-1]:.1f} s")
    print(f"the start took {started:.1f} s, draining {drained:.1f} s, routing what was left {routed:.1f} s")


class Away:
    """A way to the broker that can be closed: connections are refused there."""

    def __init__(self, cluster: Cluster) -> None:
        self.bootstrap = cluster.way().bootstrap
        ((listen, target),) = cluster.way().proxies
        self.proxy = Proxy(listen, target)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def do(self, action: Coroutine[Any, Any, None]) -> None:
        """Call the proxy in its loop."""
        asyncio.run_coroutine_threadsafe(action, self._loop).result(30)

    def close(self) -> None:
        """Close it for good."""
        self.do(self.proxy.down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def away(kafka_cluster: Cluster) -> Iterator[Away]:
    """A broker that can't be reached."""
    made = Away(kafka_cluster)
    yield made
    made.close()


def test_kafka_is_away_at_the_start(away: Away, tmp_path: Path) -> None:
    """All roles serve at once, report what they can't do, and do it once Kafka is there; the same when Kafka goes."""
    prefix = _prefix()
    with KafkaReceiver(tmp_path / "node", away.bootstrap, prefix) as receiver:
        with Load("start", receiver.edge_url) as load:
            assert receiver.get("/readyz")["ready"]
            refusal = f"Kafka does not answer: {away.bootstrap}: connection refused"
            assert receiver.checks()["router"] == receiver.checks()["kafka"] == refusal
            load.more(50)
            away.do(away.proxy.up())
            connected = until(lambda: set(receiver.checks().values()) == {ALL_WELL}, "all parts well")
            load.more()
            away.proxy.black_hole()
            load.more(100)
            away.do(away.proxy.heal())
            until(lambda: set(receiver.checks().values()) == {ALL_WELL}, "all parts well")
            load.more()
        assert set(load.statuses()) == {204}
        routed = load.check(away.bootstrap, prefix)
    print(f"connected after {connected:.1f} s, routed after {routed:.1f} s")


def test_parts_wait_for_kafka(away: Away, tmp_path: Path) -> None:
    """An edge alone serves without Kafka until its disk is full; a router alone is not ready."""
    prefix = _prefix()
    settings = {"KAFKA__SPOOL_BYTES_MAX": str(1024 * 1024), "KAFKA__PARTITIONS": "1"}
    with (
        KafkaReceiver(tmp_path / "edge", away.bootstrap, prefix, "--role", "edge", **settings) as edge,
        KafkaReceiver(tmp_path / "router", away.bootstrap, prefix, "--role", "router", **settings) as router,
    ):
        refusal = f"Kafka does not answer: {away.bootstrap}: connection refused"
        assert router.get("/readyz") == {
            "ready": False,
            "checks": {"lanes": ALL_WELL, "router": refusal, "shutdown": ALL_WELL},
        }
        contents = [body(told(f"{'AU'[second % 2]}{second}", "s")[0], filler="x" * 60_000) for second in range(30)]
        answers = edge.post(*contents)
        kept = sum(answer.status == 204 for answer in answers)
        assert 10 < kept < 20
        assert [answer.status for answer in answers] == [204] * kept + [503] * (30 - kept)
        assert {answer.retry_after for answer in answers[kept:]} == {"5"}
        ready = httpx2.get(f"{edge.ops_url}/readyz", timeout=SECONDS_MAX)
        assert ready.status_code == 503
        assert ready.json()["checks"]["inbox"] == "the spool is full: it takes 1048576 bytes of the disk"
        assert httpx2.get(edge.edge_url, timeout=SECONDS_MAX).status_code == 503
        assert edge.spooled() == kept
        away.do(away.proxy.up())
        until(lambda: edge.get("/readyz")["ready"] and router.get("/readyz")["ready"], "ready")
        assert [answer.status for answer in edge.post(*contents[kept:])] == [204] * (30 - kept)
        until(lambda: edge.spooled() == 0, "drained")
        until(lambda: len(told_on(away.bootstrap, f"{prefix}.status", 1).get("s", ())) == 30, "routed")
        assert len(told_on(away.bootstrap, f"{prefix}.unavailable", 1)["s"]) == 15


def test_another_router_takes_over(pair: Pair, tmp_path: Path) -> None:
    """Another router routes the partitions of one that ends, or is killed, after a while."""
    edge, first = pair
    sessions = [f"moved-{number}" for number in range(4 * PARTITIONS)]
    took = {}
    with (
        KafkaReceiver(tmp_path / "second", edge.bootstrap, edge.prefix, "--role", "router") as second,
        KafkaReceiver(tmp_path / "third", edge.bootstrap, edge.prefix, "--role", "router") as third,
    ):
        routers = [first, second, third]

        def is_shared() -> bool:
            lanes = [each.lanes() for each in routers]
            return all(lanes) and sum(map(len, lanes)) == PARTITIONS

        until(is_shared, "the partitions shared out")
        for event, leaving in (("A1", third.kill), ("U2", second.end)):
            routers.pop()
            leaving()
            began = time.monotonic()
            for session_id in sessions:
                edge.tell(session_id, event)

            def is_routed(count: int = 3 - len(routers)) -> bool:
                on = told_on(edge.bootstrap, f"{edge.prefix}.status")
                return [len(on.get(each, ())) for each in sessions] == [count] * len(sessions)

            until(is_routed, f"{event} routed")
            took[leaving.__name__] = time.monotonic() - began
            until(is_shared, "the partitions shared out")
    print(f"routed again after {took}")


class Three(NamedTuple):
    """A cluster that can lose one of its brokers, and the processes on it."""

    cluster: Cluster
    receiver: KafkaReceiver

    def leader(self) -> int:
        """A broker that leads a partition of the inbox."""
        return self.cluster.leader(f"{self.receiver.prefix}.inbox")


@pytest.fixture(scope="module")
def three(can_run_kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:  # noqa: ARG001
    """Three brokers, which make a topic when a client asks for it, as they do by default."""
    properties = {"auto.create.topics.enable": "true"}
    with (
        Cluster(tmp_path_factory.mktemp("three"), brokers=3, properties=properties) as cluster,
        KafkaReceiver(tmp_path_factory.mktemp("node"), cluster.bootstrap, _prefix()) as receiver,
    ):
        until(lambda: set(receiver.checks().values()) == {ALL_WELL}, "all parts well")
        yield Three(cluster, receiver)


def test_topics_that_were_just_made_are_there(three: Three, cli: Command) -> None:
    """Any broker that is asked next knows the topics that `topics create` made; and `topics check` makes none."""
    place = "--kafka", three.cluster.bootstrap
    for _ in range(3):
        status, out, said = cli("topics", "create", *place, PREFIX=_prefix())
        assert (status, said) == (0, ""), out
    prefix = _prefix()
    for _ in range(2):
        status, out, _ = cli("topics", "check", *place, PREFIX=prefix)
        assert (status, out.count("does not exist")) == (1, 5)


def test_a_rolling_restart(three: Three) -> None:
    """All goes on while one broker after the other is restarted."""
    cluster, receiver = three
    with Load("rolling", receiver.edge_url) as load:
        for broker in range(cluster.count):
            load.more()
            cluster.restart(broker)
        load.more()
    routed = load.check(cluster.bootstrap, receiver.prefix)
    assert set(load.statuses()) == {204}
    print(f"longest {max(answer.seconds for answer in load.answers):.1f} s, routed after {routed:.1f} s")


def test_the_leader_stands_still(three: Three) -> None:
    """A broker that is paused for longer than any time limit is not waited for, and does no harm when it comes back."""
    cluster, receiver = three
    with Load("paused", receiver.edge_url) as load:
        load.more()
        with paused(cluster, three.leader()):
            began = time.monotonic()
            until(lambda: receiver.spooled() > 0, "on disk")
            noticed = until(lambda: receiver.checks()["router"] != ALL_WELL, "the router in trouble")
            until(lambda: time.monotonic() - began > STANDSTILL_SECONDS, "the standstill over")
            load.more()
        load.more(50)
        cluster.wait_until_ready(SECONDS_MAX)
    routed = load.check(cluster.bootstrap, receiver.prefix)
    assert set(load.statuses()) == {204}
    print(f"longest {max(answer.seconds for answer in load.answers):.1f} s, routed after {routed:.1f} s")
    print(f"the router in trouble after {noticed:.1f} s")


def test_brokers_are_killed(three: Three) -> None:
    """Without one broker all goes on; without two notifications are kept on disk until they are back."""
    cluster, receiver = three
    with Load("killed", receiver.edge_url) as load:
        load.more()
        cluster.kill(three.leader())
        load.more(100)
        until(lambda: receiver.spooled() == 0, "drained")
        cluster.kill(cluster.running()[0])
        until(lambda: receiver.spooled() > 50, "on disk")
        load.more(100)
        assert receiver.get("/readyz")["ready"]
        cluster.start()
        drained = until(lambda: receiver.spooled() == 0, "drained")
        load.more()
    routed = load.check(cluster.bootstrap, receiver.prefix)
    assert set(load.statuses()) == {204}
    print(f"drained {drained:.1f} s after the brokers were back, routed after {routed:.1f} s")
