"""Headers that the configuration adds to our requests, such as the key of a gateway. Pure."""

import re
from collections.abc import Mapping

from pydantic import SecretStr

_HEADERS_MAX = 16
_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,100}")
_VALUE = re.compile(r"[!-~]([ -~]{0,4094}[!-~])?")
#: A request has these anyway, or they belong to the connection.
_OWN = frozenset(
    [
        "accept",
        "accept-encoding",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "expect",
        "host",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-correlator",
    ]
)


def more_headers(headers: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
    """The same headers under lower-case names. Raises ValueError, with a message that quotes no value."""
    found = {name.lower(): value for name, value in headers.items()}
    if len(headers) > _HEADERS_MAX or len(found) < len(headers):
        raise ValueError(f"at most {_HEADERS_MAX} headers, each once")
    for name, value in found.items():
        if not _NAME.fullmatch(name) or name in _OWN:
            raise ValueError(f"header names, except {', '.join(sorted(_OWN))}")
        if not _VALUE.fullmatch(value.get_secret_value()):
            raise ValueError(f"1 to 4096 visible ASCII characters as the value of {name}, with blanks within")
    return found
