"""The directory that a process serves: its owner's alone, no other process's meanwhile, and its small files durable."""

import fcntl
import os
import secrets
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


def write_durably(path: Path, content: bytes, *, is_new: bool = False) -> None:
    """Write a file that is the owner's alone: whole or not at all, and there after a power cut. Blocks.

    It takes the place of one that is there; with `is_new` that one stays, as several may make it at once.
    """
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8) if is_new else 'unfinished'}")
    unfinished.unlink(missing_ok=True)
    make_private(str(unfinished))
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            path.hardlink_to(unfinished)
        else:
            unfinished.replace(path)
    except FileExistsError:
        return
    finally:
        unfinished.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Have the names in a directory survive a power cut. Blocks."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
