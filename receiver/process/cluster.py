"""The cluster of the settings: its connection, the topics it should have, and whether they are so."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiokafka.errors import GroupAuthorizationFailedError

from receiver.backends.kafka.connection import KafkaConnection, Security
from receiver.backends.kafka.failures import ClusterFailed, TopicsUnfit
from receiver.backends.kafka.inbox import KafkaInbox
from receiver.backends.kafka.known import known, places
from receiver.backends.kafka.standing import expect_partitions
from receiver.backends.kafka.tokens import KafkaTokens
from receiver.backends.kafka.topics import TopicDifference, TopicPlan, check, create
from receiver.core.errors import Unavailable
from receiver.core.router import Router
from receiver.core.topics import TopicNames
from receiver.settings import Settings
from receiver.tls import client_context

_CONNECT_SECONDS_MAX = 15.0


def connection_of(settings: Settings) -> KafkaConnection:
    """The connection to the settings' cluster. Raises Unavailable if a certificate can't be used."""
    kafka = settings.kafka
    tls = None
    if kafka.security_protocol in {"SSL", "SASL_SSL"}:
        try:
            tls = client_context(kafka.tls_ca_file, kafka.tls_certificate_file, kafka.tls_key_file)
        except ValueError as error:  # the files have changed since the settings were read
            raise ClusterFailed(f"kafka's certificates can't be used: expected {error}") from None
    mechanism, tokens = None, None
    if kafka.security_protocol.startswith("SASL"):
        mechanism = kafka.sasl_mechanism
        if kafka.sasl_mechanism == "OAUTHBEARER":
            tokens = KafkaTokens(
                kafka.oauth_token_url or "",
                kafka.oauth_client_id or "",
                kafka.oauth_client_secret.get_secret_value() if kafka.oauth_client_secret else "",
                kafka.oauth_scope,
            )
    password = None if kafka.sasl_password is None else kafka.sasl_password.get_secret_value()
    security = Security(kafka.security_protocol, tls, mechanism, kafka.sasl_username, password, tokens)
    return KafkaConnection(kafka.bootstrap_servers, security.options())


def plan_of(settings: Settings, router: Router) -> TopicPlan:
    """The topics that the settings want."""
    return TopicPlan(
        settings.prefix,
        router.topics,
        settings.kafka.partitions,
        settings.kafka.replication_factor,
        settings.retention.inbox_hours,
        settings.retention.topics_hours,
        settings.edge.body_bytes_max + settings.edge.header_bytes_max,
    )


def group_of(settings: Settings) -> str:
    """The full name of the routers' group."""
    return TopicNames(settings.prefix).full(settings.kafka.group)


@asynccontextmanager
async def cluster_inbox(settings: Settings, router: Router) -> AsyncIterator[KafkaInbox]:
    """The inbox of the settings' cluster, connected, without a spool. Raises Unavailable."""
    connection, plan = connection_of(settings), plan_of(settings, router)
    await prepare(connection, plan, create_missing=False, group=group_of(settings))
    inbox = KafkaInbox(connection, plan.inbox, append_timeout_seconds=settings.kafka.append_timeout_seconds)
    running = asyncio.create_task(inbox.run())
    try:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS_MAX):
                await inbox.connected.wait()
        except TimeoutError:
            raise ClusterFailed(inbox.trouble) from None
        yield inbox
    finally:
        running.cancel()
        await asyncio.wait({running})


async def prepare(
    connection: KafkaConnection, plan: TopicPlan, *, create_missing: bool, group: str = ""
) -> Sequence[TopicDifference]:
    """Create missing topics if `create_missing`, and refuse topics that can't be used. With `group`, the routers' own,
    another number of partitions than the routers decided with is refused too.

    Returns the tolerable differences from the plan. Raises Unavailable, TopicsUnfit if a topic is at fault.
    """
    if create_missing:
        await create(connection, plan)
    differences = await check(connection, plan, made=create_missing)
    fatal = [f"{each.topic} {each.what}" for each in differences if each.fatal]
    if fatal:
        raise TopicsUnfit("; ".join(fatal))
    if group:
        await expect_same_partitions(connection, plan.inbox, group)
    return differences


async def expect_same_partitions(connection: KafkaConnection, inbox: str, group: str) -> None:
    """Raises Unavailable if a group's routers decided with another number of partitions than the inbox has."""
    count = (await known(connection, [inbox]))[inbox].partitions_count
    try:
        found = await places(connection, group, inbox, count)
    except Unavailable as error:
        if isinstance(error.__cause__, GroupAuthorizationFailedError):
            return  # an edge may lack this right; a router learns of it when it joins
        raise
    expect_partitions(inbox, count, found.values())
