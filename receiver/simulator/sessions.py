"""The life of a session in the network. Pure: time comes in.

QualityOnDemand v0.9.0 to r3.2, "State Machine of qosStatus": REQUESTED to AVAILABLE to UNAVAILABLE, or at once from
REQUESTED to UNAVAILABLE; never back.

    status      GRANTED    REFUSED             EXPIRED           TERMINATED          DELETED
    REQUESTED   AVAILABLE  NETWORK_TERMINATED                                        DELETE_REQUESTED
    AVAILABLE                                  DURATION_EXPIRED  NETWORK_TERMINATED  DELETE_REQUESTED
    UNAVAILABLE

Where the table is empty the step does not exist: a timer that fires after a deletion has no effect.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from receiver.core import rfc3339
from receiver.simulator.chance import Chance
from receiver.simulator.plan import Plan

#: QualityOnDemand r3.2, createSession: a session that the network ended can be read for this long.
READABLE_SECONDS = 360.0

#: When the network ends a session early, as a part of its duration.
_TERMINATED_PART_MIN = 0.25
_TERMINATED_PART_MAX = 0.75


class Status(StrEnum):
    """`qosStatus`."""

    REQUESTED = "REQUESTED"
    AVAILABLE = "AVAILABLE"
    UNAVAILABLE = "UNAVAILABLE"


class Cause(StrEnum):
    """The cause of a session's step."""

    GRANTED = "granted"
    REFUSED = "refused"
    EXPIRED = "expired"
    TERMINATED = "terminated"
    DELETED = "deleted"


_STEPS: Mapping[tuple[Status, Cause], tuple[Status, str | None]] = {
    (Status.REQUESTED, Cause.GRANTED): (Status.AVAILABLE, None),
    (Status.REQUESTED, Cause.REFUSED): (Status.UNAVAILABLE, "NETWORK_TERMINATED"),
    (Status.REQUESTED, Cause.DELETED): (Status.UNAVAILABLE, "DELETE_REQUESTED"),
    (Status.AVAILABLE, Cause.EXPIRED): (Status.UNAVAILABLE, "DURATION_EXPIRED"),
    (Status.AVAILABLE, Cause.TERMINATED): (Status.UNAVAILABLE, "NETWORK_TERMINATED"),
    (Status.AVAILABLE, Cause.DELETED): (Status.UNAVAILABLE, "DELETE_REQUESTED"),
}


class Session(NamedTuple):
    """A session. `number` counts sessions from 1, `step` counts this session's changes; times are microseconds."""

    number: int
    session_id: str
    client_id: str
    device: Mapping[str, Any]
    qos_profile: str
    duration_seconds: int
    status: Status = Status.REQUESTED
    status_info: str | None = None
    step: int = 0
    started_micros: int | None = None
    expires_micros: int | None = None

    @property
    def is_active(self) -> bool:
        """Whether the session holds its device."""
        return self.status is not Status.UNAVAILABLE


class Due(NamedTuple):
    """The next step of the network, and the seconds from the last step until it, already divided by the speed."""

    seconds: float
    cause: Cause


def stepped(session: Session, cause: Cause, now_micros: int, speed: float) -> Session | None:
    """The session after a step; None if the step does not exist."""
    reached = _STEPS.get((session.status, cause))
    if reached is None:
        return None
    status, status_info = reached
    session = session._replace(status=status, status_info=status_info, step=session.step + 1)
    if status is Status.AVAILABLE:
        expires_micros = now_micros + round(session.duration_seconds * 1e6 / speed)
        return session._replace(started_micros=now_micros, expires_micros=expires_micros)
    # QualityOnDemand r1.2, SessionInfo.expiresAt: for an ended session it is the time of its end.
    return session._replace(expires_micros=now_micros)


def due(session: Session, plan: Plan, chance: Chance, available_after_seconds: float, speed: float) -> Due | None:
    """The network's next step for a session; None if there is none."""
    if session.status is Status.REQUESTED:
        if chance.happens("stuck", plan.stuck):
            return None
        refused = chance.happens("refused", plan.refused)
        return Due(available_after_seconds / speed, Cause.REFUSED if refused else Cause.GRANTED)
    if session.status is Status.AVAILABLE:
        if chance.happens("terminated", plan.terminated):
            part = chance.between("terminated", _TERMINATED_PART_MIN, _TERMINATED_PART_MAX)
            return Due(session.duration_seconds * part / speed, Cause.TERMINATED)
        return Due(session.duration_seconds / speed, Cause.EXPIRED)
    return None


def info(session: Session) -> dict[str, Any]:
    """SessionInfo as the API has it. Until a session is granted it has no start and no end."""
    fields: dict[str, Any] = {
        "sessionId": session.session_id,
        "device": session.device,
        "qosProfile": session.qos_profile,
        "qosStatus": session.status,
        "duration": session.duration_seconds,
    }
    if session.started_micros is not None:
        fields["startedAt"] = rfc3339.render(session.started_micros)
    if session.expires_micros is not None:
        fields["expiresAt"] = rfc3339.render(session.expires_micros)
    return fields
