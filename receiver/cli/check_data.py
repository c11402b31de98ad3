"""`check-data`: whether everything in a directory can be read."""

import orjson
import typer

from receiver.backends.sqlite.check import Checked, Finding, check
from receiver.cli.failed import Failed
from receiver.cli.options import ConfigOption, DataOption, JsonOption, s, settings_of
from receiver.console import harmless


def check_data(*, data: DataOption = None, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Read all of a data directory, and name what is damaged or lost. Exit status 1 if anything is."""
    settings = settings_of(config, data=data)
    wrong_count = files_count = 0
    for each in check(settings.data, settings.prefix):
        wrong_count += isinstance(each, Finding)
        files_count += isinstance(each, Checked) and not each.is_set_aside
        if as_json:
            kind = "wrong" if isinstance(each, Finding) else "set aside" if each.is_set_aside else "checked"
            typer.echo(orjson.dumps({"kind": kind, **each._asdict()}).decode())
        else:
            typer.echo(harmless(_line(each)))
    if not files_count:
        raise Failed(f"nothing is kept in {settings.data}; --data names another directory")
    if wrong_count:
        raise typer.Exit(1)


def _line(each: Finding | Checked) -> str:
    if isinstance(each, Finding):
        return f"{each.file}: {f'{each.place}: ' if each.place else ''}{each.what}"
    if each.is_set_aside:
        return f"{each.file}: set aside because it was damaged"
    return f"{each.file}: {each.rows_count} row{s(each.rows_count)} can be read"
