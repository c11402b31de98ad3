"""What the program tells of itself: every metric, declared here once, and the set-up of the log.

A request's line is rendered as structlog would render it, but on the spot and written in groups: structlog's chain
costs 6 µs a line, a third of what a notification may cost in all. Lines wait at most LINE_DELAY_SECONDS. The fields
are an allow-list: no header and no body gets here, so no token does.
"""

import asyncio
import logging
import sys
from collections import Counter as Tally
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import islice
from typing import Any, Literal, TextIO

import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics

from receiver.core import rfc3339
from receiver.core.errors import ReceiverError
from receiver.core.event import Oddity, QosStatus
from receiver.core.session import Verdict
from receiver.inbox import Batch, Lane

LINE_DELAY_SECONDS = 0.1
_LINES_MAX = 256

#: More names than any receiver has senders; whoever comes after shares a label, so that no metric grows without end.
_SENDERS_MAX = 1_000
_OTHER_SENDER = "(other)"

#: Refusals are a stranger's to make, as many as it likes.
_SELDOM_MAX = 10
_SELDOM_SECONDS = 10.0

#: Keeping takes a fraction of a millisecond on a good disk; beyond the last bound every append has timed out.
_APPEND_BOUNDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_BATCH_SIZE_BOUNDS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_000, 5_000)

#: Places of records that were passed over: so many are remembered, so many told on /readyz.
_PLACES_MAX = 10_000
_PLACES_SHOWN = 3

Fields = dict[str, str | int | float]

disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's omission


class Telemetry:
    """The program's metrics and its log. One object for one process."""

    def __init__(self, stream: TextIO = sys.stderr, log_format: Literal["json", "console"] = "json") -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "qod_receiver_http_requests_total",
            "Requests to the notification path, by what became of them and by sender.",
            ["outcome", "sender"],
            registry=registry,
        )
        self._refusals = Counter(
            "qod_receiver_refusals_total",
            "Requests to the public port that were refused, by status and reason.",
            ["status", "reason"],
            registry=registry,
        )
        self._connections_ended = Counter(
            "qod_receiver_connections_ended_total",
            "Connections that were ended before they had all their answers, or for room, by port and reason.",
            ["port", "reason"],
            registry=registry,
        )
        self._append_seconds = Histogram(
            "qod_receiver_append_duration_seconds",
            "Time to keep notifications that share a sync, from when the first was ready to when all were durable.",
            buckets=_APPEND_BOUNDS,
            registry=registry,
        )
        self._append_size = Histogram(
            "qod_receiver_append_notifications",
            "Notifications that shared a sync.",
            buckets=_BATCH_SIZE_BOUNDS,
            registry=registry,
        )
        self._verdicts = Counter(
            "qod_receiver_notifications_total",
            "Notifications decided on, by verdict; conflict, unrecognized and malformed are dead letters.",
            ["verdict"],
            registry=registry,
        )
        self._oddities = Counter(
            "qod_receiver_oddities_total",
            "What was odd about notifications that had their effect all the same, by what it was.",
            ["oddity"],
            registry=registry,
        )
        self._messages = Counter(
            "qod_receiver_messages_total", "Messages committed to the output topics.", registry=registry
        )
        self._lag = Gauge(
            "qod_receiver_inbox_lag", "Notifications kept and not yet routed.", ["partition"], registry=registry
        )
        self._batch_size = Histogram(
            "qod_receiver_batch_notifications",
            "Notifications that were decided on in one transaction.",
            buckets=_BATCH_SIZE_BOUNDS,
            registry=registry,
        )
        self._batch_seconds = Histogram(
            "qod_receiver_batch_duration_seconds",
            "Time to decide on a batch and to commit it.",
            buckets=_APPEND_BOUNDS,
            registry=registry,
        )
        self._lane_failures = Counter(
            "qod_receiver_lane_failures_total",
            "Batches that could not be read or committed.",
            ["partition"],
            registry=registry,
        )
        self._lane_doubts = Counter(
            "qod_receiver_lane_doubts_total",
            "Partitions whose topics did not fit what was routed, by what was doubted; each was settled.",
            ["partition", "doubt"],
            registry=registry,
        )
        self._lane_waiting = Gauge(
            "qod_receiver_lane_waiting_seconds",
            "How long a committed batch can't be read by consumers yet; 0 while nothing is waited for.",
            ["partition"],
            registry=registry,
        )
        self._settled = Counter(
            "qod_receiver_hanging_transactions_total",
            "Transactions that Kafka had left open on some partitions, by how they were ended.",
            ["outcome"],
            registry=registry,
        )
        self._places: dict[str, str] = {}
        self._passed_over = Counter(
            "qod_receiver_records_passed_over_total",
            "Records of the topics that another program wrote, or damage, of which nothing can be made.",
            registry=registry,
        )
        self._sessions = Gauge(
            "qod_receiver_sessions", "Sessions remembered, by status.", ["qos_status"], registry=registry
        )
        self._unwritable = Counter(
            "qod_receiver_unwritable_total",
            "Notifications that are dead letters because Kafka refused what came of them.",
            registry=registry,
        )
        self._spooled = Gauge(
            "qod_receiver_spool_notifications",
            "Notifications that wait on disk until Kafka takes them.",
            ["spool"],
            registry=registry,
        )
        self._spool_bytes = Gauge(
            "qod_receiver_spool_bytes",
            "Bytes that the notifications on disk take, about.",
            ["spool"],
            registry=registry,
        )
        self._set_aside = Gauge(
            "qod_receiver_set_aside_notifications",
            "Notifications in files of their own because Kafka does not take them as they are.",
            registry=registry,
        )
        self._reconciliations = Counter(
            "qod_receiver_reconciliations_total",
            "Comparisons of the API's sessions with ours, by outcome.",
            ["outcome"],
            registry=registry,
        )
        self._reconciled = Counter(
            "qod_receiver_reconciled_total",
            "What the API told and no notification did: statuses, and facts of sessions.",
            ["what"],
            registry=registry,
        )
        self._passed_over_api = Counter(
            "qod_receiver_api_sessions_passed_over_total",
            "Sessions that comparisons passed over: unread on the API's list, or unanswered when asked for.",
            ["why"],
            registry=registry,
        )
        self._reconciled_at = Gauge(
            "qod_receiver_last_reconciliation_timestamp_seconds",
            "When the API's sessions were last compared with ours, since 1970.",
            registry=registry,
        )
        self._ready = Gauge(
            "qod_receiver_ready", "Whether a notification can be kept now: 1 or 0, as on /readyz.", registry=registry
        )
        Info("qod_receiver_build", "The release that runs.", registry=registry).info(
            {"version": version("qod-receiver")}
        )
        why = "unread", "unanswered"
        for counter, values in ((self._verdicts, Verdict), (self._oddities, Oddity), (self._passed_over_api, why)):
            for value in values:
                counter.labels(value)
        self._senders: set[str] = set()
        self._stream = stream
        self._lines: list[Fields] = []
        self._logs_requests = logging.getLogger("receiver").isEnabledFor(logging.INFO)
        self._render = _console_line if log_format == "console" else _json_line
        self._log = structlog.get_logger("receiver")
        self._seldom = Seldom(self._log.warning)

    def request(self, line: Fields) -> None:
        """Count a request, and log its line; it must not be changed afterwards."""
        if not self._lines:
            asyncio.get_running_loop().call_later(LINE_DELAY_SECONDS, self.flush)
        self._lines.append(line)
        if len(self._lines) == _LINES_MAX:
            self.flush()

    def flush(self) -> None:
        """Count and write the lines that wait."""
        lines, self._lines = self._lines, []
        for (outcome, sender), count in Tally((line["outcome"], line["sender"]) for line in lines).items():
            self._requests.labels(outcome, self._label(str(sender))).inc(count)
        if lines and self._logs_requests:
            self._stream.write("".join(map(self._render, lines)))
            self._stream.flush()

    def refused(self, status: int, why: str, message: str, line: Fields, address: str, path: str) -> None:  # noqa: PLR0917  # what a line has
        """A request was refused. `line` is the request's own; the path is told of one that is not served."""
        self._refusals.labels(status, why).inc()
        more = {"path": path} if line["outcome"] == "not_found" else {}
        self._seldom(
            f"{status} {why}",
            "refused",
            status_code=status,
            why=why,
            reason=message,
            address=address,
            sender=line["sender"],
            correlator=line["correlator"],
            **more,
        )

    def connection_ended(self, port: str, reason: str, address: str) -> None:
        """A connection was refused or ended by the limits on connections, or by its sender before it was answered."""
        self._connections_ended.labels(port, reason).inc()
        self._seldom(f"{port} {reason}", "connection_ended", port=port, reason=reason, address=address)

    def descriptors(self, descriptors_max: int, wanted: int, connections_max: int) -> None:
        """How many files and connections this process may have open, and the connections that are taken for that."""
        log = self._log.info if descriptors_max >= wanted else self._log.warning
        log("descriptors", descriptors_max=descriptors_max, wanted=wanted, connections_max=connections_max)

    def _label(self, sender: str) -> str:
        if len(self._senders) < _SENDERS_MAX:
            self._senders.add(sender)
        return sender if sender in self._senders else _OTHER_SENDER

    def appended(self, count: int, seconds: float) -> None:
        """`count` notifications were kept together."""
        self._append_seconds.observe(seconds)
        self._append_size.observe(count)

    def lane_opened(self, lane: Lane) -> None:
        """This process owns a lane: from now on its lag is told as it is at the moment of asking."""
        self._lag.labels(lane.partition).set_function(lambda: lane.lag)

    def lane_waits(self, partition: int, seconds: Callable[[], float]) -> None:
        """For how long the lane has waited until its last commit can be read, asked at the moment of asking."""
        self._lane_waiting.labels(partition).set_function(seconds)

    def lane_settled(self, partition: int, outcome: Literal["committed", "aborted"]) -> None:
        """A transaction of the lane's owner before hung, and was ended so."""
        self._settled.labels(outcome).inc()
        self._log.warning("lane_settled", partition=partition, outcome=outcome)

    def lane_closed(self, partition: int) -> None:
        """This process doesn't own the lane any more; its lag is another's to tell."""
        for gauge in (self._lag, self._lane_waiting):
            with suppress(KeyError):
                gauge.remove(partition)

    def spooled(self, spool: str, notifications_count: int, spool_bytes: int) -> None:
        """So much waits on the disk for Kafka."""
        self._spooled.labels(spool).set(notifications_count)
        self._spool_bytes.labels(spool).set(spool_bytes)

    def spool_failed(self, reason: str) -> None:
        """What waits on the disk could not be sent."""
        self._log.warning("spool_failed", reason=reason)

    def set_aside(self, count: int, reason: str) -> None:
        """So many are set aside; the reason why one more is, else empty."""
        self._set_aside.set(count)
        if reason:
            self._log.error("set_aside", reason=reason)

    def cluster_failed(self, reason: str) -> None:
        """Kafka is away, or its topics are not as they must be; asked again in a while."""
        self._log.warning("cluster_failed", reason=reason)

    def addresses_not_written(self, reason: str) -> None:
        """Other commands won't find this process, whatever else it does."""
        self._log.warning("addresses_not_written", reason=reason)

    def topic_differs(self, topic: str, what: str) -> None:
        """A topic is not as the configuration wants it, though it can be used."""
        self._log.warning("topic_differs", topic=topic, what=what)

    def membership_failed(self, reason: str) -> None:
        """This process is not a member of the routers' group, and tries again."""
        self._log.warning("membership_failed", reason=reason)

    def batch(self, lane: Lane, batch: Batch, verdicts: Sequence[Verdict], messages_count: int, seconds: float) -> None:
        """A batch was committed."""
        tally = Tally(verdicts)
        for verdict, count in tally.items():
            self._verdicts.labels(verdict).inc(count)
        self._messages.inc(messages_count)
        self._batch_size.observe(len(verdicts))
        self._batch_seconds.observe(seconds)
        self._log.info(
            "batch",
            partition=lane.partition,
            position=batch.position,
            next_position=batch.next_position,
            notifications=len(verdicts),
            messages=messages_count,
            lag=lane.lag,
            duration_seconds=round(seconds, 6),
            **{verdict.value: count for verdict, count in tally.items()},
        )

    def odd(self, oddities: Sequence[Oddity]) -> None:
        """This was odd about the notifications of a batch that was committed."""
        for oddity, count in Tally(oddities).items():
            self._oddities.labels(oddity).inc(count)

    def undecidable(self, trace: str, error: Exception) -> None:
        """The router itself failed on a notification."""
        self._log.error("undecidable", inbox=trace, exc_info=error)

    def passed_over(self, place: str, why: str) -> None:
        """A record was passed over: nothing can be made of it. `place` is its topic, partition and position.

        Once for each place, for as many as are remembered: several that look on may meet it.
        """
        if place in self._places:
            return
        if len(self._places) < _PLACES_MAX:
            self._places[place] = why
        self._passed_over.inc()
        self._log.warning("record_passed_over", record=place, reason=why)

    def unwritable(self, trace: str, reason: str) -> None:
        """What a notification came to can't be written."""
        self._unwritable.inc()
        self._log.error("unwritable", inbox=trace, reason=reason)

    @property
    def passed_over_notice(self) -> str:
        """What was passed over since the start, in words for an operator; empty where nothing was."""
        if not self._places:
            return ""
        first = "; ".join(f"{place}: {why}" for place, why in islice(self._places.items(), _PLACES_SHOWN))
        return f"{len(self._places)} passed over, each in the log, such as {first}"

    def edge_failed(self, correlator: str, error: BaseException) -> None:
        """The edge itself failed on a request."""
        self._log.error("edge_failed", correlator=correlator, exc_info=error)

    def lane_failed(self, partition: int, reason: str) -> None:
        """A batch could not be read or committed."""
        self._lane_failures.labels(partition).inc()
        self._log.warning("lane_failed", partition=partition, reason=reason)

    def lane_doubted(self, partition: int, doubt: str, what: str) -> None:
        """A partition's topics did not fit what was routed, and this was done about it."""
        self._lane_doubts.labels(partition, doubt).inc()
        self._log.warning("lane_doubted", partition=partition, doubt=doubt, what=what)

    def retention_failed(self, reason: str) -> None:
        """What is too old could not be removed."""
        self._log.warning("retention_failed", reason=reason)

    def reconciled(self, statuses_count: int, facts_count: int) -> None:
        """The API's sessions were compared with ours, and this was appended."""
        self._reconciliations.labels("done").inc()
        self._reconciled.labels("status").inc(statuses_count)
        self._reconciled.labels("facts").inc(facts_count)
        self._reconciled_at.set_to_current_time()
        if statuses_count or facts_count:
            self._log.info("reconciled", statuses=statuses_count, facts=facts_count)

    def reconciled_in_part(self, unread_count: int, unanswered_count: int, reason: str) -> None:
        """So many of the API's sessions could not be read, and of so many of ours it would not tell."""
        self._passed_over_api.labels("unread").inc(unread_count)
        self._passed_over_api.labels("unanswered").inc(unanswered_count)
        self._log.warning("reconciled_in_part", unread=unread_count, unanswered=unanswered_count, reason=reason)

    def reconcile_failed(self, reason: str, error: Exception) -> None:
        """The API's sessions could not be compared with ours; tried again in a while."""
        self._reconciliations.labels("failed").inc()
        foreseen = isinstance(error, ReceiverError)
        self._log.warning("reconcile_failed", reason=reason, exc_info=None if foreseen else error)

    def sessions(self, counts: Mapping[QosStatus, int]) -> None:
        """How many sessions there are."""
        for qos_status, count in counts.items():
            self._sessions.labels(qos_status).set(count)

    def ready(self, *, ready: bool) -> None:
        """Whether /readyz says yes."""
        self._ready.set(ready)


class Seldom:
    """Writes lines of the log at a bounded rate: of one kind, _SELDOM_MAX in _SELDOM_SECONDS, and then how many more
    there were. There are as many kinds as their callers name.
    """

    def __init__(self, write: Callable[..., Any]) -> None:
        self._write = write
        self._counts: Tally[str] = Tally()

    def __call__(self, kind: str, event: str, **fields: str | float) -> None:
        """Write a line, unless there were many of its kind. A loop runs."""
        self._counts[kind] += 1
        count = self._counts[kind]
        if count == 1:
            asyncio.get_running_loop().call_later(_SELDOM_SECONDS, self._tell, kind, event)
        if count <= _SELDOM_MAX:
            self._write(event, **fields)

    def _tell(self, kind: str, event: str) -> None:
        count = self._counts.pop(kind) - _SELDOM_MAX
        if count > 0:
            self._write(f"{event}_more", what=kind, count=count, seconds=_SELDOM_SECONDS)


def log_format_of(wanted: Literal["auto", "json", "console"]) -> Literal["json", "console"]:
    """The format of the log where `auto` may be wanted: people read a terminal, programs all else."""
    if wanted == "auto":
        return "console" if sys.stderr.isatty() else "json"
    return wanted


def configure_log(level: str, log_format: Literal["json", "console"], stream: TextIO = sys.stderr) -> None:
    """Send the log of the program and of its libraries to `stream`, in one format."""
    before: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any
    if log_format == "console":
        # A traceback with the values of variables would tell tokens and bodies.
        renderer = structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    else:
        before.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer(serializer=lambda fields, **_: orjson.dumps(fields).decode())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # uvicorn tells at INFO what our own lines tell better.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    # aiokafka tells as an error what it tries again in a moment; what is an error to us is told by us.
    logging.getLogger("aiokafka").setLevel(logging.DEBUG if level == "debug" else logging.CRITICAL)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *before,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _stamped(fields: Fields) -> dict[str, Any]:
    timestamp = rfc3339.render(int(fields.pop("received_micros")))
    return {"event": "request", "level": "info", "timestamp": timestamp, **fields}


def _json_line(fields: Fields) -> str:
    return orjson.dumps(_stamped(fields), option=orjson.OPT_APPEND_NEWLINE).decode()


_console: Callable[..., str] = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())


def _console_line(fields: Fields) -> str:
    return f"{_console(None, 'info', _stamped(fields))}\n"
