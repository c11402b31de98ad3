"""Compares the sessions of the operator's API with ours, and appends to the inbox what was never notified.

Receiving does not wait for it: it has a client of its own, and any failure is retried at the next comparison. Every
process that routes compares the sessions that it decides on.

A status is news only once it has lasted for a while, since its notification may be on its way. So the end of a session
that the API had listed, if never notified, is told within `api.reconcile_seconds` plus `api.grace_seconds`, plus the
time that the API takes.
"""

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Protocol, TypeVar

from receiver.core.errors import ReceiverError, Unavailable
from receiver.core.event import QosStatus, canonical
from receiver.core.facts import Facts
from receiver.core.notification import RECONCILE, Notification
from receiver.core.session import Session
from receiver.inbox import Inbox, append_all
from receiver.qod.client import QodClient
from receiver.qod.difference import Difference, differences, may_be_gone
from receiver.qod.model import ApiSession, Listing
from receiver.qod.telling import notification, planned_end
from receiver.telemetry import Telemetry

#: Sessions that are not on the API's list are asked for one by one: at most this many in a comparison.
_ASKED_MAX = 1_000
_ASKED_AT_ONCE = 8
_ASKED_SECONDS_MAX = 60.0
#: If at least this many sessions, and more than half of all, are gone early, the API or our client id is wrong.
_MASS_MIN = 20
#: Sessions compared before other tasks get a turn: a millisecond's work.
_SLICE = 25
#: If there are more differences, the rest is told later.
_FOUND_MAX = 100_000
#: A difference that was told remains one until it is routed, which may take long. After this time it is told again.
_TOLD_AGAIN_SECONDS = 300.0
_PAUSE_SECONDS_MIN = 0.2
#: The longest Retry-After of the API that is respected.
_LEFT_ALONE_SECONDS_MAX = 900


T = TypeVar("T")

_Key = tuple[str, QosStatus, bool]


class Ours(Protocol):
    """The sessions that this process decides on."""

    async def sessions_of(self, sender: str, session_ids: Collection[str]) -> Sequence[Session]:
        """The sessions of a sender that are not UNAVAILABLE, and those with these ids. Raises Unavailable."""
        ...

    def owns(self, session_id: str) -> bool:
        """Whether this process decides on a session, remembered or not."""
        ...


class Reconciler:
    """Compares the API's sessions with ours."""

    def __init__(self, client: QodClient, ours: Ours, sender: str, facts: Callable[[ApiSession], Facts]) -> None:
        self._client = client
        self._ours = ours
        self._sender = sender
        self._facts = facts
        #: Since when unfinished sessions have been missing from the API's list, by a monotonic clock.
        self.missing: Mapping[str, float] = {}
        #: Whether some missing sessions were not yet asked for.
        self.waits = False
        #: The API's sessions that could not be read, and the missing ones that it did not answer for.
        self.unread_count = self.unanswered_count = 0
        #: What the last comparison skipped, in words; empty if nothing.
        self.complaint = ""

    async def compare(self, missing_seconds_min: float = 0.0) -> list[Difference]:
        """The sessions in which ours are behind the API's. Raises ReceiverError if the API can't be asked.

        Sessions that are missing from its list are asked for one by one, which costs 30 times as much as comparing. So
        they are asked for only once they have been missing for `missing_seconds_min`, over several comparisons.
        """
        asked_micros, listed = time.time_ns() // 1000, dict[str, ApiSession]()
        listing = await self._client.list()
        unread = {canonical(each.session_id) for each in listing.unread if each.session_id}  # they exist all the same
        for some in batched(listing.sessions, _SLICE):
            named = ((canonical(each.session_id), each) for each in some)
            listed |= {session_id: each for session_id, each in named if self._ours.owns(session_id)}
            await asyncio.sleep(0)
        mine, missing = dict[str, Session](), dict[str, float]()
        now = time.monotonic()
        for own in batched(await self._ours.sessions_of(self._sender, listed.keys()), _SLICE):
            mine |= {each.session_id: each for each in own}
            unlisted = (each for each in own if each.session_id not in listed and each.session_id not in unread)
            gone = [each.session_id for each in unlisted if may_be_gone(each)]
            missing |= {each: self.missing.get(each, now) for each in gone}
            await asyncio.sleep(0)
        self.missing = missing
        due = [each for each, since in missing.items() if now - since >= missing_seconds_min]
        self.waits = len(due) < len(missing)
        # Chosen at random, so that none waits for ever behind others.
        asked, refusals = await self._ask(random.sample(due, min(len(due), _ASKED_MAX)))
        self._complain(listing, refusals)
        self._doubt_mass_end(asked, len(due), mine, asked_micros)
        found: list[Difference] = []
        for each in batched(chain(listed.items(), asked.items()), _SLICE):
            found += differences(dict(each), mine, asked_micros, self._facts)
            await asyncio.sleep(0)
        return sorted(found, key=lambda each: not each.is_news)

    def notifications(self, found: Sequence[Difference]) -> Iterator[Notification]:
        """The notifications to append for the differences."""
        for each in found:
            yield notification(each.telling, RECONCILE, self._sender, time.time_ns() // 1000)

    async def _ask(self, session_ids: Sequence[str]) -> tuple[Mapping[str, ApiSession | None], Sequence[ReceiverError]]:
        """The API's answers about sessions that are not on its list (None: unknown to it), and the errors of others."""
        found: dict[str, ApiSession | None] = {}
        refusals: list[ReceiverError] = []
        waiting = iter(session_ids)

        async def ask_some() -> None:
            for session_id in waiting:
                try:
                    found[session_id] = await self._client.get(session_id)
                except ReceiverError as error:
                    refusals.append(error)  # this proves nothing about the session

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ASKED_SECONDS_MAX), asyncio.TaskGroup() as tasks:
                for _ in range(min(_ASKED_AT_ONCE, len(session_ids))):
                    tasks.create_task(ask_some())
        return found, refusals

    def _complain(self, listing: Listing, refusals: Sequence[ReceiverError]) -> None:
        """Note what was skipped."""
        self.unread_count, self.unanswered_count = len(listing.unread), len(refusals)
        words = [listing.complaint()] if listing.unread else []
        if refusals:
            what = f"{len(refusals)} session{'s' * (len(refusals) > 1)} that its list lacks"
            words.append(f"the QoD API does not answer for {what}: {refusals[0].message}")
        self.complaint = "; ".join(words)

    def _doubt_mass_end(
        self, asked: Mapping[str, ApiSession | None], due_count: int, mine: Mapping[str, Session], now: int
    ) -> None:
        """Raise Unavailable if the API suddenly knows hardly any of our sessions: the sessions are not at fault then.

        The sessions that were asked for are a random sample of all that are due, so their share stands for all.
        """
        early = [key for key, each in asked.items() if each is None and (planned_end(mine[key]) or now + 1) > now]
        live = sum(may_be_gone(each) for each in mine.values())
        gone_count = round(len(early) * due_count / max(len(asked), 1))
        if len(early) >= _MASS_MIN and 2 * gone_count > live:
            about = "" if gone_count == len(early) else "about "
            what = f"{about}{gone_count} of our {live} sessions, before their time"
            raise Unavailable(f"the QoD API no longer knows {what}: is api.client_id the right one?", reason="api")


def batched(items: Iterable[T], count: int) -> Iterator[Sequence[T]]:
    """The items, `count` at a time."""
    waiting = iter(items)
    while some := list(islice(waiting, count)):
        yield some


class Schedule:
    """Compares repeatedly, and tells the differences that have lasted long enough.

    `behind` returns why notifications may not be routed now, in words for an operator; nothing is compared then.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        inbox: Inbox,
        telemetry: Telemetry,
        *,
        interval_seconds: float,
        grace_seconds: float,
        behind: Callable[[], str] = lambda: "",
    ) -> None:
        self.trouble = ""
        self._behind = behind
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
                ripe = await self._compare()
            except Exception as error:  # noqa: BLE001  # no answer of the API may end the receiver
                self.trouble = _why(error)
                self._telemetry.reconcile_failed(self.trouble, error)
                wanted_seconds = error.retry_after_seconds or 0 if isinstance(error, ReceiverError) else 0
            else:
                self.trouble, wanted_seconds = self._reconciler.complaint, 0
                news = sum(each.is_news for each in ripe)
                self._telemetry.reconciled(news, len(ripe) - news)
                if self.trouble:
                    counts = self._reconciler.unread_count, self._reconciler.unanswered_count
                    self._telemetry.reconciled_in_part(*counts, self.trouble)
            waits = self._seen or self._reconciler.waits
            pause_seconds = min(self._interval_seconds, self._grace_seconds) if waits else self._interval_seconds
            left_alone_seconds = min(wanted_seconds, _LEFT_ALONE_SECONDS_MAX)
            await asyncio.sleep(max(pause_seconds, left_alone_seconds, _PAUSE_SECONDS_MIN))

    async def _compare(self) -> Sequence[Difference]:
        """Compare once, and append what is due; returns the differences that were told."""
        if why := self._behind():
            raise Unavailable(f"not compared now: {why}", reason="behind")
        ripe = self._ripe(await self._reconciler.compare(self._grace_seconds), time.monotonic())
        await append_all(self._inbox, self._reconciler.notifications(ripe))
        self._told |= dict.fromkeys(map(_key, ripe), time.monotonic())
        return ripe

    def _ripe(self, found: Sequence[Difference], now: float) -> list[Difference]:
        """The differences that are due now. Remembers all differences, and which of them were told already."""
        found = found[:_FOUND_MAX]
        keys = list(map(_key, found))
        self._told = {
            key: self._told[key] for key in keys if now - self._told.get(key, -math.inf) < _TOLD_AGAIN_SECONDS
        }
        missing = self._reconciler.missing
        self._seen = {key: self._seen.get(key, missing.get(key[0], now)) for key in keys if key not in self._told}
        return [
            each
            for key, each in zip(keys, found, strict=True)
            if key in self._seen and (not each.is_news or now - self._seen[key] >= self._grace_seconds)
        ]


def _key(difference: Difference) -> _Key:
    return difference.telling.session_id, difference.telling.qos_status, difference.is_news


def _why(error: Exception) -> str:
    return error.message if isinstance(error, ReceiverError) else f"the comparison failed: {type(error).__name__}"
