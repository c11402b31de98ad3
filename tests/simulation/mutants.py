"""The program with one mistake each. If the simulation does not find one, the simulation must be improved.

Each mistake was made elsewhere, is common advice, or was once in this program.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import apsw

from receiver.backends.sqlite.file import Effects
from receiver.backends.sqlite.node import SqliteInbox, SqliteLane
from receiver.core.message import Message
from receiver.core.notification import Notification
from receiver.core.router import Decision, Router
from receiver.core.session import Session
from receiver.dispatcher import Dispatcher
from receiver.inbox import Batch, Told
from tests.simulation.world import NodeFile, Parts

_NO_EFFECTS = Effects((), (), ())


class _AnswersFirst(SqliteInbox):
    def take(self, notification: Notification, told: Told) -> None:
        super().take(notification, lambda _: None)
        told(None)


class _IgnoresFailures(SqliteInbox):
    def take(self, notification: Notification, told: Told) -> None:
        super().take(notification, lambda _: told(None))


class _SyncsAtCheckpoints(NodeFile):
    def _open(self) -> apsw.Connection:
        connection = super()._open()
        connection.execute("PRAGMA synchronous = normal")
        return connection


class _TrustsTheLog(NodeFile):
    def _rewrite_log(self) -> None:
        """As if no sync had ever failed."""


class _CommitsThePositionFirst(NodeFile):
    def commit(self, position: int, next_position: int, effects: Effects, clock_micros: int) -> int:
        super().commit(position, next_position, _NO_EFFECTS, clock_micros)
        return super().commit(next_position, next_position, effects, clock_micros)


class _CommitsThePositionLast(NodeFile):
    def commit(self, position: int, next_position: int, effects: Effects, clock_micros: int) -> int:
        first = super().commit(position, position, effects, clock_micros)
        super().commit(position, next_position, _NO_EFFECTS, clock_micros)
        return first


class _RemovesWhatIsNotRouted(NodeFile):
    def retain(self, inbox_micros: int, topics_micros: int, rows_max: int) -> int:
        with self._connected() as connection:
            connection.execute("DELETE FROM inbox WHERE written_micros < ?", (inbox_micros,))
        return super().retain(inbox_micros, topics_micros, rows_max)


class _KeepsNoStates(SqliteLane):
    async def commit(
        self, batch: Batch, messages: Sequence[Message], sessions: Mapping[str, Session | None], clock_micros: int
    ) -> None:
        del sessions
        kept = [each for each in messages if each.value is None or not each.topic.endswith(".sessions")]
        await super().commit(batch, kept, {}, clock_micros)


class _NeverRewinds(SqliteLane):
    def rewind(self) -> None:
        """Keep the position: as if all that was read were committed."""


class _DecidesWithOldStates(Dispatcher):
    async def _decide(self, batch: Batch, before: Any) -> Any:  # noqa: ANN401  # the dispatcher's private type
        before.sessions = {}
        return await super()._decide(batch, before)


class _KnowsNoRepetition(Router):
    def decide(self, notification: Notification, trace: str, session: Session | None, clock_micros: int) -> Decision:
        known = None if session is None else session._replace(marks=())
        return super().decide(notification, trace, known, clock_micros)


MUTANTS = {
    "answers before it is durable": Parts(inbox=_AnswersFirst),
    "answers 204 although keeping failed": Parts(inbox=_IgnoresFailures),
    "syncs at checkpoints only": Parts(file=_SyncsAtCheckpoints),
    "trusts a log whose sync failed": Parts(file=_TrustsTheLog),
    "commits the position before the messages": Parts(file=_CommitsThePositionFirst),
    "commits the position after the messages": Parts(file=_CommitsThePositionLast),
    "removes what is not routed yet": Parts(file=_RemovesWhatIsNotRouted),
    "keeps no states of sessions": Parts(lane=_KeepsNoStates),
    "goes on behind a commit that failed": Parts(lane=_NeverRewinds),
    "decides with states that are older than the last batch": Parts(dispatcher=_DecidesWithOldStates),
    "knows no repetition": Parts(router=_KnowsNoRepetition),
}
