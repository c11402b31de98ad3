"""Reserved room on the disk for the operations that free room: a file with blocks of its own, beside the served file.

On a full disk even a deletion needs room, and so does reopening the file. Appends are refused while the reserve is not
whole, or has next to no room beside it, so that they never use it up.
"""

import os
from pathlib import Path

_NAME = "reserve"
#: Twice the log, which is copied into the database when the file is opened, and some more for a batch's effects.
_BYTES_MAX = 32 * 1024 * 1024
_BYTES_MIN = 256 * 1024
#: The reserve is at most this part of a small disk.
_PART_OF_DISK = 8
#: Room wanted beside the reserve, for the log to grow, as a part of the reserve.
_PART_BESIDE = 2
_BLOCK_BYTES = 512


class Reserve:
    """Reserved bytes of a directory's disk: an eighth of it, at most 32 MiB.

    `is_safe` is whether it was whole and had some room beside it at the last check.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / _NAME
        disk = os.statvfs(directory)
        self.size_bytes = min(max(disk.f_blocks * disk.f_frsize // _PART_OF_DISK, _BYTES_MIN), _BYTES_MAX)
        self._whole = False
        self.is_safe = False

    @property
    def wanted_bytes(self) -> int:
        """The room that the disk should have: the reserve, and some beside it."""
        return self.size_bytes + self.size_bytes // _PART_BESIDE

    def make(self) -> bool:
        """Allocate what is missing, if the disk has that and some more. Returns whether the reserve is safe now."""
        disk = os.statvfs(self._path.parent)
        missing_bytes = 0 if self._whole else self.size_bytes - self._had_bytes()
        self.is_safe = False
        # Without that room, trying would take the little that others may need.
        if disk.f_bavail * disk.f_frsize >= missing_bytes + self.wanted_bytes - self.size_bytes:
            self._whole = self.is_safe = self._whole or self._allocate()
        return self.is_safe

    def release(self) -> bool:
        """Free the reserve for any use. Returns whether there was anything to free."""
        self._whole = self.is_safe = False
        had_bytes = self._had_bytes()
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            os.ftruncate(descriptor, 0)
            os.fsync(descriptor)  # some file systems free blocks only then
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return had_bytes > 0

    def _allocate(self) -> bool:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return False
        try:
            os.ftruncate(descriptor, self.size_bytes)
            os.posix_fallocate(descriptor, 0, self.size_bytes)
        except OSError:
            os.ftruncate(descriptor, 0)  # a part is useless here, and may be useful elsewhere
            return False
        finally:
            os.close(descriptor)
        return True

    def _had_bytes(self) -> int:
        try:
            return self._path.stat().st_blocks * _BLOCK_BYTES
        except OSError:
            return 0
