"""Compares the simulator's ledger with the receiver's output: is the effect of each kept post there once?

The rules are the receiver's promises. They use the ledger alone, and neither the parser nor the router:

    a post            is kept if it was answered 204, or 400 for a malformed body; a stranger's never is
    a change          that was kept, in however many posts, is on `status` once, and an end on `unavailable`
    a malformed body  is a dead letter for each time that it was kept, byte for byte
    a session         is in the state that was told last
    late              is an AVAILABLE behind its session's end on `status`, and nothing else

If the ledger can't decide a rule, either outcome is allowed for that post or session, and counted: see `Undetermined`.
"""

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from receiver.core import rfc3339
from receiver.demo.ledger import Post

State = tuple[str, str | None]
"""A status and its reason."""

#: Ends that the client caused or knew of (QualityOnDemand r1.2, StatusInfo); any other is unexpected.
_EXPECTED_ENDS = {"DURATION_EXPIRED", "DELETE_REQUESTED"}
#: Releases before Commonalities v0.2, which have no x-correlator.
_WITHOUT_CORRELATOR = {"0.8", "0.9", "0.9-flat"}


class Routed(NamedTuple):
    """A record of the output, on a topic without its prefix; `session` is its session's number, 0 if unknown."""

    topic: str
    session: int
    session_id: str
    value: Mapping[str, Any]
    headers: Mapping[str, str]

    @property
    def is_unexpected(self) -> bool:
        """Whether the record is an alert."""
        return self.topic == "unavailable" and self.value["unexpected"] is True


class Outcome(NamedTuple):
    """The whole output: records in the order of their topics, sessions by id, the count of each verdict.

    `taken` is the number of notifications that the receiver reports as kept by its edge.
    """

    routed: Sequence[Routed]
    sessions: Mapping[str, State]
    verdicts: Mapping[str, int]
    taken: int


class Undetermined(StrEnum):
    """Cases that the ledger can't decide."""

    #: The whole body was sent, but the answer was not read: it may have been kept or not.
    UNHEARD = "sent whole, but the answer was not read: kept or not, either is right"
    #: Two changes of a session were on their way at the same time: either may have been kept first.
    CONCURRENT = "told at the same time as the session's other change: either order is right"
    #: An end without a reason is ordered by its time, and an untold time is that of receipt.
    UNORDERED = "ended without a reason, and without a time to order by: either end state is right"


class Comparison(NamedTuple):
    """The faults, a line each, and the number of right sessions among all that were told."""

    faults: Sequence[str]
    right: int
    told: int
    undetermined: Mapping[Undetermined, int]


def due_answer(post: Post) -> int:
    """The status of the right answer to a post. A stranger learns nothing about the body."""
    if post.authorization != "right":
        return 401
    return 400 if post.malformed else 204


def is_kept(post: Post) -> bool | None:
    """Whether a post was kept, by its answer; None if that can't be known from outside."""
    never = post.failure == "no connection" or post.sent != "whole" or post.authorization != "right"
    if never:
        return False
    # 503 says that nothing is known to be kept.
    return None if post.answer in {None, 503} else post.answer == due_answer(post)


@dataclass(eq=False)
class _Change:
    """A step of a session that was told legibly: the posts that were kept, and those that may have been.

    `records` are the change's records on `status`, each with its place there.
    """

    name: str
    state: State
    time_micros: int | None
    kept: list[Post] = field(default_factory=list)
    perhaps: list[Post] = field(default_factory=list)
    records: list[tuple[int, Routed]] = field(default_factory=list)

    @property
    def is_end(self) -> bool:
        return self.state[0] == "UNAVAILABLE"

    @property
    def begun_micros(self) -> int:
        """The earliest time at which it may have been kept."""
        return min(post.posted_micros for post in (*self.kept, *self.perhaps))

    @property
    def kept_micros(self) -> float:
        """The time by which it was kept."""
        return min((post.answered_micros for post in self.kept), default=math.inf)


def compare(posts: Sequence[Post], outcome: Outcome) -> Comparison:
    """Compare the ledger's posts with the output."""
    posts = [post for post in posts if post.is_made]
    undetermined = Counter({Undetermined.UNHEARD: sum(is_kept(post) is None for post in posts)})
    faults = [
        f"post {post.sequence}: answered {post.answer} in place of {due_answer(post)}"
        for post in posts
        if post.answer not in {None, due_answer(post)}
    ]
    sessions = _changes(posts)
    faults += _find_records(sessions, outcome.routed)
    alerts: dict[str, list[Routed]] = {}
    for routed in outcome.routed:
        if routed.topic == "unavailable":
            alerts.setdefault(routed.session_id, []).append(routed)
    right = 0
    for session_id, changes in sessions.items():
        loose = _looseness(changes)
        undetermined.update(loose)
        wrong = [
            *(what for change in changes for what in _effect(change)),
            *_order(changes, loose),
            *_alerts(changes, loose, alerts.get(session_id, [])),
            *_end(changes, loose, outcome.sessions.get(session_id)),
        ]
        right += not wrong
        faults += wrong
    faults += _letters(posts, outcome.routed)
    faults += _counts(posts, sessions.values(), outcome)
    return Comparison(faults, right, len(sessions), +undetermined)


def _changes(posts: Sequence[Post]) -> dict[str, list[_Change]]:
    """The told changes of each session, by id, in order."""
    found: dict[tuple[str, int], _Change] = {}
    for post in sorted(posts, key=lambda post: post.step):
        kept = is_kept(post)
        if kept is False or post.malformed:
            continue
        change = found.get((post.session_id, post.step))
        if change is None:
            name = " ".join(filter(None, (f"session {post.session}", post.qos_status, post.status_info)))
            time_micros = None if post.time is None else rfc3339.micros(post.time.upper())
            change = _Change(name, (post.qos_status, post.status_info), time_micros)
            found[post.session_id, post.step] = change
        (change.perhaps if kept is None else change.kept).append(post)
    sessions: dict[str, list[_Change]] = {}
    for (session_id, _), change in found.items():
        sessions.setdefault(session_id, []).append(change)
    return sessions


def _find_records(sessions: Mapping[str, Sequence[_Change]], routed: Sequence[Routed]) -> Iterator[str]:
    """Give each change its records, and report records without a change. A session has each status once."""
    for place, each in enumerate(routed):
        if each.topic not in {"status", "unavailable"}:
            continue
        status = each.value["qosStatus"]
        change = next((change for change in sessions.get(each.session_id, ()) if change.state[0] == status), None)
        if change is None:
            yield f"{each.topic}: {status} of {each.session_id}, which nobody told"
        elif each.topic == "status":
            change.records.append((place, each))


def _looseness(changes: Sequence[_Change]) -> set[Undetermined]:
    """The reasons why the ledger can't decide the order of a session's two changes."""
    if len(changes) == 1:
        return set()
    begin, end = changes
    if end.state[1] is None and None in {begin.time_micros, end.time_micros}:
        return {Undetermined.UNORDERED}
    apart = begin.kept_micros < end.begun_micros or end.kept_micros < begin.begun_micros
    return set() if apart else {Undetermined.CONCURRENT}


def _effect(change: _Change) -> Iterator[str]:
    """A kept change is on `status` once, as told."""
    if change.kept and not change.records:
        yield f"{change.name}: kept, and not on status"
    if len(change.records) > 1:
        yield f"{change.name}: {len(change.records)} times on status"
    for _, record in change.records:
        value, posts = record.value, (*change.kept, *change.perhaps)
        told = {post.correlator for post in posts if post.release not in _WITHOUT_CORRELATOR}
        if told and record.headers.get("x-correlator") not in told:
            yield f"{change.name}: on status with the correlator of no post of it"
        if value.get("statusInfo") != change.state[1]:
            yield f"{change.name}: on status with the reason {value.get('statusInfo')}"
        if change.time_micros not in {None, rfc3339.micros(value["time"])}:
            yield f"{change.name}: on status with the time {value['time']}"


def _order(changes: Sequence[_Change], loose: set[Undetermined]) -> Iterator[str]:
    """Records are in the order in which their changes were kept, and a beginning behind its end is late."""
    if Undetermined.UNORDERED in loose:
        return
    places = [min((place for place, _ in change.records), default=None) for change in changes]
    ended_place = places[-1] if changes[-1].is_end else None
    for change, place in zip(changes, places, strict=True):
        is_late = place is not None and ended_place is not None and place > ended_place
        if any(record.value["late"] is not is_late for _, record in change.records):
            yield f"{change.name}: {'not ' if is_late else ''}marked as late"
    if len(changes) == 1 or None in places or loose:
        return
    begin, end = changes
    if (begin.kept_micros < end.begun_micros) is not (min(change.records[0][0] for change in changes) == places[0]):
        yield f"{begin.name}: not in the order in which it was kept"


def _alerts(changes: Sequence[_Change], loose: set[Undetermined], alerts: Sequence[Routed]) -> Iterator[str]:
    """An end is on `unavailable` as often as on `status`, unless it is late."""
    ends = [change for change in changes if change.is_end]
    for end in ends:
        due = sum(not record.value["late"] for _, record in end.records)
        if len(alerts) != due or (end.kept and not due and Undetermined.UNORDERED not in loose):
            yield f"{end.name}: {len(alerts)} times on unavailable"
        for alert in alerts:
            told = alert.value.get("statusInfo")
            if told != end.state[1] or alert.value["unexpected"] is (told in _EXPECTED_ENDS):
                yield f"{end.name}: on unavailable as {told}, unexpected {alert.value['unexpected']}"


def _end(changes: Sequence[_Change], loose: set[Undetermined], state: State | None) -> Iterator[str]:
    """The session is in the state told last. A change that may not have been kept may have had no effect."""
    possible: list[State | None] = []
    for change in reversed(changes):
        possible.append(change.state)
        if change.kept and Undetermined.UNORDERED not in loose:
            break
    if not any(change.kept for change in changes):
        possible.append(None)
    if state not in possible:
        yield f"{changes[-1].name}: the session is {state}"


def _letters(posts: Sequence[Post], routed: Sequence[Routed]) -> Iterator[str]:
    """Each malformed body is a dead letter, byte for byte, as often as it was kept; nothing else is."""
    bodies = (base64.b64decode(each.value["body"]) for each in routed if each.topic == "dead-letter")
    letters = Counter(hashlib.sha256(body).hexdigest() for body in bodies)
    malformed = [post for post in posts if post.malformed]
    least = Counter(str(post.body_sha256) for post in malformed if is_kept(post))
    most = Counter(str(post.body_sha256) for post in malformed if is_kept(post) is not False)
    for sha256 in sorted({*letters, *most}):
        if not least[sha256] <= letters[sha256] <= most[sha256]:
            yield f"body {sha256[:8]}: {letters[sha256]} dead letters in place of {least[sha256]}"


def _counts(posts: Sequence[Post], sessions: Iterable[Sequence[_Change]], outcome: Outcome) -> Iterator[str]:
    """There is one verdict for each kept post, and each verdict is as frequent as its records."""
    statuses = [each for each in outcome.routed if each.topic == "status"]
    due = Counter(
        accepted=sum(not each.value["late"] for each in statuses),
        late=sum(each.value["late"] for each in statuses),
        malformed=sum(each.topic == "dead-letter" for each in outcome.routed),
    )
    verdicts = Counter(outcome.verdicts)
    decided = verdicts.total()
    repeated = verdicts.pop("duplicate", 0)
    for verdict in sorted({*due, *verdicts}):
        if verdicts[verdict] != due[verdict]:
            yield f"verdict {verdict}: {verdicts[verdict]} in place of {due[verdict]}"
    # Every post of a change after the first kept one is a repetition.
    changes = [change for each in sessions for change in each]
    least = sum(max(0, len(change.kept) - 1) for change in changes)
    most = sum(max(0, len(change.kept) + len(change.perhaps) - 1) for change in changes)
    if not least <= repeated <= most:
        yield f"verdict duplicate: {repeated} in place of {least}{f' to {most}' if most > least else ''}"
    kept = [is_kept(post) for post in posts]
    if decided != outcome.taken or not kept.count(True) <= decided <= len(kept) - kept.count(False):
        yield f"{decided} decided on, {outcome.taken} taken in, {kept.count(True)} kept for sure"
