"""Brokers' knowledge of topics: each topic's id and number of partitions, and the routers' committed positions.

A topic that is deleted and made anew has the same name, and positions that begin at 0 again; only its id differs.
aiokafka asks for no ids, so the request is here: Metadata, version 11 (KIP-516, Kafka 2.8).
"""

import asyncio
import base64
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from io import BytesIO
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import NoError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest_v5
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from receiver.backends.kafka.connection import KafkaConnection, limited, persistently
from receiver.backends.kafka.failures import TopicsUnfit
from receiver.backends.kafka.standing import Place, place_of
from receiver.core.errors import Unavailable

_SECONDS_MAX = 10.0
_COORDINATOR_SECONDS_MAX = 30.0
_WATCH_SECONDS = 5.0
#: A broker that does not answer within this time may be paused; the next attempt may reach another one.
_ATTEMPT_SECONDS_MAX = 4.0
_ATTEMPTS_MAX = 3
_UUID_BYTES = 16


class Known(NamedTuple):
    """A topic that exists. `topic_id` is spelled as by Kafka's tools; it is empty with brokers older than 2.8."""

    topic_id: str
    partitions_count: int


async def known(connection: KafkaConnection, names: Sequence[str]) -> dict[str, Known]:
    """The topics of these names that exist. None is made by asking. Raises Unavailable."""
    async with connection.admin(_SECONDS_MAX) as admin:
        return await limited(known_to(admin._client, names), _SECONDS_MAX, "the topics can't be listed")  # noqa: SLF001


async def known_to(
    client: Any,  # noqa: ANN401  # aiokafka's
    names: Sequence[str],
    broker: int | None = None,
) -> dict[str, Known]:
    """The same, asked over a connected client, of any broker or of this one. Raises KafkaError."""
    answer = await client.send(client.get_random_node() if broker is None else broker, _MetadataRequest(names))
    found = {}
    for topic in answer.topics:
        error = for_code(topic[0])
        if error is NoError:
            topic_id, _, partitions = (
                topic[2:5] if answer.API_VERSION > MetadataRequest_v5.API_VERSION else ("", *topic[2:4])
            )
            found[topic[1]] = Known(topic_id, len(partitions))
        elif error is not UnknownTopicOrPartitionError:
            raise error
    return found


def expect_topics(names: Sequence[str], found: Mapping[str, Known]) -> None:
    """Raises TopicsUnfit if one of the topics is missing, or has another number of partitions than the first."""
    for name in names:
        if name not in found:
            raise TopicsUnfit(f"there is no topic {name}")
        count, wanted = found[name].partitions_count, found[names[0]].partitions_count
        if count != wanted:
            raise TopicsUnfit(f"{name} has {count} partitions, {names[0]} has {wanted}")


async def places(connection: KafkaConnection, group: str, inbox: str, partitions_count: int) -> Mapping[int, Place]:
    """The committed positions of the routers' group, by partition. Raises Unavailable."""
    partitions = [TopicPartition(inbox, each) for each in range(partitions_count)]
    async with connection.admin(_SECONDS_MAX) as admin:
        ask = partial(admin.list_consumer_group_offsets, group, partitions=partitions)
        told = await limited(persistently(ask), _COORDINATOR_SECONDS_MAX, "no committed position")
    return {at.partition: place_of(each.offset, each.metadata) for at, each in told.items() if each.offset >= 0}


async def watch(
    connection: KafkaConnection, names: Sequence[str], tell: Callable[[dict[str, Known] | str], None]
) -> None:
    """Ask every few seconds, for ever, and tell the topics that exist, or why there is no answer."""
    while True:
        try:
            async with connection.admin(_SECONDS_MAX) as admin:
                while True:
                    tell(await _patiently(admin._client, names))  # noqa: SLF001
                    await asyncio.sleep(_WATCH_SECONDS)
        except Unavailable as error:
            tell(error.message)
        await asyncio.sleep(_WATCH_SECONDS)


async def _patiently(client: Any, names: Sequence[str]) -> dict[str, Known]:  # noqa: ANN401  # aiokafka's
    for _ in range(_ATTEMPTS_MAX - 1):
        with suppress(Unavailable):
            return await limited(known_to(client, names), _ATTEMPT_SECONDS_MAX, "")
    return await limited(known_to(client, names), _ATTEMPT_SECONDS_MAX, "Kafka does not answer")


class _Uuid(AbstractType[str]):  # type: ignore[misc]  # aiokafka has no types
    """Sixteen bytes as text, as Kafka's own tools write them; empty for the zero id."""

    @classmethod
    def encode(cls, value: str) -> bytes:
        return base64.urlsafe_b64decode(f"{value}==") if value else bytes(_UUID_BYTES)

    @classmethod
    def decode(cls, data: BytesIO) -> str:
        read = data.read(_UUID_BYTES)
        return base64.urlsafe_b64encode(read).decode().rstrip("=") if any(read) else ""


_PARTITION = Schema(
    ("error_code", Int16),
    ("partition", Int32),
    ("leader", Int32),
    ("leader_epoch", Int32),
    ("replicas", CompactArray(Int32)),
    ("isr", CompactArray(Int32)),
    ("offline_replicas", CompactArray(Int32)),
    ("tags", TaggedFields),
)


class _MetadataResponse(Response):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = 3
    API_VERSION = 11
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                ("partitions", CompactArray(_PARTITION)),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _MetadataRequest_v11(RequestStruct):  # type: ignore[misc]  # noqa: N801  # aiokafka's names
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 11
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("topic", CompactString("utf-8")), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[MetadataRequest_v5 | _MetadataRequest_v11]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def build(self, request_struct_class: type[Any]) -> Any:  # noqa: ANN401  # aiokafka's
        if request_struct_class is MetadataRequest_v5:
            return request_struct_class(list(self._names), False)
        topics: list[tuple[str, str, dict[int, bytes]]] = [("", name, {}) for name in self._names]
        return request_struct_class(topics, False, False, {})
