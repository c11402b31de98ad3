"""The demonstration: as a process, and with other seeds than its own."""

import io
import os
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest
import structlog
from rich.console import Console

from receiver.demo import demonstrate
from tests.limits import SECONDS_MAX
from tests.receiver_process import COMMAND


@pytest.mark.long
def test_the_demonstration_ends_well() -> None:
    """`demo` ends with 0 if all results are right, and prints plain lines if its output is no terminal."""
    command = [*COMMAND, "demo", "--seconds", "3", "--sessions", "12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert all(line.isprintable() for line in done.stdout.splitlines())
    assert "11 of 11 sessions are in the state that was told last  ✓" in done.stdout


@pytest.mark.long
def test_the_demonstration_has_everything_that_it_is_to_show() -> None:
    """By default the sessions meet each end, repetitions, late events, unreadable bodies and a stranger."""
    done = subprocess.run([*COMMAND, "demo", "--seconds", "4"], capture_output=True, text=True, check=True)
    for line in (
        r"posted  #\d+ +\S+ +available, new id -> 204",
        r"posted  #\d+ +\S+ +[\w ]+, again -> 204",
        r"posted  #\d+ +\S+ +[\w ]+, retried -> 204",
        r"posted  #\d+ +\S+ +[\w ]+, dropped -> -",
        r"posted  #\d+ +\S+ +wrong token -> 401",
        r"posted  #\d+ +\S+ +body: [\w -]+ -> 400",
        r"routed  status +#\d+ +AVAILABLE, late",
        r"routed  unavailable #\d+ +DURATION_EXPIRED",
        r"routed  unavailable #\d+ +DELETE_REQUESTED",
        r"routed  unavailable #\d+ +NETWORK_TERMINATED",
        r"routed  unavailable #\d+ +no reason given",
        r"routed  dead-letter +malformed",
    ):
        assert re.search(line, done.stdout), f"no {line} in {done.stdout}"
    releases = set(re.findall(r"posted  #\d+ +(\S+)", done.stdout))
    assert releases == {"0.8", "0.9", "0.9-flat", "0.10", "0.11", "1.0", "1.1"}


@pytest.mark.long
def test_the_demonstration_can_be_ended_early() -> None:
    """At Ctrl-C `demo` drains its receiver, says so and ends with 0."""
    with subprocess.Popen(
        [*COMMAND, "demo", "--seconds", "60", "--sessions", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(("posted", "routed"))
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=SECONDS_MAX)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, "")
    assert "Stopped early; the receiver was drained." in out


@pytest.fixture
def _log() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.long
@pytest.mark.usefixtures("_log")
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_other_seeds_end_well_too(seed: int) -> None:
    """For any seed of sessions and faults the topics have what the ledger says was kept."""
    out = io.StringIO()
    assert await demonstrate(Console(file=out, width=200), 3, 40, 0, seed), out.getvalue()
