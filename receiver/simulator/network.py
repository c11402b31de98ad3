"""The network: all sessions, their steps, and when these happen.

Each session has at most one timer, for its next step. A step is written into the ledger, and told to the session's
receiver, at the moment at which it happens.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import structlog

from receiver.simulator import sessions
from receiver.simulator.chance import Chance, seeded
from receiver.simulator.creation import Wanted
from receiver.simulator.dialects import Release
from receiver.simulator.faults import Sender
from receiver.simulator.ledger import Ledger
from receiver.simulator.notifier import Feed, Notifier
from receiver.simulator.plan import Plan, plan_for
from receiver.simulator.sessions import Cause, Session, Status
from receiver.simulator.timers import Timers, nothing

_log = structlog.get_logger("receiver")


class DeviceBusy(Exception):
    """The device has a session already."""


class NetworkFull(Exception):
    """The number of sessions has reached its limit."""


class Behaviour(NamedTuple):
    """How the network treats sessions, which take the releases in turn."""

    plan: Plan
    seed: int
    speed: float
    available_after_seconds: float
    releases: Sequence[Release]
    sessions_max: int


@dataclass(eq=False, slots=True)
class _Kept:
    """A session, and everything that belongs to it."""

    session: Session
    identifiers: Sequence[str]
    plan: Plan
    chance: Chance
    feed: Feed | None
    cancel: Callable[[], None]


class Network:
    """All sessions that can be read."""

    def __init__(self, behaviour: Behaviour, notifier: Notifier, ledger: Ledger, timers: Timers) -> None:
        self._behaviour = behaviour
        self._notifier = notifier
        self._ledger = ledger
        self._timers = timers
        self._chance = seeded(behaviour.seed)
        self._kept: dict[str, _Kept] = {}
        self._busy: dict[str, str] = {}
        self._count = 0

    def create(self, wanted: Wanted, client_id: str, sessions_url: str) -> Session:
        """Create a session of this client, REQUESTED. Raises DeviceBusy and NetworkFull."""
        if any(identifier in self._busy for identifier in wanted.identifiers):
            raise DeviceBusy
        behaviour = self._behaviour
        if len(self._kept) >= behaviour.sessions_max:
            raise NetworkFull
        self._count += 1
        number = self._count
        session = Session(
            number, str(uuid.uuid4()), client_id, wanted.device, wanted.qos_profile, wanted.duration_seconds
        )
        plan = plan_for(wanted.phone_number, behaviour.plan)
        chance = self._chance.of("session", number)
        release = behaviour.releases[(number - 1) % len(behaviour.releases)]
        feed = None
        if wanted.notification_url is not None:
            source = f"{sessions_url}/{session.session_id}"
            sender = Sender(plan, chance, release)
            feed = Feed(wanted.notification_url, wanted.notification_auth_token, source, sender)
        kept = _Kept(session, wanted.identifiers, plan, chance, feed, nothing)
        self._kept[session.session_id] = kept
        self._busy |= dict.fromkeys(wanted.identifiers, session.session_id)
        self._ledger.created(session, release.name, wanted.notification_url, _now_micros())
        _log_step(session, "requested")
        self._plan_next(kept)
        return session

    def find(self, session_id: str, client_id: str) -> Session:
        """A session of this client. Raises KeyError if it can't be read."""
        return self._of_client(session_id, client_id).session

    def active(self, client_id: str) -> list[Session]:
        """The sessions of this client that have not ended, in the order of their creation."""
        return [
            kept.session
            for kept in self._kept.values()
            if kept.session.is_active and kept.session.client_id == client_id
        ]

    def delete(self, session_id: str, client_id: str) -> None:
        """End a session for its client. Raises KeyError if there is none, or it has ended."""
        kept = self._of_client(session_id, client_id)
        if not kept.session.is_active:
            raise KeyError(session_id)
        self._step(kept, Cause.DELETED)

    def terminate(self, session_id: str) -> bool:
        """End a session by the network. Returns whether it had not ended before. Raises KeyError."""
        kept = self._kept[session_id]
        if not kept.session.is_active:
            return False
        self._step(kept, Cause.REFUSED if kept.session.status is Status.REQUESTED else Cause.TERMINATED)
        return True

    @property
    def statuses(self) -> Mapping[str, int]:
        """The number of readable sessions in each status."""
        counts = dict.fromkeys(map(str, Status), 0)
        for kept in self._kept.values():
            counts[kept.session.status] += 1
        return counts

    def _of_client(self, session_id: str, client_id: str) -> _Kept:
        """A session, for its own client only (QualityOnDemand r1.2, deleteSession). Raises KeyError."""
        kept = self._kept[session_id]
        if kept.session.client_id != client_id:
            raise KeyError(session_id)
        return kept

    def _step(self, kept: _Kept, cause: Cause) -> None:
        now_micros = _now_micros()
        session = sessions.stepped(kept.session, cause, now_micros, self._behaviour.speed)
        if session is None:
            return
        kept.cancel()
        kept.session = session
        self._ledger.stepped(session, now_micros)
        _log_step(session, cause)
        if kept.feed is not None:
            self._notifier.tell(session, kept.feed, now_micros)
        if session.is_active:
            self._plan_next(kept)
            return
        for identifier in kept.identifiers:
            del self._busy[identifier]
        if session.status_info == "NETWORK_TERMINATED":
            readable_seconds = sessions.READABLE_SECONDS / self._behaviour.speed
            kept.cancel = self._timers.after(readable_seconds, partial(self._kept.pop, session.session_id))
        else:
            del self._kept[session.session_id]

    def _plan_next(self, kept: _Kept) -> None:
        behaviour = self._behaviour
        due = sessions.due(kept.session, kept.plan, kept.chance, behaviour.available_after_seconds, behaviour.speed)
        kept.cancel = nothing if due is None else self._timers.after(due.seconds, partial(self._step, kept, due.cause))


def _now_micros() -> int:
    return time.time_ns() // 1_000


def _log_step(session: Session, cause: str) -> None:
    _log.info(
        "session",
        session=session.number,
        session_id=session.session_id,
        cause=str(cause),
        qos_status=str(session.status),
        status_info=session.status_info,
    )
