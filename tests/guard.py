"""Ends all started processes, however the starting process ends: in order, by a signal, or by SIGKILL.

All descendants of a guarded process inherit a mark in its environment, whatever process groups and sessions they make.
A guard process reads a pipe that is closed when the guarded process ends; then it kills all processes with the mark. It
needs Linux's /proc; elsewhere nothing is guarded.
"""

import functools
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
#: A process that was being started when its parent was killed gets the mark only a moment later.
_EMPTY_ROUNDS = 20
_ROUND_SECONDS = 0.1


@functools.cache
def guarded() -> None:
    """End every process that is started from now on when this process ends. A second call changes nothing."""
    if not (_PROC / "self/environ").exists():
        return
    mark = f"STARTED_BY_TESTS_{secrets.token_hex(8)}"
    reading, _writing = os.pipe()  # the writing end stays open while this process lives; no child inherits it
    nowhere = os.open(os.devnull, os.O_RDWR)
    # `subprocess` would miss its end. A session of its own keeps the terminal's Ctrl-C away.
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", __file__, mark],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, at, to) for to, at in enumerate((reading, nowhere, nowhere))],
        setsid=True,
    )
    os.close(reading)
    os.close(nowhere)
    os.environ[mark] = "1"


def marked(mark: str) -> Iterator[int]:
    """The ids of the processes that have a mark."""
    wanted = f"{mark}=".encode()
    for found in _PROC.glob("[0-9]*/environ"):
        with suppress(OSError):  # another user's, or it has ended
            if any(each.startswith(wanted) for each in found.read_bytes().split(b"\0")):
                yield int(found.parent.name)


def _guard(mark: str) -> None:
    while os.read(0, 1):
        pass
    empty = 0
    while empty < _EMPTY_ROUNDS:
        empty += 1
        for process_id in marked(mark):
            empty = 0
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        time.sleep(_ROUND_SECONDS)


if __name__ == "__main__":
    _guard(sys.argv[1])
