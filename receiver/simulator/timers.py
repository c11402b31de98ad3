"""Timers of the running loop, all of which can be cancelled together: those of one simulator end with it."""

import asyncio
from collections.abc import Callable


class Timers:
    """What is to be called later. The loop keeps them in one heap; a session has one of them at a time."""

    def __init__(self) -> None:
        self._handles: set[asyncio.TimerHandle] = set()
        self._closed = False

    def after(self, seconds: float, call: Callable[[], object]) -> Callable[[], None]:
        """Call in so many seconds. Returns what cancels that, and does nothing once it was called."""
        if self._closed:
            return nothing

        def run() -> None:
            self._handles.discard(handle)
            call()

        def cancel() -> None:
            self._handles.discard(handle)
            handle.cancel()

        handle = asyncio.get_running_loop().call_later(seconds, run)
        self._handles.add(handle)
        return cancel

    def close(self) -> None:
        """Cancel all, and take no more."""
        self._closed = True
        for handle in self._handles:
            handle.cancel()
        self._handles.clear()


def nothing() -> None:
    """What cancels no timer."""
