"""Facts: what the operator's API knows of a session beside its status. Pure.

They are in notifications that the receiver makes from the API's answers, in `data`, beside `sessionId` and `qosStatus`.
The topics' values have the same members with the same names.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeVar

from receiver.core import rfc3339
from receiver.core.errors import Malformed
from receiver.core.value import Value

T = TypeVar("T")


class Facts(Value, frozen=True, array_like=True):
    """Facts of one session; None where the API did not give one.

    `device` is the API's own object, present only if the configuration allows it. `device_hash` is a keyed hash of the
    device: equal for equal devices, and useless without the key.
    """

    qos_profile: str | None = None
    duration_seconds: int | None = None
    expires_micros: int | None = None
    device_hash: str | None = None
    device: Mapping[str, Any] | None = None


NO_FACTS = Facts()

_MEMBERS = frozenset({"qosProfile", "duration", "expiresAt", "deviceHash", "device"})

#: A server may round its times differently from one answer to the next.
_SAME_WITHIN_MICROS = 2_000_000


def members(facts: Facts) -> dict[str, Any]:
    """The known facts as members of a JSON object."""
    found = (
        ("qosProfile", facts.qos_profile),
        ("duration", facts.duration_seconds),
        ("expiresAt", None if facts.expires_micros is None else rfc3339.render(facts.expires_micros)),
        ("deviceHash", facts.device_hash),
        ("device", facts.device),
    )
    return {name: value for name, value in found if value is not None}


def with_members(value: dict[str, Any], facts: Facts) -> dict[str, Any]:
    """A JSON object with the facts' members added; the same object if there are no facts."""
    return value if facts is NO_FACTS or facts == NO_FACTS else value | members(facts)


def facts_of(tree: Mapping[str, Any]) -> Facts:
    """The inverse of `members`, ignoring all other members; NO_FACTS itself if there are none. Raises Malformed."""
    if not _MEMBERS & tree.keys():
        return NO_FACTS
    return Facts(
        _member(tree, "qosProfile", str),
        _member(tree, "duration", int),
        _micros(_member(tree, "expiresAt", str)),
        _member(tree, "deviceHash", str),
        _member(tree, "device", dict),
    )


def merged(before: Facts, after: Facts) -> Facts:
    """The facts after an update: the latest value of each.

    Exceptions keep values from alternating for ever: the first device stays, since the API may identify one device in
    several ways, and so does a time that differs only by rounding.
    """
    expires_micros = _first(after.expires_micros, before.expires_micros)
    if before.expires_micros is not None and expires_micros is not None:
        is_rounded = abs(expires_micros - before.expires_micros) <= _SAME_WITHIN_MICROS
        expires_micros = before.expires_micros if is_rounded else expires_micros
    return Facts(
        _first(after.qos_profile, before.qos_profile),
        _first(after.duration_seconds, before.duration_seconds),
        expires_micros,
        _first(before.device_hash, after.device_hash),
        _first(before.device, after.device),
    )


def _first(one: T | None, other: T | None) -> T | None:
    return other if one is None else one


def _micros(text: str | None) -> int | None:
    if text is None:
        return None
    with suppress(ValueError, OverflowError):
        micros = rfc3339.micros(text)
        if micros in rfc3339.WRITABLE_MICROS:
            return micros
    raise Malformed("expiresAt is no RFC 3339 time")


def _member(tree: Mapping[str, Any], name: str, kind: type) -> Any:  # noqa: ANN401  # of `kind`, or None
    value = tree.get(name)
    if value is not None and type(value) is not kind:
        raise Malformed(f"{name} is not of its type")
    return value
