"""The means of a scenario: a receiver, the broker behind it with its faults, and the topics."""

import asyncio
import contextlib
import json
import re
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import httpx2
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from tests.kafka_cluster import Cluster
from tests.proxy import Proxy

#: A sender's time-out; operators have 5 to 15 s.
POST_SECONDS_MAX = 15.0
#: A notification that was answered 2xx and isn't on the topics this long after the repair counts as lost.
LOOK_SECONDS_MAX = 60.0
_WARM_SECONDS_MAX = 120.0
#: Less than any record, and more than the marker of a transaction, which the broker writes to the topic by itself.
_REFUSED_BYTES = "100"
_CONFIG_OF_THE_TOPIC = 1  # a value's source, in Kafka's DescribeConfigs
_SESSION_ID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Answer(NamedTuple):
    """The answer to a sender; no status if there was no answer in time, or the connection broke."""

    status: int | None
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether the sender concludes that its notification was kept."""
        return self.status is not None and 200 <= self.status < 300

    def __str__(self) -> str:
        took = f"{self.seconds:.1f} s" if self.seconds >= 1 else f"{self.seconds * 1000:.0f} ms"
        return f"no answer in {took}" if self.status is None else f"{self.status} in {took}"


class Found(NamedTuple):
    """The number of a notification's records on each of the two topics."""

    status: int = 0
    unavailable: int = 0

    @property
    def everywhere(self) -> bool:
        """Whether it is on both topics."""
        return bool(self.status and self.unavailable)

    @property
    def torn(self) -> bool:
        """Whether it is on one topic only."""
        return bool(self.status) != bool(self.unavailable)

    @property
    def copies(self) -> int:
        """The number of superfluous records."""
        return max(self.status - 1, 0) + max(self.unavailable - 1, 0)


class Receiver(Protocol):
    """A receiver under trial, see `receivers.Receiver`."""

    url: str
    token: str
    status_topic: str
    unavailable_topic: str
    readiness_url: str

    def kill(self) -> None:
        """End it with SIGKILL."""
        ...

    def start(self) -> None:
        """Start it, and return once it takes requests."""
        ...


@dataclass
class Running:
    """A receiver that runs already; shell commands kill and start it, if they are given."""

    url: str
    token: str
    status_topic: str
    unavailable_topic: str
    readiness_url: str
    kill_command: str = ""
    start_command: str = ""

    def kill(self) -> None:
        """Run the command that kills it."""
        run_command(self.kill_command)

    def start(self) -> None:
        """Run the command that starts it, and wait for any answer."""
        run_command(self.start_command)
        deadline = time.monotonic() + LOOK_SECONDS_MAX
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx2.HTTPError):
                httpx2.get(self.url, timeout=5)
                return
            time.sleep(0.1)
        raise AssertionError(f"nothing answers at {self.url}")


class Broker(Protocol):
    """The broker behind the receiver."""

    bootstrap: str
    """Where we get to it, past its faults."""

    async def away(self, how: Literal["gone", "still"]) -> None:
        """Let connections be refused, or stay open without answers."""
        ...

    async def back(self) -> None:
        """End all faults."""
        ...


class OwnBroker:
    """A cluster of ours with one broker, and the proxy between it and its clients."""

    def __init__(self, cluster: Cluster, proxy: Proxy) -> None:
        self.bootstrap = cluster.bootstrap
        self.behind_proxy = cluster.way().bootstrap
        self.proxy = proxy
        self._cluster = cluster
        self._paused = False

    async def away(self, how: Literal["gone", "still"]) -> None:
        """See Broker."""
        if how == "gone":
            await asyncio.to_thread(self._cluster.stop)
        else:
            self._cluster.pause()
            self._paused = True

    async def back(self) -> None:
        """See Broker."""
        if self._paused:
            self._cluster.resume()
            self._paused = False
        await asyncio.to_thread(self._cluster.start)


class CommandedBroker:
    """Another's broker; shell commands take it away and bring it back."""

    def __init__(self, bootstrap: str, away_command: str, back_command: str) -> None:
        self.bootstrap = bootstrap
        self._away_command, self._back_command = away_command, back_command

    async def away(self, _how: Literal["gone", "still"]) -> None:
        """See Broker. The command decides which of both happens."""
        await asyncio.to_thread(run_command, self._away_command)

    async def back(self) -> None:
        """See Broker."""
        await asyncio.to_thread(run_command, self._back_command)


@asynccontextmanager
async def own_broker(cluster: Cluster) -> AsyncIterator[OwnBroker]:
    """A running cluster with a proxy in front of its broker."""
    ((listen, target),) = cluster.way().proxies
    async with Proxy(listen, target) as proxy:
        yield OwnBroker(cluster, proxy)


class Trial:
    """A receiver under trial. Every notification has a session of its own, by whose id it is found again.

    If the topics get no new record for `quiet_seconds`, no more are expected.
    """

    def __init__(self, receiver: Receiver, broker: Broker, *, can_kill: bool = True, quiet_seconds: float = 8) -> None:
        self.receiver, self.broker = receiver, broker
        self.can_kill = can_kill
        self._quiet_seconds = quiet_seconds
        self._sessions: set[str] = set()
        self._bodies: dict[str, bytes] = {}

    def new(self) -> str:
        """The id of a new session."""
        session_id = str(uuid.uuid4())
        self._sessions.add(session_id)
        self._bodies[session_id] = _body(session_id)
        return session_id

    async def post(
        self, session_id: str, *, seconds_max: float = POST_SECONDS_MAX, client: httpx2.AsyncClient | None = None
    ) -> Answer:
        """Post the session's notification, the same each time. Without a client the post has its own connection."""
        if client is None:
            async with httpx2.AsyncClient() as own:
                return await self.post(session_id, seconds_max=seconds_max, client=own)
        headers = {"authorization": f"Bearer {self.receiver.token}", "content-type": "application/cloudevents+json"}
        began = time.monotonic()
        status = None
        with contextlib.suppress(httpx2.HTTPError, TimeoutError):
            async with asyncio.timeout(seconds_max):
                content = self._bodies[session_id]
                status = (
                    await client.post(self.receiver.url, content=content, headers=headers, timeout=seconds_max)
                ).status_code
        return Answer(status, time.monotonic() - began)

    async def warm_up(self) -> None:
        """Post a notification again and again until it is kept and on both topics."""
        async with asyncio.timeout(_WARM_SECONDS_MAX):
            session_id = self.new()
            while not (await self.post(session_id)).kept:  # noqa: ASYNC110  # there is no event to wait for
                await asyncio.sleep(0.2)
            found = await self.look({session_id}, quiet_seconds=0)
        assert found[session_id].everywhere, f"{self.receiver.url} answered 2xx, and nothing came on the topics"

    async def readiness(self) -> tuple[int | None, str]:
        """Status and body of the readiness check; of our own body only the checks that fail."""
        try:
            async with httpx2.AsyncClient() as client:
                answer = await client.get(self.receiver.readiness_url, timeout=POST_SECONDS_MAX)
        except httpx2.HTTPError as error:
            return None, type(error).__name__
        with contextlib.suppress(ValueError, LookupError, AttributeError, TypeError):
            checks = json.loads(answer.content)["checks"]
            told = [f"{name}: {value}" for name, value in checks.items() if value != "ok"]
            return answer.status_code, "; ".join(told) or "all ok"
        return answer.status_code, " ".join(answer.text.split())

    async def kill(self) -> None:
        """Kill the receiver with SIGKILL, if that is possible."""
        if self.can_kill:
            await asyncio.to_thread(self.receiver.kill)

    async def start(self) -> None:
        """Start it again, if it was killed."""
        if self.can_kill:
            await asyncio.to_thread(self.receiver.start)

    async def look(self, wanted: Collection[str], *, quiet_seconds: float | None = None) -> Mapping[str, Found]:
        """Count each notification's records, once those wanted are there and no more come, or time is up."""
        topics = self.receiver.status_topic, self.receiver.unavailable_topic
        counts: dict[str, dict[str, int]] = {topic: dict.fromkeys(self._sessions, 0) for topic in topics}
        quiet_seconds = self._quiet_seconds if quiet_seconds is None else quiet_seconds
        consumer = AIOKafkaConsumer(
            *topics,
            bootstrap_servers=self.broker.bootstrap,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        await consumer.start()
        try:
            began = news_at = time.monotonic()
            while time.monotonic() < began + LOOK_SECONDS_MAX:
                for at, records in (await consumer.getmany(timeout_ms=200)).items():
                    news_at = time.monotonic()
                    for record in records:
                        if session_id := self._session_of(record.key, record.value):
                            counts[at.topic][session_id] += 1
                there = all(counts[topic][session_id] for topic in topics for session_id in wanted)
                if there and time.monotonic() >= news_at + quiet_seconds:
                    break
        finally:
            await consumer.stop()
        return {each: Found(*(counts[topic][each] for topic in topics)) for each in self._sessions}

    @asynccontextmanager
    async def refused_topic(self) -> AsyncIterator[None]:
        """For as long as the block lasts, let the broker refuse every record for the unavailable topic as too large."""
        topic = self.receiver.unavailable_topic
        before = await self._topic_config(topic)
        await self._configure(topic, before | {"max.message.bytes": _REFUSED_BYTES})
        try:
            yield
        finally:
            await self._configure(topic, before)

    def _session_of(self, key: bytes | None, value: bytes | None) -> str | None:
        """The session of a record: its key, or else the first session that its value names."""
        for found in _SESSION_ID.findall((key or b"") + b" " + (value or b"")):
            session_id = str(found, "ascii")
            if session_id in self._sessions:
                return session_id
        return None

    async def _topic_config(self, topic: str) -> dict[str, str]:
        """The settings of the topic itself, which a change has to repeat."""
        async with self._admin() as admin:
            (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
        ((*_, entries),) = answer.resources
        return {entry[0]: entry[1] for entry in entries if entry[3] == _CONFIG_OF_THE_TOPIC}

    async def _configure(self, topic: str, config: Mapping[str, str]) -> None:
        async with self._admin() as admin:
            resource = ConfigResource(ConfigResourceType.TOPIC, topic, configs=dict(config))
            (answer,) = await admin.alter_configs([resource])
        assert not answer.resources[0][0], f"{topic} can't be configured: {answer.resources}"

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.broker.bootstrap)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()


def _body(session_id: str) -> bytes:
    """A CAMARA notification, release 1.0 of Quality on Demand."""
    change = {"sessionId": session_id, "qosStatus": "UNAVAILABLE", "statusInfo": "NETWORK_TERMINATED"}
    envelope = {
        "id": session_id[::-1],
        "source": "https://operator.example/quality-on-demand",
        "specversion": "1.0",
        "type": "org.camaraproject.quality-on-demand.v1.qos-status-changed",
        "time": "2026-11-24T10:15:30Z",
        "datacontenttype": "application/json",
        "data": change,
    }
    return json.dumps(envelope).encode()


def run_command(command: str) -> None:
    """Run a command of a shell."""
    subprocess.run(command, shell=True, check=True, timeout=300)  # noqa: S602  # the user's own command
