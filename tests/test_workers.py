"""`serve --workers`: several processes on one port, under a supervisor that restarts them and ends with them."""

import os
import secrets
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.kafka_cluster import HOST, Brokers, Cluster
from tests.kafka_process import PARTITIONS, KafkaReceiver, Load, children, lives, paused, refused, until

WORKERS = 2


@pytest.fixture
def receiver(kafka: Brokers, tmp_path: Path) -> Iterator[KafkaReceiver]:
    """Two edges and a router."""
    prefix = f"t{secrets.token_hex(6)}"
    with KafkaReceiver(tmp_path / "node", kafka.bootstrap, prefix, "--workers", str(WORKERS)) as made:
        yield made


def _processes(receiver: KafkaReceiver) -> list[int]:
    """The router and the edges, in this order."""
    return sorted(children(receiver.running().pid))


def _answers(receiver: KafkaReceiver, worker: int) -> bool:
    try:
        return bool(receiver.get("/readyz", worker)["ready"])
    except httpx2.HTTPError:
        return False


def _all_answer(receiver: KafkaReceiver) -> bool:
    return all(_answers(receiver, worker) for worker in range(1 + WORKERS))


def _requests(receiver: KafkaReceiver) -> list[float]:
    return [sum(receiver.samples("qod_receiver_http_requests_total", worker).values()) for worker in (1, 2)]


def test_workers_share_a_port(receiver: KafkaReceiver) -> None:
    """Both edges receive posts, the router routes them, and each process has an operations port."""
    until(lambda: _all_answer(receiver), "all ready")
    assert receiver.printed().splitlines() == [
        f"Notifications: {receiver.edge_url}",
        f"Operations:    {'  '.join(receiver.ops_urls)}",
    ]
    assert [sorted(receiver.checks(worker)) for worker in range(3)] == [
        ["lanes", "router", "shutdown"],
        ["inbox", "kafka", "shutdown", "spool"],
        ["inbox", "kafka", "shutdown", "spool"],
    ]
    with Load("shared", receiver.edge_url, senders=32) as load:
        load.more(100)
    load.check(receiver.bootstrap, receiver.prefix)
    assert sum(_requests(receiver)) == load.count
    # A process that is awake takes all connections that come at once, so these come one by one.
    until(lambda: receiver.tell("alone", "A1") and all(_requests(receiver)), "both edges have had some")
    assert receiver.end() < 30
    assert "Traceback" not in receiver.log.read_text()


def test_a_worker_that_is_killed_is_started_again(receiver: KafkaReceiver, kafka_cluster: Cluster) -> None:
    """The others go on; notifications on a killed edge's disk are sent when it is back, and nothing is lost."""
    until(lambda: _all_answer(receiver), "all ready")
    # A session's two events may come to two edges: with more events, some would be no changes any more.
    with Load("killed", receiver.edge_url, events=2) as load:
        processes = _processes(receiver)
        with paused(kafka_cluster):
            until(lambda: receiver.spooled(1) + receiver.spooled(2) > 50, "on disk")
            # The edge of a sender's connection is random.
            edge = max(1, 2, key=receiver.spooled)
            spooled = receiver.spooled(edge)
            for process in processes[0], processes[edge]:
                os.kill(process, signal.SIGKILL)
            load.more(50)
            took = until(lambda: _answers(receiver, edge), "the edge back")
            assert receiver.spooled(edge) >= spooled
        until(lambda: receiver.spooled(1) == receiver.spooled(2) == 0, "drained")
        until(lambda: _all_answer(receiver), "all ready")
    routed = load.check(receiver.bootstrap, receiver.prefix)
    print(f"the edge back after {took:.1f} s, without Kafka; the router's part routed after {routed:.1f} s")
    assert receiver.log.read_text().count('"event":"worker_ended"') == 2
    assert receiver.end(signal.SIGINT, group=True) < 30
    assert "Traceback" not in receiver.log.read_text()


def test_no_worker_is_left(receiver: KafkaReceiver, kafka_cluster: Cluster) -> None:
    """The workers end with their supervisor, also if it is killed, and while they start."""
    processes = _processes(receiver)
    receiver.kill()
    took = until(lambda: not any(map(lives, processes)), "no worker left")
    with paused(kafka_cluster):
        receiver.launch()
        until(lambda: len(children(receiver.running().pid)) == 1 + WORKERS, "workers started")
        assert receiver.end() < 30
        receiver.start()
        os.kill(_processes(receiver)[-1], signal.SIGKILL)
        until(lambda: len(children(receiver.running().pid)) == WORKERS, "a worker gone")
        until(lambda: len(children(receiver.running().pid)) == 1 + WORKERS, "a worker started again")
        ended = receiver.end()
    print(f"no worker was left after {took:.1f} s; one that waited for Kafka ended after {ended:.1f} s")
    assert ended < 30
    assert "Traceback" not in receiver.log.read_text()


async def test_edges_go_on_where_their_router_refuses(kafka: Brokers, tmp_path: Path) -> None:
    """The router reports unfit topics, and the edges keep all posts."""
    prefix = f"t{secrets.token_hex(6)}"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(f"{prefix}.status", PARTITIONS + 1, 1)])
    finally:
        await admin.close()
    differ = f"{prefix}.status has {PARTITIONS + 1} partitions, {prefix}.inbox has {PARTITIONS}"
    with KafkaReceiver(tmp_path / "node", kafka.bootstrap, prefix, "--workers", str(WORKERS)) as receiver:
        until(lambda: receiver.checks()["router"] == differ, "the router's refusal")
        assert {each.status for each in receiver.tell("s", "A1", "U2:N")} == {204}
        assert receiver.get("/readyz", 1)["ready"]
        assert differ in receiver.checks(1)["kafka"]


async def test_what_cannot_be_started_is_told_in_a_line(kafka: Brokers, tmp_path: Path) -> None:
    """A port in use, or an unreadable certificate, gives status 1 and the reason."""
    prefix = f"t{secrets.token_hex(6)}"
    could_not = "qod-receiver: the router could not be started:"
    too_high = "qod-receiver: from 65534 on there are not 3 ports for operations, one for each process"
    with socket.create_server((HOST, 0)) as other:
        taken = str(other.getsockname()[1])
        in_use = f"can't listen on {HOST} port {taken}: Address already in use"
        for options, line in (
            (("--port", taken), f"qod-receiver: {in_use}"),
            (("--ops-port", taken), f"{could_not} {in_use}"),
            (("--ops-port", "65534"), too_high),
        ):
            status, said = refused(
                tmp_path / secrets.token_hex(4), kafka.bootstrap, prefix, "--workers", str(WORKERS), *options
            )
            # other processes' lines don't matter
            assert (status, [each for each in said if not each.startswith("{")]) == (1, [line])
    settings = {"KAFKA__SECURITY_PROTOCOL": "SSL", "KAFKA__TLS_CA_FILE": str(tmp_path / "missing.pem")}
    status, said = refused(tmp_path / "node", kafka.bootstrap, prefix, "--workers", str(WORKERS), **settings)
    assert status == 1
    assert said == [
        "1 wrong setting:",
        "  kafka.tls_ca_file: a file that can be read: No such file or directory  "
        "(QOD_RECEIVER_KAFKA__TLS_CA_FILE in the environment)",
    ]
