"""Facts from the operator's API: they have an effect if a session is behind the API, and none twice."""

from collections.abc import Sequence

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from receiver.core import rfc3339
from receiver.core.errors import Malformed
from receiver.core.event import QosStatus, StatusInfo
from receiver.core.facts import NO_FACTS, Facts, facts_of, members, merged
from receiver.core.notification import CLIENT, RECONCILE, Notification
from receiver.core.router import Decision, Router
from receiver.core.session import MISSING_SOURCE, Session, Verdict, apply, learn
from receiver.core.session import merged as merged_sessions
from receiver.core.session_record import session_from
from receiver.qod.difference import differences
from receiver.qod.model import ApiSession
from receiver.qod.telling import Telling, device_hash, facts_told, notification, received, sent
from tests.samples import SECOND, SENDER, SESSION_ID, START, decisions, posted, told

ACCEPTED, DUPLICATE, UNCHANGED, LATE = Verdict.ACCEPTED, Verdict.DUPLICATE, Verdict.UNCHANGED, Verdict.LATE
RECEIVED = START + 1000 * SECOND
KEY = b"k" * 32
FACTS = Facts("QOS_E", 3600, START + 3600 * SECOND, "ab12")


def after(texts: Sequence[str]) -> tuple[Session, Verdict]:
    """The session after spelled events: those behind a `~` are told by the API, those with a `!` with facts.

    `~xU5` is an end that was concluded because the API did not know the session.
    """
    session: Session | None = None
    verdict = ACCEPTED
    for index, text in enumerate(texts):
        event, sender = told(text.strip("~!x"))
        event = event._replace(source=MISSING_SOURCE) if "x" in text[:2] else event
        micros = RECEIVED + index * SECOND
        if text.startswith("~"):
            session, verdict = learn(session, event, FACTS if "!" in text else NO_FACTS, sender, micros)
        else:
            session, verdict, _ = apply(session, event, sender, micros, micros)[:3]
    assert session is not None
    return session, verdict


@pytest.mark.parametrize(
    ("before", "text", "verdict", "status", "info"),
    [
        # The session is behind the API, or not.
        ("", "~R1", ACCEPTED, "R", None),
        ("", "~A1", ACCEPTED, "A", None),
        ("", "~U1", ACCEPTED, "U", None),
        ("R1", "~A2", ACCEPTED, "A", None),
        ("A1", "~A2", DUPLICATE, "A", None),
        ("A1", "~R2", DUPLICATE, "A", None),
        ("A1", "~U2", ACCEPTED, "U", None),
        ("A1", "~U2:E", ACCEPTED, "U", "E"),
        ("U1:N", "~A9", DUPLICATE, "U", "N"),
        ("U1:N", "~U9", DUPLICATE, "U", "N"),
        # A session that ended without a reason may come back, by what the API tells after that.
        ("A1 U5", "~A2000", ACCEPTED, "A", None),
        ("A1 U5", "~A1001", DUPLICATE, "U", None),
        ("A1 U5", "~U6", UNCHANGED, "U", None),
        ("A1 U5 ~U6", "A7", LATE, "U", None),
        # The notification arrives later.
        ("~A1", "A1", DUPLICATE, "A", None),
        ("~A2", "A1", UNCHANGED, "A", None),
        ("~R1", "A2", ACCEPTED, "A", None),
        ("A1 ~U5", "U4:N", UNCHANGED, "U", "N"),
        ("A1 ~U5:E", "U4:E", UNCHANGED, "U", "E"),
        ("A1 ~U5:E", "U4:N", UNCHANGED, "U", "N"),
        ("A1 ~U5", "A3", LATE, "U", None),
        ("A1 ~U5", "A9", LATE, "U", None),
        ("A1 ~U5 U4:N#x", "U4:N#x", DUPLICATE, "U", "N"),
        ("~A5", "U1", ACCEPTED, "U", None),
        ("~A5 U1 A2", "U1.5", LATE, "A", None),
        ("~A1 U5:N", "A2", UNCHANGED, "U", "N"),
        ("~A1 ~U5", "A2", UNCHANGED, "U", None),
        ("~A1 ~U5", "R2", LATE, "U", None),
        # The API did not know the session, maybe by a gateway's mistake.
        ("A1", "~xU5", ACCEPTED, "U", None),
        ("A1 ~xU5", "A1001", ACCEPTED, "A", None),
        ("A1 ~xU5", "A1002", ACCEPTED, "A", None),
        ("A1 ~xU5:E", "A1002", ACCEPTED, "A", None),
        ("A1 ~xU5", "A1000", LATE, "U", None),  # told before it was missing
        ("A1 ~xU5", "A1003", LATE, "U", None),  # by a clock that is ahead
        ("A1 ~xU5", "A?", LATE, "U", None),
        ("R1 ~xU5", "A1002", LATE, "U", None),  # maybe the session's first one, late, by a clock that is ahead
        ("~A1 ~xU5", "A1002", UNCHANGED, "U", None),
        ("~A1 ~xU5 R2", "A1003", UNCHANGED, "U", None),
        ("~A1 ~xU5 A2", "A1003", ACCEPTED, "A", None),
        ("R1 ~xU5", "A4", LATE, "U", None),
        ("R1 ~xU5", "R9", LATE, "U", None),
        ("A1 ~xU5", "A1", DUPLICATE, "U", None),
        ("A1 ~xU5", "~A2000", ACCEPTED, "A", None),
        ("A1 ~xU5", "~A6", DUPLICATE, "U", None),
        ("A1 ~xU5", "~R2000", DUPLICATE, "U", None),
        ("A1 ~xU5", "~xU6", DUPLICATE, "U", None),
        ("A1 ~xU5 A1002", "~xU5", DUPLICATE, "A", None),
        ("A1 ~xU5 A1002", "~xU2000", ACCEPTED, "U", None),
        ("A1 ~xU5 A1002", "U1003:N", ACCEPTED, "U", "N"),
        # The conclusion is confirmed, and final.
        ("A1 ~xU5", "U4:N", UNCHANGED, "U", "N"),
        ("A1 ~xU5 U4:N", "A1003", LATE, "U", "N"),
        ("A1 ~xU5 U4:N", "U9:E", UNCHANGED, "U", "E"),
        ("A1 ~xU5", "~U6", UNCHANGED, "U", None),
        ("A1 ~xU5:E ~U6", "A1003", LATE, "U", "E"),
        ("A1 ~xU5 U6", "A1003", ACCEPTED, "A", None),
        ("A1 ~U5", "~xU9", DUPLICATE, "U", None),
        ("A1 U5:N", "~xU9", DUPLICATE, "U", "N"),
        ("A1 U5", "~xU9", UNCHANGED, "U", None),
        # Facts don't change the status, and have no effect twice.
        ("A1", "~!A2", UNCHANGED, "A", None),
        ("A1 ~!A2", "~!A3", DUPLICATE, "A", None),
        ("U1:N", "~!A2", UNCHANGED, "U", "N"),
        # The API's facts count for any sender's session.
        ("A1@other", "~U2", ACCEPTED, "U", None),
    ],
)
def test_what_is_learned(before: str, text: str, verdict: Verdict, status: str, info: str | None) -> None:
    """The API moves a session forward, never back, and a later notification of the same has no further effect."""
    session, found = after([*before.split(), text])
    assert found is verdict
    assert session.qos_status[0] == status
    assert (session.status_info or " ")[0] == {"N": "N", "E": "D", None: " "}[info]


def test_the_sender_stays() -> None:
    """A session belongs to the sender that told of it first, though the API moves it on."""
    session, _ = after(["A1@other", "~U2"])
    assert session.sender == "other"


def test_a_merged_session_is_its_senders() -> None:
    """Two sessions with one id are one only if they are one sender's; then the end's reason is kept."""
    ours, _ = after(["A1", "~U5"])
    theirs, _ = after(["A1", "U4:N"])
    assert (
        merged_sessions(ours, theirs).status_info == merged_sessions(theirs, ours).status_info == "NETWORK_TERMINATED"
    )
    another, _ = after(["A1@other"])
    assert merged_sessions(ours, another) is another


def test_facts_stay() -> None:
    """The API's facts about a session are remembered whatever senders tell, and its latest facts count."""
    session, _ = after(["~!R1", "A2", "~A3", "U4:N"])
    assert session.facts == FACTS
    assert merged(FACTS, Facts("QOS_S")) == FACTS._replace(qos_profile="QOS_S")


@pytest.mark.parametrize(
    ("before", "told_second", "received_second", "verdict"),
    [
        ("R1 ~xU5", 1002.9, 1010, LATE),
        ("R1 ~xU5", 1003, 1010, ACCEPTED),
        ("R1 ~xU5", 1010, 1010, ACCEPTED),
        ("R1 ~xU5", 1010.1, 1010, LATE),
        ("~A1 ~xU5", 1003, 1010, ACCEPTED),
        ("A1 ~xU5", 1001, 1010, ACCEPTED),
    ],
)
def test_a_senders_word_takes_an_end_back(
    before: str, told_second: float, received_second: int, verdict: Verdict
) -> None:
    """An AVAILABLE counts if it was told after the end came in; a sender's first one only if it is clearly later."""
    session, _ = after(before.split())
    event, sender = told(f"A{told_second}")
    received_micros = START + received_second * SECOND
    assert apply(session, event, sender, received_micros, received_micros)[1] is verdict


def test_what_was_never_away_goes_on() -> None:
    """After a mistaken end the earlier availability continues, until a true end."""
    session, _ = after(["A1", "~xU5", "A1002"])
    assert (session.available_micros, session.available_seconds) == (START + SECOND, None)
    session, _ = after(["A1", "~xU5", "~A2000", "U2021:N"])
    assert session.available_seconds == 2020


TEXTS = st.lists(
    st.builds(
        lambda how, status, second, info: (
            f"{how if status == 'U' else how.strip('x')}{status}{second}{info if status == 'U' else ''}"
        ),
        st.sampled_from(["", "~", "~!", "~x"]),
        st.sampled_from("RAU"),
        st.integers(0, 20),
        st.sampled_from(["", ":N", ":E"]),
    ),
    min_size=1,
    max_size=8,
)


@given(TEXTS)
def test_learning_twice_changes_nothing(texts: list[str]) -> None:
    """After any events, a repeated fact from the API leaves the session as it is."""
    once, _ = after([*texts, "~!U9"])
    twice, verdict = learn(once, told("U9")[0], FACTS, SENDER, RECEIVED + 100 * SECOND)
    assert verdict is DUPLICATE
    assert twice is once


@given(TEXTS, TEXTS)
def test_an_end_is_told_once(before: list[str], later: list[str]) -> None:
    """After the API told of the end no post is accepted any more: no alert comes twice."""
    known = [*before, "~U9"]
    assume(QosStatus.UNAVAILABLE in after(known)[0].learned)  # and was not known before
    for text in later:
        if not text.startswith("~"):
            known.append(text)
            session, verdict = after(known)
            assert session.qos_status is QosStatus.UNAVAILABLE
            assert verdict is not ACCEPTED


# Through the router.


def learned(text: str, facts: Facts = NO_FACTS, origin: str = RECONCILE) -> Notification:
    """A fact from the API, as a notification of the inbox."""
    event, _ = told(text.removeprefix("x"))
    assert event.time_micros is not None
    missing = text.startswith("x")
    telling = Telling(SESSION_ID, event.qos_status, event.status_info, event.time_micros, facts, missing)
    return notification(telling, origin, SENDER, RECEIVED)


def value_of(decision: Decision, topic: str) -> dict[str, object]:
    """The value of the only message to a topic."""
    (message,) = (each for each in decision.messages if each.topic == f"qod.{topic}")
    found: dict[str, object] = orjson.loads(message.value or b"")
    return found


def test_values_are_enriched(router: Router) -> None:
    """Once the client knows a session, every value on its topics carries the known facts."""
    first, *_, last = decisions(router, [learned("R1", FACTS, CLIENT), posted("A2"), posted("U3:N")])
    known = {
        "qosProfile": "QOS_E",
        "duration": 3600,
        "expiresAt": rfc3339.render(START + 3600 * SECOND),
        "deviceHash": "ab12",
    }
    for topic in "status", "sessions":
        assert known.items() <= value_of(first, topic).items()
    for topic in "status", "unavailable", "sessions":
        assert known.items() <= value_of(last, topic).items()


def test_what_was_learned_is_marked(router: Router) -> None:
    """Records tell whether their notification was posted or came from the API."""
    _, decision = decisions(router, [posted("A1"), learned("U2:E")])
    assert [message.topic for message in decision.messages] == ["qod.sessions", "qod.status", "qod.unavailable"]
    for message in decision.messages:
        headers = dict(message.headers)
        assert (headers["origin"], headers["ce_source"]) == ("reconcile", "/qod-receiver/reconcile")


def test_a_mistaken_end_is_taken_back(router: Router) -> None:
    """An end that was concluded, because the API does not know the session, is on the topics, and so is an AVAILABLE
    after it.
    """
    posts = posted("A1"), learned("xU2"), posted("A1001", received_micros=RECEIVED + SECOND)
    *_, end, back = decisions(router, posts)
    for decision, status in (end, "UNAVAILABLE"), (back, "AVAILABLE"):
        assert decision.verdict is ACCEPTED
        assert value_of(decision, "status")["qosStatus"] == status
    assert dict(end.messages[0].headers)["ce_source"] == MISSING_SOURCE


def test_nobody_else_tells_facts(router: Router) -> None:
    """Only a sender's status counts, whatever else the body has."""
    (decision,) = decisions(router, [learned("A1", FACTS)._replace(origin="")])
    assert not members(FACTS).keys() & value_of(decision, "status").keys()


def test_facts_that_are_none_are_a_dead_letter(router: Router) -> None:
    """A notification of ours that an older or newer release can't read becomes a dead letter."""
    body = learned("A1", FACTS).body.replace(b"3600", b'"an hour"')
    (decision,) = decisions(router, [learned("A1")._replace(body=body)])
    assert [message.topic for message in decision.messages] == ["qod.dead-letter"]


@given(TEXTS)
def test_a_session_is_read_back(texts: list[str]) -> None:
    """The sessions topic has all that is remembered, facts included."""
    router = Router(prefix="qod", forget_after_seconds=96 * 3600)
    posts = [
        learned(text.lstrip("~!"), FACTS if "!" in text else NO_FACTS) if text.startswith("~") else posted(text)
        for text in texts
    ]
    for decision in decisions(router, posts):
        for message in decision.messages:
            if message.topic == "qod.sessions":
                assert session_from(message.value or b"", dict(message.headers)) == decision.session


# Facts and devices.


def test_facts_are_read_back() -> None:
    """Facts are read from their members, and members of another type are refused."""
    facts = FACTS._replace(device={"phoneNumber": "+34600000001"})
    assert facts_of({**members(facts), "sessionId": "s"}) == facts
    assert members(NO_FACTS) == {}
    cases: list[dict[str, object]] = [
        {"duration": "60"},
        {"duration": True},
        {"expiresAt": "soon"},
        {"expiresAt": "9999-12-31T23:59:59-23:00"},
        {"device": []},
        {"qosProfile": 1},
    ]
    for wrong in cases:
        with pytest.raises(Malformed):
            facts_of(wrong)


def test_a_device_is_hashed_with_a_key() -> None:
    """A device's hash ignores its other members; another key gives another hash, and no device gives none."""
    device = {"phoneNumber": "+34600000001"}
    assert device_hash(device, KEY) == device_hash({**device, "ipv6Address": "2001:db8::1"}, KEY)
    assert device_hash(device, KEY) != device_hash(device, b"j" * 32)
    assert device_hash(device, KEY) != device_hash({"networkAccessIdentifier": "+34600000001"}, KEY)
    assert device_hash({}, KEY) is None


@pytest.mark.parametrize("identifiers", [False, True])
def test_a_device_is_told_only_where_that_is_wanted(identifiers: bool) -> None:
    """A device's identifiers are kept only if the configuration says so."""
    session = theirs("A")
    telling = Telling(SESSION_ID, session.qos_status, None, START, facts_told(session, KEY, identifiers=identifiers))
    assert (b"+34600000001" in notification(telling, CLIENT, SENDER, RECEIVED).body) is identifiers


def test_a_notification_is_sent_to_the_process_that_keeps_it() -> None:
    """Facts that another command learned give the same notification in the serving process."""
    made = learned("A1", FACTS)
    assert received(orjson.loads(orjson.dumps(sent(made))), RECEIVED) == made
    cases: list[dict[str, object]] = [
        {"origin": ""},
        {"origin": "replay:0-1"},
        {"sender": 5},
        {"event": {}},
        {"event": 5},
    ]
    for wrong in cases:
        with pytest.raises((Malformed, TypeError, ValueError, KeyError)):
            received({**sent(made), **wrong}, RECEIVED)


# The difference.


def theirs(
    status: str, *, started: float | None = 1, expires: float | None = 61, info: str | None = None
) -> ApiSession:
    """A session of a minute in the API's form."""
    event, _ = told(f"{status}0")
    begun, ends = (None if each is None else START + round(each * SECOND) for each in (started, expires))
    return ApiSession(SESSION_ID, event.qos_status, info, "QOS_E", 60, begun, ends, {"phoneNumber": "+34600000001"})


@pytest.mark.parametrize(
    ("ours", "api", "asked", "expected"),
    [
        ("A1", theirs("A"), 10, None),
        ("A1", theirs("R"), 10, None),
        ("U5:N", theirs("A"), 10, None),
        ("U5:N", None, 10, None),
        ("U5", None, 10, None),
        ("", None, 10, None),
        ("", theirs("R", started=None), 10, ("R", None, 10)),
        ("", theirs("A"), 10, ("A", None, 1)),
        ("R0", theirs("A"), 10, ("A", None, 1)),
        ("R0", theirs("A", started=None), 10, ("A", None, 10)),
        ("A1 U5", theirs("A"), 2000, ("A", None, 2000)),
        ("A1 U5", theirs("A"), 1000, None),
        # An end: its time and its reason, as far as they are known.
        ("A1", theirs("U", expires=30), 40, ("U", None, 30)),
        ("A1", theirs("U", expires=61), 70, ("U", StatusInfo.DURATION_EXPIRED, 61)),
        ("A1", theirs("U", expires=90), 70, ("U", StatusInfo.DURATION_EXPIRED, 70)),
        ("A1", theirs("U", expires=30, info="NETWORK_TERMINATED"), 40, ("U", "NETWORK_TERMINATED", 30)),
        ("A1", None, 70, None),
        ("~!A1", None, 40, ("U", None, 40)),
        ("~!A1", None, 4000, ("U", StatusInfo.DURATION_EXPIRED, 3600)),
        ("U5 ~!U6", None, 70, None),
        ("~!R1 A30", None, 40, ("U", None, 40)),
        # The session was missing before, by mistake.
        ("~!A1 ~xU40", theirs("A"), 2000, ("A", None, 2000)),
        ("~!A1 ~xU40", None, 2000, None),
        ("~!A1 ~xU3600:E ~A3700", None, 4000, ("U", None, 4000)),
    ],
)
def test_a_difference(
    ours: str, api: ApiSession | None, asked: int, expected: tuple[str, str | None, int] | None
) -> None:
    """A difference is told with the time and the reason that the API knows, and with no others."""
    mine = {SESSION_ID: after(ours.split())[0]} if ours else {}
    found = differences({SESSION_ID: api}, mine, START + asked * SECOND, lambda _: NO_FACTS)
    if expected is None:
        assert not found
        return
    ((_, telling, is_news),) = found
    assert is_news
    status, info, second = expected
    assert (telling.qos_status[0], telling.status_info, telling.time_micros) == (status, info, START + second * SECOND)


def test_an_end_that_was_planned_is_known_by_duration() -> None:
    """If only the duration is known, the session's time is up that long after it became AVAILABLE."""
    mine = after(["A1"])[0]._replace(facts=Facts(duration_seconds=60))
    for asked, expected in (50, (None, 50)), (70, (StatusInfo.DURATION_EXPIRED, 61)):
        ((_, telling, _),) = differences(
            {SESSION_ID: None}, {SESSION_ID: mine}, START + asked * SECOND, lambda _: NO_FACTS
        )
        assert (telling.status_info, telling.time_micros) == (expected[0], START + expected[1] * SECOND)


def test_facts_are_a_difference() -> None:
    """A session with a known status may still have unknown facts."""
    mine = {SESSION_ID: after(["A1"])[0]}
    ((_, telling, is_news),) = differences({SESSION_ID: theirs("A")}, mine, START + 10 * SECOND, lambda _: FACTS)
    assert (telling.facts, is_news) == (FACTS, False)


@given(TEXTS, st.sampled_from(["R", "A", "U"]), st.integers(0, 100))
def test_a_difference_that_was_told_is_none(texts: list[str], status: str, asked: int) -> None:
    """Once the router has decided on a difference, there is none any more."""
    mine, _ = after(texts)
    asked_micros = START + asked * SECOND
    for each in differences({SESSION_ID: theirs(status)}, {SESSION_ID: mine}, asked_micros, lambda _: FACTS):
        mine, _ = learn(mine, each.telling.event(RECONCILE), each.telling.facts, SENDER, RECEIVED)
    assert not differences({SESSION_ID: theirs(status)}, {SESSION_ID: mine}, asked_micros, lambda _: FACTS)
