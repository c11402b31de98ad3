from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.core import rfc3339
from receiver.core.event import Dialect, Event, QosStatus, StatusInfo
from receiver.core.marks import split
from receiver.core.session import MARKS_MAX, Outcome, Verdict, apply
from tests.oracle import Oracle
from tests.samples import SECOND, SESSION_ID, SOURCE, START, TYPE, told

ACCEPTED, DUPLICATE, UNCHANGED, LATE, CONFLICT = (
    Verdict.ACCEPTED,
    Verdict.DUPLICATE,
    Verdict.UNCHANGED,
    Verdict.LATE,
    Verdict.CONFLICT,
)
#: The first event is received at this second, and every other a second after the one before.
RECEIVED = 1000


def after(*texts: str, resumes: bool = False) -> Outcome:
    """The outcome of the last of these spelled events, on a session that is not remembered before the first."""
    return heard([told(text) for text in texts], resumes=resumes)


def heard(events: Sequence[tuple[Event, str]], *, resumes: bool = False) -> Outcome:
    """The same, from events and their senders."""
    outcome: Outcome | None = None
    for index, (event, sender) in enumerate(events):
        received_micros = START + (RECEIVED + index) * SECOND
        session = None if outcome is None else outcome.session
        outcome = apply(session, event, sender, received_micros, received_micros, resumes=resumes)
    assert outcome is not None, "no events were given"
    return outcome


@pytest.mark.parametrize(
    ("before", "event", "verdict"),
    [
        # Nothing is remembered: any event is a new change.
        ("", "R1", ACCEPTED),
        ("", "A1", ACCEPTED),
        ("", "U1", ACCEPTED),
        ("", "U1:N", ACCEPTED),
        ("", "U?#", ACCEPTED),
        # The way of a conforming session.
        ("R1", "A2", ACCEPTED),
        ("R1", "U2:N", ACCEPTED),
        ("A1", "U2:E", ACCEPTED),
        ("R1 A2", "U3:D", ACCEPTED),
        # A higher rank is accepted whatever its clock says.
        ("R5", "A1", ACCEPTED),
        ("R5", "U1", ACCEPTED),
        ("A5", "U1:N", ACCEPTED),
        ("U5", "U1:N", ACCEPTED),
        # A lower rank is late whatever its clock says.
        ("A1", "R2", LATE),
        ("U1", "R2", LATE),
        ("U1:N", "A2", LATE),
        ("U1:N", "U2", LATE),
        ("U1:N", "R2", LATE),
        # Of one rank the older is late, and equal times count in order of arrival.
        ("A2", "U1", LATE),
        ("A2", "U2", ACCEPTED),
        ("A2", "U3", ACCEPTED),
        ("U2", "A1", LATE),
        ("U2", "A2", ACCEPTED),
        ("U2:N", "U1:D", LATE),
        ("U2:N", "U2:D", ACCEPTED),
        ("U2:N", "U3:D", ACCEPTED),
        ("U2:N", "U3:OF_A_LATER_RELEASE", ACCEPTED),
        # To and fro without a reason.
        ("A1 U2", "A3", ACCEPTED),
        ("A1 U2 A3", "U4", ACCEPTED),
        ("A1 U2 A3 U4", "U5:N", ACCEPTED),
        ("A1 U4", "A3", LATE),
        # The same status and reason again.
        ("A1", "A2", UNCHANGED),
        ("A2", "A1", UNCHANGED),
        ("R1", "R2", UNCHANGED),
        ("U1:N", "U2:N", UNCHANGED),
        ("U1", "U2", UNCHANGED),
        ("A1 A5", "U3", LATE),
        ("A5 A1", "U3", LATE),
        # Repeated with its id, with another, without one.
        ("A1#x", "A1#x", DUPLICATE),
        ("A1#x", "A1#y", DUPLICATE),
        ("A1#x", "A1#", DUPLICATE),
        ("A1#", "A1#x", DUPLICATE),
        ("A1#", "A1#", DUPLICATE),
        ("U?#", "U?#", DUPLICATE),
        ("U?#x", "U?#y", DUPLICATE),
        ("A1#x U2#y", "A1#x", DUPLICATE),
        ("A1#x U2#y A3#z", "U2#y", DUPLICATE),
        ("U2:N#x A1#y", "A1#y", DUPLICATE),
        ("A1#x A2#y", "A2#y", DUPLICATE),
        # Without a time the receipt counts, and a time is part of the content.
        ("A1", "U?", ACCEPTED),
        ("A?", "A1", UNCHANGED),
        ("A?", "U1", LATE),
        ("A?", "U1001", ACCEPTED),
        # An end is not older than another clock's receipt by a few seconds.
        ("A1010", "U?", ACCEPTED),
        ("A1011", "U?", ACCEPTED),
        ("A1012", "U?", LATE),
        ("U1010", "A?", LATE),
        ("U?", "A999", LATE),
        # A sender that posts again may change the time: id, status and reason decide.
        ("A1#x", "A2#x", DUPLICATE),
        ("A2#x", "A1#x", DUPLICATE),
        ("A1#x", "A?#x", DUPLICATE),
        ("A?#x", "A?#x", DUPLICATE),
        ("U1:N#x", "U9:N#x", DUPLICATE),
        ("A1#x U2#y A3#z", "U9#y", DUPLICATE),
        ("A1#x U2:N#y", "A9#x", DUPLICATE),
        # An id that was used before with another status or reason is a change of its own.
        ("A1#x", "U2:N#x", ACCEPTED),
        ("A1#x", "U1#x", ACCEPTED),
        ("A2#x", "U1#x", LATE),
        ("U1:N#x", "U1:D#x", ACCEPTED),
        ("U2:N#x", "U1:D#x", LATE),
        ("U1:N#x", "U1#x", LATE),
        ("U1:N#x", "A2#x", LATE),
        ("R1#x A2#x", "U3:N#x", ACCEPTED),
        ("R1#x A2#x U3:N#x", "U9:N#x", DUPLICATE),
        ("R1#x A2#x U3:N#x", "A9#x", DUPLICATE),
        ("A1#x U2#y", "A1#y", DUPLICATE),  # the content of the first, with any id
        ("A1#x U2#y", "U2#x", DUPLICATE),
        ("A1#x U2#y", "A3#y", ACCEPTED),
        # A duplicate leaves no mark, so its id is free.
        ("A1#x A1#y", "A2#y", UNCHANGED),
        # Another sender's session, repetitions included.
        ("A1", "U2@other", CONFLICT),
        ("A1#x", "A1#x@other", CONFLICT),
        ("A1@other", "U2@other", ACCEPTED),
    ],
)
def test_verdict(before: str, event: str, verdict: Verdict) -> None:
    """The verdict on an event follows from the earlier events of its session."""
    assert after(*before.split(), event)[1] is verdict


@pytest.mark.parametrize(
    ("seconds", "verdict", "lasted"),
    [(1, ACCEPTED, 1.0), (0, ACCEPTED, 0.0), (-5, ACCEPTED, 0.0), (-10, ACCEPTED, 0.0), (-11, LATE, None)],
)
def test_two_clocks_differ_by_seconds(seconds: int, verdict: Verdict, lasted: float | None) -> None:
    """An end without a time counts if it arrives after AVAILABLE, though its edge's clock is some seconds behind."""
    (granted, sender), (ended, _) = told("A?"), told("U?")
    session = apply(None, granted, sender, START, START).session
    outcome = apply(session, ended, sender, START + seconds * SECOND, max(START, START + seconds * SECOND))
    assert (outcome.verdict, outcome.session.available_seconds) == (verdict, lasted)


@pytest.mark.parametrize(
    ("texts", "conflict"),
    [
        ("A1 U2@other", "the session belongs to another sender"),
        ("A1#x A2#x", ""),
        ("A1#x U2#x", ""),
        ("A1 U2", ""),
        ("A1#x A1#x", ""),
        ("U2:N A1", ""),
    ],
)
def test_conflicts_are_told_apart(texts: str, conflict: str) -> None:
    """A conflict tells what is in conflict; no other verdict has a message."""
    assert after(*texts.split())[2] == conflict


@pytest.mark.parametrize(
    ("texts", "reuses_id"),
    [
        ("A1#x", False),
        ("A1#x U2#y", False),
        ("A1#x A1#x", False),
        ("A1#x A2#x", False),
        ("A1# U2#", False),
        ("A1#x U2#x", True),
        ("A1#x U2#x U3:N#x", True),
        ("U2:N#x A1#x", True),
        ("U2:N#x U3:D#x", True),
        ("A1#x U2#x U9#x", False),
        ("A1#x U2#x@other", False),
    ],
)
def test_an_id_of_another_event_is_noted(texts: str, reuses_id: bool) -> None:
    """An accepted event with the id of another event of its session is noted, and no repetition is."""
    assert after(*texts.split()).reuses_id is reuses_id


@pytest.mark.parametrize(
    ("before", "event", "otherwise", "verdict"),
    [
        # The time decides between AVAILABLE and the end.
        ("A1 U2:N", "A3", LATE, ACCEPTED),
        ("U2:N", "A3", LATE, ACCEPTED),
        ("U2:N", "A2", LATE, ACCEPTED),
        ("U2:N", "A1", LATE, LATE),
        ("U2:N", "A?", LATE, ACCEPTED),
        ("U2:N A3", "U4:N", UNCHANGED, ACCEPTED),
        ("U2:N A5", "U4:D", ACCEPTED, LATE),
        ("A5", "U4:D", ACCEPTED, LATE),
        ("A1#x U2:N#y A3#z", "U2:N#y", DUPLICATE, DUPLICATE),
        ("A1#x U2:N#y", "A9#x", DUPLICATE, DUPLICATE),
        # The rest is the same for all senders.
        ("A1", "U2:N", ACCEPTED, ACCEPTED),
        ("U2:N", "U3", LATE, LATE),
        ("U2", "U1:N", ACCEPTED, ACCEPTED),
        ("U2:N", "R3", LATE, LATE),
        ("R5", "A1", ACCEPTED, ACCEPTED),
        ("A1", "U2@other", CONFLICT, CONFLICT),
    ],
)
def test_a_sender_may_take_a_session_up_again(before: str, event: str, otherwise: Verdict, verdict: Verdict) -> None:
    """For a sender that resumes sessions, AVAILABLE counts after the end by its time."""
    assert after(*before.split(), event).verdict is otherwise
    assert after(*before.split(), event, resumes=True).verdict is verdict


def test_a_session_taken_up_again_is_available_anew() -> None:
    """Availability counts from the resumption, until the next end."""
    taken_up = after("A1", "U2:N", "A5", resumes=True).session
    assert (taken_up.available_micros, taken_up.available_seconds) == (START + 5 * SECOND, None)
    ended = after("A1", "U2:N", "A5", "U9:N", resumes=True).session
    assert (ended.available_micros, ended.available_seconds) == (START + 5 * SECOND, 4.0)


def test_a_time_that_cannot_be_true_holds_nothing_up() -> None:
    """A session for which an earlier release took an impossible time goes on by the order of arrival."""
    session = after("A1").session._replace(time_micros=rfc3339.micros("9999-12-31T23:59:59Z"))
    event, sender = told("U2")
    outcome = apply(session, event, sender, START, START)
    assert (outcome.verdict, outcome.session.time_micros) == (ACCEPTED, START + 2 * SECOND)


def test_marks_are_those_of_earlier_releases() -> None:
    """The first release's memory is recognized, since marks are written as they were then."""
    marks = split(after("A1#x", "U2:N#x", "A?#").session.marks)
    assert marks[:2] == [
        "a29381b663eec2fb|A.1795514401000000.6498aa58|1795514401000000",
        "a29381b663eec2fb|U.1795514402000000.f90bc2a5|1795514402000000",
    ]
    assert marks[2].startswith("----------------|A..6498aa58|")


def test_an_id_counts_within_its_source() -> None:
    """The same id from another source is another event, and the type is part of the content."""
    first, sender = told("A1#x")
    for other, verdict in (
        (first._replace(source="another"), DUPLICATE),  # another event with the same content
        (told("A2#x")[0]._replace(source="another"), UNCHANGED),
        (first._replace(type="another"), UNCHANGED),  # the same in another release's words
    ):
        assert heard([(first, sender), (other, sender)])[1] is verdict


@pytest.mark.parametrize(
    ("texts", "seconds"),
    [
        ("A1", 1),
        ("A1 A3", 3),
        ("A3 A1", 3),
        ("A1 U2 A5", 5),
        ("R9 A1", 1),  # a higher rank, though its clock is behind
        ("U5 U1:N", 1),
        ("U5:N A7", 5),
        ("A1#x A1#x", 1),
        ("A?", RECEIVED),
        ("A1 U?", RECEIVED + 1),
    ],
)
def test_time_is_the_latest_at_which_the_status_was_told(texts: str, seconds: int) -> None:
    """A session's time is that of its status: a repetition moves it on, a late event doesn't."""
    assert after(*texts.split())[0].time_micros == START + seconds * SECOND


@pytest.mark.parametrize(
    ("texts", "since", "lasted"),
    [
        ("R1", None, None),
        ("U1:N", None, None),
        ("A1", 1, None),
        ("R1 A2", 2, None),
        ("A1 A3", 1, None),
        ("A1 U3", 1, 2.0),
        ("A1 U3.25:N", 1, 2.25),
        ("A1 A3 U5", 1, 4.0),
        ("A1 U3 U9:N", 1, 2.0),
        ("A1 U3 A5", 5, None),
        ("A1 U3 A5 U9", 5, 4.0),
        ("A5 U2:N", 5, 0),  # contradicting clocks make no negative duration
        # An AVAILABLE after the end fills in an unknown availability, if its time is before that end.
        ("U5:N A1", 1, 4.0),
        ("U5 A1", 1, 4.0),
        ("U5 A1 U8:N", 1, 4.0),
        ("U5 U8:N A1", 1, 4.0),
        ("U5 U8:N A6", 6, 2.0),
        ("U5 U7 A1", 1, 4.0),
        ("U5:N A1 A2", 1, 4.0),
        ("U5 A1 A7", 7, None),
        ("U5 A1 A7 U9", 7, 2.0),
        ("U5:N A5", 5, 0),
        ("U5:N A6", None, None),
        ("U5:N A?", None, None),
        ("R0 U5:N A1", 1, 4.0),
        ("A1 U3 U5:N A2", 1, 2.0),
        ("A5 U7 A6", 5, 2.0),
        ("R1 U2:N", None, None),
    ],
)
def test_availability(texts: str, since: int | None, lasted: float | None) -> None:
    """The latest availability runs from its accepted beginning to the accepted change that ended it."""
    session = after(*texts.split())[0]
    since_micros = None if since is None else START + since * SECOND
    assert (session.available_micros, session.available_seconds) == (since_micros, lasted)


@pytest.mark.parametrize(
    ("texts", "seconds"),
    [
        ("A1", RECEIVED),
        ("A1 U2", RECEIVED + 1),
        ("A1 A2", RECEIVED + 1),
        ("U2:N A1", RECEIVED + 1),
        ("A1#x A1#x", RECEIVED),
        ("A1 U2@other", RECEIVED),
        ("A1#x A2#x", RECEIVED),
        ("A1#x U2#x", RECEIVED + 1),
    ],
)
def test_what_left_a_mark_prolongs_the_life(texts: str, seconds: int) -> None:
    """A session's remaining life counts from the clock at its last event, without repetitions and conflicts."""
    assert after(*texts.split())[0].touched_micros == START + seconds * SECOND


def test_the_clock_and_not_the_receipt_is_when_a_session_was_touched() -> None:
    """If receipts are out of order, the inbox's clock counts for the session's life, and the receipt for the time."""
    event, sender = told("A?")
    session, _, _ = apply(None, event, sender, START, START + 5)[:3]
    assert (session.time_micros, session.touched_micros) == (START, START + 5)


@pytest.mark.parametrize("texts", ["A1#x A1#x", "A1#x A2#x", "A1 U2@other"])
def test_what_is_not_to_be_remembered_changes_nothing(texts: str) -> None:
    """A duplicate and a conflict leave the very same session."""
    *before, last = texts.split()
    session = after(*before)[0]
    event, sender = told(last)
    assert apply(session, event, sender, START, START)[0] is session


@pytest.mark.parametrize("texts", ["R5", "A5", "U5", "U5:N", "A1 U5:N"])
def test_a_late_event_leaves_the_state(texts: str) -> None:
    """A late event changes only the memory of it, and an availability that was not known before."""
    before = after(*texts.split())[0]
    for late in ("R9", "A0", "U0", "A9"):
        event, sender = told(late)
        session, verdict, _ = apply(before, event, sender, START, START)[:3]
        if verdict is LATE:
            state = session._replace(marks=before.marks, touched_micros=before.touched_micros)
            if before.available_micros is None:
                state = state._replace(available_micros=None, available_seconds=None)
            assert state == before
            assert len(split(session.marks)) == len(split(before.marks)) + 1


# The memory's limit.


def flapping(count: int) -> list[tuple[Event, str]]:
    """A session that goes to and fro once a second, `count` events long."""
    return [told(f"{'AU'[index % 2]}{index}#f{index}") for index in range(count)]


@pytest.mark.parametrize(
    ("count", "event", "verdict"),
    [
        (MARKS_MAX, "A0#f0", DUPLICATE),
        (MARKS_MAX, "A0#f0@other", CONFLICT),
        (MARKS_MAX + 1, "U1#f1", DUPLICATE),
        (MARKS_MAX + 1, "A0#f0", CONFLICT),  # forgotten, so it may be a repetition or not
        (MARKS_MAX + 1, "U0", CONFLICT),  # as old as the forgotten one
        (MARKS_MAX + 1, "U0.5", LATE),
        (MARKS_MAX + 1, "U1", DUPLICATE),  # the content of a mark still there
        (MARKS_MAX + 1, "A-1", CONFLICT),
        (MARKS_MAX + 1, "U0:N", ACCEPTED),  # of a higher rank than any before: no repetition
        (MARKS_MAX + 9, "A8", CONFLICT),
        (MARKS_MAX + 9, "A8.5", UNCHANGED),
        (MARKS_MAX + 9, "U999", ACCEPTED),
    ],
)
def test_a_full_memory(count: int, event: str, verdict: Verdict) -> None:
    """Beyond the last 256 marks, an event as old as a forgotten one is a conflict unless its rank proves it new."""
    session, outcome, conflict, _ = heard([*flapping(count), told(event)])
    assert outcome is verdict
    assert ("too old" in conflict) is (verdict is CONFLICT and "@" not in event)
    assert len(split(session.marks)) <= MARKS_MAX


def test_what_is_forgotten_counts_by_the_latest_of_its_times() -> None:
    """Marks are cut in order of arrival, and the boundary is the latest event time among those cut."""
    session = heard([told("A50.5#a"), told("A20.5#b"), *flapping(MARKS_MAX)])[0]
    assert session.marks_cut_micros == START + 50.5 * SECOND


def test_the_boundary_may_lie_before_1970() -> None:
    """With a sender's clock before 1970, no event that is newer than those cut counts as forgotten."""
    epoch = -START // SECOND
    session = heard([told(f"{'AU'[index % 2]}{epoch - 1000 + index}") for index in range(MARKS_MAX + 1)])[0]
    assert session.marks_cut_micros == -1000 * SECOND


def test_a_long_memory_is_a_small_record() -> None:
    """The marks of the longest memory take less than 20 KiB."""
    assert len(heard(flapping(2 * MARKS_MAX))[0].marks) < 20 * 1024


# Properties.

SENDERS = st.sampled_from(["acme", "acme", "acme", "other"])
TIMES = st.one_of(st.none(), st.integers(0, 6).map(lambda second: START + second * SECOND))
IDS = st.one_of(st.none(), st.sampled_from([f"i{index}" for index in range(12)]))
STATES: st.SearchStrategy[tuple[QosStatus, str | None]] = st.sampled_from(
    [
        (QosStatus.REQUESTED, None),
        (QosStatus.AVAILABLE, None),
        (QosStatus.UNAVAILABLE, None),
        (QosStatus.UNAVAILABLE, "NETWORK_TERMINATED"),
        (QosStatus.UNAVAILABLE, "OF_A_LATER_RELEASE"),
    ]
)
EVENTS = st.builds(
    lambda state, time_micros, identifier, source, kind: Event(
        SESSION_ID, state[0], state[1], time_micros, identifier, source, kind, Dialect.CLOUDEVENTS
    ),
    STATES,
    TIMES,
    IDS,
    st.sampled_from([SOURCE, None]),
    st.sampled_from([TYPE, TYPE, TYPE, "QOS_STATUS_CHANGED"]),
)
#: An event, its sender, and the time of its receipt after the one before; clocks go back at times.
ARRIVALS = st.lists(st.tuples(EVENTS, SENDERS, st.integers(-2, 5)), min_size=1, max_size=40)


@given(ARRIVALS, st.sampled_from([1, 2, 3, 5, MARKS_MAX]), st.booleans())
def test_every_verdict_is_the_oracles(arrivals: list[tuple[Event, str, int]], memory_max: int, resumes: bool) -> None:
    """For any events in any order, verdicts and state are those of a naive reading of the design's table."""
    oracle, session = Oracle(memory_max, resumes=resumes), None
    received_micros = clock_micros = START + 3 * SECOND
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("receiver.core.session.MARKS_MAX", memory_max)
        for event, sender, seconds in arrivals:
            received_micros += seconds * SECOND
            clock_micros = max(clock_micros, received_micros)
            outcome = apply(session, event, sender, received_micros, clock_micros, resumes=resumes)
            session, verdict, conflict, _ = outcome
            assert verdict == oracle.hear(event, sender, received_micros, clock_micros)
            assert bool(conflict) is (verdict is CONFLICT)
            assert len(split(session.marks)) == len(oracle.remembered) <= memory_max
            assert (
                session.session_id,
                session.sender,
                session.qos_status,
                session.status_info,
                session.time_micros,
                session.touched_micros,
            ) == (
                SESSION_ID,
                oracle.sender,
                oracle.now.event.qos_status,
                oracle.now.event.status_info,
                oracle.told_at,
                oracle.touched_at,
            )
            assert (session.available_micros, session.available_seconds) == oracle.availability()


@given(ARRIVALS)
def test_apply_is_a_function(arrivals: list[tuple[Event, str, int]]) -> None:
    """The same events give the same sessions and verdicts, every time."""
    events = [(event, sender) for event, sender, _ in arrivals]
    assert heard(events) == heard(events)


@given(ARRIVALS, st.data())
def test_a_repeated_event_is_always_a_duplicate(arrivals: list[tuple[Event, str, int]], data: st.DataObject) -> None:
    """A repeated event that was taken into account is a duplicate."""
    session, taken = None, list[tuple[Event, str]]()
    for event, sender, _ in arrivals:
        session, verdict, _ = apply(session, event, sender, START, START)[:3]
        if verdict in {ACCEPTED, UNCHANGED, LATE}:
            taken.append((event, sender))
    event, sender = data.draw(st.sampled_from(taken))
    again, verdict, _ = apply(session, event, sender, START + 1, START + 1)[:3]
    assert verdict is DUPLICATE
    assert again is session


@given(ARRIVALS)
def test_a_rank_never_falls(arrivals: list[tuple[Event, str, int]]) -> None:
    """For any events a session goes on along REQUESTED, AVAILABLE, the end, and never back."""
    events = [(event, sender) for event, sender, _ in arrivals]
    ranks = [heard(events[: count + 1])[0].rank for count in range(len(events))]
    assert all(before <= behind for before, behind in pairwise(ranks))


@st.composite
def conforming(draw: st.DrawFn) -> list[str]:
    """The events of a conforming session, spelled, in order: each with its own id and time."""
    states = ["R"] if draw(st.booleans()) else []
    states += ["A", "U"] * draw(st.integers(0, 4)) + ["A"] * draw(st.integers(0, 1))
    end = draw(st.sampled_from(["", ":N", ":D", ":E"])) if states else ":N"
    return [f"{state}{second}#c{second}" for second, state in enumerate(states)] + ([f"U99{end}#end"] if end else [])


@given(conforming(), st.data())
def test_order_and_repetition_change_nothing_in_the_end(texts: list[str], data: st.DataObject) -> None:
    """For any order and repetition of a conforming session's events the final status is the same."""
    repeated = texts + data.draw(st.lists(st.sampled_from(texts), max_size=8))
    shuffled = data.draw(st.permutations(repeated))
    wanted, session = after(*texts)[0], after(*shuffled)[0]
    assert (session.session_id, session.sender) == (wanted.session_id, wanted.sender)
    assert (session.qos_status, session.status_info) == (wanted.qos_status, wanted.status_info)
    assert session.time_micros == wanted.time_micros
    assert session.qos_status == told(texts[-1])[0].qos_status
    assert len(split(session.marks)) == len(texts)


@pytest.mark.parametrize(
    ("status_info", "unexpected"),
    [
        (StatusInfo.DURATION_EXPIRED, False),
        (StatusInfo.DELETE_REQUESTED, False),
        (StatusInfo.NETWORK_TERMINATED, True),
        ("OF_A_LATER_RELEASE", True),
        (None, True),
    ],
)
def test_an_end_is_unexpected_unless_asked_for(status_info: str | None, unexpected: bool) -> None:
    """An end by the network, one without a reason and one with an unknown reason are unexpected; no other status is."""
    event = told("U1")[0]._replace(status_info=status_info)
    assert event.unexpected is unexpected
    assert not event._replace(qos_status=QosStatus.AVAILABLE, status_info=None).unexpected
