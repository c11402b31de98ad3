"""`tail`: prints the records of a topic, beside the serving processes."""

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from typing import Annotated

import orjson
import typer

from receiver.cli.failed import Failed
from receiver.cli.options import (
    ConfigOption,
    DataOption,
    JsonOption,
    KafkaOption,
    settings_of,
    start_text,
)
from receiver.console import console, record_line
from receiver.core.topics import TopicNames
from receiver.process.routing import build_router
from receiver.process.store import store_of
from receiver.settings import Settings

_FOLLOW_INTERVAL_SECONDS = 0.2
_PAGE = 500


def tail(
    *,
    topic: Annotated[
        str,
        typer.Argument(help="Name of the topic, with or without its prefix.", show_default=False, metavar="TOPIC"),
    ],
    data: DataOption = None,
    kafka: KafkaOption = None,
    start: Annotated[
        str,
        typer.Option(
            "--from",
            help="Where to begin: beginning, end or a position. \\[default: end; with --no-follow beginning]",
            show_default=False,
            metavar="WHERE",
            callback=start_text,
        ),
    ] = "",
    session: Annotated[str, typer.Option(help="Only this session.", show_default=False, metavar="ID")] = "",
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Wait for more, or stop at the end.")] = True,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Print the records of a topic: status, unavailable, sessions, dead-letter or one of your own."""
    settings = settings_of(config, data=data, kafka=kafka)
    name = TopicNames(settings.prefix).spelled(topic)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(
            _tail(settings, name, start or ("end" if follow else "beginning"), session, follow=follow, as_json=as_json)
        )


async def _tail(settings: Settings, topic: str, start: str, session: str, *, follow: bool, as_json: bool) -> None:
    out = console()
    async with store_of(settings).reader() as reader:
        while topic not in await reader.topics():
            _expect(settings, topic, await reader.topics())
            if not follow:
                return
            start = "beginning"  # the topic will begin with its first record
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
    """Raise Failed unless the router may still create the topic."""
    expected = build_router(settings).topics
    if topic not in expected:
        raise Failed(f"there is no topic {topic}; there are {', '.join(sorted({*expected, *topics}))}")
