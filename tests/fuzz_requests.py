"""Random requests to a running receiver, with a model of the right answers: `python -m tests.fuzz_requests`.

They are posted over real sockets, kept alive, pipelined and cut anywhere: notifications of every release with every
oddity, bodies that are cut off, changed, coded and batched, tokens in every spelling and forged ones, heads that are
odd, too long or meant to smuggle, sessions with repetitions. The way a request was made determines its answer and its
records; in the end every answer and every record is compared with that. The exit status is 1 if anything is wrong, and
the output says how to repeat it.
"""

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2
import uvloop

from tests.fuzzing.judge import TOPICS, Finding, Judge, Place, Record
from tests.fuzzing.maker import Conversation, Maker
from tests.fuzzing.talking import Talker
from tests.fuzzing.tokens import Tokens, key_server
from tests.limits import SECONDS_MAX
from tests.receiver_process import ReceiverProcess

_TALKERS = 16
_PAGE = 5_000
#: README, "Memory": the bytes of a process with a file, and of each remembered session.
_MEMORY_BYTES_MAX = 320 * 1024 * 1024
_SESSION_BYTES_MAX = 220
#: Files that come and go: the database's, and those of a request to the operations port.
_DESCRIPTORS_MORE = 24
_LOOK_SECONDS = 0.5


class Outcome(NamedTuple):
    """The result of a run: requests, answers and kept notifications by kind, and all that is wrong."""

    asked: Counter[str]
    wrong: Counter[str]
    answers: Counter[str]
    records: Counter[str]
    found: Sequence[Finding]
    memory_bytes: int
    descriptors: tuple[int, int, int]
    seconds: float


class _Cost:
    """The cost of a process: the most descriptors that were seen, and its peak memory."""

    def __init__(self, process_id: int) -> None:
        self._proc = Path(f"/proc/{process_id}")
        self.first = self.most = self.descriptors()

    def descriptors(self) -> int:
        """The number of files that the process has open now."""
        return len(os.listdir(self._proc / "fd"))  # noqa: PTH208  # names only

    def memory_bytes(self) -> int:
        """The peak of its memory."""
        lines = (self._proc / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

    async def watch(self) -> None:
        """Count its descriptors again and again, for ever."""
        while True:
            self.most = max(self.most, self.descriptors())
            await asyncio.sleep(_LOOK_SECONDS)


class Fuzz:
    """A receiver, the requests to it, and the expected results."""

    def __init__(self, receiver: ReceiverProcess, tokens: Tokens, seed: int) -> None:
        tokens.use_secret((receiver.directory / "token-secret").read_text().strip().encode())
        self.receiver = receiver
        self.maker = Maker(tokens, seed, datetime.now(UTC))
        self.judge = Judge([token.encode() for token in (*tokens.every(), receiver.token)])
        self._secrets = [token.encode() for token in (*tokens.every(), receiver.token)]
        self._count = 0
        self._cost = _Cost(receiver.process.pid)

    async def post(self, numbers: Iterator[int], count: int) -> None:
        """Hold the conversations of these numbers, a few at a time, until `count` requests were made."""
        port = urlsplit(self.receiver.edge_url).port or 0

        async def talk() -> None:
            talker = Talker(port)
            while self._count < count and (number := next(numbers, None)) is not None:
                self._hold(conversation := self.maker.conversation(number))
                answers = await talker.talk(conversation)
                for index, request in enumerate(conversation.requests):
                    self.judge.hear(Place(number, index), request, answers[index])
            await talker.close()

        watching = asyncio.create_task(self._cost.watch())
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_TALKERS):
                tasks.create_task(talk())
        watching.cancel()

    def _hold(self, conversation: Conversation) -> None:
        before, self._count = self._count, self._count + len(conversation.requests)
        if before // 1000 < self._count // 1000:
            print(f"\r{self._count} requests, {len(self.judge.found)} wrong", end="", flush=True)

    def compare(self) -> None:
        """Wait until all notifications are routed, and compare the topics with the expected records."""
        self.receiver.wait_until_routed(0)
        for topic in TOPICS:
            for record in self._records(topic):
                self.judge.see(topic, record)
        self.judge.end()

    def _records(self, topic: str) -> Iterator[Record]:
        start = "beginning"
        while True:
            page = httpx2.get(
                f"{self.receiver.ops_url}/topics/{topic}",
                params={"from": start, "limit": str(_PAGE)},
                timeout=SECONDS_MAX,
            )
            if any(secret in page.content for secret in self._secrets):
                self.judge.found.append(Finding(None, f"{topic} has a token"))
            told = page.json()
            yield from told["records"]
            if not told["records"]:
                return
            start = told["next"]

    def look(self) -> tuple[int, tuple[int, int, int]]:
        """Check the process itself; returns its memory, and its descriptors before, at most and now."""
        found = self.judge.found
        ready = httpx2.get(f"{self.receiver.ops_url}/readyz", timeout=SECONDS_MAX)
        if ready.status_code != 200:
            found.append(Finding(None, f"/readyz is {ready.status_code}: {ready.text}"))
        deadline = time.monotonic() + SECONDS_MAX
        while (now := self._cost.descriptors()) > self._cost.first + 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        descriptors = self._cost.first, self._cost.most, now
        if now > self._cost.first + 2 or self._cost.most > self._cost.first + _TALKERS + _DESCRIPTORS_MORE:
            found.append(Finding(None, f"descriptors at first, at most and at last: {descriptors}"))
        memory_bytes = self._cost.memory_bytes()
        if memory_bytes > _MEMORY_BYTES_MAX + _SESSION_BYTES_MAX * self.judge.records["sessions"]:
            found.append(Finding(None, f"the process had {memory_bytes} bytes"))
        if status := self.receiver.terminate():
            found.append(Finding(None, f"exit status {status}"))
        self._read_log()
        return memory_bytes, descriptors

    def _read_log(self) -> None:
        log = self.receiver.log.read_bytes()
        if any(secret in log for secret in self._secrets):
            self.judge.found.append(Finding(None, "the log has a token"))
        for line in log.splitlines():
            level = ""
            with suppress(ValueError):
                level = json.loads(line).get("level", "")
            if level not in {"debug", "info", "warning"}:
                self.judge.found.append(Finding(None, f"in the log: {line!r:.1000}"))


def started(directory: Path, tokens: Tokens, jwks_url: str) -> ReceiverProcess:
    """A receiver that accepts these tokens."""
    configuration = directory / "receiver.toml"
    configuration.write_text(tokens.configuration(jwks_url))
    return ReceiverProcess(directory / "data", "--config", str(configuration), "--log-level", "warning")


def fuzz(directory: Path, count: int, seed: int, only: int | None = None) -> Outcome:
    """Make `count` requests of a seed, or those of one conversation, and check their results."""
    tokens = Tokens(random.Random(seed))
    with key_server(tokens.keys) as jwks_url:
        run = Fuzz(started(directory, tokens, jwks_url), tokens, seed)
        began = time.monotonic()
        try:
            numbers = iter(range(1, 10 * count + 1) if only is None else [only])
            uvloop.run(run.post(numbers, count))
            run.compare()
            cost = run.look()
        finally:
            run.receiver.kill()
    judge = run.judge
    told = judge.asked, judge.wrong, judge.answers, judge.records, judge.found
    return Outcome(*told, *cost, time.monotonic() - began)


def shown(outcome: Outcome) -> None:
    """Print a table: for each feature of requests, how many had it and how many of these were wrong."""
    print()
    for tag, count in sorted(outcome.asked.items()):
        print(f"{count:9} {outcome.wrong[tag] or '':>9}  {tag}")
    requests, first = sum(outcome.answers.values()), outcome.descriptors
    print(f"{requests} requests, {outcome.seconds:.0f} s; answers: {dict(sorted(outcome.answers.items()))}")
    print(f"records: {dict(outcome.records)}; memory: {outcome.memory_bytes >> 20} MiB; descriptors: {first}")


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", type=int, help="hold this conversation alone, and show it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-requests-") as directory:
        outcome = fuzz(Path(directory), given.count, given.seed, given.only)
    shown(outcome)
    for place, what in outcome.found[:50]:
        again = "" if place is None else f"--seed {given.seed} --only {place.conversation}, request {place.at}: "
        print(f"WRONG: {again}{what[:1200]}")
    print(f"seed {given.seed}: {len(outcome.found)} wrong")
    raise SystemExit(bool(outcome.found))


if __name__ == "__main__":
    main()
