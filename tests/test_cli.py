"""The commands: quick ones in this process, `serve` and the commands beside it in processes."""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any, NamedTuple

import pytest
import typer.main

from receiver.cli import app, run
from receiver.core import rfc3339
from receiver.secret_file import mint_secret
from receiver.settings import Settings
from tests.limits import SECONDS_MAX
from tests.receiver_process import COMMAND, ReceiverProcess
from tests.samples import bare, body, told

UNKNOWN_TYPE = body(told("A1", "s-4")[0]._replace(type="org.camaraproject.device-roaming.v0.roaming-status"))
UNREADABLE = b'{"specversion": "1.0"}'


class Outcome(NamedTuple):
    """The result of a command: its exit status and its output."""

    status: int
    out: str
    err: str


Qod = Callable[..., Outcome]


@pytest.fixture
def qod(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Qod:
    """Runs a command in this process, in an empty directory and without settings in the environment."""
    for name in list(os.environ):
        if name.upper().startswith("QOD_"):
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
        "serve --log-level loud",
        "serve --nope",
        "demo --seconds 0",
        "tail",
        "tail status extra",
        "tail status --from now",
        "sessions --status GONE",
        "sessions --limit 0",
        "token",
        "token mint",
        "token mint --sender a --ttl 1y",
        "token mint --sender a --ttl 0s",
        "token mint --sender a --ttl 3651d",
        "token mint --sender ''",
        "replay --verdict accepted",
        "replay --from now",
    ],
)
def test_wrong_usage_ends_with_2(arguments: str, qod: Qod) -> None:
    """Anything that the help does not offer ends with status 2, with nothing on standard output but help."""
    outcome = qod(*shlex.split(arguments))
    assert outcome.status == 2
    assert "Traceback" not in outcome.err


def commands() -> dict[str, Any]:
    """Every command, by the words that are typed for it."""
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
    """Each command describes itself in one line, and accepts its own example."""
    outcome = qod(*name.split(), "--help")
    assert outcome.status == 0
    command = commands()[name]
    assert command.help, "give the command a line of help"
    assert command.help.count("\n") == 0, "tell it in one line"
    example = (command.epilog or "").removeprefix(f"Example: qod-receiver {name}")
    assert example != command.epilog, f"give {name} an epilog such as: Example: qod-receiver {name} …"
    imported = command.make_context(name, shlex.split(example)).command
    assert command.help == imported.help, "the table in receiver/cli/__init__.py has the docstring of each command"


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
    """Of many processes at once the first makes the secret, and all use it."""
    settings = Settings(data=tmp_path)
    with ThreadPoolExecutor(16) as threads:
        made = set(threads.map(lambda _: mint_secret(settings), range(64)))
    assert len(made) == 1


def test_a_secret_that_is_none_is_not_used(qod: Qod, tmp_path: Path) -> None:
    """An empty secret file is a failure, not a secret that everybody knows."""
    (tmp_path / "token-secret").touch()
    outcome = qod("token", "mint", "--data", str(tmp_path), "--sender", "a")
    assert (outcome.status, outcome.out) == (1, "")
    assert "token-secret is too short" in outcome.err


def test_check_config_names_every_wrong_setting(qod: Qod, tmp_path: Path) -> None:
    """Each wrong setting has a line with its name, what is allowed and its place; the status is 1."""
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
    """The output for valid settings is TOML with the same meaning, with a place for each value and without secrets."""
    config = tmp_path / "qod.toml"
    secret, sha256 = "s" * 40, "0123456789abcdef" * 4
    config.write_text(
        f"[auth]\nmint_secret = '{secret}'\n[[auth.tokens]]\nsender = 'a'\nsha256 = '{sha256}'\n"
        "[[routes]]\ntopic = 'x'\nsender = ['a', 'b']\n[edge]\nbody_timeout_seconds = 2.5\n"
        f"[api]\nscope = ''\n[api.headers]\nX-Key = '{secret}'\n"
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
    assert (told["api"]["scope"], told["api"]["headers"]) == ("", {"x-key": "**********"})
    assert re.search(rf"body_timeout_seconds = 2.5 +# {re.escape(str(config))}, line 10\n", printed)
    assert re.search(r"port = 8080 +# default\n", printed)


@pytest.mark.parametrize("command", ["tail status", "sessions", "replay", "replay --dry-run"])
def test_a_directory_that_nothing_was_received_in_is_told(command: str, qod: Qod, tmp_path: Path) -> None:
    """Reading a directory that no receiver served fails with its name, and makes nothing there."""
    outcome = qod(*command.split(), "--data", str(tmp_path / "none"))
    assert (outcome.status, outcome.out) == (1, "")
    assert str(tmp_path / "none") in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "command", ["serve --ops-port 0", "token mint --sender a", "tail status", "sessions", "replay"]
)
def test_a_directory_that_can_not_be_one_is_named(command: str, qod: Qod, tmp_path: Path) -> None:
    """With a file in place of the data directory, every command that needs it fails with its name."""
    file = tmp_path / "file"
    file.touch()
    outcome = qod(*command.split(), "--data", str(file))
    assert (outcome.status, outcome.out) == (1, "")
    assert re.fullmatch(rf"qod-receiver: .*{re.escape(str(file))}.*\n", outcome.err)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("command", ["serve", "token mint --sender a"])
def test_a_directory_that_may_not_be_written_is_named(command: str, qod: Qod, tmp_path: Path) -> None:
    """Without the right to write to the data directory, each command that writes there fails with its name."""
    directory = tmp_path / "data"
    directory.mkdir(0o500)
    outcome = qod(*command.split(), "--data", str(directory))
    assert (outcome.status, outcome.out) == (1, "")
    assert str(directory) in outcome.err
    assert "Traceback" not in outcome.err


def test_check_config_tells_what_the_environment_sets(
    qod: Qod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of the environment override those of the configuration file that it names, and their place is shown."""
    config = tmp_path / "qod.toml"
    config.write_text("prefix = 'x'\n[edge]\nport = 1\n")
    monkeypatch.setenv("QOD_RECEIVER_CONFIG", str(config))
    monkeypatch.setenv("QOD_RECEIVER_EDGE__PORT", "2")
    outcome = qod("check-config")
    assert outcome.status == 0
    assert re.search(r"^port = 2 +# QOD_RECEIVER_EDGE__PORT in the environment$", outcome.out, re.MULTILINE)
    assert re.search(rf'^prefix = "x" +# {re.escape(str(config))}, line 1$', outcome.out, re.MULTILINE)
    monkeypatch.setenv("QOD_RECEIVER_EDGE__PORT", "-2")
    outcome = qod("check-config")
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err == (
        "1 wrong setting:\n  edge.port: a whole number from 0 to 65535  (QOD_RECEIVER_EDGE__PORT in the environment)\n"
    )


# Serving.


@contextmanager
def serving(directory: Path, *options: str, mint: bool = True) -> Iterator[ReceiverProcess]:
    """A receiver that ends with the block."""
    receiver = ReceiverProcess(directory, *options, mint=mint)
    try:
        yield receiver
    finally:
        receiver.kill()


def test_serve_tells_a_newcomer_what_to_do(qod: Qod, tmp_path: Path) -> None:
    """Without configuration `serve` prints its URLs, a token that it accepts, and a command that shows the result."""
    data = tmp_path / "data dir"
    with serving(data, mint=False) as receiver:
        printed = receiver.printed()
        assert printed.startswith(f"Notifications: {receiver.edge_url}\nOperations:    {receiver.ops_url}\n")
        (receiver.token,) = re.findall(r"^(eyJ\S+)$", printed, re.MULTILINE)
        assert receiver.post(bare("s-1")) == [204]
        (command,) = re.findall(r"^qod-receiver (tail .*)$", printed, re.MULTILINE)
        outcome = qod(*shlex.split(command), "--no-follow")
    assert outcome.status == 0
    assert " s-1  default" in outcome.out


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_line_can_be_pasted(tmp_path: Path) -> None:
    """The command that `serve` prints works in a shell as it is, and is answered 204."""
    with serving(tmp_path / "data", mint=False) as receiver:
        command = re.search(r"^curl (.+\\\n)+.+\n", receiver.printed(), re.MULTILINE)
        assert command
        done = subprocess.run(["sh", "-c", command[0]], capture_output=True, text=True, check=True)  # noqa: S607
    assert done.stdout.startswith("HTTP/1.1 204 ")


@pytest.mark.parametrize(
    "config",
    [
        "[auth]\nanonymous = true\n",
        f"[[auth.tokens]]\nsender = 'a'\nsha256 = '{'0' * 64}'\n",
    ],
)
def test_serve_prints_no_token_where_senders_are_configured(config: str, tmp_path: Path) -> None:
    """With configured senders `serve` prints the two URLs and nothing else."""
    file = tmp_path / "qod.toml"
    file.write_text(config)
    with serving(tmp_path / "data", "--config", str(file), mint=False) as receiver:
        assert receiver.printed() == f"Notifications: {receiver.edge_url}\nOperations:    {receiver.ops_url}\n"


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_well_and_prints_no_second_token(number: signal.Signals, tmp_path: Path) -> None:
    """If a token was minted before, `serve` tells how to mint another; at SIGTERM and Ctrl-C it ends with 0.

    Its log is on standard error alone.
    """
    with serving(tmp_path / "data") as receiver:
        assert receiver.post(bare()) == [204]
        receiver.process.send_signal(number)
        assert receiver.process.wait(SECONDS_MAX) == 0
        assert (tmp_path / "data" / "out").read_text() == (
            f"Notifications: {receiver.edge_url}\n"
            f"Operations:    {receiver.ops_url}\n"
            f"Mint a token:  qod-receiver token mint --sender NAME --data {tmp_path / 'data'}\n"
        )
        logged = [json.loads(line) for line in receiver.log.read_text().splitlines()]
    assert any(line["event"] == "request" for line in logged)


@pytest.mark.parametrize("option", ["--port", "--ops-port"])
def test_a_port_in_use_is_named(option: str, tmp_path: Path) -> None:
    """`serve` on a port in use fails, names it, and leaves the token for the start that succeeds."""
    ports = {"--port": "0", "--ops-port": "0"}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ports[option] = str(listener.getsockname()[1])
        arguments = [part for pair in ports.items() for part in pair]
        done = subprocess.run(
            [*COMMAND, "serve", "--data", str(tmp_path), *arguments], capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"qod-receiver: can't listen on 127.0.0.1 port {ports[option]}: Address already in use\n"
    assert not (tmp_path / "token-secret").exists()


# Commands beside a receiver.

#: The time of the sessions' events: within the last day, as records of older events get the time of receipt.
SECONDS = [rfc3339.render(int(time.time() - 60 + second) * 1_000_000) for second in range(3)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReceiverProcess]:
    """A receiver with three sessions and two dead letters, which serves while tests read it. Tests must not change
    anything.
    """
    with serving(tmp_path_factory.mktemp("served") / "data") as receiver:
        events = [
            body(told(text, session_id)[0], time=SECONDS[int(text[1])])
            for text, session_id in (("A1", "s-1"), ("A1", "s-2"), ("U2:N", "s-1"))
        ]
        assert receiver.post(*events, bare("s-3"), UNKNOWN_TYPE, UNREADABLE) == [204, 204, 204, 204, 204, 400]
        yield receiver


@pytest.fixture
def look(qod: Qod, served: ReceiverProcess) -> Callable[[str], str]:
    """Runs a command beside the receiver, which must succeed; returns its output."""

    def call(command: str) -> str:
        outcome = qod(*shlex.split(command), "--data", str(served.directory))
        assert (outcome.status, outcome.err) == (0, "")
        return outcome.out

    return call


Look = Callable[[str], str]


def test_tail_prints_json_for_programs(look: Look) -> None:
    """Each record of the topic is one line: an object with exactly the members that scripts rely on."""
    records = [json.loads(line) for line in look("tail status --from beginning --no-follow --json").splitlines()]
    for position, record in enumerate(records):
        assert list(record) == ["topic", "partition", "position", "key", "timestamp", "headers", "value"]
        assert (record["topic"], record["partition"], record["position"]) == ("qod.status", 0, position)
        assert record["value"]["sessionId"] == record["key"]
        assert record["headers"]["verdict"] == "accepted"
    assert [record["key"] for record in records] == ["s-1", "s-2", "s-1", "s-3"]
    assert records[0]["timestamp"] == SECONDS[1]


def test_tail_prints_lines_for_people(look: Look) -> None:
    """Without --json a line has the time, the change, the reason, the session and the sender."""
    lines = look("tail unavailable --no-follow").splitlines()
    assert lines[0] == f"{SECONDS[2]}  UNAVAILABLE  NETWORK_TERMINATED  s-1  test  was available for 1.0 s"
    assert len(lines) == 2
    (unknown, unreadable) = look("tail dead-letter --no-follow").splitlines()
    assert re.match(r"\S+Z  unrecognized  .*device-roaming.*  test$", unknown)
    assert re.match(r"\S+Z  malformed     .+  test$", unreadable)


@pytest.mark.parametrize(
    ("arguments", "positions"),
    [
        ("status", [0, 1, 2, 3]),
        ("qod.status", [0, 1, 2, 3]),
        ("status --from 0", [0, 1, 2, 3]),
        ("status --from 2", [2, 3]),
        ("status --from 0-3", [3]),
        ("status --from 99", []),
        ("status --from end", []),
        ("status --session s-1", [0, 2]),
        ("status --session s-1 --from 1", [2]),
        ("status --session s", []),
    ],
)
def test_tail_begins_where_it_is_told(arguments: str, positions: list[int], look: Look) -> None:
    """`tail --no-follow` prints the records from a position on, of one session or all, then ends."""
    printed = look(f"tail {arguments} --no-follow --json").splitlines()
    assert [json.loads(line)["position"] for line in printed] == positions


def test_a_topic_that_nobody_writes_is_told(qod: Qod, served: ReceiverProcess) -> None:
    """`tail` of a topic that can't exist fails, and names those that exist."""
    outcome = qod("tail", "statsu", "--data", str(served.directory))
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err == (
        "qod-receiver: there is no topic qod.statsu; "
        "there are qod.dead-letter, qod.sessions, qod.status, qod.unavailable\n"
    )


def test_a_partition_that_is_not_there_is_told(qod: Qod, served: ReceiverProcess) -> None:
    """`tail` from a position in a partition that the topic lacks fails."""
    outcome = qod("tail", "status", "--from", "7-0", "--data", str(served.directory))
    assert (outcome.status, outcome.out) == (1, "")
    assert "'7-0'" in outcome.err


def test_sessions_are_a_table(look: Look) -> None:
    """Each session is a row, last touched first, with the counts below."""
    header, _, *rows, caption = look("sessions").splitlines()
    assert header.split() == ["session", "status", "reason", "since", "sender"]
    assert [row.split()[:2] for row in rows] == [["s-3", "UNAVAILABLE"], ["s-1", "UNAVAILABLE"], ["s-2", "AVAILABLE"]]
    assert rows[1].split()[2] == "NETWORK_TERMINATED"
    assert caption.strip() == "3 of 3 sessions: 1 AVAILABLE, 2 UNAVAILABLE"


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        ("", ["s-3", "s-1", "s-2"]),
        ("--limit 2", ["s-3", "s-1"]),
        ("--status AVAILABLE", ["s-2"]),
        ("--status unavailable", ["s-3", "s-1"]),
        ("--status UNAVAILABLE --limit 1", ["s-3"]),
        ("--status REQUESTED", []),
    ],
)
def test_sessions_are_json_for_programs(arguments: str, ids: list[str], look: Look) -> None:
    """With --json each session is an object on its own line, of one status or all, up to a limit."""
    found = [json.loads(line) for line in look(f"sessions --json {arguments}").splitlines()]
    assert [session["sessionId"] for session in found] == ids
    assert all(session["sender"] == "test" for session in found)


def test_sessions_of_a_status_still_counts_all(look: Look) -> None:
    """The line below the table counts all sessions, even if the table shows fewer."""
    assert look("sessions --status AVAILABLE").splitlines()[-1].strip() == "1 of 3 sessions: 1 AVAILABLE, 2 UNAVAILABLE"


@pytest.mark.parametrize(
    ("arguments", "rows", "summary"),
    [
        ("", ["0-0", "0-1"], "1 of 2 dead letters would be sent again"),
        ("--verdict unrecognized", ["0-0"], "1 of 1 dead letter would be sent again"),
        ("--verdict malformed --verdict unrecognized", ["0-0", "0-1"], "1 of 2 dead letters would be sent again"),
        ("--from 1", ["0-1"], "0 of 1 dead letter would be sent again"),
        ("--verdict conflict", [], "0 of 0 dead letters would be sent again"),
    ],
)
def test_replay_lists_what_it_would_do(arguments: str, rows: list[str], summary: str, look: Look) -> None:
    """`replay --dry-run` lists the dead letters that it would send, and sends none."""
    *table, last = look(f"replay --dry-run {arguments}").splitlines()
    assert [row.split()[0] for row in table[2:]] == rows
    assert last == summary


# Commands that follow a topic.


@contextmanager
def following(receiver: ReceiverProcess, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A `tail` that follows from the beginning on. It ends after a minute at most, so that no reader of a line waits
    for ever.
    """
    command = [*COMMAND, "tail", *arguments, "--data", str(receiver.directory), "--from", "beginning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        limit = Timer(60, process.kill)
        limit.start()
        try:
            yield process
        finally:
            limit.cancel()
            process.kill()


def line(process: "subprocess.Popen[str]") -> str:
    """The next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline()


def test_tail_follows(tmp_path: Path) -> None:
    """`tail` waits for a topic that does not exist yet, prints each record as it comes, and ends with 0 at Ctrl-C."""
    with serving(tmp_path / "data") as receiver, following(receiver, "unavailable", "--json") as process:
        for session_id in ("s-1", "s-2"):
            assert receiver.post(body(told("A1", session_id)[0]), bare(session_id)) == [204, 204]
            assert json.loads(line(process))["key"] == session_id
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=SECONDS_MAX) == ("", "")
        assert process.returncode == 0


def test_tail_is_silent_about_a_topic_to_come(qod: Qod, tmp_path: Path) -> None:
    """`tail --no-follow` of a topic that the router has not written to yet prints nothing, and succeeds."""
    with serving(tmp_path / "data") as receiver:
        outcome = qod("tail", "dead-letter", "--no-follow", "--data", str(receiver.directory))
    assert outcome == (0, "", "")


@pytest.mark.long
@pytest.mark.parametrize("options", [["--json"], []])
def test_tail_ends_with_its_reader(options: list[str], tmp_path: Path) -> None:
    """When its output is closed, as behind `| head -1`, `tail` ends without a message."""
    with serving(tmp_path / "data") as receiver, following(receiver, "status", *options) as process:
        assert receiver.post(bare("s-1")) == [204]
        assert "s-1" in line(process)
        assert process.stdout is not None
        process.stdout.close()
        assert receiver.post(bare("s-2")) == [204]
        assert process.wait(SECONDS_MAX) == 1
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_replay_is_done_by_whoever_serves(qod: Qod, tmp_path: Path) -> None:
    """`replay` uses the serving process if there is one, else waits for the next one, and says which."""
    data = ("--data", str(tmp_path / "data"))
    with serving(tmp_path / "data") as receiver:
        assert receiver.post(UNKNOWN_TYPE, UNREADABLE) == [204, 400]
        assert qod("replay", *data) == (0, "1 dead letter went into the inbox again\n", "")
        assert qod("replay", "--verdict", "malformed", *data).out == "0 dead letters went into the inbox again\n"
        assert receiver.terminate() == 0
    assert qod("replay", *data).out == "1 dead letter went into the inbox again, for the next `serve` to route\n"


def test_replay_needs_the_token_of_the_operations_port(
    qod: Qod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the operations port has a token, `replay` fails without it; an option or a variable gives it."""
    config = tmp_path / "qod.toml"
    config.write_text(f"[ops]\ntoken_sha256 = '{hashlib.sha256(b'secret').hexdigest()}'\n")
    with serving(tmp_path / "data", "--config", str(config)):
        command = ("replay", "--data", str(tmp_path / "data"))
        outcome = qod(*command)
        assert (outcome.status, outcome.out) == (1, "")
        assert "the process that serves this directory refused" in outcome.err
        assert qod(*command, "--ops-token", "secret").status == 0
        monkeypatch.setenv("QOD_OPS_TOKEN", "secret")
        assert qod(*command).status == 0
