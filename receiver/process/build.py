"""Builds the objects of a serving process, joins them, and starts and stops them in order.

Start: the node with its inbox and router, the public port, the operations port. Stop, at SIGTERM or SIGINT: no new
connections, the requests in progress are answered, the router finishes its batch, the node is closed. What is not
routed by then is routed after the next start.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

import structlog

from receiver.backends.directory import Lock, make_private
from receiver.backends.kafka.reader import KafkaReader
from receiver.core.errors import Unavailable
from receiver.core.notification import Notification
from receiver.core.router import Router
from receiver.core.routes import Route
from receiver.edge.admission import Admission
from receiver.edge.app import Edge, EdgeApp, Limits
from receiver.edge.auth import Credentials, Issuer, StaticToken
from receiver.edge.issuers import Authenticator, KeySource
from receiver.inbox import Inbox
from receiver.ops import OpsApp
from receiver.process.clustered import WHOLE, Part, cluster_inbox, clustered, connection_of
from receiver.process.embedded import embedded, open_node, open_reader
from receiver.process.node import Node
from receiver.process.ports import (
    OBJECTS_OF_EDGE,
    OBJECTS_OF_ROUTER,
    build_server,
    connections_that_fit,
    garbage_kept_off,
    listening,
    serve,
    signals,
    url_of,
)
from receiver.process.reconciling import reconciling
from receiver.qod.reconciler import append
from receiver.reader import Reader
from receiver.replay import DeadLetters
from receiver.secret_file import mint_secret
from receiver.settings import Settings
from receiver.telemetry import Telemetry, configure_log, log_format_of

#: Tells other commands on the same directory where the operations port is.
ADDRESSES_FILE = "serve.json"


class Addresses(NamedTuple):
    """Where a serving process listens."""

    edge_url: str  # empty where senders can't post
    ops_url: str


async def run(
    settings: Settings,
    *,
    part: Part = WHOLE,
    edge_socket: socket.socket | None = None,
    ready: Callable[[Addresses], None] | None = None,
    stop_when: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. `ready` is called once the ports listen.

    A `part` without the whole needs Kafka. `edge_socket` listens already; `stop_when` is a file descriptor whose end
    is the end of this process too. Raises Unavailable where the settings can't be served, and OSError where a port
    can't be had.
    """
    log_format = log_format_of(settings.log.format)
    configure_log(settings.log.level, log_format)
    telemetry = Telemetry(log_format=log_format)
    stopping = asyncio.Event()
    async with AsyncExitStack() as stack:
        stack.enter_context(signals(stopping, stop_when))
        node = await stack.enter_async_context(_node(settings, telemetry, part))
        if stopping.is_set():
            return
        if part.receives and edge_socket is None:
            edge_socket = stack.enter_context(listening(settings.edge.host, settings.edge.port))
        ops_socket = stack.enter_context(listening(settings.ops.host, settings.ops.port))
        schedule = await stack.enter_async_context(reconciling(settings, node, telemetry)) if part.routes else None
        ops_app = OpsApp(
            inbox=node.inbox,
            reader=node.reader,
            dead_letters=DeadLetters(node.reader, node.inbox, settings.prefix),
            telemetry=telemetry,
            session_counts=node.session_counts,
            troubles=lambda: {**node.troubles(), "shutdown": "draining" if stopping.is_set() else ""},
            notices=lambda: {**node.notices(), **({} if schedule is None else {"api": schedule.trouble})},
            stopping=stopping,
            prefix=settings.prefix,
            token_sha256=settings.ops.token_sha256,
        )
        jobs = list(node.jobs())
        if schedule is not None:
            jobs.append(schedule.run())
        servers = [(build_server(ops_app, settings, telemetry), ops_socket)]
        edge_url = ""
        if edge_socket is not None:
            edge_app, authenticator = build_edge(settings, node.inbox, telemetry)
            jobs.append(authenticator.keep_fresh())
            servers.append((build_server(edge_app, _fitted(settings, telemetry), telemetry), edge_socket))
            edge_url = settings.edge.public_url or url_of(settings.edge.host, edge_socket) + settings.edge.path
        addresses = Addresses(edge_url, url_of(settings.ops.host, ops_socket))
        if not settings.kafka.bootstrap_servers:
            stack.enter_context(_announced(settings.data, addresses))
        stack.enter_context(garbage_kept_off(OBJECTS_OF_EDGE if part.receives else OBJECTS_OF_ROUTER))
        await serve(jobs, servers, stopping, lambda: ready and ready(addresses))
        telemetry.flush()


def _fitted(settings: Settings, telemetry: Telemetry) -> Settings:
    """The settings with so many connections as there are descriptors for."""
    edge = settings.edge
    fitting = connections_that_fit(edge.connections_max, telemetry)
    changes = {
        "connections_max": fitting,
        "connections_per_address_max": max(1, edge.connections_per_address_max * fitting // edge.connections_max),
    }
    return settings.model_copy(update={"edge": edge.model_copy(update=changes)})


def _node(settings: Settings, telemetry: Telemetry, part: Part) -> AbstractAsyncContextManager[Node]:
    router = build_router(settings)
    if settings.kafka.bootstrap_servers:
        return clustered(settings, telemetry, router, part)
    return embedded(settings, telemetry, router)


@asynccontextmanager
async def reading(settings: Settings) -> AsyncIterator[Reader]:
    """A reader of what the settings' process keeps, beside it. Raises Unavailable where nothing is kept yet."""
    if settings.kafka.bootstrap_servers:
        kafka_reader = KafkaReader(connection_of(settings), settings.prefix)
        try:
            yield kafka_reader
        finally:
            await kafka_reader.close()
    else:
        with contextlib.closing(open_reader(settings)) as reader:
            yield reader


def build_edge(settings: Settings, inbox: Inbox, telemetry: Telemetry) -> tuple[EdgeApp, Authenticator]:
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
            Issuer(
                each.issuer,
                each.audience,
                each.algorithms,
                each.sender,
                each.sender_claim,
                each.leeway_seconds,
                each.sender_prefix,
                each.audience_optional,
            )
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
        share=edge.sender_share,
        share_bytes=max(edge.sender_share_bytes, edge.body_bytes_max),
        rate_per_second=edge.rate_per_second,
        rate_burst=edge.rate_burst,
    )
    endpoint = Edge(
        authenticate=authenticator,
        admission=admission,
        inbox=inbox,
        telemetry=telemetry,
        limits=Limits(
            edge.body_bytes_max,
            edge.query_tokens,
            [name.lower().encode() for name in auth.headers],
            edge.trusted_proxies,
        ),
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
    return Router(
        prefix=settings.prefix,
        routes=routes,
        forget_after_seconds=settings.retention.session_hours * 3600,
        resuming_senders=settings.router.resuming_senders,
    )


async def learn(settings: Settings, notifications: Sequence[Notification]) -> None:
    """Append what the API told: into the cluster, whoever serves it; or into the directory, while no process does."""
    async with _inbox(settings) as inbox:
        await append(inbox, notifications)


async def replay(settings: Settings, verdicts: list[str] | None, start: str) -> int:
    """Send dead letters through today's parser again; see `DeadLetters.replay`.

    Into the cluster, whoever serves it; or into the directory, while no process does.
    """
    async with reading(settings) as reader, _inbox(settings) as inbox:
        return await DeadLetters(reader, inbox, settings.prefix).replay(verdicts, start)


@asynccontextmanager
async def _inbox(settings: Settings) -> AsyncIterator[Inbox]:
    if settings.kafka.bootstrap_servers:
        async with cluster_inbox(settings, build_router(settings)) as inbox:
            yield inbox
    else:
        with contextlib.closing(open_node(settings)) as node:
            yield node.inbox


def served_at(directory: Path) -> Addresses | None:
    """Where the process listens that serves a directory, None where none does."""
    try:
        Lock(directory).release()
    except OSError:
        return None
    except Unavailable:
        try:
            told = json.loads((directory / ADDRESSES_FILE).read_bytes())
        except (OSError, ValueError):
            message = f"another process serves {directory} and could not write there where it listens"
            raise Unavailable(message, reason="locked") from None
        return Addresses(told["edge_url"], told["ops_url"])
    return None


@contextlib.contextmanager
def _announced(directory: Path, addresses: Addresses) -> Iterator[None]:
    file = directory / ADDRESSES_FILE
    try:
        file.unlink(missing_ok=True)  # of a process that was killed
        make_private(str(file))
        file.write_text(json.dumps({"pid": os.getpid(), **addresses._asdict()}))
    except OSError as error:  # other commands don't find this process then; what it does goes on
        structlog.get_logger("receiver").warning("addresses_not_written", reason=error.strerror)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


T = TypeVar("T")


def _timestamp(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()


def _some(values: Iterable[T] | None) -> frozenset[T] | None:
    return None if values is None else frozenset(values)
