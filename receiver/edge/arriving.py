"""Reading a body as it arrives, counting its bytes."""

from collections.abc import Callable

from starlette.types import Receive


class Disconnected(Exception):
    """The sender disconnected in the middle of its body, so nobody waits for an answer."""


async def arrived(receive: Receive, count: Callable[[int], None]) -> bytes:
    """The whole body. `count` is called with the length of each piece, and may raise Refused.

    Raises Disconnected too.
    """
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Disconnected
        parts.append(message["body"])
        count(len(message["body"]))
        if not message.get("more_body"):
            return b"".join(parts)
