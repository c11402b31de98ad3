"""The store: where everything is kept. There are two, a directory and a Kafka cluster, and here it is chosen once.

Whether it is the one or the other is asked nowhere else: commands and processes ask the store. It imports what a use
of it needs when it is used, so that nobody waits for a client of Kafka who has none.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, closing, contextmanager
from typing import TYPE_CHECKING, Protocol

from receiver.core.errors import Unavailable
from receiver.operations import LocalOperations, Operations
from receiver.process.addresses import Addresses, announced, served_at
from receiver.process.routing import build_router
from receiver.reader import Reader
from receiver.settings import Settings, option_of

if TYPE_CHECKING:
    from receiver.process.node import Node
    from receiver.process.part import Part
    from receiver.telemetry import Telemetry


class Store(Protocol):
    """Where everything is kept. All raise Unavailable where it can't be had."""

    #: Whether several processes may serve it, in parts.
    is_shared: bool

    def node(self, telemetry: "Telemetry", part: "Part") -> AbstractAsyncContextManager["Node"]:
        """What this process serves it with, for as long as the block lasts."""
        ...

    def announced(self, addresses: Addresses, telemetry: "Telemetry") -> AbstractContextManager[None]:
        """A block in which other commands find the process that serves it, where they need to."""
        ...

    def served_at(self) -> Addresses | None:
        """Where the one process listens that serves it; None where none does, or none needs to be asked."""
        ...

    def reader(self) -> AbstractAsyncContextManager[Reader]:
        """A reader beside whoever serves it. Raises Unavailable where nothing is kept yet."""
        ...

    def operations(self, ops_token: str) -> AbstractAsyncContextManager[Operations]:
        """What a command may do to it, by the process that serves it where that has it alone.

        `ops_token` is what this process's operations port wants, empty where it wants none.
        """
        ...

    def describe(self) -> Mapping[str, str]:
        """The options, and their values, that lead another command here; none where its defaults do."""
        ...


def store_of(settings: Settings) -> Store:
    """The store of the settings."""
    return _Cluster(settings) if settings.kafka.bootstrap_servers else _Directory(settings)


class _Directory:
    """`Store` is the contract; here for one process, which others must ask."""

    is_shared = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def node(self, telemetry: "Telemetry", part: "Part") -> AbstractAsyncContextManager["Node"]:  # noqa: ARG002  # one process plays all parts
        """See the contract."""
        from receiver.process.embedded import embedded

        return embedded(self._settings, telemetry, build_router(self._settings))

    def announced(self, addresses: Addresses, telemetry: "Telemetry") -> AbstractContextManager[None]:
        """See the contract."""
        return announced(self._settings.data, addresses, telemetry.addresses_not_written)

    def served_at(self) -> Addresses | None:
        """See the contract."""
        return served_at(self._settings.data)

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[Reader]:
        """See the contract."""
        from receiver.process.directory import open_reader

        try:
            reader = open_reader(self._settings)
        except Unavailable as error:
            hint = f"{error}; has `qod-receiver serve` run with this directory? --data names another"
            raise Unavailable(hint, reason=error.reason) from error
        with closing(reader):
            yield reader

    @asynccontextmanager
    async def operations(self, ops_token: str) -> AsyncIterator[Operations]:
        """See the contract."""
        if (serving := self.served_at()) is not None:
            from receiver.process.distant import DistantOperations

            yield DistantOperations(serving.ops_url, ops_token)
            return
        from receiver.process.directory import open_directory, open_reader

        with closing(open_directory(self._settings)) as served, closing(open_reader(self._settings)) as reader:
            yield LocalOperations(reader, served.inbox, self._settings.prefix, is_deferred=True)

    def describe(self) -> Mapping[str, str]:
        """See the contract."""
        return option_of(self._settings.data)


class _Cluster:
    """`Store` is the contract; here for any number of processes, none of which others need to ask."""

    is_shared = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def node(self, telemetry: "Telemetry", part: "Part") -> AbstractAsyncContextManager["Node"]:
        """See the contract."""
        from receiver.process.clustered import clustered

        return clustered(self._settings, telemetry, build_router(self._settings), part)

    @contextmanager
    def announced(self, addresses: Addresses, telemetry: "Telemetry") -> Iterator[None]:  # noqa: ARG002  # nobody needs them
        """See the contract."""
        yield

    def served_at(self) -> None:
        """See the contract."""

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[Reader]:
        """See the contract."""
        from receiver.backends.kafka.reader import KafkaReader
        from receiver.process.cluster import connection_of

        reader = KafkaReader(connection_of(self._settings), self._settings.prefix)
        try:
            yield reader
        finally:
            await reader.close()

    @asynccontextmanager
    async def operations(self, ops_token: str) -> AsyncIterator[Operations]:  # noqa: ARG002  # no process is asked
        """See the contract."""
        from receiver.process.cluster import cluster_inbox

        async with self.reader() as reader, cluster_inbox(self._settings, build_router(self._settings)) as inbox:
            yield LocalOperations(reader, inbox, self._settings.prefix)

    def describe(self) -> Mapping[str, str]:
        """See the contract."""
        return {"kafka": ",".join(self._settings.kafka.bootstrap_servers)}
