"""The kill test's oracles see each kind of fault, and see none in a short run of the real thing."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import orjson
import pytest

from receiver.core import rfc3339
from receiver.core.message import Message
from receiver.core.notification import Notification
from receiver.core.router import Router
from receiver.core.routes import Route
from receiver.core.session import Session
from tests.killing.by_inbox import by_inbox
from tests.killing.by_ledger import by_ledger
from tests.killing.findings import OUTPUTS, Topics
from tests.killing.ledger import Ledger, Posting, Told
from tests.killing.run import Plan, run
from tests.killing.topics import Standing
from tests.samples import START, body, told
from tests.simulation.senders import Facts

FORGET_SECONDS = 96 * 3600.0
ROUTER = Router(
    prefix="kill",
    routes=[Route("alerts", unexpected=True), Route("acme", senders=frozenset({"acme"}))],
    forget_after_seconds=FORGET_SECONDS,
)
#: Two sessions, one of them with a repetition, and an unreadable notification that was appended twice.
STORY = ("s A1", "s U2:N", "t A1@bell", "s U2:N", "t U3:D@bell", "malformed")

#: The faults for which a short run has time, also on a busy machine.
WANTED = (
    *("edge killed", "edge ended in order", "router killed", "third router joined"),
    *("network answers lost", "network black hole", "network cut"),
)

Forge = Callable[[Topics], Topics]
Wrong = Mapping[str, int]


def _posting(spelled: str) -> Posting:
    if spelled == "malformed":
        return Posting("acme", b"{", "application/json", Facts("malformed"))
    session_id, what = spelled.split()
    event, sender = told(f"{what}" if "@" in what else f"{what}@acme", session_id)
    status, info, micros = event.qos_status, event.status_info, event.time_micros
    facts = Facts("event", session_id, status, info, micros, event.id, event.source, event.type)
    is_end = facts.qos_status == "UNAVAILABLE"
    return Posting(sender, body(event), "application/json", facts, Told(int(is_end), 0, is_end))


def _true_story() -> tuple[Ledger, Topics]:
    """A ledger, and the right topics: the inbox in one partition, and the router's messages."""
    ledger = Ledger()
    inbox: list[Standing] = []
    outputs: dict[str, list[Standing]] = {name: [] for name in (*OUTPUTS, "sessions")}
    sessions: dict[str, Session | None] = {}
    repetition = _posting("s U2:N")
    for number, spelled in enumerate(STORY):
        attempt = ledger.begin(0, repetition if spelled == "s U2:N" else _posting(spelled), float(number))
        attempt.answered, attempt.status = number + 0.5, 400 if spelled == "malformed" else 204
        posting = attempt.posting
        micros = START + 1000 * number
        key = posting.facts.session_id or posting.sender
        headers = {"sender": posting.sender, "received-at": rfc3339.render(micros), "x-correlator": attempt.correlator}
        for _ in range(2 if spelled == "malformed" else 1):
            inbox.append(Standing(0, len(inbox), key, posting.body, {**headers, "content-type": "j"}, micros // 1000))
        notification = Notification(posting.body, key, posting.sender, micros, "j", attempt.correlator, "")
        decision = ROUTER.decide(notification, inbox[number].place, sessions.get(key), micros)
        sessions[key] = decision.session
        for message in decision.messages:
            some = outputs[message.topic.rpartition(".")[2]]
            some.append(_standing(message, len(some)))
    return ledger, Topics(inbox, {name: outputs[name] for name in OUTPUTS}, outputs["sessions"])


def _standing(message: Message, offset: int) -> Standing:
    return Standing(0, offset, message.key, message.value, dict(message.headers), message.timestamp_millis)


def _changed(name: str, change: Callable[[list[Standing]], Sequence[Standing]]) -> Forge:
    """Topics with one difference."""

    def forge(topics: Topics) -> Topics:
        if name == "inbox":
            return topics._replace(inbox=change(list(topics.inbox)))
        if name == "sessions":
            return topics._replace(sessions=change(list(topics.sessions)))
        return topics._replace(outputs={**topics.outputs, name: change(list(topics.outputs[name]))})

    return forge


def _all(*forges: Forge) -> Forge:
    def forge(topics: Topics) -> Topics:
        for each in forges:
            topics = each(topics)
        return topics

    return forge


def _telling(record: Standing, **told_instead: str) -> Standing:
    return record._replace(value=orjson.dumps({**orjson.loads(record.value or b""), **told_instead}))


def _of(record: Standing, **headers: str) -> Standing:
    return record._replace(offset=record.offset + 1, headers={**record.headers, **headers})


@pytest.mark.parametrize(
    ("forge", "inbox_wrong", "ledger_wrong"),
    [
        pytest.param(
            _all(_changed("status", lambda some: some[1:]), _changed("acme", lambda some: some[1:])),
            {"lost": 1},
            {"lost": 1},
            id="lost",
        ),
        pytest.param(_changed("inbox", lambda some: some[:5]), {"lost": 1, "phantom": 1}, {}, id="lost in the inbox"),
        pytest.param(_changed("dead-letter", lambda _: []), {"lost": 1}, {"lost": 1}, id="lost dead letter"),
        pytest.param(
            _changed("status", lambda some: [*some, some[-1]._replace(offset=9)]),
            {"repeated": 1},
            {"repeated": 1},
            id="repeated",
        ),
        pytest.param(
            _all(
                _changed("status", lambda some: [*some[:3], _of(some[1], inbox="0-3"), some[3]]),
                _changed("unavailable", lambda some: [some[0], _of(some[0], inbox="0-3"), some[1]]),
                _changed("alerts", lambda some: [*some, _of(some[0], inbox="0-3")]),
                _changed("acme", lambda some: [*some, _of(some[1], inbox="0-3")]),
            ),
            {"phantom": 4},
            {"repeated": 4},
            id="a repetition that was taken for news",
        ),
        pytest.param(
            _changed("dead-letter", lambda some: [*some, _of(some[0], inbox="0-6")]),
            {"phantom": 1},
            {"repeated dead letters": 1},
            id="a letter that died twice",
        ),
        pytest.param(
            _changed("dead-letter", lambda some: [*some, *some]),
            {"repeated dead letters": 1},
            {"repeated dead letters": 1},
            id="repeated dead letter",
        ),
        pytest.param(
            _changed("unavailable", lambda some: some[1:]), {"torn": 1}, {"torn": 1}, id="torn, the ends are missing"
        ),
        pytest.param(
            _changed("status", lambda some: [some[0], *some[2:]]),
            {"torn": 1},
            {"torn": 3, "lost": 1},
            id="torn, the changes are missing",
        ),
        pytest.param(
            _changed("status", lambda some: [some[1], some[0], *some[2:]]),
            {"out of order": 1},
            {"out of order": 1},
            id="out of order",
        ),
        pytest.param(
            _changed("sessions", lambda some: [*some[:-1], _telling(some[-1], qosStatus="AVAILABLE")]),
            {"wrong final state": 1},
            {"wrong final state": 1},
            id="wrong final state",
        ),
        pytest.param(
            _changed("sessions", lambda some: some[:-1]),
            {"wrong final state": 1},
            {"wrong final state": 1},
            id="old final state",
        ),
        pytest.param(
            _changed("status", lambda some: [*some, _of(some[2], inbox="0-9", **{"x-correlator": "other"})]),
            {"phantom": 1},
            {"phantom": 1},
            id="phantom",
        ),
        pytest.param(
            _changed("status", lambda some: [*some[:2], _telling(some[2], time="2026-11-24T10:00:09Z"), some[3]]),
            {"differs": 2},
            {"phantom": 1},
            id="differs",
        ),
    ],
)
def test_a_forged_topic_is_found_out(forge: Forge, inbox_wrong: Wrong, ledger_wrong: Wrong) -> None:
    """Each oracle counts the forged fault, under its name, and no other."""
    ledger, topics = _true_story()
    forged = forge(topics)
    assert dict(by_inbox(ledger, forged, ROUTER, FORGET_SECONDS).wrong) == inbox_wrong
    assert dict(by_ledger(ledger, forged).wrong) == ledger_wrong


def test_an_inbox_out_of_order_is_found_out() -> None:
    """A notification that was posted after another's answer must not lie before it."""
    ledger, topics = _true_story()
    ledger.attempts["a0"].began, ledger.attempts["a0"].answered = 1.6, 1.7
    assert dict(by_inbox(ledger, topics, ROUTER, FORGET_SECONDS).wrong) == {"out of order": 1}


def test_the_true_story_is_believed() -> None:
    """The right topics have no findings."""
    ledger, topics = _true_story()
    for findings in (by_inbox(ledger, topics, ROUTER, FORGET_SECONDS), by_ledger(ledger, topics)):
        assert not findings.details


@pytest.mark.usefixtures("kafka_cluster")
async def test_nothing_is_lost_or_repeated_by_kills_on_kafka(tmp_path: Path) -> None:
    """Each notification that was answered 204 is on its topics once, whole and in order, whatever was killed and cut
    off.
    """
    outcome = await run(tmp_path / "site", Plan(seconds=20, seed=20261124, pace=2.5, wanted=WANTED))
    details = [detail for findings in outcome.judged.values() for detail in findings.details]
    assert outcome.right, f"{outcome.troubles} {details[:20]}"
    assert not [name for name in WANTED if not outcome.tally[name]]
    assert outcome.tally["answered 204"] > 200
