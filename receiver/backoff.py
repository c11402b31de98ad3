"""How long to wait before a retry: one rule for the whole program, from tenacity.

Full jitter: each wait is a random part of a limit that doubles with every attempt, so that callers that failed
together do not retry in step.
"""

from tenacity import AsyncRetrying, RetryCallState, wait_random_exponential


def full_jitter(seconds_first: float, seconds_max: float) -> wait_random_exponential:
    """The rule, for tenacity's loops: the first wait is at most `seconds_first`, every wait at most `seconds_max`."""
    return wait_random_exponential(multiplier=seconds_first, max=seconds_max)


class Backoff:
    """The same waits for a loop that is not tenacity's."""

    def __init__(self, seconds_first: float, seconds_max: float) -> None:
        self._wait = full_jitter(seconds_first, seconds_max)
        self._state = RetryCallState(AsyncRetrying(), None, (), {})

    def seconds(self) -> float:
        """The wait before the next attempt; each call doubles the limit."""
        seconds = self._wait(self._state)
        self._state.attempt_number += 1
        return seconds

    def reset(self) -> None:
        """Start again at the first limit, after a success."""
        self._state.attempt_number = 1
