"""What answers of other people's servers have in common: length and encoding, words, and when to ask again."""

import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
import orjson
from tenacity import RetryCallState

from receiver.backoff import full_jitter

#: Asked again, these may succeed (RFC 9110 and RFC 6585).
PASSING = frozenset({429, 502, 503, 504})
_BACKOFF = full_jitter(0.25, 10)
#: A longer pause that a server wants is told to its caller, not waited for.
RETRY_AFTER_SECONDS_MAX = 30.0

#: What the HTTP client decodes, a mebibyte at a time at most.
_ENCODINGS = frozenset({"", "identity", "gzip", "deflate"})
_ENCODING = re.compile(r"[a-z0-9-]{1,20}")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

#: Members that say in words what went wrong: CAMARA's ErrorInfo, RFC 9457, RFC 6749, and those of gateways.
_WORDS = (
    "message",
    "detail",
    "error_description",
    "faultstring",
    "description",
    "title",
    "text",
    "Message",
    "error",
    "fault",
    "errors",
    "requestError",
    "serviceException",
    "policyException",
)
_DEPTH_MAX = 4
_MARKUP_WORDS = re.compile(r"<(?:\w+:)?(?:title|message|description|faultstring)\b[^>]*>([^<]{1,1000})<", re.IGNORECASE)


class Unreadable(Exception):
    """An answer whose content can't be had; the message goes on behind "answers"."""


async def content_of(answer: httpx2.Response, bytes_max: int) -> bytes:
    """The content, decoded, without a byte order mark. Raises Unreadable, and what the HTTP client raises.

    `bytes_max` counts what is sent, and what comes out of it.
    """
    encodings = {each.strip().lower() for each in answer.headers.get("content-encoding", "").split(",")}
    for unknown in encodings - _ENCODINGS:
        name = unknown if _ENCODING.fullmatch(unknown) else "that nobody knows"
        raise Unreadable(f"in the encoding {name}, which was not asked for")
    content = bytearray()
    try:
        async for part in answer.aiter_bytes():
            content += part
            if max(len(content), answer.num_bytes_downloaded) > bytes_max:
                raise Unreadable("at too great length")
    except httpx2.DecodingError:
        raise Unreadable(f"what is not encoded as it says: {', '.join(sorted(encodings))}") from None
    return bytes(content.removeprefix(_BYTE_ORDER_MARK))


def retry_after_seconds(answer: httpx2.Response) -> float | None:
    """How long the server wants to be left alone: seconds, or until a date (RFC 9110, 10.2.3)."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def last_outcome(state: RetryCallState) -> Any:  # noqa: ANN401  # whatever an attempt returns
    """What the last attempt came to."""
    return state.outcome.result()  # type: ignore[union-attr]  # there was an attempt


def pause_seconds(state: RetryCallState) -> float:
    """How long to wait before the next attempt: as long as the server wants, and never less than chance does.

    The last attempt's outcome has `retry_after_seconds`: how long that is, None where the server does not say.
    """
    return max(_BACKOFF(state), last_outcome(state).retry_after_seconds or 0)


def is_long(seconds: float | None) -> bool:
    """Whether a server wants to be left alone for longer than anybody waits here."""
    return seconds is not None and seconds > RETRY_AFTER_SECONDS_MAX


def left_alone(seconds: float | None) -> str:
    """What to say behind an answer whose Retry-After is not waited for; empty where it is."""
    return f", and wants to be left alone for {seconds:.0f} s" if seconds is not None and is_long(seconds) else ""


def message_of(content: bytes) -> str:
    """What an error says in words, unchecked; empty where it says nothing."""
    try:
        return _words(orjson.loads(content), 0)
    except orjson.JSONDecodeError:
        text = content.decode(errors="replace")
    if "<" in text:
        found = _MARKUP_WORDS.search(text)
        return found[1].strip() if found else ""
    return text.strip()


def _words(tree: Any, depth: int) -> str:  # noqa: ANN401  # what JSON is
    if isinstance(tree, str):
        return tree
    if isinstance(tree, list) and tree and depth < _DEPTH_MAX:
        return _words(tree[0], depth + 1)
    if not isinstance(tree, dict) or depth == _DEPTH_MAX:
        return ""
    title, detail = tree.get("title"), tree.get("detail")
    if isinstance(title, str) and isinstance(detail, str):
        return f"{title}: {detail}"
    told = [tree[name] for name in _WORDS if name in tree]
    # Words in a member of its own, before those that are farther below.
    return next((words for value in sorted(told, key=_is_nested) if (words := _words(value, depth + 1))), "")


def _is_nested(value: object) -> bool:
    return not isinstance(value, str)
