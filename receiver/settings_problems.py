"""Faults in settings, each with its place."""

from collections.abc import Sequence
from typing import NamedTuple


class Problem(NamedTuple):
    """A setting that can't be used: its dotted path, where its value came from, and what is allowed there."""

    setting: str
    place: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.setting} ({self.place}): {self.allowed}"


class SettingsError(Exception):
    """The settings are wrong; `problems` lists every fault."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems
