"""The output of commands, piece by piece."""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from receiver.console import first_steps, harmless, letters_table, program, record_line, sessions_table
from receiver.core.event import QosStatus
from receiver.core.message import Message, Record
from receiver.core.router import Router
from receiver.core.session import Session
from receiver.settings import Settings
from tests.samples import SECOND, START, bare, decisions, posted

SESSION_ID = "3f2b8c1e-0d5a-4b7e-9c64-1a2b3c4d5e6f"
EVIL = "\x1b[2J\u202e"


def session(session_id: str = SESSION_ID, sender: str = "telefonica-es", age_seconds: float = 0) -> Session:
    """A session that the network ended `seconds` after the start."""
    since = START - round(age_seconds * SECOND)
    return Session(session_id, sender, QosStatus.UNAVAILABLE, "NETWORK_TERMINATED", since, since, None, None, "", None)


def shown(what: RenderableType, width: int = 200) -> list[str]:
    """The lines on a console of this width."""
    out = StringIO()
    Console(file=out, width=width).print(what)
    return [text.rstrip() for text in out.getvalue().splitlines()]


def table(sessions: Sequence[Session], width: int) -> list[str]:
    """The rows of a table of sessions on a console of this width, seen at the start."""
    return shown(sessions_table(sessions, {QosStatus.UNAVAILABLE: len(sessions)}, START / SECOND), width)[2:-1]


@pytest.mark.parametrize(
    ("text", "harmless_text"),
    [
        ("ordinary-id_1", "ordinary-id_1"),
        ("ä ✓", "ä ✓"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("two\nlines", "two\\nlines"),
        ("\x9b2J", "\\x9b2J"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
    ],
)
def test_what_senders_wrote_does_not_command_the_terminal(text: str, harmless_text: str) -> None:
    """Text from outside is shown without characters that control a terminal."""
    assert harmless(text) == harmless_text


@pytest.mark.parametrize(
    ("width", "row"),
    [
        (120, f"{SESSION_ID} UNAVAILABLE NETWORK_TERMINATED    0s telefonica-es"),
        (88, f"{SESSION_ID} UNAVAILABLE NETWORK_TERMINATED    0s telefonica-es"),
        (80, f"{SESSION_ID} UNAVAILABLE NETWORK_TERMINATED    0s telef…"),
    ],
)
def test_sessions_fit_a_terminal(width: int, row: str) -> None:
    """On a terminal of 80 columns a session is one line with everything but the end of its sender."""
    assert table([session()], width) == [row]


@pytest.mark.parametrize(
    ("seconds", "age"),
    [(-5, "0s"), (0.4, "0s"), (119, "119s"), (120, "2m"), (7_199, "120m"), (7_200, "2h"), (172_800, "2d")],
)
def test_ages_are_told_in_the_unit_that_fits(seconds: float, age: str) -> None:
    """The age of a session's state has at least two of its unit, and is never negative."""
    (row,) = table([session(age_seconds=seconds)], 120)
    assert row.split()[3] == age


def test_no_piece_lets_a_sender_command_the_terminal(router: Router) -> None:
    """Session ids and senders are escaped in every table and line."""
    told = posted(b'{"specversion": "1.0", "type": "\\u001b[2J"}', sender=EVIL, key=EVIL)
    ended = posted(bare(), sender=EVIL, key=SESSION_ID)
    (message,) = decisions(router, [told])[0].messages
    records = [Record(0, 0, each._replace(key=EVIL)) for each in (message, *decisions(router, [ended])[0].messages)]
    records.append(Record(0, 1, Message("qod.sessions", EVIL, None, (), 0)))
    text = "\n".join(
        [
            *shown(sessions_table([session(EVIL, EVIL)], {}, 0)),
            *shown(letters_table([(records[0], True)])),
            *(line for record in records for line in shown(record_line(record))),
        ]
    )
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count(harmless(EVIL)) > len(records)


def test_the_first_steps_fit_a_terminal() -> None:
    """The first steps for a newcomer fit on a terminal of 80 times 24, so that their beginning is in sight."""
    token = "t" * 160
    lines = first_steps("http://127.0.0.1:8080/notifications", token, Settings().data, {}, 0).splitlines()
    urls, cursor = 2, 1
    assert urls + sum(max(1, -(-len(line) // 80)) for line in lines) + cursor <= 24


@pytest.mark.parametrize(
    ("called", "path", "typed"),
    [
        ("/usr/bin/qod-receiver", True, "qod-receiver"),
        (".venv/bin/qod-receiver", False, ".venv/bin/qod-receiver"),
        ("my tools/qod-receiver", False, "'my tools/qod-receiver'"),
        ("receiver/__main__.py", False, "qod-receiver"),
    ],
)
def test_commands_are_told_as_they_can_be_typed(
    called: str, path: bool, typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program's name is used if the shell finds it, else the path by which it was called."""
    if path:
        (tmp_path / "qod-receiver").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", [called])
    assert program() == typed
