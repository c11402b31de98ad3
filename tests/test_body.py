"""Codings, batches and the headers of a body: rows of what is read and of what is refused."""

import gzip
import zlib

import pytest

from receiver.core.body import BATCH_MAX, elements
from receiver.core.errors import Malformed
from receiver.core.event import Event, Unrecognized
from receiver.core.notification import Envelope, envelope_again, envelope_of, parse, split
from tests.samples import TYPE, bare, body, told

EVENT = told("U1:N#x")[0]
BODY = body(EVENT)
PLAIN = parse(BODY)
DATA = b'{"sessionId":"%b","qosStatus":"UNAVAILABLE","statusInfo":"NETWORK_TERMINATED"}' % EVENT.session_id.encode()
RAW = zlib.compressobj(wbits=-15)
RAW_DEFLATED = RAW.compress(BODY) + RAW.flush()
BYTES_MAX = 10_000
BOMB = gzip.compress(b"x" * (BYTES_MAX + 1))
DEFLATED_BOMB = zlib.compress(b"x" * (BYTES_MAX + 1))
BINARY = (("ce-id", "%78"), ("ce-source", EVENT.source or ""), ("ce-time", "2026-11-24T10:00:01Z"), ("ce-type", TYPE))


def coded(codings: str, more: Envelope = ()) -> Envelope:
    """The envelope of a body with these codings."""
    return (("content-encoding", codings), *more)


@pytest.mark.parametrize(
    ("content", "envelope"),
    [
        (BODY, ()),
        (BODY, coded("identity")),
        (BODY, coded("gzip")),  # undone by a proxy
        (BODY, coded("deflate")),
        (BODY, coded("UTF-8")),
        (b"\xef\xbb\xbf" + BODY, coded("UTF-8")),
        (gzip.compress(BODY), ()),  # its header was lost
        *((zlib.compress(BODY, level), ()) for level in (0, 1, 6, 9)),
        (gzip.compress(BODY), coded("gzip")),
        (gzip.compress(BODY), coded("X-GZIP")),
        (gzip.compress(BODY), coded("gzip, gzip")),
        (gzip.compress(gzip.compress(BODY)), coded("gzip, gzip")),
        (gzip.compress(BODY[:30]) + gzip.compress(BODY[30:]), coded("gzip")),
        (gzip.compress(BODY) + b"\0" * 20, coded("gzip")),
        (zlib.compress(BODY), coded("deflate")),
        (RAW_DEFLATED, coded("deflate")),
        (gzip.compress(zlib.compress(BODY)), coded("deflate, gzip")),
        (DATA, BINARY),
        (gzip.compress(DATA), coded("gzip", BINARY)),
    ],
)
def test_a_coding_changes_nothing(content: bytes, envelope: Envelope) -> None:
    """A body in any coding, with its attributes in any place, gives the same event as the plain one."""
    found = parse(content, envelope, BYTES_MAX)
    assert isinstance(found, Event)
    assert found._replace(oddities=()) == PLAIN


@pytest.mark.parametrize(
    ("content", "envelope", "status"),
    [
        (b"\x0b\x02\x80", coded("br"), 415),
        (b"\xff\xff\xff", coded("deflate"), 400),
        (gzip.compress(BODY), coded("gzip,gzip,gzip"), 415),
        (gzip.compress(BODY)[:-9], coded("gzip"), 400),
        (b"\x1f\x8b" + BODY, coded("gzip"), 400),
        (b"\x1e\x8b" + BODY, coded("gzip"), 400),
        (BOMB, coded("gzip"), 413),
        (DEFLATED_BOMB, coded("deflate"), 413),
        (gzip.compress(b"x") * 20, coded("gzip"), 400),  # with so many members reading stops, and the rest is no JSON
        (BODY[:-1] + b',"more":' + b'[ {"a":' * 200 + b"0" + b"}]" * 200 + b"}", (), 400),
        (b"\xef\xbb\xbf" + BODY[:-1] + b',"more":' + b"[" * 300 + b"]" * 300 + b"}", (), 400),
        (b"[" + BODY + b"]", (), 400),
    ],
)
def test_what_cannot_be_decoded_is_malformed(content: bytes, envelope: Envelope, status: int) -> None:
    """A coding that is unknown, broken, or too long once undone is refused, each with its own status."""
    with pytest.raises(Malformed) as caught:
        parse(content, envelope, BYTES_MAX)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"[" + BODY + b"]", [BODY]),
        (b" [\n" + BODY + b" , " + bare() + b"]\n", [BODY, bare()]),
        (b"\xef\xbb\xbf[" + BODY + b"]", [BODY]),
        (b"[" + BODY + b", {}]", [BODY, b"{}"]),
        (b"[]", []),
        (b"[{}]", []),
        (b"[", []),
        (BODY, []),
    ],
)
def test_a_batch_comes_apart(content: bytes, parts: list[bytes]) -> None:
    """The parts of a batch are kept as written, and give the same events as alone; no other body has parts."""
    found = split(content)
    assert [part for part, _ in found] == parts
    for part, event in found:
        assert event is None if part == b"{}" else event == parse(part)


def test_a_batch_has_a_limit() -> None:
    """A batch with too many elements is refused."""
    assert len(elements(b"[" + b"0," * (BATCH_MAX - 1) + b"0]") or ()) == BATCH_MAX
    with pytest.raises(Malformed):
        elements(b"[" + b"0," * BATCH_MAX + b"0]")


def test_a_deep_element_is_taken_as_it_is_written() -> None:
    """An array is taken apart however deep its elements are; one that does not end is no array."""
    deep = b"[" * 100_000 + b"]" * 100_000
    assert elements(b"[" + deep + b",0]") == [deep, b"0"]
    assert elements(b"[0," + deep[:100_000]) is None
    assert elements(b"[0] " + deep[:100_000]) is None


def test_what_is_kept_beside_a_body_is_bounded() -> None:
    """The headers that a body is read with come first, and the others as far as there is room."""
    headers = {"ce-more": "m" * 3_000, "ce-type": TYPE, "ce-id": "", "accept": "*/*", "content-encoding": "gzip"}
    headers |= {f"ce-x{number}": "x" * 2_000 for number in range(5)}
    found = envelope_of(headers)
    assert found[:3] == (("ce-type", TYPE), ("content-encoding", "gzip"), ("ce-more", "m" * 2_048))
    assert sum(len(name) + len(value) for name, value in found) <= 8_192
    assert not {"accept", "ce-id"} & dict(found).keys()
    assert envelope_again([list(pair) for pair in found]) == found  # type: ignore[misc]  # as JSON has it


def test_a_bare_envelope_may_hold_a_whole_event() -> None:
    """A body with its name in `event`, and with all that an event has, is an event."""
    found = parse(b'{"event":"QOS_STATUS_CHANGED","sessionId":"s-1","qosStatus":"AVAILABLE"}')
    assert isinstance(found, Event)
    assert (found.session_id, found.qos_status, found.dialect) == ("s-1", "AVAILABLE", "bare")
    assert isinstance(parse(b'{"event":"ANOTHER"}'), Unrecognized)
