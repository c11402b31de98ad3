"""Events and notifications for tests, spelled so that a case fits on one line.

`A1` is AVAILABLE at second 1, `U2:N` UNAVAILABLE at second 2 for NETWORK_TERMINATED, `U?` one without a time. `#x`
gives it the id x (`#` alone: no id; else each has its own), `@x` the sender x.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import orjson

from receiver.core import rfc3339
from receiver.core.event import Dialect, Event, QosStatus, StatusInfo
from receiver.core.notification import Notification
from receiver.core.router import Decision, Router
from receiver.core.session import Session

SESSION_ID = "3f2b8c1e-0d5a-4b7e-9c64-1a2b3c4d5e6f"
SENDER = "acme"
SOURCE = "/operators/acme"
TYPE = "org.camaraproject.qod.v0.qos-status-changed"
SECOND = 1_000_000
HOUR = 3600 * SECOND
#: Second 0 of every spelled event.
START = rfc3339.micros("2026-11-24T10:00:00Z")

_SPELLED = re.compile(r"(?P<status>[RAU])(?P<seconds>-?[0-9.]+|\?)(:(?P<info>\w+))?(?P<id>#[\w-]*)?(@(?P<sender>\w+))?")
_STATUSES = {"R": QosStatus.REQUESTED, "A": QosStatus.AVAILABLE, "U": QosStatus.UNAVAILABLE}
_INFOS = {
    "N": StatusInfo.NETWORK_TERMINATED.value,
    "D": StatusInfo.DELETE_REQUESTED.value,
    "E": StatusInfo.DURATION_EXPIRED.value,
}
_ids = map("e{}".format, itertools.count())


def told(text: str, session_id: str = SESSION_ID) -> tuple[Event, str]:
    """The event that a text spells, and its sender."""
    found = _SPELLED.fullmatch(text)
    assert found, f"{text!r} spells no event: see the module"
    seconds, info, identifier = found["seconds"], found["info"], found["id"]
    event = Event(
        session_id,
        _STATUSES[found["status"]],
        None if info is None else _INFOS.get(info, info),
        None if seconds == "?" else START + round(float(seconds) * SECOND),
        next(_ids) if identifier is None else identifier[1:] or None,
        SOURCE,
        TYPE,
        Dialect.CLOUDEVENTS,
    )
    return event, found["sender"] or SENDER


def body(event: Event, **more: object) -> bytes:
    """An event in the CloudEvents dialect, with `more` members of the envelope."""
    data = {"sessionId": event.session_id, "qosStatus": event.qos_status, "statusInfo": event.status_info}
    time = None if event.time_micros is None else rfc3339.render(event.time_micros)
    envelope: dict[str, Any] = {"specversion": "1.0", "id": event.id, "source": event.source, "type": event.type}
    return orjson.dumps({**envelope, "time": time, "data": data, **more})


def bare(session_id: str = SESSION_ID) -> bytes:
    """A notification of release 0.8, which has no id, source or time."""
    return orjson.dumps({"sessionId": session_id, "event": "SESSION_TERMINATED"})


def posted(
    what: str | bytes,
    *,
    session_id: str = SESSION_ID,
    sender: str | None = None,
    key: str | None = None,
    received_micros: int = START + 60 * SECOND,
    origin: str = "",
) -> Notification:
    """The notification of a spelled event, or of a body."""
    if isinstance(what, bytes):
        content, told_by = what, SENDER
    else:
        event, told_by = told(what, session_id)
        content = body(event)
    return Notification(
        content,
        session_id if key is None else key,
        sender or told_by,
        received_micros,
        "application/cloudevents+json",
        "b4333c46-49c0-4f62-80d7-f0ef930f1c46",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        origin,
    )


def decisions(router: Router, notifications: Sequence[Notification], first: int = 0) -> list[Decision]:
    """A router's decisions on notifications that begin at position `first`, all of them new to it."""
    made: list[Decision] = []
    sessions: dict[str, Session | None] = {}
    clock_micros = 0
    for position, notification in enumerate(notifications, first):
        clock_micros = max(clock_micros, notification.received_micros)
        decision = router.decide(notification, f"0-{position}", sessions.get(notification.key), clock_micros)
        sessions[notification.key] = decision.session
        made.append(decision)
    return made
