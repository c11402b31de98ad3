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
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple, TypedDict
from zlib import crc32

from receiver.core.event import Event, QosStatus, is_far
from receiver.core.facts import NO_FACTS, Facts
from receiver.core.facts import merged as merged_facts


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

#: Among the statuses learned of: no sender brings a session back from it.
_END = QosStatus.UNAVAILABLE[0]
#: Among them too: an end that was concluded from the API's not knowing the session any more.
_MISSING = "M"
#: The source of the events that tell of such an end.
MISSING_SOURCE = "/qod-receiver/reconcile/missing"

#: So far may two machines' clocks differ.
RECEIPTS_DIFFER_SECONDS = 10
_RECEIPTS_DIFFER_MICROS = RECEIPTS_DIFFER_SECONDS * 1_000_000

#: A sender's first AVAILABLE may be the one that began the session, told late by a clock that is ahead by just so much.
_CLEARLY_LATER_MICROS = 2_000_000

_BACK_AND_FORTH = {QosStatus.AVAILABLE, QosStatus.UNAVAILABLE}

#: A digest of 64 bits: among 256 of them the chance of two alike is one in 10^14.
_DIGEST_BYTES = 8
_NO_ID = "-" * 2 * _DIGEST_BYTES


class Session(NamedTuple):
    """State of one QoS session, as far as its events told.

    Times are microseconds since 1970 in UTC. `time_micros` is the latest event time at which the current status was
    told, or the time of receipt where the event had none. `touched_micros` is the inbox's clock at the last event
    that left a mark; from it the session's remaining life counts. `available_micros` is when the latest availability
    began (None: never), `available_seconds` how long it lasted (None: never available, or it still lasts). `facts` are
    what the API told, and `learned` has the first letters of the statuses that were accepted on the API's word, and M
    where the end is one of a session that the API does not know any more.
    """

    session_id: str
    sender: str
    qos_status: QosStatus
    status_info: str | None
    time_micros: int
    touched_micros: int
    available_micros: int | None
    available_seconds: float | None
    marks: tuple[str, ...]
    marks_cut_micros: int | None  # the latest event time among marks that were cut off
    facts: Facts = NO_FACTS
    learned: str = ""

    @property
    def rank(self) -> int:
        """See the module. Who asked the API was told of the end, with a reason or without."""
        if _END in self.learned:
            return 2
        return 1 if self.is_missing else _rank(self.qos_status, self.status_info)

    @property
    def is_missing(self) -> bool:
        """Whether it counts as ended only because the API does not know it any more, which may be a mistake."""
        return _MISSING in self.learned


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
    event_micros = _received_micros(session, event, received_micros) if event.time_micros is None else event.time_micros
    mark = _mark(event, event_micros)
    if session is None:
        return Outcome(_begin(event, sender, event_micros, clock_micros, mark), Verdict.ACCEPTED)
    if sender != session.sender:
        return Outcome(session, Verdict.CONFLICT, "the session belongs to another sender")
    is_known, reuses_id = _find(session.marks, mark)
    if is_known:
        return Outcome(session, Verdict.DUPLICATE)
    session_rank, rank = session.rank, _rank(event.qos_status, event.status_info)
    is_back_and_forth = resumes and {event.qos_status, session.qos_status} == _BACK_AND_FORTH
    if is_back_and_forth:
        rank = session_rank
    # A session's rank never falls, so an event of a higher one was never seen, however old its time says it is.
    if rank <= session_rank and session.marks_cut_micros is not None and event_micros <= session.marks_cut_micros:
        return Outcome(session, Verdict.CONFLICT, "too old for the session's memory to tell whether it is a repetition")
    memory = _remember(session, mark, clock_micros)
    if event.qos_status is QosStatus.UNAVAILABLE and (_END in session.learned or session.is_missing):
        # The end that was learned of comes by itself after all, and may know the reason.
        learned = session.learned if event.status_info is None else session.learned.replace(_MISSING, _END)
        after = session._replace(status_info=event.status_info or session.status_info, learned=learned, **memory)
        return Outcome(after, Verdict.UNCHANGED, reuses_id=reuses_id)
    if event.qos_status is session.qos_status and event.status_info == session.status_info:
        after = session._replace(time_micros=max(session.time_micros, event_micros), **memory)
        return Outcome(after, Verdict.UNCHANGED, reuses_id=reuses_id)
    # What the API told has the API's time, and the sender's clock may be another: then the order of arrival counts.
    is_older = event_micros < session.time_micros and (
        is_back_and_forth or session.qos_status[0] not in session.learned
    )
    is_no_proof = session.is_missing and not _takes_back(session, event, received_micros)
    is_behind = is_no_proof or (is_older and not _is_beyond_belief(session))
    if rank < session_rank or (rank == session_rank and is_behind):
        told_already = event.qos_status[0] in session.learned
        after = _late(session, event, memory)
        return Outcome(after, Verdict.UNCHANGED if told_already else Verdict.LATE, reuses_id=reuses_id)
    learned = session.learned.replace(event.qos_status[0], "").replace(_MISSING, "")
    if event.qos_status is QosStatus.AVAILABLE:
        learned = learned.replace(_END, "")  # it was taken up again
    after = _change(session, event, event_micros, memory, learned)
    return Outcome(after, Verdict.ACCEPTED, reuses_id=reuses_id)


def learn(
    session: Session | None, event: Event, facts: Facts, sender: str, clock_micros: int
) -> tuple[Session, Verdict]:
    """What the operator's API, which tells of a status and of facts, makes of `session` (None: not remembered).

    Returns the session afterwards and the verdict: accepted where the session was behind the API, unchanged where only
    facts are new, and duplicate where nothing is. `sender` is who will tell of a session that was not known.
    """
    status, ends = event.qos_status, event.qos_status is QosStatus.UNAVAILABLE
    letter = _MISSING if ends and event.source == MISSING_SOURCE else status[0]
    event_micros = clock_micros if event.time_micros is None else event.time_micros
    mark = _mark(event, event_micros)
    if session is None:
        begun = _begin(event, sender, event_micros, clock_micros, mark)
        return begun._replace(facts=facts, learned=letter), Verdict.ACCEPTED
    if letter == _MISSING and (session.is_missing or _find(session.marks, mark)[0]):
        return session, Verdict.DUPLICATE  # told already, though it may have been taken back since
    known = session._replace(facts=merged_facts(session.facts, facts))
    rank = 2 if ends else _rank(event.qos_status, event.status_info)
    # One that went without a reason came back only if the API said so after that came in, whatever the sender's clock.
    is_after = event_micros > max(session.time_micros, session.touched_micros)
    if rank > session.rank or (rank == session.rank and status is not session.qos_status and is_after):
        memory = _remember(session, mark, clock_micros)
        before = session.learned.replace(_MISSING, "")
        learned = before if letter in before else before + letter
        if status is session.qos_status:  # it was UNAVAILABLE already, but might have come back
            status_info = event.status_info or session.status_info
            return known._replace(status_info=status_info, learned=learned, **memory), Verdict.UNCHANGED
        return _change(known, event, event_micros, memory, learned), Verdict.ACCEPTED
    if known.facts == session.facts:
        return session, Verdict.DUPLICATE
    return known._replace(touched_micros=clock_micros), Verdict.UNCHANGED


def was_told(session: Session, event: Event) -> bool:
    """Whether the session remembers this event, which has a time, or one with the same content."""
    return event.time_micros is not None and _find(session.marks, _mark(event, event.time_micros))[0]


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
    cuts += map(_told_micros, marks[:-MARKS_MAX])
    after = ahead._replace(
        touched_micros=newer.touched_micros,
        marks=marks[-MARKS_MAX:],
        marks_cut_micros=max(cuts, default=None),
        facts=merged_facts(older.facts, newer.facts),
        learned=ahead.learned + "".join(each for each in behind.learned if each not in ahead.learned + _MISSING),
    )
    if _END in after.learned and behind.qos_status is QosStatus.UNAVAILABLE:
        after = after._replace(status_info=after.status_info or behind.status_info)
    return after if behind.available_micros is None else _granted(after, behind.available_micros)


def _rank(qos_status: QosStatus, status_info: str | None) -> int:
    if qos_status is QosStatus.REQUESTED:
        return 0
    return 1 if status_info is None else 2


def _mark(event: Event, event_micros: int) -> str:
    """`identity|content|time`, such as `6f1e90d2b3a4c5f7|U.1764000000000000.1c291ca3|1764000000000000`.

    Two events of a session have the same content if status, time, type and reason are the same.
    """
    # CloudEvents 1.0.2, spec.md, "id": an event is identified by source and id together, never by id alone.
    identity = (
        _NO_ID
        if event.id is None
        else blake2b(f"{event.source or ''}\0{event.id}".encode(), digest_size=_DIGEST_BYTES).hexdigest()
    )
    told = "" if event.time_micros is None else event.time_micros
    return f"{identity}|{event.qos_status[0]}.{told}.{_kind(event.type, event.status_info)}|{event_micros}"


def _told_micros(mark: str) -> int:
    """The event time of a mark."""
    return int(mark.rsplit("|", 1)[1])


@lru_cache(1024)
def _kind(event_type: str, status_info: str | None) -> str:
    text = f"{event_type}\0{status_info or ''}"
    return f"{crc32(text.encode()):08x}"


def _find(marks: tuple[str, ...], mark: str) -> tuple[bool, bool]:
    """Whether one of the marks stands for the same event, and else whether one has its id."""
    identity, content, _ = mark.split("|")
    has_id, reuses_id = identity != _NO_ID, False
    status, _, kind = content.split(".")
    same_status, same_kind, content = f"{identity}|{status}.", f".{kind}|", f"|{content}|"
    for known in marks:
        if content in known:
            return True, False
        if has_id and known.startswith(identity):
            if known.startswith(same_status) and same_kind in known:
                return True, False
            reuses_id = True
    return False, reuses_id


def _is_beyond_belief(session: Session) -> bool:
    """Whether its time can't be true, which earlier releases took as it was told."""
    return is_far(session.time_micros, session.touched_micros)


def _received_micros(session: Session | None, event: Event, received_micros: int) -> int:
    """The time of an event that has none: of its receipt, but for an end not before what it ends, see the module."""
    if session is None or event.qos_status is not QosStatus.UNAVAILABLE:
        return received_micros
    is_within = received_micros >= session.time_micros - _RECEIPTS_DIFFER_MICROS
    return max(received_micros, session.time_micros) if is_within else received_micros


def _takes_back(session: Session, event: Event, received_micros: int) -> bool:
    """Whether an AVAILABLE shows that a session is there that counts as missing: see the module."""
    if event.time_micros is None:
        return False
    told = sum(f"|{QosStatus.AVAILABLE[0]}." in mark for mark in session.marks)
    is_senders_first = told <= (QosStatus.AVAILABLE[0] in session.learned)
    later_micros = _CLEARLY_LATER_MICROS if is_senders_first else 0
    return session.touched_micros + later_micros <= event.time_micros <= received_micros


def _begin(event: Event, sender: str, event_micros: int, clock_micros: int, mark: str) -> Session:
    return Session(
        event.session_id,
        sender,
        event.qos_status,
        event.status_info,
        event_micros,
        clock_micros,
        event_micros if event.qos_status is QosStatus.AVAILABLE else None,
        None,
        (mark,),
        None,
    )


class _Memory(TypedDict):
    """The fields of a session that every event taken into account changes."""

    touched_micros: int
    marks: tuple[str, ...]
    marks_cut_micros: int | None


def _remember(session: Session, mark: str, clock_micros: int) -> _Memory:
    marks, cut_micros = (*session.marks, mark), session.marks_cut_micros
    if len(marks) > MARKS_MAX:
        oldest_micros = _told_micros(marks[0])
        marks, cut_micros = marks[1:], oldest_micros if cut_micros is None else max(cut_micros, oldest_micros)
    return {"touched_micros": clock_micros, "marks": marks, "marks_cut_micros": cut_micros}


def _late(session: Session, event: Event, memory: _Memory) -> Session:
    """The session after an event that is behind it."""
    if event.qos_status is QosStatus.AVAILABLE and event.time_micros is not None:
        session = _granted(session, event.time_micros)
    return session._replace(**memory)


def _granted(session: Session, available_micros: int) -> Session:
    """The session with an availability that is told only now, where it knows of none, and an end came after that."""
    if session.available_micros is not None or session.qos_status is not QosStatus.UNAVAILABLE:
        return session
    # None of them is missing: an event as old as a mark that was cut off does not get here.
    told = map(_told_micros, (mark for mark in session.marks if f"|{_END}." in mark))
    ended_micros = min((micros for micros in told if micros >= available_micros), default=None)
    if ended_micros is None:
        return session
    seconds = (ended_micros - available_micros) / 1e6
    return session._replace(available_micros=available_micros, available_seconds=seconds)


def _change(session: Session, event: Event, event_micros: int, memory: _Memory, learned: str) -> Session:
    available_micros, available_seconds = session.available_micros, session.available_seconds
    if event.qos_status is QosStatus.AVAILABLE:
        is_back = session.is_missing and available_micros is not None  # it was never away
        available_micros, available_seconds = available_micros if is_back else event_micros, None
    elif session.qos_status is QosStatus.AVAILABLE and available_micros is not None:
        available_seconds = max(0, event_micros - available_micros) / 1e6
    return Session(
        session_id=session.session_id,
        sender=session.sender,
        qos_status=event.qos_status,
        status_info=event.status_info,
        time_micros=event_micros,
        available_micros=available_micros,
        available_seconds=available_seconds,
        facts=session.facts,
        learned=learned,
        **memory,
    )
