"""The files of deploy/ agree with each other, the settings and the commands; its scripts run. No Docker."""

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import pytest
import typer.main
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel

from receiver.cli import app
from receiver.settings import Settings, load
from receiver.telemetry import Telemetry
from tests.limits import SECONDS_MAX
from tests.receiver_process import ReceiverProcess
from tests.simulated import serving as simulator

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
README = (DEPLOY / "README.md").read_text()
COMPOSE: Mapping[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: Mapping[str, Any] = COMPOSE["services"]
#: Example values for `.env`.
GIVEN = {
    "QOD_RECEIVER_AUTH__MINT_SECRET": "m" * 64,
    "QOD_RECEIVER_OPS__TOKEN_SHA256": "0" * 64,
    "QOD_SENDER_TOKEN": "t",
}
#: The time that the supervisor of workers has beyond the time for requests.
END_SECONDS = 20
#: Names of packages that must not be in the final image.
TOOLS = re.compile(r"\b(pip|venv|gcc|g\+\+|make|build-essential|curl|wget|git)\b")

_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


class Stage(NamedTuple):
    """A stage of the Dockerfile: its name, its base, and its instructions."""

    name: str
    base: str
    instructions: Sequence[tuple[str, str]]

    def all(self, keyword: str) -> list[str]:
        """The arguments of every instruction of a kind."""
        return [rest for instruction, rest in self.instructions if instruction == keyword]


def _stages() -> Iterator[Stage]:
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    for part in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]:
        head, *rest = filter(None, part.splitlines())
        base, _, name = head.partition(" AS ")
        yield Stage(name, base, [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in rest])


STAGES = list(_stages())
FINAL = STAGES[-1]


def _image_environment() -> dict[str, str]:
    pairs = (pair.split("=", 1) for rest in FINAL.all("ENV") for pair in shlex.split(rest))
    return {name: value for name, value in pairs if name.startswith("QOD_")}


def _environment(service: str) -> dict[str, str]:
    """The environment of a service's container."""

    def value(found: re.Match[str]) -> str:
        name, how, otherwise = found.groups()
        return GIVEN.get(name, otherwise if how == "-" else "")

    told: Mapping[str, str] = SERVICES[service].get("environment", {})
    return _image_environment() | {name: _VARIABLE.sub(value, text) for name, text in told.items()}


def _settings(service: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The program's settings in a service's container."""
    for name in list(os.environ):
        if name.upper().startswith("QOD_"):
            monkeypatch.delenv(name)
    for name, value in _environment(service).items():
        monkeypatch.setenv(name, value)
    return load(None, {})


def _parsed(arguments: Sequence[str]) -> Mapping[str, Any]:
    """The command line's reading of arguments. Raises its own error if they are wrong."""
    command: Any = typer.main.get_command(app)
    rest = list(arguments)
    while members := getattr(command, "commands", None):
        command = members[rest.pop(0)]
    parameters: Mapping[str, Any] = command.make_context("qod-receiver", rest).params
    return parameters


RECEIVERS = [name for name, each in SERVICES.items() if each.get("command", [""])[0] == "serve"]
EDGES = [name for name in RECEIVERS if _parsed(SERVICES[name]["command"])["role"] != "router"]


def _published(service: str) -> set[int]:
    """The ports of a container that are published on the loopback interface."""
    found: set[int] = set()
    for each in SERVICES[service].get("ports", ()):
        address, outside, inside = each.split(":")
        assert address == "127.0.0.1", f"{service} publishes {each} to everybody"
        first, _, last = inside.partition("-")
        assert len(outside.split("-")) == len(inside.split("-"))
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _seconds(text: str) -> int:
    assert text.endswith("s")
    return int(text[:-1])


# The image


def test_the_image_that_runs_has_no_tools_to_build_with() -> None:
    """The final stage and its bases install no build tools; it copies from another stage what that one built."""
    by_name = {stage.name: stage for stage in STAGES}
    chain = [FINAL]
    while (base := chain[-1].base) in by_name:
        chain.append(by_name[base])
    for stage in chain:
        for command in stage.all("RUN"):
            assert not TOOLS.search(command), f"{command!r} belongs into another stage"
    builders = {name for name in by_name if any(f"--from={name} " in rest for rest in FINAL.all("COPY"))}
    assert builders
    assert not builders & {stage.name for stage in chain}


def test_the_base_of_the_image_has_a_tag() -> None:
    """Each image from outside has a tag other than `latest`."""
    outside = {stage.base for stage in STAGES} - {stage.name for stage in STAGES}
    for base in outside | {each["image"] for each in SERVICES.values()}:
        assert re.fullmatch(r"[a-z/-]+:(?!latest)[\w.-]+(@sha256:[0-9a-f]{64})?", base)


def test_the_image_is_not_roots() -> None:
    """The image runs as a user with a number other than 0, who owns the data directory."""
    *_, user = FINAL.all("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    (made,) = FINAL.all("RUN")
    number, group = user.split(":")
    assert f"--uid {number}" in made
    assert f"--gid {group}" in made
    assert made.endswith(_image_environment()["QOD_RECEIVER_DATA"])


def test_signals_reach_the_program() -> None:
    """The image starts the program without a shell, under a process 1 that passes signals on."""
    entrypoint, command = json.loads(FINAL.all("ENTRYPOINT")[0]), json.loads(FINAL.all("CMD")[0])
    assert entrypoint == ["tini", "--", "qod-receiver"]
    assert any(" tini" in each for stage in STAGES for each in stage.all("RUN"))
    assert FINAL.all("STOPSIGNAL") == ["SIGTERM"]
    _parsed(command)


def test_every_package_in_the_image_is_locked() -> None:
    """The program's requirements, and theirs, are in requirements.lock, from which the image installs."""
    (install,) = [each for stage in STAGES for each in stage.all("RUN") if "pip --python" in each]
    assert "--require-hashes -r requirements.lock" in install
    assert "--require-hashes -r requirements-build.lock" in install
    assert "--only-binary :all:" in install, "what has to be compiled wants a compiler"
    locked = _locked("requirements.lock").keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(text) for text in project["dependencies"]]
    wanted = {requirement.name for requirement in waiting}
    for requirement in waiting:
        for text in importlib.metadata.requires(requirement.name) or ():
            below = Requirement(text)
            extras = requirement.extras or {""}
            applies = below.marker is None or any(below.marker.evaluate({"extra": extra}) for extra in extras)
            if applies and below.name not in wanted:
                wanted.add(below.name)
                waiting.append(below)
    missing = {canonicalize_name(name) for name in wanted} - locked
    assert not missing, f"requirements.lock lacks {sorted(missing)}"


def _locked(name: str) -> dict[str, str]:
    """The version of each package in a lock."""
    lines = (ROOT / name).read_text().splitlines()
    pins = [line.removesuffix(" \\").split("==") for line in lines if "==" in line]
    return {canonicalize_name(package): version for package, version in pins}


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-build.lock", "requirements-dev.lock"])
def test_locks_have_hashes(name: str) -> None:
    """Each package in a lock has one exact version and a hash, and the tests' lock has all of the other's."""
    content = re.sub(r" \\\n\s+", " ", (ROOT / name).read_text())
    pins = [line for line in content.splitlines() if not line.startswith("#")]
    assert pins
    for pin in pins:
        assert re.fullmatch(r"[\w.-]+==[\w.]+( ; [^-]+)?( --hash=sha256:[0-9a-f]{64})+", pin), pin
    assert _locked(name).items() <= _locked("requirements-dev.lock").items()


def test_what_builds_is_pinned() -> None:
    """The build's tools have the versions of the lock, and images and actions exact ones."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert build == [f"hatchling=={_locked('requirements-build.lock')['hatchling']}"]
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    compose = (ROOT / "deploy" / "compose.yaml").read_text()
    images = re.findall(r"^FROM (\S+:\S+)", dockerfile, re.MULTILINE) + re.findall(r"image: (\S+)", compose)
    actions = re.findall(r"uses: (\S+)", (ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert images
    assert actions
    for each in images + actions:
        assert re.search(r"[:@]v?\d+\.\d+", each), f"{each} is not exact"


def test_the_image_gets_what_it_copies_and_no_secret() -> None:
    """Each file that the Dockerfile copies exists, and .dockerignore lets nothing else in."""
    first, *rest = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert first == "*"
    allowed = {line[1:] for line in rest if line.startswith("!")}
    copied = {
        source
        for stage in STAGES
        for copy in stage.all("COPY")
        if "--from=" not in copy
        for source in [word for word in copy.split() if not word.startswith("--")][:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_the_image_has_the_projects_version() -> None:
    """Compose and the README name the release that is here."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {each["image"] for each in SERVICES.values() if each["image"].startswith("qod-")}
    images |= set(re.findall(r"qod-receiver:[\w.]+", README + (DEPLOY / "Dockerfile").read_text()))
    assert images == {f"qod-receiver:{version}"}


# Compose


@pytest.mark.parametrize("service", RECEIVERS)
def test_a_service_has_settings_that_the_program_takes(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each service's environment is valid, points to the Kafka beside it, and protects the operations port."""
    settings = _settings(service, monkeypatch)
    kafka = SERVICES["kafka"]["environment"]
    assert f"PLAINTEXT://{settings.kafka.bootstrap_servers[0]}" == kafka["KAFKA_ADVERTISED_LISTENERS"]
    assert settings.ops.token_sha256
    assert (settings.auth.mint_secret is not None) == (service in EDGES), "a router signs and checks no token"
    assert set(SERVICES[service]["networks"]) & set(SERVICES["kafka"]["networks"])


@pytest.mark.parametrize("service", RECEIVERS)
def test_a_service_has_a_command_that_the_program_takes(service: str) -> None:
    """Each service's command is valid for the command line."""
    assert SERVICES[service]["command"][0] == "serve"
    assert _parsed(SERVICES[service]["command"])["role"] in {"edge", "router"}


@pytest.mark.parametrize("service", RECEIVERS)
def test_a_service_publishes_the_ports_that_it_has(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published ports are the processes' operations ports and an edge's own; the health check asks each process."""
    settings = _settings(service, monkeypatch)
    workers = _parsed(SERVICES[service]["command"])["worker_count"]
    ops = set(range(settings.ops.port, settings.ops.port + workers))
    assert _published(service) == ops | ({settings.edge.port} if service in EDGES else set())
    check = SERVICES[service]["healthcheck"]["test"]
    script = json.loads(FINAL.all("HEALTHCHECK")[0].partition(" CMD ")[2])
    assert check[: len(script)] == ["CMD", *script[:-1]]
    assert check[len(script) :] == ["/readyz", *([str(workers)] if workers > 1 else [])]
    assert any(copy.endswith(f"deploy/healthcheck.py {script[1]}") for copy in FINAL.all("COPY"))
    exposed = {int(port) for port in FINAL.all("EXPOSE")[0].split()}
    assert exposed == {settings.edge.port, settings.ops.port}


@pytest.mark.parametrize("service", RECEIVERS)
def test_an_edge_keeps_its_data_and_a_router_has_none(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edge's data directory is a volume of its own."""
    mounts = [each.split(":")[1] for each in SERVICES[service].get("volumes", ())]
    assert mounts == ([str(_settings(service, monkeypatch).data)] if service in EDGES else [])


def test_no_two_services_share_a_volume() -> None:
    """Each declared volume belongs to one service, and each used volume is declared."""
    used = [each.split(":")[0] for service in SERVICES.values() for each in service.get("volumes", ())]
    assert sorted(each for each in used if not each.startswith("./")) == sorted(COMPOSE["volumes"])
    assert all((DEPLOY / each).is_file() for each in used if each.startswith("./"))


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_can_do_no_more_than_it_must(service: str) -> None:
    """Each container has no capabilities, can't get any, and has limits; our own have a read-only root."""
    told = SERVICES[service]
    assert told["cap_drop"] == ["ALL"]
    assert told["security_opt"] == ["no-new-privileges:true"]
    assert told["mem_limit"]
    assert told["logging"] == {"driver": "local"}
    assert told.get("read_only", False) == (service != "kafka")


@pytest.mark.parametrize("service", RECEIVERS)
def test_a_service_has_the_time_to_end_in_order(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container is killed only after the longest time of an orderly end."""
    needed = _settings(service, monkeypatch).edge.shutdown_timeout_seconds + END_SECONDS
    assert _seconds(SERVICES[service]["stop_grace_period"]) > needed


def test_the_simulator_posts_to_the_edge_and_reaches_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The application asks the simulator to post to the edge's URL; simulator and edge share a network that only edges
    have.
    """
    api_url, notification_url = map(urlsplit, SERVICES["application"]["command"][-2:])
    assert notification_url.hostname in EDGES
    settings = _settings(notification_url.hostname, monkeypatch)
    assert (notification_url.port, notification_url.path) == (settings.edge.port, settings.edge.path)
    assert (api_url.hostname, api_url.path) == ("simulator", "")
    networks = {*SERVICES["application"]["networks"], *SERVICES["simulator"]["networks"]}
    near = {name for name, each in SERVICES.items() if networks & set(each["networks"])}
    assert near == {"application", "simulator", notification_url.hostname}


def test_the_simulator_has_one_port_for_all_that_ask_it() -> None:
    """The simulator's published port is the one that it listens on, and that health check and application use."""
    simulator = SERVICES["simulator"]
    assert simulator["command"][0] == "simulate"
    port = _parsed(simulator["command"])["port"]
    assert _published("simulator") == {port}
    assert _environment("simulator")["QOD_RECEIVER_OPS__PORT"] == str(port)
    assert urlsplit(SERVICES["application"]["command"][-2]).port == port
    assert set(SERVICES["application"]["depends_on"]) == {"simulator", *EDGES}


def test_kafka_needs_no_other_broker() -> None:
    """Each of Kafka's internal topics has as many replicas as there are brokers: one."""
    told = SERVICES["kafka"]["environment"]
    assert {value for name, value in told.items() if name.endswith(("REPLICATION_FACTOR", "MIN_ISR"))} == {"1"}
    assert told["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false", "a topic that nobody planned has the wrong partitions"
    assert f"{told['KAFKA_LOG_DIRS']}" in SERVICES["kafka"]["volumes"][0]


def test_the_sample_names_what_compose_wants_and_has_no_secret() -> None:
    """Each variable of compose.yaml is in sample.env, without a value, and the file with values is not committed."""
    wanted = {name for name, _, _ in _VARIABLE.findall((DEPLOY / "compose.yaml").read_text())}
    lines = [line for line in (DEPLOY / "sample.env").read_text().splitlines() if line and not line.startswith("#")]
    assert {line.removesuffix("=") for line in lines} == wanted == set(GIVEN)
    assert all(name in README for name in wanted)
    assert {"/.env", "/ops-token"} <= set((DEPLOY / ".gitignore").read_text().split())


# The README


def _variables(section: type[BaseModel], prefix: str) -> Iterator[str]:
    """The names of settings in the environment."""
    for name, field in section.model_fields.items():
        path = f"{prefix}{name.upper()}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _variables(field.annotation, f"{path}__")
        else:
            yield path


VARIABLES = {*_variables(Settings, "QOD_RECEIVER_"), "QOD_RECEIVER_CONFIG"}


def test_the_readme_names_settings_that_exist() -> None:
    """Each variable and each dotted name of a setting in the README exists."""
    assert set(re.findall(r"QOD_RECEIVER_\w+", README)) <= VARIABLES
    dotted = re.findall(rf"`((?:{'|'.join(Settings.model_fields)})\.\w+)`", README)
    assert dotted
    assert {f"QOD_RECEIVER_{name.replace('.', '__').upper()}" for name in dotted} <= VARIABLES


@pytest.mark.parametrize(
    ("told", "variable", "value"),
    [
        ("(`edge.shutdown_timeout_seconds`, 30)", "edge.shutdown_timeout_seconds", 30),
        ("until 96 h (`retention.session_hours`)", "retention.session_hours", 96),
        ("1 GiB (`QOD_RECEIVER_KAFKA__SPOOL_BYTES_MAX`)", "kafka.spool_bytes_max", 2**30),
        ("`QOD_RECEIVER_KAFKA__PARTITIONS`, 12 unless", "kafka.partitions", 12),
        ("64 MiB for bodies in flight", "edge.in_flight_bytes_max", 64 * 2**20),
        ("nears 2 s, where the disk", "kafka.append_timeout_seconds", 2),
        ("retention says (7 days)", "retention.topics_hours", 7 * 24),
    ],
)
def test_the_readme_tells_the_defaults_as_they_are(told: str, variable: str, value: float) -> None:
    """A default in the README is the setting's default."""
    assert told in README
    section, name = variable.split(".")
    assert getattr(getattr(Settings.model_construct(), section), name) == value


def test_the_readme_names_metrics_that_exist() -> None:
    """Each metric in the README exists."""
    families = {family.name: family.type for family in Telemetry().registry.collect()}
    names = {f"{name}_total" if kind == "counter" else name for name, kind in families.items()}
    told = set(re.findall(r"qod_receiver_\w+", README))
    assert told
    assert told <= names


def test_the_readmes_commands_are_commands() -> None:
    """Each call of the program in the README, in a container or not, is accepted by the command line."""
    commands = "|".join(typer.main.get_command(app).commands)  # type: ignore[attr-defined]  # it is a group
    calls = re.findall(rf"(?:qod-receiver(?::[\w.]+)?|edge) ((?:{commands})\b[^`\n)]*)", README)
    assert len(calls) > 7
    for call in calls:
        _parsed(shlex.split(call))


def test_the_readme_names_files_and_services_that_exist() -> None:
    """Links in the README lead to files, and `docker compose` commands name existing services."""
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (DEPLOY / link).exists(), link
    for file in re.findall(r"(?:deploy|tests)/[\w./-]*\w", README):
        assert (ROOT / file).exists(), file
    for service in re.findall(r"docker compose (?:exec|stop|start|logs) (\w+)", README):
        assert service in SERVICES


# The scripts, as processes


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[ReceiverProcess]:
    """A receiver that serves."""
    serving = ReceiverProcess(tmp_path / "data")
    yield serving
    serving.kill()


def _run(*command: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def _checked(receiver: ReceiverProcess, *arguments: str) -> tuple[int, str]:
    port = str(urlsplit(receiver.ops_url).port)
    with _run(str(DEPLOY / "healthcheck.py"), *arguments, QOD_RECEIVER_OPS__PORT=port) as process:
        out, _ = process.communicate(timeout=SECONDS_MAX)
    return process.returncode, out


def test_the_health_check_tells_whether_the_receiver_serves(receiver: ReceiverProcess) -> None:
    """The health check's exit status is 0 while every given process answers 200, else 1."""
    status, out = _checked(receiver, "/readyz")
    assert (status, '"ready":true' in out) == (0, True)
    assert _checked(receiver, "/livez")[0] == 0
    assert _checked(receiver, "/no-such-path")[0] == 1
    assert _checked(receiver, "/livez", "2")[0] == 1, "there is but one process"
    receiver.kill()
    assert _checked(receiver, "/livez")[0] == 1


def _asked(tmp_path: Path, notification_url: str, token: str) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Run the application until twenty posts were answered or refused; returns its status, its counts, and the
    ledger's.
    """
    deadline = time.monotonic() + SECONDS_MAX
    script = str(DEPLOY / "application.py")
    with (
        simulator(tmp_path, "--speed", "600", "--dialect", "all", "--log-level", "warning") as simulated,
        _run(script, "--rate", "20", simulated.url, notification_url, QOD_SENDER_TOKEN=token) as process,
    ):
        read: dict[str, Any] = {"sessions": 0, "answers": {}}
        while sum(read["answers"].values()) < 20 or read["sessions"] < 25:
            assert time.monotonic() < deadline, read
            time.sleep(0.05)
            read = httpx2.get(f"{simulated.url}/ledger/summary", timeout=SECONDS_MAX).json()
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=SECONDS_MAX)
        read = httpx2.get(f"{simulated.url}/ledger/summary", timeout=SECONDS_MAX).json()
    counted: dict[str, Any] = json.loads(out.splitlines()[-1])
    return process.returncode, counted, read


def test_the_application_has_sessions_told_to_the_receiver(receiver: ReceiverProcess, tmp_path: Path) -> None:
    """The application creates sessions until it is told to end, ends with 0, and all posts are answered 204."""
    status, counted, ledger = _asked(tmp_path, receiver.edge_url, receiver.token)
    assert (status, counted["refused"]) == (0, {})
    assert counted["created"] == ledger["sessions"]
    assert counted["deleted"]
    assert ledger["answers"].keys() == {"204"}


@pytest.mark.long
def test_the_application_tells_what_it_was_refused(tmp_path: Path) -> None:
    """With a URL that takes no posts the application ends with 1, and shows the answer."""
    script = str(DEPLOY / "application.py")
    with (
        simulator(tmp_path, "--log-level", "warning") as simulated,
        _run(script, "--rate", "200", simulated.url, "nowhere", QOD_SENDER_TOKEN="t") as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline()  # its first report
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=SECONDS_MAX)
    counted = json.loads(out.splitlines()[-1])
    assert (process.returncode, counted["created"]) == (1, 0)
    assert counted["refused"].keys() == {"400"}


# The linters of these files


@pytest.mark.parametrize(
    "command",
    [
        ("hadolint", "deploy/Dockerfile"),
        ("yamllint", "--strict", "--config-file", "deploy/yamllint.yaml", "deploy"),
    ],
)
def test_the_linters_have_nothing_to_say(command: Sequence[str]) -> None:
    """The linters of these files pass if they are installed; the README names the same commands."""
    assert " ".join(command) in README
    here = Path(sys.executable).parent
    linter = shutil.which(command[0], path=f"{here}{os.pathsep}{os.environ.get('PATH', '')}")
    if linter is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([linter, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
