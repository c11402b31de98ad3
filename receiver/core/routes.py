"""The table of routes: which decision goes to which topics. Pure.

The sessions and dead-letter topics are not routes: they are the router's memory and its last resort, and no
configuration can remove them. See `router.py`.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from receiver.core.event import Event, QosStatus
from receiver.core.session import Verdict


class Route(NamedTuple):
    """Sends the events that meet every condition to `topic`, a name without the common prefix.

    Any one of its values meets a condition; None is no condition. `event_types` are spelled as the senders spell
    them; `*` stands for any characters.
    """

    topic: str
    verdicts: frozenset[Verdict] = frozenset({Verdict.ACCEPTED})
    senders: frozenset[str] | None = None
    qos_statuses: frozenset[QosStatus] | None = None
    status_infos: frozenset[str] | None = None
    unexpected: bool | None = None
    event_types: tuple[str, ...] | None = None

    def matches(self, verdict: Verdict, event: Event, sender: str) -> bool:
        """Whether the event meets every condition."""
        return (
            verdict in self.verdicts
            and (self.senders is None or sender in self.senders)
            and (self.qos_statuses is None or event.qos_status in self.qos_statuses)
            and (self.status_infos is None or event.status_info in self.status_infos)
            and (self.unexpected is None or event.unexpected is self.unexpected)
            and (self.event_types is None or any(fnmatchcase(event.type, pattern) for pattern in self.event_types))
        )


#: All changes, late ones marked, for analytics; and the ends alone, for alerting.
DEFAULT_ROUTES = (
    Route("status", verdicts=frozenset({Verdict.ACCEPTED, Verdict.LATE})),
    Route("unavailable", qos_statuses=frozenset({QosStatus.UNAVAILABLE})),
)


def targets(routes: Sequence[Route], verdict: Verdict, event: Event, sender: str) -> list[str]:
    """The topics, without prefix, that an event with this verdict goes to, each once, in the table's order."""
    topics: list[str] = []
    for route in routes:
        if route.matches(verdict, event, sender) and route.topic not in topics:
            topics.append(route.topic)
    return topics
