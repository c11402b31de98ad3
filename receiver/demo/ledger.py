"""A client of the simulator's ledger, over HTTP, as any test of a receiver would use it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import httpx2

from receiver.core import rfc3339

_PAGE = 2_000


class Post(NamedTuple):
    """A post, made or never made: the members of the ledger's entry that are used here.

    `status_info` and `time` are as told, None if not told. `answered_micros` is the time of the answer.
    """

    sequence: int
    session: int
    session_id: str
    step: int
    copy: int
    attempt: int
    release: str
    qos_status: str
    status_info: str | None
    time: str | None
    sent: str
    malformed: str | None
    authorization: str | None
    odd: str | None
    faults: Sequence[str]
    body_sha256: str | None
    correlator: str | None
    posted_micros: int
    answered_micros: int
    answer: int | None
    failure: str | None
    is_done: bool

    @property
    def is_made(self) -> bool:
        """Whether anything was sent."""
        return self.sent != "nothing"


class Ledger:
    """The part of the ledger that was read so far.

    `posts` are in the order of their beginnings; the first `settled` of them have ended. `is_quiet` is whether every
    session so far has ended and no post is still to come; `lives` then has each session's real end, by session id.
    """

    def __init__(self, client: httpx2.AsyncClient, url: str) -> None:
        self.posts: list[Post] = []
        self.settled = 0
        self.is_quiet = False
        self.lives: dict[str, tuple[str, str | None]] = {}
        self._client = client
        self._url = url

    async def follow(self) -> None:
        """Read new entries."""
        summary = await self._read("/ledger/summary", {})
        statuses = summary["statuses"]
        # The summary is read before the posts: if it has none still to come, all posts can be read.
        is_quiet = not (statuses["REQUESTED"] or statuses["AVAILABLE"] or any(summary["posts"].values()))
        while True:
            page = await self._read("/ledger", {"from": self.settled + 1, "limit": _PAGE})
            del self.posts[self.settled :]
            self.posts += map(post_of, page["entries"])
            while self.settled < len(self.posts) and self.posts[self.settled].is_done:
                self.settled += 1
            if len(page["entries"]) < _PAGE:
                break
        if is_quiet and len(self.lives) != summary["sessions"]:
            await self._read_lives()
        self.is_quiet = is_quiet

    async def _read_lives(self) -> None:
        start = 1
        while (page := await self._read("/ledger/sessions", {"from": start, "limit": _PAGE}))["sessions"]:
            start = page["next"]
            for life in page["sessions"]:
                last = life["states"][-1]
                self.lives[life["sessionId"]] = last["qosStatus"], last["statusInfo"]

    async def _read(self, path: str, parameters: Mapping[str, int]) -> dict[str, Any]:
        answer = await self._client.get(self._url + path, params=parameters)
        answer.raise_for_status()
        read: dict[str, Any] = answer.json()
        return read


def post_of(entry: Mapping[str, Any]) -> Post:
    """The post in an entry of the ledger."""
    posted_micros = rfc3339.micros(entry["postedAt"]) if entry["postedAt"] else 0
    return Post(
        sequence=entry["sequence"],
        session=entry["session"],
        session_id=entry["sessionId"],
        step=entry["step"],
        copy=entry["copy"],
        attempt=entry["attempt"],
        release=entry["release"],
        qos_status=entry["qosStatus"],
        status_info=entry["statusInfo"],
        time=entry["time"],
        sent=entry["sent"],
        malformed=entry["malformed"],
        authorization=entry["authorization"],
        odd=entry["odd"],
        faults=entry["faults"],
        body_sha256=entry["bodySha256"],
        correlator=entry["correlator"],
        posted_micros=posted_micros,
        answered_micros=posted_micros + round((entry["seconds"] or 0) * 1e6),
        answer=entry["answer"],
        failure=entry["failure"],
        is_done=entry["done"],
    )
