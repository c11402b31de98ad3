"""The program's own reports: the lines of its log, and its metrics."""

import asyncio
import io
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
import structlog
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from receiver.core.event import QosStatus
from receiver.core.router import Router
from receiver.core.session import Verdict
from receiver.log import configure_log
from receiver.request_lines import LINE_DELAY_SECONDS, Line
from receiver.telemetry import Telemetry
from tests.nodes import Node, append, commit, until
from tests.samples import SESSION_ID, START, posted

LOGGERS = (None, "receiver", "uvicorn", "httpx2")

REQUEST_FIELDS = {
    "event",
    "level",
    "timestamp",
    "outcome",
    "status_code",
    "sender",
    "session_id",
    "correlator",
    "body_bytes",
    "duration_seconds",
}
BATCH_FIELDS = {
    "event",
    "level",
    "timestamp",
    "partition",
    "position",
    "next_position",
    "notifications",
    "messages",
    "lag",
    "duration_seconds",
}


@contextmanager
def logging_to(level: str, log_format: Literal["json", "console"]) -> Iterator[tuple[Telemetry, io.StringIO]]:
    """Telemetry that logs into memory. Afterwards logging is set up as it was before."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    root = loggers[0]
    handlers, root.handlers = root.handlers, []
    stream = io.StringIO()
    try:
        configure_log(level, log_format, stream)
        yield Telemetry(stream, log_format), stream
    finally:
        root.handlers = handlers
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)
        structlog.reset_defaults()


@pytest.fixture
def logged() -> Iterator[tuple[Telemetry, io.StringIO]]:
    """Telemetry that logs JSON from level info on, and its log."""
    with logging_to("info", "json") as both:
        yield both


def line(**changed: str | float) -> Line:
    """A line about a request, as the edge makes it."""
    known: dict[str, Any] = {
        "received_micros": START,
        "outcome": "kept",
        "status_code": 204,
        "sender": "acme",
        "session_id": SESSION_ID,
        "correlator": "c-1",
        "body_bytes": 321,
        "duration_seconds": 0.00125,
        **changed,
    }
    return cast("Line", SimpleNamespace(**known))


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """The lines of the log, each of which is one JSON object."""
    text = stream.getvalue()
    assert text.endswith("\n") or not text
    return [json.loads(each) for each in text.splitlines()]


def exposed(telemetry: Telemetry) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample on /metrics, by its name and its labels' values."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(generate_latest(telemetry.registry).decode())
        for sample in family.samples
    }


# Requests.


async def test_a_requests_line(logged: tuple[Telemetry, io.StringIO]) -> None:
    """A request is one line of JSON with these fields and no others, at the time of its receipt."""
    telemetry, stream = logged
    telemetry.request(line())
    telemetry.flush()
    (told,) = lines(stream)
    assert told.keys() == REQUEST_FIELDS
    assert told == {
        "event": "request",
        "level": "info",
        "timestamp": "2026-11-24T10:00:00Z",
        "outcome": "kept",
        "status_code": 204,
        "sender": "acme",
        "session_id": SESSION_ID,
        "correlator": "c-1",
        "body_bytes": 321,
        "duration_seconds": 0.00125,
    }


@pytest.mark.parametrize("text", ["é€𐍈", 'a"b\\c', "a\u2028b", "<script>", "{}", "\x7f"])
async def test_odd_text_stays_in_its_line(logged: tuple[Telemetry, io.StringIO], text: str) -> None:
    """A sender's text in a name or an id comes back from its line as it was, and makes no second line."""
    telemetry, stream = logged
    telemetry.request(line(session_id=text, sender=text))
    telemetry.flush()
    (written,) = stream.getvalue().removesuffix("\n").split("\n")
    told = json.loads(written)
    assert (told["session_id"], told["sender"]) == (text, text)


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1000])
async def test_no_line_is_lost_at_a_flush(logged: tuple[Telemetry, io.StringIO], count: int) -> None:
    """After a flush every request was written and counted, once and in order, however many there were."""
    telemetry, stream = logged
    for number in range(count):
        telemetry.request(line(correlator=str(number)))
    telemetry.flush()
    telemetry.flush()
    await asyncio.sleep(LINE_DELAY_SECONDS * 1.5)
    assert [told["correlator"] for told in lines(stream)] == list(map(str, range(count)))
    assert exposed(telemetry).get(("qod_receiver_http_requests_total", ("kept", "acme")), 0) == count


async def test_lines_do_not_wait_long(logged: tuple[Telemetry, io.StringIO]) -> None:
    """Without a flush a line is written after a moment, and so is a later one."""
    telemetry, stream = logged
    for count in (1, 2):
        telemetry.request(line())
        await until(lambda count=count: len(lines(stream)) == count)  # type: ignore[misc]


async def test_requests_on_the_console() -> None:
    """On a console a request is one line for people, with the same facts."""
    with logging_to("info", "console") as (telemetry, stream):
        telemetry.request(line(session_id="two words"))
        telemetry.flush()
        written = stream.getvalue()
    assert written.count("\n") == 1
    for part in ("2026-11-24T10:00:00Z", "request", "outcome=kept", "status_code=204", "sender=acme", "two words"):
        assert part in written
    assert not written.startswith("{")


@pytest.mark.parametrize(("level", "count"), [("debug", 1), ("info", 1), ("warning", 0), ("error", 0)])
async def test_levels(level: str, count: int) -> None:
    """A request's line is of level info; it is counted whether it is logged or not."""
    with logging_to(level, "json") as (telemetry, stream):
        telemetry.request(line())
        telemetry.flush()
        logging.getLogger("receiver").debug("detail")
        told = lines(stream)
        assert [each["event"] for each in told].count("request") == count
        assert [each["event"] for each in told].count("detail") == (level == "debug")
        assert exposed(telemetry)["qod_receiver_http_requests_total", ("kept", "acme")] == 1


# The rest of the log.


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_a_batchs_line(node: Node, router: Router, log_format: Literal["json", "console"]) -> None:
    """A batch is one line with its place, its size, its verdicts, the lag, and its duration."""
    await append(node, posted("A1"), posted("A1"), posted(b"{"), posted("A1", session_id="s2"))
    batch = await node.lane.read(3)
    made = await commit(node.lane, router, batch)
    verdicts = [decision.verdict for decision in made]
    with logging_to("info", log_format) as (telemetry, stream):
        telemetry.batch(node.lane, batch, verdicts, 5, 0.0123456789)
        written = stream.getvalue()
    if log_format == "console":
        assert written.count("\n") == 1
        assert "notifications=3" in written
        return
    (told,) = lines(stream)
    assert told.keys() == BATCH_FIELDS | {verdict.value for verdict in verdicts}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", told.pop("timestamp"))
    assert told == {
        "event": "batch",
        "level": "info",
        "partition": 0,
        "position": 0,
        "next_position": 3,
        "notifications": 3,
        "messages": 5,
        "lag": 1,
        "duration_seconds": 0.012346,
        **{verdict.value: verdicts.count(verdict) for verdict in verdicts},
    }


def test_failures_are_told(logged: tuple[Telemetry, io.StringIO]) -> None:
    """Each failure beside the requests is a line, with its level and its reason."""
    telemetry, stream = logged
    telemetry.lane_failed(0, "the disk is full")
    telemetry.retention_failed("the file is read-only")
    telemetry.undecidable("0-17", ValueError("no such thing"))
    told = [{name: value for name, value in each.items() if name != "timestamp"} for each in lines(stream)]
    exception = told[2].pop("exception")
    assert told == [
        {"event": "lane_failed", "level": "warning", "partition": 0, "reason": "the disk is full"},
        {"event": "retention_failed", "level": "warning", "reason": "the file is read-only"},
        {"event": "undecidable", "level": "error", "inbox": "0-17"},
    ]
    assert "ValueError: no such thing" in exception


def test_libraries_log_in_the_same_format(logged: tuple[Telemetry, io.StringIO]) -> None:
    """A library's line is JSON too; of the server and the HTTP client only warnings are logged."""
    _, stream = logged
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("httpx2").info("HTTP Request: GET")
    logging.getLogger("uvicorn.error").warning("about %s", "this")
    logging.getLogger("another").info("that")
    assert [(told["event"], told["level"]) for told in lines(stream)] == [("about this", "warning"), ("that", "info")]


# Metrics.


async def test_senders_are_limited(logged: tuple[Telemetry, io.StringIO]) -> None:
    """The first 1,000 senders have their own series, later ones share one; the log names each."""
    telemetry, stream = logged
    for number in range(1200):
        telemetry.request(line(sender=f"s{number}"))
    for number in (0, 999, 1000):
        telemetry.request(line(sender=f"s{number}", outcome="malformed"))
    telemetry.flush()
    values = exposed(telemetry)
    senders = [labels[1] for name, labels in values if name == "qod_receiver_http_requests_total"]
    assert len(set(senders)) == 1001
    assert values["qod_receiver_http_requests_total", ("kept", "(other)")] == 200
    assert values["qod_receiver_http_requests_total", ("malformed", "s999")] == 1
    assert values["qod_receiver_http_requests_total", ("malformed", "(other)")] == 1
    assert len({told["sender"] for told in lines(stream)}) == 1200


async def test_requests_are_counted_by_outcome_and_sender(telemetry: Telemetry) -> None:
    """Each outcome of each sender is a series of its own."""
    for outcome, sender, count in (
        ("kept", "a", 3),
        ("kept", "b", 2),
        ("throttled", "a", 1),
        ("unauthenticated", "", 4),
    ):
        for _ in range(count):
            telemetry.request(line(outcome=outcome, sender=sender))
    telemetry.flush()
    counted = {
        labels: value for (name, labels), value in exposed(telemetry).items() if name.endswith("http_requests_total")
    }
    assert counted == {("kept", "a"): 3, ("kept", "b"): 2, ("throttled", "a"): 1, ("unauthenticated", ""): 4}


async def test_what_happens_is_measured(telemetry: Telemetry, node: Node, router: Router) -> None:
    """Appends, batches, verdicts, messages, lag, failures, sessions and readiness are on /metrics."""
    await append(node, posted("A1"), posted("A1"), posted("A2", session_id="s2"))
    batch = await node.lane.read(2)
    verdicts = [decision.verdict for decision in await commit(node.lane, router, batch)]
    telemetry.lane_opened(node.lane)
    telemetry.batch(node.lane, batch, verdicts, 4, 0.02)
    telemetry.appended(7, 0.003)
    telemetry.lane_failed(0, "why")
    telemetry.sessions({QosStatus.AVAILABLE: 3, QosStatus.UNAVAILABLE: 1})
    telemetry.ready(ready=True)
    values = exposed(telemetry)
    for name, label, value in (
        ("notifications_total", "accepted", verdicts.count(Verdict.ACCEPTED)),
        ("notifications_total", "conflict", 0),
        ("messages_total", None, 4),
        ("inbox_lag", "0", node.lane.lag),
        ("batch_notifications_sum", None, 2),
        ("batch_duration_seconds_sum", None, 0.02),
        ("append_notifications_sum", None, 7),
        ("append_duration_seconds_sum", None, 0.003),
        ("lane_failures_total", "0", 1),
        ("sessions", "AVAILABLE", 3),
        ("ready", None, 1),
    ):
        assert values[f"qod_receiver_{name}", () if label is None else (label,)] == value, name


def test_names_end_in_their_unit(telemetry: Telemetry) -> None:
    """Each metric has the program's prefix, and ends in its base unit or in what it counts; a counter in _total."""
    families = list(text_string_to_metric_families(generate_latest(telemetry.registry).decode()))
    assert len(families) > 5
    for family in families:
        assert re.fullmatch(r"qod_receiver(_[a-z]+)+", family.name)
        assert family.documentation.endswith("."), family.name
        # The parser removes the end of a counter's name.
        name = f"{family.name}_total" if family.type == "counter" else family.name
        kinds = {
            "counter": "total",
            "histogram": "seconds|bytes|notifications",
            "gauge": "seconds|bytes|ratio|notifications|sessions|lag|ready|info",
        }
        assert re.search(rf"_({kinds[family.type]})$", name), f"{name} ends in no unit"
        assert not any(sample.name.endswith("_created") for sample in family.samples)


def test_the_release_is_told(telemetry: Telemetry) -> None:
    """The running release is a label of a metric that is always 1."""
    (value,) = [value for (name, _), value in exposed(telemetry).items() if name == "qod_receiver_build_info"]
    assert value == 1
