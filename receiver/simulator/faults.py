"""The faults of a notification, from the plan and the session's chance alone. Pure.

Paths of chance: a session's own, then `step/N`, then `copy/N`, then `attempt/N`. So each of these can be decided again,
in any order, with the same result.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from receiver.simulator.chance import Chance
from receiver.simulator.dialects import MALFORMATIONS, Release, oddities, untold
from receiver.simulator.plan import Plan, RetryKind
from receiver.simulator.sessions import Status

Authorization = Literal["right", "wrong", "none"]

#: A retry's wait never grows past this many doublings, whatever the number of attempts.
_DOUBLINGS_MAX = 20


class Sender(NamedTuple):
    """The sender of one session's changes: its plan, its chance, and its release."""

    plan: Plan
    chance: Chance
    release: Release


class Copy(NamedTuple):
    """One of the posts of a change; the first is the original, with `number` 0.

    `delay_seconds` counts from the change, before it is divided by the speed.
    """

    number: int
    has_new_id: bool
    delay_seconds: float
    authorization: Authorization
    malformation: str
    faults: Sequence[str]


class Telling(NamedTuple):
    """How a change is told. If it is not told, `unsent` says why, and there are no copies."""

    unsent: str
    copies: Sequence[Copy]
    status_info: str | None
    is_held: bool
    is_in_burst: bool
    oddity: str
    skew_seconds: float
    faults: Sequence[str]


class Attempt(NamedTuple):
    """How a copy is posted in one attempt."""

    slow_seconds: float
    breaks: Literal["", "dropped", "hung_up"]
    is_answer_ignored: bool
    has_new_id: bool
    faults: Sequence[str]


def telling(sender: Sender, step: int, qos_status: Status, status_info: str | None) -> Telling:
    """How a session's step is told."""
    draw = _Draw(sender.plan)
    chance = sender.chance.of("step", step)
    unsent = _unsent(draw, sender, chance, qos_status, status_info)
    if unsent:
        return Telling(unsent, (), status_info, False, False, "", 0, draw.faults)
    plan = sender.plan
    skew_seconds = delay_seconds = 0.0
    if draw.happens("clock_skewed", sender.chance):
        skew_max = plan.clock_skew_seconds_max
        skew_seconds = sender.chance.between("clock_skewed", -skew_max, skew_max)
    if draw.happens("delayed", chance):
        delay_seconds = chance.between("delayed", 0, plan.delay_seconds_max)
    if status_info is not None and draw.happens("without_reason", chance):
        status_info = None
    oddity = chance.choice("odd", oddities(sender.release, qos_status)) if draw.happens("odd", chance) else ""
    # An end can't be held until a later change, since none comes.
    is_held = qos_status is not Status.UNAVAILABLE and draw.happens("reordered", chance)
    is_in_burst = draw.happens("burst", chance)
    copies = [_copy(plan, chance, 0, delay_seconds)]
    for name in ("repeated_same_id", "repeated_new_id"):
        if chance.happens(name, getattr(plan, name)):
            after_seconds = chance.between(name, 0, plan.repeat_after_seconds_max)
            copy = _copy(plan, chance, len(copies), delay_seconds + after_seconds)
            copies.append(copy._replace(has_new_id=name == "repeated_new_id", faults=(name, *copy.faults)))
    return Telling("", copies, status_info, is_held, is_in_burst, oddity, skew_seconds, draw.faults)


class _Draw:
    """Draws faults of the plan, and records which happened."""

    def __init__(self, plan: Plan) -> None:
        self.faults: list[str] = []
        self._plan = plan

    def happens(self, name: str, chance: Chance) -> bool:
        happened = chance.happens(name, getattr(self._plan, name))
        if happened:
            self.faults.append(name)
        return happened


def _unsent(draw: _Draw, sender: Sender, step: Chance, qos_status: Status, status_info: str | None) -> str:
    """Why a step is not told; empty if it is told."""
    if untold(sender.release, qos_status, status_info):
        return "release"
    if qos_status is Status.AVAILABLE and draw.happens("only_ends", sender.chance):
        return "only_ends"
    return "lost" if draw.happens("lost", step) else ""


def _copy(plan: Plan, step: Chance, number: int, delay_seconds: float) -> Copy:
    chance = step.of("copy", number)
    faults = [name for name in ("malformed", "wrong_token", "no_token") if chance.happens(name, getattr(plan, name))]
    authorization: Authorization = "none" if "no_token" in faults else "wrong" if "wrong_token" in faults else "right"
    malformation = chance.choice("malformed", list(MALFORMATIONS)) if "malformed" in faults else ""
    return Copy(number, False, delay_seconds, authorization, malformation, faults)


def attempt(sender: Sender, step: int, copy: int, number: int) -> Attempt:
    """How a copy is posted in attempt `number`, counted from 1."""
    plan = sender.plan
    chance = sender.chance.of("step", step, "copy", copy, "attempt", number)
    faults = [
        name
        for name in ("slow_body", "dropped", "hung_up", "answer_ignored")
        if chance.happens(name, getattr(plan, name))
    ]
    has_new_id = number > 1 and chance.happens("retry_new_id", plan.retry_new_id)
    return Attempt(
        plan.slow_body_seconds if "slow_body" in faults else 0.0,
        "dropped" if "dropped" in faults else "hung_up" if "hung_up" in faults else "",
        "answer_ignored" in faults,
        has_new_id,
        [*faults, *(("retry_new_id",) if has_new_id else ())],
    )


def retry_seconds(sender: Sender, attempts: int, retry_after_seconds: float) -> float | None:
    """The wait before the next attempt, after `attempts` attempts; None if there is none.

    `retry_after_seconds` is the answer's Retry-After (RFC 9110, 10.2.3), obeyed up to the plan's longest wait.
    """
    plan = sender.plan
    kind: RetryKind = sender.chance.choice("retry", plan.retry)
    if kind == "none" or attempts >= plan.retry_attempts_max:
        return None
    doublings = 0 if kind == "fixed" else min(attempts - 1, _DOUBLINGS_MAX)
    wait_seconds = max(plan.retry_seconds * 2.0**doublings, retry_after_seconds)
    return min(wait_seconds, max(plan.retry_seconds_max, plan.retry_seconds))
