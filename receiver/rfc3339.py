"""Times as text: RFC 3339 in UTC, to the microsecond. Pure."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_ALONE = _EPOCH.replace(tzinfo=None)
_MICROSECOND = timedelta(microseconds=1)


@lru_cache(256)  # one event's time stands in several places of its messages
def render(micros: int) -> str:
    """The time `micros` microseconds after 1970 began, as `2026-11-24T10:00:00.25Z`; exact, without idle zeros."""
    text = (_EPOCH_ALONE + timedelta(microseconds=micros)).isoformat()
    return f"{text.rstrip('0')}Z" if "." in text else f"{text}Z"


def micros(text: str) -> int:
    """The inverse: microseconds since 1970 began. A time without a zone is read as UTC. Raises ValueError."""
    time = datetime.fromisoformat(text)
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND
