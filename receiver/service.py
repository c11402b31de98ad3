"""Builds the objects of a serving process, joins them, and starts and stops them in order.

Start: the file, the router's loop, the public port, the operations port. Stop, at SIGTERM or SIGINT: no new
connections, the requests in progress are answered, the router finishes its batch, the file is closed. What is not
routed by then is routed after the next start.
"""

import asyncio
import contextlib
import gc
import json
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import uvicorn
from starlette.types import ASGIApp

from receiver.admission import Admission
from receiver.auth import Credentials, Issuer, StaticToken
from receiver.backends.sqlite import SqliteNode, SqliteReader
from receiver.backends.sqlite_file import Lock
from receiver.connection import ConnectionLimits, guarded
from receiver.dispatcher import Dispatcher
from receiver.edge import Edge, EdgeApp, Limits
from receiver.errors import Unavailable
from receiver.express import express
from receiver.jwks import Authenticator, KeySource
from receiver.ops import OpsApp
from receiver.replay import DeadLetters
from receiver.router import SESSIONS, Router
from receiver.routes import Route
from receiver.secret_file import mint_secret
from receiver.settings import Settings
from receiver.telemetry import Telemetry, configure_log

#: Tells other commands on the same directory where the operations port is.
ADDRESSES_FILE = "serve.json"

_RETENTION_SECONDS = 10.0
_RETENTION_SECONDS_SOON = 0.5
#: Rows removed at once: a few milliseconds of the writer's time. More than a node at full speed writes in the interval.
_RETENTION_ROWS_MAX = 2_000


class Addresses(NamedTuple):
    """Where a serving process listens."""

    edge_url: str
    ops_url: str


async def run(settings: Settings, *, ready: Callable[[Addresses], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain. `ready` is called once both ports listen.

    Raises Unavailable where the directory can't be served, and OSError where a port can't be had.
    """
    log_format = _log_format(settings)
    configure_log(settings.log.level, log_format)
    telemetry = Telemetry(log_format=log_format)
    router = build_router(settings)
    with (
        contextlib.closing(open_node(settings, telemetry.appended)) as node,
        contextlib.closing(open_reader(settings)) as reader,
        listening(settings.edge.host, settings.edge.port) as edge_socket,
        listening(settings.ops.host, settings.ops.port) as ops_socket,
    ):
        stopping = asyncio.Event()
        dispatcher = Dispatcher(node.lane, router, telemetry, batch_max=settings.router.batch_max)
        edge_app, authenticator = build_edge(settings, node, telemetry)
        ops_app = OpsApp(
            reader=reader,
            dead_letters=DeadLetters(reader, node.inbox, settings.prefix),
            telemetry=telemetry,
            troubles=lambda: {
                "inbox": node.inbox.trouble,
                "shutdown": "draining" if stopping.is_set() else "",
            },
            stopping=stopping,
            prefix=settings.prefix,
            token_sha256=settings.ops.token_sha256,
        )
        edge_server, ops_server = build_server(edge_app, settings), build_server(ops_app, settings)
        addresses = Addresses(
            settings.edge.public_url or _url(settings.edge.host, edge_socket) + settings.edge.path,
            _url(settings.ops.host, ops_socket),
        )
        with _signals(stopping), _announced(settings.data, addresses), garbage_kept_off():
            async with asyncio.TaskGroup() as tasks:
                routing = tasks.create_task(dispatcher.run())
                beside = [
                    tasks.create_task(_retain(node, settings, telemetry)),
                    tasks.create_task(authenticator.keep_fresh()),
                ]
                serving = [
                    tasks.create_task(server.serve([listener]))
                    for server, listener in ((edge_server, edge_socket), (ops_server, ops_socket))
                ]
                if ready is not None:
                    ready(addresses)
                await stopping.wait()
                edge_server.should_exit = True
                await serving[0]
                routing.cancel()
                for task in beside:
                    task.cancel()
                ops_server.should_exit = True
        telemetry.flush()


def build_edge(settings: Settings, node: SqliteNode, telemetry: Telemetry) -> tuple[EdgeApp, Authenticator]:
    """The application of the public port, and what finds out who posts."""
    edge, auth = settings.edge, settings.auth
    credentials = Credentials(
        tokens=[
            StaticToken(
                token.sender, bytes.fromhex(token.sha256), _timestamp(token.not_before), _timestamp(token.not_after)
            )
            for token in auth.tokens
        ],
        mint_secret=mint_secret(settings),
        issuers=[
            Issuer(each.issuer, each.audience, each.algorithms, each.sender, each.sender_claim, each.leeway_seconds)
            for each in auth.jwt
        ],
        anonymous=auth.anonymous,
    )
    sources = {
        each.issuer: KeySource(
            each.jwks_url, each.refresh_min_seconds, each.refresh_max_seconds, each.fetch_timeout_seconds
        )
        for each in auth.jwt
    }
    authenticator = Authenticator(credentials, sources)
    admission = Admission(
        in_flight_max=edge.in_flight_max,
        in_flight_bytes_max=edge.in_flight_bytes_max,
        rate_per_second=edge.rate_per_second,
        rate_burst=edge.rate_burst,
    )
    endpoint = Edge(
        authenticate=authenticator,
        admission=admission,
        inbox=node.inbox,
        telemetry=telemetry,
        limits=Limits(edge.body_bytes_max, edge.query_tokens),
    )
    return EdgeApp(endpoint, edge.path), authenticator


def build_router(settings: Settings) -> Router:
    """The router that the settings describe."""
    routes = [
        Route(
            route.topic,
            senders=_some(route.sender),
            qos_statuses=_some(route.qos_status),
            status_infos=_some(route.status_info),
            unexpected=route.unexpected,
            event_types=route.event_type,
        )
        for route in settings.routes
    ]
    return Router(prefix=settings.prefix, routes=routes, forget_after_seconds=settings.retention.session_hours * 3600)


def open_node(settings: Settings, appended: Callable[[int, float], None] = lambda _count, _seconds: None) -> SqliteNode:
    """The directory of the settings, to be served by this process alone. Raises Unavailable."""
    return SqliteNode(
        settings.data,
        sessions_topic=f"{settings.prefix}.{SESSIONS}",
        append_timeout_seconds=settings.edge.append_timeout_seconds,
        appended=appended,
    )


def open_reader(settings: Settings) -> SqliteReader:
    """A reader of the directory of the settings, beside whoever serves it. Raises Unavailable."""
    return SqliteReader(settings.data, f"{settings.prefix}.{SESSIONS}")


async def replay(settings: Settings, verdicts: list[str] | None, start: str) -> int:
    """Send dead letters through today's parser again while no process serves; see `DeadLetters.replay`."""
    with contextlib.closing(open_node(settings)) as node, contextlib.closing(open_reader(settings)) as reader:
        return await DeadLetters(reader, node.inbox, settings.prefix).replay(verdicts, start)


def served_at(directory: Path) -> Addresses | None:
    """Where the process listens that serves a directory, None where none does."""
    try:
        Lock(directory).release()
    except OSError:
        return None
    except Unavailable:
        told = json.loads((directory / ADDRESSES_FILE).read_bytes())
        return Addresses(told["edge_url"], told["ops_url"])
    return None


async def _retain(node: SqliteNode, settings: Settings, telemetry: Telemetry) -> None:
    """Remove what is too old, a little at a time, for ever."""
    hours_micros = 3600 * 1_000_000
    while True:
        now_micros = time.time_ns() // 1000
        try:
            removed = await node.retain(
                round(now_micros - settings.retention.inbox_hours * hours_micros),
                round(now_micros - settings.retention.topics_hours * hours_micros),
                _RETENTION_ROWS_MAX,
            )
        except Unavailable as error:
            telemetry.retention_failed(error.message)
            removed = 0
        # A full sweep hints at more; but requests go first. In trouble it tells when that is over.
        soon = removed >= _RETENTION_ROWS_MAX or node.inbox.trouble
        await asyncio.sleep(_RETENTION_SECONDS_SOON if soon else _RETENTION_SECONDS)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: two servers stop here, in an order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def build_server(app: ASGIApp, settings: Settings) -> uvicorn.Server:
    """A server for one port, with the limits of the settings on its connections."""
    edge = settings.edge
    limits = ConnectionLimits(
        edge.header_bytes_max,
        edge.header_timeout_seconds,
        edge.body_timeout_seconds,
        edge.idle_timeout_seconds,
        edge.connections_max,
    )
    return _Server(
        uvicorn.Config(
            app,
            interface="asgi3",
            http=express(limits, app.edge, app.paths) if isinstance(app, EdgeApp) else guarded(limits),
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
    """A socket that listens there; 0 is a free port. Raises OSError with a message that names the place."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(error.errno, f"can't listen on {host} port {port}: {os.strerror(error.errno or 0)}") from error
    with listener:
        yield listener


def _url(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def _signals(stopping: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    wanted = signal.SIGTERM, signal.SIGINT
    for number in wanted:
        loop.add_signal_handler(number, stopping.set)
    try:
        yield
    finally:
        for number in wanted:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _announced(directory: Path, addresses: Addresses) -> Iterator[None]:
    file = directory / ADDRESSES_FILE
    file.write_text(json.dumps({"pid": os.getpid(), **addresses._asdict()}))
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def garbage_kept_off() -> Iterator[None]:
    """Let the collector look at a request's objects rarely: they are freed by their counts, and nothing else is old.

    At its defaults it stops the loop for milliseconds under load, which is what the slowest answers wait for.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _log_format(settings: Settings) -> Literal["json", "console"]:
    if settings.log.format == "auto":
        return "console" if sys.stderr.isatty() else "json"
    return settings.log.format


T = TypeVar("T")


def _timestamp(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()


def _some(values: Iterable[T] | None) -> frozenset[T] | None:
    return None if values is None else frozenset(values)
