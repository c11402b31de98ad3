"""Options that several commands share, and the settings that they give."""

import re
from pathlib import Path
from typing import Annotated

import typer

from receiver.settings import Settings, load

_START = re.compile(r"beginning|end|[0-9]{1,18}|[0-9]+-[0-9]+(,[0-9]+-[0-9]+)*")

# Defaults that are in settings.py are written by hand, with a backslash, or their brackets would be markup.
ConfigOption = Annotated[
    Path | None,
    typer.Option(help="Configuration file (TOML).", envvar="QOD_RECEIVER_CONFIG", show_default=False, metavar="FILE"),
]
DataOption = Annotated[
    Path | None, typer.Option(help="Data directory. \\[default: ./qod-data]", show_default=False, metavar="DIR")
]
KafkaOption = Annotated[
    str | None,
    typer.Option(
        help="Brokers of the Kafka cluster that keeps everything. \\[default: none, but the data directory]",
        show_default=False,
        metavar="HOST:PORT,…",
    ),
]
OpsTokenOption = Annotated[
    str,
    # Not a setting, so its variable must not look like a setting's.
    typer.Option(help="Token of the operations port.", envvar="QOD_OPS_TOKEN", show_default=False, metavar="TOKEN"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]


def start_text(text: str) -> str:
    """Where to begin, unchanged. Raises BadParameter for an invalid form; the reader checks the partitions."""
    if text and not _START.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is neither beginning, end, a position, nor PARTITION-POSITION,…")
    return text


def settings_of(config: Path | None, **given: object) -> Settings:
    """The settings; those given on the command line take precedence, see `overrides`."""
    return load(config, overrides(**given))


def overrides(**given: object) -> dict[str, object]:
    """The values given on the command line, by the path of their setting; `__` in a name is a dot in the path."""
    paths = {"kafka": "kafka.bootstrap_servers"}
    return {paths.get(name, name.replace("__", ".")): value for name, value in given.items() if value is not None}


def s(count: int) -> str:
    """The ending of a regular noun for `count` things."""
    return "" if count == 1 else "s"
