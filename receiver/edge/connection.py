"""What a connection may cost: limits on the head of a request, on the time it takes, and on silence.

uvicorn has none of them: its httptools protocol takes a head of 8 MiB, and waits for ever for a slow one, for the rest
of a body, and for a connection that says nothing. `guarded(limits)` makes the protocol class that adds them.

Where there is no room for another connection, one of those that wait for nothing of ours makes room (`room.py`).

A refusal of ours never comes before the answer to an earlier request, which its sender would take it for, nor behind an
answer to the same one.

One sweep for all connections of a server, twice a second, compares their deadlines. That is also cheaper than what it
replaces: uvicorn sets and cancels a timer around every request.

A request that was taken is answered: also to a sender that has ended its side of the connection, also behind any number
of others, and also after this process stood still for longer than its limits. Where that is not possible any more, that
is told.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from http import HTTPStatus
from typing import Any, NamedTuple

import httptools
import orjson
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from receiver.edge.peers import Network, is_trusted
from receiver.edge.room import Room

_SWEEP_SECONDS = 0.5
_NEVER = float("inf")

#: Requests that wait for the answers to those before them. Few senders have even two; a flood of them is memory.
_PIPELINE_MAX = 32
_HEAD_END = b"\r\n\r\n"
#: Where a piece has more requests than that, so much of it is read at a time. The smallest request has 18 bytes.
_SLICE_BYTES = 2_048

#: Trailers are headers to httptools, and would be a request's to whoever reads them late enough. Nothing stays in this.
_TRAILERS: Any = deque(maxlen=0)


class ConnectionLimits(NamedTuple):
    """What one connection, and all of them together, may take."""

    header_bytes_max: int = 16_384
    header_timeout_seconds: float = 10
    body_timeout_seconds: float = 10
    idle_timeout_seconds: float = 75
    connections_max: int = 2_000
    address_connections_max: int = 1_000
    trusted_proxies: Sequence[Network] = ()  # have no share of an address


Ended = Callable[[str, str], None]
"""Hears why a connection was refused or ended before its time, and from which address it was."""


def guarded(limits: ConnectionLimits, ended: Ended) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn's `http` option that keeps these limits."""
    return type("LimitedProtocol", (GuardedProtocol,), shared(limits, ended))


def shared(limits: ConnectionLimits, ended: Ended) -> dict[str, Any]:
    """What all connections of a server share."""
    return {"limits": limits, "ended": staticmethod(ended), "room": Room()}


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which drops a connection that is past its deadline.

    There is one deadline at a time: for the next request to begin, for its head, or for its body. While a request is
    being answered there is none: that is the application's time.
    """

    limits: ConnectionLimits
    ended: Ended
    room: Room
    _sweep: asyncio.TimerHandle | None = None

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.since = 0.0  # when it began to wait for what it waits for
        self.proved = False  # a sender had a right token here
        self._address = ""
        self._deadline = _NEVER
        self._active: RequestResponseCycle | None = None  # of the request that is being answered, or was last
        self._held = b""  # what came while nothing could be read
        self._ended_by_peer = False
        self._receiving = False  # between the first byte of a request and its last
        self._in_head = False
        self._head_bytes = 0  # of the pieces that brought no body
        self._behind_another = False  # in the piece in which the request began
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        # One that says nothing at all is no sender's that keeps a connection for the next time.
        self._wait(min(self.limits.header_timeout_seconds, self.limits.idle_timeout_seconds))
        self._address = self.client[0] if self.client else ""
        neighbours = self.room.enter(self._address, self)
        if len(neighbours) > self.limits.address_connections_max and not is_trusted(
            self._address, self.limits.trusted_proxies
        ):
            self._make_room(self._address, neighbours)
        elif len(self.connections) > self.limits.connections_max:
            self._make_room("", self.connections)
        if self._sweep is None:
            self._sweep_later(self.loop, self.connections)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        if self.is_being_answered() and not self._is_streaming():
            self.ended("unanswered", self._address)
        self.room.leave(self._address, self)
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's says that it closes at once
        """See asyncio. Who has said all that it had to say may wait for answers still, but for one without an end."""
        self._ended_by_peer = True
        self._drop_what_does_not_end()
        return self.is_awaited() and not self._is_streaming()

    def _is_streaming(self) -> bool:
        """Whether an answer has begun and may go on for ever."""
        active = self._active
        return active is not None and active.response_started and not active.response_complete

    def _drop_what_does_not_end(self) -> None:
        """Forget the request in the queue whose body was cut off by the end of what the peer says."""
        body_comes = self._receiving and not self._in_head
        if body_comes and not self._held and self.pipeline and self.pipeline[0][0] is self.cycle:
            self.pipeline.popleft()

    @property
    def is_receiving(self) -> bool:
        """Whether a request has begun and is not here as a whole."""
        return self._receiving

    def is_being_answered(self) -> bool:
        """Whether there is a request that is here as a whole and has no answer yet."""
        if self._active is None or self._active.response_complete:
            return False
        return bool(self.pipeline) or not (self._receiving and not self._in_head and self._active is self.cycle)

    def is_awaited(self) -> bool:
        """Whether answers are due, also to what was not read yet."""
        return bool(self._held) or self.is_being_answered()

    def is_ending(self) -> bool:
        """Whether it was refused, or is being closed."""
        return self._refused or self.transport.is_closing()

    def make_room(self) -> None:
        """End, for another connection: with 503 in the middle of a request, else without a word."""
        if not self.is_receiving:
            self._refused = True
            self.ended("room_made", self._address)
            if self.flow.write_paused:
                self.transport.abort()  # it reads no answers
            else:
                self.transport.close()
            return
        self._no_room("room_made")

    def _make_room(self, key: str, connections: AbstractSet[Any]) -> None:
        other = self.room.victim(key, connections, self)
        if other is None:
            self._no_room("no_room")
        else:
            other.make_room()

    def _no_room(self, reason: str) -> None:
        status, header = HTTPStatus.SERVICE_UNAVAILABLE, b"retry-after: 5\r\n"
        self._refuse(status, "UNAVAILABLE", "too many connections", reason, header)

    def _wait(self, seconds: float) -> None:
        """Wait so long for what comes next."""
        self.since = now = self.loop.time()
        self._deadline = now + seconds

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._refused:
            return
        if self._held or len(self.pipeline) > _PIPELINE_MAX:
            self._hold(data)
        elif len(data) <= _SLICE_BYTES or data.count(_HEAD_END) <= _PIPELINE_MAX:
            self._feed(data)
        else:
            for begin in range(0, len(data), _SLICE_BYTES):
                if len(self.pipeline) > _PIPELINE_MAX:
                    self._hold(data[begin:])
                    return
                self._feed(data[begin : begin + _SLICE_BYTES])

    def _hold(self, data: bytes) -> None:
        """Read this later. At most what is on its way already comes behind it."""
        self._held += data
        self.flow.pause_reading()

    def _release(self) -> None:
        """Read what was held, now that answers were given; and close behind the last one for who has left."""
        if self._held and len(self.pipeline) <= _PIPELINE_MAX // 2:
            held, self._held = self._held, b""
            self.flow.resume_reading()
            self.data_received(held)
        if self._ended_by_peer:
            self._drop_what_does_not_end()
            if not self.is_awaited():
                self.transport.close()

    def _feed(self, data: bytes) -> None:
        if self._refused:
            return
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("the request is not well-formed HTTP")
        if self._head_bytes > self.limits.header_bytes_max and not self._refused:
            self._refuse_head()

    def _read_without_upgrade(self, rest: bytes) -> None:
        """Read a request again as if it had not asked for another protocol (RFC 9110, 7.8, allows to ignore that).

        Java's HTTP client asks for HTTP/2 with every request that it posts in clear text, and httptools then takes the
        body for the other protocol's: the notification would be an empty one.
        """
        if self._refused:
            return
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response("CONNECT is not served")
            return
        lines = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self._head_bytes = 0
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self.data_received(b"\r\n".join([*lines, b"", rest]))

    def on_message_begin(self) -> None:
        """See httptools."""
        super().on_message_begin()
        self._receiving = self._in_head = True
        self._behind_another = not self._head_bytes
        self._wait(self.limits.header_timeout_seconds)

    def on_headers_complete(self) -> None:
        """See httptools."""
        if self._refused or self.parser.should_upgrade():
            return
        head_bytes_max = self.limits.header_bytes_max
        if (self._head_bytes > head_bytes_max or self._behind_another) and _head_bytes(self) > head_bytes_max:
            self._refuse_head()
            return
        self._wait(self.limits.body_timeout_seconds)
        super().on_headers_complete()
        self.headers = _TRAILERS
        self._head_bytes = 0
        self._in_head = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401  # uvicorn's
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        if not self._refused:
            self._head_bytes = 0
            super().on_body(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._refused or self._in_head:
            return
        self._receiving = False
        self._head_bytes = 0
        if self.cycle.response_complete or self.flow.write_paused:
            self._wait(self.limits.idle_timeout_seconds)
        else:
            self._deadline = _NEVER
        super().on_message_complete()

    def pause_writing(self) -> None:
        """See asyncio. Whoever doesn't read its answers has as long as one that says nothing."""
        super().pause_writing()
        self._wait(self.limits.idle_timeout_seconds)

    def resume_writing(self) -> None:
        """See asyncio."""
        if self.flow.write_paused and not self._receiving and not self.cycle.response_complete:
            self._deadline = _NEVER
        super().resume_writing()

    def on_response_complete(self) -> None:
        """As uvicorn's, with a deadline in place of a timer."""
        self.server_state.total_requests += 1
        if self._active is not None and self._active.scope["state"].get("sender"):
            self.proved = True
        if self.transport.is_closing():
            self._wait(self.limits.idle_timeout_seconds)  # to take the answer
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif self._refused or (self._receiving and not self._in_head and self.expect_100_continue):
            # Who was answered in place of 100 Continue may or may not send the body: what comes next has two readings.
            self.transport.close()
            return
        elif not self._receiving:
            self._wait(self.limits.idle_timeout_seconds)
        self._release()

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, with CAMARA's error body."""
        self._refuse(HTTPStatus.BAD_REQUEST, "INVALID_ARGUMENT", msg, "malformed")

    def _refuse_head(self) -> None:
        message = f"the request line and the headers have at most {self.limits.header_bytes_max} bytes"
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "HEADERS_TOO_LARGE", message, "long_head")

    def _expire(self) -> None:
        if self.transport.is_closing():
            self.transport.abort()
        elif self._receiving:
            what = "head" if self._in_head else "body"
            message = f"the request's {what} took too long"
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "REQUEST_TIMEOUT", message, f"slow_{what}")
        else:
            self.transport.close()

    def _refuse(  # what an answer has
        self, status: HTTPStatus, code: str, message: str, reason: str, header: bytes = b""
    ) -> None:
        """Answer without the application where it is this request's turn, and close."""
        self._refused = True
        self.ended(reason, self._address)
        begun = self._receiving and not self._in_head  # then the cycle is its own, else that of one before
        if begun and self.pipeline:
            self.pipeline.popleft()  # its own, which waits for the answers to those before it
            begun = False
        if not begun and self.cycle is not None and not self.cycle.response_complete:
            self._deadline = _NEVER  # on_response_complete closes
            return
        if not begun or not self.cycle.response_started:
            content = orjson.dumps({"status": status.value, "code": code, "message": message})
            self.transport.write(
                b"%bcontent-type: application/json\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n%b"
                % (STATUS_LINE[status.value], len(content), header, content)
            )
        self.transport.close()

    @classmethod
    def _sweep_later(cls, loop: asyncio.AbstractEventLoop, connections: set[Any]) -> None:
        due = loop.time() + _SWEEP_SECONDS
        cls._sweep = loop.call_at(due, cls._sweep_now, loop, connections, due)

    @classmethod
    def _sweep_now(cls, loop: asyncio.AbstractEventLoop, connections: set[Any], due: float) -> None:
        now = loop.time()
        if now - due > _SWEEP_SECONDS:
            # This process stood still, and what came meanwhile was not read: that is no sender's fault.
            for connection in connections:
                connection._deadline += now - due  # noqa: SLF001  # of this class
        for connection in [each for each in connections if each._deadline < now]:  # noqa: SLF001  # of this class
            connection._expire()  # noqa: SLF001
        cls._sweep = None
        if connections:
            cls._sweep_later(loop, connections)


def _head_bytes(protocol: HttpToolsProtocol) -> int:
    """The size of a head as it was parsed: each header with its colon, its blank and the end of its line."""
    return len(protocol.url) + sum(len(name) + len(value) + 4 for name, value in protocol.headers)
