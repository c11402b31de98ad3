"""Two thousand sessions with every fault of an operator; its ledger is then compared with our topics."""

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import simulated
from tests.kafka_cluster import Brokers
from tests.kafka_process import KafkaReceiver, until
from tests.operator_run import Operator, Topics, differences, faults
from tests.receiver_process import ReceiverProcess, run

SESSIONS = 2_000
#: An hour takes two minutes. The network has all faults, except for those that would take too long for a test.
OPTIONS = ("--speed", "30", "--available-after", "60", "--dialect", "all", "--faults", "all", "--log-level", "warning")
PLAN = """
slow_body_seconds = 0.2
retry_seconds = 0.1
retry_seconds_max = 1
delay_seconds_max = 60
"""
API = {"CLIENT_ID": "demo", "CLIENT_SECRET": "demo", "SENDER": "test"}
API |= {"RECONCILE_SECONDS": "0.5", "GRACE_SECONDS": "0.3"}


class Serving(NamedTuple):
    """A receiver: its URL, and a token for it."""

    edge_url: str
    ops_url: str
    token: str


def operator(directory: Path, plan: str) -> Iterator[Operator]:
    """A simulator with a plan of faults."""
    (directory / "plan.toml").write_text(plan)
    with simulated.serving(directory, *OPTIONS, "--plan", str(directory / "plan.toml"), "--seed", "5") as process:
        yield Operator(process.url)


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Operator]:
    """An operator with every fault."""
    yield from operator(tmp_path, PLAN)


@pytest.fixture
def half_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operator]:
    """The same, but one notification in ten is never sent; receivers that are started from now on know its API."""
    for found in operator(tmp_path, f"{PLAN}lost = 0.1\n"):
        for name, text in {**API, "BASE_URL": f"{found.url}/v1", "TOKEN_URL": f"{found.url}/token"}.items():
            monkeypatch.setenv(f"QOD_RECEIVER_API__{name}", text)
        yield found


@contextmanager
def on_a_directory(directory: Path) -> Iterator[Serving]:
    """A receiver on SQLite."""
    receiver = ReceiverProcess(directory)
    try:
        yield Serving(receiver.edge_url, receiver.ops_url, receiver.token)
        assert receiver.terminate() == 0
    finally:
        receiver.kill()
    assert "Traceback" not in receiver.log.read_text()


@contextmanager
def on_kafka(directory: Path, kafka: Brokers) -> Iterator[Serving]:
    """A receiver on Kafka."""
    prefix = f"t{secrets.token_hex(6)}"
    with KafkaReceiver(directory, kafka.bootstrap, prefix, AUTH__ANONYMOUS="false") as receiver:
        token = run("token", "mint", "--data", str(directory), "--sender", "test").strip()
        yield Serving(receiver.edge_url, receiver.ops_url, token)
        receiver.end()
    assert "Traceback" not in receiver.log.read_text()


def check_told(operator: Operator, topics: Topics) -> None:
    """Compare the ledger with the topics."""
    entries = operator.entries()
    kept = [each for each in entries if each["answer"] == 204]
    assert len(kept) > SESSIONS / 2
    found = list(faults(entries, topics))
    assert not found, f"{len(found)} faults: {found[:10]}"


def check_reconciled(operator: Operator, receiver: Serving) -> None:
    """Play, and compare the operator's sessions with the sessions table, and the ledger with the topics.

    The time of a comparison depends on the machine. So half of the sessions last, and some of them end once the API has
    told of all of them. Of the others, which end by themselves, only those that the API told of count.
    """
    topics = play(operator, receiver, lasting=0.5)
    found: list[str] = []

    def is_reconciled() -> bool:
        found[:] = differences(operator.entries(), operator.lives(), topics)
        return not found

    try:
        until(is_reconciled, "the operator's sessions", pause_seconds=1)
    except AssertionError:
        raise AssertionError(f"{len(found)} differences: {found[:10]}") from None
    entries = operator.entries()
    assert sum(each["unsent"] == "lost" for each in entries) > SESSIONS / 10
    ends_kept = {each["sessionId"] for each in entries if each["qosStatus"] == "UNAVAILABLE" and each["answer"] == 204}
    ends = {each["sessionId"] for each in operator.lives() if each["states"][-1]["qosStatus"] == "UNAVAILABLE"}
    assert len((ends & topics.enriched()) - ends_kept) > SESSIONS / 100
    check_told(operator, topics)


def play(operator: Operator, receiver: Serving, lasting: float = 0) -> Topics:
    """Play all sessions to their ends, except most that last, and wait until all kept notifications are routed."""
    topics = Topics(receiver.ops_url)
    asyncio.run(operator.play(receiver.edge_url, receiver.token, SESSIONS, seed=5, lasting=lasting))
    if lasting:
        until(lambda: operator.living() <= topics.enriched(), "the API told of all that last", pause_seconds=1)
        assert operator.end_some() > SESSIONS / 10
    until(lambda: operator.is_over(3), "all over")
    until(lambda: not topics.lag(), "all routed")
    return topics


@pytest.mark.long
def test_all_that_was_kept_comes_out_once(told: Operator, tmp_path: Path) -> None:
    """Each notification that was answered 204 has its effect once, and each oddity the right verdict."""
    with on_a_directory(tmp_path / "data") as receiver:
        check_told(told, play(told, receiver))


@pytest.mark.long
def test_what_was_never_sent_is_found(half_told: Operator, tmp_path: Path) -> None:
    """The sessions table equals the operator's, though many posts were never sent, and each end was told once."""
    with on_a_directory(tmp_path / "data") as receiver:
        check_reconciled(half_told, receiver)


def test_what_was_never_sent_is_found_on_kafka(half_told: Operator, tmp_path: Path, kafka: Brokers) -> None:
    """The same with Kafka."""
    with on_kafka(tmp_path / "data", kafka) as receiver:
        check_reconciled(half_told, receiver)
