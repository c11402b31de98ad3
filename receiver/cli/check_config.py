"""`check-config`: what is wrong with the settings, or what they are."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import tomlkit
from pydantic import BaseModel, SecretStr
from rich.text import Text

from receiver.cli.options import ConfigOption, DataOption, KafkaOption, overrides
from receiver.console import console
from receiver.settings import Settings, layers
from receiver.settings_layers import Layers, SettingPath
from receiver.shown import HIDDEN, shown_url

#: Where the comments of a printed tree begin.
_COMMENT_COLUMN = 40
#: So much of a hash tells which it is.
_SHA256_SHOWN = 8


def check_config(config: ConfigOption = None, data: DataOption = None, kafka: KafkaOption = None) -> None:
    """Name every wrong setting, or print the settings in force."""
    places = layers(config, overrides(data=data, kafka=kafka))
    settings = places.settings()
    out = console()
    out.print("configuration is valid", style="green")
    out.print(_text(settings, places), soft_wrap=True)


def _text(settings: Settings, layers: Layers[Settings]) -> Text:
    """The tree in force as TOML, each value with its place, and no secret in it."""
    text = Text()
    for line, place in _table(settings, layers, ()):
        text.append(line)
        if place:
            text.append(f"{' ' * max(2, _COMMENT_COLUMN - len(line))}# {place}", style="dim")
        text.append("\n")
    return text


def _table(section: BaseModel, layers: Layers[Settings], path: SettingPath) -> Iterator[tuple[str, str]]:
    """Lines of TOML, each with what to say behind it: first the section's own values, then the tables in it."""
    tables: list[tuple[str, SettingPath, BaseModel]] = []
    for name in type(section).model_fields:
        value, here = getattr(section, name), (*path, name)
        match value:
            case BaseModel():
                tables.append((f"[{_header(here)}]", here, value))
            case (BaseModel(), *_):
                tables += ((f"[[{_header(here)}]]", (*here, at), member) for at, member in enumerate(value))
            case None:
                yield f"# {name} is not set", ""
            case _:
                yield f"{name} = {tomlkit.item(_plain(name, value)).as_string()}", layers.place(here) or "default"
    for header, here, member in tables:
        yield "", ""
        yield header, ""
        yield from _table(member, layers, here)


def _header(path: SettingPath) -> str:
    return ".".join(part for part in path if isinstance(part, str))


def _plain(name: str, value: Any) -> Any:  # noqa: ANN401  # a setting is of any of many types
    """A value as it may be shown, made of what TOML knows."""
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
