"""Each fault of the plan happens as described, is in the ledger, and follows from the seed alone."""

import asyncio
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from receiver.simulator import dialects, faults
from receiver.simulator.chance import seeded
from receiver.simulator.dialects import MALFORMATIONS, RELEASES, Fact
from receiver.simulator.faults import Sender
from receiver.simulator.plan import FAULTS, PRESETS, RESERVED, Plan, changed, plan_for, toml_of
from receiver.simulator.server import Options
from receiver.simulator.sessions import Status
from tests.limits import SECONDS_MAX
from tests.simulated import TOKEN, Answer, Received, Simulated, Sink, simulated, told, until

ENDED = [("AVAILABLE", None), ("UNAVAILABLE", "DURATION_EXPIRED")]
FAST = Options(speed=1_000, available_after_seconds=0)


class Run(NamedTuple):
    """The result of a few sessions: the requests that a socket received, and the ledger."""

    received: Sequence[Received]
    entries: Sequence[dict[str, Any]]
    lives: Sequence[dict[str, Any]]

    def of(self, name: str) -> list[Any]:
        """One member of each entry."""
        return [entry[name] for entry in self.entries]


async def run(options: Options, answer: Callable[[Received], Answer] | None = None, **session: object) -> Run:
    """One session, from its beginning until no post is left."""
    async with Sink().listening() as sink, simulated(options) as simulator:
        sink.answer = answer or sink.answer
        await simulator.create(**{"duration": 100, "notificationUrl": sink.url, **session})
        await simulator.until_ended()
        return Run(sink.received, await simulator.entries(), await simulator.lives())


def planned(**fault: Any) -> Options:  # noqa: ANN401  # a plan's members
    """A fast simulator with a plan."""
    return FAST._replace(plan=Plan(**fault))


async def test_lost_notifications_are_never_posted() -> None:
    """lost: the socket receives nothing, and the ledger has the body."""
    done = await run(planned(lost=1))
    assert not done.received
    assert done.of("unsent") == ["lost", "lost"]
    assert list(zip(done.of("qosStatus"), done.of("statusInfo"), strict=True)) == ENDED
    assert done.of("sent") == ["nothing", "nothing"]


async def test_a_refused_session_is_told_once() -> None:
    """refused: UNAVAILABLE with NETWORK_TERMINATED, and nothing before it."""
    done = await run(planned(refused=1))
    assert told(done.received) == [("UNAVAILABLE", "NETWORK_TERMINATED")]


async def test_a_terminated_session_ends_before_its_time() -> None:
    """terminated: NETWORK_TERMINATED, in the middle of its duration."""
    done = await run(planned(terminated=1)._replace(speed=100))
    assert told(done.received) == [("AVAILABLE", None), ("UNAVAILABLE", "NETWORK_TERMINATED")]
    available, ended = (datetime.fromisoformat(entry["happenedAt"]) for entry in done.entries)
    assert (ended - available).total_seconds() >= 0.25


async def test_only_the_end_is_told() -> None:
    """only_ends: AVAILABLE is not posted."""
    done = await run(planned(only_ends=1))
    assert told(done.received) == ENDED[1:]
    assert done.of("unsent") == ["only_ends", None]


async def test_an_end_has_no_reason() -> None:
    """without_reason: UNAVAILABLE without statusInfo, while the ledger's states have it."""
    done = await run(planned(without_reason=1))
    assert told(done.received) == [("AVAILABLE", None), ("UNAVAILABLE", None)]
    assert done.of("statusInfo") == [None, None]
    assert done.lives[0]["states"][-1]["statusInfo"] == "DURATION_EXPIRED"


async def test_a_repetition_is_the_same_to_the_byte() -> None:
    """repeated_same_id: each body comes twice, and the second says which one it repeats."""
    done = await run(planned(repeated_same_id=1))
    assert sorted(Counter(received.body for received in done.received).values()) == [2, 2]
    first = {entry["step"]: entry["sequence"] for entry in reversed(done.entries)}
    assert all(entry["repeats"] in {None, first[entry["step"]]} for entry in done.entries)
    assert done.of("repeats").count(None) == 2
    assert sorted(done.of("copy")) == [0, 0, 1, 1]


async def test_a_copy_has_another_id_alone() -> None:
    """repeated_new_id: each body comes twice, and only the ids differ."""
    done = await run(planned(repeated_new_id=1))
    assert len({received.tree["id"] for received in done.received}) == 4
    without_ids = Counter(json.dumps({**received.tree, "id": ""}) for received in done.received)
    assert sorted(without_ids.values()) == [2, 2]
    assert set(done.of("eventId")) == {received.tree["id"] for received in done.received}


async def test_a_delay_is_of_the_post_alone() -> None:
    """delayed: the post comes late, with the time of the change."""
    done = await run(planned(delayed=1, delay_seconds_max=600))
    waits = [seconds_between(entry["happenedAt"], entry["postedAt"]) for entry in done.entries]
    delays = [
        seeded(0).of("session", 1, "step", entry["step"]).between("delayed", 0, 600) / 1_000 for entry in done.entries
    ]
    assert all(wait >= delay - 0.01 for wait, delay in zip(waits, delays, strict=True))
    assert max(waits) > 0.05
    assert done.of("time") == done.of("happenedAt")


def seconds_between(earlier: str, later: str) -> float:
    """The seconds between two times as text."""
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


async def test_an_end_overtakes_its_beginning() -> None:
    """reordered: AVAILABLE is posted once UNAVAILABLE has been answered."""
    done = await run(planned(reordered=1, reorder_seconds_max=86_400))
    assert told(done.received) == ENDED[::-1]
    assert done.of("faults") == [[], ["reordered"]]


async def test_what_is_held_back_does_not_wait_for_ever() -> None:
    """reordered: AVAILABLE is posted all the same if no end can overtake it."""
    async with Sink().listening() as sink, simulated(planned(reordered=1, reorder_seconds_max=100)) as simulator:
        await simulator.create(duration=86_400, notificationUrl=sink.url)
        await simulator.until_quiet()
        assert told(sink.received) == ENDED[:1]


@pytest.mark.long
async def test_a_burst_comes_all_at_once() -> None:
    """burst: changes within its time are posted together at its end."""
    options = planned(burst=1, burst_every_seconds=6_000)
    async with Sink().listening() as sink, simulated(options) as simulator:
        await asyncio.gather(*(simulator.create(duration=86_400, notificationUrl=sink.url) for _ in range(5)))
        await simulator.until_quiet()
        happened = [entry["happenedAt"] for entry in await simulator.entries()]
        posted = [entry["postedAt"] for entry in await simulator.entries()]
    assert len(sink.received) == 5
    assert min(posted) > max(happened)
    assert seconds_between(min(happened), min(posted)) >= 5.99


async def test_a_clock_is_wrong_for_a_whole_session() -> None:
    """clock_skewed: all times of a session are wrong by the same amount, and the ledger has both times."""
    done = await run(planned(clock_skewed=1, clock_skew_seconds_max=300))
    assert [received.tree["time"] for received in done.received] == done.of("time")
    skews = {round(seconds_between(entry["happenedAt"], entry["time"]), 3) for entry in done.entries}
    assert len(skews) == 1
    assert 0 < abs(skews.pop()) <= 300


@pytest.mark.parametrize("what", MALFORMATIONS)
def test_a_malformed_body_is_no_notification(what: str) -> None:
    """Each malformation leaves a body that is no JSON object, or one that names no session, or two."""
    for release in RELEASES.values():
        fact = Fact("id", "source", "session-7", Status.UNAVAILABLE, None, 0)
        body = MALFORMATIONS[what](dialects.told(release, fact).body)
        try:
            tree = json.loads(body)
        except ValueError:
            continue
        assert not isinstance(tree, dict) or body.count(b'"sessionId"') != 1


async def test_malformed_bodies_are_posted() -> None:
    """malformed: the received body differs from the right one, and the ledger has its hash."""
    done = await run(planned(malformed=1))
    assert len(done.received) == 2
    assert all(what in MALFORMATIONS for what in done.of("malformed"))


async def test_tokens_are_wrong_or_missing() -> None:
    """wrong_token and no_token: the token is not the registered one, or absent; the ledger says which."""
    wrong, none = await run(planned(wrong_token=1)), await run(planned(no_token=1))
    for received in wrong.received:
        assert received.headers["authorization"].startswith("Bearer ")
        assert TOKEN not in received.headers["authorization"]
    assert ["authorization" in received.headers for received in none.received] == [False, False]
    assert (wrong.of("authorization"), none.of("authorization")) == (["wrong"] * 2, ["none"] * 2)


async def test_a_body_comes_slowly() -> None:
    """slow_body: the whole body comes, slowly."""
    done = await run(planned(slow_body=1, slow_body_seconds=0.4))
    assert told(done.received) == ENDED
    assert all(received.ended - received.began >= 0.2 for received in done.received)
    assert all(seconds >= 0.4 for seconds in done.of("seconds"))


async def test_a_connection_is_dropped_within_the_body() -> None:
    """dropped: half of the body comes, then the end of the connection."""
    done = await run(planned(dropped=1))
    assert [received.is_whole for received in done.received] == [False, False]
    assert all(received.body for received in done.received)
    assert (done.of("sent"), done.of("answer")) == (["cut off"] * 2, [None, None])


async def test_a_sender_hangs_up_before_the_answer() -> None:
    """hung_up: the whole body comes, and the sender leaves before the answer."""
    done = await run(planned(hung_up=1))
    assert told(done.received) == ENDED
    assert (done.of("sent"), done.of("answer"), done.of("failure")) == (["whole"] * 2, [None, None], [None, None])


async def test_an_answer_is_ignored() -> None:
    """answer_ignored: after a 204 it is posted again, as often as the retries allow."""
    options = planned(answer_ignored=1, retry="fixed", retry_seconds=0, retry_attempts_max=3)
    done = await run(options)
    assert done.of("answer") == [204] * 6
    assert sorted(done.of("attempt")) == [1, 1, 2, 2, 3, 3]
    assert sorted(Counter(received.body for received in done.received).values()) == [3, 3]


def refuse_twice() -> Callable[[Received], Answer]:
    """503 to the first two posts of each event, then 204."""
    seen: Counter[str] = Counter()

    def answer(received: Received) -> Answer:
        seen[received.tree["data"]["qosStatus"]] += 1
        return Answer(503 if seen[received.tree["data"]["qosStatus"]] <= 2 else 204)

    return answer


@pytest.mark.parametrize(
    ("kind", "answers", "waits"),
    [("none", [503], []), ("fixed", [503, 503, 204], [0.1, 0.1]), ("exponential", [503, 503, 204], [0.1, 0.2])],
)
async def test_retries_are_of_every_kind(kind: str, answers: list[int], waits: list[float]) -> None:
    """Retry: none gives up, fixed waits as long each time, exponential twice as long."""
    done = await run(planned(retry=kind, retry_seconds=0.1, refused=1), refuse_twice())
    assert done.of("answer") == answers
    posted = done.of("postedAt")
    waited = [seconds_between(earlier, later) for earlier, later in itertools.pairwise(posted)]
    assert all(each >= wait for each, wait in zip(waited, waits, strict=True))
    assert [None, 1, 1][: len(answers)] == done.of("repeats")
    assert len({received.tree["id"] for received in done.received}) == 1


async def test_a_retry_may_have_another_id() -> None:
    """retry_new_id: senders that make an id for each post do so for retries too."""
    done = await run(planned(retry="fixed", retry_seconds=0, retry_new_id=1, refused=1), refuse_twice())
    ids = [received.tree["id"] for received in done.received]
    assert len(set(ids)) == 3
    assert done.of("eventId") == ids


async def test_what_cannot_be_mended_is_not_retried() -> None:
    """400 and 500 end the attempts, as with the one public sender that retries; Retry-After is obeyed up to the longest
    wait.
    """
    for status in (400, 500):
        done = await run(planned(retry="fixed", refused=1), lambda _, status=status: Answer(status))  # type: ignore[misc]
        assert done.of("answer") == [status]
    patient = planned(retry="fixed", retry_seconds=0, retry_seconds_max=0.3, retry_attempts_max=2, refused=1)
    done = await run(patient, lambda _: Answer(429, {"retry-after": "3600"}))
    first, second = done.of("postedAt")
    assert 0.3 <= seconds_between(first, second) < SECONDS_MAX


async def test_no_answer_is_retried() -> None:
    """A connection that the receiver closes is tried again."""
    answers = iter([Answer(None), Answer(None), Answer()])
    done = await run(planned(retry="fixed", retry_seconds=0, refused=1), lambda _: next(answers))
    assert done.of("answer") == [None, None, 204]
    assert done.of("failure") == ["no answer", "no answer", None]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("status", [Status.AVAILABLE, Status.UNAVAILABLE])
def test_oddities_are_legible(release: str, status: Status) -> None:
    """Each oddity changes the request, but a JSON reader still finds session and status."""
    fact = Fact("3fa85f64-5717-4562-b3fc-2c963f66afa6", "source", "session-7", status, None, 1_795_514_410_250_000)
    usual = dialects.told(RELEASES[release], fact)
    names = dialects.oddities(RELEASES[release], status)
    assert len(names) >= 5
    for name in names:
        odd = dialects.told(RELEASES[release], fact, name)
        assert (odd.headers, odd.body, dialects.authorization("t", name)) != (usual.headers, usual.body, "Bearer t")
        tree = json.loads(odd.body)
        event = tree.get("event", tree) if release.startswith("0.9") else tree
        detail = tree if release == "0.8" else event.get("data", event.get("eventDetail"))
        assert detail["sessionId"] == "session-7"
        assert release == "0.8" or detail["qosStatus"] == status
        if odd.time is not None:
            moment = datetime.fromisoformat(odd.time.upper())
            assert moment.replace(tzinfo=None).isoformat().endswith("10.250000")
        if odd.event_id is not None:
            found = next(event[key] for key in ("id", "eventId", "eventid") if key in event)
            assert str(found) == odd.event_id


async def test_oddities_are_posted() -> None:
    """odd: the ledger has the oddity, and the id and the time as they were spelled."""
    done = await run(planned(odd=1)._replace(seed=4))
    assert all(done.of("odd"))
    assert [str(received.tree["id"]) for received in done.received] == done.of("eventId")
    assert [received.tree["time"] for received in done.received] == done.of("time")


def decided(entries: Sequence[dict[str, Any]]) -> dict[tuple[int, int, int, int], tuple[Any, ...]]:
    """The decisions of chance, by session, step, copy and attempt, whenever they were."""
    names = ("unsent", "malformed", "authorization", "odd", "faults", "statusInfo", "qosStatus", "sent", "release")
    return {
        (entry["session"], entry["step"], entry["copy"], entry["attempt"]): tuple(str(entry[name]) for name in names)
        for entry in entries
    }


async def play(options: Options, sessions: int) -> tuple[Sink, Run]:
    """Some sessions, played to their ends."""
    async with Sink().listening() as sink, simulated(options) as simulator:
        for number in range(sessions):
            await simulator.create(duration=1 + number, notificationUrl=sink.url)
        await until_only_the_stuck_are_left(simulator)
        return sink, Run(sink.received, await simulator.entries(), await simulator.lives())


async def until_only_the_stuck_are_left(simulator: Simulated) -> None:
    """Wait until nothing more happens: stuck sessions stay REQUESTED."""

    async def over() -> bool:
        lives = await simulator.lives()
        stuck = sum(len(life["states"]) == 1 for life in lives)
        statuses = (await simulator.summary())["statuses"]
        return statuses["REQUESTED"] == stuck and not statuses["AVAILABLE"]

    await until(over)
    await simulator.until_quiet()


EVERYTHING = PRESETS["all"].model_copy(update={"slow_body_seconds": 0.02, "retry_seconds": 0.02})


@pytest.mark.long
async def test_a_seed_decides_alike_whatever_the_timing() -> None:
    """Two runs with one seed have the same faults at another speed; a third, with another seed, has others."""
    everything = Options(plan=EVERYTHING, speed=2_000, releases=list(RELEASES.values()), seed=11)
    _, first = await play(everything, 40)
    _, second = await play(everything._replace(speed=500), 40)
    _, other = await play(everything._replace(seed=12), 40)
    assert decided(first.entries) == decided(second.entries)
    assert decided(first.entries) != decided(other.entries)
    assert not set(first.of("sessionId")) & set(second.of("sessionId"))
    assert {id_ for id_ in first.of("eventId") if id_} & {id_ for id_ in second.of("eventId") if id_} == set()


@pytest.mark.long
async def test_the_ledger_has_all_that_a_socket_received() -> None:
    """With every fault at once, the whole bodies that came are those of the ledger, and every change is in it."""
    everything = Options(plan=EVERYTHING, speed=1_000, releases=list(RELEASES.values()), seed=5)
    sink, done = await play(everything, 150)
    whole = Counter(hashlib.sha256(each.body).hexdigest() for each in sink.received if each.is_whole)
    posted = Counter(entry["bodySha256"] for entry in done.entries if entry["sent"] == "whole")
    assert whole == posted
    cut_off = sum(entry["sent"] == "cut off" for entry in done.entries)
    assert sum(not each.is_whole for each in sink.received) == cut_off
    by_correlator = {entry["correlator"]: entry for entry in done.entries}
    for received in sink.received:
        if (correlator := received.headers.get("x-correlator")) is not None:
            entry = by_correlator[correlator]
            right = any(TOKEN in value for value in [received.headers.get("authorization", "")])
            assert right is (entry["authorization"] == "right")
    # Every change of every session is there, posted or not.
    changes = {(life["session"], step) for life in done.lives for step in range(1, len(life["states"]))}
    assert {(entry["session"], entry["step"]) for entry in done.entries} == changes
    happened = Counter(fault for entry in done.entries for fault in entry["faults"])
    assert set(happened) == set(FAULTS) - {"stuck", "refused", "terminated"}
    reasons = {state["statusInfo"] for life in done.lives for state in life["states"]}
    assert reasons == {None, "DURATION_EXPIRED", "NETWORK_TERMINATED"}
    assert any(len(life["states"]) == 1 for life in done.lives)


@given(st.integers(), st.integers(1, 10_000), st.integers(1, 2), st.sampled_from(FAULTS))
def test_a_fault_leaves_the_others_alone(seed: int, session: int, step: int, fault: str) -> None:
    """Another probability of one fault does not change the other faults."""
    chance = seeded(seed).of("session", session)
    told_by = [
        faults.telling(Sender(plan, chance, RELEASES["0.10"]), step, Status.UNAVAILABLE, "DURATION_EXPIRED")
        for plan in (EVERYTHING, EVERYTHING.model_copy(update={fault: 0.0}))
    ]
    if any(telling.unsent for telling in told_by):
        return
    before, after = told_by
    assert [each for each in before.faults if each != fault] == list(after.faults)
    if fault != "delayed":
        assert before.copies[0].delay_seconds == after.copies[0].delay_seconds


@given(st.integers(), st.text(max_size=20), st.floats(0, 1))
def test_chance_is_fair(seed: int, name: str, probability: float) -> None:
    """A draw lies in [0, 1); the same name draws the same; 0 never happens and 1 always does."""
    chance = seeded(seed).of("session", 1)
    assert 0 <= chance.unit(name) < 1
    assert chance.happens(name, probability) is chance.happens(name, probability)
    assert not chance.happens(name, 0)
    assert chance.happens(name, 1)
    assert chance.choice(name, "abc") in "abc"


def test_chance_is_even() -> None:
    """Of 10,000 draws at 0.15 about that many happen."""
    happened = sum(seeded(1).of("session", number).happens("lost", 0.15) for number in range(10_000))
    assert 1_350 < happened < 1_650


#: The posts to devices with reserved numbers, by the digits behind +999.
TOLD_TO_RESERVED = {
    "00": ENDED,
    "01": [("UNAVAILABLE", "NETWORK_TERMINATED")],
    "02": [],
    "03": [("AVAILABLE", None), ("UNAVAILABLE", "NETWORK_TERMINATED")],
    "04": [],
    "05": [ENDED[0]] * 2 + [ENDED[1]] * 2,
    "06": [ENDED[0]] * 2 + [ENDED[1]] * 2,
    "07": ENDED[::-1],
    "09": ENDED,
    "12": [ENDED[0]] * 3 + [ENDED[1]] * 3,
    "13": [("AVAILABLE", None), ("UNAVAILABLE", None)],
    "14": ENDED[1:],
}


@pytest.mark.long
async def test_reserved_devices_do_what_the_table_says() -> None:
    """A device whose number begins with +999 has its one fault each time, whatever the plan."""
    sessions: dict[str, str] = {}
    async with Sink().listening() as sink, simulated(planned(lost=1)._replace(speed=100)) as simulator:
        for prefix in RESERVED:
            if prefix != "+99911":  # slow
                device = {"phoneNumber": f"{prefix}0042"}
                session = await simulator.create(device=device, duration=60, notificationUrl=sink.url)
                sessions[prefix[4:]] = session["sessionId"]
        await until_only_the_stuck_are_left(simulator)
        entries = await simulator.entries()
        assert (await simulator.get(sessions["02"])).json()["qosStatus"] == "REQUESTED"
    for digits, wanted in TOLD_TO_RESERVED.items():
        received = [each for each in sink.received if sessions[digits].encode() in each.body]
        got = told(received)
        if digits in {"05", "06", "12"}:  # copies and retries keep no order
            got.sort(key=str)
        assert got == wanted, digits

    def of(digits: str, name: str) -> list[Any]:
        return [entry[name] for entry in entries if entry["sessionId"] == sessions[digits]]

    assert [len(set(of(digits, "eventId"))) for digits in ("05", "06", "12")] == [2, 4, 2]
    assert of("12", "answer") == [204] * 6
    assert all(of("08", "malformed"))
    assert of("09", "authorization") == ["wrong", "wrong"]
    assert of("10", "sent") == ["cut off", "cut off"]
    assert RESERVED["+99911"].plan == Plan(slow_body=1)


def test_reserved_numbers_are_numbers() -> None:
    """Every beginning in the table has the same number of digits, and is already a number of the API."""
    assert {len(prefix) for prefix in RESERVED} == {6}
    assert all(plan_for(f"{prefix}123", Plan()) is row.plan for prefix, row in RESERVED.items())
    assert plan_for("+34600000001", EVERYTHING) is EVERYTHING


def test_a_plan_can_be_printed_and_read() -> None:
    """A printed plan is TOML that makes the same plan again."""
    for plan in PRESETS.values():
        assert changed(Plan(), toml_of(plan)) == plan
    assert changed(PRESETS["some"], "lost = 0.5").model_dump() == PRESETS["some"].model_dump() | {"lost": 0.5}


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("lost = 1.5", "lost: Input should be less than or equal to 1"),
        ("lots = 1", "lots: Extra inputs are not permitted"),
        ('retry = "often"', "retry.0: Input should be 'none', 'fixed' or 'exponential'"),
        ("retry = []", "retry: "),
        ("burst_every_seconds = 0", "burst_every_seconds: "),
        ("retry_statuses = [204]", "retry_statuses.0: "),
        ("lost = nan", "lost: "),
        ("lost", "Expected '='"),
    ],
)
def test_a_wrong_plan_is_told_what_is_wrong(toml: str, message: str) -> None:
    """An impossible plan is refused, with the name of the fault."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        changed(Plan(), toml)


def test_a_plan_is_frozen() -> None:
    """A plan can't be changed."""
    with pytest.raises(ValidationError):
        Plan().lost = 1


def test_every_fault_is_drawn() -> None:
    """FAULTS are the probabilities of the plan, and no preset but `none` leaves one out."""
    assert set(FAULTS) == {name for name in Plan.model_fields if name in FAULTS or _is_probability(name)}
    for name in ("some", "all"):
        assert all(getattr(PRESETS[name], fault) > 0 for fault in FAULTS)
    assert all(getattr(PRESETS["none"], fault) == 0 for fault in FAULTS)


def _is_probability(name: str) -> bool:
    bounds = {str(each) for each in Plan.model_fields[name].metadata}
    return bounds == {"Ge(ge=0)", "Le(le=1)"}
