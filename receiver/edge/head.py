"""The head of a request: the headers that are used, and their faults. Pure."""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from receiver.core.notification import CONTENT_ENCODING, Envelope, envelope_of

RawHeaders = Sequence[tuple[bytes, bytes]]
"""Headers as ASGI has them: names in lower case, in their original order."""

#: CAMARA Commonalities, CAMARA_common.yaml, XCorrelator. A value outside it is dropped, not refused.
_CORRELATOR = re.compile(rb"[a-zA-Z0-9\-_:;./<>{}]{1,256}")
#: W3C Trace Context: the version ff and ids of zeros alone are invalid.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

#: Headers with at most one value: with two, two readers could see different requests.
_ONCE = {b"host": "Host", b"content-type": "Content-Type"}
#: How many different values of one header are examined for a token. Each costs a hash at least.
_TOKENS_MAX = 4
_WANTED = frozenset({*_ONCE, b"authorization", b"content-length", b"x-correlator", b"traceparent"})

#: Headers whose values belong to one request, in their usual spelling.
_OWN = re.compile(
    rb"\r\n([Cc]ontent-[Ll]ength|[Xx]-[Cc]orrelator|[Tt]raceparent|[Tt]racestate|[Xx]-[Rr]equest-[Ii][Dd])"
    rb": ([0-9a-zA-Z\-_:;./<>{}=,@*]{1,512})(?=\r\n)"
)
_KNOWN_MAX = 1_024
#: If heads hardly ever repeat, only every 64th is remembered.
_SELDOM = 64
_KNOWN_BYTES_MAX = 4_096

_BLANKS = frozenset({b" ", b"\t"})
_CONTENT_TYPE_CHARS_MAX = 2_048
_LENGTH_DIGITS_MAX = 12
#: The length of a body whose length was not given.
UNTOLD = -1


class Head(NamedTuple):
    """The parts of a head that are used.

    `tokens` are the values of Authorization (None: there is none) and those of the further headers that may hold one.
    `length` is the declared length of the body in bytes, or UNTOLD. `correlator` and `traceparent` are empty if the
    sender gave no valid one. `forwarded` are the values of X-Forwarded-For. `fault` says what is wrong; it is empty if
    nothing is.
    """

    tokens: Sequence[bytes | None]
    length: int
    content_type: str
    is_json: bool
    correlator: str
    traceparent: str
    envelope: Envelope = ()
    forwarded: Sequence[bytes] = ()
    fault: str = ""


def read_head(
    headers: RawHeaders, token_headers: Collection[bytes] = (), query: bytes = b"", http_version: str = "1.1"
) -> Head:
    """Read a head. `token_headers` are the further headers that may hold a token; `query` may hold one too."""
    found: dict[bytes, list[bytes]] = {}
    attributes: dict[str, str] = {}
    forwarded: Sequence[bytes] = ()
    for name, value in headers:
        if value[-1:] in _BLANKS:  # RFC 9112, 5.1: they are not part of the value, and the parser leaves them
            value = value.rstrip(b" \t")  # noqa: PLW2901
        if name in _WANTED or name in token_headers:
            values = found.setdefault(name, [])
            if value not in values:  # a header repeated with one value counts once
                values.append(value)
        elif name.startswith(b"ce-"):
            attributes[name.decode("latin-1")] = value.decode("latin-1")
        elif name == b"content-encoding":
            codings = value.decode("latin-1")
            attributes[CONTENT_ENCODING] = ", ".join(filter(None, (attributes.get(CONTENT_ENCODING), codings)))
        elif name == b"x-forwarded-for":
            forwarded = (*forwarded, value)
    tokens: list[bytes | None] = [*found.get(b"authorization", ())[:_TOKENS_MAX]]
    if not tokens:
        tokens.append(_query_token(query) if query else None)
    for name in token_headers:
        tokens += found.get(name, ())[:_TOKENS_MAX]
    content_type = _unmerged(_last(found, b"content-type") or b"")
    return Head(
        tokens,
        _length(_last(found, b"content-length")),
        content_type.decode("latin-1")[:_CONTENT_TYPE_CHARS_MAX],
        _is_json(content_type),
        _text(_last(found, b"x-correlator"), _CORRELATOR),
        _text(_last(found, b"traceparent"), _TRACEPARENT),
        envelope_of(attributes) if attributes else (),
        forwarded,
        _fault(found, http_version),
    )


class KnownHeads:
    """Heads that were read before, by their bytes: most heads of a sender differ only in a few values.

    These are the length, the correlator and the values that trace a request. Such a value can't change how the rest of
    a head is read, unless its header may hold a token. If other values differ, remembering is useless, so few heads are
    remembered then.
    """

    def __init__(self, token_headers: Collection[bytes] = ()) -> None:
        self._token_headers = frozenset(token_headers)
        self._heads: dict[tuple[bytes, ...], tuple[list[bytes], Head]] = {}
        self._exact: dict[bytes, Head] = {}  # heads whose only value of a request's own is the length
        self._news_count = self._found_count = 0

    def find(self, content: bytes) -> Head | None:
        """The head in `content`, from the request line to the blank line; None if it must be parsed."""
        exact = self._exact.get(content)
        if exact is not None:
            self._found_count += 1
            return exact
        parts = _OWN.split(content)
        values = parts[2::3]
        del parts[2::3]
        known = self._heads.get(tuple(parts))
        if known is None:
            return None
        self._found_count += 1
        names, (tokens, length, content_type, is_json, correlator, traceparent, envelope, forwarded, fault) = known
        for name, value in zip(names, values, strict=True):
            if name == b"content-length":
                if not value.isdigit():
                    return None
                length = _length(value)
            elif name == b"x-correlator":
                correlator = _text(value, _CORRELATOR)
            elif name == b"traceparent":
                traceparent = _text(value, _TRACEPARENT)
        head = Head(tokens, length, content_type, is_json, correlator, traceparent, envelope, forwarded, fault)
        if names == [b"content-length"]:
            if len(self._exact) >= _KNOWN_MAX:
                self._exact.clear()
            self._exact[content] = head
        return head

    def remember(self, content: bytes, head: Head) -> None:
        """Remember a head that was parsed, and is sound."""
        self._news_count += 1
        is_in_vain = self._news_count > _KNOWN_MAX and self._found_count < self._news_count
        if len(content) > _KNOWN_BYTES_MAX or (is_in_vain and self._news_count % _SELDOM):
            return
        parts = _OWN.split(content)
        names = [name.lower() for name in parts[1::3]]
        del parts[2::3]
        if not self._token_headers.isdisjoint(names):
            return
        if len(self._heads) >= _KNOWN_MAX:
            self._heads.clear()
        key = tuple(parts)
        self._heads[key] = names, head
        if self.find(content) != head:  # its spelling would be read differently
            del self._heads[key]
            self._exact.pop(content, None)


def _last(found: Mapping[bytes, list[bytes]], name: bytes) -> bytes | None:
    return found[name][-1] if name in found else None


def _fault(found: Mapping[bytes, list[bytes]], http_version: str) -> str:
    # RFC 9112, 3.2: HTTP/1.1 requires it, HTTP/1.0 did not know it.
    if b"host" not in found and http_version != "1.0":
        return "no Host header"
    for name, title in _ONCE.items():
        if len(found.get(name, ())) > 1:
            return f"more than one {title} header"
    return ""


def _length(told: bytes | None) -> int:
    """The declared length in bytes. The parser checked that it is a number; long numbers are capped unread."""
    if told is None:
        return UNTOLD
    return int(told) if len(told) <= _LENGTH_DIGITS_MAX else 10**_LENGTH_DIGITS_MAX


def _unmerged(value: bytes) -> bytes:
    """The value, with `a, a`, which a proxy made of two equal headers, reduced to `a`."""
    if b"," not in value:
        return value
    parts = {part.strip() for part in value.split(b",")}
    return parts.pop() if len(parts) == 1 else value


def _text(value: bytes | None, pattern: re.Pattern[bytes]) -> str:
    return value.decode() if value is not None and pattern.fullmatch(value) else ""


@lru_cache(256)
def _is_json(content_type: bytes) -> bool:
    """Whether a body of this type may be JSON. A missing type is read as JSON; `+json:` is one sender's spelling."""
    kind = content_type.split(b";")[0].strip().rstrip(b":").lower()
    return kind in (b"", b"application/json", b"text/json") or kind.endswith(b"+json")


def _query_token(query: bytes) -> bytes | None:
    """A token in the query (`apikey` in 0.8, `access_token` in CloudEvents), as a value of Authorization."""
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if name in (b"access_token", b"apikey"):
            return b"Bearer " + unquote_to_bytes(value)
    return None
