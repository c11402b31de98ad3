"""The true record: every change of every session, every post and its answer, and every post never made.

A test compares it with a receiver's topics, from outside. It is bounded: the oldest entries go first, and are counted.
It holds no secret: no token, and no query of a URL.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from receiver.core import rfc3339
from receiver.simulator.sessions import Session, Status


class Told(NamedTuple):
    """The content of a post and its faults: everything known before it is made. See `Entry.fields`."""

    session: int
    session_id: str
    step: int
    copy: int
    attempt: int
    release: str
    event_id: str | None
    event_type: str
    qos_status: str
    status_info: str | None
    time: str | None
    happened_micros: int
    repeats: int | None
    sent: str
    unsent: str | None
    malformed: str | None
    authorization: str | None
    odd: str | None
    faults: Sequence[str]
    body_sha256: str | None


@dataclass(eq=False, slots=True)
class Entry:
    """A post, made or never made."""

    sequence: int
    told: Told
    posted_micros: int | None = None
    answer: int | None = None
    failure: str | None = None
    seconds: float | None = None
    is_done: bool = False

    @property
    def correlator(self) -> str:
        """The x-correlator of this post, unique in a run."""
        return f"simulator-{self.sequence}"

    def fields(self) -> dict[str, Any]:
        """The entry as a JSON object.

        `session` is the session's number and `step` that of the change in it; `copy` 0 is the original, and `attempt`
        counts from 1. `repeats` is the sequence of the first post of the same change. `eventId`, `statusInfo` and
        `time` are as told, null if not told; `happenedAt` is the time of the change. `sent` is whole, cut off or
        nothing; `unsent` says why nothing. `answer` is a status, and `failure` the reason for a missing one; both are
        null if the sender did not wait for an answer, and until `done`.
        """
        told = self.told
        return {
            "sequence": self.sequence,
            "session": told.session,
            "sessionId": told.session_id,
            "step": told.step,
            "copy": told.copy,
            "attempt": told.attempt,
            "release": told.release,
            "eventId": told.event_id,
            "eventType": told.event_type,
            "qosStatus": told.qos_status,
            "statusInfo": told.status_info,
            "time": told.time,
            "happenedAt": rfc3339.render(told.happened_micros),
            "repeats": told.repeats,
            "sent": told.sent,
            "unsent": told.unsent,
            "malformed": told.malformed,
            "authorization": told.authorization,
            "odd": told.odd,
            "faults": list(told.faults),
            "bodySha256": told.body_sha256,
            "correlator": None if self.posted_micros is None else self.correlator,
            "postedAt": None if self.posted_micros is None else rfc3339.render(self.posted_micros),
            "answer": self.answer,
            "failure": self.failure,
            "seconds": self.seconds,
            "done": self.is_done,
        }


class State(NamedTuple):
    """A true state of a session, and its beginning."""

    qos_status: Status
    status_info: str | None
    micros: int


@dataclass(eq=False, slots=True)
class Life:
    """A session and all its states."""

    session: Session
    release: str
    notification_url: str | None
    states: list[State] = field(default_factory=list)

    def fields(self) -> dict[str, Any]:
        """The session as a JSON object. `notificationUrl` lacks its query, which may hold a token."""
        url = self.notification_url
        return {
            "session": self.session.number,
            "sessionId": self.session.session_id,
            "client": self.session.client_id,
            "device": self.session.device,
            "qosProfile": self.session.qos_profile,
            "duration": self.session.duration_seconds,
            "release": self.release,
            "notificationUrl": None if url is None else urlsplit(url)._replace(query="").geturl(),
            "states": [
                {"qosStatus": status, "statusInfo": info, "at": rfc3339.render(micros)}
                for status, info, micros in self.states
            ],
        }


class Ledger:
    """All entries and sessions, the newest `entries_max` of each."""

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._entries: deque[Entry] = deque(maxlen=entries_max)
        self._lives: dict[int, Life] = {}
        self._entries_count = 0
        self._lives_count = 0
        self._answers: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._unsent: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()

    def created(self, session: Session, release: str, notification_url: str | None, micros: int) -> None:
        """A session was created."""
        if len(self._lives) == self._entries_max:
            del self._lives[next(iter(self._lives))]
        life = Life(session, release, notification_url, [State(session.status, None, micros)])
        self._lives[session.number] = life
        self._lives_count += 1

    def stepped(self, session: Session, micros: int) -> None:
        """A session changed its state."""
        if (life := self._lives.get(session.number)) is not None:
            life.session = session
            life.states.append(State(session.status, session.status_info, micros))

    def unsent(self, told: Told) -> None:
        """A post was not made, and never will be."""
        self._append(told).is_done = True
        self._unsent[told.unsent or ""] += 1

    def posting(self, told: Told, micros: int) -> Entry:
        """A post is being made."""
        entry = self._append(told)
        entry.posted_micros = micros
        return entry

    def posted(self, entry: Entry, answer: int | None, failure: str | None, seconds: float) -> None:
        """A post has its answer, or failed."""
        entry.answer, entry.failure, entry.seconds, entry.is_done = answer, failure, round(seconds, 6), True
        if answer is not None:
            self._answers[str(answer)] += 1
        elif failure is not None:
            self._failures[failure] += 1

    def entries(self, start: int, count: int) -> list[Entry]:
        """At most `count` entries from the sequence `start` on, or from the oldest that is kept."""
        first = self._entries_count - len(self._entries) + 1
        skipped = max(0, start - first)
        return [self._entries[place] for place in range(skipped, min(skipped + count, len(self._entries)))]

    def lives(self, start: int, count: int) -> list[Life]:
        """At most `count` sessions from the number `start` on, or from the oldest that is kept."""
        first = self._lives_count - len(self._lives) + 1
        numbers = range(max(start, first), min(max(start, first) + count, self._lives_count + 1))
        return [self._lives[number] for number in numbers]

    @property
    def dropped(self) -> Mapping[str, int]:
        """The numbers of entries and sessions that are no longer kept."""
        return {
            "entries": self._entries_count - len(self._entries),
            "sessions": self._lives_count - len(self._lives),
        }

    def summary(self) -> dict[str, Any]:
        """Counts since the start."""
        return {
            "sessions": self._lives_count,
            "entries": self._entries_count,
            "dropped": self.dropped,
            "answers": dict(sorted(self._answers.items())),
            "failures": dict(sorted(self._failures.items())),
            "unsent": dict(sorted(self._unsent.items())),
            "faults": dict(sorted(self._faults.items())),
        }

    def _append(self, told: Told) -> Entry:
        self._entries_count += 1
        entry = Entry(self._entries_count, told)
        self._entries.append(entry)
        self._faults.update(told.faults)
        return entry
