"""A process whose store is one directory: the file, its lane, and the router beside the edge."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any

from receiver.backends.sqlite.node import ServedDirectory, SqliteReader
from receiver.core.errors import Unavailable
from receiver.core.event import QosStatus
from receiver.core.router import Router
from receiver.core.session import Session
from receiver.dispatcher import Dispatcher
from receiver.process.directory import open_directory, open_reader
from receiver.settings import Settings
from receiver.telemetry import Telemetry

_RETENTION_SECONDS = 10.0
#: Interval at which the file is checked, also between full sweeps of retention and in trouble.
_LOOK_SECONDS = 0.5
#: Rows removed at once: a few milliseconds of the writer's time, and more than a node at full speed writes meanwhile.
_RETENTION_ROWS_MAX = 2_000
_HOUR_MICROS = 3600 * 1_000_000


class EmbeddedNode:
    """`receiver.process.node.Node` over one directory."""

    def __init__(
        self, served: ServedDirectory, reader: SqliteReader, settings: Settings, telemetry: Telemetry, router: Router
    ) -> None:
        self.inbox = served.inbox
        self.reader = reader
        self._served = served
        self._settings = settings
        self._telemetry = telemetry
        self._dispatcher = Dispatcher(served.lane, router, telemetry, batch_max=settings.router.batch_max)

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
        """Remove what is too old, a little at a time, and check the file, for ever."""
        retention = self._settings.retention
        loop = asyncio.get_running_loop()
        next_at = 0.0
        while True:
            removed = 0
            try:
                await self._served.look()
                if loop.time() >= next_at or self.inbox.trouble:
                    now_micros = time.time_ns() // 1000
                    next_at = loop.time() + _RETENTION_SECONDS
                    removed = await self._served.retain(
                        round(now_micros - retention.inbox_hours * _HOUR_MICROS),
                        round(now_micros - retention.topics_hours * _HOUR_MICROS),
                        _RETENTION_ROWS_MAX,
                    )
            except Unavailable as error:
                self._telemetry.retention_failed(error.message)
            # A full sweep suggests more to remove, but requests go first. In trouble a sweep finds out when it is over.
            if removed >= _RETENTION_ROWS_MAX:
                next_at = 0.0
            await asyncio.sleep(_LOOK_SECONDS)


@asynccontextmanager
async def embedded(settings: Settings, telemetry: Telemetry, router: Router) -> AsyncIterator[EmbeddedNode]:
    """A node of the settings' directory, for as long as the block lasts. Raises Unavailable."""
    told = telemetry.passed_over
    with (
        closing(open_directory(settings, telemetry.appended, told)) as served,
        closing(open_reader(settings, told, served.suspect)) as reader,
    ):
        served.expect(router.topics)
        yield EmbeddedNode(served, reader, settings, telemetry, router)
