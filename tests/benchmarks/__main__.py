"""The speed and memory of the receiver, compared with Starlette's empty 204: `python -m tests.benchmarks`.

    edge      requests/s with 64 connections: empty 204, edge alone, edge with the router beside it
    router    notifications/s from a full inbox
    sessions  memory and restart time with a million live sessions

The first needs wrk. Each figure is the median of several runs that take turns, because machines are noisy.
"""

import argparse
import asyncio
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import uvloop

from receiver.backends.packing import pack_notifications
from receiver.backends.sqlite.file import SqliteFile
from receiver.core.notification import Notification
from receiver.dispatcher import Dispatcher
from receiver.edge import auth
from receiver.log import configure_log
from receiver.process import ports
from receiver.process.directory import open_directory
from receiver.process.routing import build_router
from receiver.secret_file import mint_secret
from receiver.settings import Settings
from receiver.telemetry import Telemetry

_SCRIPT = Path(__file__).with_name("notifications.lua")
_HOUR_SECONDS = 3600


def settings_of(directory: Path) -> Settings:
    """The default settings, on free ports."""
    return Settings.model_validate({"data": directory, "edge": {"port": 0}, "ops": {"port": 0}})


def edge(seconds: int, rounds: int, connections: int) -> None:
    """Measure requests per second of three servers."""
    wrk = shutil.which("wrk")
    if wrk is None:
        sys.exit("wrk is not installed")
    rates: dict[str, list[float]] = {"empty": [], "edge": [], "all": []}
    slowest: dict[str, list[str]] = {kind: [] for kind in rates}
    for _ in range(rounds):
        for kind, measured in rates.items():
            rate, p99 = _measure(wrk, kind, seconds, connections)
            measured.append(rate)
            slowest[kind].append(p99)
    empty = statistics.median(rates["empty"])
    for kind, told in (("empty", "Starlette's empty 204"), ("edge", "edge alone"), ("all", "edge with the router")):
        rate = statistics.median(rates[kind])
        print(f"{told:24} {rate:9,.0f} /s   {rate / empty:5.2f} of empty   99th percentile {slowest[kind][-1]}")


def _measure(wrk: str, kind: str, seconds: int, connections: int) -> tuple[float, str]:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:
        settings = settings_of(Path(directory))
        token = auth.mint(mint_secret(settings), "benchmark", _HOUR_SECONDS, time.time())
        command = (sys.executable, "-m", "tests.benchmarks.server", kind, directory)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL) as server:
            assert server.stdout is not None
            url, ops_url = server.stdout.readline().split()
            told = subprocess.run(
                [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", _SCRIPT, url, "--", token],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            if kind == "all":
                _check_lag(ops_url, told)
            server.terminate()
    assert "Non-2xx" not in told, told
    rate = re.search(r"Requests/sec:\s+(\S+)", told)
    p99 = re.search(r"99%\s+(\S+)", told)
    assert rate, told
    assert p99, told
    return float(rate[1]), p99[1]


def _check_lag(ops_url: str, told: str) -> None:
    lag = re.search(r"^qod_receiver_inbox_lag\S* (\S+)", httpx2.get(f"{ops_url}/metrics").text, re.MULTILINE)
    assert lag, "no lag in the metrics"
    rate = re.search(r"Requests/sec:\s+(\S+)", told)
    assert rate, told
    # Notifications of the last half second may still be on their way.
    assert float(lag[1]) < float(rate[1]) / 2, f"the router doesn't keep up: {lag[1]} behind"


def router(count: int, sessions_touched: int) -> None:
    """Measure notifications per second from a full inbox."""
    configure_log("warning", "json")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:
        settings = settings_of(Path(directory))
        _fill(settings, count, sessions_touched)
        rate = uvloop.run(_drain(settings))
    print(f"{'router':24} {rate:9,.0f} /s   from a full inbox of {count:,}")


async def _drain(settings: Settings) -> float:
    node = open_directory(settings)
    count = node.lane.lag
    dispatcher = Dispatcher(node.lane, build_router(settings), Telemetry(), batch_max=settings.router.batch_max)
    began = time.perf_counter()
    with ports.garbage_kept_off():
        routing = asyncio.create_task(dispatcher.run())
        while node.lane.lag and not routing.done():  # noqa: ASYNC110  # an event would cost what is measured
            await asyncio.sleep(0.01)
    seconds = time.perf_counter() - began
    routing.cancel()
    await asyncio.wait({routing})
    node.close()
    return count / seconds


def _fill(settings: Settings, count: int, sessions_count: int) -> None:
    open_directory(settings).close()
    file = SqliteFile(settings.data, f"{settings.prefix}.sessions")
    now = time.time_ns() // 1000
    for first in range(0, count, 64):
        notifications = [_notification(number, sessions_count, now) for number in range(first, min(first + 64, count))]
        file.append(pack_notifications(notifications), now)
    file.close()


def _notification(number: int, sessions_count: int, now_micros: int) -> Notification:
    session = f"{number % sessions_count * 2654435761 % 2**32:08x}-0000-4000-8000-{number % sessions_count:012x}"
    status = b'"AVAILABLE"' if number < sessions_count else b'"UNAVAILABLE","statusInfo":"NETWORK_TERMINATED"'
    body = (
        b'{"id":"%d","source":"https://api.example.com/qod/v0/sessions/%b","specversion":"1.0",'
        b'"type":"org.camaraproject.qod.v0.qos-status-changed","time":"2026-11-24T10:00:00.000Z",'
        b'"data":{"sessionId":"%b","qosStatus":%b}}'
    ) % (number, session.encode(), session.encode(), status)
    return Notification(body, session, "benchmark", now_micros, "application/cloudevents+json", f"c-{number}", "")


def sessions(count: int) -> None:
    """Measure memory and restart time with many live sessions."""
    configure_log("warning", "json")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:
        settings = settings_of(Path(directory))
        _fill(settings, count, count)
        uvloop.run(_drain(settings))
        began = time.perf_counter()
        command = (sys.executable, "-m", "tests.benchmarks.server", "all", directory)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL) as server:
            assert server.stdout is not None
            server.stdout.readline()
            seconds = time.perf_counter() - began
            status = Path(f"/proc/{server.pid}/status").read_text()
            server.terminate()
        resident = re.search(r"VmHWM:\s+(\d+)", status)
        assert resident, status
    print(f"{count:,} live sessions: {int(resident[1]) / 1024:,.0f} MiB at most, restart in {seconds:.1f} s")


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["edge", "router", "sessions"], help="one of them alone")
    parser.add_argument("--seconds", type=int, default=8, help="for each run of the edge")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    arguments = parser.parse_args()
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores")
    if arguments.what in {"edge", None}:
        edge(arguments.seconds, arguments.rounds, arguments.connections)
    if arguments.what in {"router", None}:
        router(200_000, 100_000)
    if arguments.what in {"sessions", None}:
        sessions(1_000_000)


if __name__ == "__main__":
    main()
