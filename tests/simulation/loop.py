"""An event loop whose time is virtual and whose order follows from a seed."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from random import Random
from selectors import SelectorKey, SelectSelector
from typing import Any, TypeVar

T = TypeVar("T")

#: The durations of a call on a thread: mostly as on a good disk, now and then as on one that others keep busy.
_CALL_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.02)


class Killed(SystemExit):
    """The end of the simulated program's life. asyncio lets a SystemExit through at once, from any callback."""


class Stuck(Exception):
    """Nothing is ready and nothing is scheduled, but a task still waits."""


class SimThread(Executor):
    """Stands for an executor of one thread; SimLoop runs its calls."""

    def __init__(self) -> None:
        self.free_at = 0.0


class SimLoop(asyncio.SelectorEventLoop):
    """Never sleeps: if nothing is ready, time jumps to the next timer.

    `slow_share` of the calls on a thread take `slow_seconds`. `between` is called after each of them, before its result
    is known.
    """

    def __init__(self, random: Random, seconds: float, *, slow_share: float, slow_seconds: float) -> None:
        self._random = random
        self._seconds = seconds
        self._slow_share = slow_share
        self._slow_seconds = slow_seconds
        self.between: Callable[[], None] = lambda: None
        super().__init__(_Instant(self._turn))

    def time(self) -> float:
        """The virtual time."""
        return self._seconds

    def run_in_executor(  # type: ignore[override]  # the base's own type differs between releases
        self,
        executor: Executor | None,
        func: Callable[..., T],
        *args: Any,  # noqa: ANN401  # func's arguments
    ) -> asyncio.Future[T]:
        """Run `func` a little later, as a thread would: one call at a time, in order. A call that began is finished."""
        assert isinstance(executor, SimThread)
        future: asyncio.Future[T] = self.create_future()
        began = max(executor.free_at, self._seconds) + self._random.choice(_CALL_SECONDS) * self._random.random() + 1e-7
        if self._random.random() < self._slow_share:
            began += self._slow_seconds
        executor.free_at = began + self._random.choice(_CALL_SECONDS) * self._random.random() + 1e-7
        self.call_at(began, self._call, future, executor.free_at, func, args)
        return future

    def _call(self, future: asyncio.Future[T], until: float, func: Callable[..., T], args: tuple[Any, ...]) -> None:
        if future.cancelled():
            return
        try:
            result = func(*args)
        except Exception as error:  # noqa: BLE001  # raised again in the waiting task, as from a thread
            self.between()
            self.call_at(until, _fail, future, error)
        else:
            self.between()
            self.call_at(until, _finish, future, result)

    def _turn(self, timeout: float | None) -> None:
        ready = self._ready  # type: ignore[attr-defined]  # the queue has no public name
        if len(ready) > 1:
            self._random.shuffle(ready)
        elif timeout is None:
            raise Stuck
        elif timeout > 0:
            self._seconds += timeout


class _Instant(SelectSelector):
    """Waits for nothing: the simulation has no sockets."""

    def __init__(self, turn: Callable[[float | None], None]) -> None:
        super().__init__()
        self._turn = turn

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        self._turn(timeout)
        return []


def _finish(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
