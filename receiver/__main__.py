"""`python -m receiver` and `qod-receiver`."""

import atexit
import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command that the arguments name.

    `serve` exits with 0 on SIGTERM at any time, also before its modules are imported and while the interpreter exits.
    """
    if sys.argv[1:2] == ["serve"]:
        signal.signal(signal.SIGTERM, _end)
        # At exit Python restores the default handlers, except those of ignored signals.
        atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)
    from receiver.cli import run  # noqa: PLC0415  # the first import that takes long

    run()


def _end(_number: int, _frame: FrameType | None) -> None:
    # No work is lost: `serve` replaces this handler before it opens anything, and restores it after closing everything.
    os._exit(0)


if __name__ == "__main__":
    main()
