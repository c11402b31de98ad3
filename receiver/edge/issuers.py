"""The keys of authorization servers, fetched and kept (RFC 7517).

Keys are fetched when a token needs one that is not at hand, and again when they are old; at most once in
`refresh_min_seconds`, by one request at a time. While an issuer does not answer, its last keys stay in use.
"""

import asyncio
import math
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, NamedTuple

import httpx2
import jwt
import structlog

from receiver.core.errors import Unavailable
from receiver.edge.auth import Credentials, KeysWanted, authenticate
from receiver.shown import shown_url

_ANSWER_BYTES_MAX = 1024 * 1024
#: The most requests that wait for an issuer's keys. Anybody can make such requests, and their bodies are in memory
#: while they wait.
_WAITING_MAX = 512

_log = structlog.get_logger("receiver")


class KeySource(NamedTuple):
    """The URL of an issuer's keys, and how often to fetch them."""

    url: str
    refresh_min_seconds: float
    refresh_max_seconds: float
    timeout_seconds: float


class Authenticator:
    """Authenticates senders, and fetches issuers' keys when needed."""

    def __init__(self, credentials: Credentials, sources: Mapping[str, KeySource]) -> None:
        self._credentials = credentials
        self._sources = sources
        self._tried = dict.fromkeys(sources, float("-inf"))
        self._fetched = dict.fromkeys(sources, float("-inf"))
        self._locks = {issuer: asyncio.Lock() for issuer in sources}
        self._waiting = 0

    def __call__(self, authorization: bytes | None, *others: bytes) -> str | Coroutine[Any, Any, str]:
        """The name of the sender with this value of Authorization, or with a token in another header's value; at once
        if the keys are at hand.

        Raises Refused; and Unavailable, when awaited or if too many requests wait already.
        """
        try:
            return authenticate(authorization, self._credentials, time.time(), others=others)
        except KeysWanted as wanted:
            issuer = wanted.issuer
        if self._waiting >= _WAITING_MAX:
            raise self._keys_away(issuer)
        return self._with_keys_of(issuer, authorization, others)

    async def _with_keys_of(self, issuer: str, authorization: bytes | None, others: Sequence[bytes]) -> str:
        self._waiting += 1
        try:
            current = await self._refresh(issuer)
        finally:
            self._waiting -= 1
        try:
            return authenticate(authorization, self._credentials, time.time(), others=others, keys_current=current)
        except KeysWanted:
            raise self._keys_away(issuer) from None

    def _keys_away(self, issuer: str) -> Unavailable:
        message = "the keys of the token's issuer can't be fetched now"
        retry_after_seconds = math.ceil(self._sources[issuer].refresh_min_seconds)
        return Unavailable(message, reason="keys", retry_after_seconds=retry_after_seconds)

    async def keep_fresh(self) -> None:
        """Fetch old keys again, for ever."""
        while True:
            for issuer, source in self._sources.items():
                if time.monotonic() - self._fetched[issuer] > source.refresh_max_seconds:
                    await self._refresh(issuer)
            await asyncio.sleep(1)

    async def _refresh(self, issuer: str) -> bool:
        """Fetch the keys, unless that was just tried. Returns whether the keys are newer than this call's start."""
        source, began = self._sources[issuer], time.monotonic()
        async with self._locks[issuer]:
            now = time.monotonic()
            if now - self._tried[issuer] < source.refresh_min_seconds:
                return self._fetched[issuer] >= began
            try:
                async with asyncio.timeout(source.timeout_seconds):
                    keys = await _fetch(source.url, source.timeout_seconds)
            except Exception as error:  # noqa: BLE001  # after any failure the last keys stay in use
                _log.warning("keys_not_fetched", issuer=shown_url(issuer), error=type(error).__name__)
                return False
            finally:
                # Counted from the end of the attempt, so that those who waited for it don't try in turn.
                self._tried[issuer] = time.monotonic()
            self._fetched[issuer] = now
            self._credentials.replace_keys(issuer, keys)
            return True


async def _fetch(url: str, timeout_seconds: float) -> dict[str, object]:
    async with (
        httpx2.AsyncClient(timeout=timeout_seconds, follow_redirects=False) as client,
        client.stream("GET", url) as answer,
    ):
        answer.raise_for_status()
        content = bytearray()
        async for part in answer.aiter_bytes():
            content += part
            if len(content) > _ANSWER_BYTES_MAX:
                raise ValueError("the keys are too long")
    key_set = jwt.PyJWKSet.from_json(content.decode())
    keys: dict[str, object] = {
        key.key_id or f"(nameless {number})": key.key
        for number, key in enumerate(key_set.keys)
        if key.public_key_use in (None, "sig")
    }
    if not keys:
        raise ValueError("there is no signing key")
    return keys
