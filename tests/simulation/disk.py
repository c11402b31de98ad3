"""A disk in memory that tells written from synced data, and an APSW VFS over it that fails on command.

A process sees the page cache: all that was written. A power cut leaves what was synced. Of the rest it leaves what the
seed says: any sectors, torn ones too, in any order, and any of the sizes that a file has had since.

After a failed sync the page cache behaves as on Linux: the pages count as clean and read as written, but only some of
them got to the disk, and no later sync writes the others unless they are written again.
"""

# ruff: noqa: N802  # SQLite's names of a VFS's methods

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import NamedTuple, cast

import apsw

PAGE = 4096
#: The unit at which a power cut tears; a disk writes at least 512 bytes whole.
_SECTORS = (512, 4096)

_names = map("simulated-{}".format, itertools.count())


class SimFile:
    """One file: a process's view, the data on the disk, and the versions of each page since the last sync."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.durable = bytearray()
        self.versions: dict[int, list[bytes]] = {}
        self.sizes: list[int] = []
        self.unshrunk: SimFile | None = None  # as it was before it was first shortened, until that is synced

    def copy(self) -> "SimFile":
        """An independent copy."""
        other = SimFile()
        other.content, other.durable = self.content[:], self.durable[:]
        other.unshrunk = self.unshrunk and self.unshrunk.copy()
        other.versions = {page: versions[:] for page, versions in self.versions.items()}
        other.sizes = self.sizes[:]
        return other

    def write(self, data: bytes, offset: int) -> None:
        """Change the page cache."""
        end = offset + len(data)
        if end > len(self.content):
            self.content.extend(bytes(end - len(self.content)))
            self.sizes.append(end)
        self.content[offset:end] = data
        self._changed(offset, end)

    def truncate(self, size: int) -> None:
        """Change the size. A shortening happens whole or not at all, and later writes behind it go to new places."""
        before = len(self.content)
        if size < before:
            self.unshrunk = self.unshrunk or self.copy()
            del self.durable[size:]
            self.versions = {page: versions for page, versions in self.versions.items() if page * PAGE < size}
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))
        self.sizes.append(size)
        self._changed(min(size, before), max(size, before))

    def sync(self) -> None:
        """Write all changes since the last sync to the disk."""
        for page in self.versions:
            _put(self.durable, page * PAGE, bytes(self.content[page * PAGE : (page + 1) * PAGE]))
        _resize(self.durable, len(self.content))
        self._settle()

    def fail_sync(self, random: Random, tally: Counter[str]) -> None:
        """Behave like Linux after a failed sync."""
        self.durable = self._survivors(random, tally)
        self._settle()

    def cut(self, random: Random, tally: Counter[str]) -> None:
        """Lose what a power cut loses."""
        self.durable = self._survivors(random, tally)
        self.content = self.durable[:]
        self._settle()

    def _settle(self) -> None:
        self.versions.clear()
        self.sizes.clear()
        self.unshrunk = None

    def _changed(self, begin: int, end: int) -> None:
        for page in range(begin // PAGE, -(-end // PAGE)):
            now = bytes(self.content[page * PAGE : (page + 1) * PAGE])
            self.versions.setdefault(page, []).append(now)

    def _survivors(self, random: Random, tally: Counter[str]) -> bytearray:
        if self.unshrunk is not None and random.random() < 0.5:
            tally["shortening lost"] += 1
            return self.unshrunk._survivors(random, tally)  # noqa: SLF001  # the same class's
        sector = random.choice(_SECTORS)
        # Independent coins would hardly ever let a whole transaction through, or none of it.
        share = random.choice((0.0, 0.05, 0.5, 0.95, 1.0))
        torn_share = random.choice((0.0, 0.2))
        after = self.durable[:]
        for page, versions in self.versions.items():
            before = bytes(self.durable[page * PAGE : (page + 1) * PAGE]).ljust(PAGE, b"\0")
            was = [before, *(version.ljust(PAGE, b"\0") for version in versions)]
            for at in range(0, PAGE, sector):
                new = was[-1] if random.random() < share else random.choice(was[:-1])
                piece = new[at : at + sector]
                if random.random() < torn_share:
                    middle = random.randrange(1, sector)
                    piece = piece[:middle] + random.choice(was)[at + middle : at + sector]
                    tally["sector torn"] += piece not in {version[at : at + sector] for version in was}
                tally["unsynced write lost"] += piece != was[-1][at : at + sector]
                _put(after, page * PAGE + at, piece)
        size = self.sizes[-1] if self.sizes else len(self.durable)
        if self.sizes and random.random() >= share:
            size = random.choice([len(self.durable), *self.sizes])
            tally["size change lost"] += size != self.sizes[-1]
        _resize(after, size)
        return after


class Disk:
    """A directory of files. Its names are durable by themselves: creations and deletions can be lost."""

    def __init__(self) -> None:
        self.names: dict[str, SimFile] = {}
        self._durable_names: dict[str, SimFile] = {}
        self._changes: list[tuple[str, SimFile | None]] = []

    def copy(self) -> "Disk":
        """An independent copy: what a process leaves when it is killed."""
        other = Disk()
        files = {id(file): file.copy() for file in self._files()}
        other.names = {name: files[id(file)] for name, file in self.names.items()}
        other._durable_names = {name: files[id(file)] for name, file in self._durable_names.items()}
        other._changes = [(name, None if file is None else files[id(file)]) for name, file in self._changes]
        return other

    def cut(self, random: Random, tally: Counter[str]) -> None:
        """Lose what a power cut loses."""
        for name in sorted({name for name, _ in self._changes}):
            were = [self._durable_names.get(name), *(file for changed, file in self._changes if changed == name)]
            now = random.choice(were)
            tally["creation or deletion lost"] += now is not were[-1]
            self._durable_names.pop(name, None)
            if now is not None:
                self._durable_names[name] = now
        self.names = dict(self._durable_names)
        self._changes = []
        for name in sorted(self.names):
            self.names[name].cut(random, tally)

    def create(self, name: str) -> SimFile:
        """Create a file."""
        file = self.names[name] = SimFile()
        self._changes.append((name, file))
        return file

    def delete(self, name: str) -> None:
        """Delete a name."""
        del self.names[name]
        self._changes.append((name, None))

    def sync_names(self) -> None:
        """Make the names durable."""
        self._durable_names = dict(self.names)
        self._changes.clear()

    def _files(self) -> Iterator[SimFile]:
        yield from self.names.values()
        yield from self._durable_names.values()
        yield from (file for _, file in self._changes if file is not None)


class Faults(NamedTuple):
    """The faults to come. Operations that change something are counted, and syncs separately, both from 1."""

    crash: str = ""  # "kill" or "power cut"
    crash_at: int | None = None
    crash_at_sync: int | None = None
    crash_at_seconds: float | None = None
    full_from: int | None = None
    full_seconds: float = 0.0
    bad_syncs: range = range(0)


class SimVFS(apsw.VFS):
    """One process's view of a disk.

    After a crash, `left` is the disk that it leaves. The process goes on with a ghost of the disk until it notices, and
    nothing that it does from then on has an effect. `doing` is its present activity, for the statistics.
    """

    def __init__(
        self, disk: Disk, faults: Faults, random: Random, tally: Counter[str], now: Callable[[], float]
    ) -> None:
        self.name = next(_names)
        self.left: Disk | None = None
        self.operations: list[tuple[str, str, int, int]] = []
        self._disk = disk
        self._faults = faults
        self._random = random
        self._tally = tally
        self._now = now
        self._syncs = 0
        self._full_until: float | None = None
        self._doing = "between calls"
        super().__init__(self.name, "")

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Name the activity for as long as the block lasts: a crash is counted as one in `what`."""
        before, self._doing = self._doing, what
        try:
            yield
        finally:
            self._doing = before

    def crash(self, kind: str) -> None:
        """Cut this process off from the disk."""
        if self.left is not None:
            return
        self.left = self._disk.copy()
        self._tally[kind] += 1
        self._tally[f"crash in {self._doing}"] += 1
        if kind == "power cut":
            self.left.cut(self._random, self._tally)

    def step(self, kind: str, name: str, offset: int, size: int, change: Callable[[], None]) -> None:
        """Count an operation that changes something, unless a crash comes before it."""
        self.operations.append((kind, name, offset, size))
        crashing = self.left is None and (
            len(self.operations) == self._faults.crash_at
            or (kind == "sync" and self._syncs == self._faults.crash_at_sync)
        )
        if crashing and name.endswith(".sqlite") and self._doing in {"append", "commit", "retention"}:
            self._tally["crash in a checkpoint"] += 1
        if crashing and self._random.random() < 0.5:
            self.crash(self._faults.crash)
        change()
        if crashing:
            self.crash(self._faults.crash)

    def full(self) -> bool:
        """Whether the disk has no room now."""
        if self.left is not None or self._faults.full_from is None:
            return False
        if self._full_until is None and len(self.operations) + 1 >= self._faults.full_from:
            self._full_until = self._now() + self._faults.full_seconds
        return self._full_until is not None and self._now() < self._full_until

    def bad_sync(self) -> bool:
        """Count a sync; returns whether it must fail."""
        self._syncs += 1
        return self.left is None and self._syncs in self._faults.bad_syncs

    def refuse_write(self, file: SimFile, data: bytes, offset: int) -> None:
        """Fail after a part of the data found room."""
        self._tally["disk full"] += 1
        file.write(data[: self._random.randrange(len(data) + 1)], offset)
        raise apsw.FullError("no room on the disk")

    def refuse_sync(self, file: SimFile) -> None:
        """Fail like a disk that lost its cable for a moment."""
        self._tally[f"sync failed in {self._doing}"] += 1
        self._tally["sync failed"] += 1
        file.fail_sync(self._random, Counter())
        raise apsw.IOError("a sync failed")

    def excepthook(self, *_: object) -> bool:
        """Leave a failure to SQLite's caller, as with a real disk."""
        return True

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        """See SQLite."""
        flags[1] = flags[0]
        if name is None:
            return cast("apsw.VFSFile", _Open(self, "", SimFile(), self._disk, names_too=False))
        path = name if isinstance(name, str) else name.filename()
        if path not in self._disk.names:
            if not flags[0] & apsw.SQLITE_OPEN_CREATE:
                raise apsw.CantOpenError("no such file")
            self.step("create", path, 0, 0, lambda: _ignore(self._disk.create(path)))
        # Like SQLite's own VFS: the first sync of a log makes its name durable, that of a database does not.
        logs = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL
        file = _Open(self, path, self._disk.names[path], self._disk, names_too=bool(flags[0] & logs))
        return cast("apsw.VFSFile", file)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        """See SQLite."""
        if filename not in self._disk.names:
            raise apsw.IOError("no such file")
        self.step("delete", filename, 0, 0, lambda: self._disk.delete(filename))
        if syncdir:
            self.step("sync names", filename, 0, 0, self._disk.sync_names)

    def xAccess(self, pathname: str, _flags: int) -> bool:
        """See SQLite."""
        return pathname in self._disk.names

    def xFullPathname(self, name: str) -> str:
        """See SQLite."""
        return name


class _Open:
    """An open file of a process."""

    def __init__(self, vfs: SimVFS, name: str, file: SimFile, disk: Disk, *, names_too: bool) -> None:
        self._vfs = vfs
        self._name = name
        self._file = file
        self._disk = disk
        self._names_too = names_too

    def excepthook(self, *_: object) -> bool:
        return True

    def xRead(self, amount: int, offset: int) -> bytes:
        return bytes(self._file.content[offset : offset + amount])

    def xWrite(self, data: bytes, offset: int) -> None:
        written = bytes(data)
        if self._vfs.full():
            self._vfs.refuse_write(self._file, written, offset)
        self._vfs.step("write", self._name, offset, len(written), lambda: self._file.write(written, offset))

    def xTruncate(self, newsize: int) -> None:
        self._vfs.step("truncate", self._name, newsize, 0, lambda: self._file.truncate(newsize))

    def xSync(self, _flags: int) -> None:
        if self._vfs.bad_sync():
            self._vfs.refuse_sync(self._file)
        self._vfs.step("sync", self._name, 0, 0, self._file.sync)
        if self._names_too:
            self._vfs.step("sync names", self._name, 0, 0, self._disk.sync_names)
            self._names_too = False

    def xFileSize(self) -> int:
        return len(self._file.content)

    def xSectorSize(self) -> int:
        return PAGE

    def xDeviceCharacteristics(self) -> int:
        # Like SQLite's own VFS: a write that a power cut tears spoils nothing beside it.
        return apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE

    def xLock(self, level: int) -> None:
        """One process has the whole disk."""

    def xUnlock(self, level: int) -> None:
        """See xLock."""

    def xCheckReservedLock(self) -> bool:
        return False

    def xFileControl(self, _op: int, _ptr: int) -> bool:
        return False

    def xClose(self) -> None:
        """Nothing has to be closed."""


def _put(target: bytearray, offset: int, data: bytes) -> None:
    if offset > len(target):
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(data)] = data


def _resize(target: bytearray, size: int) -> None:
    del target[size:]
    target.extend(bytes(size - len(target)))


def _ignore(_: object) -> None:
    """Ignore a value."""
