"""`export`: from one directory to a Kafka cluster."""

import shlex
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from receiver.cli.options import ConfigOption, DataOption, s, settings_of
from receiver.cli.topics import expect_cluster
from receiver.console import console, data_option, options_text, program
from receiver.core.topics import TopicNames
from receiver.export import Carried
from receiver.export import export as carry
from receiver.log import configure_log, log_format_of
from receiver.process.routing import build_router
from receiver.process.store import Store, store_of
from receiver.secret_file import FILE_NAME as SECRET_NAME
from receiver.secret_file import is_made
from receiver.settings import Settings
from receiver.telemetry import Telemetry


def export(
    *,
    kafka: Annotated[
        str | None,
        typer.Option(help="Brokers of the Kafka cluster to export to.", show_default=False, metavar="HOST:PORT,…"),
    ] = None,
    data: DataOption = None,
    config: ConfigOption = None,
) -> None:
    """Carry a data directory's topics and sessions to Kafka, once each; its inbox is routed first."""
    settings = settings_of(config, kafka=kafka, data=data)
    store = store_of(settings)
    expect_cluster(store)
    log_format = log_format_of(settings.log.format)
    configure_log("warning", log_format)
    telemetry = Telemetry(log_format=log_format)
    with closing(_Bars()) as bars:
        carried = uvloop.run(carry(settings, build_router(settings), telemetry, bars))
    for each in carried:
        typer.echo(_line(each, settings))
    typer.echo(_next_steps(settings, store, config))


class _Bars:
    """`receiver.export.Progress`: a bar for each topic on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        out = console()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=out,
            disable=not out.is_terminal or out.is_dumb_terminal,
        )
        self._bars.start()
        self._tasks: dict[str, TaskID] = {}

    def moved(self, what: str, done: int, total: int) -> None:
        """See the contract."""
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)

    def waiting(self, why: str) -> None:
        """See the contract."""
        typer.echo(f"{why}; trying again", err=True)

    def left_out(self, topic: str, what: str) -> None:
        """See the contract."""
        typer.echo(f"left out, as the cluster refuses it: {topic} {what}", err=True)

    def close(self) -> None:
        """Stop the bars, which stay on the screen."""
        self._bars.stop()


def _line(carried: Carried, settings: Settings) -> str:
    noun = "session" if carried.topic == TopicNames(settings.prefix).sessions else "record"
    count, there = carried.now_count, carried.before_count
    return f"{carried.topic}: {count} {noun}{s(count)} carried, {there} {'was' if there == 1 else 'were'} there already"


def _next_steps(settings: Settings, store: Store, config: Path | None) -> str:
    options = f"{options_text(store.describe())}{data_option(settings.data)}"
    options += f" --config {shlex.quote(str(config))}" if config else ""
    lines = [
        "",
        "Everything is in the cluster. Go on there, with the configuration that served this directory:",
        f"{program()} serve{options}",
    ]
    if settings.auth.mint_secret is None and is_made(settings):
        lines += [
            "",
            f"Minted tokens remain valid: their secret stays in {settings.data / SECRET_NAME}. Processes",
            "with another directory need it too, as auth.mint_secret.",
        ]
    lines += ["", "If the directory is served again, another export carries only what is new."]
    return "\n".join(lines)
