"""A short run of random requests, and that its model sees each kind of fault."""

import ast
import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvloop

from tests.fuzz_requests import Fuzz, fuzz, started
from tests.fuzzing.expected import Request
from tests.fuzzing.judge import TOPICS, Judge, Place
from tests.fuzzing.talking import Answer
from tests.fuzzing.tokens import Tokens, key_server

FUZZING = Path(__file__).parent / "fuzzing"
SECRET = b"a token"


@pytest.mark.long
def test_hundreds_of_requests_are_answered_as_they_must_be(tmp_path: Path) -> None:
    """For a few hundred requests of a seed every answer and every record is right, and nothing else is wrong."""
    outcome = fuzz(tmp_path, 400, seed=8)
    assert not outcome.found
    assert outcome.answers.keys() >= {"204", "400", "401", "404", "405", "413", "415", "closed"}
    assert set(outcome.records) == set(TOPICS)
    assert len(outcome.asked) > 150


def test_the_model_shares_nothing_with_the_receiver() -> None:
    """The right results follow from how a request was made: the model imports nothing of the program."""
    for path in FUZZING.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if name.partition(".")[0] == "receiver"], path.name


class Heard(NamedTuple):
    """A request, and its answers."""

    place: Place
    request: Request
    answers: Sequence[Answer]


class Run(NamedTuple):
    """All that a judge took in."""

    heard: list[Heard]
    seen: list[tuple[str, dict[str, Any]]]

    def wrong(self) -> int:
        """The number of a judge's findings."""
        judge = Judge([SECRET])
        for each in self.heard:
            judge.hear(*each)
        for topic, record in self.seen:
            judge.see(topic, record)
        judge.end()
        return len(judge.found)

    def first(self, status: int) -> int:
        """The place of the first request with this answer, with records of its own and a correlator."""
        return next(
            number
            for number, (_, request, (answer, *_)) in enumerate(self.heard)
            if answer.status == status and request.correlator and request.method == "POST"
        )

    def record(self, topic: str, **members: object) -> dict[str, Any]:
        """The first record of a topic whose value has these members."""
        return next(
            record for name, record in self.seen if name == topic and members.items() <= record["value"].items()
        )

    def without(self, topic: str, **members: object) -> None:
        """Remove that record."""
        self.seen.remove((topic, self.record(topic, **members)))

    def answer(self, of: int, /, **changes: object) -> None:
        """Change the first answer of that status."""
        at = self.first(of)
        first, *more = self.heard[at].answers
        self.heard[at] = self.heard[at]._replace(answers=[first._replace(**changes), *more])  # type: ignore[arg-type]

    def answer_again(self, status: int) -> None:
        """Answer the first request with this answer once more."""
        at = self.first(status)
        answers = self.heard[at].answers
        self.heard[at] = self.heard[at]._replace(answers=[*answers, answers[0]])


class _Recorder(Judge):
    """Keeps the judge's input."""

    def __init__(self) -> None:
        super().__init__([])
        self.run = Run([], [])

    def hear(self, place: Place, request: Request, answers: Sequence[Answer]) -> None:
        """See Judge."""
        self.run.heard.append(Heard(place, request, answers))
        super().hear(place, request, answers)

    def see(self, topic: str, record: Any) -> None:  # noqa: ANN401  # JSON
        """See Judge."""
        self.run.seen.append((topic, record))
        super().see(topic, record)


@pytest.fixture(scope="module")
def true_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A real receiver's answers and records, which are all right."""
    tokens, recorder = Tokens(random.Random(3)), _Recorder()
    with key_server(tokens.keys) as jwks_url:
        run = Fuzz(started(tmp_path_factory.mktemp("fuzz"), tokens, jwks_url), tokens, 3)
        run.judge = recorder
        uvloop.run(run.post(iter(range(1_000)), 150))
        run.compare()
        run.look()
    assert not recorder.found
    return recorder.run


def _value(topic: str, **changes: object) -> Callable[[Run], object]:
    return lambda run: run.record(topic)["value"].update(changes)


def _header(topic: str, **changes: str) -> Callable[[Run], object]:
    return lambda run: run.record(topic)["headers"].update(
        {name.replace("__", "-"): value for name, value in changes.items()}
    )


ALTERED: dict[str, Callable[[Run], object]] = {
    "another status": lambda run: run.answer(204, status=202),
    "refused": lambda run: run.answer(204, status=400),
    "taken": lambda run: run.answer(401, status=204, content=b""),
    "our own failure": lambda run: run.answer(204, status=500),
    "not kept for now": lambda run: run.answer(204, status=503),
    "no answer": lambda run: run.answer(204, status=0),
    "a body in 204": lambda run: run.answer(204, content=b"{}"),
    "no error body": lambda run: run.answer(400, content=b""),
    "another code": lambda run: run.answer(401, content=b'{"status":401,"code":"NO","message":"x"}'),
    "a token in an answer": lambda run: run.answer(
        400, content=b'{"status":400,"code":"INVALID_ARGUMENT","message":"%b"}' % SECRET
    ),
    "another correlator": lambda run: run.answer(204, headers={"x-correlator": "another"}),
    "no correlator": lambda run: run.answer(204, headers={}),
    "two answers": lambda run: run.answer_again(204),
    "a change lost": lambda run: run.without("status"),
    "an end lost": lambda run: run.without("unavailable"),
    "a dead letter lost": lambda run: run.without("dead-letter"),
    "a session lost": lambda run: run.without("sessions"),
    "a change twice": lambda run: run.seen.append(run.seen[0]),
    "a change twice, from two places": lambda run: run.seen.append(
        ("status", {**run.record("status"), "headers": {**run.record("status")["headers"], "inbox": "0-99999"}})
    ),
    "nobody's change": _header("status", x__correlator="nobodys"),
    "another sender": _value("status", sender="nobody"),
    "another status on a topic": lambda run: run.record("unavailable")["value"].update(qosStatus="AVAILABLE"),
    "another reason": _value("unavailable", statusInfo="x"),
    "another time": _value("status", time="2026-01-01T00:00:00Z"),
    "expected or not": lambda run: run.record("unavailable", unexpected=True)["value"].update(unexpected=False),
    "late or not": _value("status", late=True),
    "another id": _header("status", ce_id="x"),
    "another source": _header("status", ce_source="x"),
    "another type": _header("status", ce_type="x"),
    "another verdict": _header("status", verdict="late"),
    "a member more": _value("status", more=1),
    "an origin": _header("status", origin="client"),
    "another timestamp": lambda run: run.record("status").update(timestamp="2026-01-01T00:00:00Z"),
    "another state": _value("sessions", qosStatus="SUSPENDED"),
    "another body": _value("dead-letter", body="e30="),
    "another verdict of a letter": _value("dead-letter", verdict="conflict"),
    "no reason": _value("dead-letter", reason=""),
    "another header kept": lambda run: run.record("dead-letter")["value"]["headers"].update({"content-type": "x"}),
}


@pytest.mark.parametrize("name", ALTERED)
def test_whatever_is_wrong_is_seen(true_run: Run, name: str) -> None:
    """A run with one altered answer or record has findings; the original has none."""
    run = Run(list(true_run.heard), deepcopy(true_run.seen))
    assert not run.wrong()
    ALTERED[name](run)
    assert run.wrong()


def test_another_expectation_is_not_met(true_run: Run) -> None:
    """A model that expects another status, or another record, has findings."""
    at = true_run.first(204)
    place, request, answers = true_run.heard[at]
    *lines, line = request.right[204]
    assert line[0] != "sessions"
    for right in ({400: ()}, {204: lines}, {204: [line, *lines, line]}, {204: [(*line[:-1], "x"), *lines]}):
        heard = list(true_run.heard)
        heard[at] = Heard(place, request._replace(right=right), answers)
        assert Run(heard, true_run.seen).wrong()
