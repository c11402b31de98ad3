"""Answers of APIs and gateways that the QoD API does not document: only their readable parts count."""

from collections.abc import AsyncIterator, Sequence

import orjson
import pytest

from receiver.core.errors import ApiRefused, Unavailable
from receiver.qod.client import QodClient
from tests.faulty_api import SESSION, SESSION_ID, FaultyApi, Reply, answer, cut, encoded, error

PATH = "/v1/qod/sessions"
BOM = b"\xef\xbb\xbf"


@pytest.fixture
async def api() -> AsyncIterator[FaultyApi]:
    """An API that answers as a test wants."""
    async with FaultyApi().listening() as api:
        yield api


# 404


def not_found(**changes: object) -> dict[str, object]:
    """CAMARA's error body."""
    return {"status": 404, "code": "NOT_FOUND", "message": "there is no such session", **changes}


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b" \n",
        not_found(),
        not_found(message=None),
        not_found(code="SESSION_NOT_FOUND"),
        not_found(code="QUALITY_ON_DEMAND.SESSION_NOT_FOUND"),
        BOM + orjson.dumps(not_found()),
    ],
)
async def test_the_apis_word_that_there_is_no_session(told: object, api: FaultyApi) -> None:
    """An empty 404, and CAMARA's error of that code, say that the session does not exist any more."""
    api.script(answer(404, told))
    async with QodClient(api.settings()) as client:
        assert await client.get(SESSION_ID) is None
        assert await client.delete(SESSION_ID) is False


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"message": "no Route matched with those values"}, "404: no Route matched with those values"),  # Kong
        ({"message": "Not Found"}, "404: Not Found"),  # AWS
        ({"fault": {"faultstring": "Unable to identify proxy"}}, "404: Unable to identify proxy"),  # Apigee
        ({"code": "404", "message": "Not Found", "description": "no API"}, "404: Not Found"),  # WSO2
        ({"code": 5, "message": "Method does not exist."}, "404: Method does not exist."),  # Google ESP
        ({"statusCode": 404, "message": "Resource not found"}, "404: Resource not found"),  # Azure
        ({"error": {"code": 404, "message": "gone", "status": "NOT_FOUND"}}, "404: gone"),
        ({"timestamp": "now", "status": 404, "error": "Not Found", "path": "/"}, "404: Not Found"),  # Spring
        ({"type": "about:blank", "title": "Not Found", "status": 404}, "404: Not Found"),  # RFC 9457
        ({"title": "Not Found", "status": 404, "detail": "No static resource."}, "404: Not Found: No static resource."),
        (b"<html><head><title>404 Not Found</title></head></html>", "404: 404 Not Found"),
        (
            b"<am:fault xmlns:am='x'><am:message>No matching resource</am:message></am:fault>",
            "404: No matching resource",
        ),
        (b"404 page not found\n", "404: 404 page not found"),
        (not_found(status=200), "404 (NOT_FOUND): there is no such session"),
        (not_found(code="UNAUTHENTICATED"), "404 (UNAUTHENTICATED): there is no such session"),
        (not_found(code="not_found"), "404 (not_found): there is no such session"),
        ({"status": 404}, "404"),
        ([], "404"),
        (b"null", "404"),
        (b"[" * 100_000, "404"),
        (b"{" + b" " * 100_000, "404"),
    ],
)
async def test_a_gateways_word_is_none(told: object, words: str, api: FaultyApi) -> None:
    """A gateway's 404 is an error, and not the API's answer that a session does not exist."""
    api.script(answer(404, told))
    async with QodClient(api.settings()) as client:
        for operation in client.get, client.delete:
            with pytest.raises(Unavailable) as caught:
                await operation(SESSION_ID)
            assert caught.value.message.startswith(f"the QoD API answers {words}")
            assert ", which is not the API's own word on the session (x-correlator " in caught.value.message


# Lists


def some(*names: object) -> list[dict[str, object]]:
    """Sessions with these ids."""
    return [{**SESSION, "sessionId": str(name)} for name in names]


def link(path: str, rel: str = "next") -> dict[str, str]:
    """A header that points to another page."""
    return {"link": f'<{path}>; rel="{rel}"'}


def paged(elements: object, **pagination: int) -> dict[str, object]:
    """A page in the form of CAMARA's guidelines."""
    return {"sessions": elements, "pagination": pagination}


PAGES: dict[str, tuple[Sequence[Reply], int, Sequence[str]]] = {
    "whole": ([answer(200, some(1, 2))], 2, [PATH]),
    "whole, and counted": ([answer(200, some(1, 2), x_total_count="2")], 2, [PATH]),
    "a count that is none": ([answer(200, some(1, 2), x_total_count="many")], 2, [PATH]),
    "a count that is less": ([answer(200, some(1, 2), x_total_count="1")], 2, [PATH]),
    "none": ([answer(200, [], x_total_count="0")], 0, [PATH]),
    "by links": (
        [
            answer(200, some(1, 2), x_total_count="5", **link(f"{PATH}?page=2")),
            answer(200, some(3, 4), x_total_count="5", **link(f"{PATH}?page=3&perPage=2")),
            answer(200, some(5), x_total_count="5", **link(f"{PATH}?page=1", "first")),
        ],
        5,
        [PATH, f"{PATH}?page=2", f"{PATH}?page=3&perPage=2"],
    ),
    "by a relative link": (
        [answer(200, some(1), **link("?seek=x")), answer(200, some(2))],
        2,
        [PATH, f"{PATH}?seek=x"],
    ),
    "links until a page is empty": (
        [answer(200, some(1), **link("?page=2")), answer(200, [], **link("?page=3"))],
        1,
        [],
    ),
    "by count": ([answer(200, some(1, 2), x_total_count="3"), answer(200, some(3))], 3, [PATH, f"{PATH}?page=2"]),
    "by pages": ([answer(200, some(1), x_total_pages="2"), answer(200, some(2))], 2, [PATH, f"{PATH}?page=2"]),
    "in the body": (
        [answer(200, paged(some(1, 2), page=1, totalCount=3)), answer(200, paged(some(3), page=2, totalCount=3))],
        3,
        [PATH, f"{PATH}?page=2"],
    ),
    "pages in the body": (
        [answer(200, paged(some(1), totalPages=2)), answer(200, paged(some(2), totalPages=2))],
        2,
        [PATH, f"{PATH}?page=2"],
    ),
    "206 with a link": ([answer(206, some(1), **link("?page=2")), answer(200, some(2))], 2, []),
    "one that moved to the next page": (
        [answer(200, some(1, 2), x_total_count="3"), answer(200, some(2, 3), x_total_count="3")],
        3,
        [],
    ),
    "fewer by now": ([answer(200, some(1, 2), x_total_count="9"), answer(200, some(3), x_total_count="3")], 3, []),
    "zipped": ([encoded(200, some(1), "gzip", x_total_count="2"), encoded(200, some(2), "deflate")], 2, []),
}


@pytest.mark.parametrize(("replies", "count", "paths"), PAGES.values(), ids=PAGES)
async def test_pages_are_followed(replies: Sequence[Reply], count: int, paths: Sequence[str], api: FaultyApi) -> None:
    """A list in parts is read to its end, by link or by number."""
    api.script(*replies)
    async with QodClient(api.settings()) as client:
        found = await client.list()
    assert [each.session_id for each in found.sessions] == [str(number) for number in range(1, count + 1)]
    assert len(api.asked) == len(replies)
    assert not paths or [asked.path for asked in api.asked] == paths
    assert len({asked.headers["authorization"] for asked in api.asked}) == 1


PARTS: dict[str, tuple[Sequence[Reply], str]] = {
    "the same again": (
        [answer(200, some(1, 2), x_total_count="5")],
        "lists only 2 of 5 sessions: page 2 has no new sessions",
    ),
    "an end too early": (
        [answer(200, some(1, 2), x_total_count="5"), answer(200, [])],
        "lists only 2 of 5 sessions: page 2 has no new sessions",
    ),
    "a link in a circle": (
        [answer(200, some(1), **link("?page=2"))],
        "lists only 1 sessions: page 2 has no new sessions",
    ),
    "another host": (
        [answer(200, some(1), **link("https://api.example.com/v1/qod/sessions?page=2"))],
        "lists only 1 sessions: the next page is not on the API's host",
    ),
    "another port": ([answer(200, some(1), **link("//127.0.0.1:9/x"))], "the next page is not on the API's host"),
    "no URL": ([answer(200, some(1), **link("http://[::"))], "the next page is not on the API's host"),
    "206": ([answer(206, some(1, 2))], "answers 206, with a part of the list and without a link to the rest"),
    "a page that fails": ([answer(200, some(1), x_total_count="2"), answer(500)], "answers 500"),
    "a page that is cut": ([answer(200, some(1), x_total_count="2"), cut(200, some(2))], "hung up"),
    "a page that is none": ([answer(200, some(1), x_total_count="2"), answer(200, b"<html>")], "it is not JSON"),
    "two lists": ([answer(200, {**paged(some(1)), "others": []})], "it is not a list of sessions"),
    "an object": ([answer(200, {"sessions": some(1), "nextPageToken": "x"})], "it is not a list of sessions"),
}


@pytest.mark.parametrize(("replies", "complaint"), PARTS.values(), ids=PARTS)
async def test_a_part_is_not_the_whole(replies: Sequence[Reply], complaint: str, api: FaultyApi) -> None:
    """A list without an end is an error with the reason."""
    api.script(*replies)
    async with QodClient(api.settings(attempts_max=1)) as client:
        with pytest.raises(Unavailable) as caught:
            await client.list()
    assert complaint in caught.value.message


async def test_pages_have_an_end(api: FaultyApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """An API that always has one more page is given up, by pages and by bytes."""
    monkeypatch.setattr("receiver.qod.listing._PAGES_MAX", 5)
    api.script(*(answer(200, some(number), **link(f"?page={number}")) for number in range(20)))
    async with QodClient(api.settings()) as client:
        with pytest.raises(Unavailable, match="lists only 5 sessions: there are more than 5 pages"):
            await client.list()
        monkeypatch.setattr("receiver.qod.listing._BYTES_MAX", 300)
        with pytest.raises(Unavailable, match="answers with too much content"):
            await client.list()
    assert len(api.asked) < 10


ODD: dict[str, tuple[object, str | None, str]] = {
    "a status of a later release": ({**SESSION, "qosStatus": "GRACE_PERIOD"}, SESSION_ID, "qosStatus must be one of"),
    "no status": ({"sessionId": "s"}, "s", "qosStatus must be one of"),
    "a status that is none": ({**SESSION, "qosStatus": 7}, SESSION_ID, "qosStatus must be one of"),
    "no id": ({"qosStatus": "AVAILABLE"}, None, "sessionId must be"),
    "an id that is none": ({**SESSION, "sessionId": 7}, None, "sessionId must be"),
    "an id that is too long": ({**SESSION, "sessionId": "x" * 257}, None, "sessionId must be"),
    "null": (None, None, "a session is not a JSON object"),
    "text": ("s", None, "a session is not a JSON object"),
    "depth": (orjson.Fragment(b"[" * 300 + b"]" * 300), None, "a session is not a JSON object"),
}


@pytest.mark.parametrize(("odd", "session_id", "complaint"), ODD.values(), ids=ODD)
async def test_one_odd_session_hides_no_other(
    odd: object, session_id: str | None, complaint: str, api: FaultyApi
) -> None:
    """A session that can't be read is passed over and named, and all others are read."""
    api.script(answer(200, orjson.dumps([*some(1), odd, *some(2)]), x_total_count="3"))
    async with QodClient(api.settings()) as client:
        found = await client.list()
    assert [each.session_id for each in found.sessions] == ["1", "2"]
    ((unread_id, why),) = found.unread
    assert unread_id == session_id
    assert why.startswith(complaint)
    assert complaint in found.complaint()


async def test_a_list_that_is_odd_throughout_is_none(api: FaultyApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """If too many sessions can't be read, the list counts as wrong."""
    monkeypatch.setattr("receiver.qod.listing._UNREAD_MAX", 3)
    api.script(answer(200, [1, 2, 3, 4, *some(1)]))
    async with QodClient(api.settings()) as client:
        with pytest.raises(Unavailable, match="answers what can't be read: more than 3 of its sessions"):
            await client.list()


# Encodings and words


@pytest.mark.parametrize(
    "reply",
    [
        encoded(201, SESSION, "gzip"),
        encoded(201, SESSION, "GZIP"),
        encoded(201, SESSION, "deflate"),
        encoded(201, SESSION, "identity", orjson.dumps(SESSION)),
        answer(201, BOM + orjson.dumps(SESSION)),
        answer(200, SESSION),
    ],
)
async def test_an_answer_that_can_be_read_is_read(reply: Reply, api: FaultyApi) -> None:
    """An answer with a content coding, or behind a byte order mark, is read as any other."""
    api.script(reply)
    async with QodClient(api.settings()) as client:
        found = await client.get(SESSION_ID)
    assert found is not None
    assert found.session_id == SESSION_ID


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (encoded(200, SESSION, "br", b"x"), "answers in the encoding br, which was not asked for"),
        (encoded(200, SESSION, "gzip, br", b"x"), "answers in the encoding br, which was not asked for"),
        (
            encoded(200, SESSION, "\x1b[2J", b"x"),
            "answers in the encoding with a malformed name, which was not asked for",
        ),
        (
            encoded(200, SESSION, "gzip", orjson.dumps(SESSION)),
            "answers content that is not in the encoding it declares: gzip",
        ),
        (encoded(200, "x" * 100_000_000, "gzip"), "answers with too much content"),
    ],
)
async def test_an_encoding_that_can_not_be_read_is_told(reply: Reply, told: str, api: FaultyApi) -> None:
    """An unknown coding is named, and an answer that is too long once decoded is not read."""
    api.script(reply)
    async with QodClient(api.settings()) as client:
        with pytest.raises(Unavailable) as caught:
            await client.get(SESSION_ID)
    assert f"the QoD API {told} (" in caught.value.message


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"status": 400, "code": "INVALID_ARGUMENT", "message": "so"}, "400 (INVALID_ARGUMENT): so"),
        ({"type": "about:blank", "title": "Bad", "status": 400, "detail": "so"}, "400: Bad: so"),
        ({"title": "Bad"}, "400: Bad"),
        ({"error": "invalid", "error_description": "so"}, "400: so"),
        ({"errors": [{"message": "so"}, {"message": "too"}]}, "400: so"),
        ({"fault": {"faultstring": "so", "detail": {"errorcode": "x"}}}, "400: so"),
        ({"requestError": {"serviceException": {"text": "so"}}}, "400: so"),
        ({"message": {"message": {"message": {"message": {"message": "deep"}}}}}, "400"),
        (b"<HTML><TITLE>so</TITLE>", "400: so"),
        (b"so\x1b[2J\xff", "400: so [2J\ufffd"),
    ],
)
async def test_the_words_of_an_error_are_shown(told: object, words: str, api: FaultyApi) -> None:
    """An API's or a gateway's error is shown, in whichever member it is."""
    api.script(answer(400, told))
    async with QodClient(api.settings()) as client:
        with pytest.raises(ApiRefused) as caught:
            await client.get(SESSION_ID)
    assert caught.value.message.startswith(f"the QoD API answers {words} (x-correlator ")


async def test_a_long_wait_is_told_in_words(api: FaultyApi) -> None:
    """If the API asks for a pause, the operator reads its length."""
    api.script(error(503, "UNAVAILABLE", "down", retry_after="7200"))
    async with QodClient(api.settings()) as client:
        with pytest.raises(Unavailable, match=r"503 \(UNAVAILABLE\): down, with a Retry-After of 7200 s"):
            await client.list()
    assert len(api.asked) == 1
