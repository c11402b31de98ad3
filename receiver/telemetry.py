"""The program's metrics and log behind one front, with a method for each kind of event."""

import sys
from collections import Counter as Tally
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Literal, TextIO

import structlog

from receiver.core.errors import ReceiverError
from receiver.core.event import Oddity, QosStatus
from receiver.core.session import Verdict
from receiver.inbox import Batch, Lane
from receiver.log import Seldom
from receiver.metrics import Metrics
from receiver.request_lines import Line, RequestLines

#: More than any receiver has senders. Names beyond share a label, so that no metric grows without end.
_SENDERS_MAX = 1_000
_OTHER_SENDER = "(other)"

#: Places of skipped records: how many are remembered, and how many are shown on /readyz.
_PLACES_MAX = 10_000
_PLACES_SHOWN = 3


class Telemetry:
    """The program's metrics and its log. One object for one process."""

    def __init__(self, stream: TextIO = sys.stderr, log_format: Literal["json", "console"] = "json") -> None:
        self._metrics = Metrics()
        self.registry = self._metrics.registry
        self._senders: set[str] = set()
        self._places: dict[str, str] = {}
        self._lines = RequestLines(stream, log_format, self._count)
        self._log = structlog.get_logger("receiver")
        self._seldom = Seldom(self._log.warning)

    def request(self, line: Line) -> None:
        """Count a request and log its line, which must not change afterwards."""
        self._lines.add(line)

    def flush(self) -> None:
        """Count and write the waiting lines."""
        self._lines.flush()

    def _count(self, lines: Sequence[Line]) -> None:
        for (outcome, sender), count in Tally((line.outcome, line.sender) for line in lines).items():
            self._metrics.edge.requests.labels(outcome, self._label(sender)).inc(count)

    def refused(self, status: int, why: str, message: str, line: Line, address: str, path: str) -> None:  # noqa: PLR0917  # what a line has
        """A request was refused. `line` is the request's own; the path is logged only for a path that is not served."""
        self._metrics.edge.refusals.labels(status, why).inc()
        more = {"path": path} if line.outcome == "not_found" else {}
        self._seldom(
            f"{status} {why}",
            "refused",
            status_code=status,
            why=why,
            reason=message,
            address=address,
            sender=line.sender,
            correlator=line.correlator,
            **more,
        )

    def connection_ended(self, port: str, reason: str, address: str) -> None:
        """A connection was refused or ended by the limits on connections, or its sender ended it before the answer."""
        self._metrics.edge.connections_ended.labels(port, reason).inc()
        self._seldom(f"{port} {reason}", "connection_ended", port=port, reason=reason, address=address)

    def descriptors(self, descriptors_max: int, wanted: int, connections_max: int) -> None:
        """The limits on open files and connections: what this process may have, wanted, and now takes at most."""
        log = self._log.info if descriptors_max >= wanted else self._log.warning
        log("descriptors", descriptors_max=descriptors_max, wanted=wanted, connections_max=connections_max)

    def _label(self, sender: str) -> str:
        if len(self._senders) < _SENDERS_MAX:
            self._senders.add(sender)
        return sender if sender in self._senders else _OTHER_SENDER

    def appended(self, count: int, seconds: float) -> None:
        """`count` notifications were kept together."""
        self._metrics.edge.append_seconds.observe(seconds)
        self._metrics.edge.append_size.observe(count)

    def lane_opened(self, lane: Lane) -> None:
        """This process owns a lane; from now on the metric shows its current lag."""
        self._metrics.lanes.lag.labels(lane.partition).set_function(lambda: lane.lag)

    def lane_waits(self, partition: int, seconds: Callable[[], float]) -> None:
        """`seconds` returns how long the lane has waited until its last commit can be read."""
        self._metrics.lanes.waiting.labels(partition).set_function(seconds)

    def lane_settled(self, partition: int, outcome: Literal["committed", "aborted"]) -> None:
        """A transaction of the lane's previous owner hung, and was ended with this outcome."""
        self._metrics.lanes.settled.labels(outcome).inc()
        self._log.warning("lane_settled", partition=partition, outcome=outcome)

    def lane_closed(self, partition: int) -> None:
        """This process does not own the lane any more; its new owner reports the lag."""
        for gauge in (self._metrics.lanes.lag, self._metrics.lanes.waiting):
            with suppress(KeyError):
                gauge.remove(partition)

    def spooled(self, spool: str, notifications_count: int, spool_bytes: int) -> None:
        """This many notifications, and this many bytes, wait on the disk for Kafka."""
        self._metrics.spool.notifications.labels(spool).set(notifications_count)
        self._metrics.spool.bytes.labels(spool).set(spool_bytes)

    def spool_failed(self, reason: str) -> None:
        """Notifications on the disk could not be sent to Kafka."""
        self._log.warning("spool_failed", reason=reason)

    def set_aside(self, count: int, reason: str) -> None:
        """`count` notifications are set aside. `reason` tells why one more is; it is empty if none was added."""
        self._metrics.spool.set_aside.set(count)
        if reason:
            self._log.error("set_aside", reason=reason)

    def cluster_failed(self, reason: str) -> None:
        """Kafka is unreachable, or its topics are not as they must be; another attempt follows."""
        self._log.warning("cluster_failed", reason=reason)

    def addresses_not_written(self, reason: str) -> None:
        """The file with this process's addresses could not be written: other commands will not find the process."""
        self._log.warning("addresses_not_written", reason=reason)

    def topic_differs(self, topic: str, what: str) -> None:
        """A topic differs from the configuration but can be used."""
        self._log.warning("topic_differs", topic=topic, what=what)

    def membership_failed(self, reason: str) -> None:
        """This process is not a member of the routers' group; another attempt follows."""
        self._log.warning("membership_failed", reason=reason)

    def batch(self, lane: Lane, batch: Batch, verdicts: Sequence[Verdict], messages_count: int, seconds: float) -> None:
        """A batch was committed."""
        tally = Tally(verdicts)
        for verdict, count in tally.items():
            self._metrics.router.verdicts.labels(verdict).inc(count)
        self._metrics.router.messages.inc(messages_count)
        self._metrics.router.batch_size.observe(len(verdicts))
        self._metrics.router.batch_seconds.observe(seconds)
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
        """Notifications of a committed batch had these oddities."""
        for oddity, count in Tally(oddities).items():
            self._metrics.router.oddities.labels(oddity).inc(count)

    def undecidable(self, trace: str, error: Exception) -> None:
        """The router itself failed on a notification."""
        self._log.error("undecidable", inbox=trace, exc_info=error)

    def passed_over(self, place: str, why: str) -> None:
        """A record was skipped as unreadable. `place` is its topic, partition and position.

        Each place is reported once, up to _PLACES_MAX places, since several readers may meet the same record.
        """
        if place in self._places:
            return
        if len(self._places) < _PLACES_MAX:
            self._places[place] = why
        self._metrics.router.passed_over.inc()
        self._log.warning("record_passed_over", record=place, reason=why)

    def unwritable(self, trace: str, reason: str) -> None:
        """The messages of a notification can't be written."""
        self._metrics.router.unwritable.inc()
        self._log.error("unwritable", inbox=trace, reason=reason)

    @property
    def passed_over_notice(self) -> str:
        """The records skipped since the start, in words for an operator; empty if there are none."""
        if not self._places:
            return ""
        first = "; ".join(f"{place}: {why}" for place, why in islice(self._places.items(), _PLACES_SHOWN))
        return f"{len(self._places)} passed over, each in the log, such as {first}"

    def edge_failed(self, correlator: str, error: BaseException) -> None:
        """The edge itself failed on a request."""
        self._log.error("edge_failed", correlator=correlator, exc_info=error)

    def lane_failed(self, partition: int, reason: str) -> None:
        """A batch could not be read or committed."""
        self._metrics.lanes.failures.labels(partition).inc()
        self._log.warning("lane_failed", partition=partition, reason=reason)

    def lane_doubted(self, partition: int, doubt: str, what: str) -> None:
        """A partition's topics did not match what was routed. `what` tells how that was settled."""
        self._metrics.lanes.doubts.labels(partition, doubt).inc()
        self._log.warning("lane_doubted", partition=partition, doubt=doubt, what=what)

    def retention_failed(self, reason: str) -> None:
        """Data beyond its retention could not be removed."""
        self._log.warning("retention_failed", reason=reason)

    def reconciled(self, statuses_count: int, facts_count: int) -> None:
        """The API's sessions were compared with ours, and these numbers of notifications were appended."""
        self._metrics.api.reconciliations.labels("done").inc()
        self._metrics.api.reconciled.labels("status").inc(statuses_count)
        self._metrics.api.reconciled.labels("facts").inc(facts_count)
        self._metrics.api.reconciled_at.set_to_current_time()
        if statuses_count or facts_count:
            self._log.info("reconciled", statuses=statuses_count, facts=facts_count)

    def reconciled_in_part(self, unread_count: int, unanswered_count: int, reason: str) -> None:
        """A comparison skipped sessions of the API that can't be read, and sessions of ours that the API did not answer
        for.
        """
        self._metrics.api.passed_over.labels("unread").inc(unread_count)
        self._metrics.api.passed_over.labels("unanswered").inc(unanswered_count)
        self._log.warning("reconciled_in_part", unread=unread_count, unanswered=unanswered_count, reason=reason)

    def reconcile_failed(self, reason: str, error: Exception) -> None:
        """The API's sessions could not be compared with ours; another attempt follows."""
        self._metrics.api.reconciliations.labels("failed").inc()
        foreseen = isinstance(error, ReceiverError)
        self._log.warning("reconcile_failed", reason=reason, exc_info=None if foreseen else error)

    def sessions(self, counts: Mapping[QosStatus, int]) -> None:
        """The number of sessions in each status."""
        for qos_status, count in counts.items():
            self._metrics.router.sessions.labels(qos_status).set(count)

    def ready(self, *, ready: bool) -> None:
        """Whether /readyz answers 200."""
        self._metrics.ready.set(ready)
