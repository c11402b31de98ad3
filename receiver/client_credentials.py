"""Access tokens by OAuth 2 client credentials (RFC 6749, 4.4).

The server chooses how a client presents its secret, and few servers document it. RFC 6749, 2.3.1, has three ways: HTTP
Basic of the form-encoded id and secret; HTTP Basic of both unencoded, as many servers wrongly expect (the two differ
only for unusual characters); and both in the form. If a refusal may be due to the way, the next way is tried. The way
that worked comes first from then on.
"""

import asyncio
import json
import math
import re
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote_plus

import httpx2
from tenacity import AsyncRetrying, retry_if_result, stop_after_attempt

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
from receiver.core.errors import Unavailable

#: After a failure the server is not asked again for this long, however many callers want a token.
_AGAIN_SECONDS = 1.0
#: The longest Retry-After that is respected.
_AGAIN_SECONDS_MAX = 60.0
#: A token is replaced after this part of its life. If that fails, it is used until it expires.
_LIFE_USED = 0.8
_LIFE_SECONDS_DEFAULT = 300.0
_ANSWER_BYTES_MAX = 256 * 1024
_MESSAGE_CHARS_MAX = 300
_REMOVED = "…"

#: The characters a header can hold. RFC 6750, 2.1, allows fewer, but some servers' tokens have others.
_TOKEN = re.compile(r"[!-~]+")
_ERROR_CODE = re.compile(r"[a-z_]{1,40}")

#: With these errors the login was accepted, or no other way to log in would help (RFC 6749, 5.2; RFC 8707, 2).
_NOT_ABOUT_LOGIN = frozenset({"invalid_scope", "invalid_grant", "invalid_target", "unsupported_grant_type"})
_DOUBTING_LOGIN = frozenset({400, 401})


class ClientCredentials:
    """Fetches tokens and keeps each for most of its life, however many callers ask for it.

    `audience` names in words the service that the tokens are for; `reason` is the label under which failures are
    counted (see `receiver.core.errors`). `parameters` go into the form beside the scope; `headers` are sent with it.
    With no valid token at hand a fetch makes up to `attempts_max` attempts of `timeout_seconds` each. The server's
    error messages are repeated only if `quotes` is true.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        client_secret: str,
        scope: str | None,
        *,
        timeout_seconds: float,
        audience: str,
        reason: str,
        parameters: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        attempts_max: int = 1,
        quotes: bool = False,
    ) -> None:
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._audience = audience
        self._reason = reason
        self._attempts_max = attempts_max
        self._form = {"grant_type": "client_credentials", **({"scope": scope} if scope else {}), **(parameters or {})}
        self._headers = dict(headers or {})
        self._logins = _logins(client_id, client_secret)
        self._secrets = (client_secret, quote_plus(client_secret)) if quotes else None
        self._token = ""
        self._fetch_at = self._ends_at = -math.inf
        self._failure = _Failure("")
        self._fetching: asyncio.Task[None] | None = None

    async def token(self) -> str:
        """A token that has not expired. Raises Unavailable."""
        if time.monotonic() >= self._fetch_at:
            if self._fetching is None or self._fetching.done():
                self._fetching = asyncio.create_task(self._fetch())
            # Other callers wait for the same fetch, so a caller that times out must not cancel it.
            await asyncio.shield(self._fetching)
        if self.seconds_left <= 0:
            why, seconds = f"no token for {self._audience}: {self._failure.why}", self._failure.retry_after_seconds
            raise Unavailable(why, reason=self._reason, retry_after_seconds=math.ceil(seconds or _AGAIN_SECONDS))
        return self._token

    def forget(self, token: str) -> None:
        """Discard a token that was refused. A token that was replaced meanwhile is left alone."""
        if token == self._token:
            self._token = ""
            self._fetch_at = self._ends_at = -math.inf

    @property
    def seconds_left(self) -> float:
        """How long the current token is valid, in seconds; not above 0 if there is none."""
        return self._ends_at - time.monotonic()

    async def _fetch(self) -> None:
        """Fetch a token, with retries. While an old token is still valid there is one attempt, as callers wait."""
        failure: _Failure | None = await AsyncRetrying(
            stop=stop_after_attempt(1 if self.seconds_left > 0 else self._attempts_max),
            wait=pause_seconds,
            retry=retry_if_result(lambda failure: failure is not None and failure.passing),
            retry_error_callback=last_outcome,
        )(self._attempt)
        if failure is not None:
            self._failure = failure
            wanted_seconds = min(failure.retry_after_seconds or 0, _AGAIN_SECONDS_MAX)
            self._fetch_at = time.monotonic() + max(_AGAIN_SECONDS, wanted_seconds)

    async def _attempt(self) -> "_Failure | None":
        """Make one attempt, with each way to log in in turn. Returns the failure, None on success."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                answer = await self._ask_in_turn()
        except TimeoutError:
            return _Failure(f"the token server did not answer within {self._timeout_seconds:g} s", passing=True)
        except Unreadable as error:
            return _Failure(f"the token server answers {error}")
        except Exception as error:  # noqa: BLE001  # any fault of the URL or its server must reach the callers
            passing = isinstance(error, httpx2.TransportError)
            return _Failure(f"the token server can't be reached: {type(error).__name__}", passing=passing)
        if not answer.is_success:
            return self._refused(answer)
        token, life_seconds = _told(answer.members)
        if life_seconds <= 0:
            why = "with an expired token" if token else "without a token"
            return _Failure(f"the token server answers {why}")
        self._token, self._ends_at = token, began + life_seconds
        self._fetch_at = began + life_seconds * _LIFE_USED
        return None

    async def _ask_in_turn(self) -> "_Answer":
        """The answer to the first login that is not refused; if all are refused, the answer to the first."""
        first, *others = self._logins
        refusal = await self._ask(first)
        if not refusal.doubts_login:
            return refusal
        for login in others:
            try:
                answer = await self._ask(login)
            except (httpx2.TransportError, Unreadable):
                continue  # a server that does not support this way and breaks off
            if answer.is_success:
                self._logins = [login, *(each for each in self._logins if each is not login)]
            if answer.is_success or answer.status in PASSING or answer.error_code in _NOT_ABOUT_LOGIN:
                return answer
        return refusal

    async def _ask(self, login: "_Login") -> "_Answer":
        headers = {"accept": "application/json", **self._headers, **login.headers}
        async with (
            httpx2.AsyncClient(timeout=self._timeout_seconds, follow_redirects=False) as client,
            client.stream("POST", self._url, data=self._form | login.fields, headers=headers) as answer,
        ):
            content = await content_of(answer, _ANSWER_BYTES_MAX)
            return _Answer(answer.status_code, content, retry_after_seconds(answer))

    def _refused(self, answer: "_Answer") -> "_Failure":
        code, words = answer.error_code, ""
        if self._secrets is not None:
            words = "".join(each if each.isprintable() else " " for each in message_of(answer.content))
            for secret in self._secrets:
                words = words.replace(secret, _REMOVED)
            words = " ".join(words.split())
            words = f": {words[:_MESSAGE_CHARS_MAX]}" if words and words != code else ""
        seconds = answer.retry_after_seconds
        why = f"the token server answers {answer.status}{f' ({code})' if code else ''}{words}{left_alone(seconds)}"
        return _Failure(why, passing=answer.status in PASSING and not is_long(seconds), retry_after_seconds=seconds)


class _Failure(NamedTuple):
    """Why there is no token, and whether a retry may get one."""

    why: str
    passing: bool = False
    retry_after_seconds: float | None = None


class _Login:
    """A way to present id and secret, as headers and form fields. It has no repr, since they are secret."""

    __slots__ = ("fields", "headers")

    def __init__(self, headers: Mapping[str, str], fields: Mapping[str, str]) -> None:
        self.headers = dict(headers)
        self.fields = dict(fields)


class _Answer:
    """A token server's answer. It has no repr, since it may hold a token."""

    __slots__ = ("content", "members", "retry_after_seconds", "status")

    def __init__(self, status: int, content: bytes, retry_after_seconds: float | None) -> None:
        self.status = status
        self.content = content
        self.members = _members(content)
        self.retry_after_seconds = retry_after_seconds

    @property
    def is_success(self) -> bool:
        return httpx2.codes.is_success(self.status)

    @property
    def error_code(self) -> str:
        """The error code of RFC 6749, 5.2; empty if there is none."""
        code = str(self.members.get("error", ""))
        return code if _ERROR_CODE.fullmatch(code) else ""

    @property
    def doubts_login(self) -> bool:
        """Whether the refusal may be due to the way in which id and secret were presented."""
        return self.status in _DOUBTING_LOGIN and self.error_code not in _NOT_ABOUT_LOGIN


def _logins(client_id: str, client_secret: str) -> Sequence[_Login]:
    pairs = dict.fromkeys([(quote_plus(client_id), quote_plus(client_secret)), (client_id, client_secret)])
    basic = [b64encode(f"{name}:{secret}".encode()).decode() for name, secret in pairs]
    in_form = _Login({}, {"client_id": client_id, "client_secret": client_secret})
    return [*(_Login({"authorization": f"Basic {each}"}, {}) for each in basic), in_form]


def _members(content: bytes) -> Mapping[str, Any]:
    """The members of an answer: JSON, or a form, as some servers send it."""
    try:
        told: Any = json.loads(content)
    except ValueError:
        told = dict(parse_qsl(content.decode(errors="replace"))) if b"access_token=" in content else None
    return told if isinstance(told, dict) else {}


def _told(members: Mapping[str, Any]) -> tuple[str, float]:
    """The token of an answer (RFC 6749, 5.1) and its life in seconds; "" and 0 if there is none."""
    token = members.get("access_token")
    token = token.strip() if isinstance(token, str) else ""
    if not _TOKEN.fullmatch(token):
        return "", 0
    try:
        life_seconds = float(members.get("expires_in") or _LIFE_SECONDS_DEFAULT)
    except (TypeError, ValueError):
        life_seconds = math.nan
    return token, life_seconds if math.isfinite(life_seconds) else _LIFE_SECONDS_DEFAULT
