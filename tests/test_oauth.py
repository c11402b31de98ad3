"""Token endpoints of all kinds: each way to present a secret, each form of a token, and temporary failures."""

import base64
import time
from collections.abc import AsyncIterator, Callable
from urllib.parse import parse_qs, unquote_plus

import pytest

from receiver.client_credentials import ClientCredentials
from receiver.core.errors import Unavailable
from receiver.qod.client import QodClient
from tests.faulty_api import SESSION, Asked, FaultyApi, Reply, answer, encoded, hung_up

CLIENT_ID, SECRET = "cli", "p@ss/w+rd=="
TOKEN = {"access_token": "t", "token_type": "Bearer", "expires_in": 3600}
INVALID_CLIENT = {"error": "invalid_client"}

Way = Callable[[Asked], tuple[str, str] | None]


@pytest.fixture
async def server() -> AsyncIterator[FaultyApi]:
    """An authorization server."""
    async with FaultyApi().listening() as api:
        yield api


def credentials(
    server: FaultyApi, secret: str = SECRET, *, attempts_max: int = 1, quotes: bool = True
) -> ClientCredentials:
    """A client of it."""
    return ClientCredentials(
        f"{server.url}/token",
        CLIENT_ID,
        secret,
        None,
        timeout_seconds=30,
        audience="us",
        reason="api",
        attempts_max=attempts_max,
        quotes=quotes,
    )


def basic(asked: Asked) -> tuple[str, str] | None:
    """Id and secret by HTTP Basic, without encoding."""
    scheme, _, text = asked.headers.get("authorization", "").partition(" ")
    if scheme != "Basic":
        return None
    name, _, secret = base64.b64decode(text).decode().partition(":")
    return name, secret


def encoded_basic(asked: Asked) -> tuple[str, str] | None:
    """The same, form-encoded as RFC 6749 requires."""
    found = basic(asked)
    return found and (unquote_plus(found[0]), unquote_plus(found[1]))


def in_form(asked: Asked) -> tuple[str, str] | None:
    """Id and secret in the form alone."""
    fields = parse_qs(asked.body.decode())
    if "authorization" in asked.headers or "client_secret" not in fields:
        return None
    return fields["client_id"][0], fields["client_secret"][0]


def granting(way: Way, secret: str, refusal: Reply) -> Callable[[Asked], Reply]:
    """A server that knows one way."""
    return lambda asked: answer(200, TOKEN) if way(asked) == (CLIENT_ID, secret) else refusal


@pytest.mark.parametrize(
    ("way", "secret", "asked_count"),
    [
        (encoded_basic, SECRET, 1),
        (basic, SECRET, 2),
        (in_form, SECRET, 3),
        (encoded_basic, "plain", 1),
        (basic, "plain", 1),
        (in_form, "plain", 2),
        (encoded_basic, "ключ %2B :", 1),
        (basic, "ключ %2B :", 2),
        (in_form, "ключ %2B :", 3),
    ],
)
@pytest.mark.parametrize(
    "refusal",
    [
        answer(401, INVALID_CLIENT),
        answer(400, INVALID_CLIENT),
        answer(401),
        answer(400, {"error": "invalid_request", "error_description": "Missing client_id"}),
        answer(401, {"message": "Unauthorized"}),
    ],
)
async def test_a_secret_is_presented_in_each_way(
    way: Way, secret: str, asked_count: int, refusal: Reply, server: FaultyApi
) -> None:
    """The way that the server knows is found, and is tried first from then on."""
    server.grant = granting(way, secret, refusal)
    source = credentials(server, secret)
    assert await source.token() == "t"
    assert server.tokens == asked_count
    source.forget("t")
    assert await source.token() == "t"
    assert server.tokens == asked_count + 1


async def test_a_wrong_secret_is_told_as_the_first_way_has_it(server: FaultyApi) -> None:
    """If no way is right, each was tried once, and the answer to the standard's way is reported."""
    server.grant = lambda asked: (
        answer(401, INVALID_CLIENT) if basic(asked) else answer(400, {"error": "invalid_request"})
    )
    with pytest.raises(Unavailable, match=r"^no token for us: the token server answers 401 \(invalid_client\)$"):
        await credentials(server).token()
    assert server.tokens == 3


@pytest.mark.parametrize("reply", [hung_up(), answer(500), answer(404), encoded(200, TOKEN, "br", b"x")])
async def test_a_way_that_a_server_chokes_on_is_none(reply: Reply, server: FaultyApi) -> None:
    """If a server fails on a way that it does not know, its refusal of the standard's way is reported."""
    server.grant = lambda asked: answer(401, INVALID_CLIENT) if basic(asked) else reply
    with pytest.raises(Unavailable, match=r"the token server answers 401 \(invalid_client\)$"):
        await credentials(server).token()


@pytest.mark.parametrize("code", ["invalid_scope", "unsupported_grant_type", "invalid_target", "invalid_grant"])
async def test_a_client_that_is_known_is_not_presented_again(code: str, server: FaultyApi) -> None:
    """A refusal that another way would not change ends the attempts."""
    server.grant = lambda _: answer(400, {"error": code})
    with pytest.raises(Unavailable, match=code):
        await credentials(server).token()
    assert server.tokens == 1


@pytest.mark.parametrize(
    ("reply", "token"),
    [
        (answer(200, TOKEN), "t"),
        (answer(201, TOKEN), "t"),
        (answer(202, {"access_token": "t"}), "t"),
        (answer(200, {"access_token": "17|a:b!\"#%&'()*,;<>?@[]^{}"}), "17|a:b!\"#%&'()*,;<>?@[]^{}"),
        (answer(200, {"access_token": " t\n"}), "t"),
        (answer(200, b"\xef\xbb\xbf" + b'{"access_token": "t"}'), "t"),
        (answer(200, b"access_token=t&token_type=bearer&expires_in=60"), "t"),
        (encoded(200, TOKEN, "gzip"), "t"),
        (encoded(201, TOKEN, "deflate"), "t"),
    ],
)
async def test_a_token_that_can_be_used_is_used(reply: Reply, token: str, server: FaultyApi) -> None:
    """A token in any form is accepted."""
    server.grant = lambda _: reply
    assert await credentials(server).token() == token


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (answer(204), "answers without a token"),
        (answer(200, {"access_token": ""}), "answers without a token"),
        (answer(200, {"access_token": "a b"}), "answers without a token"),
        (answer(200, {"access_token": "ä"}), "answers without a token"),
        (encoded(200, TOKEN, "br", b"x"), "answers in the encoding br, which was not asked for"),
        (encoded(200, TOKEN, "gzip", b"{}"), "answers content that is not in the encoding it declares: gzip"),
        (encoded(200, "x" * 100_000_000, "gzip"), "answers with too much content"),
        (answer(403, {"message": "no Route matched"}), "answers 403: no Route matched"),
        (answer(503, {"title": "Down", "detail": "for a while"}), "answers 503: Down: for a while"),
        (answer(403, {"message": f"{SECRET} of {CLIENT_ID}\x1b[2J is none"}), "answers 403: … of cli [2J is none"),
        (answer(429, retry_after="3600"), "answers 429, with a Retry-After of 3600 s"),
    ],
)
async def test_what_is_no_token_is_told(reply: Reply, told: str, server: FaultyApi) -> None:
    """A server's answer without a token is reported in its words, without the secret."""
    server.grant = lambda _: reply
    with pytest.raises(Unavailable) as caught:
        await credentials(server).token()
    assert caught.value.message == f"no token for us: the token server {told}"


async def test_words_are_told_only_where_that_is_wanted(server: FaultyApi) -> None:
    """A log gets only the status and the code."""
    server.grant = lambda _: answer(403, {"error": "denied", "error_description": "to anna@operator.example"})
    with pytest.raises(Unavailable, match=r"answers 403 \(denied\)$"):
        await credentials(server, quotes=False).token()


PASSING = {
    "429": answer(429),
    "429 for a second": answer(429, retry_after="1"),
    "502": answer(502, b"<html>"),
    "503": answer(503),
    "504": answer(504),
    "hung up": hung_up(),
}


@pytest.mark.long
@pytest.mark.parametrize("reply", PASSING.values(), ids=PASSING)
async def test_what_passes_is_asked_again(reply: Reply, server: FaultyApi) -> None:
    """After a temporary failure a token is requested again, as often as the settings allow."""
    replies = [reply, reply, answer(200, TOKEN)]
    server.grant = lambda _: replies.pop(0)
    server.script(answer(200, []))
    async with QodClient(server.settings(attempts_max=3)) as client:
        assert not (await client.list()).sessions
    assert server.tokens == 3
    server.grant = lambda _: reply
    with pytest.raises(Unavailable):
        await credentials(server, attempts_max=2).token()
    assert server.tokens == 5


@pytest.mark.parametrize("reply", [answer(500), answer(404), answer(429, retry_after="31"), answer(200)])
async def test_what_does_not_pass_is_asked_once(reply: Reply, server: FaultyApi) -> None:
    """A lasting failure is reported at once."""
    server.grant = lambda _: reply
    with pytest.raises(Unavailable):
        await credentials(server, attempts_max=4).token()
    assert server.tokens == 1


async def test_who_has_a_token_waits_for_no_other(server: FaultyApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that can't be renewed now is used, and no caller waits for the server's pause."""
    server.grant = lambda _: answer(200, {"access_token": "t", "expires_in": 60})
    monkeypatch.setattr("receiver.client_credentials._LIFE_USED", 0)
    source = credentials(server, attempts_max=4)
    assert await source.token() == "t"
    server.grant = lambda _: answer(503, retry_after="30")
    began = time.monotonic()
    assert [await source.token(), await source.token()] == ["t", "t"]
    assert time.monotonic() - began < 15
    assert server.tokens == 2


async def test_what_is_sent(server: FaultyApi) -> None:
    """The scope, the audience and the headers of the settings are sent; those not set are not."""
    server.script(answer(200, [SESSION]))
    key = {"X-Api-Key": "the-key-of-the-gateway", "x-tenant": "a b"}
    settings = server.settings(scope="", audience="https://api.example.com", headers=key)
    async with QodClient(settings) as client:
        await client.list()
    async with QodClient(server.settings(scope="one two")) as client:
        await client.list()
    forms = [parse_qs(asked.body.decode()) for asked in server.tokens_asked]
    grant = {"grant_type": ["client_credentials"]}
    assert forms == [{**grant, "audience": ["https://api.example.com"]}, {**grant, "scope": ["one two"]}]
    for first, second in (server.tokens_asked, server.asked):
        assert (first.headers["x-api-key"], first.headers["x-tenant"]) == ("the-key-of-the-gateway", "a b")
        assert not {"x-api-key", "x-tenant"} & second.headers.keys()
    assert "the-key" not in repr(settings)
