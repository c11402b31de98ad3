"""The imports of a command: no more than it needs. `benchmarks/start.py` measures their cost."""

import subprocess
import sys
from pathlib import Path

import pytest

from receiver.process.directory import open_directory
from receiver.settings import Settings
from tests.limits import SECONDS_MAX

#: Modules that add 20 ms or more to a command's start.
_SERVING = {"prometheus_client", "starlette", "structlog", "uvicorn", "uvloop"}
_CLIENTS = {"aiokafka", "httpx2", "tenacity"}
_TOKENS = {"cryptography", "jwt"}
_RUN = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
from receiver.cli import run
run(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        ("--version", {"receiver.settings", "rich", "asyncio", "apsw", *_SERVING, *_CLIENTS, *_TOKENS}),
        ("--help", {"receiver.settings", "asyncio", "apsw", *_SERVING, *_CLIENTS, *_TOKENS}),
        ("tail --help", {"apsw", "tomlkit", *_SERVING, *_CLIENTS, *_TOKENS}),
        ("tail status --no-follow", {"tomlkit", *_SERVING, *_CLIENTS, *_TOKENS}),
        ("sessions", {"tomlkit", *_SERVING, *_CLIENTS, *_TOKENS}),
        ("token mint --sender a", {"rich", "apsw", "tomlkit", *_SERVING, *_CLIENTS}),
        ("check-config", {"apsw", *_SERVING, *_CLIENTS, *_TOKENS}),
        ("check-data", {"tomlkit", *_SERVING, *_CLIENTS, *_TOKENS}),
        ("serve --help", {"aiokafka"}),
    ],
)
def test_a_command_imports_what_it_needs(arguments: str, unwanted: set[str], tmp_path: Path) -> None:
    """A command works without the modules that only others need."""
    open_directory(Settings(data=tmp_path / "qod-data")).close()
    command = [sys.executable, "-c", _RUN, *arguments.split()]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    assert ran.returncode == 0, ran.stderr
    imported = set(ran.stderr.splitlines()[-1].split())
    assert "receiver.cli" in imported
    assert not imported & unwanted


@pytest.mark.parametrize("module", ["receiver.process.embedded", "receiver.cli.serve", "receiver.cli.demo"])
def test_only_a_cluster_needs_a_client_of_kafka(module: str) -> None:
    """A process that serves a directory does not import aiokafka."""
    code = f"import sys, {module}; assert 'aiokafka' not in sys.modules, 'import it where a cluster is used'"
    subprocess.run([sys.executable, "-c", code], timeout=SECONDS_MAX, check=True)
