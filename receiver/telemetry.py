"""What the program tells of itself: the front of its metrics and its log, by what happened."""

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

#: More names than any receiver has senders; whoever comes after shares a label, so that no metric grows without end.
_SENDERS_MAX = 1_000
_OTHER_SENDER = "(other)"

#: Places of records that were passed over: so many are remembered, so many told on /readyz.
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
        """Count a request, and log its line; it must not be changed afterwards."""
        self._lines.add(line)

    def flush(self) -> None:
        """Count and write the lines that wait."""
        self._lines.flush()

    def _count(self, lines: Sequence[Line]) -> None:
        for (outcome, sender), count in Tally((line.outcome, line.sender) for line in lines).items():
            self._metrics.edge.requests.labels(outcome, self._label(sender)).inc(count)

    def refused(self, status: int, why: str, message: str, line: Line, address: str, path: str) -> None:  # noqa: PLR0917  # what a line has
        """A request was refused. `line` is the request's own; the path is told of one that is not served."""
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
        """A connection was refused or ended by the limits on connections, or by its sender before it was answered."""
        self._metrics.edge.connections_ended.labels(port, reason).inc()
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
        self._metrics.edge.append_seconds.observe(seconds)
        self._metrics.edge.append_size.observe(count)

    def lane_opened(self, lane: Lane) -> None:
        """This process owns a lane: from now on its lag is told as it is at the moment of asking."""
        self._metrics.lanes.lag.labels(lane.partition).set_function(lambda: lane.lag)

    def lane_waits(self, partition: int, seconds: Callable[[], float]) -> None:
        """For how long the lane has waited until its last commit can be read, asked at the moment of asking."""
        self._metrics.lanes.waiting.labels(partition).set_function(seconds)

    def lane_settled(self, partition: int, outcome: Literal["committed", "aborted"]) -> None:
        """A transaction of the lane's owner before hung, and was ended so."""
        self._metrics.lanes.settled.labels(outcome).inc()
        self._log.warning("lane_settled", partition=partition, outcome=outcome)

    def lane_closed(self, partition: int) -> None:
        """This process doesn't own the lane any more; its lag is another's to tell."""
        for gauge in (self._metrics.lanes.lag, self._metrics.lanes.waiting):
            with suppress(KeyError):
                gauge.remove(partition)

    def spooled(self, spool: str, notifications_count: int, spool_bytes: int) -> None:
        """So much waits on the disk for Kafka."""
        self._metrics.spool.notifications.labels(spool).set(notifications_count)
        self._metrics.spool.bytes.labels(spool).set(spool_bytes)

    def spool_failed(self, reason: str) -> None:
        """What waits on the disk could not be sent."""
        self._log.warning("spool_failed", reason=reason)

    def set_aside(self, count: int, reason: str) -> None:
        """`count` notifications are set aside. `reason` tells why one more is; it is empty where none came."""
        self._metrics.spool.set_aside.set(count)
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
        """This was odd about the notifications of a batch that was committed."""
        for oddity, count in Tally(oddities).items():
            self._metrics.router.oddities.labels(oddity).inc(count)

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
        self._metrics.router.passed_over.inc()
        self._log.warning("record_passed_over", record=place, reason=why)

    def unwritable(self, trace: str, reason: str) -> None:
        """What a notification came to can't be written."""
        self._metrics.router.unwritable.inc()
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
        self._metrics.lanes.failures.labels(partition).inc()
        self._log.warning("lane_failed", partition=partition, reason=reason)

    def lane_doubted(self, partition: int, doubt: str, what: str) -> None:
        """A partition's topics did not fit what was routed, and this was done about it."""
        self._metrics.lanes.doubts.labels(partition, doubt).inc()
        self._log.warning("lane_doubted", partition=partition, doubt=doubt, what=what)

    def retention_failed(self, reason: str) -> None:
        """What is too old could not be removed."""
        self._log.warning("retention_failed", reason=reason)

    def reconciled(self, statuses_count: int, facts_count: int) -> None:
        """The API's sessions were compared with ours, and this was appended."""
        self._metrics.api.reconciliations.labels("done").inc()
        self._metrics.api.reconciled.labels("status").inc(statuses_count)
        self._metrics.api.reconciled.labels("facts").inc(facts_count)
        self._metrics.api.reconciled_at.set_to_current_time()
        if statuses_count or facts_count:
            self._log.info("reconciled", statuses=statuses_count, facts=facts_count)

    def reconciled_in_part(self, unread_count: int, unanswered_count: int, reason: str) -> None:
        """A comparison passed over sessions of the API that can't be read, and ours that the API told nothing of."""
        self._metrics.api.passed_over.labels("unread").inc(unread_count)
        self._metrics.api.passed_over.labels("unanswered").inc(unanswered_count)
        self._log.warning("reconciled_in_part", unread=unread_count, unanswered=unanswered_count, reason=reason)

    def reconcile_failed(self, reason: str, error: Exception) -> None:
        """The API's sessions could not be compared with ours; tried again in a while."""
        self._metrics.api.reconciliations.labels("failed").inc()
        foreseen = isinstance(error, ReceiverError)
        self._log.warning("reconcile_failed", reason=reason, exc_info=None if foreseen else error)

    def sessions(self, counts: Mapping[QosStatus, int]) -> None:
        """How many sessions there are."""
        for qos_status, count in counts.items():
            self._metrics.router.sessions.labels(qos_status).set(count)

    def ready(self, *, ready: bool) -> None:
        """Whether /readyz says yes."""
        self._metrics.ready.set(ready)
