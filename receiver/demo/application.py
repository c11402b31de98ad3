"""The user's application in the demonstration: it creates sessions at the simulator, and deletes some of them.

Also the simulator's plan: two hours of a network, with faults everywhere, in a few seconds.
"""

import asyncio
import heapq
import itertools
import random
import ssl
import time
from http import HTTPStatus
from typing import NamedTuple

import httpx2

from receiver.simulator.dialects import RELEASES
from receiver.simulator.plan import Plan
from receiver.simulator.server import DEMO, Options

#: The network's time that is played, whatever the real duration.
_PLAYED_SECONDS = 7_200.0
#: Parts of it: sessions are created within the first; each is granted after the second, and lasts at most the third.
_ASKING, _GRANTING, _LASTING = 0.6, 0.03, 0.22
_LASTING_MIN = 0.1
#: The longest delay of a post. A repetition waits at most as long, and a burst comes every half of it.
_DELAY = 0.07
#: When a session is deleted, counted from its creation, and with which probability.
_DELETED = 0.1
_DELETED_PROBABILITY = 0.2

_TOKEN_SECONDS = 7_200
#: Nothing here is served over TLS, and reading the system's certificates takes a while.
TRUST = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

#: Waits for retries and slow bodies are in real time, and short: the shortest demonstration takes three seconds.
PLAN = Plan(
    refused=0.08,
    terminated=0.3,
    only_ends=0.05,
    clock_skewed=0.1,
    without_reason=0.1,
    lost=0.04,
    repeated_same_id=0.15,
    repeated_new_id=0.15,
    repeat_after_seconds_max=_PLAYED_SECONDS * _DELAY,
    delayed=0.25,
    delay_seconds_max=_PLAYED_SECONDS * _DELAY,
    reordered=0.15,
    reorder_seconds_max=_PLAYED_SECONDS * (_LASTING + _DELAY),
    burst=0.1,
    burst_every_seconds=_PLAYED_SECONDS * _DELAY / 2,
    odd=0.25,
    malformed=0.06,
    wrong_token=0.06,
    no_token=0.02,
    slow_body=0.05,
    slow_body_seconds=0.3,
    dropped=0.05,
    hung_up=0.04,
    answer_ignored=0.06,
    retry=("fixed", "exponential", "none"),
    retry_attempts_max=3,
    retry_seconds=0.2,
    retry_seconds_max=0.4,
    retry_new_id=0.5,
)


class Receiver(NamedTuple):
    """The receiver's URL for notifications, and the token that the sender presents there."""

    url: str
    token: str


def options(seconds: float, seed: int) -> Options:
    """A simulator whose sessions live, and are notified, within `seconds`; they take all releases in turn."""
    return Options(
        plan=PLAN,
        seed=seed,
        speed=_PLAYED_SECONDS / seconds,
        releases=list(RELEASES.values()),
        available_after_seconds=_PLAYED_SECONDS * _GRANTING,
        token_seconds=_TOKEN_SECONDS,
        trust=TRUST,
    )


class Application:
    """A client of the simulator's API."""

    def __init__(self, client: httpx2.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url
        self._sessions_url = f"{url}/v1/qod/sessions"

    async def play(self, receiver: Receiver, sessions: int, seconds: float, seed: int) -> None:
        """Create `sessions` sessions, spread over the first part of `seconds`, and delete some of them."""
        headers = {"authorization": f"Bearer {await self._access_token()}"}
        chance = random.Random(seed)  # noqa: S311  # not a secret
        began = time.monotonic()
        interval_seconds = seconds * _ASKING / sessions
        # Actions by time: numbers of sessions to create, and ids of sessions to delete.
        waiting: list[tuple[float, int, str]] = [(interval_seconds * n, n, "") for n in range(sessions)]
        order = itertools.count(sessions)
        while waiting:
            at, number, session_id = heapq.heappop(waiting)
            await asyncio.sleep(max(0, began + at - time.monotonic()))
            if session_id:
                await self._delete(session_id, headers)
                continue
            lasting = chance.uniform(_LASTING_MIN, _LASTING)
            session_id = await self._create(number, round(_PLAYED_SECONDS * lasting), receiver, headers)
            if chance.random() < _DELETED_PROBABILITY:
                deleted_at = time.monotonic() - began + seconds * _DELETED
                heapq.heappush(waiting, (deleted_at, next(order), session_id))

    async def _access_token(self) -> str:
        form = {"grant_type": "client_credentials"}
        answer = await self._client.post(f"{self._url}/token", data=form, auth=(DEMO.client_id, DEMO.secret))
        answer.raise_for_status()
        return str(answer.json()["access_token"])

    async def _create(self, number: int, duration: int, receiver: Receiver, headers: dict[str, str]) -> str:
        wanted = {
            "device": {"phoneNumber": f"+34600{number:06d}"},
            "qosProfile": "QOS_E",
            "duration": duration,
            "notificationUrl": receiver.url,
            "notificationAuthToken": receiver.token,
        }
        answer = await self._client.post(self._sessions_url, json=wanted, headers=headers)
        answer.raise_for_status()
        return str(answer.json()["sessionId"])

    async def _delete(self, session_id: str, headers: dict[str, str]) -> None:
        answer = await self._client.delete(f"{self._sessions_url}/{session_id}", headers=headers)
        if answer.status_code != HTTPStatus.NOT_FOUND:  # it has ended by itself
            answer.raise_for_status()
