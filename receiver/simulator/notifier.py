"""Posts the network's changes to the sessions' receivers: a few at a time, each within a time limit.

**Order.** While the original post of a session is on its way, the next one of that session waits, so that a sender
without faults never overtakes itself. Copies, retries and held posts do not wait: that is what makes them faults.

**Limits.** The posts in flight and the waiting posts are limited; posts beyond are recorded as not sent. A 410 ends a
session's feed for good (QualityOnDemand r1.2, Generic410). Redirects are answers like any other.
"""

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlsplit
from uuid import UUID, uuid5

import httpx2
import structlog

from receiver.simulator import dialects, faults
from receiver.simulator.faults import Attempt, Copy, Sender, Telling
from receiver.simulator.ledger import Entry, Ledger, Told
from receiver.simulator.sessions import Session
from receiver.simulator.timers import Timers

#: Far more than the answer to a notification has. The rest is not read, and the connection is not reused.
_ANSWER_BYTES_MAX = 65_536
_PIECES = 8
_SUCCESSES = range(200, 300)
#: Digits of a Retry-After, far beyond the longest wait that is obeyed.
_DIGITS_MAX = 7

_log = structlog.get_logger("receiver")


class NotifierLimits(NamedTuple):
    """The limits of all sessions' posts together."""

    in_flight_max: int = 32
    waiting_max: int = 100_000
    post_timeout_seconds: float = 10


@dataclass(eq=False, slots=True)
class Feed:
    """Where and how one session's changes are told, and the posts that wait for their turn.

    `source` is the session's URL. `gone` says that the receiver wants no more posts. `held` maps each post that waits
    for its successor to the function that cancels its timer.
    """

    url: str
    token: str | None
    source: str
    sender: Sender
    gone: bool = False
    busy: bool = False
    behind: "deque[_Delivery]" = field(default_factory=deque)
    held: "dict[_Delivery, Callable[[], None]]" = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class _Change:
    """A change that is told, and what its copies share."""

    session: Session
    feed: Feed
    happened_micros: int
    telling: Telling
    first_sequence: int | None = None


@dataclass(eq=False, slots=True)
class _Delivery:
    """A copy on its way."""

    change: _Change
    copy: Copy
    event_number: int
    attempts: int = 0

    @property
    def feed(self) -> Feed:
        return self.change.feed

    @property
    def keeps_order(self) -> bool:
        """Whether it waits for its session's post in flight, and is not overtaken."""
        return self.copy.number == 0 and self.attempts == 0 and not self.change.telling.is_held


class Notifier:
    """Makes all posts of a simulator."""

    def __init__(
        self,
        client: httpx2.AsyncClient,
        ledger: Ledger,
        timers: Timers,
        limits: NotifierLimits,
        speed: float,
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._timers = timers
        self._limits = limits
        self._speed = speed
        self._ready: deque[_Delivery] = deque()
        self._burst: list[_Delivery] = []
        self._posting: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self._in_flight = 0
        self._closed = False

    @property
    def waiting(self) -> int:
        """Posts still to be made, as far as is known, without those in flight."""
        return self._waiting

    @property
    def in_flight(self) -> int:
        """Posts in flight."""
        return self._in_flight

    def tell(self, session: Session, feed: Feed, happened_micros: int) -> None:
        """Tell a session's new state, as the plan says."""
        telling = faults.telling(feed.sender, session.step, session.status, session.status_info)
        change = _Change(session, feed, happened_micros, telling)
        if telling.unsent:
            self._ledger.unsent(_unsent(change, 0, telling.unsent))
            return
        for copy in telling.copies:
            if self._waiting >= self._limits.waiting_max:
                self._ledger.unsent(_unsent(change, copy.number, "queue"))
                continue
            self._waiting += 1
            delivery = _Delivery(change, copy, copy.number if copy.has_new_id else 0)
            if copy.delay_seconds:
                self._timers.after(copy.delay_seconds / self._speed, partial(self._due, delivery))
            else:
                self._due(delivery)

    async def close(self) -> None:
        """End the posts in flight, and make no more."""
        self._closed = True
        for task in self._posting:
            task.cancel()
        await asyncio.gather(*self._posting, return_exceptions=True)

    def _due(self, delivery: _Delivery) -> None:
        """A copy is due: by its faults it waits for its successor or for a burst, else it is ready."""
        telling, feed = delivery.change.telling, delivery.feed
        if telling.is_held and delivery.copy.number == 0:
            seconds = feed.sender.plan.reorder_seconds_max / self._speed
            feed.held[delivery] = self._timers.after(seconds, partial(self._release, delivery))
        elif telling.is_in_burst:
            if not self._burst:
                self._timers.after(feed.sender.plan.burst_every_seconds / self._speed, self._burst_out)
            self._burst.append(delivery)
        else:
            self._make_ready(delivery)

    def _release(self, delivery: _Delivery) -> None:
        """Post a held copy whose successor did not come in time."""
        del delivery.feed.held[delivery]
        self._make_ready(delivery)

    def _burst_out(self) -> None:
        self._ready.extend(self._burst)
        self._burst = []
        self._pump()

    def _make_ready(self, delivery: _Delivery) -> None:
        self._ready.append(delivery)
        self._pump()

    def _pump(self) -> None:
        """Start posts, up to the limit of those in flight."""
        while self._ready and self._in_flight < self._limits.in_flight_max and not self._closed:
            delivery = self._ready.popleft()
            if delivery.keeps_order and delivery.feed.busy:
                delivery.feed.behind.append(delivery)
                continue
            self._waiting -= 1
            if delivery.feed.gone:
                self._ledger.unsent(_unsent(delivery.change, delivery.copy.number, "gone"))
                continue
            self._in_flight += 1
            task = asyncio.create_task(self._post(delivery))
            self._posting.add(task)
            task.add_done_callback(self._posting.discard)
            delivery.feed.busy = delivery.feed.busy or delivery.keeps_order

    async def _post(self, delivery: _Delivery) -> None:
        """Make one attempt; then release the posts that waited for it, and schedule a retry if there is one."""
        keeps_order, feed = delivery.keeps_order, delivery.feed
        retry_seconds = None
        try:
            retry_seconds = await self._attempt(delivery)
        finally:
            self._in_flight -= 1
            if keeps_order:
                feed.busy = False
                self._ready.extendleft(reversed(feed.behind))
                feed.behind.clear()
            overtaken = [each for each in feed.held if each.change.session.step < delivery.change.session.step]
            for each in overtaken:
                feed.held.pop(each)()
                self._ready.append(each)
            if retry_seconds is not None:
                self._waiting += 1
                self._timers.after(retry_seconds, partial(self._make_ready, delivery))
            self._pump()

    async def _attempt(self, delivery: _Delivery) -> float | None:
        """Make one attempt and record it. Returns the wait before a retry in seconds, None for no retry."""
        change, feed = delivery.change, delivery.feed
        delivery.attempts += 1
        attempt = faults.attempt(feed.sender, change.session.step, delivery.copy.number, delivery.attempts)
        if attempt.has_new_id:
            delivery.event_number = -delivery.attempts  # unlike any copy's
        told, headers, body = _rendered(delivery, attempt)
        entry = self._ledger.posting(told, time.time_ns() // 1_000)
        if change.first_sequence is None:
            change.first_sequence = entry.sequence
        if feed.sender.release.has_correlator:
            headers["x-correlator"] = entry.correlator
        answer, failure, retry_after_seconds = None, None, 0.0
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._limits.post_timeout_seconds + attempt.slow_seconds):
                answer, retry_after_seconds = await self._send(_url(feed), headers, body, attempt)
        except _HungUp:
            pass
        except TimeoutError:
            failure = "timeout"
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            failure = _failure(error)
        except asyncio.CancelledError:
            failure = "stopped"
            raise
        finally:
            self._ledger.posted(entry, answer, failure, time.perf_counter() - began)
            _log_post(entry)
        if answer == HTTPStatus.GONE:
            feed.gone = True
            return None
        unheard = answer is None or attempt.is_answer_ignored
        if not unheard and (answer in _SUCCESSES or answer not in feed.sender.plan.retry_statuses):
            return None
        return faults.retry_seconds(feed.sender, delivery.attempts, 0.0 if unheard else retry_after_seconds)

    async def _send(self, url: str, headers: dict[str, str], body: bytes, attempt: Attempt) -> tuple[int, float]:
        """The answer's status, and its Retry-After in seconds. Raises _HungUp if the plan ends the connection early."""
        pieces = _pieces(body, attempt)
        headers = {**headers, "content-length": str(len(body))}
        request = self._client.build_request("POST", url, headers=headers, content=pieces)
        response = await self._client.send(request, stream=True)
        read = 0
        async with aclosing(response):
            async for piece in response.aiter_raw():
                read += len(piece)
                if read > _ANSWER_BYTES_MAX:
                    break
        return response.status_code, _retry_after_seconds(response.headers.get("retry-after", ""))


class _HungUp(Exception):
    """The sender ends the connection, as the plan says."""


async def _pieces(body: bytes, attempt: Attempt) -> AsyncIterator[bytes]:
    """The body in the pieces in which it is sent. Raises _HungUp where the plan ends the connection."""
    end = len(body) // 2 if attempt.breaks == "dropped" else len(body)
    size = max(1, -(-end // _PIECES)) if attempt.slow_seconds else max(1, end)
    for start in range(0, end, size):
        if attempt.slow_seconds:
            await asyncio.sleep(attempt.slow_seconds / _PIECES)
        yield body[start : min(start + size, end)]
    if attempt.breaks:
        raise _HungUp


def _url(feed: Feed) -> str:
    """The URL that a release posts to: 0.8 appends to the path."""
    if not feed.sender.release.path_suffix:
        return feed.url
    url = urlsplit(feed.url)
    return url._replace(path=url.path.removesuffix("/") + feed.sender.release.path_suffix).geturl()


def _event_id(change: _Change, number: int) -> str:
    """An id that no other event has, in this run or another: a receiver remembers events of earlier runs."""
    return str(uuid5(UUID(change.session.session_id), f"{change.session.step}/{number}"))


def _rendered(delivery: _Delivery, attempt: Attempt) -> tuple[Told, dict[str, str], bytes]:
    """The ledger's content for an attempt, and the attempt's headers and body."""
    change, feed, copy, telling = delivery.change, delivery.feed, delivery.copy, delivery.change.telling
    session = change.session
    fact = dialects.Fact(
        _event_id(change, delivery.event_number),
        feed.source,
        session.session_id,
        session.status,
        telling.status_info,
        change.happened_micros + round(telling.skew_seconds * 1e6),
    )
    told = dialects.told(feed.sender.release, fact, telling.oddity)
    headers = {**told.headers}
    token = {"right": feed.token, "wrong": f"not-{session.session_id}", "none": None}[copy.authorization]
    if token is not None:
        headers["authorization"] = dialects.authorization(token, telling.oddity)
    body = dialects.MALFORMATIONS[copy.malformation](told.body) if copy.malformation else told.body
    line = Told(
        session=session.number,
        session_id=session.session_id,
        step=session.step,
        copy=copy.number,
        attempt=delivery.attempts,
        release=feed.sender.release.name,
        event_id=told.event_id,
        event_type=feed.sender.release.event_type,
        qos_status=session.status,
        status_info=told.status_info,
        time=told.time,
        happened_micros=change.happened_micros,
        repeats=change.first_sequence,
        sent="cut off" if attempt.breaks == "dropped" and body else "whole",
        unsent=None,
        malformed=copy.malformation or None,
        authorization="none" if token is None else copy.authorization,
        odd=telling.oddity or None,
        faults=[*telling.faults, *copy.faults, *attempt.faults],
        body_sha256=hashlib.sha256(body).hexdigest(),
    )
    return line, headers, body


def _unsent(change: _Change, copy: int, why: str) -> Told:
    """The ledger's content for a post that is not made."""
    session = change.session
    return Told(
        session=session.number,
        session_id=session.session_id,
        step=session.step,
        copy=copy,
        attempt=0,
        release=change.feed.sender.release.name,
        event_id=None,
        event_type=change.feed.sender.release.event_type,
        qos_status=session.status,
        status_info=change.telling.status_info,
        time=None,
        happened_micros=change.happened_micros,
        repeats=change.first_sequence,
        sent="nothing",
        unsent=why,
        malformed=None,
        authorization=None,
        odd=None,
        faults=list(change.telling.faults),
        body_sha256=None,
    )


def _retry_after_seconds(value: str) -> float:
    """The seconds of Retry-After; 0 if it is missing, invalid or a date."""
    return float(value) if value.isascii() and value.isdecimal() and len(value) < _DIGITS_MAX else 0.0


_FAILURES = (
    (httpx2.TimeoutException, "timeout"),
    (httpx2.ConnectError, "no connection"),
    (httpx2.RemoteProtocolError, "no answer"),
    (httpx2.NetworkError, "connection broken"),
)


def _failure(error: Exception) -> str:
    """Why there is no answer, without quoting the URL."""
    return next((words for kind, words in _FAILURES if isinstance(error, kind)), "not posted")


def _log_post(entry: Entry) -> None:
    told = entry.told
    _log.info(
        "posted",
        sequence=entry.sequence,
        session=told.session,
        session_id=told.session_id,
        release=told.release,
        qos_status=told.qos_status,
        status_info=told.status_info,
        attempt=told.attempt,
        faults=",".join(told.faults),
        answer=entry.answer,
        failure=entry.failure,
        duration_seconds=entry.seconds,
    )
