"""The mark: where the inbox of a file ends at least, kept beside the file, so that it is noticed when less is there.

A write-ahead log ends at the first page that is damaged, and a file may be gone or an old one; SQLite can't tell either
from a log that was never longer. So each append that was synced is noted here. The note itself is never synced, for it
need not be: whenever it gets to the disk, what it tells of is there already. So it is never ahead of a sound file,
whatever crashes, and behind it by some seconds after a power cut.
"""

import struct
from contextlib import suppress
from zlib import crc32

import apsw

_NOTE = struct.Struct("<QI")
_END = struct.Struct("<Q")
#: Two notes take turns, so that one that a power cut tears spoils no other.
_SLOTS = (0, 4096)


class Mark:
    """The file of the mark, which is made where there is none. Raises apsw.Error where it can't be."""

    def __init__(self, path: str, vfs: str) -> None:
        # As a log, so that it gets the owner and the rights of the database.
        flags = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        self._file = apsw.VFSFile(vfs, path, [flags, 0])
        self._writes_count = 0

    def read(self) -> int:
        """The end that was noted last; 0 where none was."""
        return max(map(self._read, _SLOTS))

    def write(self, end: int) -> None:
        """Note the end of the inbox."""
        self._writes_count += 1
        told = _END.pack(end)
        with suppress(apsw.Error):  # what was kept is kept; an older mark is true too
            self._file.xWrite(told + struct.pack("<I", crc32(told)), _SLOTS[self._writes_count % len(_SLOTS)])

    def close(self) -> None:
        """Let go of the file."""
        self._file.xClose()

    def _read(self, offset: int) -> int:
        with suppress(apsw.Error):  # there may be less than that
            if self._file.xFileSize() >= offset + _NOTE.size:
                return _end(self._file.xRead(_NOTE.size, offset))
        return 0


def read_mark(path: str) -> int:
    """The end that is noted in a file, which is left as it is; 0 where there is none."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # as the other paths of SQLite's
            content = file.read(_SLOTS[-1] + _NOTE.size)
    except OSError:
        return 0
    return max(_end(content[offset : offset + _NOTE.size]) for offset in _SLOTS)


def _end(note: bytes) -> int:
    """The end that a note tells; 0 for a note that is torn or cut off."""
    if len(note) < _NOTE.size:
        return 0
    end, crc = _NOTE.unpack(note)
    return int(end) if crc == crc32(_END.pack(end)) else 0
