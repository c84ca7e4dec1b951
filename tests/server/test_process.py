"""Starting programs: they die with their parent, and stopping leaves nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamatelemetry.server import _linux, _process
from llamatelemetry.server.strays import StrayServer, find_strays

ENVIRONMENT = {"PATH": os.environ["PATH"]}
STAND_IN = Path(__file__).parents[1] / "tools" / "stand_in_engine.py"


def gone(pid: int) -> bool:
    """Wait until no process has this id, or only one that ended."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if _linux.process_start_time(pid) is None:
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def started() -> Iterator[list[_process.ServerProcess]]:
    """Processes to be ended whatever the test does."""
    processes: list[_process.ServerProcess] = []
    yield processes
    for process in processes:
        process.stop(patience=0.1)
        process.output.close()


def start(
    started: list[_process.ServerProcess], *command: str
) -> _process.ServerProcess:
    """Start a program that the fixture ends."""
    process = _process.start(command, environment=ENVIRONMENT)
    started.append(process)
    return process


def test_output_and_errors_come_through_one_pipe(
    started: list[_process.ServerProcess],
) -> None:
    """Stdout and stderr of the program both reach the reader."""
    process = start(started, "sh", "-c", "echo out; echo err >&2; exit 5")

    assert sorted(process.output.read().split()) == [b"err", b"out"]
    assert process.wait(5) == 5


def test_a_missing_program_is_an_error_at_once() -> None:
    """A program that is not there raises and starts nothing."""
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        _process.start(["no-such-program"], environment=ENVIRONMENT)


def test_a_signal_is_a_negative_exit_code(
    started: list[_process.ServerProcess],
) -> None:
    """A program that a signal ended is reported with the signal's number."""
    process = start(started, "sh", "-c", "kill -SEGV $$")

    assert process.wait(5) == -signal.SIGSEGV
    assert process.poll() == -signal.SIGSEGV


def test_the_child_survives_the_thread_that_asked_for_it(
    started: list[_process.ServerProcess],
) -> None:
    """The parent-death signal follows the parent, not the worker thread."""
    processes: list[_process.ServerProcess] = []
    thread = threading.Thread(
        target=lambda: processes.append(start(started, "sleep", "60"))
    )
    thread.start()
    thread.join()
    time.sleep(0.3)

    assert processes[0].poll() is None


def test_stop_asks_twice_and_then_kills(
    started: list[_process.ServerProcess],
) -> None:
    """A program that ignores SIGTERM is killed after the patience is over."""
    process = start(
        started, "sh", "-c", "trap '' TERM; echo on; while :; do sleep 1; done"
    )
    process.output.readline()
    began = time.monotonic()

    assert process.stop(patience=0.4) == -signal.SIGKILL
    assert time.monotonic() - began > 0.5


def test_what_a_program_leaves_behind_is_killed_with_it(
    started: list[_process.ServerProcess],
) -> None:
    """A grandchild does not outlive the program that started it."""
    process = start(started, "sh", "-c", "sleep 60 & echo $!; exit 0")
    grandchild = int(process.output.readline())

    assert process.wait(5) == 0
    assert gone(grandchild)


def test_run_returns_what_a_program_printed_and_ends_one_that_hangs() -> None:
    """run() gives output and exit code, and kills what takes too long."""
    done = _process.run(["sh", "-c", "echo a; echo b >&2; exit 3"], timeout=60)

    assert (done.returncode, done.stdout, done.stderr) == (3, "a\n", "b\n")
    with pytest.raises(TimeoutError, match="sleep"):
        _process.run(["sleep", "60"], timeout=0.2)


PARENT = """
import sys, time
from llamatelemetry.server import _process
process = _process.start(
    [sys.executable, {stand_in!r}, "immortal", "--port", sys.argv[1]],
    environment={environment!r},
)
print(process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_child_never_outlives_a_killed_parent() -> None:
    """Killed with SIGKILL at 20 random moments, the parent takes its server along.

    The server ignores SIGTERM, so only the kernel's signal can have ended it. Moments
    before the start is over count too: then there must be no server at all.
    """
    program = PARENT.format(stand_in=str(STAND_IN), environment=ENVIRONMENT)
    before = {stray.pid for stray in find_strays()}
    for _ in range(20):
        parent = subprocess.Popen(
            [sys.executable, "-c", program, "0"], stdout=subprocess.PIPE
        )
        assert parent.stdout is not None
        early = random.random() < 0.4
        if early:
            time.sleep(random.uniform(0.05, 0.4))
        else:
            child = int(parent.stdout.readline())
            time.sleep(random.uniform(0, 0.5))
        parent.kill()
        parent.wait()
        rest = parent.stdout.read()
        parent.stdout.close()
        if early:
            child = int(rest) if rest.strip() else 0
        assert not child or gone(child)
    deadline = time.monotonic() + 30
    while {stray.pid for stray in find_strays()} - before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_stray_is_found_named_and_stopped() -> None:
    """A process with the mark of an owner that has ended is found, and ends."""
    mark = f"{2**22 - 1}:1"
    process = subprocess.Popen(
        ["sleep", "61"], env={**ENVIRONMENT, _process.OWNER_VARIABLE: mark}
    )
    try:
        deadline = time.monotonic() + 30
        found: list[StrayServer] = []
        while not found:  # exec takes a moment to show the new environment
            assert time.monotonic() < deadline
            found = [stray for stray in find_strays() if stray.pid == process.pid]
        assert [stray.command for stray in found] == ["sleep 61"]
        assert found[0].owner == 2**22 - 1

        StrayServer(process.pid, "", 1, found[0].started + 1).stop()
        assert process.poll() is None  # another start time: another process

        found[0].stop()
        assert process.wait(5) == -signal.SIGKILL
        found[0].stop()  # it is gone: quiet
    finally:
        process.kill()
        process.wait()


def test_a_running_server_is_no_stray(started: list[_process.ServerProcess]) -> None:
    """What this process started and still owns is not reported."""
    process = start(started, "sleep", "60")

    assert process.pid not in [stray.pid for stray in find_strays()]
