"""The fast path, for the common request: a whole notification in one piece, alone on its connection.

It goes through the three steps of the intake as it leaves the HTTP parser: no task, no ASGI messages, and none of
uvicorn's bookkeeping, which together cost as much as all the rest. All other requests take the way through `app.py`.
Both ways have the same steps and so the same answers; this one can be left out.
"""

import asyncio
from collections.abc import Awaitable, Collection
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from receiver.core.errors import Unavailable
from receiver.edge.connection import ConnectionLimits, Ended, GuardedProtocol, shared
from receiver.edge.conversation import Event
from receiver.edge.intake import Intake, Request

_HEAD_END = b"\r\n\r\n"
_NO_CONTENT = b"HTTP/1.1 204 No Content\r\nx-correlator: %b\r\n\r\n"


def express(limits: ConnectionLimits, intake: Intake, paths: Collection[str], ended: Ended) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn's `http` option: `guarded`, and the fast path for POSTs to these paths."""
    urls = frozenset(path.encode() for path in paths)
    return type("NotificationProtocol", (ExpressProtocol,), {**shared(limits, ended), "intake": intake, "urls": urls})


class ExpressProtocol(GuardedProtocol):
    """The guarded protocol, which asks the intake first."""

    intake: Intake
    urls: frozenset[bytes]

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401  # uvicorn's
        super().__init__(*arguments, **named)
        self._piece = b""  # the one at hand
        self._request: Request | None = None  # of the fast path, until it is answered
        self._body: bytes | None = None  # of that request, while it is being read

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._request is not None:
            # Its sender doesn't wait for answers: what follows is read once this one was given.
            self._hold(data)
            return
        self._piece = b"" if self.is_receiving else data
        super().data_received(data)
        self._piece = b""

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._request = self._whole_request()
        self._piece = b""  # whatever follows in it is another request
        if self._request is None:
            super().on_headers_complete()
        else:
            self._body = b""

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        if self._body is None:
            super().on_body(body)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._request is None or self._body is None:
            super().on_message_complete()
            return
        body, self._body = self._body, None
        self._head_bytes = 0
        self._handle(Event.WHOLE)
        self._keep(self._request, body)

    def _whole_request(self) -> Request | None:
        """The request whose head was read, if it is a POST to us that begins and ends with the piece at hand."""
        parser, piece = self.parser, self._piece
        head_bytes = piece.find(_HEAD_END) + len(_HEAD_END)
        if not (
            self.url in self.urls
            and len(_HEAD_END) < head_bytes <= self.limits.header_bytes_max
            and not (self.conversation.is_ending or self.expect_100_continue or self.flow.write_paused)
            and (self.cycle is None or self.cycle.response_complete)
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
        ):
            return None
        request = self.intake.request(self.headers, self._address)
        is_whole = request.head.length == len(piece) - head_bytes <= self.intake.body_bytes_max
        return request if is_whole else None

    def _keep(self, request: Request, body: bytes) -> None:
        """Take it in; its answer comes later, unless it is refused."""
        try:
            admitted = self.intake.begin(request, len(body))
            if admitted is not None:
                task = self.loop.create_task(self._keep_once(admitted, request, body))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
                return
            kept = self.intake.keep(request, body)
        except Exception as error:  # noqa: BLE001  # the intake has an answer for each
            self._answer(error)
        else:
            kept.add_done_callback(self._kept)

    async def _keep_once(self, admitted: Awaitable[None], request: Request, body: bytes) -> None:
        failure: Exception | None = None
        try:
            await admitted
            await self.intake.keep(request, body)
        except asyncio.CancelledError:
            failure = _given_up()
        except Exception as error:  # noqa: BLE001  # as above
            failure = error
        self._answer(failure)

    def _kept(self, kept: asyncio.Future[None]) -> None:
        self._answer(_given_up() if kept.cancelled() else kept.exception())

    def _answer(self, error: BaseException | None) -> None:
        request, self._request = self._request, None
        assert request is not None  # noqa: S101  # for the type checker: it was set before it was taken in
        answer = self.intake.settle(request, error)
        self.proved = self.proved or request.is_proved
        if not self.transport.is_closing():
            if answer is None:
                self.transport.write(_NO_CONTENT % request.correlator.encode())
            else:
                head = b"".join([b"%b: %b\r\n" % header for header in answer.headers])
                self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[answer.status], head, answer.content))
        self._answered()


def _given_up() -> Unavailable:
    return Unavailable("the append was given up", reason="cancelled")
