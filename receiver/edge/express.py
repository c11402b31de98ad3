"""The fast path, for the common request: a whole notification in one piece, alone on its connection.

It goes through the three steps of the intake as it leaves the HTTP parser: without a task, ASGI messages and uvicorn's
bookkeeping, which together cost as much as everything else. All other requests go through `app.py`. Both paths have the
same steps and so the same answers; this one is an optimization only.
"""

import asyncio
from collections.abc import Awaitable, Collection
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from receiver.core.errors import Unavailable
from receiver.edge.connection import ConnectionLimits, Ended, GuardedProtocol, shared
from receiver.edge.conversation import Event, Phase
from receiver.edge.head import Head, KnownHeads
from receiver.edge.intake import Intake, Request

#: Looking up a name is ten times as fast as looking up an enum's member.
_IDLE, _WHOLE = Phase.IDLE, Event.WHOLE

_HEAD_END = b"\r\n\r\n"
_NO_CONTENT = b"HTTP/1.1 204 No Content\r\nx-correlator: %b\r\n\r\n"


def express(limits: ConnectionLimits, intake: Intake, paths: Collection[str], ended: Ended) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn's `http` option: `guarded`, with the fast path for POSTs to these paths."""
    urls = frozenset(path.encode() for path in paths)
    more = {"intake": intake, "urls": urls, "heads": KnownHeads(intake.limits.token_headers)}
    return type("NotificationProtocol", (ExpressProtocol,), {**shared(limits, ended), **more})


class ExpressProtocol(GuardedProtocol):
    """The guarded protocol, which offers requests to the intake first."""

    intake: Intake
    urls: frozenset[bytes]
    heads: KnownHeads

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401  # uvicorn's
        super().__init__(*arguments, **named)
        self._piece = b""  # the current piece of data, if a request begins with it
        self._head_end = 0  # in that piece
        self._head = b""  # of the request that is being read
        self._request: Request | None = None  # of the fast path, until it is answered
        self._body: bytes | None = None  # of that request, while it is being read

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._request is not None:
            # The sender does not wait for answers; the next request is read after this one was answered.
            self._hold(data)
            return
        if self._is_free():
            end = data.find(_HEAD_END) + len(_HEAD_END)
            head = self.heads.find(data[:end])
            if head is not None and self._is_whole(head, end, len(data)):
                self._keep(self.intake.request(head, self._address), data[end:])
                return
            self._piece, self._head_end = data, end
        super().data_received(data)
        self._piece = b""

    def _is_free(self) -> bool:
        """Whether the next byte begins a request, and no answer is due."""
        conversation = self.conversation
        return not (
            conversation.phase > _IDLE
            or conversation.due
            or self._held
            or self._head_bytes  # a blank line
            or self.flow.write_paused
        )

    def _is_whole(self, head: Head, head_bytes: int, piece_bytes: int) -> bool:
        body_bytes = piece_bytes - head_bytes
        return (
            head.length == body_bytes <= self.intake.limits.body_bytes_max
            and head_bytes <= self.limits.header_bytes_max
        )

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._request = self._whole_request()
        self._piece = b""  # the rest of it is another request
        if self._request is None:
            super().on_headers_complete()
        else:
            self._body = b""

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        if self._body is None:
            super().on_body(body)
        else:
            self._head_bytes = 0
            self._body += body

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._request is None or self._body is None:
            super().on_message_complete()
            return
        request, body = self._request, self._body
        content, self._body = self._head, None
        self._keep(request, body)
        if request.is_proved:
            self.heads.remember(content, request.head)

    def _whole_request(self) -> Request | None:
        """The request whose head was read, if it is a POST to our paths that fills the current piece exactly."""
        parser, piece, end = self.parser, self._piece, self._head_end
        if not (
            self.url in self.urls
            and len(_HEAD_END) < end <= len(piece)
            and not self.expect_100_continue
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
        ):
            return None
        head = self.intake.head(self.headers)
        if not self._is_whole(head, end, len(piece)):
            return None
        self._head = piece[:end]
        return self.intake.request(head, self._address)

    def _keep(self, request: Request, body: bytes) -> None:
        """Run the intake. A refusal is answered at once, anything else later."""
        self._request = request
        self._head_bytes = 0
        self.conversation.handle(_WHOLE, self.loop.time())
        try:
            admitted = self.intake.begin(request, len(body))
            if admitted is not None:
                task = self.loop.create_task(self._keep_once(admitted, request, body))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
                return
            self.intake.keep(request, body, self._answer)
        except Exception as error:  # noqa: BLE001  # the intake has an answer for each
            self._answer(error)

    async def _keep_once(self, admitted: Awaitable[None], request: Request, body: bytes) -> None:
        try:
            await admitted
            self.intake.keep(request, body, self._answer)
        except asyncio.CancelledError:
            self._answer(Unavailable("the request was given up", reason="cancelled"))
        except Exception as error:  # noqa: BLE001  # as above
            self._answer(error)

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
