"""SIGKILL under load, checked from outside: `python -m tests.kill --rounds 100`.

Senders post, and post again what was not answered, while the receiver is killed and started again. A journal keeps the
notifications that were answered 204. In the end the command line reads the topics, and they are compared with the
journal: no loss, no repetition, no record that was never sent, in order per session, all topics of an event or none,
the right final state.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import httpx2

from tests.limits import SECONDS_MAX
from tests.receiver_process import ReceiverProcess, run, tail

_SENDERS = 24
#: Each round lasts until this many more notifications were kept, and a moment longer.
_KEPT_MIN = 20
_TYPE = "org.camaraproject.quality-on-demand.v1.qos-status-changed"
_ENDS = ("DURATION_EXPIRED", "DELETE_REQUESTED", "NETWORK_TERMINATED", None)


class Load:
    """Senders that play sessions from beginning to end, whatever happens to the receiver."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._stopping = False
        self.receiver: ReceiverProcess | None = None
        self.kept: dict[str, dict[str, Any]] = {}
        self.sent: set[str] = set()
        self.faults: Counter[str] = Counter()

    async def run(self) -> None:
        """Post until `stop`; each session that was begun is played to its end."""
        async with httpx2.AsyncClient(timeout=5) as client, asyncio.TaskGroup() as tasks:
            for _ in range(_SENDERS):
                tasks.create_task(self._send(client))

    async def more(self, count: int) -> None:
        """Wait until `count` more notifications were kept."""
        wanted = len(self.kept) + count
        async with asyncio.timeout(SECONDS_MAX):
            while len(self.kept) < wanted:  # noqa: ASYNC110  # there is no event to wait for
                await asyncio.sleep(0.01)

    def stop(self) -> None:
        """Begin no more sessions."""
        self._stopping = True

    async def _send(self, client: httpx2.AsyncClient) -> None:
        while not self._stopping:
            session_id = f"{self._random.getrandbits(128):032x}"
            end = self._random.choice(_ENDS)
            events = [self._event(session_id, "AVAILABLE", None), self._event(session_id, "UNAVAILABLE", end)]
            for event in events:
                await self._post(client, event)
                if self._random.random() < 0.2:
                    self.faults["repeated"] += 1
                    await self._post(client, event)

    def _event(self, session_id: str, status: str, end: str | None) -> dict[str, Any]:
        fact = {"sessionId": session_id, "qosStatus": status} | ({"statusInfo": end} if end else {})
        return {
            "id": f"{self._random.getrandbits(64):016x}",
            "source": "/kill",
            "specversion": "1.0",
            "type": _TYPE,
            "time": f"2026-11-24T10:00:{'00' if status == 'AVAILABLE' else '30'}Z",
            "data": fact,
        }

    async def _post(self, client: httpx2.AsyncClient, event: dict[str, Any]) -> None:
        body = json.dumps(event).encode()
        self.sent.add(event["id"])
        while True:
            receiver = self.receiver
            if receiver is None:
                await asyncio.sleep(0.01)
                continue
            try:
                answer = await client.post(
                    receiver.edge_url,
                    content=body,
                    headers={
                        "authorization": f"Bearer {receiver.token}",
                        "content-type": "application/cloudevents+json",
                    },
                )
            except httpx2.HTTPError:
                self.faults["no answer"] += 1
                await asyncio.sleep(0.01)
                continue
            assert answer.status_code in {204, 503}, f"{answer.status_code}: {answer.text}"
            if answer.status_code == 204:
                self.kept[event["id"]] = event
                return
            self.faults["503"] += 1
            await asyncio.sleep(0.05)


async def kill_rounds(directory: Path, rounds: int, seed: int) -> Load:
    """Kill and restart the receiver `rounds` times under load, then let it drain and end it."""
    chance = random.Random(seed)
    load = Load(seed)
    load.receiver = await asyncio.to_thread(ReceiverProcess, directory)
    running = asyncio.create_task(load.run())
    for number in range(rounds):
        await load.more(_KEPT_MIN)
        await asyncio.sleep(chance.uniform(0.05, 0.6))
        receiver, load.receiver = load.receiver, None
        assert receiver is not None
        receiver.kill()
        load.faults["kill"] += 1
        load.receiver = await asyncio.to_thread(ReceiverProcess, directory)
        print(f"\r{number + 1} of {rounds} kills, {len(load.kept)} kept", end="", flush=True)
    print()
    load.stop()
    await running
    assert load.receiver is not None
    await asyncio.to_thread(load.receiver.wait_until_routed, 0)
    status = await asyncio.to_thread(load.receiver.terminate)
    assert status == 0, f"exit status {status} after SIGTERM"
    return load


def check(directory: Path, load: Load) -> Counter[str]:
    """The faults, by kind; empty if there are none."""
    wrong: Counter[str] = Counter()
    status, unavailable = tail(directory, "status"), tail(directory, "unavailable")
    seen = Counter(record["headers"]["ce_id"] for record in status)
    wrong["lost"] = sum(identity not in seen for identity in load.kept)
    wrong["repeated"] = sum(count - 1 for count in seen.values())
    wrong["phantom"] = sum(identity not in load.sent for identity in seen)
    ended = Counter(record["headers"]["ce_id"] for record in unavailable)
    expected_ends = Counter(
        record["headers"]["ce_id"] for record in status if record["value"]["qosStatus"] == "UNAVAILABLE"
    )
    wrong["torn"] = sum(((ended - expected_ends) + (expected_ends - ended)).values())
    by_session: dict[str, list[str]] = defaultdict(list)
    for record in status:
        by_session[record["key"]].append(record["value"]["qosStatus"])
    wrong["out of order"] = sum(states != ["AVAILABLE", "UNAVAILABLE"] for states in by_session.values())
    lines = run("sessions", "--data", str(directory), "--json", "--limit", str(2 * len(by_session) + 1)).splitlines()
    final = {session["sessionId"]: session for session in map(json.loads, lines)}
    ends = {event["data"]["sessionId"]: event["data"] for event in load.kept.values()}
    wrong["wrong final state"] = sum(
        final.get(session_id, {}).get("statusInfo") != end.get("statusInfo")
        or final.get(session_id, {}).get("qosStatus") != "UNAVAILABLE"
        for session_id, end in ends.items()
    )
    return +wrong


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    with tempfile.TemporaryDirectory() as directory:
        load = asyncio.run(kill_rounds(Path(directory), arguments.rounds, arguments.seed))
        wrong = check(Path(directory), load)
    print(f"{len(load.kept)} notifications answered 204; faults: {dict(load.faults)}")
    print(f"wrong: {dict(wrong) or 'nothing'}")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
