"""Reading answers of other servers: content and its encoding, error messages, and when to retry."""

import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
import orjson
from tenacity import RetryCallState

from receiver.backoff import full_jitter

#: A retry after one of these may succeed (RFC 9110 and RFC 6585).
PASSING = frozenset({429, 502, 503, 504})
_BACKOFF = full_jitter(0.25, 10)
#: A longer Retry-After is reported to the caller, not waited for.
RETRY_AFTER_SECONDS_MAX = 30.0

#: The HTTP client decodes these, at most a mebibyte at a time.
_ENCODINGS = frozenset({"", "identity", "gzip", "deflate"})
_ENCODING = re.compile(r"[a-z0-9-]{1,20}")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

#: Members that hold an error message: those of CAMARA's ErrorInfo, RFC 9457, RFC 6749 and gateways.
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
    """The content of an answer can't be read. The message continues a sentence that ends with "answers"."""


async def content_of(answer: httpx2.Response, bytes_max: int) -> bytes:
    """The content, decoded, without a byte order mark. Raises Unreadable and the HTTP client's errors.

    `bytes_max` limits both the encoded and the decoded length.
    """
    encodings = {each.strip().lower() for each in answer.headers.get("content-encoding", "").split(",")}
    for unknown in encodings - _ENCODINGS:
        name = unknown if _ENCODING.fullmatch(unknown) else "with a malformed name"
        raise Unreadable(f"in the encoding {name}, which was not asked for")
    content = bytearray()
    try:
        async for part in answer.aiter_bytes():
            content += part
            if max(len(content), answer.num_bytes_downloaded) > bytes_max:
                raise Unreadable("with too much content")
    except httpx2.DecodingError:
        raise Unreadable(f"content that is not in the encoding it declares: {', '.join(sorted(encodings))}") from None
    return bytes(content.removeprefix(_BYTE_ORDER_MARK))


def retry_after_seconds(answer: httpx2.Response) -> float | None:
    """The pause that the Retry-After header asks for, in seconds (RFC 9110, 10.2.3); None without a valid one."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def last_outcome(state: RetryCallState) -> Any:  # noqa: ANN401  # whatever an attempt returns
    """The outcome of the last attempt."""
    return state.outcome.result()  # type: ignore[union-attr]  # there was an attempt


def pause_seconds(state: RetryCallState) -> float:
    """The wait before the next attempt: the longer of the backoff and the server's Retry-After.

    The last attempt's outcome has `retry_after_seconds`, None where the server gave none.
    """
    return max(_BACKOFF(state), last_outcome(state).retry_after_seconds or 0)


def is_long(seconds: float | None) -> bool:
    """Whether a Retry-After is too long to be waited for here."""
    return seconds is not None and seconds > RETRY_AFTER_SECONDS_MAX


def left_alone(seconds: float | None) -> str:
    """The words to append to an error about a Retry-After that is too long to wait for; empty for any other."""
    return f", with a Retry-After of {seconds:.0f} s" if seconds is not None and is_long(seconds) else ""


def message_of(content: bytes) -> str:
    """The message of an error response, unchecked; empty if it has none."""
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
    # Text directly in a member is preferred to text nested below one.
    return next((words for value in sorted(told, key=_is_nested) if (words := _words(value, depth + 1))), "")


def _is_nested(value: object) -> bool:
    return not isinstance(value, str)
