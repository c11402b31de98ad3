"""The directory that a process serves: private to its owner, locked by one process, with small files made durable."""

import fcntl
import os
import secrets
from pathlib import Path

from receiver.core.errors import Unavailable

LOCK_NAME = "lock"


class Lock:
    """The right to serve a directory. One process at a time holds it, and loses it when it ends in any way."""

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
    """Make a directory that only its owner can use, unless it exists."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)


def make_private(path: str) -> None:
    """Make an empty file that only its owner can use, unless it exists. SQLite's log and index get the same rights."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    os.close(descriptor)


def write_durably(path: Path, content: bytes, *, is_new: bool = False) -> None:
    """Write a file that only its owner can use: whole or not at all, and able to survive a power cut. Blocks.

    It replaces an existing file. With `is_new` an existing file stays, as several processes may make it at once.
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
    """Make the names in a directory survive a power cut. Blocks."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
