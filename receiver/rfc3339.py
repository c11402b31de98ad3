"""Times as text: RFC 3339 in UTC, to the microsecond. Pure."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_ALONE = _EPOCH.replace(tzinfo=None)
_MICROSECOND = timedelta(microseconds=1)


def render(micros: int) -> str:
    """The time `micros` microseconds after 1970 began, as `2026-11-24T10:00:00.25Z`; exact, without idle zeros."""
    seconds, rest = divmod(micros, 1_000_000)
    if not rest:
        return f"{_second(seconds)}Z"
    fraction = f"{rest:06d}".rstrip("0")
    return f"{_second(seconds)}.{fraction}Z"


@lru_cache(256)  # most times that are written lie close together
def _second(seconds: int) -> str:
    return (_EPOCH_ALONE + timedelta(seconds=seconds)).isoformat()


def micros(text: str) -> int:
    """The inverse: microseconds since 1970 began. A time without a zone is read as UTC. Raises ValueError."""
    time = datetime.fromisoformat(text)
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


#: A zone can move a time out of the years that can be written.
WRITABLE_MICROS = range(micros("0001-01-01T00:00:00Z"), micros("9999-12-31T23:59:59.999999Z") + 1)
