"""Rival groups: routers of another consumer group that decide on the same inbox.

The fence is the partition's own, so no notification has its effect twice. But the groups take the lanes from each other
all the time.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupAuthorizationFailedError

from receiver.backends.kafka.connection import KafkaConnection, limited, persistently
from receiver.backends.kafka.known import known
from receiver.backends.kafka.standing import MARK
from receiver.backends.kafka.writer import members_count
from receiver.core.errors import Unavailable

_ANSWER_SECONDS_MAX = 30.0
_WATCH_SECONDS = 30.0


async def rivals(connection: KafkaConnection, group: str, inbox: str) -> Sequence[str]:
    """The other groups of this prefix that have members, and positions in the inbox that routers committed.

    Groups that this process has no right to ask about are left out. Raises Unavailable.
    """
    topics = await known(connection, [inbox])
    prefix, _, _ = inbox.rpartition(".")
    async with connection.admin(_ANSWER_SECONDS_MAX) as admin:
        listing = persistently(admin.list_consumer_groups)
        groups = {each[0] for each in await limited(listing, _ANSWER_SECONDS_MAX, "no list of groups")}
        others = sorted(each for each in groups - {group} if each.startswith(f"{prefix}."))
        routing = [each for each in others if inbox in topics and await _routes(admin, each, inbox)]
    return [each for each in routing if await members_count(connection, each)]


async def watch_rivals(
    connection: KafkaConnection, group: str, inbox: str, tell: Callable[[Sequence[str]], None]
) -> None:
    """Ask every 30 seconds, for ever, and tell each answer."""
    while True:
        with suppress(Unavailable):  # another task reports that Kafka is away
            tell(await rivals(connection, group, inbox))
        await asyncio.sleep(_WATCH_SECONDS)


async def _routes(admin: AIOKafkaAdminClient, group: str, inbox: str) -> bool:
    try:
        asked = persistently(partial(admin.list_consumer_group_offsets, group))
        told = await limited(asked, _ANSWER_SECONDS_MAX, f"the group {group} can't be asked")
    except Unavailable as error:
        if isinstance(error.__cause__, GroupAuthorizationFailedError):
            return False
        raise
    return any(at.topic == inbox and MARK in (each.metadata or "") for at, each in told.items())
