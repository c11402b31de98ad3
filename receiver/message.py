"""Message: a record on its way to a topic. Pure."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from receiver import rfc3339


class Message(NamedTuple):
    """A record of an output topic, in the CloudEvents Kafka binding's binary mode.

    `value` is UTF-8 JSON, or None for a tombstone. Header values are text, UTF-8 on the wire.
    """

    topic: str
    key: str
    value: bytes | None
    headers: Sequence[tuple[str, str]]
    timestamp_millis: int


class Record(NamedTuple):
    """A message as it stands on its topic."""

    partition: int
    position: int
    message: Message

    def fields(self) -> dict[str, Any]:
        """The record as `tail` and the operations port show it: a JSON object, its value parsed, None a tombstone."""
        topic, key, value, headers, timestamp_millis = self.message
        return {
            "topic": topic,
            "partition": self.partition,
            "position": self.position,
            "key": key,
            "timestamp": rfc3339.render(timestamp_millis * 1000),
            "headers": dict(headers),
            "value": None if value is None else orjson.loads(value),
        }
