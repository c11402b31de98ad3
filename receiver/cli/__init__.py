"""The command line. Exit status: 0 done, 1 failed, 2 not used as the help says. Logs go to standard error."""

import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from receiver.cli import (
    check_data,
    export,
    reconcile,
    replay,
    serve,
    session,
    simulate,
    tail,
    token,
    topics,
)
from receiver.cli.options import ConfigOption, DataOption, Failed, KafkaOption, overrides, s
from receiver.console import console, settings_text
from receiver.core.errors import ReceiverError
from receiver.settings import SettingsError, layers

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
topics_app = typer.Typer(help="The topics in a Kafka cluster.", no_args_is_help=True)
app.add_typer(topics_app, name="topics")
session_app = typer.Typer(help="Sessions at the operator's QoD API.", no_args_is_help=True)
app.add_typer(session_app, name="session")


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


def check_config(config: ConfigOption = None, data: DataOption = None, kafka: KafkaOption = None) -> None:
    """Name every wrong setting, or print the settings in force."""
    places = layers(config, overrides(data=data, kafka=kafka))
    settings = places.settings()
    out = console()
    out.print("configuration is valid", style="green")
    out.print(settings_text(settings, places), soft_wrap=True)


_COMMANDS: Sequence[tuple[Callable[..., None], str]] = (
    (serve.serve, "qod-receiver serve --data /var/lib/qod --port 8080"),
    (serve.demo, "qod-receiver demo --seconds 40 --sessions 30"),
    (tail.tail, "qod-receiver tail unavailable --from beginning"),
    (tail.sessions, "qod-receiver sessions --status UNAVAILABLE --limit 10"),
    (replay.replay, "qod-receiver replay --verdict unrecognized --dry-run"),
    (reconcile.reconcile, "qod-receiver reconcile --dry-run"),
    (export.export, "qod-receiver export --kafka broker-1:9092,broker-2:9092 --data /var/lib/qod"),
    (simulate.simulate, "qod-receiver simulate --port 9090 --speed 10 --faults some --dialect all"),
    (check_data.check_data, "qod-receiver check-data --data /var/lib/qod"),
    (check_config, "qod-receiver check-config --config qod.toml"),
)
for command, example in _COMMANDS:
    app.command(epilog=f"Example: {example}")(command)
token_app.command(epilog="Example: qod-receiver token mint --sender operator-a --ttl 90d")(token.mint)
topics_app.command(epilog="Example: qod-receiver topics create --kafka 127.0.0.1:9092 --partitions 12")(topics.create)
topics_app.command(epilog="Example: qod-receiver topics check --kafka 127.0.0.1:9092")(topics.check)
session_app.command(
    epilog="Example: qod-receiver session create --phone +34600000001 --profile QOS_E --duration 3600",
    context_settings={"allow_extra_args": True},
)(session.create)
session_app.command("list", epilog="Example: qod-receiver session list --json")(session.list_)
session_app.command(epilog=f"Example: qod-receiver session get {session.EXAMPLE_ID}")(session.get)
session_app.command(epilog=f"Example: qod-receiver session delete {session.EXAMPLE_ID}")(session.delete)


def run(arguments: Sequence[str] | None = None) -> None:
    """The program. Ends with SystemExit."""
    os.umask(0o077)  # what is kept is the business of nobody else on this machine
    try:
        app(arguments)
    except SettingsError as error:
        _complain(f"{len(error.problems)} wrong setting{s(len(error.problems))}:")
        for problem in error.problems:
            _complain(f"  {problem.setting}: {problem.allowed}  ({problem.place})")
    except OSError as error:
        _complain(f"qod-receiver: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}")
    except (Failed, ReceiverError, ValueError) as error:
        _complain(f"qod-receiver: {error}")
    sys.exit(1)


def _complain(line: str) -> None:
    typer.echo(line, err=True)
