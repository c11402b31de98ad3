"""The senders: steady ones, which post each event until it is kept, and those of the simulation, which do anything."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from random import Random

import httpx2

from receiver.edge.auth import mint
from tests.killing.ledger import Ledger, Posting, Told
from tests.simulation.senders import SENDERS, Facts, Post, Senders

_STEADY = 24
_RECKLESS = 12
_TOKEN_SECONDS = 86_400
#: The time-out of a sender's client; the edge goes on with a request after its client has left.
_TIMEOUTS_SECONDS = (0.02, 1.0, 15.0)
_TIMEOUT_WEIGHTS = (5, 15, 80)
_TYPE = "org.camaraproject.quality-on-demand.v1.qos-status-changed"
_ENDS = ("DURATION_EXPIRED", "DELETE_REQUESTED", "NETWORK_TERMINATED")
#: The steady sessions' ways, as the simulation spells them. A way that goes to and fro stays on one edge: with two, one
#: change may overtake another, which then is no change any more.
_RISING = ("AE", "RAE", "E", "RE", "U")
_ANY_LIFE = (*_RISING, "AUAE", "AUAUAUAUE")
_STATUSES = {"R": "REQUESTED", "A": "AVAILABLE", "U": "UNAVAILABLE", "E": "UNAVAILABLE"}


class Load:
    """Posts until `stop`, about `rate` notifications a second, and keeps the ledger."""

    def __init__(self, edge_urls: Sequence[str], secret: str, seed: int, rate: float) -> None:
        self.ledger = Ledger()
        self.tally: Counter[str] = Counter()
        self._urls = edge_urls
        self._random = Random(seed)
        self._senders = Senders(Random(seed + 1))
        self._again: list[Post] = []
        self._pause_seconds = (_STEADY + _RECKLESS) / rate
        self._stopping = asyncio.Event()
        self._ids = 0
        now = time.time()
        self._tokens = {name: mint(secret.encode(), name, _TOKEN_SECONDS, now) for name in SENDERS}

    async def run(self) -> None:
        """Post until `stop`; steady sessions are played to their end."""
        limits = httpx2.Limits(max_connections=4 * (_STEADY + _RECKLESS))
        async with httpx2.AsyncClient(limits=limits) as client, asyncio.TaskGroup() as tasks:
            for _ in range(_STEADY):
                tasks.create_task(self._be_steady(client))
            for _ in range(_RECKLESS):
                tasks.create_task(self._be_reckless(client))

    def stop(self) -> None:
        """Begin no more sessions."""
        self._stopping.set()

    async def _be_steady(self, client: httpx2.AsyncClient) -> None:
        while not self._stopping.is_set():
            edge = self._random.choice((None, *range(len(self._urls))))
            life = self._random.choice(_RISING if edge is None else _ANY_LIFE)
            sender = self._random.choice(("acme", "bell"))
            session_id = f"steady-{self._random.getrandbits(64):016x}"
            for number, step in enumerate(life):
                info = self._random.choice(_ENDS) if step == "E" else None
                told = Told(number, edge, is_last=number == len(life) - 1)
                micros = time.time_ns() // 1000
                posting = self._steady_posting(sender, session_id, _STATUSES[step], info, micros, told)
                await self._until_kept(client, posting)
                if self._random.random() < 0.15:
                    self.tally["told again"] += 1
                    await self._post(client, posting, self._edge(told))
                if self._random.random() < 0.15:
                    self.tally["told again under a new id"] += 1
                    again = self._steady_posting(sender, session_id, _STATUSES[step], info, micros, told)
                    await self._post(client, again, self._edge(told))

    async def _until_kept(self, client: httpx2.AsyncClient, posting: Posting) -> None:
        status = None
        while status != 204:
            status = await self._post(client, posting, self._edge(posting.told))
            await asyncio.sleep(0 if status == 204 else self._random.uniform(0.02, 0.5))
        await asyncio.sleep(self._random.expovariate(1 / self._pause_seconds))

    async def _be_reckless(self, client: httpx2.AsyncClient) -> None:
        while not self._stopping.is_set():
            await asyncio.sleep(self._random.expovariate(1 / self._pause_seconds))
            if self._again and self._random.random() < 0.5:
                post = self._again.pop(self._random.randrange(len(self._again)))
                self.tally["posted again"] += 1
            else:
                post = self._senders.next(time.time_ns() // 1000)
            post.attempts += 1
            status = await self._post(client, self._reckless_posting(post), self._edge(None))
            if (status is None or status == 503) and post.attempts <= post.patience:
                self._again.append(post)

    def _edge(self, told: Told | None) -> int:
        return self._random.randrange(len(self._urls)) if told is None or told.edge is None else told.edge

    async def _post(self, client: httpx2.AsyncClient, posting: Posting, edge: int) -> int | None:
        """Post once; returns the status, None if there was no answer."""
        attempt = self.ledger.begin(edge, posting, time.monotonic())
        headers = {
            "authorization": f"Bearer {self._tokens.get(posting.sender, posting.sender)}",
            "content-type": posting.content_type,
            "x-correlator": attempt.correlator,
        }
        seconds = self._random.choices(_TIMEOUTS_SECONDS, _TIMEOUT_WEIGHTS)[0]
        try:
            answer = await client.post(self._urls[edge], content=posting.body, headers=headers, timeout=seconds)
        except httpx2.TimeoutException:
            self.tally["given up"] += 1
        except httpx2.HTTPError:
            self.tally["no answer"] += 1
        else:
            attempt.answered, attempt.status = time.monotonic(), answer.status_code
            self.tally[f"answered {answer.status_code}"] += 1
        return attempt.status

    def _steady_posting(  # noqa: PLR0917  # the parts of an event
        self, sender: str, session_id: str, status: str, info: str | None, micros: int, told: Told
    ) -> Posting:
        self._ids += 1
        identifier, source = f"s{self._ids}", f"/{sender}"
        time_text = datetime.fromtimestamp(micros / 1e6, UTC).isoformat(timespec="microseconds")
        micros = _micros(time_text)
        detail = {"sessionId": session_id, "qosStatus": status} | ({"statusInfo": info} if info else {})
        tree: dict[str, object]
        if SENDERS[sender] == "cloudevents":
            facts = Facts("event", session_id, status, info, micros, identifier, source, _TYPE)
            tree = {"id": identifier, "source": source, "specversion": "1.0", "type": _TYPE, "time": time_text}
            tree["data"] = detail
        else:
            facts = Facts("event", session_id, status, info, micros, identifier, None, "QOS_STATUS_CHANGED")
            tree = {"eventId": identifier, "eventType": facts.type, "eventTime": time_text, "eventDetail": detail}
        return Posting(sender, json.dumps(tree).encode(), "application/json", facts, told)

    @staticmethod
    def _reckless_posting(post: Post) -> Posting:
        headers: Mapping[bytes, bytes] = dict(post.headers)
        sender = headers[b"authorization"].decode().removeprefix("Bearer ")
        return Posting(sender, post.body, headers[b"content-type"].decode(), post.facts)


def _micros(text: str) -> int:
    """The microseconds in a text, which a float could not hold."""
    whole, _, rest = text.removesuffix("+00:00").partition(".")
    return int(datetime.fromisoformat(f"{whole}+00:00").timestamp()) * 1_000_000 + int(rest)
