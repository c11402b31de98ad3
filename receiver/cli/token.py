"""`token`: mints tokens for senders."""

import re
import time
from typing import Annotated

import typer

from receiver.cli.options import ConfigOption, DataOption, settings_of
from receiver.edge import auth
from receiver.secret_file import mint_secret

_TTL = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_TTL_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_TTL_SECONDS_MAX = 3_650 * 86_400


def mint(
    *,
    sender: Annotated[str, typer.Option(help="Name of its sender.", show_default=False, metavar="NAME")],
    ttl: Annotated[str, typer.Option(help="How long it is valid: 90s, 15m, 12h or 30d.", metavar="TIME")] = "30d",
    data: DataOption = None,
    config: ConfigOption = None,
) -> None:
    """Mint a token that `serve` on the same directory accepts, and print it alone."""
    ttl_seconds = _ttl_seconds(ttl)
    try:
        typer.echo(auth.mint(mint_secret(settings_of(config, data=data)), sender, ttl_seconds, time.time()))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--sender") from None


def _ttl_seconds(text: str) -> int:
    found = _TTL.fullmatch(text)
    seconds = int(found[1]) * _TTL_UNITS[found[2]] if found else 0
    if not 0 < seconds <= _TTL_SECONDS_MAX:
        raise typer.BadParameter(
            f"{text!r} is not a time such as 90s, 15m, 12h or 30d, at most 3650d", param_hint="--ttl"
        )
    return seconds
