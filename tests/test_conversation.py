"""A connection's phases as a table of steps, without a connection."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.edge.conversation import Act, Conversation, Event, Phase, Timeouts

BEGIN, HEAD, EXPECTING, READ, WHOLE = Event.BEGIN, Event.HEAD_READ, Event.HEAD_READ_EXPECTING, Event.READ, Event.WHOLE
ANSWERED, REFUSED, PEER_ENDED = Event.ANSWERED, Event.REFUSED, Event.PEER_ENDED
SHUTDOWN, EXPIRED, CLOSED = Event.SHUTDOWN, Event.EXPIRED, Event.CLOSED
NOTHING, TELL, DROP, CLOSE, ABORT = Act.NOTHING, Act.TELL, Act.DROP, Act.CLOSE, Act.ABORT
POST = [BEGIN, HEAD, READ]

TIMEOUTS = Timeouts(header_seconds=10, body_seconds=20, idle_seconds=60)
NEVER = float("inf")


def told(events: Sequence[Event], now: float = 100) -> tuple[Conversation, Act]:
    """A conversation after these events, all at one time, and the steps to take after the last."""
    conversation, act = Conversation(TIMEOUTS, now), NOTHING
    for event in events:
        act = conversation.handle(event, now)
    return conversation, act


@pytest.mark.parametrize(
    ("events", "phase", "due", "act", "seconds"),
    [
        # One request after the other.
        ([], Phase.SILENT, 0, NOTHING, 10),
        ([BEGIN], Phase.HEAD, 0, NOTHING, 10),
        ([BEGIN, BEGIN], Phase.HEAD, 0, NOTHING, 10),
        ([BEGIN, HEAD], Phase.BODY, 0, NOTHING, 20),
        (POST, Phase.IDLE, 1, NOTHING, NEVER),
        ([*POST, ANSWERED], Phase.IDLE, 0, NOTHING, 60),
        ([*POST, ANSWERED, *POST], Phase.IDLE, 1, NOTHING, NEVER),
        ([WHOLE], Phase.IDLE, 1, NOTHING, NEVER),
        ([BEGIN, WHOLE], Phase.IDLE, 1, NOTHING, NEVER),
        ([WHOLE, ANSWERED, WHOLE, ANSWERED], Phase.IDLE, 0, NOTHING, 60),
        # Several that wait.
        ([*POST, *POST, *POST], Phase.IDLE, 3, NOTHING, NEVER),
        ([*POST, *POST, ANSWERED], Phase.IDLE, 1, NOTHING, NEVER),
        ([*POST, BEGIN], Phase.HEAD, 1, NOTHING, 10),
        ([*POST, BEGIN, ANSWERED], Phase.HEAD, 0, NOTHING, 10),
        ([*POST, BEGIN, HEAD, ANSWERED], Phase.BODY, 0, NOTHING, 20),
        # A request that is answered before its body has arrived.
        ([BEGIN, HEAD, ANSWERED], Phase.REST, 0, NOTHING, 20),
        ([BEGIN, HEAD, ANSWERED, READ], Phase.IDLE, 0, NOTHING, 60),
        ([BEGIN, HEAD, ANSWERED, REFUSED], Phase.CLOSING, 0, CLOSE, 60),
        ([BEGIN, EXPECTING, ANSWERED], Phase.CLOSING, 0, CLOSE, 60),
        ([*POST, BEGIN, EXPECTING, ANSWERED], Phase.EXPECTED, 0, NOTHING, 20),
        ([BEGIN, EXPECTING, READ], Phase.IDLE, 1, NOTHING, NEVER),
        # Refusals.
        ([REFUSED], Phase.CLOSING, 0, TELL | CLOSE, 60),
        ([BEGIN, REFUSED], Phase.CLOSING, 0, TELL | CLOSE, 60),
        ([BEGIN, HEAD, REFUSED], Phase.CLOSING, 0, TELL | DROP | CLOSE, 60),
        ([*POST, ANSWERED, BEGIN, REFUSED], Phase.CLOSING, 0, TELL | CLOSE, 60),
        ([*POST, REFUSED], Phase.OVER, 1, NOTHING, NEVER),
        ([*POST, BEGIN, REFUSED], Phase.OVER, 1, NOTHING, NEVER),
        ([*POST, BEGIN, REFUSED, ANSWERED], Phase.CLOSING, 0, CLOSE, 60),
        ([*POST, BEGIN, HEAD, REFUSED], Phase.OVER, 1, DROP, NEVER),
        ([*POST, *POST, BEGIN, HEAD, REFUSED, ANSWERED], Phase.OVER, 1, NOTHING, NEVER),
        ([*POST, *POST, BEGIN, HEAD, REFUSED, ANSWERED, ANSWERED], Phase.CLOSING, 0, CLOSE, 60),
        # A peer that has ended its sending side.
        ([PEER_ENDED], Phase.CLOSING, 0, CLOSE, 60),
        ([BEGIN, PEER_ENDED], Phase.CLOSING, 0, CLOSE, 60),
        ([BEGIN, HEAD, PEER_ENDED], Phase.CLOSING, 0, DROP | CLOSE, 60),
        ([*POST, PEER_ENDED], Phase.OVER, 1, NOTHING, NEVER),
        ([*POST, PEER_ENDED, PEER_ENDED], Phase.OVER, 1, NOTHING, NEVER),
        ([*POST, PEER_ENDED, ANSWERED], Phase.CLOSING, 0, CLOSE, 60),
        ([*POST, BEGIN, HEAD, PEER_ENDED], Phase.OVER, 1, DROP, NEVER),
        # The end of the server.
        ([SHUTDOWN], Phase.CLOSING, 0, CLOSE, 60),
        ([*POST, ANSWERED, SHUTDOWN], Phase.CLOSING, 0, CLOSE, 60),
        ([*POST, SHUTDOWN], Phase.OVER, 1, NOTHING, NEVER),
        ([WHOLE, SHUTDOWN, ANSWERED], Phase.CLOSING, 0, CLOSE, 60),
        ([BEGIN, HEAD, SHUTDOWN], Phase.LAST, 0, NOTHING, 20),
        ([BEGIN, HEAD, SHUTDOWN, READ], Phase.OVER, 1, NOTHING, NEVER),
        ([BEGIN, HEAD, SHUTDOWN, READ, ANSWERED], Phase.CLOSING, 0, CLOSE, 60),
        ([BEGIN, HEAD, SHUTDOWN, ANSWERED], Phase.CLOSING, 0, CLOSE, 60),
        ([BEGIN, HEAD, ANSWERED, SHUTDOWN], Phase.CLOSING, 0, CLOSE, 60),
        # The end of its time, and of the connection.
        ([EXPIRED], Phase.CLOSING, 0, CLOSE, 60),
        ([*POST, ANSWERED, EXPIRED], Phase.CLOSING, 0, CLOSE, 60),
        ([EXPIRED, EXPIRED], Phase.CLOSING, 0, ABORT, 60),
        ([*POST, CLOSED], Phase.CLOSING, 0, NOTHING, 60),
        ([CLOSED, PEER_ENDED, SHUTDOWN, ANSWERED, REFUSED], Phase.CLOSING, 0, NOTHING, 60),
    ],
)
def test_steps(events: Sequence[Event], phase: Phase, due: int, act: Act, seconds: float) -> None:
    """After these events the phase, the answers due, the steps and their deadline are these."""
    conversation, done = told(events)
    assert (conversation.phase, conversation.due, done) == (phase, due, act)
    assert conversation.deadline == 100 + seconds


@pytest.mark.parametrize(
    ("before", "event"),
    [
        ([], HEAD),
        ([], READ),
        ([], ANSWERED),
        ([BEGIN], READ),
        ([BEGIN], EXPIRED),
        ([BEGIN, HEAD], HEAD),
        ([BEGIN, HEAD], BEGIN),
        ([BEGIN, HEAD], WHOLE),
        (POST, READ),
        ([*POST, ANSWERED], ANSWERED),
        ([*POST, REFUSED], BEGIN),
        ([*POST, REFUSED], REFUSED),
    ],
)
def test_steps_that_there_are_not(before: Sequence[Event], event: Event) -> None:
    """An event that can't happen in a phase is a missing key."""
    conversation, _ = told(before)
    with pytest.raises(KeyError):
        conversation.handle(event, 100)


@pytest.mark.parametrize(
    ("events", "deadline"),
    [
        # The first happens at 0 s, the next one at 1 s, and so on.
        ([BEGIN, BEGIN], 0 + 10),
        ([*POST, BEGIN, ANSWERED], 3 + 10),
        ([BEGIN, HEAD, ANSWERED], 1 + 20),
        ([BEGIN, HEAD, SHUTDOWN], 1 + 20),
        ([*POST, BEGIN, HEAD, ANSWERED], 4 + 20),
        ([WHOLE, ANSWERED], 1 + 60),
        ([WHOLE, ANSWERED, WHOLE, ANSWERED], 3 + 60),
    ],
)
def test_when_time_begins_anew(events: Sequence[Event], deadline: float) -> None:
    """The time for a head or a body runs on whatever else happens, and silence begins with the last answer."""
    conversation = Conversation(TIMEOUTS, 0)
    for now, event in enumerate(events):
        conversation.handle(event, now)
    assert conversation.deadline == deadline


def test_a_peer_that_reads_nothing_has_a_time_limit() -> None:
    """While an answer can't be written there is a deadline, after which the connection is aborted."""
    conversation, _ = told(POST)
    conversation.block(is_blocked=True, now=200)
    assert conversation.deadline == 260
    conversation.block(is_blocked=False, now=210)
    assert conversation.deadline == NEVER
    conversation.block(is_blocked=True, now=220)
    assert conversation.handle(EXPIRED, 280) is ABORT


def test_standing_still_is_nobodys_fault() -> None:
    """Time in which nothing was read is added to the deadline."""
    conversation, _ = told([BEGIN])
    conversation.stand_still(7)
    assert conversation.deadline == 117


@given(st.lists(st.sampled_from(Event), max_size=40), st.booleans())
def test_whatever_happens(events: list[Event], is_blocked: bool) -> None:
    """For any events in any order: no refusal is given while an answer is due, all answers are given before the
    connection is closed in order, a closed one stays closed, and only while an answer is due is there no deadline.
    """
    conversation = Conversation(TIMEOUTS, 0)
    conversation.block(is_blocked=is_blocked, now=0)
    for now, event in enumerate(events):
        was_closing, due_before = conversation.phase is Phase.CLOSING, conversation.due
        try:
            act = conversation.handle(event, now)
        except KeyError:
            continue
        assert not (act & TELL and conversation.due)
        if act & CLOSE and event is not EXPIRED:
            assert conversation.due == 0
            assert not due_before or event is ANSWERED
        if was_closing:
            assert conversation.phase is Phase.CLOSING
            assert not act & (TELL | CLOSE | DROP)
        assert (conversation.deadline == NEVER) <= (conversation.due > 0 and not is_blocked)
        assert conversation.phase is not Phase.OVER or conversation.due


def test_every_phase_can_end() -> None:
    """From every phase the end of the server, of the peer, and of the time lead to an end or to the answers due."""
    for event, phase in itertools.product((SHUTDOWN, PEER_ENDED, CLOSED), Phase):
        conversation = Conversation(TIMEOUTS, 0)
        conversation.phase = phase
        conversation.due = phase is Phase.OVER
        conversation.handle(event, 0)
        assert conversation.is_ending or conversation.phase is Phase.LAST
