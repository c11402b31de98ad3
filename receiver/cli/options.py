"""What several commands share: their options, the settings that these give, and their failures."""

import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer

from receiver.core.errors import Unavailable
from receiver.process import build
from receiver.reader import Reader
from receiver.settings import Settings, load

_START = re.compile(r"beginning|end|[0-9]{1,18}|[0-9]+-[0-9]+(,[0-9]+-[0-9]+)*")

# Defaults that settings.py has are told by hand, with a backslash, or their brackets would be markup.
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
        help="Brokers of the Kafka cluster that keeps everything. \\[default: none, the data directory does]",
        show_default=False,
        metavar="HOST:PORT,…",
    ),
]
OpsTokenOption = Annotated[
    str,
    # No setting, so its variable must not look like one's.
    typer.Option(help="Token of the operations port.", envvar="QOD_OPS_TOKEN", show_default=False, metavar="TOKEN"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


class Failed(Exception):
    """A command can't do what it was asked to; the message says why."""


def start_text(text: str) -> str:
    """Where to begin, as it was written; whether there is such a partition is for the reader to tell."""
    if text and not _START.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is neither beginning, end, a position, nor PARTITION-POSITION,…")
    return text


def settings_of(config: Path | None, **given: object) -> Settings:
    """The settings, those given on the command line over all others; see `overrides`."""
    return load(config, overrides(**given))


def overrides(**given: object) -> dict[str, object]:
    """What was given on the command line, by the path of its setting; the `__` in a name is a dot in the path."""
    paths = {"kafka": "kafka.bootstrap_servers"}
    return {paths.get(name, name.replace("__", ".")): value for name, value in given.items() if value is not None}


@contextlib.asynccontextmanager
async def reading(settings: Settings) -> AsyncIterator[Reader]:
    """The topics, beside whoever serves them. Raises Failed where there are none."""
    try:
        async with build.reading(settings) as reader:
            yield reader
    except Unavailable as error:
        if settings.kafka.bootstrap_servers:
            raise
        raise Failed(f"{error}; has `qod-receiver serve` run with this directory? --data names another") from error


def ask_process(url: str, wanted: object, ops_token: str) -> Any:  # noqa: ANN401  # what JSON is
    """What the operations port of the process that serves a directory answers. Raises Failed."""
    headers = {"authorization": f"Bearer {ops_token}"} if ops_token else {}
    try:
        response = httpx2.post(url, json=wanted, headers=headers, timeout=60)
        told = response.json()
    except (httpx2.HTTPError, ValueError) as error:
        raise Failed(
            f"the process that serves this directory did not answer at {url}: {type(error).__name__}"
        ) from error
    if response.status_code != httpx2.codes.OK:
        raise Failed(f"the process that serves this directory refused: {told.get('detail', response.status_code)}")
    return told


def s(count: int) -> str:
    """The end of a noun of which there are `count`."""
    return "" if count == 1 else "s"
