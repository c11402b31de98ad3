"""Every way to log in to a cluster, through the settings, on the real broker; and the message when it fails."""

import asyncio
import base64
import contextlib
import json
import logging
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote_plus

import httpx2
import pytest

from receiver.backends.kafka import topics
from receiver.backends.kafka.tokens import KafkaTokens
from receiver.core.errors import Unavailable
from receiver.core.message import Record
from receiver.process.cluster import connection_of, plan_of
from receiver.process.clustered import ClusteredNode, clustered
from receiver.process.part import WHOLE
from receiver.process.routing import build_router
from receiver.settings import Settings, load
from receiver.telemetry import Telemetry
from tests.kafka_cluster import HOST, PASSWORD, USER, Cluster, Credentials
from tests.limits import SECONDS_MAX
from tests.nodes import until
from tests.proxy import Proxy
from tests.receiver_process import COMMAND, run
from tests.samples import bare, posted

#: Characters that RFC 6749 encodes, and that Basic alone could not tell apart.
CLIENT_ID, CLIENT_SECRET, SCOPE = "qod:receiver", "s3cret+/%: é", "kafka"
WRONG = "wr0ng-password"


class TokenServer(ThreadingHTTPServer):
    """An authorization server on the loopback interface. Its answer can be changed at any time."""

    def __init__(self, port: int = 0) -> None:
        super().__init__((HOST, port), _Handler)
        self.token: Callable[[int], str] = lambda _: "a.b.c"
        self.life_seconds = 3600
        self.answer: tuple[int, bytes] | None = None  # in place of the right one
        self.silent = False
        self.trickling = False
        self.asked = 0
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        """The URL of tokens."""
        return f"http://{HOST}:{self.server_port}/token"

    def answer_to(self, authorization: str, form: dict[str, list[str]]) -> tuple[int, bytes]:
        """The answer to a request (RFC 6749, 4.4 and 5)."""
        self.asked += 1
        if self.answer is not None:
            return self.answer
        client = base64.b64decode(authorization.removeprefix("Basic ")).decode().split(":")
        if [unquote_plus(part) for part in client] != [CLIENT_ID, CLIENT_SECRET]:
            return 401, b'{"error": "invalid_client"}'
        if form != {"grant_type": ["client_credentials"], "scope": [SCOPE]}:
            return 400, b'{"error": "invalid_scope"}'
        told = {"access_token": self.token(self.life_seconds), "token_type": "Bearer", "expires_in": self.life_seconds}
        return 200, json.dumps(told).encode()


class _Handler(BaseHTTPRequestHandler):
    server: TokenServer

    def do_POST(self) -> None:
        """Answer as the test set it; a slow answer ends with the test."""
        server = self.server
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        status, content = server.answer_to(self.headers["Authorization"], form)
        if server.silent:
            server.closing.wait(SECONDS_MAX)
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            for index in range(len(content) if server.trickling else 0):
                self.wfile.write(content[index : index + 1])
                if server.closing.wait(0.1):
                    return
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Write no log."""


@contextlib.contextmanager
def serving_tokens(port: int = 0) -> Iterator[TokenServer]:
    """An authorization server that works."""
    with TokenServer(port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def broker(can_run_kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:  # noqa: ARG001
    """A broker with TLS and SASL."""
    with Cluster(tmp_path_factory.mktemp("secure"), secure=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """Certificates and tokens of an authority that the broker doesn't know."""
    return Credentials(tmp_path_factory.mktemp("stranger"))


@pytest.fixture
def tokens() -> Iterator[TokenServer]:
    """An authorization server that works."""
    with serving_tokens() as server:
        yield server


class Site(NamedTuple):
    """All that settings may name."""

    broker: Cluster
    stranger: Credentials
    tokens: TokenServer
    prefix: str
    directory: Path

    def config(self, listener: str, **kafka: object) -> Path:
        """A configuration file for a listener, where the broker's certificate is trusted."""
        where = self.broker.bootstrap if listener == "CLIENT" else self.broker.secured(listener)
        protocol = "SASL_SSL" if listener == "SASL" else "SSL"
        told = {"security_protocol": protocol, "tls_ca_file": self.broker.credentials.ca, "partitions": 1, **kafka}
        lines = [
            f"{name} = {value if isinstance(value, int) else json.dumps(str(value))}" for name, value in told.items()
        ]
        head = f'prefix = "{self.prefix}"\ndata = "{self.directory / "data"}"\n[kafka]\n'
        path = self.directory / "qod.toml"
        path.write_text("\n".join([f'{head}bootstrap_servers = "{where}"', *lines, ""]))
        return path

    def by_password(self, mechanism: str, password: str = PASSWORD, user: str = USER) -> Path:
        """A configuration file with a user and a password."""
        return self.config("SASL", sasl_mechanism=mechanism, sasl_username=user, sasl_password=password)

    def by_token(self, url: str | None = None, secret: str = CLIENT_SECRET, scope: str = SCOPE) -> Path:
        """A configuration file with client credentials."""
        client = {"oauth_token_url": url or self.tokens.url, "oauth_client_id": CLIENT_ID, "oauth_scope": scope}
        return self.config("SASL", sasl_mechanism="OAUTHBEARER", oauth_client_secret=secret, **client)

    def by_certificate(self, certificate: Path, key: Path, ca: Path | None = None) -> Path:
        """A configuration file with a client certificate."""
        files = {"tls_certificate_file": certificate, "tls_key_file": key}
        return self.config("MUTUAL", tls_ca_file=ca or self.broker.credentials.ca, **files)

    def issue_tokens(self) -> None:
        """Let the authorization server issue tokens that the broker accepts from now on."""
        # A token ends on a whole second, never before the time that the answer says.
        self.tokens.token = lambda life_seconds: self.broker.credentials.token(lifetime_seconds=life_seconds + 1)


@pytest.fixture
def site(broker: Cluster, stranger: Credentials, tokens: TokenServer, topic_prefix: str, tmp_path: Path) -> Site:
    """A prefix and a directory of the test's own, and tokens that the broker accepts."""
    made = Site(broker, stranger, tokens, topic_prefix, tmp_path)
    made.issue_tokens()
    return made


@asynccontextmanager
async def serving(settings: Settings, telemetry: Telemetry) -> AsyncIterator[ClusteredNode]:
    """An edge's spool and a router, at work."""
    async with clustered(settings, telemetry, build_router(settings), WHOLE) as node:
        jobs = [asyncio.ensure_future(job) for job in node.jobs()]
        try:
            yield node
            assert not any(job.done() for job in jobs)
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.wait(jobs)


async def statuses(node: ClusteredNode, prefix: str, count: int) -> Sequence[Record]:
    """The records of the status topic, once there are this many."""
    found: list[Record] = []
    async with asyncio.timeout(SECONDS_MAX):
        cursor = await node.reader.beginning(f"{prefix}.status")
        while len(found) < count:
            with suppress(Unavailable):  # on a busy machine a token may expire before it is used
                found += await node.reader.records(f"{prefix}.status", cursor, 1000)
            await asyncio.sleep(0.02)
    return found


async def refusal(settings: Settings) -> str:
    """The message for a cluster that can't be asked."""
    plan = plan_of(settings, build_router(settings))
    with pytest.raises(Unavailable) as caught:
        await topics.check(connection_of(settings), plan)
    return caught.value.message


WAYS: dict[str, Callable[[Site], Path]] = {
    "TLS": lambda site: site.config("TLS"),
    "mutual TLS": lambda site: site.by_certificate(site.broker.credentials.certificate, site.broker.credentials.key),
    "PLAIN": lambda site: site.by_password("PLAIN"),
    "SCRAM-SHA-256": lambda site: site.by_password("SCRAM-SHA-256"),
    "SCRAM-SHA-512": lambda site: site.by_password("SCRAM-SHA-512"),
    "OAUTHBEARER": lambda site: site.by_token(),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_notification_goes_all_the_way(
    site: Site, way: str, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """Each way to log in works for topics, appends, the group and transactions. No log has a secret."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "aiokafka")  # an earlier test's set-up of the log may have silenced it
    async with serving(load(WAYS[way](site), {}), telemetry) as node:
        await node.inbox.append(posted("A1"))
        (record,) = await statuses(node, site.prefix, 1)
        assert node.notices() == {"kafka": "", "spool": "", "router": "", "lanes": ""}
    assert dict(record.message.headers)["verdict"] == "accepted"
    assert "Authenticated" in caplog.text or "TLS" in way
    assert not [word for word in (PASSWORD, CLIENT_SECRET, "eyJ") if word in caplog.text]


def _expired(site: Site) -> Path:
    return site.by_certificate(*site.broker.credentials.issue("expired", USER, days=-1))


def _stranger(site: Site) -> Path:
    return site.by_certificate(site.stranger.certificate, site.stranger.key)


def _for_another(site: Site) -> Path:
    site.tokens.token = lambda _: site.broker.credentials.token(audience="elsewhere")
    return site.by_token()


def _forged(site: Site) -> Path:
    site.tokens.token = lambda _: site.stranger.token()
    return site.by_token()


def _over(site: Site) -> Path:
    site.tokens.token = lambda _: site.broker.credentials.token(lifetime_seconds=-3600)
    return site.by_token()


FAILED = "authentication failed"
NO_TOKEN = "no token for Kafka: the token server answers"
REFUSALS: dict[str, tuple[Callable[[Site], Path], str]] = {
    "wrong password": (lambda site: site.by_password("PLAIN", WRONG), f"{FAILED}: Invalid username or password"),
    "wrong password, hashed": (lambda site: site.by_password("SCRAM-SHA-256", WRONG), f"{FAILED} during"),
    "unknown user": (lambda site: site.by_password("SCRAM-SHA-512", user="nobody"), f"{FAILED} during"),
    "forged token": (_forged, f'{FAILED}: {{"status":"invalid_token"}}'),
    "token for another": (_for_another, f'{FAILED}: {{"status":"invalid_token"}}'),
    "token that is over": (_over, f'{FAILED}: {{"status":"invalid_token"}}'),
    "wrong client secret": (lambda site: site.by_token(secret=WRONG), f"{NO_TOKEN} 401 (invalid_client)"),
    "wrong scope": (lambda site: site.by_token(scope="other"), f"{NO_TOKEN} 400 (invalid_scope)"),
    "wrong CA": (
        lambda site: site.config("TLS", tls_ca_file=site.stranger.ca),
        "the broker's certificate is not trusted: unable to get local issuer certificate",
    ),
    "no certificate": (lambda site: site.config("MUTUAL"), f"{FAILED}, the broker wants another kafka.tls_certific"),
    "unknown certificate": (_stranger, f"{FAILED}, the broker wants another kafka.tls_certificate_file: "),
    "expired certificate": (_expired, f"{FAILED}, the broker wants another kafka.tls_certificate_file: "),
    "login that nobody wants": (
        lambda site: site.config("TLS", security_protocol="SASL_SSL", sasl_username=USER, sasl_password=PASSWORD),
        f"{FAILED}: the listener has no SASL, see kafka.security_protocol",
    ),
    "no login": (lambda site: site.config("SASL", security_protocol="SSL"), "does kafka.security_protocol fit?"),
    "TLS where there is none": (lambda site: site.config("CLIENT"), "does kafka.security_protocol fit?"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_refusal_is_told_in_one_line(site: Site, case: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each wrong login gives one line that names the broker and no secret."""
    caplog.set_level(logging.DEBUG)
    made, reason = REFUSALS[case]
    async with asyncio.timeout(SECONDS_MAX):
        told = await refusal(load(made(site), {}))
    assert reason in told
    assert told.isprintable()
    assert f"{HOST}:" in told
    assert not [word for word in (WRONG, PASSWORD, CLIENT_SECRET, "eyJ") if word in told + caplog.text]


@pytest.mark.parametrize(
    ("host", "days", "reason"),
    [
        (HOST, -1, "certificate has expired"),
        ("127.0.0.2", 1, f"IP address mismatch, certificate is not valid for '{HOST}'."),
    ],
)
async def test_a_broker_whose_certificate_is_not_its_own(site: Site, host: str, days: int, reason: str) -> None:
    """A broker is not trusted if its certificate has expired, or is another host's."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*site.broker.credentials.issue("impostor", "impostor", host=host, days=days))

    def taken(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(taken, HOST, 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        settings = load(site.config("TLS"), {"kafka.bootstrap_servers": f"{HOST}:{port}"})
        told = await refusal(settings)
    assert told.endswith(f"the broker's certificate is not trusted: {reason}")


def test_a_wrong_password_on_the_command_line(site: Site) -> None:
    """`topics check` with a wrong password ends with one line that says so."""
    config = site.by_password("PLAIN", WRONG)
    assert run("topics", "check", "--config", str(config), expect=1) == (
        f"qod-receiver: no connection to Kafka, {site.broker.secured('SASL')}: "
        "authentication failed: Invalid username or password\n"
    )
    assert WRONG not in run("check-config", "--config", str(config))


def test_a_wrong_password_of_an_edge_that_serves(site: Site) -> None:
    """An edge with a wrong password keeps notifications, and says on /readyz and in its log what is wrong."""
    config, log = site.by_password("SCRAM-SHA-512", WRONG), site.directory / "log"
    command = [*COMMAND, "serve", "--role", "edge", "--config", str(config), "--port", "0", "--ops-port", "0"]
    with log.open("wb") as err, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True) as process:
        limit = threading.Timer(SECONDS_MAX, process.kill)
        limit.start()
        try:
            assert process.stdout is not None
            told = dict(process.stdout.readline().split() for _ in range(2))
            _, _, token = (process.stdout.readline().strip() for _ in range(3))
            headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
            posted = httpx2.post(told["Notifications:"], content=bare(), headers=headers, timeout=SECONDS_MAX)
            assert posted.status_code == 204
            ready = httpx2.get(f"{told['Operations:']}/readyz", timeout=SECONDS_MAX).json()
            process.terminate()
            assert process.wait() == 0
        finally:
            limit.cancel()
            process.kill()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    reasons = {line["reason"] for line in lines if line["event"] == "cluster_failed"}
    assert reasons == {ready["checks"]["kafka"]}
    assert f"{site.broker.secured('SASL')}: authentication failed" in reasons.pop()
    assert {line["event"] for line in lines} <= {"cluster_failed", "descriptors", "request", "spool_failed"}
    assert WRONG not in log.read_text()


async def test_tokens_are_renewed_and_sessions_with_them(site: Site, telemetry: Telemetry) -> None:
    """A broker ends a session with its token. Each token is renewed before: no request fails, no lane is lost."""
    site.tokens.life_seconds = 10
    count = 0
    async with serving(load(site.by_token(), {}), telemetry) as node:
        await node.inbox.append(posted("A1", session_id="s0"))
        await statuses(node, site.prefix, 1)
        ends = time.monotonic() + 3 * site.tokens.life_seconds
        while time.monotonic() < ends:
            count += 1
            await node.inbox.append(posted("A1", session_id=f"s{count}"))
            assert node.notices() == {"kafka": "", "spool": "", "router": "", "lanes": ""}
            await asyncio.sleep(0.1)
        records = await statuses(node, site.prefix, count + 1)
    assert [record.message.key for record in records] == [f"s{number}" for number in range(count + 1)]
    assert site.tokens.asked >= 3
    assert telemetry.registry.get_sample_value("qod_receiver_lane_failures_total", {"partition": "0"}) is None


async def test_an_authorization_server_that_is_down(site: Site, telemetry: Telemetry) -> None:
    """Without tokens the edge goes on, on disk, and says why; with tokens again all is routed, once."""
    site.tokens.life_seconds = 3
    count = 0
    async with Proxy((HOST, 0), (HOST, site.tokens.server_port)) as proxy:
        settings = load(site.by_token(f"http://{HOST}:{proxy.listen[1]}/token"), {})
        async with serving(settings, telemetry) as node:
            await node.inbox.append(posted("A1", session_id="s0"))
            await statuses(node, site.prefix, 1)
            await proxy.down()
            async with asyncio.timeout(SECONDS_MAX):
                while "no token for Kafka: the token server can't be reached" not in node.notices()["kafka"]:
                    count += 1
                    await node.inbox.append(posted("A1", session_id=f"s{count}"))
                    await asyncio.sleep(0.1)
            assert node.troubles() == {"inbox": ""}
            await proxy.up()
            await until(lambda: not any(node.notices().values()))
            records = await statuses(node, site.prefix, count + 1)
    assert [record.message.key for record in records] == [f"s{number}" for number in range(count + 1)]


def credentials(server: TokenServer, timeout_seconds: float = SECONDS_MAX) -> KafkaTokens:
    """A client of an authorization server, with a time limit."""
    return KafkaTokens(server.url, CLIENT_ID, CLIENT_SECRET, SCOPE, timeout_seconds=timeout_seconds)


@pytest.mark.parametrize(
    ("status", "content", "told"),
    [
        (500, b"oops", "answers 500"),
        (302, b"", "answers 302"),
        (401, b'{"error": "invalid_client"}', "answers 401 (invalid_client)"),
        (401, b'{"error": "of the secret s3cret"}', "answers 401"),
        (401, b'["error"]', "answers 401"),
        (200, b"", "answers without a token"),
        (200, b"[1]", "answers without a token"),
        (200, b'{"access_token": 17}', "answers without a token"),
        (200, b'{"access_token": "a\\u0001b"}', "answers without a token"),
        (200, b'{"access_token": "a.b", "expires_in": -1}', "answers with an expired token"),
        (200, b" " * 300_000, "answers with too much content"),
    ],
)
async def test_an_answer_without_a_token(tokens: TokenServer, status: int, content: bytes, told: str) -> None:
    """Any answer of an authorization server without a token is reported, without its content."""
    tokens.answer = status, content
    with pytest.raises(Unavailable) as caught:
        await credentials(tokens).token()
    assert caught.value.message == f"no token for Kafka: the token server {told}"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1:1/", "ConnectError"),
        ("http://127.0.0.1:99999/", "ExceptionGroup"),
        ("http://[::", "InvalidURL"),
    ],
)
async def test_no_authorization_server(url: str, why: str) -> None:
    """An authorization server that can't be reached is reported."""
    with pytest.raises(Unavailable, match=f"no token for Kafka: the token server can't be reached: {why}"):
        await KafkaTokens(url, CLIENT_ID, CLIENT_SECRET, None).token()


@pytest.mark.parametrize("life", ['"3600"', '"NaN"', "1e400", "null", '"soon"', "[]"])
async def test_a_life_of_unknown_length(tokens: TokenServer, life: str) -> None:
    """A token without a life, or with a senseless one, is used for a limited time."""
    tokens.answer = 200, f'{{"access_token": "a.b", "expires_in": {life}}}'.encode()
    source = credentials(tokens)
    assert [await source.token(), await source.token()] == ["a.b", "a.b"]
    assert tokens.asked == 1
    assert source.tokens.seconds_left < 3601


@pytest.mark.parametrize("fault", ["silent", "trickling"])
async def test_a_slow_authorization_server(tokens: TokenServer, fault: str) -> None:
    """For an authorization server that never finishes all callers together wait no longer than the limit."""
    setattr(tokens, fault, True)
    source = credentials(tokens, timeout_seconds=2)
    outcomes = await asyncio.gather(*(source.token() for _ in range(20)), return_exceptions=True)
    assert {str(each) for each in outcomes} == {"no token for Kafka: the token server did not answer within 2 s"}
    assert tokens.asked == 1


@pytest.mark.long
async def test_who_runs_out_of_time_has_asked_for_the_others(tokens: TokenServer) -> None:
    """A connection that is given up while it waits for a token leaves the token to the next."""
    tokens.trickling = True
    source = credentials(tokens)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(source.token(), 0.2)
    assert await source.token() == "a.b.c"
    assert tokens.asked == 1


@pytest.mark.long
async def test_a_token_is_used_until_its_end(tokens: TokenServer) -> None:
    """A token that can't be renewed is used as long as it lives; later there is a new one as soon as the server gives
    one.
    """
    tokens.answer = 200, b'{"access_token": "first", "expires_in": 10.0}'
    source = credentials(tokens)
    assert await source.token() == "first"
    tokens.answer = 500, b""
    await until(lambda: source.tokens.seconds_left < 1.9)
    assert await source.token() == "first"
    assert tokens.asked == 2
    await until(lambda: source.tokens.seconds_left <= 0)
    with pytest.raises(Unavailable, match="the token server answers 500"):
        await source.token()
    tokens.answer = None
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            with contextlib.suppress(Unavailable):
                assert await source.token() == "a.b.c"
                break
            await asyncio.sleep(0.01)
    # While the first could not be renewed the server was asked again now and then.
    assert tokens.asked in {3, 4}
