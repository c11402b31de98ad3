"""`python -m receiver` and `qod-receiver`."""

import atexit
import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command that the arguments name.

    `serve` ends with 0 at SIGTERM whenever that comes: also before its modules are there, and while the
    interpreter ends.
    """
    if sys.argv[1:2] == ["serve"]:
        signal.signal(signal.SIGTERM, _end)
        # Python gives signals back their own way when it ends, but for those that are ignored.
        atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)
    from receiver.cli import run  # noqa: PLC0415  # the first import that takes long

    run()


def _end(_number: int, _frame: FrameType | None) -> None:
    # Nothing is under way: the program takes the signal over before it opens anything, and gives it back afterwards.
    os._exit(0)


if __name__ == "__main__":
    main()
