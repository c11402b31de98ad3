"""Names, traces, dead letters and failures: rows for the small modules of the core."""

from base64 import b64decode

import orjson
import pytest

from receiver.core.dead_letter import fitting, letter_message, revived, shortened
from receiver.core.errors import ApiRefused, Unavailable, Unwritable
from receiver.core.headers import position_of
from receiver.core.message import Message, Record, bytes_of, bytes_of_all
from receiver.core.session import Verdict
from receiver.core.topics import TopicNames
from tests.samples import SENDER, SESSION_ID, posted


@pytest.mark.parametrize(
    ("spelled", "full"),
    [
        ("status", "a.b.status"),
        ("a.b.status", "a.b.status"),
        ("a.status", "a.b.a.status"),
        ("a.b", "a.b.a.b"),
    ],
)
def test_a_topic_may_be_spelled_with_its_prefix(spelled: str, full: str) -> None:
    """A topic's name may be given without the prefix; a route's topic always is."""
    names = TopicNames("a.b")
    assert names.spelled(spelled) == full
    assert names.full(spelled) == f"a.b.{spelled}"
    assert names.is_ours(full)
    assert (names.inbox, names.sessions, names.dead_letters) == ("a.b.inbox", "a.b.sessions", "a.b.dead-letter")


@pytest.mark.parametrize(
    ("trace", "position"),
    [
        ("3-17", 17),
        ("3-0", 0),
        ("4-17", None),
        ("export:x:3-17", None),
        ("3-", None),
        ("", None),
        ("3--1", None),
        ("3-" + "9" * 19, None),
    ],
)
def test_a_trace_is_a_place(trace: str, position: int | None) -> None:
    """Only a trace tells a position in the inbox's partition."""
    assert position_of(trace, 3) == position


@pytest.mark.parametrize("size", [0, 1, 500, 90_000, 600_000])
def test_a_letter_is_cut_to_fit(size: int) -> None:
    """First the body is cut, then all but the fault; the length of the whole body stays."""
    content = b"{" + b"x" * size
    letter = letter_message("qod.dead-letter", posted(content), "0-7", Verdict.MALFORMED, "no JSON")
    for bytes_max in (0, 700, 1_500, 20_000, 1_000_000):
        shorter = fitting(letter, bytes_max)
        assert bytes_of(shorter) <= max(bytes_max, 1_000)
        told = orjson.loads(shorter.value or b"")
        assert (told["verdict"], told["reason"], told["sender"]) == ("malformed", "no JSON", SENDER)
        assert told.get("bodyBytes", len(content)) == len(content)
        assert content.startswith(b64decode(told["body"]))
    assert shortened(Message("qod.dead-letter", "k", None, (), 0), 1_000).value


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"\xff",
        b"[]",
        b"{}",
        b'{"body": 7, "headers": {}, "sender": "s", "receivedAt": "x"}',
        b'{"body": "e30=", "headers": 7, "sender": "s", "receivedAt": "2026-11-24T10:00:00Z"}',
        b'{"body": "e30=", "headers": {}, "sender": 7, "receivedAt": "2026-11-24T10:00:00Z"}',
        b'{"body": "eyJldmVudCI6IngifQ==", "headers": {}, "sender": "s", "receivedAt": "0001-01-01T00:00:00+01:00"}',
    ],
)
def test_a_foreign_letter_is_not_revived(value: bytes | None) -> None:
    """A record that is no letter of ours can't be sent again."""
    assert revived(Record(0, 1, Message("qod.dead-letter", "k", value, [], 0))) == ()


def test_a_letter_is_the_notification_again() -> None:
    """A letter keeps all that the notification was read with, and its place becomes the origin."""
    gone = posted("A1", key=SENDER)._replace(envelope=(("ce-id", "x"),))
    letter = letter_message("qod.dead-letter", gone, "0-7", Verdict.MALFORMED, "unreadable then")
    assert revived(Record(1, 3, letter)) == [gone._replace(key=SESSION_ID, origin="replay:1-3")]
    batch = letter_message("qod.dead-letter", gone._replace(body=b"[" + gone.body + b",{}]"), "0-7", Verdict.LATE, "")
    assert revived(Record(1, 3, batch)) == [gone._replace(key=SESSION_ID, origin="replay:1-3", envelope=())]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, {"value": None}),
        (b'{"a":1}', {"value": {"a": 1}}),
        (b"\xff", {"value": None, "valueBase64": "/w=="}),
        (b"[" * 300 + b"]" * 300, {"value": None, "valueBase64": None}),
        (b"[" + b"[]," * 200 + b"1]", {"value": [[]] * 200 + [1]}),
    ],
)
def test_any_value_is_shown(value: bytes | None, shown: dict[str, object]) -> None:
    """A record is shown with its value parsed, or in Base64 if it can't be."""
    for millis in (-(1 << 62), 0, 1 << 62):
        fields = Record(0, 1, Message("t", "k", value, [("a", "b")], millis)).fields()
        assert fields["headers"] == {"a": "b"}
        assert fields["value"] == shown["value"]
        assert ("valueBase64" in fields) is ("valueBase64" in shown)


def test_bytes_are_counted_about() -> None:
    """Messages count their contents, shared headers included."""
    headers = [("a", "x" * 1_000)]
    messages = [Message(topic, "k", b"v" * 500, headers, 0) for topic in ("s", "t")]
    messages.append(Message("s", "k", None, (), 0))
    assert 3_000 <= bytes_of_all(messages) <= 3_100
    assert sum(map(bytes_of, messages)) == 2 * (1 + 500 + 1_000) + 1


def test_failures_say_who_must_act() -> None:
    """A failure of ours says when to come again, and a refusal has the API's words."""
    assert Unavailable("full", reason="store").retry_after_seconds == 5
    assert isinstance(Unwritable("too long", reason="store"), Unavailable)
    refused = ApiRefused(403, "PERMISSION_DENIED", "no")
    assert (refused.status, refused.code, refused.reason, refused.message) == (403, "PERMISSION_DENIED", "api", "no")
