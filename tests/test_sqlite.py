"""SQLite's own subjects: a file that fails, is damaged, is too old, or is shared. Every failure here is a real one."""

import asyncio
import os
import resource
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import apsw
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.backends.directory import LOCK_NAME
from receiver.backends.packing import (
    Damaged,
    pack_messages,
    pack_notifications,
    unpack_messages,
    unpack_notifications,
)
from receiver.backends.sqlite.node import ServedDirectory, SqliteReader
from receiver.backends.sqlite.schema import FILE_NAME, MARK_NAME
from receiver.core.errors import Unavailable
from receiver.core.message import Message
from receiver.core.notification import Notification
from receiver.core.router import Router
from tests.limits import SECONDS_MAX
from tests.nodes import (
    COUNT_MAX,
    SESSIONS_TOPIC,
    Node,
    SqliteBackend,
    append,
    commit,
    decide,
    everything,
    route,
)
from tests.samples import HOUR, START, posted

STATUS_TOPIC = "qod.status"
FAR_FUTURE = 2**62


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that are opened from now on hardly wait for a lock."""
    for module in ("file", "view"):
        monkeypatch.setattr(f"receiver.backends.sqlite.{module}.BUSY_TIMEOUT_MILLIS", 20)


@pytest.fixture
def backend(tmp_path: Path) -> SqliteBackend:
    """An empty directory."""
    return SqliteBackend(tmp_path)


@contextmanager
def raw(directory: Path) -> Iterator[apsw.Connection]:
    """The file, opened as by another program."""
    connection = apsw.Connection(str(directory / FILE_NAME))
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def disk_full(file_bytes_max: int = 64 * 1024) -> Iterator[None]:
    """No file of this process grows beyond this size: writing more fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes_max, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def large(number: int) -> Notification:
    """A readable notification of 20 KB."""
    small = posted("A1", session_id=f"s{number:04}")
    return small._replace(body=small.body[:-1] + b',"more":"' + b"x" * 20_000 + b'"}')


async def keys(node: Node, topic: str = STATUS_TOPIC) -> list[str]:
    """The keys on a topic, in order."""
    return [record.message.key for record in await everything(node.reader, topic)]


# A file that can't be written.


async def test_a_full_disk_loses_nothing_that_was_kept(backend: SqliteBackend, router: Router) -> None:
    """While the disk is full appends are refused; notifications kept before and after are routed, each once."""
    kept, refused = [], []
    async with backend.opened() as node:
        with disk_full():
            for number in range(12):
                try:
                    await append(node, large(number))
                except Unavailable as error:
                    refused.append((f"s{number:04}", error.reason, node.inbox.trouble == error.message))
                else:
                    kept.append(f"s{number:04}")
        assert kept
        assert refused
        assert {each[1:] for each in refused} == {("store", True)}
        await append(node, large(12))
        assert node.inbox.trouble == ""
        await route(node, router)
        routed = await keys(node)
    assert [key for key in routed if key not in {each[0] for each in refused}] == [*kept, "s0012"]
    assert len(set(routed)) == len(routed)


async def test_a_commit_that_finds_the_disk_full_leaves_nothing(backend: SqliteBackend, router: Router) -> None:
    """A batch whose effects do not fit is not there at all, and is committed as a whole once there is room."""
    async with backend.opened() as node:
        await append(node, posted("A1", session_id="before"))
        await route(node, router)
        await append(node, *(large(number) for number in range(5)), *(posted(b"{" * 30_000) for _ in range(5)))
        batch = await node.lane.read(COUNT_MAX)
        with disk_full(), pytest.raises(Unavailable):
            await commit(node.lane, router, batch)
        assert await keys(node) == ["before"]
        assert "qod.dead-letter" not in await node.reader.topics()
        assert len(await node.reader.sessions(None, COUNT_MAX)) == 1
        assert node.lane.lag == 10
        node.lane.rewind()
        await route(node, router)
        assert await keys(node) == ["before", *(f"s{number:04}" for number in range(5))]
        assert len(await keys(node, "qod.dead-letter")) == 5


@pytest.mark.usefixtures("impatient")
async def test_a_locked_file_is_unavailable_and_comes_back(backend: SqliteBackend, router: Router) -> None:
    """While another program locks the file, appends and commits are refused; afterwards all goes on."""
    async with backend.opened() as node:
        await append(node, posted("A1", session_id="s1"))
        batch = await node.lane.read(COUNT_MAX)
        with backend.stalled():
            for _ in range(3):
                with pytest.raises(Unavailable):
                    await append(node, posted("A1", session_id="s2"))
                with pytest.raises(Unavailable):
                    await commit(node.lane, router, batch)
            assert "another program" in node.inbox.trouble
            assert await node.reader.topics() == []
            node.lane.rewind()
            assert (await node.lane.read(COUNT_MAX)).notifications == batch.notifications
        await append(node, posted("A1", session_id="s3"))
        assert node.inbox.trouble == ""
        node.lane.rewind()
        await route(node, router)
        assert await keys(node) == ["s1", "s3"]


async def test_what_waited_too_long_for_its_turn_is_not_written(backend: SqliteBackend, router: Router) -> None:
    """An append that is refused before its write began is not kept without its sender's knowledge."""
    async with backend.opened(append_timeout_seconds=2) as node:
        with backend.stalled():
            first = asyncio.create_task(append(node, posted("A1", session_id="begun")))
            await asyncio.sleep(1)  # its write begins meanwhile
            second = asyncio.create_task(append(node, posted("A1", session_id="waiting")))
            for refused in (first, second):
                with pytest.raises(Unavailable):
                    await refused
        async with asyncio.timeout(SECONDS_MAX):
            while node.inbox.trouble:  # noqa: ASYNC110  # there is no event to wait for
                await asyncio.sleep(0.002)
        await route(node, router)
        assert await keys(node) == ["begun"]


@pytest.mark.usefixtures("impatient")
async def test_a_file_that_is_held_is_not_opened(backend: SqliteBackend) -> None:
    """A node whose file another program locks does not start, and starts afterwards."""
    async with backend.opened():
        pass
    with backend.stalled(), pytest.raises(Unavailable):
        async with backend.opened():
            pass
    async with backend.opened() as node:
        await append(node, posted("A1"))


async def test_two_nodes_cannot_serve_one_directory(backend: SqliteBackend) -> None:
    """The second process is refused with a message that names the directory, and does the first no harm."""
    async with backend.opened() as node:
        with pytest.raises(Unavailable, match=f"another process serves {backend.directory}") as caught:
            ServedDirectory(backend.directory, sessions_topic=SESSIONS_TOPIC, append_timeout_seconds=1)
        assert caught.value.reason == "locked"
        await append(node, posted("A1"))


@contextmanager
def unprivileged() -> Iterator[None]:
    """The tests' user has only the rights of file modes; a superuser becomes nobody meanwhile."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public() -> Iterator[SqliteBackend]:
    """An empty directory that every user can reach, unlike those of other tests."""
    with TemporaryDirectory() as directory:
        yield SqliteBackend(Path(directory))


@pytest.mark.parametrize(("directory_mode", "file_mode"), [(0o777, 0o444), (0o555, 0o666), (0o555, 0o444)])
async def test_what_may_not_be_written_is_not_served(
    public: SqliteBackend, directory_mode: int, file_mode: int
) -> None:
    """A node does not start without the right to write to its files and its directory, and does with it."""
    async with public.opened() as node:
        await append(node, posted("A1"))
    for name in (LOCK_NAME, f"{FILE_NAME}{MARK_NAME}"):
        (public.directory / name).chmod(0o666)
    (public.directory / FILE_NAME).chmod(file_mode)
    public.directory.chmod(directory_mode)
    with unprivileged(), pytest.raises(Unavailable):
        async with public.opened():
            pass
    public.directory.chmod(0o777)
    (public.directory / FILE_NAME).chmod(0o666)
    with unprivileged():
        async with public.opened() as node:
            assert node.lane.lag == 1


async def test_what_is_no_database_is_not_served(backend: SqliteBackend) -> None:
    """A file of another kind is refused, and left as it is."""
    path = backend.directory / FILE_NAME
    path.write_bytes(b"something else entirely\n" * 1000)
    with pytest.raises(Unavailable):
        async with backend.opened():
            pass
    assert path.read_bytes() == b"something else entirely\n" * 1000


@pytest.mark.parametrize("version", [3, 99])
async def test_another_schema_is_refused(backend: SqliteBackend, version: int) -> None:
    """A file with another release's schema is not changed, and the message has that schema's number."""
    async with backend.opened():
        pass
    with raw(backend.directory) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(Unavailable, match=f"schema version {version}, this release knows 2"):
        async with backend.opened():
            pass
    with raw(backend.directory) as connection:
        assert connection.pragma("user_version") == version


async def test_a_refused_node_lets_go_of_the_directory(backend: SqliteBackend) -> None:
    """If opening fails the lock is given back, so that a repaired directory can be served."""
    path = backend.directory / FILE_NAME
    path.mkdir()
    with pytest.raises(Unavailable):
        async with backend.opened():
            pass
    path.rmdir()
    async with backend.opened() as node:
        await append(node, posted("A1"))


def test_no_reader_without_a_file(tmp_path: Path) -> None:
    """A reader of a directory that was never served is refused, and makes nothing there."""
    with pytest.raises(Unavailable, match=FILE_NAME):
        SqliteReader(tmp_path, SESSIONS_TOPIC)
    assert list(tmp_path.iterdir()) == []


async def test_every_commit_is_synced(backend: SqliteBackend) -> None:
    """The writing connection has a write-ahead log and syncs it at every commit, whatever SQLite's default is."""
    node = ServedDirectory(backend.directory, sessions_topic=SESSIONS_TOPIC, append_timeout_seconds=1)
    try:
        connection = node._file._connection  # noqa: SLF001  # nothing else shows it short of a power cut
        assert connection is not None
        assert (connection.pragma("journal_mode"), connection.pragma("synchronous")) == ("wal", 2)
    finally:
        node.close()


# Damage.


async def test_a_damaged_row_of_the_inbox_dies_alone(backend: SqliteBackend, router: Router) -> None:
    """A flipped bit costs the notifications that shared its row: their bytes are one dead letter, the rest goes on."""
    async with backend.opened() as node:
        await append(node, posted("A1", session_id="s0"))
        await asyncio.gather(*(node.inbox.append(posted("A1", session_id=f"lost{number}")) for number in range(3)))
        await append(node, posted("A1", session_id="s4"), posted("A1", session_id="s5"))
    with raw(backend.directory) as connection:
        ((position, count, blob),) = connection.execute("SELECT position, count, pack FROM inbox WHERE count > 1")
        damaged = bytearray(blob)
        damaged[len(damaged) // 2] ^= 1
        connection.execute("UPDATE inbox SET pack = ? WHERE position = ?", (bytes(damaged), position))
    assert (position, count) == (1, 3)
    async with backend.opened() as node:
        assert node.lane.lag == 6
        await route(node, router)
        assert await keys(node) == ["s0", "s4", "s5"]
        assert node.lane.lag == 0
        (letter,) = await everything(node.reader, "qod.dead-letter")
        assert letter.message.key == "damaged"
        value = orjson.loads(letter.message.value or b"")
        assert value["verdict"] == "malformed"
        assert dict(letter.message.headers)["inbox"] == "0-1"
        assert b64decode(value["body"]) == bytes(damaged)


@pytest.mark.parametrize("at", [0, 4, 100, -1])
async def test_a_damaged_row_is_read_alone(backend: SqliteBackend, at: int) -> None:
    """A damaged row is read as one notification in a batch of its own, and positions stay."""
    async with backend.opened() as node:
        await append(node, posted("A1"), posted("A2"), posted("A3"))
    with raw(backend.directory) as connection:
        ((blob,),) = connection.execute("SELECT pack FROM inbox WHERE position = 1")
        damaged = bytearray(blob)
        damaged[at] ^= 0x80
        connection.execute("UPDATE inbox SET pack = ? WHERE position = 1", (bytes(damaged),))
    async with backend.opened() as node:
        batches = [await node.lane.read(COUNT_MAX) for _ in range(3)]
    assert [(batch.position, batch.next_position, len(batch.notifications)) for batch in batches] == [
        (0, 1, 1),
        (1, 2, 1),
        (2, 3, 1),
    ]
    assert batches[1].notifications[0].body == bytes(damaged)


async def test_a_damaged_record_is_not_shown(backend: SqliteBackend, router: Router) -> None:
    """A damaged row of a topic is passed over and reported with its place, once; all behind it is read."""
    async with backend.opened() as node:
        for text in ("A1", "U2:N"):
            await append(node, posted(text))
            await route(node, router)
    with raw(backend.directory) as connection:
        connection.execute("UPDATE messages SET crc = crc + 1 WHERE position = 0")
    told: list[tuple[str, str]] = []
    reader = SqliteReader(backend.directory, SESSIONS_TOPIC, lambda place, why: told.append((place, why)))
    for _ in range(2):
        assert [record.position for record in await everything(reader, STATUS_TOPIC)] == [1]
    reader.close()
    assert (f"{STATUS_TOPIC}-0-0", "damaged, with all 1 records of its row") in told
    assert len(told) == len(dict(told))


# Retention.


@contextmanager
def retaining(directory: Path) -> Iterator[ServedDirectory]:
    """A node whose retention can be called."""
    node = ServedDirectory(directory, sessions_topic=SESSIONS_TOPIC, append_timeout_seconds=30)
    try:
        yield node
    finally:
        node.close()


def rows(directory: Path) -> dict[str, int]:
    """The number of rows of each table."""
    with raw(directory) as connection:
        return {
            table: len(connection.execute(f"SELECT 1 FROM {table}").fetchall())  # noqa: S608  # written here
            for table in ("inbox", "messages", "sessions")
        }


async def test_retention_never_takes_what_is_not_committed(tmp_path: Path, router: Router) -> None:
    """However old they are, notifications stay until they are routed."""
    with retaining(tmp_path) as node:
        for number in range(3):
            await node.inbox.append(posted("A1", session_id=f"s{number}"))
        await commit(node.lane, router, await node.lane.read(1))
        assert await node.retain(FAR_FUTURE, 0, 100) == 1
        assert await node.retain(FAR_FUTURE, 0, 100) == 0
        assert [each.key for each in (await node.lane.read(COUNT_MAX)).notifications] == ["s1", "s2"]
    with retaining(tmp_path) as node:
        assert [each.key for each in (await node.lane.read(COUNT_MAX)).notifications] == ["s1", "s2"]
        assert node.lane.lag == 2


@pytest.mark.parametrize(
    ("inbox_hour", "topics_hour", "left"),
    [
        (0, 0, {"inbox": 3, "messages": 3, "sessions": 3}),
        (FAR_FUTURE // HOUR, 0, {"inbox": 0, "messages": 3, "sessions": 3}),
        (0, 1, {"inbox": 3, "messages": 2, "sessions": 2}),
        (0, 2, {"inbox": 3, "messages": 1, "sessions": 2}),
        (0, 9, {"inbox": 3, "messages": 0, "sessions": 2}),
    ],
)
async def test_retention_goes_by_age(
    tmp_path: Path, router: Router, inbox_hour: int, topics_hour: int, left: dict[str, int]
) -> None:
    """Rows from before the given time are removed, one at that time stays; of sessions only tombstones are removed."""
    with retaining(tmp_path) as node:
        for hour in range(3):
            await node.inbox.append(posted("A1", session_id=f"s{hour}", received_micros=START + hour * HOUR))
            await commit(node.lane, router, await node.lane.read(COUNT_MAX))
        batch, (oldest,) = await node.lane.oldest(1)
        tombstone = router.forget(oldest, START)
        await node.lane.commit(batch, [tombstone], {oldest.session_id: None}, batch.clock_micros)
        assert rows(tmp_path) == {"inbox": 3, "messages": 3, "sessions": 3}
        topics_micros = START + topics_hour * HOUR if topics_hour else 0
        await node.retain(inbox_hour * HOUR, topics_micros, 100)
        assert rows(tmp_path) == left


async def test_retention_takes_a_limited_number_at_once(tmp_path: Path, router: Router) -> None:
    """At most the given number of rows of a kind are removed at once, oldest first, and the rest at the next call."""
    with retaining(tmp_path) as node, closing_reader(tmp_path) as reader:
        for number in range(5):
            await node.inbox.append(posted("A1", session_id=f"s{number}"))
            await commit(node.lane, router, await node.lane.read(COUNT_MAX))
        assert await node.retain(FAR_FUTURE, FAR_FUTURE, 2) == 4
        assert [record.message.key for record in await everything(reader, STATUS_TOPIC)] == ["s2", "s3", "s4"]
        assert [await node.retain(FAR_FUTURE, FAR_FUTURE, 2) for _ in range(3)] == [4, 2, 0]
        assert len(await reader.sessions(None, COUNT_MAX)) == 5


@contextmanager
def closing_reader(directory: Path) -> Iterator[SqliteReader]:
    """A reader of the directory."""
    reader = SqliteReader(directory, SESSIONS_TOPIC)
    try:
        yield reader
    finally:
        reader.close()


async def test_positions_go_on_after_all_was_removed(backend: SqliteBackend, router: Router) -> None:
    """Even after retention has emptied inbox and topics, and the file was closed, no position is used twice."""
    with retaining(backend.directory) as emptied:
        for number in range(3):
            await emptied.inbox.append(posted("A1", session_id=f"s{number}"))
        await commit(emptied.lane, router, await emptied.lane.read(COUNT_MAX))
        await emptied.retain(FAR_FUTURE, FAR_FUTURE, 100)
    assert rows(backend.directory) == {"inbox": 0, "messages": 0, "sessions": 3}
    async with backend.opened() as node:
        assert node.lane.lag == 0
        assert await node.reader.beginning(STATUS_TOPIC) == await node.reader.end(STATUS_TOPIC) == {0: 3}
        await append(node, posted("A1", session_id="s3"))
        batch = await node.lane.read(COUNT_MAX)
        assert list(batch.positions) == [3]
        await commit(node.lane, router, batch)
        assert [record.position for record in await everything(node.reader, STATUS_TOPIC)] == [3]
        assert [record.position for record in await everything(node.reader, SESSIONS_TOPIC)] == [0, 1, 2, 3]


async def test_a_reader_skips_what_was_removed(tmp_path: Path, router: Router) -> None:
    """A cursor at a removed record goes on with the oldest record that is left."""
    with retaining(tmp_path) as node, closing_reader(tmp_path) as reader:
        for hour in range(3):
            await node.inbox.append(posted("A1", session_id=f"s{hour}", received_micros=START + hour * HOUR))
            await commit(node.lane, router, await node.lane.read(COUNT_MAX))
        cursor = await reader.beginning(STATUS_TOPIC)
        await node.retain(0, START + 2 * HOUR, 100)
        assert [record.position for record in await reader.records(STATUS_TOPIC, cursor, COUNT_MAX)] == [2]
        assert await reader.beginning(STATUS_TOPIC) == {0: 2}


@pytest.mark.usefixtures("impatient")
async def test_retention_is_unavailable_while_the_file_is(backend: SqliteBackend, router: Router) -> None:
    """A sweep that fails raises Unavailable and removes nothing, and the next one works."""
    with retaining(backend.directory) as node:
        await node.inbox.append(posted("A1"))
        await commit(node.lane, router, await node.lane.read(COUNT_MAX))
        with backend.stalled(), pytest.raises(Unavailable):
            await node.retain(FAR_FUTURE, FAR_FUTURE, 100)
        assert rows(backend.directory) == {"inbox": 1, "messages": 1, "sessions": 1}
        assert await node.retain(FAR_FUTURE, FAR_FUTURE, 100) == 2


@pytest.mark.usefixtures("impatient")
async def test_trouble_is_found_and_ends_without_traffic(backend: SqliteBackend) -> None:
    """A sweep finds out whether the file can be written, so readiness changes without any append."""
    with retaining(backend.directory) as node:
        with backend.stalled(), pytest.raises(Unavailable) as caught:
            await node.retain(0, 0, 100)
        assert node.inbox.trouble == caught.value.message
        await node.retain(0, 0, 100)
        assert node.inbox.trouble == ""


# A reader beside the writer.


async def test_a_reader_follows_a_writer(backend: SqliteBackend, router: Router) -> None:
    """While batches are committed, a reader sees every record once, in order, and never half a batch."""
    count, size = 30, 5
    async with backend.opened() as node:

        async def write() -> None:
            for number in range(count):
                for each in range(size):
                    await append(node, posted("U1:N", session_id=f"s{number}-{each}"))
                await route_batch(node, router, size)

        writing = asyncio.create_task(write())
        seen: list[int] = []
        async with asyncio.timeout(SECONDS_MAX):
            while len(seen) < count * size:
                with suppress(KeyError):
                    cursor = await node.reader.cursor(STATUS_TOPIC, str(len(seen)))
                    records = await node.reader.records(STATUS_TOPIC, cursor, COUNT_MAX)
                    assert len(records) % size == 0
                    seen += [record.position for record in records]
                await asyncio.sleep(0)
        await writing
    assert seen == list(range(count * size))


async def route_batch(node: Node, router: Router, size: int) -> None:
    """Commit the effects of the next `size` notifications as one batch."""
    batch = await node.lane.read(size)
    assert len(batch.notifications) == size
    await commit(node.lane, router, batch)


async def test_a_reader_outlives_the_writer(backend: SqliteBackend, router: Router) -> None:
    """A reader goes on reading after the serving process has closed the file and another one has opened it."""
    async with backend.opened() as node:
        await append(node, posted("A1"))
        await route(node, router)
    with closing_reader(backend.directory) as reader:
        cursor = await reader.beginning(STATUS_TOPIC)
        assert len(await reader.records(STATUS_TOPIC, cursor, COUNT_MAX)) == 1
        async with backend.opened() as node:
            await append(node, posted("U2:N"))
            await route(node, router)
            assert len(await reader.records(STATUS_TOPIC, cursor, COUNT_MAX)) == 1


async def test_a_reader_changes_nothing(backend: SqliteBackend, router: Router) -> None:
    """Reading leaves the database as it was, byte by byte."""
    async with backend.opened() as node:
        await append(node, posted("A1"))
        await route(node, router)
    before = (backend.directory / FILE_NAME).read_bytes()
    with closing_reader(backend.directory) as reader:
        for topic in await reader.topics():
            await everything(reader, topic)
        await reader.session_counts()
    assert (backend.directory / FILE_NAME).read_bytes() == before


# A commit with unknown outcome.


async def test_a_commit_that_was_kept_all_the_same_is_found_out(backend: SqliteBackend, router: Router) -> None:
    """If the lane's position was moved by another, it says so once and then goes on from that position."""
    async with backend.opened() as node:
        await append(node, posted("A1", session_id="s0"), posted("A1", session_id="s1"))
        batch = await node.lane.read(1)
        assert decide(router, batch)
        with raw(backend.directory) as connection:
            connection.execute("UPDATE lane SET position = ?", (batch.next_position,))
        with pytest.raises(Unavailable, match="turned out to be kept"):
            await commit(node.lane, router, batch)
        assert node.lane.lag == 1
        node.lane.rewind()
        await route(node, router)
        assert await keys(node) == ["s1"]


# Bounds in bytes.


async def test_a_row_may_be_routed_in_parts(backend: SqliteBackend, router: Router) -> None:
    """If a commit ends in the middle of a row of the inbox, the rest of the row comes next, after a start too."""
    async with backend.opened() as node:
        await asyncio.gather(*(node.inbox.append(posted("A1", session_id=f"s{number}")) for number in range(3)))
        batch = await node.lane.read(COUNT_MAX)
        assert len(batch.notifications) == 3
        part = batch._replace(next_position=1, positions=[0], notifications=batch.notifications[:1])
        await commit(node.lane, router, part)
        node.lane.rewind()
        rest = await node.lane.read(COUNT_MAX)
        assert (rest.position, list(rest.positions), [each.key for each in rest.notifications]) == (
            1,
            [1, 2],
            ["s1", "s2"],
        )
    async with backend.opened() as node:
        assert node.lane.lag == 2
        await route(node, router)
        assert await keys(node) == ["s0", "s1", "s2"]


async def test_a_damaged_row_in_parts_is_told_once(backend: SqliteBackend, router: Router) -> None:
    """A row that is damaged after a part of it was routed is one dead letter, and the rows behind it go on."""
    async with backend.opened() as node:
        await asyncio.gather(*(node.inbox.append(posted("A1", session_id=f"s{number}")) for number in range(3)))
        batch = await node.lane.read(COUNT_MAX)
        part = batch._replace(next_position=1, positions=[0], notifications=batch.notifications[:1])
        await commit(node.lane, router, part)
        await append(node, posted("A1", session_id="s3"))
    with raw(backend.directory) as connection:
        connection.execute("UPDATE inbox SET crc = crc + 1 WHERE position = 0")
    async with backend.opened() as node:
        await route(node, router)
        assert await keys(node) == ["s0", "s3"]
        assert len(await everything(node.reader, "qod.dead-letter")) == 1
        assert node.lane.lag == 0


async def test_a_page_has_so_many_bytes(backend: SqliteBackend, router: Router) -> None:
    """A page ends before it is longer than asked for, but has at least one record; the next one goes on there."""
    async with backend.opened() as node:
        for size in (10, 10, 50_000, 10):
            await append(node, posted(b"{" * size))
        await route(node, router)
        cursor = await node.reader.beginning("qod.dead-letter")
        sizes = []
        while records := await node.reader.records("qod.dead-letter", cursor, COUNT_MAX, 5_000):
            sizes.append(len(records))
        assert sizes == [2, 1, 1]


async def test_a_batch_has_so_many_bytes(backend: SqliteBackend) -> None:
    """However many notifications are asked for, a batch ends after some megabytes."""
    async with backend.opened() as node:
        for _ in range(12):
            await append(node, posted(b"{" * 1_000_000))
        sizes: list[int] = []
        while sum(sizes) < 12:
            sizes.append(len((await node.lane.read(COUNT_MAX)).notifications))
        assert max(sizes) < 8
    async with backend.opened() as node:
        assert len((await node.lane.read(COUNT_MAX)).notifications) < 8


async def test_retention_takes_so_many_bytes_at_once(tmp_path: Path, router: Router) -> None:
    """Of long rows fewer are removed at once than of short ones, and the result says that there may be more."""
    with retaining(tmp_path) as node:
        for _ in range(24):
            await node.inbox.append(posted(b"{" * 1_000_000))
        while node.lane.lag:
            await commit(node.lane, router, await node.lane.read(COUNT_MAX))
        before = rows(tmp_path)["inbox"]
        assert await node.retain(FAR_FUTURE, 0, 1_000) == 1_000
        assert 0 < rows(tmp_path)["inbox"] < before
        while await node.retain(FAR_FUTURE, 0, 1_000):
            pass
        assert rows(tmp_path)["inbox"] == 0


# Packing.

NOTIFICATIONS = st.lists(
    st.builds(
        Notification,
        st.binary(max_size=200),
        *[st.text(max_size=20)] * 2,
        st.integers(0, 2**53),
        *[st.text(max_size=20)] * 4,
    ),
    min_size=1,
    max_size=8,
)
MESSAGES = st.lists(
    st.builds(
        Message,
        st.just("qod.status"),
        st.text(max_size=20),
        st.one_of(st.none(), st.binary(max_size=200)),
        st.lists(st.tuples(st.text(max_size=9), st.text(max_size=20)), max_size=4),
        st.integers(-(2**53), 2**53),
    ),
    min_size=1,
    max_size=8,
)


@given(NOTIFICATIONS)
def test_packed_notifications_come_out_alike(notifications: list[Notification]) -> None:
    """Notifications with any bytes and texts are the same after packing and unpacking, in order."""
    pack = pack_notifications(notifications)
    assert pack.size == len(notifications)
    assert unpack_notifications(pack.blob, pack.crc) == notifications


@given(MESSAGES)
def test_packed_messages_come_out_alike(messages: list[Message]) -> None:
    """The same holds for messages, with an empty value and none told apart."""
    pack = pack_messages(messages)
    assert pack.size == len(messages)
    assert unpack_messages("qod.status", pack.blob, pack.crc) == messages


@given(NOTIFICATIONS, st.data())
def test_a_damaged_pack_is_told(notifications: list[Notification], data: st.DataObject) -> None:
    """Any byte changed, and any part cut off, is found."""
    pack = pack_notifications(notifications)
    at = data.draw(st.integers(0, len(pack.blob) - 1))
    flipped = bytearray(pack.blob)
    flipped[at] ^= data.draw(st.integers(1, 255))
    for blob in (bytes(flipped), pack.blob[:at]):
        with pytest.raises(Damaged):
            unpack_notifications(blob, pack.crc)
