"""What a process is made of where one directory keeps everything: the file, its lane, the router beside the edge."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any

from receiver.backends.sqlite import SqliteNode, SqliteReader
from receiver.dispatcher import Dispatcher
from receiver.errors import Unavailable
from receiver.event import QosStatus
from receiver.reader import PassedOver, nobody
from receiver.router import Router
from receiver.session import Session
from receiver.session_record import SESSIONS
from receiver.settings import Settings
from receiver.telemetry import Telemetry

_RETENTION_SECONDS = 10.0
_RETENTION_SECONDS_SOON = 0.5
#: Rows removed at once: a few milliseconds of the writer's time. More than a node at full speed writes in the interval.
_RETENTION_ROWS_MAX = 2_000
_HOUR_MICROS = 3600 * 1_000_000


def open_node(
    settings: Settings,
    appended: Callable[[int, float], None] = lambda _count, _seconds: None,
    passed_over: PassedOver = nobody,
) -> SqliteNode:
    """The directory of the settings, to be served by this process alone. Raises Unavailable."""
    return SqliteNode(
        settings.data,
        sessions_topic=f"{settings.prefix}.{SESSIONS}",
        append_timeout_seconds=settings.edge.append_timeout_seconds,
        appended=appended,
        passed_over=passed_over,
    )


def open_reader(settings: Settings, passed_over: PassedOver = nobody) -> SqliteReader:
    """A reader of the directory of the settings, beside whoever serves it. Raises Unavailable."""
    return SqliteReader(settings.data, f"{settings.prefix}.{SESSIONS}", passed_over)


class EmbeddedNode:
    """`receiver.service.Node`, over one directory."""

    def __init__(
        self, node: SqliteNode, reader: SqliteReader, settings: Settings, telemetry: Telemetry, router: Router
    ) -> None:
        self.inbox = node.inbox
        self.reader = reader
        self._node = node
        self._settings = settings
        self._telemetry = telemetry
        self._dispatcher = Dispatcher(node.lane, router, telemetry, batch_max=settings.router.batch_max)

    def jobs(self) -> Sequence[Coroutine[Any, Any, None]]:
        """See Node."""
        return self._dispatcher.run(), self._retain()

    def troubles(self) -> Mapping[str, str]:
        """See Node."""
        return {"inbox": self.inbox.trouble}

    def notices(self) -> Mapping[str, str]:
        """See Node."""
        return {}

    async def sessions_of(self, sender: str, session_ids: Collection[str]) -> Sequence[Session]:
        """See Node."""
        return await self.reader.sessions_of(sender, session_ids)

    def owns(self, session_id: str) -> bool:  # noqa: ARG002  # all of them are in the one directory
        """See Node."""
        return True

    async def session_counts(self) -> Mapping[QosStatus, int]:
        """See Node."""
        return await self.reader.session_counts()

    async def _retain(self) -> None:
        """Remove what is too old, a little at a time, for ever."""
        retention = self._settings.retention
        while True:
            now_micros = time.time_ns() // 1000
            try:
                removed = await self._node.retain(
                    round(now_micros - retention.inbox_hours * _HOUR_MICROS),
                    round(now_micros - retention.topics_hours * _HOUR_MICROS),
                    _RETENTION_ROWS_MAX,
                )
            except Unavailable as error:
                self._telemetry.retention_failed(error.message)
                removed = 0
            # A full sweep hints at more; but requests go first. In trouble it tells when that is over.
            soon = removed >= _RETENTION_ROWS_MAX or self.inbox.trouble
            await asyncio.sleep(_RETENTION_SECONDS_SOON if soon else _RETENTION_SECONDS)


@asynccontextmanager
async def embedded(settings: Settings, telemetry: Telemetry, router: Router) -> AsyncIterator[EmbeddedNode]:
    """The node of a directory, for as long as the block lasts. Raises Unavailable."""
    told = telemetry.passed_over
    with closing(open_node(settings, telemetry.appended, told)) as node, closing(open_reader(settings)) as reader:
        yield EmbeddedNode(node, reader, settings, telemetry, router)
