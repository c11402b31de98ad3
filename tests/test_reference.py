"""The reference in `deploy/` is the program's present output."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from receiver import settings, settings_auth
from receiver.cli.reference import reference
from receiver.settings_fields import Section

FILE = Path(__file__).parent.parent / "deploy" / "reference.md"
SECTIONS = [
    each
    for module in (settings, settings_auth)
    for each in vars(module).values()
    if isinstance(each, type) and issubclass(each, BaseModel) and each is not Section
]


def test_the_reference_is_of_today() -> None:
    """`deploy/reference.md` has every setting and every metric as the program declares it."""
    assert FILE.read_text() == reference(), "write it anew: qod-receiver check-config --reference > deploy/reference.md"


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_setting_says_what_it_is_for(section: type[BaseModel]) -> None:
    """Each setting that is not a table of settings has a description, and each table a docstring."""
    assert section.__doc__
    fields = section.model_fields.items()
    bare = [name for name, field in fields if not field.description and not isinstance(field.default, BaseModel)]
    assert not bare, f"describe {bare}"
