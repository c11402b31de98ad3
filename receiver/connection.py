"""What a connection may cost: limits on the head of a request, on the time it takes, and on silence.

uvicorn has none of them: its httptools protocol takes a head of 8 MiB, and waits for ever for a slow one, for the rest
of a body, and for a connection that says nothing. `guarded(limits)` makes the protocol class that adds them.

A refusal of ours never comes before the answer to an earlier request, which its sender would take it for, nor behind an
answer to the same one.

One sweep for all connections of a server, twice a second, compares their deadlines. That is also cheaper than what it
replaces: uvicorn sets and cancels a timer around every request.
"""

import asyncio
from collections import deque
from http import HTTPStatus
from typing import Any, NamedTuple

import httptools
import orjson
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

_SWEEP_SECONDS = 0.5
_NEVER = float("inf")

#: Requests that wait for the answers to those before them. Few senders have even two; a flood of them is memory.
_PIPELINE_MAX = 32

#: Trailers are headers to httptools, and would be a request's to whoever reads them late enough. Nothing stays in this.
_TRAILERS: Any = deque(maxlen=0)


class ConnectionLimits(NamedTuple):
    """What one connection, and all of them together, may take."""

    header_bytes_max: int = 16_384
    header_timeout_seconds: float = 10
    body_timeout_seconds: float = 10
    idle_timeout_seconds: float = 75
    connections_max: int = 2_000


def guarded(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn's `http` option that keeps these limits."""
    return type("LimitedProtocol", (GuardedProtocol,), {"limits": limits})


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which drops a connection that is past its deadline.

    There is one deadline at a time: for the next request to begin, for its head, or for its body. While a request is
    being answered there is none: that is the application's time.
    """

    limits = ConnectionLimits()
    _sweep: asyncio.TimerHandle | None = None

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._deadline = _NEVER
        self._receiving = False  # between the first byte of a request and its last
        self._in_head = False
        self._head_bytes = 0  # of the pieces that brought no body
        self._behind_another = False  # in the piece in which the request began
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        # One that says nothing at all is no sender's that keeps a connection for the next time.
        self._deadline = self.loop.time() + min(self.limits.header_timeout_seconds, self.limits.idle_timeout_seconds)
        if len(self.connections) > self.limits.connections_max:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "UNAVAILABLE", "too many connections", b"retry-after: 5\r\n")
        elif self._sweep is None:
            self._sweep_later(self.loop, self.connections)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
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
        self._deadline = self.loop.time() + self.limits.header_timeout_seconds

    def on_headers_complete(self) -> None:
        """See httptools."""
        if self._refused or self.parser.should_upgrade():
            return
        head_bytes_max = self.limits.header_bytes_max
        if (self._head_bytes > head_bytes_max or self._behind_another) and _head_bytes(self) > head_bytes_max:
            self._refuse_head()
            return
        self._deadline = self.loop.time() + self.limits.body_timeout_seconds
        super().on_headers_complete()
        self.headers = _TRAILERS
        self._head_bytes = 0
        self._in_head = False
        if len(self.pipeline) > _PIPELINE_MAX:
            self._refused = True
            self.transport.close()

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
        answered = self.cycle.response_complete or self.flow.write_paused
        self._deadline = self.loop.time() + self.limits.idle_timeout_seconds if answered else _NEVER
        super().on_message_complete()

    def pause_writing(self) -> None:
        """See asyncio. Whoever doesn't read its answers has as long as one that says nothing."""
        super().pause_writing()
        self._deadline = self.loop.time() + self.limits.idle_timeout_seconds

    def resume_writing(self) -> None:
        """See asyncio."""
        if self.flow.write_paused and not self._receiving and not self.cycle.response_complete:
            self._deadline = _NEVER
        super().resume_writing()

    def on_response_complete(self) -> None:
        """As uvicorn's, with a deadline in place of a timer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._deadline = self.loop.time() + self.limits.idle_timeout_seconds  # to take the answer
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif self._refused or (self._receiving and not self._in_head and self.expect_100_continue):
            # Who was answered in place of 100 Continue may or may not send the body: what comes next has two readings.
            self.transport.close()
        elif not self._receiving:
            self._deadline = self.loop.time() + self.limits.idle_timeout_seconds

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, with CAMARA's error body."""
        self._refuse(HTTPStatus.BAD_REQUEST, "INVALID_ARGUMENT", msg)

    def _refuse_head(self) -> None:
        message = f"the request line and the headers have at most {self.limits.header_bytes_max} bytes"
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "HEADERS_TOO_LARGE", message)

    def _expire(self) -> None:
        if self.transport.is_closing():
            self.transport.abort()
        elif self._receiving:
            what = "head" if self._in_head else "body"
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "REQUEST_TIMEOUT", f"the request's {what} took too long")
        else:
            self.transport.close()

    def _refuse(self, status: HTTPStatus, code: str, message: str, header: bytes = b"") -> None:
        """Answer without the application where it is this request's turn, and close."""
        self._refused = True
        begun = self._receiving and not self._in_head  # then the cycle is its own, else that of one before
        if not begun and self.cycle is not None and not self.cycle.response_complete:
            self._deadline = _NEVER  # on_response_complete closes
            return
        if not begun or not (self.cycle.response_started or self.pipeline):
            content = orjson.dumps({"status": status.value, "code": code, "message": message})
            self.transport.write(
                b"%bcontent-type: application/json\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n%b"
                % (STATUS_LINE[status.value], len(content), header, content)
            )
        self.transport.close()

    @classmethod
    def _sweep_later(cls, loop: asyncio.AbstractEventLoop, connections: set[Any]) -> None:
        cls._sweep = loop.call_later(_SWEEP_SECONDS, cls._sweep_now, loop, connections)

    @classmethod
    def _sweep_now(cls, loop: asyncio.AbstractEventLoop, connections: set[Any]) -> None:
        now = loop.time()
        for connection in [each for each in connections if each._deadline < now]:  # noqa: SLF001  # of this class
            connection._expire()  # noqa: SLF001
        cls._sweep = None
        if connections:
            cls._sweep_later(loop, connections)


def _head_bytes(protocol: HttpToolsProtocol) -> int:
    """The size of a head as it was parsed: each header with its colon, its blank and the end of its line."""
    return len(protocol.url) + sum(len(name) + len(value) + 4 for name, value in protocol.headers)
