"""The senders and their posts: sessions that live and end in every way, told well and badly in all three dialects.

Each body is kept with the facts that it was made from, so that no parser is needed to read it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from random import Random
from typing import Any, NamedTuple

SECOND = 1_000_000
_DAY = 86_400 * SECOND

#: Each sender's dialect.
SENDERS = {"acme": "cloudevents", "crow": "cloudevents", "bell": "event", "oldie": "bare"}

_TYPES = (
    "org.camaraproject.quality-on-demand.v1.qos-status-changed",
    "org.camaraproject.qod.v0.qos-status-changed",
)
_ENDS = ("DURATION_EXPIRED", "NETWORK_TERMINATED", "DELETE_REQUESTED", "A_LATER_REASON")
#: The ways of a session: R(EQUESTED), A(VAILABLE), U(NAVAILABLE), and E for an end with a reason.
_LIVES = ("AE", "AE", "RAE", "E", "AUAE", "U", "AUAUAUAUAUAUAUAUAUE")
_STATUSES = {"R": "REQUESTED", "A": "AVAILABLE", "U": "UNAVAILABLE", "E": "UNAVAILABLE"}

_MALFORMED = (
    b"",
    b"{",
    b"[]",
    b'"text"',
    b"\xff\xfe{}",
    b"{}",
    b'{"event": 5}',
    b'{"specversion": "1.0", "id": "1", "type": "org.camaraproject.qod.v0.qos-status-changed"}',
    b'{"event": {"eventType": "QOS_STATUS_CHANGED", "eventDetail": {"qosStatus": "AVAILABLE"}}}',
    b'{"sessionId": "a", "sessionId": "b", "event": "SESSION_TERMINATED"}',
)


class Facts(NamedTuple):
    """The meaning of a body, as its sender intended it. `kind` is event, unrecognized, malformed or refused."""

    kind: str
    session_id: str = ""
    qos_status: str = ""
    status_info: str | None = None
    micros: int | None = None
    id: str | None = None
    source: str | None = None
    type: str = ""


@dataclass(eq=False)
class Post:
    """One body on its way, posted again and again until its sender has an answer or gives up."""

    number: int
    sender: str
    body: bytes
    headers: Sequence[tuple[bytes, bytes]]
    facts: Facts
    patience: int
    attempts: int = 0


@dataclass(eq=False)
class _Life:
    sender: str
    session_id: str
    steps: list[str]
    told: list[Facts] = field(default_factory=list)


class Senders:
    """All senders. `next` makes the next post; `facts` has the meaning of every body that was made."""

    def __init__(self, random: Random) -> None:
        self.facts: dict[bytes, Facts] = {}
        self.made: dict[str, int] = {}
        self._random = random
        self._lives: list[_Life] = []
        self._posts: list[Post] = []
        self._ids = 0

    def next(self, now: int) -> Post:
        """The next post; `now` is the time in microseconds."""
        makers = {
            self._advance: 34,
            self._begin: 12,
            self._repeat: 14,
            self._tell_with_a_new_id: 7,
            self._tell_again_later: 6,
            self._tell_an_old_status: 8,
            self._use_an_id_twice: 4,
            self._put_another_time_on_it: 4,
            self._intrude: 4,
            self._unrecognized: 4,
            self._malformed: 4,
            self._refused: 3,
        }
        make = self._random.choices(list(makers), list(makers.values()))[0]
        post = make(now)
        self.made[make.__name__] = self.made.get(make.__name__, 0) + 1
        self._posts.append(post)
        return post

    def last_word(self, now: int) -> Post:
        """A post without any oddity."""
        post = self._begin(now)
        self._posts.append(post)
        return post

    def _begin(self, now: int) -> Post:
        sender = self._random.choice([name for name in SENDERS if name != "crow"])
        steps = "U" if SENDERS[sender] == "bare" else self._random.choice(_LIVES)
        life = _Life(sender, f"{self._random.getrandbits(64):016x}", list(steps))
        self._lives.append(life)
        return self._step(life, now)

    def _advance(self, now: int) -> Post:
        going_on = [life for life in self._lives[-12:] if life.steps]
        return self._step(self._random.choice(going_on), now) if going_on else self._begin(now)

    def _step(self, life: _Life, now: int) -> Post:
        step = life.steps.pop(0)
        info = self._random.choice(_ENDS) if step == "E" else None
        facts = self._spoken(life, _STATUSES[step], info, self._time(now))
        life.told.append(facts)
        return self._post(life.sender, facts)

    def _repeat(self, now: int) -> Post:
        if not self._posts:
            return self._begin(now)
        before = self._random.choice(self._posts[-20:])
        return self._made(before.sender, before.body, before.facts, before.headers)

    def _tell_with_a_new_id(self, now: int) -> Post:
        life = self._some_life(now)
        return self._post(life.sender, self._renamed(self._random.choice(life.told)))

    def _tell_again_later(self, now: int) -> Post:
        life = self._some_life(now)
        facts = self._renamed(life.told[-1])
        return self._post(life.sender, facts if facts.id is None else facts._replace(micros=now))

    def _tell_an_old_status(self, now: int) -> Post:
        life = self._some_life(now)
        before = self._random.choice(life.told)
        back = self._random.choice((1, SECOND, 5 * SECOND))
        micros = None if before.micros is None else before.micros - back
        facts = self._spoken(life, self._random.choice(("AVAILABLE", before.qos_status)), None, micros)
        life.told.insert(0, facts)
        return self._post(life.sender, facts)

    def _use_an_id_twice(self, now: int) -> Post:
        life = self._some_life(now)
        before = self._random.choice(life.told)
        if before.id is None:
            return self._post(life.sender, before)
        other = "AVAILABLE" if before.qos_status == "UNAVAILABLE" else "UNAVAILABLE"
        return self._post(life.sender, before._replace(qos_status=other, status_info=None))

    def _intrude(self, now: int) -> Post:
        life = self._some_life(now)
        stranger = _Life("crow", life.session_id, [])
        return self._post("crow", self._spoken(stranger, "AVAILABLE", None, now))

    def _unrecognized(self, now: int) -> Post:
        life = self._some_life(now)
        data: dict[str, Any] = {"sessionId": life.session_id, "qosStatus": "PAUSED"}
        tree: dict[str, Any] = {"id": self._id(), "source": "/acme", "specversion": "1.0", "type": _TYPES[0]}
        if self._random.random() < 0.5:
            tree["type"] = "org.camaraproject.qos-provisioning.v0.status-changed"
            data = {"assignmentId": self._id(), "status": "AVAILABLE"}
        tree["data"] = data
        return self._made("acme", json.dumps(tree).encode(), Facts("unrecognized"))

    def _put_another_time_on_it(self, now: int) -> Post:
        life = self._some_life(now)
        before = self._random.choice(life.told)
        return self._post(life.sender, before if before.micros is None else before._replace(micros=now))

    def _malformed(self, _now: int) -> Post:
        sender = self._random.choice(list(SENDERS))
        return self._made(sender, self._random.choice(_MALFORMED), Facts("malformed"), self._content_type())

    def _refused(self, _now: int) -> Post:
        body = json.dumps({"sessionId": self._id(), "event": "SESSION_TERMINATED"}).encode()
        return self._made("oldie", body, Facts("refused"), [(b"authorization", b"Bearer nobody")])

    def _some_life(self, now: int) -> _Life:
        if not self._lives:
            self._begin(now)
        return self._random.choice(self._lives[-12:])

    def _spoken(self, life: _Life, status: str, info: str | None, micros: int | None) -> Facts:
        """The facts that the sender's dialect can tell."""
        dialect = SENDERS[life.sender]
        if dialect == "bare":
            return Facts("event", life.session_id, "UNAVAILABLE", type="SESSION_TERMINATED")
        if dialect == "event":
            identifier = self._id() if self._random.random() < 0.7 else None
            micros = micros if self._random.random() < 0.8 else None
            return Facts("event", life.session_id, status, info, micros, identifier, None, "QOS_STATUS_CHANGED")
        kind = self._random.choice(_TYPES)
        return Facts("event", life.session_id, status, info, micros, self._id(), f"/{life.sender}", kind)

    def _renamed(self, facts: Facts) -> Facts:
        return facts if facts.id is None else facts._replace(id=self._id())

    def _time(self, now: int) -> int:
        told = now - self._random.randrange(2 * SECOND)
        if self._random.random() < 0.3:
            told -= told % SECOND
        if self._random.random() < 0.04:
            told += self._random.choice((-3, 3)) * _DAY
        return told

    def _id(self) -> str:
        self._ids += 1
        return f"e{self._ids}"

    def _post(self, sender: str, facts: Facts) -> Post:
        return self._made(sender, self._rendered(sender, facts), facts, self._content_type())

    def _content_type(self) -> Sequence[tuple[bytes, bytes]]:
        return [(b"content-type", b"text/plain")] if self._random.random() < 0.1 else []

    def _made(self, sender: str, body: bytes, facts: Facts, more: Sequence[tuple[bytes, bytes]] | None = None) -> Post:
        if facts.kind != "refused":
            assert self.facts.setdefault(body, facts) == facts, "two meanings of one body"
        headers = {b"authorization": f"Bearer {sender}".encode(), b"content-type": b"application/json"}
        headers |= dict(more or ())
        return Post(len(self._posts), sender, body, list(headers.items()), facts, self._random.choice((0, 2, 5, 9)))

    def _rendered(self, sender: str, facts: Facts) -> bytes:
        detail: dict[str, Any] = {"sessionId": facts.session_id, "qosStatus": facts.qos_status}
        if facts.status_info is not None or self._random.random() < 0.1:
            detail["statusInfo"] = facts.status_info
        time = None if facts.micros is None else self._time_text(facts.micros)
        tree: dict[str, Any]
        if SENDERS[sender] == "cloudevents":
            tree = {"id": facts.id, "source": facts.source, "specversion": "1.0", "type": facts.type, "time": time}
            tree = {name: value for name, value in tree.items() if value is not None} | {"data": detail}
        elif SENDERS[sender] == "event":
            tree = {"eventId": facts.id, "eventType": facts.type, "eventTime": time}
            tree = {name: value for name, value in tree.items() if value is not None} | {"eventDetail": detail}
            if self._random.random() < 0.5:
                tree = {"event": tree}
        else:
            tree = {"sessionId": facts.session_id, "event": facts.type}
        return json.dumps(tree, separators=self._random.choice(((",", ":"), (", ", ": ")))).encode()

    def _time_text(self, micros: int) -> str:
        time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
        if self._random.random() < 0.2:
            return time.astimezone(timezone(timedelta(hours=2))).isoformat()
        text = time.replace(tzinfo=None).isoformat(timespec="microseconds")
        if text.endswith(".000000"):
            text = text[: -len(".000000")]
        elif self._random.random() < 0.2:
            text += "789"
        return (
            text.lower() + "z" if self._random.random() < 0.1 else text + self._random.choice(("Z", "Z", "+00:00", ""))
        )
