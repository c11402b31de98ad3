"""The mark: a lower bound of the inbox's end, kept beside the file, so that a loss is noticed.

A write-ahead log ends at the first damaged page, and the file may be missing or be an old copy; SQLite can't tell these
cases from a log that was never longer. So each synced append is noted here. The note itself need not be synced:
whenever it gets to the disk, the append is there already. So the mark is never ahead of a sound file, whatever crashes,
and is behind it by some seconds after a power cut.
"""

import struct
from contextlib import suppress
from zlib import crc32

import apsw

_NOTE = struct.Struct("<QI")
_END = struct.Struct("<Q")
#: Two notes take turns, so that a note torn by a power cut leaves the other intact.
_SLOTS = (0, 4096)


class Mark:
    """The mark's file, created if it is missing. Raises apsw.Error if it can't be."""

    def __init__(self, path: str, vfs: str) -> None:
        # Opened as a log, so that it gets the owner and the rights of the database.
        flags = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        self._file = apsw.VFSFile(vfs, path, [flags, 0])
        self._writes_count = 0

    def read(self) -> int:
        """The end that was noted last; 0 if none was."""
        return max(map(self._read, _SLOTS))

    def write(self, end: int) -> None:
        """Note the end of the inbox."""
        self._writes_count += 1
        told = _END.pack(end)
        with suppress(apsw.Error):  # the append is kept all the same, and an older mark is still valid
            self._file.xWrite(told + struct.pack("<I", crc32(told)), _SLOTS[self._writes_count % len(_SLOTS)])

    def close(self) -> None:
        """Close the file."""
        self._file.xClose()

    def _read(self, offset: int) -> int:
        with suppress(apsw.Error):  # the file may be shorter
            if self._file.xFileSize() >= offset + _NOTE.size:
                return _end(self._file.xRead(_NOTE.size, offset))
        return 0


def read_mark(path: str) -> int:
    """The end noted in a file, which is not changed; 0 if there is none."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # as the other paths of SQLite's
            content = file.read(_SLOTS[-1] + _NOTE.size)
    except OSError:
        return 0
    return max(_end(content[offset : offset + _NOTE.size]) for offset in _SLOTS)


def _end(note: bytes) -> int:
    """The end in a note; 0 for a note that is torn or cut off."""
    if len(note) < _NOTE.size:
        return 0
    end, crc = _NOTE.unpack(note)
    return int(end) if crc == crc32(_END.pack(end)) else 0
