"""Router: decide(notification, session) → Decision. Pure, and a function of the inbox alone.

What a notification comes to is settled by its own bytes, by the notifications of its session before it, and by the
times of receipt in the inbox: never by the clock on the wall, by how the inbox was cut into batches, or by who asks.
So a crash, a replica and a replay decide alike.
"""

from base64 import b64encode
from collections.abc import Collection, Sequence
from typing import NamedTuple
from urllib.parse import quote

import orjson

from receiver.core import rfc3339
from receiver.core.errors import Malformed
from receiver.core.event import Event, Oddity, QosStatus, Unrecognized, canonical
from receiver.core.facts import NO_FACTS, Facts, facts_of, members
from receiver.core.message import Message
from receiver.core.notification import API_ORIGINS, BESIDE, Notification, parse
from receiver.core.routes import DEFAULT_ROUTES, Route, targets
from receiver.core.session import Session, Verdict, apply, learn
from receiver.core.session_record import SESSIONS, session_message

#: The other topic that every router writes, without the common prefix.
DEAD_LETTER = "dead-letter"

_DAY_MICROS = 24 * 60 * 60 * 1_000_000
#: Facts are remembered with their session. What we make of the API's answers is a hundredth of this.
_LEARNED_BYTES_MAX = 64 * 1024
#: A dead letter's body is cut here, so that the letter, with a body a third longer in Base64, is one that brokers take.
LETTER_BODY_BYTES_MAX = 512 * 1024


class Decision(NamedTuple):
    """What a notification comes to: its verdict, its session afterwards (None: no session) and its messages.

    `oddities` are what was odd about it, and did not change the verdict.
    """

    verdict: Verdict
    session: Session | None
    messages: Sequence[Message]
    oddities: Sequence[Oddity] = ()


class Router:
    """The rules of one configuration: topic names, extra routes, how long a session is remembered, and which senders
    take a session up again after its end.
    """

    def __init__(
        self,
        *,
        prefix: str,
        routes: Sequence[Route] = (),
        forget_after_seconds: float,
        resuming_senders: Collection[str] = (),
    ) -> None:
        self._prefix = prefix
        self._routes = (*DEFAULT_ROUTES, *routes)
        self._resuming_senders = frozenset(resuming_senders)
        self._forget_after_micros = round(forget_after_seconds * 1_000_000)
        self._sessions_topic = self.topic(SESSIONS)
        self._dead_letter_topic = self.topic(DEAD_LETTER)

    def topic(self, name: str) -> str:
        """The full name of a topic."""
        return f"{self._prefix}.{name}"

    @property
    def topics(self) -> list[str]:
        """The full names of all topics that this router may write to, sorted."""
        names = {SESSIONS, DEAD_LETTER, *(route.topic for route in self._routes)}
        return sorted(map(self.topic, names))

    def decide(self, notification: Notification, trace: str, session: Session | None, clock_micros: int) -> Decision:
        """Decide on one notification.

        `trace` is its partition and position, as `0-17`. `session` is the state of the session that its key names,
        None where none is remembered. `clock_micros` is the latest time of receipt up to and with this notification.
        """
        try:
            event = _beside(notification) or parse(notification.body, notification.envelope)
            facts = _facts(notification)
        except Malformed as error:
            return self._dead(notification, trace, Verdict.MALFORMED, session, error.message)
        if isinstance(event, Unrecognized):
            return self._dead(notification, trace, Verdict.UNRECOGNIZED, session, event.explanation)
        if event.session_id != notification.key:
            if canonical(notification.key) != event.session_id:
                # It lies under another key, so perhaps in another partition than its session: an older release received
                # it and could not read what this one can.
                reason = "not readable when it was received; replay it"
                return self._dead(notification, trace, Verdict.MALFORMED, session, reason)
            # An older release received it, for which a UUID in upper case was the id of another session.
            event = event._replace(session_id=notification.key)
        event = event.believed(notification.received_micros)
        known = None if session is None or self.is_forgotten(session, clock_micros) else session
        sender, received_micros, conflict, reuses_id = notification.sender, notification.received_micros, "", False
        if facts is None:
            resumes = sender in self._resuming_senders
            outcome = apply(known, event, sender, received_micros, clock_micros, resumes=resumes)
            after, verdict, conflict, reuses_id = outcome
        else:
            after, verdict = learn(known, event, facts, sender, clock_micros)
        oddities = (*event.oddities, Oddity.REUSED_ID) if reuses_id else event.oddities
        if verdict is Verdict.CONFLICT:
            return self._dead(notification, trace, verdict, session, conflict)
        if verdict is Verdict.DUPLICATE:
            return Decision(verdict, after, (), oddities)
        headers = _headers(notification, trace, event, verdict)
        # Its timestamp is the inbox's clock, not the event's: tables keep the record with the latest one.
        millis = clock_micros // 1000
        messages = [session_message(self._sessions_topic, after, headers, millis)]
        if names := targets(self._routes, verdict, event, notification.sender):
            granted = verdict is Verdict.LATE and known is not None and known.available_micros != after.available_micros
            value = _status_value(event, after, verdict, notification, granted=granted)
            millis = _record_millis(event, notification)
            messages += [Message(self.topic(name), after.session_id, value, headers, millis) for name in names]
        return Decision(verdict, after, messages, oddities)

    def give_up(self, notification: Notification, trace: str, session: Session | None, reason: str) -> Decision:
        """The decision on a notification that `decide` failed on, or whose records can't be written.

        It is kept as a dead letter, to be replayed once that is mended.
        """
        return self._dead(notification, trace, Verdict.UNRECOGNIZED, session, reason)

    def is_forgotten(self, session: Session, clock_micros: int) -> bool:
        """Whether so much time has passed since the session was last touched that it counts as never seen."""
        return clock_micros - session.touched_micros > self._forget_after_micros

    def forget(self, session: Session, clock_micros: int) -> Message:
        """The tombstone that ends a session's life on the sessions topic."""
        return Message(self._sessions_topic, session.session_id, None, (), clock_micros // 1000)

    def _dead(
        self, notification: Notification, trace: str, verdict: Verdict, session: Session | None, reason: str
    ) -> Decision:
        if notification.origin.startswith("replay:"):
            # It came from the dead letters and lies there still: a second copy would tell nothing.
            return Decision(verdict, session, ())
        body = notification.body[:LETTER_BODY_BYTES_MAX]
        cut = {"bodyBytes": len(notification.body)} if len(body) < len(notification.body) else {}
        value = orjson.dumps(
            {
                "verdict": verdict,
                "reason": reason,
                "sender": notification.sender,
                "receivedAt": rfc3339.render(notification.received_micros),
                "body": b64encode(body).decode(),
                **cut,
                "headers": {
                    name: text
                    for name, text in (
                        ("content-type", notification.content_type),
                        ("x-correlator", notification.correlator),
                        ("traceparent", notification.traceparent),
                        *notification.envelope,
                    )
                    if text
                },
            }
        )
        headers = [
            ("ce_specversion", "1.0"),
            ("ce_id", trace),
            ("ce_source", _sender_source(notification.sender)),
            ("ce_type", "qod-receiver.dead-letter"),
            ("ce_time", rfc3339.render(notification.received_micros)),
            *_tracing(notification, trace, verdict),
        ]
        millis = notification.received_micros // 1000
        return Decision(verdict, session, [Message(self._dead_letter_topic, notification.key, value, headers, millis)])


def _beside(notification: Notification) -> Unrecognized | None:
    """What was posted to a path where nothing is served: its sender was told so, and it may be replayed."""
    if not notification.origin.startswith(BESIDE):
        return None
    path = notification.origin.removeprefix(BESIDE)
    return Unrecognized("", None, f"posted to {path}, where nothing is served; replay it")


def _facts(notification: Notification) -> Facts | None:
    """What it tells beside the event; None where it was posted, by whom we don't believe more. Raises Malformed."""
    if notification.origin not in API_ORIGINS:
        return None
    if len(notification.body) > _LEARNED_BYTES_MAX:
        raise Malformed(f"longer than {_LEARNED_BYTES_MAX} bytes, which nothing is that the API told")
    tree = orjson.loads(notification.body)
    return facts_of(tree["data"]) if "data" in tree else NO_FACTS


def _status_value(
    event: Event, session: Session, verdict: Verdict, notification: Notification, *, granted: bool
) -> bytes:
    """The flat JSON of the status topic. `granted`: it is late, and filled in when the session had been available."""
    value: dict[str, str | float | bool] = {
        "sessionId": event.session_id,
        "qosStatus": event.qos_status,
        "time": rfc3339.render(notification.received_micros if event.time_micros is None else event.time_micros),
        "receivedAt": rfc3339.render(notification.received_micros),
        "sender": notification.sender,
        "late": verdict is Verdict.LATE,
    }
    if event.status_info is not None:
        value["statusInfo"] = event.status_info
    if event.qos_status is QosStatus.UNAVAILABLE:
        value["unexpected"] = event.unexpected
        if verdict is Verdict.ACCEPTED and session.available_seconds is not None:
            value["availableSeconds"] = session.available_seconds
    elif granted and session.available_micros is not None and session.available_seconds is not None:
        value["availableSince"] = rfc3339.render(session.available_micros)
        value["availableSeconds"] = session.available_seconds
    return orjson.dumps(value if session.facts is NO_FACTS else value | members(session.facts))


def _headers(notification: Notification, trace: str, event: Event, verdict: Verdict) -> list[tuple[str, str]]:
    """CloudEvents attributes in binary mode (kafka-protocol-binding.md, 3.2), and what traces the record back."""
    headers = [
        ("ce_specversion", "1.0"),
        ("ce_id", event.id or trace),
        ("ce_source", event.source or _sender_source(notification.sender)),
        ("ce_type", event.type),
    ]
    if event.time_micros is not None:
        headers.append(("ce_time", rfc3339.render(event.time_micros)))
    return headers + _tracing(notification, trace, verdict)


def _tracing(notification: Notification, trace: str, verdict: Verdict) -> list[tuple[str, str]]:
    headers = [("content-type", "application/json"), ("verdict", verdict.value), ("inbox", trace)]
    if notification.correlator:
        headers.append(("x-correlator", notification.correlator))
    if notification.traceparent:
        headers.append(("traceparent", notification.traceparent))
    if notification.origin:
        headers.append(("origin", notification.origin))
    return headers


def _sender_source(sender: str) -> str:
    """A URI reference for events whose dialect names no source."""
    return f"/senders/{quote(sender, safe='')}"


def _record_millis(event: Event, notification: Notification) -> int:
    # Brokers refuse records from far in the future and delete those from long ago at once: a sender's wrong clock
    # must not stop a lane (KIP-1030), so its word counts only within the day before receipt.
    received, told = notification.received_micros, event.time_micros
    return (told if told is not None and received - _DAY_MICROS <= told <= received else received) // 1000
