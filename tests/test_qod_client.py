"""The client of the QoD API: against the simulator, which is right, and against servers that are not."""

import asyncio
import contextlib
import logging
import ssl
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from pydantic import SecretStr

from receiver.client_credentials import ClientCredentials
from receiver.core import rfc3339
from receiver.core.errors import ApiRefused, ReceiverError, Unavailable
from receiver.core.event import QosStatus
from receiver.qod import model
from receiver.qod.client import QodClient
from receiver.qod.model import Creation, Identifiers, QosProfile
from receiver.settings import ApiSettings
from receiver.simulator.server import Options
from tests.faulty_api import (
    SESSION,
    SESSION_ID,
    FaultyApi,
    Reply,
    answer,
    cut,
    error,
    garbage,
    huge,
    hung_up,
    silent,
    trickling,
)
from tests.kafka_cluster import Credentials
from tests.limits import SECONDS_MAX
from tests.simulated import Simulated, simulated, until

PHONE, NAI, IPV4, IPV6 = "+34600111222", "jane.doe@example.org", "203.0.113.77", "2001:db8::77"
TOKEN = "the-token-of-the-notifications"
SECRETS = (PHONE[1:], PHONE[3:], NAI, IPV4, IPV6, TOKEN, "the-secret-of-the-client", "token-1", "token-2")
#: Long enough to make and read a request on a busy machine.
SHORT_SECONDS = 2.0

Operation = Callable[[QodClient], Coroutine[Any, Any, object]]
CREATE: Operation = lambda client: client.create(wanted())  # noqa: E731  # a row of a table
LIST: Operation = lambda client: client.list()  # noqa: E731
GET: Operation = lambda client: client.get(SESSION_ID)  # noqa: E731
DELETE: Operation = lambda client: client.delete(SESSION_ID)  # noqa: E731
ALL = pytest.mark.parametrize("operation", [CREATE, LIST, GET, DELETE], ids=["create", "list", "get", "delete"])
REPEATED = pytest.mark.parametrize("operation", [LIST, GET, DELETE], ids=["list", "get", "delete"])


def wanted(phone: str = PHONE) -> Creation:
    """A request of a device with every identifier."""
    identifiers = Identifiers(SecretStr(phone), SecretStr(NAI), SecretStr(f"{IPV4}:50000"), SecretStr(IPV6))
    request = model.creation(identifiers, qos_profile=QosProfile.QOS_E, duration_seconds=60)
    return request.notified("http://127.0.0.1:9/notifications", SecretStr(TOKEN))


def settings_of(api: Simulated, **changes: Any) -> ApiSettings:  # noqa: ANN401  # any setting's type
    """Settings of a client of a simulator."""
    settings = {
        "base_url": f"{api.url}/v1",
        "token_url": f"{api.url}/token",
        "client_id": "demo",
        "client_secret": "demo",
        "sender": "simulator",
        "timeout_seconds": SECONDS_MAX,
    }
    return ApiSettings(**{**settings, **changes})


@pytest.fixture
async def faulty() -> AsyncIterator[FaultyApi]:
    """An API whose answers a test scripts."""
    async with FaultyApi().listening() as api:
        yield api


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """All lines of all logs, the HTTP client's included; see `assert_discreet`."""
    caplog.set_level(logging.DEBUG)
    return caplog


def assert_discreet(log: pytest.LogCaptureFixture, *errors: BaseException) -> None:
    """Neither a log nor an error, with the locals of all of the receiver's frames, has a secret."""
    shown = [log.text]
    for each in errors:
        assert each.__context__ is None, "what came before is shown too"
        stack = traceback.TracebackException.from_exception(each, capture_locals=True).stack
        shown += [repr(each), str(each)]
        shown += [str(frame.locals) for frame in stack if "/tests/" not in frame.filename]
    assert not [secret for secret in SECRETS if secret in "\n".join(shown)]


async def failure_of(operation: Operation, settings: ApiSettings) -> ReceiverError:
    """The error that an operation ends with."""
    async with asyncio.timeout(SECONDS_MAX), QodClient(settings) as client:
        with pytest.raises(ReceiverError) as caught:
            await operation(client)
    return caught.value


# The simulator


async def test_the_life_of_a_session(log: pytest.LogCaptureFixture) -> None:
    """A session is created, shown, listed and deleted, and then does not exist any more; all with one token."""
    async with simulated(Options(available_after_seconds=0)) as api, QodClient(settings_of(api)) as client:
        made = await client.create(wanted())
        assert (made.qos_profile, made.duration_seconds) == ("QOS_E", 60)
        assert made.device["phoneNumber"] == PHONE
        await api.until_status(made.session_id, "AVAILABLE")
        found = await client.get(made.session_id)
        assert found is not None
        assert found.qos_status is QosStatus.AVAILABLE
        assert found.started_micros is not None
        assert found.expires_micros == found.started_micros + 60_000_000
        assert (await client.list()).sessions == [found]
        assert await client.delete(made.session_id) is True
        assert await client.get(made.session_id) is None
        assert await client.delete(made.session_id) is False
        assert (await client.list()).sessions == []
    assert_discreet(log)


async def test_many_sessions_at_once() -> None:
    """One client serves many calls at a time."""
    async with simulated(Options()) as api, QodClient(settings_of(api)) as client:
        requests = [
            model.creation(
                Identifiers(SecretStr(f"+34600{number:06}")), qos_profile=QosProfile.QOS_S, duration_seconds=60
            )
            for number in range(100)
        ]
        made = await asyncio.gather(*(client.create(request) for request in requests))
        assert {each.session_id for each in (await client.list()).sessions} == {each.session_id for each in made}
        assert all(await asyncio.gather(*(client.delete(each.session_id) for each in made)))


async def test_a_device_that_has_a_session_is_refused(log: pytest.LogCaptureFixture) -> None:
    """A conflict is reported with the API's own code and words, and creates nothing."""
    async with simulated(Options()) as api, QodClient(settings_of(api)) as client:
        await client.create(wanted())
        with pytest.raises(ApiRefused, match=r"answers 409 \(CONFLICT\): the device has a session already") as caught:
            await client.create(wanted())
        assert len((await client.list()).sessions) == 1
    assert (caught.value.status, caught.value.code) == (409, "CONFLICT")
    assert_discreet(log, caught.value)


async def test_what_the_api_finds_wrong_is_told(log: pytest.LogCaptureFixture) -> None:
    """A request that the API refuses is reported with its reason."""
    async with simulated(Options()) as api, QodClient(settings_of(api)) as client:
        with pytest.raises(ApiRefused, match=r"answers 400 \(INVALID_ARGUMENT\): qosProfile") as caught:
            await client.create(Creation({**wanted(), "qosProfile": "QOS_X"}))
    assert_discreet(log, caught.value)


async def test_a_scope_that_is_not_enough_is_refused() -> None:
    """A client with the right to read creates nothing."""
    async with simulated(Options()) as api, QodClient(settings_of(api, scope="qod:sessions:read")) as client:
        with pytest.raises(ApiRefused, match=r"answers 403 \(PERMISSION_DENIED\)"):
            await client.create(wanted())


@ALL
async def test_a_client_that_is_unknown_is_told(operation: Operation, log: pytest.LogCaptureFixture) -> None:
    """Without a token the API is not asked, and the authorization server's code is the reason."""
    async with simulated(Options()) as api:
        caught = await failure_of(operation, settings_of(api, client_secret="wrong-secret-of-the-client"))
    assert isinstance(caught, Unavailable)
    assert caught.message == (
        "no token for the QoD API: the token server answers 401 (invalid_client): "
        "the client is unknown, or its secret wrong"
    )
    assert_discreet(log, caught)


@pytest.mark.long
async def test_tokens_that_live_for_a_second_are_renewed() -> None:
    """A token is renewed before it expires, without an effect on calls."""
    async with simulated(Options(token_seconds=2)) as api, QodClient(settings_of(api)) as client:
        began = time.monotonic()
        while time.monotonic() - began < 5:
            assert (await client.list()).sessions == []
            await asyncio.sleep(0.05)


# Tokens


async def test_a_token_is_used_by_all(faulty: FaultyApi) -> None:
    """For any number of callers, at once and one after the other, one token is fetched."""
    async with QodClient(faulty.settings()) as client:
        await asyncio.gather(*(client.get(SESSION_ID) for _ in range(20)))
        await client.delete(SESSION_ID)
    assert faulty.tokens == 1
    assert {each.headers["authorization"] for each in faulty.asked} == {"Bearer token-1"}


@pytest.mark.long
async def test_a_token_is_renewed_before_it_is_over(faulty: FaultyApi) -> None:
    """At four fifths of its life a token is renewed; while that fails, the old one is used until its end."""
    faulty.token_life_seconds = 10.0
    async with QodClient(faulty.settings()) as client:
        await client.get(SESSION_ID)
        began = time.monotonic()
        faulty.token_reply = answer(500)
        while faulty.tokens == 1:  # asked again once four fifths are over
            await client.get(SESSION_ID)
            await asyncio.sleep(0.02)
        assert time.monotonic() - began > 6
        assert faulty.asked[-1].headers["authorization"] == "Bearer token-1"

        async def over() -> str | None:
            try:
                await client.get(SESSION_ID)
            except Unavailable as error:
                return error.message
            return None

        assert await until(over) == "no token for the QoD API: the token server answers 500"
        faulty.token_reply = None

        async def recovered() -> bool:
            with contextlib.suppress(Unavailable):
                return await client.get(SESSION_ID) is not None
            return False

        await until(recovered)


@ALL
async def test_a_401_gets_one_new_token(operation: Operation, faulty: FaultyApi, log: pytest.LogCaptureFixture) -> None:
    """A token that is not accepted is replaced, and the request repeated once."""
    faulty.script(error(401, "UNAUTHENTICATED", "expired"), answer(200, [SESSION] if operation is LIST else SESSION))
    async with QodClient(faulty.settings(attempts_max=1)) as client:
        assert await operation(client)
    assert [each.headers["authorization"] for each in faulty.asked] == ["Bearer token-1", "Bearer token-2"]
    assert faulty.asked[0].headers["x-correlator"] == faulty.asked[1].headers["x-correlator"]
    assert_discreet(log)


@ALL
async def test_a_second_401_is_told(operation: Operation, faulty: FaultyApi, log: pytest.LogCaptureFixture) -> None:
    """If the new token is not accepted either, that is the answer."""
    faulty.script(error(401, "UNAUTHENTICATED", "no token of ours"))
    caught = await failure_of(operation, faulty.settings())
    assert isinstance(caught, ApiRefused)
    assert (caught.status, caught.code) == (401, "UNAUTHENTICATED")
    assert (len(faulty.asked), faulty.tokens) == (2, 2)
    assert_discreet(log, caught)


async def test_many_401s_get_one_new_token(faulty: FaultyApi) -> None:
    """Of many callers that were refused with the same token, one fetches the next."""
    faulty.script(*[error(401, "UNAUTHENTICATED", "expired")] * 10, answer(200, SESSION))
    async with QodClient(faulty.settings()) as client:
        await asyncio.gather(*(client.get(SESSION_ID) for _ in range(10)))
    assert faulty.tokens == 2
    assert len(faulty.asked) == 20


async def test_a_token_that_is_not_at_hand_is_not_forgotten(faulty: FaultyApi) -> None:
    """Giving up a token that was replaced already changes nothing."""
    source = ClientCredentials(f"{faulty.url}/token", "i", "s", None, timeout_seconds=30, audience="us", reason="api")
    assert await source.token() == "token-1"
    source.forget("token-0")
    assert await source.token() == "token-1"
    source.forget("token-1")
    assert source.seconds_left <= 0
    assert await source.token() == "token-2"


# Requests that are repeated, and those that are not

PASSING = {
    "429": error(429, "TOO_MANY_REQUESTS", "slow down"),
    "502": answer(502),
    "503": answer(503, b"<html>"),
    "504": answer(504),
    "cut": cut(200, SESSION),
    "hung up": hung_up(),
    "garbage": garbage(),
}


@REPEATED
@pytest.mark.parametrize("reply", PASSING.values(), ids=PASSING)
async def test_what_passes_is_asked_again(operation: Operation, reply: Reply, faulty: FaultyApi) -> None:
    """A repeatable request is repeated after a temporary failure."""
    faulty.script(reply, reply, answer(200, [SESSION] if operation is LIST else SESSION))
    async with QodClient(faulty.settings()) as client:
        assert await operation(client)
    assert len(faulty.asked) == 3
    assert len({each.headers["x-correlator"] for each in faulty.asked}) == 1


@REPEATED
async def test_what_does_not_pass_is_given_up(operation: Operation, faulty: FaultyApi) -> None:
    """After as many attempts as the settings allow, the answer and the request's correlator are reported."""
    faulty.script(error(503, "UNAVAILABLE", "the network is down", retry_after="0"))
    caught = await failure_of(operation, faulty.settings(attempts_max=3))
    assert isinstance(caught, Unavailable)
    assert len(faulty.asked) == 3
    correlator = faulty.asked[0].headers["x-correlator"]
    assert str(uuid.UUID(correlator)) == correlator
    assert caught.message == (
        f"the QoD API answers 503 (UNAVAILABLE): the network is down (3 attempts, x-correlator {correlator})"
    )


@REPEATED
@pytest.mark.parametrize("status", [500, 501, 408])
async def test_what_may_not_pass_is_asked_once(operation: Operation, status: int, faulty: FaultyApi) -> None:
    """Other failures of the API are temporary, but not repeated at once."""
    faulty.script(answer(status))
    assert isinstance(await failure_of(operation, faulty.settings()), Unavailable)
    assert len(faulty.asked) == 1


@ALL
@pytest.mark.parametrize("status", [400, 403, 405, 409, 410, 422])
async def test_what_is_refused_is_asked_once(operation: Operation, status: int, faulty: FaultyApi) -> None:
    """A refusal is reported with its code and message, and is final."""
    faulty.script(error(status, "SOME_CODE", "because of that"))
    caught = await failure_of(operation, faulty.settings())
    assert isinstance(caught, ApiRefused)
    assert (caught.status, caught.code) == (status, "SOME_CODE")
    assert caught.message.startswith(f"the QoD API answers {status} (SOME_CODE): because of that (x-correlator ")
    assert len(faulty.asked) == 1


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_the_api_says_when_to_ask_again(form: str, faulty: FaultyApi) -> None:
    """No request is repeated before the time in Retry-After."""
    began = time.monotonic()
    retry_after = "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)  # whole seconds, cut
    faulty.script(error(429, "TOO_MANY_REQUESTS", "slow down", retry_after=retry_after), answer(200, SESSION))
    async with QodClient(faulty.settings()) as client:
        assert await client.get(SESSION_ID)
    assert time.monotonic() - began >= 0.9


@ALL
@pytest.mark.parametrize(("text", "seconds"), [("3600", 3600), ("9" * 400, 999_999_999)])
async def test_a_long_wait_is_told(operation: Operation, text: str, seconds: int, faulty: FaultyApi) -> None:
    """An API that asks for a pause beyond the limit is asked once, and the pause is reported."""
    faulty.script(error(429, "TOO_MANY_REQUESTS", "slow down", retry_after=text), answer(200, SESSION))
    caught = await failure_of(operation, faulty.settings())
    assert f"slow down, with a Retry-After of {seconds} s (x-correlator" in caught.message
    assert caught.retry_after_seconds == seconds
    assert len(faulty.asked) == 1


async def test_a_wait_is_told(faulty: FaultyApi) -> None:
    """While an attempt waits for seconds, the client says why and for how long."""
    told: list[str] = []
    faulty.script(answer(503, retry_after="1"), hung_up(), answer(200, SESSION))
    async with QodClient(faulty.settings(), notice=told.append) as client:
        assert await client.get(SESSION_ID)
    assert told[0] == "the QoD API answers 503: it is asked again in 1 s"


@pytest.mark.parametrize("text", ["soon", "-1", "1e9", "²", "Wed, 99 Foo 2026", ""])
async def test_a_retry_after_that_is_none(text: str, faulty: FaultyApi) -> None:
    """An invalid Retry-After changes nothing."""
    faulty.script(answer(503, retry_after=text), answer(200, SESSION))
    async with asyncio.timeout(SECONDS_MAX), QodClient(faulty.settings()) as client:
        assert await client.get(SESSION_ID)


async def test_how_long_to_wait_is_told(faulty: FaultyApi) -> None:
    """A caller that gives up leaves the API's Retry-After to the next caller."""
    faulty.script(answer(503, retry_after="17"))
    assert (await failure_of(GET, faulty.settings(attempts_max=1))).retry_after_seconds == 17


LOST = {
    **{name: reply for name, reply in PASSING.items() if name != "429"},
    "500": answer(500),
    "408": answer(408),
    "503 later": answer(503, retry_after="0"),
}


@pytest.mark.parametrize("reply", LOST.values(), ids=LOST)
async def test_a_creation_is_posted_once(reply: Reply, faulty: FaultyApi, log: pytest.LogCaptureFixture) -> None:
    """After an answer that is no session, the creation is not repeated, and the error says that a session may exist."""
    faulty.script(reply)
    caught = await failure_of(CREATE, faulty.settings(attempts_max=10))
    assert isinstance(caught, Unavailable)
    assert caught.message.endswith("it may have been created: see `session list`")
    assert len(faulty.asked) == 1
    assert_discreet(log, caught)


async def test_a_creation_that_was_too_much_is_posted_again(faulty: FaultyApi) -> None:
    """An answer of 429 says that nothing was made: the creation is repeated, and no session can exist."""
    too_much = error(429, "TOO_MANY_REQUESTS", "slow down")
    faulty.script(too_much, too_much, answer(201, SESSION))
    async with QodClient(faulty.settings()) as client:
        assert (await client.create(wanted())).session_id == SESSION_ID
    assert len(faulty.posts()) == 3
    faulty.script(too_much)
    caught = await failure_of(CREATE, faulty.settings(attempts_max=2))
    assert "may have been created" not in caught.message
    assert len(faulty.posts()) == 5


async def test_a_creation_whose_answer_is_late_is_posted_once(faulty: FaultyApi, log: pytest.LogCaptureFixture) -> None:
    """After a time-out the outcome of a creation is unknown."""
    faulty.script(silent())
    caught = await failure_of(CREATE, faulty.settings(timeout_seconds=SHORT_SECONDS))
    assert caught.message.startswith("the QoD API did not answer within 2 s (x-correlator ")
    assert caught.message.endswith("it may have been created: see `session list`")
    assert len(faulty.asked) == 1
    assert_discreet(log, caught)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"sessionId": "s"}',
        orjson.dumps({**SESSION, "qosStatus": "NEW", "device": PHONE}),
    ],
)
async def test_a_creation_whose_answer_can_not_be_read(
    content: bytes, faulty: FaultyApi, log: pytest.LogCaptureFixture
) -> None:
    """An answer without a session leaves open whether a creation made one."""
    faulty.script(answer(201, content))
    caught = await failure_of(CREATE, faulty.settings())
    assert isinstance(caught, Unavailable)
    assert "answers what can't be read: " in caught.message
    assert caught.message.endswith("it may have been created: see `session list`")
    assert len(faulty.asked) == 1
    assert_discreet(log, caught)


async def test_a_creation_that_was_lost_is_there_once(log: pytest.LogCaptureFixture) -> None:
    """A connection that is cut before the answer leaves one session, which can be found."""
    async with simulated(Options()) as api, QodClient(settings_of(api)) as direct, _losing_answers(api.url) as url:
        caught = await failure_of(CREATE, settings_of(api, base_url=f"{url}/v1"))
        assert "it may have been created" in caught.message
        assert len((await direct.list()).sessions) == 1
    assert_discreet(log, caught)


@contextlib.asynccontextmanager
async def _losing_answers(url: str) -> AsyncIterator[str]:
    """A way to an API on which requests arrive, and of the answers only a few bytes."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", httpx2.URL(url).port)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        back.write(head + await reader.readexactly(length))
        writer.write((await there.read(1024))[:20])
        writer.close()
        back.close()

    server = await asyncio.start_server(pass_on, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_a_creation_that_nobody_got_is_posted_again(faulty: FaultyApi, unused_tcp_port: int) -> None:
    """Without a connection nothing was sent, and the creation is repeated until a server listens."""
    base_url = f"http://127.0.0.1:{unused_tcp_port}/v1"
    async with QodClient(faulty.settings(base_url=base_url, attempts_max=20)) as client:
        making = asyncio.create_task(client.create(wanted()))
        await asyncio.wait({making}, timeout=0.5)
        assert not making.done()
        async with FaultyApi().listening(unused_tcp_port) as late, asyncio.timeout(SECONDS_MAX):
            assert (await making).session_id == SESSION_ID
            assert len(late.posts()) == 1


@ALL
async def test_nobody_is_there(
    operation: Operation, faulty: FaultyApi, unused_tcp_port: int, log: pytest.LogCaptureFixture
) -> None:
    """If no server listens the error says so, and does not say that a session may exist."""
    settings = faulty.settings(base_url=f"http://127.0.0.1:{unused_tcp_port}/v1", attempts_max=3)
    caught = await failure_of(operation, settings)
    assert isinstance(caught, Unavailable)
    assert caught.message.startswith("the QoD API can't be reached: ")
    assert "(3 attempts, x-correlator " in caught.message
    assert "may have been created" not in caught.message
    assert_discreet(log, caught)


@ALL
@pytest.mark.parametrize("base_url", ["http://127.0.0.1:99999", "http://[::", "http://a..b/"])
async def test_nobody_can_be_there(operation: Operation, base_url: str, faulty: FaultyApi) -> None:
    """A base URL that leads nowhere is an error like any other."""
    caught = await failure_of(operation, faulty.settings(base_url=base_url, attempts_max=2))
    assert isinstance(caught, Unavailable)
    assert "may have been created" not in caught.message


async def test_an_end_whose_answer_was_lost_is_an_end(faulty: FaultyApi) -> None:
    """A session that does not exist at the second attempt to delete it was ended by the first."""
    async with QodClient(faulty.settings()) as client:
        faulty.script(hung_up(), error(404, "NOT_FOUND", "there is no such session"))
        assert await client.delete(SESSION_ID) is True
        faulty.script(error(404, "NOT_FOUND", "there is no such session"))
        assert await client.delete(SESSION_ID) is False


# Limits


@pytest.mark.long
@REPEATED
@pytest.mark.parametrize("reply", [silent(), trickling()], ids=["silent", "trickling"])
async def test_an_answer_has_its_time(operation: Operation, reply: Reply, faulty: FaultyApi) -> None:
    """A slow answer is waited for no longer than the limit, at each attempt."""
    faulty.script(reply)
    caught = await failure_of(operation, faulty.settings(timeout_seconds=SHORT_SECONDS, attempts_max=2))
    assert isinstance(caught, Unavailable)
    assert caught.message.startswith("the QoD API did not answer within 2 s (2 attempts, ")
    assert len(faulty.asked) <= 2  # on a busy machine a connection may take as long


@ALL
@pytest.mark.parametrize("status", [200, 400])
async def test_an_answer_has_its_length(
    operation: Operation, status: int, faulty: FaultyApi, log: pytest.LogCaptureFixture
) -> None:
    """An answer without an end is broken off; of an error then only the status is reported."""
    faulty.script(huge(status))
    caught = await failure_of(operation, faulty.settings())
    if status == 200:
        assert isinstance(caught, Unavailable)
        assert "the QoD API answers with too much content" in caught.message
        assert ("may have been created" in caught.message) == (operation is CREATE)
    else:
        assert isinstance(caught, ApiRefused)
        assert caught.message.startswith("the QoD API answers 400 (x-correlator")
    assert len(faulty.asked) == 1
    assert_discreet(log, caught)


async def test_a_long_list_is_read(faulty: FaultyApi) -> None:
    """A list of 50,000 sessions is taken whole."""
    session = {**SESSION, "device": {"phoneNumber": PHONE}, "startedAt": "2026-11-24T10:00:00Z"}
    faulty.script(answer(200, [{**session, "sessionId": f"s-{number}"} for number in range(50_000)]))
    async with QodClient(faulty.settings(timeout_seconds=SECONDS_MAX)) as client:
        found = (await client.list()).sessions
    assert [each.session_id for each in found] == [f"s-{number}" for number in range(50_000)]
    assert found[0].started_micros == rfc3339.micros("2026-11-24T10:00:00Z")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"<html>", "it is not JSON"),
        (b'{"sessions": []}', "it is not a list of sessions"),
        (b"[" * 100_000, "it is not JSON"),
    ],
)
async def test_a_list_that_can_not_be_read(
    content: bytes, told: str, faulty: FaultyApi, log: pytest.LogCaptureFixture
) -> None:
    """A body that is no list, or a list without an end, is an error."""
    faulty.script(answer(200, content))
    caught = await failure_of(LIST, faulty.settings())
    assert isinstance(caught, Unavailable)
    assert f"answers what can't be read: {told}" in caught.message
    assert_discreet(log, caught)


@ALL
async def test_a_redirect_is_not_followed(operation: Operation, faulty: FaultyApi) -> None:
    """No token is sent to where an answer redirects."""
    faulty.script(answer(307, location=f"{faulty.url}/elsewhere"))
    caught = await failure_of(operation, faulty.settings())
    assert isinstance(caught, ApiRefused)
    assert "answers 307, a redirect, which is not followed" in caught.message
    assert len(faulty.asked) == 1


@ALL
async def test_a_certificate_of_nobody_is_not_trusted(
    operation: Operation, faulty: FaultyApi, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    """Nothing is sent to a server without a trusted certificate."""
    stranger = Credentials(tmp_path / "stranger")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*stranger.issue("api", "127.0.0.1"))
    async with FaultyApi().listening(tls=tls) as impostor:
        settings = faulty.settings(base_url=f"{impostor.url}/v1", attempts_max=1)
        caught = await failure_of(operation, settings)
    assert isinstance(caught, Unavailable)
    assert "certificate verify failed" in caught.message
    assert "may have been created" not in caught.message
    assert impostor.asked == []
    assert_discreet(log, caught)


# What is sent, and what is kept secret


async def test_what_is_sent(faulty: FaultyApi) -> None:
    """Each operation sends the method and the path of the API, with a correlator of its own."""
    async with QodClient(faulty.settings(base_url=f"{faulty.url}/v1/")) as client:
        await client.create(wanted())
        await client.get(SESSION_ID)
        await client.delete(SESSION_ID)
        faulty.script(answer(200, []))
        await client.list()
    sessions = "/v1/qod/sessions"
    assert [(each.method, each.path) for each in faulty.asked] == [
        ("POST", sessions),
        ("GET", f"{sessions}/{SESSION_ID}"),
        ("DELETE", f"{sessions}/{SESSION_ID}"),
        ("GET", sessions),
    ]
    assert orjson.loads(faulty.asked[0].body) == orjson.loads(wanted().content())
    assert faulty.asked[0].headers["content-type"] == "application/json"
    assert len({each.headers["x-correlator"] for each in faulty.asked}) == 4


@pytest.mark.parametrize(
    ("session_id", "path"),
    [
        ("a/b", "a%2Fb"),
        ("../sessions", "..%2Fsessions"),
        ("a?b#c", "a%3Fb%23c"),
        ("a b\r\n", "a%20b%0D%0A"),
        ("ü", "%C3%BC"),
    ],
)
async def test_an_id_leads_nowhere_else(session_id: str, path: str, faulty: FaultyApi) -> None:
    """An id with any characters is one segment of the path."""
    async with QodClient(faulty.settings()) as client:
        await client.get(session_id)
        await client.delete(session_id)
    assert {each.path for each in faulty.asked} == {f"/v1/qod/sessions/{path}"}


@pytest.mark.parametrize("session_id", ["", ".", ".."])
async def test_what_is_no_id_is_not_asked_for(session_id: str, faulty: FaultyApi) -> None:
    """An id that a URL would take for another path is the id of no session."""
    async with QodClient(faulty.settings()) as client:
        assert await client.get(session_id) is None
        assert await client.delete(session_id) is False
    assert faulty.asked == []


@pytest.mark.parametrize("identifier", [PHONE, PHONE[1:], PHONE[3:], NAI, NAI.upper(), IPV4, "2001:DB8:0::77", TOKEN])
@pytest.mark.parametrize("status", [400, 403, 409, 503])
async def test_what_was_sent_is_not_quoted(
    identifier: str, status: int, faulty: FaultyApi, log: pytest.LogCaptureFixture
) -> None:
    """An API's error that repeats a device's identifiers or our token is shown without them."""
    faulty.script(error(status, identifier, f"the device {identifier} is\x1b[2J not ({identifier}) ours"))
    caught = await failure_of(CREATE, faulty.settings())
    assert f"answers {status}: the device … is" in caught.message
    assert caught.message.isprintable()
    assert identifier.lower() not in caught.message.lower()
    assert_discreet(log, caught)


async def test_a_message_is_short(faulty: FaultyApi) -> None:
    """A long message is cut to a helpful length."""
    faulty.script(error(400, "INVALID_ARGUMENT", "long " * 5_000))
    assert len((await failure_of(GET, faulty.settings())).message) < 500


def test_without_a_base_url_there_is_no_client() -> None:
    """A client without a configured API can't be made."""
    with pytest.raises(ValueError, match=r"there is no api\.base_url"):
        QodClient(ApiSettings())
