"""The command line. Exit status: 0 success, 1 failure, 2 wrong usage. Logs go to standard error.

A command's module is imported when the command is used, so that no command waits for imports of others. The texts in
the list of commands are here.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand

from receiver.cli.failed import Failed
from receiver.core.errors import ReceiverError
from receiver.settings_problems import SettingsError


class _Command(NamedTuple):
    """A command: its function as `module:name`, a copy of that function's docstring, and an example."""

    place: str
    help: str
    example: str
    context_settings: dict[str, Any] | None = None


_EXAMPLE_ID = "3f2b8c1e-0d5a-4b7e-9c64-1a2b3c4d5e6f"

_COMMANDS = {
    "serve": _Command(
        "serve:serve", "Receive notifications until Ctrl-C or SIGTERM.", "--data /var/lib/qod --port 8080"
    ),
    "demo": _Command(
        "demo:demo",
        "Play sessions against a receiver of its own, and watch what is routed.",
        "--seconds 40 --sessions 30",
    ),
    "tail": _Command(
        "tail:tail",
        "Print the records of a topic: status, unavailable, sessions, dead-letter or one of your own.",
        "unavailable --from beginning",
    ),
    "sessions": _Command(
        "sessions:sessions",
        "Print the sessions remembered, each with its newest state.",
        "--status UNAVAILABLE --limit 10",
    ),
    "replay": _Command(
        "replay:replay", "Send dead letters through today's parser again.", "--verdict unrecognized --dry-run"
    ),
    "reconcile": _Command(
        "reconcile:reconcile",
        "Tell the topics what the operator's API knows of our sessions and no notification told.",
        "--dry-run",
    ),
    "export": _Command(
        "export:export",
        "Carry a data directory's topics and sessions to Kafka, once each; its inbox is routed first.",
        "--kafka broker-1:9092,broker-2:9092 --data /var/lib/qod",
    ),
    "simulate": _Command(
        "simulate:simulate",
        "Play the operator: a QoD API whose sessions live, end and are notified, well or badly.",
        "--port 9090 --speed 10 --faults some --dialect all",
    ),
    "check-data": _Command(
        "check_data:check_data",
        "Read all of a data directory, and name what is damaged or lost. Exit status 1 if anything is.",
        "--data /var/lib/qod",
    ),
    "check-config": _Command(
        "check_config:check_config",
        "Name every wrong setting, or print the settings in force.",
        "--config qod.toml",
    ),
}
_TOKEN_COMMANDS = {
    "mint": _Command(
        "token:mint",
        "Mint a token that `serve` on the same directory accepts, and print it alone.",
        "--sender operator-a --ttl 90d",
    )
}
_TOPICS_COMMANDS = {
    "create": _Command(
        "topics:create",
        "Create the topics that are missing in the Kafka cluster; existing ones are left alone.",
        "--kafka 127.0.0.1:9092 --partitions 12",
    ),
    "check": _Command(
        "topics:check",
        "Name each difference between the topics in the Kafka cluster and the configuration.",
        "--kafka 127.0.0.1:9092",
    ),
}
_SESSION_COMMANDS = {
    "create": _Command(
        "session:create",
        "Create a session that notifies this receiver, with a token minted for it.",
        "--phone +34600000001 --profile QOS_E --duration 3600",
        {"allow_extra_args": True},
    ),
    "list": _Command("session:list_", "Print our sessions at the API.", "--json"),
    "get": _Command("session:get", "Print a session as the API has it.", _EXAMPLE_ID),
    "delete": _Command("session:delete", "End a session; its end is notified like any other.", _EXAMPLE_ID),
}


def _deferred(command: _Command) -> type[TyperCommand]:
    """The class of a command that is imported when used; until then it has its help, and no options."""

    class Deferred(TyperCommand):
        def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:  # noqa: ANN401  # typer's own
            module, _, function = command.place.partition(":")
            alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            found = getattr(import_module(f"receiver.cli.{module}"), function)
            alone.command(self.name, epilog=self.epilog, context_settings=command.context_settings)(found)
            return typer.main.get_command(alone).make_context(info_name, args, parent, **extra)

    return Deferred


def _add(group: typer.Typer, commands: Mapping[str, _Command], path: str) -> None:
    for name, command in commands.items():
        example = f"Example: {path} {name} {command.example}"
        group.command(name, cls=_deferred(command), help=command.help, epilog=example)(lambda: None)


app = typer.Typer(
    name="qod-receiver",
    help="Receive a mobile operator's QoD notifications and route them to topics, each exactly once.",
    epilog="Begin with: qod-receiver demo",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
)
_add(app, _COMMANDS, "qod-receiver")
for _name, _help, _commands in (
    ("token", "Tokens that senders present.", _TOKEN_COMMANDS),
    ("topics", "The topics in a Kafka cluster.", _TOPICS_COMMANDS),
    ("session", "Sessions at the operator's QoD API.", _SESSION_COMMANDS),
):
    _group = typer.Typer(help=_help, no_args_is_help=True)
    _add(_group, _commands, f"qod-receiver {_name}")
    app.add_typer(_group, name=_name)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if show_version:
        from importlib.metadata import version  # noqa: PLC0415  # this import takes longer than everything else here

        typer.echo(f"qod-receiver {version('qod-receiver')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise typer.BadParameter("a command is missing")


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the program. Ends with SystemExit."""
    os.umask(0o077)  # files are private to the user
    try:
        app(arguments)
    except SettingsError as error:
        _complain(f"{len(error.problems)} wrong setting{'s' * (len(error.problems) != 1)}:")
        for problem in error.problems:
            _complain(f"  {problem.setting}: {problem.allowed}  ({problem.place})")
    except OSError as error:
        _complain(f"qod-receiver: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}")
    except (Failed, ReceiverError, ValueError) as error:
        _complain(f"qod-receiver: {error}")
    sys.exit(1)


def _complain(line: str) -> None:
    typer.echo(line, err=True)
