"""Limits on what is taken in at a time: requests and bytes in flight, and each sender's rate. Pure.

What is refused here was not read, so a flood costs no more than its headers. It is 429 with Retry-After: CAMARA has no
503 for listeners, and a sender that repeats at all repeats after either.
"""

from collections import OrderedDict
from http import HTTPStatus
from math import ceil

from receiver.errors import Refused

#: Buckets of senders that were seen longest ago are forgotten, which lets them have their burst again.
_BUCKETS_MAX = 10_000


class Admission:
    """Counts what is in flight. Each `enter` that returns must be followed by a `leave` with the same bytes.

    `rate_per_second` is what one sender may post in the long run (0: no limit), `rate_burst` what it may post at once.
    """

    def __init__(
        self, *, in_flight_max: int, in_flight_bytes_max: int, rate_per_second: float = 0, rate_burst: int = 1
    ) -> None:
        self._in_flight_max = in_flight_max
        self._in_flight_bytes_max = in_flight_bytes_max
        self._rate_per_second = rate_per_second
        self._rate_burst = rate_burst
        self._in_flight = 0
        self._in_flight_bytes = 0
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left of the burst, and when

    def enter(self, sender: str, body_bytes: int, now: float) -> None:
        """Let a request in, `body_bytes` being the most that it may bring. `now` is in seconds. Raises Refused."""
        if self._in_flight >= self._in_flight_max or self._in_flight_bytes + body_bytes > self._in_flight_bytes_max:
            raise _too_many("too many requests at a time", 1)
        if self._rate_per_second:
            self._take_from_bucket(sender, now)
        self._in_flight += 1
        self._in_flight_bytes += body_bytes

    def leave(self, body_bytes: int) -> None:
        """A request is done."""
        self._in_flight -= 1
        self._in_flight_bytes -= body_bytes

    def _take_from_bucket(self, sender: str, now: float) -> None:
        left, since = self._buckets.pop(sender, (float(self._rate_burst), now))
        left = min(self._rate_burst, left + (now - since) * self._rate_per_second)
        # Put back at the end: the first is always the one seen longest ago.
        self._buckets[sender] = left - 1 if left >= 1 else left, now
        if len(self._buckets) > _BUCKETS_MAX:
            self._buckets.popitem(last=False)
        if left < 1:
            raise _too_many("too many requests from this sender", ceil((1 - left) / self._rate_per_second))


def _too_many(message: str, retry_after_seconds: int) -> Refused:
    return Refused(
        HTTPStatus.TOO_MANY_REQUESTS,
        "TOO_MANY_REQUESTS",
        message,
        reason="throttled",
        retry_after_seconds=retry_after_seconds,
    )
