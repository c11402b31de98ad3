"""The directory that a process serves: its owner's alone, and no other process's meanwhile."""

import fcntl
import os
from pathlib import Path

from receiver.core.errors import Unavailable

LOCK_NAME = "lock"


class Lock:
    """The right to serve a directory: held by one process at a time, and given back when it ends, however it ends."""

    def __init__(self, directory: Path) -> None:
        self._descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise Unavailable(f"another process serves {directory}", reason="locked") from error

    def release(self) -> None:
        """Give the right back."""
        os.close(self._descriptor)


def make_directory(directory: Path) -> None:
    """Make a directory that is its owner's alone, unless there is one."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)


def make_private(path: str) -> None:
    """Make an empty file that is the owner's alone, unless there is one: its log and its index are as private then."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    os.close(descriptor)
