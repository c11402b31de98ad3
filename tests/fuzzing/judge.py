"""The judgement: each answer is compared with the right ones, and each record with the expected ones."""

import json
from base64 import b64decode
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from tests.fuzzing.expected import ANY, CLOSED, NONE, PLACE, RECEIVED, Line, Request, digest
from tests.fuzzing.talking import Answer

TOPICS = ("status", "unavailable", "sessions", "dead-letter")
#: Before a topic in a line: any record of that topic is right, and so is none.
_PERHAPS = "perhaps "
Record = Mapping[str, Any]

#: The codes of CAMARA's error body, and the headers of an answer with it.
_CODES: Mapping[int, tuple[str, Sequence[str]]] = {
    400: ("INVALID_ARGUMENT", ()),
    401: ("UNAUTHENTICATED", ("www-authenticate",)),
    403: ("PERMISSION_DENIED", ()),
    404: ("NOT_FOUND", ()),
    405: ("METHOD_NOT_ALLOWED", ("allow",)),
    413: ("PAYLOAD_TOO_LARGE", ()),
    415: ("UNSUPPORTED_MEDIA_TYPE", ("accept-encoding",)),
    431: ("HEADERS_TOO_LARGE", ()),
    503: ("UNAVAILABLE", ("retry-after",)),
}
_VALUES = {
    *("sessionId", "qosStatus", "statusInfo", "time", "receivedAt", "sender", "late", "unexpected"),
    *("availableSeconds", "availableSince"),
}


class Place(NamedTuple):
    """A request of a run: its conversation, and its number in it."""

    conversation: int
    at: int


class Finding(NamedTuple):
    """A fault, and the request that it is about, if there is one."""

    place: Place | None
    what: str


class _Asked(NamedTuple):
    place: Place
    tags: Sequence[str]
    left: list[Line]  # expected lines that were not seen yet


class Judge:
    """Takes each request with its answers, and afterwards each record; then tells the faults."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self.found: list[Finding] = []
        self.answers: Counter[str] = Counter()
        self.records: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self._secrets = secrets
        self._asked: dict[str, _Asked] = {}
        self._received: dict[str, str] = {}
        self._places: dict[str, set[str]] = {topic: set() for topic in TOPICS}
        self._states: dict[str, tuple[_Asked, Line]] = {}  # the last state that each session must have
        self._newest: dict[str, Line] = {}

    def hear(self, place: Place, request: Request, answers: Sequence[Answer]) -> None:
        """Take the answers to a request."""
        first, *more = answers
        for tag in request.tags:
            self.asked[tag] += 1
        self.answers[str(first.status) if first.status else "closed"] += 1
        asked = _Asked(place, request.tags, list(request.right.get(first.status, ())))
        for line in asked.left:
            if line[0] == "sessions":
                self._states[line[1]] = asked, line
        for fault in (_fault(request, first), *(_fault_behind(request, answer) for answer in more)):
            if fault:
                self._find(asked, fault)
        if any(secret in answer.content for answer in answers for secret in self._secrets):
            self._find(asked, "an answer has a token")
        correlator = first.headers.get("x-correlator", "")
        if correlator in self._asked:
            self._find(asked, f"the correlator {correlator} was another's")
        elif correlator:
            self._asked[correlator] = asked
        elif any(not line[0].startswith(_PERHAPS) for line in asked.left):
            self._find(asked, f"{first.status} without a correlator")

    def see(self, topic: str, record: Record) -> None:
        """Take a record of a topic. The status topic must be the first."""
        self.records[topic] += 1
        headers = record["headers"]
        place = headers.get("inbox", "")
        if place in self._places[topic]:
            self.found.append(Finding(None, f"two records of {place} on {topic}"))
        self._places[topic].add(place)
        correlator = headers.get("x-correlator", "")
        asked = self._asked.get(correlator)
        if asked is None:
            self.found.append(Finding(None, f"nobody asked for this on {topic}: {record}"[:600]))
            return
        if topic == "status":
            self._received[correlator] = record["value"]["receivedAt"]
        line, faults = line_of(topic, record, self._received.get(correlator, ""))
        for fault in faults:
            self._find(asked, f"on {topic}: {fault}: {record}"[:900])
        if topic == "sessions":
            self._newest[line[1]] = line
        if line in asked.left:
            asked.left.remove(line)
        elif not _is_any(asked.left, line):
            wanted = [each for each in asked.left if each[0] in {topic, ANY}]
            self._find(asked, f"on {topic} is {line}, wanted {wanted or 'nothing (more)'}"[:1500])

    def end(self) -> None:
        """Take the end of all records: expected ones that were not seen are lost."""
        for asked in self._asked.values():
            # If several states of a session are written at once, its topic has only the last.
            lost = [line for line in asked.left if line[0] != "sessions" and not line[0].startswith(_PERHAPS)]
            if lost:
                self._find(asked, f"lost: {lost}"[:1500])
        for session_id, (asked, line) in self._states.items():
            if self._newest.get(session_id) != line:
                self._find(asked, f"the session is {self._newest.get(session_id)}, wanted {line}")

    def _find(self, asked: _Asked, what: str) -> None:
        self.found.append(Finding(asked.place, f"{what} ({', '.join(asked.tags)})"))
        for tag in set(asked.tags):
            self.wrong[tag] += 1


def _is_any(left: list[Line], line: Line) -> bool:
    """Whether any record is right, which then counts as seen. A change may then have its other records too."""
    topic = line[0]
    for at, each in enumerate(left):
        if each[0] == f"{_PERHAPS}{topic}":
            del left[at]
            return True
        if each[0] == ANY and topic in {"status", "dead-letter"}:
            _, sender, body = each
            if topic == "status" and line[5] == sender:
                left[at : at + 1] = [(f"{_PERHAPS}sessions",), (f"{_PERHAPS}unavailable",)]
                return True
            if topic == "dead-letter" and line[3:5] == (sender, body):
                del left[at]
                return True
    return False


def _fault(request: Request, answer: Answer) -> str:
    """The fault of an answer; empty if there is none."""
    status, headers, content = answer
    if status not in request.right:
        return f"answered {status}, wanted {sorted(request.right)}: {content!r:.200}"
    if status == CLOSED:
        return ""
    wanted = request.correlator
    if wanted and headers.get("x-correlator") != wanted:
        return f"the answer's correlator is {headers.get('x-correlator')!r}, wanted {wanted!r}"
    if status == 204:
        return "204 with a body" if content or "content-length" in headers else ""
    return "" if request.method == "HEAD" else _fault_of_error(status, headers, content)


def _fault_of_error(status: int, headers: Mapping[str, str], content: bytes) -> str:
    try:
        error = json.loads(content)
        message = str(error["message"])
        is_right = (
            error == {"status": status, "code": _CODES[status][0], "message": message} and 0 < len(message) <= 512
        )
    except (ValueError, KeyError, TypeError):
        is_right = False
    if not is_right or headers.get("content-type") != "application/json":
        return f"{status} without CAMARA's error body: {content!r:.300}"
    missing = [name for name in _CODES[status][1] if name not in headers]
    return f"{status} without {missing}" if missing else ""


def _fault_behind(request: Request, answer: Answer) -> str:
    if answer.status in {CLOSED, *request.after}:
        return ""
    return f"answered {answer.status} too, behind the answer"


def line_of(topic: str, record: Record, received: str) -> tuple[Line, list[str]]:
    """A record in words, and its faults that don't depend on its content. `received` is its receipt in µs, if known."""
    faults = []
    headers, value, key = record["headers"], record["value"], record["key"]
    if headers.get("content-type") != "application/json":
        faults.append("no content type")
    if topic == "dead-letter":
        return _letter_line(record), faults
    if value["sessionId"] != key or not value.keys() <= _VALUES:
        faults.append("no such value")
    if "origin" in headers:
        faults.append("an origin")
    info, since = value.get("statusInfo", NONE), value.get("availableSince", NONE)
    seconds = f"{value['availableSeconds']:.6f}" if "availableSeconds" in value else NONE
    time = value["time"]
    if topic == "sessions":
        time = RECEIVED if time == received and "ce_time" not in headers else time
        since = RECEIVED if since == received and "ce_time" not in headers else since
        fact = key, value["qosStatus"], info, time, value["sender"]
        return (topic, *fact, since, seconds, headers["verdict"]), faults
    faults += _faults_of_change(record)
    if "ce_time" not in headers and time == value["receivedAt"]:
        time = RECEIVED
    unexpected = str(value["unexpected"]) if "unexpected" in value else NONE
    identity = headers["ce_id"], headers["ce_source"], headers["ce_type"]
    if identity[0] == headers["inbox"]:
        identity = PLACE, *identity[1:]
    fact = key, value["qosStatus"], info, time, value["sender"]
    traced = headers["verdict"], headers.get("traceparent", NONE)
    return (topic, *fact, unexpected, since, seconds, *identity, *traced), faults


def _faults_of_change(record: Record) -> list[str]:
    headers, value = record["headers"], record["value"]
    faults = []
    if headers.get("ce_time", value["time"]) != value["time"]:
        faults.append("another ce_time")
    if value["late"] is not (headers["verdict"] == "late"):
        faults.append("late or not")
    if headers["ce_specversion"] != "1.0":
        faults.append("another specversion")
    time, received, stamp = (datetime.fromisoformat(text) for text in _times(record))
    wanted = time if received - timedelta(days=1) <= time <= received else received
    if stamp != wanted.replace(microsecond=wanted.microsecond // 1000 * 1000):
        faults.append("another timestamp")
    return faults


def _times(record: Record) -> tuple[str, str, str]:
    return record["value"]["time"], record["value"]["receivedAt"], record["timestamp"]


def _letter_line(record: Record) -> Line:
    headers, value = record["headers"], record["value"]
    told = dict(value["headers"])
    faults = () if told.pop("x-correlator", "") == headers["x-correlator"] else ("another correlator",)
    if (
        value["verdict"] != headers["verdict"]
        or not value["reason"]
        or headers["ce_type"] != "qod-receiver.dead-letter"
    ):
        faults = (*faults, "no dead letter")
    origin = headers.get("origin", NONE).partition(":")[0]
    lines = (f"{name}={text}" for name, text in sorted(told.items()) if text)
    body = digest(b64decode(value["body"]))
    return ("dead-letter", record["key"], value["verdict"], value["sender"], body, origin, *lines, *faults)
