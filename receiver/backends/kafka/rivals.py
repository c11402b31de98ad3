"""Rival groups: routers of another consumer group that decide on the same inbox.

The fence is the partition's own, so no notification has its effect twice. But the groups take the lanes from each other
all the time. Each group has its own positions: what hangs is judged by the furthest of all.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupAuthorizationFailedError

from receiver.backends.kafka.connection import KafkaConnection, limited, persistently
from receiver.backends.kafka.known import known
from receiver.backends.kafka.standing import Place, place_of
from receiver.backends.kafka.writer import members_count
from receiver.core.errors import Unavailable

_ANSWER_SECONDS_MAX = 30.0
_WATCH_SECONDS = 30.0


async def rivals(connection: KafkaConnection, group: str, inbox: str) -> Sequence[str]:
    """The other groups of this prefix that have members, and positions in the inbox that routers committed.

    Groups that this process has no right to ask about are left out. Raises Unavailable.
    """
    others = await _others(connection, group, inbox)
    return [each for each in others if await members_count(connection, each)]


async def places_of_rivals(connection: KafkaConnection, group: str, inbox: TopicPartition) -> Sequence[Place]:
    """The positions of other groups' routers in a partition, whether these groups have members now or not.

    Groups that this process has no right to ask about are left out. Raises Unavailable.
    """
    others = await _others(connection, group, inbox.topic)
    return [places[inbox.partition] for places in others.values() if inbox.partition in places]


async def watch_rivals(
    connection: KafkaConnection, group: str, inbox: str, tell: Callable[[Sequence[str]], None]
) -> None:
    """Ask every 30 seconds, for ever, and tell each answer."""
    while True:
        with suppress(Unavailable):  # another task reports that Kafka is away
            tell(await rivals(connection, group, inbox))
        await asyncio.sleep(_WATCH_SECONDS)


async def _others(connection: KafkaConnection, group: str, inbox: str) -> Mapping[str, Mapping[int, Place]]:
    """The other groups of the prefix that have routed, each with its positions, by partition of the inbox."""
    topics = await known(connection, [inbox])
    if inbox not in topics:
        return {}
    prefix, _, _ = inbox.rpartition(".")
    async with connection.admin(_ANSWER_SECONDS_MAX) as admin:
        listing = persistently(admin.list_consumer_groups)
        groups = {each[0] for each in await limited(listing, _ANSWER_SECONDS_MAX, "no list of groups")}
        others = sorted(each for each in groups - {group} if each.startswith(f"{prefix}."))
        found = {each: await _routed(admin, each, inbox) for each in others}
    return {each: places for each, places in found.items() if places}


async def _routed(admin: AIOKafkaAdminClient, group: str, inbox: str) -> Mapping[int, Place]:
    """The positions of a group's routers, by partition; empty if it is no routers' group."""
    try:
        asked = persistently(partial(admin.list_consumer_group_offsets, group))
        told = await limited(asked, _ANSWER_SECONDS_MAX, f"the group {group} can't be asked")
    except Unavailable as error:
        if isinstance(error.__cause__, GroupAuthorizationFailedError):
            return {}
        raise
    places = {
        at.partition: place_of(each.offset, each.metadata or "") for at, each in told.items() if at.topic == inbox
    }
    return {partition: each for partition, each in places.items() if each.is_ours}
