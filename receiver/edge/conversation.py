"""The state of a connection: what is being read, which answers are due, and how long that may take. Pure.

    (event, now) → acts

`connection.py` reports the events, and carries out the acts. Nothing is read or written here.

The phase says what is being read. The table below has every step between phases; a step that it lacks is a programming
error. `due` counts the complete requests that wait for their answers. Answers come in the order of the requests. Three
rules are not in the table:

    ANSWERED   reduces `due` by one. If `due` is 0, it is the answer to the request whose body is still being read.
    OVER       with nothing due becomes CLOSING: an answer that is due is always given first.
    TELL       happens only if nothing is due: else the sender would take the refusal for an earlier request's answer.

There is one deadline at a time: for the next request to begin, for its head, or for its body. While a complete request
is being answered there is no deadline, unless the peer does not read what is written.
"""

from enum import IntEnum, IntFlag
from typing import NamedTuple


class Phase(IntEnum):
    """What is being read on a connection."""

    SILENT = 0  # nothing has arrived yet
    IDLE = 1  # between two requests
    HEAD = 2
    BODY = 3
    EXPECTED = 4  # a body that the sender holds back until asked (Expect: 100-continue)
    LAST = 5  # the last body to be read
    REST = 6  # the rest of a body whose request was answered
    OVER = 7  # nothing; answers are due
    CLOSING = 8  # nothing; the peer is to read what was written


class Event(IntEnum):
    """An event on a connection."""

    BEGIN = 0  # a request begins
    HEAD_READ = 1
    HEAD_READ_EXPECTING = 2  # the sender holds the body back
    READ = 3  # the body has ended
    WHOLE = 4  # a whole request arrived in one piece
    ANSWERED = 5
    REFUSED = 6  # the request being read was refused
    PEER_ENDED = 7  # the peer sends nothing more
    SHUTDOWN = 8  # this server is about to end
    EXPIRED = 9  # the deadline has passed, or another connection needs the room
    CLOSED = 10  # closed after an answer with "connection: close"


class Act(IntFlag):
    """The acts that follow a step."""

    NOTHING = 0
    TELL = 1  # send the refusal
    DROP = 2  # forget the unfinished request if it waits behind others
    CLOSE = 4  # close once the peer took all that was written
    ABORT = 8  # close at once


class Timeouts(NamedTuple):
    """How long a connection may take, in seconds."""

    header_seconds: float = 10
    body_seconds: float = 10
    idle_seconds: float = 75


_NEVER = float("inf")
#: Looking up a name is ten times as fast as looking up an enum's member.
_S, _I, _H, _B, _E, _L, _R, _O, _C = Phase
_BEGIN, _HEAD, _HEAD_EXPECTING, _READ, _WHOLE, _ANSWERED, _REFUSED, _PEER_ENDED, _SHUTDOWN, _EXPIRED, _CLOSED = Event
_NOTHING, _TELL, _DROP, _CLOSE, _ABORT = Act.NOTHING, Act.TELL, Act.DROP, Act.CLOSE, Act.ABORT

#: The next phase, the change of `due`, and the acts.
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
    # Answers to a request whose body is incomplete. After a final answer in place of 100 Continue the body may or may
    # not follow, so the next bytes would be ambiguous: nothing more is read.
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

#: Kinds of wait, by phase. The deadline goes on between phases of one kind, except kind 0, which always restarts it.
_WAITS = (0, 0, 1, 2, 2, 2, 2, 0, 0)


class Conversation:
    """The state of one connection. `since` is when the present wait began, `deadline` when it ends. `now` is in
    seconds, by any monotonic clock.
    """

    __slots__ = ("_is_blocked", "_limits", "deadline", "due", "phase", "since")

    def __init__(self, timeouts: Timeouts, now: float) -> None:
        header, body, idle = timeouts
        # By phase. A connection that never sent anything is not one that a sender keeps for later.
        self._limits = (min(header, idle), idle, header, body, body, body, body, idle, idle)
        self._is_blocked = False
        self.phase = _S
        self.due = 0
        self.since = self.deadline = now
        self._wait(now)

    def handle(self, event: Event, now: float) -> Act:
        """Take a step. Raises KeyError for a step that the table lacks."""
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
            act = _ABORT  # the peer will not read what was written
        self.phase = phase
        if not _WAITS[phase] or _WAITS[phase] != _WAITS[before]:
            self._wait(now)
        return act

    def block(self, *, is_blocked: bool, now: float) -> None:
        """The peer stopped reading what is written, or reads again."""
        self._is_blocked = is_blocked
        if not self.is_receiving:
            self._wait(now)

    def stand_still(self, seconds: float) -> None:
        """Extend the deadline: nothing was read for this long, through no fault of the peer's."""
        self.deadline += seconds

    @property
    def is_receiving(self) -> bool:
        """Whether a request has begun and is not complete."""
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
