"""`topics`: the topics in a Kafka cluster."""

import asyncio
from collections.abc import Iterable
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from receiver.backends.kafka import topics
from receiver.cli.failed import Failed
from receiver.cli.options import ConfigOption, KafkaOption, s, settings_of
from receiver.console import UNEXPECTED_STYLE, console
from receiver.process.cluster import connection_of, expect_same_partitions, group_of, plan_of
from receiver.process.routing import build_router
from receiver.process.store import Store, store_of
from receiver.settings import Settings


def create(
    *,
    kafka: KafkaOption = None,
    partitions: Annotated[
        int | None,
        typer.Option(
            min=1, max=10_000, help="Partitions of each topic. \\[default: 12]", show_default=False, metavar="COUNT"
        ),
    ] = None,
    replication_factor: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=15,
            help="Replicas of each topic. \\[default: 3, or one per broker]",
            show_default=False,
            metavar="COUNT",
        ),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Create the topics that are missing in the Kafka cluster; existing ones are left alone."""
    settings = _settings(config, kafka, partitions, replication_factor)
    made = asyncio.run(topics.create(connection_of(settings), plan_of(settings, build_router(settings))))
    for name in made:
        typer.echo(name)
    typer.echo(f"{len(made)} topic{s(len(made))} created")
    _check(settings, made=True)


def check(
    *,
    kafka: KafkaOption = None,
    config: ConfigOption = None,
) -> None:
    """Name each difference between the topics in the Kafka cluster and the configuration."""
    settings = _settings(config, kafka)
    _check(settings)
    inbox = plan_of(settings, build_router(settings)).inbox
    asyncio.run(expect_same_partitions(connection_of(settings), inbox, group_of(settings)))
    typer.echo("the topics are as the configuration says")


def expect_cluster(store: Store) -> None:
    """Raises BadParameter if the settings name no Kafka cluster."""
    if not store.is_shared:
        raise typer.BadParameter("brokers are required, such as 127.0.0.1:9092", param_hint="--kafka")


def _settings(
    config: ConfigOption, kafka: str | None, partitions: int | None = None, replication_factor: int | None = None
) -> Settings:
    settings = settings_of(
        config, kafka=kafka, kafka__partitions=partitions, kafka__replication_factor=replication_factor
    )
    expect_cluster(store_of(settings))
    return settings


def _check(settings: Settings, *, made: bool = False) -> None:
    """Raises Failed if anything differs."""
    plan = plan_of(settings, build_router(settings))
    differences = asyncio.run(topics.check(connection_of(settings), plan, made=made))
    if differences:
        console().print(_table(differences))
        fatal = sum(each.fatal for each in differences)
        raise Failed(f"{len(differences)} difference{s(len(differences))}, {fatal} of them unusable for a receiver")


def _table(differences: Iterable[topics.TopicDifference]) -> Table:
    """The differences between the topics and the configuration; unusable ones are red."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("topic", no_wrap=True)
    table.add_column("difference", overflow="fold")
    for each in differences:
        table.add_row(Text(each.topic), Text(each.what, style=UNEXPECTED_STYLE if each.fatal else "yellow"))
    return table
