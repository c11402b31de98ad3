"""The spool that edges share, within one process: a handed-over notification is kept, or refused in time."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, closing
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from receiver.backends.kafka.connection import KafkaConnection, Security
from receiver.backends.kafka.inbox import KafkaInbox
from receiver.backends.shared_spool import DistantSpool, SharedSpool
from receiver.backends.spool import Spool
from receiver.core.errors import Unavailable
from receiver.telemetry import Telemetry
from tests.samples import posted

SECONDS_MAX = 60


@pytest.fixture
async def nowhere() -> KafkaInbox:
    """An inbox without Kafka."""
    return KafkaInbox(KafkaConnection(["127.0.0.1:9"], Security().options()), "inbox", append_timeout_seconds=1)


@pytest.fixture
async def spool(nowhere: KafkaInbox, shared: SharedSpool, tmp_path: Path) -> AsyncIterator[Spool]:
    """The spool of edge 0, which takes four megabytes."""
    telemetry = Telemetry(StringIO())
    with closing(
        Spool(
            tmp_path / "0",
            nowhere,
            telemetry,
            bytes_max=4 << 20,
            append_timeout_seconds=SECONDS_MAX,
            opened=shared.set_open,
        )
    ) as made:
        yield made


@pytest.fixture
async def shared() -> AsyncIterator[SharedSpool]:
    """The edges' shared state."""
    with closing(SharedSpool()) as made:
        yield made


@asynccontextmanager
async def _running(job: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(job)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def _distant(shared: SharedSpool, nowhere: KafkaInbox, seconds: float = SECONDS_MAX) -> DistantSpool:
    return DistantSpool(shared, nowhere, append_timeout_seconds=seconds)


async def test_what_kafka_fails_to_take_opens_the_spool(shared: SharedSpool, spool: Spool, nowhere: KafkaInbox) -> None:
    """Two edges hand over thousands at once, each in its order, and all edges see that the spool is open."""
    assert not shared.is_open
    edges = _distant(shared, nowhere), _distant(shared, nowhere)
    async with _running(shared.serve(spool)), _running(edges[0].run()), _running(edges[1].run()):
        sessions = [f"{edge}-{number}" for edge in range(2) for number in range(1_500)]
        appends = [edges[int(each[0])].append(posted("A1", session_id=each)) for each in sessions]
        await asyncio.gather(*appends)
        assert shared.is_open
        assert spool.count == len(sessions)
        assert "see edge 0" in edges[1].notice
        assert edges[1].trouble == ""


async def test_a_full_spool_refuses_all_edges(shared: SharedSpool, spool: Spool, nowhere: KafkaInbox) -> None:
    """A notification that does not fit is refused with the keeper's reason, and the refused edge reports it."""
    edge = _distant(shared, nowhere)
    async with _running(shared.serve(spool)), _running(edge.run()):
        large = posted("A1")._replace(body=b"x" * 500_000)
        outcomes = [*await asyncio.gather(*(edge.append(large) for _ in range(20)), return_exceptions=True)]
        refused = [each for each in outcomes if isinstance(each, Unavailable)]
        assert 0 < len(refused) < len(outcomes)
        assert {each.reason for each in refused} == {"spool"}
        assert edge.trouble == refused[0].message == spool.trouble


async def test_while_its_keeper_is_away_all_has_its_time(
    shared: SharedSpool, spool: Spool, nowhere: KafkaInbox
) -> None:
    """Without edge 0 an append is refused after its time limit; those that still wait when edge 0 is back are kept."""
    impatient, patient = _distant(shared, nowhere, 0.3), _distant(shared, nowhere)
    async with _running(impatient.run()), _running(patient.run()):
        waiting = patient.append(posted("A1", session_id="waiting"))
        with pytest.raises(Unavailable) as caught:
            await impatient.append(posted("A1", session_id="refused"))
        assert caught.value.reason == "timeout"
        assert not waiting.done()
        serving = asyncio.create_task(shared.serve(spool))
        await waiting
        await patient.append(posted("U2", session_id="waiting"))
    serving.cancel()
    await asyncio.wait({serving})


async def test_a_keeper_that_ends_waits_for_the_others(shared: SharedSpool, spool: Spool, nowhere: KafkaInbox) -> None:
    """The last requests of the other edges are kept too, and then the keeper ends."""
    edge = _distant(shared, nowhere)
    serving = asyncio.create_task(shared.serve(spool))
    async with _running(edge.run()):
        await edge.append(posted("A1"))
        serving.cancel()
        await edge.append(posted("U2"))
        assert not serving.done()
    await asyncio.wait({serving}, timeout=SECONDS_MAX)
    assert serving.cancelled()
    assert spool.count == 2
