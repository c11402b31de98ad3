"""Where a connection stands: what is being read, which answers are due, and how long that may take. Pure.

    (event, now) → what is to be done

`connection.py` tells the events, and does what is to be done. Nothing is read or written here.

The phase tells what is being read; the table below has every step from one to another, and a step that it lacks is a
mistake. `due` counts the requests that are here as a whole and wait for their answer. Answers come in the order of the
requests. Three rules stand beside the table:

    ANSWERED   makes one less due. Where none was, it is the answer to the request whose body is still being read.
    OVER       with nothing due is CLOSING: an answer that is due is always given first.
    TELL       a refusal only where nothing is due: its sender would take it for the answer to an earlier request.

There is one deadline at a time: for the next request to begin, for its head, or for its body. While a request that is
here is being answered there is none, unless the peer does not read what is written.
"""

from enum import IntEnum, IntFlag
from typing import NamedTuple


class Phase(IntEnum):
    """What is being read."""

    SILENT = 0  # nothing has come yet
    IDLE = 1  # between two requests
    HEAD = 2
    BODY = 3
    EXPECTED = 4  # a body that its sender holds back until it is asked for (Expect: 100-continue)
    LAST = 5  # a body behind which nothing more is read
    REST = 6  # of a body whose request was answered
    OVER = 7  # nothing more; answers are due
    CLOSING = 8  # nothing more; what was written is to be taken


class Event(IntEnum):
    """What happens to a connection."""

    BEGIN = 0  # a request begins
    HEAD_READ = 1
    HEAD_READ_EXPECTING = 2  # its sender holds the body back
    READ = 3  # the body has ended
    WHOLE = 4  # a request came in one piece
    ANSWERED = 5
    REFUSED = 6  # what is being read
    PEER_ENDED = 7  # the peer says nothing more
    SHUTDOWN = 8  # this server is about to end
    EXPIRED = 9  # the deadline has passed, or another connection needs the room
    CLOSED = 10  # it was closed behind an answer that said so


class Act(IntFlag):
    """What is to be done."""

    NOTHING = 0
    TELL = 1  # the refusal
    DROP = 2  # forget the request whose body was being read, where it waits behind others
    CLOSE = 4  # once all that was written was taken
    ABORT = 8  # at once


class Timeouts(NamedTuple):
    """How long a connection may take, in seconds."""

    header_seconds: float = 10
    body_seconds: float = 10
    idle_seconds: float = 75


_NEVER = float("inf")
#: A name is found ten times as fast as an enum's member.
_S, _I, _H, _B, _E, _L, _R, _O, _C = Phase
_BEGIN, _HEAD, _HEAD_EXPECTING, _READ, _WHOLE, _ANSWERED, _REFUSED, _PEER_ENDED, _SHUTDOWN, _EXPIRED, _CLOSED = Event
_NOTHING, _TELL, _DROP, _CLOSE, _ABORT = Act.NOTHING, Act.TELL, Act.DROP, Act.CLOSE, Act.ABORT

#: The phase that follows, how many more answers are due, and what is to be done.
_STEPS: dict[tuple[Phase, Event], tuple[Phase, int, Act]] = {
    (_S, _BEGIN): (_H, 0, _NOTHING),
    (_I, _BEGIN): (_H, 0, _NOTHING),
    (_H, _BEGIN): (_H, 0, _NOTHING),  # read again without its Upgrade
    (_H, _HEAD): (_B, 0, _NOTHING),
    (_H, _HEAD_EXPECTING): (_E, 0, _NOTHING),
    (_B, _READ): (_I, 1, _NOTHING),
    (_E, _READ): (_I, 1, _NOTHING),
    (_L, _READ): (_O, 1, _NOTHING),
    (_R, _READ): (_I, 0, _NOTHING),
    (_S, _WHOLE): (_I, 1, _NOTHING),
    (_I, _WHOLE): (_I, 1, _NOTHING),
    (_H, _WHOLE): (_I, 1, _NOTHING),
    # Of a request whose body is not here. One that was answered in place of 100 Continue may or may not be followed by
    # its body, so what comes next has two readings.
    (_B, _ANSWERED): (_R, 0, _NOTHING),
    (_E, _ANSWERED): (_O, 0, _NOTHING),
    (_L, _ANSWERED): (_O, 0, _NOTHING),
    (_S, _REFUSED): (_O, 0, _TELL),
    (_I, _REFUSED): (_O, 0, _TELL),
    (_H, _REFUSED): (_O, 0, _TELL),
    (_B, _REFUSED): (_O, 0, _TELL | _DROP),
    (_E, _REFUSED): (_O, 0, _TELL | _DROP),
    (_L, _REFUSED): (_O, 0, _TELL | _DROP),
    (_R, _REFUSED): (_O, 0, _NOTHING),
    (_S, _PEER_ENDED): (_O, 0, _NOTHING),
    (_I, _PEER_ENDED): (_O, 0, _NOTHING),
    (_H, _PEER_ENDED): (_O, 0, _NOTHING),
    (_B, _PEER_ENDED): (_O, 0, _DROP),
    (_E, _PEER_ENDED): (_O, 0, _DROP),
    (_L, _PEER_ENDED): (_O, 0, _DROP),
    (_R, _PEER_ENDED): (_O, 0, _NOTHING),
    (_O, _PEER_ENDED): (_O, 0, _NOTHING),
    (_S, _SHUTDOWN): (_O, 0, _NOTHING),
    (_I, _SHUTDOWN): (_O, 0, _NOTHING),
    (_H, _SHUTDOWN): (_O, 0, _NOTHING),
    (_B, _SHUTDOWN): (_L, 0, _NOTHING),
    (_E, _SHUTDOWN): (_L, 0, _NOTHING),
    (_L, _SHUTDOWN): (_L, 0, _NOTHING),
    (_R, _SHUTDOWN): (_O, 0, _NOTHING),
    (_O, _SHUTDOWN): (_O, 0, _NOTHING),
    (_S, _EXPIRED): (_C, 0, _CLOSE),
    (_I, _EXPIRED): (_C, 0, _CLOSE),
    (_O, _EXPIRED): (_C, 0, _CLOSE),
    (_C, _EXPIRED): (_C, 0, _ABORT),
    **{(phase, _CLOSED): (_C, 0, _NOTHING) for phase in Phase},
    **{(_C, event): (_C, 0, _NOTHING) for event in Event if event is not _EXPIRED},
}

#: Between two phases of one kind the time goes on, unless it is none of receiving.
_WAITS = (0, 0, 1, 2, 2, 2, 2, 0, 0)


class Conversation:
    """What is said on one connection. `since` is when it began to wait for what it waits for, `deadline` how long it
    may; `now` is in seconds, by any clock that runs steadily.
    """

    __slots__ = ("_is_blocked", "_limits", "deadline", "due", "phase", "since")

    def __init__(self, timeouts: Timeouts, now: float) -> None:
        header, body, idle = timeouts
        # By phase. A connection that says nothing at all is no sender's that keeps it for the next time.
        self._limits = (min(header, idle), idle, header, body, body, body, body, idle, idle)
        self._is_blocked = False
        self.phase = _S
        self.due = 0
        self.since = self.deadline = now
        self._wait(now)

    def handle(self, event: Event, now: float) -> Act:
        """Take a step. Raises KeyError for one that there is not."""
        before = self.phase
        if event is _ANSWERED and self.due:
            phase, more_due, act = before, -1, _NOTHING
        else:
            phase, more_due, act = _STEPS[before, event]
        self.due += more_due
        if event is _CLOSED:
            self.due = 0
        if self.due:
            if act:
                act &= ~_TELL
        elif phase is _O:
            phase, act = _C, act | _CLOSE
        if event is _EXPIRED and self._is_blocked:
            act = _ABORT  # what was written will not be taken
        self.phase = phase
        if not _WAITS[phase] or _WAITS[phase] != _WAITS[before]:
            self._wait(now)
        return act

    def block(self, *, is_blocked: bool, now: float) -> None:
        """The peer does not read what is written; or it reads again."""
        self._is_blocked = is_blocked
        if not self.is_receiving:
            self._wait(now)

    def stand_still(self, seconds: float) -> None:
        """Nothing was read for so long, which is no fault of the peer's."""
        self.deadline += seconds

    @property
    def is_receiving(self) -> bool:
        """Whether a request has begun and is not here as a whole."""
        return _H <= self.phase <= _R

    @property
    def is_ending(self) -> bool:
        """Whether nothing more is read."""
        return self.phase >= _O

    def _wait(self, now: float) -> None:
        phase = self.phase
        self.since = now
        in_use = self.due and not self._is_blocked and (phase is _I or phase is _O)
        self.deadline = _NEVER if in_use else now + self._limits[phase]
