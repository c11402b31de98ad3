"""Values of settings as TOML, with secrets hidden."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import tomlkit
from pydantic import SecretStr

from receiver.shown import HIDDEN, shown_url

#: This many digits of a hash identify it.
_SHA256_SHOWN = 8


def toml_of(name: str, value: object) -> str:
    """The value of a setting, given the last part of the setting's name."""
    return str(tomlkit.item(_plain(name, value)).as_string())


def _plain(name: str, value: Any) -> Any:  # noqa: ANN401  # a setting may have many types
    """The value in types that TOML has, with secrets hidden."""
    match value:
        case SecretStr():
            return HIDDEN
        case bool() | int() | float() | datetime():
            return value
        case Mapping():
            table = tomlkit.inline_table()
            table.update({key: _plain(key, member) for key, member in value.items()})
            return table
        case tuple():
            return [_plain(name, member) for member in value]
        case str() if name.endswith("sha256"):
            return f"{value[:_SHA256_SHOWN]}…"
        case _:
            return shown_url(str(value))
