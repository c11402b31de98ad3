"""The API: four operations under /v1, their tokens, and CAMARA's errors for each.

Every answer has an x-correlator: the request's if it is valid (Commonalities, CAMARA_common.yaml, XCorrelator), else a
new one.
"""

import asyncio
import re
import time
import uuid
from collections.abc import Mapping
from http import HTTPStatus

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from receiver.simulator import creation, oauth, sessions
from receiver.simulator.creation import Invalid
from receiver.simulator.network import DeviceBusy, Network, NetworkFull
from receiver.simulator.oauth import OAuthError, Tokens, Unauthorized

SESSIONS_PATH = "/v1/qod/sessions"

_BODY_BYTES_MAX = 65_536
_BODY_TIMEOUT_SECONDS = 10
_LAST = {"connection": "close"}
_CORRELATOR = re.compile(rb"[a-zA-Z0-9\-_:;./<>{}]{1,256}")
#: CAMARA's codes that differ from the status's own name (Commonalities r3.3, CAMARA_common.yaml), now or formerly.
_CODES: Mapping[int, str] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    413: "CONTENT_TOO_LARGE",
    500: "INTERNAL",
}


class ApiApp(Starlette):
    """The application: the API, and the routes served beside it."""

    def __init__(self, network: Network, tokens: Tokens, more_routes: list[BaseRoute]) -> None:
        self._network = network
        self._tokens = tokens
        super().__init__(
            routes=[
                Route(SESSIONS_PATH, self._sessions, methods=["GET", "POST"]),
                Route(f"{SESSIONS_PATH}/{{session_id}}", self._session, methods=["GET", "DELETE"]),
                Route("/token", self._token, methods=["POST"]),
                Route("/jwks", self._jwks),
                Route("/.well-known/openid-configuration", self._openid_configuration),
                *more_routes,
            ],
            middleware=[Middleware(_Correlated)],
            exception_handlers={
                HTTPException: _http_error,
                Invalid: _invalid,
                Unauthorized: _unauthorized,
                OAuthError: _oauth_error,
                Exception: _defect,
            },
        )
        self.router.redirect_slashes = False

    async def _sessions(self, request: Request) -> Response:
        if request.method == "POST":
            return await self._create(request)
        client_id = self._bearer(request, oauth.READ)
        return json_response([sessions.info(session) for session in self._network.active(client_id)])

    async def _create(self, request: Request) -> Response:
        client_id = self._bearer(request, oauth.WRITE)
        body = await _body(request)
        if body:  # without a body a creation is invalid, whatever its type
            _expect_type(request, "application/json")
        wanted = creation.parse(body)
        sessions_url = f"{_base_url(request)}{SESSIONS_PATH}"
        try:
            session = self._network.create(wanted, client_id, sessions_url)
        except DeviceBusy:
            raise HTTPException(HTTPStatus.CONFLICT, "the device has a session already") from None
        except NetworkFull:
            raise HTTPException(HTTPStatus.TOO_MANY_REQUESTS, "there are too many sessions") from None
        headers = {"location": f"{SESSIONS_PATH}/{session.session_id}"}
        return json_response(sessions.info(session), HTTPStatus.CREATED, headers)

    async def _session(self, request: Request) -> Response:
        deletes = request.method == "DELETE"
        client_id = self._bearer(request, oauth.WRITE if deletes else oauth.READ)
        session_id = request.path_params["session_id"].lower()
        try:
            if deletes:
                self._network.delete(session_id, client_id)
                return Response(status_code=HTTPStatus.NO_CONTENT)
            return json_response(sessions.info(self._network.find(session_id, client_id)))
        except KeyError:
            raise HTTPException(HTTPStatus.NOT_FOUND, "there is no such session") from None

    async def _token(self, request: Request) -> Response:
        if _media_type(request) != "application/x-www-form-urlencoded":
            raise OAuthError("invalid_request", "the body is not a form")
        form = await _body(request)
        body, headers = self._tokens.grant(request.headers.get("authorization"), form, time.time())
        return json_response(body, headers=headers)

    async def _jwks(self, _: Request) -> Response:
        return json_response({"keys": []})

    async def _openid_configuration(self, request: Request) -> Response:
        return json_response(oauth.openid_configuration(_base_url(request)))

    def _bearer(self, request: Request, scope: str) -> str:
        return self._tokens.bearer(request.headers.get("authorization"), scope, time.time())


def json_response(
    content: object, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


def _error(
    status: HTTPStatus, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer with CAMARA's ErrorInfo."""
    code = code or _CODES.get(status, status.name)
    return json_response({"status": status.value, "code": code, "message": message}, status, headers)


# The assertions below are for the type checker: each handler is registered for nothing else.


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    status = HTTPStatus(error.status_code)
    return _error(status, error.detail or status.phrase, headers=error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, Invalid)  # noqa: S101
    return _error(HTTPStatus.BAD_REQUEST, error.message, error.code)


async def _unauthorized(_: Request, error: Exception) -> Response:
    assert isinstance(error, Unauthorized)  # noqa: S101
    return _error(error.status, error.message, headers={"www-authenticate": error.challenge})


async def _oauth_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, OAuthError)  # noqa: S101
    return json_response(error.body, error.status, error.headers)


async def _defect(_: Request, __: Exception) -> Response:
    return _error(HTTPStatus.INTERNAL_SERVER_ERROR, "a defect of the simulator; see its log")


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _expect_type(request: Request, wanted: str) -> None:
    if _media_type(request) != wanted:
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body must be {wanted}")


async def _body(request: Request) -> bytes:
    """The body, within its limits. Beyond them the connection ends, since the rest is not read."""
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > _BODY_BYTES_MAX:
                    message = f"the body has at most {_BODY_BYTES_MAX} bytes"
                    raise HTTPException(413, message, _LAST)
    except TimeoutError:
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, "the body took too long", _LAST) from None
    except ClientDisconnect:  # nobody reads the answer, and the simulator is not at fault
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the body was broken off", _LAST) from None
    return bytes(body)


def _base_url(request: Request) -> str:
    """The URL under which the client knows this server, without a path."""
    return f"{request.base_url.scheme}://{request.base_url.netloc}"


class _Correlated:
    """Gives every answer the x-correlator of its request, or a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        given = [value for name, value in scope["headers"] if name == b"x-correlator"]
        fits = len(given) == 1 and _CORRELATOR.fullmatch(given[0])
        correlator = given[0] if fits else str(uuid.uuid4()).encode()

        async def send_correlated(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"x-correlator", correlator)]}
            await send(message)

        await self._app(scope, receive, send_correlated)
