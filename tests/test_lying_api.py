"""Comparisons with an API that is wrong: no false end, nothing told twice, and no other session affected."""

import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest

from receiver.core.errors import ReceiverError
from receiver.core.event import QosStatus
from receiver.core.facts import NO_FACTS, Facts
from receiver.core.notification import RECONCILE
from receiver.core.session import Session, learn
from receiver.qod import model
from receiver.qod.client import QodClient
from receiver.qod.reconciler import Reconciler
from receiver.qod.telling import Telling, facts_told, notification
from tests.faulty_api import SESSION, FaultyApi, answer, error

SENDER = "operator"
KEY = b"k" * 32
SECOND = 1_000_000


class Table:
    """Our sessions, which nothing else changes."""

    def __init__(self, sessions: Mapping[str, Session]) -> None:
        self._sessions = sessions

    async def sessions_of(self, sender: str, session_ids: Collection[str]) -> Sequence[Session]:  # noqa: ARG002
        """See `receiver.qod.reconcile.Ours`."""
        return list(self._sessions.values())

    def owns(self, session_id: str) -> bool:  # noqa: ARG002
        """See `receiver.qod.reconcile.Ours`."""
        return True


def live(count: int, *, seconds_left: float = 3600, facts: bool = True) -> Table:
    """AVAILABLE sessions, which the API told of, or only their sender."""
    now = time.time_ns() // 1000
    known = Facts("QOS_E", 7200, now + round(seconds_left * SECOND), "ab") if facts else NO_FACTS
    made = {}
    for number in range(count):
        telling = Telling(f"s-{number}", QosStatus.AVAILABLE, None, now - 7200 * SECOND, known)
        made[telling.session_id], _ = learn(None, telling.event(RECONCILE), known, SENDER, now)
    return Table(made)


@asynccontextmanager
async def comparing(table: Table) -> AsyncIterator[tuple[FaultyApi, Reconciler]]:
    """An API, and a reconciler of its sessions with these."""
    async with FaultyApi().listening() as api, QodClient(api.settings(attempts_max=1), quotes=False) as client:
        yield api, Reconciler(client, table, SENDER, lambda each: facts_told(each, KEY, identifiers=True))


GONE = error(404, "NOT_FOUND", "there is no such session")


async def test_a_session_that_is_gone_is_over() -> None:
    """A session that is neither on the list nor known is told as over: so the other tests could find an end."""
    async with comparing(live(1)) as (api, reconciler):
        api.script(answer(200, []), GONE)
        ((_, telling, is_news),) = await reconciler.compare()
    assert (telling.qos_status, telling.status_info, is_news) == (QosStatus.UNAVAILABLE, None, True)


async def test_another_clients_session_is_not_over() -> None:
    """The API may not show this client a session that it never told of, so such a session is not over."""
    async with comparing(live(1, facts=False)) as (api, reconciler):
        api.script(answer(200, []), GONE)
        assert not await reconciler.compare()


@pytest.mark.parametrize(
    "told",
    [
        b"<html>no route</html>",
        b"404 page not found",
        {"message": "no Route matched with those values"},
        {"message": "Not Found"},
        {"fault": {"faultstring": "Unable to identify proxy"}},
        {"title": "Not Found", "status": 404},
    ],
)
async def test_a_gateways_word_ends_nobody(told: object) -> None:
    """A 404 that is not the API's ends no session, and it is reported."""
    async with comparing(live(2)) as (api, reconciler):
        api.script(answer(200, []), answer(404, told))
        assert not await reconciler.compare()
        assert "does not answer for 2 sessions that its list lacks: the QoD API answers 404" in reconciler.complaint
        assert reconciler.unanswered_count == 2
        api.script(answer(200, [{**SESSION, "sessionId": f"s-{number}"} for number in range(2)]))
        await reconciler.compare()
        assert not reconciler.complaint


async def test_a_part_of_the_list_ends_nobody() -> None:
    """An incomplete list has no effect: no session is even requested."""
    listed = [{**SESSION, "sessionId": "s-0"}]
    async with comparing(live(3)) as (api, reconciler):
        api.script(answer(200, listed, x_total_count="3"), answer(200, []), GONE)
        with pytest.raises(ReceiverError, match="lists only 1 of 3 sessions"):
            await reconciler.compare()
    assert len(api.asked) == 2


async def test_an_odd_status_hides_no_other_session() -> None:
    """A session that can't be read counts as listed, and is reported; other sessions' ends are found all the same."""
    odd = {**SESSION, "sessionId": "s-0", "qosStatus": "GRACE_PERIOD"}
    async with comparing(live(3)) as (api, reconciler):
        api.script(answer(200, [odd, {**SESSION, "sessionId": "s-1"}]), GONE)
        found = await reconciler.compare()
    assert [(each.telling.session_id, each.telling.qos_status) for each in found if each.is_news] == [
        ("s-2", QosStatus.UNAVAILABLE)
    ]
    assert [asked.path.rpartition("/")[2] for asked in api.asked] == ["sessions", "s-2"]
    assert reconciler.unread_count == 1
    assert "session s-0: qosStatus must be one of" in reconciler.complaint


async def test_an_api_that_forgot_everything_ends_nobody() -> None:
    """If nearly all sessions are gone at once, before their time, the API or the client counts as wrong, and none is
    ended.
    """
    async with comparing(live(100)) as (api, reconciler):
        api.script(answer(200, []), GONE)
        with pytest.raises(ReceiverError, match="no longer knows 100 of our 100 sessions"):
            await reconciler.compare()


@pytest.mark.parametrize("count", [2_500, 6_000])
async def test_an_api_that_forgot_many_ends_nobody(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same holds if only a few are requested at a time: those stand for all."""
    monkeypatch.setattr("receiver.qod.reconciler._ASKED_MAX", 100)
    async with comparing(live(count)) as (api, reconciler):
        api.script(answer(200, []), GONE)
        with pytest.raises(ReceiverError, match=f"no longer knows about {count} of our {count} sessions"):
            await reconciler.compare()


async def test_a_part_that_is_gone_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """If less than half are gone they are told, as many as are requested at a time."""
    monkeypatch.setattr("receiver.qod.reconciler._ASKED_MAX", 100)
    async with comparing(live(1_000)) as (api, reconciler):
        api.script(answer(200, [{**SESSION, "sessionId": f"s-{number}"} for number in range(600)]), GONE)
        found = await reconciler.compare()
    assert sum(each.telling.qos_status is QosStatus.UNAVAILABLE for each in found) == 100


async def test_what_is_missing_for_a_moment_is_not_asked_for() -> None:
    """Sessions that are missing on the list are requested one by one only once they have been missing for long."""
    async with comparing(live(3)) as (api, reconciler):
        api.script(answer(200, []))
        for _ in range(2):
            assert not await reconciler.compare(missing_seconds_min=3600)
            assert reconciler.waits
        assert len(api.asked) == 2
        since = dict(reconciler.missing)
        api.script(answer(200, []), GONE)
        assert len(await reconciler.compare()) == 3
        assert not reconciler.waits
        assert (reconciler.missing, len(api.asked)) == (since, 6)
        listed = [{**SESSION, "sessionId": each} for each in since]
        api.script(answer(200, listed))
        await reconciler.compare()
        assert not reconciler.missing


async def test_after_their_time_any_number_is_over() -> None:
    """Sessions whose time is up are over however many they are, as after an outage of the API."""
    async with comparing(live(100, seconds_left=-60)) as (api, reconciler):
        api.script(answer(200, []), GONE)
        found = await reconciler.compare()
    assert {each.telling.status_info for each in found} == {"DURATION_EXPIRED"}
    assert len(found) == 100


async def test_some_that_are_refused_don_t_hide_the_others() -> None:
    """An API that refuses some sessions is still asked for all others."""
    async with comparing(live(15)) as (api, reconciler):
        api.script(answer(200, []), *[error(403, "PERMISSION_DENIED", "no")] * 10, GONE)
        found = await reconciler.compare()
    assert len(found) == 5
    assert len(api.asked) == 16


@pytest.mark.parametrize(
    "odd",
    [
        {"duration": 1e30},
        {"duration": 2**70},
        {"device": {"phoneNumber": "+34600000001", "more": "x" * 100_000}},
        {"expiresAt": "0001-01-01T00:00:00+14:00"},
        {"device": [[[[]]]]},
    ],
)
async def test_an_odd_session_does_not_stop_the_others(odd: dict[str, object]) -> None:
    """A fact that can't be told is left out; its session is told, and so are all others."""
    listed = [{**SESSION, "sessionId": f"s-{number}"} for number in range(3)]
    async with comparing(Table({})) as (api, reconciler):
        api.script(answer(200, [{**listed[0], **odd}, *listed[1:]]))
        notifications = list(reconciler.notifications(await reconciler.compare()))
    assert [each.key for each in notifications] == ["s-0", "s-1", "s-2"]
    assert all(len(each.body) < 8_192 for each in notifications)


async def test_what_ended_long_ago_is_no_news() -> None:
    """A session that is over and not remembered may have been known: it is not told again."""
    ended = {**SESSION, "qosStatus": "UNAVAILABLE", "expiresAt": "2026-01-01T00:00:00Z"}
    async with comparing(Table({})) as (api, reconciler):
        api.script(answer(200, [ended, {**ended, "sessionId": "s-2", "expiresAt": None}]))
        assert not await reconciler.compare()


async def test_a_failure_does_not_quote_the_api() -> None:
    """An API's error may name a device, and goes to a log: its text is left out."""
    async with comparing(Table({})) as (api, reconciler):
        api.script(error(500, "INTERNAL", "no profile for device 34600000001 of anna@operator.example"))
        with pytest.raises(ReceiverError) as caught:
            await reconciler.compare()
    assert "INTERNAL" in caught.value.message
    assert "3460" not in caught.value.message
    assert "anna" not in caught.value.message


def test_facts_don_t_alternate() -> None:
    """A rounded time, or another identifier of the same device, is no new fact each time."""
    session = model.api_session({**SESSION, "expiresAt": "2026-11-24T10:00:00Z", "device": {"phoneNumber": "+346"}})
    other = model.api_session({**SESSION, "expiresAt": "2026-11-24T10:00:00.9Z", "device": {"ipv6Address": "::1"}})
    now = time.time_ns() // 1000
    mine: Session | None = None
    verdicts = []
    for each in (session, other, session, other):
        facts = facts_told(each, KEY, identifiers=True)
        telling = Telling(each.session_id, each.qos_status, None, now, facts)
        mine, verdict = learn(mine, telling.event(RECONCILE), facts, SENDER, now)
        verdicts.append(verdict)
        assert notification(telling, RECONCILE, SENDER, now).body
    assert verdicts == ["accepted", "duplicate", "duplicate", "duplicate"]
