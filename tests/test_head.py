"""Heads: what is read of them, and that a head recognized by its bytes gives the same as the parser."""

from collections.abc import Sequence

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from receiver.edge.head import UNTOLD, Head, KnownHeads, read_head

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
Lines = Sequence[tuple[str, str]]
PLAIN = (("Host", "a"), ("Authorization", "Bearer x"), ("Content-Length", "300"))


def written(lines: Lines) -> bytes:
    """A head as a sender writes it."""
    return "\r\n".join(["POST /n HTTP/1.1", *(f"{name}: {value}" for name, value in lines), "", ""]).encode("latin-1")


def parsed(content: bytes) -> Head | None:
    """The parser's result for a head, None if it refuses it."""
    headers: list[tuple[bytes, bytes]] = []

    class Heard:
        """The parser's events."""

        def on_header(self, name: bytes, value: bytes) -> None:
            """See httptools."""
            headers.append((name.lower(), value))

    try:
        httptools.HttpRequestParser(Heard()).feed_data(content)
    except httptools.HttpParserError:
        return None
    return read_head(headers)


@pytest.mark.parametrize(
    "lines",
    [
        PLAIN,
        [*PLAIN[:2], ("content-length", "0")],
        [*PLAIN, ("X-Correlator", "c-1")],
        [*PLAIN, ("x-correlator", "c-1"), ("traceparent", TRACEPARENT), ("tracestate", "a=b,c=d")],
        [("X-Request-Id", "7"), *PLAIN, ("Content-Type", "application/json")],
    ],
)
def test_a_head_is_known_again(lines: Lines) -> None:
    """Another request of the same sender is recognized, with its own length, correlator and traceparent."""
    known = KnownHeads()
    first = parsed(written(lines))
    assert first is not None
    assert known.find(written(lines)) is None
    known.remember(written(lines), first)
    for _ in range(2):
        assert known.find(written(lines)) == first
        own = {"content-length": "1234", "x-correlator": "c-2", "traceparent": TRACEPARENT[:-1] + "0"}
        other = written([(name, own.get(name.lower(), value)) for name, value in lines])
        assert known.find(other) == parsed(other) != first


NAMES = [
    "Content-Length",
    "content-length",
    "X-Correlator",
    "x-correlator",
    "traceparent",
    "X-Request-Id",
    "Host",
    "Ce-a",
]
VALUES = ["1", "300", "0300", "9" * 13, "abc", "a b", " c", "d ", "a=b", "", TRACEPARENT, "x" * 257, "1, 1", "\xe9"]
LINES = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=5)


@example([[("X-Correlator", "1"), ("X-Correlator", "a b")]], [])  # the last one counts, and is invalid
@given(st.lists(LINES, min_size=1, max_size=4), LINES)
def test_a_known_head_is_read_as_if_it_was_parsed(before: Sequence[Lines], lines: Lines) -> None:
    """For any remembered heads, one that is found among them gives the same as the parser and the reader."""
    known = KnownHeads()
    for each in before:
        content = written([*PLAIN[:2], *each])
        head = parsed(content)
        if head is not None:
            known.remember(content, head)
    for each in (lines, *before):
        content = written([*PLAIN[:2], *each])
        found = known.find(content)
        if found is not None:
            assert found == parsed(content)


def test_a_token_is_never_taken_for_known() -> None:
    """A head with its token in the place of a request's own values is not recognized."""
    known = KnownHeads([b"x-request-id"])
    content = written([*PLAIN, ("X-Request-Id", "a-token")])
    known.remember(content, read_head([(b"host", b"a"), (b"x-request-id", b"a-token")], [b"x-request-id"]))
    assert known.find(content) is None
    assert known.find(content.replace(b"a-token", b"another")) is None


def test_heads_that_never_come_again_are_hardly_remembered() -> None:
    """Of a sender whose every head differs few are remembered, and one that comes again is recognized in the end."""
    known = KnownHeads()
    for number in range(5_000):
        content = written([*PLAIN, ("X-Mine", f"{number}")])
        head = parsed(content)
        assert head is not None
        assert known.find(content) is None
        known.remember(content, head)
    content = written(PLAIN)
    head = parsed(content)
    assert head is not None
    for _ in range(64):
        known.remember(content, head)
    assert known.find(content) == head


def test_a_length_that_is_not_told() -> None:
    """A head without a length has none, and a length of too many digits counts as longer than any body."""
    assert read_head([(b"host", b"a")]).length == UNTOLD
    assert read_head([(b"host", b"a"), (b"content-length", b"9" * 4_000)]).length >= 10**12


@pytest.mark.parametrize(
    ("values", "tokens"),
    [("aa", "a"), ("ab", "ab"), ("aba", "ab"), ("abcd", "abcd"), ("abcde", "abcd")],
)
def test_each_authorization_header_may_have_the_token(values: str, tokens: str) -> None:
    """A header that a gateway added takes no token away, and of a flood of them the first ones are read."""
    head = read_head([(b"host", b"a"), *((b"authorization", value.encode()) for value in values)])
    assert (list(head.tokens), head.fault) == ([token.encode() for token in tokens], "")
