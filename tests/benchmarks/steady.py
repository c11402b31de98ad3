"""The times of answers and topics at a steady rate: requests are posted when they are due, whatever the receiver does.

The time of an answer counts from when its request was due, so pauses of the receiver count too.
"""

import asyncio
import statistics
import time
import uuid
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import orjson
from aiokafka import AIOKafkaConsumer

_WARM_SECONDS = 3.0
_WAIT_SECONDS_MAX = 30.0
_POLL_MILLIS = 100


class Latencies(NamedTuple):
    """For all posts after a warm-up: milliseconds until the answer, and until the record could be read."""

    answers_millis: Sequence[float]
    records_millis: Sequence[float]

    def __str__(self) -> str:
        return "   ".join(
            f"{name} p50 {statistics.median(some):6.1f} ms  p99 {_percentile(some, 0.99):6.1f} ms"
            for name, some in (("answer", self.answers_millis), ("on the topic", self.records_millis))
        )


class _Load:
    """The idle connections, and when each notification was due, answered and read."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port
        self._head = (
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: application/cloudevents+json\r\n"
        )
        # In turn, so that no connection is idle until it is closed.
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()
        self.due: dict[str, float] = {}
        self.answered: dict[str, float] = {}
        self.read: dict[str, float] = {}

    async def post(self, due: float) -> None:
        """Post a notification of a new session."""
        event_id, session = str(uuid.uuid4()), str(uuid.uuid4())
        body = orjson.dumps(
            {
                "id": event_id,
                "source": f"https://api.example.com/qod/v0/sessions/{session}",
                "specversion": "1.0",
                "type": "org.camaraproject.qod.v0.qos-status-changed",
                "time": "2026-11-24T10:00:00.000Z",
                "data": {"sessionId": session, "qosStatus": "AVAILABLE"},
            }
        )
        connection = self._idle.popleft() if self._idle else await asyncio.open_connection(*self._address)
        reader, writer = connection
        self.due[event_id] = due
        writer.write(f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.split(b" ", 2)[1] in {b"200", b"202", b"204"}, head
        if b"content-length:" in head.lower():
            await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
        self.answered[event_id] = time.monotonic()
        self._idle.append(connection)

    def close(self) -> None:
        """Close the connections."""
        for _, writer in self._idle:
            writer.close()


async def steady(url: str, token: str, bootstrap: str, topic: str, *, rate: int, seconds: float) -> Latencies:
    """Post at this rate for this long, and wait until all records can be read from the topic."""
    load = _Load(url, token)
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, isolation_level="read_committed", auto_offset_reset="latest"
    )
    await consumer.start()
    await consumer.seek_to_end()
    reading = asyncio.create_task(_read(consumer, load))
    try:
        began = time.monotonic()
        posting = []
        for number in range(round(rate * (seconds + _WARM_SECONDS))):
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            posting.append(asyncio.create_task(load.post(due)))
        await asyncio.wait_for(asyncio.gather(*posting), _WAIT_SECONDS_MAX)
        async with asyncio.timeout(_WAIT_SECONDS_MAX):
            while len(load.read) < len(load.due):  # noqa: ASYNC110  # an event to wait for would cost what is measured
                await asyncio.sleep(0.05)
    finally:
        reading.cancel()
        await asyncio.wait({reading})
        await consumer.stop()
        load.close()
    measured = [event_id for event_id, due in load.due.items() if due - began >= _WARM_SECONDS]
    return Latencies(
        [1000 * (load.answered[each] - load.due[each]) for each in measured],
        [1000 * (load.read[each] - load.due[each]) for each in measured],
    )


async def _read(consumer: AIOKafkaConsumer, load: _Load) -> None:
    while True:
        found = await consumer.getmany(timeout_ms=_POLL_MILLIS)
        now = time.monotonic()
        for records in found.values():
            for record in records:
                load.read.setdefault(_id_of(record.headers, record.value), now)


def _id_of(headers: Sequence[tuple[str, bytes]], value: bytes) -> str:
    """The event's id: a header of our records, a member of the others' values."""
    for name, text in headers:
        if name == "ce_id":
            return text.decode()
    return str(orjson.loads(value)["id"])


def _percentile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]
