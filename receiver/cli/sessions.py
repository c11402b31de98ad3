"""`sessions`: prints the remembered sessions, beside the serving processes."""

import asyncio
import time
from typing import Annotated

import orjson
import typer

from receiver.cli.options import ConfigOption, DataOption, JsonOption, KafkaOption, settings_of
from receiver.console import console, sessions_table
from receiver.core.event import QosStatus
from receiver.process.store import store_of
from receiver.reader import session_fields
from receiver.settings import Settings


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
        int, typer.Option(min=1, max=1_000_000, help="At most this many, last touched first.", metavar="COUNT")
    ] = 50,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Print the sessions remembered, each with its newest state."""
    asyncio.run(_sessions(settings_of(config, data=data, kafka=kafka), status, limit, as_json))


async def _sessions(settings: Settings, status: QosStatus | None, limit: int, as_json: bool) -> None:
    async with store_of(settings).reader() as reader:
        found, counts = await reader.sessions(status, limit), await reader.session_counts()
    if as_json:
        for session in found:
            typer.echo(orjson.dumps(session_fields(session)).decode())
    else:
        console().print(sessions_table(found, counts, time.time()))
