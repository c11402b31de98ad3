"""Privacy on the machine and on screens: files are their owner's alone, and passwords are never printed."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from receiver.shown import HIDDEN, shown_url
from tests.limits import SECONDS_MAX
from tests.receiver_process import ReceiverProcess, run
from tests.samples import body, told


@pytest.fixture(params=[0o000, 0o022, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """A umask that lets others in, the usual one, and one that gives no rights."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.long
@pytest.mark.usefixtures("umask")
def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    """With any umask, each kept file has mode 0600, and each new directory 0700."""
    data = tmp_path / "data"
    run("token", "mint", "--data", str(data), "--sender", "test")
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    process = ReceiverProcess(data)
    assert process.post(body(told("A1")[0])) == [204]
    kept = [path for path in data.iterdir() if path.name not in {"log", "out"}]  # the test's own
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in kept}
    process.terminate()
    assert set(modes) >= {"qod.sqlite", "qod.sqlite-wal", "qod.sqlite-shm", "token-secret", "serve.json", "lock"}
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://qod.example.com/notifications", "https://qod.example.com/notifications"),
        ("https://user:secret@example.com/x", f"https://user:{HIDDEN}@example.com/x"),
        ("https://secret@example.com/x", f"https://{HIDDEN}@example.com/x"),
        ("https://example.com:8443/x?key=secret&more=secret", f"https://example.com:8443/x?key={HIDDEN}&more={HIDDEN}"),
        ("https://example.com/x?secret", f"https://example.com/x?{HIDDEN}"),
        ("https://example.com/x#secret", f"https://example.com/x#{HIDDEN}"),
        ("/var/lib/qod", "/var/lib/qod"),
        ("a:b@c", "a:b@c"),
    ],
)
def test_no_url_shows_a_secret(url: str, shown: str) -> None:
    """Passwords and query values are hidden; the rest of a URL is shown."""
    assert shown_url(url) == shown


@pytest.mark.long
def test_commands_print_no_password(tmp_path: Path) -> None:
    """Neither `check-config` nor `serve`, in its banner and its log, prints a password in a URL."""
    config = tmp_path / "qod.toml"
    config.write_text(
        """
        edge.public_url = "https://user:s3cr3t@qod.example.com/notifications"
        [[auth.jwt]]
        issuer = "https://user:s3cr3t@auth.example.com"
        audience = "qod"
        jwks_url = "https://user:s3cr3t@127.0.0.1:9/jwks?key=s3cr3t"
        [api]
        base_url = "http://user:s3cr3t@127.0.0.1:9/v1"
        token_url = "http://user:s3cr3t@127.0.0.1:9/token?key=s3cr3t"
        client_id = "demo"
        client_secret = "s3cr3t"
        sender = "demo"
        reconcile_seconds = 0.1
        """
    )
    told_by_check = run("check-config", "--config", str(config))
    assert told_by_check.count(f"user:{HIDDEN}@") == 5
    process = ReceiverProcess(tmp_path / "data", "--config", str(config), "--log-level", "debug")
    ready = httpx2.get(f"{process.ops_url}/readyz", timeout=SECONDS_MAX).text
    printed = process.printed()
    process.terminate()
    assert HIDDEN in printed
    for text in (told_by_check, printed, ready, process.log.read_text()):
        assert "s3cr3t" not in text


async def _open_stream(url: str) -> int:
    headers = {"accept": "text/event-stream"}
    async with httpx2.AsyncClient(timeout=SECONDS_MAX) as client, client.stream("GET", url, headers=headers) as answer:
        return answer.status_code


@pytest.mark.long
async def test_topics_exist_before_their_first_record(tmp_path: Path) -> None:
    """A reader that starts before the first post gets an open stream, or no records; a wrong name is a 404."""
    config = tmp_path / "qod.toml"
    config.write_text('[[routes]]\ntopic = "pager"\n')
    process = ReceiverProcess(tmp_path / "data", "--config", str(config))
    for topic in ("status", "unavailable", "sessions", "dead-letter", "pager"):
        url = f"{process.ops_url}/topics/{topic}"
        assert await _open_stream(url) == 200
        told_now = httpx2.get(url, timeout=SECONDS_MAX).json()
        assert told_now == {"topic": f"qod.{topic}", "records": [], "next": "0-0"}
    assert httpx2.get(f"{process.ops_url}/topics/nonsense", timeout=SECONDS_MAX).status_code == 404
    process.terminate()
