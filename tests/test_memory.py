"""The peak memory of a real process, with a backlog of the longest bodies that the settings allow."""

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from receiver.backends.sqlite.node import ServedDirectory
from receiver.core.notification import Notification
from tests.limits import SECONDS_MAX
from tests.nodes import SESSIONS_TOPIC
from tests.receiver_process import ReceiverProcess
from tests.samples import body, posted, told

MEBIBYTE = 1024 * 1024
#: The README's bound without sessions: the process itself, and the limits of its parts.
BOUND_BYTES = 320 * MEBIBYTE
IN_FLIGHT_BYTES = 64 * MEBIBYTE


def large(number: int, body_bytes: int) -> Notification:
    """A notification of the greatest length. Every second one is unreadable, so that a letter repeats it."""
    session_id = f"s{number}"
    begin = body(told("A1", session_id)[0])[:-1] + b',"more":"'
    text = begin + b"x" * (body_bytes - len(begin) - 2) + (b'"}' if number % 2 else b'"]')
    return posted(text, session_id=session_id)._replace(key=session_id)


def keep(directory: Path, count: int, body_bytes: int) -> None:
    """Make a backlog in a directory."""

    async def append() -> None:
        node = ServedDirectory(directory, sessions_topic=SESSIONS_TOPIC, append_timeout_seconds=SECONDS_MAX)
        try:
            for first in range(0, count, 16):
                some = [large(number, body_bytes) for number in range(first, min(first + 16, count))]
                await asyncio.gather(*map(node.inbox.append, some))
        finally:
            node.close()

    asyncio.run(append())


def peak_bytes(process: ReceiverProcess) -> int:
    """The peak memory of the process."""
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def pages(process: ReceiverProcess, topic: str) -> Iterator[int]:
    """All pages of a topic, as long as they may be; returns the number of records of each."""
    cursor = "beginning"
    while True:
        url = f"{process.ops_url}/topics/{topic}"
        told_now = httpx2.get(url, params={"from": cursor, "limit": "10000"}, timeout=SECONDS_MAX).json()
        if not told_now["records"]:
            return
        yield len(told_now["records"])
        cursor = told_now["next"]


def flood(process: ReceiverProcess, body_bytes: int) -> None:
    """Post twice as much at once as may be in flight; refused posts are not repeated."""
    headers = {"authorization": f"Bearer {process.token}", "content-type": "application/json"}
    count = min(2 * IN_FLIGHT_BYTES // body_bytes, 128)

    def post(number: int) -> int:
        content = large(number, body_bytes).body
        return httpx2.post(process.edge_url, content=content, headers=headers, timeout=SECONDS_MAX).status_code

    with ThreadPoolExecutor(count) as threads:
        assert set(threads.map(post, range(count))) <= {204, 400, 429, 503}


@pytest.mark.long
@pytest.mark.parametrize(("count", "body_bytes"), [(4_000, 64 * 1024), (300, MEBIBYTE), (24, 16 * MEBIBYTE)])
def test_memory_is_bounded_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, body_bytes: int
) -> None:
    """A backlog is routed, read in pages by several readers, replayed and posted to, within the bound."""
    monkeypatch.setenv("QOD_RECEIVER_EDGE__BODY_BYTES_MAX", str(body_bytes))
    keep(tmp_path, count, body_bytes)
    process = ReceiverProcess(tmp_path, "--log-level", "warning")
    process.wait_until_routed(count)
    routed = peak_bytes(process)
    with ThreadPoolExecutor(4) as threads:
        found = [sum(each) for each in threads.map(lambda _: list(pages(process, "dead-letter")), range(4))]
    assert found == [count // 2] * 4
    read = peak_bytes(process)
    answer = httpx2.post(f"{process.ops_url}/replay", json={}, timeout=SECONDS_MAX)
    assert answer.status_code == 200
    replayed = peak_bytes(process)
    flood(process, body_bytes)
    figures = [each // MEBIBYTE for each in (routed, read, replayed, peak_bytes(process))]
    assert replayed < BOUND_BYTES + 8 * body_bytes, f"{figures} MiB"
    assert peak_bytes(process) < BOUND_BYTES + 8 * body_bytes + 3 * IN_FLIGHT_BYTES, f"{figures} MiB"
    process.terminate()
