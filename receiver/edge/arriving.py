"""A body on its way: its bytes count as they come."""

from collections.abc import Callable

from starlette.types import Receive


class Disconnected(Exception):
    """The sender went away in the middle of its body; there is nobody to answer."""


async def arrived(receive: Receive, count: Callable[[int], None]) -> bytes:
    """The whole body. `count` is told the length of each piece, and raises Refused where that is too much.

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
