import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kafka_process import children, lives, until

ROOT = Path(__file__).parent.parent


def descendants(process_id: int) -> Iterator[int]:
    """The descendants of a process."""
    for child in children(process_id):
        yield child
        yield from descendants(child)


def command_of(process_id: int) -> str:
    """The command line of a process; empty once it has ended."""
    try:
        return Path(f"/proc/{process_id}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("test", "wanted"),
    [
        ("test_operator.py::test_all_that_was_kept_comes_out_once", ("receiver serve", "receiver simulate")),
        ("test_workers.py::test_workers_share_a_port", ("receiver serve", "kafka.Kafka")),
    ],
)
@pytest.mark.usefixtures("kafka")
def test_a_run_that_is_ended_leaves_nothing(
    test: str, wanted: tuple[str, ...], number: signal.Signals, tmp_path: Path
) -> None:
    """Receivers, their workers, simulators and brokers end with the run of pytest that started them."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "run")]
    with (tmp_path / "out").open("wb") as out:
        run = subprocess.Popen([*command, f"tests/{test}"], cwd=ROOT, stdout=out, stderr=out, process_group=0)
    try:

        def all_run() -> bool:
            assert run.poll() is None, (tmp_path / "out").read_text()
            commands = list(map(command_of, descendants(run.pid)))
            return all(any(each in command for command in commands) for each in wanted)

        until(all_run, f"{wanted} started")
        started = list(descendants(run.pid))
        run.send_signal(number)
        run.wait()
        until(lambda: not any(map(lives, started)), "all that was started has ended")
    finally:
        run.kill()
        run.wait()


def test_what_hides_is_found(tmp_path: Path) -> None:
    """A process ends with the guarded one though it leads a session, is paused, and its parent is gone."""
    code = (
        "import subprocess, sys, time; from tests.guard import guarded; guarded(); guarded()\n"
        "subprocess.run([*sys.argv[1:]], check=True); print('started', flush=True); time.sleep(3600)"
    )
    told = tmp_path / "told"
    script = f"setsid sh -c 'echo $$ > {told}.part; mv {told}.part {told}; kill -STOP $$' &"
    with subprocess.Popen(
        [sys.executable, "-c", code, "sh", "-c", script], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline()
            until(told.exists, "the process started")
            hidden = int(told.read_text())
            until(lambda: state(hidden) == "T", "the process stands still")
        finally:
            process.kill()
    until(lambda: not lives(hidden), "the process has ended")


def state(process_id: int) -> str:
    """The state of a process in the kernel."""
    return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
