"""The demonstration's judgement: a ledger written by hand, the expected records, and each possible fault."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from receiver.core import rfc3339
from receiver.demo.comparison import Comparison, Outcome, Routed, State, Undetermined, compare
from receiver.demo.ledger import Post, post_of

SECOND = 1_000_000
START = rfc3339.micros("2026-11-24T10:00:00Z")
NO_JSON = b"<notification/>"
AVAILABLE: State = ("AVAILABLE", None)
ENDED: State = ("UNAVAILABLE", "NETWORK_TERMINATED")


def time(second: float) -> str:
    """The time of a second of the story."""
    return rfc3339.render(START + round(second * SECOND))


def post(state: State, second: float, answer: int | None = 204, **members: Any) -> Post:  # noqa: ANN401  # an entry's
    """A post in the ledger: made at a second, answered half a second later."""
    sequence = members.pop("sequence", round(second * 10) + 1)
    entry = {
        "sequence": sequence,
        "session": 1,
        "sessionId": "s-1",
        "step": 1 if state == AVAILABLE else 2,
        "copy": 0,
        "attempt": 1,
        "release": "0.10",
        "qosStatus": state[0],
        "statusInfo": state[1],
        "time": time(0 if state == AVAILABLE else 10),
        "sent": "whole",
        "malformed": None,
        "authorization": "right",
        "odd": None,
        "faults": [],
        "bodySha256": "0" * 64,
        "correlator": f"simulator-{sequence}",
        "postedAt": time(second),
        "answer": answer,
        "failure": None,
        "seconds": 0.5,
        "done": True,
    }
    return post_of({**entry, **members})


def routed(topic: str, state: State, told_by: Post, **members: object) -> Routed:
    """A post's record on a topic."""
    value = {"sessionId": "s-1", "qosStatus": state[0], "time": told_by.time or time(0), "late": False}
    value |= {"statusInfo": state[1]} if state[1] else {}
    if state[0] == "UNAVAILABLE":
        value["unexpected"] = state[1] not in {"DURATION_EXPIRED", "DELETE_REQUESTED"}
    headers = {"x-correlator": str(told_by.correlator)}
    return Routed(topic, 1, "s-1", {**value, **members}, headers)


GRANTED = post(AVAILABLE, 1)
AGAIN = post(AVAILABLE, 2, copy=1)
STRANGERS = post(AVAILABLE, 3, 401, authorization="wrong")
NONE = post(AVAILABLE, 4, 400, malformed="not JSON", bodySha256=hashlib.sha256(NO_JSON).hexdigest())
DROPPED = post(ENDED, 11, None, sent="cut off")
ENDING = post(ENDED, 12)
POSTS = [GRANTED, AGAIN, STRANGERS, NONE, DROPPED, ENDING]
LETTER = Routed("dead-letter", 0, "operator", {"verdict": "malformed", "body": base64.b64encode(NO_JSON).decode()}, {})
ON_STATUS = routed("status", AVAILABLE, GRANTED)
END_ON_STATUS = routed("status", ENDED, ENDING)
ALERT = routed("unavailable", ENDED, ENDING)
OUTCOME = Outcome(
    [ON_STATUS, LETTER, END_ON_STATUS, ALERT], {"s-1": ENDED}, {"accepted": 2, "duplicate": 1, "malformed": 1}, 4
)


def without(record: Routed) -> Outcome:
    """All expected records but this."""
    return OUTCOME._replace(routed=[each for each in OUTCOME.routed if each is not record])


def instead(record: Routed, other: Routed) -> Outcome:
    """All expected records, with another one in this one's place."""
    return OUTCOME._replace(routed=[other if each is record else each for each in OUTCOME.routed])


def changed(record: Routed, **members: object) -> Outcome:
    """All expected records, with other members in one."""
    return instead(record, record._replace(value={**record.value, **members}))


def beside(record: Routed) -> Outcome:
    """All expected records, with one twice."""
    return OUTCOME._replace(routed=[*OUTCOME.routed, record])


def counted(**verdicts: int) -> Outcome:
    """Other counts of verdicts."""
    return OUTCOME._replace(verdicts={**OUTCOME.verdicts, **verdicts})


def test_what_should_come_out_is_right() -> None:
    """A story with a repetition, a stranger, an unreadable body and a broken connection has no faults."""
    assert compare(POSTS, OUTCOME) == Comparison([], 1, 1, {})


@pytest.mark.parametrize(
    ("outcome", "faults"),
    [
        (
            without(ON_STATUS),
            ["session 1 AVAILABLE: kept, and not on status", "verdict accepted: 2 in place of 1"],
        ),
        (
            beside(ON_STATUS),
            [
                "session 1 AVAILABLE: 2 times on status",
                "verdict accepted: 2 in place of 3",
            ],
        ),
        (without(ALERT), ["session 1 UNAVAILABLE NETWORK_TERMINATED: 0 times on unavailable"]),
        (beside(ALERT), ["session 1 UNAVAILABLE NETWORK_TERMINATED: 2 times on unavailable"]),
        (
            changed(ALERT, unexpected=False),
            [
                "session 1 UNAVAILABLE NETWORK_TERMINATED: on unavailable as NETWORK_TERMINATED, unexpected False",
            ],
        ),
        (
            changed(END_ON_STATUS, statusInfo="DURATION_EXPIRED"),
            ["session 1 UNAVAILABLE NETWORK_TERMINATED: on status with the reason DURATION_EXPIRED"],
        ),
        (
            changed(ON_STATUS, time=time(3)),
            ["session 1 AVAILABLE: on status with the time 2026-11-24T10:00:03Z"],
        ),
        (
            instead(ON_STATUS, routed("status", AVAILABLE, STRANGERS)),
            ["session 1 AVAILABLE: on status with the correlator of no post of it"],
        ),
        (
            changed(ON_STATUS, late=True),
            [
                "session 1 AVAILABLE: marked as late",
                "verdict accepted: 2 in place of 1",
                "verdict late: 0 in place of 1",
            ],
        ),
        (
            OUTCOME._replace(routed=[END_ON_STATUS, LETTER, ON_STATUS, ALERT]),
            ["session 1 AVAILABLE: not marked as late", "session 1 AVAILABLE: not in the order in which it was kept"],
        ),
        (
            instead(LETTER, ON_STATUS._replace(session_id="s-2")),
            [
                "status: AVAILABLE of s-2, which nobody told",
                f"body {hashlib.sha256(NO_JSON).hexdigest()[:8]}: 0 dead letters in place of 1",
                "verdict accepted: 2 in place of 3",
                "verdict malformed: 1 in place of 0",
            ],
        ),
        (
            beside(LETTER),
            [
                f"body {hashlib.sha256(NO_JSON).hexdigest()[:8]}: 2 dead letters in place of 1",
                "verdict malformed: 1 in place of 2",
            ],
        ),
        (
            OUTCOME._replace(sessions={"s-1": AVAILABLE}),
            ["session 1 UNAVAILABLE NETWORK_TERMINATED: the session is ('AVAILABLE', None)"],
        ),
        (
            OUTCOME._replace(sessions={}),
            ["session 1 UNAVAILABLE NETWORK_TERMINATED: the session is None"],
        ),
        (counted(duplicate=0), ["verdict duplicate: 0 in place of 1", "3 decided on, 4 taken in, 4 kept for sure"]),
        (counted(conflict=1), ["verdict conflict: 1 in place of 0", "5 decided on, 4 taken in, 4 kept for sure"]),
        (OUTCOME._replace(taken=5), ["4 decided on, 5 taken in, 4 kept for sure"]),
    ],
)
def test_whatever_else_comes_out_is_told(outcome: Outcome, faults: Sequence[str]) -> None:
    """Each differing record is reported, and nothing else."""
    assert compare(POSTS, outcome).faults == faults


def test_an_answer_that_is_not_due_is_told() -> None:
    """Any other answer than 204, than 400 for an unreadable body and than 401 for a stranger is a fault."""
    for wrong, due in ((GRANTED, 204), (NONE, 400), (STRANGERS, 401)):
        posts = [each._replace(answer=503) if each is wrong else each for each in POSTS]
        assert f"post {wrong.sequence}: answered 503 in place of {due}" in compare(posts, OUTCOME).faults


@pytest.mark.parametrize("kept", [True, False])
def test_what_was_never_answered_may_be_kept_or_not(kept: bool) -> None:
    """A post with unknown outcome may be kept or not; both are right for it alone, and it is counted."""
    hung_up = ENDING._replace(answer=None)
    posts = [GRANTED, hung_up]
    records = [ON_STATUS, END_ON_STATUS, ALERT] if kept else [ON_STATUS]
    state = ENDED if kept else AVAILABLE
    count = len(posts) if kept else 1
    outcome = Outcome(records, {"s-1": state}, {"accepted": count}, count)
    assert compare(posts, outcome) == Comparison([], 1, 1, {Undetermined.UNHEARD: 1})
    assert compare(posts, outcome._replace(routed=[*records, *records])).faults
    assert compare(posts, outcome._replace(taken=3)).faults


@pytest.mark.parametrize("swapped", [True, False])
def test_what_was_told_at_the_same_time_may_stand_in_either_order(swapped: bool) -> None:
    """Either order is right, but an AVAILABLE after its end is late, and one before it is not."""
    begun, ended = post(AVAILABLE, 12.2), ENDING
    records = [routed("status", AVAILABLE, begun, late=swapped), routed("status", ENDED, ended)]
    verdicts = {"accepted": 1, "late": 1} if swapped else {"accepted": 2}
    outcome = Outcome([*records[:: -1 if swapped else 1], ALERT], {"s-1": ENDED}, verdicts, 2)
    assert compare([begun, ended], outcome) == Comparison([], 1, 1, {Undetermined.CONCURRENT: 1})
    wrong = outcome._replace(routed=[*records[:: 1 if swapped else -1], ALERT])
    assert compare([begun, ended], wrong).faults


def _reasonless(change: Callable[[Post], Post]) -> tuple[Post, Post]:
    return change(GRANTED), change(ENDING._replace(status_info=None))


@pytest.mark.parametrize("state", [AVAILABLE, ("UNAVAILABLE", None)])
def test_an_end_without_reason_and_time_leaves_two_states(state: State) -> None:
    """If no time tells which of two came last, the session may be in either state; each is on status once."""
    begun, ended = _reasonless(lambda told: told._replace(time=None))
    records = [
        routed("status", AVAILABLE, begun),
        routed("status", ("UNAVAILABLE", None), ended),
        routed("unavailable", ("UNAVAILABLE", None), ended),
    ]
    outcome = Outcome(records, {"s-1": state}, {"accepted": 2}, 2)
    assert compare([begun, ended], outcome) == Comparison([], 1, 1, {Undetermined.UNORDERED: 1})
    assert compare([begun, ended], outcome._replace(sessions={})).faults
    assert compare([begun, ended], outcome._replace(routed=records[1:])).faults


def test_an_end_without_a_reason_orders_by_its_time() -> None:
    """If both times are known the session has ended, and nothing is undetermined."""
    begun, ended = _reasonless(lambda told: told)
    records = [
        routed("status", AVAILABLE, begun),
        routed("status", ("UNAVAILABLE", None), ended),
        routed("unavailable", ("UNAVAILABLE", None), ended),
    ]
    outcome = Outcome(records, {"s-1": ("UNAVAILABLE", None)}, {"accepted": 2}, 2)
    assert compare([begun, ended], outcome) == Comparison([], 1, 1, {})
    assert compare([begun, ended], outcome._replace(sessions={"s-1": AVAILABLE})).faults
