"""What a connection may cost: limits on the head of a request, on the time it takes, and on silence.

uvicorn has none of them: its httptools protocol takes a head of 8 MiB, and waits for ever for a slow one, for the rest
of a body, and for a connection that says nothing. `guarded(limits)` makes the protocol class that adds them. What is to
be done when is decided in `conversation.py`; this is the bytes, the parser and the socket.

Where there is no room for another connection, one of those that wait for nothing of ours makes room (`room.py`).

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

from receiver.edge.conversation import Act, Conversation, Event, Phase, Timeouts
from receiver.edge.peers import Network, is_trusted
from receiver.edge.room import Room

_SWEEP_SECONDS = 0.5

#: A name is found ten times as fast as an enum's member.
_BODY, _ANSWERED = Phase.BODY, Event.ANSWERED

#: Requests that wait for the answers to those before them. Few senders have even two; a flood of them is memory.
_PIPELINE_MAX = 32
_HEAD_END = b"\r\n\r\n"
#: Where a piece has more requests than that, so much of it is read at a time. The smallest request has 18 bytes.
_SLICE_BYTES = 2_048

#: What a peer may send on after it was refused, and for how long.
_LINGER_BYTES_MAX = 1024 * 1024
_LINGER_SECONDS = 2.0

#: Trailers are headers to httptools, and would be a request's to whoever reads them late enough. Nothing stays in this.
_TRAILERS: Any = deque(maxlen=0)


class ConnectionLimits(NamedTuple):
    """What one connection, and all of them together, may take."""

    header_bytes_max: int = 16_384
    timeouts: Timeouts = Timeouts()
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
    """uvicorn's protocol, which drops a connection that is past its deadline."""

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
        self.proved = False  # a sender had a right token here
        self.conversation = Conversation(self.limits.timeouts, self.loop.time())
        self._address = ""
        self._active: RequestResponseCycle | None = None  # of the request that is being answered, or was last
        self._held = b""  # what came while nothing could be read
        self._ends_there = False  # behind what is held
        self._head_bytes = 0  # of the pieces that brought no body
        self._lingers_bytes = 0  # how many more bytes are read from a peer that was refused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
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
        if self.conversation.due and not self._is_streaming():
            self.ended("unanswered", self._address)
        self.room.leave(self._address, self)
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's says that it closes at once
        """See asyncio. A peer that has said all may wait for answers still, but for one without an end."""
        self._ends_there = True
        self._end_where_held_ends()
        return self.is_awaited() and not self._is_streaming()

    def _is_streaming(self) -> bool:
        """Whether an answer has begun and may go on for ever."""
        active = self._active
        return active is not None and active.response_started and not active.response_complete

    @property
    def since(self) -> float:
        """When it began to wait for what it waits for."""
        return self.conversation.since

    @property
    def is_receiving(self) -> bool:
        """Whether a request has begun and is not here as a whole."""
        return self.conversation.is_receiving

    def is_awaited(self) -> bool:
        """Whether answers are due, also to what was not read yet."""
        return bool(self._held or self.conversation.due)

    def is_ending(self) -> bool:
        """Whether it was refused, or is being closed."""
        return self.conversation.is_ending or self.transport.is_closing()

    def make_room(self) -> None:
        """End, for another connection: with 503 in the middle of a request, else without a word."""
        if self.is_receiving:
            self._no_room("room_made")
        else:
            self.ended("room_made", self._address)
            self._handle(Event.EXPIRED)

    def _make_room(self, key: str, connections: AbstractSet[Any]) -> None:
        other = self.room.victim(key, connections, self)
        if other is None:
            self._no_room("no_room")
        else:
            other.make_room()

    def _no_room(self, reason: str) -> None:
        status, header = HTTPStatus.SERVICE_UNAVAILABLE, b"retry-after: 5\r\n"
        self._refuse(status, "UNAVAILABLE", "too many connections", reason, header)

    def _handle(self, event: Event, refusal: bytes = b"") -> None:
        """Tell the conversation what happens, and do what is to be done about it."""
        has_own_cycle = self.conversation.phase >= _BODY
        act = self.conversation.handle(event, self.loop.time())
        if not act:
            return
        if act & Act.TELL and not (has_own_cycle and self.cycle.response_started):
            self.transport.write(refusal)
        if act & Act.DROP and self.pipeline:
            self.pipeline.popleft()
        if act & Act.CLOSE:
            self._close(lingers=event is Event.REFUSED or event is _ANSWERED)
        elif act & Act.ABORT:
            self.transport.abort()

    def _close(self, *, lingers: bool) -> None:
        """Close, once all that was written was taken.

        Where the peer may still be sending, its bytes are read for a while: to close before them would break the
        connection, and the peer would lose the answer (RFC 9112, 9.6).
        """
        is_crowded = len(self.connections) > self.limits.connections_max // 2
        if not lingers or is_crowded or self._ends_there or not self.transport.can_write_eof():
            self.transport.close()
            return
        self._lingers_bytes = _LINGER_BYTES_MAX
        self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _pass_over(self, bytes_count: int) -> None:
        self._lingers_bytes -= bytes_count
        if self._lingers_bytes < 0:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
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
        if not self.conversation.is_ending:
            self._held += data
            self.flow.pause_reading()

    def _release(self) -> None:
        """Read what was held, now that an answer was given."""
        if self._held and len(self.pipeline) <= _PIPELINE_MAX // 2:
            held, self._held = self._held, b""
            self.flow.resume_reading()
            self.data_received(held)
        self._end_where_held_ends()

    def _end_where_held_ends(self) -> None:
        if self._ends_there and not self._held:
            self._handle(Event.PEER_ENDED)

    def _feed(self, data: bytes) -> None:
        if self.conversation.is_ending:
            self._pass_over(len(data))
            return
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("the request is not well-formed HTTP")
        if self._head_bytes > self.limits.header_bytes_max:
            self._refuse_head()

    def _read_without_upgrade(self, rest: bytes) -> None:
        """Read a request again as if it had not asked for another protocol (RFC 9110, 7.8, allows to ignore that).

        Java's HTTP client asks for HTTP/2 with every request that it posts in clear text, and httptools then takes the
        body for the other protocol's: the notification would be an empty one.
        """
        if self.conversation.is_ending:
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
        if not self.conversation.is_ending:
            super().on_message_begin()
            self._handle(Event.BEGIN)

    def on_headers_complete(self) -> None:
        """See httptools."""
        if self.conversation.is_ending or self.parser.should_upgrade():
            return
        if self._long_head():
            self._refuse_head()
            return
        super().on_headers_complete()
        self._handle(Event.HEAD_READ_EXPECTING if self.expect_100_continue else Event.HEAD_READ)
        self.headers = _TRAILERS
        self._head_bytes = 0

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401  # uvicorn's
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        if not self.conversation.is_ending:
            self._head_bytes = 0
            super().on_body(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        if self.conversation.is_ending or self.conversation.phase is Phase.HEAD:  # it will be read without its Upgrade
            return
        self._head_bytes = 0
        super().on_message_complete()
        self._handle(Event.READ)

    def pause_writing(self) -> None:
        """See asyncio. A peer that doesn't read its answers has as long as one that says nothing."""
        super().pause_writing()
        self.conversation.block(is_blocked=True, now=self.loop.time())

    def resume_writing(self) -> None:
        """See asyncio."""
        super().resume_writing()
        self.conversation.block(is_blocked=False, now=self.loop.time())

    def on_response_complete(self) -> None:
        """As uvicorn's, with a deadline in place of a timer."""
        if self._active is not None and self._active.scope["state"].get("is_proved"):
            self.proved = True
        self._answered()

    def _answered(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._handle(Event.CLOSED)
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        self._handle(_ANSWERED)
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        if self._held or self._ends_there:
            self._release()

    def shutdown(self) -> None:
        """As uvicorn's: close, behind the answers that are due."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        self._handle(Event.SHUTDOWN)

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, with CAMARA's error body."""
        self._refuse(HTTPStatus.BAD_REQUEST, "INVALID_ARGUMENT", msg, "malformed")

    def _long_head(self) -> bool:
        """Whether a head is too long as it was parsed: each header with its colon, blank and end of line."""
        head_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        return head_bytes > self.limits.header_bytes_max

    def _refuse_head(self) -> None:
        message = f"the request line and the headers have at most {self.limits.header_bytes_max} bytes"
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "HEADERS_TOO_LARGE", message, "long_head")

    def expire(self) -> None:
        """End it: its deadline has passed."""
        if self.is_receiving:
            what = "head" if self.conversation.phase is Phase.HEAD else "body"
            message = f"the request's {what} took too long"
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "REQUEST_TIMEOUT", message, f"slow_{what}")
        else:
            self._handle(Event.EXPIRED)

    def _refuse(  # what an answer has
        self, status: HTTPStatus, code: str, message: str, reason: str, header: bytes = b""
    ) -> None:
        """Answer without the application where it is this request's turn, and close."""
        if self.conversation.is_ending:
            return
        self.ended(reason, self._address)
        content = orjson.dumps({"status": status.value, "code": code, "message": message})
        self._handle(
            Event.REFUSED,
            b"%bcontent-type: application/json\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n%b"
            % (STATUS_LINE[status.value], len(content), header, content),
        )

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
                connection.conversation.stand_still(now - due)
        for connection in [each for each in connections if each.conversation.deadline < now]:
            connection.expire()
        cls._sweep = None
        if connections:
            cls._sweep_later(loop, connections)
