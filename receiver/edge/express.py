"""The short way through the edge, for the request that nearly all are.

A notification that arrives in one piece, with nothing before or behind it on its connection, is taken as it leaves the
HTTP parser: no task, no ASGI messages, and none of uvicorn's bookkeeping, which together cost as much as all the rest.
What is in any way unusual, wrong or refused goes the long way (`app.py`), which alone knows the answers that are not
204. So this knows nothing that the edge doesn't, and can be left out.
"""

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from receiver.edge.app import Edge, Taken
from receiver.edge.connection import ConnectionLimits, Ended, GuardedProtocol, shared

_HEAD_END = b"\r\n\r\n"
_HEAD_END_MIN = len(_HEAD_END)
_LENGTH_DIGITS_MAX = 9


def express(limits: ConnectionLimits, edge: Edge, paths: Collection[str], ended: Ended) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn's `http` option: `guarded`, and the short way for POSTs to these paths."""
    urls = frozenset(path.encode() for path in paths)
    return type("NotificationProtocol", (ExpressProtocol,), {**shared(limits, ended), "edge": edge, "urls": urls})


class ExpressProtocol(GuardedProtocol):
    """The guarded protocol, which asks the edge first."""

    edge: Edge
    urls: frozenset[bytes]

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401  # uvicorn's
        super().__init__(*arguments, **named)
        self._head_end = 0  # of the request that begins the piece at hand, if one does
        self._piece_end = 0
        self._body: bytes | None = None  # of a request that is the whole piece
        self._taken: Taken | None = None
        self._closing = False

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._taken is not None:
            # Its sender doesn't wait for answers: what follows is read once this one was given.
            self._hold(data)
            return
        self._head_end = 0 if self._receiving else data.find(_HEAD_END) + len(_HEAD_END)
        self._piece_end = len(data)
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """See httptools."""
        if self._is_whole_piece():
            self._body = b""
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        if self._body is None:
            super().on_body(body)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._body is not None:
            body, self._body = self._body, None
            self._taken = taken = self.edge.take(self.headers, body)
            if taken is not None:
                self._receiving = self._in_head = False
                self._head_bytes = 0
                self._deadline = float("inf")
                taken.kept.add_done_callback(self._answer)
                return
            super().on_headers_complete()
            super().on_body(body)
        super().on_message_complete()

    def shutdown(self) -> None:
        """As uvicorn's: close, behind the answer that is due."""
        if self._taken is None:
            super().shutdown()
        else:
            self._closing = True

    def is_being_answered(self) -> bool:
        """Whether there is a request that is here as a whole and has no answer yet."""
        return self._taken is not None or super().is_being_answered()

    def _is_whole_piece(self) -> bool:
        """Whether the request is a POST to us, begins and ends with the piece at hand, and follows no other."""
        parser = self.parser
        return (
            self.url in self.urls
            and _HEAD_END_MIN < self._head_end <= self.limits.header_bytes_max
            and not (self._refused or self._behind_another or self.expect_100_continue or self.flow.write_paused)
            and (self.cycle is None or self.cycle.response_complete)
            and _content_length(self.headers) == self._piece_end - self._head_end
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
        )

    def _answer(self, _: asyncio.Future[None]) -> None:
        taken, self._taken = self._taken, None
        assert taken is not None  # noqa: S101  # for the type checker: set before this was
        response = self.edge.settle(taken)
        if self.transport.is_closing():
            return
        self.server_state.total_requests += 1
        if response is None:
            self.proved = True
            self.transport.write(b"HTTP/1.1 204 No Content\r\nx-correlator: %b\r\n\r\n" % taken.correlator)
        else:
            head = b"".join([b"%b: %b\r\n" % header for header in response.raw_headers])
            self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[response.status_code], head, bytes(response.body)))
        if self._closing:
            self.transport.close()
            return
        self._wait(self.limits.idle_timeout_seconds)
        if self._held or self._ended_by_peer:
            self._release()


def _content_length(headers: Sequence[tuple[bytes, bytes]]) -> int:
    """The length that is told, -1 where none is, or a long one."""
    for name, value in headers:
        if name == b"content-length":
            return int(value) if len(value) <= _LENGTH_DIGITS_MAX else -1
    return -1
