"""Event: the fact that a notification tells, free of the dialect that it was told in. Pure."""

import re
from enum import StrEnum

from receiver.core.value import Value


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


# An enum's member takes ten times as long to find as a name.
_UNAVAILABLE = QosStatus.UNAVAILABLE

#: The ends that a client brought about or knew of. Every other one, the unexplained included, is what people alert on.
EXPECTED_ENDS = frozenset({StatusInfo.DURATION_EXPIRED, StatusInfo.DELETE_REQUESTED})


class Dialect(StrEnum):
    """The wire shape of a notification: ten releases come down to three."""

    BARE = "bare"  # v0.8: {"sessionId", "event": "SESSION_TERMINATED"}
    EVENT = "event"  # v0.9: {"event": {"eventType", "eventTime", "eventDetail": {…}}}, or that event alone
    CLOUDEVENTS = "cloudevents"  # v0.10 and later: CloudEvents 1.0, structured


class Oddity(StrEnum):
    """What was odd beside the fact that an event tells: it was dropped, or read otherwise than it is written."""

    TYPE = "type"  # none that this release knows, but the event has all that one has
    ID = "id"  # no printable text
    SOURCE = "source"
    TIME = "time"  # none that can be read
    STATUS_INFO = "status_info"
    JSON = "json"  # a member stands twice with one value, a byte order mark, a character that is none
    FAR_TIME = "far_time"  # it can't be true, see `believed`
    REUSED_ID = "reused_id"  # the id of another event of the session; see `session.py`

    __hash__ = str.__hash__


#: The time of an event is its sender's word. A clock in another zone is hours off, and a notification that was posted
#: again for as long as anybody does is days old. What is off by half a year or more is no time of this event: a clock
#: that was never set, a variable that was never filled (1970, year 1, 9999), or a year that was written wrongly.
_FAR_MICROS = 183 * 24 * 60 * 60 * 1_000_000


class Event(Value, frozen=True):
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
    oddities: tuple[Oddity, ...] = ()

    def believed(self, received_micros: int) -> "Event":
        """The event without a time that can't be true, being half a year or more away from its receipt."""
        if self.time_micros is None or not is_far(self.time_micros, received_micros):
            return self
        return self._replace(time_micros=None, oddities=(*self.oddities, Oddity.FAR_TIME))

    @property
    def unexpected(self) -> bool:
        """Whether this is an end that nobody asked for: by the network, unexplained, or for a reason unknown to us."""
        return self.qos_status is _UNAVAILABLE and self.status_info not in EXPECTED_ENDS


class Unrecognized(Value, frozen=True):
    """A well-formed envelope that tells nothing this release knows: another API's event, or a new type or status."""

    type: str
    session_id: str | None
    explanation: str


def is_far(time_micros: int, received_micros: int) -> bool:
    """Whether a time can't be that of an event that was received then."""
    return abs(time_micros - received_micros) >= _FAR_MICROS


_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def canonical(session_id: str) -> str:
    """The session's id as it is a key: a UUID is the same in upper and in lower case (RFC 9562, 4)."""
    lower = session_id.lower()
    return lower if lower != session_id and _UUID.fullmatch(session_id) is not None else session_id
