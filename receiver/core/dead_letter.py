"""Making a dead letter so short that its topic takes it. Pure."""

from base64 import b64decode, b64encode

import orjson

from receiver.core.message import Message, bytes_of

#: What Kafka's own numbers and the headers' names take around a record and its batch, at most.
_WRAPPING_BYTES = 512
_WORDS_MAX = 256
_HEADERS = frozenset(
    {"ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "content-type", "verdict", "inbox", "inbox-id"}
)


def fitting(letter: Message, batch_bytes_max: int) -> Message:
    """The letter, shortened where a batch of at most so many bytes would not take it."""
    value_bytes_max = batch_bytes_max - _WRAPPING_BYTES - (bytes_of(letter) - len(letter.value or b""))
    return letter if len(letter.value or b"") <= value_bytes_max else shortened(letter, value_bytes_max)


def shortened(letter: Message, value_bytes_max: int) -> Message:
    """The letter with a value of at most so many bytes, if that can be: first the body is cut, then all but the reason.

    The whole notification still stands in the inbox. `bodyBytes` tells how long its body was.
    """
    told = orjson.loads(letter.value or b"{}")
    body = b64decode(told.get("body", ""))
    told.setdefault("bodyBytes", len(body))
    excess = len(orjson.dumps(told)) - value_bytes_max
    kept = max(0, len(body) - (excess + 3) // 4 * 3 - 3)
    value = orjson.dumps({**told, "body": b64encode(body[:kept]).decode()})
    if len(value) <= value_bytes_max:
        return letter._replace(value=value)
    bare = {name: str(told.get(name, ""))[:_WORDS_MAX] for name in ("verdict", "reason", "sender", "receivedAt")}
    headers = [(name, text[:_WORDS_MAX]) for name, text in letter.headers if name in _HEADERS]
    return letter._replace(
        value=orjson.dumps({**bare, "body": "", "bodyBytes": told["bodyBytes"], "headers": {}}), headers=headers
    )
