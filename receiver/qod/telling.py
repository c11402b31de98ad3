"""The operator API's report of a session, as a notification for the inbox. Pure.

It takes the path of every other notification, so that decisions remain a function of the inbox: it is appended, routed,
recognized if it repeats, and ordered among what senders post. Its body is a CloudEvent of the type that senders use,
with the facts beside the status.
"""

import hmac
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from receiver.core import rfc3339
from receiver.core.errors import Malformed
from receiver.core.event import Dialect, Event, QosStatus, StatusInfo, canonical
from receiver.core.facts import Facts, facts_of, members
from receiver.core.notification import API_ORIGINS, SENDER_NAME, Notification, parse
from receiver.core.session import MISSING_SOURCE, Session
from receiver.qod.model import ApiSession

EVENT_TYPE = "org.camaraproject.qod.v0.qos-status-changed"

_CONTENT_TYPE = "application/cloudevents+json"

#: The end that a server reports may differ from the planned one by this much, for delay and rounding.
_EXPIRED_WITHIN_MICROS = 2_000_000

_SENDER = re.compile(SENDER_NAME)

#: A device is identified by the first of these that the API gives: it may give more of them at times.
_IDENTIFIERS = ("phoneNumber", "networkAccessIdentifier", "ipv4Address", "ipv6Address")


class Telling(NamedTuple):
    """A report that a session has a status since a time, with its facts."""

    session_id: str
    qos_status: QosStatus
    status_info: str | None
    time_micros: int
    facts: Facts
    #: Whether the API does not report this itself, and it is concluded from the session being unknown to it.
    is_missing: bool = False

    def event(self, origin: str) -> Event:
        """The event in this report, as the router sees it."""
        # Equal reports are the same event.
        identifier = f"{self.session_id}/{self.qos_status}/{self.time_micros}"
        return Event(
            self.session_id,
            self.qos_status,
            self.status_info,
            self.time_micros,
            identifier,
            MISSING_SOURCE if self.is_missing else f"/qod-receiver/{origin}",
            EVENT_TYPE,
            Dialect.CLOUDEVENTS,
        )


def telling_of(session: ApiSession, mine: Session | None, asked_micros: int, facts: Facts) -> Telling:
    """The report of a session that the API returned at `asked_micros`; `mine` is the session as known before."""
    status, status_info, time_micros = session.qos_status, None, asked_micros
    if status is QosStatus.UNAVAILABLE:
        # QualityOnDemand r1.2, SessionInfo.expiresAt: for an ended session it is the time of its end.
        if session.expires_micros is not None:
            time_micros = min(session.expires_micros, asked_micros)
        status_info = session.status_info or _reason(session, mine, time_micros)
    elif (
        status is QosStatus.AVAILABLE
        and session.started_micros is not None
        and (mine is None or mine.qos_status is QosStatus.REQUESTED)
    ):
        time_micros = min(session.started_micros, asked_micros)
    session_id = canonical(session.session_id) if mine is None else mine.session_id
    return Telling(session_id, status, status_info, time_micros, facts)


def planned_end(session: Session) -> int | None:
    """When a session of ours ends by itself, in microseconds since 1970; None if that is not known."""
    expires_micros, duration_seconds = session.facts.expires_micros, session.facts.duration_seconds
    if expires_micros is None and duration_seconds is not None and session.available_micros is not None:
        return session.available_micros + duration_seconds * 1_000_000
    return expires_micros


def _reason(session: ApiSession, mine: Session | None, ended_micros: int) -> str | None:
    """The reason for an end, if its time shows it: an end at the planned time is DURATION_EXPIRED."""
    planned_micros = None if mine is None else planned_end(mine)
    if planned_micros is None and session.started_micros is not None and session.duration_seconds is not None:
        planned_micros = session.started_micros + session.duration_seconds * 1_000_000
    if planned_micros is not None and ended_micros >= planned_micros - _EXPIRED_WITHIN_MICROS:
        return StatusInfo.DURATION_EXPIRED.value
    return None


def facts_told(session: ApiSession, device_key: bytes, *, identifiers: bool) -> Facts:
    """The API's facts of a session. They include the device's own identifiers only if `identifiers` is true."""
    return Facts(
        session.qos_profile,
        session.duration_seconds,
        session.expires_micros,
        device_hash(session.device, device_key),
        dict(session.device) or None if identifiers else None,
    )


def device_hash(device: Mapping[str, Any], key: bytes) -> str | None:
    """A keyed hash for a device: the HMAC-SHA256 of its first identifier; None if it has none.

    A plain hash would not do: there are few enough phone numbers to try them all.
    """
    for name in _IDENTIFIERS:
        if value := device.get(name):
            text = orjson.dumps([name, value], option=orjson.OPT_SORT_KEYS)
            return hmac.digest(key, text, "sha256").hex()
    return None


def sent(notification: Notification) -> dict[str, Any]:
    """A notification made from the API's report as JSON, for the process that keeps it."""
    body = orjson.loads(notification.body)
    return {"origin": notification.origin, "sender": notification.sender, "event": body}


def received(tree: Mapping[str, Any], now_micros: int) -> Notification:
    """The inverse of `sent`. Raises Malformed, KeyError, TypeError and ValueError."""
    origin, sender, body = tree["origin"], tree["sender"], orjson.dumps(tree["event"])
    event = parse(body)
    if origin not in API_ORIGINS or not _SENDER.fullmatch(sender) or not isinstance(event, Event):
        raise Malformed("this is not the API's report of a session")
    facts_of(tree["event"]["data"])
    return Notification(body, event.session_id, sender, now_micros, _CONTENT_TYPE, "", "", origin)


def notification(telling: Telling, origin: str, sender: str, now_micros: int) -> Notification:
    """The report as appended to the inbox; `sender` is the name of the sender that notifies of such sessions."""
    event = telling.event(origin)
    data = {"sessionId": telling.session_id, "qosStatus": telling.qos_status, **members(telling.facts)}
    if telling.status_info is not None:
        data["statusInfo"] = telling.status_info
    body = {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "time": rfc3339.render(telling.time_micros),
        "data": data,
    }
    return Notification(orjson.dumps(body), telling.session_id, sender, now_micros, _CONTENT_TYPE, "", "", origin)
