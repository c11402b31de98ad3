"""The output of the commands: records, sessions, first steps.

Text from outside is escaped for the terminal, since a session id may hold any character.
"""

import json
import shlex
import shutil
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from receiver.core import rfc3339
from receiver.core.event import EXPECTED_ENDS, QosStatus
from receiver.core.message import Record
from receiver.core.session import Session
from receiver.settings import option_of

STATUS_STYLES: dict[str, str] = {
    QosStatus.REQUESTED: "yellow",
    QosStatus.AVAILABLE: "green",
    QosStatus.UNAVAILABLE: "cyan",
}
UNEXPECTED_STYLE = "bold red"

_PROGRAM = "qod-receiver"
#: Tables written to a file or a pipe are not cut to a screen's width.
_WIDTH_PIPED = 240


def console(*, stderr: bool = False) -> Console:
    """A console that truncates nothing when its output is not a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _WIDTH_PIPED, highlight=False)


def harmless(text: str) -> str:
    """The text with non-printable characters escaped, so that a terminal obeys none of it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def record_line(record: Record) -> Text:
    """A record as one readable line."""
    fields = record.fields()
    value: Any = fields["value"]
    line = Text(f"{fields['timestamp'][:19]}Z  ", style="dim")
    match value:
        case {"qosStatus": str(status), **rest}:
            line.append_text(status_text(status, rest.get("statusInfo"), unexpected=bool(rest.get("unexpected"))))
            line.append(f"  {harmless(record.message.key)}", style="default")
            line.append(f"  {harmless(str(rest.get('sender', '')))}", style="dim")
            if rest.get("late"):
                line.append("  late", style="yellow")
            if isinstance(seconds := rest.get("availableSeconds"), int | float):
                line.append(f"  was available for {seconds:.1f} s", style="dim")
        case {"verdict": str(verdict), "reason": str(reason), "sender": str(sender)}:
            line.append(f"{verdict:<12}", style="yellow")
            line.append(f"  {harmless(reason)}", style="default")
            line.append(f"  {harmless(sender)}", style="dim")
        case None:
            line.append(f"forgotten    {harmless(record.message.key)}")
        case _:
            line.append(f"{harmless(record.message.key)}  {harmless(json.dumps(value))}", style="default")
    return line


def status_text(status: str, status_info: object, *, unexpected: bool) -> Text:
    """A status and its reason; an unexpected end is red."""
    style = UNEXPECTED_STYLE if unexpected else STATUS_STYLES.get(status, "default")
    return Text(f"{status:<11}  {harmless(str(status_info or '')):<18}", style=style)


def sessions_table(sessions: Sequence[Session], counts: Mapping[QosStatus, int], now: float) -> Table:
    """The sessions, with a total for each status below them."""
    caption = _caption(len(sessions), counts)
    # All columns but the sender take 74, so that a terminal of 80 shows part of the sender, which is what is cut.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, caption=caption, caption_justify="left")
    table.add_column("session", no_wrap=True, min_width=36)
    table.add_column("status", no_wrap=True, min_width=11)
    table.add_column("reason", no_wrap=True, overflow="ellipsis", min_width=18)
    table.add_column("since", no_wrap=True, justify="right", min_width=5)
    table.add_column("sender", overflow="ellipsis")
    for session in sessions:
        ended = session.qos_status is QosStatus.UNAVAILABLE
        style = (
            UNEXPECTED_STYLE
            if ended and session.status_info not in EXPECTED_ENDS
            else STATUS_STYLES[session.qos_status]
        )
        table.add_row(
            Text(harmless(session.session_id)),
            Text(session.qos_status, style=style),
            Text(harmless(session.status_info or ""), style=style),
            _age(now - session.time_micros / 1e6),
            Text(harmless(session.sender), style="dim"),
        )
    return table


def letters_table(letters: Iterable[tuple[Record, bool]]) -> Table:
    """Dead letters, each with whether today's parser can read it."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("position", "received", "verdict", "sender", "reason", "sent again"):
        table.add_column(name, no_wrap=name != "reason", overflow="fold")
    for record, readable in letters:
        value = record.fields()["value"]  # another program's record may hold anything
        told = {name: str(text) for name, text in value.items()} if isinstance(value, dict) else {}
        table.add_row(
            f"{record.partition}-{record.position}",
            Text(harmless(f"{told.get('receivedAt', '')[:19]}Z")),
            Text(harmless(told.get("verdict", ""))),
            Text(harmless(told.get("sender", ""))),
            Text(harmless(told.get("reason", ""))),
            Text("yes", style="green") if readable else Text("no", style="yellow"),
        )
    return table


def first_steps(edge_url: str, token: str, data: Path, options: Mapping[str, str], now: float) -> str:
    """Next steps for a newcomer: a token, a notification to post, and the command that shows the result."""
    body = json.dumps(
        {
            "specversion": "1.0",
            "id": str(uuid.uuid4()),
            "source": "/first-steps",
            "type": "org.camaraproject.quality-on-demand.v1.qos-status-changed",
            "time": rfc3339.render(int(now) * 1_000_000),
            "data": {
                "sessionId": str(uuid.uuid4()),
                "qosStatus": "UNAVAILABLE",
                "statusInfo": "NETWORK_TERMINATED",
            },
        },
        separators=(",", ":"),
    )
    # The first line is still in sight on a terminal of 80 by 24.
    return f"""\

No sender is configured. A token to begin with, for the sender `default`, valid for 30 days:
{token}

Post a notification with it, and expect 204:
curl -i {shlex.quote(edge_url)} \\
  -H 'Authorization: Bearer {token}' \\
  -H 'Content-Type: application/cloudevents+json' \\
  -d {shlex.quote(body)}

See what came of it, in another terminal; and mint more tokens:
{program()} tail status --from beginning{options_text(options)}
{program()} token mint --sender NAME{data_option(data)}
"""


def program() -> str:
    """The command to type for this program: its name, or the path it was called by if the name is not on PATH."""
    called = Path(sys.argv[0])
    if called.name != _PROGRAM or shutil.which(_PROGRAM):
        return _PROGRAM
    return shlex.quote(str(called))


def data_option(data: Path) -> str:
    """The option with which another command finds the same data directory."""
    return options_text(option_of(data))


def options_text(options: Mapping[str, str]) -> str:
    """Options and their values, as typed behind a command."""
    return "".join(f" --{name} {shlex.quote(value)}" for name, value in options.items())


def _caption(shown: int, counts: Mapping[QosStatus, int]) -> Text:
    kinds = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    total = sum(counts.values())
    return Text(f"{shown} of {total} sessions{f': {kinds}' if kinds else ''}", style="dim")


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(0, seconds):.0f}s"
