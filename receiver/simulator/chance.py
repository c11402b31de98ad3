"""Chance from a seed that does not depend on who asks first. Pure.

A draw is a hash of the seed and of what it is for. So two runs with one seed decide alike for each session, whatever
their timing, and a fault that is added to the plan changes nothing in what the others do.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")

_BITS = 53  # those of a float's fraction
_BYTES = 8


class Chance(NamedTuple):
    """Draws for one purpose. The same name always draws the same."""

    path: str

    def of(self, *parts: object) -> "Chance":
        """The chance of a part of this, such as a session or a step in it."""
        return Chance("/".join((self.path, *map(str, parts))))

    def unit(self, name: str) -> float:
        """At least 0, less than 1."""
        digest = hashlib.blake2b(f"{self.path}/{name}".encode(), digest_size=_BYTES).digest()
        return (int.from_bytes(digest, "big") >> (8 * _BYTES - _BITS)) / float(1 << _BITS)

    def happens(self, name: str, probability: float) -> bool:
        """Whether it happens: never at 0, always at 1."""
        return self.unit(name) < probability

    def between(self, name: str, low: float, high: float) -> float:
        """At least `low`, at most `high`."""
        return low + (high - low) * self.unit(f"{name} between")

    def choice(self, name: str, options: Sequence[T]) -> T:
        """One of the options."""
        return options[int(self.unit(f"{name} choice") * len(options))]


def seeded(seed: int) -> Chance:
    """All that a seed decides."""
    return Chance(str(seed))
