"""A small sender for the demonstration: sessions that live and end in every way, told in all three dialects.

It shares no code with the parser, or both would agree on the same mistakes, and it knows from CAMARA's texts alone
what a receiver should make of each post. Pure.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

#: Who speaks which dialect: a sender has one release, so one dialect.
DIALECTS = ("cloudevents", "event", "bare")

_CLOUDEVENTS_TYPES = (
    "org.camaraproject.quality-on-demand.v1.qos-status-changed",
    "org.camaraproject.quality-on-demand.v0.qos-status-changed",
    "org.camaraproject.qod.v0.qos-status-changed",
)

#: How long after its first step a session's last one comes, at most, as a part of the whole time.
_LIFE = 0.35


class Post(NamedTuple):
    """One request: when, by whom, and what a receiver should answer and decide.

    `session` is the session's number, 0 for a post that belongs to none. `verdict` is "" where nothing is kept.
    """

    at_seconds: float
    session: int
    sender: str
    words: str
    path_suffix: str
    headers: Mapping[str, str]
    body: bytes
    status_code: int
    verdict: str


class End(NamedTuple):
    """What a session should have come to."""

    session: int
    qos_status: str
    status_info: str | None

    @property
    def unexpected(self) -> bool:
        """Whether the client neither asked for this end nor knew of it."""
        return self.qos_status == "UNAVAILABLE" and self.status_info not in {"DURATION_EXPIRED", "DELETE_REQUESTED"}


class Plan(NamedTuple):
    """All posts in their order, and by session id what they should come to."""

    posts: Sequence[Post]
    ends: Mapping[str, End]


def plan(sessions: int, seconds: float, began: datetime, seed: int) -> Plan:
    """A plan of `sessions` lives within `seconds` from `began` on. The same seed makes the same plan."""
    chance = random.Random(seed)  # noqa: S311  # not a secret
    posts: list[Post] = []
    ends: dict[str, End] = {}
    for number in range(1, sessions + 1):
        steps, dialect = _LIVES[(number - 1) % len(_LIVES)]
        life = _Life(number, dialect, began, chance)
        at = seconds * ((1 - _LIFE) * (number - 1) / sessions + 0.02 * chance.random())
        for step in steps:
            posts.append(step(life, at))
            at += seconds * _LIFE / 4 * chance.uniform(0.6, 0.95)
        ends[life.session_id] = life.end
    posts += _faults(seconds, began)
    posts.sort(key=lambda post: post.at_seconds)
    return Plan(posts, ends)


class _Told(NamedTuple):
    """What an event tells of its session."""

    at_seconds: float
    qos_status: str
    status_info: str | None


class _Life:
    """One session as its sender knows it: each method is a step of it, and makes the post that tells it."""

    def __init__(self, number: int, dialect: str, began: datetime, chance: random.Random) -> None:
        self.session_id = str(UUID(int=chance.getrandbits(128), version=4))
        self.end = End(number, "REQUESTED", None)
        self._number = number
        self._dialect = dialect
        self._began_seconds = began.timestamp()
        self._chance = chance
        self._told: list[_Told] = []
        self._posts: list[Post] = []
        self._id = ""

    def available(self, at: float) -> Post:
        """The network grants it."""
        self.end = End(self._number, "AVAILABLE", None)
        return self._post(at, _Told(at, "AVAILABLE", None), "available", "accepted")

    def expired(self, at: float) -> Post:
        """Its time runs out."""
        return self._finish(at, "DURATION_EXPIRED", "ends: ran out")

    def deleted(self, at: float) -> Post:
        """The client deletes it."""
        return self._finish(at, "DELETE_REQUESTED", "ends: deleted")

    def terminated(self, at: float) -> Post:
        """The network ends it."""
        return self._finish(at, "NETWORK_TERMINATED", "ends: network")

    def unexplained(self, at: float) -> Post:
        """It ends, and nobody says why."""
        return self._finish(at, None, "ends: no reason")

    def repeated(self, at: float) -> Post:
        """The very same request once more, as after an answer that got lost."""
        return self._posts[-1]._replace(at_seconds=at, words="the same again", verdict="duplicate")

    def copied(self, at: float) -> Post:
        """The same content under a new id: what senders do that mint one at every emission."""
        return self._post(at, self._told[-1], "same, new id", "duplicate")

    def unchanged(self, at: float) -> Post:
        """The same status once more, of a later time."""
        return self._post(at, self._told[-1]._replace(at_seconds=at), "still the same", "unchanged")

    def late(self, at: float) -> Post:
        """The beginning, overtaken by the end."""
        return self._post(at, _Told(self._told[0].at_seconds - 1, "AVAILABLE", None), "available, late", "late")

    def misused(self, at: float) -> Post:
        """Another event with the id of the last one."""
        return self._post(at, _Told(at, "UNAVAILABLE", "DELETE_REQUESTED"), "id used twice", "conflict", self._id)

    def _finish(self, at: float, status_info: str | None, words: str) -> Post:
        self.end = End(self._number, "UNAVAILABLE", status_info)
        return self._post(at, _Told(at, "UNAVAILABLE", status_info), words, "accepted")

    def _post(self, at: float, told: _Told, words: str, verdict: str, event_id: str = "") -> Post:
        self._told.append(told)
        self._id = event_id or str(UUID(int=self._chance.getrandbits(128), version=4))
        post = Post(
            at,
            self._number,
            self._dialect,
            words,
            # QualityOnDemand v0.8: the path is appended by the sender.
            "/notifications" if self._dialect == "bare" else "",
            {"content-type": "application/cloudevents+json" if self._dialect == "cloudevents" else "application/json"},
            json.dumps(self._body(told)).encode(),
            204,
            verdict,
        )
        self._posts.append(post)
        return post

    def _body(self, told: _Told) -> dict[str, Any]:
        time = _rfc3339(self._began_seconds + told.at_seconds)
        fact = {"sessionId": self.session_id, "qosStatus": told.qos_status}
        if told.status_info is not None:
            fact["statusInfo"] = told.status_info
        if self._dialect == "bare":
            return {"sessionId": self.session_id, "event": "SESSION_TERMINATED"}
        if self._dialect == "event":
            event = {"eventId": self._id, "eventType": "QOS_STATUS_CHANGED", "eventTime": time, "eventDetail": fact}
            # The schema of v0.9 has the wrapper, its own example has not.
            return {"event": event} if self._number % 2 else event
        return {
            "id": self._id,
            "source": "https://operator.example/qod",
            "specversion": "1.0",
            "type": _CLOUDEVENTS_TYPES[self._number % len(_CLOUDEVENTS_TYPES)],
            "time": time,
            "data": fact,
        }


_Step = Callable[[_Life, float], Post]

#: The lives that sessions take in turn, with the dialect that tells them.
_LIVES: Sequence[tuple[Sequence[_Step], str]] = (
    ((_Life.available, _Life.repeated, _Life.expired), "cloudevents"),
    ((_Life.available, _Life.terminated, _Life.copied), "event"),
    ((_Life.available, _Life.unchanged, _Life.deleted), "cloudevents"),
    ((_Life.unexplained, _Life.repeated), "bare"),
    ((_Life.terminated, _Life.late), "cloudevents"),
    ((_Life.available, _Life.expired, _Life.repeated), "event"),
    ((_Life.available, _Life.misused, _Life.terminated), "cloudevents"),
    ((_Life.available,), "event"),
    ((_Life.available, _Life.unexplained, _Life.copied), "cloudevents"),
)


def _faults(seconds: float, began: datetime) -> Iterator[Post]:
    """What a public endpoint gets besides: a body cut off, an event of another API, a token that nobody minted."""
    other = {
        "id": "1",
        "source": "https://operator.example/device-status",
        "specversion": "1.0",
        "type": "org.camaraproject.device-reachability-status-subscriptions.v0.reachability-data",
        "time": _rfc3339(began.timestamp()),
        "data": {"subscriptionId": "1"},
    }
    cloudevents = {"content-type": "application/cloudevents+json"}
    body = json.dumps(other).encode()
    yield Post(seconds * 0.25, 0, "cloudevents", "body cut off", "", cloudevents, body[:-20], 400, "malformed")
    yield Post(seconds * 0.45, 0, "cloudevents", "another API's", "", cloudevents, body, 204, "unrecognized")
    wrong = {**cloudevents, "authorization": "Bearer nobody-ever-minted-this"}
    yield Post(seconds * 0.65, 0, "cloudevents", "wrong token", "", wrong, body, 401, "")


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
