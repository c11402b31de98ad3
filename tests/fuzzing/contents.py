"""The bodies of requests: one notification or many, compressed or not, under any content type."""

import gzip
import json
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from tests.fuzzing.expected import Change, Part, Unknown
from tests.fuzzing.facts import change, shaped
from tests.fuzzing.texts import compact, written

BODY_BYTES_MAX = 65_536
BATCH_MAX = 1_000

#: Under these content types a body without a notification is 400, under others 415.
JSON_TYPES = (
    *("application/json", "application/cloudevents+json", "application/json; charset=utf-8", "text/json", ""),
    *("APPLICATION/JSON", "Application/CloudEvents+JSON ; x=y", "application/vnd.operator+json", "application/json:"),
)
OTHER_TYPES = (
    *("text/plain", "text/xml", "application/x-www-form-urlencoded", "multipart/form-data; boundary=json", "json"),
    *("application/cloudevents", "application/jsonp", "\xe9", "*/*", "application/octet-stream"),
)
BATCH_TYPE = "application/cloudevents-batch+json"


class Content(NamedTuple):
    """A body, its headers, the right status if it is accepted, the notifications to be kept, and its tags."""

    body: bytes
    headers: Mapping[str, str]
    status: int
    parts: Sequence[Part]
    tags: Sequence[str]


Told = Change | Unknown | None


class _Wrapped(NamedTuple):
    """A coded body, its Content-Encoding, and the status if it can't be decoded (0: it can)."""

    body: bytes
    coding: str
    status: int = 0


def _deflated(body: bytes) -> bytes:
    raw = zlib.compressobj(wbits=-15)
    return raw.compress(body) + raw.flush()


def _in_members(body: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(body) + 1)
    return gzip.compress(body[:at]) + gzip.compress(body[at:])


def _cut(body: bytes, chance: random.Random) -> bytes:
    coded = gzip.compress(body)
    return coded[: chance.randrange(3, len(coded))]


def _flipped_in_the_middle(body: bytes, chance: random.Random) -> bytes:
    """Compressed data with a changed byte in its middle, which gzip's checksum detects."""
    coded = bytearray(gzip.compress(body))
    coded[-chance.randrange(5, 9)] ^= 1 << chance.randrange(8)
    return bytes(coded)


@lru_cache
def _blanks(count: int) -> bytes:
    return gzip.compress(b" " * count)


Wrap = Callable[[bytes, random.Random], _Wrapped]

CODINGS: dict[str, Wrap] = {
    "gzip": lambda b, c: _Wrapped(gzip.compress(b), c.choice(("gzip", "GZIP", "x-gzip", " gzip ", "gzip,identity"))),
    "gzip in members": lambda b, c: _Wrapped(_in_members(b, c), "gzip"),
    "gzip, padded": lambda b, _: _Wrapped(gzip.compress(b) + bytes(20), "gzip"),
    "gzip, not told": lambda b, _: _Wrapped(gzip.compress(b), ""),
    "gzip, told twice": lambda b, _: _Wrapped(gzip.compress(b), "gzip, gzip"),
    "gzip twice": lambda b, _: _Wrapped(gzip.compress(gzip.compress(b)), "gzip, gzip"),
    "deflate": lambda b, _: _Wrapped(zlib.compress(b), "deflate"),
    "deflate, raw": lambda b, _: _Wrapped(_deflated(b), "deflate"),
    "deflate, then gzip": lambda b, _: _Wrapped(gzip.compress(zlib.compress(b)), "deflate, gzip"),
    "identity": lambda b, _: _Wrapped(b, "identity"),
    "gzip, undone on the way": lambda b, _: _Wrapped(b, "gzip"),
    "deflate, undone on the way": lambda b, _: _Wrapped(b, "deflate"),
}
#: Content types for JSON.
CHARSETS: dict[str, Wrap] = {"a charset for a coding": lambda b, c: _Wrapped(b, c.choice(("UTF-8", "utf-8", "8bit")))}
#: Codings without a decoder: these bodies are kept as they came.
UNREADABLE: dict[str, Wrap] = {
    "brotli": lambda _, c: _Wrapped(b"\x0b\x02\x80" + c.randbytes(30), "br", 415),
    "zstandard": lambda _, c: _Wrapped(b"\x28\xb5\x2f\xfd" + c.randbytes(30), "zstd", 415),
    "gzip thrice": lambda b, _: _Wrapped(gzip.compress(b), "gzip, gzip, gzip", 415),
    "gzip, cut off": lambda b, c: _Wrapped(_cut(b, c), c.choice(("gzip", "")), 400),
    "gzip, damaged": lambda b, c: _Wrapped(_flipped_in_the_middle(b, c), "gzip", 400),
    "gzip's first bytes alone": lambda b, c: _Wrapped(b"\x1f\x8b" + b, c.choice(("gzip", "")), 400),
    "gzip told, something else": lambda _, c: _Wrapped(b"\x1e\x8b" + c.randbytes(40), "gzip", 400),
    "gzip of nothing": lambda _b, _c: _Wrapped(gzip.compress(b""), "gzip", 400),
    "bomb": lambda b, c: _Wrapped(
        gzip.compress(b) + _blanks(c.choice((70_000, 5_000_000))), c.choice(("gzip", "")), 413
    ),
    "bomb in a bomb": lambda _, c: _Wrapped(gzip.compress(_blanks(24_000_000 + c.choice((0, 1)))), "gzip, gzip", 413),
}


def content(chance: random.Random, now: datetime) -> Content:
    """Any body that a sender may post as notifications."""
    if chance.random() < 0.08:
        return batch(chance, now)
    shape = shaped(change(chance, now), chance)
    text = written(shape.tree, chance)
    return _coded(shape.told if text.is_read else None, shape.headers, text.body, (*shape.tags, text.tag), chance)


def of_change(told: Change, chance: random.Random) -> Content:
    """A notification that tells all of a change, and nothing else."""
    shape = shaped(told, chance, plain=True)
    text = written(shape.tree, chance)
    while not text.is_read:
        text = written(shape.tree, chance)
    return _coded(told, shape.headers, text.body, (*shape.tags, text.tag), chance, is_read=True)


def of_changes(changes: Sequence[Change], chance: random.Random) -> Content:
    """A batch of notifications, each of which tells all of a change."""
    bodies = [compact(shaped(each, chance, plain=True, within=True).tree) for each in changes]
    parts = [Part(body, each, {}) for body, each in zip(bodies, changes, strict=True)]
    return _of_parts(parts, ("batch: of one session",), chance)


def batch(chance: random.Random, now: datetime) -> Content:
    """An array of notifications, in which some elements may be none."""
    if chance.random() < 0.06:
        return _no_batch(chance, now)
    parts, tags = [], ["batch"]
    for _ in range(chance.choice((1, 2, 3, 5, 8, 20))):
        shape = shaped(change(chance, now), chance, within=True)
        text = written(shape.tree, chance, within=True)
        told = shape.told if text.is_read else None
        if chance.random() < 0.05:
            told, text = None, text._replace(body=chance.choice((b"{}", b"17", b"[]", b"null", b'"x"', b'{"a": [1]}')))
        parts.append(Part(text.body.strip(), told, {}))
        if not text.is_read:
            tags.append(f"batch with {text.tag}")
    return _of_parts(parts, tags, chance)


def _of_parts(parts: Sequence[Part], tags: Sequence[str], chance: random.Random) -> Content:
    blank = chance.choice((b"", b" ", b"\n", b"\r\n  "))
    body = b"[%b]" % b",".join(blank + part.body + blank for part in parts)
    kind = chance.choice((BATCH_TYPE, BATCH_TYPE, *JSON_TYPES[:4], *OTHER_TYPES[:2]))
    if len(body) > BODY_BYTES_MAX or not any(part.told for part in parts):
        status = 400 if len(body) <= BODY_BYTES_MAX else 413
        return _unreadable(body, {"content-type": kind}, status, tags)
    coding: dict[str, str] = {}
    if chance.random() < 0.3:
        wrapped = CODINGS[chance.choice(("gzip", "deflate", "gzip, not told", "gzip, undone on the way"))](body, chance)
        body, coding = wrapped.body, {"content-encoding": wrapped.coding}
    kept = {"content-type": kind.replace("cloudevents-batch", "cloudevents")}
    firsts = {part.body: part for part in reversed(parts)}  # equal elements count once: the first one gives the records
    told = [part._replace(headers=kept) for part in parts if firsts[part.body] is part]
    return Content(body, {"content-type": kind, **coding}, 204, told, tuple(tags))


def _no_batch(chance: random.Random, now: datetime) -> Content:
    good = compact(shaped(change(chance, now), chance, plain=True, within=True).tree)
    name, body = chance.choice(
        (
            ("too long", b"[%b]" % b",".join([b"{}"] * BATCH_MAX + [good])),
            ("empty", b"[%b]" % chance.choice((b"", b" ", b"\n"))),
            ("of nothing", b"[1, {}, %d]" % chance.getrandbits(60)),
            ("cut off", b"[%b,%b" % (good, good[: chance.randrange(len(good))])),
            ("with a comma too many", b"[%b,]" % good),
            ("with what is no JSON", b"[%b,nothing]" % good),
            ("without its end", b"[%b" % good),
        )
    )
    kind = chance.choice((BATCH_TYPE, *JSON_TYPES[:4]))
    return _unreadable(body, {"content-type": kind}, 400, (f"no batch: {name}",))


def _content_type(chance: random.Random) -> str:
    if chance.random() < 0.6:
        return "application/cloudevents+json"
    return chance.choice(JSON_TYPES if chance.random() < 0.7 else OTHER_TYPES)


def _coded(  # the parts of a content
    told: Told,
    headers: Mapping[str, str],
    body: bytes,
    tags: Sequence[str],
    chance: random.Random,
    *,
    is_read: bool = False,
) -> Content:
    kind = _content_type(chance)
    tag = "other" if kind in OTHER_TYPES else kind or "none"
    given = {"content-type": kind, **headers}
    tags = (*tags, f"content type: {tag}")
    if len(body) > BODY_BYTES_MAX or chance.random() < 0.8:
        return _content(body, given, told, tags)
    if not is_read and isinstance(told, Change) and chance.random() < 0.4:
        return _fatal(body, given, tags, chance)
    table = CODINGS if told is None else CODINGS | CHARSETS
    name = chance.choice(list(table))
    wrapped = table[name](body, chance)
    return _content(wrapped.body, given | {"content-encoding": wrapped.coding}, told, (*tags, f"coding: {name}"))


def _fatal(body: bytes, given: Mapping[str, str], tags: Sequence[str], chance: random.Random) -> Content:
    name = chance.choice(list(UNREADABLE))
    wrapped = UNREADABLE[name](body, chance)
    headers = {**given, "content-encoding": wrapped.coding}
    return _unreadable(wrapped.body, headers, wrapped.status, (*tags, f"coding: {name}"))


def _content(body: bytes, headers: Mapping[str, str], told: Told, tags: Sequence[str]) -> Content:
    if told is None or len(body) > BODY_BYTES_MAX:
        return _unreadable(body, headers, 400, tags)
    return Content(body, headers, 204, [Part(body, told, _kept(headers))], tags)


def _unreadable(body: bytes, headers: Mapping[str, str], status: int, tags: Sequence[str]) -> Content:
    """A body that is a dead letter as a whole. One that was too long before it was inflated leaves nothing."""
    if len(body) > BODY_BYTES_MAX:
        return Content(body, headers, 413, [], (*tags, "too long"))
    is_other = headers.get("content-type", "") in OTHER_TYPES
    status = 415 if status == 400 and is_other else status
    return Content(body, headers, status, [Part(body, None, _kept(headers))], tuple(tags))


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value.strip() for name, value in headers.items() if value.strip()}


def padded(told: Change, length: int, chance: random.Random) -> Content:
    """A notification of exactly `size` bytes."""
    tree = shaped(told, chance, plain=True, within=True).tree
    body = compact(tree) if isinstance(tree, dict) else compact(json.loads(str(tree)))
    body = body[:-1] + b',"x-more":"' + b"x" * (length - len(body) - 12) + b'"}'
    kept = {"content-type": "application/json"}
    status, parts = (204, [Part(body, told, kept)]) if length <= BODY_BYTES_MAX else (413, [])
    return Content(body, kept, status, parts, (f"length: {'the longest' if parts else 'too long'}",))


def mutated(chance: random.Random, now: datetime) -> tuple[bytes, str]:
    """A notification with some bytes changed, doubled or removed: its meaning is unknown."""
    body = bytearray(compact(shaped(change(chance, now), chance, plain=True, within=True).tree))
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        begin = chance.randrange(len(body))
        end = min(len(body), begin + chance.choice((1, 1, 2, 20)))
        some = bytes(body[begin:end])
        body[begin:end] = chance.choice(
            (
                bytes([some[0] ^ (1 << chance.randrange(8))]) + some[1:],
                some * 2,
                b"",
                chance.randbytes(2),
                chance.choice((b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\0", b"1", b"null")),
            )
        )
    return bytes(body), "bytes changed"
