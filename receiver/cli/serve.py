"""`serve`: runs a receiver until it is told to end."""

import sys
import time
from collections.abc import Callable
from typing import Annotated, Literal

import typer
import uvloop

from receiver.cli.options import ConfigOption, DataOption, KafkaOption, settings_of
from receiver.console import data_option, first_steps, program
from receiver.edge import auth
from receiver.process import workers
from receiver.process.addresses import Addresses
from receiver.process.part import Part
from receiver.process.run import run
from receiver.process.store import Store, store_of
from receiver.secret_file import is_made, mint_secret
from receiver.settings import Settings
from receiver.shown import shown_url

_FIRST_TOKEN_SECONDS = 30 * 86_400


def serve(
    *,
    data: DataOption = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen for notifications on. \\[default: 127.0.0.1]", show_default=False, metavar="ADDRESS"
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Port for notifications; 0 is a free one. \\[default: 8080]",
            show_default=False,
            metavar="PORT",
        ),
    ] = None,
    ops_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Port for health, metrics and topics. \\[default: 9464]",
            show_default=False,
            metavar="PORT",
        ),
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option(help="debug, info, warning or error. \\[default: info]", show_default=False, metavar="LEVEL"),
    ] = None,
    kafka: KafkaOption = None,
    role: Annotated[
        Literal["all", "edge", "router"],
        typer.Option(help="all, edge (receives) or router (decides); the last two need --kafka.", metavar="ROLE"),
    ] = "all",
    worker_count: Annotated[
        int,
        typer.Option(
            "--workers", min=1, max=256, help="Processes that receive, on one port; needs --kafka.", metavar="COUNT"
        ),
    ] = 1,
    config: ConfigOption = None,
) -> None:
    """Receive notifications until Ctrl-C or SIGTERM."""
    settings = settings_of(
        config, data=data, edge__host=host, edge__port=port, ops__port=ops_port, log__level=log_level, kafka=kafka
    )
    store = store_of(settings)
    _expect_shared(store, role, worker_count)
    greet = _greeting(settings, store)
    if worker_count > 1:
        workers.run(settings, role, worker_count, greet)
    else:
        uvloop.run(run(settings, part=Part(role), ready=greet))


def _expect_shared(store: Store, role: str, worker_count: int) -> None:
    """Refuse options that one directory does not allow, or that exclude each other."""
    hint = "one process serves a data directory; several processes share a cluster (--kafka)"
    if not store.is_shared and role != "all":
        raise typer.BadParameter(hint, param_hint="--role")
    if not store.is_shared and worker_count > 1:
        raise typer.BadParameter(hint, param_hint="--workers")
    if role == "router" and worker_count > 1:
        raise typer.BadParameter("a router is one process: start more of them instead", param_hint="--workers")


def _greeting(settings: Settings, store: Store) -> Callable[[Addresses], None]:
    """The function that prints the first lines once the ports listen. Made before serving, which creates the secret."""
    configured = settings.auth.anonymous or settings.auth.tokens or settings.auth.jwt
    minted = is_made(settings)

    def greet(addresses: Addresses) -> None:
        edge_url = shown_url(addresses.edge_url)
        if edge_url:
            typer.echo(f"Notifications: {edge_url}")
        typer.echo(f"Operations:    {addresses.ops_url}")
        if not edge_url:
            pass
        elif not configured and not minted:
            now = time.time()
            token = auth.mint(mint_secret(settings), "default", _FIRST_TOKEN_SECONDS, now)
            typer.echo(first_steps(edge_url, token, settings.data, store.describe(), now))
        elif not configured:
            typer.echo(f"Mint a token:  {program()} token mint --sender NAME{data_option(settings.data)}")
        sys.stdout.flush()

    return greet
