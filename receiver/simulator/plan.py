"""The plan of faults, their probabilities and sizes; its presets; and devices reserved for scripts. Pure.

Each probability is drawn separately: those of `SESSION` once for each session, those of `NOTIFICATION` once for each
change that is told, those of `POST` for each copy of it, those of `ATTEMPT` for each attempt to post a copy. The
package's `__init__.py` says which seconds are shortened by the speed.
"""

import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import tomlkit
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

Probability = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]
RetryKind = Literal["none", "fixed", "exponential"]


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class Plan(BaseModel):
    """The plan. The default is a conforming sender that, like most, never repeats a post."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    refused: Probability = Field(default=0, description="The network never grants the session, and tells so")
    stuck: Probability = Field(default=0, description="The session stays REQUESTED, and nothing is told")
    terminated: Probability = Field(default=0, description="The network ends the session early")
    only_ends: Probability = Field(default=0, description="Only the end of the session is told")
    clock_skewed: Probability = Field(default=0, description="The clock of the session's sender is wrong")
    clock_skew_seconds_max: Seconds = Field(default=300, description="Largest error of the clock, in either direction")

    without_reason: Probability = Field(default=0, description="An end is told without statusInfo")
    lost: Probability = Field(default=0, description="A notification is never posted")
    repeated_same_id: Probability = Field(default=0, description="The notification is posted twice")
    repeated_new_id: Probability = Field(default=0, description="The notification is posted twice, with another id")
    repeat_after_seconds_max: Seconds = Field(default=2, description="Longest time until the second post")
    delayed: Probability = Field(default=0, description="The notification is posted late")
    delay_seconds_max: Seconds = Field(default=30, description="Longest delay")
    reordered: Probability = Field(default=0, description="The notification is posted after its session's next one")
    reorder_seconds_max: Seconds = Field(default=60, description="Longest wait for the next one")
    burst: Probability = Field(default=0, description="The notification is posted in a burst with all that wait")
    burst_every_seconds: Annotated[float, Field(gt=0, le=86_400)] = Field(default=10, description="Time between bursts")
    odd: Probability = Field(default=0, description="The notification has a rare but legible spelling")

    malformed: Probability = Field(default=0, description="The body is malformed")
    wrong_token: Probability = Field(default=0, description="The token is wrong")
    no_token: Probability = Field(default=0, description="There is no Authorization")

    slow_body: Probability = Field(default=0, description="The body is sent in pieces")
    slow_body_seconds: Annotated[float, Field(ge=0, le=300)] = Field(default=2, description="Time to send it")
    dropped: Probability = Field(default=0, description="The connection is dropped in the middle of the body")
    hung_up: Probability = Field(default=0, description="The connection is dropped before the answer is read")
    answer_ignored: Probability = Field(default=0, description="The sender acts as if there were no answer")

    retry: Annotated[tuple[RetryKind, ...], BeforeValidator(_one_or_more), Field(min_length=1)] = Field(
        default=("none",), description="none, fixed or exponential; one of several is drawn for each session"
    )
    retry_attempts_max: Annotated[int, Field(ge=1, le=100)] = Field(
        default=5, description="Most attempts to post one copy"
    )
    retry_seconds: Annotated[float, Field(ge=0, le=3_600)] = Field(default=0.5, description="Wait before attempt 2")
    retry_seconds_max: Annotated[float, Field(ge=0, le=3_600)] = Field(
        default=60, description="Longest wait, when doubled or by Retry-After"
    )
    retry_statuses: tuple[Annotated[int, Field(ge=300, le=599)], ...] = Field(
        default=(401, 429, 502, 503, 504),  # Deutsche Telekom's event hub, the one public sender that retries
        description="Answers that are retried; a missing one always is",
    )
    retry_new_id: Probability = Field(default=0, description="A retry has another id")


#: The faults, by how often they are drawn. All other fields of the plan are parameters of these.
SESSION = ("refused", "stuck", "terminated", "only_ends", "clock_skewed")
NOTIFICATION = (
    "without_reason",
    "lost",
    "repeated_same_id",
    "repeated_new_id",
    "delayed",
    "reordered",
    "burst",
    "odd",
)
POST = ("malformed", "wrong_token", "no_token")
ATTEMPT = ("slow_body", "dropped", "hung_up", "answer_ignored", "retry_new_id")
FAULTS = (*SESSION, *NOTIFICATION, *POST, *ATTEMPT)

_EVERY_RETRY: tuple[RetryKind, ...] = ("none", "fixed", "exponential")

PRESETS: Mapping[str, Plan] = {
    "none": Plan(),
    "some": Plan.model_validate(
        dict.fromkeys(FAULTS, 0.04) | {"stuck": 0.01, "terminated": 0.1, "retry": _EVERY_RETRY}
    ),
    "all": Plan.model_validate(dict.fromkeys(FAULTS, 0.15) | {"stuck": 0.05, "retry": _EVERY_RETRY}),
}


class Reserved(NamedTuple):
    """The behaviour of devices whose phone numbers have one beginning, and its plan."""

    words: str
    plan: Plan


#: No country has +999. A device with such a number always behaves as given here, whatever the plan. The digits after
#: the prefix are free, so that there may be many devices of each kind.
RESERVED: Mapping[str, Reserved] = {
    "+99900": Reserved("has no faults", Plan()),
    "+99901": Reserved("is never granted: UNAVAILABLE, NETWORK_TERMINATED", Plan(refused=1)),
    "+99902": Reserved("stays REQUESTED, and nothing is told", Plan(stuck=1)),
    "+99903": Reserved("is ended by the network: NETWORK_TERMINATED", Plan(terminated=1)),
    "+99904": Reserved("is never notified", Plan(lost=1)),
    "+99905": Reserved("is told everything twice, with the same id", Plan(repeated_same_id=1)),
    "+99906": Reserved("is told everything twice, with another id", Plan(repeated_new_id=1)),
    "+99907": Reserved("is told its end before its beginning", Plan(reordered=1, reorder_seconds_max=86_400)),
    "+99908": Reserved("is told with malformed bodies", Plan(malformed=1)),
    "+99909": Reserved("is told with a wrong token", Plan(wrong_token=1)),
    "+99910": Reserved("drops each connection in the middle of the body", Plan(dropped=1)),
    "+99911": Reserved("sends each body slowly", Plan(slow_body=1)),
    "+99912": Reserved(
        "ignores each answer, and posts three times", Plan(answer_ignored=1, retry=("fixed",), retry_attempts_max=3)
    ),
    "+99913": Reserved("ends without a reason", Plan(without_reason=1)),
    "+99914": Reserved("is told of its end only", Plan(only_ends=1)),
}
_PREFIX_LENGTH = 6


def plan_for(phone_number: str, plan: Plan) -> Plan:
    """The plan for a device: the reserved one for its number, else `plan`."""
    reserved = RESERVED.get(phone_number[:_PREFIX_LENGTH])
    return plan if reserved is None else reserved.plan


def changed(plan: Plan, toml: str) -> Plan:
    """The plan with changes from a TOML text. Raises ValueError, naming the fault in the text."""
    try:
        given = tomllib.loads(toml)
        return Plan.model_validate({**plan.model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def toml_of(plan: Plan) -> str:
    """The plan as TOML, each value with its description."""
    lines = []
    for name, field in Plan.model_fields.items():
        value: Any = getattr(plan, name)
        told = tomlkit.item(list(value) if isinstance(value, tuple) else value).as_string()
        lines.append(f"{f'{name} = {told}':<34}  # {field.description}")
    return "\n".join(lines)
