"""The speed of routers that drain Kafka's inbox: `python -m tests.benchmarks.kafka_router`.

It measures 1 to 16 partitions, 1 and 2 routers, and a thousand to a million live sessions. Each run fills the inbox
first. The rate is that between a tenth and nine tenths of the way, so that starting and joining don't count. The
routers' metrics tell their progress.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2
import uvloop
from aiokafka.producer.message_accumulator import BatchBuilder

from receiver.backends.kafka.connection import KafkaConnection, Security
from receiver.backends.kafka.limits import BATCH_BYTES_MAX
from receiver.backends.kafka.records import inbox_record, partition_of
from receiver.backends.kafka.topics import TopicPlan, create
from receiver.core.notification import Notification
from receiver.core.router import Router
from tests.kafka_cluster import AS_KAFKA_STARTS, Cluster

_SECONDS_MAX = 600
_POLL_SECONDS = 0.1
_CHUNK = 20_000


class Case(NamedTuple):
    """A measurement: how many changes of status, after each of the live sessions has had one."""

    partitions: int
    routers: int
    sessions: int
    changes: int


CASES = (
    Case(1, 1, 100_000, 200_000),
    Case(4, 1, 100_000, 200_000),
    Case(16, 1, 100_000, 200_000),
    Case(4, 2, 100_000, 200_000),
    Case(16, 2, 100_000, 200_000),
    Case(4, 1, 1_000, 200_000),
    Case(4, 1, 1_000_000, 200_000),
)


def measure(cluster: Cluster, case: Case, prefix: str) -> float:
    """Measure the notifications per second that the routers decide on."""
    connection = KafkaConnection([cluster.bootstrap], Security().options())
    router = Router(prefix=prefix, forget_after_seconds=3600)
    plan = TopicPlan(prefix, router.topics, case.partitions, 1, 168, 168)
    uvloop.run(prepare(connection, plan, case))
    environment = cluster.bootstrap, prefix, str(case.partitions)
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(*environment)) for _ in range(case.routers)]
        return _rate(urls, case.sessions, case.changes)


async def prepare(connection: KafkaConnection, plan: TopicPlan, case: Case) -> None:
    """Make the topics, and fill the inbox."""
    await create(connection, plan)
    now = time.time_ns() // 1000
    producer = connection.producer(
        enable_idempotence=True, max_batch_size=BATCH_BYTES_MAX, max_request_size=2 * BATCH_BYTES_MAX
    )
    await producer.start()
    total = case.sessions + case.changes
    for first in range(0, total, _CHUNK):
        batches: dict[int, list[BatchBuilder]] = {}
        for number in range(first, min(first + _CHUNK, total)):
            made = notification(number, case.sessions, now)
            some = batches.setdefault(partition_of(made.key, case.partitions), [producer.create_batch()])
            key, value, timestamp, headers = inbox_record(made)
            if some[-1].append(timestamp=timestamp, key=key, value=value, headers=headers) is None:
                some.append(producer.create_batch())
                some[-1].append(timestamp=timestamp, key=key, value=value, headers=headers)
        for partition, some in batches.items():
            for batch in some:
                await (await producer.send_batch(batch, plan.inbox, partition=partition))
    await producer.stop()


def notification(number: int, sessions_count: int, now_micros: int) -> Notification:
    """The sessions in turn, each AVAILABLE first and then back and forth, so that every change is accepted."""
    change, session_number = divmod(number, sessions_count)
    session = f"{session_number * 2654435761 % 2**32:08x}-0000-4000-8000-{session_number:012x}"
    body = (
        b'{"id":"%d","source":"https://api.example.com/qod/v0/sessions/%b","specversion":"1.0",'
        b'"type":"org.camaraproject.qod.v0.qos-status-changed","time":"2026-11-24T10:%02d:%02d.000Z",'
        b'"data":{"sessionId":"%b","qosStatus":"%bAVAILABLE"}}'
    ) % (number, session.encode(), *divmod(change, 60), session.encode(), b"UN" if change % 2 else b"")
    return Notification(body, session, "benchmark", now_micros, "application/cloudevents+json", f"c-{number}", "")


@contextmanager
def serving(bootstrap: str, prefix: str, partitions: str) -> Iterator[str]:
    """A router's process; yields the URL of its operations port."""
    command = (sys.executable, "-m", "receiver", "serve", "--kafka", bootstrap, "--role", "router", "--ops-port", "0")
    environment = {"QOD_RECEIVER_PREFIX": prefix, "QOD_RECEIVER_KAFKA__PARTITIONS": partitions, "PATH": "/usr/bin"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[1]
        process.terminate()


def _rate(urls: Sequence[str], before: int, changes: int) -> float:
    samples: list[tuple[float, int]] = []
    deadline = time.monotonic() + _SECONDS_MAX
    while not samples or samples[-1][1] < before + changes:
        decided = sum(map(_decided, urls))
        samples.append((time.monotonic(), decided))
        assert samples[-1][0] < deadline, f"{decided} of {before + changes} in {_SECONDS_MAX} s"
        time.sleep(_POLL_SECONDS)
    within = [sample for sample in samples if changes / 10 <= sample[1] - before <= changes * 9 / 10]
    (began, first), (ended, last) = within[0], within[-1]
    return (last - first) / (ended - began)


def _decided(url: str) -> int:
    text = httpx2.get(f"{url}/metrics", timeout=30).text
    return sum(
        int(float(each)) for each in re.findall(r"^qod_receiver_notifications_total\S+ (\S+)", text, re.MULTILINE)
    )


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", type=int, help="only these, by number from 0")
    chosen = parser.parse_args().cases or range(len(CASES))
    with (
        tempfile.TemporaryDirectory(dir=Path.cwd()) as directory,
        Cluster(Path(directory), java_options=AS_KAFKA_STARTS) as cluster,
    ):
        for run, index in enumerate(chosen):
            case = CASES[index]
            rate = measure(cluster, case, f"b{run}")
            print(
                f"{case.partitions:3} partitions  {case.routers} routers  {case.sessions:9,} sessions  {rate:9,.0f} /s",
                flush=True,
            )


if __name__ == "__main__":
    main()
