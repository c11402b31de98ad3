"""Event: the fact that a notification tells, free of the dialect that it was told in. Pure."""

from enum import StrEnum
from typing import NamedTuple


class QosStatus(StrEnum):
    """The status of a QoS session. CAMARA sends the last two in events; REQUESTED is the session resource's."""

    REQUESTED = "REQUESTED"
    AVAILABLE = "AVAILABLE"
    UNAVAILABLE = "UNAVAILABLE"

    __hash__ = str.__hash__  # Enum's own is Python code, and the router asks for it all the time


class StatusInfo(StrEnum):
    """Why a session became UNAVAILABLE, as far as today's releases tell. Later ones may send more."""

    DURATION_EXPIRED = "DURATION_EXPIRED"
    NETWORK_TERMINATED = "NETWORK_TERMINATED"
    DELETE_REQUESTED = "DELETE_REQUESTED"

    __hash__ = str.__hash__


#: The ends that a client brought about or knew of. Every other one, the unexplained included, is what people alert on.
EXPECTED_ENDS = frozenset({StatusInfo.DURATION_EXPIRED, StatusInfo.DELETE_REQUESTED})


class Dialect(StrEnum):
    """The wire shape of a notification: ten releases come down to three."""

    BARE = "bare"  # v0.8: {"sessionId", "event": "SESSION_TERMINATED"}
    EVENT = "event"  # v0.9: {"event": {"eventType", "eventTime", "eventDetail": {…}}}, or that event alone
    CLOUDEVENTS = "cloudevents"  # v0.10 and later: CloudEvents 1.0, structured


class Event(NamedTuple):
    """One change of one session's status.

    `type` is the sender's own spelling. `id`, `source` and `time_micros` are None where the dialect or the sender
    leaves them out; `status_info` is the sender's word, known to `StatusInfo` or not, and None unless UNAVAILABLE.
    """

    session_id: str
    qos_status: QosStatus
    status_info: str | None
    time_micros: int | None  # microseconds since 1970 in UTC; finer fractions are cut
    id: str | None
    source: str | None
    type: str
    dialect: Dialect

    @property
    def unexpected(self) -> bool:
        """Whether this is an end that nobody asked for: by the network, unexplained, or for a reason unknown to us."""
        return self.qos_status is QosStatus.UNAVAILABLE and self.status_info not in EXPECTED_ENDS


class Unrecognized(NamedTuple):
    """A well-formed envelope that tells nothing this release knows: another API's event, or a new type or status."""

    type: str
    session_id: str | None
    explanation: str
