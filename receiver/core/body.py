"""Body: the bytes that were posted, as JSON. Pure.

Nearly all bodies are JSON as we would write it, and are read at once. Beyond that every body is read that has only one
meaning, even if not every reader accepts it: a coding that was not undone on the way, a member that appears twice with
one value, a byte order mark, UTF-16, half of a surrogate pair. A body with two possible meanings is Malformed.
"""

import json
import re
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import orjson

from receiver.core.errors import Malformed

GZIP = b"\x1f\x8b"
#: The first bytes of bodies that may be compressed, whatever their headers say. No JSON begins so.
COMPRESSED = (GZIP, b"x")
_BOM = b"\xef\xbb\xbf"

#: The most that any body may be inflated to: the router also reads what other programs put into its inbox. A
#: notification has a thousandth of this.
INFLATED_BYTES_MAX = 1024 * 1024
#: A proxy that compresses a compressed body makes two codings. Each costs as much to undo as the first.
_CODINGS_MAX = 2
_MEMBERS_MAX = 16
_GZIP_WINDOW, _ZLIB_WINDOW, _RAW_WINDOW = 31, 15, -15

#: A batch of more events is kept undivided.
BATCH_MAX = 1_000

#: orjson writes 254 levels. The slower reader below accepts a number of levels that depends on its callers' stack.
_LEVELS_MAX = 254
_STRUCTURE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},]', re.DOTALL)
#: Longer numbers exceed 64 bits, and readers round those differently.
_DIGITS_MAX = 20


def tree_of(body: bytes) -> tuple[Any, bool]:
    """The JSON of a body, and whether its spelling is odd. Raises Malformed."""
    try:
        tree = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return _odd_tree(body, _not_json(body, error)), True
    try:
        # The body is exactly what we would write, so no name appears twice and nothing is spelled oddly.
        if orjson.dumps(tree) == body:
            return tree, False
    except orjson.JSONEncodeError:
        raise _too_deep() from None
    try:
        json.loads(body, object_pairs_hook=_once_each)
    except ValueError:
        return _odd_tree(body, "the body is not JSON that every reader reads alike"), True
    return tree, False


def decoded(body: bytes, codings: str, bytes_max: int) -> bytes:
    """The body without its content codings (RFC 9110, 8.4); `codings` is the header's value.

    gzip and zlib are recognized by their first bytes, since the header may be lost on the way, or left although the
    coding was undone. Raises Malformed: 415 for an unknown coding, 413 for more than `bytes_max` bytes.
    """
    names = [name for each in codings.lower().split(",") if (name := each.strip()) not in {"", "identity"}]
    if not names and (window := _window_of(body)):
        return _inflated(body, window, bytes_max)
    if len(names) > _CODINGS_MAX:
        raise _unknown_coding()
    for name in reversed(names):
        if name in {"gzip", "x-gzip"}:
            if body.startswith(GZIP):
                body = _inflated(body, _GZIP_WINDOW, bytes_max)
        elif name == "deflate":
            body = _deflated(body, bytes_max)
        elif not _is_json(body):
            raise _unknown_coding()
    return body


def _window_of(body: bytes) -> int:
    """The zlib window for a body whose first bytes show a coding, else 0. Raw deflate has no such bytes."""
    if body.startswith(GZIP):
        return _GZIP_WINDOW
    # RFC 1950, 2.2: deflate with a window of 32 KiB, and the two bytes are a multiple of 31.
    return _ZLIB_WINDOW if body[:1] == b"x" and int.from_bytes(body[:2]) % 31 == 0 else 0


def elements(body: bytes) -> Sequence[bytes] | None:
    """The elements of a JSON array, each as it is written, even if readers disagree on its meaning; None for any other
    body. Raises Malformed for too many.
    """
    array = body.removeprefix(_BOM).strip()
    if not array.startswith(b"[") or not _is_well_formed(array):
        return None
    found: list[bytes] = []
    level, begin = 0, 1
    for token in _STRUCTURE.finditer(array):
        match token[0]:
            case b"[" | b"{":
                level += 1
            case b"]" | b"}":
                level -= 1
        if (token[0] == b"," and level == 1) or level == 0:
            found.append(array[begin : token.start()].strip())
            begin = token.end()
            if len(found) > BATCH_MAX:
                raise Malformed(f"a batch has at most {BATCH_MAX} events")
            if level == 0:
                break
    if begin < len(array):
        return None
    return found if found != [b""] else []


def _odd_tree(body: bytes, fault: str) -> Any:  # noqa: ANN401  # what JSON is
    """The JSON of an oddly spelled body. Raises Malformed, with the message `fault` if it is not JSON at all."""
    try:
        text = _text(body)
        tree = _loads(text, _alike)
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        raise Malformed(fault) from None
    level = 0
    for token in _STRUCTURE.finditer(text.encode("utf-8", "surrogatepass")):
        level += (token[0] in {b"[", b"{"}) - (token[0] in {b"]", b"}"})
        if level > _LEVELS_MAX:
            raise _too_deep()
    return tree


def _text(body: bytes) -> str:
    """A body as text, in the encoding that its first bytes show. A byte that is not a character becomes half of a
    surrogate pair; later checks refuse such text.
    """
    return body.decode(json.detect_encoding(body), "surrogateescape")


def _loads(text: str, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:  # noqa: ANN401  # what JSON is
    """The tree by the slower reader, which accepts more than orjson. Raises ValueError and RecursionError."""
    return json.loads(text, object_pairs_hook=object_pairs_hook, parse_int=_number, strict=False)


def _not_json(body: bytes, error: orjson.JSONDecodeError) -> str:
    if not body.strip():
        return "the body is empty"
    return f"the body is not JSON: {error}"


def _once_each(pairs: list[tuple[str, Any]]) -> None:
    """Raise ValueError if a name appears twice."""
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError


def _alike(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of some members. A repeated name needs equal values, or readers could disagree on the session's id."""
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members and not _is_same(members[name], value):
            raise Malformed("a member appears twice in one object, with two values")
        members[name] = value
    return members


def _is_same(one: Any, other: Any) -> bool:  # noqa: ANN401  # what JSON is
    """Whether two values are equal and of equal types: to Python 1, 1.0 and true are equal."""
    if type(one) is not type(other):
        return False
    if type(one) is dict:
        return one.keys() == other.keys() and all(_is_same(value, other[name]) for name, value in one.items())
    if type(one) is list:
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)


def _number(digits: str) -> int | float:
    return int(digits) if len(digits) <= _DIGITS_MAX else float(digits)


def _too_deep() -> Malformed:
    return Malformed("the body is nested too deeply")


def _is_json(body: bytes) -> bool:
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        with suppress(Malformed):
            _odd_tree(body, "")
            return True
        return False
    return True


def _is_well_formed(body: bytes) -> bool:
    """Whether it is JSON, even with repeated names or too deep nesting."""
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            _loads(_text(body))
        except RecursionError:
            return True  # as far as it was read; each element is checked later
        except ValueError:
            return False
    return True


def _unknown_coding() -> Malformed:
    return Malformed(
        "the body has a Content-Encoding that is not understood: use gzip, deflate or none",
        status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        code="UNSUPPORTED_MEDIA_TYPE",
        reason="unsupported",
    )


def _deflated(body: bytes, bytes_max: int) -> bytes:
    """The body without the `deflate` coding: zlib's format (RFC 9110, 8.4.1.2), or the raw one many senders use."""
    # Much JSON would pass for the raw format, which has no magic bytes, so JSON is recognized first.
    if _is_json(body):
        return body
    for window in (_ZLIB_WINDOW, _RAW_WINDOW):
        try:
            return _inflated(body, window, bytes_max)
        except Malformed as error:
            if error.status is not HTTPStatus.BAD_REQUEST:
                raise
    return body


def _inflated(body: bytes, window: int, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    left = bytes_max
    for _ in range(_MEMBERS_MAX):
        inflater = zlib.decompressobj(window)
        try:
            part = inflater.decompress(body, left + 1)
        except zlib.error:
            raise Malformed("the compressed body is damaged") from None
        if len(part) > left:
            raise Malformed(
                f"a body has at most {bytes_max} bytes, uncompressed",
                status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                code="PAYLOAD_TOO_LARGE",
                reason="too_large",
            )
        if not inflater.eof:
            raise Malformed("the compressed body is cut off")
        parts.append(part)
        left -= len(part)
        body = inflater.unused_data
        if not body.startswith(GZIP):
            break
    return b"".join(parts)
