"""The memory of a router's sessions on Kafka, in bytes: `python -m tests.benchmarks.memory`.

A lane's table is filled as at the opening of a lane, from records as a router writes them, without a broker.
"""

import argparse
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from receiver.backends.kafka.session_table import SessionTable
from receiver.core.message import Message
from receiver.core.router import Router
from receiver.core.session import Session
from receiver.core.session_record import session_of
from tests.samples import posted

_PAGE_BYTES = 4096


def records(count: int) -> Iterator[Message]:
    """The records of sessions that began and ended."""
    router = Router(prefix="qod", forget_after_seconds=3600)
    for number in range(count):
        session_id = f"{number * 2654435761 % 2**32:08x}-0000-4000-8000-{number:012x}"
        session: Session | None = None
        for text in ("A1", "U2:N"):
            notification = posted(text, session_id=session_id)
            decision = router.decide(notification, f"0-{number}", session, notification.received_micros)
            session = decision.session
        yield next(each for each in decision.messages if each.topic == "qod.sessions")


def resident_bytes() -> int:
    """The resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000, help="sessions")
    count: int = parser.parse_args().count
    table, seconds, before = SessionTable(), 0.0, resident_bytes()
    for message in records(count):
        began = time.process_time()
        table.put(message.key, session_of(message))
        seconds += time.process_time() - began
    taken = resident_bytes() - before
    print(f"Python {platform.python_version()}, {count:,} sessions: restored in {seconds / count * 1e6:.1f} µs each")
    print(f"{taken / 2**20:,.0f} MiB, {taken / count:,.0f} bytes each, {before / 2**20:,.0f} MiB before")


if __name__ == "__main__":
    main()
