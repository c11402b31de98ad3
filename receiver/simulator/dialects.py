"""The posts of each release of the API, written from CAMARA's texts. Pure.

    0.8         QualityOnDemand v0.8.1: bare; the path is extended; only ends are told, except requested ones
    0.9         v0.9.0, its schema: an event in a wrapper; a deletion is not told, and has no reason of its own
    0.9-flat    v0.9.0, its example: the same without the wrapper
    0.10        v0.10.1: CloudEvents; Telefónica's own files keep its type to this day
    0.11        r1.3: the type is renamed
    1.0, 1.1    r2.2 and r3.2: the type has another version, and `datacontenttype` is present

Oddities are habits of real senders: legible, but not as the texts specify.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Literal, NamedTuple

from receiver.core import rfc3339
from receiver.simulator.sessions import Status

Headers = Mapping[str, str]
_JSON = "application/json"
_CLOUDEVENTS = "application/cloudevents+json"


class Release(NamedTuple):
    """What a release posts and what it does not. `has_correlator` is true from Commonalities v0.2 on."""

    name: str
    family: Literal["bare", "event", "cloudevents"]
    event_type: str
    content_type: str = _CLOUDEVENTS
    path_suffix: str = ""
    is_wrapped: bool = False
    has_data_content_type: bool = False
    has_correlator: bool = True
    tells_available: bool = True
    tells_deletion: bool = True


RELEASES: Mapping[str, Release] = {
    release.name: release
    for release in (
        Release(
            "0.8",
            "bare",
            "SESSION_TERMINATED",
            _JSON,
            path_suffix="/notifications",
            has_correlator=False,
            tells_available=False,
            tells_deletion=False,
        ),
        Release(
            "0.9", "event", "QOS_STATUS_CHANGED", _JSON, is_wrapped=True, has_correlator=False, tells_deletion=False
        ),
        Release("0.9-flat", "event", "QOS_STATUS_CHANGED", _JSON, has_correlator=False, tells_deletion=False),
        Release("0.10", "cloudevents", "org.camaraproject.qod.v0.qos-status-changed"),
        Release("0.11", "cloudevents", "org.camaraproject.quality-on-demand.v0.qos-status-changed"),
        Release(
            "1.0",
            "cloudevents",
            "org.camaraproject.quality-on-demand.v1.qos-status-changed",
            has_data_content_type=True,
        ),
        Release(
            "1.1",
            "cloudevents",
            "org.camaraproject.quality-on-demand.v1.qos-status-changed",
            has_data_content_type=True,
        ),
    )
}


class Fact(NamedTuple):
    """A fact to be told. `micros` is its time by the sender's clock."""

    event_id: str
    source: str
    session_id: str
    qos_status: Status
    status_info: str | None
    micros: int


class Told(NamedTuple):
    """A request without Authorization, and the facts that its body tells; None for facts that it does not tell."""

    headers: Headers
    body: bytes
    status_info: str | None
    event_id: str | None
    time: str | None


def untold(release: Release, qos_status: Status, status_info: str | None) -> bool:
    """Whether a release has no notification for this change."""
    if qos_status is Status.AVAILABLE:
        return not release.tells_available
    return status_info == "DELETE_REQUESTED" and not release.tells_deletion


def told(release: Release, fact: Fact, oddity: str = "") -> Told:
    """The post of a release for a fact."""
    tree = _TREES[release.family](release, fact)
    headers = {"content-type": release.content_type}
    if oddity in _HEADER_ODDITIES:
        headers = _odd_headers(headers, oddity)
    elif oddity:
        _BODY_ODDITIES[oddity].spell(tree, fact)
    event = tree.get("event", tree) if release.family == "event" else tree
    event_id = next((event[name] for name in ("id", "eventId", "eventid") if name in event), None)
    time = event.get("time", event.get("eventTime"))
    body = json.dumps(tree, ensure_ascii=False).encode()
    status_info = None if release.family == "bare" else fact.status_info
    return Told(headers, body, status_info, None if event_id is None else str(event_id), time)


def authorization(token: str, oddity: str = "") -> str:
    """The value of Authorization for a token."""
    return _SCHEMES.get(oddity, "Bearer {}").format(token)


def oddities(release: Release, qos_status: Status) -> Sequence[str]:
    """The names of the oddities that a release can have for a status."""
    bodies = [
        name
        for name, odd in _BODY_ODDITIES.items()
        if odd.family == release.family and odd.qos_status in {None, qos_status}
    ]
    return [*_HEADER_ODDITIES, *bodies]


def _bare(release: Release, fact: Fact) -> dict[str, Any]:
    return {"sessionId": fact.session_id, "event": release.event_type}


def _event(release: Release, fact: Fact) -> dict[str, Any]:
    event = {
        "eventId": fact.event_id,
        "eventType": release.event_type,
        "eventTime": rfc3339.render(fact.micros),
        "eventDetail": _detail(fact),
    }
    return {"event": event} if release.is_wrapped else event


def _cloudevents(release: Release, fact: Fact) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "id": fact.event_id,
        "source": fact.source,
        "specversion": "1.0",
        "type": release.event_type,
        "time": rfc3339.render(fact.micros),
    }
    if release.has_data_content_type:
        tree["datacontenttype"] = _JSON
    return {**tree, "data": _detail(fact)}


def _detail(fact: Fact) -> dict[str, Any]:
    detail: dict[str, Any] = {"sessionId": fact.session_id, "qosStatus": fact.qos_status}
    if fact.status_info is not None:
        detail["statusInfo"] = fact.status_info
    return detail


_TREES: Mapping[str, Callable[[Release, Fact], dict[str, Any]]] = {
    "bare": _bare,
    "event": _event,
    "cloudevents": _cloudevents,
}

_SCHEMES = {
    "lower-case scheme": "bearer {}",
    "colon behind the scheme": "Bearer: {}",
    "scheme twice": "Bearer Bearer {}",
}
_HEADER_ODDITIES = (*_SCHEMES, "no content type", "charset in the content type")


def _odd_headers(headers: Headers, oddity: str) -> dict[str, str]:
    if oddity == "no content type":
        return {}
    if oddity == "charset in the content type":
        return {**headers, "content-type": f"{headers['content-type']}; charset=utf-8"}
    return dict(headers)


class _Odd(NamedTuple):
    """An oddity of a body: its family and status (None: any), and the change to the tree."""

    family: str
    qos_status: Status | None
    spell: Callable[[dict[str, Any], Fact], None]


def _with_time(render: Callable[[int], str]) -> Callable[[dict[str, Any], Fact], None]:
    def spell(tree: dict[str, Any], fact: Fact) -> None:
        tree["time"] = render(fact.micros)

    return spell


def _with_offset(micros: int) -> str:
    time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
    return time.astimezone(timezone(timedelta(hours=2))).isoformat()


def _nine_digits(micros: int) -> str:
    seconds, rest = divmod(micros, 1_000_000)
    return f"{rfc3339.render(seconds * 1_000_000).removesuffix('Z')}.{rest:06d}000Z"


def _null_reason(tree: dict[str, Any], _: Fact) -> None:
    tree["data"]["statusInfo"] = None


def _more_members(tree: dict[str, Any], _: Fact) -> None:
    tree["subject"] = ""
    tree["data"]["notificationUrl"] = "https://client.example/notifications"


def _event_beside_data(tree: dict[str, Any], _: Fact) -> None:
    tree["event"] = {"eventType": "QOS_STATUS_CHANGED", "eventDetail": dict(tree["data"])}


def _numeric_id(tree: dict[str, Any], fact: Fact) -> None:
    tree["id"] = int(fact.event_id.replace("-", "")[:13], 16)  # fits a float's 53 bits


def _wrapped(tree: dict[str, Any]) -> dict[str, Any]:
    event: dict[str, Any] = tree.get("event", tree)
    return event


def _id_of_the_candidate(tree: dict[str, Any], _: Fact) -> None:
    event = _wrapped(tree)
    event["eventid"] = event.pop("eventId")


def _no_id(tree: dict[str, Any], _: Fact) -> None:
    del _wrapped(tree)["eventId"]


def _no_time(tree: dict[str, Any], _: Fact) -> None:
    del _wrapped(tree)["eventTime"]


_BODY_ODDITIES: Mapping[str, _Odd] = {
    "time without zone": _Odd("cloudevents", None, _with_time(lambda micros: rfc3339.render(micros).removesuffix("Z"))),
    "time in lower case": _Odd("cloudevents", None, _with_time(lambda micros: rfc3339.render(micros).lower())),
    "time with an offset": _Odd("cloudevents", None, _with_time(_with_offset)),
    "time with nine digits": _Odd("cloudevents", None, _with_time(_nine_digits)),
    "statusInfo null": _Odd("cloudevents", Status.AVAILABLE, _null_reason),
    "more members": _Odd("cloudevents", None, _more_members),
    "event beside data": _Odd("cloudevents", None, _event_beside_data),
    "numeric id": _Odd("cloudevents", None, _numeric_id),
    "eventid": _Odd("event", None, _id_of_the_candidate),
    "no id": _Odd("event", None, _no_id),
    "no time": _Odd("event", None, _no_time),
}

#: Malformed bodies, by name.
MALFORMATIONS: Mapping[str, Callable[[bytes], bytes]] = {
    "cut off": lambda body: body[: len(body) * 2 // 3],
    "empty": lambda _: b"",
    "two sessions": lambda body: body.replace(b'"sessionId"', b'"sessionId": "another", "sessionId"'),
    "not UTF-8": lambda body: body.replace(b"sessionId", b"session\xff\xfeId"),
    "no session": lambda body: body.replace(b'"sessionId"', b'"sessionID"'),
    "not JSON": lambda body: b"<notification>" + body + b"</notification>",
}
