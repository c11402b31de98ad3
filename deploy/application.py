"""`application.py [--rate R] API_URL NOTIFICATION_URL`: asks a QoD API for sessions, until it is told to end.

It is what a user's application does: an access token, then one session after the other, each for a device of its own
and told to NOTIFICATION_URL with the token in QOD_SENDER_TOKEN. After every fifth it deletes the oldest of the last
ten, if that has not ended by itself. Its client is the one that `qod-receiver simulate` always has. Exit status: 0
where all that it asked for was granted, else 1.
"""
# ruff: noqa: INP001  # a script, in no package

import argparse
import asyncio
import json
import os
import random
import signal
import sys
from collections import Counter, deque
from http import HTTPStatus

import httpx2

_CLIENT = ("demo", "demo")
_REPORT_SECONDS = 5.0
_ANSWER_SECONDS_MAX = 10.0
_DURATIONS = (120, 1_200)
_DEVICES = 1_000_000
_DELETED_EVERY = 5
_DELETED_AFTER = 10


class Application:
    """A client of the API, and counts of what it asked for."""

    def __init__(self, client: httpx2.AsyncClient, api_url: str, notification_url: str, token: str) -> None:
        self.created = self.deleted = 0
        self.refused: Counter[str] = Counter()
        self._client = client
        self._api_url = api_url
        self._wanted = {"qosProfile": "QOS_E", "notificationUrl": notification_url, "notificationAuthToken": token}
        self._headers: dict[str, str] = {}
        # Another than that of the run before, whose devices may still have sessions.
        self._asked = random.randrange(_DEVICES)  # noqa: S311  # no secret
        self._newest: deque[str] = deque(maxlen=_DELETED_AFTER)

    async def run(self, rate_per_second: float, stopping: asyncio.Event) -> None:
        """Ask for sessions at a rate until `stopping`."""
        while not await _waited(stopping, 1 / rate_per_second):
            try:
                await self._create()
                if self.created % _DELETED_EVERY == 0 and len(self._newest) == _DELETED_AFTER:
                    await self._delete(self._newest.popleft())
            except httpx2.HTTPError as error:
                self.refused[type(error).__name__] += 1

    async def report(self, stopping: asyncio.Event) -> None:
        """Print the counts every now and then."""
        while not await _waited(stopping, _REPORT_SECONDS):
            self.tell()

    def tell(self) -> None:
        """Print the counts."""
        counts = {"created": self.created, "deleted": self.deleted, "refused": self.refused}
        print(json.dumps(counts), flush=True)  # noqa: T201

    async def _create(self) -> None:
        self._asked += 1
        device = {"phoneNumber": f"+34600{self._asked % _DEVICES:06d}"}
        wanted = {**self._wanted, "device": device, "duration": random.randint(*_DURATIONS)}  # noqa: S311  # no secret
        answer = await self._request("POST", "/v1/qod/sessions", json=wanted)
        if answer.status_code == HTTPStatus.CREATED:
            self.created += 1
            self._newest.append(answer.json()["sessionId"])
        else:
            self.refused[str(answer.status_code)] += 1

    async def _delete(self, session_id: str) -> None:
        answer = await self._request("DELETE", f"/v1/qod/sessions/{session_id}")
        # One that has ended by itself is not found.
        self.deleted += answer.status_code == HTTPStatus.NO_CONTENT

    async def _request(self, method: str, path: str, json: object = None) -> httpx2.Response:
        """The answer to a request with an access token, which is had anew where the last one is not taken any more."""
        answer = await self._request_once(method, path, json) if self._headers else None
        if answer is None or answer.status_code == HTTPStatus.UNAUTHORIZED:
            form = {"grant_type": "client_credentials"}
            granted = await self._client.post(f"{self._api_url}/token", data=form, auth=_CLIENT)
            granted.raise_for_status()
            self._headers = {"authorization": f"Bearer {granted.json()['access_token']}"}
            answer = await self._request_once(method, path, json)
        return answer

    async def _request_once(self, method: str, path: str, json: object) -> httpx2.Response:
        return await self._client.request(method, self._api_url + path, json=json, headers=self._headers)


async def _waited(stopping: asyncio.Event, seconds: float) -> bool:
    """Wait so long, or until `stopping`; whether it is."""
    try:
        await asyncio.wait_for(stopping.wait(), seconds)
    except TimeoutError:
        return False
    return True


async def _ask(api_url: str, notification_url: str, token: str, rate_per_second: float) -> bool:
    """Ask for sessions until SIGTERM or SIGINT; whether all were granted."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with httpx2.AsyncClient(timeout=_ANSWER_SECONDS_MAX) as client:
        application = Application(client, api_url.rstrip("/"), notification_url, token)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(application.run(rate_per_second, stopping))
            tasks.create_task(application.report(stopping))
        application.tell()
    return not application.refused


def main() -> None:
    """The program. Ends with SystemExit."""
    parser = argparse.ArgumentParser(description="Ask a QoD API for sessions, until told to end.")
    parser.add_argument("api_url", help="URL of the API, without /v1")
    parser.add_argument("notification_url", help="notificationUrl of the receiver")
    parser.add_argument("--rate", type=float, default=1.0, help="sessions per second [default: %(default)s]")
    arguments = parser.parse_args()
    token = os.environ.get("QOD_SENDER_TOKEN", "")
    if arguments.rate <= 0 or not token:
        parser.error("a rate above 0 is wanted, and a token in QOD_SENDER_TOKEN")
    asked = _ask(arguments.api_url, arguments.notification_url, token, arguments.rate)
    sys.exit(not asyncio.run(asked))


if __name__ == "__main__":
    main()
