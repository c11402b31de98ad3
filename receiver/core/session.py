"""Session: what is remembered of one QoS session, and how an event changes it. Pure.

There is no deduplication cache beside this: a session's state *is* the memory of what it has been told, so it is as
durable, as owned and as old as the state itself.

How events are ordered
----------------------
CAMARA's state machine runs REQUESTED → AVAILABLE → UNAVAILABLE and never back (QualityOnDemand v0.10.0,
MOM-2023-12-15). But `time` may be the time of sending, some senders cut it to seconds and some leave it out, so the
status orders first and the time only between statuses of one rank:

    rank 0   REQUESTED
    rank 1   AVAILABLE, and UNAVAILABLE without a reason: one gateway goes to and fro between these two
    rank 2   UNAVAILABLE with a reason: the end

An event of a higher rank than the session's is news whatever its clock says. One of a lower rank is late. Between
equals the older time is late, and equal times count in order of arrival.

Where an event has no time, its receipt stands in for it, by the clock of the machine that received it. Two machines'
clocks differ by seconds, which are no evidence of order. So an UNAVAILABLE without a time that arrives after what it
ends is not behind that, unless its receipt was RECEIPTS_DIFFER_SECONDS before: an end is not lost for a clock. The
other way round a receipt's word counts, for the end may have overtaken an AVAILABLE that waited in a spool.

Some gateways take a session up again after its end. For a sender that the configuration names so, the time decides
between AVAILABLE and UNAVAILABLE, whatever the reason.

What is remembered
------------------
Each event taken into account leaves a mark: a digest of (source, id), its content, and its time. A session of a
conforming sender collects two or three. The list is cut at MARKS_MAX from its oldest end, and from then on an event
as old as a forgotten one can't be told from a repetition: it goes to the dead letters, neither lost nor repeated.

What is a repetition
--------------------
The same source and id with the same status, reason and type is a repetition whatever its time says: senders put a new
one on what they post again. And so is the same content under another id, the time included. But an id alone is none:
many senders' ids are not unique, and an end must not be lost for it. An id that comes again with another status or
reason is noted, and its content decides.

An AVAILABLE that comes late
----------------------------
Of two machines that receive for one session the slower one may bring AVAILABLE after the end. It does not change the
status, but it tells that quality was granted, and since when: where the session knows of no availability yet, a late
AVAILABLE with a time before an end fills it in.

What the operator's API tells
-----------------------------
A session may be learned of from the API too, see `learn`. The API tells how things stand, not what happened, so it is
news only where the session is behind it; and a notification that comes after all is no news any more.

An end that the API told of itself is final, like one with a reason. An end that only follows from the API's not knowing
the session (its event's source is MISSING_SOURCE) may be a gateway's mistake. So it ranks with an UNAVAILABLE without a
reason, whatever its reason: an AVAILABLE that was told after it takes it back, the API's or a sender's, and the
availability from before goes on. An UNAVAILABLE with a reason, a sender's or the API's, confirms it. A sender's word
counts here only with a time between the end's receipt and its own: the AVAILABLE of a session that did end may arrive
late, and its clock be ahead.
"""

from enum import StrEnum
from typing import NamedTuple

from receiver.core.event import Event, QosStatus, is_far
from receiver.core.facts import NO_FACTS, Facts
from receiver.core.facts import merged as merged_facts
from receiver.core.marks import Mark, find, mark_of, times
from receiver.core.value import Value


class Verdict(StrEnum):
    """What became of a notification. The same words are used in metrics, logs, headers and dead letters."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    UNCHANGED = "unchanged"
    LATE = "late"
    CONFLICT = "conflict"
    UNRECOGNIZED = "unrecognized"
    MALFORMED = "malformed"

    __hash__ = str.__hash__  # as QosStatus


#: A gateway that flaps once a second fills this in four minutes; the marks then take 20 KiB of the session's record,
#: far below the 1 MiB that a Kafka broker takes.
MARKS_MAX = 256

#: The source of the events that tell that the API does not know a session any more.
MISSING_SOURCE = "/qod-receiver/reconcile/missing"

#: So far may two machines' clocks differ.
RECEIPTS_DIFFER_SECONDS = 10
_RECEIPTS_DIFFER_MICROS = RECEIPTS_DIFFER_SECONDS * 1_000_000

#: A sender's first AVAILABLE may be the one that began the session, told late by a clock that is ahead by just so much.
_CLEARLY_LATER_MICROS = 2_000_000

# An enum's member takes ten times as long to find as a name.
_REQUESTED, _AVAILABLE, _UNAVAILABLE = QosStatus.REQUESTED, QosStatus.AVAILABLE, QosStatus.UNAVAILABLE
_BACK_AND_FORTH = {_AVAILABLE, _UNAVAILABLE}
_ACCEPTED, _DUPLICATE, _UNCHANGED = Verdict.ACCEPTED, Verdict.DUPLICATE, Verdict.UNCHANGED
_LATE, _CONFLICT = Verdict.LATE, Verdict.CONFLICT
_NOTHING: frozenset[QosStatus] = frozenset()


class Session(Value, frozen=True, array_like=True):
    """State of one QoS session, as far as its events told.

    Times are microseconds since 1970 in UTC. `time_micros` is the latest event time at which the current status was
    told, or the time of receipt where the event had none. `touched_micros` is the inbox's clock at the last event
    that left a mark; from it the session's remaining life counts. `available_micros` is when the latest availability
    began (None: never), `available_seconds` how long it lasted (None: never available, or it still lasts).
    `marks_cut_micros` is the latest event time among marks that were cut off.

    `facts` are what the API told, and `learned` has the statuses that were accepted on the API's word. `is_missing` is
    whether the session counts as ended only because the API does not know it any more, which may be a mistake.
    """

    session_id: str
    sender: str
    qos_status: QosStatus
    status_info: str | None
    time_micros: int
    touched_micros: int
    available_micros: int | None
    available_seconds: float | None
    marks: tuple[Mark, ...]
    marks_cut_micros: int | None
    facts: Facts = NO_FACTS
    learned: frozenset[QosStatus] = _NOTHING
    is_missing: bool = False

    @property
    def rank(self) -> int:
        """See the module. An end that the API told is final, with a reason or without."""
        if _UNAVAILABLE in self.learned:
            return 2
        return 1 if self.is_missing else _rank(self.qos_status, self.status_info)


class Outcome(NamedTuple):
    """What an event makes of a session: the same object where nothing is to be remembered.

    `conflict` is what is in conflict, for that verdict alone. `reuses_id` is whether the event has the id of another.
    """

    session: Session
    verdict: Verdict
    conflict: str = ""
    reuses_id: bool = False


def apply(  # noqa: PLR0911  # a return for each verdict, in the order in which they are thought of
    session: Session | None,
    event: Event,
    sender: str,
    received_micros: int,
    clock_micros: int,
    *,
    resumes: bool = False,
) -> Outcome:
    """What `event`, sent by `sender`, makes of `session` (None: not remembered).

    `received_micros` stands in for a time that the event lacks. `clock_micros` is the inbox's clock: the latest time of
    receipt up to and with this event. `resumes` is whether the sender takes sessions up again after their end.
    """
    status, status_info = event.qos_status, event.status_info
    event_micros = (
        _received_micros(session, status, received_micros) if event.time_micros is None else event.time_micros
    )
    mark = mark_of(event, event_micros)
    if session is None:
        return Outcome(_begin(event, sender, clock_micros, mark), _ACCEPTED)
    if sender != session.sender:
        return Outcome(session, _CONFLICT, "the session belongs to another sender")
    is_known, reuses_id = find(session.marks, mark)
    if is_known:
        return Outcome(session, _DUPLICATE)
    session_rank, rank = session.rank, _rank(status, status_info)
    is_back_and_forth = resumes and {status, session.qos_status} == _BACK_AND_FORTH
    if is_back_and_forth:
        rank = session_rank
    # A session's rank never falls, so an event of a higher one was never seen, however old its time says it is.
    if rank <= session_rank and session.marks_cut_micros is not None and event_micros <= session.marks_cut_micros:
        return Outcome(session, _CONFLICT, "too old for the session's memory to tell whether it is a repetition")
    if status is _UNAVAILABLE and (session.is_missing or _UNAVAILABLE in session.learned):
        # The end that was learned of comes by itself after all, and may know the reason.
        return Outcome(_confirm(session, status_info, mark, clock_micros), _UNCHANGED, "", reuses_id)
    if status is session.qos_status and status_info == session.status_info:
        time_micros = max(session.time_micros, event_micros)
        after = _marked(session, mark, clock_micros)._replace(time_micros=time_micros)
        return Outcome(after, _UNCHANGED, "", reuses_id)
    # What the API told has the API's time, and the sender's clock may be another: then the order of arrival counts.
    is_older = event_micros < session.time_micros and (is_back_and_forth or session.qos_status not in session.learned)
    is_no_proof = session.is_missing and not _takes_back(session, event, received_micros)
    is_behind = is_no_proof or (is_older and not _is_beyond_belief(session))
    if rank < session_rank or (rank == session_rank and is_behind):
        verdict = _UNCHANGED if status in session.learned else _LATE
        return Outcome(_late(session, event, mark, clock_micros), verdict, "", reuses_id)
    learned = session.learned
    if learned:  # an AVAILABLE takes the session up again
        learned -= _BACK_AND_FORTH if status is _AVAILABLE else {status}
    return Outcome(_change(session, event, mark, clock_micros, learned), _ACCEPTED, "", reuses_id)


def learn(
    session: Session | None, event: Event, facts: Facts, sender: str, clock_micros: int
) -> tuple[Session, Verdict]:
    """What the operator's API, which tells of a status and of facts, makes of `session` (None: not remembered).

    Returns the session afterwards and the verdict: accepted where the session was behind the API, unchanged where only
    facts are new, and duplicate where nothing is. `sender` is who will tell of a session that was not known.
    """
    status, ends = event.qos_status, event.qos_status is _UNAVAILABLE
    is_missing = ends and event.source == MISSING_SOURCE
    news = _NOTHING if is_missing else frozenset({status})
    event_micros = clock_micros if event.time_micros is None else event.time_micros
    mark = mark_of(event, event_micros)
    if session is None:
        begun = _begin(event, sender, clock_micros, mark)
        return begun._replace(facts=facts, learned=news, is_missing=is_missing), _ACCEPTED
    if is_missing and (session.is_missing or find(session.marks, mark)[0]):
        return session, _DUPLICATE  # told already, though it may have been taken back since
    known = session._replace(facts=merged_facts(session.facts, facts))
    rank = 2 if ends else _rank(status, event.status_info)
    # One that went without a reason came back only if the API said so after that came in, whatever the sender's clock.
    is_after = event_micros > max(session.time_micros, session.touched_micros)
    if rank > session.rank or (rank == session.rank and status is not session.qos_status and is_after):
        learned = session.learned | news
        if status is session.qos_status:  # it was UNAVAILABLE already, but might have come back
            status_info = event.status_info or session.status_info
            after = known._replace(status_info=status_info, learned=learned, is_missing=is_missing)
            return _marked(after, mark, clock_micros), _UNCHANGED
        return _change(known, event, mark, clock_micros, learned, is_missing=is_missing), _ACCEPTED
    if known.facts == session.facts:
        return session, _DUPLICATE
    return known._replace(touched_micros=clock_micros), _UNCHANGED


def was_told(session: Session, event: Event) -> bool:
    """Whether the session remembers this event, which has a time, or one with the same content."""
    return event.time_micros is not None and find(session.marks, mark_of(event, event.time_micros))[0]


def merged(ours: Session, theirs: Session) -> Session:
    """What to remember of a session that was told of in two places: the state that is ahead, and the memory of both.

    It is `theirs` where that has all of it, or where the session is another sender's there.
    """
    if ours.sender != theirs.sender:
        return theirs
    ahead = max(theirs, ours, key=lambda each: (each.rank, each.time_micros, each.touched_micros, len(each.marks)))
    behind = ours if ahead is theirs else theirs
    older, newer = (theirs, ours) if ours.touched_micros >= theirs.touched_micros else (ours, theirs)
    # Where both have a mark it stays where theirs has it, so that merging again changes nothing.
    known = frozenset(theirs.marks)
    news = tuple(mark for mark in ours.marks if mark not in known)
    marks = news + theirs.marks if older is ours else theirs.marks + news
    cuts = [each.marks_cut_micros for each in (ours, theirs) if each.marks_cut_micros is not None]
    cuts += [mark.micros for mark in marks[:-MARKS_MAX]]
    after = ahead._replace(
        touched_micros=newer.touched_micros,
        marks=marks[-MARKS_MAX:],
        marks_cut_micros=max(cuts, default=None),
        facts=merged_facts(older.facts, newer.facts),
        learned=ahead.learned | behind.learned,
    )
    if _UNAVAILABLE in after.learned and behind.qos_status is _UNAVAILABLE:
        after = after._replace(status_info=after.status_info or behind.status_info)
    return after if behind.available_micros is None else _granted(after, behind.available_micros)


def _rank(qos_status: QosStatus, status_info: str | None) -> int:
    if qos_status is _REQUESTED:
        return 0
    return 1 if status_info is None else 2


def _is_beyond_belief(session: Session) -> bool:
    """Whether its time can't be true, which earlier releases took as it was told."""
    return is_far(session.time_micros, session.touched_micros)


def _received_micros(session: Session | None, status: QosStatus, received_micros: int) -> int:
    """The time of an event that has none: of its receipt, but for an end not before what it ends, see the module."""
    if session is None or status is not _UNAVAILABLE:
        return received_micros
    is_within = received_micros >= session.time_micros - _RECEIPTS_DIFFER_MICROS
    return max(received_micros, session.time_micros) if is_within else received_micros


def _takes_back(session: Session, event: Event, received_micros: int) -> bool:
    """Whether an AVAILABLE shows that a session is there that counts as missing: see the module."""
    if event.time_micros is None:
        return False
    is_senders_first = len(times(session.marks, _AVAILABLE)) <= (_AVAILABLE in session.learned)
    later_micros = _CLEARLY_LATER_MICROS if is_senders_first else 0
    return session.touched_micros + later_micros <= event.time_micros <= received_micros


def _begin(event: Event, sender: str, clock_micros: int, mark: Mark) -> Session:
    status, micros = event.qos_status, mark.micros
    available_micros = micros if status is _AVAILABLE else None
    return Session(
        event.session_id, sender, status, event.status_info, micros, clock_micros, available_micros, None, (mark,), None
    )


def _remember(session: Session, mark: Mark) -> tuple[tuple[Mark, ...], int | None]:
    """The session's marks with one more, and up to when they are cut."""
    marks, cut_micros = (*session.marks, mark), session.marks_cut_micros
    if len(marks) <= MARKS_MAX:
        return marks, cut_micros
    oldest_micros = marks[0].micros
    return marks[1:], oldest_micros if cut_micros is None else max(cut_micros, oldest_micros)


def _marked(session: Session, mark: Mark, clock_micros: int) -> Session:
    """The session that took an event into account."""
    marks, cut_micros = _remember(session, mark)
    return session._replace(touched_micros=clock_micros, marks=marks, marks_cut_micros=cut_micros)


def _confirm(session: Session, status_info: str | None, mark: Mark, clock_micros: int) -> Session:
    """The session after an UNAVAILABLE, which it had learned of; with a reason it is no mistake that it is missing."""
    after = _marked(session, mark, clock_micros)
    if status_info is None:
        return after
    learned = session.learned | {_UNAVAILABLE} if session.is_missing else session.learned
    return after._replace(status_info=status_info, learned=learned, is_missing=False)


def _late(session: Session, event: Event, mark: Mark, clock_micros: int) -> Session:
    """The session after an event that is behind it."""
    if event.qos_status is _AVAILABLE and event.time_micros is not None:
        session = _granted(session, event.time_micros)
    return _marked(session, mark, clock_micros)


def _granted(session: Session, available_micros: int) -> Session:
    """The session with an availability that is told only now, where it knows of none, and an end came after that."""
    if session.available_micros is not None or session.qos_status is not _UNAVAILABLE:
        return session
    # None of them is missing: an event as old as a mark that was cut off does not get here.
    ends = [micros for micros in times(session.marks, _UNAVAILABLE) if micros >= available_micros]
    if not ends:
        return session
    return session._replace(available_micros=available_micros, available_seconds=(min(ends) - available_micros) / 1e6)


def _change(
    session: Session,
    event: Event,
    mark: Mark,
    clock_micros: int,
    learned: frozenset[QosStatus],
    *,
    is_missing: bool = False,
) -> Session:
    """The session with the event's status."""
    status, micros = event.qos_status, mark.micros
    available_micros, available_seconds = session.available_micros, session.available_seconds
    if status is _AVAILABLE:
        is_back = session.is_missing and available_micros is not None  # it was never away
        available_micros, available_seconds = available_micros if is_back else micros, None
    elif session.qos_status is _AVAILABLE and available_micros is not None:
        available_seconds = max(0, micros - available_micros) / 1e6
    marks, cut_micros = _remember(session, mark)
    return Session(
        session.session_id,
        session.sender,
        status,
        event.status_info,
        micros,
        clock_micros,
        available_micros,
        available_seconds,
        marks,
        cut_micros,
        session.facts,
        learned,
        is_missing,
    )
