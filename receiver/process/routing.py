"""Builds the router from the settings."""

from collections.abc import Iterable
from typing import TypeVar

from receiver.core.router import Router
from receiver.core.routes import Route
from receiver.settings import Settings

T = TypeVar("T")


def build_router(settings: Settings) -> Router:
    """The router that the settings describe."""
    routes = [
        Route(
            route.topic,
            senders=_some(route.sender),
            qos_statuses=_some(route.qos_status),
            status_infos=_some(route.status_info),
            unexpected=route.unexpected,
            event_types=route.event_type,
        )
        for route in settings.routes
    ]
    return Router(
        prefix=settings.prefix,
        routes=routes,
        forget_after_seconds=settings.retention.session_hours * 3600,
        resuming_senders=settings.router.resuming_senders,
    )


def _some(values: Iterable[T] | None) -> frozenset[T] | None:
    return None if values is None else frozenset(values)
