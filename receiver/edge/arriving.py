"""A body on its way: how long it may be, and that its bytes count as they come."""

import time
from collections.abc import Mapping
from http import HTTPStatus

from starlette.types import Receive

from receiver.core.errors import Refused
from receiver.edge.admission import Admission

_LENGTH_DIGITS_MAX = 12


class Disconnected(Exception):
    """The sender went away in the middle of its body; there is nobody to answer."""


class Arriving:
    """A request that was let in; its bytes count as they come. Raises Refused where there is no room."""

    def __init__(self, admission: Admission, sender: str) -> None:
        admission.enter(sender, 0, time.monotonic())
        self._admission = admission
        self._sender = sender
        self._bytes = 0

    async def body(self, receive: Receive, body_bytes_max: int) -> bytes:
        """The whole body. Raises Refused and Disconnected."""
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            # Nearly all arrive in one piece.
            body: bytes = message["body"]
            self._count(len(body), body_bytes_max)
            return body
        parts = []
        while message["type"] == "http.request":
            parts.append(message["body"])
            self._count(len(message["body"]), body_bytes_max)
            if not message.get("more_body"):
                return b"".join(parts)
            message = await receive()
        raise Disconnected

    def leave(self) -> None:
        """It is done."""
        self._admission.leave(self._sender, self._bytes)

    def _count(self, more_bytes: int, body_bytes_max: int) -> None:
        if self._bytes + more_bytes > body_bytes_max:
            raise _too_large(body_bytes_max)
        self._admission.grow(self._sender, more_bytes)
        self._bytes += more_bytes


def expect_length(headers: Mapping[bytes, bytes], body_bytes_max: int) -> None:
    """Refuse a body whose sender says that it is too large."""
    told = headers.get(b"content-length", b"0")
    # The parser below took it for a number; one of many digits would cost more to read than it is worth.
    if len(told) > _LENGTH_DIGITS_MAX or int(told) > body_bytes_max:
        raise _too_large(body_bytes_max)


def _too_large(body_bytes_max: int) -> Refused:
    message = f"a body has at most {body_bytes_max} bytes"
    return Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "PAYLOAD_TOO_LARGE", message, reason="too_large")
