"""How to reach a cluster, and the rules for every client of it.

aiokafka waits without a limit in many places: for a coordinator, for a commit, for its own end. So each call that may
wait is made within `limited`, and a client that does not close in time is abandoned with its sockets closed.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.abc import AbstractTokenProvider
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.consumer import fetcher
from aiokafka.errors import (
    IllegalOperation,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    RequestTimedOutError,
)

from receiver.backends.kafka import fetching
from receiver.backends.kafka.broker import Attempts, attempts, heard
from receiver.backends.kafka.failures import ClusterFailed

T = TypeVar("T")

#: What aiokafka raises when the cluster or its own state is wrong: it checks its states by assertions. RuntimeError is
#: uvloop's for a write to a lost connection, where asyncio has an OSError; aiokafka lets it through.
KAFKA_FAILURES = (KafkaError, IllegalOperation, AssertionError, TimeoutError, OSError, AttributeError, RuntimeError)

_NO_CONNECTION = (KafkaConnectionError, NodeNotReadyError, RequestTimedOutError, TimeoutError)

_FETCH_WAIT_MILLIS = 50
#: The largest age of a client's knowledge of leaders. A deposed leader does not know that it is one, so another broker
#: must be asked: aiokafka asks one at random each time.
_METADATA_MILLIS = 2_000

_CLOSE_SECONDS_MAX = 3.0
#: Tasks that close clients; the loop itself holds only weak references.
_ending: set[asyncio.Future[Any]] = set()
_CANCELS_MAX = 10
_RETRY_SECONDS = 0.2


class KafkaConnection(NamedTuple):
    """The addresses of a cluster and how to log in. `options` are aiokafka's, the same for all clients."""

    bootstrap_servers: Sequence[str]
    options: dict[str, Any]

    def producer(self, **options: Any) -> AIOKafkaProducer:  # noqa: ANN401  # aiokafka's own
        """A producer that is not started yet."""
        made = AIOKafkaProducer(
            bootstrap_servers=list(self.bootstrap_servers),
            metadata_max_age_ms=_METADATA_MILLIS,
            **self.options,
            **options,
        )
        _let_senders_die(made)
        return made

    def consumer(self, *topics: str, **options: Any) -> AIOKafkaConsumer:  # noqa: ANN401  # aiokafka's own
        """A consumer that is not started yet."""
        return AIOKafkaConsumer(
            *topics,
            bootstrap_servers=list(self.bootstrap_servers),
            enable_auto_commit=False,
            metadata_max_age_ms=_METADATA_MILLIS,
            # A fetch that waits for records delays the other requests on its connection.
            fetch_max_wait_ms=_FETCH_WAIT_MILLIS,
            **self.options,
            **options,
        )

    @asynccontextmanager
    async def admin(self, timeout_seconds: float) -> AsyncIterator[AIOKafkaAdminClient]:
        """An admin client, for as long as the block lasts. Raises Unavailable if the cluster does not answer."""
        client = AIOKafkaAdminClient(
            bootstrap_servers=list(self.bootstrap_servers), metadata_max_age_ms=_METADATA_MILLIS, **self.options
        )
        try:
            await limited(client.start(), timeout_seconds, "Kafka does not answer")
            yield client
        finally:
            await ended(client.close())


class Security(NamedTuple):
    """What a listener requires of its clients: protocol, TLS, and the login."""

    protocol: str = "PLAINTEXT"
    tls: ssl.SSLContext | None = None
    mechanism: str | None = None
    username: str | None = None
    password: str | None = None
    tokens: AbstractTokenProvider | None = None

    def options(self) -> dict[str, Any]:
        """The same as options of aiokafka's clients."""
        options: dict[str, Any] = {"security_protocol": self.protocol}
        if self.tls is not None:
            options["ssl_context"] = self.tls
        if self.mechanism is not None:
            options["sasl_mechanism"] = self.mechanism
            options["sasl_plain_username"] = self.username
            options["sasl_plain_password"] = self.password
            options["sasl_oauth_token_provider"] = self.tokens
        return options


async def limited(call: Awaitable[T], seconds: float, what: str) -> T:
    """The outcome of a call, within a time limit. Raises Unavailable, whose message is `what` and the reason.

    If a broker refused the connection, the message has only the refusal: it is the cause of any failure.
    """
    made = Attempts()
    before = attempts.set(made)
    try:
        async with asyncio.timeout(seconds):
            return await call
    except KAFKA_FAILURES as error:
        message = f"no connection to Kafka, {made.refused}" if made.refused else f"{what}: {_why(error, made, seconds)}"
        raise ClusterFailed(message) from error
    finally:
        attempts.reset(before)


def _why(error: BaseException, made: Attempts, seconds: float) -> str:
    if made.failed and isinstance(error, _NO_CONNECTION):
        return made.failed
    return f"longer than {seconds:g} s" if isinstance(error, TimeoutError) else type(error).__name__


async def persistently(ask: Callable[[], Awaitable[T]]) -> T:
    """The answer about a group, asked again while its coordinator moves or, in a new cluster, is being made."""
    while True:
        try:
            return await ask()
        except KafkaError as error:
            if not error.retriable:
                raise
            await asyncio.sleep(_RETRY_SECONDS)


async def ended(call: Awaitable[object]) -> None:
    """Wait for a client to close, for a limited time, and ignore its errors."""
    task = asyncio.ensure_future(call)
    _ending.add(task)
    task.add_done_callback(_ending.discard)
    task.add_done_callback(heard)
    done, _ = await asyncio.wait({task}, timeout=_CLOSE_SECONDS_MAX)
    if not done:
        task.cancel()


async def end_producer(producer: AIOKafkaProducer) -> None:
    """Close a producer in any state: its own `stop` may wait for ever for batches that no broker takes.

    The producer is closed even if the caller is cancelled.
    """
    task = asyncio.ensure_future(_end_producer(producer))
    _ending.add(task)
    task.add_done_callback(_ending.discard)
    await asyncio.shield(task)


async def _end_producer(producer: AIOKafkaProducer) -> None:
    producer._closed = True  # noqa: SLF001
    for connection in producer.client._conns.values():  # noqa: SLF001
        writer = connection._writer  # noqa: SLF001
        # Else the system would still send this data, ahead of what the next producer sends.
        if writer is not None and writer.transport.get_write_buffer_size():
            writer.transport.abort()
    await ended(producer.client.close())
    sender = producer._sender.sender_task  # noqa: SLF001
    for _ in range(_CANCELS_MAX):
        if sender is None or sender.done():
            break
        sender.cancel()  # it ends its tasks one by one, each with a cancellation of its own
        await asyncio.wait({sender}, timeout=_CLOSE_SECONDS_MAX / _CANCELS_MAX)
    if sender is not None:
        sender.add_done_callback(heard)
    if sender is None or sender.done():
        _free(producer)


async def end_consumer(consumer: AIOKafkaConsumer) -> None:
    """Close a consumer, and free what it fetched and was not read."""
    await ended(consumer.stop())
    fetcher = consumer._fetcher  # noqa: SLF001
    if fetcher is not None:
        fetcher._records.clear()  # noqa: SLF001


def _free(producer: AIOKafkaProducer) -> None:
    """Free the memory of a producer's batches, whatever still refers to them.

    Failed tasks hold the batches by their tracebacks, in cycles that the collector finds late.
    """
    accumulator = producer._message_accumulator  # noqa: SLF001
    for batch in (*chain.from_iterable(accumulator._batches.values()), *accumulator._pending_batches):  # noqa: SLF001
        builder = batch._builder  # noqa: SLF001
        builder.__dict__.pop("_builder", None)
        if builder._buffer is not None:  # noqa: SLF001
            with suppress(BufferError):
                builder._buffer.clear()  # noqa: SLF001


def _let_senders_die(producer: AIOKafkaProducer) -> None:
    """Ignore an error of aiokafka's own when a sender ends with an error.

    The sender's batches have failed by then. aiokafka then changes the state of the transaction, which some states do
    not allow. Only the log would tell of that.
    """
    sender = producer._sender  # noqa: SLF001
    original = sender._fail_all  # noqa: SLF001

    def fail_all(task: asyncio.Task[None]) -> None:
        with suppress(AssertionError, AttributeError, asyncio.InvalidStateError):
            original(task)

    sender._fail_all = fail_all  # noqa: SLF001


def _tolerate_empty_control_batches() -> None:
    # The log cleaner keeps the last batch of a producer although it is empty (apache/kafka 10914). aiokafka would fail
    # on it for ever, so sessions could not be restored.
    original = fetcher.PartitionRecords._contains_abort_marker  # noqa: SLF001

    def contains_abort_marker(self: Any, batch: Any) -> bool:  # noqa: ANN401  # aiokafka's
        try:
            return bool(original(self, batch))
        except KafkaError:
            return False

    fetcher.PartitionRecords._contains_abort_marker = contains_abort_marker  # noqa: SLF001


_tolerate_empty_control_batches()
fetching.install()
