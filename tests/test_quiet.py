"""The logs when brokers go away under busy clients: ours say so, and asyncio reports no unawaited failure."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import ProducerFenced
from aiokafka.producer.transaction_manager import TransactionState

from receiver.backends.kafka.connection import KafkaConnection, end_producer
from receiver.process.clustered import clustered
from receiver.process.part import WHOLE
from receiver.process.routing import build_router
from receiver.settings import Settings
from receiver.telemetry import Telemetry
from tests.kafka_cluster import Cluster
from tests.samples import posted

FAILURES = 8
SECONDS_MAX = 300


class Failures(Telemetry):
    """Counts failures to drain a spool."""

    failures: list[str]

    def __init__(self, stream: StringIO) -> None:
        super().__init__(stream)
        self.failures = []

    def spool_failed(self, reason: str) -> None:
        """See Telemetry."""
        self.failures.append(reason)


@pytest.fixture
def three(can_run_kafka: None, tmp_path: Path) -> Iterator[Cluster]:  # noqa: ARG001
    """Three brokers, one of which may be stopped."""
    with Cluster(tmp_path / "three", brokers=3) as cluster:
        yield cluster


async def test_nothing_is_complained_of(three: Cluster, topic_prefix: str, tmp_path: Path) -> None:
    """While partitions have no leader, and while a node ends during that, asyncio has nothing to report."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    kafka = {
        "bootstrap_servers": three.bootstrap,
        "partitions": 4,
        "replication_factor": 1,
        "append_timeout_seconds": 1,
    }
    settings = Settings.model_validate({"prefix": topic_prefix, "data": tmp_path / "node", "kafka": kafka})
    told = Failures(StringIO())
    async with clustered(settings, told, build_router(settings), WHOLE) as node:
        jobs = [asyncio.create_task(job) for job in node.jobs()]
        await _until(lambda: not any({**node.troubles(), **node.notices()}.values()))
        appended = [node.inbox.append(posted("A1", session_id=f"s{each}")) for each in range(40)]
        three.kill(1)
        appended += [node.inbox.append(posted("A1", session_id=f"t{each}")) for each in range(40)]
        await asyncio.gather(*appended)
        told.failures.clear()
        # By then partitions are known to have no leader, which fails otherwise than a leader that does not answer.
        await _until(lambda: len(told.failures) >= FAILURES)
        for job in jobs:
            job.cancel()
        await asyncio.wait(jobs)
    gc.collect()
    assert not complaints, f"{len(complaints)}: {complaints[0]}"


async def _until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while not done():  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "state", [TransactionState.UNINITIALIZED, TransactionState.READY, TransactionState.FATAL_ERROR]
)
async def test_a_sender_that_died_fails_its_batches(state: TransactionState) -> None:
    """A sender that ends with an error fails its batches and raises nothing, in each state of a transaction."""
    producer = KafkaConnection(["127.0.0.1:9"], {}).producer(transactional_id="died")
    producer._txn_manager.state = state  # noqa: SLF001

    async def dies() -> None:
        raise ProducerFenced

    task = asyncio.create_task(dies())
    await asyncio.wait({task})
    producer._sender._fail_all(task)  # noqa: SLF001
    assert isinstance(producer._message_accumulator._exception, ProducerFenced)  # noqa: SLF001
    await end_producer(producer)
