"""The edge as an ASGI application: it waits between the intake's steps, for the sender's keys, the body and the disk.

uvicorn calls it for every request that the fast path (`express.py`) does not take.
"""

import re
from functools import partial
from typing import Any

from starlette.types import Receive, Scope, Send

from receiver.edge.arriving import arrived
from receiver.edge.intake import Answer, Intake, Request
from receiver.inbox import future_of

_SLASHES = re.compile("//+")


class EdgeApp:
    """The application of the public port: the intake on its paths, and CAMARA's error body on all others."""

    def __init__(self, intake: Intake, path: str) -> None:
        self.intake = intake
        # Senders of release 0.8 append /notifications to the URL that they were given.
        self.paths = frozenset({path, f"{path}/notifications"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI. The server has no lifespan and no WebSockets, so each scope is a request."""
        intake, path, method = self.intake, scope["path"], scope["method"]
        is_ours = path in self.paths or _SLASHES.sub("/", path).rstrip("/") in self.paths
        head = intake.head(scope["headers"], scope["query_string"], scope["http_version"])
        peer = scope["client"][0] if scope.get("client") else ""
        request = intake.request(head, peer, beside=None if is_ours else path)
        if method == "POST":
            answer = await self._take(request, scope, receive)
        elif is_ours:
            names_origin = any(name == b"webhook-request-origin" for name, _ in scope["headers"])
            answer = intake.probe(request, method, names_origin=names_origin)
        else:
            answer = intake.nothing_here(request)
        if request.status_code:
            await _send(answer or Answer(204, [(b"x-correlator", request.correlator.encode())]), send)

    async def _take(self, request: Request, scope: Scope, receive: Receive) -> Answer | None:
        """Run the steps of the intake for a POST."""
        intake = self.intake
        failure: Exception | None = None
        try:
            admitted = intake.begin(request)
            if admitted is not None:
                await admitted
            body = await arrived(receive, partial(intake.count, request))
            await future_of(partial(intake.keep, request), body)
        except Exception as error:  # noqa: BLE001  # the intake has an answer for each
            failure = error
        finally:
            intake.leave(request)  # also if this is cancelled
            # For room, connections with a valid token are closed last.
            scope.setdefault("state", {})["is_proved"] = request.is_proved
        return intake.settle(request, failure)


async def _send(answer: Answer, send: Send) -> None:
    start: dict[str, Any] = {"type": "http.response.start", "status": answer.status, "headers": answer.headers}
    await send(start)
    await send({"type": "http.response.body", "body": answer.content})
