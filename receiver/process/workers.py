"""Several edges on one port, with one more process that routes in the role `all`, under a parent that watches them.

They share the socket, Kafka, and the spool of the first edge (`backends/shared_spool.py`). A child that ends is started
again. When the parent is told to end, or is killed, its children end too: each watches a pipe that only the parent
holds open.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Self

import structlog
import uvloop

from receiver.backends.shared_spool import SharedSpool
from receiver.backoff import Backoff
from receiver.core.errors import ReceiverError, Unavailable
from receiver.log import configure_log, log_format_of
from receiver.process.addresses import Addresses
from receiver.process.part import Part
from receiver.process.ports import listening, url_of
from receiver.process.run import run as serve_part
from receiver.settings import Settings

_AGAIN_SECONDS_FIRST = 0.5
_AGAIN_SECONDS_MAX = 30.0
#: A process that lived this long was well: the next restart waits no longer than the first.
_WELL_SECONDS = 60.0
#: Time for a process to end beyond the time for its requests: a commit, and the clients of Kafka.
_END_SECONDS = 20.0
_START_SECONDS_MAX = 60.0
_PORT_MAX = 65_535

_FORK = multiprocessing.get_context("fork")


def run(settings: Settings, role: str, edges_count: int, ready: Callable[[Addresses], None]) -> None:
    """Serve until SIGTERM or SIGINT. The operations ports are consecutive, the router's first.

    Raises Unavailable if a process can't be started, and OSError if the port can't be used.
    """
    shared = SharedSpool()
    parts = [Part("edge", worker, shared) for worker in range(edges_count)]
    if role == "all":
        parts.insert(0, Part("router", beside_edges=True))
    if settings.ops.port and settings.ops.port + len(parts) - 1 > _PORT_MAX:
        least = f"from {settings.ops.port} on there are not {len(parts)} ports for operations, one for each process"
        raise Unavailable(least, reason="worker")
    configure_log(settings.log.level, log_format_of(settings.log.format))
    with ExitStack() as stack:
        stack.enter_context(closing(shared))
        edge_socket = stack.enter_context(listening(settings.edge.host, settings.edge.port))
        edge_url = settings.edge.public_url or url_of(settings.edge.host, edge_socket) + settings.edge.path
        signalled = stack.enter_context(_Signals())
        lifeline, held = os.pipe()
        stack.callback(os.close, lifeline)
        children = [
            _Child(_with_ops_port(settings, index), part, edge_socket, lifeline, held)
            for index, part in enumerate(parts)
        ]
        stack.callback(_end, children, settings.edge.shutdown_timeout_seconds + _END_SECONDS)
        # Closed first: this ends the children, and a signal would be lost on a child that is about to start.
        stack.callback(os.close, held)
        # Once no process accepts connections, new ones should be refused rather than wait.
        stack.callback(edge_socket.close)
        for child in children:
            child.start()
        ops_urls = [child.wait_until_ready(signalled) for child in children]
        if signalled.wait([], 0):
            return
        ready(Addresses(edge_url, "  ".join(ops_urls)))
        while not signalled.wait(_sentinels(children), _next_start(children)):
            for child in children:
                child.keep_alive()


class _Signals:
    """SIGTERM and SIGINT, in a form that can be waited for."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()

    def __enter__(self) -> Self:
        self._write.setblocking(False)
        self._before = {number: signal.signal(number, self._ignore) for number in (signal.SIGTERM, signal.SIGINT)}
        signal.set_wakeup_fd(self._write.fileno())
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, before in self._before.items():
            signal.signal(number, before)
        self._read.close()
        self._write.close()

    def wait(self, sentinels: list[int], seconds_max: float | None) -> bool:
        """Wait for a signal, the end of a process, or `seconds_max`. Returns whether there was a signal."""
        return self._read in wait([self._read, *sentinels], seconds_max)

    @staticmethod
    def _ignore(_number: int, _frame: object) -> None:
        """Nothing to do: the wake-up descriptor reports the signal."""


class _Child:
    """A process that serves a part, and is started again whenever it ends."""

    def __init__(self, settings: Settings, part: Part, edge_socket: socket.socket, lifeline: int, held: int) -> None:
        self.process: BaseProcess
        self.start_at: float | None = None
        self._settings = settings
        self._part = part
        self._edge_socket = edge_socket if part.receives else None
        self._lifeline = lifeline
        self._held = held
        self._backoff = Backoff(_AGAIN_SECONDS_FIRST, _AGAIN_SECONDS_MAX)
        self._began = 0.0

    def start(self) -> None:
        """Start the process."""
        self.start_at = None
        self._began = time.monotonic()
        self._told, telling = _FORK.Pipe(duplex=False)
        self.process = _FORK.Process(target=self._serve, args=(telling,), name=self._name())
        self.process.start()
        telling.close()

    def wait_until_ready(self, signalled: _Signals) -> str:
        """Wait until its ports listen, or for a signal; returns the operations port's URL.

        Raises Unavailable if it ends instead.
        """
        ops_url, failure = "", f"it took longer than {_START_SECONDS_MAX:g} s"
        try:
            signalled.wait([self._told.fileno()], _START_SECONDS_MAX)
            if self._told.poll():
                ops_url, failure = self._told.recv()
        except EOFError:
            failure = "it ended at once"
        if failure and not signalled.wait([], 0):
            raise Unavailable(f"the {self._name()} could not be started: {failure}", reason="worker")
        return ops_url

    def keep_alive(self) -> None:
        """Start it again if it ended, after growing pauses."""
        now = time.monotonic()
        if self.start_at is not None:
            if now >= self.start_at:
                self.start()
        elif not self.process.is_alive():
            if now - self._began > _WELL_SECONDS:
                self._backoff.reset()
            self.start_at = now + self._backoff.seconds()
            structlog.get_logger("receiver").error(
                "worker_ended", worker=self._name(), exit_code=self.process.exitcode, reason=self._failure()
            )

    def _failure(self) -> str:
        """The reason for its end, if it reported one."""
        failure = ""
        with suppress(EOFError):
            while self._told.poll():
                _, failure = self._told.recv()
        return failure

    def _name(self) -> str:
        return "router" if self._part.role == "router" else f"edge {self._part.worker}"

    def _serve(self, telling: Connection) -> None:
        os.close(self._held)
        signal.set_wakeup_fd(-1)

        def ready(addresses: Addresses) -> None:
            telling.send((addresses.ops_url, ""))

        try:
            uvloop.run(
                serve_part(
                    self._settings,
                    part=self._part,
                    edge_socket=self._edge_socket,
                    stop_when=self._lifeline,
                    ready=ready,
                )
            )
        except (OSError, ReceiverError) as error:
            with suppress(BrokenPipeError):
                telling.send(("", (isinstance(error, OSError) and error.strerror) or str(error)))
            sys.exit(1)


def _with_ops_port(settings: Settings, index: int) -> Settings:
    port = settings.ops.port and settings.ops.port + index
    return settings.model_copy(update={"ops": settings.ops.model_copy(update={"port": port})})


def _sentinels(children: list[_Child]) -> list[int]:
    return [child.process.sentinel for child in children if child.start_at is None]


def _next_start(children: list[_Child]) -> float | None:
    """Seconds until the next restart, None if none is due."""
    times = [child.start_at for child in children if child.start_at is not None]
    return max(0.0, min(times) - time.monotonic()) if times else None


def _end(children: list[_Child], seconds_max: float) -> None:
    """Terminate all, wait up to `seconds_max`, then kill those that still run."""
    running = [child.process for child in children if hasattr(child, "process")]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + seconds_max
    for process in running:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
