"""Room on the disk that is held for what makes room: a file with blocks of its own, beside the file that it is for.

On a full disk even a deletion needs room, and so does opening the file again. Appends are refused while the reserve is
not whole, or has next to no room beside it, so that they never take what it is for.
"""

import os
from pathlib import Path

_NAME = "reserve"
#: Twice the log, which an opening copies into the database, and then some for a batch's effects.
_BYTES_MAX = 32 * 1024 * 1024
_BYTES_MIN = 256 * 1024
#: A small disk is not all reserve.
_PART_OF_DISK = 8
#: What is wanted beside it, for the log to grow, as a part of it.
_PART_BESIDE = 2
_BLOCK_BYTES = 512


class Reserve:
    """So many bytes of the disk that a directory is on: an eighth of it, 32 MiB at most.

    `is_safe` is whether it was whole, and had some room beside it, when that was looked at last.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / _NAME
        disk = os.statvfs(directory)
        self.size_bytes = min(max(disk.f_blocks * disk.f_frsize // _PART_OF_DISK, _BYTES_MIN), _BYTES_MAX)
        self._whole = False
        self.is_safe = False

    @property
    def wanted_bytes(self) -> int:
        """What the disk should have for the reserve and beside it."""
        return self.size_bytes + self.size_bytes // _PART_BESIDE

    def make(self) -> bool:
        """Take what is missing from the disk, if it has that and some more; whether the reserve is safe now."""
        disk = os.statvfs(self._path.parent)
        missing_bytes = 0 if self._whole else self.size_bytes - self._had_bytes()
        self.is_safe = False
        # To try without that would take the little that others may need.
        if disk.f_bavail * disk.f_frsize >= missing_bytes + self.wanted_bytes - self.size_bytes:
            self._whole = self.is_safe = self._whole or self._allocate()
        return self.is_safe

    def release(self) -> bool:
        """Give it to whoever comes first; whether there was anything to give."""
        self._whole = self.is_safe = False
        had_bytes = self._had_bytes()
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            os.ftruncate(descriptor, 0)
            os.fsync(descriptor)  # some file systems free blocks no sooner
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
            os.ftruncate(descriptor, 0)  # a part of it is of no use here, and may be elsewhere
            return False
        finally:
            os.close(descriptor)
        return True

    def _had_bytes(self) -> int:
        try:
            return self._path.stat().st_blocks * _BLOCK_BYTES
        except OSError:
            return 0
