"""The store, which keeps everything: a directory or a Kafka cluster. The choice is made here, once.

Commands and processes use the contract and do not know which store it is. Modules are imported when they are used, so
that a command without Kafka does not wait for the import of a Kafka client.
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
    """Where everything is kept. All methods raise Unavailable if the store can't be used."""

    #: Whether several processes may serve it, in parts.
    is_shared: bool

    def node(self, telemetry: "Telemetry", part: "Part") -> AbstractAsyncContextManager["Node"]:
        """The node with which this process serves the store, for as long as the block lasts."""
        ...

    def announced(self, addresses: Addresses, telemetry: "Telemetry") -> AbstractContextManager[None]:
        """A block in which other commands find the process that serves the store, if they need to."""
        ...

    def served_at(self) -> Addresses | None:
        """The addresses of the one process that serves the store; None if none does, or commands need not ask it."""
        ...

    def reader(self) -> AbstractAsyncContextManager[Reader]:
        """A reader beside the serving processes. Raises Unavailable if nothing is kept yet."""
        ...

    def operations(self, ops_token: str) -> AbstractAsyncContextManager[Operations]:
        """The operations for a command: through the serving process if that has the store alone.

        `ops_token` is the token of that process's operations port; empty if it needs none.
        """
        ...

    def describe(self) -> Mapping[str, str]:
        """The options, with their values, with which another command finds this store; none if the defaults do."""
        ...


def store_of(settings: Settings) -> Store:
    """The store of the settings."""
    return _Cluster(settings) if settings.kafka.bootstrap_servers else _Directory(settings)


class _Directory:
    """`Store` is the contract. One process has this store alone, and others must ask it."""

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
    """`Store` is the contract. Any number of processes use this store, and none needs to ask another."""

    is_shared = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def node(self, telemetry: "Telemetry", part: "Part") -> AbstractAsyncContextManager["Node"]:
        """See the contract."""
        from receiver.process.clustered import clustered

        return clustered(self._settings, telemetry, build_router(self._settings), part)

    @contextmanager
    def announced(self, addresses: Addresses, telemetry: "Telemetry") -> Iterator[None]:  # noqa: ARG002  # not needed
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
