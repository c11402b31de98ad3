"""The API's sessions and requests, and that a device's identifiers don't appear where they are only displayed."""

import io
import json
import logging
import pprint
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from rich.console import Console
from rich.pretty import pretty_repr

from receiver.core import rfc3339
from receiver.core.errors import Malformed
from receiver.core.event import QosStatus
from receiver.qod import model
from receiver.qod.model import ApiSession, Creation, Device, Identifiers, QosProfile, api_session, code_told, quoted
from tests.samples import SESSION_ID

PHONE = "+34600111222"
NAI = "jane.doe@example.org"
IPV4, IPV6 = "203.0.113.77", "2001:0db8:0000:0000:0000:0000:0000:0077"
TOKEN = "the-token-of-the-notifications"
URL = "https://qod.example.com/notifications"
DEVICE = {
    "phoneNumber": PHONE,
    "networkAccessIdentifier": NAI,
    "ipv4Address": {"publicAddress": IPV4, "publicPort": 50_000},
    "ipv6Address": IPV6,
}
#: None of these may be in displayed text.
SECRETS = (PHONE, PHONE[1:], PHONE[3:], NAI, IPV4, IPV6, "2001:db8::77", TOKEN)
TOLD = {"sessionId": SESSION_ID, "qosStatus": "AVAILABLE"}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
#: Values for any member of an answer, right or wrong.
ANSWERS = st.fixed_dictionaries(
    {},
    optional={
        "sessionId": st.just(SESSION_ID) | st.text(max_size=300) | JSON,
        "qosStatus": st.sampled_from(QosStatus).map(str) | JSON,
        "statusInfo": st.sampled_from(["NETWORK_TERMINATED", "NEW"]) | JSON,
        "qosProfile": st.just("QOS_E") | JSON,
        "duration": st.integers() | st.floats() | JSON,
        "startedAt": st.datetimes().map(lambda time: f"{time.isoformat()}Z") | st.integers() | JSON,
        "expiresAt": st.datetimes().map(str) | st.floats() | JSON,
        "device": st.just(DEVICE) | JSON,
        "later": JSON,
    },
)


def asked(**changes: Any) -> Creation:  # noqa: ANN401  # creation's arguments
    """A request of a device with every identifier; None removes one."""
    names = {"phone_number": PHONE, "network_access_identifier": NAI, "ipv4": f"{IPV4}:50000", "ipv6": IPV6}
    identifiers = {name: changes.pop(name, value) for name, value in names.items()}
    secret = {name: None if value is None else SecretStr(value) for name, value in identifiers.items()}
    wanted: dict[str, Any] = {"qos_profile": QosProfile.QOS_E, "duration_seconds": 3_600, **changes}
    return model.creation(Identifiers(**secret), **wanted)


def locals_shown(error: BaseException) -> str:
    """A traceback of the receiver's own frames, with all locals, as a log may have it."""
    whole = traceback.TracebackException.from_exception(error, capture_locals=True)
    frames = [frame for frame in whole.stack if "receiver" in frame.filename and "/tests/" not in frame.filename]
    assert frames
    assert whole.__context__ is None, "what came before is shown too"
    return f"{error!r} {error} {[frame.locals for frame in frames]}"


def test_an_answer_is_read() -> None:
    """All members of a session arrive, times to the microsecond."""
    tree = {
        **TOLD,
        "device": DEVICE,
        "qosProfile": "QOS_L",
        "startedAt": "2026-11-24T10:00:00.25Z",
        "expiresAt": "2026-11-24T12:00:00+01:00",
        "duration": 3_600,
        "applicationServer": {"ipv4Address": "198.51.100.7"},
    }
    assert api_session(tree) == ApiSession(
        SESSION_ID,
        QosStatus.AVAILABLE,
        None,
        "QOS_L",
        3_600,
        rfc3339.micros("2026-11-24T10:00:00.25Z"),
        rfc3339.micros("2026-11-24T11:00:00Z"),
        DEVICE,
    )


def test_an_answer_may_tell_the_least() -> None:
    """A session needs only an id and a status."""
    assert api_session(TOLD) == ApiSession(SESSION_ID, QosStatus.AVAILABLE, None, None, None, None, None, {})


@pytest.mark.parametrize(
    ("member", "value", "field", "read"),
    [
        ("duration", 60.0, "duration_seconds", 60),
        ("duration", 60.5, "duration_seconds", None),
        ("duration", True, "duration_seconds", None),
        ("duration", -1, "duration_seconds", None),
        ("duration", "60", "duration_seconds", None),
        ("startedAt", 1_639_479_600, "started_micros", 1_639_479_600_000_000),
        ("startedAt", "2026-11-24t10:00:00z", "started_micros", rfc3339.micros("2026-11-24T10:00:00Z")),
        ("startedAt", "soon", "started_micros", None),
        ("startedAt", 10**18, "started_micros", None),
        ("expiresAt", "0001-01-01T00:00:00+23:00", "expires_micros", None),
        ("expiresAt", None, "expires_micros", None),
        ("qosProfile", "QOS_OF_NEXT_YEAR", "qos_profile", "QOS_OF_NEXT_YEAR"),
        ("qosProfile", "a\x1b[2J", "qos_profile", None),
        ("qosProfile", ["QOS_E"], "qos_profile", None),
        ("statusInfo", "NETWORK_TERMINATED", "status_info", None),
        ("device", [PHONE], "device", {}),
        ("device", None, "device", {}),
    ],
)
def test_what_is_not_needed_is_read_leniently(member: str, value: object, field: str, read: object) -> None:
    """An invalid member counts as absent."""
    assert getattr(api_session({**TOLD, member: value}), field) == read


def test_the_reason_for_an_end_is_read() -> None:
    """Releases from 1.0 on tell why a session is UNAVAILABLE."""
    ended = api_session({**TOLD, "qosStatus": "UNAVAILABLE", "statusInfo": "NETWORK_TERMINATED"})
    assert (ended.qos_status, ended.status_info) == (QosStatus.UNAVAILABLE, "NETWORK_TERMINATED")


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        ([], "a session is not a JSON object"),
        ({"qosStatus": "AVAILABLE"}, "sessionId must be"),
        ({**TOLD, "sessionId": ""}, "sessionId must be"),
        ({**TOLD, "sessionId": "s" * 257}, "sessionId must be"),
        ({**TOLD, "sessionId": "s\n"}, "sessionId must be"),
        ({**TOLD, "sessionId": 17}, "sessionId must be"),
        ({"sessionId": SESSION_ID}, "qosStatus must be one of REQUESTED, AVAILABLE, UNAVAILABLE"),
        ({**TOLD, "qosStatus": "DELETED"}, "qosStatus must be one of"),
        ({**TOLD, "qosStatus": {"a": 1}}, "qosStatus must be one of"),
    ],
)
def test_what_tells_no_status_of_no_session_is_malformed(tree: object, complaint: str) -> None:
    """Without an id or a known status an answer is no session."""
    with pytest.raises(Malformed, match=complaint):
        api_session(tree)


@given(ANSWERS | JSON)
def test_any_answer_is_read_or_malformed(tree: object) -> None:
    """Any answer of the API is a session whose times can be written, or Malformed."""
    try:
        session = api_session(tree)
    except Malformed:
        return
    assert isinstance(tree, dict)
    assert (session.session_id, session.qos_status) == (tree["sessionId"], tree["qosStatus"])
    for micros in (session.started_micros, session.expires_micros):
        assert micros is None or rfc3339.micros(rfc3339.render(micros)) == micros
    assert session.duration_seconds is None or session.duration_seconds >= 0


@given(ANSWERS.map(lambda tree: {**tree, "device": DEVICE}) | st.just([DEVICE]))
def test_no_answer_shows_a_device(tree: object) -> None:
    """Neither a session's repr nor the error for an unreadable one has a device's identifiers, locals included."""
    try:
        shown = repr(api_session(tree))
    except Malformed as error:
        shown = locals_shown(error)
    assert not [secret for secret in SECRETS if secret in shown]


def _logged(value: object) -> str:
    renderer = structlog.processors.JSONRenderer()
    return str(renderer(logging.getLogger(), "info", {"event": "e", "value": value}))


def _printed(value: object) -> str:
    console = Console(file=io.StringIO(), width=500)
    console.print(value, {"inner": [value]})
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    "show",
    [repr, str, "{}".format, "{!r:>40}".format, ascii, pprint.pformat, pretty_repr, _printed, _logged],
    ids=["repr", "str", "format", "padded", "ascii", "pprint", "rich", "console", "structlog"],
)
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Device(DEVICE), "<device>"),
        (api_session({**TOLD, "device": DEVICE}), "<device>"),
        (asked().notified(URL, SecretStr(TOKEN)), "<creation>"),
        (Identifiers(SecretStr(PHONE), SecretStr(NAI), SecretStr(IPV4), SecretStr(IPV6)), "**********"),
    ],
    ids=["device", "session", "creation", "identifiers"],
)
def test_nobody_who_looks_sees_a_device(show: Callable[[object], str], value: object, name: str) -> None:
    """However it is printed, an object with a device's identifiers or the token shows none of them."""
    shown = show(value)
    assert name in shown
    assert not [secret for secret in SECRETS if secret in shown]


def test_a_device_is_a_mapping() -> None:
    """Code that asks for an identifier gets it, and two devices with the same identifiers are equal."""
    device = Device(DEVICE)
    assert isinstance(device, Mapping)
    assert device["phoneNumber"] == PHONE
    assert (dict(device), len(device)) == (DEVICE, 4)
    assert device == Device(DEVICE)
    assert device != Device({})


def test_what_is_posted() -> None:
    """A request has the API's members, by its names, and no member that was not given."""
    request = asked(server_ipv4="198.51.100.0/24", server_ipv6="2001:db8::7").notified(URL, SecretStr(TOKEN))
    assert json.loads(request.content()) == {
        "device": DEVICE,
        "applicationServer": {"ipv4Address": "198.51.100.0/24", "ipv6Address": "2001:db8::7"},
        "qosProfile": "QOS_E",
        "duration": 3_600,
        "notificationUrl": URL,
        "notificationAuthToken": TOKEN,
    }
    least = asked(network_access_identifier=None, ipv4=None, ipv6=None)
    assert orjson.loads(least.content()) == {
        "device": {"phoneNumber": PHONE},
        "qosProfile": "QOS_E",
        "duration": 3_600,
    }
    without_port = asked(phone_number=None, network_access_identifier=None, ipv4=IPV4, ipv6=None)
    assert orjson.loads(without_port.content())["device"] == {"ipv4Address": {"publicAddress": IPV4}}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"phone_number": "34600111222"}, "a phone number has"),
        ({"phone_number": "+0600111222"}, "a phone number has"),
        ({"phone_number": "+3460"}, "a phone number has"),
        ({"phone_number": "+346001112223334445"}, "a phone number has"),
        ({"phone_number": "+34600111222\n"}, "a phone number has"),
        ({"phone_number": "+\N{FULLWIDTH DIGIT THREE}4600111222"}, "a phone number has"),
        ({"phone_number": ""}, "a phone number has"),
        ({"network_access_identifier": ""}, "a network access identifier has"),
        ({"network_access_identifier": "n" * 257}, "a network access identifier has"),
        ({"network_access_identifier": "a\tb"}, "a network access identifier has"),
        ({"ipv4": "203.0.113"}, "the device's IPv4 address"),
        ({"ipv4": "203.0.113.77/24"}, "the device's IPv4 address"),
        ({"ipv4": "203.0.113.77:"}, "the device's IPv4 address"),
        ({"ipv4": "203.0.113.77:65536"}, "the device's IPv4 address"),
        ({"ipv4": "203.0.113.77:²"}, "the device's IPv4 address"),
        ({"ipv4": "203.0.113.77:" + "9" * 9_999}, "the device's IPv4 address"),
        ({"ipv6": IPV4}, "the device's IPv6 address"),
        ({"ipv6": "2001:db8::77/64"}, "the device's IPv6 address"),
        ({"ipv6": "fe80::77%eth0"}, "the device's IPv6 address"),
        ({"duration_seconds": 0}, "1 to 86400"),
        ({"duration_seconds": 86_401}, "1 to 86400"),
        ({"server_ipv4": "example.com"}, "the server's IPv4 address"),
        ({"server_ipv6": "198.51.100.7"}, "the server's IPv6 address"),
        (dict.fromkeys(("phone_number", "network_access_identifier", "ipv4", "ipv6")), "a device is required"),
    ],
)
def test_what_can_only_be_refused_is_no_request(changes: dict[str, Any], complaint: str) -> None:
    """A wrong value is reported without any value, and not in the locals either."""
    with pytest.raises(ValueError, match=complaint) as caught:
        asked(**changes)
    shown = locals_shown(caught.value)
    assert not [secret for secret in SECRETS if secret in shown]
    given_values = [value for value in changes.values() if isinstance(value, str) and "server" not in str(changes)]
    assert not [value for value in given_values if value and value in shown]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "qod.example.com",
        "ftp://qod.example.com/",
        "https://user:secret@qod.example.com/",
        "https://qod.example.com/#here",
        "https://",
        "https://qod.example.com/ü",
        "https://qod.example.com/a b",
        f"https://qod.example.com/{'a' * 2_048}",
    ],
)
def test_a_url_that_nobody_can_post_to(url: str) -> None:
    """A URL that a sender could not use is refused."""
    assert not model.is_url(url)
    with pytest.raises(ValueError, match="notifications can't be posted to"):
        asked().notified(url, SecretStr(TOKEN))


@pytest.mark.parametrize("url", [URL, "http://127.0.0.1:8080/notifications", "http://[::1]:8080/n?x=1"])
def test_a_url_to_post_to(url: str) -> None:
    """A URL that a sender can use is accepted unchanged."""
    assert asked().notified(url, SecretStr(TOKEN))["notificationUrl"] == url


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("the device has a session already", "the device has a session already"),
        (f"{PHONE} has a session", "… has a session"),
        ("34600111222 has a session", "… has a session"),
        ("600111222 has a session", "… has a session"),
        ("+34 600 11 12 22 has one", "… has one"),
        ("(600) 111-222 has one", "(… has one"),
        ("tel:%2B34600111222", "tel:%2B…"),
        ("not +15551234567 either", "not … either"),
        ("JANE.DOE@example.org is busy", "… is busy"),
        (f"{IPV4}:50000 is busy", "…:50000 is busy"),
        ("192.0.2.1:50000 is busy, so is 192.0.2.2.", "… is busy, so is …."),
        ("2001:db8::77 is busy", "… is busy"),
        ("[2001:db8::78]:50000 is busy since 10:00:00", "[…]:50000 is busy since 10:00:00"),
        ("QualityOnDemand 0.10.1 of 2026.", "QualityOnDemand 0.10.1 of 2026."),
        ("2001:DB8:0:0::77 is busy at 17", "… is busy at 17"),
        (f"a token such as {TOKEN}", "a token such as …"),
        ("an escape \x1b[31m\n and\ta bell\x07", "an escape [31m and a bell"),
        ("status 409, limit 86400, port 50000", "status 409, limit 86400, port 50000"),
        ("x" * 400, "x" * 300 + "…"),
        (17, ""),
        (None, ""),
    ],
)
def test_what_the_api_says_is_shown_without_what_was_sent(message: object, shown: str) -> None:
    """A message is shown without control characters, in one line, short, and without identifiers and tokens."""
    assert quoted(message, asked().notified(URL, SecretStr(TOKEN)), 300) == shown


def test_a_number_is_not_shown_whoever_it_is() -> None:
    """Without a device in the request, text like a phone number is removed all the same, and an id is not."""
    assert quoted(f"{PHONE} holds {SESSION_ID}", None, 300) == f"… holds {SESSION_ID}"


@given(st.lists(st.sampled_from([*SECRETS, " ", "x", "+", "\n", "is busy", "1"]), max_size=12), st.integers(0, 60))
def test_no_message_quotes_what_was_sent(parts: list[str], chars_max: int) -> None:
    """However the API puts identifiers into a message, and wherever that is cut, none is shown."""
    shown = quoted("".join(parts), asked().notified(URL, SecretStr(TOKEN)), chars_max)
    assert not [secret for secret in SECRETS if secret in shown]
    assert len(shown) <= chars_max + 1


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("CONFLICT", "CONFLICT"),
        ("QUALITY_ON_DEMAND.DURATION_OUT_OF_RANGE", "QUALITY_ON_DEMAND.DURATION_OUT_OF_RANGE"),
        ("not a code", ""),
        (PHONE, ""),
        (f"BUSY_{NAI}", ""),
        ("A" * 100, ""),
        (409, ""),
    ],
)
def test_a_code_is_a_word(code: object, shown: str) -> None:
    """Anything but a word of the API is no code."""
    assert code_told(code, asked()) == shown


SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5)


@pytest.mark.long
@given(
    st.lists(st.recursive(SCALARS, lambda some: st.lists(some) | st.dictionaries(st.text(max_size=3), some))),
    st.sampled_from([(",", ":"), (" ,\n ", " : ")]),
    st.none() | st.tuples(st.integers(0), st.sampled_from([b",", b"}", b"{", b"[", b"]", b'"', b"},{", b""])),
)
def test_a_list_is_read_in_parts_as_in_one(
    tree: list[object], separators: tuple[str, str], damage: tuple[int, bytes] | None
) -> None:
    """Wherever a list is cut, and whatever is wrong with it, its parts together read as the whole."""
    content = json.dumps(tree, separators=separators, ensure_ascii=False).encode()
    if damage is not None:
        place, wrong = damage[0] % len(content), damage[1]
        content = content[:place] + wrong + content[place + 1 :]
    try:
        whole = orjson.loads(content)
    except orjson.JSONDecodeError:
        whole = None
    if isinstance(whole, list):
        assert [each for part in model.parts(content, 1) for each in part] == whole
    elif whole is None:
        with pytest.raises(orjson.JSONDecodeError):
            list(model.parts(content, 1))
