"""The speed of receivers on Kafka, compared on one broker: `python -m tests.benchmarks.kafka`.

    throughput  notifications/s from 64 connections, until all answered ones can be read from the status topic
    latency     at 1,000/s, the time until the answer, and until the record can be read

It compares our receiver as one process and as two, Bento in two configurations, and a FastAPI handler: see `peers/`.
Throughput needs wrk. Each figure is the median of several rounds in which the receivers take turns, because machines
are noisy. The broker's Java is started as Kafka's own script starts it, and warmed up by all receivers first.
"""

import argparse
import asyncio
import os
import platform
import re
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition

from tests.benchmarks.peers.receivers import KINDS, Receiver, make_topics, missing
from tests.benchmarks.steady import Latencies, steady
from tests.kafka_cluster import AS_KAFKA_STARTS, Cluster

_SCRIPT = Path(__file__).with_name("notifications.lua")
_CONNECTIONS = 64
_RATE = 1_000
_QUIET_SECONDS = 1.5
_DRAIN_SECONDS_MAX = 120.0
_SETTLE_SECONDS = 5.0
_WARM_SECONDS = 15.0


class Throughput(NamedTuple):
    """A run's notifications/s that were answered, those that were also routed, and wrk's 99th percentile of the
    answers.
    """

    answered: float
    routed: float
    p99: str


@contextmanager
def _receiver(kind: str, directory: Path, bootstrap: str, partitions: int) -> Iterator[Receiver]:
    prefix = f"b{secrets.token_hex(4)}"
    uvloop.run(make_topics(bootstrap, prefix, partitions))
    receiver = Receiver(kind, directory / prefix, bootstrap, prefix)
    try:
        receiver.start()
        time.sleep(_SETTLE_SECONDS)  # a router joins its group, and a JVM gets warm
        yield receiver
        receiver.stop()
    finally:
        receiver.close()


def throughput(wrk: str, receiver: Receiver, bootstrap: str, seconds: int) -> Throughput:
    """Load the receiver as fast as it answers, and wait until all records are on the topic."""
    command = [wrk, "-t1", f"-c{_CONNECTIONS}", f"-d{seconds}s", "--latency", "-s", str(_SCRIPT), receiver.url]
    began = time.monotonic()
    told = subprocess.run([*command, "--", receiver.token], capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in told, told
    ended = time.monotonic()
    last_at, count = uvloop.run(_drained(bootstrap, receiver.status_topic))
    requests, p99 = re.search(r"(\d+) requests in", told), re.search(r"99%\s+(\S+)", told)
    assert requests, told
    assert p99, told
    # Notifications on their way when wrk stopped were kept, but not counted as answered.
    assert 0 <= count - int(requests[1]) <= _CONNECTIONS, f"{requests[1]} answered, {count} on the topic"
    answered = int(requests[1]) / (ended - began)
    return Throughput(answered, count / (max(last_at, ended) - began), p99[1])


async def _drained(bootstrap: str, topic: str) -> tuple[float, int]:
    """The time at which the last record of a topic could be read, and the number of records."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, each) for each in await _partitions(consumer, topic)]
        consumer.assign(partitions)
        ends, last_at = await consumer.end_offsets(partitions), time.monotonic()
        async with asyncio.timeout(_DRAIN_SECONDS_MAX):
            while time.monotonic() - last_at < _QUIET_SECONDS:
                await asyncio.sleep(0.05)
                now = await consumer.end_offsets(partitions)
                if now != ends:
                    ends, last_at = now, time.monotonic()
            count = 0
            while any([await consumer.position(each) < ends[each] for each in partitions]):
                count += sum(map(len, (await consumer.getmany(timeout_ms=200)).values()))
    finally:
        await consumer.stop()
    return last_at, count


async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> Sequence[int]:
    cluster = await consumer._client.fetch_all_metadata()  # noqa: SLF001  # its own metadata has only its topics
    return sorted(cluster.partitions_for_topic(topic))


def _throughputs(arguments: argparse.Namespace, kinds: Sequence[str], directory: Path, bootstrap: str) -> None:
    wrk = shutil.which("wrk")
    if wrk is None:
        sys.exit("wrk is not installed")
    measured: dict[str, list[Throughput]] = {kind: [] for kind in kinds}
    for _ in range(arguments.rounds):
        for kind in kinds:
            with _receiver(kind, directory, bootstrap, arguments.partitions) as receiver:
                measured[kind].append(throughput(wrk, receiver, bootstrap, arguments.seconds))
    for kind, some in measured.items():
        answered = statistics.median(each.answered for each in some)
        routed = statistics.median(each.routed for each in some)
        print(
            f"{KINDS[kind]:36} {answered:8,.0f} /s answered  {routed:8,.0f} /s routed  p99 {some[-1].p99}", flush=True
        )


def _warm(kinds: Sequence[str], directory: Path, bootstrap: str, partitions: int) -> None:
    """Let Java compile the broker's code, by each kind of load: that takes a minute, and until then all is slow."""
    for kind in kinds:
        with _receiver(kind, directory, bootstrap, partitions) as receiver:
            uvloop.run(_posted(receiver, bootstrap, _WARM_SECONDS))


def _posted(receiver: Receiver, bootstrap: str, seconds: float) -> Coroutine[Any, Any, Latencies]:
    return steady(receiver.url, receiver.token, bootstrap, receiver.status_topic, rate=_RATE, seconds=seconds)


def _latencies(arguments: argparse.Namespace, kinds: Sequence[str], directory: Path, bootstrap: str) -> None:
    for kind in kinds:
        with _receiver(kind, directory, bootstrap, arguments.partitions) as receiver:
            found = uvloop.run(_posted(receiver, bootstrap, arguments.seconds))
            print(f"{KINDS[kind]:36} {found}", flush=True)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["throughput", "latency"], help="one of them alone")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seconds", type=int, default=8, help="for each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=4)
    arguments = parser.parse_args()
    for kind in arguments.kinds:
        if reason := missing(kind):
            print(f"{KINDS[kind]} is left out: {reason}")
    kinds = [kind for kind in arguments.kinds if not missing(kind)]
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {arguments.partitions} partitions")
    with (
        tempfile.TemporaryDirectory(dir=Path.cwd()) as directory,
        Cluster(Path(directory, "kafka"), java_options=AS_KAFKA_STARTS) as cluster,
    ):
        _warm(kinds, Path(directory), cluster.bootstrap, arguments.partitions)
        if arguments.what in {"throughput", None}:
            _throughputs(arguments, kinds, Path(directory), cluster.bootstrap)
        if arguments.what in {"latency", None}:
            _latencies(arguments, kinds, Path(directory), cluster.bootstrap)


if __name__ == "__main__":
    main()
