"""Every metric, declared here once. `deploy/reference.md` is generated from it."""

from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics

from receiver.core.event import Oddity
from receiver.core.session import Verdict

#: An append takes a fraction of a millisecond on a good disk; beyond the last bound every append has timed out.
_APPEND_BOUNDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_BATCH_SIZE_BOUNDS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_000, 5_000)

disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's omission


class EdgeMetrics:
    """Metrics of the public port, and of keeping notifications."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "qod_receiver_http_requests_total",
            "Requests to the notification path, by outcome and sender.",
            ["outcome", "sender"],
            registry=registry,
        )
        self.refusals = Counter(
            "qod_receiver_refusals_total",
            "Requests to the public port that were refused, by status and reason.",
            ["status", "reason"],
            registry=registry,
        )
        self.connections_ended = Counter(
            "qod_receiver_connections_ended_total",
            "Connections ended before all their answers were sent, or to make room, by port and reason.",
            ["port", "reason"],
            registry=registry,
        )
        self.append_seconds = Histogram(
            "qod_receiver_append_duration_seconds",
            "Time to keep notifications that share a sync, from the first being ready to all being durable.",
            buckets=_APPEND_BOUNDS,
            registry=registry,
        )
        self.append_size = Histogram(
            "qod_receiver_append_notifications",
            "Notifications that shared a sync.",
            buckets=_BATCH_SIZE_BOUNDS,
            registry=registry,
        )


class RouterMetrics:
    """Metrics of the router."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.verdicts = Counter(
            "qod_receiver_notifications_total",
            "Notifications decided on, by verdict; conflict, unrecognized and malformed are dead letters.",
            ["verdict"],
            registry=registry,
        )
        self.oddities = Counter(
            "qod_receiver_oddities_total",
            "Oddities in notifications that took effect all the same, by kind.",
            ["oddity"],
            registry=registry,
        )
        self.messages = Counter(
            "qod_receiver_messages_total", "Messages committed to the output topics.", registry=registry
        )
        self.batch_size = Histogram(
            "qod_receiver_batch_notifications",
            "Notifications decided on in one transaction.",
            buckets=_BATCH_SIZE_BOUNDS,
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "qod_receiver_batch_duration_seconds",
            "Time to decide on a batch and to commit it.",
            buckets=_APPEND_BOUNDS,
            registry=registry,
        )
        self.sessions = Gauge(
            "qod_receiver_sessions", "Sessions remembered, by status.", ["qos_status"], registry=registry
        )
        self.unwritable = Counter(
            "qod_receiver_unwritable_total",
            "Notifications that became dead letters because Kafka refused their messages.",
            registry=registry,
        )
        self.passed_over = Counter(
            "qod_receiver_records_passed_over_total",
            "Records skipped as unreadable: damaged, or written by another program.",
            registry=registry,
        )
        for verdict in Verdict:
            self.verdicts.labels(verdict)
        for oddity in Oddity:
            self.oddities.labels(oddity)


class LaneMetrics:
    """Metrics of partitions."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.lag = Gauge(
            "qod_receiver_inbox_lag", "Notifications kept and not yet routed.", ["partition"], registry=registry
        )
        self.failures = Counter(
            "qod_receiver_lane_failures_total",
            "Batches that could not be read or committed.",
            ["partition"],
            registry=registry,
        )
        self.doubts = Counter(
            "qod_receiver_lane_doubts_total",
            "Partitions whose topics did not match what was routed, by kind of doubt; each was settled.",
            ["partition", "doubt"],
            registry=registry,
        )
        self.waiting = Gauge(
            "qod_receiver_lane_waiting_seconds",
            "How long a committed batch has been invisible to consumers; 0 when none is.",
            ["partition"],
            registry=registry,
        )
        self.settled = Counter(
            "qod_receiver_hanging_transactions_total",
            "Transactions that Kafka had left open on some partitions, by outcome.",
            ["outcome"],
            registry=registry,
        )


class SpoolMetrics:
    """Metrics of notifications that wait on the disk for Kafka."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.notifications = Gauge(
            "qod_receiver_spool_notifications",
            "Notifications that wait on disk until Kafka takes them.",
            ["spool"],
            registry=registry,
        )
        self.bytes = Gauge(
            "qod_receiver_spool_bytes",
            "Approximate bytes that the notifications on disk take.",
            ["spool"],
            registry=registry,
        )
        self.set_aside = Gauge(
            "qod_receiver_set_aside_notifications",
            "Notifications set aside in files of their own because Kafka refuses them.",
            registry=registry,
        )


class ApiMetrics:
    """Metrics of comparisons with the operator's API."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.reconciliations = Counter(
            "qod_receiver_reconciliations_total",
            "Comparisons of the API's sessions with ours, by outcome.",
            ["outcome"],
            registry=registry,
        )
        self.reconciled = Counter(
            "qod_receiver_reconciled_total",
            "Statuses and facts of sessions that the API told and no notification did.",
            ["what"],
            registry=registry,
        )
        self.passed_over = Counter(
            "qod_receiver_api_sessions_passed_over_total",
            "Sessions skipped by comparisons: unreadable on the API's list, or unanswered when asked for.",
            ["why"],
            registry=registry,
        )
        self.reconciled_at = Gauge(
            "qod_receiver_last_reconciliation_timestamp_seconds",
            "Time of the last comparison of the API's sessions with ours, in seconds since 1970.",
            registry=registry,
        )
        for why in ("unread", "unanswered"):
            self.passed_over.labels(why)


class Metrics:
    """All metrics of one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.edge = EdgeMetrics(registry)
        self.router = RouterMetrics(registry)
        self.lanes = LaneMetrics(registry)
        self.spool = SpoolMetrics(registry)
        self.api = ApiMetrics(registry)
        self.ready = Gauge(
            "qod_receiver_ready", "Whether a notification can be kept now: 1 or 0, as on /readyz.", registry=registry
        )
        self.build = Info("qod_receiver_build", "The release that runs.", registry=registry)
        self.build.info({"version": version("qod-receiver")})
