"""The record of a change on the status topic and on the topics of additional routes. Pure."""

from typing import Any

import orjson

from receiver.core import rfc3339
from receiver.core.event import Event, QosStatus
from receiver.core.facts import with_members
from receiver.core.notification import Notification
from receiver.core.session import Session, Verdict

# Looking up an enum's member takes ten times as long as looking up a name.
_UNAVAILABLE, _ACCEPTED, _LATE = QosStatus.UNAVAILABLE, Verdict.ACCEPTED, Verdict.LATE
_DAY_MICROS = 24 * 60 * 60 * 1_000_000


def status_value(
    event: Event, session: Session, verdict: Verdict, notification: Notification, *, granted: bool
) -> bytes:
    """The flat JSON of the status topic. `granted` marks a late event that filled in the session's availability."""
    received_at = rfc3339.render(notification.received_micros)
    value: dict[str, Any] = {
        "sessionId": event.session_id,
        "qosStatus": event.qos_status,
        "time": received_at if event.time_micros is None else rfc3339.render(event.time_micros),
        "receivedAt": received_at,
        "sender": notification.sender,
        "late": verdict is _LATE,
    }
    if event.status_info is not None:
        value["statusInfo"] = event.status_info
    if event.qos_status is _UNAVAILABLE:
        value["unexpected"] = event.unexpected
        if verdict is _ACCEPTED and session.available_seconds is not None:
            value["availableSeconds"] = session.available_seconds
    elif granted and session.available_micros is not None and session.available_seconds is not None:
        value["availableSince"] = rfc3339.render(session.available_micros)
        value["availableSeconds"] = session.available_seconds
    return orjson.dumps(with_members(value, session.facts))


def status_millis(event: Event, received_micros: int) -> int:
    """The record's timestamp in milliseconds: the event's time if brokers accept it, else the time of receipt.

    Brokers refuse records from far in the future and delete records from long ago at once. A sender's wrong clock must
    not stop a lane (KIP-1030), so the event's time counts only within the day before receipt.
    """
    told = event.time_micros
    is_told = told is not None and received_micros - _DAY_MICROS <= told <= received_micros
    return (told if told is not None and is_told else received_micros) // 1000
