"""`tail` and `sessions`: looking on, beside whoever serves."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Annotated

import orjson
import typer

from receiver.cli.options import (
    ConfigOption,
    DataOption,
    Failed,
    JsonOption,
    KafkaOption,
    reading,
    settings_of,
    start_text,
)
from receiver.console import console, record_line, sessions_table
from receiver.core.event import QosStatus
from receiver.core.topics import TopicNames
from receiver.ops import session_fields
from receiver.process import build
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
            help="beginning, end or a position. \\[default: end; with --no-follow beginning]",
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


def sessions(
    *,
    data: DataOption = None,
    kafka: KafkaOption = None,
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
    asyncio.run(_sessions(settings_of(config, data=data, kafka=kafka), status, limit, as_json))


async def _tail(settings: Settings, topic: str, start: str, session: str, *, follow: bool, as_json: bool) -> None:
    out = console()
    async with reading(settings) as reader:
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
    expected = build.build_router(settings).topics
    if topic not in expected:
        raise Failed(f"there is no topic {topic}; there are {', '.join(sorted({*expected, *topics}))}")


async def _sessions(settings: Settings, status: QosStatus | None, limit: int, as_json: bool) -> None:
    async with reading(settings) as reader:
        found, counts = await reader.sessions(status, limit), await reader.session_counts()
    if as_json:
        for session in found:
            typer.echo(orjson.dumps(session_fields(session)).decode())
    else:
        console().print(sessions_table(found, counts, time.time()))
