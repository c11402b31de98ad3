"""One spool for all edges of a machine: edge 0 keeps it, and the others hand over what Kafka could not take.

A session's next notification may come to another edge than the one before. If each edge had its own spool, an edge that
reaches Kafka would overtake notifications on the disk of another edge.

So there is one spool, and a mark in memory that all edges see: whether anything may be in the spool. While the mark is
off, everything that was answered 204 is in Kafka, and every edge appends there itself. While it is on, every edge hands
its notifications to the spool. The mark is set before anything is written, and cleared when all of it is in Kafka. The
edges need no agreement about either moment: a notification on its way, to Kafka or to the spool, has no answer yet, so
its sender has not posted anything that must stay behind it.

The mark is on at first, as the disk has not been read yet. It outlives the edges' processes, but not the process that
started them, with which all of them end.
"""

import asyncio
import contextlib
import mmap
import socket
from collections import deque
from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

import orjson

from receiver.backends.packing import Damaged, pack_notifications, unpack_notifications
from receiver.backends.spool import FallibleInbox, Spool
from receiver.core.errors import Unavailable
from receiver.core.notification import Notification
from receiver.inbox import Told, told_later

#: Notifications handed over at a time. An edge waits for the answer before it hands over more; all others wait in the
#: edge, where their time limit is enforced.
_GROUP_MAX = 512
_GROUP_BYTES_MAX = 1024 * 1024

#: Header of a pack: its length in bytes, its CRC-32, and whether Kafka had failed to take its notifications.
_HEAD = Struct("<II?")
#: Header of an answer: its length in bytes.
_ANSWER_HEAD = Struct("<I")

_AGAIN_SECONDS = 0.05
_EXPIRE_SECONDS_MIN = 0.1
#: At a shutdown edge 0 waits this long for the other edges, whose requests may be the last.
_LAST_SECONDS_MAX = 15.0


class SharedSpool:
    """What edges share. The process that starts them makes it first.

    A connection is a pair of sockets, one of which is sent to edge 0. So it has no name that others could connect to,
    needs no room on a disk, and stays open while edge 0 is being restarted.
    """

    def __init__(self) -> None:
        self._mark = mmap.mmap(-1, 1)
        self._mark[0] = True
        self._asking, self._asked = socket.socketpair()
        self._asking.setblocking(False)
        self._asked.setblocking(False)

    @property
    def is_open(self) -> bool:
        """Whether anything may be in the spool."""
        return bool(self._mark[0])

    def set_open(self, is_open: bool) -> None:
        """Set the mark. Only edge 0 does."""
        self._mark[0] = is_open

    def connect(self) -> socket.socket:
        """A connection to edge 0. Raises OSError if too many wait for it."""
        mine, other = socket.socketpair()
        with other:
            try:
                socket.send_fds(self._asking, [b"c"], [other.fileno()])
            except OSError:
                mine.close()
                raise
        mine.setblocking(False)
        return mine

    def close(self) -> None:
        """Release this process's share of it."""
        self._asking.close()
        self._asked.close()
        self._mark.close()

    async def serve(self, spool: Spool) -> None:
        """Keep notifications for the other edges, for ever; when cancelled, until those edges have ended too."""
        loop = asyncio.get_running_loop()
        serving: set[asyncio.Task[None]] = set()

        def accept() -> None:
            with contextlib.suppress(BlockingIOError):
                _, descriptors, _, _ = socket.recv_fds(self._asked, 1, 1)
                for descriptor in descriptors:
                    task = asyncio.create_task(_serve(spool, socket.socket(fileno=descriptor)))
                    serving.add(task)
                    task.add_done_callback(serving.discard)

        loop.add_reader(self._asked, accept)
        try:
            await loop.create_future()
        finally:
            if serving:
                await asyncio.wait(serving, timeout=_LAST_SECONDS_MAX)
            loop.remove_reader(self._asked)
            for task in serving:
                task.cancel()


class _Waiting(NamedTuple):
    """A notification that waits for the spool."""

    began: float
    notification: Notification
    kept: asyncio.Future[None]
    failed: bool  # whether Kafka failed to take it


class DistantSpool:
    """The spool, as the edges other than edge 0 use it. `receiver.inbox.Inbox` is the contract. `run` hands over.

    The edge's admission limits how many notifications wait here, and none waits longer than the time limit.
    """

    def __init__(self, shared: SharedSpool, inbox: FallibleInbox, *, append_timeout_seconds: float) -> None:
        self._shared = shared
        self._inbox = inbox
        self._timeout_seconds = append_timeout_seconds
        self._waiting: deque[_Waiting] = deque()
        self._group: list[_Waiting] = []
        self._filled = asyncio.Event()
        self._deadline: asyncio.TimerHandle | None = None
        self._trouble = ""

    @property
    def notice(self) -> str:
        """Why notifications go to the disk, in words for an operator; empty while they do not."""
        return f"notifications wait on disk, see edge 0: {self._inbox.trouble or 'draining'}" if self._is_open else ""

    @property
    def trouble(self) -> str:
        """See the contract."""
        return self._trouble if self._is_open else ""

    def append(self, notification: Notification) -> asyncio.Future[None]:
        """See the contract."""
        if not self._is_open:
            return self._inbox.append(notification, self._failed)
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hand_over(notification, kept, failed=False)
        return kept

    def take(self, notification: Notification, told: Told) -> None:
        """See the contract."""
        told_later(self.append(notification), told)

    async def run(self) -> None:
        """Hand over, for ever. A group that edge 0 did not answer before it ended is handed over again."""
        while True:
            with contextlib.suppress(OSError, EOFError):
                await self._connected(self._shared.connect())
            await asyncio.sleep(_AGAIN_SECONDS)

    @property
    def _is_open(self) -> bool:
        return self._shared.is_open

    async def _connected(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        try:
            while True:
                await self._filled.wait()
                self._fill_group()
                if not self._group:
                    self._filled.clear()
                    continue
                pack = pack_notifications([each.notification for each in self._group])
                writer.write(_HEAD.pack(len(pack.blob), pack.crc, self._group[0].failed) + pack.blob)
                await writer.drain()
                (answer_bytes,) = _ANSWER_HEAD.unpack(await reader.readexactly(_ANSWER_HEAD.size))
                self._settle(orjson.loads(await reader.readexactly(answer_bytes)))
        finally:
            writer.close()

    def _failed(self, notification: Notification, kept: asyncio.Future[None], _: Unavailable) -> None:
        self._hand_over(notification, kept, failed=True)

    def _hand_over(self, notification: Notification, kept: asyncio.Future[None], *, failed: bool) -> None:
        loop = asyncio.get_running_loop()
        self._waiting.append(_Waiting(loop.time(), notification, kept, failed))
        self._filled.set()
        if self._deadline is None:
            self._deadline = loop.call_later(self._timeout_seconds, self._expire)

    def _fill_group(self) -> None:
        """Take the next group, unless an earlier one is still unanswered."""
        self._group = [each for each in self._group if not each.kept.done()]
        if self._group:
            return
        group_bytes = 0
        while self._waiting and len(self._group) < _GROUP_MAX and group_bytes < _GROUP_BYTES_MAX:
            if self._group and self._waiting[0].failed != self._group[0].failed:
                break
            self._group.append(self._waiting.popleft())
            group_bytes += len(self._group[-1].notification.body)

    def _settle(self, refusal: Sequence[str] | None) -> None:
        self._trouble = refusal[0] if refusal else ""
        group, self._group = self._group, []
        for each in group:
            if each.kept.done():
                continue
            if refusal is None:
                each.kept.set_result(None)
            else:
                message, reason = refusal
                each.kept.set_exception(Unavailable(message, reason=reason))

    def _expire(self) -> None:
        """Refuse notifications that have waited too long."""
        loop = asyncio.get_running_loop()
        began_max = loop.time() - self._timeout_seconds
        for each in (*self._group, *self._waiting):
            if each.began <= began_max and not each.kept.done():
                self._trouble = f"edge 0, which keeps the spool, took longer than {self._timeout_seconds:g} s"
                each.kept.set_exception(Unavailable(self._trouble, reason="timeout"))
        self._waiting = deque(each for each in self._waiting if not each.kept.done())
        began = min((each.began for each in (*self._group, *self._waiting) if not each.kept.done()), default=None)
        self._deadline = None
        if began is not None:
            self._deadline = loop.call_later(max(began - began_max, _EXPIRE_SECONDS_MIN), self._expire)


async def _serve(spool: Spool, connection: socket.socket) -> None:
    """Keep what another edge hands over, until that edge ends."""
    connection.setblocking(False)
    with contextlib.suppress(OSError, EOFError, Damaged):
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        try:
            while True:
                pack_bytes, crc, failed = _HEAD.unpack(await reader.readexactly(_HEAD.size))
                notifications = unpack_notifications(await reader.readexactly(pack_bytes), crc)
                append = spool.keep if failed else spool.append
                outcomes = await asyncio.gather(*map(append, notifications), return_exceptions=True)
                answer = orjson.dumps(next((_refusal(each) for each in outcomes if each is not None), None))
                writer.write(_ANSWER_HEAD.pack(len(answer)) + answer)
                await writer.drain()
        finally:
            writer.close()


def _refusal(error: BaseException) -> Sequence[str]:
    if isinstance(error, Unavailable):
        return error.message, error.reason
    return f"the spool failed: {type(error).__name__}", "spool"
