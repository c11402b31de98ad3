"""URLs with their secrets hidden, for people and logs. Pure."""

import re

HIDDEN = "**********"
_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://)(?:([^/?#:]*)(?::([^/?#]*))?@)?([^?#]*)(\?[^#]*)?(#.*)?", re.DOTALL)


def shown_url(text: str) -> str:
    """A URL with its password and the values of its query hidden; any other text unchanged."""
    found = _URL.fullmatch(text)
    if found is None:
        return text
    scheme, user, password, rest, query, fragment = found.groups(default="")
    credentials = f"{user}:{HIDDEN}@" if password else user and f"{HIDDEN}@"
    hidden = re.sub(r"=[^&;]+", f"={HIDDEN}", query) if "=" in query else query and f"?{HIDDEN}"
    return f"{scheme}{credentials}{rest}{hidden}{fragment and f'#{HIDDEN}'}"
