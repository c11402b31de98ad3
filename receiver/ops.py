"""The operations port: health, metrics, topics and sessions. Never the public port.

Beyond loopback every path but the two health checks requires a token. No web page of another site can read or post
anything. Errors are problem details (RFC 9457).
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from ipaddress import ip_address

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from receiver.core.errors import Malformed, Unavailable
from receiver.core.event import QosStatus
from receiver.core.notification import Notification
from receiver.core.topics import TopicNames
from receiver.operations import Operations
from receiver.qod.telling import received
from receiver.reader import Cursor, Reader, cursor_text, session_fields
from receiver.telemetry import Telemetry

_PATHS = """\
GET  /livez           200 while the event loop runs
GET  /readyz          200 while notifications can be kept, else 503 and the reason
GET  /metrics         Prometheus
GET  /topics          the names of the topics
GET  /topics/{topic}  records from a position on (from, session, limit) as JSON, or as a live text/event-stream
GET  /sessions        the sessions (qos_status, limit), last touched first
POST /replay          send dead letters through today's parser again
POST /learn           keep what the operator's API told of sessions"""

_COUNT_DEFAULT = 100
_COUNT_MAX = 10_000
_COUNT_DIGITS_MAX = len(str(_COUNT_MAX))
_STREAM_POLL_SECONDS = 0.2
_STREAM_SILENCE_SECONDS = 15.0
#: Each stream polls the file five times a second.
_STREAMS_MAX = 64
#: Bytes that a stream reads at once, unless one record is longer. Pages are longer, so fewer are allowed at a time.
_STREAM_BYTES_MAX = 256 * 1024
_PAGES_MAX = 8
_PAGE_SECONDS_MAX = 60.0
_OPEN_PATHS = frozenset({"/livez", "/readyz"})
_NO_PAGE_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cross-origin-resource-policy", b"same-origin"))


class OpsApp(Starlette):
    """The application of the operations port.

    `troubles` holds, by part of the program, what is wrong now, in words for an operator; all is well if every text is
    empty. `notices` holds, in the same form, what an operator should know although the program does its work.
    """

    def __init__(
        self,
        *,
        operations: Operations,
        reader: Reader,
        telemetry: Telemetry,
        session_counts: Callable[[], Awaitable[Mapping[QosStatus, int]]],
        troubles: Callable[[], Mapping[str, str]],
        notices: Callable[[], Mapping[str, str]],
        stopping: asyncio.Event,
        prefix: str,
        token_sha256: str | None,
    ) -> None:
        self._operations = operations
        self._reader = reader
        self._telemetry = telemetry
        self._session_counts = session_counts
        self._troubles = troubles
        self._notices = notices
        self._stopping = stopping
        self._names = TopicNames(prefix)
        self._streams = 0
        self._pages = 0
        super().__init__(
            routes=[
                Route("/", self._root),
                Route("/livez", self._livez),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics),
                Route("/topics", self._topics),
                Route("/topics/{topic}", self._topic),
                Route("/sessions", self._sessions),
                Route("/replay", self._replay, methods=["POST"]),
                Route("/learn", self._learn, methods=["POST"]),
            ],
            middleware=[
                Middleware(_NoPages, is_guarded=token_sha256 is not None),
                *([] if token_sha256 is None else [Middleware(_TokenWanted, sha256=token_sha256)]),
            ],
            exception_handlers={HTTPException: _problem, Unavailable: _unavailable},
            max_body_size=65_536,
        )

    async def _root(self, _: Request) -> Response:
        return PlainTextResponse(f"{_PATHS}\n")

    async def _livez(self, _: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _readyz(self, _: Request) -> Response:
        troubles = self._troubles()
        ready = not any(troubles.values())
        checks = {name: told or "ok" for name, told in {**self._notices(), **troubles}.items()}
        return _json({"ready": ready, "checks": checks}, 200 if ready else 503)

    async def _metrics(self, _: Request) -> Response:
        self._telemetry.sessions(await self._session_counts())
        self._telemetry.ready(ready=not any(self._troubles().values()))
        return Response(generate_latest(self._telemetry.registry), media_type=CONTENT_TYPE_LATEST)

    async def _topics(self, _: Request) -> Response:
        return _json({"topics": await self._reader.topics()})

    async def _topic(self, request: Request) -> Response:
        _no_parameters_but(request, "from", "session", "limit")
        topic = self._names.spelled(request.path_params["topic"])
        live = "text/event-stream" in request.headers.get("accept", "")
        start = request.query_params.get("from", "end" if live else "beginning")
        resumed = request.headers.get("last-event-id")
        try:
            cursor = await self._reader.cursor(topic, start if resumed is None else resumed)
        except KeyError:
            raise HTTPException(404, f"there is no topic {topic}") from None
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        session_id = request.query_params.get("session")
        if live:
            return self._stream(topic, cursor, session_id)
        count = _count(request)
        with self._page() as page:
            records = await self._reader.records(topic, cursor, count)
            page.told = [
                orjson.dumps(record.fields())
                for record in records
                if session_id is None or record.message.key == session_id
            ]
            page.head = b'{"topic":%b,"records":[' % orjson.dumps(topic)
            page.tail = b'],"next":%b}' % orjson.dumps(cursor_text(cursor))
        return page

    def _stream(self, topic: str, cursor: Cursor, session_id: str | None) -> Response:
        if self._streams >= _STREAMS_MAX:
            raise HTTPException(429, f"at most {_STREAMS_MAX} streams at a time")
        self._streams += 1
        return StreamingResponse(
            self._events(topic, cursor, session_id),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def _events(self, topic: str, cursor: Cursor, session_id: str | None) -> AsyncIterator[bytes]:
        """Server-sent events (WHATWG HTML, 9.2), one for each record. An event's id is the cursor to resume from."""
        silent_seconds = 0.0
        try:
            yield b": connected\n\n"
            while not self._stopping.is_set():
                before = cursor.copy()
                records = await self._reader.records(topic, cursor, _COUNT_DEFAULT, _STREAM_BYTES_MAX)
                for record in records:
                    before[record.partition] = record.position + 1
                    if session_id is None or record.message.key == session_id:
                        silent_seconds = 0.0
                        lines = cursor_text(before).encode(), orjson.dumps(record.fields())
                        yield b"id: %b\nevent: record\ndata: %b\n\n" % lines
                if silent_seconds >= _STREAM_SILENCE_SECONDS:
                    silent_seconds = 0.0
                    yield b": nothing new\n\n"
                if records:
                    continue  # there may be more, and waiting would fall behind a busy topic
                silent_seconds += _STREAM_POLL_SECONDS
                try:
                    async with asyncio.timeout(_STREAM_POLL_SECONDS):
                        await self._stopping.wait()
                except TimeoutError:
                    continue
        finally:
            self._streams -= 1

    async def _sessions(self, request: Request) -> Response:
        _no_parameters_but(request, "qos_status", "limit")
        status = request.query_params.get("qos_status")
        try:
            qos_status = None if status is None else QosStatus(status.upper())
        except ValueError:
            raise HTTPException(400, f"qos_status is one of {', '.join(QosStatus)}") from None
        count = _count(request)
        with self._page() as page:
            sessions = await self._reader.sessions(qos_status, count)
            page.told = [orjson.dumps(session_fields(session)) for session in sessions]
            page.head, page.tail = b'{"sessions":[', b"]}"
        return page

    @contextmanager
    def _page(self) -> Iterator["_Page"]:
        """A page that the block fills. It counts until it was sent. Raises HTTPException beyond _PAGES_MAX."""
        if self._pages >= _PAGES_MAX:
            raise HTTPException(429, f"at most {_PAGES_MAX} pages at a time")
        self._pages += 1
        try:
            yield _Page(self._page_ended)
        except BaseException:
            self._page_ended()
            raise

    def _page_ended(self) -> None:
        self._pages -= 1

    async def _replay(self, request: Request) -> Response:
        verdicts, start = _wanted(await request.body())
        try:
            replayed = await self._operations.replay(verdicts, start)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        return _json({"replayed": replayed})

    async def _learn(self, request: Request) -> Response:
        if request.headers.get("content-type") != "application/json":
            raise HTTPException(415, "the content type is application/json")
        notifications = _learned(await request.body(), time.time_ns() // 1000)
        await self._operations.learn(notifications)
        return _json({"learned": len(notifications)})


class _NoPages:
    """Refuses requests that a browser makes for another site's page, and stops browsers from embedding answers.

    A browser names the page's site (Origin, Sec-Fetch-Site). The exception is DNS rebinding, where the page's own name
    was made to lead here; then Host holds a name that is not ours. Our names are addresses, and names without a dot,
    which nobody can register. Where a token is required any name is accepted: a page does not have the token, and the
    health checks reveal nothing secret.
    """

    def __init__(self, app: ASGIApp, *, is_guarded: bool) -> None:
        self._app = app
        self._is_guarded = is_guarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_NO_PAGE_HEADERS]
            await send(message)

        why = self._refusal(scope["headers"])
        if why:
            await _problem_response(HTTPStatus.FORBIDDEN, why)(scope, receive, send_marked)
        else:
            await self._app(scope, receive, send_marked)

    def _refusal(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        values: dict[bytes, set[str]] = {}
        for name, value in headers:
            values.setdefault(name, set()).add(value.decode("latin-1").lower())
        hosts = values.get(b"host", set())
        if not self._is_guarded and not all(map(_is_ours, hosts)):
            return "the name in Host is not known to be this port's: use an address, or localhost"
        if values.get(b"sec-fetch-site", set()) - {"same-origin", "none"}:
            return "pages of other sites are not answered"
        if values.get(b"origin", set()) - {f"{scheme}://{host}" for scheme in ("http", "https") for host in hosts}:
            return "pages of other origins are not answered"
        return ""


def _is_ours(host: str) -> bool:
    """Whether a Host value is a name or address that a stranger can't have made lead here."""
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    try:
        ip_address(name)
    except ValueError:
        return "." not in name.removesuffix(".localhost")
    return True


class _TokenWanted:
    """Refuses callers without the token, except for the health checks: probes have no token, and learn no secrets."""

    def __init__(self, app: ASGIApp, sha256: str) -> None:
        self._app = app
        self._sha256 = bytes.fromhex(sha256)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS:
            scheme, _, token = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
            right = hmac.compare_digest(hashlib.sha256(token.strip()).digest(), self._sha256)
            if scheme.lower() != b"bearer" or not right:
                response = _problem_response(HTTPStatus.UNAUTHORIZED, "a bearer token is required")
                response.headers["www-authenticate"] = "Bearer"
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _Page(Response):
    """A JSON answer sent item by item: what a slow reader has not taken yet is in memory once, and in no buffer."""

    media_type = "application/json"

    def __init__(self, ended: Callable[[], None]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self.head = self.tail = b""
        self.told: Sequence[bytes] = ()
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI's
        """See ASGI."""
        try:
            async with asyncio.timeout(_PAGE_SECONDS_MAX):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": self.head, "more_body": True})
                for number, each in enumerate(self.told):
                    await send(
                        {"type": "http.response.body", "body": b"," + each if number else each, "more_body": True}
                    )
                await send({"type": "http.response.body", "body": self.tail})
        finally:
            self._ended()


def _no_parameters_but(request: Request, *names: str) -> None:
    """Refuse unknown parameters: a misspelled one would have no effect, and its sender would not notice."""
    for name in request.query_params:
        if name not in names:
            raise HTTPException(400, f"there is no parameter {name!r}; there are {', '.join(names)}")


def _count(request: Request) -> int:
    text = request.query_params.get("limit", str(_COUNT_DEFAULT))
    if not text.isdecimal() or len(text) > _COUNT_DIGITS_MAX or not 1 <= int(text) <= _COUNT_MAX:
        raise HTTPException(400, f"limit is 1 to {_COUNT_MAX}")
    return int(text)


def _wanted(body: bytes) -> tuple[list[str] | None, str]:
    """The verdicts that a replay asks for (None: all), and where it begins."""
    try:
        wanted = orjson.loads(body or b"{}")
    except ValueError:
        wanted = None
    if isinstance(wanted, dict):
        verdicts, start = wanted.get("verdicts"), wanted.get("from", "beginning")
        if isinstance(verdicts, list | None) and isinstance(start, str):
            return verdicts, start
    raise HTTPException(400, 'the body is JSON such as {"verdicts": ["malformed"], "from": "0-17"}')


def _learned(body: bytes, now_micros: int) -> list[Notification]:
    try:
        return [received(each, now_micros) for each in orjson.loads(body)["notifications"]]
    except (ValueError, TypeError, KeyError, Malformed):
        detail = 'the body is JSON such as {"notifications": [{"origin": "client", "sender": "acme", "event": {…}}]}'
        raise HTTPException(400, detail) from None


def _json(value: object, status_code: int = 200) -> Response:
    return Response(orjson.dumps(value), status_code, media_type="application/json")


def _problem_response(status: HTTPStatus, detail: str) -> Response:
    content = orjson.dumps({"status": status.value, "title": status.phrase, "detail": detail})
    return Response(content, status.value, media_type="application/problem+json")


async def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  # for the type checker: registered for nothing else
    response = _problem_response(HTTPStatus(error.status_code), error.detail)
    response.headers.update(error.headers or {})  # a 405 lists the allowed methods
    return response


async def _unavailable(_: Request, error: Exception) -> Response:
    return _problem_response(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
