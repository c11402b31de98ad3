"""`reconcile`: sessions as the operator's API has them, where no notification said so. Also `learned` for `session`."""

import asyncio
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from receiver.cli.failed import Failed
from receiver.cli.options import (
    ConfigOption,
    DataOption,
    KafkaOption,
    OpsTokenOption,
    s,
    settings_of,
)
from receiver.console import STATUS_STYLES, console, harmless
from receiver.core import rfc3339
from receiver.core.notification import CLIENT, Notification
from receiver.core.session import Session
from receiver.process.reconciling import api_facts, reconciler
from receiver.process.store import store_of
from receiver.qod.difference import Difference
from receiver.qod.model import ApiSession
from receiver.qod.telling import notification, telling_of
from receiver.reader import Reader
from receiver.settings import Settings


def reconcile(
    *,
    data: DataOption = None,
    kafka: KafkaOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the differences.")] = False,
    ops_token: OpsTokenOption = "",
    config: ConfigOption = None,
) -> None:
    """Tell the topics what the operator's API knows of our sessions and no notification told."""
    settings = settings_of(config, data=data, kafka=kafka)
    if settings.api.base_url is None:
        raise Failed("there is no api.base_url in the configuration, so there is no API to ask")
    asyncio.run(_reconcile(settings, ops_token, dry_run=dry_run))


async def learned(settings: Settings, session: ApiSession, ops_token: str) -> None:
    """Append the API's report of a session to the inbox, so that the topics get its facts. Raises Unavailable."""
    now_micros = time.time_ns() // 1000
    telling = telling_of(session, None, now_micros, api_facts(settings)(session))
    await _keep(settings, [notification(telling, CLIENT, settings.api.sender or "", now_micros)], ops_token)


async def _reconcile(settings: Settings, ops_token: str, *, dry_run: bool) -> None:
    async with store_of(settings).reader() as reader, reconciler(settings, _All(reader)) as made:
        found = await made.compare()
    if made.complaint:
        typer.echo(made.complaint, err=True)
    if found:
        console().print(_table(found))
    if dry_run:
        typer.echo(f"{_counted(found)} would be told")
    else:
        await _keep(settings, list(made.notifications(found)), ops_token)
        typer.echo(f"{_counted(found)} went into the inbox")


def _counted(found: Sequence[Difference]) -> str:
    news = sum(each.is_news for each in found)
    facts = len(found) - news
    return f"{news} status{'es' * (news != 1)}, and facts of {facts} other session{s(facts)},"


async def _keep(settings: Settings, notifications: Sequence[Notification], ops_token: str) -> None:
    async with store_of(settings).operations(ops_token) as operations:
        await operations.learn(notifications)


def _table(found: Iterable[Difference]) -> Table:
    """The sessions in which ours are behind the operator's API."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("session", no_wrap=True, min_width=36)
    for name in ("here", "there", "reason"):
        table.add_column(name, no_wrap=True)
    table.add_column("since", no_wrap=True, min_width=len("2026-11-24T10:00:00Z"))
    for ours, telling, is_news in found:
        style = STATUS_STYLES[telling.qos_status] if is_news else "dim"
        table.add_row(
            Text(harmless(telling.session_id)),
            Text("unknown" if ours is None else ours.qos_status, style="dim"),
            Text(telling.qos_status if is_news else "new facts", style=style),
            Text(harmless(telling.status_info or "") if is_news else "", style=style),
            f"{rfc3339.render(telling.time_micros)[:19]}Z" if is_news else "",
        )
    return table


class _All:
    """All remembered sessions, whichever process decides on them."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def sessions_of(self, sender: str, session_ids: Collection[str]) -> Sequence[Session]:
        """See `receiver.qod.reconciler.Ours`."""
        return await self._reader.sessions_of(sender, session_ids)

    def owns(self, session_id: str) -> bool:  # noqa: ARG002  # it owns all
        """See `receiver.qod.reconciler.Ours`."""
        return True
