"""The start of a command: its processor time while it does next to nothing, compared with another checkout.

    python -m tests.benchmarks.start [DIRECTORY]

DIRECTORY is the other checkout, with a .venv of its own. Both run in turns, and the least time of each counts.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

_RUNS = 15
_COMMANDS = (
    "--version",
    "--help",
    "tail --help",
    "tail status --no-follow",
    "sessions",
    "token mint --sender a",
    "check-config",
    "serve --help",
)


def _cpu_seconds(program: Path, arguments: str, directory: str) -> float:
    with subprocess.Popen([program, *arguments.split()], cwd=directory, stdout=-3, stderr=-3) as process:
        _, _, used = os.wait4(process.pid, 0)
        process.returncode = 0
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run as a command."""
    roots = [Path.cwd(), *map(Path, sys.argv[1:2])]
    programs = [root.resolve() / ".venv/bin/qod-receiver" for root in roots]
    with TemporaryDirectory() as directory:
        opened = "from receiver.process.directory import open_directory; from receiver.settings import Settings"
        subprocess.run(
            [sys.executable, "-c", f"{opened}; open_directory(Settings()).close()"], cwd=directory, check=True
        )
        for arguments in _COMMANDS:
            rounds = [[_cpu_seconds(program, arguments, directory) for program in programs] for _ in range(_RUNS)]
            seconds = [min(each) for each in zip(*rounds, strict=True)]
            ratio = f", {seconds[0] / seconds[1]:.2f} of the other's {seconds[1]:.2f} s" if len(seconds) > 1 else ""
            print(f"{arguments:<26}{seconds[0]:.2f} s{ratio}", flush=True)


if __name__ == "__main__":
    main()
