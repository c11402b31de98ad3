"""Admission of requests and bytes. A row is a story: one step after the other, each with its result."""

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.core.errors import Refused
from receiver.edge.admission import Admission

#: `a+5` asks to enter with 5 bytes of sender a, `a*5` gets 5 more, `a-5` leaves with 5.
_STEP = re.compile(r"(?P<sender>[a-z])(?P<sign>[+*-])(?P<bytes>\d+)")


def entered(admission: Admission, *, sender: str = "acme", body_bytes: int = 1, now: float = 0) -> int:
    """0 if the request got in, else the seconds after which it may come again."""
    try:
        admission.enter(sender, body_bytes, now)
    except Refused as error:
        refused = error
    else:
        return 0
    assert (refused.status, refused.code, refused.reason) == (429, "TOO_MANY_REQUESTS", "throttled")
    assert refused.retry_after_seconds
    return refused.retry_after_seconds


@pytest.mark.parametrize(
    ("steps", "refused"),
    [
        # Alone, a sender has half.
        ("a+0 a+0 a+0", []),
        ("a+0 a+0 a+0 a+0", [3]),
        ("a+0 a+0 a+0 a+0 a-0 a+0 a+0", [3, 6]),
        ("a+50", []),
        ("a+51", [0]),
        ("a+30 a*20", []),
        ("a+30 a*21", [1]),
        ("a+30 a*21 a*20", [1]),
        ("a+30 a+20 a+0", []),
        ("a+50 a-50 a+50", []),
        ("a+51 a+51 a+51 a+50", [0, 1, 2]),
        # Announced bytes don't count.
        ("a+0 b+50", []),
        ("a+0 a+0 b+50 a*50", []),
        # Two senders may have everything, and a third still has its share.
        ("a+50 b+50", []),
        ("a+50 b+50 c+10", []),
        ("a+50 b+50 c+11", [2]),
        ("a+50 b+50 c+10 c*1", [3]),
        ("a+50 b+50 c+5 c*5 c+0 c*1", [5]),
        ("a+50 b+40 c+10 d+10 e+10", []),
        ("a+0 a+0 a+0 b+0 b+0 b+0 c+0", []),
        ("a+0 a+0 a+0 b+0 b+0 b+0 c+0 c+0", [7]),
        ("a+0 a+0 a+0 b+0 b+0 b+0 c+0 d+0 e+0", []),
        ("a+0 a+0 a+0 b+0 b+0 b+0 b-0 c+0 c+0", [8]),
        ("a+0 a+0 a+0 b+0 b+0 b+0 b-0 b-0 c+0 c+0", []),
        # A request that leaves makes room.
        ("a+50 b+50 c+11 a-50 c+11", [2]),
    ],
)
def test_in_flight(steps: str, refused: list[int]) -> None:
    """Of 6 requests and 100 bytes one sender has at most half, and always one request and 10 bytes."""
    admission = Admission(in_flight_max=6, in_flight_bytes_max=100, share=1, share_bytes=10)
    found = []
    for index, step in enumerate(steps.split()):
        spelled = _STEP.fullmatch(step)
        assert spelled
        sender, body_bytes = spelled["sender"], int(spelled["bytes"])
        if spelled["sign"] == "-":
            admission.leave(sender, body_bytes)
        elif spelled["sign"] == "+":
            if entered(admission, sender=sender, body_bytes=body_bytes):
                found.append(index)
        else:
            with suppress(Refused):
                admission.grow(sender, body_bytes)
                continue
            found.append(index)
    assert found == refused


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("+*-"), st.integers(0, 60)), max_size=200))
def test_nobody_takes_anothers_share(steps: list[tuple[int, str, int]]) -> None:
    """Whatever others do, a sender with nothing in flight gets in with its share, and the sum keeps its bound."""
    admission = Admission(in_flight_max=20, in_flight_bytes_max=200, share=2, share_bytes=25)
    held: dict[str, list[int]] = {}
    for number, what, body_bytes in steps:
        sender = f"s{number}"
        mine = held.setdefault(sender, [])
        with suppress(Refused):
            if what == "+":
                admission.enter(sender, body_bytes, 0)
                mine.append(body_bytes)
            elif what == "*" and mine:
                admission.grow(sender, body_bytes)
                mine[-1] += body_bytes
            elif mine:
                admission.leave(sender, mine.pop())
        active = sum(map(bool, held.values()))
        assert sum(map(len, held.values())) <= 20 + 2 * active
        assert sum(map(sum, held.values())) <= 200 + 25 * active
        assert all(len(each) <= 10 and sum(each) <= 100 for each in held.values())
        for _ in range(2):
            admission.enter("good", 12, 0)
        for _ in range(2):
            admission.leave("good", 12)


@pytest.mark.parametrize(
    ("rate_per_second", "rate_burst", "arrivals", "retry_after"),
    [
        # A burst, and then the rate.
        (1, 3, [0, 0, 0, 0], [0, 0, 0, 1]),
        (1, 3, [0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 1, 0]),
        (1, 1, [0, 0.5, 0.99, 1, 1.5, 2], [0, 1, 1, 0, 1, 0]),
        (10, 1, [0, 0.05, 0.1, 0.15, 0.2], [0, 1, 0, 1, 0]),
        # A refused request does not count against the rate.
        (1, 1, [0, *[0.5] * 50, 1], [0, *[1] * 50, 0]),
        # At most the burst is saved up.
        (1, 2, [0, 1000, 1000, 1000], [0, 0, 0, 1]),
        (1, 2, [1000, 1000, 1000, 5000, 5000, 5000], [0, 0, 1, 0, 0, 1]),
        # Retry-After is the time until the next request is allowed, rounded up.
        (0.1, 1, [0, 0, 3, 9.5], [0, 10, 7, 1]),
        (0.3, 1, [0, 0], [0, 4]),
        # Without a rate there is no limit.
        (0, 1, [0] * 1000, [0] * 1000),
    ],
)
def test_rate(rate_per_second: float, rate_burst: int, arrivals: list[float], retry_after: list[int]) -> None:
    """A sender may post its burst at once, and its rate in the long run; else it is told when to come again."""
    admission = Admission(
        in_flight_max=4000, in_flight_bytes_max=4000, rate_per_second=rate_per_second, rate_burst=rate_burst
    )
    assert [entered(admission, now=now) for now in arrivals] == retry_after


def test_each_sender_has_its_own_rate() -> None:
    """One sender's flood leads to refusals for that sender alone."""
    admission = Admission(in_flight_max=1000, in_flight_bytes_max=1000, rate_per_second=1, rate_burst=2)
    assert [entered(admission, sender="flood") for _ in range(5)] == [0, 0, 1, 1, 1]
    assert [entered(admission, sender="calm") for _ in range(2)] == [0, 0]


def test_a_full_house_costs_nobody_its_rate() -> None:
    """A request that is refused because too much is in flight does not count against the sender's rate."""
    admission = Admission(in_flight_max=1, in_flight_bytes_max=10, rate_per_second=1, rate_burst=2)
    assert entered(admission) == 0
    assert [entered(admission) for _ in range(10)] == [1] * 10
    admission.leave("acme", 1)
    assert entered(admission) == 0


def test_who_is_throttled_takes_up_no_room() -> None:
    """A request that is refused for its rate is not in flight."""
    admission = Admission(in_flight_max=2, in_flight_bytes_max=10, rate_per_second=1, rate_burst=1)
    assert entered(admission, sender="flood", body_bytes=5) == 0
    assert [entered(admission, sender="flood", body_bytes=5) for _ in range(10)] == [1] * 10
    assert entered(admission, sender="calm", body_bytes=5) == 0


def test_many_senders_are_forgotten_in_turn() -> None:
    """Of more than 10,000 senders those seen longest ago have their burst again, and those seen lately don't."""
    admission = Admission(in_flight_max=100_000, in_flight_bytes_max=100_000, rate_per_second=0.001, rate_burst=1)
    for number in range(10_001):
        assert entered(admission, sender=f"s{number}") == 0
    assert entered(admission, sender="s10000") > 0
    assert entered(admission, sender="s1") > 0
    assert entered(admission, sender="s0") == 0


@given(
    st.lists(st.floats(0, 3), max_size=60),
    st.sampled_from([0.5, 1.0, 3.0, 7.0]),
    st.integers(1, 5),
)
def test_the_rate_holds_over_any_time(pauses: list[float], rate_per_second: float, rate_burst: int) -> None:
    """Between any two moments no more requests get in than the burst and the rate allow, and a sender that comes when
    it was told to gets in.
    """
    admission = Admission(
        in_flight_max=1000, in_flight_bytes_max=1000, rate_per_second=rate_per_second, rate_burst=rate_burst
    )
    now, got_in = 0.0, []
    for pause in pauses:
        now += pause
        retry_after_seconds = entered(admission, now=now)
        if retry_after_seconds:
            now += retry_after_seconds + 1e-6  # sums of clock times are not exact
            assert entered(admission, now=now) == 0
        got_in.append(now)
    for first, begin in enumerate(got_in):
        for last, end in enumerate(got_in[first:], first):
            assert last - first + 1 <= rate_burst + (end - begin) * rate_per_second + 1e-6
