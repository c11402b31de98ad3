"""The record of a session on the sessions topic: how it is written and read. Pure.

The value is for all consumers, see schemas/README.md; a router's memory beside it is in headers. Routers, lanes,
readers and the export all write and read such records here, so each remembers exactly what another wrote.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from receiver.core import rfc3339
from receiver.core.errors import Malformed
from receiver.core.event import QosStatus
from receiver.core.facts import facts_of, with_members
from receiver.core.headers import LEARNED, MARKS, MARKS_CUT, MEMORY, TOUCHED, Headers
from receiver.core.marks import are_marks
from receiver.core.message import Message
from receiver.core.session import Session

_MICROS = re.compile(r"-?[0-9]{1,18}")
#: A status is the first letter of its name; M marks a session that counts as ended because the API does not know it.
_LETTERS = {status: status.value[0] for status in QosStatus}
_STATUSES = {letter: status for status, letter in _LETTERS.items()}
_MISSING = "M"
_LEARNED = re.compile(r"[RAUM]{0,4}")

#: A router's records have a tenth of this. Twice this still fits into a record that brokers accept.
_TEXT_BYTES_MAX = 256 * 1024
_SECONDS_MAX = 1e12


class NoSession(Exception):
    """The record is not a session's, or lacks something that a router writes; the message says what."""


def session_message(topic: str, session: Session, headers: Sequence[tuple[str, str]], timestamp_millis: int) -> Message:
    """The record of a session; `headers` trace it back to its cause."""
    memory = [*headers, *_memory(session)]
    return Message(topic, session.session_id, session_value(session), memory, timestamp_millis)


def traced(message: Message) -> Headers:
    """The headers of `message`, a session's record, without the router's memory."""
    return [header for header in message.headers if header[0] not in MEMORY]


def session_of(message: Message) -> Session | None:
    """The session in a record, None for a tombstone. Raises NoSession."""
    if message.value is None:
        return None
    session = session_from(message.value, dict(message.headers))
    if session.session_id != message.key:
        raise NoSession("the record's key is not its session's id")
    return session


def session_value(session: Session) -> bytes:
    """The session as the flat JSON of the sessions topic."""
    value: dict[str, Any] = {
        "sessionId": session.session_id,
        "qosStatus": session.qos_status,
        "time": rfc3339.render(session.time_micros),
        "sender": session.sender,
    }
    if session.status_info is not None:
        value["statusInfo"] = session.status_info
    if session.available_micros is not None:
        value["availableSince"] = rfc3339.render(session.available_micros)
    if session.available_seconds is not None:
        value["availableSeconds"] = session.available_seconds
    return orjson.dumps(with_members(value, session.facts))


def session_from(value: bytes | str, headers: Mapping[str, str]) -> Session:
    """The session in the value and the headers of a record. Raises NoSession."""
    try:
        if len(value) + len(headers[MARKS]) > _TEXT_BYTES_MAX:
            raise NoSession(f"longer than {_TEXT_BYTES_MAX} bytes")
        return _session(orjson.loads(value), headers)
    except KeyError as error:
        raise NoSession(f"{error.args[0]} is missing") from None
    except (ValueError, TypeError, AttributeError, OverflowError, Malformed) as error:
        raise NoSession(str(error)) from None


def _session(told: Mapping[str, Any], headers: Mapping[str, str]) -> Session:
    since, seconds, cut = told.get("availableSince"), told.get("availableSeconds"), headers.get(MARKS_CUT)
    if seconds is not None and not (type(seconds) in {float, int} and 0 <= seconds <= _SECONDS_MAX):
        raise NoSession("availableSeconds is no time")
    learned = headers.get(LEARNED, "")
    if _LEARNED.fullmatch(learned) is None:
        raise NoSession(f"{LEARNED} is damaged")
    return Session(
        _text(told, "sessionId"),
        _text(told, "sender"),
        QosStatus(told["qosStatus"]),
        _text(told, "statusInfo") if "statusInfo" in told else None,
        _micros(told["time"]),
        _number(headers, TOUCHED),
        None if since is None else _micros(since),
        None if seconds is None else float(seconds),
        _marks(headers[MARKS]),
        None if cut is None else _number(headers, MARKS_CUT),
        facts_of(told),
        frozenset(_STATUSES[letter] for letter in learned if letter != _MISSING),
        _MISSING in learned,
    )


def _memory(session: Session) -> Headers:
    memory = [(MARKS, session.marks), (TOUCHED, str(session.touched_micros))]
    if session.marks_cut_micros is not None:
        memory.append((MARKS_CUT, str(session.marks_cut_micros)))
    if session.learned or session.is_missing:
        learned = "".join([letter for status, letter in _LETTERS.items() if status in session.learned])
        memory.append((LEARNED, learned + _MISSING * session.is_missing))
    return memory


def _marks(text: str) -> str:
    if not are_marks(text):
        raise NoSession(f"{MARKS} is damaged")
    return text


def _text(told: Mapping[str, Any], member: str) -> str:
    text = told[member]
    if type(text) is not str:
        raise NoSession(f"{member} is no text")
    return text


def _micros(text: str) -> int:
    micros = rfc3339.micros(text)
    if micros not in rfc3339.WRITABLE_MICROS:
        raise NoSession("a time is out of bounds")
    return micros


def _number(headers: Mapping[str, str], name: str) -> int:
    text = headers[name]
    if _MICROS.fullmatch(text) is None or int(text) not in rfc3339.WRITABLE_MICROS:
        raise NoSession(f"{name} is no time")
    return int(text)
