"""Layers: a tree of settings read from the command line, the environment and a TOML file, with its faults explained.

All faults are found at once. Each names the setting, the place of its value and the values allowed, in words made from
the tree's own JSON Schema. No value is ever repeated: a credential pasted into the wrong line stays out of the log.
"""

import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from receiver.settings_problems import Problem, SettingsError

_Tree = TypeVar("_Tree", bound=BaseModel)

#: A setting's place in the tree: names, and numbers in lists.
SettingPath = tuple[str | int, ...]

#: Variables with the settings' prefix that are not settings: the command line uses them.
_NO_SETTINGS = frozenset({"QOD_RECEIVER_CONFIG"})


class Layers(Generic[_Tree]):
    """The places that settings come from, kept apart so that each value's place can be told.

    A variable is named after a setting's path: `env_prefix`, then the path in capitals with `__` between the names.
    `options` has the command-line option of a dotted path. Raises SettingsError where the file is not TOML.
    """

    def __init__(
        self,
        tree: type[_Tree],
        config: Path | None,
        overrides: Mapping[str, object],
        options: Mapping[str, str],
        env_prefix: str,
    ) -> None:
        self._tree = tree
        self._config = config
        self._option_names = options
        self._env_prefix = env_prefix
        self._variable_names = {name.upper(): name for name in os.environ if name.upper().startswith(env_prefix)}
        text = "" if config is None else _read(config)
        try:
            self._file = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            line = re.search(r"at line (\d+)", str(error))
            place = f"{config}, line {line[1]}" if line else f"{config}, at its end"
            raise SettingsError([Problem("the file", place, "TOML, which this is not")]) from None
        self._lines = _lines(text)
        self._options = _nested(overrides)
        self._variables = self._read_variables()

    def settings(self) -> _Tree:
        """The settings, higher layers taking precedence over lower ones. Raises SettingsError."""
        problems = list(self._unknown_variables())
        try:
            settings = self._tree(**_over(self._options, _over(self._variables, self._file)))
        except ValidationError as error:
            details = error.errors(include_input=False, include_url=False)
            wrong_members = {detail["loc"][:-1] for detail in details}
            # pydantic also reports a list as too short when all its members are wrong: the same fault twice.
            problems += (
                self._problem(detail)
                for detail in details
                if detail["type"] != "too_short" or detail["loc"] not in wrong_members
            )
        if problems:
            raise SettingsError(problems)
        return settings

    def place(self, path: SettingPath) -> str | None:
        """The place of the value at `path`, as exactly as is known; None for a default."""
        if _has(self._options, path):
            name = ".".join(map(str, path))
            return f"{self._option_names.get(name, name)} on the command line"
        if _has(self._variables, path):
            names = (f"{self._env_prefix}{'__'.join(map(str, begin)).upper()}" for begin in _begins(path))
            if (variable := next((name for name in names if name in self._variable_names), None)) is not None:
                return f"{self._variable_names[variable]} in the environment"
        if _has(self._file, path):
            line = next((self._lines[begin] for begin in _begins(path) if begin in self._lines), None)
            return f"{self._config}, line {line}" if line else str(self._config)
        return None

    def _read_variables(self) -> dict[str, Any]:
        """The tree of the variables. A single setting takes precedence over a whole section given as JSON."""
        tree: dict[str, Any] = {}
        for variable, spelled in sorted(self._variable_names.items()):
            path = variable.removeprefix(self._env_prefix).lower().split("__")
            if path[0] in self._tree.model_fields:
                tree = _over(_nested({".".join(path): _decoded(self._tree, path, os.environ[spelled])}), tree)
        return tree

    def _unknown_variables(self) -> Iterator[Problem]:
        for variable, spelled in sorted(self._variable_names.items()):
            name = variable.removeprefix(self._env_prefix).split("__")[0].lower()
            if variable not in _NO_SETTINGS and name not in self._tree.model_fields:
                yield Problem(name, f"{spelled} in the environment", _unknown(name, self._tree.model_fields))

    def _problem(self, detail: ErrorDetails) -> Problem:
        path, schema = detail["loc"], self._tree.model_json_schema()
        match detail["type"]:
            case "extra_forbidden":
                words = _unknown(str(path[-1]), describe(schema, path[:-1]).get("properties", {}))
            case "value_error":
                words = str(detail["ctx"]["error"])
            case "missing":
                words = f"required: {allowed(schema, path)}"
            case _:
                words = allowed(schema, path)
        place = self.place(path[:-1] if detail["type"] == "missing" else path)
        return Problem(_dotted(path), place or "not set", words)


def _over(higher: Mapping[str, Any], lower: Mapping[str, Any]) -> dict[str, Any]:
    """Both trees merged, the higher's values in place of the lower's."""
    both = dict(lower)
    for name, value in higher.items():
        below = lower.get(name)
        both[name] = _over(value, below) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return both


def _decoded(tree: Any, path: Sequence[str], text: str) -> object:  # noqa: ANN401  # an annotation
    """A variable's value: decoded JSON where a list or a table is wanted, else the text. Validation finds bad JSON."""
    for name in path:
        fields: Mapping[str, Any] = next(
            (each.model_fields for each in (tree, *get_args(tree)) if _is_kind(each, BaseModel)), {}
        )
        tree = fields[name].annotation if name in fields else None
    if any(_is_kind(get_origin(each) or each, (BaseModel, tuple, Mapping)) for each in (tree, *get_args(tree))):
        with suppress(ValueError):
            return json.loads(text)
    return text


def _is_kind(annotation: Any, kinds: Any) -> bool:  # noqa: ANN401  # what annotations are
    return isinstance(annotation, type) and issubclass(annotation, kinds)


def _read(config: Path) -> str:
    try:
        return config.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError([Problem("the file", str(config), f"a file that can be read: {error.strerror}")]) from None
    except UnicodeDecodeError:
        raise SettingsError([Problem("the file", str(config), "text in UTF-8")]) from None


def _lines(text: str) -> dict[SettingPath, int]:
    """The line of each table and each setting of a TOML text. Parts of a value have no line of their own."""
    lines: dict[SettingPath, int] = {}
    table: SettingPath = ()
    counts: dict[SettingPath, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        is_header = line.lstrip().startswith("[")
        try:
            tree = tomllib.loads(line if is_header else f"{line.partition('=')[0]}=0" if "=" in line else "")
        except tomllib.TOMLDecodeError:
            continue  # a line within a longer value
        path: SettingPath = () if is_header else table
        while isinstance(tree, dict) and tree:
            (name, value), *_ = tree.items()
            path = (*path, name)
            lines.setdefault(path, number)
            if isinstance(value, list):  # [[name]]: one more element
                counts[path] = counts.get(path, -1) + 1
                path, value = (*path, counts[path]), value[0]
            elif is_header and value and path in counts:  # [name.below]: belongs to the latest element
                path = (*path, counts[path])
            tree = value
        if is_header:
            table = path
        lines.setdefault(path, number)
    return lines


def _nested(flat: Mapping[str, object]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *sections, name = path.split(".")
        section = tree
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return tree


def _has(layer: object, path: SettingPath) -> bool:
    for part in path:
        if isinstance(part, int):
            if not isinstance(layer, Sequence) or part >= len(layer):
                return False
            layer = layer[part]
        else:
            if not isinstance(layer, Mapping) or part not in layer:
                return False
            layer = layer[part]
    return True


def _begins(path: SettingPath) -> Iterator[SettingPath]:
    """The path and its prefixes, longest first."""
    return (path[:length] for length in range(len(path), 0, -1))


def _dotted(path: SettingPath) -> str:
    """The path as text, such as `auth.tokens[0].sha256`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _unknown(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"no such setting; did you mean {near[0]}?" if near else f"no such setting; there are {', '.join(known)}"


def describe(schema: Mapping[str, Any], path: SettingPath) -> Mapping[str, Any]:
    """The part of the tree's JSON Schema for the setting at `path`; empty if there is none."""
    here = schema
    for part in (None, *path):
        if isinstance(part, str):
            here = here.get("properties", {}).get(part, {})
        elif isinstance(part, int):
            here = here.get("items", {})
        kinds = [kind for kind in here.get("anyOf", ()) if kind.get("type") != "null"]
        here = {**here, **kinds[0]} if kinds else here
        if "$ref" in here:
            here = {**here, **schema["$defs"][here["$ref"].rpartition("/")[2]]}
    return here


def allowed(schema: Mapping[str, Any], path: SettingPath) -> str:  # noqa: PLR0911  # a table of shapes
    """The values allowed at `path`, in words."""
    match describe(schema, path):
        case {"allowed": str(words)}:
            return words
        case {"enum": [*words]}:
            return f"one of {', '.join(words)}"
        case {"type": "integer" | "number" as kind, "minimum": least, "maximum": most}:
            return f"a {'whole ' if kind == 'integer' else ''}number from {least} to {most}"
        case {"type": "boolean"}:
            return "true or false"
        case {"type": "array", **rest}:
            return f"a list{', not empty' if rest.get('minItems') else ''}, each element {allowed(schema, (*path, 0))}"
        case {"type": "object", "properties": names}:
            return f"a table of {', '.join(names)}"
        case {"format": "date-time"}:
            return "a time with its zone, such as 2026-01-31T00:00:00Z"
        case {"minLength": int(least)} if least > 1:
            return f"text of at least {least} characters"
        case _:
            return "text"
