"""A full disk of an edge that spools and of a node with one directory: it recovers by itself, and can start."""

import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from receiver.backends.reserve import Reserve
from receiver.backends.sqlite.node import ServedDirectory, SqliteReader
from receiver.core.errors import Unavailable
from receiver.core.router import Router
from tests.full_disk import fill, small_disk
from tests.kafka_cluster import Cluster
from tests.kafka_process import KafkaReceiver, paused, told_on, until
from tests.nodes import SESSIONS_TOPIC, Node, append, route
from tests.receiver_process import ReceiverProcess, tail
from tests.samples import body, posted, told

MIB = 1024 * 1024
BODY_BYTES = 60_000
POSTS_MAX = 2_000
FAR_FUTURE = 2**62


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A disk of some megabytes, 8 by default."""
    with small_disk(tmp_path / "disk", getattr(request, "param", 8) * MIB) as directory:
        yield directory


def _large(session_id: str) -> bytes:
    return body(told("A1", session_id)[0], filler="x" * BODY_BYTES)


def _post_until_refused(receiver: KafkaReceiver) -> Sequence[str]:
    """Post until the answer is 503; returns the sessions that were answered 204."""
    kept: list[str] = []
    for first in range(0, POSTS_MAX, 20):
        numbers = range(first, first + 20)
        answers = receiver.post(*(_large(f"s{number}") for number in numbers))
        kept += [f"s{number}" for number, answer in zip(numbers, answers, strict=True) if answer.status == 204]
        if {answer.status for answer in answers} != {204}:
            assert {answer.status for answer in answers} <= {204, 503}
            return kept
    raise AssertionError(f"{POSTS_MAX} notifications did not fill the disk")


def _check(receiver: KafkaReceiver, kept: Sequence[str]) -> None:
    """New notifications are kept again, and those kept before are on the topic, once."""
    until(lambda: receiver.get("/readyz")["ready"] and receiver.spooled() == 0, "drained")
    # An append that Kafka takes too slowly goes to the disk, which may have no room: a sender tries again after a 503.
    until(lambda: {answer.status for answer in receiver.tell("last", "A1", "U2")} == {204}, "kept")
    topic = f"{receiver.prefix}.status"
    until(lambda: len(told_on(receiver.bootstrap, topic).get("last", ())) == 2, "routed")
    found = told_on(receiver.bootstrap, topic)
    assert {each: len(found.get(each, ())) for each in kept} == dict.fromkeys(kept, 1)


@pytest.mark.parametrize(
    ("disk", "filled_before", "killed"),
    [(8, False, False), (8, True, True), (24, False, True), (24, True, False)],
    indirect=["disk"],
)
def test_an_edge_with_a_full_disk_heals(
    disk: Path, filled_before: bool, killed: bool, kafka_cluster: Cluster, tmp_path: Path
) -> None:
    """Notifications that were kept until the disk was full are sent once Kafka is back, each once, and new ones are
    kept.
    """
    prefix = f"t{secrets.token_hex(6)}"
    with KafkaReceiver(tmp_path / "node", kafka_cluster.bootstrap, prefix, "--data", str(disk / "data")) as receiver:
        until(lambda: set(receiver.checks().values()) == {"ok"}, "all well")
        with paused(kafka_cluster):
            assert [answer.status for answer in receiver.tell("first", "A1")] == [204]
            if filled_before:
                fill(disk)
            kept = ["first", *_post_until_refused(receiver)]
            fill(disk)
            assert "full" in receiver.checks()["inbox"]
            if killed:
                receiver.kill()
                receiver.start()
        _check(receiver, kept)
        receiver.end()
    assert "Traceback" not in receiver.log.read_text()


@contextmanager
def _taking_all_room(disk: Path) -> Iterator[None]:
    """For as long as the block lasts, another program takes any room at once."""
    done = threading.Event()

    def take() -> None:
        while not done.is_set():
            fill(disk)

    taking = threading.Thread(target=take)
    taking.start()
    try:
        yield
    finally:
        done.set()
        taking.join()


def test_an_edge_without_any_room_goes_on_with_kafka(disk: Path, kafka_cluster: Cluster, tmp_path: Path) -> None:
    """If another program takes the reserve, Kafka still gets all notifications, and none twice."""
    prefix = f"t{secrets.token_hex(6)}"
    with KafkaReceiver(tmp_path / "node", kafka_cluster.bootstrap, prefix, "--data", str(disk / "data")) as receiver:
        until(lambda: set(receiver.checks().values()) == {"ok"}, "all well")
        with _taking_all_room(disk):
            with paused(kafka_cluster):
                kept = _post_until_refused(receiver)
            _check(receiver, kept)
            receiver.kill()
        (disk / "filler").unlink()
        receiver.start()
        _check(receiver, kept)
        receiver.end()


def _post_to_node(receiver: ReceiverProcess, *contents: bytes) -> list[int]:
    headers = {"authorization": f"Bearer {receiver.token}", "content-type": "application/json"}
    with httpx2.Client(headers=headers, timeout=30) as client:
        return [client.post(receiver.edge_url, content=content).status_code for content in contents]


def _checks(receiver: ReceiverProcess) -> str:
    return str(httpx2.get(f"{receiver.ops_url}/readyz", timeout=30).json()["checks"]["inbox"])


@pytest.mark.long
def test_a_node_with_a_full_disk_heals(disk: Path, tmp_path: Path) -> None:
    """Kept notifications are routed in the room of the reserve, also after a kill; with room new ones are kept."""
    directory = disk / "data"
    directory.mkdir()
    for name in ("log", "out"):  # a log on the same disk would be lost
        (directory / name).symlink_to(tmp_path / name)
    (disk / "filler").write_bytes(b"x" * 3 * MIB)
    receiver = ReceiverProcess(directory)
    try:
        kept: list[str] = []
        while len(kept) < POSTS_MAX:
            session_id = f"s{len(kept)}"
            if _post_to_node(receiver, _large(session_id)) != [204]:
                break
            kept.append(session_id)
        fill(disk)
        receiver.kill()
        token = receiver.token
        receiver = ReceiverProcess(directory, mint=False)
        receiver.token = token
        receiver.wait_until_routed(0)
        assert [each["key"] for each in tail(directory, "status")] == kept
        until(lambda: _checks(receiver).startswith("the disk of the data directory is full: 1536 KiB of room "), "told")
        assert _post_to_node(receiver, _large("refused")) == [503]
        (disk / "filler").unlink()
        until(lambda: _checks(receiver) == "ok", "room seen")
        assert receiver.post(body(told("A1", "last")[0])) == [204]
        assert [each["key"] for each in tail(directory, "status")] == [*kept, "last"]
        assert receiver.terminate() == 0
    finally:
        receiver.process.kill()
        receiver.process.wait()
    assert "Traceback" not in receiver.log.read_text()


async def _append_until_refused(node: ServedDirectory, name: str) -> int:
    for number in range(POSTS_MAX):
        session_id = f"{name}-{number}"
        try:
            await node.inbox.append(posted("A1", session_id=session_id)._replace(body=_large(session_id)))
        except Unavailable:
            return number
    raise AssertionError(f"{POSTS_MAX} notifications did not fill the disk")


async def test_retention_makes_room_on_a_full_disk(disk: Path, router: Router) -> None:
    """Room that retention makes goes back to the disk until the reserve is whole; then all goes on as before."""
    directory = disk / "data"
    node = ServedDirectory(directory, sessions_topic=SESSIONS_TOPIC, append_timeout_seconds=30)
    whole = Node(node.inbox, node.lane, SqliteReader(directory, SESSIONS_TOPIC))
    try:
        for round_number in range(3):
            kept = await _append_until_refused(node, f"{round_number}")
            assert kept > 10
            fill(disk)
            await route(whole, router)
            assert node.lane.lag == 0
            assert "full" in node.inbox.trouble
            while node.inbox.trouble:
                await node.retain(FAR_FUTURE, FAR_FUTURE, 50)
        await append(whole, posted("A1", session_id="last"))
    finally:
        node.close()


def test_a_reserve_has_blocks_of_its_own(disk: Path) -> None:
    """A reserve takes its bytes from the disk, or none if not all are there, and gives them back at once.

    It is safe with some room beside it.
    """
    reserve = Reserve(disk)
    assert reserve.size_bytes == MIB
    assert reserve.make()
    file = disk / "reserve"
    assert file.stat().st_blocks * 512 == MIB
    fill(disk)
    assert not reserve.make()
    assert file.stat().st_blocks * 512 == MIB
    assert reserve.release()
    assert not reserve.release()
    (disk / "taken").write_bytes(b"x" * (MIB - 8192))
    assert not reserve.make()
    assert file.stat().st_blocks == 0
    (disk / "filler").unlink()
    assert reserve.make()
    assert Reserve(disk).make()
