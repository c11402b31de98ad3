"""A connection to one broker: aiokafka's, with these faults corrected.

- aiokafka leaves a connection open that is being made when its client is closed. Here each client knows its
  connections and closes them with itself.
- aiokafka only logs why a connection failed. Here the reason is kept for the caller, see `Attempts`.
- An exception of a token provider would end aiokafka's metadata task, and with it the client. Here it becomes a
  failed connection.
- A broker that refuses a token says so in a challenge (RFC 7628, 3.2.2). aiokafka takes that for success, and would
  then ask for metadata for ever. Here the challenge is answered, and the broker reports the failure.
- A broker ends a connection whose login has expired (KIP-368), even during a request. In a transaction such a request
  has no known outcome. So a connection is closed before its login expires, between two requests.
- asyncio logs a future that fails unawaited. The caller knows of a failure by what it awaits, so the exceptions of
  aiokafka's own futures are retrieved at once.
- aiokafka's log has each request at DEBUG, and so passwords and tokens. Here these lines are dropped.
"""

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Iterator
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from aiokafka import client
from aiokafka.conn import AIOKafkaConnection, CloseReason, OAuthAuthenticator
from aiokafka.consumer import group_coordinator, subscription_state
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.producer import message_accumulator, transaction_manager
from aiokafka.protocol.admin import SaslAuthenticateRequest

from receiver.core.errors import Unavailable

#: The part of a login's lifetime after which its connection is closed. Tokens are renewed a little earlier.
_SESSION_USED = 0.9
_CLOSE_SECONDS_MAX = 1.0

_WORDS_MAX = 200
#: A broker tells its versions to any client, and then disconnects one that should have logged in. So an answer proves
#: only beyond this number that the listener's protocol fits.
_GREETINGS = 1


class Attempts:
    """Why connections failed in the course of a call. `refused` and `failed` have the latest reason of their kind."""

    def __init__(self) -> None:
        #: A broker or an authorization server answered and refused: waiting does not help.
        self.refused = ""
        self.failed = ""

    def add(self, address: str, error: BaseException, *, heard: bool) -> None:
        """Note that a connection failed. `heard`: the broker had answered on it before."""
        refusal = _refusal(error)
        if refusal:
            self.refused = f"{address}: {refusal}"
        else:
            self.failed = f"{address}: {_failure(error, heard=heard)}"


#: Where connections that are made during the current call note why they failed.
attempts: ContextVar[Attempts | None] = ContextVar("attempts", default=None)


class BrokerConnection(AIOKafkaConnection):  # type: ignore[misc]  # aiokafka has no types
    """A connection that explains itself, and ends before its login does."""

    def __init__(self, host: str, port: int, **options: Any) -> None:  # noqa: ANN401  # aiokafka's
        super().__init__(host, port, **options)
        self._attempts = attempts.get()
        self._session_seconds = 0.0
        self._retirement: asyncio.TimerHandle | None = None
        self._retiring = False
        self._answers_count = 0

    async def connect(self) -> None:
        """Connect and log in. Raises what aiokafka's client expects."""
        try:
            await super().connect()
        except Exception as error:
            self._failed(error)
            if self._protocol is not None:  # it is closing, which takes a moment with TLS
                await asyncio.wait({self._closed_fut}, timeout=_CLOSE_SECONDS_MAX)
            if isinstance(error, KafkaError | OSError | TimeoutError):
                raise
            raise KafkaConnectionError(f"{type(error).__name__} at {self.host}:{self.port}") from error
        if self._session_seconds:
            self._retirement = self._loop.call_later(self._session_seconds * _SESSION_USED, self._retire)

    def send(self, request: Any, expect_response: bool = True) -> Awaitable[Any]:  # noqa: ANN401  # aiokafka's
        """See aiokafka."""
        answer: Awaitable[Any] = super().send(request, expect_response)
        if self._requests:
            self._requests[-1][2].add_done_callback(heard)
        return self._login_answer(answer) if isinstance(request, SaslAuthenticateRequest) else answer

    def close(self, reason: CloseReason | None = None, exc: BaseException | None = None) -> Any:  # noqa: ANN401
        """See aiokafka."""
        if self._retirement is not None:
            self._retirement.cancel()
        if reason is CloseReason.CONNECTION_BROKEN and exc is not None:
            self._failed(exc)
        return super().close(reason, exc)

    def authenticator_oauth(self) -> OAuthAuthenticator:
        """See aiokafka."""
        return _TokenAuthenticator(sasl_oauth_token_provider=self._sasl_oauth_token_provider)

    def _failed(self, error: BaseException) -> None:
        if self._attempts is not None:
            self._attempts.add(f"{self.host}:{self.port}", error, heard=self._answers_count > _GREETINGS)

    async def _login_answer(self, answer: Awaitable[Any]) -> Any:  # noqa: ANN401  # aiokafka's
        told = await answer
        self._session_seconds = getattr(told, "session_lifetime_ms", 0) / 1000
        return told

    def _handle_frame(self, resp: bytes) -> None:
        self._answers_count += 1
        super()._handle_frame(resp)
        if self._retiring:
            self._retire()

    def _retire(self) -> None:
        """Close the connection as soon as no request is pending; the next request is made on a new one."""
        self._retiring = True
        if not self._requests:
            self.close(CloseReason.IDLE_DROP)


class _TokenAuthenticator(OAuthAuthenticator):  # type: ignore[misc]  # aiokafka has no types
    async def step(self, payload: bytes | None) -> tuple[bytes, bool] | None:
        """See aiokafka."""
        if payload:
            return b"\x01", True  # acknowledges the challenge; the broker then reports that the login failed
        step: tuple[bytes, bool] | None = await super().step(payload)
        return step


def _refusal(error: BaseException) -> str:
    """Why one side refused the other; empty if the connection merely failed."""
    for cause in _causes(error):
        match cause:
            case Unavailable():
                return cause.message
            case SaslAuthenticationFailed():
                return f"authentication failed{_said(cause)}"
            case UnsupportedSaslMechanismError():
                return "authentication failed: the broker does not offer kafka.sasl_mechanism"
            case IllegalSaslStateError():
                return "authentication failed: the listener has no SASL, see kafka.security_protocol"
            case ssl.SSLError() if not isinstance(cause, ssl.SSLEOFError):
                return _tls_refusal(cause)
    return ""


def _said(error: SaslAuthenticationFailed) -> str:
    """The broker's message, on one line, as it follows "authentication failed"; Kafka's own begins with these words."""
    words = "".join(filter(str.isprintable, str(error.args[0] if error.args else "")))
    begin = "Authentication failed"
    words = words.removeprefix(begin) if words.startswith(begin) else f": {words}"
    return words[:_WORDS_MAX]


def _tls_refusal(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the broker's certificate is not trusted: {error.verify_message}"
    reason = (error.reason or "failed").replace("_", " ").lower()
    alert = reason.partition(" alert ")[2]
    if "certificate" in alert or alert == "unknown ca":
        return f"authentication failed, the broker wants another kafka.tls_certificate_file: {alert}"
    return f"TLS: {alert or reason}"


def _failure(error: BaseException, *, heard: bool) -> str:
    for cause in _causes(error):
        match cause:
            case asyncio.IncompleteReadError() | ConnectionResetError() | BrokenPipeError() | ssl.SSLEOFError():
                return f"the connection was closed{'' if heard else '; does kafka.security_protocol fit?'}"
            case TimeoutError():
                return "no answer"
            case socket.gaierror():
                return cause.strerror or "no such host"
            case OSError(errno=int(number)):
                return os.strerror(number).lower()
    return type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def heard(future: asyncio.Future[Any]) -> None:
    """Retrieve a future's exception, so that asyncio does not log it as never retrieved."""
    if not future.cancelled():
        future.exception()


def _create_future() -> asyncio.Future[Any]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.add_done_callback(heard)
    return future


#: The client that is being started: aiokafka passes no `on_close` to its first connections.
_starting: ContextVar[client.AIOKafkaClient | None] = ContextVar("starting", default=None)
_connections: WeakKeyDictionary[client.AIOKafkaClient, WeakSet[BrokerConnection]] = WeakKeyDictionary()
_closed: WeakSet[client.AIOKafkaClient] = WeakSet()
_bootstrap, _close = client.AIOKafkaClient.bootstrap, client.AIOKafkaClient.close


async def _create_conn(host: str, port: int, **options: Any) -> BrokerConnection:  # noqa: ANN401  # aiokafka's
    owner = getattr(options.get("on_close"), "__self__", None) or _starting.get()
    connection = BrokerConnection(host, port, **options)
    if owner is not None:
        _connections.setdefault(owner, WeakSet()).add(connection)
    await connection.connect()
    if owner in _closed:
        connection.close()
        raise KafkaConnectionError("the client was closed")
    return connection


async def _bootstrap_known(self: client.AIOKafkaClient) -> None:
    before = _starting.set(self)
    try:
        await _bootstrap(self)
    finally:
        _starting.reset(before)


async def _close_all(self: client.AIOKafkaClient) -> None:
    _closed.add(self)
    try:
        await _close(self)
    finally:
        closing = [connection.close() for connection in _connections.pop(self, ()) if connection.connected()]
        if closing:
            await asyncio.wait(closing, timeout=_CLOSE_SECONDS_MAX)


for _module in (group_coordinator, message_accumulator, subscription_state, transaction_manager):
    _module.create_future = _create_future
client.create_conn = _create_conn
client.AIOKafkaClient.bootstrap = _bootstrap_known
client.AIOKafkaClient.close = _close_all
logging.getLogger("aiokafka.conn").addFilter(lambda line: line.levelno > logging.DEBUG)
# Without a log set up, as in a command, Python would print its warnings beside the one line that tells the reason.
logging.getLogger("aiokafka").addHandler(logging.NullHandler())
