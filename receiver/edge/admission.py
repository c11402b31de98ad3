"""Limits on requests and bytes in flight, and on each sender's rate. Pure.

Bytes count as they arrive, so a sender that only announces a body takes up nothing. No sender has more than half of
what may be in flight, and each has a share of its own that is always available. So greedy senders, stalled or busy,
keep no other sender out, however many they are. The total is bounded by the limit and a share for each active sender.

A request that is refused here is 429 with Retry-After: CAMARA has no 503 for listeners, and senders that retry at all
retry after either.
"""

from collections import OrderedDict
from http import HTTPStatus
from math import ceil

from receiver.core.errors import Refused

#: The buckets of the senders seen longest ago are forgotten, so those senders get a full burst again.
_BUCKETS_MAX = 10_000


class Admission:
    """Counts what is in flight. Each `enter` that returns must be followed by a `leave`, which gives back the bytes of
    `enter` and of each `grow` that returned.

    `share` and `share_bytes` are what each sender may always have in flight. `rate_per_second` is the rate at which one
    sender may post in the long run (0: no limit), `rate_burst` the number it may post at once.
    """

    def __init__(
        self,
        *,
        in_flight_max: int,
        in_flight_bytes_max: int,
        share: int = 1,
        share_bytes: int = 0,
        rate_per_second: float = 0,
        rate_burst: int = 1,
    ) -> None:
        self._in_flight_max = in_flight_max
        self._in_flight_bytes_max = in_flight_bytes_max
        self._half = in_flight_max // 2
        self._half_bytes = in_flight_bytes_max // 2
        self._share = share
        self._share_bytes = share_bytes
        self._rate_per_second = rate_per_second
        self._rate_burst = rate_burst
        self._in_flight = 0
        self._in_flight_bytes = 0
        self._loads: dict[str, _Load] = {}  # of senders with something in flight
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # the rest of the burst, and when that was

    @property
    def in_flight(self) -> tuple[int, int]:
        """The requests and the bytes that are in flight."""
        return self._in_flight, self._in_flight_bytes

    def enter(self, sender: str, body_bytes: int, now: float) -> None:
        """Admit a request; `body_bytes` of its body have arrived. `now` is in seconds. Raises Refused."""
        load = self._loads.get(sender) or _Load()
        mine = load.requests + 1
        if mine > self._share and (mine > self._half or self._in_flight >= self._in_flight_max):
            raise _too_many("too many requests at a time", 1)
        if not self._holds(load, body_bytes):
            raise _too_many("too many bytes at a time", 1)
        if self._rate_per_second:
            self._take_from_bucket(sender, now)
        self._loads[sender] = load
        load.requests += 1
        load.body_bytes += body_bytes
        self._in_flight += 1
        self._in_flight_bytes += body_bytes

    def grow(self, sender: str, body_bytes: int) -> None:
        """Count more bytes that arrived for an admitted request. Raises Refused; the bytes then do not count."""
        load = self._loads[sender]
        if not self._holds(load, body_bytes):
            raise _too_many("too many bytes at a time", 1)
        load.body_bytes += body_bytes
        self._in_flight_bytes += body_bytes

    def leave(self, sender: str, body_bytes: int) -> None:
        """An admitted request is done; `body_bytes` is its total."""
        load = self._loads[sender]
        load.requests -= 1
        load.body_bytes -= body_bytes
        if not load.requests:
            del self._loads[sender]
        self._in_flight -= 1
        self._in_flight_bytes -= body_bytes

    def _holds(self, load: "_Load", body_bytes: int) -> bool:
        """Whether there is room for `body_bytes` more from a sender."""
        mine, everybodys = load.body_bytes + body_bytes, self._in_flight_bytes + body_bytes
        within = mine <= self._half_bytes and everybodys <= self._in_flight_bytes_max
        return within or mine <= self._share_bytes or not body_bytes

    def _take_from_bucket(self, sender: str, now: float) -> None:
        left, since = self._buckets.pop(sender, (float(self._rate_burst), now))
        left = min(self._rate_burst, left + (now - since) * self._rate_per_second)
        # Put back at the end, so that the first is always the one seen longest ago.
        self._buckets[sender] = left - 1 if left >= 1 else left, now
        if len(self._buckets) > _BUCKETS_MAX:
            self._buckets.popitem(last=False)
        if left < 1:
            raise _too_many("too many requests from this sender", ceil((1 - left) / self._rate_per_second))


class _Load:
    """What one sender has in flight."""

    __slots__ = ("body_bytes", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.body_bytes = 0


def _too_many(message: str, retry_after_seconds: int) -> Refused:
    return Refused(
        HTTPStatus.TOO_MANY_REQUESTS,
        "TOO_MANY_REQUESTS",
        message,
        reason="throttled",
        retry_after_seconds=retry_after_seconds,
    )
