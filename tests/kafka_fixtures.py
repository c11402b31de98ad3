"""The Kafka that tests share, started by the first that asks. Tests are separated by the names of their topics."""

import os
import secrets
from collections.abc import Iterator

import pytest

from tests.kafka_cluster import Brokers, Cluster, unavailable_reason


def need_kafka() -> None:
    """Skip the test where Kafka can't be run; under CI that is a failure."""
    reason = unavailable_reason()
    if reason and os.environ.get("CI") == "true":
        pytest.fail(f"THE KAFKA TESTS CANNOT RUN: {reason}")
    if reason:
        pytest.skip(f"THE KAFKA TESTS DO NOT RUN: {reason}")


@pytest.fixture(scope="session")
def can_run_kafka() -> None:
    """Requested by each fixture that starts a broker, so that `--quick` knows the tests that need one."""
    need_kafka()


@pytest.fixture(scope="session")
def kafka(can_run_kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:  # noqa: ARG001
    """A cluster of one broker for the whole run, or the one that KAFKA_BOOTSTRAP_SERVERS names."""
    if bootstrap := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield Brokers(bootstrap)
        return
    with Cluster(tmp_path_factory.mktemp("kafka")) as cluster:
        yield cluster


@pytest.fixture
def kafka_cluster(kafka: Brokers) -> Cluster:
    """The shared cluster if it is our own: for tests that use a proxy, or restart it."""
    if not isinstance(kafka, Cluster):
        pytest.skip("the cluster of KAFKA_BOOTSTRAP_SERVERS is not ours to disturb")
    return kafka


@pytest.fixture
def topic_prefix() -> str:
    """A prefix of topics, groups and transactions that no other test has."""
    return f"t{secrets.token_hex(6)}"
