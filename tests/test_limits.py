"""The limits of topics, and the search for the one record that is refused."""

from base64 import b64decode

import orjson
import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from receiver.backends.kafka.batches import Batches, builder
from receiver.backends.kafka.connection import KafkaConnection, Security
from receiver.backends.kafka.limits import (
    REFUSALS,
    Effort,
    Lessons,
    Limits,
    Refused,
    bounds_of,
)
from receiver.backends.kafka.records import RawRecord, output_records
from receiver.core.dead_letter import fitting
from receiver.core.router import Router
from tests.samples import posted

NONE = str(2**63 - 1)
HOUR_MILLIS = 3_600_000
WHERE = TopicPartition("qod.status", 0)


#: No broker listens there.
NOWHERE = KafkaConnection(["127.0.0.1:9"], Security().options())


@pytest.fixture
def limits() -> Limits:
    """The limits of a cluster whose settings are unknown."""
    return Limits(NOWHERE)


@pytest.mark.parametrize(
    ("configs", "bounds"),
    [
        ({}, (2**20, None, None)),
        ({"max.message.bytes": "100"}, (100, None, None)),
        ({"message.timestamp.before.max.ms": "5", "message.timestamp.after.max.ms": "7"}, (2**20, 5, 7)),
        ({"message.timestamp.before.max.ms": NONE, "message.timestamp.after.max.ms": "7"}, (2**20, None, 7)),
        ({"message.timestamp.difference.max.ms": "5"}, (2**20, 5, 5)),
        ({"message.timestamp.difference.max.ms": "5", "message.timestamp.after.max.ms": NONE}, (2**20, 5, 5)),
        ({"message.timestamp.difference.max.ms": "5", "message.timestamp.before.max.ms": "9"}, (2**20, 9, 5)),
        ({"message.timestamp.after.max.ms": "7", "message.timestamp.type": "LogAppendTime"}, (2**20, None, None)),
        ({"cleanup.policy": "delete", "retention.ms": "9"}, (2**20, None, None, 9)),
        ({"cleanup.policy": "compact,delete", "retention.ms": "9"}, (2**20, None, None, 9)),
        ({"cleanup.policy": "compact", "retention.ms": "9"}, (2**20, None, None)),
        ({"cleanup.policy": "delete", "retention.ms": "-1"}, (2**20, None, None)),
    ],
)
def test_bounds_are_those_of_all_releases(configs: dict[str, str], bounds: tuple[int | None, ...]) -> None:
    """The bounds of a topic are read by the names of brokers before 3.6, since then, and since 4.0."""
    found = bounds_of(configs)
    assert found[: len(bounds)] == bounds
    assert not any(found[len(bounds) :])


@pytest.mark.parametrize("error", REFUSALS)
async def test_one_of_many_is_found(limits: Limits, error: type[KafkaError]) -> None:
    """Whatever error a broker gives for a record, that record is found among 2,000, and no other is given up."""
    lessons = Lessons()
    for _ in range(100):
        batches = Batches(limits, lessons)
        fitting_ones = [
            batches.add(WHERE, RawRecord(b"k", b"x" * (900 if mark == 777 else 400), 0, []), mark)
            for mark in range(2_000)
        ]
        if not all(fitting_ones):  # the topic's learned limit is lower by now, so it is not even sent
            assert [mark for mark, fits in enumerate(fitting_ones) if not fits] == [777]
            return
        number = next(number for number, each in enumerate(batches.filled) if 777 in each.marks)
        if (found := await batches.learn(Refused(number, error()))) is not None:
            assert found == 777
            return
    raise AssertionError("it was never found")


@pytest.mark.parametrize("ahead_hours", [-300, -30, 0, 2, 3, 30, 300, 9_000])
def test_a_wrong_clock_is_found_by_steps(ahead_hours: int) -> None:
    """If brokers don't say which times they take, steps back find a clock that is ahead; one behind is accepted."""
    true_millis = 1_764_000_000_000
    limits = Limits(NOWHERE, lambda: true_millis + ahead_hours * HOUR_MILLIS)
    stamped = true_millis + ahead_hours * HOUR_MILLIS
    while limits.window("qod.inbox").clamped(stamped) > true_millis + HOUR_MILLIS:
        assert limits.mistimed("qod.inbox", limits.window("qod.inbox"))


def test_a_refusal_that_somebody_else_learned_from_is_no_second_step(limits: Limits) -> None:
    """Simultaneous batches that are refused together move the clock once."""
    window = limits.window("qod.inbox")
    assert limits.mistimed("qod.inbox", window)
    after = limits.window("qod.inbox")
    assert limits.mistimed("qod.inbox", window)
    assert limits.window("qod.inbox").shift == after.shift


def test_effort_follows_the_link() -> None:
    """The bytes of a send double while sends are quick, shrink when they take long, and are halved when one fails."""
    effort = Effort(2.0, bytes_first=1000, bytes_min=100, bytes_max=4000)
    effort.took(1000, 0.1)
    effort.took(2000, 0.1)
    effort.took(4000, 0.1)
    assert effort.bytes_max == 4000
    effort.took(4000, 3.0)
    assert effort.bytes_max == 2666
    effort.took(10, 0.1)
    assert effort.bytes_max == 2666
    effort.failed()
    assert effort.bytes_max == 1333
    for _ in range(10):
        effort.failed()
    assert effort.bytes_max == 100


@pytest.mark.parametrize("bytes_max", [700, 1_000, 1_501, 20_000, 99_999, 200_000])
@pytest.mark.parametrize("size", [0, 1, 500, 90_000])
def test_a_dead_letter_fits(bytes_max: int, size: int) -> None:
    """A letter is cut to its topic's limit, and still has its reason, and the length of the whole."""
    router = Router(prefix="qod", forget_after_seconds=1)
    (letter,) = router.decide(posted(b"{" + b"x" * size), "0-7", None, 0).messages
    shorter = fitting(letter, bytes_max)
    batch = builder(bytes_max, transactional=True)
    (record,) = output_records([shorter])
    batch.append(timestamp=0, key=record.key, value=record.value, headers=record.headers)
    assert batch.size() <= max(bytes_max, 900)
    value = orjson.loads(shorter.value or b"")
    assert value["verdict"] == "malformed"
    assert value.get("bodyBytes", size + 1) == size + 1
    assert (b"{" + b"x" * size).startswith(b64decode(value["body"]))
    if bytes_max >= 2 * size + 2_000:
        assert shorter == letter


def test_what_was_learned_of_positions_is_of_one_inbox() -> None:
    """Unwritable positions are forgotten when the inbox is another one, and only then."""
    lessons = Lessons()
    lessons.are_of("one")
    lessons.unwritable[3] = "too long"
    lessons.bare.add(3)
    lessons.are_of("one")
    assert (lessons.unwritable, lessons.bare) == ({3: "too long"}, {3})
    lessons.are_of("another")
    assert (lessons.unwritable, lessons.bare) == ({}, set())
