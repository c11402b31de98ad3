"""Session: what is remembered of one QoS session, and how an event changes it. Pure.

There is no deduplication cache beside this: a session's state is the memory of its events, so that memory is as
durable, as owned and as old as the state itself.

How events are ordered
----------------------
CAMARA's state machine runs REQUESTED → AVAILABLE → UNAVAILABLE and never back (QualityOnDemand v0.10.0,
MOM-2023-12-15). But `time` may be the time of sending, and some senders cut it to seconds or leave it out. So the
status orders first, and the time only orders statuses of one rank:

    rank 0   REQUESTED
    rank 1   AVAILABLE, and UNAVAILABLE without a reason: one gateway alternates between these two
    rank 2   UNAVAILABLE with a reason: the end

An event of a higher rank than the session's is news whatever its time. One of a lower rank is late. Between equal ranks
the older time is late, and equal times count in order of arrival.

An event without a time gets the time of its receipt, by the clock of the machine that received it. Two machines' clocks
differ by seconds, which prove no order. So an UNAVAILABLE without a time that arrives after the status it ends is not
late, unless its receipt was more than RECEIPTS_DIFFER_SECONDS earlier: no end is lost to a clock. In the other
direction the time of receipt decides, since the end may have overtaken an AVAILABLE that waited in a spool.

Some gateways resume a session after its end. For senders that the configuration names as such, the time decides between
AVAILABLE and UNAVAILABLE, whatever the reason.

What is remembered
------------------
Each event taken into account leaves a mark: a digest of (source, id), its content, and its time. A session of a
conforming sender collects two or three. The list is cut at MARKS_MAX from its oldest end. From then on an event as old
as a forgotten one can't be told from a repetition; it goes to the dead letters, so it is neither lost nor repeated.

What is a repetition
--------------------
The same source and id with the same status, reason and type is a repetition whatever its time: senders put a new time
on what they post again. The same content under another id, its time included, is a repetition too. An id alone is not:
many senders' ids are not unique, and an end must not be lost for that. An id that comes again with another status or
reason is noted, and its content decides.

An AVAILABLE that comes late
----------------------------
If two machines receive for one session, the slower one may deliver AVAILABLE after the end. It does not change the
status, but it shows that quality was granted, and since when. If the session knows of no availability yet, a late
AVAILABLE with a time before an end fills it in.

What the operator's API tells
-----------------------------
The API may report a session too, see `learn`. It reports a state, not an event, so it is news only if the session is
behind that state. A notification of the same change that arrives later is then no news.

An end that the API reports itself is final, like one with a reason. An end that only follows from the API's not knowing
the session (its event's source is MISSING_SOURCE) may be a gateway's mistake. So it ranks with an UNAVAILABLE without a
reason, whatever its reason: a later AVAILABLE, the API's or a sender's, takes it back, and the earlier availability
continues. An UNAVAILABLE with a reason, a sender's or the API's, confirms it. A sender's AVAILABLE counts here only
with a time between the end's receipt and its own receipt: the AVAILABLE of a session that did end may arrive late, and
its clock may be ahead.
"""

from enum import StrEnum
from typing import NamedTuple

from receiver.core.event import Event, QosStatus, is_far
from receiver.core.facts import NO_FACTS, Facts
from receiver.core.facts import merged as merged_facts
from receiver.core.marks import find, joined, mark_of, micros_of, split, times
from receiver.core.value import Value


class Verdict(StrEnum):
    """The decision on a notification. Metrics, logs, headers and dead letters use the same words."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    UNCHANGED = "unchanged"
    LATE = "late"
    CONFLICT = "conflict"
    UNRECOGNIZED = "unrecognized"
    MALFORMED = "malformed"

    __hash__ = str.__hash__  # as for QosStatus


#: A gateway that alternates once a second fills this in four minutes; the marks then take 20 KiB of the session's
#: record, far below the 1 MiB that a Kafka broker accepts.
MARKS_MAX = 256

#: The source of events that report that the API does not know a session any more.
MISSING_SOURCE = "/qod-receiver/reconcile/missing"

#: The most that two machines' clocks may differ.
RECEIPTS_DIFFER_SECONDS = 10
_RECEIPTS_DIFFER_MICROS = RECEIPTS_DIFFER_SECONDS * 1_000_000

#: A sender's first AVAILABLE may be the one that began the session, delivered late, with a clock ahead by this much.
_CLEARLY_LATER_MICROS = 2_000_000

# Looking up an enum's member takes ten times as long as looking up a name.
_REQUESTED, _AVAILABLE, _UNAVAILABLE = QosStatus.REQUESTED, QosStatus.AVAILABLE, QosStatus.UNAVAILABLE
_BACK_AND_FORTH = {_AVAILABLE, _UNAVAILABLE}
_ACCEPTED, _DUPLICATE, _UNCHANGED = Verdict.ACCEPTED, Verdict.DUPLICATE, Verdict.UNCHANGED
_LATE, _CONFLICT = Verdict.LATE, Verdict.CONFLICT
_NOTHING: frozenset[QosStatus] = frozenset()


class Session(Value, frozen=True, array_like=True):
    """State of one QoS session, as far as its events show.

    Times are microseconds since 1970 in UTC. `time_micros` is the latest event time with the current status, or the
    time of receipt if the event had none. `touched_micros` is the inbox's clock at the last event that left a mark; the
    session's remaining life counts from it. `available_micros` is when the latest availability began (None: never),
    `available_seconds` how long it lasted (None: never available, or it still lasts). `marks_cut_micros` is the latest
    event time among marks that were cut off. `marks` has the form that `marks.py` defines.

    `facts` come from the API; `learned` has the statuses that were accepted from the API. `is_missing` is whether the
    session counts as ended only because the API does not know it any more, which may be a mistake.
    """

    session_id: str
    sender: str
    qos_status: QosStatus
    status_info: str | None
    time_micros: int
    touched_micros: int
    available_micros: int | None
    available_seconds: float | None
    marks: str
    marks_cut_micros: int | None
    facts: Facts = NO_FACTS
    learned: frozenset[QosStatus] = _NOTHING
    is_missing: bool = False

    @property
    def rank(self) -> int:
        """The rank, as the module defines it. An end that the API reported is final, with or without a reason."""
        if _UNAVAILABLE in self.learned:
            return 2
        return 1 if self.is_missing else _rank(self.qos_status, self.status_info)


class Outcome(NamedTuple):
    """What an event makes of a session: the same object if there is nothing to remember.

    `conflict` explains the verdict CONFLICT, and is empty for others. `reuses_id` is whether the event has the id of
    another event.
    """

    session: Session
    verdict: Verdict
    conflict: str = ""
    reuses_id: bool = False


def apply(  # noqa: PLR0911  # a return for each verdict, in order of precedence
    session: Session | None,
    event: Event,
    sender: str,
    received_micros: int,
    clock_micros: int,
    *,
    resumes: bool = False,
) -> Outcome:
    """What `event`, sent by `sender`, makes of `session` (None: not remembered).

    `received_micros` replaces a time that the event lacks. `clock_micros` is the inbox's clock: the latest time of
    receipt up to and including this event. `resumes` is whether the sender resumes sessions after their end.
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
    # A session's rank never falls, so an event of a higher rank is new, however old its time.
    if rank <= session_rank and session.marks_cut_micros is not None and event_micros <= session.marks_cut_micros:
        return Outcome(session, _CONFLICT, "too old for the session's memory to tell whether it is a repetition")
    if status is _UNAVAILABLE and (session.is_missing or _UNAVAILABLE in session.learned):
        # The notification of the end that the API reported has arrived, and may have the reason.
        return Outcome(_confirm(session, status_info, mark, clock_micros), _UNCHANGED, "", reuses_id)
    if status is session.qos_status and status_info == session.status_info:
        time_micros = max(session.time_micros, event_micros)
        after = _marked(session, mark, clock_micros)._replace(time_micros=time_micros)
        return Outcome(after, _UNCHANGED, "", reuses_id)
    # A status from the API has the API's time, and the sender's clock may differ: then the order of arrival decides.
    is_older = event_micros < session.time_micros and (is_back_and_forth or session.qos_status not in session.learned)
    is_no_proof = session.is_missing and not _takes_back(session, event, received_micros)
    is_behind = is_no_proof or (is_older and not _is_beyond_belief(session))
    if rank < session_rank or (rank == session_rank and is_behind):
        verdict = _UNCHANGED if status in session.learned else _LATE
        return Outcome(_late(session, event, mark, clock_micros), verdict, "", reuses_id)
    learned = session.learned
    if learned:  # an AVAILABLE resumes the session
        learned -= _BACK_AND_FORTH if status is _AVAILABLE else {status}
    return Outcome(_change(session, event, mark, clock_micros, learned), _ACCEPTED, "", reuses_id)


def learn(
    session: Session | None, event: Event, facts: Facts, sender: str, clock_micros: int
) -> tuple[Session, Verdict]:
    """What the operator API's report of a status and facts makes of `session` (None: not remembered).

    Returns the session afterwards and the verdict: accepted if the session was behind the API, unchanged if only facts
    are new, and duplicate if nothing is. `sender` becomes the sender of a session that was not known.
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
        return session, _DUPLICATE  # already reported, though perhaps taken back since
    known = session._replace(facts=merged_facts(session.facts, facts))
    rank = 2 if ends else _rank(status, event.status_info)
    # An end without a reason is taken back only by an API time after that end's receipt, whatever the sender's clock.
    is_after = event_micros > max(session.time_micros, session.touched_micros)
    if rank > session.rank or (rank == session.rank and status is not session.qos_status and is_after):
        learned = session.learned | news
        if status is session.qos_status:  # it was UNAVAILABLE already, but not finally
            status_info = event.status_info or session.status_info
            after = known._replace(status_info=status_info, learned=learned, is_missing=is_missing)
            return _marked(after, mark, clock_micros), _UNCHANGED
        return _change(known, event, mark, clock_micros, learned, is_missing=is_missing), _ACCEPTED
    if known.facts == session.facts:
        return session, _DUPLICATE
    return known._replace(touched_micros=clock_micros), _UNCHANGED


def was_told(session: Session, event: Event) -> bool:
    """Whether the session remembers this event, or one with the same content. False for an event without a time."""
    return event.time_micros is not None and find(session.marks, mark_of(event, event.time_micros))[0]


def merged(ours: Session, theirs: Session) -> Session:
    """The state to remember of a session that is known in two places: the more advanced state, and both memories.

    It is `theirs` if that has everything, or if the session there is another sender's.
    """
    if ours.sender != theirs.sender:
        return theirs
    ahead = max(theirs, ours, key=_advance)
    behind = ours if ahead is theirs else theirs
    older, newer = (theirs, ours) if ours.touched_micros >= theirs.touched_micros else (ours, theirs)
    # A mark that both have keeps its place in `theirs`, so that merging again changes nothing.
    kept = split(theirs.marks)
    known = frozenset(kept)
    news = [mark for mark in split(ours.marks) if mark not in known]
    marks, cut_micros = joined([*news, *kept] if older is ours else [*kept, *news], MARKS_MAX)
    after = ahead._replace(
        touched_micros=newer.touched_micros,
        marks=marks,
        marks_cut_micros=_latest(ours.marks_cut_micros, theirs.marks_cut_micros, cut_micros),
        facts=merged_facts(older.facts, newer.facts),
        learned=ahead.learned | behind.learned,
    )
    if _UNAVAILABLE in after.learned and behind.qos_status is _UNAVAILABLE:
        after = after._replace(status_info=after.status_info or behind.status_info)
    return after if behind.available_micros is None else _granted(after, behind.available_micros)


def _advance(session: Session) -> tuple[int, int, int, int]:
    return session.rank, session.time_micros, session.touched_micros, session.marks.count(",")


def _rank(qos_status: QosStatus, status_info: str | None) -> int:
    if qos_status is _REQUESTED:
        return 0
    return 1 if status_info is None else 2


def _is_beyond_belief(session: Session) -> bool:
    """Whether the session has an impossible time, which earlier releases accepted."""
    return is_far(session.time_micros, session.touched_micros)


def _received_micros(session: Session | None, status: QosStatus, received_micros: int) -> int:
    """The time for an event without one: its receipt, but for an end not before what it ends; see the module."""
    if session is None or status is not _UNAVAILABLE:
        return received_micros
    is_within = received_micros >= session.time_micros - _RECEIPTS_DIFFER_MICROS
    return max(received_micros, session.time_micros) if is_within else received_micros


def _takes_back(session: Session, event: Event, received_micros: int) -> bool:
    """Whether an AVAILABLE shows that a session that counts as missing exists; see the module."""
    if event.time_micros is None:
        return False
    is_senders_first = len(times(session.marks, _AVAILABLE)) <= (_AVAILABLE in session.learned)
    later_micros = _CLEARLY_LATER_MICROS if is_senders_first else 0
    return session.touched_micros + later_micros <= event.time_micros <= received_micros


def _begin(event: Event, sender: str, clock_micros: int, mark: str) -> Session:
    status, micros = event.qos_status, micros_of(mark)
    available_micros = micros if status is _AVAILABLE else None
    return Session(
        event.session_id, sender, status, event.status_info, micros, clock_micros, available_micros, None, mark, None
    )


def _remember(session: Session, mark: str) -> tuple[str, int | None]:
    """The session's marks with one more, and the latest time among all marks cut off."""
    marks, cut_micros = f"{session.marks},{mark}", session.marks_cut_micros
    if marks.count(",") < MARKS_MAX:
        return marks, cut_micros
    marks, oldest_micros = joined(split(marks), MARKS_MAX)
    return marks, _latest(cut_micros, oldest_micros)


def _latest(*times_micros: int | None) -> int | None:
    return max((micros for micros in times_micros if micros is not None), default=None)


def _marked(session: Session, mark: str, clock_micros: int) -> Session:
    """The session with the mark of an event that was taken into account."""
    marks, cut_micros = _remember(session, mark)
    return session._replace(touched_micros=clock_micros, marks=marks, marks_cut_micros=cut_micros)


def _confirm(session: Session, status_info: str | None, mark: str, clock_micros: int) -> Session:
    """The session after the UNAVAILABLE that the API had reported; with a reason the session is no longer missing."""
    after = _marked(session, mark, clock_micros)
    if status_info is None:
        return after
    learned = session.learned | {_UNAVAILABLE} if session.is_missing else session.learned
    return after._replace(status_info=status_info, learned=learned, is_missing=False)


def _late(session: Session, event: Event, mark: str, clock_micros: int) -> Session:
    """The session after a late event."""
    if event.qos_status is _AVAILABLE and event.time_micros is not None:
        session = _granted(session, event.time_micros)
    return _marked(session, mark, clock_micros)


def _granted(session: Session, available_micros: int) -> Session:
    """The session with an availability from a late event, if it knows of none and has an end after it."""
    if session.available_micros is not None or session.qos_status is not _UNAVAILABLE:
        return session
    # No end is lost here: an event as old as a mark that was cut off does not get this far.
    ends = [micros for micros in times(session.marks, _UNAVAILABLE) if micros >= available_micros]
    if not ends:
        return session
    return session._replace(available_micros=available_micros, available_seconds=(min(ends) - available_micros) / 1e6)


def _change(
    session: Session,
    event: Event,
    mark: str,
    clock_micros: int,
    learned: frozenset[QosStatus],
    *,
    is_missing: bool = False,
) -> Session:
    """The session with the event's status."""
    status, micros = event.qos_status, micros_of(mark)
    available_micros, available_seconds = session.available_micros, session.available_seconds
    if status is _AVAILABLE:
        is_back = session.is_missing and available_micros is not None  # it never ended
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
