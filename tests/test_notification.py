"""Every fact and oddity of posts, and every body that must be refused with a message."""

import json
import random
from base64 import b64encode
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receiver.core import rfc3339
from receiver.core.errors import Malformed
from receiver.core.event import Dialect, Event, Oddity, QosStatus, StatusInfo, Unrecognized
from receiver.core.notification import parse

T = TypeVar("T")

SAMPLES = {
    path.stem: path.read_bytes() for path in sorted((Path(__file__).parent.parent / "schemas/samples").iterdir())
}

AVAILABLE, UNAVAILABLE, REQUESTED = QosStatus.AVAILABLE, QosStatus.UNAVAILABLE, QosStatus.REQUESTED
TYPE = "org.camaraproject.quality-on-demand.v1.qos-status-changed"
TIME = "2026-11-24T10:15:30Z"
MICROS = rfc3339.micros(TIME)
#: The event of `cloudevent()`.
TOLD = Event("s-1", AVAILABLE, None, MICROS, "e-1", "/s", TYPE, Dialect.CLOUDEVENTS)
#: The same, of `event()`.
TOLD_IN_0_9 = TOLD._replace(source=None, type="QOS_STATUS_CHANGED", dialect=Dialect.EVENT)

_DETAIL = {"sessionId", "qosStatus", "status", "statusInfo", "assignmentId", "provisioningId", "notificationUrl"}


def cloudevent(**members: object) -> dict[str, Any]:
    """A notification of 0.10 and later. `members` change it, or its data if they belong there; `...` leaves one out."""
    return _changed({"specversion": "1.0", "id": "e-1", "source": "/s", "type": TYPE, "time": TIME}, "data", members)


def event(**members: object) -> dict[str, Any]:
    """The same for 0.9, flat."""
    return _changed({"eventId": "e-1", "eventType": "QOS_STATUS_CHANGED", "eventTime": TIME}, "eventDetail", members)


def _changed(envelope: dict[str, Any], detail_name: str, members: dict[str, object]) -> dict[str, Any]:
    detail: dict[str, object] = {"sessionId": "s-1", "qosStatus": "AVAILABLE"}
    tree = envelope | {detail_name: detail}
    for name, value in members.items():
        (detail if name in _DETAIL else tree)[name] = value
    for part in (tree, detail):
        for name in [name for name, value in part.items() if value is ...]:
            del part[name]
    return tree


def read(tree: object) -> Event | Unrecognized:
    """The reading of a tree, written as JSON."""
    return parse(json.dumps(tree).encode())


def refusal(body: bytes) -> str:
    """The message with which a body is refused."""
    with pytest.raises(Malformed) as caught:
        parse(body)
    assert (caught.value.status, caught.value.code, caught.value.reason) == (400, "INVALID_ARGUMENT", "malformed")
    return caught.value.message


# Release by release.

SESSION_ID = "b1f7c2de-5a0e-4c7b-8f31-6d2e9a04c511"
CLOUD_ID, EVENT_ID = "0f8a4f0e-3c2d-4a57-9d0b-8e5f4f6f2c10", "7c9d3a61-12f4-4f0f-b1c8-0a5f2d7be9aa"
FACTS = {
    "bare-session-terminated": ("bare", UNAVAILABLE, None, None, None),
    "cloudevents-available": ("cloudevents", AVAILABLE, None, TIME, CLOUD_ID),
    "cloudevents-lower-case-time": ("cloudevents", AVAILABLE, None, TIME, CLOUD_ID),
    "cloudevents-numeric-id": ("cloudevents", AVAILABLE, None, TIME, "123654"),
    "cloudevents-release-0.10": ("cloudevents", AVAILABLE, None, "2026-11-24T09:15:30.123456Z", CLOUD_ID),
    "cloudevents-release-0.11": ("cloudevents", AVAILABLE, None, TIME, CLOUD_ID),
    "cloudevents-test-plan-type": ("cloudevents", AVAILABLE, None, TIME, CLOUD_ID),
    "cloudevents-unavailable-delete-requested": ("cloudevents", UNAVAILABLE, "DELETE_REQUESTED", TIME, CLOUD_ID),
    "cloudevents-unavailable-duration-expired": ("cloudevents", UNAVAILABLE, "DURATION_EXPIRED", TIME, CLOUD_ID),
    "cloudevents-unavailable-later-reason": ("cloudevents", UNAVAILABLE, "ACCESS_TOKEN_EXPIRED", TIME, CLOUD_ID),
    "cloudevents-unavailable-network-terminated": ("cloudevents", UNAVAILABLE, "NETWORK_TERMINATED", TIME, CLOUD_ID),
    "cloudevents-unavailable-without-reason": ("cloudevents", UNAVAILABLE, None, TIME, CLOUD_ID),
    "cloudevents-with-event-and-data": ("cloudevents", UNAVAILABLE, "NETWORK_TERMINATED", TIME, CLOUD_ID),
    "cloudevents-with-more-members": ("cloudevents", UNAVAILABLE, "NETWORK_TERMINATED", TIME, CLOUD_ID),
    "cloudevents-without-seconds": ("cloudevents", AVAILABLE, None, "2026-11-24T10:15:00Z", CLOUD_ID),
    "cloudevents-without-zone": ("cloudevents", AVAILABLE, None, "2026-11-24T10:15:30.5Z", CLOUD_ID),
    "event-flat": ("event", UNAVAILABLE, "DURATION_EXPIRED", TIME, EVENT_ID),
    "event-release-candidate": ("event", UNAVAILABLE, "NETWORK_TERMINATED¡", TIME, "21"),
    "event-without-id-and-time": ("event", UNAVAILABLE, None, None, None),
    "event-wrapped": ("event", UNAVAILABLE, "DURATION_EXPIRED", TIME, EVENT_ID),
}
UNKNOWN = {"cloudevents-other-api", "cloudevents-unknown-status"}


@pytest.mark.parametrize("name", FACTS)
def test_each_sample_tells_its_fact(name: str) -> None:
    """A notification of each release, with each sender's habits, is read as it was meant."""
    told = parse(SAMPLES[name])
    assert isinstance(told, Event)
    assert told.session_id == SESSION_ID
    time = None if told.time_micros is None else rfc3339.render(told.time_micros)
    assert (told.dialect, told.qos_status, told.status_info, time, told.id) == FACTS[name]
    assert (told.source is not None) is (told.dialect is Dialect.CLOUDEVENTS)


def test_no_sample_goes_without_a_fact() -> None:
    """Each sample has a row above, or is one that this release doesn't know."""
    assert set(SAMPLES) == set(FACTS) | UNKNOWN
    assert all(isinstance(parse(SAMPLES[name]), Unrecognized) for name in UNKNOWN)


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        (cloudevent(), TOLD),
        (event(), TOLD_IN_0_9),
        ({"event": event()}, TOLD_IN_0_9),
        ({"event": event(), "eventSubscriptionId": "x"}, TOLD_IN_0_9),
        # A body of two dialects: what CloudEvents calls data counts.
        (cloudevent(event=event(qosStatus="UNAVAILABLE", sessionId="s-2")), TOLD),
        (cloudevent(**event(qosStatus="UNAVAILABLE", sessionId="s-2")) | cloudevent(), TOLD),
        (cloudevent(event="SESSION_TERMINATED", sessionId="s-1"), TOLD),
        # The shape decides: a member called data or event alone proves nothing.
        (event(data={"sessionId": "s-2"}), TOLD_IN_0_9),
        (event(event=None), TOLD_IN_0_9),
        (event(event=3), TOLD_IN_0_9),
        ({"event": event(), "eventDetail": {"sessionId": "s-2"}}, TOLD_IN_0_9),
        (cloudevent(specversion="0.3"), TOLD),
        (cloudevent(specversion=None), TOLD),
    ],
)
def test_the_shape_tells_the_dialect(tree: dict[str, Any], told: Event) -> None:
    """A body's members decide its dialect; of several, CloudEvents comes first."""
    assert read(tree) == told


@pytest.mark.parametrize("name", ["SESSION_TERMINATED", "SESSION_TERMINATION"])
def test_the_bare_dialect_tells_an_end(name: str) -> None:
    """0.8 tells that a session ended, without a reason, a time or an id."""
    told = read({"sessionId": "s-1", "event": name, "statusInfo": "DELETE_REQUESTED", "id": "x", "time": TIME})
    assert told == Event("s-1", UNAVAILABLE, None, None, None, None, name, Dialect.BARE)
    assert isinstance(told, Event)
    assert told.unexpected


WITHOUT_REASON = {"qos_status": UNAVAILABLE, "oddities": (Oddity.STATUS_INFO,)}

# Oddities, each as a change of an ordinary notification and of its event.


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"qosStatus": "REQUESTED"}, {"qos_status": REQUESTED}),
        ({"qosStatus": ..., "status": "AVAILABLE"}, {}),
        ({"qosStatus": None, "status": "AVAILABLE"}, {}),
        ({"qosStatus": "", "status": "AVAILABLE"}, {}),
        ({"status": "UNAVAILABLE"}, {}),
        # Only UNAVAILABLE has a reason.
        ({"statusInfo": None}, {}),
        ({"statusInfo": ""}, {}),
        ({"statusInfo": "NETWORK_TERMINATED"}, {}),
        ({"statusInfo": "NETWORK_TERMINATED", "qosStatus": "REQUESTED"}, {"qos_status": REQUESTED}),
        ({"qosStatus": "UNAVAILABLE"}, {"qos_status": UNAVAILABLE}),
        ({"qosStatus": "UNAVAILABLE", "statusInfo": None}, {"qos_status": UNAVAILABLE}),
        ({"qosStatus": "UNAVAILABLE", "statusInfo": ""}, {"qos_status": UNAVAILABLE}),
        ({"qosStatus": "UNAVAILABLE", "statusInfo": "NEW"}, {"qos_status": UNAVAILABLE, "status_info": "NEW"}),
        ({"qosStatus": "UNAVAILABLE", "statusInfo": 5}, {"qos_status": UNAVAILABLE, "status_info": "5"}),
        # A missing member is None, and so is one that is null or empty.
        ({"id": ...}, {"id": None}),
        ({"id": None}, {"id": None}),
        ({"id": ""}, {"id": None}),
        ({"source": ...}, {"source": None}),
        ({"source": None}, {"source": None}),
        ({"time": ...}, {"time_micros": None}),
        ({"time": None}, {"time_micros": None}),
        ({"time": ""}, {"time_micros": None}),
        # Numbers in place of text.
        ({"id": 123654}, {"id": "123654"}),
        ({"id": 0}, {"id": "0"}),
        ({"id": -7}, {"id": "-7"}),
        ({"id": 2**64 - 1}, {"id": "18446744073709551615"}),
        ({"sessionId": 42}, {"session_id": "42"}),
        # Odd optional members are dropped.
        ({"id": {}}, {"id": None, "oddities": (Oddity.ID,)}),
        ({"id": True}, {"id": None, "oddities": (Oddity.ID,)}),
        ({"id": "i" * 2049}, {"id": None, "oddities": (Oddity.ID,)}),
        ({"id": "a\0b"}, {"id": None, "oddities": (Oddity.ID,)}),
        ({"id": "a\x7fb"}, {"id": None, "oddities": (Oddity.ID,)}),
        ({"id": "\ud800"}, {"id": None, "oddities": (Oddity.JSON, Oddity.ID)}),
        # Numbers that lost digits on the way, or may have: two ids would be one.
        ({"id": 2**64}, {"id": None, "oddities": (Oddity.ID,)}),
        ({"id": -(2**63) - 1}, {"id": None, "oddities": (Oddity.ID,)}),
        ({"id": 1.5}, {"id": None, "oddities": (Oddity.ID,)}),
        ({"source": []}, {"source": None, "oddities": (Oddity.SOURCE,)}),
        ({"source": "/s\r\nx: y"}, {"source": None, "oddities": (Oddity.SOURCE,)}),
        ({"time": 5}, {"time_micros": None, "oddities": (Oddity.TIME,)}),
        ({"time": 1774000000}, {"time_micros": None, "oddities": (Oddity.TIME,)}),
        ({"time": {}}, {"time_micros": None, "oddities": (Oddity.TIME,)}),
        ({"time": False}, {"time_micros": None, "oddities": (Oddity.TIME,)}),
        ({"statusInfo": {}}, {}),
        ({"qosStatus": "UNAVAILABLE", "statusInfo": {}}, WITHOUT_REASON),
        ({"qosStatus": "UNAVAILABLE", "statusInfo": True}, WITHOUT_REASON),
        ({"qosStatus": "UNAVAILABLE", "statusInfo": "a\tb"}, WITHOUT_REASON),
        ({"qosStatus": "UNAVAILABLE", "statusInfo": "\u202e"}, WITHOUT_REASON),
        # Unused members, of any type.
        ({"subject": ""}, {}),
        ({"subject": None}, {}),
        ({"datacontenttype": "application/json"}, {}),
        ({"notificationUrl": "https://us.example/notifications"}, {}),
        ({"dataschema": {"a": [1, 2.5, None, True, 2**70]}}, {}),
        ({"eventId": "other", "eventTime": "yesterday"}, {}),
        # UUIDs are equal in any case; nothing else is.
        ({"sessionId": SESSION_ID.upper()}, {"session_id": SESSION_ID}),
        ({"sessionId": SESSION_ID[:18].upper() + SESSION_ID[18:]}, {"session_id": SESSION_ID}),
        ({"sessionId": SESSION_ID.upper()[:-1]}, {"session_id": SESSION_ID.upper()[:-1]}),
        ({"sessionId": "G" + SESSION_ID.upper()[1:]}, {"session_id": "G" + SESSION_ID.upper()[1:]}),
        ({"sessionId": "S-1"}, {"session_id": "S-1"}),
        # Texts in any script, of the greatest length.
        ({"sessionId": "événement ✓"}, {"session_id": "événement ✓"}),
        ({"sessionId": "s" * 256}, {"session_id": "s" * 256}),
        ({"id": "i" * 2048}, {"id": "i" * 2048}),
        ({"source": "/" * 2048}, {"source": "/" * 2048}),
    ],
)
def test_oddities_are_taken(members: dict[str, Any], told: dict[str, Any]) -> None:
    """Members that a sender leaves out, adds or spells its own way change only their own facts."""
    assert read(cloudevent(**members)) == TOLD._replace(**told)


@pytest.mark.parametrize(
    ("members", "identifier"),
    [
        ({}, "e-1"),
        ({"eventId": ..., "eventid": "21"}, "21"),
        ({"eventId": ..., "eventid": 21}, "21"),
        ({"eventId": None, "eventid": "21"}, "21"),
        ({"eventId": "", "eventid": "21"}, "21"),
        ({"eventid": "21"}, "e-1"),
        ({"eventId": ...}, None),
        ({"eventId": [], "eventid": "21"}, "21"),
    ],
)
def test_the_id_of_0_9_has_two_spellings(members: dict[str, Any], identifier: str | None) -> None:
    """The id of an event is in eventId, or else in a release candidate's member."""
    for tree in (event(**members), {"event": event(**members)}):
        told = read(tree)
        assert isinstance(told, Event)
        assert told._replace(oddities=()) == TOLD_IN_0_9._replace(id=identifier)


@pytest.mark.parametrize(
    "kind",
    [
        "QOS_STATUS_CHANGED",
        "org.camaraproject.qod.v0.qos-status-changed",
        "org.camaraproject.qod.v1.qos-status-changed",
        "org.camaraproject.quality-on-demand.v0.qos-status-changed",
        "org.camaraproject.quality-on-demand.v1.qos-status-changed",
        "org.camaraproject.quality-on-demand.v27.qos-status-changed",
        "org.camaraproject.qod.qos-status-changed",
        "org.camaraproject.api.qod.v0.qos-status-changed",
        "org.camaraproject.qod.v0.qos-status-changed-event",
    ],
)
def test_event_types_are_known_by_pattern(kind: str) -> None:
    """The type of a change of status is recognized in any version, in either envelope, and keeps its spelling."""
    assert read(cloudevent(type=kind)) == TOLD._replace(type=kind)
    assert read(event(eventType=kind)) == TOLD_IN_0_9._replace(type=kind)


@pytest.mark.parametrize(
    "kind",
    [
        # Models generated from CAMARA's files have the schema's name for a type.
        "QosStatusChangedEvent",
        "EventQosStatusChanged",
        "QosStatusChanged",
        "eventQosStatusChangedEvent",
        "CloudEvent",
        "EventQosStatus",
        "7",
        7,
        "qos_status_changed",
        "QOS_STATUS_CHANGED ",
        "ORG.CAMARAPROJECT.QOD.V0.QOS-STATUS-CHANGED",
        "more.org.camaraproject.qod.v0.qos-status-changed",
        "org.camaraproject.qod.vX.qos-status-changed",
        "org.camaraproject.qod.v٣.qos-status-changed",
        "orgxcamaraproject.qod.v0.qos-status-changed",
        "com.example.qod.QosStatusChangedEvent",
        "https://operator.example/events#qos-status-changed",
    ],
)
def test_what_has_all_of_an_event_is_one(kind: object) -> None:
    """An event with another type counts if it has all of a change of status, and no other API can mean it."""
    kind_told = str(kind)
    assert read(cloudevent(type=kind)) == TOLD._replace(type=kind_told, oddities=(Oddity.TYPE,))
    assert read(event(eventType=kind)) == TOLD_IN_0_9._replace(type=kind_told, oddities=(Oddity.TYPE,))
    assert isinstance(read(cloudevent(type=kind, qosStatus="PAUSED")), Unrecognized)
    assert isinstance(read(cloudevent(type=kind, sessionId=..., assignmentId="a-1")), Unrecognized)


ENVELOPES = {
    "no type": (cloudevent(type=...), TOLD),
    "an empty type": (cloudevent(type=""), TOLD),
    "a type that is a list": (cloudevent(type=[TYPE]), TOLD),
    "a type that can't be printed": (cloudevent(type="a\0"), TOLD),
    "0.9 without type": (event(eventType=...), TOLD_IN_0_9),
    "wrapped without type": ({"event": event(eventType=None)}, TOLD_IN_0_9),
    "data alone": (cloudevent()["data"], TOLD._replace(id=None, source=None, time_micros=None)),
    "nothing around it": ({"time": TIME, **cloudevent()["data"]}, TOLD._replace(id=None, source=None)),
}


@pytest.mark.parametrize("name", ENVELOPES)
def test_an_event_without_a_type_is_one(name: str) -> None:
    """A body that tells which session changed to what is an event, with today's release's type if it has none."""
    tree, told = ENVELOPES[name]
    assert read(tree) == told._replace(type=TYPE, oddities=(Oddity.TYPE,))


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        # As text, and in Base64, as CloudEvents encodes bytes.
        (cloudevent(data='{"sessionId": "s-1", "qosStatus": "AVAILABLE"}'), TOLD),
        (cloudevent(data=..., data_base64=b64encode(json.dumps(cloudevent()["data"]).encode()).decode()), TOLD),
        (cloudevent(data=None, data_base64=b64encode(json.dumps(cloudevent()["data"]).encode()).decode()), TOLD),
        (cloudevent(data_base64="bm8="), TOLD),
        (event(eventDetail='{"sessionId": "s-1", "qosStatus": "AVAILABLE"}'), TOLD_IN_0_9),
        (json.dumps(cloudevent()), TOLD),  # the whole as text
        # Without a member that only tells the release.
        (cloudevent(specversion=...), TOLD),
        (cloudevent(data=..., event=event()), TOLD_IN_0_9),
        (cloudevent(data=...) | {"sessionId": "s-1", "qosStatus": "AVAILABLE"}, TOLD),
        (event(eventDetail=...) | {"sessionId": "s-1", "qosStatus": "AVAILABLE"}, TOLD_IN_0_9),
    ],
)
def test_a_detail_is_found_where_senders_have_it(tree: object, told: Event) -> None:
    """The session and its status count as text, in Base64, and in another release's place."""
    assert read(tree) == told


@pytest.mark.parametrize(
    "kind",
    [
        "org.camaraproject.qod.v0.qos-status-changed.more",
        "org.camaraproject.qos-provisioning.v0.status-changed",
        "org.camaraproject.qod-provisioning.v0.status-changed",
        "org.camaraproject.qos-booking.v0.status-changed",
        "org.camaraproject.dedicated-network.v0.network-status-changed",
        "org.camaraproject.network-slice-booking.v0.status-changed",
        "org.camaraproject.device-roaming-status.v1.roaming-on",
        "org.camaraproject.quality-on-demand.v2.qos-status-predicted",
    ],
)
def test_unknown_types_are_unrecognized(kind: str) -> None:
    """An event of another API, or of a later release, is unrecognized, with its type and its session."""
    for told in (read(cloudevent(type=kind)), read(event(eventType=kind))):
        assert isinstance(told, Unrecognized)
        assert (told.type, told.session_id) == (kind, "s-1")
        assert kind[:40] in told.explanation


@pytest.mark.parametrize(
    ("tree", "session_id"),
    [
        (cloudevent(type="x", sessionId=..., qosStatus=..., assignmentId="a-1", status="AVAILABLE"), None),
        (cloudevent(type="x", sessionId=..., qosStatus=..., provisioningId="p-1", status="AVAILABLE"), None),
        (cloudevent(type="x", sessionId=..., time="yesterday"), None),
        (cloudevent(type="x", sessionId=["s-1"]), None),
        (cloudevent(type="x", sessionId=""), None),
        (cloudevent(type="x", sessionId="s" * 257), None),
        (cloudevent(type="x", sessionId="a\nb"), None),
        (cloudevent(type="x", sessionId="s" * 256, qosStatus={}, statusInfo=[]), "s" * 256),
        (cloudevent(qosStatus="SUSPENDED"), "s-1"),
        (cloudevent(qosStatus="available"), "s-1"),
        (cloudevent(qosStatus=1), "s-1"),
        ({"event": "SESSION_STARTED", "sessionId": "s-1"}, "s-1"),
        ({"event": "SESSION_STARTED", "sessionId": 7}, None),
        ({"event": ""}, None),
        ({"event": "x" * 9999}, None),
        (cloudevent(type="x.y", sessionId=SESSION_ID.upper()), SESSION_ID),
    ],
)
def test_what_is_unrecognized_lies_beside_its_session(tree: dict[str, Any], session_id: str | None) -> None:
    """An unknown event is well-formed whatever it has inside; it has its session if that can be a key."""
    told = read(tree)
    assert isinstance(told, Unrecognized)
    assert told.session_id == session_id
    assert len(told.type) <= 2048
    assert 0 < len(told.explanation) < 100


# Times.


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-03-20T09:16:01Z", "2026-03-20T09:16:01Z"),
        ("2026-03-20T09:16:01.5Z", "2026-03-20T09:16:01.5Z"),
        ("2026-03-20T09:16:01.123456789Z", "2026-03-20T09:16:01.123456Z"),
        ("2026-03-20T09:16:01.9999999Z", "2026-03-20T09:16:01.999999Z"),
        (f"2026-03-20T09:16:01.{'1' * 60}Z", "2026-03-20T09:16:01.111111Z"),
        ("2026-03-20T09:16:01+02:00", "2026-03-20T07:16:01Z"),
        ("2026-03-20T09:16:01-05:30", "2026-03-20T14:46:01Z"),
        ("2026-03-20T09:16:01-00:00", "2026-03-20T09:16:01Z"),
        ("2026-03-20T09:16:01+0200", "2026-03-20T07:16:01Z"),
        ("2026-01-01T00:30:00+01:00", "2025-12-31T23:30:00Z"),
        # Without seconds, without a zone, in lower case, with a blank.
        ("2026-03-20T09:16Z", "2026-03-20T09:16:00Z"),
        ("2026-03-20T09:16+02:00", "2026-03-20T07:16:00Z"),
        ("2026-03-20T09:16", "2026-03-20T09:16:00Z"),
        ("2026-03-20T09:16:01", "2026-03-20T09:16:01Z"),
        ("2026-03-20T09:16:01.25", "2026-03-20T09:16:01.25Z"),
        ("2026-03-20t09:16:01z", "2026-03-20T09:16:01Z"),
        ("2026-03-20T09:16:01z", "2026-03-20T09:16:01Z"),
        ("2026-03-20 09:16:01Z", "2026-03-20T09:16:01Z"),
        # ZonedDateTime.toString() of Java, short offsets, and ISO 8601's comma.
        ("2026-11-27T11:00:00+01:00[Europe/Madrid]", "2026-11-27T10:00:00Z"),
        ("2026-11-27T10:00:00Z[UTC]", "2026-11-27T10:00:00Z"),
        ("2026-11-27T10:00Z[Etc/GMT+1]", "2026-11-27T10:00:00Z"),
        ("2026-03-20T09:16:01+02", "2026-03-20T07:16:01Z"),
        ("2026-03-20T09:16:01,25Z", "2026-03-20T09:16:01.25Z"),
        # A leap second is the one after it.
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
        ("2016-12-31T23:59:60.5Z", "2017-01-01T00:00:00.5Z"),
        # Values of programs that had no time.
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
        ("9999-12-31T23:59:59.9999999Z", "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_times_are_read_as_senders_write_them(text: str, time: str) -> None:
    """A time is read to the microsecond in UTC, in both envelopes that have one."""
    for tree in (cloudevent(time=text), event(eventTime=text)):
        told = read(tree)
        assert isinstance(told, Event)
        assert told.time_micros is not None
        assert rfc3339.render(told.time_micros) == time


@pytest.mark.parametrize(
    "text",
    [
        "yesterday",
        "2026-03-20",
        "2026-03-20T09",
        "2026-03-20T9:16:01Z",
        "20260320T091601Z",
        "2026-W12-5T09:16:01Z",
        "2026/03/20T09:16:01Z",
        "2026-03-20X09:16:01Z",
        "2026-02-30T09:16:01Z",
        "2026-13-20T09:16:01Z",
        "2026-03-20T25:16:01Z",
        "2026-03-20T09:61:01Z",
        "2026-03-20T09:16:01+24:00",
        "2026-03-20T09:16:01ZZ",
        "2026-03-20T09:16:01Z ",
        "2026-03-20T09:16:01 CET",
        "2026-11-27T21.123Z",  # an hour's fraction, which Python's reader takes for 21:00:00.123
        "2026-11-27T21,123Z",
        "2026-11-27T21Z",
        "2026-11-27T2100Z",
        "2026-11-27T21:16:00.Z",
        "2026-11-27T21:16:013Z",
        "2026-11-27T21:16:00:123Z",
        "2026-11-27T21:16:00+01:00:30",
        "2026-11-27T24:00:00Z",
        "2026-11-27T10:00:00[UTC]",
        "2026-11-27T10:00:00Europe/Madrid",
        "2026-11-27T13:53:54.545218America/Los_Angeles",
        "2026-11-27T10:00:00Z[" + "x" * 65 + "]",
        "Fri, 27 Nov 2026 10:00:00 GMT",
        "20261127T100000Z",
        "٢٠٢٦-03-20T09:16:01Z",
        "0000-01-01T00:00:00Z",
        "1774000000",
        "1774000000000",
        # In UTC these years can't be written.
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
    ],
)
def test_what_is_no_time_is_none(text: str) -> None:
    """An unreadable time counts as none: another time would change the order of events."""
    assert read(cloudevent(time=text)) == TOLD._replace(time_micros=None, oddities=(Oddity.TIME,))
    assert read(event(eventTime=text)) == TOLD_IN_0_9._replace(time_micros=None, oddities=(Oddity.TIME,))


# Malformed bodies, and the messages to their senders.

NEITHER = "no known notification: neither specversion (CloudEvents) nor event, eventType or eventDetail"
PRINTABLE = "must be at most 2048 printable characters"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is empty"),
        (b" \r\n\t", "the body is empty"),
        (b"[]", "the body is an array without a readable notification"),
        (b"null", "the body is not a JSON object"),
        (b"17", "the body is not a JSON object"),
        (b'"{}"', NEITHER),
        (b'"text"', "the body is not JSON: "),
        (b"<event/>", "the body is not JSON: "),
        (b"sessionId=s-1&event=SESSION_TERMINATED", "the body is not JSON: "),
        (b"{'event': 'SESSION_TERMINATED'}", "the body is not JSON: "),
        (b'{"event": "SESSION_TERMINATED",}', "the body is not JSON: "),
        (b'{"event": "SESSION_TERMINATED"} {}', "the body is not JSON: "),
        (b'{"event": "SESSION_TERMINATED"}\0', "the body is not JSON: "),
        (b'{"event": "SESSION_TERMINATED" /* */}', "the body is not JSON: "),
        (b'{"event": "\\x53"}', "the body is not JSON: "),
        (b'{"event": "SESSION_TERMINATED", "x": 01}', "the body is not JSON: "),
        (b"\xff\xfe{}", "the body is not JSON: "),
        (SAMPLES["event-flat"].decode()[:-9].encode("utf-16"), "the body is not JSON: "),
        (SAMPLES["event-flat"].decode().encode("utf-16")[:-1], "the body is not JSON: "),
        # Half of a surrogate pair, or no character, in a used member.
        (b'{"event": "SESSION_TERMINATED", "sessionId": "\\ud800"}', f"sessionId {PRINTABLE}"),
        (b'{"event": "SESSION_TERMINATED", "sessionId": "s\\udc00\\ud800"}', f"sessionId {PRINTABLE}"),
        (b'{"event": "SESSION_TERMINATED", "sessionId": "\xed\xa0\x80"}', f"sessionId {PRINTABLE}"),
        (b'{"event": "SESSION_TERMINATED", "sessionId": "s\xff"}', f"sessionId {PRINTABLE}"),
        ('{"event": "SESSION_TERMINATED", "sessionId": "é"}'.encode("latin-1"), f"sessionId {PRINTABLE}"),
    ],
)
def test_what_is_no_json_object_is_malformed(body: bytes, message: str) -> None:
    """JSON that a strict reader refuses is refused, with the fault."""
    told = refusal(body)
    assert told == message or (message.endswith(": ") and told.startswith(message))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, NEITHER),
        ({"event": None}, NEITHER),
        ({"event": []}, NEITHER),
        ({"event": {}}, NEITHER),
        ({"event": {"event": event()}}, NEITHER),
        # CloudEvents.
        (cloudevent(type=..., sessionId=...), "type is missing"),
        (cloudevent(type=None, qosStatus="PAUSED"), "type is missing"),
        (cloudevent(type="", qosStatus=...), "type is missing"),
        (cloudevent(type=[TYPE], sessionId=7), "type must be a string"),
        (cloudevent(data="{"), "data must be an object"),
        (cloudevent(data="[]"), "data must be an object"),
        (cloudevent(data=..., data_base64="{}"), "data must be an object"),
        (cloudevent(data=..., data_base64="bm8="), "data must be an object"),
        (cloudevent(data=...), "data must be an object"),
        (cloudevent(data=None), "data must be an object"),
        (cloudevent(data=[]), "data must be an object"),
        (cloudevent(sessionId=...), "sessionId is missing"),
        (cloudevent(sessionId=None), "sessionId is missing"),
        (cloudevent(sessionId=""), "sessionId is missing"),
        (cloudevent(sessionId=["s-1"]), "sessionId must be a string"),
        (cloudevent(sessionId={"s": 1}), "sessionId must be a string"),
        (cloudevent(sessionId=True), "sessionId must be a string"),
        (cloudevent(sessionId="s" * 257), "sessionId must be at most 256 characters"),
        (cloudevent(sessionId="s" * 2049), f"sessionId {PRINTABLE}"),
        (cloudevent(sessionId="s\n1"), f"sessionId {PRINTABLE}"),
        (cloudevent(sessionId="s\u202e1"), f"sessionId {PRINTABLE}"),
        (cloudevent(sessionId="s\u20281"), f"sessionId {PRINTABLE}"),
        (cloudevent(sessionId="\ufeffs"), f"sessionId {PRINTABLE}"),
        (cloudevent(qosStatus=...), "qosStatus is missing"),
        (cloudevent(qosStatus=None), "qosStatus is missing"),
        (cloudevent(qosStatus="", status=""), "qosStatus is missing"),
        (cloudevent(qosStatus=["AVAILABLE"]), "qosStatus must be a string"),
        (cloudevent(qosStatus=False), "qosStatus must be a string"),
        # Numbers that lost digits on the way, or may have: two ids would be one.
        (cloudevent(sessionId=123456789012345678901), "sessionId must be a string"),
        # 0.9.
        (event(eventType=..., qosStatus=...), "eventType is missing"),
        (event(eventType=7.5, sessionId=...), "eventType must be a string"),
        (event(eventDetail=...), "eventDetail must be an object"),
        (event(eventDetail="x"), "eventDetail must be an object"),
        ({"event": event(eventDetail=None)}, "eventDetail must be an object"),
        ({"event": event(eventType=None, qosStatus="PAUSED")}, "eventType is missing"),
        (event(sessionId=...), "sessionId is missing"),
        (event(qosStatus=...), "qosStatus is missing"),
        # 0.8.
        ({"event": "SESSION_TERMINATED"}, "sessionId is missing"),
        ({"event": "SESSION_TERMINATED", "sessionId": None}, "sessionId is missing"),
        ({"event": "SESSION_TERMINATED", "sessionId": {}}, "sessionId must be a string"),
        ({"event": "SESSION_TERMINATED", "sessionId": "s" * 257}, "sessionId must be at most 256 characters"),
        ({"event": "SESSION_TERMINATED", "sessionId": "\x01"}, f"sessionId {PRINTABLE}"),
    ],
)
def test_what_tells_no_change_is_malformed(tree: dict[str, Any], message: str) -> None:
    """A body that doesn't tell which session changed to what is refused with the member at fault."""
    assert refusal(json.dumps(tree).encode()) == message


@pytest.mark.parametrize(
    "body",
    [
        b'{"sessionId": "s-1", "sessionId": "s-2", "event": "SESSION_TERMINATED"}',
        rb'{"sessionId": "s-1", "\u0073essionId": "s-2", "event": "SESSION_TERMINATED"}',
        rb'{"\u0073essionId": "s-1", "session\u0049d": "s-2", "event": "SESSION_TERMINATED"}',
        rb'{"sessionId": "s-1", "event": "SESSION_TERMINATED", "a/b": 1, "a\/b": 2}',
        '{"sessionId": "s-1", "event": "SESSION_TERMINATED", "é": 1, "\\u00e9": 2}'.encode(),
        '{"sessionId": "s-1", "event": "SESSION_TERMINATED", "😀": 1, "\\ud83d\\ude00": 2}'.encode(),
        b'{"sessionId": "s-1", "sessionId": 7, "event": "SESSION_TERMINATED"}',
        b'{"sessionId": "s-1", "event": "SESSION_TERMINATED", "x": 1, "x": 1.0}',
        b'{"sessionId": "s-1", "event": "SESSION_TERMINATED", "x": 1, "x": true}',
        b'{"sessionId": "s-1", "event": "SESSION_TERMINATED", "x": null, "x": false}',
        b'{"sessionId": "s-1", "event": "SESSION_TERMINATED", "x": {"a": [1]}, "x": {"a": [1, 1]}}',
        b'\xef\xbb\xbf{"sessionId": "s-1", "event": "SESSION_TERMINATED", "sessionId": "s-2"}',
        b'{"sessionId": "s-1", "event": "SESSION_TERMINATED", "more": [{"": 1, "": 2}]}',
        b'{"eventType": "x", "eventType": "y", "eventDetail": {}}',
        b'{"eventType": "QOS_STATUS_CHANGED", "eventDetail": {"sessionId": "a", "qosStatus": "A", "qosStatus": "B"}}',
        b'{"event": {"eventType": "x", "eventDetail": {"sessionId": "s-1", "sessionId": "s-2"}}}',
        rb'{"event": {"eventType": "x", "eventDetail": {"sessionId": "s-1", "sess\u0069onId": "s-2"}}}',
        b'{"specversion": "1.0", "type": "x", "data": {"device": {"ipv4": [0, {"a": 1, "a": 2}]}}}',
        b'{"specversion":"1.0","type":"x","data":{"sessionId":"s-1","sessionId":"s-2"}}',
    ],
)
def test_a_member_has_one_value(body: bytes) -> None:
    """A name with two values in an object, at any depth and in any spelling, is refused: readers differ."""
    assert refusal(body) == "a member appears twice in one object, with two values"


BARE = Event("s-1", UNAVAILABLE, None, None, None, None, "SESSION_TERMINATED", Dialect.BARE, (Oddity.JSON,))


@pytest.mark.parametrize(
    "body",
    [
        # A member twice with one value, in any spelling.
        b'{"sessionId": "s-1", "sessionId": "s-1", "event": "SESSION_TERMINATED"}',
        rb'{"sessionId": "s-1", "\u0073essionId": "\u0073-1", "event": "SESSION_TERMINATED"}',
        b'{"event": "SESSION_TERMINATED", "sessionId": "s-1", "event": "SESSION_TERMINATED"}',
        b'{"event": "SESSION_TERMINATED", "sessionId": "s-1", "x": {"a": 1, "b": [2]}, "x": {"b": [2], "a": 1}}',
        b'{"event": "SESSION_TERMINATED", "sessionId": "s-1", "x": [{"": 1, "": 1}]}',
        # Bytes that are no text, in unused members.
        rb'{"event": "SESSION_TERMINATED", "sessionId": "s-1", "x": "\ud800"}',
        rb'{"event": "SESSION_TERMINATED", "sessionId": "s-1", "\udc00": "\udc00\ud800"}',
        b'{"event": "SESSION_TERMINATED", "sessionId": "s-1", "x": "\xed\xa0\x80"}',
        b'{"event": "SESSION_TERMINATED", "sessionId": "s-1", "x": "\xff \xc0\xaf"}',
        '{"event": "SESSION_TERMINATED", "sessionId": "s-1", "x": "Ampliación"}'.encode("latin-1"),
        b'{"event": "SESSION_TERMINATED", "sessionId": "s-1", "x": "two\nlines"}',
        # Numbers that not every reader has.
        b'{"event": "SESSION_TERMINATED", "sessionId": "s-1", "x": [NaN, Infinity, -Infinity]}',
        b'{"event": "SESSION_TERMINATED", "sessionId": "s-1", "x": [1e999, -1e999]}',
        b'{"event": "SESSION_TERMINATED", "sessionId": "s-1", "x": ' + b"9" * 5000 + b"}",
        # Other encodings of the same characters.
        b'\xef\xbb\xbf{"event": "SESSION_TERMINATED", "sessionId": "s-1"}',
        *(
            b'{"event": "SESSION_TERMINATED", "sessionId": "s-1"}'.decode().encode(encoding)
            for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be")
        ),
    ],
)
def test_what_can_be_read_in_one_way_is_read(body: bytes) -> None:
    """A body that readers read alike counts, although some of them, or all, refuse it."""
    assert parse(body) == BARE


def test_a_discriminator_may_stand_twice() -> None:
    """A server generated from a description with a discriminator writes the type a second time."""
    body = json.dumps(cloudevent()).encode()
    twice = b'{"type": "' + TYPE.encode() + b'", ' + body.removeprefix(b"{")
    assert parse(twice) == TOLD._replace(oddities=(Oddity.JSON,))


def test_an_escaped_name_is_the_name() -> None:
    """Escapes in a member's spelling change nothing, since a body is parsed and not searched."""
    assert parse(rb'{"\u0073essionId": "\u0073-1", "\u0065vent": "SESSION_TERMINATED"}') == Event(
        "s-1", UNAVAILABLE, None, None, None, None, "SESSION_TERMINATED", Dialect.BARE
    )


def nested(levels: int, opening: bytes, closing: bytes) -> bytes:
    """A notification with an unknown member that is nested this deeply."""
    deep = opening * levels + b"0" + closing * levels
    return b'{"sessionId": "s-1", "event": "SESSION_TERMINATED", "x": ' + deep + b"}"


def at_depth(calls: int, call: Callable[[], T]) -> T:
    """The result of a call at this depth of the stack."""
    return at_depth(calls - 1, call) if calls else call()


@pytest.mark.parametrize("calls", [0, 300])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")])
@pytest.mark.parametrize("levels", [300, 600, 900, 1_020, 1_030, 2_000, 100_000])
def test_deep_nesting_is_malformed(levels: int, opening: bytes, closing: bytes, calls: int) -> None:
    """A body is refused for its depth, balanced or not, both at the edge and by the router."""
    for body in (nested(levels, opening, closing), nested(levels, opening, b"")):
        message = at_depth(calls, partial(refusal, body))
        assert message == "the body is nested too deeply" or message.startswith("the body is not JSON: ")


@pytest.mark.parametrize("calls", [0, 300])
def test_nesting_that_occurs_is_taken(calls: int) -> None:
    """A hundred levels of arrays or objects in an unused member don't matter."""
    for body in (nested(100, b"[", b"]"), nested(100, b'{"a":', b"}"), nested(100, b'[ {"a":', b"}]")):
        assert isinstance(at_depth(calls, partial(parse, body)), Event)


@pytest.mark.parametrize("name", SAMPLES)
def test_half_a_body_is_malformed(name: str) -> None:
    """A sample that was cut off at any byte is refused."""
    body = SAMPLES[name].rstrip()
    for length in range(len(body)):
        assert refusal(body[:length])


# Properties.

TEXTS = st.text(max_size=40)
TREES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
NAMES = sorted({"specversion", "event", "eventid", "id", "time", "type", "source", *_DETAIL, *cloudevent(), *event()})
#: Values of some members, which may stand in others.
LIKELY: st.SearchStrategy[Any] = st.sampled_from(
    ["", "s-1", 7, 1.5, 2**64, True, None, [], {}, "AVAILABLE", "UNAVAILABLE", "SESSION_TERMINATED", TYPE, TIME, "x\0"]
).map(deepcopy)


def places(tree: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401  # JSON
    """The objects of a tree."""
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from places(value)


@st.composite
def mutated_trees(draw: st.DrawFn) -> Any:  # noqa: ANN401  # JSON
    """A sample with some members removed, moved, renamed or given another value."""
    tree = json.loads(draw(st.sampled_from(list(SAMPLES.values()))))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.sampled_from(list(places(tree))))
        name = draw(st.sampled_from(sorted({*place, *draw(st.sets(st.sampled_from(NAMES), max_size=2))} or {"event"})))
        if draw(st.booleans()):
            place.pop(name, None)
        else:
            place[name] = draw(LIKELY | TREES)
    return tree


@st.composite
def mutated_bodies(draw: st.DrawFn) -> bytes:
    """The bytes of a sample, with some removed, doubled or replaced."""
    body = bytearray(draw(st.sampled_from(list(SAMPLES.values()))))
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(body)))
        end = draw(st.integers(begin, min(begin + 20, len(body))))
        body[begin:end] = draw(st.binary(max_size=6) | st.just(bytes(body[begin:end]) * 2) | st.just(b""))
    return bytes(body)


def outcome(body: bytes) -> Event | Unrecognized | str:
    """The reading, or the message of the refusal: there is no third outcome."""
    try:
        return parse(body)
    except Malformed as error:
        return error.message


def check(told: Event | Unrecognized | str) -> None:
    """All that was read is within its limits, and can be written."""
    match told:
        case str():
            assert told.isprintable()
            assert 0 < len(told) <= 512, "CAMARA limits a message to 512 characters"
        case Unrecognized():
            assert told.explanation.isprintable()
            assert len(told.type) <= 2048
        case Event():
            assert 0 < len(told.session_id) <= 256
            texts = (told.session_id, told.status_info, told.id, told.source, told.type)
            assert all(text is None or (text.isprintable() and 0 < len(text) <= 2048) for text in texts)
            assert told.time_micros is None or rfc3339.micros(rfc3339.render(told.time_micros)) == told.time_micros
            assert told.status_info is None or told.qos_status is UNAVAILABLE


@given(st.binary() | mutated_bodies())
def test_no_bytes_break_it(body: bytes) -> None:
    """Any bytes are an event, unrecognized or malformed, within all limits."""
    check(outcome(body))


@given(TREES | mutated_trees())
def test_no_json_breaks_it(tree: object) -> None:
    """Any JSON is an event, unrecognized or malformed, within all limits."""
    check(outcome(json.dumps(tree).encode()))


def shuffled(tree: Any, chance: random.Random) -> Any:  # noqa: ANN401  # JSON
    """The same tree with every object's members in another order."""
    if isinstance(tree, list):
        return [shuffled(value, chance) for value in tree]
    if isinstance(tree, dict):
        return {name: shuffled(tree[name], chance) for name in chance.sample(list(tree), len(tree))}
    return tree


@given(mutated_trees(), st.integers(0, 2**32), st.sampled_from([None, 0, 3, "\t", "\r\n "]), st.booleans())
def test_only_the_tree_counts(tree: object, seed: int, indent: int | str | None, escaped: bool) -> None:
    """Neither whitespace nor the order of members nor escapes change the reading, or the reason of a refusal."""
    compact = json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()
    other = json.dumps(shuffled(tree, random.Random(seed)), indent=indent, ensure_ascii=escaped).encode()
    assert outcome(compact) == outcome(b"\n" + other + b" \t\r\n")


PRINTED = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=60)
EVENTS: st.SearchStrategy[Event] = st.builds(
    lambda state, session_id, time_micros, identifier, source: Event(
        session_id, state[0], state[1], time_micros, identifier, source, TYPE, Dialect.CLOUDEVENTS
    ),
    st.sampled_from([(AVAILABLE, None), (REQUESTED, None), (UNAVAILABLE, None)])
    | st.tuples(st.just(UNAVAILABLE), st.sampled_from([info.value for info in StatusInfo]) | PRINTED),
    PRINTED,
    st.none() | st.datetimes().map(lambda time: rfc3339.micros(time.isoformat())),
    st.none() | PRINTED,
    st.none() | PRINTED,
)


@given(EVENTS)
@settings(max_examples=200)
def test_a_fact_is_the_same_in_every_dialect(told: Event) -> None:
    """An event that is written in a dialect is read back as the same fact, except for what the dialect lacks."""
    time = None if told.time_micros is None else rfc3339.render(told.time_micros)
    detail = {"sessionId": told.session_id, "qosStatus": told.qos_status, "statusInfo": told.status_info}
    flat = {"eventId": told.id, "eventType": told.type, "eventTime": time, "eventDetail": detail}
    structured = {"specversion": "1.0", "id": told.id, "source": told.source, "type": told.type, "time": time}
    assert read(structured | {"data": detail}) == told
    for tree in (flat, {"event": flat}, {"event": flat, "eventSubscriptionId": told.session_id}):
        assert read(tree) == told._replace(source=None, dialect=Dialect.EVENT)
    assert read({"sessionId": told.session_id, "event": "SESSION_TERMINATED"}) == Event(
        told.session_id, UNAVAILABLE, None, None, None, None, "SESSION_TERMINATED", Dialect.BARE
    )
