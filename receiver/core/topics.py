"""The names of topics. Pure."""

from typing import NamedTuple

#: The topics that no route names, without the common prefix: where notifications are kept, the router's memory, and
#: its last resort.
INBOX = "inbox"
SESSIONS = "sessions"
DEAD_LETTER = "dead-letter"
RESERVED = frozenset({INBOX, SESSIONS, DEAD_LETTER})


class TopicNames(NamedTuple):
    """The full names of the topics that have a prefix in common."""

    prefix: str

    def full(self, name: str) -> str:
        """The full name of a topic, given the name without the prefix."""
        return f"{self.prefix}.{name}"

    def spelled(self, name: str) -> str:
        """The full name of a topic that somebody spelled, with the prefix or without."""
        return name if self.is_ours(name) else self.full(name)

    def is_ours(self, topic: str) -> bool:
        """Whether a name has the prefix."""
        return topic.startswith(f"{self.prefix}.")

    @property
    def inbox(self) -> str:
        """Where notifications are kept in a cluster."""
        return self.full(INBOX)

    @property
    def sessions(self) -> str:
        """Where a session's record is."""
        return self.full(SESSIONS)

    @property
    def dead_letters(self) -> str:
        """Where what can't be decided on goes."""
        return self.full(DEAD_LETTER)
