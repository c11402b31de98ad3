"""Chance from a seed, independent of the order of the draws. Pure.

A draw is a hash of the seed and of its purpose. So two runs with one seed decide alike for each session, whatever their
timing, and a fault that is added to the plan changes none of the others.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")

_BITS = 53  # the bits of a float's fraction
_BYTES = 8


class Chance(NamedTuple):
    """Draws for one purpose. The same name always gives the same draw."""

    path: str

    def of(self, *parts: object) -> "Chance":
        """The chance of a part, such as a session or a step in it."""
        return Chance("/".join((self.path, *map(str, parts))))

    def unit(self, name: str) -> float:
        """A number of at least 0 and less than 1."""
        digest = hashlib.blake2b(f"{self.path}/{name}".encode(), digest_size=_BYTES).digest()
        return (int.from_bytes(digest, "big") >> (8 * _BYTES - _BITS)) / float(1 << _BITS)

    def happens(self, name: str, probability: float) -> bool:
        """Whether it happens: never for 0, always for 1."""
        return self.unit(name) < probability

    def between(self, name: str, low: float, high: float) -> float:
        """A number from `low` to `high`."""
        return low + (high - low) * self.unit(f"{name} between")

    def choice(self, name: str, options: Sequence[T]) -> T:
        """One of the options."""
        return options[int(self.unit(f"{name} choice") * len(options))]


def seeded(seed: int) -> Chance:
    """All decisions of a seed."""
    return Chance(str(seed))
