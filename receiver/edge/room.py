"""Room for connections: which one is ended if there are too many. Pure.

Only connections that wait for nothing of ours are ended: first those without a valid token so far, the longest idle one
first. So strangers take room from each other. A connection with an answer due stays.
"""

from collections.abc import Set as AbstractSet
from heapq import nsmallest
from typing import Protocol

#: A search finds up to this many victims: under an attack every new connection needs one, and a search takes time.
_FOUND_MAX = 64


class Guest(Protocol):
    """A connection."""

    proved: bool

    @property
    def since(self) -> float:
        """When its present wait began."""
        ...

    def is_awaited(self) -> bool:
        """Whether an answer is due on the connection."""
        ...

    def is_ending(self) -> bool:
        """Whether the connection is ending already."""
        ...

    def make_room(self) -> None:
        """End the connection."""
        ...


class Room:
    """The connections of one server, by address."""

    def __init__(self) -> None:
        self._by_address: dict[str, set[Guest]] = {}
        self._found: dict[str, list[tuple[bool, float, Guest]]] = {}

    def enter(self, address: str, guest: Guest) -> AbstractSet[Guest]:
        """A connection was made; returns all connections of its address."""
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
        """The connection to end for a newcomer, None if all must stay. `key` is the address of `guests`, "" for all."""
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
