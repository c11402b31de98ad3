"""A simulator, assembled and served on a socket, with an orderly end."""

import asyncio
import contextlib
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import NamedTuple

import httpx2
import uvicorn

from receiver.simulator import control
from receiver.simulator.api import ApiApp
from receiver.simulator.dialects import RELEASES, Release
from receiver.simulator.ledger import Ledger
from receiver.simulator.network import Behaviour, Network
from receiver.simulator.notifier import Notifier, NotifierLimits
from receiver.simulator.oauth import Client, Tokens
from receiver.simulator.plan import Plan
from receiver.simulator.timers import Timers

#: A client that scripts may rely on.
DEMO = Client("demo", "demo")

_CONNECTIONS_MAX = 2_000
_HEAD_BYTES_MAX = 16_384
_STOP_SECONDS = 3
#: Shorter than any receiver's: if the receiver closed the connection during a post, the answer would be lost.
_KEEP_ALIVE_SECONDS = 4.0


class Options(NamedTuple):
    """The options of a simulator. See `plan.py` for the plan and `__init__.py` for the speed.

    `trust` is for receivers served over TLS; None trusts the system's authorities. The ledger keeps `ledger_max` posts,
    and as many sessions.
    """

    plan: Plan = Plan()
    seed: int = 0
    speed: float = 1.0
    releases: Sequence[Release] = (RELEASES["0.10"],)
    available_after_seconds: float = 2.0
    clients: Sequence[Client] = ()
    token_seconds: int = 3_600
    sessions_max: int = 50_000
    ledger_max: int = 50_000
    notifier: NotifierLimits = NotifierLimits()
    trust: ssl.SSLContext | None = None


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: the caller decides when the simulator ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


@contextlib.asynccontextmanager
async def simulating(options: Options, listener: socket.socket) -> AsyncIterator[None]:
    """Serve on a listening socket. At the end requests are finished, and posts in flight are cut off."""
    timers, ledger = Timers(), Ledger(options.ledger_max)
    limits = httpx2.Limits(
        max_connections=options.notifier.in_flight_max,
        max_keepalive_connections=options.notifier.in_flight_max,
        keepalive_expiry=_KEEP_ALIVE_SECONDS,
    )
    async with contextlib.AsyncExitStack() as stack:
        client = httpx2.AsyncClient(
            verify=options.trust or ssl.create_default_context(),
            limits=limits,
            timeout=None,  # the notifier limits each post as a whole
            trust_env=False,
            headers={"user-agent": "qod-simulator"},
        )
        await stack.enter_async_context(client)
        notifier = Notifier(client, ledger, timers, options.notifier, options.speed)
        stack.push_async_callback(notifier.close)
        stack.callback(timers.close)
        behaviour = Behaviour(
            options.plan,
            options.seed,
            options.speed,
            options.available_after_seconds,
            options.releases,
            options.sessions_max,
        )
        network = Network(behaviour, notifier, ledger, timers)
        clients = {client.client_id: client for client in (DEMO, *options.clients)}
        tokens = Tokens(clients, secrets.token_bytes(32), options.token_seconds)
        app = ApiApp(network, tokens, control.routes(network, notifier, ledger))
        await stack.enter_async_context(_served(app, listener))
        yield


@contextlib.asynccontextmanager
async def _served(app: ApiApp, listener: socket.socket) -> AsyncIterator[None]:
    server = _Server(
        uvicorn.Config(
            app,
            interface="asgi3",
            http="h11",  # the only one that limits a request's head
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=_HEAD_BYTES_MAX,
            limit_concurrency=_CONNECTIONS_MAX,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
    )
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving
