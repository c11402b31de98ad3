"""What the operator's API told, as a notification for the inbox. Pure.

It goes the way of every other notification, so that what is decided stays a function of the inbox: it is appended,
routed, recognized when it comes again, and put before or behind what senders post. Its body is a CloudEvent of the
type that senders use, with the facts beside the status.
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

#: Between the end that was planned and the one that is told a server may take so long, and round.
_EXPIRED_WITHIN_MICROS = 2_000_000

_SENDER = re.compile(SENDER_NAME)

#: A device goes by the first of these that the API tells: it may tell more of them at one time than at another.
_IDENTIFIERS = ("phoneNumber", "networkAccessIdentifier", "ipv4Address", "ipv6Address")


class Telling(NamedTuple):
    """That a session has a status since a time, and what else is known of it."""

    session_id: str
    qos_status: QosStatus
    status_info: str | None
    time_micros: int
    facts: Facts
    #: Whether this is no word of the API's, but concluded from its not knowing the session any more.
    is_missing: bool = False

    def event(self, origin: str) -> Event:
        """The event that it is to the router."""
        # The same telling twice is the same event.
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
    """What the API told of a session, asked at that time; `mine` is the session as far as it was known before."""
    status, status_info, time_micros = session.qos_status, None, asked_micros
    if status is QosStatus.UNAVAILABLE:
        # QualityOnDemand r1.2, SessionInfo.expiresAt: of an ended session it is the time of its end.
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
    """When a session of ours ends by itself, as far as that is known."""
    expires_micros, duration_seconds = session.facts.expires_micros, session.facts.duration_seconds
    if expires_micros is None and duration_seconds is not None and session.available_micros is not None:
        return session.available_micros + duration_seconds * 1_000_000
    return expires_micros


def _reason(session: ApiSession, mine: Session | None, ended_micros: int) -> str | None:
    """Why it ended, where that can be told from when it did: at the end that had been planned."""
    planned_micros = None if mine is None else planned_end(mine)
    if planned_micros is None and session.started_micros is not None and session.duration_seconds is not None:
        planned_micros = session.started_micros + session.duration_seconds * 1_000_000
    if planned_micros is not None and ended_micros >= planned_micros - _EXPIRED_WITHIN_MICROS:
        return StatusInfo.DURATION_EXPIRED.value
    return None


def facts_told(session: ApiSession, device_key: bytes, *, identifiers: bool) -> Facts:
    """What the API knows of a session. The device's own identifiers are among it only where `identifiers` says so."""
    return Facts(
        session.qos_profile,
        session.duration_seconds,
        session.expires_micros,
        device_hash(session.device, device_key),
        dict(session.device) or None if identifiers else None,
    )


def device_hash(device: Mapping[str, Any], key: bytes) -> str | None:
    """What stands for a device: the HMAC-SHA256 of its first identifier; None where it has none.

    A plain hash would not do: there are few enough phone numbers to try them all.
    """
    for name in _IDENTIFIERS:
        if value := device.get(name):
            text = orjson.dumps([name, value], option=orjson.OPT_SORT_KEYS)
            return hmac.digest(key, text, "sha256").hex()
    return None


def sent(notification: Notification) -> dict[str, Any]:
    """A notification of ours as JSON, for the process that keeps it."""
    body = orjson.loads(notification.body)
    return {"origin": notification.origin, "sender": notification.sender, "event": body}


def received(tree: Mapping[str, Any], now_micros: int) -> Notification:
    """The inverse of `sent`. Raises Malformed, KeyError, TypeError and ValueError."""
    origin, sender, body = tree["origin"], tree["sender"], orjson.dumps(tree["event"])
    event = parse(body)
    if origin not in API_ORIGINS or not _SENDER.fullmatch(sender) or not isinstance(event, Event):
        raise Malformed("no telling of the API's")
    facts_of(tree["event"]["data"])
    return Notification(body, event.session_id, sender, now_micros, _CONTENT_TYPE, "", "", origin)


def notification(telling: Telling, origin: str, sender: str, now_micros: int) -> Notification:
    """The telling as it is appended to the inbox; `sender` is who else would tell it."""
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
