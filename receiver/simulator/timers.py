"""Timers of the running loop, which can all be cancelled together at the end of a simulator."""

import asyncio
from collections.abc import Callable


class Timers:
    """Calls to be made later. The loop keeps them in one heap; a session has at most one at a time."""

    def __init__(self) -> None:
        self._handles: set[asyncio.TimerHandle] = set()
        self._closed = False

    def after(self, seconds: float, call: Callable[[], object]) -> Callable[[], None]:
        """Call in `seconds`. Returns a function that cancels the call, without effect once it was made."""
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
        """Cancel all timers, and accept no more."""
        self._closed = True
        for handle in self._handles:
            handle.cancel()
        self._handles.clear()


def nothing() -> None:
    """Cancel no timer."""
