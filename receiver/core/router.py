"""Router: decide(notification, session) → Decision. Pure, and a function of the inbox alone.

A decision depends on the notification's bytes, the earlier notifications of its session, and the times of receipt in
the inbox; never on the wall clock, on how the inbox was cut into batches, or on which process decides. So a crash, a
replica and a replay decide alike.
"""

from collections.abc import Collection, Sequence

import orjson

from receiver.core.dead_letter import letter_message
from receiver.core.errors import Malformed
from receiver.core.event import Event, Oddity, QosStatus, Unrecognized, canonical
from receiver.core.facts import NO_FACTS, Facts, facts_of
from receiver.core.headers import event_headers
from receiver.core.message import Message
from receiver.core.notification import API_ORIGINS, BESIDE, REPLAY, Notification, parse
from receiver.core.routes import DEFAULT_ROUTES, Route, targets
from receiver.core.session import Session, Verdict, apply, learn
from receiver.core.session_record import session_message
from receiver.core.status_record import status_millis, status_value
from receiver.core.topics import TopicNames
from receiver.core.value import Value

#: Facts are remembered with their session. The notifications made from the API's answers have a hundredth of this.
_LEARNED_BYTES_MAX = 64 * 1024


# Looking up an enum's member takes ten times as long as looking up a name.
_CONFLICT, _DUPLICATE, _LATE = Verdict.CONFLICT, Verdict.DUPLICATE, Verdict.LATE
_KINDS_MAX = 4_096


class Decision(Value, frozen=True):
    """The result of a notification: its verdict, its session afterwards (None: no session) and its messages.

    `oddities` are those of the notification; they did not change the verdict.
    """

    verdict: Verdict
    session: Session | None
    messages: Sequence[Message]
    oddities: Sequence[Oddity] = ()


class Router:
    """The rules of one configuration: topic names, extra routes, how long a session is remembered, and which senders
    resume a session after its end.
    """

    def __init__(
        self,
        *,
        prefix: str,
        routes: Sequence[Route] = (),
        forget_after_seconds: float,
        resuming_senders: Collection[str] = (),
    ) -> None:
        self._names = TopicNames(prefix)
        self._sessions_topic = self._names.sessions
        self._routes = (*DEFAULT_ROUTES, *routes)
        self._topics: dict[tuple[Verdict, QosStatus, str | None, str, str], Sequence[str]] = {}
        self._resuming_senders = frozenset(resuming_senders)
        self._forget_after_micros = round(forget_after_seconds * 1_000_000)

    def topic(self, name: str) -> str:
        """The full name of a topic."""
        return self._names.full(name)

    @property
    def topics(self) -> list[str]:
        """The full names of all topics that this router may write to, sorted."""
        routed = {self.topic(route.topic) for route in self._routes}
        return sorted({self._names.sessions, self._names.dead_letters, *routed})

    def decide(self, notification: Notification, trace: str, session: Session | None, clock_micros: int) -> Decision:
        """Decide on one notification.

        `trace` is its partition and position, as `0-17`. `session` is the state of the session that its key names,
        None where none is remembered. `clock_micros` is the latest time of receipt up to and with this notification.
        """
        try:
            event = _beside(notification) or parse(notification.body, notification.envelope)
            facts = _facts(notification) if notification.origin else None
        except Malformed as error:
            return self._dead(notification, trace, Verdict.MALFORMED, session, error.message)
        if isinstance(event, Unrecognized):
            return self._dead(notification, trace, Verdict.UNRECOGNIZED, session, event.explanation)
        if event.session_id != notification.key:
            if canonical(notification.key) != event.session_id:
                # It is under another key, so maybe in another partition than its session: the older release that
                # received it could not read it.
                reason = "not readable when it was received; replay it"
                return self._dead(notification, trace, Verdict.MALFORMED, session, reason)
            # The older release that received it took a UUID in upper case for the id of another session.
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
        if verdict is _CONFLICT:
            return self._dead(notification, trace, verdict, session, conflict)
        if verdict is _DUPLICATE:
            return Decision(verdict, after, (), oddities)
        headers = event_headers(notification, trace, event, verdict)
        # The timestamp is the inbox's clock, not the event's, since tables keep the record with the latest timestamp.
        millis = clock_micros // 1000
        messages = [session_message(self._sessions_topic, after, headers, millis)]
        if topics := self._topics_for(verdict, event, sender):
            granted = verdict is _LATE and known is not None and known.available_micros != after.available_micros
            value = status_value(event, after, verdict, notification, granted=granted)
            millis = status_millis(event, received_micros)
            messages += [Message(topic, after.session_id, value, headers, millis) for topic in topics]
        return Decision(verdict, after, messages, oddities)

    def give_up(self, notification: Notification, trace: str, session: Session | None, reason: str) -> Decision:
        """The decision on a notification that `decide` failed on, or whose records can't be written.

        It becomes a dead letter, to be replayed once the cause is mended.
        """
        return self._dead(notification, trace, Verdict.UNRECOGNIZED, session, reason)

    def is_forgotten(self, session: Session, clock_micros: int) -> bool:
        """Whether the session was last touched so long ago that it counts as never seen."""
        return clock_micros - session.touched_micros > self._forget_after_micros

    def forget(self, session: Session, clock_micros: int) -> Message:
        """The tombstone that ends a session's life on the sessions topic."""
        return Message(self._names.sessions, session.session_id, None, (), clock_micros // 1000)

    def _topics_for(self, verdict: Verdict, event: Event, sender: str) -> Sequence[str]:
        """The full names of the topics that an event goes to; they are remembered for each kind of event."""
        kind = verdict, event.qos_status, event.status_info, event.type, sender
        topics = self._topics.get(kind)
        if topics is None:
            topics = [self.topic(name) for name in targets(self._routes, verdict, event, sender)]
            if len(self._topics) >= _KINDS_MAX:
                self._topics.clear()
            self._topics[kind] = topics
        return topics

    def _dead(
        self, notification: Notification, trace: str, verdict: Verdict, session: Session | None, reason: str
    ) -> Decision:
        if notification.origin.startswith(REPLAY):
            # It was replayed from the dead letters and is still there: no second copy is needed.
            return Decision(verdict, session, ())
        letter = letter_message(self._names.dead_letters, notification, trace, verdict, reason)
        return Decision(verdict, session, [letter])


def _beside(notification: Notification) -> Unrecognized | None:
    """A post to an unserved path, as unrecognized. Its sender was answered 404, and it may be replayed."""
    if not notification.origin or not notification.origin.startswith(BESIDE):
        return None
    path = notification.origin.removeprefix(BESIDE)
    return Unrecognized("", None, f"posted to {path}, where nothing is served; replay it")


def _facts(notification: Notification) -> Facts | None:
    """The facts in a notification. None for posted notifications: senders' facts are not trusted. Raises Malformed."""
    if notification.origin not in API_ORIGINS:
        return None
    if len(notification.body) > _LEARNED_BYTES_MAX:
        raise Malformed(f"longer than {_LEARNED_BYTES_MAX} bytes: what the API told never is")
    tree = orjson.loads(notification.body)
    return facts_of(tree["data"]) if "data" in tree else NO_FACTS
