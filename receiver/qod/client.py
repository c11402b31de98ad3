"""A client of the operator's QoD API: its four operations, within limits, without logging.

A request that may be repeated is retried after a failure that may pass. A creation may not be repeated: a session that
was created without our knowledge costs money and holds its device. It is posted again only if nothing of it was sent,
or if the API was too busy for it (429). Otherwise it fails with a message that the session may have been created.

Errors are raised where no variable holds a request or an answer, so that a traceback with local variables shows no
identifiers of a device.
"""

import asyncio
import math
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn, Self
from urllib.parse import quote

import httpx2
import orjson
from tenacity import AsyncRetrying, RetryCallState, retry_if_result, stop_after_attempt

from receiver.answers import (
    PASSING,
    Unreadable,
    content_of,
    is_long,
    last_outcome,
    left_alone,
    message_of,
    pause_seconds,
    retry_after_seconds,
)
from receiver.client_credentials import ClientCredentials
from receiver.core.errors import ApiRefused, Malformed, Unavailable
from receiver.qod import model
from receiver.qod.listing import Reading, paging_of
from receiver.qod.model import ApiSession, Creation, Listing
from receiver.settings import ApiSettings

_SESSION_BYTES_MAX = 1024 * 1024
_ERROR_BYTES_MAX = 64 * 1024
_MESSAGE_CHARS_MAX = 300

#: Shorter waits are not reported.
_NOTICED_SECONDS_MIN = 1.0

_UNAUTHORIZED = 401
_NOT_FOUND = 404
_TOO_MANY_REQUESTS = 429
_PASSING_CLIENT_ERRORS = frozenset({408, _TOO_MANY_REQUESTS})

#: In place of an error's unreadable content. It is not empty, since an empty 404 would count as the API's own.
_UNREAD = b"<>"

_MAYBE_MADE = "; it may have been created: see `session list`"


class _Call:
    """A request, through all attempts. It is not a struct, so its repr shows no members, such as the request's body."""

    __slots__ = (
        "attempts",
        "bytes_max",
        "correlator",
        "creation",
        "maybe_done",
        "method",
        "quotes",
        "token_renewed",
        "url",
    )

    def __init__(self, method: str, url: str, bytes_max: int, creation: Creation | None = None) -> None:
        self.method = method
        self.url = url
        self.bytes_max = bytes_max
        self.creation = creation
        self.correlator = str(uuid.uuid4())
        self.token_renewed = False
        self.attempts = 0
        self.quotes = True
        self.maybe_done = False  # an attempt may have taken effect


class _Answer:
    """A status and a content that the repr does not show."""

    __slots__ = ("content", "paging", "retry_after_seconds", "status")

    def __init__(self, answer: httpx2.Response, content: bytes) -> None:
        self.status = answer.status_code
        self.content = content
        self.retry_after_seconds = retry_after_seconds(answer)
        self.paging = paging_of(answer)

    @property
    def is_success(self) -> bool:
        """Whether the request succeeded."""
        return httpx2.codes.is_success(self.status)

    @property
    def is_refusal(self) -> bool:
        """Whether the request was refused, and would be again."""
        about_request = httpx2.codes.is_client_error(self.status) and self.status not in _PASSING_CLIENT_ERRORS
        return about_request or httpx2.codes.is_redirect(self.status)

    @property
    def is_vain(self) -> bool:
        """Whether the request had no effect: it was refused, for now or for good."""
        return self.is_refusal or self.status == _TOO_MANY_REQUESTS

    def __repr__(self) -> str:
        return f"<answer {self.status}>"


class _Failure:
    """A missing answer: why, whether a retry may get one, and whether anything of the request was sent."""

    __slots__ = ("passing", "sent", "why")
    retry_after_seconds = None

    def __init__(self, why: str, *, passing: bool, sent: bool) -> None:
        self.why = why
        self.passing = passing
        self.sent = sent


class QodClient:
    """The API of these settings, which must have a base URL. Used as a context manager, by one event loop.

    Every operation raises Unavailable if it may succeed later, and ApiRefused if it can't. Their messages have the
    API's own words only if `quotes` is true: these may name a device, and must not be logged. `notice` is called, with
    words, when an attempt has failed and the next one waits.
    """

    def __init__(
        self, settings: ApiSettings, *, quotes: bool = True, notice: Callable[[str], None] = lambda _: None
    ) -> None:
        if settings.base_url is None:
            raise ValueError("there is no api.base_url")
        self._sessions_url = f"{settings.base_url.rstrip('/')}/qod/sessions"
        self._timeout_seconds = settings.timeout_seconds
        self._quotes = quotes
        self._attempts_max = settings.attempts_max
        self._notice = notice
        self._headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
        self._tokens = ClientCredentials(
            settings.token_url or "",
            settings.client_id or "",
            settings.client_secret.get_secret_value() if settings.client_secret else "",
            settings.scope,
            timeout_seconds=settings.timeout_seconds,
            audience="the QoD API",
            reason="api",
            parameters={"audience": settings.audience} if settings.audience else None,
            headers=self._headers,
            attempts_max=settings.attempts_max,
            quotes=quotes,
        )
        self._client = httpx2.AsyncClient(timeout=None, follow_redirects=False)  # each exchange has a limit as a whole

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def create(self, request: Creation) -> ApiSession:
        """Create a session."""
        call = _Call("POST", self._sessions_url, _SESSION_BYTES_MAX, request)
        answer = await self._ask(call)
        if not answer.is_success:
            _raise_refused(call, answer)
        return _session(call, answer)

    async def list(self) -> Listing:
        """All our sessions at the API, from all pages. Fails rather than return a part."""
        reading = Reading(self._sessions_url)
        while True:
            call = _Call("GET", reading.url, reading.bytes_left)
            answer = await self._ask(call)
            if not answer.is_success:
                _raise_refused(call, answer)
            complaint = await reading.read(answer.content, answer.paging)
            if complaint is not None:
                _raise_unavailable(call, complaint)
            if reading.is_done:
                return reading.listing()

    async def get(self, session_id: str) -> ApiSession | None:
        """The session with this id, None if the API does not know it."""
        url = self._url(session_id)
        if url is None:
            return None
        call = _Call("GET", url, _SESSION_BYTES_MAX)
        answer = await self._ask(call)
        if answer.status == _NOT_FOUND:
            _expect_word(call, answer)
            return None
        if not answer.is_success:
            _raise_refused(call, answer)
        return _session(call, answer)

    async def delete(self, session_id: str) -> bool:
        """End a session. False if the API does not know the id, and no attempt of ours can have ended it."""
        url = self._url(session_id)
        if url is None:
            return False
        call = _Call("DELETE", url, _SESSION_BYTES_MAX)
        answer = await self._ask(call)
        if answer.status == _NOT_FOUND:
            _expect_word(call, answer)
            return call.maybe_done
        if not answer.is_success:
            _raise_refused(call, answer)
        return True

    def _url(self, session_id: str) -> str | None:
        """A session's URL; None for an id that would make another URL."""
        return None if session_id in {"", ".", ".."} else f"{self._sessions_url}/{quote(session_id, safe='')}"

    async def _ask(self, call: _Call) -> _Answer:
        """A success or a refusal, after retries. Raises Unavailable for any other outcome."""
        call.quotes = self._quotes
        outcome: _Answer | _Failure = await AsyncRetrying(
            stop=stop_after_attempt(self._attempts_max),
            wait=pause_seconds,
            retry=retry_if_result(lambda outcome: _is_worth_another(call, outcome)),
            before_sleep=self._tell_of_wait,
            retry_error_callback=last_outcome,
        )(self._attempt, call)
        if isinstance(outcome, _Failure):
            _raise_unavailable(call, outcome.why)
        if not (outcome.is_success or outcome.is_refusal):
            _, words = _explained(call, outcome)
            seconds = outcome.retry_after_seconds
            _raise_unavailable(call, f"answers {words}{left_alone(seconds)}", seconds)
        return outcome

    def _tell_of_wait(self, state: RetryCallState) -> None:
        seconds = state.next_action.sleep if state.next_action else 0
        if seconds >= _NOTICED_SECONDS_MIN:
            outcome: _Answer | _Failure = last_outcome(state)
            why = outcome.why if isinstance(outcome, _Failure) else f"answers {outcome.status}"
            self._notice(f"the QoD API {why}: it is asked again in {seconds:.0f} s")

    async def _attempt(self, call: _Call) -> _Answer | _Failure:
        """Make one attempt, with a second request if the token is refused. Raises Unavailable without a token."""
        token = await self._tokens.token()
        outcome = await self._exchange(call, token)
        if isinstance(outcome, _Answer) and outcome.status == _UNAUTHORIZED and not call.token_renewed:
            call.token_renewed = True
            self._tokens.forget(token)
            outcome = await self._exchange(call, await self._tokens.token())
        call.attempts += 1
        call.maybe_done = call.maybe_done or (outcome.sent if isinstance(outcome, _Failure) else not outcome.is_vain)
        return outcome

    async def _exchange(self, call: _Call, token: str) -> _Answer | _Failure:
        """Make one request and read its answer."""
        sent = False

        async def trace(event: str, _: dict[str, Any]) -> None:
            nonlocal sent
            sent = sent or event.endswith("send_request_headers.started")

        headers = {
            **self._headers,
            "authorization": f"Bearer {token}",
            "accept": "application/json",
            "accept-encoding": "identity",
            "x-correlator": call.correlator,
        }
        if call.creation is not None:
            headers["content-type"] = "application/json"
        try:
            async with (
                asyncio.timeout(self._timeout_seconds),
                self._client.stream(
                    call.method,
                    call.url,
                    headers=headers,
                    content=None if call.creation is None else call.creation.content(),
                    extensions={"trace": trace},
                ) as answer,
            ):
                try:
                    content = await content_of(answer, call.bytes_max if answer.is_success else _ERROR_BYTES_MAX)
                except Unreadable as error:
                    if answer.is_success:
                        return _Failure(f"answers {error}", passing=False, sent=True)
                    content = _UNREAD
                return _Answer(answer, content)
        except TimeoutError:
            return _Failure(f"did not answer within {self._timeout_seconds:g} s", passing=True, sent=sent)
        except httpx2.TransportError as error:
            why = f"hung up: {type(error).__name__}" if sent else f"can't be reached: {_reason(error)}"
            return _Failure(why, passing=True, sent=sent)
        except Exception as error:  # noqa: BLE001  # any other fault is the URL's, and lasts
            return _Failure(f"can't be asked: {type(error).__name__}", passing=False, sent=sent)


def _is_worth_another(call: _Call, outcome: _Answer | _Failure) -> bool:
    if isinstance(outcome, _Failure):
        return outcome.passing and not (outcome.sent and call.creation is not None)
    may_be_asked_again = call.creation is None or outcome.is_vain
    return outcome.status in PASSING and may_be_asked_again and not is_long(outcome.retry_after_seconds)


def _reason(error: Exception) -> str:
    """Why there is no connection: the system's words, such as about a certificate."""
    return model.quoted(str(error), None, _MESSAGE_CHARS_MAX) or type(error).__name__


def _session(call: _Call, answer: _Answer) -> ApiSession:
    found = _session_or_complaint(answer)
    if isinstance(found, str):
        _raise_unreadable(call, found)
    return found


def _session_or_complaint(answer: _Answer) -> ApiSession | str:
    try:
        return model.api_session(orjson.loads(answer.content))
    except Malformed as error:
        return error.message
    except orjson.JSONDecodeError:
        return "it is not JSON"


def _expect_word(call: _Call, answer: _Answer) -> None:
    """Raise Unavailable if a 404 is not the API's own: a gateway's answer about a path says nothing of a session."""
    if not model.is_unknown_session(answer.content):
        _, words = _explained(call, answer)
        _raise_unavailable(call, f"answers {words}, which is not the API's own word on the session")


def _explained(call: _Call, answer: _Answer) -> tuple[str, str]:
    """The API's error code, and its answer in words, as far as both may be shown."""
    try:
        tree = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        tree = None
    code = model.code_told(tree.get("code"), call.creation) if isinstance(tree, dict) else ""
    message = model.quoted(message_of(answer.content), call.creation, _MESSAGE_CHARS_MAX) if call.quotes else ""
    return code, f"{answer.status}{f' ({code})' if code else ''}{f': {message}' if message else ''}"


def _raise_refused(call: _Call, answer: _Answer) -> NoReturn:
    code, words = _explained(call, answer)
    if httpx2.codes.is_redirect(answer.status):
        words += ", a redirect, which is not followed"
    raise ApiRefused(answer.status, code, f"the QoD API answers {words} ({_traced(call)})")


def _raise_unreadable(call: _Call, complaint: str) -> NoReturn:
    _raise_unavailable(call, f"answers what can't be read: {complaint}")


def _raise_unavailable(call: _Call, why: str, retry_after_seconds: float | None = None) -> NoReturn:
    attempts = f"{call.attempts} attempts, " if call.attempts > 1 else ""
    outcome = _MAYBE_MADE if call.creation is not None and call.maybe_done else ""
    message = f"the QoD API {why} ({attempts}{_traced(call)}){outcome}"
    if retry_after_seconds is None:
        raise Unavailable(message, reason="api")
    raise Unavailable(message, reason="api", retry_after_seconds=math.ceil(retry_after_seconds))


def _traced(call: _Call) -> str:
    """The id by which the API's operator finds the request (CAMARA Commonalities, X-Correlator)."""
    return f"x-correlator {call.correlator}"
