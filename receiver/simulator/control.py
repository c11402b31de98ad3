"""The test's interface beside the API: the ledger, and ending a session as the network does.

It requires no token, as it is the simulator's own back door. Its only secrets are those that clients made up.
"""

from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from receiver.simulator.api import SESSIONS_PATH, json_response
from receiver.simulator.ledger import Ledger
from receiver.simulator.network import Network
from receiver.simulator.notifier import Notifier
from receiver.simulator.plan import RESERVED

_PAGE_DEFAULT = 1_000
_PAGE_MAX = 10_000
_DIGITS_MAX = 18

_PATHS = f"""\
POST   {"/token":<28} client credentials
GET    /.well-known/openid-configuration
POST   {SESSIONS_PATH:<28} create
GET    {SESSIONS_PATH:<28} list
GET    {f"{SESSIONS_PATH}/ID":<28} get
DELETE {f"{SESSIONS_PATH}/ID":<28} delete

POST   {"/sessions/ID/terminate":<28} the network ends it now
GET    {"/ledger":<28} posts from a sequence on (from, limit)
GET    {"/ledger/sessions":<28} sessions from a number on, with their true states (from, limit)
GET    {"/ledger/summary":<28} counts, and whether any post is still to be made

Devices that always do one thing, whatever the plan of faults, by the beginning of their phone number:

"""


def routes(network: Network, notifier: Notifier, ledger: Ledger) -> list[BaseRoute]:
    """The paths of the back door."""

    async def root(_: Request) -> Response:
        devices = "\n".join(f"{prefix}…  {reserved.words}" for prefix, reserved in RESERVED.items())
        return PlainTextResponse(f"{_PATHS}{devices}\n")

    async def entries(request: Request) -> Response:
        page = ledger.entries(*_page(request))
        following = page[-1].sequence + 1 if page else _page(request)[0]
        dropped = ledger.dropped["entries"]
        return json_response({"entries": [entry.fields() for entry in page], "next": following, "dropped": dropped})

    async def lives(request: Request) -> Response:
        page = ledger.lives(*_page(request))
        following = page[-1].session.number + 1 if page else _page(request)[0]
        dropped = ledger.dropped["sessions"]
        return json_response({"sessions": [life.fields() for life in page], "next": following, "dropped": dropped})

    async def summary(_: Request) -> Response:
        posts = {"waiting": notifier.waiting, "inFlight": notifier.in_flight}
        return json_response({**ledger.summary(), "statuses": network.statuses, "posts": posts})

    async def terminate(request: Request) -> Response:
        try:
            ended = network.terminate(request.path_params["session_id"].lower())
        except KeyError:
            raise HTTPException(HTTPStatus.NOT_FOUND, "there is no such session") from None
        if not ended:
            raise HTTPException(HTTPStatus.CONFLICT, "the session has ended already")
        return Response(status_code=HTTPStatus.NO_CONTENT)

    return [
        Route("/", root),
        Route("/ledger", entries),
        Route("/ledger/sessions", lives),
        Route("/ledger/summary", summary),
        Route("/sessions/{session_id}/terminate", terminate, methods=["POST"]),
    ]


def _page(request: Request) -> tuple[int, int]:
    """The `from` and the `limit` of a request. Raises HTTPException for an invalid or unknown parameter."""
    for name in request.query_params:
        if name not in {"from", "limit"}:
            raise HTTPException(HTTPStatus.BAD_REQUEST, f"there is no parameter {name!r}; there are from, limit")
    start = _number(request.query_params.get("from", "1"), "from")
    count = _number(request.query_params.get("limit", str(_PAGE_DEFAULT)), "limit")
    return start, min(count, _PAGE_MAX)


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MAX and int(text)):
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"{name} is a whole number from 1 on")
    return int(text)
