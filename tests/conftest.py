from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import settings

from receiver.router import Router
from receiver.telemetry import Telemetry
from tests.nodes import Node, SqliteBackend

# How long an example takes depends on what else the machine does.
settings.register_profile("receiver", deadline=None, database=None, print_blob=True)
settings.load_profile("receiver")


@pytest.fixture(params=[SqliteBackend])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> SqliteBackend:
    """A backend that is empty, one after the other: the contract holds for each of them."""
    made: SqliteBackend = request.param(tmp_path)
    return made


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
