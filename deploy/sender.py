"""`sender.py [--rate R] URL`: posts what an operator would, until it is told to end.

Its sessions are the demonstration's, which know nothing of the parser: three dialects, repetitions, late ones, a body
cut off, a wrong token. Each answer is compared with the planned one. Like an operator's, a post is made once, whatever
becomes of it. The token comes from QOD_SENDER_TOKEN. Exit status: 0 where every answer was as planned, else 1.
"""
# ruff: noqa: INP001  # a script, in no package

import argparse
import asyncio
import json
import os
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx2

from receiver.demo.sender import Post, plan

#: A plan is made anew so often, with other sessions.
_PLAN_SECONDS = 60.0
#: Posts of one of the demonstration's sessions, on average over the lives that these take in turn.
_POSTS_PER_SESSION = 23 / 9
_REPORT_SECONDS = 10.0
_ANSWER_SECONDS_MAX = 10.0
#: More are not posted at a time: a receiver that answers slowly gets a lower rate, not a crowd.
_IN_FLIGHT_MAX = 64


class Sender:
    """Posts to a URL at a rate, and counts what was answered."""

    def __init__(self, client: httpx2.AsyncClient, url: str, token: str, rate_per_second: float) -> None:
        self.as_planned = 0
        self.otherwise: Counter[str] = Counter()
        self._client = client
        self._url = url
        self._authorization = f"Bearer {token}"
        self._interval_seconds = 1 / rate_per_second
        self._slots = asyncio.Semaphore(_IN_FLIGHT_MAX)

    async def run(self, stopping: asyncio.Event) -> None:
        """Post until `stopping`, then wait for the answers."""
        due = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for post in self._posts():
                await self._slots.acquire()
                if await _waited(stopping, due - time.monotonic()):
                    return
                due = max(due, time.monotonic() - self._interval_seconds) + self._interval_seconds
                tasks.create_task(self._post(post))

    async def report(self, stopping: asyncio.Event) -> None:
        """Print the counts every now and then, and at the end."""
        while not await _waited(stopping, _REPORT_SECONDS):
            self.tell()

    def tell(self) -> None:
        """Print the counts."""
        print(json.dumps({"as_planned": self.as_planned, "otherwise": self.otherwise}), flush=True)  # noqa: T201

    def _posts(self) -> Iterator[Post]:
        sessions = max(1, round(_PLAN_SECONDS / self._interval_seconds / _POSTS_PER_SESSION))
        while True:
            yield from plan(sessions, _PLAN_SECONDS, datetime.now(UTC), secrets.randbits(64)).posts

    async def _post(self, post: Post) -> None:
        try:
            headers = {"authorization": self._authorization, **post.headers}
            answer = await self._client.post(self._url + post.path_suffix, content=post.body, headers=headers)
        except httpx2.HTTPError as error:
            self.otherwise[type(error).__name__] += 1
        else:
            if answer.status_code == post.status_code:
                self.as_planned += 1
            else:
                self.otherwise[f"{answer.status_code} in place of {post.status_code}"] += 1
        finally:
            self._slots.release()


async def _waited(stopping: asyncio.Event, seconds: float) -> bool:
    """Wait so long, or until `stopping`; whether it is."""
    try:
        await asyncio.wait_for(stopping.wait(), max(0.0, seconds))
    except TimeoutError:
        return False
    return True


async def _send(url: str, token: str, rate_per_second: float) -> bool:
    """Post until SIGTERM or SIGINT; whether all answers were as planned."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    limits = httpx2.Limits(max_connections=_IN_FLIGHT_MAX)
    async with httpx2.AsyncClient(timeout=_ANSWER_SECONDS_MAX, limits=limits) as client:
        sender = Sender(client, url, token, rate_per_second)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(sender.run(stopping))
            tasks.create_task(sender.report(stopping))
        sender.tell()
    return not sender.otherwise


def main() -> None:
    """The program. Ends with SystemExit."""
    parser = argparse.ArgumentParser(description="Post what an operator would, until told to end.")
    parser.add_argument("url", help="notificationUrl of the receiver")
    parser.add_argument("--rate", type=float, default=5.0, help="notifications per second [default: %(default)s]")
    arguments = parser.parse_args()
    token = os.environ.get("QOD_SENDER_TOKEN", "")
    if arguments.rate <= 0 or not token:
        parser.error("a rate above 0 is wanted, and a token in QOD_SENDER_TOKEN")
    sys.exit(not asyncio.run(_send(arguments.url, token, arguments.rate)))


if __name__ == "__main__":
    main()
