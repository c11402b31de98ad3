"""The right verdicts: the design's table, implemented as simply as possible, and sharing no code with the program.

The oracle keeps every event that it took into account and looks through all of them each time.
"""

from typing import NamedTuple

from receiver.core.event import Event

#: The largest difference between two machines' clocks, in microseconds.
CLOCKS_DIFFER = 10_000_000
ACCEPTED, DUPLICATE, UNCHANGED, LATE, CONFLICT = "accepted", "duplicate", "unchanged", "late", "conflict"


class Heard(NamedTuple):
    """An event that was taken into account, and its time in µs."""

    event: Event
    micros: int

    @property
    def content(self) -> tuple[object, ...]:
        """The part of an event that is equal in events of the same content."""
        event = self.event
        return event.session_id, event.type, event.time_micros, event.qos_status, event.status_info

    @property
    def change(self) -> tuple[object, ...]:
        """The part of an event that stays when a sender posts it again, possibly with another time."""
        return self.event.type, self.event.qos_status, self.event.status_info

    @property
    def rank(self) -> int:
        """The rank of an event's status on the way from REQUESTED to the end."""
        if self.event.qos_status == "REQUESTED":
            return 0
        return 2 if self.event.status_info else 1


class Oracle:
    """One session, which remembers its last `memory_max` events. `resumes`: its sender may resume it after its end."""

    def __init__(self, memory_max: int, *, resumes: bool = False) -> None:
        self.memory_max = memory_max
        self.resumes = resumes
        self.sender = ""
        self.heard: list[Heard] = []
        self.changes: list[Heard] = []
        self.told_at = 0
        self.granted_late: tuple[int, float] | None = None
        self.touched_at = 0

    @property
    def remembered(self) -> list[Heard]:
        """The events by which a repetition is recognized."""
        return self.heard[-self.memory_max :]

    @property
    def forgotten(self) -> list[Heard]:
        """The events before these."""
        return self.heard[: -self.memory_max]

    @property
    def now(self) -> Heard:
        """The change that made the session's present state."""
        return self.changes[-1]

    def hear(self, event: Event, sender: str, received_at: int, clock: int) -> str:  # noqa: PLR0911  # one for each row
        """The verdict on an event."""
        heard = Heard(event, self._arrived(event, received_at) if event.time_micros is None else event.time_micros)
        if not self.heard:
            self.sender = sender
            return self._change(heard, clock)
        if sender != self.sender:
            return CONFLICT
        if any(self._is_repetition(known, heard) for known in self.remembered):
            return DUPLICATE
        statuses = {event.qos_status, self.now.event.qos_status}
        rank = self.now.rank if self.resumes and statuses == {"AVAILABLE", "UNAVAILABLE"} else heard.rank
        if rank <= self.now.rank and any(heard.micros <= known.micros for known in self.forgotten):
            return CONFLICT
        if (event.qos_status, event.status_info) == (self.now.event.qos_status, self.now.event.status_info):
            self._remember(heard, clock)
            self.told_at = max(self.told_at, heard.micros)
            return UNCHANGED
        if rank < self.now.rank or (rank == self.now.rank and heard.micros < self.told_at):
            self._remember(heard, clock)
            self._grant(heard)
            return LATE
        return self._change(heard, clock)

    def _arrived(self, event: Event, received_at: int) -> int:
        """The time of an event without one: its receipt, but for an end not before what it ends, within two clocks'
        difference.
        """
        is_end = self.heard and event.qos_status == "UNAVAILABLE" and self.told_at - received_at <= CLOCKS_DIFFER
        return max(received_at, self.told_at) if is_end else received_at

    @staticmethod
    def _is_repetition(known: Heard, heard: Heard) -> bool:
        if known.content == heard.content:
            return True
        one, other = known.event, heard.event
        return one.id is not None and (one.source, one.id) == (other.source, other.id) and known.change == heard.change

    def availability(self) -> tuple[int | None, float | None]:
        """When the session last became available, in µs, and for how many seconds it was.

        Accepted events count. If none of them was AVAILABLE, the first late AVAILABLE counts.
        """
        for at in reversed(range(len(self.changes))):
            begin = self.changes[at]
            if begin.event.qos_status == "AVAILABLE":
                if begin is self.now:
                    return begin.micros, None
                return begin.micros, max(0, self.changes[at + 1].micros - begin.micros) / 1_000_000
        return self.granted_late or (None, None)

    def _grant(self, late: Heard) -> None:
        """Let a late AVAILABLE grant availability, if no event did yet and an end came after it."""
        if late.event.qos_status != "AVAILABLE" or late.event.time_micros is None:
            return
        ends = [each.micros for each in self.heard if each.event.qos_status == "UNAVAILABLE"]
        after = [micros for micros in ends if micros >= late.micros]
        if self.availability() == (None, None) and after:
            self.granted_late = late.micros, (min(after) - late.micros) / 1_000_000

    def _remember(self, heard: Heard, clock: int) -> None:
        self.heard.append(heard)
        self.touched_at = clock

    def _change(self, heard: Heard, clock: int) -> str:
        self._remember(heard, clock)
        self.changes.append(heard)
        self.told_at = heard.micros
        return ACCEPTED
