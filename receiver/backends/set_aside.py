"""Notifications that Kafka refuses as they are, each in a file of its own, so that nothing behind them waits.

They were answered 204, so they are kept until a topic accepts them: each is retried now and then. Notifications behind
one went on without it, so it may be late when it arrives.
"""

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import orjson
from msgspec.structs import asdict

from receiver.backends.directory import sync_directory, write_durably
from receiver.core.errors import Unavailable, Unwritable
from receiver.core.notification import Notification, envelope_again
from receiver.inbox import Inbox

_SUFFIX = ".json"
_INTERVAL_SECONDS = 60.0
#: Interval while the inbox fails.
_INTERVAL_SECONDS_SOON = 2.0


class Gauges(Protocol):
    """Receives the number of notifications that are set aside."""

    def set_aside(self, count: int, reason: str) -> None:
        """`count` notifications are set aside. `reason` tells why one more is; it is empty if none was added."""
        ...


class SetAside:
    """A directory of such notifications, of about `bytes_max` bytes at most. It is made when the first one comes."""

    def __init__(self, directory: Path, gauges: Gauges, *, bytes_max: int) -> None:
        self._directory = directory
        self._gauges = gauges
        self._bytes_max = bytes_max
        self._sizes: dict[Path, int] = {}
        self._why = "see the log of when they came"
        self._look()

    @property
    def count(self) -> int:
        """The number of notifications set aside."""
        return len(self._sizes)

    @property
    def notice(self) -> str:
        """Their number and the latest reason, in words for an operator; empty if there are none."""
        return f"{self.count} notifications are set aside in {self._directory}: {self._why}" if self.count else ""

    def keep(self, notification: Notification, why: str) -> None:
        """Keep a notification durably; a copy of one that is kept already has no effect. Blocks. Raises Unavailable."""
        told = {**asdict(notification), "body": b64encode(notification.body).decode()}
        content = orjson.dumps(told, option=orjson.OPT_INDENT_2)
        path = self._directory / f"{notification.received_micros}-{sha256(content).hexdigest()[:16]}{_SUFFIX}"
        if sum(self._sizes.values()) + len(content) > self._bytes_max:
            raise Unavailable(f"no room to set aside a notification that Kafka refuses: {why}", reason="spool")
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_durably(path, content)
            sync_directory(self._directory.parent)
        except OSError as error:
            raise Unavailable(f"a notification can't be set aside: {error.strerror}", reason="spool") from error
        self._sizes[path] = len(content)
        self._why = why
        self._gauges.set_aside(self.count, why)

    async def run(self, inbox: Inbox) -> None:
        """Retry each notification now and then, for ever."""
        while True:
            self._look()
            interval_seconds = _INTERVAL_SECONDS
            for path in self._oldest_first():
                try:
                    notification = await asyncio.to_thread(_read, path)
                    await inbox.append(notification)
                    await asyncio.to_thread(path.unlink, missing_ok=True)
                except Unwritable as error:
                    self._why = error.message
                    continue
                except Unavailable:
                    interval_seconds = _INTERVAL_SECONDS_SOON
                    break
                except (OSError, ValueError, TypeError) as error:
                    self._why = f"{path.name} can't be read: {type(error).__name__}"
                    continue
                self._sizes.pop(path, None)
                self._gauges.set_aside(self.count, "")
            await asyncio.sleep(interval_seconds)

    def _look(self) -> None:
        self._sizes = {path: path.stat().st_size for path in self._directory.glob(f"*{_SUFFIX}")}
        self._gauges.set_aside(self.count, "")

    def _oldest_first(self) -> Sequence[Path]:
        return sorted(self._sizes, key=lambda path: int(path.name.partition("-")[0]))


def _read(path: Path) -> Notification:
    """Read a notification back. Raises OSError, ValueError and TypeError."""
    told = orjson.loads(path.read_bytes())
    envelope = envelope_again(told.pop("envelope", ()))  # files of earlier releases have none
    return Notification(**{**told, "body": b64decode(told["body"]), "envelope": envelope})
