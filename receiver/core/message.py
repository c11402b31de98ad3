"""Message: a record on its way to a topic. Pure."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import orjson

from receiver.core import rfc3339
from receiver.core.value import Value

#: orjson reads deeper trees than it writes.
_NESTED_MAX = 100


class Message(Value, frozen=True):
    """A record of an output topic, in the CloudEvents Kafka binding's binary mode.

    `value` is UTF-8 JSON, or None for a tombstone. Header values are text, UTF-8 on the wire.
    """

    topic: str
    key: str
    value: bytes | None
    headers: Sequence[tuple[str, str]]
    timestamp_millis: int


class Record(NamedTuple):
    """A message at its place on a topic."""

    partition: int
    position: int
    message: Message

    def fields(self) -> dict[str, Any]:
        """The record as `tail` and the operations port show it: a JSON object with the value parsed, None a tombstone.

        A value of another program may not be JSON; then it is in `valueBase64`, and `value` is None.
        """
        message = self.message
        micros = min(max(rfc3339.WRITABLE_MICROS[0], message.timestamp_millis * 1000), rfc3339.WRITABLE_MICROS[-1])
        shown = {"value": None} if message.value is None else _shown(message.value)
        return {
            "topic": message.topic,
            "partition": self.partition,
            "position": self.position,
            "key": message.key,
            "timestamp": rfc3339.render(micros),
            "headers": dict(message.headers),
            **shown,
        }


def _shown(value: bytes) -> dict[str, Any]:
    try:
        tree = orjson.loads(value)
        if value.count(b"[") + value.count(b"{") > _NESTED_MAX:
            orjson.dumps(tree)  # too deep nesting would fail later, when it is shown
    except (ValueError, TypeError):
        return {"value": None, "valueBase64": b64encode(value).decode()}
    return {"value": tree}


def bytes_of(message: Message) -> int:
    """About the bytes that a message takes on its topic, without the headers' names."""
    return len(message.key) + len(message.value or b"") + sum([len(text) for _, text in message.headers])


def bytes_of_all(messages: Iterable[Message]) -> int:
    """About the bytes that messages take, with headers as JSON. Consecutive messages may share one list of headers."""
    total = headers_bytes = 0
    headers: Sequence[tuple[str, str]] = ()
    for message in messages:
        if message.headers is not headers:
            headers = message.headers
            headers_bytes = len(orjson.dumps(headers))  # adding up the lengths takes twice as long
        total += len(message.key) + len(message.value or b"") + headers_bytes
    return total
