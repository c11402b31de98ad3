"""The record of a session: it holds all that is remembered, for any writer and any reader."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict

from receiver.core.event import QosStatus
from receiver.core.facts import NO_FACTS, Facts
from receiver.core.message import Message
from receiver.core.session import MISSING_SOURCE, Session, apply, learn, merged
from receiver.core.session_record import NoSession, session_from, session_message, session_of, traced
from tests.samples import SECOND, SENDER, START, told

FACTS = Facts("QOS_E", 3_600, START + 3_600 * SECOND, "ab12", {"ipv4Address": {"publicAddress": "192.0.2.1"}})
TRACE = [("ce_specversion", "1.0"), ("inbox", "0-17")]

#: The steps of a session; `~` is told by the API, with its facts if there are some.
STEPS = st.tuples(
    st.builds(
        lambda how, status, second, info, name: (
            f"{how if status == 'U' else how[:1]}{status}{second}{info if status == 'U' else ''}{name}"
        ),
        st.sampled_from(["", "", "~", "~x"]),
        st.sampled_from("RAU"),
        st.sampled_from(["?", "0.123456", *map(str, range(-5, 20))]),
        st.sampled_from(["", ":N", ":E", ":D", ":OF_A_LATER_RELEASE"]),
        st.sampled_from(["", "", "#", "#x", "#y"]),
    ),
    st.builds(
        lambda wanted, facts: facts if wanted else NO_FACTS,
        st.booleans(),
        st.builds(
            Facts,
            st.sampled_from([None, "QOS_E", "QOS_S"]),
            st.sampled_from([None, 60]),
            st.sampled_from([None, START + 60 * SECOND, START + 61 * SECOND, START + 90 * SECOND]),
            st.sampled_from([None, "ab12", "cd34"]),
            st.sampled_from([None, {"phoneNumber": "+34600000001"}]),
        ),
    ),
)
LIVES = st.lists(STEPS, min_size=1, max_size=12)
#: The number of remembered events: low, so that marks are cut in a short life too.
MEMORY = st.sampled_from([1, 2, 4, 256])


def lived(steps: Sequence[tuple[str, Facts]], first_second: int = 30) -> Session:
    """The session after these steps, one a second."""
    session: Session | None = None
    for second, (text, facts) in enumerate(steps, first_second):
        event, sender = told(text.lstrip("~x"))
        event = event._replace(source=MISSING_SOURCE) if text.startswith("~x") else event
        micros = START + second * SECOND
        if text.startswith("~"):
            session, _ = learn(session, event, facts, sender, micros)
        else:
            session, _, _ = apply(session, event, sender, micros, micros)[:3]
    assert session is not None
    return session


def restored(session: Session) -> Session | None:
    """The session that a reader of the record restores."""
    return session_of(session_message("qod.sessions", session, TRACE, session.touched_micros // 1000))


@given(LIVES, MEMORY)
def test_what_is_written_is_what_is_remembered(steps: list[tuple[str, Facts]], marks_max: int) -> None:
    """For any steps a session's record restores to the session itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("receiver.core.session.MARKS_MAX", marks_max)
        session = lived(steps)
    assert restored(session) == session


@given(LIVES, LIVES, st.integers(0, 60), MEMORY)
def test_what_is_merged_is_what_is_remembered(
    ours: list[tuple[str, Facts]], theirs: list[tuple[str, Facts]], second: int, marks_max: int
) -> None:
    """The record of any two merged sessions restores to the merged one, which has both sides' knowledge."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("receiver.core.session.MARKS_MAX", marks_max)
        here, there = lived(ours), lived(theirs, second)
        both = merged(here, there)
        assert restored(both) == both
        if both.marks_cut_micros is None:
            assert merged(here, both) == both
        assert both.rank >= max(here.rank, there.rank)
        assert both.learned == here.learned | there.learned
        assert both.available_micros in {None, here.available_micros, there.available_micros}
        for known in (here, there):
            told_facts = {name for name, value in asdict(known.facts).items() if value is not None}
            assert all(getattr(both.facts, name) is not None for name in told_facts)


@given(LIVES, LIVES)
def test_no_side_of_a_merge_is_told_of_again(ours: list[tuple[str, Facts]], theirs: list[tuple[str, Facts]]) -> None:
    """After an end that either side knew, by whatever source, no status is accepted any more."""
    here, there = lived(ours), lived([*theirs, ("~U50", NO_FACTS)])
    both = restored(merged(here, there))
    assert both is not None
    for text in ("A90", "U91", "R92"):
        _, verdict, _ = apply(both, told(text)[0], SENDER, START + 99 * SECOND, START + 99 * SECOND)[:3]
        assert verdict not in {"accepted", "conflict"}


def test_a_late_availability_survives_a_merge() -> None:
    """If one side knows the end, and the other the beginning of availability, both are known then."""
    here, there = lived([("A1", NO_FACTS)]), lived([("U5:N", NO_FACTS)])
    for both in (merged(here, there), merged(there, here)):
        assert (both.qos_status, both.available_micros, both.available_seconds) == ("UNAVAILABLE", START + SECOND, 4.0)


AVAILABLE, UNAVAILABLE = QosStatus.AVAILABLE, QosStatus.UNAVAILABLE
OLD_VALUE = (
    b'{"sessionId":"s-1","qosStatus":"UNAVAILABLE","time":"2026-11-24T10:00:03Z","sender":"acme",'
    b'"statusInfo":"NETWORK_TERMINATED","availableSince":"2026-11-24T10:00:01.5Z","availableSeconds":1.5,'
    b'"qosProfile":"QOS_E","duration":60,"expiresAt":"2026-11-24T10:01:10Z","deviceHash":"ab12"}'
)
OLD_HEADERS = {
    "marks": "6f1e90d2b3a4c5f7|A.1795514401500000.1c291ca3|1795514401500000,"
    "----------------|U..1c291ca3|1795514403000000",
    "touched": "1795514410000000",
    "marks-cut": "1795514400000000",
    "learned": "AU",
}


def test_an_older_release_is_read() -> None:
    """An earlier release's record is read as that release read it, and written as that release wrote it."""
    facts = Facts("QOS_E", 60, START + 70 * SECOND, "ab12")
    wanted = Session(
        "s-1",
        "acme",
        UNAVAILABLE,
        "NETWORK_TERMINATED",
        START + 3 * SECOND,
        START + 10 * SECOND,
        START + 3 * SECOND // 2,
        1.5,
        OLD_HEADERS["marks"],
        START,
        facts,
        frozenset({AVAILABLE, UNAVAILABLE}),
    )
    assert session_from(OLD_VALUE, OLD_HEADERS) == session_from(OLD_VALUE.decode(), OLD_HEADERS) == wanted
    assert session_message("qod.sessions", wanted, (), 7) == Message(
        "qod.sessions", "s-1", OLD_VALUE, list(OLD_HEADERS.items()), 7
    )


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (b"", {}),
        (b"\xff", {}),
        (b"[]", {}),
        (b"null", {}),
        (b"{}", {}),
        (OLD_VALUE.replace(b"UNAVAILABLE", b"PAUSED"), {}),
        (OLD_VALUE.replace(b'"acme"', b"7"), {}),
        (OLD_VALUE.replace(b'"NETWORK_TERMINATED"', b"7"), {}),
        (OLD_VALUE.replace(b"2026-11-24T10:00:03Z", b"yesterday"), {}),
        (OLD_VALUE.replace(b"2026-11-24T10:00:03Z", b"9999-12-31T23:59:59-23:00"), {}),
        (OLD_VALUE.replace(b'"availableSeconds":1.5', b'"availableSeconds":true'), {}),
        (OLD_VALUE.replace(b'"availableSeconds":1.5', b'"availableSeconds":-1'), {}),
        (OLD_VALUE.replace(b'"duration":60', b'"duration":"an hour"'), {}),
        (OLD_VALUE.replace(b"acme", b"a" * 300_000), {}),
        (OLD_VALUE, {"marks": None}),
        (OLD_VALUE, {"marks": ""}),
        (OLD_VALUE, {"marks": "a|b"}),
        (OLD_VALUE, {"marks": OLD_HEADERS["marks"] + ","}),
        (OLD_VALUE, {"marks": OLD_HEADERS["marks"] * 10_000}),
        (OLD_VALUE, {"touched": None}),
        (OLD_VALUE, {"touched": "now"}),
        (OLD_VALUE, {"touched": "9" * 18}),
        (OLD_VALUE, {"touched": "9" * 5_000}),
        (OLD_VALUE, {"touched": "\u0661"}),
        (OLD_VALUE, {"marks-cut": "-"}),
        (OLD_VALUE, {"learned": "X"}),
    ],
)
def test_what_is_no_session_is_told(value: bytes, headers: dict[str, str | None]) -> None:
    """Another program's record is read as a session that a router could write, or refused."""
    texts = {name: text for name, text in {**OLD_HEADERS, **headers}.items() if text is not None}
    with pytest.raises(NoSession, match=r"."):
        session_from(value, texts)


def test_a_record_of_another_key_is_no_session() -> None:
    """A session's record has its id as key: under another key it would never end."""
    message = Message("qod.sessions", "s-1", OLD_VALUE, list(OLD_HEADERS.items()), 0)
    assert session_of(message) is not None
    assert session_of(message._replace(value=None)) is None
    with pytest.raises(NoSession):
        session_of(message._replace(key="s-2"))


def test_a_trace_has_no_memory() -> None:
    """The trace of a record is not part of the router's memory."""
    session = lived([("~U1", FACTS)])
    assert traced(session_message("qod.sessions", session, TRACE, 0)) == TRACE
