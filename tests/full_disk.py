"""A disk that is really full: a small file system of its own."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_PIECE_BYTES = 4096


@contextlib.contextmanager
def small_disk(directory: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of so many bytes. The test is skipped where none may be mounted; under CI that is a failure."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(directory)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        reason = f"NO DISK CAN BE FILLED: {mounted.stderr.strip()}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)  # noqa: S607  # wherever it is


def fill(directory: Path) -> Path:
    """Write a file beside all else until there is no room for a byte more; returns the file."""
    filler = directory / "filler"
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * _PIECE_BYTES)
    return filler


def taken_bytes(directory: Path) -> int:
    """What the files below a directory take on the disk."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())
