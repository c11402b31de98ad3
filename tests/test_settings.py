import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from receiver.core.event import QosStatus
from receiver.settings import Settings, layers, load
from receiver.settings_problems import Problem, SettingsError
from tests.kafka_cluster import Credentials

SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
TOKEN = f'[[auth.tokens]]\nsender = "a"\nsha256 = "{SHA256}"\n'
JWT = '[[auth.jwt]]\nissuer = "i"\naudience = "a"\n'
#: A secret that was pasted into a wrong place. It must never be shown.
CREDENTIAL = "hunter2-hunter2-hunter2"

PORT = "a whole number from 0 to 65535"
HOST = "an address or a host name, such as 127.0.0.1"
HASH = "the SHA-256 of a token: 64 hexadecimal digits"
SENDER = "1 to 64 letters, digits, dots, hyphens and underscores"
TIME = "a time with its zone, such as 2026-01-31T00:00:00Z"
NAMED = "1 to 100 lower-case letters, digits, dots and hyphens"
URL = "an https URL (http on the loopback interface only)"
ALGORITHMS = "one of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA"
ROUTE = "a table of topic, sender, qos_status, status_info, unexpected, event_type"
KAFKA_OAUTH = "[kafka]\nsecurity_protocol = 'SASL_PLAINTEXT'\nsasl_mechanism = 'OAUTHBEARER'\n"
FOR_PLAIN = "required where kafka.security_protocol is SASL_SSL and kafka.sasl_mechanism PLAIN"
FOR_SCRAM = "required where kafka.security_protocol is SASL_PLAINTEXT and kafka.sasl_mechanism SCRAM-SHA-512"
FOR_OAUTH = "required where kafka.security_protocol is SASL_PLAINTEXT and kafka.sasl_mechanism OAUTHBEARER"
FOR_TLS = "unset, unless kafka.security_protocol is SSL or SASL_SSL: else it has no effect"
HEADER_VALUE = "1 to 4096 visible ASCII characters as the value of"
SECTIONS = "prefix, data, edge, auth, ops, retention, kafka, router, api, routes, log"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings of the user that runs it."""
    for name in os.environ:
        if name.upper().startswith("QOD_RECEIVER_"):
            monkeypatch.delenv(name)


def problems(config: Path | None, overrides: dict[str, object] | None = None) -> list[Problem]:
    """The problems of these settings."""
    with pytest.raises(SettingsError) as caught:
        load(config, overrides or {})
    return list(caught.value.problems)


def written(directory: Path, text: str) -> Path:
    """A configuration file."""
    path = directory / "qod.toml"
    path.write_text(text)
    return path


def test_everything_has_a_default() -> None:
    """Without any configuration the settings are valid, on the loopback interface."""
    settings = load(None, {})
    assert (settings.edge.host, settings.edge.port, settings.edge.path) == ("127.0.0.1", 8080, "/notifications")
    assert (settings.ops.host, settings.ops.port, settings.data) == ("127.0.0.1", 9464, Path("qod-data"))


@pytest.mark.parametrize(
    ("layers_given", "port"),
    [
        ((), 8080),
        (("file",), 1001),
        (("environment",), 1002),
        (("option",), 1003),
        (("file", "environment"), 1002),
        (("file", "environment", "option"), 1003),
        (("file", "option"), 1003),
    ],
)
def test_the_command_line_beats_the_environment_beats_the_file_beats_the_default(
    layers_given: tuple[str, ...], port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value comes from the first place that has it."""
    config = written(tmp_path, "[edge]\nport = 1001\nrate_burst = 7\n") if "file" in layers_given else None
    if "environment" in layers_given:
        monkeypatch.setenv("QOD_RECEIVER_EDGE__PORT", "1002")
    settings = load(config, {"edge.port": 1003} if "option" in layers_given else {})
    assert settings.edge.port == port
    assert settings.edge.rate_burst == (7 if config else 1000), "one value given must not hide its neighbours"


@pytest.mark.parametrize(
    ("text", "setting", "line", "allowed"),
    [
        ("prefix = 'Qod'", "prefix", 1, NAMED),
        ("prefix = ''", "prefix", 1, NAMED),
        ("edge = 3", "edge", 1, None),
        ("[edge]\nport = 70000", "edge.port", 2, PORT),
        ("[edge]\n\n# here\nport = -1", "edge.port", 4, PORT),
        ("[edge]\nport = 'http'", "edge.port", 2, PORT),
        ("edge.port = 1.5", "edge.port", 1, PORT),
        ("edge = { host = 'x', port = 70000 }", "edge.port", 1, PORT),
        ("[edge]\nhost = 'a b'", "edge.host", 2, HOST),
        ("[edge]\nhost = 'http://x'", "edge.host", 2, HOST),
        ("[edge]\npath = 'x'", "edge.path", 2, "a path such as /notifications, without a slash at its end"),
        ("[edge]\npath = '/x/'", "edge.path", 2, "a path such as /notifications, without a slash at its end"),
        ("[edge]\npath = '/x?y'", "edge.path", 2, "a path such as /notifications, without a slash at its end"),
        ("[edge]\nbody_timeout_seconds = nan", "edge.body_timeout_seconds", 2, "a number from 0.1 to 300"),
        ("[edge]\nbody_timeout_seconds = inf", "edge.body_timeout_seconds", 2, "a number from 0.1 to 300"),
        ("[edge]\nbody_timeout_seconds = 0", "edge.body_timeout_seconds", 2, "a number from 0.1 to 300"),
        ("[edge]\nquery_tokens = 'perhaps'", "edge.query_tokens", 2, "true or false"),
        ("[edge]\nin_flight_bytes_max = 2000", "edge.in_flight_bytes_max", 2, None),
        (
            "[edge]\nbody_bytes_max = 1000000\n[kafka]\nbootstrap_servers = 'k:9092'",
            "kafka",
            3,
            "edge.body_bytes_max of at most 524288: brokers refuse longer ones",
        ),
        ("[edge]\nprot = 1", "edge.prot", 2, "no such setting; did you mean port?"),
        ("[egde]\nport = 1", "egde", 1, "no such setting; did you mean edge?"),
        ("\nzzz = 1", "zzz", 2, f"no such setting; there are {SECTIONS}"),
        ("[auth]\nanonymous = 'maybe'", "auth.anonymous", 2, "true or false"),
        ("[auth]\nmint_secret = 'short'", "auth.mint_secret", 2, "text of at least 32 characters"),
        ("[[auth.tokens]]\nsender = 'a'", "auth.tokens[0].sha256", 1, f"required: {HASH}"),
        (f"{TOKEN}[[auth.tokens]]\nsha256 = '{'0' * 64}'", "auth.tokens[1].sender", 4, f"required: {SENDER}"),
        (f"{TOKEN}not_before = 2026-01-01T00:00:00", "auth.tokens[0].not_before", 4, TIME),
        (f"{TOKEN}not_before = 'soon'", "auth.tokens[0].not_before", 4, TIME),
        (f"{TOKEN}{TOKEN}", "auth.tokens", 1, "each token once: two have the same sha256"),
        (f"[[auth.tokens]]\nsender = 'ä'\nsha256 = '{SHA256}'", "auth.tokens[0].sender", 2, SENDER),
        (f"{JWT}jwks_url = 'http://x.example/'", "auth.jwt[0].jwks_url", 4, URL),
        (f"{JWT}jwks_url = 'https://x'\nalgorithms = ['HS256']", "auth.jwt[0].algorithms[0]", 5, ALGORITHMS),
        (
            f"{JWT}jwks_url = 'https://x'\nalgorithms = []",
            "auth.jwt[0].algorithms",
            5,
            f"a list, not empty, each element {ALGORITHMS}",
        ),
        ("[ops]\nhost = '0.0.0.0'", "ops.token_sha256", None, None),
        ("[ops]\nhost = 'qod.example'", "ops.token_sha256", None, None),
        ("[kafka]\nbootstrap_servers = 'a b'", "kafka.bootstrap_servers[0]", 2, "brokers such as 127.0.0.1:9092"),
        ("[kafka]\nsecurity_protocol = 'SASL_SSL'\nsasl_username = 'u'", "kafka.sasl_password", None, FOR_PLAIN),
        ("[kafka]\nsecurity_protocol = 'SASL_SSL'\nsasl_password = 'p'", "kafka.sasl_username", None, FOR_PLAIN),
        (
            "[kafka]\nsecurity_protocol = 'SASL_PLAINTEXT'\nsasl_mechanism = 'SCRAM-SHA-512'\nsasl_username = 'u'",
            "kafka.sasl_password",
            None,
            FOR_SCRAM,
        ),
        (
            f"{KAFKA_OAUTH}oauth_token_url = 'http://x'\noauth_client_id = 'i'",
            "kafka.oauth_client_secret",
            None,
            FOR_OAUTH,
        ),
        (f"{KAFKA_OAUTH}oauth_client_id = 'i'\noauth_client_secret = 's'", "kafka.oauth_token_url", None, FOR_OAUTH),
        (
            f"{KAFKA_OAUTH}oauth_token_url = 'http://x'\noauth_client_secret = 's'",
            "kafka.oauth_client_id",
            None,
            FOR_OAUTH,
        ),
        ("[kafka]\nsasl_password = 'p'", "kafka.sasl_password", 2, None),
        ("[kafka]\nsecurity_protocol = 'SSL'\nsasl_username = 'u'", "kafka.sasl_username", 3, None),
        ("[kafka]\noauth_scope = 'p'", "kafka.oauth_scope", 2, None),
        ("[kafka]\ntls_ca_file = '/'", "kafka.tls_ca_file", 2, FOR_TLS),
        ("[kafka]\nsecurity_protocol = 'SASL'", "kafka.security_protocol", 2, None),
        ("[retention]\nsession_hours = -1", "retention.session_hours", 2, "a number from 0.01 to 87600"),
        ("[router]\nbatch_max = 0", "router.batch_max", 2, "a whole number from 1 to 100000"),
        ("routes = 'x'", "routes", 1, f"a list, each element {ROUTE}"),
        ("[[routes]]\ntopic = 'A'", "routes[0].topic", 2, NAMED),
        ("[[routes]]\ntopic = 'sessions'", "routes[0].topic", 2, None),
        (
            "[[routes]]\ntopic = 'x'\nqos_status = 'GONE'",
            "routes[0].qos_status[0]",
            3,
            f"one of {', '.join(QosStatus)}",
        ),
        ("[[routes]]\ntopic = 'x'\nsender = []", "routes[0].sender", 3, "a list, not empty, each element text"),
        ("[log]\nlevel = 'loud'", "log.level", 2, "one of debug, info, warning, error"),
        ("[log]\nformat = 'xml'", "log.format", 2, "one of auto, json, console"),
        ("[api]\nheaders = 'x-key: 1'", "api.headers", 2, "a table of header names and their values"),
        ("[api.headers]\nX-Key = 'ä'", "api.headers", 1, f"{HEADER_VALUE} x-key, with blanks within"),
        ("[api.headers]\nX-Key = ''", "api.headers", 1, f"{HEADER_VALUE} x-key, with blanks within"),
        ("[api.headers]\nX-Key = 7", "api.headers.X-Key", 2, "text"),
        ("[api.headers]\nX-Key = '1'\nx-key = '2'", "api.headers", 1, "at most 16 headers, each once"),
        ("[api.headers]\n'a b' = '1'", "api.headers", 1, None),
        ("[api.headers]\nAuthorization = '1'", "api.headers", 1, None),
        ("[api.headers]\nContent-Length = '1'", "api.headers", 1, None),
    ],
)
def test_a_wrong_setting_is_named_with_its_line_and_what_is_allowed(
    text: str, setting: str, line: int | None, allowed: str | None, tmp_path: Path
) -> None:
    """Each wrong setting of a file is reported with its dotted path, its line and what is allowed."""
    config = written(tmp_path, text)
    (problem,) = problems(config)
    assert problem.setting == setting
    assert problem.place == (f"{config}, line {line}" if line else "not set")
    assert problem.allowed == allowed or (allowed is None and problem.allowed)


@pytest.mark.parametrize(
    ("variable", "value", "setting", "allowed"),
    [
        ("QOD_RECEIVER_EDGE__PORT", "http", "edge.port", PORT),
        ("qod_receiver_edge__port", "-1", "edge.port", PORT),
        ("QOD_RECEIVER_EDGE__PORT", "", "edge.port", PORT),
        ("QOD_RECEIVER_EDGE", '{"port": "x"}', "edge.port", PORT),
        ("QOD_RECEIVER_EDGE__PROT", "1", "edge.prot", "no such setting; did you mean port?"),
        ("QOD_RECEIVER_PREFXI", "1", "prefxi", "no such setting; did you mean prefix?"),
        ("QOD_RECEIVER_ROUTES", "[", "routes", f"a list, each element {ROUTE}"),
        ("QOD_RECEIVER_AUTH__TOKENS", f'[{{"sender": "a", "sha256": "{CREDENTIAL}"}}]', "auth.tokens[0].sha256", HASH),
        ("QOD_RECEIVER_AUTH__MINT_SECRET", CREDENTIAL, "auth.mint_secret", "text of at least 32 characters"),
    ],
)
def test_a_wrong_variable_is_named(
    variable: str, value: str, setting: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each wrong value of the environment is reported with its variable, spelled as it was set."""
    monkeypatch.setenv(variable, value)
    assert problems(None) == [Problem(setting, f"{variable} in the environment", allowed)]


def test_a_wrong_option_is_named() -> None:
    """A wrong value on the command line is reported with its option."""
    assert problems(None, {"ops.port": -1}) == [Problem("ops.port", "--ops-port on the command line", PORT)]


def test_the_place_is_that_of_the_value_which_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If several places have a setting, the place whose value is used is reported; a section's other values are not."""
    config = written(tmp_path, "[edge]\nport = 1\nhost = 'a b'\n")
    monkeypatch.setenv("QOD_RECEIVER_EDGE", '{"port": -2}')
    assert problems(config) == [
        Problem("edge.host", f"{config}, line 3", HOST),
        Problem("edge.port", "QOD_RECEIVER_EDGE in the environment", PORT),
    ]


def test_all_problems_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first wrong setting does not hide the others, wherever they are."""
    monkeypatch.setenv("QOD_RECEIVER_LOG__LEVEL", "loud")
    monkeypatch.setenv("QOD_RECEIVER_NOPE", "1")
    found = problems(written(tmp_path, "prefix = 1\n[edge]\nport = -1\nnope = 2\n"), {"ops.port": -1})
    names = {problem.setting for problem in found}
    assert names == {"log.level", "nope", "prefix", "edge.port", "edge.nope", "ops.port"}


@pytest.mark.parametrize(
    "text",
    [
        f"[[auth.tokens]]\nsender = 'a'\nsha256 = '{CREDENTIAL}'",
        f"[[auth.tokens]]\nsender = 'a'\ntoken = '{CREDENTIAL}'",
        f"[auth]\nmint_secret = '{CREDENTIAL}'",
        f"[auth]\ntokens = '{CREDENTIAL}'",
        f"[auth]\nmint_secret = {CREDENTIAL}",
        f"[ops]\nhost = '0.0.0.0'\ntoken_sha256 = '{CREDENTIAL}'",
        f"[kafka]\nsasl_password = '{CREDENTIAL}'",
        f"[kafka]\nsecurity_protocol = 'SASL_SSL'\nsasl_password = '{CREDENTIAL}'",
        f"{KAFKA_OAUTH}oauth_client_secret = '{CREDENTIAL}'",
    ],
)
def test_no_value_is_repeated(text: str, tmp_path: Path) -> None:
    """A credential in a wrong place is not in the error that names the place."""
    with pytest.raises(SettingsError) as caught:
        load(written(tmp_path, text), {})
    assert CREDENTIAL not in f"{caught.value} {caught.value!r} {caught.value.problems}"
    assert caught.value.__cause__ is None


ISSUER_A = "[[auth.jwt]]\nissuer = 'https://a.example'\njwks_url = 'https://a.example/keys'\naudience = 'us'\n"
ISSUER_B = ISSUER_A.replace("a.example", "b.example")
OWN_NAMES = "a sender, or a sender_prefix of its own, for each issuer but one"


@pytest.mark.parametrize(
    ("text", "setting", "allowed"),
    [
        ("[edge]\npublic_url = 'https://qod.example.com/hook'", "edge.public_url", "a URL with the path of edge.path"),
        ("[edge]\npublic_url = 'https://qod.example.com'", "edge.public_url", "a URL with the path of edge.path"),
        ("[edge]\npublic_url = 'https://x/notifications/a'", "edge.public_url", "a URL with the path of edge.path"),
        ("[edge]\npath = '/a'\npublic_url = 'https://x/notifications'", "edge.public_url", "of edge.path, /a"),
        ("[edge]\ntrusted_proxies = ['proxy']", "edge.trusted_proxies[0]", "an address or a network"),
        ("[auth]\nheaders = ['a b']", "auth.headers[0]", "the name of a header"),
        (f"{ISSUER_A}{ISSUER_B}", "auth.jwt", OWN_NAMES),
        (f"{ISSUER_A}sender_prefix='a:'\n{ISSUER_B}sender_prefix='a:'\n", "auth.jwt", OWN_NAMES),
        (f"{ISSUER_A}{ISSUER_A}sender_prefix='a:'\n", "auth.jwt", "each issuer once"),
        (f"{ISSUER_A}sender_prefix='a b'\n", "auth.jwt[0].sender_prefix", "up to 64 letters"),
        (ISSUER_A.replace("audience = 'us'\n", ""), "auth.jwt[0].audience_optional", "true where there is no audience"),
    ],
)
def test_what_would_mislead_is_refused(text: str, setting: str, allowed: str, tmp_path: Path) -> None:
    """A URL that leads nowhere, and issuers that could give the same sender, are refused."""
    (problem,) = problems(written(tmp_path, text))
    assert problem.setting == setting
    assert allowed in problem.allowed


@pytest.mark.parametrize(
    "text",
    [
        "[edge]\npublic_url = 'https://qod.example.com/notifications'",
        "[edge]\npublic_url = 'http://127.0.0.1:8080/notifications/'",
        "[edge]\npublic_url = 'https://qod.example.com//notifications/notifications'",
        "[edge]\npath = '/a/b'\npublic_url = 'https://qod.example.com/a/b'",
        "[edge]\ntrusted_proxies = ['10.0.0.0/8', '::1', '192.0.2.7']",
        "[auth]\nheaders = ['X-Notification-Token']",
        ISSUER_A,
        f"{ISSUER_A}{ISSUER_B}sender_prefix='b:'\n",
        f"{ISSUER_A}{ISSUER_B}sender='b'\n",
        f"{ISSUER_A}sender='b'\n{ISSUER_B}sender='b'\n",
        f"{ISSUER_A}audience_optional=true\n",
        ISSUER_A.replace("audience = 'us'\n", "audience_optional = true\n"),
    ],
)
def test_what_leads_here_is_taken(text: str, tmp_path: Path) -> None:
    """The public URL may have any spelling that senders may use; one issuer may have names without a prefix."""
    load(written(tmp_path, text), {})


@pytest.mark.parametrize(
    ("content", "place", "allowed"),
    [
        (b"a = 1\nb = = 2\n", ", line 2", "TOML, which this is not"),
        (b"a = [1,\n", ", at its end", "TOML, which this is not"),
        (b"a = 1\na = 2\n", ", line 2", "TOML, which this is not"),
        (b"a = '\xff'", "", "text in UTF-8"),
    ],
)
def test_a_file_that_is_no_toml_is_named(content: bytes, place: str, allowed: str, tmp_path: Path) -> None:
    """A file that is no TOML is reported with the line at which reading failed."""
    config = tmp_path / "qod.toml"
    config.write_bytes(content)
    assert problems(config) == [Problem("the file", f"{config}{place}", allowed)]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A missing configuration file is an error, not an empty one."""
    (problem,) = problems(tmp_path / "none.toml")
    assert (problem.setting, problem.place) == ("the file", str(tmp_path / "none.toml"))


def test_secrets_are_never_printed(tmp_path: Path) -> None:
    """The minting secret is in no representation of the settings."""
    secret = "x" * 40
    settings = load(written(tmp_path, f"[auth]\nmint_secret = '{secret}'"), {})
    assert settings.auth.mint_secret is not None
    assert settings.auth.mint_secret.get_secret_value() == secret
    assert secret not in f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()}"


NO_FILE = "a file that can be read: No such file or directory"
NO_CERTIFICATES = "a file of certificates (PEM)"
NO_KEY = "a private key (PEM, without a password) that belongs to the certificate"
PAIR = "both kafka.tls_certificate_file and kafka.tls_key_file, or neither"


@pytest.mark.parametrize(
    ("files", "setting", "allowed"),
    [
        ({"ca": "none.pem"}, "kafka.tls_ca_file", NO_FILE),
        ({"ca": "."}, "kafka.tls_ca_file", "a file that can be read: Is a directory"),
        ({"ca": "empty"}, "kafka.tls_ca_file", NO_CERTIFICATES),
        ({"ca": "garbage"}, "kafka.tls_ca_file", NO_CERTIFICATES),
        ({"ca": "client.key"}, "kafka.tls_ca_file", NO_CERTIFICATES),
        ({"certificate": "none.pem", "key": "client.key"}, "kafka.tls_certificate_file", NO_FILE),
        ({"certificate": "client.key", "key": "client.key"}, "kafka.tls_certificate_file", NO_CERTIFICATES),
        ({"certificate": "client.pem"}, "kafka.tls_key_file", PAIR),
        ({"key": "client.key"}, "kafka.tls_key_file", PAIR),
        ({"certificate": "client.pem", "key": "none.key"}, "kafka.tls_key_file", NO_FILE),
        ({"certificate": "client.pem", "key": "broker.key"}, "kafka.tls_key_file", NO_KEY),
        ({"certificate": "client.pem", "key": "client.pem"}, "kafka.tls_key_file", NO_KEY),
        ({"certificate": "client.pem", "key": "garbage"}, "kafka.tls_key_file", NO_KEY),
        ({"certificate": "client.pem", "key": "locked.key"}, "kafka.tls_key_file", NO_KEY),
    ],
)
def test_a_file_that_does_not_do_is_named(
    files: dict[str, str], setting: str, allowed: str, certificates: Path, tmp_path: Path
) -> None:
    """Certificates and keys that are missing, invalid, or don't belong together are reported with their settings."""
    lines = [f"tls_{name}_file = '{certificates / file}'" for name, file in files.items()]
    (problem,) = problems(written(tmp_path, "\n".join(["[kafka]", "security_protocol = 'SSL'", *lines])))
    assert (problem.setting, problem.allowed) == (setting, allowed)


def test_files_that_do(certificates: Path, tmp_path: Path) -> None:
    """A certificate and its key may share a file."""
    both = certificates / "keystore.pem"
    text = f"security_protocol = 'SSL'\ntls_ca_file = '{certificates / 'ca.pem'}'\ntls_certificate_file = '{both}'"
    assert load(written(tmp_path, f"[kafka]\n{text}\ntls_key_file = '{both}'"), {}).kafka.tls_key_file == both


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with certificates, keys, and files that are neither."""
    directory = tmp_path_factory.mktemp("certificates")
    Credentials(directory)
    (directory / "empty").touch()
    (directory / "garbage").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    key = load_pem_private_key((directory / "client.key").read_bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))
    (directory / "locked.key").write_bytes(locked)
    return directory


def test_the_settings_are_frozen() -> None:
    """Nothing can be changed after loading, at any depth."""
    settings = load(None, {})
    with pytest.raises(ValueError, match="frozen"):
        settings.edge.port = 1
    with pytest.raises(ValueError, match="frozen"):
        settings.prefix = "x"


def test_a_route_takes_one_value_or_several(tmp_path: Path) -> None:
    """A condition of a route is a text or a list of texts."""
    text = "[[routes]]\ntopic='a'\nsender='x'\nqos_status=['AVAILABLE','REQUESTED']\nevent_type='org.camaraproject.*'\n"
    (route,) = load(written(tmp_path, text), {}).routes
    assert (route.sender, route.event_type) == (("x",), ("org.camaraproject.*",))
    assert route.qos_status == (QosStatus.AVAILABLE, QosStatus.REQUESTED)
    assert (route.status_info, route.unexpected) == (None, None)


def test_tokens_may_overlap(tmp_path: Path) -> None:
    """Several tokens of one sender may be valid at once, and a hash may be written in capitals."""
    text = f"{TOKEN}not_after = 2026-02-01T00:00:00+01:00\n[[auth.tokens]]\nsender='a'\nsha256='{'A' * 64}'\n"
    first, second = load(written(tmp_path, text), {}).auth.tokens
    assert first.not_after == datetime(2026, 1, 31, 23, tzinfo=UTC)
    assert (second.sender, second.sha256) == ("a", "a" * 64)


def test_a_place_can_be_told_of_every_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value in force has a place: an option, a variable, a line, or the default."""
    config = written(tmp_path, f"prefix = 'x'\n{TOKEN}")
    monkeypatch.setenv("QOD_RECEIVER_LOG__LEVEL", "debug")
    places = layers(config, {"data": tmp_path})
    assert places.settings().data == tmp_path
    assert places.place(("data",)) == "--data on the command line"
    assert places.place(("log", "level")) == "QOD_RECEIVER_LOG__LEVEL in the environment"
    assert places.place(("prefix",)) == f"{config}, line 1"
    assert places.place(("auth", "tokens", 0, "sha256")) == f"{config}, line 4"
    assert places.place(("log", "format")) is None


def test_every_setting_is_described() -> None:
    """Each setting has a description, and each number has both bounds: a missing limit is a future fault."""
    schema = Settings.model_json_schema()
    for name, section in {**schema["$defs"], "Settings": schema}.items():
        for field, told in section.get("properties", {}).items():
            if "$ref" in told:
                continue
            assert told.get("description"), f"describe {name}.{field} in settings.py"
            if told.get("type") in {"integer", "number"}:
                assert {"minimum", "maximum"} <= told.keys(), f"give {name}.{field} its bounds in settings.py"
