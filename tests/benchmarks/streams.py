"""A router of ours compared with Kafka Streams on one inbox: `python -m tests.benchmarks.streams`.

    throughput  notifications/s from a full inbox, by the records that can be read from the status topic
    latency     at 1,000/s appended to the inbox, the time until the record can be read

Both read the same records, pass over repetitions, and write status, ends and states exactly once (`exactly_once_v2`,
see `peers/Deduplicate.java`). Each is one process, the receivers take turns, and each figure is the median of several
rounds. It needs a JDK, and the Maven client for Kafka Streams itself.
"""

import argparse
import asyncio
import secrets
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition

from receiver.backends.kafka.connection import KafkaConnection, Security
from receiver.backends.kafka.records import inbox_record, partition_of
from receiver.backends.kafka.topics import TopicPlan
from receiver.core.router import Router
from tests.benchmarks.kafka_router import Case, notification, prepare, serving
from tests.kafka_cluster import AS_KAFKA_STARTS, Cluster, java_source, streams_jars

OURS, STREAMS = "qod-receiver", "Kafka Streams"
_SOURCE = Path(__file__).parent / "peers" / "Deduplicate.java"
_SECONDS_MAX = 600.0
_POLL_SECONDS = 0.1
_RATE = 1_000
_WARM_SECONDS = 15.0


@contextmanager
def _running(kind: str, bootstrap: str, prefix: str, partitions: int, directory: Path) -> Iterator[None]:
    if kind == OURS:
        with serving(bootstrap, prefix, str(partitions)):
            yield
        return
    arguments = [bootstrap, prefix, "1", str(directory / prefix)]
    with subprocess.Popen(java_source(streams_jars(), _SOURCE, *arguments), stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def _plan(prefix: str, partitions: int) -> TopicPlan:
    return TopicPlan(prefix, Router(prefix=prefix, forget_after_seconds=3600).topics, partitions, 1, 168, 168)


async def _ends(consumer: AIOKafkaConsumer, topic: str, partitions: int) -> int:
    """The end of a topic, over all partitions; each marker of a transaction counts as one."""
    return sum((await consumer.end_offsets([TopicPartition(topic, each) for each in range(partitions)])).values())


async def _throughput(bootstrap: str, topic: str, partitions: int, case: Case) -> float:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed")
    await consumer.start()
    samples: list[tuple[float, int]] = []
    total = case.sessions + case.changes
    try:
        async with asyncio.timeout(_SECONDS_MAX):
            while not samples or samples[-1][1] < total:
                samples.append((time.monotonic(), await _ends(consumer, topic, partitions)))
                await asyncio.sleep(_POLL_SECONDS)
    finally:
        await consumer.stop()
    within = [each for each in samples if total / 10 <= each[1] <= total * 9 / 10]
    (began, first), (ended, last) = within[0], within[-1]
    return (last - first) / (ended - began)


async def _latency(bootstrap: str, prefix: str, partitions: int, seconds: float) -> Sequence[float]:
    """The milliseconds from the append of each notification until its record can be read."""
    connection = KafkaConnection([bootstrap], Security().options())
    producer = connection.producer(enable_idempotence=True, linger_ms=0)
    consumer = AIOKafkaConsumer(
        f"{prefix}.status", bootstrap_servers=bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
    )
    await producer.start()
    await consumer.start()
    count = round(_RATE * (seconds + _WARM_SECONDS))
    appended: dict[bytes, float] = {}
    read: dict[bytes, float] = {}

    async def reading() -> None:
        while len(read) < count:
            found = await consumer.getmany(timeout_ms=100)
            now = time.monotonic()
            for record in (each for some in found.values() for each in some):
                read.setdefault(record.key, now)

    try:
        task, began = asyncio.create_task(reading()), time.monotonic()
        for number in range(count):
            await asyncio.sleep(max(0.0, began + number / _RATE - time.monotonic()))
            made = notification(number, count, time.time_ns() // 1000)
            key, value, timestamp, headers = inbox_record(made)
            appended[key] = time.monotonic()
            await producer.send(
                f"{prefix}.inbox",
                value,
                key,
                partition=partition_of(made.key, partitions),
                timestamp_ms=timestamp,
                headers=headers,
            )
        async with asyncio.timeout(_SECONDS_MAX):
            await task
    finally:
        await consumer.stop()
        await producer.stop()
    warm = began + _WARM_SECONDS
    return [1000 * (read[key] - at) for key, at in appended.items() if at >= warm]


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    partitions, case = arguments.partitions, Case(arguments.partitions, 1, arguments.sessions, 2 * arguments.sessions)
    rates: dict[str, list[float]] = {OURS: [], STREAMS: []}
    waits: dict[str, list[tuple[float, float]]] = {OURS: [], STREAMS: []}
    with (
        tempfile.TemporaryDirectory(dir=Path.cwd()) as directory,
        Cluster(Path(directory, "kafka"), java_options=AS_KAFKA_STARTS) as cluster,
    ):
        connection, bootstrap = KafkaConnection([cluster.bootstrap], Security().options()), cluster.bootstrap
        for _ in range(arguments.rounds):
            for kind, some_rates in rates.items():
                prefix = f"b{secrets.token_hex(4)}"
                uvloop.run(prepare(connection, _plan(prefix, partitions), case))
                with _running(kind, bootstrap, prefix, partitions, Path(directory)):
                    some_rates.append(uvloop.run(_throughput(bootstrap, f"{prefix}.status", partitions, case)))
                prefix = f"b{secrets.token_hex(4)}"
                uvloop.run(prepare(connection, _plan(prefix, partitions), Case(partitions, 1, 0, 0)))
                with _running(kind, bootstrap, prefix, partitions, Path(directory)):
                    some = sorted(uvloop.run(_latency(bootstrap, prefix, partitions, arguments.seconds)))
                waits[kind].append((some[len(some) // 2], some[len(some) * 99 // 100]))
                print(f"{kind:14} {some_rates[-1]:9,.0f} /s  p50 {waits[kind][-1][0]:6.1f} ms", flush=True)
    for kind, measured in rates.items():
        p50, p99 = (statistics.median(each) for each in zip(*waits[kind], strict=True))
        rate = statistics.median(measured)
        print(f"{kind:14} {rate:9,.0f} /s   on the topic p50 {p50:6.1f} ms  p99 {p99:6.1f} ms")


if __name__ == "__main__":
    main()
