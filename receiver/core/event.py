"""Event: the fact in a notification, independent of the dialect. Pure."""

import re
from enum import StrEnum

from receiver.core.value import Value


class QosStatus(StrEnum):
    """The status of a QoS session. CAMARA sends the last two in events; REQUESTED is the session resource's."""

    REQUESTED = "REQUESTED"
    AVAILABLE = "AVAILABLE"
    UNAVAILABLE = "UNAVAILABLE"

    __hash__ = str.__hash__  # Enum's own is Python code, and this one is called very often


class StatusInfo(StrEnum):
    """Why a session became UNAVAILABLE, in today's CAMARA releases. Later releases may add values."""

    DURATION_EXPIRED = "DURATION_EXPIRED"
    NETWORK_TERMINATED = "NETWORK_TERMINATED"
    DELETE_REQUESTED = "DELETE_REQUESTED"

    __hash__ = str.__hash__


# Looking up an enum's member takes ten times as long as looking up a name.
_UNAVAILABLE = QosStatus.UNAVAILABLE

#: Ends that a client caused or knew of. All others, those without a reason included, are what people alert on.
EXPECTED_ENDS = frozenset({StatusInfo.DURATION_EXPIRED, StatusInfo.DELETE_REQUESTED})


class Dialect(StrEnum):
    """The wire shape of a notification: ten releases come down to three."""

    BARE = "bare"  # v0.8: {"sessionId", "event": "SESSION_TERMINATED"}
    EVENT = "event"  # v0.9: {"event": {"eventType", "eventTime", "eventDetail": {…}}}, or that event alone
    CLOUDEVENTS = "cloudevents"  # v0.10 and later: CloudEvents 1.0, structured


class Oddity(StrEnum):
    """An oddity that did not stop the event: the odd part was dropped, or read differently from what is written."""

    TYPE = "type"  # unknown to this release, but the event is complete
    ID = "id"  # not printable text
    SOURCE = "source"
    TIME = "time"  # not readable
    STATUS_INFO = "status_info"
    JSON = "json"  # a member that appears twice with one value, a byte order mark, an invalid character
    FAR_TIME = "far_time"  # an impossible time, see `believed`
    REUSED_ID = "reused_id"  # the id of another event of the session; see `session.py`

    __hash__ = str.__hash__


#: The sender's clock gives an event its time. A clock in another zone is hours off, and a notification that was posted
#: again for as long as senders do is days old. A time that is off by half a year or more is not the event's: a clock
#: that was never set, a variable that was never filled (1970, year 1, 9999), or a wrong year.
_FAR_MICROS = 183 * 24 * 60 * 60 * 1_000_000


class Event(Value, frozen=True):
    """One change of one session's status.

    `type` is the sender's own spelling. `id`, `source` and `time_micros` are None where the dialect or the sender
    leaves them out. `status_info` is the sender's text, in `StatusInfo` or not, and None unless UNAVAILABLE.
    """

    session_id: str
    qos_status: QosStatus
    status_info: str | None
    time_micros: int | None  # microseconds since 1970 in UTC; finer fractions are truncated
    id: str | None
    source: str | None
    type: str
    dialect: Dialect
    oddities: tuple[Oddity, ...] = ()

    def believed(self, received_micros: int) -> "Event":
        """The event, without a time that is half a year or more away from its receipt and so can't be true."""
        if self.time_micros is None or not is_far(self.time_micros, received_micros):
            return self
        return self._replace(time_micros=None, oddities=(*self.oddities, Oddity.FAR_TIME))

    @property
    def unexpected(self) -> bool:
        """Whether this is an end that no client asked for: by the network, unexplained, or for an unknown reason."""
        return self.qos_status is _UNAVAILABLE and self.status_info not in EXPECTED_ENDS


class Unrecognized(Value, frozen=True):
    """A well-formed envelope that this release can't use: another API's event, or a new type or status."""

    type: str
    session_id: str | None
    explanation: str


def is_far(time_micros: int, received_micros: int) -> bool:
    """Whether a time is too far from the time of receipt to be the event's."""
    return abs(time_micros - received_micros) >= _FAR_MICROS


_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def canonical(session_id: str) -> str:
    """The session id in the form used as a key: a UUID is the same in upper and lower case (RFC 9562, 4)."""
    lower = session_id.lower()
    return lower if lower != session_id and _UUID.fullmatch(session_id) is not None else session_id
