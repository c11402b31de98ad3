"""Times as text: RFC 3339 in UTC, to the microsecond. Pure."""

import re
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


#: RFC 3339, 5.6, and what writers take for it: no seconds, no zone, a comma before the fraction, a blank or lower case,
#: an offset without its colon or its minutes, and behind an offset the name of a zone (Java's ZonedDateTime). Python's
#: own reader takes more than that, and reads `21.123` as 21:00:00.123.
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2})"
    r"(?::(?:([0-5][0-9])|(60))([.,][0-9]+)?)?"
    r"(?:([Zz]|[+-][0-9]{2}(?::?[0-5][0-9])?)(?:\[[A-Za-z0-9_/+:-]{1,64}\])?)?"
)
_PLAIN = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-5][0-9](?:\.[0-9]+)?Z")


def micros(text: str) -> int:
    """The inverse: microseconds since 1970 began, finer fractions cut. A time without a zone is read as UTC.

    Raises ValueError for what is neither RFC 3339 nor one of the oddities above. A leap second is the one after it.
    """
    if _PLAIN.fullmatch(text) is not None:  # as nearly all are written
        return (datetime.fromisoformat(text) - _EPOCH) // _MICROSECOND
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError("no RFC 3339 time")
    minute, second, leap, fraction, zone = found.groups()
    second = second or ("59" if leap else "00")
    time = datetime.fromisoformat(f"{minute}:{second}{fraction or ''}{(zone or 'Z').upper()}")
    return (time - _EPOCH) // _MICROSECOND + (1_000_000 if leap else 0)


#: A zone can move a time out of the years that can be written.
WRITABLE_MICROS = range(micros("0001-01-01T00:00:00Z"), micros("9999-12-31T23:59:59.999999Z") + 1)
