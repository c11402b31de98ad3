"""The promises that must hold after every life, checked against the disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import apsw
import orjson

from receiver.backends.sqlite.file import SqliteFile
from receiver.backends.sqlite.view import SqliteView
from receiver.core.message import Message
from receiver.core.notification import Notification
from tests.simulation.oracle import Kept, Remembered, Row, Truth, session_value
from tests.simulation.senders import Facts, Post

PREFIX = "qod"
SESSIONS = f"{PREFIX}.sessions"
FORGET_SECONDS = 60
MARKS_MAX = 6

_EVERYTHING = 1_000_000


class Violation(Exception):
    """A promise is broken."""


@dataclass(eq=False)
class Attempt:
    """One request: when it was sent, when it was answered and how, by the number of the event."""

    post: Post
    began: int
    answered: int | None = None
    status: int | None = None

    @property
    def promised(self) -> bool:
        """Whether the answer says that the notification was kept."""
        return self.status == 204 or (self.status in {400, 415} and self.post.facts.kind == "malformed")


class History:
    """All that was ever seen in the inbox and on the topics, which retention removes from the disk."""

    def __init__(self) -> None:
        self.inbox: dict[int, Notification] = {}
        self.topics: dict[str, dict[int, Message]] = {}

    def copy(self) -> "History":
        """An independent copy."""
        other = History()
        other.inbox = self.inbox.copy()
        other.topics = {topic: known.copy() for topic, known in self.topics.items()}
        return other

    def record(self, view: SqliteView) -> None:
        """Add what the disk has now. Raises Violation if it contradicts what was seen before."""
        notifications, next_position = view.inbox(0, _EVERYTHING)
        for position, notification in enumerate(notifications, next_position - len(notifications)):
            if self.inbox.setdefault(position, notification) != notification:
                raise Violation(f"position {position} of the inbox was something else before")
        for topic in view.topics():
            known = self.topics.setdefault(topic, {})
            if topic != SESSIONS:
                for record in view.records(topic, 0, _EVERYTHING):
                    if known.setdefault(record.position, record.message) != record.message:
                        raise Violation(f"position {record.position} of {topic} was something else before")


def check_disk(connection: apsw.Connection) -> None:
    """The database passes SQLite's check."""
    found = connection.pragma("integrity_check")
    if found != "ok":
        raise Violation(f"the database is damaged: {found}")


def check_inbox(history: History, attempts: Mapping[str, Attempt], end: int) -> None:
    """Nothing promised is missing, nothing is there that was not sent, and the order is that of the answers."""
    positions = sorted(history.inbox)
    if positions != list(range(end)):
        raise Violation(f"the inbox ends at {end} but its positions are {positions}")
    where: dict[str, int] = {}
    latest_began = 0
    for position in positions:
        kept = history.inbox[position]
        attempt = attempts.get(kept.correlator)
        if attempt is None or attempt.post.facts.kind == "refused":
            raise Violation(f"position {position} of the inbox was never sent")
        post = attempt.post
        key = post.sender if post.facts.kind == "malformed" else post.facts.session_id
        if (kept.body, kept.sender) != (post.body, post.sender) or (key and kept.key != key):
            raise Violation(f"position {position} of the inbox is not what was sent")
        if where.setdefault(kept.correlator, position) != position:
            raise Violation(f"{kept.correlator} is in the inbox twice: {where[kept.correlator]} and {position}")
        if attempt.answered is not None and attempt.promised and attempt.answered < latest_began:
            raise Violation(f"{kept.correlator} was answered before one was sent that lies before it")
        latest_began = max(latest_began, attempt.began)
    for correlator, attempt in attempts.items():
        if attempt.promised and correlator not in where:
            raise Violation(f"{correlator} was answered {attempt.status} and is not in the inbox")


def kept_from(history: History, end: int, facts: Mapping[bytes, Facts]) -> list[Kept]:
    """The inbox up to a position, in the oracle's form."""
    inbox = [history.inbox[position] for position in range(end)]
    return [
        Kept(position, each.body, each.key, each.sender, each.received_micros, each.content_type, each.correlator, told)
        for position, each in enumerate(inbox)
        for told in [facts[each.body]]
    ]


def check_topics(history: History, truth: Truth) -> None:
    """Every topic has the expected records of the inbox up to the lane's position: no less, no more, in order, and
    whole.
    """
    unknown = history.topics.keys() - {f"{PREFIX}.{name}" for name in truth.topics} - {SESSIONS}
    if unknown:
        raise Violation(f"there are topics that nobody writes to: {unknown}")
    for name, wanted in truth.topics.items():
        messages = history.topics.get(f"{PREFIX}.{name}", {})
        if sorted(messages) != list(range(len(messages))):
            raise Violation(f"the positions of {name} have gaps: {sorted(messages)}")
        found = [_row(messages[position]) for position in range(len(messages))]
        _check_repetitions(name, found)
        for position, (one, other) in enumerate(zip(found, wanted, strict=False)):
            if one != other:
                raise Violation(f"{name} has at {position}\n{one}\nand should have\n{other}")
        if len(found) != len(wanted):
            raise Violation(f"{name} has {len(found)} records and should have {len(wanted)}")


def check_sessions(view: SqliteView, truth: Truth, *, all_ended: bool) -> int:
    """Every session is as expected, and only those whose time has come are gone; returns the number of these."""
    newest: dict[str, Message] = {}
    for record in view.records(SESSIONS, 0, _EVERYTHING):
        before = newest.get(record.message.key)
        if before is not None and before.value is not None and record.message.value is not None:
            raise Violation(f"the session {record.message.key} stands twice on its topic")
        newest[record.message.key] = record.message
    gone = 0
    for session_id, wanted in truth.sessions.items():
        message = newest.pop(session_id, None)
        if truth.forgotten(wanted) and (all_ended or message is None or message.value is None):
            if message is not None and message.value is not None:
                raise Violation(f"the session {session_id} should have been forgotten")
            gone += 1
        elif message is None or message.value is None:
            raise Violation(f"the session {session_id} is missing")
        else:
            _check_session(session_id, message, wanted)
    if any(message.value is not None for message in newest.values()):
        raise Violation(f"there are sessions that nobody told of: {sorted(newest)}")
    return gone


def check_open_file(file: SqliteFile, view: SqliteView, history: History, position_before: int) -> int:
    """The lane stands at a possible position, which is returned. `history` and `position_before` must still be true."""
    position = view.position()
    if not position_before <= position <= file.end:
        raise Violation(f"the lane went from {position_before} to {position} while the inbox ends at {file.end}")
    if file.end < len(history.inbox):
        raise Violation(f"the inbox ended at {len(history.inbox)} before and ends at {file.end} now")
    return position


def _check_session(session_id: str, message: Message, wanted: Remembered) -> None:
    value = orjson.loads(message.value or b"")
    if value != session_value(session_id, wanted):
        raise Violation(f"the session {session_id} is\n{value}\nand should be\n{session_value(session_id, wanted)}")
    hidden = dict(message.headers)
    remembered = [int(mark.rsplit("|", 1)[1]) for mark in hidden["marks"].split(",")]
    cut = int(hidden["marks-cut"]) if "marks-cut" in hidden else None
    found = (remembered, cut, int(hidden["touched"]))
    if found != ([time for _, time in wanted.heard], wanted.cut, wanted.touched):
        raise Violation(f"the session {session_id} remembers {found} and should remember {wanted}")


def _check_repetitions(name: str, rows: Sequence[Row]) -> None:
    traces = [row.trace for row in rows]
    if len(set(traces)) < len(traces):
        raise Violation(f"{name} has a record twice: {traces}")


def _row(message: Message) -> Row:
    headers, value = dict(message.headers), orjson.loads(message.value or b"{}")
    value.pop("reason", None)
    return Row(
        message.key,
        headers["inbox"],
        headers["verdict"],
        headers["x-correlator"],
        headers["ce_id"],
        value,
        message.timestamp_millis,
    )
