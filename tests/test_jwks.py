"""Issuers' keys, fetched from a real server on the loopback interface that works, fails, is slow or lies."""

import asyncio
import contextlib
import gzip
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from receiver.core.errors import Refused, Unavailable
from receiver.edge.auth import Credentials, Issuer
from receiver.edge.issuers import Authenticator, KeySource
from tests.limits import SECONDS_MAX

ISSUER = "https://auth.operator.example"
AUDIENCE = "qod-receiver.example"
PRIVATE = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("k-1", "k-2", "k-3")}
#: Longer than any test waits: as a time limit it is never reached, and as a pause it never ends.
LONG = SECONDS_MAX
ANSWER_BYTES_MAX = 1024 * 1024


def jwk(name: str, **members: object) -> dict[str, Any]:
    """A public key as its issuer publishes it, with other members, or without those that are `...`."""
    told = ECAlgorithm.to_jwk(PRIVATE[name].public_key(), as_dict=True) | {"kid": name, "use": "sig"} | members
    return {member: value for member, value in told.items() if value is not ...}


def key_set(*names: str) -> bytes:
    """The answer of an issuer with these keys."""
    return json.dumps({"keys": [jwk(name) for name in names]}).encode()


def bearer(name: str, key_id: str | None = None, *, anonymous_key: bool = False, issuer: str = ISSUER) -> bytes:
    """A value of Authorization with a token signed by this key, under its own name, another, or none."""
    claims = {"iss": issuer, "aud": AUDIENCE, "sub": "acme", "exp": time.time() + 3600}
    headers = {} if anonymous_key else {"kid": key_id or name}
    return b"Bearer " + jwt.encode(claims, PRIVATE[name], "ES256", headers).encode()


class KeyServer(ThreadingHTTPServer):
    """An issuer's key server. Its answer can be changed at any time, and it counts the requests."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.status = 200
        self.headers: dict[str, str] = {}
        self.content = key_set("k-1")
        self.pause_seconds = 0.0
        self.silent = False
        self.trickling = False
        self.asked = 0
        self._arrival = threading.Condition()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        """The URL of the keys."""
        return f"http://127.0.0.1:{self.server_port}/keys"

    def count(self) -> None:
        """Count a request."""
        with self._arrival:
            self.asked += 1
            self._arrival.notify_all()

    def wait_until_asked(self, times: int) -> bool:
        """Wait until there were this many requests; returns whether there were."""
        with self._arrival:
            return self._arrival.wait_for(lambda: self.asked >= times, timeout=SECONDS_MAX)


class _Handler(BaseHTTPRequestHandler):
    server: KeyServer

    def do_GET(self) -> None:
        """Answer as the test set it; a slow answer ends with the test."""
        server = self.server
        status, headers, content = server.status, server.headers, server.content
        server.count()
        if server.pause_seconds or server.silent:
            server.closing.wait(LONG if server.silent else server.pause_seconds)
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            for index in range(len(content) if server.trickling else 0):
                self.wfile.write(content[index : index + 1])
                if server.closing.wait(0.02):
                    return
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Write no log."""


@contextlib.contextmanager
def serving(port: int = 0) -> Iterator[KeyServer]:
    """A key server that works and has the key k-1."""
    with KeyServer(port) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield running
        finally:
            running.closing.set()
            running.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[KeyServer]:
    """The key server of a test."""
    with serving() as running:
        yield running


class Asked(Authenticator):
    """An authenticator that is always awaited."""

    async def __call__(self, authorization: bytes | None, *others: bytes) -> str:
        """The sender's name."""
        sender = super().__call__(authorization, *others)
        return sender if isinstance(sender, str) else await sender


def authenticator(
    server: KeyServer | str,
    *,
    pause: float = 0,
    age_max: float = LONG,
    timeout: float = LONG,
    sender: str | None = None,
) -> Asked:
    """An authenticator whose one issuer has its keys on a server, and may be asked again after `pause` seconds."""
    credentials = Credentials(issuers=[Issuer(ISSUER, AUDIENCE, ["ES256"], sender)])
    url = server if isinstance(server, str) else server.url
    return Asked(credentials, {ISSUER: KeySource(url, pause, age_max, timeout)})


async def refusal(authenticate: Asked, authorization: bytes) -> Refused:
    """The 401 for a token."""
    with pytest.raises(Refused) as caught:
        await authenticate(authorization)
    assert caught.value.status == 401
    return caught.value


async def unavailability(authenticate: Asked, authorization: bytes) -> Unavailable:
    """The 503 for a token."""
    with pytest.raises(Unavailable) as caught:
        await authenticate(authorization)
    assert caught.value.reason == "keys"
    return caught.value


async def test_keys_are_fetched_once(server: KeyServer) -> None:
    """The first token of an issuer makes one request for its keys; later tokens make none."""
    authenticate = authenticator(server)
    assert server.asked == 0
    for _ in range(5):
        assert await authenticate(bearer("k-1")) == "acme"
    assert server.asked == 1


async def test_tokens_that_need_no_keys_fetch_none(server: KeyServer) -> None:
    """A token of an unknown issuer makes no request."""
    authenticate = authenticator(server)
    foreign = jwt.encode({"iss": "https://evil.example"}, PRIVATE["k-1"], "ES256", {"kid": "k-1"})
    for authorization in (None, b"Bearer x", b"Bearer a.b.c", b"Basic eDp5", b"Bearer " + foreign.encode()):
        with pytest.raises(Refused):
            await authenticate(authorization)
    assert server.asked == 0


async def test_an_unknown_key_refreshes(server: KeyServer) -> None:
    """A token with an unknown key has the keys fetched again, and is refused if its key is not among them."""
    authenticate = authenticator(server)
    assert await authenticate(bearer("k-1")) == "acme"
    told = await refusal(authenticate, bearer("k-2"))
    assert told.message == "the token is signed with a key that its issuer doesn't have"
    assert server.asked == 2
    server.content = key_set("k-1", "k-2")
    assert await authenticate(bearer("k-2")) == "acme"
    assert await authenticate(bearer("k-1")) == "acme"
    assert server.asked == 3


async def test_refreshing_is_limited(server: KeyServer) -> None:
    """Tokens with made-up keys don't flood the issuer: until it may be asked again they are 503."""
    authenticate = authenticator(server, pause=LONG)
    assert await authenticate(bearer("k-1")) == "acme"
    for number in range(20):
        told = await unavailability(authenticate, bearer("k-2", f"made-up-{number}"))
        assert told.retry_after_seconds == LONG
    assert await authenticate(bearer("k-1")) == "acme"
    assert server.asked == 1


async def test_refreshing_is_possible_after_a_pause(server: KeyServer) -> None:
    """Once the pause is over, a new key is found."""
    authenticate = authenticator(server, pause=0.2)
    assert await authenticate(bearer("k-1")) == "acme"
    server.content = key_set("k-2")
    await asyncio.sleep(0.25)
    assert await authenticate(bearer("k-2")) == "acme"
    assert server.asked == 2


async def test_keys_rotate(server: KeyServer) -> None:
    """A new key is accepted once a token is signed with it; the old one as long as its issuer publishes it."""
    authenticate, old = authenticator(server), bearer("k-1")
    assert await authenticate(old) == "acme"
    server.content = key_set("k-1", "k-2")
    assert await authenticate(bearer("k-2")) == "acme"
    assert await authenticate(old) == "acme"
    server.content = key_set("k-2", "k-3")
    assert await authenticate(bearer("k-3")) == "acme"
    await refusal(authenticate, old)
    assert await authenticate(bearer("k-2")) == "acme"


async def test_tokens_that_name_no_key_survive_a_rotation(server: KeyServer) -> None:
    """A token without a key's name has the keys fetched again if none of the known ones signed it."""
    authenticate = authenticator(server)
    assert await authenticate(bearer("k-1", anonymous_key=True)) == "acme"
    server.content = key_set("k-2", "k-3")
    assert await authenticate(bearer("k-3", anonymous_key=True)) == "acme"


async def test_the_only_key_needs_no_name(server: KeyServer) -> None:
    """A token that names no key is checked with the only key, whether that has a name or not."""
    for only in (jwk("k-1"), jwk("k-1", kid=...), jwk("k-1", use=...)):
        server.content = json.dumps({"keys": [only]}).encode()
        authenticate = authenticator(server, sender="fixed")
        assert await authenticate(bearer("k-1", anonymous_key=True)) == "fixed"
        await refusal(authenticate, bearer("k-2", anonymous_key=True))


async def test_keys_for_other_purposes_are_passed_over(server: KeyServer) -> None:
    """Keys for encryption, of unknown kinds or broken don't hide those that sign, and are not used."""
    odd = [{"kty": "new"}, {}, "x", None, {"kty": "EC", "kid": "k-3"}, jwk("k-2", use="enc")]
    server.content = json.dumps({"keys": [*odd, jwk("k-1")], "more": 1}).encode()
    authenticate = authenticator(server)
    assert await authenticate(bearer("k-1")) == "acme"
    await refusal(authenticate, bearer("k-2"))
    await refusal(authenticate, bearer("k-3"))


# Issuers that fail. Each row is the answer of one.

PADDED = key_set("k-1").ljust(ANSWER_BYTES_MAX)
ILL: dict[str, dict[str, Any]] = {
    "fails": {"status": 500},
    "is gone": {"status": 404},
    "has moved": {"status": 302, "headers": {"Location": "/keys"}},
    "has no content": {"content": b""},
    "is a web page": {"content": b"<html>down for maintenance</html>"},
    "is no UTF-8": {"content": b'{"keys": ["\xff"]}'},
    "is a list": {"content": b"[]"},
    "is a list of keys": {"content": json.dumps([jwk("k-1")]).encode()},
    "is null": {"content": b"null"},
    "is a text": {"content": b'"keys"'},
    "has no keys": {"content": b"{}"},
    "has empty keys": {"content": b'{"keys": []}'},
    "has null for keys": {"content": b'{"keys": null}'},
    "has a number for keys": {"content": b'{"keys": 5}'},
    "has an object for keys": {"content": b'{"keys": {"k-1": {}}}'},
    "has nothing usable": {"content": b'{"keys": [{"kty": "new"}, 5, null]}'},
    "has nothing that signs": {"content": json.dumps({"keys": [jwk("k-1", use="enc")]}).encode()},
    "has a list for a key's name": {"content": json.dumps({"keys": [jwk("k-1", kid=["k-1"])]}).encode()},
    "has a number for a key": {"content": json.dumps({"keys": [jwk("k-1", x=5)]}).encode()},
    "is cut off": {"content": key_set("k-1")[:-9]},
    "promises more": {"headers": {"Content-Length": "999999"}},
    "is nested deeply": {"content": b'{"keys": ' + b"[" * 100_000},
    "is too long": {"content": PADDED + b" "},
    "unpacks to too much": {"content": gzip.compress(PADDED + b" "), "headers": {"Content-Encoding": "gzip"}},
    "is packed badly": {"headers": {"Content-Encoding": "gzip"}},
    "is silent": {"silent": True},
    "trickles": {"trickling": True},
}
PATIENCE = 2.0


def time_limit(illness: dict[str, Any]) -> float:
    """A time limit that only slow issuers reach."""
    return PATIENCE if illness.keys() & {"silent", "trickling"} else LONG


def fall_ill(server: KeyServer, illness: dict[str, Any]) -> None:
    """Answer like this from now on."""
    for name, value in illness.items():
        setattr(server, name, value)


@pytest.mark.parametrize("illness", ILL.values(), ids=ILL)
async def test_an_issuer_that_was_never_well_is_503(server: KeyServer, illness: dict[str, Any]) -> None:
    """Without an issuer's keys its tokens are 503, never 401, within the time limit."""
    fall_ill(server, illness)
    authenticate = authenticator(server, pause=LONG, timeout=time_limit(illness))
    told = await unavailability(authenticate, bearer("k-1"))
    assert told.retry_after_seconds == LONG
    await unavailability(authenticate, bearer("k-1"))
    assert server.asked == 1


@pytest.mark.parametrize("illness", ILL.values(), ids=ILL)
async def test_an_issuer_that_falls_ill_keeps_its_keys(server: KeyServer, illness: dict[str, Any]) -> None:
    """A wrong answer removes no key: tokens with known keys are accepted, and unknown keys are 503."""
    authenticate = authenticator(server, timeout=time_limit(illness))
    assert await authenticate(bearer("k-1")) == "acme"
    fall_ill(server, illness)
    await unavailability(authenticate, bearer("k-2"))
    assert server.asked == 2
    assert await authenticate(bearer("k-1")) == "acme"


async def test_an_issuer_that_nobody_answers_for_is_503() -> None:
    """If nothing listens there, tokens are 503, until a server does."""
    with serving() as server:
        port = server.server_port
    authenticate, token = authenticator(f"http://127.0.0.1:{port}/keys"), bearer("k-1")
    await unavailability(authenticate, token)
    with serving(port):
        assert await authenticate(token) == "acme"


async def test_an_issuer_that_recovers_is_asked_again(server: KeyServer) -> None:
    """Once an issuer works, the same token that was 503 is accepted."""
    server.status = 503
    authenticate, token = authenticator(server), bearer("k-1")
    await unavailability(authenticate, token)
    server.status = 200
    assert await authenticate(token) == "acme"


@pytest.mark.parametrize("content", [PADDED, gzip.compress(PADDED)], ids=["plain", "packed"])
async def test_the_longest_answer_is_read(server: KeyServer, content: bytes) -> None:
    """An answer of 1 MiB is read, compressed or not."""
    server.content = content
    if content is not PADDED:
        server.headers = {"Content-Encoding": "gzip"}
    assert await authenticator(server)(bearer("k-1")) == "acme"


# Simultaneous requests.


#: Less than a fetch takes in these tests: a second request would have to be made one after the other.
SHORT = 1.0


@pytest.mark.parametrize("pause", [SHORT, LONG])
async def test_requests_at_a_time_make_one_fetch(server: KeyServer, pause: float) -> None:
    """However many requests need an issuer's keys at a time, it is asked once, and that answers all of them."""
    server.pause_seconds = 2.0
    authenticate = authenticator(server, pause=pause)
    assert await asyncio.gather(*(authenticate(bearer("k-1")) for _ in range(30))) == ["acme"] * 30
    assert server.asked == 1


async def test_few_strangers_wait_for_keys(server: KeyServer) -> None:
    """Of requests with an unknown sender at most 512 wait for keys, more are 503; known senders go on."""
    authenticate = authenticator(server)
    assert await authenticate(bearer("k-1")) == "acme"
    server.silent = True
    waiting = [asyncio.create_task(authenticate(bearer("k-2", f"made-up-{number}"))) for number in range(512)]
    assert await asyncio.to_thread(server.wait_until_asked, 2)
    await unavailability(authenticate, bearer("k-2", "one-more"))
    assert await authenticate(bearer("k-1")) == "acme"
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    server.silent = False
    await refusal(authenticate, bearer("k-2", "after-that"))


@pytest.mark.parametrize("pause", [SHORT, LONG])
async def test_requests_at_a_time_fail_together(server: KeyServer, pause: float) -> None:
    """While an issuer is silent, requests wait for one fetch, and not for one after the other."""
    server.silent = True
    authenticate = authenticator(server, pause=pause, timeout=2.0)
    outcomes = await asyncio.gather(*(authenticate(bearer("k-1")) for _ in range(30)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    assert server.asked == 1


async def test_keys_that_were_on_their_way_are_not_current(server: KeyServer) -> None:
    """A token that came during a fetch is not refused by its keys: they may be older than the token."""
    server.pause_seconds = 2.0
    authenticate = authenticator(server, pause=LONG)
    first = asyncio.create_task(authenticate(bearer("k-1")))
    await until_asked(server, 1)
    server.content = key_set("k-2")
    await unavailability(authenticate, bearer("k-2"))
    assert await first == "acme"


async def test_known_keys_do_not_wait_for_unknown_ones(server: KeyServer) -> None:
    """During a fetch, tokens with known keys are accepted without waiting."""
    authenticate = authenticator(server)
    assert await authenticate(bearer("k-1")) == "acme"
    server.pause_seconds = 2.0
    waiting = asyncio.create_task(refusal(authenticate, bearer("k-2")))
    await until_asked(server, 2)
    assert await authenticate(bearer("k-1")) == "acme"
    assert not waiting.done()
    await waiting


@pytest.mark.long
async def test_issuers_do_not_wait_for_each_other(server: KeyServer) -> None:
    """While one issuer is silent, another one's keys are fetched and used."""
    server.silent = True
    other = "https://auth.other.example"
    credentials = Credentials(issuers=[Issuer(issuer, AUDIENCE, ["ES256"]) for issuer in (ISSUER, other)])
    with serving() as well:
        sources = {ISSUER: KeySource(server.url, LONG, LONG, 3.0), other: KeySource(well.url, LONG, LONG, LONG)}
        authenticate = Asked(credentials, sources)
        waiting = asyncio.create_task(unavailability(authenticate, bearer("k-1")))
        await until_asked(server, 1)
        assert await authenticate(bearer("k-1", issuer=other)) == "acme"
        assert not waiting.done()
        await waiting


# Old keys.


@contextlib.asynccontextmanager
async def kept_fresh(authenticate: Asked) -> AsyncIterator[None]:
    """Keep the keys fresh for as long as the block lasts."""
    task = asyncio.create_task(authenticate.keep_fresh())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until_asked(server: KeyServer, times: int) -> None:
    """Wait until there were this many requests."""
    assert await asyncio.to_thread(server.wait_until_asked, times)


async def test_keys_are_fetched_before_they_are_wanted(server: KeyServer) -> None:
    """Keys are fetched at the start, without a token, and not again while they are young."""
    authenticate = authenticator(server, pause=LONG)
    async with kept_fresh(authenticate):
        await until_asked(server, 1)
        assert await authenticate(bearer("k-1")) == "acme"
        await asyncio.sleep(1.2)
    assert server.asked == 1


@pytest.mark.long
async def test_old_keys_are_fetched_anew(server: KeyServer) -> None:
    """Old keys are replaced without a token; while the issuer fails, the old ones are used."""
    authenticate, old = authenticator(server, pause=0.5, age_max=0.1), bearer("k-1")
    assert await authenticate(old) == "acme"
    fall_ill(server, ILL["is a list"])
    await asyncio.sleep(0.5)
    async with kept_fresh(authenticate):
        await until_asked(server, 2)
        assert await authenticate(old) == "acme"
        server.content = key_set("k-2")
        # Once it asks again, the answer of the time before is in use.
        await until_asked(server, 4)
        with pytest.raises((Refused, Unavailable)):
            await authenticate(old)
        assert await authenticate(bearer("k-2")) == "acme"
