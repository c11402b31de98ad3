"""The log: its set-up, one format for the program and its libraries, and a rate limit for lines strangers can cause."""

import asyncio
import logging
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, TextIO

import orjson
import structlog

#: Strangers can cause any number of refusals.
_SELDOM_MAX = 10
_SELDOM_SECONDS = 10.0


class Seldom:
    """Writes log lines at a bounded rate: of each kind _SELDOM_MAX in _SELDOM_SECONDS, then the number of the others.
    Callers choose the kinds.
    """

    def __init__(self, write: Callable[..., Any]) -> None:
        self._write = write
        self._counts: Counter[str] = Counter()

    def __call__(self, kind: str, event: str, **fields: str | float) -> None:
        """Write a line, or only count it after many of its kind. Needs a running event loop."""
        self._counts[kind] += 1
        count = self._counts[kind]
        if count == 1:
            asyncio.get_running_loop().call_later(_SELDOM_SECONDS, self._tell, kind, event)
        if count <= _SELDOM_MAX:
            self._write(event, **fields)

    def _tell(self, kind: str, event: str) -> None:
        count = self._counts.pop(kind) - _SELDOM_MAX
        if count > 0:
            self._write(f"{event}_more", what=kind, count=count, seconds=_SELDOM_SECONDS)


def log_format_of(wanted: Literal["auto", "json", "console"]) -> Literal["json", "console"]:
    """The format for `wanted`, with `auto` resolved: console on a terminal, else JSON."""
    if wanted == "auto":
        return "console" if sys.stderr.isatty() else "json"
    return wanted


def configure_log(level: str, log_format: Literal["json", "console"], stream: TextIO = sys.stderr) -> None:
    """Send the log of the program and of its libraries to `stream`, in one format."""
    before: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any
    if log_format == "console":
        # A traceback with the values of variables would show tokens and bodies.
        renderer = structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    else:
        before.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer(serializer=lambda fields, **_: orjson.dumps(fields).decode())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # uvicorn's INFO lines repeat what our own lines say better.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    # aiokafka logs errors for what it retries in a moment; failures that matter are in our own lines.
    logging.getLogger("aiokafka").setLevel(logging.DEBUG if level == "debug" else logging.CRITICAL)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *before,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
