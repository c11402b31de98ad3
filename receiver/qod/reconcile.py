"""Compares the sessions of the operator's API with ours, and appends to the inbox what was never notified.

Nobody who receives waits for it: it has a client of its own, and whatever fails is tried again at the next comparison.
Every process that routes compares the sessions that it decides on.

A status is news only once it has been so for a while: a notification may be on its way. So an end that was never
notified is told within `api.reconcile_seconds` and `api.grace_seconds` of it, and the time that the API takes.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from receiver.errors import ReceiverError
from receiver.event import QosStatus
from receiver.facts import Facts
from receiver.inbox import Inbox
from receiver.notification import RECONCILE, Notification
from receiver.qod.client import QodClient
from receiver.qod.difference import Difference, differences, may_be_gone
from receiver.qod.model import ApiSession
from receiver.qod.telling import notification
from receiver.session import Session
from receiver.telemetry import Telemetry

#: Sessions that are not among the API's are asked for one by one, so many at a time, and the rest next time.
_ASKED_MAX = 1_000
_ASKED_AT_ONCE = 8
#: So many are appended together.
_APPENDED_AT_ONCE = 256
#: Where there are more differences, the rest is told later.
_FOUND_MAX = 100_000
#: What was told is a difference until it is routed, which may take long; should nothing come of it, it is told again.
_TOLD_AGAIN_SECONDS = 300.0
_PAUSE_SECONDS_MIN = 0.2


_Key = tuple[str, QosStatus, bool]


class Ours(Protocol):
    """The sessions that this process decides on."""

    async def sessions_of(self, sender: str, session_ids: Collection[str]) -> Sequence[Session]:
        """Those of a sender that are not UNAVAILABLE, and those with these ids. Raises Unavailable."""
        ...

    def owns(self, session_id: str) -> bool:
        """Whether a session is among those that it decides on, remembered or not."""
        ...


class Reconciler:
    """The API's sessions beside ours."""

    def __init__(self, client: QodClient, ours: Ours, sender: str, facts: Callable[[ApiSession], Facts]) -> None:
        self._client = client
        self._ours = ours
        self._sender = sender
        self._facts = facts

    async def compare(self) -> list[Difference]:
        """Where ours are behind the API's. Raises ReceiverError where the API can't be asked."""
        asked_micros = time.time_ns() // 1000
        listed = {each.session_id: each for each in await self._client.list() if self._ours.owns(each.session_id)}
        mine = {each.session_id: each for each in await self._ours.sessions_of(self._sender, listed.keys())}
        missing = [key for key, each in mine.items() if key not in listed and may_be_gone(each)]
        # Those first whose end was told for the earliest time.
        missing.sort(key=lambda key: mine[key].facts.expires_micros or 0)
        theirs: Mapping[str, ApiSession | None] = {**listed, **await self._ask(missing[:_ASKED_MAX])}
        return differences(theirs, mine, asked_micros, self._facts)

    def notifications(self, found: Sequence[Difference]) -> list[Notification]:
        """What is to be appended for them."""
        now_micros = time.time_ns() // 1000
        return [notification(each.telling, RECONCILE, self._sender, now_micros) for each in found]

    async def _ask(self, session_ids: Sequence[str]) -> Mapping[str, ApiSession | None]:
        """What the API says of sessions that are not on its list, but for those of which it says nothing now."""
        found: dict[str, ApiSession | None] = {}
        waiting = iter(session_ids)

        async def ask_some() -> None:
            with contextlib.suppress(ReceiverError):  # then the list will tell what is wrong, and these come next time
                for session_id in waiting:
                    found[session_id] = await self._client.get(session_id)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(_ASKED_AT_ONCE, len(session_ids))):
                tasks.create_task(ask_some())
        return found


async def append(inbox: Inbox, notifications: Sequence[Notification]) -> None:
    """Append a few at a time. Raises Unavailable."""
    for first in range(0, len(notifications), _APPENDED_AT_ONCE):
        await asyncio.gather(*map(inbox.append, notifications[first : first + _APPENDED_AT_ONCE]))


class Schedule:
    """Compares again and again, and tells what has been a difference for long enough."""

    def __init__(
        self,
        reconciler: Reconciler,
        inbox: Inbox,
        telemetry: Telemetry,
        *,
        interval_seconds: float,
        grace_seconds: float,
    ) -> None:
        self.trouble = ""
        self._reconciler = reconciler
        self._inbox = inbox
        self._telemetry = telemetry
        self._interval_seconds = interval_seconds
        self._grace_seconds = grace_seconds
        self._seen: dict[_Key, float] = {}
        self._told: dict[_Key, float] = {}

    async def run(self) -> None:
        """Compare for ever."""
        while True:
            try:
                ripe = self._ripe(await self._reconciler.compare(), time.monotonic())
                await append(self._inbox, self._reconciler.notifications(ripe))
                self._told |= dict.fromkeys(map(_key, ripe), time.monotonic())
            except Exception as error:  # noqa: BLE001  # nothing that the API answers may end what receives
                self.trouble = _why(error)
                self._telemetry.reconcile_failed(self.trouble, error)
            else:
                self.trouble = ""
                news = sum(each.is_news for each in ripe)
                self._telemetry.reconciled(news, len(ripe) - news)
            pause_seconds = min(self._interval_seconds, self._grace_seconds) if self._seen else self._interval_seconds
            await asyncio.sleep(max(pause_seconds, _PAUSE_SECONDS_MIN))

    def _ripe(self, found: Sequence[Difference], now: float) -> list[Difference]:
        """What is to be told now. All that is a difference is remembered, and so is what of it was told already."""
        found = found[:_FOUND_MAX]
        keys = list(map(_key, found))
        self._told = {
            key: self._told[key] for key in keys if now - self._told.get(key, -math.inf) < _TOLD_AGAIN_SECONDS
        }
        self._seen = {key: self._seen.get(key, now) for key in keys if key not in self._told}
        return [
            each
            for key, each in zip(keys, found, strict=True)
            if key in self._seen and (not each.is_news or now - self._seen[key] >= self._grace_seconds)
        ]


def _key(difference: Difference) -> _Key:
    return difference.telling.session_id, difference.telling.qos_status, difference.is_news


def _why(error: Exception) -> str:
    return error.message if isinstance(error, ReceiverError) else f"the comparison failed: {type(error).__name__}"
