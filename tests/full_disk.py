"""A disk that is really full: a small file system."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_PIECE_BYTES = 4096


@contextlib.contextmanager
def small_disk(directory: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of `size_bytes`. The test is skipped where none may be mounted; under CI that is a failure."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(directory)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        reason = f"NO DISK CAN BE FILLED: {mounted.stderr.strip()}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)  # noqa: S607  # also when it is busy


def fill(directory: Path) -> Path:
    """Fill the disk to its last byte with a file of its own; returns the file."""
    filler = directory / "filler"
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * _PIECE_BYTES)
    return filler


def taken_bytes(directory: Path) -> int:
    """The bytes on the disk of all files below a directory."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())
