"""What a process is made of where one directory keeps everything: the file, its lane, the router beside the edge."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any

from receiver.backends.sqlite.node import SqliteNode, SqliteReader
from receiver.core.errors import Unavailable
from receiver.core.event import QosStatus
from receiver.core.router import Router
from receiver.core.session import Session
from receiver.core.topics import TopicNames
from receiver.dispatcher import Dispatcher
from receiver.reader import PassedOver, nobody
from receiver.settings import Settings
from receiver.telemetry import Telemetry

_RETENTION_SECONDS = 10.0
#: How often the file is looked for; between full sweeps of retention, and in trouble, it is no longer.
_LOOK_SECONDS = 0.5
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
        sessions_topic=TopicNames(settings.prefix).sessions,
        append_timeout_seconds=settings.edge.append_timeout_seconds,
        appended=appended,
        passed_over=passed_over,
    )


def open_reader(
    settings: Settings, passed_over: PassedOver = nobody, damaged: Callable[[], None] = lambda: None
) -> SqliteReader:
    """A reader of the directory of the settings, beside whoever serves it. Raises Unavailable."""
    return SqliteReader(settings.data, TopicNames(settings.prefix).sessions, passed_over, damaged)


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
        return {"records": self._telemetry.passed_over_notice}

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
        """Remove what is too old, a little at a time, and look after the file, for ever."""
        retention = self._settings.retention
        loop = asyncio.get_running_loop()
        next_at = 0.0
        while True:
            removed = 0
            try:
                await self._node.look()
                if loop.time() >= next_at or self.inbox.trouble:
                    now_micros = time.time_ns() // 1000
                    next_at = loop.time() + _RETENTION_SECONDS
                    removed = await self._node.retain(
                        round(now_micros - retention.inbox_hours * _HOUR_MICROS),
                        round(now_micros - retention.topics_hours * _HOUR_MICROS),
                        _RETENTION_ROWS_MAX,
                    )
            except Unavailable as error:
                self._telemetry.retention_failed(error.message)
            # A full sweep hints at more; but requests go first. In trouble it tells when that is over.
            if removed >= _RETENTION_ROWS_MAX:
                next_at = 0.0
            await asyncio.sleep(_LOOK_SECONDS)


@asynccontextmanager
async def embedded(settings: Settings, telemetry: Telemetry, router: Router) -> AsyncIterator[EmbeddedNode]:
    """The node of a directory, for as long as the block lasts. Raises Unavailable."""
    told = telemetry.passed_over
    with (
        closing(open_node(settings, telemetry.appended, told)) as node,
        closing(open_reader(settings, told, node.suspect)) as reader,
    ):
        node.expect(router.topics)
        yield EmbeddedNode(node, reader, settings, telemetry, router)
