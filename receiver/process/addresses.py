"""The addresses of the process that serves a directory: a file in the directory holds them for other commands."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from receiver.backends.directory import Lock, make_private
from receiver.core.errors import Unavailable

ADDRESSES_FILE = "serve.json"


class Addresses(NamedTuple):
    """The URLs on which a serving process listens."""

    edge_url: str  # empty if senders can't post
    ops_url: str


def served_at(directory: Path) -> Addresses | None:
    """The addresses of the process that serves a directory; None if none does. Raises Unavailable if unknown."""
    try:
        Lock(directory).release()
    except OSError:
        return None
    except Unavailable:
        try:
            told = json.loads((directory / ADDRESSES_FILE).read_bytes())
        except (OSError, ValueError):
            message = f"another process serves {directory} and could not write its addresses there"
            raise Unavailable(message, reason="locked") from None
        return Addresses(told["edge_url"], told["ops_url"])
    return None


@contextlib.contextmanager
def announced(directory: Path, addresses: Addresses, failed: Callable[[str], None]) -> Iterator[None]:
    """A block in which `served_at` finds these addresses; `failed` is told the reason if it can't."""
    file = directory / ADDRESSES_FILE
    try:
        file.unlink(missing_ok=True)  # left by a process that was killed
        make_private(str(file))
        file.write_text(json.dumps({"pid": os.getpid(), **addresses._asdict()}))
    except OSError as error:  # other commands will not find this process, but it goes on
        failed(error.strerror or "")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
