"""`check-config`: the faults of the settings, or the settings in force."""

from collections.abc import Iterator
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.text import Text

from receiver.cli.options import ConfigOption, DataOption, KafkaOption, overrides
from receiver.cli.toml import toml_of
from receiver.console import console
from receiver.settings import Settings, layers
from receiver.settings_layers import Layers, SettingPath

#: The column of the comments in a printed tree.
_COMMENT_COLUMN = 40


def check_config(
    *,
    config: ConfigOption = None,
    data: DataOption = None,
    kafka: KafkaOption = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Print a reference of all settings and metrics (Markdown), and exit.")
    ] = False,
) -> None:
    """Name every wrong setting, or print the settings in force."""
    if reference:
        from receiver.cli.reference import reference as all_of_them  # noqa: PLC0415  # it imports the metrics

        typer.echo(all_of_them(), nl=False)
        return
    places = layers(config, overrides(data=data, kafka=kafka))
    settings = places.settings()
    out = console()
    out.print("configuration is valid", style="green")
    out.print(_text(settings, places), soft_wrap=True)


def _text(settings: Settings, layers: Layers[Settings]) -> Text:
    """The tree in force as TOML, each value with its place, secrets hidden."""
    text = Text()
    for line, place in _table(settings, layers, ()):
        text.append(line)
        if place:
            text.append(f"{' ' * max(2, _COMMENT_COLUMN - len(line))}# {place}", style="dim")
        text.append("\n")
    return text


def _table(section: BaseModel, layers: Layers[Settings], path: SettingPath) -> Iterator[tuple[str, str]]:
    """Lines of TOML, each with a comment (empty: none): first the section's own values, then the tables in it."""
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
                yield f"{name} = {toml_of(name, value)}", layers.place(here) or "default"
    for header, here, member in tables:
        yield "", ""
        yield header, ""
        yield from _table(member, layers, here)


def _header(path: SettingPath) -> str:
    return ".".join(part for part in path if isinstance(part, str))
