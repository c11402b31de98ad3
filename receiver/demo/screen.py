"""How the demonstration looks: two feeds and the counts on a terminal, plain lines elsewhere."""

from collections.abc import Iterator, Sequence
from http import HTTPStatus

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from receiver.console import STATUS_STYLES, UNEXPECTED_STYLE, program
from receiver.demo.sender import Post
from receiver.demo.tally import Routed, Tally
from receiver.event import QosStatus
from receiver.session import Verdict

_VERDICT_STYLES = {
    Verdict.ACCEPTED: "green",
    Verdict.DUPLICATE: "blue",
    Verdict.UNCHANGED: "blue",
    Verdict.LATE: "yellow",
    Verdict.CONFLICT: "magenta",
    Verdict.UNRECOGNIZED: "magenta",
    Verdict.MALFORMED: "magenta",
}
_REFUSED = 400

_ALERTS_SHOWN = 3
_FEED_LINES_MIN = 3
_FEED_LINES_MAX = 14
#: Lines that are not the feeds', with one left free so that the screen does not scroll.
_OTHER_LINES = 14


class Screen:
    """The tally as it is now, to be drawn again and again."""

    def __init__(self, tally: Tally, title: str, seconds: float) -> None:
        self._tally = tally
        self._title = title
        self._seconds = seconds
        self.passed_seconds = 0.0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it in as many columns and lines as there are."""
        feed_lines = min(max(console.height - _OTHER_LINES, _FEED_LINES_MIN), _FEED_LINES_MAX)
        yield self._head()
        feeds = Table.grid(expand=True)
        feeds.add_column(ratio=1)
        feeds.add_column(ratio=1)
        feeds.add_row(
            _feed("posted, and the answer", map(posted_row, self._tally.posted[-feed_lines:]), 3, feed_lines),
            _feed("routed to topics", map(routed_row, self._tally.routed[-feed_lines:]), 2, feed_lines),
        )
        yield feeds
        yield self._verdicts()
        yield self._alerts()

    def _head(self) -> RenderableType:
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        head.add_column(width=16)
        head.add_column(justify="right", no_wrap=True, width=9)
        passed = min(self.passed_seconds, self._seconds)
        left = round(self._seconds - passed)
        bar = ProgressBar(self._seconds, passed, complete_style="cyan", finished_style="cyan")
        head.add_row(
            Text.assemble(("qod-receiver ", "bold"), (self._title, "dim")), bar, Text(f"{left} s left", style="dim")
        )
        return head

    def _verdicts(self) -> RenderableType:
        counts = Table.grid(expand=True, padding=(0, 1))
        for _ in Verdict:
            counts.add_column(justify="center", no_wrap=True)
        numbers = [self._tally.verdicts.get(verdict, 0) for verdict in Verdict]
        counts.add_row(
            *(
                Text(str(n), style=f"bold {_VERDICT_STYLES[v]}" if n else "dim")
                for n, v in zip(numbers, Verdict, strict=True)
            )
        )
        counts.add_row(
            *(Text(verdict, style="default" if n else "dim") for n, verdict in zip(numbers, Verdict, strict=True))
        )
        return Panel(counts, title="verdicts", title_align="left", border_style="dim", padding=0)

    def _alerts(self) -> RenderableType:
        alerts, statuses = self._tally.alerts, self._tally.statuses
        body = Text(no_wrap=True, overflow="ellipsis")
        for status in (QosStatus.AVAILABLE, QosStatus.UNAVAILABLE):
            body.append(f"{statuses[status]:>3} ", style=f"bold {STATUS_STYLES[status]}")
            body.append(f"{status}   ")
        body.append(f"{len(alerts):>3} ", style=UNEXPECTED_STYLE if alerts else "dim")
        body.append("ended unexpectedly")
        for routed in [*alerts[-_ALERTS_SHOWN:], *[None] * _ALERTS_SHOWN][:_ALERTS_SHOWN]:
            body.append("\n")
            if routed is not None:
                body.append_text(_alert(routed))
        return Panel(body, title="sessions", title_align="left", border_style="dim", padding=(0, 1))


class Lines:
    """The tally as lines, each printed once."""

    def __init__(self, tally: Tally, console: Console) -> None:
        self._tally = tally
        self._console = console
        self._posted = self._routed = 0

    def show(self) -> None:
        """Print what is new."""
        for post in self._tally.posted[self._posted :]:
            who, words, answer = posted_row(post)
            self._console.print(Text.assemble("posted  ", who, " ", words, " -> ", answer), soft_wrap=True)
        for routed in self._tally.routed[self._routed :]:
            topic, what = routed_row(routed)
            self._console.print(Text.assemble("routed  ", topic, " ", what), soft_wrap=True)
        self._posted, self._routed = len(self._tally.posted), len(self._tally.routed)


def posted_row(posted: tuple[Post, int]) -> tuple[Text, Text, Text]:
    """Who posted what, and the answer."""
    post, status_code = posted
    wrong = status_code != post.status_code
    style = UNEXPECTED_STYLE if wrong else "yellow" if status_code >= _REFUSED else "green"
    who = Text(f"{f'#{post.session}' if post.session else '':<4}{post.sender:<11}", style="dim")
    return who, Text(post.words), Text(str(status_code), style=style)


def routed_row(routed: Routed) -> tuple[Text, Text]:
    """On which topic what came out."""
    value = routed.record.fields()["value"]
    number = f"#{routed.session}" if routed.session else ""
    if routed.topic == "dead-letter":
        return Text(f"{routed.topic:<11}", style="magenta"), Text(f"{number:<4}{value['verdict']}", style="magenta")
    style = UNEXPECTED_STYLE if value.get("unexpected") else STATUS_STYLES[QosStatus(value["qosStatus"])]
    if routed.topic == "unavailable":
        words = value.get("statusInfo", "no reason given")
    else:
        words = f"{value['qosStatus']}{', late' if value['late'] else ''}"
    return Text(f"{routed.topic:<11}", style="dim"), Text.assemble((f"{number:<4}", "dim"), (words, style))


def summary(tally: Tally, *, interrupted: bool) -> Text:
    """What it came to, and what to type next."""
    verdicts, faults = tally.verdicts, tally.faults()
    kept = sum(verdicts.values())
    repeated = verdicts.get(Verdict.DUPLICATE, 0) + verdicts.get(Verdict.UNCHANGED, 0)
    strangers = sum(status_code == HTTPStatus.UNAUTHORIZED for _, status_code in tally.posted)
    text = Text(f"\n{len(tally.posted)} posted: {kept} kept and decided on, {strangers} refused as a stranger's\n")
    dead = sum(verdicts.get(v, 0) for v in (Verdict.CONFLICT, Verdict.UNRECOGNIZED, Verdict.MALFORMED))
    for count, words in (
        (repeated, "repeated: no consumer saw it twice"),
        (verdicts.get(Verdict.LATE, 0), "late: routed with a mark, the session's state stayed"),
        (dead, "unusable: kept as a dead letter that can be replayed"),
        (len(tally.alerts), "ended unexpectedly: an alert each"),
    ):
        if count:
            text.append(f"{count:>5} {words}\n")
    if interrupted:
        text.append("Stopped early; the receiver was drained.\n", style="yellow")
    elif faults:
        text.append("".join(f"    ✗ {fault}\n" for fault in faults), style=UNEXPECTED_STYLE)
    else:
        text.append(
            f"{tally.right_ends:>5} of {len(tally.plan.ends)} sessions are in the state that was told last  ✓\n",
            style="green",
        )
    text.append("\nNext:\n")
    for command, words in (
        ("serve", "start a receiver, and try it"),
        ("tail unavailable", "watch its sessions end"),
        ("sessions", "see the newest state of each"),
    ):
        text.append(f"  {program()} {command:<18}", style="bold")
        text.append(f"{words}\n")
    return text


def _feed(title: str, rows: Iterator[Sequence[Text]], columns: int, lines: int) -> Panel:
    grid = Table.grid(expand=True, padding=(0, 1, 0, 0))
    for column in range(columns):
        grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1 if column == 1 else None)
    for row in rows:
        grid.add_row(*row)
    return Panel(grid, title=title, title_align="left", border_style="dim", height=lines + 2, padding=0)


def _alert(routed: Routed) -> Text:
    value = routed.record.fields()["value"]
    text = Text(
        f"    #{routed.session} {value.get('statusInfo', 'UNAVAILABLE without a reason')}", style=UNEXPECTED_STYLE
    )
    seconds = value.get("availableSeconds")
    return text.append(", never available" if seconds is None else f", after {seconds:.1f} s", style="red")
