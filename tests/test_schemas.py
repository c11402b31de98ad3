"""The files in schemas/ agree with the code."""

import json
import re
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from referencing import Registry, Resource

import receiver
from receiver.core.errors import Malformed
from receiver.core.event import QosStatus
from receiver.core.facts import Facts
from receiver.core.message import Message
from receiver.core.notification import RECONCILE, Notification, parse
from receiver.core.router import Router
from receiver.core.session import Session, Verdict
from receiver.qod import telling

SCHEMAS = Path(__file__).parent.parent / "schemas"
SAMPLES = sorted((SCHEMAS / "samples").glob("*.json"))
TOPICS = ("status", "unavailable", "sessions", "dead-letter")


def schema(name: str) -> dict[str, Any]:
    """A JSON Schema of the directory."""
    loaded: dict[str, Any] = json.loads((SCHEMAS / name).read_text())
    return loaded


REGISTRY: Registry[Any] = Registry().with_resources(
    (f"{name}.schema.json", Resource.from_contents(schema(f"topics/{name}.schema.json"))) for name in TOPICS
)
NOTIFICATION = Draft202012Validator(schema("notification.schema.json"))
VALIDATORS = {
    name: Draft202012Validator(
        schema(f"topics/{name}.schema.json"), registry=REGISTRY, format_checker=Draft202012Validator.FORMAT_CHECKER
    )
    for name in TOPICS
}

CHANGES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "sessionId": st.sampled_from(["s-1", "", None, 7, [], "x" * 256, "x" * 257]),
        "qosStatus": st.sampled_from(["AVAILABLE", "UNAVAILABLE", "REQUESTED", "PAUSED"]),
        "statusInfo": st.sampled_from(["NETWORK_TERMINATED", "", None, 1, "NEW", True]),
    },
)
TYPES = st.sampled_from(
    [
        "QOS_STATUS_CHANGED",
        "org.camaraproject.qod.v0.qos-status-changed",
        "org.camaraproject.quality-on-demand.v1.qos-status-changed",
        "org.camaraproject.qos-booking.v0.status-changed",
        "",
        None,
        3,
    ]
)
TIMES = st.sampled_from(["2026-11-24T10:00:00Z", "2026-11-24t10:00z", "", None, "yesterday", 5])
IDENTIFIERS: st.SearchStrategy[Any] = st.sampled_from(["a", "", None, 12, {}, "x" * 2049])
EVENTS = st.fixed_dictionaries(
    {}, optional={"eventId": IDENTIFIERS, "eventType": TYPES, "eventTime": TIMES, "eventDetail": CHANGES | st.none()}
)
BODIES = st.one_of(
    st.fixed_dictionaries(
        {"specversion": st.just("1.0")},
        optional={"id": IDENTIFIERS, "source": IDENTIFIERS, "type": TYPES, "time": TIMES, "data": CHANGES | st.none()},
    ),
    EVENTS,
    EVENTS.map(lambda event: {"event": event}),
    st.fixed_dictionaries(
        {"event": st.sampled_from(["SESSION_TERMINATED", "SESSION_STARTED", ""])},
        optional={"sessionId": st.sampled_from(["s-1", "", None, 7])},
    ),
)


def is_read(body: bytes) -> bool:
    """Whether the parser takes a body."""
    try:
        parse(body)
    except Malformed:
        return False
    return True


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_samples_are_read_and_valid(sample: Path) -> None:
    """Each sample is read by the parser, and fits the schema."""
    assert is_read(sample.read_bytes())
    NOTIFICATION.validate(json.loads(sample.read_text()))


def test_there_are_samples_of_each_dialect() -> None:
    """Every dialect has a sample."""
    names = {sample.name.split("-")[0] for sample in SAMPLES}
    assert {"bare", "event", "cloudevents"} <= names


@given(BODIES)
def test_the_schema_takes_what_the_parser_takes(body: dict[str, Any]) -> None:
    """A body fits the schema exactly if the parser reads it."""
    assert NOTIFICATION.is_valid(body) is is_read(json.dumps(body).encode()), json.dumps(body)


def routed() -> list[Message]:
    """Messages of every kind that the router writes."""
    router = Router(prefix="qod", forget_after_seconds=3600)
    wire = "org.camaraproject.qod.v0.qos-status-changed"
    told: list[dict[str, Any]] = [
        {"id": "1", "qosStatus": "AVAILABLE", "time": "2026-11-24T10:00:01.5Z"},
        {"id": "2", "qosStatus": "UNAVAILABLE", "time": "2026-11-24T10:00:03Z", "statusInfo": "NETWORK_TERMINATED"},
        {"id": "3", "qosStatus": "AVAILABLE", "time": "2026-11-24T10:00:02Z"},
        {"id": "1", "qosStatus": "UNAVAILABLE", "time": "2026-11-24T10:00:09Z"},
        {"id": "4", "qosStatus": "PAUSED"},
        {"id": "5"},
    ]
    # A session whose events come in the wrong order.
    told += [{**told[1], "session": "s-3"}, {**told[0], "session": "s-3"}]
    sessions: dict[str, Session | None] = {}
    messages: list[Message] = []
    for number, event in enumerate(told):
        session_id = event.get("session", "s-1")
        data = {"sessionId": session_id} | {name: event[name] for name in ("qosStatus", "statusInfo") if name in event}
        body = {"specversion": "1.0", "type": wire, "source": "/s", "data": data}
        body |= {name: event[name] for name in ("id", "time") if name in event}
        notification = Notification(
            json.dumps(body).encode(), session_id, "acme", 1_795_514_410_000_000, "application/json", "c-1", "00-1-2-03"
        )
        decision = router.decide(notification, f"0-{number}", sessions.get(session_id), notification.received_micros)
        session = sessions[session_id] = decision.session
        messages += decision.messages
    facts = Facts("QOS_E", 60, 1_795_514_470_000_000, "ab12", {"phoneNumber": "+34600000001"})
    for second, status in enumerate((QosStatus.AVAILABLE, QosStatus.UNAVAILABLE)):
        told_then = telling.Telling("s-2", status, None, 1_795_514_410_000_000 + second, facts)
        learned = telling.notification(told_then, RECONCILE, "acme", notification.received_micros)
        decision = router.decide(learned, "0-9", session if second else None, notification.received_micros)
        session = decision.session
        messages += decision.messages
    envelope = (("ce-id", "x"), ("content-encoding", "br"))
    too_long = notification._replace(body=b"x" * 1_000_000, envelope=envelope)
    return [*messages, *router.decide(too_long, "0-99", session, notification.received_micros).messages]


@pytest.mark.parametrize("topic", TOPICS)
def test_values_are_as_their_schema_says(topic: str) -> None:
    """Each value that the router writes fits its topic's schema, and every member of the schema is written."""
    values = [json.loads(message.value or b"") for message in routed() if message.topic == f"qod.{topic}"]
    assert values
    for value in values:
        VALIDATORS[topic].validate(value)
    written = {name for value in values for name in value}
    described = schema(f"topics/{topic}.schema.json")
    described = schema("topics/status.schema.json") if "$ref" in described else described
    only_late = {"availableSince"} if topic == "unavailable" else set()
    assert written == set(described["properties"]) - only_late


def test_headers_are_as_the_readme_says() -> None:
    """The README names every header that the router writes, and no other."""
    rows = re.findall(r"^\| (`.*?`(?:, `.*?`)*) \|", _section("Headers"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(.*?)`", row)}
    written = {name for message in routed() for name, _ in message.headers}
    # A long memory is rarer than these messages. A lane on Kafka adds the other.
    assert written | {"marks-cut", "inbox-id"} == named


def test_verdicts_are_as_the_readme_says() -> None:
    """The README explains every verdict."""
    named = re.findall(r"^\| `(\w+)` \|", _section("Verdicts"), re.MULTILINE)
    assert named == [verdict.value for verdict in Verdict]


def _section(title: str) -> str:
    return (SCHEMAS / "README.md").read_text().split(f"## {title}\n")[1].split("\n## ")[0]


def test_the_openapi_document_is_valid() -> None:
    """The description of the endpoint is OpenAPI."""
    document = yaml.safe_load((SCHEMAS / "callback.openapi.yaml").read_text())
    validate(document, base_uri=(SCHEMAS / "callback.openapi.yaml").as_uri())


def test_the_openapi_document_has_every_answer() -> None:
    """The described statuses are those that the code can give."""
    document = yaml.safe_load((SCHEMAS / "callback.openapi.yaml").read_text())
    described = {int(status) for status in document["paths"]["/notifications"]["post"]["responses"]}
    source = "".join(
        (Path(receiver.__file__).parent / name).read_text()
        for name in ("edge/auth.py", "edge/admission.py", "edge/intake.py", "core/errors.py")
    )
    given_by_code = {HTTPStatus[name].value for name in re.findall(r"HTTPStatus\.([A-Z_]+)", source)}
    elsewhere = {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}
    assert described == given_by_code - elsewhere | {204}
