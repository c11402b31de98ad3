"""The ports of a process: sockets, servers with their limits, signals, and the order of shutdown."""

import asyncio
import contextlib
import functools
import gc
import math
import os
import resource
import signal
import socket
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from receiver.edge.app import EdgeApp
from receiver.edge.connection import ConnectionLimits, guarded
from receiver.edge.conversation import Timeouts
from receiver.edge.express import express
from receiver.settings import Settings
from receiver.telemetry import Telemetry

#: New objects that may be alive before the garbage collector runs. An edge's slowest answers wait for the collector; a
#: router has more objects at a time, all in use, so that each run would be in vain.
OBJECTS_OF_EDGE = 50_000
OBJECTS_OF_ROUTER = 500_000

#: File descriptors other than connections to our ports: files, Kafka, and workers' connections to each other.
_FILES_MAX = 128
#: Connections reserved for the operations port, which the public port never uses: 64 streams, and health checks.
_OPS_CONNECTIONS_MAX = 96


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: two servers stop here, in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def connections_that_fit(wanted: int, telemetry: Telemetry) -> int:
    """The number of the `wanted` connections that this process may have open, beside its files and operations port.

    The limit on file descriptors is raised if it is too low, as far as the system allows.
    """
    needed = wanted + _FILES_MAX + _OPS_CONNECTIONS_MAX
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    most = needed if soft == resource.RLIM_INFINITY else soft
    # Below the reserve, a quarter of the descriptors goes to connections.
    fitting = min(wanted, max(most - _FILES_MAX - _OPS_CONNECTIONS_MAX, most // 4))
    telemetry.descriptors(most, needed, fitting)
    return fitting


def build_server(app: ASGIApp, settings: Settings, telemetry: Telemetry) -> uvicorn.Server:
    """A server for one port with limits on its connections: those of the settings for the public port."""
    edge, is_edge = settings.edge, isinstance(app, EdgeApp)
    limits = ConnectionLimits(
        edge.header_bytes_max,
        Timeouts(edge.header_timeout_seconds, edge.body_timeout_seconds, edge.idle_timeout_seconds),
        edge.connections_max if is_edge else _OPS_CONNECTIONS_MAX,
        edge.connections_per_address_max if is_edge else _OPS_CONNECTIONS_MAX,
        edge.trusted_proxies,
    )
    ended = functools.partial(telemetry.connection_ended, "edge" if is_edge else "ops")
    return _Server(
        uvicorn.Config(
            app,
            interface="asgi3",
            http=express(limits, app.intake, app.paths, ended) if isinstance(app, EdgeApp) else guarded(limits, ended),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=math.ceil(settings.edge.shutdown_timeout_seconds),
        )
    )


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens on `host` and `port` (0: a free port). Raises OSError, with a message that names both."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(error.errno, f"can't listen on {host} port {port}: {os.strerror(error.errno or 0)}") from error
    with listener:
        yield listener


def url_of(host: str, listener: socket.socket) -> str:
    """The URL of a socket that listens, without a path."""
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def signals(stopping: asyncio.Event, stop_when: int | None = None) -> Iterator[None]:
    """Set `stopping` on SIGTERM, on SIGINT, and when the file descriptor `stop_when` is closed at its other end."""
    loop = asyncio.get_running_loop()
    if stop_when is not None:
        loop.add_reader(stop_when, _stop, stop_when, stopping)

    def tell(_number: int, _frame: object) -> None:
        loop.call_soon_threadsafe(stopping.set)

    # The loop's own handlers would be reset to the default when the loop ends; a signal would then kill the process.
    before = {number: signal.signal(number, tell) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if stop_when is not None:
            loop.remove_reader(stop_when)


def _stop(stop_when: int, stopping: asyncio.Event) -> None:
    asyncio.get_running_loop().remove_reader(stop_when)
    stopping.set()


@contextlib.contextmanager
def garbage_kept_off(objects_count: int = OBJECTS_OF_EDGE) -> Iterator[None]:
    """Let the garbage collector look at a request's objects rarely: reference counts free them, and few live long.

    At its defaults the collector stops the loop for milliseconds under load, and the slowest answers wait for it.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(objects_count, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


async def serve(
    jobs: Iterable[Coroutine[Any, Any, None]],
    servers: Sequence[tuple[uvicorn.Server, socket.socket]],
    stopping: asyncio.Event,
    ready: Callable[[], object],
) -> None:
    """Serve until `stopping`, then end in order: all servers but the first, the jobs, the first server.

    The first server is the operations port's. The jobs end after the other servers, whose requests need them.
    """
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(job) for job in jobs]
        serving = [(server, tasks.create_task(server.serve([listener]))) for server, listener in servers]
        ready()
        await stopping.wait()
        (ops_server, _), *edges = serving
        for server, served in edges:
            server.should_exit = True
            await served
        for task in running:
            task.cancel()
        ops_server.should_exit = True
