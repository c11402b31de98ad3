"""Order per session on one machine: each notification of a session may come to another worker than the one before."""

import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from tests.kafka_cluster import Brokers, Cluster
from tests.kafka_process import KafkaReceiver, Load, children, lives, paused, until

WORKERS = 4
SENDERS = 24


@pytest.fixture
def receiver(kafka: Brokers, tmp_path: Path) -> Iterator[KafkaReceiver]:
    """A router and the most edges that a test starts."""
    prefix = f"t{secrets.token_hex(6)}"
    with KafkaReceiver(tmp_path / "node", kafka.bootstrap, prefix, "--workers", str(WORKERS)) as made:
        yield made


def _load(receiver: KafkaReceiver) -> Load:
    """Senders that post AVAILABLE and, once that is kept, UNAVAILABLE of one session after the other."""
    return Load("ordered", receiver.edge_url, senders=SENDERS, events=2, pause_seconds=0.002, scattered=True)


def _processes(receiver: KafkaReceiver) -> range:
    """The numbers of its operations ports; of several the first is the router's."""
    workers = int(receiver.options[-1])
    return range(1 if workers == 1 else 1 + workers)


def _edges(receiver: KafkaReceiver) -> list[int]:
    return sorted(children(receiver.running().pid))[1:]


def _spooled(receiver: KafkaReceiver) -> float:
    """The number of notifications on disk, 0 while the process that knows it is away."""
    with suppress(httpx2.HTTPError):
        return sum(map(receiver.spooled, _processes(receiver)))
    return 0


def _all_well(receiver: KafkaReceiver) -> bool:
    with suppress(httpx2.HTTPError):
        return all(set(receiver.checks(worker).values()) == {"ok"} for worker in _processes(receiver))
    return False


def test_an_outage_reverses_no_session(receiver: KafkaReceiver, kafka_cluster: Cluster) -> None:
    """Through outages, and while notifications from the disk are sent, each session's events stay in order."""
    until(lambda: _all_well(receiver), "all well")
    with _load(receiver) as load:
        for _ in range(3):
            with paused(kafka_cluster):
                until(lambda: _spooled(receiver) > 0, "on disk")
                load.more(300)
            load.more(300)
            until(lambda: _all_well(receiver), "drained")
    assert set(load.statuses()) == {204}
    load.check(receiver.bootstrap, receiver.prefix)


@pytest.mark.parametrize("worker", [0, 1])
def test_the_death_of_a_worker_reverses_no_session(
    worker: int, receiver: KafkaReceiver, kafka_cluster: Cluster
) -> None:
    """Workers are killed while notifications go to the disk, and while they are sent: all stays in order."""
    until(lambda: _all_well(receiver), "all well")
    with _load(receiver) as load:
        for _ in range(2):
            with paused(kafka_cluster):
                until(lambda: _spooled(receiver) > 0, "on disk")
                load.more(100)
                os.kill(_edges(receiver)[worker], signal.SIGKILL)
                load.more(200)
            os.kill(_edges(receiver)[worker], signal.SIGKILL)
            load.more(200)
            until(lambda: _all_well(receiver), "all well")
    load.check(receiver.bootstrap, receiver.prefix)
    assert receiver.log.read_text().count('"event":"worker_ended"') == 4


def _kill_all(receiver: KafkaReceiver) -> None:
    left = children(receiver.running().pid)
    receiver.kill()
    until(lambda: not any(map(lives, left)), "no worker left")


def test_another_number_of_workers_reverses_no_session(receiver: KafkaReceiver, kafka_cluster: Cluster) -> None:
    """Notifications on the disk at the end are sent first by any number of workers afterwards."""
    until(lambda: _all_well(receiver), "all well")
    with _load(receiver) as load:
        for workers in (2, 3, 1):
            with paused(kafka_cluster):
                until(lambda: _spooled(receiver) > 0, "on disk")
                load.more(200)
                _kill_all(receiver)
                receiver.options = ("--workers", str(workers))
                receiver.start()
                load.more(100)
            load.more(200)
            until(lambda: _all_well(receiver), "all well")
    load.check(receiver.bootstrap, receiver.prefix)
