"""Our own secrets: one signs minted tokens, one hashes devices.

Each is the configured one, else a file in the data directory, made when first needed. `serve` and another command may
both be the first, at once: the first to link the file into place wins, and the other reads it.
"""

import secrets
from pathlib import Path

from pydantic import SecretStr

from receiver.backends.directory import make_directory, write_durably
from receiver.core.errors import Unavailable
from receiver.settings import Settings

FILE_NAME = "token-secret"
DEVICE_KEY_FILE_NAME = "device-key"

_LENGTH_MIN = 32


def mint_secret(settings: Settings) -> bytes:
    """The secret that signs minted tokens. Raises Unavailable where its file can't be read or made."""
    return _secret(settings.auth.mint_secret, settings.data / FILE_NAME)


def device_key(settings: Settings) -> bytes:
    """The key that devices are hashed with. Raises Unavailable where its file can't be read or made."""
    return _secret(settings.api.device_key, settings.data / DEVICE_KEY_FILE_NAME)


def is_made(settings: Settings) -> bool:
    """Whether the secret for tokens exists already, so that a token may have been minted."""
    return settings.auth.mint_secret is not None or (settings.data / FILE_NAME).exists()


def _secret(configured: SecretStr | None, path: Path) -> bytes:
    if configured is not None:
        return configured.get_secret_value().encode()
    try:
        if not path.exists():
            make_directory(path.parent)
            # Durably: if a power cut removed the secret, tokens that were minted with it would be refused.
            write_durably(path, secrets.token_hex(32).encode(), is_new=True)
        secret = path.read_bytes().strip()
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}", reason="credentials") from error
    if len(secret) < _LENGTH_MIN:
        raise Unavailable(f"{path} is too short for a secret: under {_LENGTH_MIN} bytes", reason="credentials")
    return secret
