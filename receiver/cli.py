"""The command line. Exit status: 0 done, 1 failed, 2 not used as the help says. Logs go to standard error."""

import asyncio
import contextlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx2
import orjson
import typer
import uvloop

from receiver import auth, service
from receiver.console import (
    console,
    data_option,
    first_steps,
    letters_table,
    program,
    record_line,
    sessions_table,
    settings_text,
)
from receiver.demo import demonstrate
from receiver.errors import ReceiverError, Unavailable
from receiver.event import QosStatus
from receiver.ops import session_fields
from receiver.reader import Reader
from receiver.replay import REPLAYABLE, letters, revived
from receiver.router import DEAD_LETTER
from receiver.secret_file import is_made, mint_secret
from receiver.settings import Settings, SettingsError, layers, load

_FOLLOW_INTERVAL_SECONDS = 0.2
_PAGE = 500
_FIRST_TOKEN_SECONDS = 30 * 86_400
_START = re.compile(r"beginning|end|[0-9]{1,18}|[0-9]+-[0-9]+(,[0-9]+-[0-9]+)*")
_TTL = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_TTL_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_TTL_SECONDS_MAX = 3_650 * 86_400

app = typer.Typer(
    name="qod-receiver",
    help="Receive a mobile operator's QoD notifications and route them to topics, each exactly once.",
    epilog="Begin with: qod-receiver demo",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
)
token_app = typer.Typer(help="Tokens that senders present.", no_args_is_help=True)
app.add_typer(token_app, name="token")

# Defaults that settings.py has are told by hand, with a backslash, or their brackets would be markup.
ConfigOption = Annotated[
    Path | None,
    typer.Option(help="Configuration file (TOML).", envvar="QOD_RECEIVER_CONFIG", show_default=False, metavar="FILE"),
]
DataOption = Annotated[
    Path | None, typer.Option(help="Data directory. \\[default: ./qod-data]", show_default=False, metavar="DIR")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


class Failed(Exception):
    """A command can't do what it was asked to; the message says why."""


class ReplayableVerdict(StrEnum):
    """Verdicts that make a dead letter."""

    MALFORMED = "malformed"
    UNRECOGNIZED = "unrecognized"
    CONFLICT = "conflict"


def _start(text: str) -> str:
    """Where to begin, as it was written; whether there is such a partition is for the reader to tell."""
    if text and not _START.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is neither beginning, end, a position, nor PARTITION-POSITION,…")
    return text


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if show_version:
        typer.echo(f"qod-receiver {version('qod-receiver')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise typer.BadParameter("a command is wanted")


@app.command(epilog="Example: qod-receiver serve --data /var/lib/qod --port 8080")
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
    config: ConfigOption = None,
) -> None:
    """Receive notifications until Ctrl-C or SIGTERM."""
    settings = _settings(
        config, {"data": data, "edge.host": host, "edge.port": port, "ops.port": ops_port, "log.level": log_level}
    )
    configured = settings.auth.anonymous or settings.auth.tokens or settings.auth.jwt
    minted = is_made(settings)  # asked now: serving makes the secret

    def ready(addresses: service.Addresses) -> None:
        typer.echo(f"Notifications: {addresses.edge_url}\nOperations:    {addresses.ops_url}")
        if not configured and not minted:
            now = time.time()
            token = auth.mint(mint_secret(settings), "default", _FIRST_TOKEN_SECONDS, now)
            typer.echo(first_steps(addresses.edge_url, token, settings.data, now))
        elif not configured:
            typer.echo(f"Mint a token:  {program()} token mint --sender NAME{data_option(settings.data)}")
        sys.stdout.flush()

    uvloop.run(service.run(settings, ready=ready))


@app.command(epilog="Example: qod-receiver demo --seconds 40 --sessions 30")
def demo(
    *,
    seconds: Annotated[int, typer.Option(min=3, max=3600, help="How long it plays.", metavar="SECONDS")] = 20,
    sessions: Annotated[int, typer.Option(min=1, max=1000, help="How many sessions it plays.", metavar="COUNT")] = 12,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port for notifications; 0 is a free one.", metavar="PORT")
    ] = 0,
) -> None:
    """Play sessions against a receiver of its own, and watch what is routed."""
    if not uvloop.run(demonstrate(console(), seconds, sessions, port)):
        raise typer.Exit(1)


@app.command(epilog="Example: qod-receiver tail unavailable --from beginning")
def tail(
    *,
    topic: Annotated[
        str,
        typer.Argument(help="Name of the topic, with or without its prefix.", show_default=False, metavar="TOPIC"),
    ],
    data: DataOption = None,
    start: Annotated[
        str,
        typer.Option(
            "--from",
            help="beginning, end or a position. \\[default: end; with --no-follow beginning]",
            show_default=False,
            metavar="WHERE",
            callback=_start,
        ),
    ] = "",
    session: Annotated[str, typer.Option(help="Only this session.", show_default=False, metavar="ID")] = "",
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Wait for more, or stop at the end.")] = True,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Print the records of a topic: status, unavailable, sessions, dead-letter or one of your own."""
    settings = _settings(config, {"data": data})
    name = topic if topic.startswith(f"{settings.prefix}.") else f"{settings.prefix}.{topic}"
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(
            _tail(settings, name, start or ("end" if follow else "beginning"), session, follow=follow, as_json=as_json)
        )


@app.command(epilog="Example: qod-receiver sessions --status UNAVAILABLE --limit 10")
def sessions(
    *,
    data: DataOption = None,
    status: Annotated[
        QosStatus | None,
        typer.Option(
            help="Only sessions that are REQUESTED, AVAILABLE or UNAVAILABLE.",
            case_sensitive=False,
            show_default=False,
            metavar="STATUS",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="At most so many, last touched first.", metavar="COUNT")
    ] = 50,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Print the sessions remembered, each with its newest state."""
    asyncio.run(_sessions(_settings(config, {"data": data}), status, limit, as_json))


@token_app.command(epilog="Example: qod-receiver token mint --sender operator-a --ttl 90d")
def mint(
    *,
    sender: Annotated[str, typer.Option(help="Whose token it is.", show_default=False, metavar="NAME")],
    ttl: Annotated[str, typer.Option(help="How long it is valid: 90s, 15m, 12h or 30d.", metavar="TIME")] = "30d",
    data: DataOption = None,
    config: ConfigOption = None,
) -> None:
    """Mint a token that `serve` on the same directory accepts, and print it alone."""
    ttl_seconds = _ttl_seconds(ttl)
    try:
        typer.echo(auth.mint(mint_secret(_settings(config, {"data": data})), sender, ttl_seconds, time.time()))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--sender") from None


@app.command(epilog="Example: qod-receiver replay --verdict unrecognized --dry-run")
def replay(
    *,
    data: DataOption = None,
    verdict: Annotated[
        list[ReplayableVerdict] | None,
        typer.Option(
            help="Only letters that are malformed, unrecognized or conflict; may be repeated.",
            show_default=False,
            metavar="VERDICT",
        ),
    ] = None,
    start: Annotated[
        str,
        typer.Option(
            "--from",
            help="beginning or the position of a letter.",
            metavar="WHERE",
            callback=_start,
        ),
    ] = "beginning",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be sent again.")] = False,
    ops_token: Annotated[
        str,
        # No setting, so its variable must not look like one's.
        typer.Option(help="Token of the operations port.", envvar="QOD_OPS_TOKEN", show_default=False, metavar="TOKEN"),
    ] = "",
    config: ConfigOption = None,
) -> None:
    """Send dead letters through today's parser again."""
    settings = _settings(config, {"data": data})
    verdicts = [str(one) for one in verdict or REPLAYABLE]
    if dry_run:
        asyncio.run(_list_letters(settings, verdicts, start))
    elif (serving := service.served_at(settings.data)) is not None:
        count = _ask(serving.ops_url, ops_token, {"verdicts": verdicts, "from": start})
        typer.echo(f"{count} dead letter{_s(count)} went into the inbox again")
    else:
        with _reading(settings):  # a directory that nothing was received in is not one to make
            count = asyncio.run(service.replay(settings, verdicts, start))
        typer.echo(f"{count} dead letter{_s(count)} went into the inbox again, for the next `serve` to route")


@app.command(epilog="Example: qod-receiver check-config --config qod.toml")
def check_config(config: ConfigOption = None, data: DataOption = None) -> None:
    """Name every wrong setting, or print the settings in force."""
    places = layers(config, {} if data is None else {"data": data})
    settings = places.settings()
    out = console()
    out.print("configuration is valid", style="green")
    out.print(settings_text(settings, places), soft_wrap=True)


def run(arguments: Sequence[str] | None = None) -> None:
    """The program. Ends with SystemExit."""
    try:
        app(arguments)
    except SettingsError as error:
        _complain(f"{len(error.problems)} wrong setting{_s(len(error.problems))}:")
        for problem in error.problems:
            _complain(f"  {problem.setting}: {problem.allowed}  ({problem.place})")
    except OSError as error:
        _complain(f"qod-receiver: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}")
    except (Failed, ReceiverError, ValueError) as error:
        _complain(f"qod-receiver: {error}")
    sys.exit(1)


def _complain(line: str) -> None:
    typer.echo(line, err=True)


def _settings(config: Path | None, given: dict[str, Any]) -> Settings:
    return load(config, {path: value for path, value in given.items() if value is not None})


def _s(count: int) -> str:
    return "" if count == 1 else "s"


@contextlib.contextmanager
def _reading(settings: Settings) -> Iterator[Reader]:
    """The topics of a directory, beside whoever serves it. Raises Failed where there are none."""
    try:
        reader = service.open_reader(settings)
    except Unavailable as error:
        raise Failed(f"{error}; has `qod-receiver serve` run with this directory? --data names another") from error
    with contextlib.closing(reader):
        yield reader


def _ttl_seconds(text: str) -> int:
    found = _TTL.fullmatch(text)
    seconds = int(found[1]) * _TTL_UNITS[found[2]] if found else 0
    if not 0 < seconds <= _TTL_SECONDS_MAX:
        raise typer.BadParameter(
            f"{text!r} is not a time such as 90s, 15m, 12h or 30d, at most 3650d", param_hint="--ttl"
        )
    return seconds


async def _tail(settings: Settings, topic: str, start: str, session: str, *, follow: bool, as_json: bool) -> None:
    out = console()
    with _reading(settings) as reader:
        while topic not in await reader.topics():
            _expect(settings, topic, await reader.topics())
            if not follow:
                return
            start = "beginning"  # all that the topic will ever have is still to come
            await asyncio.sleep(_FOLLOW_INTERVAL_SECONDS)
        cursor, end = await reader.cursor(topic, start), await reader.end(topic)
        while follow or any(position < end[partition] for partition, position in cursor.items()):
            records = await reader.records(topic, cursor, _PAGE)
            for record in records:
                if not follow and record.position >= end[record.partition]:
                    return
                if session and record.message.key != session:
                    continue
                if as_json:
                    typer.echo(orjson.dumps(record.fields()).decode())
                else:
                    out.print(record_line(record), soft_wrap=True)
            sys.stdout.flush()
            if not records:
                if not follow:
                    return
                await asyncio.sleep(_FOLLOW_INTERVAL_SECONDS)


def _expect(settings: Settings, topic: str, topics: Sequence[str]) -> None:
    """Raises Failed unless the router may still make the topic."""
    expected = service.build_router(settings).topics
    if topic not in expected:
        raise Failed(f"there is no topic {topic}; there are {', '.join(sorted({*expected, *topics}))}")


async def _sessions(settings: Settings, status: QosStatus | None, limit: int, as_json: bool) -> None:
    with _reading(settings) as reader:
        found, counts = await reader.sessions(status, limit), await reader.session_counts()
    if as_json:
        for session in found:
            typer.echo(orjson.dumps(session_fields(session)).decode())
    else:
        console().print(sessions_table(found, counts, time.time()))


async def _list_letters(settings: Settings, verdicts: Sequence[str], start: str) -> None:
    with _reading(settings) as reader:
        topic = f"{settings.prefix}.{DEAD_LETTER}"
        found = [(record, revived(record) is not None) async for record in letters(reader, topic, verdicts, start)]
    if found:
        console().print(letters_table(found))
    would = sum(readable for _, readable in found)
    typer.echo(f"{would} of {len(found)} dead letter{_s(len(found))} would be sent again")


def _ask(ops_url: str, ops_token: str, wanted: dict[str, object]) -> int:
    """Have the process that serves the directory replay. Returns how many letters it did."""
    headers = {"authorization": f"Bearer {ops_token}"} if ops_token else {}
    try:
        response = httpx2.post(f"{ops_url}/replay", json=wanted, headers=headers, timeout=60)
        told = response.json()
    except (httpx2.HTTPError, ValueError) as error:
        raise Failed(
            f"the process that serves this directory did not answer at {ops_url}: {type(error).__name__}"
        ) from error
    if response.status_code != httpx2.codes.OK:
        raise Failed(f"the process that serves this directory refused: {told.get('detail', response.status_code)}")
    return int(told["replayed"])
