import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
import typer.main

from receiver.cli import app, run
from receiver.console import harmless
from receiver.secret_file import mint_secret
from receiver.settings import Settings

SESSION_ID = "3f2b8c1e-0d5a-4b7e-9c64-1a2b3c4d5e6f"


class Outcome(NamedTuple):
    """What a command left: its exit status and what it printed."""

    status: int
    out: str
    err: str


Qod = Callable[..., Outcome]


@pytest.fixture
def qod(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Qod:
    """Runs a command in this process, in an empty directory and without settings in the environment."""
    for name in os.environ:
        if name.upper().startswith("QOD_RECEIVER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            run(arguments)
        printed = capsys.readouterr()
        return Outcome(int(caught.value.code or 0), printed.out, printed.err)

    return call


def test_the_version_is_told(qod: Qod) -> None:
    """--version prints the name and the version."""
    assert re.fullmatch(r"qod-receiver \d+\.\d+\.\d+\n", qod("--version").out)


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "receive",
        "serve --port 70000",
        "serve --port http",
        "serve --nope",
        "demo --seconds 0",
        "tail",
        "tail status extra",
        "sessions --status GONE",
        "sessions --limit 0",
        "token",
        "token mint",
        "token mint --sender a --ttl 1y",
        "token mint --sender a --ttl 0s",
        "token mint --sender a --ttl 3651d",
        "token mint --sender ''",
        "replay --verdict accepted",
    ],
)
def test_wrong_usage_ends_with_2(arguments: str, qod: Qod) -> None:
    """What the help does not offer ends with status 2, with nothing on standard output but help."""
    outcome = qod(*shlex.split(arguments))
    assert outcome.status == 2
    assert "Traceback" not in outcome.err


def commands() -> dict[str, Any]:
    """Every command, by what is typed for it."""
    found: dict[str, Any] = {}
    waiting = [("", typer.main.get_command(app))]
    for name, command in waiting:
        members = getattr(command, "commands", None)
        if members is None:
            found[name] = command
        else:
            waiting += [(f"{name} {member}".strip(), members[member]) for member in members]
    return found


@pytest.mark.parametrize("name", commands())
def test_every_command_has_a_line_of_help_and_an_example_that_it_accepts(name: str, qod: Qod) -> None:
    """Each command tells in a line what it does, and takes its own example."""
    outcome = qod(*name.split(), "--help")
    assert outcome.status == 0
    command = commands()[name]
    assert command.help, "give the command a docstring"
    assert command.help.count("\n") == 0, "tell it in one line"
    example = (command.epilog or "").removeprefix(f"Example: qod-receiver {name}")
    assert example != command.epilog, f"give {name} an epilog such as: Example: qod-receiver {name} …"
    command.make_context(name, shlex.split(example))


def test_a_token_is_printed_alone(qod: Qod, tmp_path: Path) -> None:
    """`token mint` prints a token of at most 256 characters and nothing else."""
    outcome = qod("token", "mint", "--data", str(tmp_path / "d"), "--sender", "operator-a", "--ttl", "1h")
    assert outcome.status == 0
    assert re.fullmatch(r"[A-Za-z0-9._~+/=-]{20,256}\n", outcome.out)
    assert outcome.err == ""


def test_the_secret_is_made_once_and_for_its_owner_alone(qod: Qod, tmp_path: Path) -> None:
    """The first token makes the secret, readable by its owner only; the second one leaves it as it is."""
    qod("token", "mint", "--data", str(tmp_path), "--sender", "a")
    path = tmp_path / "token-secret"
    made = path.read_bytes()
    qod("token", "mint", "--data", str(tmp_path), "--sender", "b")
    assert path.read_bytes() == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [child.name for child in tmp_path.iterdir()] == ["token-secret"]


def test_many_who_make_the_secret_at_once_get_the_same(tmp_path: Path) -> None:
    """Whoever comes first makes the secret, however many come at once."""
    settings = Settings(data=tmp_path)
    with ThreadPoolExecutor(16) as threads:
        made = set(threads.map(lambda _: mint_secret(settings), range(64)))
    assert len(made) == 1


def test_a_secret_that_is_none_is_not_used(qod: Qod, tmp_path: Path) -> None:
    """An empty secret file is a failure, not a secret that everybody knows."""
    (tmp_path / "token-secret").touch()
    outcome = qod("token", "mint", "--data", str(tmp_path), "--sender", "a")
    assert (outcome.status, outcome.out) == (1, "")
    assert "token-secret is no secret" in outcome.err


def test_check_config_names_every_wrong_setting(qod: Qod, tmp_path: Path) -> None:
    """Each wrong setting is a line with its name, what is allowed and its place; the status is 1."""
    config = tmp_path / "qod.toml"
    config.write_text("[edge]\nport = 70000\n[log]\nlevel = 'loud'\n")
    outcome = qod("check-config", "--config", str(config))
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.splitlines() == [
        "2 wrong settings:",
        f"  edge.port: a whole number from 0 to 65535  ({config}, line 2)",
        f"  log.level: one of debug, info, warning, error  ({config}, line 4)",
    ]


def test_check_config_prints_the_settings_in_force(qod: Qod, tmp_path: Path) -> None:
    """What is printed of valid settings is TOML that means the same, with a place for each value and no secret."""
    config = tmp_path / "qod.toml"
    secret, sha256 = "s" * 40, "0123456789abcdef" * 4
    config.write_text(
        f"[auth]\nmint_secret = '{secret}'\n[[auth.tokens]]\nsender = 'a'\nsha256 = '{sha256}'\n"
        "[[routes]]\ntopic = 'x'\nsender = ['a', 'b']\n[edge]\nbody_timeout_seconds = 2.5\n"
    )
    outcome = qod("check-config", "--config", str(config))
    assert outcome.status == 0
    first, _, printed = outcome.out.partition("\n")
    assert first == "configuration is valid"
    assert secret not in printed
    assert sha256 not in printed
    told = tomllib.loads(printed)
    assert told["edge"]["body_timeout_seconds"] == 2.5
    assert (told["edge"]["port"], told["auth"]["anonymous"]) == (8080, False)
    assert told["routes"] == [{"topic": "x", "sender": ["a", "b"]}]
    assert told["auth"]["tokens"][0]["sender"] == "a"
    assert re.search(rf"body_timeout_seconds = 2.5 +# {re.escape(str(config))}, line 10\n", printed)
    assert re.search(r"port = 8080 +# default\n", printed)


@pytest.mark.parametrize("command", ["tail status", "sessions", "replay --dry-run"])
def test_a_directory_that_nothing_was_received_in_is_told(command: str, qod: Qod, tmp_path: Path) -> None:
    """Looking into a directory that no receiver served fails with its name, and makes nothing there."""
    outcome = qod(*command.split(), "--data", str(tmp_path / "none"))
    assert (outcome.status, outcome.out) == (1, "")
    assert str(tmp_path / "none") in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ordinary-id_1", "ordinary-id_1"),
        ("ä ✓", "ä ✓"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("two\nlines", "two\\nlines"),
        ("\x9b2J", "\\x9b2J"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
    ],
)
def test_what_senders_wrote_does_not_command_the_terminal(text: str, shown: str) -> None:
    """Text from outside is shown without what a terminal would obey."""
    assert harmless(text) == shown


class Serving(NamedTuple):
    """A `serve` that runs, and what it printed when it was ready."""

    process: subprocess.Popen[str]
    data: Path
    edge_url: str
    ops_url: str
    printed: str

    def stop(self) -> int:
        """End it as an operator would; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture
def serving(qod: Qod, tmp_path: Path) -> Iterator[Serving]:
    """The real thing, in a process of its own."""
    data = tmp_path / "data"
    with serve(data) as found:
        yield found


@contextlib.contextmanager
def serve(data: Path) -> Iterator[Serving]:
    """Runs `serve` on free ports until the end of the block."""
    command = [sys.executable, "-m", "receiver", "serve", "--data", str(data), "--port", "0", "--ops-port", "0"]
    with (data.parent / "serve.log").open("a") as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        try:
            printed = ""
            assert process.stdout is not None
            while not re.search(r"Operations: .*\n(.*\n)*\n\Z", printed) or ("No sender" in printed and "More tokens" not in printed):
                line = process.stdout.readline()
                assert line, f"serve ended: {(data.parent / 'serve.log').read_text()}"
                printed += line
            edge_url, ops_url = re.findall(r"http://\S+", printed)[:2]
            yield Serving(process, data, edge_url, ops_url, printed)
        finally:
            process.kill()
