"""The demonstration: as a process, and its judgement of what came out."""

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from receiver.demo.sender import Post, plan
from receiver.demo.tally import Tally
from receiver.event import QosStatus
from receiver.message import Record
from receiver.router import Router
from receiver.session import Verdict
from tests.receiver_process import COMMAND
from tests.samples import START, decisions, posted

BEGAN = datetime.fromtimestamp(START / 1e6, UTC)


def test_the_demonstration_ends_well() -> None:
    """`demo` ends with 0 where all came out as it should, and away from a terminal it prints plain lines."""
    command = [*COMMAND, "demo", "--seconds", "3", "--sessions", "9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "posted  #1  cloudevents available -> 204" in lines
    assert "routed  unavailable #1  DURATION_EXPIRED" in lines
    assert "posted      cloudevents wrong token -> 401" in lines
    assert "    9 of 9 sessions are in the state that was told last  ✓" in lines
    assert all(line.isprintable() for line in lines)


def test_the_demonstration_can_be_ended_early() -> None:
    """At Ctrl-C `demo` drains its receiver, says so and ends with 0."""
    with subprocess.Popen(
        [*COMMAND, "demo", "--seconds", "60", "--sessions", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("posted")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, "")
    assert "Stopped early; the receiver was drained." in out


def test_the_same_seed_makes_the_same_plan() -> None:
    """What is posted, and when, depends on the seed alone."""
    assert plan(20, 10, BEGAN, 1) == plan(20, 10, BEGAN, 1)
    assert plan(20, 10, BEGAN, 1).posts != plan(20, 10, BEGAN, 2).posts


def test_the_plan_has_everything_that_it_is_to_show() -> None:
    """The sessions that are played by default meet every verdict, dialect and answer, in order of time."""
    posts = plan(12, 20, BEGAN, 7).posts
    assert {post.verdict for post in posts} == {*map(str, Verdict), ""}
    assert {post.sender for post in posts} == {"cloudevents", "event", "bare"}
    assert {post.status_code for post in posts} == {204, 400, 401}
    assert [post.at_seconds for post in posts] == sorted(post.at_seconds for post in posts)
    assert 0 <= posts[0].at_seconds <= posts[-1].at_seconds <= 20


def played(router: Router) -> Tally:
    """A plan, and what the router that it was written without makes of it."""
    tally = Tally(plan(12, 20, BEGAN, 7))
    ids = {end.session: session_id for session_id, end in tally.plan.ends.items()}
    kept = [post for post in tally.plan.posts if post.verdict]
    made = decisions(
        router, [posted(post.body, sender=post.sender, key=ids.get(post.session, post.sender)) for post in kept]
    )
    tally.posted = [(post, post.status_code) for post in tally.plan.posts]
    tally.verdicts = Counter(decision.verdict for decision in made)
    tally.sessions = {each.session.session_id: each.session for each in made if each.session is not None}
    for position, message in enumerate(message for decision in made for message in decision.messages):
        tally.record(message.topic.removeprefix("qod."), Record(0, position, message))
    return tally


def answer_badly(tally: Tally) -> None:
    """The first post is answered 503."""
    tally.posted[0] = (tally.posted[0][0], 503)


def forget_a_verdict(tally: Tally) -> None:
    """A repetition is taken for news."""
    tally.verdicts = Counter(tally.verdicts) + Counter({"accepted": 1}) - Counter({"duplicate": 1})


def lose_an_alert(tally: Tally) -> None:
    """An end that nobody asked for does not come out."""
    tally.routed.remove(tally.alerts[0])


def alert_twice(tally: Tally) -> None:
    """An end that nobody asked for comes out twice."""
    tally.routed.append(tally.alerts[0])


def lose_a_session(tally: Tally) -> None:
    """A session is not remembered."""
    tally.sessions = dict(list(tally.sessions.items())[1:])


def revive_a_session(tally: Tally) -> None:
    """A session that ended is available again."""
    ended = next(each for each in tally.sessions.values() if each.qos_status is QosStatus.UNAVAILABLE)
    tally.sessions = {**tally.sessions, ended.session_id: ended._replace(qos_status=QosStatus.AVAILABLE)}


def test_a_receiver_that_does_what_it_should_has_no_faults(router: Router) -> None:
    """The sender, which shares no code with the parser, and the router agree on every post."""
    tally = played(router)
    assert tally.faults() == []
    assert tally.is_complete


@pytest.mark.parametrize(
    ("misdeed", "faults"),
    [
        (answer_badly, ["available of session 1: answered 503 in place of 204"]),
        (forget_a_verdict, ["accepted: 22 in place of 21", "duplicate: 6 in place of 7"]),
        (lose_an_alert, ["unexpected ends: 5 in place of 6"]),
        (alert_twice, ["unexpected ends: 7 in place of 6"]),
        (lose_a_session, ["sessions in the right state: 11 in place of 12"]),
        (revive_a_session, ["sessions in the right state: 11 in place of 12"]),
    ],
)
def test_a_receiver_that_does_not_is_told(misdeed: Callable[[Tally], None], faults: list[str], router: Router) -> None:
    """Whatever comes out otherwise than the sender meant it is told, and only that."""
    tally = played(router)
    misdeed(tally)
    assert tally.faults() == faults
    assert not tally.is_complete


def test_posts_that_are_missing_keep_it_incomplete(router: Router) -> None:
    """The demonstration is not complete before all is posted."""
    tally = played(router)
    left: tuple[Post, int] = tally.posted.pop()
    assert not tally.is_complete
    tally.posted.append(left)
    assert tally.is_complete
