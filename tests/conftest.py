import shutil
import tempfile
from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import settings

from receiver.core.router import Router
from receiver.telemetry import Telemetry
from tests.guard import guarded
from tests.kafka_fixtures import can_run_kafka, kafka, kafka_cluster, topic_prefix
from tests.nodes import Node, SqliteBackend

__all__ = ["can_run_kafka", "kafka", "kafka_cluster", "topic_prefix"]

guarded()

#: The room that a run needs at most, mostly for logs of brokers. On a full disk a receiver refuses notifications, and
#: half the tests would fail without naming the cause.
_FREE_BYTES_MIN = 1 << 30

# The time of an example depends on the machine's other work.
settings.register_profile("receiver", deadline=None, database=None, print_blob=True)
settings.load_profile("receiver")


def pytest_sessionstart() -> None:
    """Refuse to run when the disk is too full for it."""
    directory = tempfile.gettempdir()
    if (free := shutil.disk_usage(directory).free) < _FREE_BYTES_MIN:
        pytest.exit(f"{directory} has {free >> 20} MiB free; the tests need {_FREE_BYTES_MIN >> 20}", returncode=2)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for the first part of the tests."""
    parser.addoption("--quick", action="store_true", help="leave out what needs Kafka or Java, or is marked `long`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that `--quick` does."""
    if not config.getoption("quick"):
        return
    config.hook.pytest_deselected(items=[each for each in items if not _is_quick(each)])
    items[:] = filter(_is_quick, items)


def _is_quick(item: pytest.Item) -> bool:
    needs_kafka = isinstance(item, pytest.Function) and "can_run_kafka" in item.fixturenames
    return not needs_kafka and item.get_closest_marker("long") is None


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a case after its bytes if they are text. Compressed bytes contain the time at which they were made."""
    return argname if isinstance(val, bytes) and not val.isascii() else None


@pytest.fixture
def backend(tmp_path: Path) -> SqliteBackend:
    """An empty backend."""
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
    """Telemetry with its own metrics, and a log that is not kept."""
    return Telemetry(StringIO())
