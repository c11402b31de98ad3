"""The request that creates a session: the API's CreateSessionRequest, checked. Pure.

The checks are tighter than the API where it allows a device without an identifier, an address of any form, or a URL and
a token that could not be used for posts; `schemas/qod-api.openapi.yaml` has each of these. Members that the API does
not know are ignored.
"""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

DURATION_SECONDS_MAX = 86_400

#: A URL that can be posted to: no user, no fragment, visible ASCII only.
_URL = re.compile(
    r"https?://(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?)(:[0-9]{1,5})?([/?][!-\"$-~]*)?"
)
_PORT_MAX = 65_535


class Invalid(Exception):
    """The request violates the API; the message names the member. `code` is CAMARA's."""

    def __init__(self, message: str, code: str = "INVALID_ARGUMENT") -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class Wanted(NamedTuple):
    """A request for a session. `identifiers` are the device's, each as a text that no other device has."""

    device: Mapping[str, Any]
    identifiers: Sequence[str]
    phone_number: str
    qos_profile: str
    duration_seconds: int
    notification_url: str | None
    notification_auth_token: str | None


def _given(value: object) -> object:
    if value is None:
        raise ValueError("must not be null")
    return value


def _integer(value: object) -> object:
    # JSON has one kind of number, and to JSON Schema 60.0 is an integer.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _ipv4(text: str) -> str:
    ipaddress.IPv4Address(text)
    return text


def _ipv6(text: str) -> str:
    if "%" in text:
        raise ValueError("must not have a zone")
    ipaddress.IPv6Address(text)
    return text


def _postable(text: str) -> str:
    found = _URL.fullmatch(text)
    if not found or (found[3] is not None and int(found[3][1:]) > _PORT_MAX):
        raise ValueError("must be an http or https URL without user and fragment")
    if text.partition("://")[2].startswith("["):
        _ipv6(text.partition("[")[2].partition("]")[0])
    return text


Given = BeforeValidator(_given)
Integer = BeforeValidator(_integer)
PhoneNumber = Annotated[str, Field(pattern=r"^\+[1-9][0-9]{4,14}$")]
Ipv4 = Annotated[str, AfterValidator(_ipv4)]
Ipv6 = Annotated[str, AfterValidator(_ipv6)]
Text = Annotated[str, Field(min_length=1, max_length=256)]
Port = Annotated[int, Field(ge=0, le=_PORT_MAX), Integer]
Url = Annotated[str, Field(max_length=2048), AfterValidator(_postable)]
#: The characters a header can hold: visible ASCII, with blanks within.
Token = Annotated[str, Field(pattern=r"^[!-~]([ -~]{0,4094}[!-~])?$")]


class _Object(BaseModel):
    model_config = ConfigDict(strict=True, alias_generator=to_camel, extra="ignore", hide_input_in_errors=True)


class _Ipv4Address(_Object):
    public_address: Ipv4
    public_port: Annotated[Port | None, Given] = None


class _Device(_Object):
    phone_number: Annotated[PhoneNumber | None, Given] = None
    network_access_identifier: Annotated[Text | None, Given] = None
    ipv4_address: Annotated[_Ipv4Address | None, Given] = None
    ipv6_address: Annotated[Ipv6 | None, Given] = None

    @model_validator(mode="after")
    def _has_identifier(self) -> "_Device":
        if not self.model_fields_set:
            raise ValueError("must have one of " + ", ".join(map(to_camel, _Device.model_fields)))
        return self

    def identifiers(self) -> list[str]:
        found = {"phone": self.phone_number, "nai": self.network_access_identifier}
        if self.ipv4_address is not None:
            found["ipv4"] = f"{self.ipv4_address.public_address}:{self.ipv4_address.public_port}"
        if self.ipv6_address is not None:
            found["ipv6"] = ipaddress.IPv6Address(self.ipv6_address).compressed
        return [f"{kind} {value}" for kind, value in found.items() if value is not None]


class _ApplicationServer(_Object):
    ipv4_address: Annotated[Text | None, Given] = None
    ipv6_address: Annotated[Text | None, Given] = None


class _CreateSessionRequest(_Object):
    device: _Device
    application_server: Annotated[_ApplicationServer | None, Given] = None
    qos_profile: Literal["QOS_E", "QOS_S", "QOS_M", "QOS_L"]
    duration: Annotated[int, Field(ge=1, le=DURATION_SECONDS_MAX), Integer]
    notification_url: Annotated[Url | None, Given] = None
    notification_auth_token: Annotated[Token | None, Given] = None


_RANGES = {"greater_than_equal", "less_than_equal"}


def parse(body: bytes) -> Wanted:
    """The session that a body requests. Raises Invalid."""
    if not body.strip():
        raise Invalid("there is no body")
    try:
        request = _CreateSessionRequest.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError:
        raise Invalid("the body is not JSON") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        code = "OUT_OF_RANGE" if first["type"] in _RANGES else "INVALID_ARGUMENT"
        raise Invalid(f"{where}: {first['msg'].removeprefix('Value error, ')}", code) from None
    return Wanted(
        request.device.model_dump(by_alias=True, exclude_unset=True),
        request.device.identifiers(),
        request.device.phone_number or "",
        request.qos_profile,
        request.duration,
        request.notification_url,
        request.notification_auth_token,
    )
