"""`demo`: a receiver of its own, and a simulated operator that notifies it."""

from typing import Annotated

import typer
import uvloop

from receiver.console import console
from receiver.demo import demonstrate


def demo(
    *,
    seconds: Annotated[int, typer.Option(min=3, max=3600, help="How long to play.", metavar="SECONDS")] = 20,
    sessions: Annotated[int, typer.Option(min=1, max=1000, help="How many sessions to play.", metavar="COUNT")] = 12,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port for notifications; 0 is a free one.", metavar="PORT")
    ] = 0,
) -> None:
    """Play sessions against a receiver of its own, and watch what is routed."""
    if not uvloop.run(demonstrate(console(), seconds, sessions, port)):
        raise typer.Exit(1)
