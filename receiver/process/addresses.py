"""Where the process that serves a directory listens: a file in the directory tells other commands."""

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
    """Where a serving process listens."""

    edge_url: str  # empty where senders can't post
    ops_url: str


def served_at(directory: Path) -> Addresses | None:
    """Where the process listens that serves a directory, None where none does."""
    try:
        Lock(directory).release()
    except OSError:
        return None
    except Unavailable:
        try:
            told = json.loads((directory / ADDRESSES_FILE).read_bytes())
        except (OSError, ValueError):
            message = f"another process serves {directory} and could not write there where it listens"
            raise Unavailable(message, reason="locked") from None
        return Addresses(told["edge_url"], told["ops_url"])
    return None


@contextlib.contextmanager
def announced(directory: Path, addresses: Addresses, failed: Callable[[str], None]) -> Iterator[None]:
    """A block in which `served_at` finds these addresses; `failed` is told why it won't."""
    file = directory / ADDRESSES_FILE
    try:
        file.unlink(missing_ok=True)  # of a process that was killed
        make_private(str(file))
        file.write_text(json.dumps({"pid": os.getpid(), **addresses._asdict()}))
    except OSError as error:  # other commands don't find this process then; what it does goes on
        failed(error.strerror or "")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
