"""The display of the demonstration: two feeds and the counts on a terminal, plain lines elsewhere."""

from collections.abc import Iterator, Sequence
from http import HTTPStatus

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from receiver.console import STATUS_STYLES, UNEXPECTED_STYLE, program
from receiver.core.event import QosStatus
from receiver.core.session import Verdict
from receiver.core.topics import DEAD_LETTER
from receiver.demo.comparison import Routed, Undetermined, due_answer
from receiver.demo.ledger import Post
from receiver.demo.tally import Tally

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
#: Lines outside the feeds, including a free one that keeps the screen from scrolling.
_OTHER_LINES = 14


class Screen:
    """The present tally, redrawn repeatedly."""

    def __init__(self, tally: Tally, title: str, seconds: float) -> None:
        self._tally = tally
        self._title = title
        self._seconds = seconds
        self.passed_seconds = 0.0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the tally for the console's size."""
        feed_lines = min(max(console.height - _OTHER_LINES, _FEED_LINES_MIN), _FEED_LINES_MAX)
        yield self._head()
        feeds = Table.grid(expand=True)
        feeds.add_column(ratio=1)
        feeds.add_column(ratio=1)
        feeds.add_row(
            _feed("posted, and the answer", map(posted_row, self._tally.posts[-feed_lines:]), 3, feed_lines),
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
        """Print new posts that have ended, and new records."""
        posts = self._tally.settled_posts
        for post in posts[self._posted :]:
            who, words, answer = posted_row(post)
            self._console.print(Text.assemble("posted  ", who, " ", words, " -> ", answer), soft_wrap=True)
        for routed in self._tally.routed[self._routed :]:
            topic, what = routed_row(routed)
            self._console.print(Text.assemble("routed  ", topic, " ", what), soft_wrap=True)
        self._posted, self._routed = len(posts), len(self._tally.routed)


def posted_row(post: Post) -> tuple[Text, Text, Text]:
    """The sender, the content and the answer of a post."""
    who = Text(f"{f'#{post.session}':<5}{post.release:<8}", style="dim")
    if post.answer is None:
        words = "-" if post.is_done else "…"
        return who, _words(post), Text(f"{words:<3}", style="dim")
    wrong = post.answer != due_answer(post)
    style = UNEXPECTED_STYLE if wrong else "yellow" if post.answer >= _REFUSED else "green"
    return who, _words(post), Text(str(post.answer), style=style)


_ENDS = {"DURATION_EXPIRED": "ran out", "DELETE_REQUESTED": "deleted", "NETWORK_TERMINATED": "terminated"}


def _words(post: Post) -> Text:
    """The content of a post, and its most important fault."""
    if post.authorization != "right":
        return Text(f"{'no' if post.authorization == 'none' else 'wrong'} token", style="yellow")
    if post.malformed:
        return Text(f"body: {post.malformed}", style="yellow")
    what = "available" if post.qos_status == "AVAILABLE" else _ENDS.get(post.status_info or "", "ended")
    wrong = next((words for is_so, words in _wrongs(post) if is_so), "")
    return Text.assemble(what, (f", {wrong}", "blue") if wrong else "")


def _wrongs(post: Post) -> Iterator[tuple[bool, str]]:
    """The possible faults of a legible post with the right token, the most important first."""
    yield post.sent != "whole", "dropped"
    yield "hung_up" in post.faults, "hung up"
    yield "repeated_new_id" in post.faults or "retry_new_id" in post.faults, "new id"
    yield post.copy > 0, "again"
    yield post.attempt > 1, "retried"
    yield "reordered" in post.faults or "delayed" in post.faults, "late"
    yield "slow_body" in post.faults, "slowly"
    yield bool(post.odd), str(post.odd)


def routed_row(routed: Routed) -> tuple[Text, Text]:
    """The topic and the content of a record."""
    value = routed.value
    number = f"#{routed.session}" if routed.session else ""
    if routed.topic == DEAD_LETTER:
        return Text(f"{routed.topic:<11}", style="magenta"), Text(f"{number:<5}{value['verdict']}", style="magenta")
    style = UNEXPECTED_STYLE if value.get("unexpected") else STATUS_STYLES[QosStatus(value["qosStatus"])]
    if routed.topic == "unavailable":
        words = value.get("statusInfo", "no reason given")
    else:
        words = f"{value['qosStatus']}{', late' if value['late'] else ''}"
    return Text(f"{routed.topic:<11}", style="dim"), Text.assemble((f"{number:<5}", "dim"), (words, style))


def summary(tally: Tally, *, interrupted: bool) -> Text:
    """The results, and the commands to try next."""
    verdicts, comparison, posts = tally.verdicts, tally.comparison(), tally.posts
    kept = sum(verdicts.values())
    strangers = sum(post.answer == HTTPStatus.UNAUTHORIZED for post in posts)
    text = Text(f"\n{_counted(len(posts), 'post')}: {kept} kept and decided on, {strangers} refused for their tokens\n")
    dead = sum(verdicts.get(v, 0) for v in (Verdict.CONFLICT, Verdict.UNRECOGNIZED, Verdict.MALFORMED))
    for count, words in (
        (
            verdicts.get(Verdict.DUPLICATE, 0) + verdicts.get(Verdict.UNCHANGED, 0),
            "repeated: no consumer saw it twice",
        ),
        (verdicts.get(Verdict.LATE, 0), "late: routed with a mark, without changing the session's state"),
        (dead, "unusable: kept as a dead letter that can be replayed"),
        (len(tally.alerts), "ended unexpectedly: an alert each"),
    ):
        if count:
            text.append(f"{count:>5} {words}\n")
    if interrupted:
        text.append("Stopped early; the receiver was drained.\n", style="yellow")
    else:
        for what in Undetermined:
            if what in comparison.undetermined:
                text.append(f"{comparison.undetermined[what]:>5} {what}\n", style="dim")
        if tally.unaware:
            text.append(
                f"{tally.unaware:>5} ended otherwise, but untold: lost, refused, or not in their release\n", style="dim"
            )
        text.append("".join(f"    ✗ {fault}\n" for fault in comparison.faults), style=UNEXPECTED_STYLE)
        if not comparison.faults:
            told = _counted(comparison.told, "session")
            text.append(f"{comparison.right:>5} of {told} are in the state that was told last  ✓\n", style="green")
    text.append("\nNext:\n")
    for command, words in (
        ("serve", "start a receiver, and try it"),
        ("simulate", "play the operator for it, with all of this"),
        ("tail unavailable", "watch its sessions end"),
        ("sessions", "see the newest state of each"),
    ):
        text.append(f"  {program()} {command:<18}", style="bold")
        text.append(f"{words}\n")
    return text


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _feed(title: str, rows: Iterator[Sequence[Text]], columns: int, lines: int) -> Panel:
    grid = Table.grid(expand=True, padding=(0, 1, 0, 0))
    for column in range(columns):
        grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1 if column == 1 else None)
    for row in rows:
        grid.add_row(*row)
    return Panel(grid, title=title, title_align="left", border_style="dim", height=lines + 2, padding=0)


def _alert(routed: Routed) -> Text:
    reason = routed.value.get("statusInfo", "UNAVAILABLE without a reason")
    text = Text(f"    #{routed.session} {reason}", style=UNEXPECTED_STYLE)
    seconds = routed.value.get("availableSeconds")
    return text.append(", never available" if seconds is None else f", after {seconds:.1f} s", style="red")
