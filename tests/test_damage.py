"""Damage in any byte of an embedded node's file or log, and files that disappear while they are served."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import apsw
import httpx2
import pytest

from receiver.backends.sqlite.check import Checked, Finding, check
from receiver.backends.sqlite.node import ServedDirectory, SqliteReader
from receiver.backends.sqlite.schema import FILE_NAME, MARK_NAME
from receiver.core.errors import Unavailable
from receiver.core.router import Router
from tests.limits import SECONDS_MAX
from tests.nodes import COUNT_MAX, SESSIONS_TOPIC, Node, append, everything, route
from tests.receiver_process import ReceiverProcess
from tests.samples import body, posted, told

T = TypeVar("T")

SESSIONS = [f"s{number}" for number in range(24)]
#: The schema and the beginning of the file, without which nothing can be read.
FIRST_PAGE_BYTES = 4096


class Serving(NamedTuple):
    """A node, and the places that were reported as damaged."""

    node: Node
    places: dict[str, str]
    sqlite: ServedDirectory

    async def patiently(self, what: Callable[[], Awaitable[T]]) -> T:
        """The result once the file is made anew, as it is at the next look."""
        try:
            return await what()
        except Unavailable:
            await self.sqlite.look()
            self.node.lane.rewind()
            return await what()


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Serving]:
    """Serve the directory as `embedded` does."""
    places: dict[str, str] = {}

    def tell(place: str, why: str) -> None:
        places.setdefault(place, why)

    node = ServedDirectory(
        directory, sessions_topic=SESSIONS_TOPIC, append_timeout_seconds=SECONDS_MAX, passed_over=tell
    )
    try:
        reader = SqliteReader(directory, SESSIONS_TOPIC, tell, node.suspect)
        try:
            yield Serving(Node(node.inbox, node.lane, reader), places, node)
        finally:
            reader.close()
    finally:
        node.close()


async def post(node: Node, *session_ids: str) -> None:
    """Keep the beginnings of sessions."""
    for session_id in session_ids:
        await append(node, posted(body(told("A1", session_id)[0]), session_id=session_id))


async def fill(directory: Path, router: Router, killed: Path | None = None) -> None:
    """Make sessions, most of them routed. `killed` is the directory as a kill would leave it, with its log."""
    async with serving(directory) as (node, _, _):
        for number in range(0, 20, 2):
            await post(node, *SESSIONS[number : number + 2])
            await route(node, router)
        await post(node, *SESSIONS[20:])
        if killed is not None:
            shutil.copytree(directory, killed)


async def outcome(directory: Path, router: Router) -> tuple[set[str], dict[str, str]]:
    """Serve the directory, and route another session. Returns the sessions that a topic lacks, and the reports."""
    async with serving(directory) as served:
        node = served.node
        await post(node, "new")

        async def routed() -> None:
            node.lane.rewind()
            while node.lane.lag:
                await route(node, router)

        await served.patiently(routed)
        records = await served.patiently(lambda: everything(node.reader, "qod.status"))
        sessions = await served.patiently(lambda: node.reader.sessions(None, COUNT_MAX))
        await served.patiently(lambda: everything(node.reader, SESSIONS_TOPIC))
        await served.patiently(node.reader.session_counts)
        await served.patiently(lambda: served.sqlite.retain(0, 0, COUNT_MAX))
        whole = {each.message.key for each in records} & {each.session_id for each in sessions}
    return {*SESSIONS, "new"} - whole, served.places


@pytest.mark.long
async def test_no_damaged_byte_stops_a_file(tmp_path: Path, router: Router) -> None:
    """With any byte damaged the next start serves; missing records are reported, and new ones are routed."""
    sound, damaged = tmp_path / "sound", tmp_path / "damaged"
    await fill(sound, router)
    content = (sound / FILE_NAME).read_bytes()
    losses = 0
    for at in range(FIRST_PAGE_BYTES + 3, len(content), 389):
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(sound, damaged)
        (damaged / FILE_NAME).write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        missing, places = await outcome(damaged, router)
        assert "new" not in missing, f"byte {at}"
        assert places or not missing, f"byte {at}: {missing} are missing and nothing is told"
        losses += bool(missing)
    assert losses


@pytest.mark.parametrize("share", [*(number / 40 for number in range(40)), None])
async def test_a_damaged_log_is_told(tmp_path: Path, router: Router, share: float | None) -> None:
    """After a log that ends too early, or is gone (None), the next start reports the number of lost notifications."""
    killed = tmp_path / "killed"
    await fill(tmp_path / "live", router, killed)
    log = killed / f"{FILE_NAME}-wal"
    content = bytearray(log.read_bytes())
    if share is None:
        log.unlink()
    else:
        content[int(share * len(content))] ^= 0xFF
        log.write_bytes(content)
    missing, places = await outcome(killed, router)
    assert "new" not in missing
    lost = [why for why in places.values() if why.startswith("lost: ")]
    assert len(lost) == bool(missing)
    assert not missing or f"lost: {len(missing)} notification" in lost[0]


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8])
async def test_no_position_of_a_topic_comes_twice(tmp_path: Path, router: Router, share: float) -> None:
    """No new record gets the position of one that was lost with the log: a consumer's cursor would miss it."""
    await fill(tmp_path / "whole", router, tmp_path / "cut")
    async with serving(tmp_path / "whole") as (node, _, _):
        behind = {
            topic: (await everything(node.reader, topic))[-1].position + 1 for topic in ("qod.status", SESSIONS_TOPIC)
        }
    log = tmp_path / "cut" / f"{FILE_NAME}-wal"
    os.truncate(log, int(share * log.stat().st_size))
    async with serving(tmp_path / "cut") as (node, places, _):
        kept = {each.position for topic in behind for each in await everything(node.reader, topic)}
        await post(node, "new")
        while node.lane.lag:
            await route(node, router)
        for topic, end in behind.items():
            new = [each for each in await everything(node.reader, topic) if each.message.key == "new"]
            assert min(each.position for each in new) >= end, topic
        assert any(why.startswith("lost: ") for why in places.values())
    assert len(kept) < sum(behind.values())


async def test_a_sound_log_is_not_complained_of(tmp_path: Path, router: Router) -> None:
    """The files after a kill are whole, and nothing is reported."""
    killed = tmp_path / "killed"
    await fill(tmp_path / "live", router, killed)
    assert await outcome(killed, router) == (set(), {})


async def test_what_is_lost_is_a_dead_letter(tmp_path: Path, router: Router) -> None:
    """For an older file in the place of a newer one, one dead letter stands for the missing part, and it is reported
    once.
    """
    async with serving(tmp_path) as (node, _, _):
        await post(node, "s0")
    old = (tmp_path / FILE_NAME).read_bytes()
    async with serving(tmp_path) as (node, _, _):
        await post(node, "s1", "s2", "s3")
    (tmp_path / FILE_NAME).write_bytes(old)
    async with serving(tmp_path) as (node, places, _):
        await route(node, router)
        await post(node, "s4")
        await route(node, router)
        assert [each.message.key for each in await everything(node.reader, "qod.status")] == ["s0", "s4"]
        assert len(await everything(node.reader, "qod.dead-letter")) == 1
        assert places["qod.inbox-0-1"] == "lost: 3 notifications that had been kept"
    async with serving(tmp_path) as (_, places, _):
        assert places == {}


async def test_a_file_of_an_earlier_release_is_read(tmp_path: Path, router: Router) -> None:
    """Sessions without checksums are served and checked, and get checksums as they change."""
    await fill(tmp_path, router)
    with apsw.Connection(str(tmp_path / FILE_NAME)) as other:
        other.execute("ALTER TABLE sessions DROP COLUMN crc; PRAGMA user_version = 1")
    other.close()
    (tmp_path / f"{FILE_NAME}{MARK_NAME}").unlink()
    reader = SqliteReader(tmp_path, SESSIONS_TOPIC)
    assert len(await reader.sessions(None, COUNT_MAX)) == 20
    reader.close()
    assert [each for each in check(tmp_path, "qod") if isinstance(each, Finding)] == []
    assert await outcome(tmp_path, router) == (set(), {})


async def test_damaged_sessions_hold_up_no_other(tmp_path: Path, router: Router) -> None:
    """If many of the least recently touched sessions are damaged, those behind them are found."""
    await fill(tmp_path, router)
    with apsw.Connection(str(tmp_path / FILE_NAME)) as other:
        other.execute("UPDATE sessions SET crc = crc + 1 WHERE position < 12")
    other.close()
    async with serving(tmp_path) as (node, places, _):
        _, oldest = await node.lane.oldest(2)
        assert [each.session_id for each in oldest] == SESSIONS[12:14]
        cursor = await node.reader.beginning(SESSIONS_TOPIC)
        assert len(await node.reader.records(SESSIONS_TOPIC, cursor, 3)) == 3
    assert places["qod.sessions-0-3"] == "damaged: its checksum is wrong"


# A file that disappears while it is served.


def move(path: Path) -> None:
    """Put the file elsewhere."""
    path.rename(path.with_name("elsewhere"))


def replace(path: Path) -> None:
    """Put a copy in its place, like an operator who restores a backup."""
    copy = path.with_name("copy")
    shutil.copyfile(path, copy)
    copy.replace(path)


@pytest.mark.parametrize("go", [Path.unlink, move, replace, lambda path: shutil.rmtree(path.parent)])
async def test_nothing_is_kept_where_nobody_finds_it(
    tmp_path: Path, router: Router, go: Callable[[Path], object]
) -> None:
    """Once the file is deleted, moved or replaced, appends and reads are Unavailable, and stay so."""
    directory = tmp_path / "data"
    async with serving(directory) as (node, _, sqlite):
        await post(node, "s0")
        await asyncio.sleep(0.2)  # the result of a look is kept for this long
        go(directory / FILE_NAME)
        for _ in range(3):
            with pytest.raises(Unavailable, match="while it was served"):
                await post(node, "s1")
            with pytest.raises(Unavailable, match="while it was served"):
                await sqlite.look()
            assert "while it was served" in node.inbox.trouble
            await asyncio.sleep(0.2)
        with pytest.raises(Unavailable):
            await route(node, router)


async def test_a_file_that_comes_back_is_served_on(tmp_path: Path, router: Router) -> None:
    """Notifications kept before the file was moved away, and after it was put back, are routed."""
    path = tmp_path / FILE_NAME
    async with serving(tmp_path) as (node, _, sqlite):
        await post(node, "s0")
        await asyncio.sleep(0.2)
        path.rename(tmp_path / "elsewhere")
        with pytest.raises(Unavailable):
            await post(node, "refused")
        (tmp_path / "elsewhere").rename(path)
        await post(node, "s1")
        await sqlite.retain(0, 0, 1)
        assert node.inbox.trouble == ""
        node.lane.rewind()
        await route(node, router)
        keys = [each.message.key for each in await everything(node.reader, "qod.status")]
        assert [key for key in keys if key != "refused"] == ["s0", "s1"]


async def test_a_log_that_goes_is_made_anew(tmp_path: Path, router: Router) -> None:
    """Deleting the log while it is served loses nothing that was kept, not even after a kill."""
    directory, killed = tmp_path / "live", tmp_path / "killed"
    async with serving(directory) as (node, places, _):
        await post(node, "s0")
        (directory / f"{FILE_NAME}-wal").unlink()
        await post(node, "s1")
        await asyncio.sleep(0.2)
        await post(node, "s2")
        shutil.copytree(directory, killed)
        await route(node, router)
        assert {each.message.key for each in await everything(node.reader, "qod.status")} == {"s0", "s1", "s2"}
        assert places == {}
    async with serving(killed) as (node, places, _):
        assert node.lane.lag == 3
        assert places == {}


# From outside.


def readiness(process: ReceiverProcess) -> tuple[int, dict[str, str]]:
    """The status and the checks of /readyz."""
    response = httpx2.get(f"{process.ops_url}/readyz", timeout=SECONDS_MAX)
    return response.status_code, response.json()["checks"]


@pytest.mark.long
def test_damage_is_on_readyz(tmp_path: Path) -> None:
    """After a log that ends too early the receiver serves, and reports it on /readyz, in the log and in a metric."""
    process = ReceiverProcess(tmp_path)
    assert process.post(*(body(told("A1", session_id)[0]) for session_id in SESSIONS[:5])) == [204] * 5
    process.kill()
    log = tmp_path / f"{FILE_NAME}-wal"
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 1
    log.write_bytes(content)
    process = ReceiverProcess(tmp_path)
    assert process.post(body(told("A1", "new")[0])) == [204]
    status, checks = readiness(process)
    assert status == 200
    assert checks["records"].startswith("2 passed over, each in the log, such as qod.inbox-0-")
    assert process.metric("qod_receiver_records_passed_over_total") == 2
    assert b"record_passed_over" in process.log.read_bytes()
    assert process.terminate() == 0


@pytest.mark.long
def test_no_204_into_nowhere(tmp_path: Path) -> None:
    """Once its file is deleted a receiver is not ready, even without a post, and answers 503."""
    process = ReceiverProcess(tmp_path)
    assert process.post(body(told("A1")[0])) == [204]
    (tmp_path / FILE_NAME).unlink()
    deadline = time.monotonic() + SECONDS_MAX
    while readiness(process)[0] != 503 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "while it was served" in readiness(process)[1]["inbox"]
    headers = {"authorization": f"Bearer {process.token}", "content-type": "application/json"}
    for _ in range(3):
        answer = httpx2.post(process.edge_url, content=body(told("A1")[0]), headers=headers, timeout=SECONDS_MAX)
        assert answer.status_code == 503
    assert process.terminate() == 0
    assert not (tmp_path / FILE_NAME).exists()


# `check-data`.


def checked(directory: Path) -> tuple[int, Sequence[dict[str, str]]]:
    """The command's exit status and its output."""
    command = [sys.executable, "-m", "receiver", "check-data", "--data", str(directory), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


async def test_a_sound_directory_passes(tmp_path: Path, router: Router) -> None:
    """The command reads a directory while a process serves it and afterwards, writable or not."""
    await fill(tmp_path / "data", router, tmp_path / "killed")
    async with serving(tmp_path / "data") as (node, _, _):
        assert checked(tmp_path / "data")[0] == 0
        await post(node, "s0")
    for name in ("data", "killed"):
        before = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        (tmp_path / name).chmod(0o500)
        status, told = checked(tmp_path / name)
        (tmp_path / name).chmod(0o700)
        assert (status, [each["kind"] for each in told]) == (0, ["checked"])
        after = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        assert {each: after[each] for each in (FILE_NAME, f"{FILE_NAME}{MARK_NAME}")} == {
            each: before[each] for each in (FILE_NAME, f"{FILE_NAME}{MARK_NAME}")
        }


def sql(statement: str) -> Callable[[Path], None]:
    """Change the file as another program."""

    def change(directory: Path) -> None:
        with apsw.Connection(str(directory / FILE_NAME)) as other:
            other.execute(statement)
        other.close()

    return change


def old_copy(directory: Path) -> None:
    """Replace the file by one that lacks the last notifications."""
    sql("DELETE FROM inbox WHERE position >= 22; UPDATE lane SET inbox_position = 22")(directory)


def zeros(directory: Path) -> None:
    """Overwrite a page in the middle with zeros."""
    path = directory / FILE_NAME
    content = bytearray(path.read_bytes())
    content[-8192:-4096] = bytes(4096)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "place", "what"),
    [
        (sql("UPDATE inbox SET crc = crc + 1 WHERE position = 3"), "qod.inbox-0-3", "damaged: 1 notification"),
        (sql("DELETE FROM inbox WHERE position IN (3, 4)"), "qod.inbox-0-3", "missing: 2 notifications"),
        (sql("UPDATE messages SET pack = x'00' WHERE position = 4"), "qod.status-0-4", "damaged: 2 records"),
        (sql("DELETE FROM messages WHERE position = 4"), "qod.status-0-4", "missing: 2 records"),
        (sql("UPDATE sessions SET key = 'other' WHERE position = 5"), "qod.sessions-0-5", "damaged: its checksum"),
        (sql("UPDATE sessions SET value = NULL WHERE position = 5"), "qod.sessions-0-5", "damaged: its checksum"),
        (sql("DELETE FROM lane"), "qod.inbox-0", "unreadable: how far routing is"),
        (old_copy, "qod.inbox-0-22", "missing: 2 notifications that had been kept"),
        (zeros, "", "SQLite: "),
        (lambda directory: (directory / FILE_NAME).write_bytes(b"no database" * 999), "", "can't be read"),
        (lambda directory: (directory / FILE_NAME).unlink(), "", "missing, though it once held 24"),
    ],
)
async def test_what_is_wrong_is_named(
    tmp_path: Path, router: Router, damage: Callable[[Path], None], place: str, what: str
) -> None:
    """Each kind of damage is reported with its place, in the directory and in a spool, and the exit status is 1."""
    for directory in (tmp_path / "data", tmp_path / "data" / "spool" / "0"):
        directory.mkdir(parents=True)
        await fill(directory, router)
        damage(directory)
        status, told = checked(tmp_path / "data")
        assert status == 1
        wrong = [each for each in told if each["kind"] == "wrong"]
        assert any(each["place"].startswith(place) and each["what"].startswith(what) for each in wrong)
        shutil.rmtree(tmp_path / "data")


async def test_a_damaged_file_is_set_aside(tmp_path: Path, router: Router) -> None:
    """An unreadable file is made anew from what can be read; the old one stays beside it, and the check says so."""
    await fill(tmp_path, router)
    zeros(tmp_path)
    missing, places = await outcome(tmp_path, router)
    assert missing < set(SESSIONS)
    assert f"{FILE_NAME}-damaged-1" in places
    assert [each for each in check(tmp_path, "qod") if isinstance(each, Checked) and each.is_set_aside]
    assert os.stat(tmp_path / FILE_NAME).st_mode & 0o777 == 0o600  # noqa: PTH116  # as at any other path


def test_nothing_is_no_data(tmp_path: Path) -> None:
    """The check of a directory without a file fails."""
    assert checked(tmp_path)[0] == 1
