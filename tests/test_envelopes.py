"""Codings and envelopes: a notification in any wrapping has its effect, and nothing is lost."""

import asyncio
import gzip
import json
import zlib
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.backends.kafka.records import inbox_record, notification_of
from receiver.backends.packing import Pack, pack_notifications, unpack_notifications
from receiver.backends.set_aside import SetAside
from receiver.core.body import BATCH_MAX, INFLATED_BYTES_MAX, elements
from receiver.core.dead_letter import revived
from receiver.core.errors import Malformed, Unavailable
from receiver.core.event import Event
from receiver.core.message import Record
from receiver.core.notification import Envelope, Notification, envelope_of, parse, split
from receiver.core.router import Router
from receiver.inbox import Inbox, Told, future_of
from receiver.telemetry import Telemetry
from tests.nodes import COUNT_MAX, Node, everything, route, until
from tests.samples import SENDER, SESSION_ID, START, TYPE, bare, body, decisions, posted, told
from tests.test_edge import BODY_BYTES_MAX, Door, door

EVENT = told("U1:N#x")[0]
OTHER = told("A2#y", session_id="other")[0]
BODY, OTHER_BODY = body(EVENT), body(OTHER)
DATA = orjson.dumps({"sessionId": SESSION_ID, "qosStatus": "UNAVAILABLE", "statusInfo": "NETWORK_TERMINATED"})
#: The event in the binary mode of CloudEvents' HTTP binding.
BINARY = {
    "ce-specversion": "1.0",
    "ce-type": TYPE,
    "ce-id": "x",
    "ce-source": EVENT.source,
    "ce-time": "2026-11-24T10:00:01Z",
}
BATCH = b" [\n" + BODY + b" , " + OTHER_BODY + b"]\n"
BATCH_TYPE = "application/cloudevents-batch+json"
RAW = zlib.compressobj(wbits=-15)
RAW_DEFLATED = RAW.compress(BODY) + RAW.flush()
#: A body that is short while compressed and too long once inflated.
BOMB = gzip.compress(BODY[:-1] + b',"more":"' + b"x" * 20 * BODY_BYTES_MAX + b'"}')


@pytest.fixture
async def edge(node: Node, telemetry: Telemetry) -> Door:
    """An edge over an empty inbox."""
    return door(node, telemetry)


async def answered(edge: Door, content: bytes, headers: dict[str, str | None]) -> int:
    """The status of the answer to a post with these headers."""
    named = {name: value for name, value in headers.items() if value is not None and name != "content-type"}
    content_type = headers.get("content-type", "application/cloudevents+json")
    return (await edge.answer(content, content_type=content_type, more=list(named.items()))).status


async def told_on(edge: Door, router: Router, topic: str) -> list[Any]:
    """The values on a topic once all is routed."""
    await route(edge.node, router)
    return [orjson.loads(record.message.value or b"") for record in await everything(edge.node.reader, f"qod.{topic}")]


READ: dict[str, tuple[bytes, dict[str, str | None]]] = {
    "gzip": (gzip.compress(BODY), {"content-encoding": "gzip"}),
    "x-gzip": (gzip.compress(BODY), {"content-encoding": "X-GZIP"}),
    "gzip with members": (gzip.compress(BODY[:30]) + gzip.compress(BODY[30:]), {"content-encoding": "gzip"}),
    "gzip padded": (gzip.compress(BODY) + b"\0" * 20, {"content-encoding": "gzip"}),
    "gzip without the header": (gzip.compress(BODY), {}),
    "gzip, blanks behind": (gzip.compress(BODY), {"content-encoding": "gzip \t"}),
    "gzip told twice": (gzip.compress(BODY), {"content-encoding": "gzip, gzip"}),
    "gzip twice": (gzip.compress(gzip.compress(BODY)), {"content-encoding": "gzip, gzip"}),
    "gzip undone on the way": (BODY, {"content-encoding": "gzip"}),
    "deflate": (zlib.compress(BODY), {"content-encoding": "deflate"}),
    "deflate without the header": (zlib.compress(BODY), {}),
    "deflate without zlib's head": (RAW_DEFLATED, {"content-encoding": "deflate"}),
    "deflate undone on the way": (BODY, {"content-encoding": "deflate"}),
    "deflate undone, with blanks": (b'{\n  "' + BODY[2:], {"content-encoding": "deflate"}),
    "deflate undone, of a batch": (b'[{ "' + BODY[2:] + b"]", {"content-encoding": "deflate"}),
    "deflate and gzip": (gzip.compress(zlib.compress(BODY)), {"content-encoding": "deflate, gzip"}),
    "identity": (BODY, {"content-encoding": "identity"}),
    "a charset in its place": (BODY, {"content-encoding": "UTF-8"}),
    "another content type": (BODY, {"content-type": "text/plain"}),
    "a form's content type": (BODY, {"content-type": "application/x-www-form-urlencoded"}),
    "binary mode": (DATA, {"content-type": "application/json", **BINARY}),
    "binary mode, escaped": (DATA, {"content-type": "application/json", **BINARY, "ce-id": "%78"}),
    "binary mode, blanks behind": (DATA, {name: f"{value} \t" for name, value in BINARY.items()}),
    "binary mode, compressed": (gzip.compress(DATA), {"content-encoding": "gzip", **BINARY}),
    "binary mode and structured": (BODY, {**BINARY, "ce-id": "another", "ce-type": "org.example.another"}),
    "binary mode without a time": (DATA, {**BINARY, "ce-time": None}),
    "a batch of one": (b"[" + BODY + b"]", {"content-type": BATCH_TYPE}),
}


@pytest.mark.parametrize("name", READ)
async def test_what_is_wrapped_has_its_effect(edge: Door, router: Router, name: str) -> None:
    """A notification that is compressed, in binary mode, or under another type has the effect of the plain one."""
    content, headers = READ[name]
    assert await answered(edge, content, headers) == 204
    (value,) = await told_on(edge, router, "unavailable")
    assert (value["sessionId"], value["statusInfo"], value["unexpected"]) == (SESSION_ID, "NETWORK_TERMINATED", True)
    assert not await told_on(edge, router, "dead-letter")
    (record,) = await everything(edge.node.reader, "qod.status")
    told_headers = dict(record.message.headers)
    assert (told_headers["ce_id"], told_headers["ce_source"], told_headers["ce_type"]) == ("x", EVENT.source, TYPE)


def coded(coding: str) -> dict[str, str | None]:
    """The header that names a coding."""
    return {"content-encoding": coding}


XML: dict[str, str | None] = {"content-type": "text/xml"}
ANOTHER: dict[str, str | None] = {"ce-type": "org.example.x", "ce-more": "1"}
#: A body, its headers, the answer, and the headers that are kept.
LETTERS: dict[str, tuple[bytes, dict[str, str | None], int, dict[str, str | None]]] = {
    "brotli": (b"\x0b\x02\x80", coded("br"), 415, coded("br")),
    "zstandard, of XML": (b"\x28\xb5", {**coded("zstd"), **XML}, 415, {**coded("zstd"), **XML}),
    "thrice": (gzip.compress(BODY), coded("gzip,gzip,gzip"), 415, coded("gzip,gzip,gzip")),
    "cut off": (gzip.compress(BODY)[:-9], coded("gzip"), 400, coded("gzip")),
    "broken": (b"\x1f\x8b" + BODY, coded("gzip"), 400, coded("gzip")),
    "no gzip": (b"\x1e\x8b" + BODY, coded("gzip"), 400, coded("gzip")),
    "nothing in it": (gzip.compress(b""), coded("gzip"), 400, coded("gzip")),
    "another type in binary mode": (DATA, ANOTHER, 204, ANOTHER),
    "binary mode of no JSON": (b"<a/>", {**BINARY, **XML}, 415, {**BINARY, **XML}),
    "XML": (b"<a/>", XML, 415, XML),
    "an empty batch": (b"[]", {"content-type": BATCH_TYPE}, 400, {"content-type": BATCH_TYPE}),
    "a batch of nothing": (b"[1, {}]", {"content-type": BATCH_TYPE}, 400, {"content-type": BATCH_TYPE}),
    "a batch too long": (b"[" + b",".join([b"{}"] * (BATCH_MAX + 1)) + b"]", {}, 400, {}),
}


@pytest.mark.parametrize("name", LETTERS)
async def test_what_cannot_be_read_is_kept_with_all_that_it_is_read_with(edge: Door, router: Router, name: str) -> None:
    """An unreadable body is a dead letter byte for byte, with the headers that a later release needs to read it."""
    content, headers, status, kept = LETTERS[name]
    assert await answered(edge, content, headers) == status
    (letter,) = await told_on(edge, router, "dead-letter")
    assert b64decode(letter["body"]) == content
    assert letter["headers"].items() >= kept.items()
    assert not await told_on(edge, router, "status")


async def test_what_is_inflated_is_bounded(edge: Door, router: Router) -> None:
    """A body that is too long once inflated is 413 and a dead letter, which a replay may bring back."""
    assert await answered(edge, BOMB, {"content-encoding": "gzip"}) == 413
    (letter,) = await told_on(edge, router, "dead-letter")
    assert letter["headers"]["content-encoding"] == "gzip"
    for content in (gzip.compress(bytes(2 * INFLATED_BYTES_MAX)), zlib.compress(bytes(2 * INFLATED_BYTES_MAX))):
        with pytest.raises(Malformed) as caught:
            parse(content, (("content-encoding", "deflate, gzip"),))
        assert caught.value.status == 413


# Batches.


async def test_a_batch_is_its_events(edge: Door, router: Router) -> None:
    """Each event of a batch is kept separately, verbatim, under its own session, and has its effect."""
    assert await answered(edge, BATCH, {"content-type": BATCH_TYPE}) == 204
    kept = await edge.kept()
    assert [(each.body, each.key, each.envelope) for each in kept] == [
        (BODY, SESSION_ID, ()),
        (OTHER_BODY, "other", ()),
    ]
    assert {each.content_type for each in kept} == {"application/cloudevents+json"}
    assert edge.outcomes() == {("kept", SENDER): 1}
    assert await answered(edge, gzip.compress(BATCH), {"content-encoding": "gzip"}) == 204
    assert [value["sessionId"] for value in await told_on(edge, router, "status")] == [SESSION_ID, "other"]


UNREAD = {
    "no notification": b"{}",
    "a number": b"17",
    "two values": b'{"a": 1, "a": 2}',
    "nested too deeply": b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}",
    "nested far too deeply": b"[" * 1_500 + b"]" * 1_500,
}


@pytest.mark.parametrize("name", UNREAD)
@pytest.mark.parametrize("odd", [b"", b'"x": NaN, ', b'"x": "\xff", ', b'"x": "\\ud800", '])
async def test_a_batch_keeps_what_it_cannot_read(edge: Door, router: Router, name: str, odd: bytes) -> None:
    """An element of a batch that is no notification is a dead letter; the others have their effect, odd ones too."""
    content = b"[" + b",".join([UNREAD[name], b"{" + odd + BODY[1:], b"[]", bare("s-3")]) + b"]"
    assert await answered(edge, content, {}) == 204
    assert [value["sessionId"] for value in await told_on(edge, router, "status")] == [SESSION_ID, "s-3"]
    letters = await told_on(edge, router, "dead-letter")
    assert [b64decode(letter["body"]) for letter in letters] == [UNREAD[name], b"[]"]


async def test_equal_elements_of_a_batch_are_one(edge: Door) -> None:
    """Equal elements of a batch are kept once, whether events, of an unknown type, or no notification."""
    unknown = BODY.replace(b"qos-status-changed", b"unknown-thing")
    content = b"[" + b",".join([b"{}", BODY, unknown, b"{}", BODY, unknown, b"{ }"]) + b"]"
    assert await answered(edge, content, {}) == 204
    assert [each.body for each in await edge.kept()] == [b"{}", BODY, unknown, b"{ }"]


@pytest.mark.parametrize("end", [b"", b"]]", b"[]", b"],", b"]" + BODY, b"," + b"[" * 2_000])
async def test_a_batch_that_does_not_end_so_is_kept_as_it_came(edge: Door, router: Router, end: bytes) -> None:
    """A body that begins as an array and is none is one dead letter, whole."""
    content = b"[" + BODY + b"," + bare("s-3") + end
    assert await answered(edge, content, {}) == 400
    (letter,) = await told_on(edge, router, "dead-letter")
    assert b64decode(letter["body"]) == content
    assert not await told_on(edge, router, "status")


async def test_a_batch_is_answered_once_all_of_it_is_kept(node: Node, telemetry: Telemetry) -> None:
    """If one event of a batch can't be kept the answer is 503, and the whole batch may be posted again."""
    edge = door(node._replace(inbox=_FailsOnce(node.inbox)), telemetry)
    assert await answered(edge, BATCH, {}) == 503
    assert await answered(edge, BATCH, {}) == 204
    assert [each.key for each in await edge.kept()] == ["other", SESSION_ID, "other"]


class _FailsOnce:
    """An inbox that can't keep the first notification that it is given."""

    trouble = ""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._fails = True

    def append(self, notification: Notification) -> asyncio.Future[None]:
        """As the contract says."""
        return future_of(self.take, notification)

    def take(self, notification: Notification, told: Told) -> None:
        """As the contract says."""
        if self._fails:
            self._fails = False
            told(Unavailable("no room", reason="full"))
        else:
            self._inbox.take(notification, told)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=8), st.sampled_from([None, 0, 2, "\t"]), st.booleans())
def test_an_array_comes_apart_as_it_was_made(tree: list[Any], indent: int | str | None, escaped: bool) -> None:
    """The elements of an array are those that a JSON reader finds, whatever they contain."""
    content = json.dumps(tree, indent=indent, ensure_ascii=escaped).encode()
    found = elements(content)
    assert found is not None
    assert [json.loads(each) for each in found] == tree


@pytest.mark.parametrize("content", [b"", b"{}", b"[", b"[1,]", b"[1 2]", b"[}", b'["]', b"[1]]", b'"[1]"', b"[\xff]"])
def test_what_is_no_array_does_not_come_apart(content: bytes) -> None:
    """A body that is no JSON array is left as it is."""
    assert elements(content) is None


def test_quotes_cost_no_more_than_their_length() -> None:
    """A mebibyte of quotes without an end is read in time that grows with its length."""
    escaped, opened, slashes = b'["' + b'\\"' * 500_000, b"[" + b'"' * 1_000_001, b'{"a":"' + b"\\" * 1_000_000
    for content in (escaped, opened, slashes, b"\xff" + b'"\\"' * 300_000):
        with pytest.raises(Malformed):
            parse(content)


# The headers that are kept beside the body.


@pytest.mark.parametrize(
    ("headers", "envelope"),
    [
        ({}, ()),
        ({"accept-encoding": "gzip", "x": "y"}, ()),
        ({"content-encoding": ""}, ()),
        ({"content-encoding": "gzip"}, (("content-encoding", "gzip"),)),
        ({"ce-x": "1", "ce-type": "t", "ce-id": "i"}, (("ce-id", "i"), ("ce-type", "t"), ("ce-x", "1"))),
        ({"ce-id": "i" * 9_999}, (("ce-id", "i" * 2_048),)),
        ({"ce-id": "i", **{f"ce-{number}": "x" * 2_048 for number in range(9)}}, None),
    ],
)
def test_an_envelope_is_bounded(headers: dict[str, str], envelope: Envelope | None) -> None:
    """The headers that a body is read with are kept as far as a record has room, the needed ones first."""
    found = envelope_of(headers)
    assert envelope is None or found == envelope
    assert sum(len(name) + len(value) for name, value in found) <= 8_192
    assert envelope is not None or found[0] == ("ce-id", "i")


ENVELOPED = posted("A1")._replace(body=gzip.compress(DATA), envelope=(("ce-type", "é✓"), ("content-encoding", "gzip")))


def test_a_record_of_the_inbox_has_the_envelope() -> None:
    """Kafka's record has the request's headers under their own names; one of an earlier release has none."""
    for notification in (ENVELOPED, posted("A1")):
        record = inbox_record(notification)
        assert notification_of(_Fetched(record.value, record.key, record.headers)) == notification
    names = {name for name, _ in inbox_record(posted("A1")).headers}
    assert names == {"sender", "received-at", "x-correlator", "content-type", "traceparent"}


class _Fetched:
    """A record as a consumer returns it."""

    topic, partition, offset = "qod.inbox", 0, 0

    def __init__(self, value: bytes | None, key: bytes | None, headers: Sequence[tuple[str, bytes]]) -> None:
        self.value, self.key, self.headers = value, key, headers
        self.timestamp: int | None = START // 1000 + 60_000


def test_a_pack_has_the_envelope_where_there_is_one() -> None:
    """A pack is read as it was written, and one without envelopes has the bytes of earlier releases."""
    given_ = [posted("A1"), ENVELOPED, posted("A2")]
    pack = pack_notifications(given_)
    assert unpack_notifications(pack.blob, pack.crc) == given_
    plain = pack_notifications([posted("A1#x")])
    index = orjson.loads(plain.blob[4 : 4 + int.from_bytes(plain.blob[:4], "little")])
    assert [len(each) for each in index] == [8]
    assert isinstance(plain, Pack)


async def test_what_is_set_aside_keeps_its_envelope(node: Node, telemetry: Telemetry, tmp_path: Path) -> None:
    """A notification in a file comes back as it was, also from a file of an earlier release."""
    aside = SetAside(tmp_path / "aside", telemetry, bytes_max=1_000_000)
    aside.keep(ENVELOPED, "too long")
    aside.keep(posted("A1#x"), "too long")
    (plain,) = (path for path in (tmp_path / "aside").iterdir() if b"gzip" not in path.read_bytes())
    before = orjson.loads(plain.read_bytes())
    assert before.pop("envelope") == []
    plain.write_bytes(orjson.dumps(before))
    trying = asyncio.create_task(aside.run(node.inbox))
    await until(lambda: not aside.count)
    trying.cancel()
    kept = (await node.lane.read(COUNT_MAX)).notifications
    assert sorted(kept, key=repr) == sorted([ENVELOPED, posted("A1#x")], key=repr)


# Dead letters of earlier releases.


def letter(content: bytes, headers: dict[str, str] | None = None) -> Record:
    """The dead letter of a release that could read none of this."""
    notification = posted(content, key=SENDER)
    router = Router(prefix="qod", forget_after_seconds=3600)
    decision = router.give_up(notification, "0-1", None, "unreadable then")
    (message,) = decision.messages
    value = orjson.loads(message.value or b"")
    value["headers"] = {"content-type": "application/cloudevents+json"} if headers is None else headers
    return Record(0, 7, message._replace(value=orjson.dumps(value)))


@pytest.mark.parametrize(
    ("content", "headers", "keys"),
    [
        (body(EVENT, time="2026-11-27T11:00:00+01:00[Europe/Madrid]"), None, [SESSION_ID]),
        (body(EVENT, type="QosStatusChangedEvent"), None, [SESSION_ID]),
        (b"\xef\xbb\xbf" + BODY, None, [SESSION_ID]),
        (BODY[:-1] + b', "specversion": "1.0"}', None, [SESSION_ID]),
        (gzip.compress(BODY), None, [SESSION_ID]),  # its header was lost
        (DATA, BINARY, [SESSION_ID]),
        (DATA, {}, [SESSION_ID]),
        (zlib.compress(BODY), {"content-encoding": "deflate"}, [SESSION_ID]),
        (BATCH, None, [SESSION_ID, "other"]),
        (b"[" + BODY + b", {}]", None, [SESSION_ID]),
        (body(EVENT._replace(session_id=SESSION_ID.upper())), None, [SESSION_ID]),
        (b"{", None, []),
        (b"\x0b\x02\x80", {"content-encoding": "br"}, []),
        (b"[]", None, []),
        (BODY, {"ce-id": 7}, []),
    ],
)
def test_replay_mends_what_died_before(content: bytes, headers: dict[str, str] | None, keys: list[str]) -> None:
    """A dead letter that only this release can read has its effect once when it is replayed."""
    notifications = revived(letter(content, headers))
    assert [each.key for each in notifications] == keys
    router = Router(prefix="qod", forget_after_seconds=3600)
    verdicts = [each.verdict for each in decisions(router, [*notifications, *notifications])]
    assert verdicts == ["accepted"] * len(keys) + ["duplicate"] * len(keys)


def test_a_letter_of_this_release_is_read_again_as_it_was_posted() -> None:
    """A dead letter keeps all that the notification was read with."""
    router = Router(prefix="qod", forget_after_seconds=3600)
    wrong = ENVELOPED._replace(key=SENDER, envelope=(("ce-id", "x"), ("ce-type", TYPE), ("content-encoding", "gzip")))
    (decision,) = decisions(router, [wrong])
    (message,) = decision.messages
    (again,) = revived(Record(0, 3, message))
    assert again == wrong._replace(key=SESSION_ID, origin="replay:0-3")
    assert isinstance(parse(again.body, again.envelope), Event)


def test_split_tells_what_parse_tells() -> None:
    """The parts of a batch give the same events as alone."""
    assert split(BATCH) == [(BODY, parse(BODY)), (OTHER_BODY, parse(OTHER_BODY))]
    assert split(BODY) == ()
    assert len(split(BATCH)) < COUNT_MAX
