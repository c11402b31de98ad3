"""One spool for all edges of a machine: edge 0 keeps it, the others hand it what Kafka could not take.

A session's next notification may come to another edge than the one before. Had each edge a spool of its own, an edge
that reaches Kafka would overtake what waits on the disk of another.

So there is one spool, and a mark in memory that all edges see: whether anything may be in the spool. While the mark is
off, all that was answered 204 is in Kafka, and every edge appends there itself. While it is on, every edge hands what
comes to the spool. The mark is set before anything is written, and taken back when all that was written is in Kafka.
The edges need no agreement about either moment: what is on its way, to Kafka or to the spool, has no answer yet, so its
sender has not posted what must stay behind it.

The mark begins on, as nobody has looked at the disk yet. It outlives the processes of edges, but not the process that
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

#: What is handed over at a time. An edge waits for the answer before it hands over more, so that all else waits where
#: its time limit is seen to.
_GROUP_MAX = 512
_GROUP_BYTES_MAX = 1024 * 1024

#: What goes before a pack: its length in bytes, its CRC-32, and whether Kafka failed to take what is in it.
_HEAD = Struct("<II?")
#: What goes before an answer: its length in bytes.
_ANSWER_HEAD = Struct("<I")

_AGAIN_SECONDS = 0.05
_EXPIRE_SECONDS_MIN = 0.1
#: At a shutdown edge 0 waits so long for the others: theirs may be the last requests.
_LAST_SECONDS_MAX = 15.0


class SharedSpool:
    """What edges share, made by the process that starts them, before it does.

    A connection is a pair of sockets, one of which is sent to edge 0. So it has no name that others could connect to,
    needs no room on a disk, and waits while edge 0 is being started again.
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
        """Edge 0 alone sets the mark."""
        self._mark[0] = is_open

    def connect(self) -> socket.socket:
        """A connection to edge 0. Raises OSError where too many wait for it."""
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
        """Let go of what this process has of it."""
        self._asking.close()
        self._asked.close()
        self._mark.close()

    async def serve(self, spool: Spool) -> None:
        """Keep for the other edges, for ever; when cancelled, until they have ended as well."""
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
    """A notification on its way to the spool."""

    began: float
    notification: Notification
    kept: asyncio.Future[None]
    failed: bool  # whether Kafka could not take it


class DistantSpool:
    """The spool as all edges but the first have it: `receiver.inbox.Inbox` is the contract. `run` hands over, for ever.

    What waits is bounded by what the edge admits at a time, and none of it waits longer than the time limit.
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
        """Why notifications go to the disk, in words for an operator; empty while they don't."""
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
        """Hand over what waits. What edge 0 did not answer before it ended is handed over again when it is back."""
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
        """Take what is handed over next, unless there is something that edge 0 did not answer."""
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
        """Refuse what has waited too long."""
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
    """Keep what another edge hands over, until that edge has ended."""
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
