"""Times as text: RFC 3339 in UTC, to the microsecond. Pure."""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_ALONE = _EPOCH.replace(tzinfo=None)
_MICROSECOND = timedelta(microseconds=1)


@lru_cache(1024)  # each time is written several times, and most are close together
def render(micros: int) -> str:
    """The time `micros` microseconds after 1970 began, as `2026-11-24T10:00:00.25Z`; exact, without trailing zeros."""
    seconds, rest = divmod(micros, 1_000_000)
    if not rest:
        return f"{_second(seconds)}Z"
    fraction = f"{rest:06d}".rstrip("0")
    return f"{_second(seconds)}.{fraction}Z"


@lru_cache(256)
def _second(seconds: int) -> str:
    return (_EPOCH_ALONE + timedelta(seconds=seconds)).isoformat()


#: RFC 3339, 5.6, and common deviations: no seconds, no zone, a comma before the fraction, a blank or lower case, an
#: offset without its colon or its minutes, and a zone's name behind an offset (Java's ZonedDateTime). Python's own
#: reader accepts more, and misreads `21.123` as 21:00:00.123.
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2})"
    r"(?::(?:([0-5][0-9])|(60))([.,][0-9]+)?)?"
    r"(?:([Zz]|[+-][0-9]{2}(?::?[0-5][0-9])?)(?:\[[A-Za-z0-9_/+:-]{1,64}\])?)?"
)
_PLAIN_SECOND = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-5][0-9]")
_PLAIN_REST = re.compile(r"(?:\.[0-9]+)?Z")
_SECOND_CHARS = len("2026-11-24T10:00:00")
_FRACTION_DIGITS = 6


def micros(text: str) -> int:
    """The inverse: microseconds since 1970 began, finer fractions truncated. A time without a zone is read as UTC.

    A leap second is read as the second after it. Raises ValueError for text that is neither RFC 3339 nor one of the
    deviations above.
    """
    begin, rest = _second_micros(text[:_SECOND_CHARS]), _rest_micros(text[_SECOND_CHARS:])
    if begin is not None and rest is not None:  # the usual form
        return begin + rest
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError("no RFC 3339 time")
    minute, second, leap, fraction, zone = found.groups()
    second = second or ("59" if leap else "00")
    time = datetime.fromisoformat(f"{minute}:{second}{fraction or ''}{(zone or 'Z').upper()}")
    return (time - _EPOCH) // _MICROSECOND + (1_000_000 if leap else 0)


@lru_cache(256)
def _second_micros(text: str) -> int | None:
    """The time of a second in the usual form, None for any other form. Raises ValueError for an impossible date."""
    if _PLAIN_SECOND.fullmatch(text) is None:
        return None
    return (datetime.fromisoformat(text) - _EPOCH_ALONE) // _MICROSECOND


@lru_cache(2048)  # every fraction in milliseconds
def _rest_micros(text: str) -> int | None:
    """The microseconds in the text behind the second; None if it is not a plain fraction in UTC."""
    if _PLAIN_REST.fullmatch(text) is None:
        return None
    return int(text[1:-1][:_FRACTION_DIGITS].ljust(_FRACTION_DIGITS, "0"))


#: Times that can be written: a zone's offset can move a time out of the years 1 to 9999.
WRITABLE_MICROS = range(micros("0001-01-01T00:00:00Z"), micros("9999-12-31T23:59:59.999999Z") + 1)
