"""Access tokens by OAuth 2 client credentials (RFC 6749, 4.4), for whoever has to present them."""

import asyncio
import json
import math
import re
import time
from typing import Any
from urllib.parse import quote_plus

import httpx2

from receiver.errors import Unavailable

#: After a failure nobody asks again for so long, however many want a token.
_AGAIN_SECONDS = 1.0
#: A token is fetched anew when so much of its life is over; if that fails, it is used until its end.
_LIFE_USED = 0.8
_LIFE_SECONDS_DEFAULT = 300.0
_ANSWER_BYTES_MAX = 256 * 1024

#: RFC 6750, 2.1. Anything else could not be sent.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_ERROR_CODE = re.compile(r"[a-z_]{1,40}")


class ClientCredentials:
    """Fetches tokens and keeps each for most of its life, however many ask for it.

    `audience` is what the tokens are for, in words; `reason` counts the failures (see `receiver.errors`).
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
    ) -> None:
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._audience = audience
        self._reason = reason
        self._form = {"grant_type": "client_credentials"} | ({"scope": scope} if scope else {})
        self._client = quote_plus(client_id), quote_plus(client_secret)  # RFC 6749, 2.3.1
        self._token = ""
        self._fetch_at = self._ends_at = -math.inf
        self._failure = ""
        self._fetching: asyncio.Task[None] | None = None

    async def token(self) -> str:
        """A token that is not over. Raises Unavailable."""
        if time.monotonic() >= self._fetch_at:
            if self._fetching is None or self._fetching.done():
                self._fetching = asyncio.create_task(self._fetch())
            # Others wait for it too, and it is of use to the next who asks when this one runs out of time.
            await asyncio.shield(self._fetching)
        if self.seconds_left <= 0:
            raise Unavailable(f"no token for {self._audience}: {self._failure}", reason=self._reason)
        return self._token

    def forget(self, token: str) -> None:
        """Give up a token that was refused; of many who were refused with the same one, the first is heard."""
        if token == self._token:
            self._token = ""
            self._fetch_at = self._ends_at = -math.inf

    @property
    def seconds_left(self) -> float:
        """How long the token that is at hand can be used; none is at hand where this is not above 0."""
        return self._ends_at - time.monotonic()

    async def _fetch(self) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                status, content = await self._ask()
            self._token, life_seconds = _told(status, content)
        except TimeoutError:
            self._failure = f"the token server did not answer within {self._timeout_seconds:g} s"
        except _NoTokenError as error:
            self._failure = f"the token server answers {error}"
        except Exception as error:  # noqa: BLE001  # whatever the URL leads to, who asks must be told that it failed
            self._failure = f"the token server can't be reached: {type(error).__name__}"
        else:
            self._ends_at = began + life_seconds
            self._fetch_at = began + life_seconds * _LIFE_USED
            return
        self._fetch_at = time.monotonic() + _AGAIN_SECONDS

    async def _ask(self) -> tuple[int, bytes]:
        async with (
            httpx2.AsyncClient(timeout=self._timeout_seconds, follow_redirects=False) as client,
            client.stream("POST", self._url, data=self._form, auth=self._client) as answer,
        ):
            content = bytearray()
            async for part in answer.aiter_bytes():
                content += part
                if len(content) > _ANSWER_BYTES_MAX:
                    raise _NoTokenError("at too great length")
        return answer.status_code, bytes(content)


class _NoTokenError(Exception):
    """An answer without a token that can be used."""


def _told(status: int, content: bytes) -> tuple[str, float]:
    """The token in an answer (RFC 6749, 5.1), and its life in seconds. Raises _NoTokenError, which quotes no token."""
    try:
        told: Any = json.loads(content)
    except ValueError:
        told = None
    members: dict[str, Any] = told if isinstance(told, dict) else {}
    if status != httpx2.codes.OK:
        code = str(members.get("error", ""))
        raise _NoTokenError(f"{status} ({code})" if _ERROR_CODE.fullmatch(code) else str(status))
    token = members.get("access_token")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise _NoTokenError("without a token")
    try:
        life_seconds = float(members.get("expires_in") or _LIFE_SECONDS_DEFAULT)
    except (TypeError, ValueError):
        life_seconds = math.nan
    if not math.isfinite(life_seconds):
        life_seconds = _LIFE_SECONDS_DEFAULT
    if life_seconds <= 0:
        raise _NoTokenError("with a token that is over")
    return token, life_seconds
