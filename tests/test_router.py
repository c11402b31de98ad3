from base64 import b64decode
from datetime import datetime
from typing import Any

import orjson
import pytest
from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event
from hypothesis import given
from hypothesis import strategies as st

from receiver.core import rfc3339
from receiver.core.event import Oddity, QosStatus
from receiver.core.message import Message
from receiver.core.notification import Notification, parse
from receiver.core.router import Decision, Router
from receiver.core.routes import DEFAULT_ROUTES, Route, targets
from receiver.core.session import MARKS_MAX, Verdict
from receiver.core.session_record import session_from
from receiver.process.routing import build_router
from receiver.settings import RouterSettings, Settings
from tests.samples import HOUR, SECOND, SENDER, SESSION_ID, SOURCE, START, TYPE, bare, body, decisions, posted, told

RECEIVED = START + 60 * SECOND
UNKNOWN_TYPE = body(told("A1#x")[0]._replace(type="org.camaraproject.device-roaming.v0.roaming-status"))
UNKNOWN_STATUS = body(told("A1#x")[0], data={"sessionId": SESSION_ID, "qosStatus": "DEGRADED"})


def made(router: Router, *what: str | bytes) -> Decision:
    """The decision on the last of these notifications, after decisions on those before it."""
    return decisions(router, [posted(each) for each in what], first=7)[-1]


def one(decision: Decision, topic: str) -> Message:
    """The only message of a decision to a topic."""
    (message,) = (each for each in decision.messages if each.topic == topic)
    return message


def told_by(decision: Decision, topic: str) -> Any:  # noqa: ANN401  # JSON
    """The value of that message."""
    return orjson.loads(one(decision, topic).value or b"null")


def read_back(message: Message) -> BaseCloudEvent:
    """The message as the CloudEvents SDK reads it from Kafka."""
    headers = {name: text.encode() for name, text in message.headers}
    return from_binary_event(KafkaMessage(headers, message.key.encode(), message.value or b""))


# Topics and keys.


@pytest.mark.parametrize(
    ("what", "verdict", "topics"),
    [
        (["R1"], "accepted", ["sessions", "status"]),
        (["A1"], "accepted", ["sessions", "status"]),
        (["U1"], "accepted", ["sessions", "status", "unavailable"]),
        (["U1:N"], "accepted", ["sessions", "status", "unavailable"]),
        (["A1", "U2:E"], "accepted", ["sessions", "status", "unavailable"]),
        ([bare()], "accepted", ["sessions", "status", "unavailable"]),
        (["A1#x", "A1#x"], "duplicate", []),
        (["A1", "A2"], "unchanged", ["sessions"]),
        (["U1:N", "U2:N"], "unchanged", ["sessions"]),
        (["U2:N", "A1"], "late", ["sessions", "status"]),
        (["U2:N", "U1:D"], "late", ["sessions", "status"]),
        (["A1", "U2@other"], "conflict", ["dead-letter"]),
        (["A1#x", "U2:N#x"], "accepted", ["sessions", "status", "unavailable"]),
        ([UNKNOWN_TYPE], "unrecognized", ["dead-letter"]),
        ([UNKNOWN_STATUS], "unrecognized", ["dead-letter"]),
        ([b"{"], "malformed", ["dead-letter"]),
        ([b""], "malformed", ["dead-letter"]),
        ([b"\xff\x00"], "malformed", ["dead-letter"]),
    ],
)
def test_topics_of_a_verdict(router: Router, what: list[str | bytes], verdict: str, topics: list[str]) -> None:
    """A verdict has its topics, each message keyed by session and traced back to its notification."""
    decision = made(router, *what)
    assert decision.verdict == verdict
    assert [message.topic for message in decision.messages] == [f"qod.{topic}" for topic in topics]
    for message in decision.messages:
        headers = dict(message.headers)
        assert message.key == SESSION_ID
        assert (headers["verdict"], headers["inbox"]) == (verdict, f"0-{6 + len(what)}")
        assert headers["x-correlator"] == posted("A1").correlator
        assert headers["traceparent"] == posted("A1").traceparent


@pytest.mark.parametrize("text", ["A1", "A1@other", "U9:N"])
def test_a_dead_letter_leaves_the_session(router: Router, text: str) -> None:
    """Whatever is wrong with a notification, the session that its key names stays as it is."""
    session = made(router, text).session
    for content in (b"{", UNKNOWN_TYPE, UNKNOWN_STATUS):
        assert router.decide(posted(content), "0-9", session, RECEIVED).session is session


def test_empty_context_is_left_out(router: Router) -> None:
    """Without a correlator and a trace from the sender there is no header for them."""
    silent = posted("A1")._replace(correlator="", traceparent="")
    headers = dict(one(decisions(router, [silent])[0], "qod.status").headers)
    assert not {"x-correlator", "traceparent", "origin"} & headers.keys()


def test_the_prefix_names_every_topic() -> None:
    """All topics share the configured prefix, and they are known beforehand."""
    router = Router(prefix="lab.qod", routes=[Route("alerts")], forget_after_seconds=1)
    written = {message.topic for what in ("U1:N", b"{") for message in made(router, what).messages}
    assert written == set(router.topics)
    assert router.topics == [
        f"lab.qod.{name}" for name in ("alerts", "dead-letter", "sessions", "status", "unavailable")
    ]


# Values.


@pytest.mark.parametrize(
    ("what", "value"),
    [
        (["A1#x"], {"qosStatus": "AVAILABLE", "time": "2026-11-24T10:00:01Z", "late": False}),
        (["R1.25"], {"qosStatus": "REQUESTED", "time": "2026-11-24T10:00:01.25Z", "late": False}),
        (["A?"], {"qosStatus": "AVAILABLE", "time": "2026-11-24T10:01:00Z", "late": False}),
        (["U2:N", "A9"], {"qosStatus": "AVAILABLE", "time": "2026-11-24T10:00:09Z", "late": True}),
        (["A1", "U5:E", "A2"], {"qosStatus": "AVAILABLE", "late": True}),
        # A late event that grants availability.
        (["U2.5:N", "A1"], {"late": True, "availableSince": "2026-11-24T10:00:01Z", "availableSeconds": 1.5}),
        (["U5:N"], {"late": False, "statusInfo": "NETWORK_TERMINATED", "unexpected": True}),
        (["A1", "U5:E"], {"statusInfo": "DURATION_EXPIRED", "unexpected": False, "availableSeconds": 4.0}),
        (["A1", "U5:D"], {"statusInfo": "DELETE_REQUESTED", "unexpected": False, "availableSeconds": 4.0}),
        (["A1", "U5"], {"unexpected": True, "availableSeconds": 4.0}),
        (["A1", "U9:N", "U5:D"], {"statusInfo": "DELETE_REQUESTED", "unexpected": False, "late": True}),
    ],
)
def test_status_value(router: Router, what: list[str | bytes], value: dict[str, object]) -> None:
    """The value on the status topic is flat, with the event's facts, and without unknown members."""
    told_value = told_by(made(router, *what), "qod.status")
    assert told_value | value == told_value
    assert (told_value["sessionId"], told_value["sender"]) == (SESSION_ID, SENDER)
    assert told_value["receivedAt"] == "2026-11-24T10:01:00Z"
    optional = {"statusInfo", "unexpected", "availableSince", "availableSeconds"}
    assert optional & told_value.keys() == optional & value.keys()


def test_both_streams_tell_the_same(router: Router) -> None:
    """A record on the stream of ends is the one on the status stream."""
    decision = made(router, "A1", "U2:N")
    assert one(decision, "qod.unavailable") == one(decision, "qod.status")._replace(topic="qod.unavailable")


@pytest.mark.parametrize(
    ("what", "value"),
    [
        (["A1"], {"qosStatus": "AVAILABLE", "time": "2026-11-24T10:00:01Z", "availableSince": "2026-11-24T10:00:01Z"}),
        (["R1"], {"qosStatus": "REQUESTED", "time": "2026-11-24T10:00:01Z"}),
        (["A1", "A2"], {"time": "2026-11-24T10:00:02Z", "availableSince": "2026-11-24T10:00:01Z"}),
        (["U2:N", "A9"], {"qosStatus": "UNAVAILABLE", "statusInfo": "NETWORK_TERMINATED"}),
        (
            ["U3:E", "A1"],
            {
                "qosStatus": "UNAVAILABLE",
                "statusInfo": "DURATION_EXPIRED",
                "availableSince": "2026-11-24T10:00:01Z",
                "availableSeconds": 2.0,
            },
        ),
        (["A1", "U3"], {"availableSince": "2026-11-24T10:00:01Z", "availableSeconds": 2.0}),
    ],
)
def test_sessions_value(router: Router, what: list[str | bytes], value: dict[str, object]) -> None:
    """The value on the sessions topic is the session's state, flat, and without unknown members."""
    told_value = told_by(made(router, *what), "qod.sessions")
    assert told_value | value == told_value
    optional = {"statusInfo", "availableSince", "availableSeconds"}
    assert optional & told_value.keys() == optional & value.keys()


# CloudEvents.


@pytest.mark.parametrize("topic", ["qod.status", "qod.unavailable", "qod.sessions"])
def test_the_sdk_reads_a_record(router: Router, topic: str) -> None:
    """A record is a CloudEvent in binary mode: the sender's own attributes, and the flat value as its data."""
    message = one(made(router, "U1.25:N#id-1"), topic)
    event = read_back(message)
    assert (event.get_specversion(), event.get_id(), event.get_source()) == ("1.0", "id-1", SOURCE)
    assert (event.get_type(), event.get_datacontenttype()) == (TYPE, "application/json")
    time = event.get_time()
    assert time is not None
    assert rfc3339.micros(time.isoformat()) == START + 1.25 * SECOND
    assert event.get_extension("partitionkey") == SESSION_ID
    assert event.get_data() == orjson.loads(message.value or b"")


def test_attributes_that_the_dialect_lacks_are_ours(router: Router) -> None:
    """An event without id, source and time gets its position for an id and its sender for a source, and no time."""
    sender = "café/7"
    message = one(decisions(router, [posted(bare(), sender=sender)], first=17)[0], "qod.status")
    event = read_back(message)
    assert (event.get_id(), event.get_source()) == ("0-17", "/senders/caf%C3%A9%2F7")
    assert "ce_time" not in dict(message.headers)  # the SDK would make one up


def test_the_sdk_reads_a_dead_letter(router: Router) -> None:
    """A dead letter is a CloudEvent too, with an id of its own."""
    event = read_back(one(made(router, b"{"), "qod.dead-letter"))
    assert (event.get_id(), event.get_source(), event.get_type()) == (
        "0-7",
        f"/senders/{SENDER}",
        "qod-receiver.dead-letter",
    )
    data = event.get_data()
    assert isinstance(data, dict)
    assert data["verdict"] == "malformed"


def test_an_id_beyond_ascii_comes_through(router: Router) -> None:
    """A header is UTF-8: an id in any script is read back as it was."""
    content = body(told("A1")[0]._replace(id="événement-✓"))
    assert read_back(one(made(router, content), "qod.status")).get_id() == "événement-✓"


# Timestamps.


@pytest.mark.parametrize(
    ("told_micros", "record_micros"),
    [
        (RECEIVED - SECOND, RECEIVED - SECOND),
        (RECEIVED, RECEIVED),
        (RECEIVED + 1, RECEIVED),
        (RECEIVED + 4_000 * HOUR, RECEIVED),
        (RECEIVED - 24 * HOUR, RECEIVED - 24 * HOUR),
        (RECEIVED - 24 * HOUR - 1, RECEIVED),
        (RECEIVED - 4_000 * HOUR, RECEIVED),
        (None, RECEIVED),
    ],
)
def test_record_timestamp(router: Router, told_micros: int | None, record_micros: int) -> None:
    """The timestamp is the event's time within the day before receipt, else that of receipt; the value keeps it."""
    decision = made(router, body(told("A1#x")[0]._replace(time_micros=told_micros)))
    assert one(decision, "qod.status").timestamp_millis == record_micros // 1000
    assert told_by(decision, "qod.status")["time"] == rfc3339.render(RECEIVED if told_micros is None else told_micros)


@pytest.mark.parametrize(
    "time",
    [
        "0001-01-01T00:00:00Z",
        "1970-01-01T00:00:00Z",
        "2025-11-24T10:00:00Z",
        "2027-11-24T10:00:00Z",  # of a week of the next year, with that year's number in its place
        "9999-12-31T23:59:59Z",
    ],
)
def test_a_time_that_cannot_be_true_is_none(router: Router, time: str) -> None:
    """A time half a year or more from its receipt does not count for the order; the receipt replaces it."""
    far = body(told("A1#x")[0]._replace(time_micros=rfc3339.micros(time)))
    before, decision, behind = decisions(router, [posted(each) for each in ("U2", far, "U61")])
    assert [each.verdict for each in (before, decision, behind)] == ["accepted"] * 3
    assert decision.oddities == (Oddity.FAR_TIME,)
    assert told_by(decision, "qod.status")["time"] == rfc3339.render(RECEIVED)
    assert "ce_time" not in dict(one(decision, "qod.status").headers)


@pytest.mark.parametrize(
    ("texts", "oddities"),
    [
        (["A1#x"], ()),
        (["A1#x", "U2#x"], (Oddity.REUSED_ID,)),
        (["A1#x", "A9#x"], ()),
        ([body(told("A1")[0], time="noon")], (Oddity.TIME,)),
        ([body(told("A1#x")[0], time="noon"), body(told("U1#x")[0], time="noon")], (Oddity.TIME, Oddity.REUSED_ID)),
        ([body(told("A1")[0], source={}), body(told("A1")[0], source={})], (Oddity.SOURCE,)),
    ],
)
def test_what_is_odd_is_told(router: Router, texts: list[str | bytes], oddities: tuple[Oddity, ...]) -> None:
    """A decision names the oddities of its notification."""
    assert made(router, *texts).oddities == oddities


def test_an_id_in_capitals_goes_on_where_it_was_kept(router: Router) -> None:
    """A session that an earlier release kept under a UUID in upper case stays under it; a new one is in lower case."""
    upper = SESSION_ID.upper()
    first = posted("A1", session_id=upper)
    assert (first.key, parse(first.body).session_id) == (upper, SESSION_ID)
    made_of = decisions(router, [first, posted("U2:N", session_id=upper), posted("U3:D", session_id=SESSION_ID)])
    assert [each.verdict for each in made_of] == ["accepted", "accepted", "accepted"]
    assert [one(each, "qod.status").key for each in made_of] == [upper, upper, SESSION_ID]


def test_senders_that_take_sessions_up_again_are_configured() -> None:
    """AVAILABLE after the end is late, except for the senders that the configuration names."""
    router = build_router(Settings(router=RouterSettings(resuming_senders=("acme",))))
    assert made(router, "U1:N", "A2").verdict == "accepted"
    assert made(router, "U1:N@other", "A2@other").verdict == "late"


def test_the_table_of_sessions_is_stamped_by_the_clock(router: Router) -> None:
    """Records of one session never go back in time on the sessions topic, whatever times its events have."""
    receipts = [RECEIVED, RECEIVED + 50 * SECOND, RECEIVED + 20 * SECOND]
    made_of = [posted(text, received_micros=at) for text, at in zip(["A9", "U5:N", "A1"], receipts, strict=True)]
    stamps = [one(decision, "qod.sessions").timestamp_millis for decision in decisions(router, made_of)]
    assert stamps == [RECEIVED // 1000, RECEIVED // 1000 + 50_000, RECEIVED // 1000 + 50_000]


# Dead letters.


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00\xfe", b'{"a":1,"a":2}', UNKNOWN_TYPE, bytes(range(256))])
def test_a_dead_letter_carries_the_body_verbatim(router: Router, content: bytes) -> None:
    """A dead letter has all of the post: body, sender, time of receipt, and headers."""
    notification = posted(content)
    value = told_by(decisions(router, [notification])[0], "qod.dead-letter")
    assert b64decode(value["body"]) == content
    assert (value["sender"], value["receivedAt"]) == (SENDER, "2026-11-24T10:01:00Z")
    assert value["headers"] == {
        "content-type": notification.content_type,
        "x-correlator": notification.correlator,
        "traceparent": notification.traceparent,
    }
    assert value["reason"]


def test_a_dead_letter_is_one_that_brokers_take(router: Router) -> None:
    """Another program's body in the inbox may be as long as a record; its letter says that it was cut."""
    notification = posted("A1")._replace(body=b"x" * 900_000)
    value = told_by(decisions(router, [notification])[0], "qod.dead-letter")
    assert len(b64decode(value["body"])) == 512 * 1024
    assert value["bodyBytes"] == 900_000


@pytest.mark.parametrize(
    ("origin", "content", "reason"),
    [
        ("beside:/wrong", body(told("A1")[0]), "posted to /wrong, where nothing is served; replay it"),
        ("reconcile", body(told("A1")[0], more="x" * 70_000), "longer than 65536 bytes"),
    ],
)
def test_where_it_came_from_may_be_why(router: Router, origin: str, content: bytes, reason: str) -> None:
    """A post to another path becomes a dead letter, and so does a fact from the API that is too long."""
    decision = decisions(router, [posted(content, origin=origin)])[0]
    assert told_by(decision, "qod.dead-letter")["reason"].startswith(reason)


def test_a_dead_letter_says_why(router: Router) -> None:
    """The reason tells an operator what was wrong."""
    assert "JSON" in told_by(made(router, b"{"), "qod.dead-letter")["reason"]
    assert "device-roaming" in told_by(made(router, UNKNOWN_TYPE), "qod.dead-letter")["reason"]
    assert "DEGRADED" in told_by(made(router, UNKNOWN_STATUS), "qod.dead-letter")["reason"]
    assert "another sender" in told_by(made(router, "A1", "U2@other"), "qod.dead-letter")["reason"]


def test_what_lies_under_another_key_dies(router: Router) -> None:
    """A readable event under a key that is not its session's is not applied, since its session may be elsewhere."""
    decision = decisions(router, [posted("A1", key=SENDER)])[0]
    assert (decision.verdict, decision.session) == (Verdict.MALFORMED, None)
    assert one(decision, "qod.dead-letter").key == SENDER
    assert "replay" in told_by(decision, "qod.dead-letter")["reason"]


@pytest.mark.parametrize("content", [b"{", UNKNOWN_TYPE, UNKNOWN_STATUS])
def test_a_replayed_letter_dies_only_once(router: Router, content: bytes) -> None:
    """A dead letter that still can't be read is decided on without a second letter."""
    first, again = posted(content), posted(content, origin="replay:0-3")
    verdicts = [(decision.verdict, len(decision.messages)) for decision in decisions(router, [first, again])]
    assert verdicts == [(verdicts[0][0], 1), (verdicts[0][0], 0)]


def test_a_replayed_letter_is_routed_once_it_is_readable(router: Router) -> None:
    """A letter that is readable now takes effect as if it arrived, marked with its place."""
    notification = posted("A1", origin="replay:0-3")
    first, again = decisions(router, [notification, notification])
    assert (first.verdict, again.verdict) == (Verdict.ACCEPTED, Verdict.DUPLICATE)
    assert dict(one(first, "qod.status").headers)["origin"] == "replay:0-3"


def test_giving_up_keeps_the_notification(router: Router) -> None:
    """A notification that can't be decided on becomes a dead letter with the reason, and can be replayed."""
    session = made(router, "A1").session
    decision = router.give_up(posted("U2:N#x"), "0-9", session, "the router failed: ZeroDivisionError")
    assert (decision.verdict, decision.session) == (Verdict.UNRECOGNIZED, session)
    value = told_by(decision, "qod.dead-letter")
    assert value["reason"] == "the router failed: ZeroDivisionError"
    assert b64decode(value["body"]) == posted("U2:N#x").body


# How long a session is remembered.


@pytest.mark.parametrize(
    ("hours_later", "verdict"), [(0, "duplicate"), (96, "duplicate"), (96.001, "accepted"), (9999, "accepted")]
)
def test_a_session_is_forgotten_by_the_inboxs_clock(router: Router, hours_later: float, verdict: str) -> None:
    """A repetition is recognized for as long as the session is remembered, and counts as a new change after that."""
    again = posted("A1#x", received_micros=RECEIVED + round(hours_later * HOUR))
    first, second = decisions(router, [posted("A1#x"), again])
    assert second.verdict == verdict
    assert first.session is not None
    assert router.is_forgotten(first.session, again.received_micros) is (verdict == "accepted")


def test_a_forgotten_session_may_be_anybodys(router: Router) -> None:
    """Once it is forgotten, a session's id may come from another sender, and begins anew."""
    later = posted("A1@other", received_micros=RECEIVED + 97 * HOUR)
    decision = decisions(router, [posted("U2:N"), later])[-1]
    assert decision.verdict is Verdict.ACCEPTED
    assert decision.session is not None
    assert (decision.session.sender, decision.session.qos_status) == ("other", QosStatus.AVAILABLE)


def test_a_tombstone(router: Router) -> None:
    """A session ends with a record that has its key and no value, stamped by the inbox's clock."""
    session = made(router, "A1").session
    assert session is not None
    message = router.forget(session, RECEIVED + HOUR)
    assert message == Message("qod.sessions", SESSION_ID, None, (), (RECEIVED + HOUR) // 1000)


# All that a session remembers is in its record.

SPELLED = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["A", "U", "R"]),
    st.one_of(st.just("?"), st.integers(-9, 9), st.decimals(-9, 9, places=6).map("{:f}".format)),
    st.sampled_from(["", ":N", ":D", ":WORSE"]),
    st.sampled_from(["", "#", "#x", "#y"]),
).filter(lambda text: text[0] == "U" or ":" not in text)


@given(st.lists(SPELLED, min_size=1, max_size=12), st.sampled_from([2, MARKS_MAX]))
def test_a_session_is_read_back_as_it_was_written(texts: list[str], marks_max: int) -> None:
    """The record on the sessions topic holds the whole session: value and headers give the same one again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("receiver.core.session.MARKS_MAX", marks_max)
        for decision in decisions(Router(prefix="qod", forget_after_seconds=1e6), list(map(posted, texts))):
            for message in decision.messages:
                if message.topic == "qod.sessions":
                    assert session_from(message.value or b"", dict(message.headers)) == decision.session


@given(st.lists(SPELLED, min_size=1, max_size=12))
def test_decide_is_a_function_of_the_inbox(texts: list[str]) -> None:
    """The same notifications lead to the same messages, byte by byte, with any router."""
    notifications: list[Notification] = list(map(posted, texts))
    first, second = (decisions(Router(prefix="qod", forget_after_seconds=1e6), notifications) for _ in range(2))
    assert first == second


# The table of routes.


@pytest.mark.parametrize(
    ("route", "taken"),
    [
        (Route("x"), True),
        (Route("x", verdicts=frozenset({Verdict.LATE})), False),
        (Route("x", verdicts=frozenset({Verdict.LATE, Verdict.ACCEPTED})), True),
        (Route("x", senders=frozenset({SENDER, "other"})), True),
        (Route("x", senders=frozenset({"other"})), False),
        (Route("x", senders=frozenset()), False),
        (Route("x", qos_statuses=frozenset({QosStatus.UNAVAILABLE})), True),
        (Route("x", qos_statuses=frozenset({QosStatus.AVAILABLE})), False),
        (Route("x", status_infos=frozenset({"NETWORK_TERMINATED"})), True),
        (Route("x", status_infos=frozenset({"DURATION_EXPIRED"})), False),
        (Route("x", unexpected=True), True),
        (Route("x", unexpected=False), False),
        (Route("x", event_types=(TYPE,)), True),
        (Route("x", event_types=("org.camaraproject.qod.*",)), True),
        (Route("x", event_types=("nope", "*.qos-status-changed")), True),
        (Route("x", event_types=("org.camaraproject.qod",)), False),
        (Route("x", event_types=("ORG.*",)), False),
        (Route("x", event_types=()), False),
        (Route("x", senders=frozenset({SENDER}), unexpected=True, event_types=("*",)), True),
        (Route("x", senders=frozenset({SENDER}), unexpected=False, event_types=("*",)), False),
    ],
)
def test_conditions_of_a_route(route: Route, taken: bool) -> None:
    """A route takes an event that meets every one of its conditions, each by any of its values."""
    event, sender = told("U1:N")
    assert route.matches(Verdict.ACCEPTED, event, sender) is taken


@pytest.mark.parametrize("verdict", [each for each in Verdict if each not in {Verdict.ACCEPTED, Verdict.LATE}])
def test_no_default_route_takes_what_is_no_change(verdict: Verdict) -> None:
    """Without extra routes, only changes go to the streams."""
    assert targets(DEFAULT_ROUTES, verdict, *told("U1:N")) == []


def test_a_topic_gets_a_message_once() -> None:
    """Several routes to one topic send one message, in the table's order, default topics included."""
    routes = [Route("alerts", unexpected=True), Route("status"), Route("alerts"), Route("ends", verdicts=frozenset())]
    router = Router(prefix="qod", routes=routes, forget_after_seconds=1)
    topics = [message.topic for message in made(router, "U1:N").messages]
    assert topics == ["qod.sessions", "qod.status", "qod.unavailable", "qod.alerts"]


def test_kinds_of_events_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """With any number of different reasons each event goes to its topics, and the memory has a limit."""
    monkeypatch.setattr("receiver.core.router._KINDS_MAX", 2)
    router = Router(prefix="qod", forget_after_seconds=1)
    for number in range(5):
        topics = [message.topic for message in made(router, f"U1:REASON_{number}").messages]
        assert topics == ["qod.sessions", "qod.status", "qod.unavailable"]


def test_an_extra_route_can_feed_a_default_topic() -> None:
    """A route adds to what a default topic gets, and takes nothing away."""
    router = Router(prefix="qod", routes=[Route("unavailable", senders=frozenset({SENDER}))], forget_after_seconds=1)
    assert [message.topic for message in made(router, "A1").messages][1:] == ["qod.status", "qod.unavailable"]
    assert [message.topic for message in made(router, "A1@other").messages][1:] == ["qod.status"]


# Times as text.


@given(st.datetimes())
def test_times_are_exact(time: datetime) -> None:
    """A time is the same after rendering and reading, to the microsecond, from year 1 to 9999."""
    micros = rfc3339.micros(time.isoformat())
    text = rfc3339.render(micros)
    assert rfc3339.micros(text) == micros
    assert text.endswith("Z")
    assert "." not in text or text[-2] != "0"


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("2026-11-24T10:00:00Z", "2026-11-24T10:00:00Z"),
        ("2026-11-24T10:00:00", "2026-11-24T10:00:00Z"),
        ("2026-11-24T12:00:00.250000+02:00", "2026-11-24T10:00:00.25Z"),
        ("1969-12-31T23:59:59.999999Z", "1969-12-31T23:59:59.999999Z"),
        ("2026-11-24T10:00:00.123456789Z", "2026-11-24T10:00:00.123456Z"),
    ],
)
def test_times_are_rendered_in_utc(text: str, rendered: str) -> None:
    """A time is shown in UTC without trailing zeros; parts finer than a microsecond are cut."""
    assert rfc3339.render(rfc3339.micros(text)) == rendered
