"""`replay`: dead letters through today's parser again."""

import asyncio
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer

from receiver.cli.options import (
    ConfigOption,
    DataOption,
    KafkaOption,
    OpsTokenOption,
    ask_process,
    reading,
    s,
    settings_of,
    start_text,
)
from receiver.console import console, letters_table
from receiver.core.dead_letter import revived
from receiver.core.topics import TopicNames
from receiver.process import build
from receiver.replay import REPLAYABLE, letters
from receiver.settings import Settings


class ReplayableVerdict(StrEnum):
    """Verdicts that make a dead letter."""

    MALFORMED = "malformed"
    UNRECOGNIZED = "unrecognized"
    CONFLICT = "conflict"


def replay(
    *,
    data: DataOption = None,
    kafka: KafkaOption = None,
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
            callback=start_text,
        ),
    ] = "beginning",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be sent again.")] = False,
    ops_token: OpsTokenOption = "",
    config: ConfigOption = None,
) -> None:
    """Send dead letters through today's parser again."""
    settings = settings_of(config, data=data, kafka=kafka)
    verdicts = [str(one) for one in verdict or REPLAYABLE]
    if dry_run:
        asyncio.run(_list_letters(settings, verdicts, start))
    elif settings.kafka.bootstrap_servers:
        count = asyncio.run(build.replay(settings, verdicts, start))
        typer.echo(f"{count} dead letter{s(count)} went into the inbox again")
    elif (serving := build.served_at(settings.data)) is not None:
        told = ask_process(f"{serving.ops_url}/replay", {"verdicts": verdicts, "from": start}, ops_token)
        count = int(told["replayed"])
        typer.echo(f"{count} dead letter{s(count)} went into the inbox again")
    else:
        count = asyncio.run(_replay_unserved(settings, verdicts, start))
        typer.echo(f"{count} dead letter{s(count)} went into the inbox again, for the next `serve` to route")


async def _replay_unserved(settings: Settings, verdicts: list[str], start: str) -> int:
    async with reading(settings):  # a directory that nothing was received in is not one to make
        return await build.replay(settings, verdicts, start)


async def _list_letters(settings: Settings, verdicts: Sequence[str], start: str) -> None:
    async with reading(settings) as reader:
        topic = TopicNames(settings.prefix).dead_letters
        found = [(record, bool(revived(record))) async for record in letters(reader, topic, verdicts, start)]
    if found:
        console().print(letters_table(found))
    would = sum(readable for _, readable in found)
    typer.echo(f"{would} of {len(found)} dead letter{s(len(found))} would be sent again")
