"""What a connection may cost: limits on the head of a request, on time, and on silence.

uvicorn has none of them: its httptools protocol accepts a head of 8 MiB, and waits for ever for a slow head, for the
rest of a body, and on a silent connection. `guarded(limits)` makes a protocol class that adds them. `conversation.py`
decides on the steps; here are the bytes, the parser and the socket.

If there is no room for a new connection, a connection that waits for nothing of ours is ended (`room.py`).

One sweep over all connections of a server, twice a second, compares their deadlines. That is cheaper than uvicorn's
own way, a timer that is set and cancelled for every request.

Every accepted request is answered: after its sender has ended its side of the connection, behind any number of other
requests, and after this process stood still for longer than its limits. If an answer is impossible, `ended` is told.
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

#: Looking up a name is ten times as fast as looking up an enum's member.
_BODY, _ANSWERED = Phase.BODY, Event.ANSWERED

#: Requests that may wait for earlier answers. Few senders pipeline even two, and a flood of them would fill memory.
_PIPELINE_MAX = 32
_HEAD_END = b"\r\n\r\n"
#: A piece with more requests than that is read in slices of this length. The smallest request has 18 bytes.
_SLICE_BYTES = 2_048

#: How many bytes of a refused peer are read on, and for how long.
_LINGER_BYTES_MAX = 1024 * 1024
_LINGER_SECONDS = 2.0

#: httptools reports trailers as headers, and they could be taken for the request's. This container keeps nothing.
_TRAILERS: Any = deque(maxlen=0)


class ConnectionLimits(NamedTuple):
    """The limits of one connection, and of all together."""

    header_bytes_max: int = 16_384
    timeouts: Timeouts = Timeouts()
    connections_max: int = 2_000
    address_connections_max: int = 1_000
    trusted_proxies: Sequence[Network] = ()  # exempt from the limit per address


Ended = Callable[[str, str], None]
"""A callback for a connection that was refused or ended early: the reason, and the address."""


def guarded(limits: ConnectionLimits, ended: Ended) -> type[asyncio.Protocol]:
    """A protocol class with these limits, for uvicorn's `http` option."""
    return type("LimitedProtocol", (GuardedProtocol,), shared(limits, ended))


def shared(limits: ConnectionLimits, ended: Ended) -> dict[str, Any]:
    """The attributes that all connections of a server share."""
    return {"limits": limits, "ended": staticmethod(ended), "room": Room()}


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with deadlines and limits."""

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
        self.proved = False  # a valid token was seen here
        self.conversation = Conversation(self.limits.timeouts, self.loop.time())
        self._address = ""
        self._active: RequestResponseCycle | None = None  # of the request that is being answered, or of the last one
        self._held = b""  # bytes that arrived while none could be read
        self._ends_there = False  # the peer sends nothing behind the held bytes
        self._head_bytes = 0  # in pieces since the last body or message end
        self._lingers_bytes = 0  # how many more bytes of a refused peer are read

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
        """See asyncio. Keeps the connection for a peer that still waits for answers, unless one of them is endless."""
        self._ends_there = True
        self._end_where_held_ends()
        return self.is_awaited() and not self._is_streaming()

    def _is_streaming(self) -> bool:
        """Whether an answer has begun that may be endless."""
        active = self._active
        return active is not None and active.response_started and not active.response_complete

    @property
    def since(self) -> float:
        """When the present wait began."""
        return self.conversation.since

    @property
    def is_receiving(self) -> bool:
        """Whether a request has begun and is not complete."""
        return self.conversation.is_receiving

    def is_awaited(self) -> bool:
        """Whether answers are due, or may become due to held bytes."""
        return bool(self._held or self.conversation.due)

    def is_ending(self) -> bool:
        """Whether the connection was refused, or is being closed."""
        return self.conversation.is_ending or self.transport.is_closing()

    def make_room(self) -> None:
        """End, to make room for another connection: with 503 in the middle of a request, else without an answer."""
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
        """Pass an event to the conversation, and carry out its acts."""
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
        """Close the connection after the peer has taken everything that was written.

        A peer that may still be sending is read for a while. Closing before its bytes arrive would reset the
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
        """Keep bytes to be read later, and pause reading. Only bytes already on their way may still be added."""
        if not self.conversation.is_ending:
            self._held += data
            self.flow.pause_reading()

    def _release(self) -> None:
        """Read the held bytes, after an answer was given."""
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
        """Read a request again without its request for another protocol, which RFC 9110, 7.8, allows to ignore.

        Java's HTTP client asks for HTTP/2 with every POST in clear text. httptools would then take the body for the
        other protocol's, and the notification would be empty.
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
        if self.conversation.is_ending or self.conversation.phase is Phase.HEAD:  # to be read without its Upgrade
            return
        self._head_bytes = 0
        super().on_message_complete()
        self._handle(Event.READ)

    def pause_writing(self) -> None:
        """See asyncio. A peer that does not read its answers has the same time as a silent one."""
        super().pause_writing()
        self.conversation.block(is_blocked=True, now=self.loop.time())

    def resume_writing(self) -> None:
        """See asyncio."""
        super().resume_writing()
        self.conversation.block(is_blocked=False, now=self.loop.time())

    def on_response_complete(self) -> None:
        """As uvicorn's, but with a deadline in place of a timer."""
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
        """As uvicorn's: close after the answers that are due."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        self._handle(Event.SHUTDOWN)

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, but with CAMARA's error body."""
        self._refuse(HTTPStatus.BAD_REQUEST, "INVALID_ARGUMENT", msg, "malformed")

    def _long_head(self) -> bool:
        """Whether the parsed head is too long: each header counts with its colon, blank and end of line."""
        head_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        return head_bytes > self.limits.header_bytes_max

    def _refuse_head(self) -> None:
        message = f"the request line and the headers have at most {self.limits.header_bytes_max} bytes"
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "HEADERS_TOO_LARGE", message, "long_head")

    def expire(self) -> None:
        """End the connection, whose deadline has passed."""
        if self.is_receiving:
            what = "head" if self.conversation.phase is Phase.HEAD else "body"
            message = f"the request's {what} took too long"
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "REQUEST_TIMEOUT", message, f"slow_{what}")
        else:
            self._handle(Event.EXPIRED)

    def _refuse(  # what an answer has
        self, status: HTTPStatus, code: str, message: str, reason: str, header: bytes = b""
    ) -> None:
        """Answer without the application, if no earlier answer is due, and close."""
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
            # This process stood still, and bytes that arrived meanwhile were not read: no sender is at fault.
            for connection in connections:
                connection.conversation.stand_still(now - due)
        for connection in [each for each in connections if each.conversation.deadline < now]:
            connection.expire()
        cls._sweep = None
        if connections:
            cls._sweep_later(loop, connections)
