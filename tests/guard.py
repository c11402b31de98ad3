"""Ends what was started, however the process that started it ends: in order, by a signal, by SIGKILL.

What a guarded process starts, and what that starts in turn, inherits a mark in its environment, whatever process groups
and sessions it makes for itself. Beside it runs a guard, which reads a pipe that is closed when the guarded process
ends. Then the guard kills all that has the mark. It needs Linux's /proc; elsewhere nothing is guarded.
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
#: A process that was being started when its parent was killed has the mark only a moment later.
_EMPTY_ROUNDS = 20
_ROUND_SECONDS = 0.1


@functools.cache
def guarded() -> None:
    """Let nothing outlive this process that is started from now on. Asked for again it changes nothing."""
    if not (_PROC / "self/environ").exists():
        return
    mark = f"STARTED_BY_TESTS_{secrets.token_hex(8)}"
    reading, _writing = os.pipe()  # the other end stays open for as long as we live; nobody inherits it
    nowhere = os.open(os.devnull, os.O_RDWR)
    # Not by `subprocess`, which would miss its end; and in a session of its own, away from the terminal's Ctrl-C.
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
    """The processes that have a mark."""
    wanted = f"{mark}=".encode()
    for found in _PROC.glob("[0-9]*/environ"):
        with suppress(OSError):  # another user's, or ended meanwhile
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
