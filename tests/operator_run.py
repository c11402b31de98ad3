"""An operator, its client and a receiver, each a process: many sessions are played, and then both sides are compared.

The expected records follow from the simulator's ledger by rules that share nothing with the receiver's: they are about
answers, not about decisions. Everything is read through ports, so a directory and Kafka are read alike.
"""

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import httpx2

from tests.limits import SECONDS_MAX

_CREATORS = 16
_DELETED_AFTER_SECONDS = 2, 10
#: At every speed of these tests a session of this duration lasts until it is ended.
_LASTING_SECONDS = 86_400
#: If more than half of all sessions ended at once before their time, the receiver would take that for a fault of the
#: API.
_ENDED_PART = 1 / 3
_PAGE = 5_000


class Operator:
    """The client's side of a simulator."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._headers: dict[str, str] = {}

    async def play(self, edge_url: str, token: str, sessions_count: int, seed: int, lasting: float = 0) -> None:
        """Create sessions, of which the share `lasting` lasts, and delete some of the others in the middle of their
        lives.
        """
        chance = random.Random(seed)
        numbers = iter(range(sessions_count))
        async with httpx2.AsyncClient(timeout=SECONDS_MAX) as client:
            form = {"grant_type": "client_credentials"}
            answer = await client.post(f"{self.url}/token", data=form, auth=("demo", "demo"))
            self._headers = {"authorization": f"Bearer {answer.json()['access_token']}"}
            client.headers.update(self._headers)

            async def create_some() -> None:
                for number in numbers:
                    lasts = chance.random() < lasting
                    wanted = {
                        "device": {"phoneNumber": f"+34600{number:06d}"},
                        "qosProfile": chance.choice(["QOS_E", "QOS_S", "QOS_M", "QOS_L"]),
                        "duration": _LASTING_SECONDS if lasts else chance.randint(60, 600),
                        "notificationUrl": edge_url,
                        "notificationAuthToken": token,
                    }
                    made = await client.post(f"{self.url}/v1/qod/sessions", json=wanted)
                    assert made.status_code == 201, made.text
                    if not lasts and chance.random() < 0.1:
                        deleting.create_task(delete(made.json()["sessionId"]))

            async def delete(session_id: str) -> None:
                await asyncio.sleep(chance.uniform(*_DELETED_AFTER_SECONDS))
                await client.delete(f"{self.url}/v1/qod/sessions/{session_id}")

            async with asyncio.TaskGroup() as deleting, asyncio.TaskGroup() as tasks:
                for _ in range(_CREATORS):
                    tasks.create_task(create_some())

    def living(self) -> set[str]:
        """The lasting sessions that have not ended."""
        return {each["sessionId"] for each in self.lives() if _lasts(each) and _last_status(each) != "UNAVAILABLE"}

    def end_some(self) -> int:
        """End some lasting sessions, half of them as their client and half as the network; returns their number."""
        living = sorted(self.living())
        ended = living[: round(len(living) * _ENDED_PART)]
        with httpx2.Client(timeout=SECONDS_MAX, headers=self._headers) as client:
            for number, session_id in enumerate(ended):
                if number % 2:
                    client.delete(f"{self.url}/v1/qod/sessions/{session_id}").raise_for_status()
                else:
                    client.post(f"{self.url}/sessions/{session_id}/terminate").raise_for_status()
        return len(ended)

    def is_over(self, requested_seconds: float) -> bool:
        """Whether nothing will happen any more: sessions that stay REQUESTED are stuck, and no post is to come."""
        before = self._summary()
        time.sleep(requested_seconds)
        after = self._summary()
        if before != after or any(after["posts"].values()):
            return False
        return all(_lasts(each) or _last_status(each) != "AVAILABLE" for each in self.lives())

    def entries(self) -> list[dict[str, Any]]:
        """All posts."""
        return self._pages("ledger", "entries")

    def lives(self) -> list[dict[str, Any]]:
        """All sessions, with their past states."""
        return self._pages("ledger/sessions", "sessions")

    def _summary(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx2.get(f"{self.url}/ledger/summary", timeout=SECONDS_MAX).json()
        return found

    def _pages(self, path: str, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        start = 1
        while True:
            page = httpx2.get(f"{self.url}/{path}", params={"from": start, "limit": 500}, timeout=SECONDS_MAX).json()
            found += page[name]
            if page["next"] == start:
                return found
            start = page["next"]


def _lasts(life: Mapping[str, Any]) -> bool:
    return bool(life["duration"] == _LASTING_SECONDS)


def _last_status(life: Mapping[str, Any]) -> str:
    return str(life["states"][-1]["qosStatus"])


class Topics:
    """The topics of a receiver, read through its operations port."""

    def __init__(self, ops_url: str) -> None:
        self._url = ops_url

    def records(self, topic: str) -> list[dict[str, Any]]:
        """All records of a topic; none if there is no such topic yet."""
        found: list[dict[str, Any]] = []
        cursor = "beginning"
        while True:
            answer = httpx2.get(
                f"{self._url}/topics/{topic}", params={"from": cursor, "limit": _PAGE}, timeout=SECONDS_MAX
            )
            if answer.status_code == httpx2.codes.NOT_FOUND:
                return found
            page = answer.json()
            found += page["records"]
            if not page["records"]:
                return found
            cursor = page["next"]

    def sessions(self) -> dict[str, dict[str, Any]]:
        """The sessions table."""
        found = httpx2.get(f"{self._url}/sessions", params={"limit": 10_000}, timeout=SECONDS_MAX).json()["sessions"]
        return {each["sessionId"]: each for each in found}

    def enriched(self) -> set[str]:
        """The sessions that the API has told of."""
        return {session_id for session_id, each in self.sessions().items() if _is_enriched(each)}

    def lag(self) -> float:
        """The number of notifications that wait to be routed."""
        lines = httpx2.get(f"{self._url}/metrics", timeout=SECONDS_MAX).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("qod_receiver_inbox_lag{"))


def _is_enriched(session: Mapping[str, Any]) -> bool:
    return "qosProfile" in session


class _Change(NamedTuple):
    """A change of a session's status in the ledger: how many of its posts were kept, and how many may have been."""

    kept: int
    perhaps: int
    is_odd: bool
    infos: frozenset[str | None]


def faults(entries: Sequence[Mapping[str, Any]], topics: Topics) -> Iterator[str]:
    """The faults on the topics, in words: each change has its effect once, whether a post or the API told it."""
    changes = _changes(entries)
    records = topics.records("status")
    status = Counter((each["key"], each["value"]["qosStatus"]) for each in records)
    late = {(each["key"], each["value"]["qosStatus"]) for each in records if each["value"]["late"]}
    asked = {(each["key"], each["value"]["qosStatus"]) for each in records if "origin" in each["headers"]}
    ends = Counter(each["key"] for each in topics.records("unavailable"))
    sessions = topics.sessions()
    for change, (kept, perhaps, is_odd, _) in changes.items():
        found = status[change]
        if found > 1:
            yield f"{change} was told {found} times"
        if kept and not found:
            yield f"{change} was kept and not told"
        if found and not kept + perhaps and change not in asked:
            yield f"{change} was told and never kept"
        if change[1] == "UNAVAILABLE" and found:
            # An oddly spelled time may be cut to the minute, and so lie before the session's beginning.
            if ends[change[0]] != 1 and not (is_odd and change in late):
                yield f"the end of {change[0]} is {ends[change[0]]} times on unavailable"
            if sessions[change[0]]["qosStatus"] != "UNAVAILABLE" and not (is_odd and change in late):
                yield f"{change[0]} is {sessions[change[0]]['qosStatus']}"
    yield from (f"{change} is of nobody" for change in status if change not in changes and change not in asked)
    yield from _dead(entries, topics)


def _changes(entries: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], _Change]:
    grouped: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for each in entries:
        if not each["malformed"]:
            grouped[each["sessionId"], each["qosStatus"]].append(each)
    return {
        change: _Change(
            sum(map(_is_kept, some)),
            sum(map(_is_kept_perhaps, some)),
            any(each["odd"] for each in some),
            # Release 0.8 only tells that the session is over.
            frozenset(each["statusInfo"] for each in some if _is_kept(each) and each["release"] != "0.8"),
        )
        for change, some in grouped.items()
    }


def _is_kept(entry: Mapping[str, Any]) -> bool:
    return bool(entry["answer"] == (400 if entry["malformed"] else 204))


def _is_kept_perhaps(entry: Mapping[str, Any]) -> bool:
    """Whether a post came whole but its sender does not know the outcome."""
    unknown = entry["answer"] is None or entry["answer"] >= 500
    return bool(entry["sent"] == "whole" and entry["authorization"] == "right" and unknown)


def _dead(entries: Sequence[Mapping[str, Any]], topics: Topics) -> Iterator[str]:
    """The faults among the dead letters: each unreadable body is there once for each time that it was kept, and no
    other.
    """
    malformed = [each for each in entries if each["malformed"]]
    kept, perhaps = sum(map(_is_kept, malformed)), sum(map(_is_kept_perhaps, malformed))
    letters = topics.records("dead-letter")
    wrong = [each["value"]["reason"] for each in letters if each["headers"]["verdict"] != "malformed"]
    yield from (f"a dead letter: {reason}" for reason in wrong)
    if not kept <= len(letters) <= kept + perhaps:
        yield f"{len(letters)} dead letters of {kept} that were kept, and perhaps {perhaps} more"


def differences(
    entries: Sequence[Mapping[str, Any]], lives: Sequence[Mapping[str, Any]], topics: Topics
) -> Iterator[str]:
    """The differences between the sessions table and the operator's sessions, after a comparison with the API.

    A session that ended by itself before any comparison saw it can't be found by asking, so it does not count.
    """
    changes, sessions = _changes(entries), topics.sessions()
    ends = Counter(each["key"] for each in topics.records("unavailable"))
    for each in lives:
        session_id, last = each["sessionId"], each["states"][-1]
        found = sessions.get(session_id)
        if last["qosStatus"] == "UNAVAILABLE" and not (found and _is_enriched(found)):
            continue
        if found is None or found["qosStatus"] != last["qosStatus"]:
            yield f"{session_id} is {last['qosStatus']}, and here {found and found['qosStatus']}"
            continue
        told = changes.get((session_id, "UNAVAILABLE"))
        if told and last["statusInfo"] in told.infos and found.get("statusInfo") != last["statusInfo"]:
            yield f"{session_id} ended by {last['statusInfo']}, and here by {found.get('statusInfo')}"
        if last["qosStatus"] == "UNAVAILABLE" and ends[session_id] != 1:
            yield f"the end of {session_id} is {ends[session_id]} times on unavailable"
