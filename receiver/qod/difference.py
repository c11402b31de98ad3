"""The difference between the operator API's sessions and ours: what was never notified. Pure.

`learn`, which the router uses too, decides what is news.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from receiver.core.event import QosStatus, StatusInfo
from receiver.core.facts import NO_FACTS, Facts
from receiver.core.notification import RECONCILE
from receiver.core.session import Session, Verdict, learn, was_told
from receiver.qod.model import ApiSession
from receiver.qod.telling import Telling, planned_end, telling_of

_RECENT_MICROS = 3600 * 1_000_000


class Difference(NamedTuple):
    """How a session of ours is behind the API; `ours` is None for a session that is not remembered."""

    ours: Session | None
    telling: Telling
    #: Whether the status is news, and not only facts.
    is_news: bool


def differences(
    theirs: Mapping[str, ApiSession | None],
    ours: Mapping[str, Session],
    asked_micros: int,
    facts: Callable[[ApiSession], Facts],
) -> list[Difference]:
    """The sessions in which ours are behind theirs. `theirs` is by session id; None is a session unknown to the API.

    `asked_micros` is the time just before the API was asked.
    """
    found = []
    for session_id, session in theirs.items():
        mine = ours.get(session_id)
        if session is None:
            if mine is None or not may_be_gone(mine):
                continue
            telling = _gone(mine, asked_micros)
        elif mine is None and session.qos_status is QosStatus.UNAVAILABLE and not _is_recent(session, asked_micros):
            continue
        else:
            telling = telling_of(session, mine, asked_micros, facts(session))
        _, verdict = learn(mine, telling.event(RECONCILE), telling.facts, "", asked_micros)
        if verdict is not Verdict.DUPLICATE:
            found.append(Difference(mine, telling, verdict is Verdict.ACCEPTED))
    return found


def _is_recent(session: ApiSession, asked_micros: int) -> bool:
    """Whether it ended lately. A session that ended long ago may be one that the router has forgotten."""
    return session.expires_micros is not None and asked_micros - session.expires_micros < _RECENT_MICROS


def may_be_gone(mine: Session) -> bool:
    """Whether the session is over if the API does not know it: it has not ended yet, and the API did know it.

    A session that the API never reported may belong to another client, to whom the API reports it.
    """
    return mine.qos_status is not QosStatus.UNAVAILABLE and mine.facts != NO_FACTS


def _gone(mine: Session, asked_micros: int) -> Telling:
    """The end of a session that the API does not know any more. Before its planned end the reason is unknown."""
    ends_micros = planned_end(mine)
    if ends_micros is not None and ends_micros <= asked_micros:
        expired = StatusInfo.DURATION_EXPIRED.value
        planned = Telling(mine.session_id, QosStatus.UNAVAILABLE, expired, ends_micros, NO_FACTS, is_missing=True)
        if not was_told(mine, planned.event(RECONCILE)):  # else the end was taken back: the session outlived it
            return planned
    return Telling(mine.session_id, QosStatus.UNAVAILABLE, None, asked_micros, NO_FACTS, is_missing=True)
