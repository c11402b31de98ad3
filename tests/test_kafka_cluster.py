import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.abc import AbstractTokenProvider
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from aiokafka.helpers import create_ssl_context
from aiokafka.partitioner import DefaultPartitioner

from tests.kafka_cluster import PASSWORD, USER, Brokers, Cluster, JavaRecord, unavailable_reason
from tests.kafka_fixtures import need_kafka
from tests.kafka_process import lives, until
from tests.limits import SECONDS_MAX
from tests.proxy import Proxy

_HEADERS = [("ce_id", b"1"), ("ce_time", b"2026-11-24T10:00:00Z"), ("list", b"a,b:c"), ("empty", b"")]


@pytest.fixture(scope="module")
def three_brokers(can_run_kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:  # noqa: ARG001
    """A cluster that can lose one of its brokers."""
    with Cluster(tmp_path_factory.mktemp("three"), brokers=3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def secure_broker(can_run_kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:  # noqa: ARG001
    """A broker with TLS and SASL."""
    with Cluster(tmp_path_factory.mktemp("secure"), secure=True) as cluster:
        yield cluster


@asynccontextmanager
async def _producer(bootstrap: str, **options: Any) -> AsyncIterator[AIOKafkaProducer]:  # noqa: ANN401  # the client's
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, **options)
    try:
        await producer.start()
        yield producer
    finally:
        await producer.stop()


async def _create(bootstrap: str, topic: str, partitions: int = 1, replication: int = 1) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, partitions, replication)])
    finally:
        await admin.close()


async def _values(bootstrap: str, topic: str, count: int) -> list[bytes | None]:
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    try:
        await consumer.start()
        return [(await asyncio.wait_for(consumer.getone(), SECONDS_MAX)).value for _ in range(count)]
    finally:
        await consumer.stop()


@pytest.mark.usefixtures("kafka")
async def test_start_and_start_again(tmp_path: Path) -> None:
    """A broker starts, and a later one on its directory has its data after it was killed."""
    with Cluster(tmp_path) as cluster:
        await _create(cluster.bootstrap, "kept")
        async with _producer(cluster.bootstrap) as producer:
            await producer.send_and_wait("kept", b"1")
    with Cluster(tmp_path) as cluster:
        assert await _values(cluster.bootstrap, "kept", 1) == [b"1"]


async def test_restart(kafka_cluster: Cluster, topic_prefix: str) -> None:
    """A restarted broker has its data and its address, and clients that knew it go on."""
    bootstrap = kafka_cluster.bootstrap
    await _create(bootstrap, topic_prefix)
    async with _producer(bootstrap) as producer:
        await producer.send_and_wait(topic_prefix, b"1")
        await asyncio.to_thread(kafka_cluster.restart)
        await producer.send_and_wait(topic_prefix, b"2")
    assert kafka_cluster.bootstrap == bootstrap
    assert await _values(bootstrap, topic_prefix, 2) == [b"1", b"2"]


async def test_java_reads_what_we_write(kafka: Brokers, topic_prefix: str) -> None:
    """The Java consumer reads partitions, offsets, timestamps, headers, keys and values as they were sent."""
    await _create(kafka.bootstrap, topic_prefix)
    async with _producer(kafka.bootstrap) as producer:
        await producer.send_and_wait(
            topic_prefix, b'{"a":\t1}\n', key=b"k", timestamp_ms=1_795_514_400_000, headers=_HEADERS
        )
        await producer.send_and_wait(topic_prefix, None, key=b"k", timestamp_ms=1)
        await producer.send_and_wait(topic_prefix, b"", timestamp_ms=2)
    assert await asyncio.to_thread(kafka.read_with_java, topic_prefix, count=3) == [
        JavaRecord(0, 0, 1_795_514_400_000, tuple(_HEADERS), b"k", b'{"a":\t1}\n'),
        JavaRecord(0, 1, 1, (), b"k", None),
        JavaRecord(0, 2, 2, (), None, b""),
    ]


async def test_java_partitions(kafka: Brokers, topic_prefix: str) -> None:
    """The Java producer gives keys the same partitions as the Python client."""
    await _create(kafka.bootstrap, topic_prefix, partitions=7)
    keys = [f"session-{number}" for number in range(50)]
    choose, partitions = DefaultPartitioner(), list(range(7))
    assert await asyncio.to_thread(kafka.java_partitions, topic_prefix, keys) == {
        key: choose(key.encode(), partitions, partitions) for key in keys
    }


async def _until_another_leads(cluster: Cluster, topic: str, asked: int, old: int) -> int:
    async with asyncio.timeout(SECONDS_MAX):
        while (leader := cluster.metadata(asked).leaders[topic, 0]) in {-1, old}:  # noqa: ASYNC110  # no event
            await asyncio.sleep(0.1)
    return leader


async def test_kill_the_leader(three_brokers: Cluster, topic_prefix: str) -> None:
    """When a leader is killed another takes over with all that was acknowledged, and the killed one catches up."""
    await _create(three_brokers.bootstrap, topic_prefix, replication=3)
    async with _producer(three_brokers.bootstrap) as producer:
        await producer.send_and_wait(topic_prefix, b"1")
        killed = three_brokers.leader(topic_prefix)
        three_brokers.kill(killed)
        await producer.send_and_wait(topic_prefix, b"2")
        assert three_brokers.leader(topic_prefix) != killed
    assert await _values(three_brokers.bootstrap, topic_prefix, 2) == [b"1", b"2"]
    await asyncio.to_thread(three_brokers.restart, killed)
    assert three_brokers.metadata(killed).in_sync[topic_prefix, 0] == {0, 1, 2}


async def test_pause_the_leader(three_brokers: Cluster, topic_prefix: str) -> None:
    """A paused broker loses its partitions, and is in sync again after it goes on."""
    await _create(three_brokers.bootstrap, topic_prefix, replication=3)
    three_brokers.wait_until_ready(SECONDS_MAX)
    paused = three_brokers.leader(topic_prefix)
    three_brokers.pause(paused)
    await _until_another_leads(three_brokers, topic_prefix, three_brokers.running()[0], paused)
    three_brokers.resume(paused)
    await asyncio.to_thread(three_brokers.wait_until_ready, SECONDS_MAX)
    assert three_brokers.metadata(paused).in_sync[topic_prefix, 0] == {0, 1, 2}


@pytest.mark.usefixtures("kafka")
def test_no_broker_is_left(tmp_path: Path) -> None:
    """A broker ends when the process that started it is killed."""
    code = (
        "import sys, time, pathlib, tests.kafka_cluster as k\n"
        "cluster = k.Cluster(pathlib.Path(sys.argv[1])); cluster.start()\n"
        "print(cluster._processes[0].pid, flush=True); time.sleep(3600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        os.kill(pid, 0)
        process.kill()
    until(lambda: not lives(pid), "the broker has ended")


class _Token(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    """A fixed token."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def token(self) -> str:
        """The token."""
        return self._token


def _options(broker: Cluster, mechanism: str, password: str) -> dict[str, Any]:
    made = {"security_protocol": "SASL_SSL", "sasl_mechanism": mechanism}
    made |= {"ssl_context": create_ssl_context(cafile=str(broker.credentials.ca))}
    if mechanism == "OAUTHBEARER":
        token = broker.credentials.token(lifetime_seconds=60 if password == PASSWORD else -3600)
        return {**made, "sasl_oauth_token_provider": _Token(token)}
    return {**made, "sasl_plain_username": USER, "sasl_plain_password": password}


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_sasl(secure_broker: Cluster, mechanism: str, topic_prefix: str) -> None:
    """A client with the password, or with a valid token, can write over TLS; others are refused."""
    await _create(secure_broker.bootstrap, topic_prefix)
    bootstrap = secure_broker.secured("SASL")
    async with _producer(bootstrap, **_options(secure_broker, mechanism, PASSWORD)) as producer:
        await producer.send_and_wait(topic_prefix, b"1")
    with pytest.raises(KafkaError):
        async with _producer(bootstrap, **_options(secure_broker, mechanism, "wrong")):
            pass


async def test_tls(secure_broker: Cluster, topic_prefix: str) -> None:
    """The TLS listener takes a client without a certificate, the mutual one only a client with one."""
    await _create(secure_broker.bootstrap, topic_prefix)
    given = secure_broker.credentials
    without = create_ssl_context(cafile=str(given.ca))
    known = create_ssl_context(cafile=str(given.ca), certfile=str(given.certificate), keyfile=str(given.key))
    for listener, context in (("TLS", without), ("MUTUAL", known)):
        options = {"security_protocol": "SSL", "ssl_context": context}
        async with _producer(secure_broker.secured(listener), **options) as producer:
            await producer.send_and_wait(topic_prefix, b"1")
    with pytest.raises(KafkaError):
        async with _producer(secure_broker.secured("MUTUAL"), security_protocol="SSL", ssl_context=without):
            pass


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("false", pytest.skip.Exception)])
def test_without_java(ci: str, outcome: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Java and without a cluster the tests are skipped with the reason, and fail under CI."""
    for name, value in {"PATH": "", "JAVA_HOME": "", "KAFKA_BOOTSTRAP_SERVERS": "", "CI": ci}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(outcome, match="no Java 17 or newer and KAFKA_BOOTSTRAP_SERVERS is not set"):
        need_kafka()


def test_a_cluster_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cluster in the environment no Java is needed."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9092")
    assert unavailable_reason() == ""


async def test_a_way_through_proxies(kafka_cluster: Cluster, topic_prefix: str) -> None:
    """A client on a way uses the proxy alone; a record whose answer was lost is there once after a retry."""
    await _create(kafka_cluster.bootstrap, topic_prefix)
    way = kafka_cluster.way()
    ((listen, target),) = way.proxies
    async with Proxy(listen, target) as proxy, _producer(way.bootstrap, retry_backoff_ms=20) as producer:
        await producer.send_and_wait(topic_prefix, b"1")
        proxy.delay(0.1)
        began = time.monotonic()
        await producer.send_and_wait(topic_prefix, b"2")
        assert time.monotonic() - began > 0.2
        proxy.delay(0)
        proxy.lose_answers()
        sending = asyncio.create_task(producer.send_and_wait(topic_prefix, b"3"))
        assert await _values(kafka_cluster.bootstrap, topic_prefix, 3) == [b"1", b"2", b"3"]
        assert not sending.done()
        await proxy.heal()
        await sending
        await producer.send_and_wait(topic_prefix, b"4")
        assert proxy.faults["answer lost"] >= 1
    assert await _values(kafka_cluster.bootstrap, topic_prefix, 4) == [b"1", b"2", b"3", b"4"]


class _Line:
    """A connection through a proxy to a server that echoes what it got, and remembers it."""

    def __init__(self) -> None:
        self.got = b""
        self.ended = 0
        self._writers: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Proxy]:
        """The proxy, with a connection through it."""
        async with (
            await asyncio.start_server(self._serve, "127.0.0.1", 0) as server,
            Proxy(("127.0.0.1", 0), server.sockets[0].getsockname()) as self.proxy,
        ):
            await self.connect()
            assert await self.ask(b"first") == b"first"
            yield self.proxy
            for writer in self._writers:
                writer.close()

    async def connect(self) -> None:
        """Connect again."""
        self._reader, self._writer = await asyncio.open_connection(*self.proxy.listen)
        self._writers.append(self._writer)

    async def ask(self, request: bytes, seconds: float = SECONDS_MAX) -> bytes:
        """The answer to a request; fails if there is none in time."""
        self.say(request)
        return await self.answer(len(request), seconds)

    def say(self, request: bytes) -> None:
        """Send without waiting for an answer."""
        self._writer.write(request)

    async def answer(self, count: int, seconds: float = SECONDS_MAX) -> bytes:
        """The next bytes."""
        return await asyncio.wait_for(self._reader.readexactly(count), seconds)

    async def end(self) -> bytes:
        """All bytes until the other side ends the connection."""
        self._writer.write_eof()
        return await asyncio.wait_for(self._reader.read(), SECONDS_MAX)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(1000):
                self.got += chunk
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self.ended += 1
            writer.close()


@pytest.fixture
async def line() -> AsyncIterator[_Line]:
    """A line without faults."""
    made = _Line()
    async with made.open():
        yield made


async def test_proxy_passes_all(line: _Line) -> None:
    """By default a proxy carries all bytes in order, and the end of each direction."""
    sent = os.urandom(1_000_000)
    assert await line.ask(sent) == sent
    assert await line.end() == b""
    assert not +line.proxy.faults


@pytest.mark.long
async def test_proxy_delays(line: _Line) -> None:
    """A delay holds up each direction for its time, without changing the order or slowing later bytes."""
    line.proxy.delay(2, jitter_seconds=0.02)
    began = time.monotonic()
    for number in range(10):
        line.say(b"%d" % number)
        await asyncio.sleep(0.01)
    assert await line.answer(10) == b"0123456789"
    assert 4 < time.monotonic() - began < 30  # one after the other they would take 40 s
    assert line.proxy.faults["delayed"] >= 2


async def test_proxy_cuts(line: _Line) -> None:
    """A cut resets the present connections, and a new one works."""
    line.proxy.cut()
    with pytest.raises(ConnectionResetError):
        await line.ask(b"lost")
    await line.connect()
    assert await line.ask(b"again") == b"again"
    assert line.proxy.faults["reset"] == 1
    assert line.ended == 1


async def test_proxy_down(line: _Line) -> None:
    """A proxy that is down has reset its connections and refuses new ones, until it is up again at its address."""
    await line.proxy.down()
    with pytest.raises(ConnectionResetError):
        await line.ask(b"lost")
    with pytest.raises(ConnectionRefusedError):
        await line.connect()
    await line.proxy.up()
    await line.connect()
    assert await line.ask(b"again") == b"again"


async def test_proxy_black_hole(line: _Line) -> None:
    """Bytes in a black hole never arrive, on new connections too, and healing resets all of them."""
    line.proxy.black_hole()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await line.ask(b"lost", seconds=0.1)
        await line.connect()
    await line.proxy.heal()
    with pytest.raises(ConnectionResetError):
        await line.ask(b"lost")
    await line.connect()
    assert await line.ask(b"again") == b"again"
    assert line.got == b"firstagain"
    assert line.proxy.faults["swallowed"] == 2


async def test_proxy_holds(line: _Line) -> None:
    """Held bytes arrive when the proxy is healed, on the connection that they were sent on."""
    line.proxy.hold()
    with pytest.raises(TimeoutError):
        await line.ask(b"late", seconds=0.1)
    assert line.got == b"first"
    await line.proxy.heal()
    assert await line.answer(4) == b"late"
    assert line.proxy.faults["held"] == 1


async def test_proxy_loses_answers(line: _Line) -> None:
    """A request whose answer is lost has been delivered, once, and its connection is reset."""
    line.proxy.lose_answers()
    with pytest.raises(ConnectionResetError):
        await line.ask(b"delivered")
    assert line.got == b"firstdelivered"
    assert line.proxy.faults["answer lost"] == 1
    await line.proxy.heal()
    await line.connect()
    assert await line.ask(b"again") == b"again"


async def test_proxy_without_a_server() -> None:
    """A connection is ended if nothing listens behind the proxy."""
    async with Proxy(("127.0.0.1", 0), ("127.0.0.1", 1)) as proxy:
        reader, writer = await asyncio.open_connection(*proxy.listen)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
