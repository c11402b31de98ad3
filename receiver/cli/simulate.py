"""`simulate`: the operator's side of the contract, for development and tests."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer
import uvloop

from receiver import tls
from receiver.cli.options import s
from receiver.log import configure_log, log_format_of
from receiver.process.ports import listening, signals, url_of
from receiver.simulator.dialects import RELEASES, Release
from receiver.simulator.oauth import Client, client_of
from receiver.simulator.plan import PRESETS, Plan, changed, toml_of
from receiver.simulator.server import DEMO, Options, simulating

_SPEED_MIN = 0.001
_SPEED_MAX = 100_000.0


def simulate(
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 is a free one.", metavar="PORT")
    ] = 9090,
    host: Annotated[str, typer.Option(help="Address to listen on.", metavar="ADDRESS")] = "127.0.0.1",
    speed: Annotated[
        float,
        typer.Option(
            min=_SPEED_MIN, max=_SPEED_MAX, help="How many times shorter all durations are.", metavar="NUMBER"
        ),
    ] = 1,
    seed: Annotated[int, typer.Option(help="Seed of chance; the same seed decides alike.", metavar="NUMBER")] = 0,
    dialect: Annotated[
        str,
        typer.Option(help=f"Releases that sessions take in turn: {', '.join(RELEASES)}, or all.", metavar="NAME,…"),
    ] = "0.10",
    fault_preset: Annotated[
        Literal["none", "some", "all"],
        typer.Option("--faults", help="Preset of faults: none, some or all.", metavar="NAME"),
    ] = "none",
    plan: Annotated[
        Path | None,
        typer.Option(
            help="Changes to the preset of faults (TOML; see --show-plan).",
            exists=True,
            dir_okay=False,
            show_default=False,
            metavar="FILE",
        ),
    ] = None,
    show_plan: Annotated[bool, typer.Option("--show-plan", help="Print the plan of faults, and exit.")] = False,
    available_after: Annotated[
        float, typer.Option(min=0, max=86_400, help="How long a session is REQUESTED.", metavar="SECONDS")
    ] = 2,
    client: Annotated[
        list[str] | None,
        typer.Option(
            help="Another client beside demo; without scopes it has both.",
            show_default=False,
            metavar="ID:SECRET[:SCOPE,…]",
        ),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            help="Certificates (PEM) to trust when posting to https.", show_default=False, metavar="FILE", exists=True
        ),
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option(help="debug, info, warning or error.", metavar="LEVEL"),
    ] = "info",
) -> None:
    """Play the operator: a QoD API whose sessions live, end and are notified, well or badly."""
    faults = _plan(fault_preset, plan)
    if show_plan:
        typer.echo(toml_of(faults))
        return
    options = Options(
        plan=faults,
        seed=seed,
        speed=speed,
        releases=_releases(dialect),
        available_after_seconds=available_after,
        clients=[_client(text) for text in client or ()],
        trust=None if ca_file is None else tls.trusting(ca_file),
    )
    configure_log(log_level, log_format_of("auto"))

    def greet(url: str) -> None:
        typer.echo(_greeting(url, options, dialect, fault_preset if plan is None else f"{fault_preset}, {plan}"))
        sys.stdout.flush()

    uvloop.run(_run(options, host, port, greet))


async def _run(options: Options, host: str, port: int, ready: Callable[[str], None]) -> None:
    stopping = asyncio.Event()
    with signals(stopping), listening(host, port) as listener:
        async with simulating(options, listener):
            ready(url_of(host, listener))
            await stopping.wait()


def _plan(preset: str, file: Path | None) -> Plan:
    if file is None:
        return PRESETS[preset]
    try:
        return changed(PRESETS[preset], file.read_text())
    except ValueError as error:
        raise typer.BadParameter(f"{file}: {error}", param_hint="--plan") from None


def _releases(text: str) -> list[Release]:
    names = list(RELEASES) if text == "all" else text.split(",")
    unknown = [name for name in names if name not in RELEASES]
    if unknown:
        raise typer.BadParameter(
            f"{', '.join(unknown)}: there are {', '.join(RELEASES)}, and all", param_hint="--dialect"
        )
    return [RELEASES[name] for name in names]


def _client(text: str) -> Client:
    try:
        return client_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--client") from None


def _greeting(url: str, options: Options, dialect: str, faults: str) -> str:
    """The URLs, and how to create a session, in 24 lines of 80 columns."""
    releases = f"release{s(len(options.releases))} {dialect}"
    return f"""\
API:     {url}/v1  (client {DEMO.client_id}, secret {DEMO.secret})
Tokens:  {url}/token
Ledger:  {url}/ledger/summary
More:    {url}/
Speed {options.speed:g}, {releases}, faults {faults}, seed {options.seed}.

Create a session that notifies a receiver on port 8080, token in QOD_TOKEN:

  TOKEN=$(curl -su {DEMO.client_id}:{DEMO.secret} -d grant_type=client_credentials \\
    {url}/token | cut -d'"' -f4)
  curl -s {url}/v1/qod/sessions \\
    -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \\
    -d '{{"device": {{"phoneNumber": "+34600000001"}}, "qosProfile": "QOS_E",
         "duration": 60, "notificationAuthToken": "'"$QOD_TOKEN"'",
         "notificationUrl": "http://127.0.0.1:8080/notifications"}}'
"""
