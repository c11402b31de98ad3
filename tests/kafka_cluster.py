"""Real Apache Kafka for the tests: brokers as processes on free ports of this machine.

The Maven client fetches the broker's jars once. If `KAFKA_BOOTSTRAP_SERVERS` names a running cluster, that one is used,
and nothing is started or stopped. Each broker ends with the process that started it, however that ends.
"""

import base64
import datetime as dt
import fcntl
import functools
import ipaddress
import json
import os
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from tests.limits import SECONDS_MAX

KAFKA_VERSION = "4.3.1"
LOG4J_VERSION = "2.25.4"  # this Kafka's own version, so that its log can be set to a file
JACKSON_VERSION = "2.21.2"  # likewise
JAVA_VERSION_MIN = 17
HOST = "127.0.0.1"
USER, PASSWORD = "app", "app-secret"
# An orderly stop moves leaders away first, which the last brokers of a quorum can't do: they are killed after this
# time.
STOP_SECONDS_MAX = 15

#: Java options for tests: a fast start and little memory.
_LIGHT = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
#: Java options of Kafka's own start script, for benchmarks: the light options make pauses of 30 ms.
AS_KAFKA_STARTS = (
    "-server",
    "-Xms1g",
    "-Xmx1g",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
)

_POM = f"""\
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>qod-receiver</groupId>
  <artifactId>kafka</artifactId>
  <version>{KAFKA_VERSION}</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId>
      <version>{LOG4J_VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""

_STREAMS_POM = f"""\
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>qod-receiver</groupId>
  <artifactId>kafka-streams</artifactId>
  <version>{KAFKA_VERSION}</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka-streams</artifactId><version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>com.fasterxml.jackson.core</groupId><artifactId>jackson-databind</artifactId>
      <version>{JACKSON_VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""

_LOG4J = """\
<Configuration status="ERROR" shutdownHook="disable">
  <Appenders>
    <File name="file" fileName="${sys:log.file}"><PatternLayout pattern="%d %p %m (%c)%n"/></File>
  </Appenders>
  <Loggers><Root level="INFO"><AppenderRef ref="file"/></Root></Loggers>
</Configuration>
"""

# Separators of fields, headers and records in the Java client's output: control characters that no test sends.
_FIELD, _HEADER, _END, _NULL = "\x1f", "\x1e", "\x1d", "\x1a"


def unavailable_reason() -> str:
    """Why Kafka can't be run on this machine; empty if it can."""
    if os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        return ""
    java = _java()
    if java is None:
        return f"there is no Java {JAVA_VERSION_MIN} or newer and KAFKA_BOOTSTRAP_SERVERS is not set"
    version = _java_version(java)
    if int(version.split(".")[0]) < JAVA_VERSION_MIN:
        return f"Java {JAVA_VERSION_MIN} or newer is needed, and {version} is here"
    if not _jars_directory().exists() and shutil.which("mvn") is None:
        return "there is no Maven client (mvn) to fetch Kafka with"
    return ""


def _java() -> str | None:
    home = os.environ.get("JAVA_HOME")
    return shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")


@functools.cache
def _java_version(java: str) -> str:
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d[^"]*)"', told)
    return version[1] if version else "0"


def _jars_directory() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "qod-receiver" / f"kafka-{KAFKA_VERSION}"


def _archive() -> Path:
    """The archive of a broker's classes, ready for this Java to map: it halves the time of a start."""
    java = _java()
    assert java, unavailable_reason()
    directory = _jars_directory()
    return directory.with_name(f"{directory.name}-java-{_java_version(java)}.jsa")


def _make_archive() -> None:
    """Make the archive, by a run of a broker that records its classes, if this machine has none."""
    archive = _archive()
    with _locked(archive):
        if archive.exists():
            return
        with tempfile.TemporaryDirectory(dir=archive.parent) as directory:
            recorded = Path(directory) / "archive"
            with Cluster(Path(directory) / "kafka", _record=recorded) as cluster:
                cluster.stop()
            if recorded.exists():  # else this Java can't record classes, and starts slowly
                recorded.rename(archive)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes of this machine from making the path meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def jars() -> Path:
    """The directory of Kafka's jars, fetched if necessary. It is whole or absent, also when two processes fetch."""
    return _fetched(_jars_directory(), _POM)


def _fetched(directory: Path, pom: str) -> Path:
    if directory.exists():
        return directory
    with _locked(directory):
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=directory.parent) as unfinished:
                _fetch(Path(unfinished), pom)
                (Path(unfinished) / "jars").rename(directory)
    return directory


def streams_jars() -> Path:
    """The directory of the jars of Kafka Streams, fetched likewise."""
    return _fetched(_jars_directory().with_name(f"kafka-streams-{KAFKA_VERSION}"), _STREAMS_POM)


def java_source(classes: Path, source: Path, *arguments: str) -> list[str]:
    """The command that compiles and runs a Java program of one file, with the options of a server and without a log."""
    java = _java()
    assert java, unavailable_reason()
    return [java, "-server", "-Xmx1g", "-cp", f"{classes}/*", str(source), *arguments]


def _fetch(directory: Path, pom: str) -> None:
    mvn = shutil.which("mvn")
    assert mvn, unavailable_reason()
    (directory / "pom.xml").write_text(pom)
    command = [mvn, "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={directory / 'jars'}"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the Maven client could not fetch Kafka {KAFKA_VERSION}: {done.stdout}{done.stderr}"


def _java_command(*options: str, record: Path | None = None) -> list[str]:
    java = _java()
    assert java, unavailable_reason()
    classes = f"-XX:ArchiveClassesAtExit={record}" if record else f"-XX:SharedArchiveFile={_archive()}"
    # Java ignores an archive that is missing or does not fit; its warning would be part of the output.
    return [java, "-Xlog:disable", classes, *options, "-cp", f"{jars()}/*"]


def _run_java(main: str, *arguments: str, stdin: bytes = b"") -> bytes:
    """Standard output of a Kafka command that ends soon."""
    command = [*_java_command("-Xmx256m", *_LIGHT, "-Dlog4j2.level=OFF"), main, *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=SECONDS_MAX, check=False)
    assert done.returncode == 0, f"{main}: {(done.stdout + done.stderr).decode(errors='replace')}"
    return done.stdout


class Address(NamedTuple):
    """The host and port of a listener."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class JavaRecord(NamedTuple):
    """A record as the Java client reads it."""

    partition: int
    offset: int
    timestamp_millis: int
    headers: tuple[tuple[str, bytes | None], ...]
    key: bytes | None
    value: bytes | None


class Brokers:
    """A running cluster that belongs to others: nothing here starts or stops it."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    def read_with_java(self, topic: str, *, count: int, isolation: str = "read_committed") -> list[JavaRecord]:
        """The records of a topic from its beginning, read by the Java console consumer.

        It waits until there are `count` records, for a limited time.
        """
        wanted = ("timestamp", "partition", "offset", "headers", "key", "value")
        properties = [f"print.{name}=true" for name in wanted]
        properties += [f"key.separator={_FIELD}", f"headers.separator={_HEADER}", f"line.separator={_END}"]
        properties += [f"null.literal={_NULL}"]
        printed = _run_java(
            "org.apache.kafka.tools.consumer.ConsoleConsumer",
            *("--bootstrap-server", self.bootstrap, "--topic", topic, "--from-beginning"),
            *("--isolation-level", isolation, "--timeout-ms", str(round(SECONDS_MAX * 1000))),
            *("--max-messages", str(count)),
            *(word for each in properties for word in ("--formatter-property", each)),
        )
        return [_java_record(line) for line in printed.split(_END.encode())[:-1]]

    def write_with_java(self, topic: str, records: Iterable[tuple[str | None, str | None]]) -> None:
        """Append keys and values, None for null, with the Java console producer, which chooses the partitions."""
        properties = ("parse.key=true", f"key.separator={_FIELD}", f"null.marker={_NULL}")
        lines = [_FIELD.join(_NULL if text is None else text for text in record) for record in records]
        _run_java(
            "org.apache.kafka.tools.ConsoleProducer",
            *("--bootstrap-server", self.bootstrap, "--topic", topic),
            *(word for each in properties for word in ("--reader-property", each)),
            stdin="".join(f"{line}\n" for line in lines).encode(),
        )

    def java_partitions(self, topic: str, keys: Sequence[str]) -> dict[str, int]:
        """The partition that the Java client chooses for each key, found by a topic that is empty before."""
        self.write_with_java(topic, [(key, "") for key in keys])
        read = self.read_with_java(topic, count=len(keys))
        return {record.key.decode(): record.partition for record in read if record.key is not None}


def _java_record(line: bytes) -> JavaRecord:
    timestamp, partition, offset, headers, key, value = line.split(_FIELD.encode(), 5)
    null = _NULL.encode()
    pairs = [] if headers == b"NO_HEADERS" else [pair.split(b":", 1) for pair in headers.split(_HEADER.encode())]
    return JavaRecord(
        partition=int(partition.removeprefix(b"Partition:")),
        offset=int(offset.removeprefix(b"Offset:")),
        timestamp_millis=int(timestamp.removeprefix(b"CreateTime:").removeprefix(b"LogAppendTime:")),
        headers=tuple((name.decode(), None if held == null else held) for name, held in pairs),
        key=None if key == null else key,
        value=None if value == null else value,
    )


class Metadata(NamedTuple):
    """A broker's view of its cluster."""

    brokers: frozenset[int]
    leaders: Mapping[tuple[str, int], int]
    in_sync: Mapping[tuple[str, int], frozenset[int]]
    replicas: Mapping[tuple[str, int], frozenset[int]]


class Way(NamedTuple):
    """A listener behind proxies: the address that clients connect to, and where each broker's proxy leads."""

    bootstrap: str
    proxies: tuple[tuple[Address, Address], ...]


# The listeners of a secure cluster.
_ALLOWED_URLS = "org.apache.kafka.sasl.oauthbearer.allowed.urls"
_PROTOCOLS = {"TLS": "SSL", "MUTUAL": "SSL", "SASL": "SASL_SSL"}


class Credentials:
    """The certificates, keys and passwords of a secure cluster, made for it alone, in a directory."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.user, self.password = USER, PASSWORD
        self.ca = directory / "ca.pem"
        self.certificate, self.key = directory / "client.pem", directory / "client.key"
        self._signing = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        jwk = jwt.algorithms.RSAAlgorithm.to_jwk(self._signing.public_key(), as_dict=True)
        (directory / "jwks.json").write_text(json.dumps({"keys": [{**jwk, "kid": "tests", "alg": "RS256"}]}))
        self.jwks_url = (directory / "jwks.json").as_uri()
        # Each authority has its own name, so that another one's signature is unknown, not forged.
        self._authority, self._authority_key = secrets.token_hex(4), ec.generate_private_key(ec.SECP256R1())
        authority = _certificate(
            self._authority, self._authority_key, self._authority, self._authority_key, authority=True
        )
        self.ca.write_bytes(_pem(authority))
        self.issue("client", USER)
        broker = self.issue("broker", HOST)
        (directory / "keystore.pem").write_bytes(b"".join(each.read_bytes() for each in broker))

    def issue(self, file: str, name: str, *, host: str = HOST, days: int = 1) -> tuple[Path, Path]:
        """A certificate of this authority and its key, in files. With a negative number of days it has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(
            name, key, self._authority, self._authority_key, authority=False, host=host, days=days
        )
        paths = self.directory / f"{file}.pem", self.directory / f"{file}.key"
        paths[0].write_bytes(_pem(certificate))
        paths[1].write_bytes(_key_pem(key))
        return paths

    def token(self, *, subject: str = USER, audience: str = "kafka", lifetime_seconds: int = 3600) -> str:
        """A bearer token that the SASL listener accepts."""
        now = int(time.time())
        claims = {"sub": subject, "iss": "tests", "aud": audience, "iat": now, "exp": now + lifetime_seconds}
        return jwt.encode(claims, self._signing, algorithm="RS256", headers={"kid": "tests"})

    def broker_properties(self) -> dict[str, str]:
        """The settings of a broker with these credentials."""
        security = "org.apache.kafka.common.security"
        user = f'username="broker" password="{secrets.token_hex(8)}" user_{USER}="{PASSWORD}"'
        return {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.directory / "keystore.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.ca),
            "listener.name.mutual.ssl.client.auth": "required",
            "listener.name.sasl.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            "listener.name.sasl.plain.sasl.jaas.config": f"{security}.plain.PlainLoginModule required {user};",
            "listener.name.sasl.scram-sha-256.sasl.jaas.config": f"{security}.scram.ScramLoginModule required;",
            "listener.name.sasl.scram-sha-512.sasl.jaas.config": f"{security}.scram.ScramLoginModule required;",
            "listener.name.sasl.oauthbearer.sasl.jaas.config": (
                f"{security}.oauthbearer.OAuthBearerLoginModule required;"
            ),
            "listener.name.sasl.oauthbearer.sasl.server.callback.handler.class": (
                f"{security}.oauthbearer.OAuthBearerValidatorCallbackHandler"
            ),
            "listener.name.sasl.oauthbearer.sasl.oauthbearer.jwks.endpoint.url": self.jwks_url,
            "listener.name.sasl.oauthbearer.sasl.oauthbearer.expected.audience": "kafka",
            "listener.name.sasl.oauthbearer.sasl.oauthbearer.expected.issuer": "tests",
        }


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    authority: bool,
    host: str = HOST,
    days: int = 1,
) -> x509.Certificate:
    """A certificate for an address, valid for `days` days."""
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(days=1)
    builder = x509.CertificateBuilder(
        subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
        issuer_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]),
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - 9 * day,
        not_valid_after=now + days * day,
    ).add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    if not authority:
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
        builder = builder.add_extension(alternative, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key in the only format that Java reads."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Cluster(Brokers):
    """Brokers of our own, which can be stopped, killed and paused; they are numbered from 0.

    Each broker is a controller too, and their quorum needs more than half of them. Data and logs are in `directory` and
    survive: a cluster made on the same directory with the same number of brokers has them, on other ports. Besides the
    listener of `bootstrap` there is one whose advertised ports are closed until a test puts a proxy there: see `way`.
    Brokers talk to each other on a third listener. With `linked=True` they reach each other's controllers only through
    what a test puts between them: see `links`.
    """

    def __init__(
        self,
        directory: Path,
        brokers: int = 1,
        *,
        ways: int = 1,
        properties: Mapping[str, str] | None = None,
        java_options: Sequence[str] = ("-Xmx512m", *_LIGHT),
        secure: bool = False,
        linked: bool = False,
        _record: Path | None = None,
    ) -> None:
        self.directory = directory
        self.count = brokers
        self._ways = ways
        self._properties = dict(properties or {})
        self._java_options = tuple(java_options)
        self._record = _record
        self.directory.mkdir(parents=True, exist_ok=True)
        self._credentials = Credentials(directory / "credentials") if secure else None
        self._reserved: list[socket.socket] = []
        self._ports = {
            listener: [self._reserve() for _ in range(brokers)]
            for listener in (*self._listeners(), *self._advertised_names())
        }
        self._linked_ports = [self._reserve() for _ in range(brokers)] if linked else []
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._paused: set[int] = set()
        self._guard: subprocess.Popen[bytes] | None = None
        super().__init__(_joined(self.addresses))

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def addresses(self) -> list[Address]:
        """The address of each broker's listener for clients."""
        return [Address(HOST, port) for port in self._ports["CLIENT"]]

    def way(self, number: int = 0) -> Way:
        """A way to the brokers on which each can have a proxy.

        Clients that begin at its `bootstrap` stay on it: the brokers advertise the proxies' addresses there. `proxies`
        has, for each broker, the address where its proxy listens and the address that it connects to.
        """
        advertised = [Address(HOST, port) for port in self._ports[self._advertised_names()[number]]]
        behind = [Address(HOST, port) for port in self._ports[self._way_names()[number]]]
        return Way(_joined(advertised), tuple(zip(advertised, behind, strict=True)))

    @property
    def links(self) -> tuple[tuple[Address, Address], ...]:
        """For each controller of a cluster with `linked=True`, the address that others connect to and the one where it
        listens.
        """
        looked_for = [Address(HOST, port) for port in self._linked_ports]
        return tuple(zip(looked_for, (Address(HOST, port) for port in self._ports["CONTROLLER"]), strict=True))

    @property
    def credentials(self) -> "Credentials":
        """The credentials of clients of a cluster with `secure=True`."""
        assert self._credentials, "not a secure cluster"
        return self._credentials

    def secured(self, listener: str) -> str:
        """The address of a secure listener: `TLS`, `MUTUAL` (TLS with a client's certificate) or `SASL` (over TLS).

        SASL takes PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 and OAUTHBEARER.
        """
        assert listener in _PROTOCOLS
        return _joined(Address(HOST, port) for port in self._ports[listener])

    def start(self) -> None:
        """Start all brokers that don't run, and wait until they are ready."""
        if self._record is None:
            _make_archive()
        self._format()
        for broker in range(self.count):
            if broker not in self._processes:
                self._start(broker)
        self.wait_until_ready(SECONDS_MAX)

    def stop(self) -> None:
        """Stop all brokers in order, and kill those that take too long. Data and ports stay."""
        for broker in list(self._processes):
            self.resume(broker)
            self._processes[broker].terminate()
        deadline = time.monotonic() + STOP_SECONDS_MAX
        for broker, process in list(self._processes.items()):
            try:
                process.wait(max(0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
            self._reap(broker)

    def kill(self, broker: int = 0) -> None:
        """End a broker with SIGKILL."""
        self._processes[broker].kill()
        self._reap(broker)

    def pause(self, broker: int = 0) -> None:
        """Pause a broker with SIGSTOP: its connections stay open, and no request is answered."""
        process = self._processes[broker]
        process.send_signal(signal.SIGSTOP)
        self._paused.add(broker)
        # Its threads stop one after the other, and the last one may still answer for a moment.
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self, broker: int = 0) -> None:
        """Let a paused broker go on."""
        self._processes[broker].send_signal(signal.SIGCONT)
        self._paused.discard(broker)

    def restart(self, broker: int = 0) -> None:
        """Stop a broker in order if it runs, start it again, and wait until the cluster is ready."""
        if broker in self._processes:
            self.resume(broker)
            process = self._processes[broker]
            process.terminate()
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
            self._reap(broker)
        self._start(broker)
        self.wait_until_ready(SECONDS_MAX)

    def running(self) -> list[int]:
        """The brokers that run and are not paused."""
        return [broker for broker in self._processes if broker not in self._paused]

    def wait_until_ready(self, seconds: float) -> None:
        """Wait until every running broker sees all running ones, and all replicas on them are in sync.

        A partition whose replicas are all down is not waited for.
        """
        deadline = time.monotonic() + seconds
        missing = ""
        while time.monotonic() < deadline:
            running = self.running()
            for broker in running:
                status = self._processes[broker].poll()
                assert status is None, f"broker {broker} ended with {status}: {self._log_end(broker)}"
            missing = next(filter(None, (self._missing(broker, frozenset(running)) for broker in running)), "")
            if running and not missing:
                return
            time.sleep(0.05)
        raise AssertionError(f"the cluster was not ready in {seconds} s: {missing or 'no broker runs'}")

    def metadata(self, broker: int | None = None) -> Metadata:
        """A broker's view of the cluster: all topics, and the brokers that are not fenced."""
        asked = self.running()[0] if broker is None else broker
        return _metadata(self.addresses[asked])

    def leader(self, topic: str, partition: int = 0) -> int:
        """The broker that leads a partition; -1 if there is none."""
        return self.metadata().leaders[topic, partition]

    def close(self) -> None:
        """Kill all brokers and give the ports back. The data stays."""
        for broker in list(self._processes):
            self.kill(broker)
        if self._guard is not None:
            self._guard.communicate()  # closes the guard's pipe: it kills all brokers that are left, and itself
            self._guard = None
        for reserved in self._reserved:
            reserved.close()
        self._reserved.clear()

    def _listeners(self) -> list[str]:
        return ["CONTROLLER", "INTERNAL", "CLIENT", *(_PROTOCOLS if self._credentials else ()), *self._way_names()]

    def _way_names(self) -> list[str]:
        return [f"WAY{number}" for number in range(self._ways)]

    def _advertised_names(self) -> list[str]:
        return [f"ADVERTISED{number}" for number in range(self._ways)]

    def _reserve(self) -> int:
        """A port that no other program gets while this process lives, whether our broker listens on it or not.

        On a port that is simply free, a client that retries may get the same port for its own end, and be connected to
        itself.
        """
        reserved = socket.socket()
        reserved.bind((HOST, 0))
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # lets the broker bind it, which sets it too
        self._reserved.append(reserved)
        port: int = reserved.getsockname()[1]
        return port

    def _broker_directory(self, broker: int) -> Path:
        return self.directory / f"broker-{broker}"

    def _format(self) -> None:
        """Write each broker's properties, and format the directories that have no data."""
        (self.directory / "log4j2.xml").write_text(_LOG4J)
        identity = self.directory / "cluster-id"
        if not identity.exists():
            # Kafka's tool would take an id that begins with a dash for an option.
            identity.write_text(base64.urlsafe_b64encode(b"\1" + secrets.token_bytes(15)).decode().rstrip("="))
        formatting = []
        for broker in range(self.count):
            directory = self._broker_directory(broker)
            directory.mkdir(exist_ok=True)
            properties = self._broker_properties(broker)
            lines = [f"{name}={value}\n" for name, value in properties.items()]
            (directory / "server.properties").write_text("".join(lines))
            if not (directory / "data" / "meta.properties").exists():
                command = [
                    *_java_command("-Xmx256m", *_LIGHT, "-Dlog4j2.level=OFF"),
                    *("kafka.tools.StorageTool", "format", "--cluster-id", identity.read_text()),
                    *("--config", str(directory / "server.properties")),
                    *(("--add-scram", f"SCRAM-SHA-256=[name={USER},password={PASSWORD}]") if self._credentials else ()),
                    *(("--add-scram", f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]") if self._credentials else ()),
                ]
                formatting.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        for process in formatting:
            said, _ = process.communicate()
            assert process.returncode == 0, said.decode()

    def _broker_properties(self, broker: int) -> dict[str, str]:
        ports = {listener: ports[broker] for listener, ports in self._ports.items()}
        listening = self._listeners()
        advertised = {name: ports[name] for name in listening if name != "CONTROLLER"}
        advertised |= {way: ports[name] for way, name in zip(self._way_names(), self._advertised_names(), strict=True)}
        protocols = ((listener, _PROTOCOLS.get(listener, "PLAINTEXT")) for listener in listening)
        replication, in_sync = min(3, self.count), min(2, self.count)
        controllers = self._linked_ports or self._ports["CONTROLLER"]
        if self._linked_ports:
            advertised["CONTROLLER"] = controllers[broker]
        voters = (f"{number}@{HOST}:{port}" for number, port in enumerate(controllers))
        return {
            "process.roles": "broker,controller",
            "node.id": str(broker),
            "controller.quorum.voters": ",".join(voters),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "INTERNAL",
            "listeners": ",".join(f"{listener}://{HOST}:{ports[listener]}" for listener in listening),
            "advertised.listeners": ",".join(f"{name}://{HOST}:{port}" for name, port in advertised.items()),
            "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols),
            "log.dirs": str(self._broker_directory(broker) / "data"),
            "auto.create.topics.enable": "false",
            "default.replication.factor": str(replication),
            "min.insync.replicas": str(in_sync),
            "offsets.topic.replication.factor": str(replication),
            "offsets.topic.num.partitions": "5",
            "transaction.state.log.replication.factor": str(replication),
            "transaction.state.log.min.isr": str(in_sync),
            "transaction.state.log.num.partitions": "5",
            "group.initial.rebalance.delay.ms": "0",
            "controlled.shutdown.enable": "true",
            # How long a dead broker keeps its partitions: 9 s by default, for which the tests would wait. A restarted
            # broker must wait until its old session is over, even after an orderly stop.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "num.network.threads": "2",
            "log.cleaner.dedupe.buffer.size": str(16 << 20),
            **(self._credentials.broker_properties() if self._credentials else {}),
            **self._properties,
        }

    def _start(self, broker: int) -> None:
        if self._guard is None:
            # It leads a process group which the brokers join, away from the terminal's Ctrl-C. It reads a pipe that is
            # closed when this process ends in any way; then it kills the group.
            shell = shutil.which("sh")
            assert shell
            command = [shell, "-c", "read -r _; kill -KILL 0"]
            self._guard = subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0)
        directory = self._broker_directory(broker)
        command = [
            *_java_command(*self._java_options, record=self._record),
            *((f"-D{_ALLOWED_URLS}={self._credentials.jwks_url}",) if self._credentials else ()),
            *(f"-Dlog.file={directory / 'log'}", f"-Dlog4j2.configurationFile={self.directory / 'log4j2.xml'}"),
            *("kafka.Kafka", str(directory / "server.properties")),
        ]
        with (directory / "out").open("ab") as out:
            self._processes[broker] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                process_group=self._guard.pid,
            )

    def _reap(self, broker: int) -> None:
        self._processes.pop(broker).wait()
        self._paused.discard(broker)

    def _missing(self, broker: int, running: frozenset[int]) -> str:
        """What a broker still lacks to be ready; empty if it is."""
        try:
            told = self.metadata(broker)
        except OSError as error:
            return f"broker {broker} does not answer ({error}): {self._log_end(broker)}"
        if not running <= told.brokers:
            return f"broker {broker} sees only {sorted(told.brokers)}"
        for at, replicas in told.replicas.items():
            wanted = replicas & running
            if wanted and not (wanted <= told.in_sync[at] and told.leaders[at] in running):
                return f"of {at} broker {broker} sees only {sorted(told.in_sync[at])} in sync"
        return ""

    def _log_end(self, broker: int) -> str:
        directory = self._broker_directory(broker)
        text = "".join(path.read_text() for name in ("out", "log") if (path := directory / name).exists())
        return "\n".join(text.splitlines()[-20:])


def _joined(addresses: Iterable[Address]) -> str:
    return ",".join(map(str, addresses))


def _metadata(address: Address) -> Metadata:
    """Ask one broker for metadata (Metadata, version 1) without a client of ours, which would ask any broker."""
    client_id = b"tests"
    body = struct.pack(f">hhih{len(client_id)}si", 3, 1, 0, len(client_id), client_id, -1)
    with socket.create_connection(address, timeout=SECONDS_MAX) as connection, connection.makefile("rb") as answer:
        connection.sendall(struct.pack(">i", len(body)) + body)

        def number(kind: str) -> int:
            size = struct.calcsize(kind)
            held = answer.read(size)
            if len(held) < size:
                raise ConnectionError("the answer breaks off")
            value: int = struct.unpack(f">{kind}", held)[0]
            return value

        def text() -> str:
            return answer.read(max(0, number("h"))).decode()

        def numbers() -> frozenset[int]:
            return frozenset(number("i") for _ in range(number("i")))

        number("i"), number("i")  # size and correlation
        brokers = set()
        for _ in range(number("i")):
            brokers.add(number("i"))
            text(), number("i"), text()  # host, port and rack
        number("i")  # controller
        leaders, replicas, in_sync = {}, {}, {}
        for _ in range(number("i")):
            number("h")
            topic = text()
            number("b")
            for _ in range(number("i")):
                number("h")
                at = topic, number("i")
                leaders[at] = number("i")
                replicas[at] = numbers()
                in_sync[at] = numbers()
    return Metadata(frozenset(brokers), leaders, in_sync, replicas)
