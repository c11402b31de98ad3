"""Settings: one frozen tree, with a unit and bounds in every field.

A value comes from the first place that has it: the command line, the environment (`QOD_RECEIVER_EDGE__PORT`, lists as
JSON), the configuration file (TOML, a table per section), the default. An unknown name is an error in each of them.
`settings_layers.py` reads these places and explains faults.
"""

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from receiver.core.event import QosStatus
from receiver.core.topics import RESERVED
from receiver.headers import more_headers
from receiver.settings_auth import AuthSettings
from receiver.settings_fields import Address, Section, SenderName, Sha256, text
from receiver.settings_layers import Layers
from receiver.tls import client_context, trusting

ENV_PREFIX = "QOD_RECEIVER_"

#: Settings that have an option of their own on the command line, by dotted path.
OPTIONS = {
    "data": "--data",
    "edge.host": "--host",
    "edge.port": "--port",
    "ops.port": "--ops-port",
    "log.level": "--log-level",
    "kafka.bootstrap_servers": "--kafka",
}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _comma_separated(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(part for part in (each.strip() for each in value.split(",")) if part)


Port = Annotated[int, Field(ge=0, le=65535)]
Host = Annotated[str, text(r"^[^\s/]+$", "an address or a host name, such as 127.0.0.1")]
HostPort = Annotated[str, text(r"^[^\s/,]+:[0-9]{1,5}$", "brokers such as 127.0.0.1:9092")]
Topic = Annotated[str, text(r"^[a-z0-9][a-z0-9.-]{0,99}$", "1 to 100 lower-case letters, digits, dots and hyphens")]
EventType = Annotated[str, text(r"^[^\s?\[\]]+$", "an event type, `*` standing for any characters")]
OneOrMore = BeforeValidator(_one_or_more)
Texts = Annotated[tuple[str, ...], Field(min_length=1), OneOrMore]


#: A broker accepts a mebibyte at a time by default, and a dead letter is a third longer than its body.
_KAFKA_BODY_BYTES_MAX = 512 * 1024


class EdgeSettings(Section):
    """The public port, and how much time and memory senders get."""

    host: Host = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 is every IPv4 address")
    port: Port = Field(default=8080, description="Port to listen on; 0 takes a free one")
    path: Annotated[
        str, text(r"^(/[A-Za-z0-9._~-]+)+$", "a path such as /notifications, without a slash at its end")
    ] = Field(
        default="/notifications",
        description="Path of the notifications; the same with /notifications appended is served too",
    )
    public_url: (
        Annotated[
            str,
            text(
                r"^https?://[^\s?#]+$",
                "an http or https URL without query, such as https://qod.example.com/notifications",
            ),
        ]
        | None
    ) = Field(default=None, description="URL that senders post to, if a proxy is in front; `serve` prints it")
    query_tokens: bool = Field(default=False, description="Accept a token as ?access_token= or ?apikey= too")
    body_bytes_max: int = Field(default=65_536, ge=1024, le=16 * 1024 * 1024, description="Longest body, in bytes")
    body_timeout_seconds: float = Field(default=10, ge=0.1, le=300, description="Time for a whole body to arrive")
    header_bytes_max: int = Field(default=16_384, ge=1024, le=1024 * 1024, description="Longest request head, in bytes")
    header_timeout_seconds: float = Field(
        default=10, ge=0.1, le=300, description="Time for a whole request head to arrive"
    )
    idle_timeout_seconds: float = Field(
        default=75, ge=0.1, le=3600, description="Time that a connection may stay silent between requests"
    )
    connections_max: int = Field(
        default=2000,
        ge=1,
        le=1_000_000,
        description="Connections at a time; one more closes the longest idle one",
    )
    connections_per_address_max: int = Field(
        default=1000, ge=1, le=1_000_000, description="Connections at a time from one address, except trusted_proxies"
    )
    trusted_proxies: tuple[Address, ...] = Field(
        default=(), description="Proxies whose X-Forwarded-For tells the sender's address"
    )
    in_flight_max: int = Field(
        default=5000, ge=1, le=1_000_000, description="Requests at a time, at most half from one sender; more get 429"
    )
    in_flight_bytes_max: int = Field(
        default=64 * 1024 * 1024,
        ge=1024,
        le=64 * 1024**3,
        description="Bytes of all bodies in memory at a time, at most half from one sender; more get 429",
    )
    sender_share: int = Field(
        default=64, ge=1, le=1_000_000, description="Requests each sender may have at a time, whatever others have"
    )
    sender_share_bytes: int = Field(
        default=1024 * 1024,
        ge=0,
        le=1024**3,
        description="Bytes of bodies each sender may have at a time, whatever others have; at least one body",
    )
    rate_per_second: float = Field(
        default=0, ge=0, le=1_000_000, description="Notifications per second from one sender; 0 is no limit"
    )
    rate_burst: int = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="Notifications that one sender may post at once on top of that rate",
    )
    append_timeout_seconds: float = Field(
        default=5, ge=0.1, le=60, description="Time to keep a notification before the answer is 503"
    )
    shutdown_timeout_seconds: float = Field(
        default=30, ge=0, le=3600, description="Time for requests in progress at a shutdown"
    )

    @field_validator("public_url")
    @classmethod
    def _leads_here(cls, value: str | None, info: ValidationInfo) -> str | None:
        path = info.data.get("path")
        if value is not None and path is not None:
            told = re.sub("/+", "/", urlsplit(value).path).rstrip("/")
            if told not in {path, f"{path}/notifications"}:
                raise ValueError(f"a URL with the path of edge.path, {path}: any other path is answered 404")
        return value

    @field_validator("in_flight_bytes_max")
    @classmethod
    def _holds_a_body(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("body_bytes_max", 0):
            raise ValueError("at least edge.body_bytes_max, or no body of that length could be accepted")
        return value


class OpsSettings(Section):
    """The operations port: health, metrics, topics and sessions. Not for the public."""

    host: Host = Field(default="127.0.0.1", description="Address to listen on; beyond loopback only with a token")
    port: Port = Field(default=9464, description="Port to listen on; 0 takes a free one")
    token_sha256: Sha256 | None = Field(
        default=None, validate_default=True, description="SHA-256 of the token that callers must present"
    )

    @field_validator("token_sha256")
    @classmethod
    def _guarded_beyond_loopback(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and not _is_loopback(info.data.get("host", "localhost")):
            raise ValueError("required where ops.host is not a loopback address: the SHA-256 of a token")
        return value


class RetentionSettings(Section):
    """How long data is kept."""

    inbox_hours: float = Field(
        default=168, ge=0.01, le=87_600, description="Notifications in the inbox, once they are routed"
    )
    topics_hours: float = Field(default=168, ge=0.01, le=87_600, description="Records on the output topics")
    session_hours: float = Field(
        default=96,
        ge=0.01,
        le=87_600,
        description="A session after its last event; repetitions are recognized for that time",
    )


class KafkaSettings(Section):
    """The Kafka cluster that keeps everything; without bootstrap servers a file in the data directory does."""

    bootstrap_servers: Annotated[tuple[HostPort, ...], BeforeValidator(_comma_separated)] = Field(
        default=(), description="Brokers (bootstrap servers), separated by commas"
    )
    group: Topic = Field(
        default="router", description="Name of the routers' consumer group, behind the prefix; the same for all routers"
    )
    append_timeout_seconds: float = Field(
        default=2, ge=0.1, le=60, description="Time for Kafka to keep a notification before the spool does"
    )
    spool_bytes_max: int = Field(
        default=1024**3,
        ge=1024 * 1024,
        le=1024**5,
        description="Most bytes that the spool takes on disk, its log included",
    )
    create_topics: bool = Field(default=True, description="Create missing topics when `serve` starts")
    partitions: int = Field(default=12, ge=1, le=10_000, description="Partitions of each topic that is created")
    replication_factor: int | None = Field(
        default=None, ge=1, le=15, description="Replicas of each topic that is created; else 3, or one per broker"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="Security protocol of the brokers' listener"
    )
    tls_ca_file: Path | None = Field(
        default=None, description="Certificates (PEM) that sign the brokers'; else the system's"
    )
    tls_certificate_file: Path | None = Field(default=None, description="Our own certificate (PEM), for mutual TLS")
    tls_key_file: Path | None = Field(
        default=None, validate_default=True, description="Private key (PEM) of that certificate"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = Field(
        default="PLAIN", description="SASL mechanism, for protocols that begin with SASL"
    )
    sasl_username: str | None = Field(
        default=None, min_length=1, validate_default=True, description="User name, for PLAIN and SCRAM"
    )
    sasl_password: SecretStr | None = Field(
        default=None, min_length=1, validate_default=True, description="Password of that user"
    )
    oauth_token_url: Annotated[str, text(r"^https?://\S+$", "an http or https URL")] | None = Field(
        default=None,
        validate_default=True,
        description="Token endpoint for OAUTHBEARER (OAuth client credentials)",
    )
    oauth_client_id: str | None = Field(
        default=None, min_length=1, validate_default=True, description="OAuth client id"
    )
    oauth_client_secret: SecretStr | None = Field(
        default=None, min_length=1, validate_default=True, description="OAuth client secret"
    )
    oauth_scope: str | None = Field(default=None, min_length=1, description="OAuth scope")

    @field_validator("tls_ca_file", "tls_certificate_file", "tls_key_file")
    @classmethod
    def _where_there_is_tls(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("security_protocol", "SSL") not in {"SSL", "SASL_SSL"}:
            raise ValueError("unset, unless kafka.security_protocol is SSL or SASL_SSL: else it has no effect")
        return value

    @field_validator("tls_ca_file", "tls_certificate_file")
    @classmethod
    def _has_certificates(cls, value: Path | None) -> Path | None:
        if value is not None:
            trusting(value)
        return value

    @field_validator("tls_key_file")
    @classmethod
    def _with_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if "tls_certificate_file" in info.data:
            certificate = info.data["tls_certificate_file"]
            if (value is None) != (certificate is None):
                raise ValueError("both kafka.tls_certificate_file and kafka.tls_key_file, or neither")
            client_context(None, certificate, value)
        return value

    @field_validator("sasl_username", "sasl_password")
    @classmethod
    def _to_log_in_by_password(cls, value: str | SecretStr | None, info: ValidationInfo) -> str | SecretStr | None:
        return _of_mechanisms(("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"), value, info, required=True)

    @field_validator("oauth_token_url", "oauth_client_id", "oauth_client_secret", "oauth_scope")
    @classmethod
    def _to_log_in_by_token(cls, value: str | SecretStr | None, info: ValidationInfo) -> str | SecretStr | None:
        return _of_mechanisms(("OAUTHBEARER",), value, info, required=info.field_name != "oauth_scope")


def _of_mechanisms(
    mechanisms: tuple[str, ...], value: str | SecretStr | None, info: ValidationInfo, *, required: bool
) -> str | SecretStr | None:
    """The value of a setting that some SASL mechanisms need and the others do not know."""
    protocol, mechanism = info.data.get("security_protocol"), info.data.get("sasl_mechanism")
    if protocol is None or mechanism is None:  # these are wrong themselves, and reported
        return value
    wanted = protocol.startswith("SASL") and mechanism in mechanisms
    if wanted and required and value is None:
        raise ValueError(f"required where kafka.security_protocol is {protocol} and kafka.sasl_mechanism {mechanism}")
    if not wanted and value is not None:
        told = ", ".join(mechanisms)
        raise ValueError(
            f"unset, unless kafka.security_protocol is SASL_SSL or SASL_PLAINTEXT and kafka.sasl_mechanism {told}: "
            "else it has no effect"
        )
    return value


class ApiSettings(Section):
    """The operator's QoD API, to create sessions and to find what was never notified; unused without base_url."""

    base_url: (
        Annotated[str, text(r"^https?://[^\s?#]+$", "an http or https URL, such as https://api.example.com/v1")] | None
    ) = Field(default=None, description="URL of the API, without /qod/sessions")
    token_url: Annotated[str, text(r"^https?://\S+$", "an http or https URL")] | None = Field(
        default=None,
        validate_default=True,
        description="Token endpoint (OAuth client credentials)",
    )
    client_id: str | None = Field(default=None, min_length=1, validate_default=True, description="OAuth client id")
    client_secret: SecretStr | None = Field(
        default=None, min_length=1, validate_default=True, description="OAuth client secret"
    )
    scope: str | None = Field(
        default="qod:sessions:read qod:sessions:write", description="OAuth scope; empty asks for none"
    )
    audience: str | None = Field(default=None, min_length=1, description="OAuth audience, if the server requires one")
    headers: Annotated[Mapping[str, SecretStr], AfterValidator(more_headers)] = Field(
        default={},
        json_schema_extra={"allowed": "a table of header names and their values"},
        description="More headers for the API and its token server, such as a gateway's key",
    )
    sender: SenderName | None = Field(
        default=None,
        validate_default=True,
        description="Sender of this API's notifications, as named in its tokens",
    )
    timeout_seconds: float = Field(default=10, ge=0.1, le=300, description="Time for an answer")
    attempts_max: int = Field(
        default=4, ge=1, le=20, description="Attempts at a request, except one that creates a session"
    )
    reconcile_seconds: float = Field(
        default=60, ge=0, le=86_400, description="Time between two comparisons of its sessions with ours; 0 is never"
    )
    grace_seconds: float = Field(
        default=30, ge=0, le=3600, description="Time that a status waits for its notification before it is told without"
    )
    device_key: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="Key of the hash that identifies a device; by default in the file device-key in the data directory",
    )
    device_identifiers: bool = Field(
        default=False, description="Also put the device's own identifiers, which are personal data, on the topics"
    )

    @field_validator("token_url", "client_id", "client_secret", "sender")
    @classmethod
    def _with_base_url(cls, value: str | SecretStr | None, info: ValidationInfo) -> str | SecretStr | None:
        if info.data.get("base_url") is not None and value is None:
            raise ValueError("required where there is an api.base_url")
        return value


class RouterSettings(Section):
    """How the router works through the inbox."""

    batch_max: int = Field(default=2000, ge=1, le=100_000, description="Notifications decided on in one transaction")
    resuming_senders: tuple[str, ...] = Field(
        default=(), description="Senders that resume a session after its end; their AVAILABLE counts by its time"
    )


class RouteSettings(Section):
    """An additional topic. An event must meet every condition given, each by any one of its values."""

    topic: Topic = Field(description="Name of the topic, without the prefix")
    sender: Texts | None = Field(default=None, description="Names of senders")
    qos_status: Annotated[tuple[QosStatus, ...], Field(min_length=1), OneOrMore] | None = Field(
        default=None, description="The new status"
    )
    status_info: Texts | None = Field(default=None, description="The reason for the end")
    unexpected: bool | None = Field(default=None, description="Whether the end is unexpected: nobody asked for it")
    event_type: Annotated[tuple[EventType, ...], Field(min_length=1), OneOrMore] | None = Field(
        default=None, description="The event's type, as the sender spells it"
    )

    @field_validator("topic")
    @classmethod
    def _not_the_routers(cls, value: str) -> str:
        if value in RESERVED:
            raise ValueError("a topic other than inbox, sessions and dead-letter, which are the router's own")
        return value


class LogSettings(Section):
    """The log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level that is logged"
    )
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: console on a terminal, else JSON lines"
    )


class Settings(Section):
    """All settings. `load` reads them from their places, and explains faults."""

    prefix: Topic = Field(default="qod", description="Prefix of the topics' names, before a dot")
    data: Path = Field(default=Path("qod-data"), description="Directory of the inbox, the topics and the sessions")
    edge: EdgeSettings = EdgeSettings()
    auth: AuthSettings = AuthSettings()
    ops: OpsSettings = OpsSettings()
    retention: RetentionSettings = RetentionSettings()
    kafka: KafkaSettings = KafkaSettings()
    router: RouterSettings = RouterSettings()
    api: ApiSettings = ApiSettings()
    routes: tuple[RouteSettings, ...] = Field(default=(), description="Additional topics")
    log: LogSettings = LogSettings()

    @field_validator("kafka")
    @classmethod
    def _takes_every_body(cls, value: KafkaSettings, info: ValidationInfo) -> KafkaSettings:
        edge = info.data.get("edge")
        if value.bootstrap_servers and edge is not None and edge.body_bytes_max > _KAFKA_BODY_BYTES_MAX:
            raise ValueError(f"edge.body_bytes_max of at most {_KAFKA_BODY_BYTES_MAX}: brokers refuse longer ones")
        return value


def option_of(data: Path) -> dict[str, str]:
    """The option with which another command finds the data directory; none where the default does."""
    return {} if data == Settings.model_fields["data"].default else {"data": str(data)}


def load(config: Path | None, overrides: Mapping[str, object]) -> Settings:
    """The settings from the file `config` (None: no file), the environment and `overrides`, by dotted path.

    Raises SettingsError.
    """
    return layers(config, overrides).settings()


def layers(config: Path | None, overrides: Mapping[str, object]) -> Layers[Settings]:
    """The same settings, with their places kept apart. Raises SettingsError where the file can't be read."""
    return Layers(Settings, config, overrides, OPTIONS, ENV_PREFIX)
