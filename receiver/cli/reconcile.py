"""`reconcile`: what the operator's API knows and no notification told. Also how a command has such things kept."""

import asyncio
import time
from collections.abc import Collection, Sequence
from typing import Annotated

import typer

from receiver.cli.options import (
    ConfigOption,
    DataOption,
    Failed,
    KafkaOption,
    OpsTokenOption,
    ask_process,
    reading,
    s,
    settings_of,
)
from receiver.console import behind_table, console
from receiver.core.notification import CLIENT, Notification
from receiver.core.session import Session
from receiver.process import build
from receiver.process.reconciling import api_facts, reconciler
from receiver.qod.difference import Difference
from receiver.qod.model import ApiSession
from receiver.qod.telling import notification, sent, told
from receiver.reader import Reader
from receiver.settings import Settings

#: As many as the operations port takes at once, by far.
_ASKED_AT_ONCE = 32


def reconcile(
    *,
    data: DataOption = None,
    kafka: KafkaOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be told.")] = False,
    ops_token: OpsTokenOption = "",
    config: ConfigOption = None,
) -> None:
    """Tell the topics what the operator's API knows of our sessions and no notification told."""
    settings = settings_of(config, data=data, kafka=kafka)
    if settings.api.base_url is None:
        raise Failed("there is no api.base_url in the configuration: which API is to be asked?")
    asyncio.run(_reconcile(settings, ops_token, dry_run=dry_run))


async def learned(settings: Settings, session: ApiSession, ops_token: str) -> None:
    """Have kept what the API told of a session, so that the topics know of it. Raises Failed and Unavailable."""
    now_micros = time.time_ns() // 1000
    telling = told(session, None, now_micros, api_facts(settings)(session))
    await _keep(settings, [notification(telling, CLIENT, settings.api.sender or "", now_micros)], ops_token)


async def _reconcile(settings: Settings, ops_token: str, *, dry_run: bool) -> None:
    async with reading(settings) as reader, reconciler(settings, _All(reader)) as made:
        found = await made.compare()
    if made.complaint:
        typer.echo(made.complaint, err=True)
    if found:
        console().print(behind_table(found))
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
    """Into the cluster; else by the process that serves the directory; else into the directory."""
    serving = None if settings.kafka.bootstrap_servers else build.served_at(settings.data)
    if serving is None:
        await build.learn(settings, notifications)
        return
    for first in range(0, len(notifications), _ASKED_AT_ONCE):
        some = [sent(each) for each in notifications[first : first + _ASKED_AT_ONCE]]
        await asyncio.to_thread(ask_process, f"{serving.ops_url}/learn", {"notifications": some}, ops_token)


class _All:
    """All sessions that are remembered, whichever process decides on them."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def sessions_of(self, sender: str, session_ids: Collection[str]) -> Sequence[Session]:
        """See `receiver.qod.reconcile.Ours`."""
        return await self._reader.sessions_of(sender, session_ids)

    def owns(self, session_id: str) -> bool:  # noqa: ARG002  # all of them
        """See `receiver.qod.reconcile.Ours`."""
        return True
