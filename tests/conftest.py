from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import settings

from receiver.router import Router
from receiver.telemetry import Telemetry
from tests.guard import guarded
from tests.kafka_fixtures import kafka, kafka_cluster, topic_prefix
from tests.nodes import Node, SqliteBackend

__all__ = ["kafka", "kafka_cluster", "topic_prefix"]

guarded()

# How long an example takes depends on what else the machine does.
settings.register_profile("receiver", deadline=None, database=None, print_blob=True)
settings.load_profile("receiver")


@pytest.fixture
def backend(tmp_path: Path) -> SqliteBackend:
    """A backend that is empty."""
    return SqliteBackend(tmp_path)


@pytest.fixture
async def node(backend: SqliteBackend) -> AsyncIterator[Node]:
    """An open node of the backend."""
    async with backend.opened() as opened:
        yield opened


@pytest.fixture
def router() -> Router:
    """The router of a node without extra routes, which remembers a session for 96 hours."""
    return Router(prefix="qod", forget_after_seconds=96 * 3600)


@pytest.fixture
def telemetry() -> Telemetry:
    """Metrics of their own, and a log that nobody reads."""
    return Telemetry(StringIO())
