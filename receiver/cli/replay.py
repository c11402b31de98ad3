"""`replay`: sends dead letters through today's parser again."""

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
    s,
    settings_of,
    start_text,
)
from receiver.console import console, letters_table
from receiver.core.dead_letter import revived
from receiver.core.topics import TopicNames
from receiver.process.store import store_of
from receiver.replay import REPLAYABLE, letters
from receiver.settings import Settings


class ReplayableVerdict(StrEnum):
    """Verdicts of dead letters."""

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
            help="Only letters with this verdict: malformed, unrecognized or conflict; may be repeated.",
            show_default=False,
            metavar="VERDICT",
        ),
    ] = None,
    start: Annotated[
        str,
        typer.Option(
            "--from",
            help="Where to begin: beginning, or the position of a letter.",
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
    else:
        asyncio.run(_replay(settings, verdicts, start, ops_token))


async def _replay(settings: Settings, verdicts: Sequence[str], start: str, ops_token: str) -> None:
    store = store_of(settings)
    # The reader comes first, so that no directory is created where nothing was received.
    async with store.reader(), store.operations(ops_token) as operations:
        count = await operations.replay(verdicts, start)
        later = ", for the next `serve` to route" if operations.is_deferred else ""
    typer.echo(f"{count} dead letter{s(count)} went into the inbox again{later}")


async def _list_letters(settings: Settings, verdicts: Sequence[str], start: str) -> None:
    async with store_of(settings).reader() as reader:
        topic = TopicNames(settings.prefix).dead_letters
        found = [(record, bool(revived(record))) async for record in letters(reader, topic, verdicts, start)]
    if found:
        console().print(letters_table(found))
    would = sum(readable for _, readable in found)
    typer.echo(f"{would} of {len(found)} dead letter{s(len(found))} would be sent again")
