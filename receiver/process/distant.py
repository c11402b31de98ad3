"""Operations through the operations port of the process that serves a directory and has it locked."""

import ssl
from collections.abc import Collection, Sequence
from typing import Any

import httpx2

from receiver.core.errors import Unavailable
from receiver.core.notification import Notification
from receiver.qod.telling import sent

#: Far less than an operations port accepts at once.
_LEARNED_AT_ONCE = 32
_ANSWER_SECONDS_MAX = 60
#: Operations ports are not served over TLS, and reading the system's certificates takes a while: a session's first
#: notification could arrive before what is learned of it.
_TRUST = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class DistantOperations:
    """`receiver.operations.Operations` is the contract. Raises Unavailable also for whatever the process refuses."""

    is_deferred = False

    def __init__(self, ops_url: str, ops_token: str) -> None:
        self._url = ops_url
        self._headers = {"authorization": f"Bearer {ops_token}"} if ops_token else {}

    async def replay(self, verdicts: Collection[str] | None = None, start: str = "beginning") -> int:
        """See the contract."""
        wanted = {"from": start, **({} if verdicts is None else {"verdicts": list(verdicts)})}
        return int((await self._ask("replay", wanted))["replayed"])

    async def learn(self, notifications: Sequence[Notification]) -> None:
        """See the contract."""
        for first in range(0, len(notifications), _LEARNED_AT_ONCE):
            some = [sent(each) for each in notifications[first : first + _LEARNED_AT_ONCE]]
            await self._ask("learn", {"notifications": some})

    async def _ask(self, path: str, wanted: object) -> Any:  # noqa: ANN401  # what JSON is
        url = f"{self._url}/{path}"
        try:
            async with httpx2.AsyncClient(headers=self._headers, timeout=_ANSWER_SECONDS_MAX, verify=_TRUST) as client:
                response = await client.post(url, json=wanted)
                told = response.json()
        except (httpx2.HTTPError, ValueError) as error:
            why = f"the process that serves this directory did not answer at {url}: {type(error).__name__}"
            raise Unavailable(why, reason="served") from error
        if response.status_code != httpx2.codes.OK:
            why = f"the process that serves this directory refused: {told.get('detail', response.status_code)}"
            raise Unavailable(why, reason="served")
        return told
