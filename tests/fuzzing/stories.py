"""The lives of sessions: consecutive events, with the expected result of each.

`A1#x@bell accepted A1 since 1`: AVAILABLE at second 1 with the id x, of the sender bell, must be accepted, and then the
session is AVAILABLE since second 1. `U2:N` is UNAVAILABLE at second 2 for NETWORK_TERMINATED. Without `#` an event has
an id of its own, without `@` it is the first sender's. Behind `granted` is what a late event grants too.
"""

import random
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from tests.fuzzing.expected import Change, State, micros_of
from tests.fuzzing.facts import KNOWN_TYPES, session_id

STORIES: Mapping[str, Sequence[str]] = {
    "granted and ended": ("A1 accepted A1 since 1", "U5:N accepted U5:N since 1 for 4"),
    "asked for, granted and over": (
        *("R0 accepted R0", "A1 accepted A1 since 1", "U61:E accepted U61:E since 1 for 60"),
    ),
    "never granted": ("R0 accepted R0", "U3:N accepted U3:N"),
    "an end without a reason": (
        *("A1 accepted A1 since 1", "U2 accepted U2 since 1 for 1", "U3:N accepted U3:N since 1 for 1"),
    ),
    "to and fro": (
        *("A1 accepted A1 since 1", "U2 accepted U2 since 1 for 1", "A4 accepted A4 since 4"),
        *("U9 accepted U9 since 4 for 5", "A10 accepted A10 since 10", "U12:D accepted U12:D since 10 for 2"),
    ),
    "posted again": (
        *("A1#x accepted A1 since 1", "A1#x duplicate", "U5:N#y accepted U5:N since 1 for 4", "U5:N#y duplicate"),
        *("A1#x duplicate", "U5:N#y duplicate"),
    ),
    "posted again with another time": (
        "A1#x accepted A1 since 1",
        "A3#x duplicate",
        "U5:N#y accepted U5:N since 1 for 4",
    ),
    "told under two ids": ("U5:N#x accepted U5:N", "U5:N#y duplicate", "U5:N#z duplicate"),
    "no ids": ("A1# accepted A1 since 1", "A1# duplicate", "U2:N# accepted U2:N since 1 for 1", "U2:N# duplicate"),
    "nothing new": ("A1 accepted A1 since 1", "A4 unchanged A4 since 1", "A2 unchanged A4 since 1"),
    "an end told twice": ("U5:N accepted U5:N", "U9:N unchanged U9:N", "U9:E accepted U9:E", "U7:N late U9:E"),
    "an end that comes first": (
        "U5:N accepted U5:N",
        "A1 late U5:N since 1 for 4 granted",
        "A2 late U5:N since 1 for 4",
    ),
    "a beginning that comes last": (
        *(
            "A2 accepted A2 since 2",
            "R0 late A2 since 2",
            "U5:N accepted U5:N since 2 for 3",
            "R1 late U5:N since 2 for 3",
        ),
    ),
    "after the end": ("U5:N accepted U5:N", "A9 late U5:N", "U7 late U5:N"),
    "an older clock": ("A5 accepted A5 since 5", "U3 late A5 since 5", "U1:N accepted U1:N since 5 for 0"),
    "one id for all": (
        *("A1#x accepted A1 since 1", "U5#x accepted U5 since 1 for 4", "U5:N#x accepted U5:N since 1 for 4"),
    ),
    "another's session": (
        *("A1 accepted A1 since 1", "U2:N@other conflict", "A1@other conflict", "U5:N accepted U5:N since 1 for 4"),
    ),
}
_STEP = re.compile(
    r"(?P<status>[RAU])(?P<at>\d+)(:(?P<info>\w))?(?P<id>#\w*)?(?P<other>@other)? (?P<verdict>\w+)"
    r"( (?P<now>[RAU])(?P<now_at>\d+)(:(?P<now_info>\w))?( since (?P<since>\d+))?( for (?P<seconds>\d+))?)?"
    r"(?P<granted> granted)?"
)
_STATUSES = {"R": "REQUESTED", "A": "AVAILABLE", "U": "UNAVAILABLE"}
_INFOS = {None: None, "N": "NETWORK_TERMINATED", "E": "DURATION_EXPIRED", "D": "DELETE_REQUESTED"}


class Step(NamedTuple):
    """An event of a story, and whether another sender posts it."""

    change: Change
    is_anothers: bool


class Story(NamedTuple):
    """Events that are posted one after the other."""

    name: str
    steps: Sequence[Step]


def story(chance: random.Random, now: datetime) -> Story:
    """A story of a new session."""
    name = chance.choice(list(STORIES))
    begin = micros_of(now - timedelta(seconds=chance.randrange(100, 3000)))
    about = session_id(chance), chance.choice(KNOWN_TYPES), f"/operators/{chance.choice('abc')}"
    return Story(name, [_step(text, about, begin, number) for number, text in enumerate(STORIES[name])])


def _step(text: str, about: tuple[str, str, str], begin: int, number: int) -> Step:
    found = _STEP.fullmatch(text)
    assert found, f"{text!r} is no step: see the module"
    session, kind, source = about

    def at(name: str) -> int | None:
        return None if found[name] is None else begin + int(found[name]) * 1_000_000

    identifier = found["id"]
    state = None
    if found["now"]:
        seconds = None if found["seconds"] is None else float(found["seconds"])
        status, info = _STATUSES[found["now"]], _INFOS[found["now_info"]]
        state = State(status, info, at("now_at"), at("since"), seconds, granted=bool(found["granted"]))
    change = Change(
        session,
        _STATUSES[found["status"]],
        _INFOS[found["info"]],
        at("at"),
        f"n-{number}" if identifier is None else identifier[1:] or None,
        source,
        kind,
        found["verdict"],
        state,
    )
    return Step(change, bool(found["other"]))
