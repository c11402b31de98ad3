"""Tokens for SASL OAUTHBEARER, by OAuth 2 client credentials (RFC 6749, 4.4)."""

import asyncio
import time

import httpx2
from aiokafka.abc import AbstractTokenProvider

from receiver.errors import Unavailable

_TIMEOUT_SECONDS = 10.0
#: A token is fetched anew when so much of its life is over.
_LIFE_USED = 0.8
_LIFE_SECONDS_DEFAULT = 300.0


class ClientCredentials(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    """Fetches tokens and keeps each for most of its life, however many connections log in with it."""

    def __init__(self, url: str, client_id: str, client_secret: str, scope: str | None) -> None:
        self._url = url
        self._form = {"grant_type": "client_credentials"} | ({"scope": scope} if scope else {})
        self._client = client_id, client_secret
        self._token = ""
        self._until = 0.0
        self._lock = asyncio.Lock()

    async def token(self) -> str:
        """See aiokafka. Raises Unavailable."""
        async with self._lock:
            if time.monotonic() >= self._until:
                await self._fetch()
            return self._token

    async def _fetch(self) -> None:
        try:
            async with httpx2.AsyncClient(timeout=_TIMEOUT_SECONDS) as client:
                answer = await client.post(self._url, data=self._form, auth=self._client)
                answer.raise_for_status()
                told = answer.json()
            self._token = str(told["access_token"])
            life_seconds = float(told.get("expires_in", _LIFE_SECONDS_DEFAULT))
        except (httpx2.HTTPError, KeyError, TypeError, ValueError) as error:
            raise Unavailable(f"no token for Kafka: {type(error).__name__}", reason="kafka") from error
        self._until = time.monotonic() + life_seconds * _LIFE_USED
