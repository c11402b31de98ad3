"""How long to wait before something that failed is tried again: one rule for all of it, from tenacity.

Full jitter: each wait is a random part of a limit that doubles from attempt to attempt, so that many that failed
together don't come back in step.
"""

from tenacity import AsyncRetrying, RetryCallState, wait_random_exponential


def full_jitter(seconds_first: float, seconds_max: float) -> wait_random_exponential:
    """The rule, for tenacity's loops: the first wait at most `seconds_first` long, and none longer than the other."""
    return wait_random_exponential(multiplier=seconds_first, max=seconds_max)


class Backoff:
    """The waits of a loop of its own."""

    def __init__(self, seconds_first: float, seconds_max: float) -> None:
        self._wait = full_jitter(seconds_first, seconds_max)
        self._state = RetryCallState(AsyncRetrying(), None, (), {})

    def seconds(self) -> float:
        """How long to wait now; the next wait may be longer."""
        seconds = self._wait(self._state)
        self._state.attempt_number += 1
        return seconds

    def reset(self) -> None:
        """Begin anew, for it succeeded."""
        self._state.attempt_number = 1
