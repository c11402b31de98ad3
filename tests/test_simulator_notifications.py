"""The simulator's posts without faults: each release, and CAMARA's scenarios, as a socket receives them."""

import asyncio
import datetime as dt
import ipaddress
import ssl
from collections import defaultdict
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from receiver.simulator.dialects import RELEASES
from receiver.simulator.plan import Plan
from receiver.simulator.server import Options
from receiver.tls import trusting
from tests.limits import SECONDS_MAX
from tests.simulated import CLOUDEVENTS, TOKEN, Answer, Sink, simulated, told, until

#: Facts of each release's own text (QualityOnDemand, at the tag): the tag, the type, the content type, and what is
#: appended to the URL.
FACTS = {
    "0.8": ("v0.8.1", "SESSION_TERMINATED", "application/json", "/notifications"),
    "0.9": ("v0.9.0", "QOS_STATUS_CHANGED", "application/json", ""),
    "0.9-flat": ("v0.9.0", "QOS_STATUS_CHANGED", "application/json", ""),
    "0.10": ("v0.10.1", "org.camaraproject.qod.v0.qos-status-changed", "application/cloudevents+json", ""),
    "0.11": ("r1.3", "org.camaraproject.quality-on-demand.v0.qos-status-changed", "application/cloudevents+json", ""),
    "1.0": ("r2.2", "org.camaraproject.quality-on-demand.v1.qos-status-changed", "application/cloudevents+json", ""),
    "1.1": ("r3.2", "org.camaraproject.quality-on-demand.v1.qos-status-changed", "application/cloudevents+json", ""),
}

#: Fast enough for a test; slow enough to look at a session.
FAST = Options(speed=100, available_after_seconds=0)


def speaking(*names: str) -> Options:
    """A simulator that posts in these releases."""
    return FAST._replace(releases=[RELEASES[name] for name in names])


def test_all_releases_are_here() -> None:
    """The facts below cover every release."""
    assert set(FACTS) == set(RELEASES)


def expected(release: str, detail: dict[str, str], source: str, got: dict[str, Any]) -> dict[str, Any]:
    """The expected body of a release; id and time are taken from the body, and checked elsewhere."""
    event_type = FACTS[release][1]
    if release == "0.8":
        return {"sessionId": detail["sessionId"], "event": event_type}
    if release in CLOUDEVENTS:
        more = {"datacontenttype": "application/json"} if release in {"1.0", "1.1"} else {}
        known = {"specversion": "1.0", "type": event_type, "source": source, "data": detail}
        return {"id": got["id"], "time": got["time"], **known, **more}
    event = got["event"] if release == "0.9" else got
    wanted = {"eventId": event["eventId"], "eventTime": event["eventTime"]}
    wanted |= {"eventType": event_type, "eventDetail": detail}
    return {"event": wanted} if release == "0.9" else wanted


@pytest.mark.parametrize("release", FACTS)
async def test_each_release_posts_what_its_text_says(release: str) -> None:
    """Path, content type, Authorization and body are those of the release, for a beginning and for an end."""
    _, _, content_type, suffix = FACTS[release]
    async with Sink().listening() as sink, simulated(speaking(release)) as simulator:
        session_id = (await simulator.create(duration=10, notificationUrl=sink.url))["sessionId"]
        await simulator.until_ended()
        steps: list[tuple[str, str | None]] = [("AVAILABLE", None), ("UNAVAILABLE", "DURATION_EXPIRED")]
        if release == "0.8":  # it only notifies ends
            steps = steps[1:]
        assert len(sink.received) == len(steps)
        (life,) = await simulator.lives()
        for received, (status, info) in zip(sink.received, steps, strict=True):
            assert received.path == f"/notifications{suffix}"
            assert received.headers["content-type"] == content_type
            assert received.headers["authorization"] == f"Bearer {TOKEN}"
            assert ("x-correlator" in received.headers) is (release in CLOUDEVENTS)
            got = received.tree
            detail = {"sessionId": session_id, "qosStatus": status} | ({"statusInfo": info} if info else {})
            assert got == expected(release, detail, f"{simulator.sessions_url}/{session_id}", got)
            event = got.get("event", got)
            if release == "0.8":
                continue
            assert UUID(event.get("id", event.get("eventId")))
            happened = next(each["at"] for each in life["states"] if each["qosStatus"] == status)
            assert event.get("time", event.get("eventTime")) == happened
            assert dt.datetime.fromisoformat(happened).tzinfo is not None


@pytest.mark.parametrize("release", FACTS)
async def test_a_deletion_is_told_from_0_10_on(release: str) -> None:
    """After DELETE an AVAILABLE session is notified with DELETE_REQUESTED; releases without that reason don't notify
    it.
    """
    async with Sink().listening() as sink, simulated(speaking(release)) as simulator:
        session_id = (await simulator.create(duration=86_400, notificationUrl=sink.url))["sessionId"]
        await simulator.until_status(session_id, "AVAILABLE")
        await simulator.delete(session_id)
        await simulator.until_ended()
        last = (await simulator.entries())[-1]
        assert (last["qosStatus"], last["statusInfo"]) == ("UNAVAILABLE", "DELETE_REQUESTED")
        if release in CLOUDEVENTS:
            assert told(sink.received) == [("AVAILABLE", None), ("UNAVAILABLE", "DELETE_REQUESTED")]
        else:
            assert (last["sent"], last["unsent"]) == ("nothing", "release")
            assert len(sink.received) == (0 if release == "0.8" else 1)


async def test_camaras_scenarios_hold() -> None:
    """QualityOnDemand r3.2, createSession_02_2 and deleteSession_02, hold for every CloudEvents release and every end.

    Each post has Authorization, its content type, a unique id, the session, the status, and a statusInfo only with
    UNAVAILABLE.
    """
    names = [name for name in FACTS if name in CLOUDEVENTS]
    options = speaking(*names)._replace(plan=Plan(refused=0.2, terminated=0.3), seed=3)
    async with Sink().listening() as sink, simulated(options) as simulator:
        created = [
            await simulator.create(duration=20 if number % 5 else 86_400, notificationUrl=sink.url)
            for number in range(40)
        ]
        for session in created[::5]:
            await simulator.delete(session["sessionId"])
        await simulator.until_ended()
    ids = [received.tree["id"] for received in sink.received]
    assert len(ids) == len(set(ids))
    infos = set()
    for received in sink.received:
        assert received.headers["authorization"] == f"Bearer {TOKEN}"
        assert received.headers["content-type"] == "application/cloudevents+json"
        tree = received.tree
        assert tree["type"] in {FACTS[name][1] for name in names}
        assert tree["data"]["sessionId"] in {session["sessionId"] for session in created}
        assert tree["data"]["qosStatus"] in {"AVAILABLE", "UNAVAILABLE"}
        assert ("statusInfo" in tree["data"]) is (tree["data"]["qosStatus"] == "UNAVAILABLE")
        infos.add(tree["data"].get("statusInfo"))
    assert infos == {None, "DURATION_EXPIRED", "NETWORK_TERMINATED", "DELETE_REQUESTED"}
    # The sessions took the releases in turn.
    types = defaultdict(set)
    for received in sink.received:
        types[received.tree["data"]["sessionId"]].add(received.tree["type"])
    assert [types[session["sessionId"]] for session in created[:4]] == [{FACTS[name][1]} for name in names]


@pytest.mark.long
async def test_2000_sessions_are_told_in_order() -> None:
    """At speed 1,000 each of 2,000 sessions has two posts, the beginning before the end, and the ledger has all."""
    async with Sink().listening() as sink, simulated(Options(speed=1_000)) as simulator:
        gate = asyncio.Semaphore(32)

        async def create(number: int) -> str:
            async with gate:
                session = await simulator.create(duration=1 + number % 1_000, notificationUrl=sink.url)
                return str(session["sessionId"])

        created = await asyncio.gather(*(create(number) for number in range(2_000)))
        await simulator.until_ended()
        entries = await simulator.entries()
        summary = await simulator.summary()
    assert (summary["sessions"], summary["answers"]) == (2_000, {"204": 4_000})
    by_session = defaultdict(list)
    for received in sink.received:
        data = received.tree["data"]
        by_session[data["sessionId"]].append((data["qosStatus"], data.get("statusInfo")))
    assert set(by_session) == set(created)
    assert all(each == [("AVAILABLE", None), ("UNAVAILABLE", "DURATION_EXPIRED")] for each in by_session.values())
    assert {entry["eventId"] for entry in entries} == {received.tree["id"] for received in sink.received}


async def test_nobody_is_told_who_gave_no_url() -> None:
    """A session without notificationUrl lives like any other; one without a token is posted without Authorization."""
    async with Sink().listening() as sink, simulated(FAST) as simulator:
        await simulator.create(duration=1)
        await simulator.create(duration=1, notificationUrl=sink.url, notificationAuthToken=None)
        await simulator.until_ended()
        assert {life["notificationUrl"] for life in await simulator.lives()} == {None, sink.url}
        assert [entry["session"] for entry in await simulator.entries()] == [2, 2]
    assert [received.headers.get("authorization") for received in sink.received] == [None, None]


async def test_the_url_is_used_as_it_is() -> None:
    """The URL's query is kept, 0.8's path goes before it, and the ledger leaves it out."""
    async with Sink().listening() as sink, simulated(speaking("0.8", "0.10")) as simulator:
        await simulator.create(duration=1, notificationUrl=f"{sink.url}/?apikey=secret-key")
        await simulator.create(duration=1, notificationUrl=f"{sink.url}?a=b")
        await simulator.until_ended()
        assert {received.path for received in sink.received} == {
            "/notifications/notifications?apikey=secret-key",
            "/notifications?a=b",
        }
        assert "secret-key" not in str(await simulator.lives())


@pytest.mark.parametrize("status", [302, 307])
async def test_redirects_are_not_followed(status: int) -> None:
    """A redirect is an answer: it is noted, and not followed."""
    async with Sink().listening() as sink, Sink().listening() as other, simulated(FAST) as simulator:
        sink.answer = lambda _: Answer(status, {"location": other.url})
        await simulator.create(duration=1, notificationUrl=sink.url)
        await simulator.until_ended()
        assert [entry["answer"] for entry in await simulator.entries()] == [status, status]
    assert (len(sink.received), other.received) == (2, [])


async def test_gone_ends_a_feed() -> None:
    """After an answer 410 nothing more is posted for that session, but for others."""
    async with Sink().listening() as sink, simulated(FAST) as simulator:
        sink.answer = lambda received: Answer(410 if received.path.endswith("?gone") else 204)
        await simulator.create(duration=5, notificationUrl=f"{sink.url}?gone")
        await simulator.create(duration=5, notificationUrl=sink.url)
        await simulator.until_ended()
        answers = [(entry["session"], entry["answer"], entry["unsent"]) for entry in await simulator.entries()]
    assert sorted(answers, key=str) == [(1, 410, None), (1, None, "gone"), (2, 204, None), (2, 204, None)]


async def test_a_failure_has_a_name() -> None:
    """The ledger distinguishes a refused connection, a time-out, and a connection closed without an answer."""
    limits = FAST.notifier._replace(post_timeout_seconds=1.5)
    async with Sink().listening() as sink, simulated(FAST._replace(notifier=limits)) as simulator:
        await simulator.create(duration=86_400, notificationUrl="http://127.0.0.1:1/")
        await simulator.until_quiet()
        sink.answer = lambda _: Answer(after=asyncio.Event().wait)
        await simulator.create(duration=86_400, notificationUrl=sink.url)
        await simulator.until_quiet()
        sink.answer = lambda _: Answer(None)
        await simulator.create(duration=86_400, notificationUrl=sink.url)
        await simulator.until_quiet()
        failures = [entry["failure"] for entry in await simulator.entries()]
        assert failures == ["no connection", "timeout", "no answer"]
        assert all(entry["seconds"] > 0 and entry["done"] for entry in await simulator.entries())


async def test_posts_have_a_limit() -> None:
    """A limited number of posts are on their way, a limited number wait, and more are not sent, but noted."""
    limits = FAST.notifier._replace(in_flight_max=2, waiting_max=3)
    async with Sink().listening() as sink, simulated(FAST._replace(notifier=limits)) as simulator:
        held = asyncio.Event()
        sink.answer = lambda _: Answer(after=held.wait)
        for _ in range(8):
            session = await simulator.create(duration=86_400, notificationUrl=sink.url)
            await simulator.until_status(session["sessionId"], "AVAILABLE")
        summary = await simulator.summary()
        assert summary["posts"] == {"waiting": 3, "inFlight": 2}
        held.set()
        await simulator.until_quiet()
        assert (await simulator.summary())["unsent"] == {"queue": 3}
    assert len(sink.received) == 5


async def test_ending_breaks_off_what_is_on_its_way() -> None:
    """A simulator that ends does not wait for a receiver that doesn't answer, and posts no more."""
    async with Sink().listening() as sink:
        sink.answer = lambda _: Answer(after=asyncio.Event().wait)
        async with asyncio.timeout(SECONDS_MAX), simulated(FAST) as simulator:
            await simulator.create(duration=30, notificationUrl=sink.url)
            await until_received(sink, 1)
        await asyncio.sleep(0.4)  # its session would have ended by now
    assert len(sink.received) == 1


async def until_received(sink: Sink, count: int) -> None:
    """Wait until this many requests have come."""

    async def come() -> bool:
        return len(sink.received) >= count

    await until(come)


async def test_a_receiver_with_tls_is_posted_to(tmp_path: Path) -> None:
    """A trusted certificate lets the post through; with another there is no connection."""
    certificate, server = certified(tmp_path)
    for trust, answers in ((trusting(certificate), [204]), (None, [None])):
        async with Sink().listening(server) as sink, simulated(FAST._replace(trust=trust)) as simulator:
            await simulator.create(duration=86_400, notificationUrl=sink.url)
            await simulator.until_quiet()
            assert [entry["answer"] for entry in await simulator.entries()] == answers
            assert (await simulator.summary())["failures"] == ({} if trust else {"no connection": 1})


def certified(directory: Path) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate for 127.0.0.1, and a server with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receiver")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = directory / "receiver.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    path.write_bytes(private + public)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    (directory / "trusted.pem").write_bytes(public)
    return directory / "trusted.pem", context


async def test_the_ledger_says_where_a_post_is() -> None:
    """While a post has no answer it is in the ledger, not done, with the correlator that was sent."""
    async with Sink().listening() as sink, simulated(FAST) as simulator:
        held = asyncio.Event()
        sink.answer = lambda _: Answer(after=held.wait)
        await simulator.create(duration=86_400, notificationUrl=sink.url)
        await until_received(sink, 1)
        (entry,) = await simulator.entries()
        assert (entry["answer"], entry["seconds"], entry["done"]) == (None, None, False)
        held.set()
        await simulator.until_quiet()
        (entry,) = await simulator.entries()
        assert (entry["answer"], entry["done"]) == (204, True)
        assert entry["seconds"] > 0
        assert sink.received[0].headers["x-correlator"] == entry["correlator"]
