"""Room for connections: which one goes where there are too many. Pure.

Those go that wait for nothing of ours: first those on which no sender has had a right token yet, and of these the ones
that have been idle for longest. Strangers so take room from each other. A connection with an answer that is due stays.
"""

from collections.abc import Set as AbstractSet
from heapq import nsmallest
from typing import Protocol

#: A search finds up to this many victims: under an attack each new connection wants one, and a search costs time.
_FOUND_MAX = 64


class Guest(Protocol):
    """A connection."""

    proved: bool

    @property
    def since(self) -> float:
        """When it began to wait."""
        ...

    def is_awaited(self) -> bool:
        """Whether an answer is due on it."""
        ...

    def is_ending(self) -> bool:
        """Whether it makes room already."""
        ...

    def make_room(self) -> None:
        """End it."""
        ...


class Room:
    """The connections of one server, by address."""

    def __init__(self) -> None:
        self._by_address: dict[str, set[Guest]] = {}
        self._found: dict[str, list[tuple[bool, float, Guest]]] = {}

    def enter(self, address: str, guest: Guest) -> AbstractSet[Guest]:
        """A connection was made; returns all of its address."""
        neighbours = self._by_address.setdefault(address, set())
        neighbours.add(guest)
        return neighbours

    def leave(self, address: str, guest: Guest) -> None:
        """A connection was lost."""
        neighbours = self._by_address.get(address)
        if neighbours is not None:
            neighbours.discard(guest)
            if not neighbours:
                del self._by_address[address]
                self._found.pop(address, None)

    def victim(self, key: str, guests: AbstractSet[Guest], newcomer: Guest) -> Guest | None:
        """The one of `guests` that makes room for a newcomer, None where all are needed. `key` is theirs."""
        found = self._found.get(key)
        for anew in (False, True):
            if anew:
                some = ((each.proved, each.since, each) for each in guests if _may_go(each) and each is not newcomer)
                found = self._found[key] = nsmallest(_FOUND_MAX, some, key=lambda each: each[:2])[::-1]
            while found:
                proved, since, guest = found.pop()
                if (guest.proved, guest.since) == (proved, since) and guest in guests and _may_go(guest):
                    return guest
        return None


def _may_go(guest: Guest) -> bool:
    return not guest.is_ending() and not guest.is_awaited()
