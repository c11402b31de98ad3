"""The secret that signs minted tokens: the configured one, else a file in the data directory, made when first needed.

`serve` and `token mint` may both be the first, at once: whoever links the file into place wins, and the other reads it.
"""

import os
import secrets
from pathlib import Path

from receiver.errors import Unavailable
from receiver.settings import Settings

FILE_NAME = "token-secret"

_LENGTH_MIN = 32


def mint_secret(settings: Settings) -> bytes:
    """The secret of these settings. Raises Unavailable where its file can't be read or made."""
    if settings.auth.mint_secret is not None:
        return settings.auth.mint_secret.get_secret_value().encode()
    path = settings.data / FILE_NAME
    try:
        if not path.exists():
            _make(path)
        secret = path.read_bytes().strip()
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}", reason="credentials") from error
    if len(secret) < _LENGTH_MIN:
        raise Unavailable(f"{path} is no secret: it has less than {_LENGTH_MIN} bytes", reason="credentials")
    return secret


def is_made(settings: Settings) -> bool:
    """Whether there is a secret already, so that a token may have been minted."""
    return settings.auth.mint_secret is not None or (settings.data / FILE_NAME).exists()


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    unfinished.touch(0o600, exist_ok=False)
    try:
        with unfinished.open("wb") as file:
            file.write(secrets.token_hex(32).encode())
            file.flush()
            # A token that outlives its secret would be refused after a power cut.
            os.fsync(file.fileno())
        path.hardlink_to(unfinished)
    except FileExistsError:
        return
    finally:
        unfinished.unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
