"""Value: what the core takes and returns. Pure."""

from typing import Any, Self

import msgspec


class Value(msgspec.Struct, frozen=True, gc=False):
    """A frozen value: equal to another where all of its members are.

    It costs a fifth of a named tuple to make. The collector does not look into it, since no value is in a circle.
    """

    def _replace(self, **changes: Any) -> Self:  # noqa: ANN401  # of the members' types
        """The value with other members, as named tuples have it."""
        return msgspec.structs.replace(self, **changes)
