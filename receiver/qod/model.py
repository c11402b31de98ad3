"""Sessions as the API returns them, and the request to create one. Pure.

Answers are read leniently: later releases have more members, older ones have times as numbers. Requests are checked
strictly, so that none is sent that can only be refused.

No phone number may get into a log, by a message or by a traceback with local variables. So objects with a device's
identifiers have a repr without them, and no function raises while one of its variables holds them.
"""

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, TypeGuard

import orjson
from pydantic import SecretStr

from receiver.core import rfc3339
from receiver.core.errors import Malformed
from receiver.core.event import QosStatus

DURATION_SECONDS_MAX = 86_400
URL_WANTED = "an http or https URL without user and fragment is required"

_ID_CHARS_MAX = 256
_TEXT_CHARS_MAX = 2_048
_NAI_CHARS_MAX = 256
_URL_CHARS_MAX = 2_048
_PORT_MAX = 65_535
_DEVICE_BYTES_MAX = 4_096
#: Larger numbers are not the same to every reader of JSON.
_WHOLE_MAX = 2**53

#: A list is parsed in parts of about this length, a millisecond each.
_PART_BYTES = 32 * 1024
_BETWEEN_OBJECTS = re.compile(rb"\}[ \t\n\r]*,(?=[ \t\n\r]*\{)")

_PHONE_NUMBER = re.compile(r"\+[1-9][0-9]{4,14}")
_URL = re.compile(r"https?://[^\s/?#@]+([/?][^\s#]*)?")
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.]*")
_CODE_CHARS_MAX = 64
_NOT_FOUND = 404
#: NOT_FOUND, or an API's own code of that kind, such as QUALITY_ON_DEMAND.SESSION_NOT_FOUND.
_CODE_NOT_FOUND = re.compile(r"([A-Z][A-Z0-9_]*\.)?([A-Z0-9_]+_)?NOT_FOUND")

#: Text in a message that may identify any device: an international phone number, and an address.
_CALLABLE = re.compile(r"\+[1-9](?:[ ().-]*[0-9]){4,}")
_ADDRESS = re.compile(r"[0-9A-Fa-f.:]*[.:][0-9A-Fa-f.:]*[0-9A-Fa-f:]")
#: A phone number without its +, or only the end of it.
_DIGITS = re.compile(r"[0-9](?:[ ().-]*[0-9]){4,}")
#: This many consecutive digits of a phone number identify it; fewer are a port, a status or a duration.
_TELLING_DIGITS = 6
_REMOVED = "…"

_STATUSES: Mapping[str, QosStatus] = {str(status): status for status in QosStatus}


class QosProfile(StrEnum):
    """Profiles that can be requested."""

    QOS_E = "QOS_E"
    QOS_S = "QOS_S"
    QOS_M = "QOS_M"
    QOS_L = "QOS_L"


class _Private(Mapping[str, Any]):
    """Members that are not shown: the repr lacks them, and it is not a dict, which printers unfold."""

    __slots__ = ("_members",)

    def __init__(self, members: Mapping[str, Any]) -> None:
        self._members = dict(members)

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401  # what JSON is
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()}>"


class Device(_Private):
    """A device as the API names it: phoneNumber, networkAccessIdentifier, ipv4Address and ipv6Address, unchanged."""

    __slots__ = ()


class Creation(_Private):
    """A request to create a session: a CreateSessionRequest."""

    __slots__ = ()

    def notified(self, url: str, token: SecretStr) -> "Creation":
        """The request, with a URL for notifications and their token. Raises ValueError for a URL that can't be used."""
        if not is_url(url):
            raise ValueError(f"notifications can't be posted to {url!r}: {URL_WANTED}")
        return Creation({**self, "notificationUrl": url, "notificationAuthToken": token.get_secret_value()})

    def content(self) -> bytes:
        """The body to post."""
        return orjson.dumps(self, default=dict)


class Identifiers(NamedTuple):
    """A device's identifiers, at least one of them. `ipv4` may have a port behind a colon."""

    phone_number: SecretStr | None = None
    network_access_identifier: SecretStr | None = None
    ipv4: SecretStr | None = None
    ipv6: SecretStr | None = None


class ApiSession(NamedTuple):
    """A session as the API returns it. Times are microseconds since 1970, None until it has begun, or if not given.

    `status_info` is the reason for the end, None unless UNAVAILABLE; releases before 1.0 do not give it.
    """

    session_id: str
    qos_status: QosStatus
    status_info: str | None
    qos_profile: str | None
    duration_seconds: int | None
    started_micros: int | None
    expires_micros: int | None
    device: Mapping[str, Any]


def api_session(tree: object) -> ApiSession:
    """The session in an answer. Raises Malformed if the answer lacks a session's id or status."""
    found = _session_or_complaint(tree)
    del tree
    if isinstance(found, str):
        raise Malformed(found)
    return found


class Unread(NamedTuple):
    """An unreadable session on a list: its id, None if that is unreadable too, and why."""

    session_id: str | None
    complaint: str


class Listing(NamedTuple):
    """All our sessions at the API: those that can be read, and the others."""

    sessions: Sequence[ApiSession]
    unread: Sequence[Unread]

    def complaint(self) -> str:
        """What can't be read, in words; empty if everything can."""
        if not self.unread:
            return ""
        session_id, why = self.unread[0]
        which = "" if session_id is None else f" {session_id}"
        more = f", and {len(self.unread) - 1} more" if len(self.unread) > 1 else ""
        return f"of the API's sessions one can't be read: session{which}: {why}{more}"


class Page(NamedTuple):
    """The elements of a list or of a page; and the number of all elements and pages, None if not given."""

    elements: Sequence[object]
    total_count: int | None
    total_pages: int | None


def page(tree: object) -> Page | None:
    """A list, or an object with one list and `pagination` beside it (Commonalities, API-design-guidelines.md, 4.1.3).

    None where it is neither.
    """
    if isinstance(tree, list):
        return Page(tree, None, None)
    if not isinstance(tree, dict) or not isinstance(tree.get("pagination"), dict):
        return None
    lists = [value for value in tree.values() if isinstance(value, list)]
    told = tree["pagination"]
    return Page(lists[0], _whole(told.get("totalCount")), _whole(told.get("totalPages"))) if len(lists) == 1 else None


def listed(tree: object) -> ApiSession | Unread:
    """The session in an element of a list."""
    found = _session_or_complaint(tree)
    if not isinstance(found, str):
        return found
    session_id = tree.get("sessionId") if isinstance(tree, dict) else None
    return Unread(session_id if is_id(session_id) else None, found)


def is_id(value: object) -> TypeGuard[str]:
    """Whether a value is a valid session id. It need not be a UUID, as some APIs' ids are not."""
    return isinstance(value, str) and 0 < len(value) <= _ID_CHARS_MAX and value.isprintable()


def is_unknown_session(content: bytes) -> bool:
    """Whether the body of a 404 is the API's own statement that there is no such session, not a gateway's about a path.

    The API's own 404 has no body (QoD 0.10.0), or CAMARA's ErrorInfo with its code.
    """
    if not content.strip():
        return True
    try:
        tree = orjson.loads(content)
    except orjson.JSONDecodeError:
        return False
    if not isinstance(tree, dict) or tree.get("status") != _NOT_FOUND:
        return False
    code = tree.get("code")
    return isinstance(code, str) and _CODE_NOT_FOUND.fullmatch(code) is not None


def parts(content: bytes, bytes_min: int = _PART_BYTES) -> Iterator[Any]:
    """The elements of a list, some at a time; the whole body if it is not a list. Raises JSONDecodeError.

    A possible end of an element is guessed and tried: if the text up to it parses as elements, it is one.
    """
    if not content.lstrip(b" \t\n\r").startswith(b"["):
        yield orjson.loads(content)
        return
    start, size = content.index(b"[") + 1, bytes_min
    while between := _BETWEEN_OBJECTS.search(content, start + size):
        try:
            part = orjson.loads(b"[%b]" % content[start : between.start() + 1])
        except orjson.JSONDecodeError:
            size *= 2
        else:
            yield part
            start, size = between.end(), bytes_min
    yield orjson.loads(b"[%b" % content[start:])


def creation(
    identifiers: Identifiers,
    *,
    qos_profile: QosProfile,
    duration_seconds: int,
    server_ipv4: str | None = None,
    server_ipv6: str | None = None,
) -> Creation:
    """The request to create a session for a device. Raises ValueError, with a message that quotes nothing."""
    complaint = _complaint(identifiers)
    if complaint is None and not 1 <= duration_seconds <= DURATION_SECONDS_MAX:
        complaint = f"a duration has 1 to {DURATION_SECONDS_MAX} seconds"
    if complaint is None and not (server_ipv4 is None or _is_ipv4_range(server_ipv4)):
        complaint = "the server's IPv4 address is invalid; use one such as 198.51.100.7 or 198.51.100.0/24"
    if complaint is None and not (server_ipv6 is None or _is_ipv6_range(server_ipv6)):
        complaint = "the server's IPv6 address is invalid; use one such as 2001:db8::7 or 2001:db8::/64"
    if complaint is not None:
        raise ValueError(complaint)
    server = _given({"ipv4Address": server_ipv4, "ipv6Address": server_ipv6})
    return Creation(
        {
            "device": _device(identifiers),
            **({"applicationServer": server} if server else {}),
            "qosProfile": str(qos_profile),
            "duration": duration_seconds,
        }
    )


def is_url(text: str) -> bool:
    """Whether notifications can be posted to this URL."""
    return len(text) <= _URL_CHARS_MAX and text.isascii() and text.isprintable() and bool(_URL.fullmatch(text))


def quoted(text: object, asked: Creation | None, chars_max: int) -> str:
    """The API's words, fit to be shown: printable, short, and without the identifiers and tokens that were sent."""
    if not isinstance(text, str):
        return ""
    # The text is cut last, since the rest of an identifier that was cut would not be recognized.
    text = "".join(c if c.isprintable() else " " for c in text)
    for secret in _secrets(asked):
        text = re.sub(re.escape(secret), _REMOVED, text, flags=re.IGNORECASE)
    text = _CALLABLE.sub(_REMOVED, text)
    text = _ADDRESS.sub(lambda found: _REMOVED if _is_address(found[0]) else found[0], text)
    number = _digits(asked["device"].get("phoneNumber", "")) if asked else ""
    text = _DIGITS.sub(lambda found: _REMOVED if _tells(_digits(found[0]), number) else found[0], text)
    text = " ".join(text.split())
    return text if len(text) <= chars_max else f"{text[:chars_max]}…"


def code_told(text: object, asked: Creation | None) -> str:
    """The API's error code, such as INVALID_ARGUMENT; empty if it is not one."""
    code = quoted(text, asked, _CODE_CHARS_MAX)
    return code if _CODE.fullmatch(code) else ""


def _session_or_complaint(tree: object) -> ApiSession | str:
    if not isinstance(tree, dict):
        return "a session is not a JSON object"
    session_id, status = tree.get("sessionId"), tree.get("qosStatus")
    if not is_id(session_id):
        return f"sessionId must be 1 to {_ID_CHARS_MAX} printable characters"
    if not isinstance(status, str) or status not in _STATUSES:
        return f"qosStatus must be one of {', '.join(QosStatus)}"
    device = tree.get("device")
    return ApiSession(
        session_id,
        _STATUSES[status],
        _text(tree.get("statusInfo")) if status == QosStatus.UNAVAILABLE else None,
        _text(tree.get("qosProfile")),
        _whole(tree.get("duration")),
        _micros(tree.get("startedAt")),
        _micros(tree.get("expiresAt")),
        Device(device if isinstance(device, dict) and _is_small(device) else {}),
    )


def _is_small(device: dict[str, Any]) -> bool:
    """Whether the device can be passed on: it can be written as JSON, and is not too long for a broker."""
    try:
        return len(orjson.dumps(device)) <= _DEVICE_BYTES_MAX
    except TypeError:
        return False


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= _TEXT_CHARS_MAX and value.isprintable() else None


def _whole(value: object) -> int | None:
    # JSON has one kind of number, and to JSON Schema 60.0 is an integer.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _WHOLE_MAX else None


def _micros(value: object) -> int | None:
    """A time: RFC 3339, or seconds since 1970, as in QualityOnDemand v0.8 and v0.9."""
    if isinstance(value, str):
        try:
            micros = rfc3339.micros(value.upper())
        except (ValueError, OverflowError):
            return None
    else:
        seconds = _whole(value)
        if seconds is None:
            return None
        micros = seconds * 1_000_000
    return micros if micros in rfc3339.WRITABLE_MICROS else None


def _complaint(identifiers: Identifiers) -> str | None:
    """The fault in a device's identifiers, None if there is none."""
    phone_number, nai, ipv4, ipv6 = identifiers
    if not any(identifier is not None for identifier in identifiers):
        return "a device is required: its phone number, network access identifier, IPv4 or IPv6 address"
    if phone_number is not None and not _PHONE_NUMBER.fullmatch(phone_number.get_secret_value()):
        return "a phone number has a + and 5 to 15 digits, of which the first is not 0"
    if nai is not None and not _is_nai(nai.get_secret_value()):
        return f"a network access identifier has 1 to {_NAI_CHARS_MAX} printable characters"
    if ipv4 is not None and not _is_ipv4_with_port(ipv4.get_secret_value()):
        return "the device's IPv4 address is invalid; use one such as 192.0.2.7 or 192.0.2.7:50000"
    if ipv6 is not None and not _is_ipv6(ipv6.get_secret_value()):
        return "the device's IPv6 address is invalid; use one such as 2001:db8::7"
    return None


def _device(identifiers: Identifiers) -> Device:
    phone_number, nai, ipv4, ipv6 = (None if each is None else each.get_secret_value() for each in identifiers)
    members: dict[str, Any] = {"phoneNumber": phone_number, "networkAccessIdentifier": nai, "ipv6Address": ipv6}
    if ipv4 is not None:
        address, colon, port = ipv4.partition(":")
        members["ipv4Address"] = {"publicAddress": address, **({"publicPort": int(port)} if colon else {})}
    return Device(_given(members))


def _given(members: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def _is_nai(text: str) -> bool:
    return 0 < len(text) <= _NAI_CHARS_MAX and text.isprintable()


def _is_ipv4_with_port(text: str) -> bool:
    address, colon, port = text.partition(":")
    is_port = port.isascii() and port.isdigit() and len(port) <= len(str(_PORT_MAX)) and int(port) <= _PORT_MAX
    return (is_port or not colon) and "/" not in address and _is_ipv4_range(address)


def _is_ipv4_range(text: str) -> bool:
    try:
        ipaddress.IPv4Interface(text)
    except ValueError:
        return False
    return True


def _is_ipv6(text: str) -> bool:
    return "/" not in text and _is_ipv6_range(text)


def _is_ipv6_range(text: str) -> bool:
    try:
        ipaddress.IPv6Interface(text)
    except ValueError:
        return False
    return "%" not in text


def _secrets(asked: Creation | None) -> list[str]:
    """Texts that were sent and must not be quoted, the longest first, as one may be a part of another."""
    if asked is None:
        return []
    device: Mapping[str, Any] = asked["device"]
    found = [device.get("phoneNumber"), device.get("networkAccessIdentifier"), asked.get("notificationAuthToken")]
    found.append(device.get("ipv4Address", {}).get("publicAddress"))
    if "ipv6Address" in device:
        address = ipaddress.IPv6Address(device["ipv6Address"])
        found += [device["ipv6Address"], address.compressed, address.exploded]
    return sorted(filter(None, found), key=len, reverse=True)


def _is_address(text: str) -> bool:
    """Whether the text is an IP address, with or without a port."""
    host = text.partition(":")[0] if text.count(":") == 1 else text
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def _tells(digits: str, number: str) -> bool:
    """Whether these digits contain enough of a phone number to identify it."""
    length = min(_TELLING_DIGITS, len(number))
    return number != "" and any(number[at : at + length] in digits for at in range(len(number) - length + 1))
