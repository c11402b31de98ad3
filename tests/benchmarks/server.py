"""The servers that the benchmarks compare: `python -m tests.benchmarks.server KIND DIRECTORY`.

    empty   Starlette's empty 204 on uvicorn with uvloop and httptools, and no log
    edge    the whole edge, without a reader of the inbox
    all     all that `serve` runs

Prints the URLs of the notification path and of the operations port.
"""

import sys
from pathlib import Path

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.log import configure_log
from receiver.process import ports
from receiver.process.addresses import Addresses
from receiver.process.directory import open_directory
from receiver.process.receiving import build_edge
from receiver.process.run import run
from receiver.telemetry import Telemetry
from tests.benchmarks.__main__ import settings_of


async def _no_content(_: Request) -> Response:
    return Response(status_code=204)


async def _empty() -> None:
    app = Starlette(routes=[Route("/notifications", _no_content, methods=["POST"])])
    config = uvicorn.Config(
        app,
        port=0,
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
    )
    await _serve(uvicorn.Server(config))


async def _edge(directory: Path) -> None:
    settings = settings_of(directory)
    configure_log("info", "json")
    telemetry = Telemetry()
    node = open_directory(settings, telemetry.appended)
    app, _ = build_edge(settings, node.inbox, telemetry)
    await _serve(ports.build_server(app, settings, telemetry))


async def _serve(served: uvicorn.Server) -> None:
    with ports.listening("127.0.0.1", 0) as listener, ports.garbage_kept_off():
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/notifications -", flush=True)
        await served.serve([listener])


async def _all(directory: Path) -> None:
    def ready(addresses: Addresses) -> None:
        print(addresses.edge_url, addresses.ops_url, flush=True)

    await run(settings_of(directory), ready=ready)


def main() -> None:
    """Run as a command."""
    kind, directory = sys.argv[1], Path(sys.argv[2])
    if kind == "empty":
        uvloop.run(_empty())
    else:
        uvloop.run(_edge(directory) if kind == "edge" else _all(directory))


if __name__ == "__main__":
    main()
