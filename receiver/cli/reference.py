"""The reference of all settings and all metrics, made of what declares them, as Markdown: `deploy/reference.md`."""

from collections.abc import Iterator
from typing import Any, get_args

from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from receiver.cli.toml import toml_of
from receiver.metrics import Metrics
from receiver.settings import ENV_PREFIX, OPTIONS, Settings
from receiver.settings_layers import SettingPath, allowed

_ENDINGS = {"counter": "_total", "info": "_info"}
_UNITS = {"seconds": "s", "hours": "h", "bytes": "byte", "per_second": "1/s"}

_HEAD = """\
# Reference

Written by `qod-receiver check-config --reference`: change what it is made of, in `receiver/settings*.py` and
`receiver/metrics.py`.

## Settings

A value comes from the first place that has it: the command line, the environment, the configuration file (TOML; a
table for each section below), the default. In the environment, lists and tables are JSON.
"""
_METRICS_HEAD = """\
## Metrics

On the operations port, `/metrics`, for Prometheus. A histogram has `_bucket`, `_sum` and `_count` behind its name.

| metric | kind | labels | meaning |
| --- | --- | --- | --- |
"""


def reference() -> str:
    """All of it."""
    sections = [
        _section(path, section, words)
        for path, section, words in _sections((), Settings, "They stand before the first table.")
    ]
    return f"{_HEAD}\n{''.join(sections)}{_METRICS_HEAD}{''.join(_metrics())}"


def _sections(path: SettingPath, section: type[BaseModel], words: str) -> Iterator[tuple[SettingPath, Any, str]]:
    """A section and those in it, each with its place and what it is for."""
    yield path, section, words or " ".join((section.__doc__ or "").split())
    for name, field in section.model_fields.items():
        member, is_list = _section_in(field)
        if member is not None:
            below = (*path, name, 0) if is_list else (*path, name)
            yield from _sections(below, member, f"{field.description}. {member.__doc__}" if is_list else "")


def _section(path: SettingPath, section: type[BaseModel], words: str) -> str:
    dotted = ".".join(part for part in path if isinstance(part, str))
    table = f"[[{dotted}]]" if any(isinstance(part, int) for part in path) else f"[{dotted}]"
    title = f"### `{table}`" if dotted else "### Without a table"
    lines = [title, "", words, "", "| setting | meaning | default | allowed | unit | environment |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name, field in section.model_fields.items():
        if _section_in(field)[0] is None:
            lines.append(f"| {' | '.join(_row((*path, name), field))} |")
    lines += ["", ""]
    return "\n".join(lines)


def _row(path: SettingPath, field: FieldInfo) -> Iterator[str]:
    name = str(path[-1])
    option = OPTIONS.get(".".join(map(str, path)))
    yield f"`{name}`"
    yield _cell(f"{field.description}{f'; on the command line `{option}`' if option else ''}")
    default = field.get_default(call_default_factory=False)
    yield "required" if field.is_required() else "not set" if default is None else f"`{_cell(toml_of(name, default))}`"
    yield _cell(allowed(Settings.model_json_schema(), path))
    yield next((unit for word, unit in _UNITS.items() if f"_{word}" in f"_{name}"), "")
    listed = next((at for at, part in enumerate(path) if isinstance(part, int)), None)
    variable = f"`{ENV_PREFIX}{'__'.join(map(str, path[:listed])).upper()}`"
    yield variable if listed is None else f"in {variable}"


def _section_in(field: FieldInfo) -> tuple[type[BaseModel] | None, bool]:
    """The section that a field is, or is a list of; and whether it is a list."""
    for annotation in (field.annotation, *get_args(field.annotation)):
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation, annotation is not field.annotation
    return None, False


def _metrics() -> Iterator[str]:
    metrics = Metrics()
    groups = [vars(each) for each in vars(metrics).values() if type(each).__module__ == Metrics.__module__]
    for metric in (each for group in [*groups, vars(metrics)] for each in group.values()):
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            name = f"{family.name}{_ENDINGS.get(family.type, '')}"
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)  # noqa: SLF001  # told nowhere else
            yield f"| `{name}` | {family.type} | {labels} | {_cell(family.documentation)} |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
