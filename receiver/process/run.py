"""Runs a serving process: builds its objects, joins them, and starts and stops them in order.

Start: the node with its inbox and router, the public port, the operations port. Stop, at SIGTERM or SIGINT: no new
Start: the node with its inbox and router, the public port, the operations port. Stop, at SIGTERM or SIGINT: no new
connections, the requests in progress are answered, the router finishes its batch, the node is closed. Notifications not
routed by then are routed after the next start.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack

from receiver.log import configure_log, log_format_of
from receiver.operations import LocalOperations
from receiver.ops import OpsApp
from receiver.process.addresses import Addresses
from receiver.process.part import WHOLE, Part
from receiver.process.ports import (
    OBJECTS_OF_EDGE,
    OBJECTS_OF_ROUTER,
    build_server,
    garbage_kept_off,
    listening,
    serve,
    signals,
    url_of,
)
from receiver.process.receiving import build_edge, fitted
from receiver.process.reconciling import reconciling
from receiver.process.store import store_of
from receiver.settings import Settings
from receiver.telemetry import Telemetry


async def run(
    settings: Settings,
    *,
    part: Part = WHOLE,
    edge_socket: socket.socket | None = None,
    ready: Callable[[Addresses], None] | None = None,
    stop_when: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. `ready` is called once the ports listen.

    A `part` other than the whole needs Kafka. `edge_socket` listens already. This process also ends when the file
    descriptor `stop_when` is closed at its other end. Raises Unavailable if the settings can't be served, and OSError
    if a port can't be used.
    """
    log_format = log_format_of(settings.log.format)
    configure_log(settings.log.level, log_format)
    telemetry = Telemetry(log_format=log_format)
    stopping, store = asyncio.Event(), store_of(settings)
    async with AsyncExitStack() as stack:
        stack.enter_context(signals(stopping, stop_when))
        node = await stack.enter_async_context(store.node(telemetry, part))
        if stopping.is_set():
            return
        if part.receives and edge_socket is None:
            edge_socket = stack.enter_context(listening(settings.edge.host, settings.edge.port))
        ops_socket = stack.enter_context(listening(settings.ops.host, settings.ops.port))
        schedule = await stack.enter_async_context(reconciling(settings, node, telemetry)) if part.routes else None
        ops_app = OpsApp(
            operations=LocalOperations(node.reader, node.inbox, settings.prefix),
            reader=node.reader,
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
            servers.append((build_server(edge_app, fitted(settings, telemetry), telemetry), edge_socket))
            edge_url = settings.edge.public_url or url_of(settings.edge.host, edge_socket) + settings.edge.path
        addresses = Addresses(edge_url, url_of(settings.ops.host, ops_socket))
        stack.enter_context(store.announced(addresses, telemetry))
        stack.enter_context(garbage_kept_off(OBJECTS_OF_EDGE if part.receives else OBJECTS_OF_ROUTER))
        await serve(jobs, servers, stopping, lambda: ready and ready(addresses))
        telemetry.flush()
