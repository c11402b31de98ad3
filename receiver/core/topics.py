"""The names of topics. Pure."""

from typing import NamedTuple

#: The topics that are not routes, without the common prefix: the notifications, the router's memory, and its last
#: resort.
INBOX = "inbox"
SESSIONS = "sessions"
DEAD_LETTER = "dead-letter"
RESERVED = frozenset({INBOX, SESSIONS, DEAD_LETTER})


class TopicNames(NamedTuple):
    """The full names of topics with a common prefix."""

    prefix: str

    def full(self, name: str) -> str:
        """The full name of a topic, given the name without the prefix."""
        return f"{self.prefix}.{name}"

    def spelled(self, name: str) -> str:
        """The full name of a topic given with or without the prefix."""
        return name if self.is_ours(name) else self.full(name)

    def is_ours(self, topic: str) -> bool:
        """Whether a name has the prefix."""
        return topic.startswith(f"{self.prefix}.")

    @property
    def inbox(self) -> str:
        """The topic of notifications, in a cluster."""
        return self.full(INBOX)

    @property
    def sessions(self) -> str:
        """The topic of sessions' records."""
        return self.full(SESSIONS)

    @property
    def dead_letters(self) -> str:
        """The topic of notifications that could not be used."""
        return self.full(DEAD_LETTER)
