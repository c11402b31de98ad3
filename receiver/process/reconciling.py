"""Builds the comparison of the operator API's sessions with ours from the settings."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from receiver.core.facts import Facts
from receiver.process.node import Node
from receiver.qod.client import QodClient
from receiver.qod.model import ApiSession
from receiver.qod.reconciler import Ours, Reconciler, Schedule
from receiver.qod.telling import facts_told
from receiver.secret_file import device_key
from receiver.settings import Settings
from receiver.telemetry import Telemetry


@asynccontextmanager
async def reconciling(settings: Settings, node: Node, telemetry: Telemetry) -> AsyncIterator[Schedule | None]:
    """The schedule of comparisons with the operator's API, for a block that runs it; None if none are configured."""
    api = settings.api
    if api.base_url is None or not api.reconcile_seconds:
        yield None
        return
    async with reconciler(settings, node) as made:
        yield Schedule(
            made,
            node.inbox,
            telemetry,
            interval_seconds=api.reconcile_seconds,
            grace_seconds=api.grace_seconds,
            behind=lambda: _behind(node),
        )


@asynccontextmanager
async def reconciler(settings: Settings, ours: Ours) -> AsyncIterator[Reconciler]:
    """The reconciler of the settings' API. Raises Unavailable."""
    async with QodClient(settings.api, quotes=False) as client:
        yield Reconciler(client, ours, settings.api.sender or "", api_facts(settings))


def api_facts(settings: Settings) -> Callable[[ApiSession], Facts]:
    """A function from the API's session to the facts for the topics. Raises Unavailable without a key for devices."""
    return partial(facts_told, device_key=device_key(settings), identifiers=settings.api.device_identifiers)


def _behind(node: Node) -> str:
    """Why appended notifications may not be routed now; empty if they are. Comparisons must not fill a spool."""
    return "; ".join(filter(None, (*node.troubles().values(), *node.notices().values())))
