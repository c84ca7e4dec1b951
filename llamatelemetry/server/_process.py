"""The one place that starts programs. Each server dies with its parent.

A server is started through ``_run_with_parent.py``, which asks the kernel to kill it
when its parent dies. The kernel means the parent *thread*
(https://man7.org/linux/man-pages/man2/pr_set_pdeathsig.2const.html), so all servers
are started from one thread that lives as long as this process.
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from llamatelemetry._deadline import Deadline
from llamatelemetry.server._linux import group_members, process_start_time

OWNER_VARIABLE = "LLAMATELEMETRY_OWNER"

_LAUNCHER = Path(__file__).with_name("_run_with_parent.py")
_POLL_SECONDS = 0.005
_GROUP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Completed:
    """What a program that ran to its end printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    timeout: float,
) -> Completed:
    """Run a program to its end and return what it printed.

    Raises:
        OSError: It cannot be started.
        TimeoutError: It did not end in time; it was killed.
    """
    try:
        done = subprocess.run(
            list(command),
            env=None if environment is None else dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"{command[0]} did not end in {timeout:g} s") from error
    return Completed(done.returncode, done.stdout, done.stderr)


def owner_mark() -> str:
    """Return what names this process for good: its id and its start time."""
    return f"{os.getpid()}:{process_start_time(os.getpid())}"


def start(command: Sequence[str], *, environment: Mapping[str, str]) -> ServerProcess:
    """Start a server in a process group of its own, its output in one pipe.

    Raises:
        OSError: The program is not there or cannot be executed.
    """
    program = shutil.which(command[0], path=environment.get("PATH"))
    if program is None:
        raise FileNotFoundError(f"no program {command[0]!r} that can be executed")
    argv = [program, *command[1:]]
    if sys.platform == "linux" and sys.executable:
        argv = [
            *(sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid())),
            *argv,
        ]
    marked = {**environment, OWNER_VARIABLE: owner_mark()}
    return ServerProcess(_in_starting_thread(argv, marked))


_StartRequest = tuple[list[str], dict[str, str], "Future[subprocess.Popen[bytes]]"]
_requests: queue.SimpleQueue[_StartRequest] = queue.SimpleQueue()
_thread_lock = threading.Lock()
_thread: threading.Thread | None = None


def _in_starting_thread(
    argv: list[str], environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    global _thread  # noqa: PLW0603 - one thread per process, guarded by its lock
    with _thread_lock:
        if _thread is None or not _thread.is_alive():  # also after a fork
            _thread = threading.Thread(
                target=_serve_requests, name="llamatelemetry-starter", daemon=True
            )
            _thread.start()
    result: Future[subprocess.Popen[bytes]] = Future()
    _requests.put((argv, environment, result))
    return result.result()


def _serve_requests() -> None:
    while True:
        argv, environment, result = _requests.get()
        try:
            process = subprocess.Popen(
                argv,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,
            )
        except Exception as error:  # noqa: BLE001 - raised again by the caller
            result.set_exception(error)
        else:
            result.set_result(process)


class ServerProcess:
    """One running program and everything it started, as a process group.

    Attributes:
        pid: Its process id, which is also its group's.
        output: What it prints, stdout and stderr together; to be read to the end.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._lock = threading.Lock()
        self.pid = process.pid
        self.output = cast("BinaryIO", process.stdout)

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs.

        When the program has ended, what it left behind in its group is killed first,
        while its id still cannot be given to another process.
        """
        with self._lock:
            if self._process.returncode is not None:
                return self._process.returncode
            try:
                ended = os.waitid(
                    os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
                )
            except ChildProcessError:  # collected elsewhere: SIGCHLD is ignored here
                return self._process.wait()
            if ended is None:
                return None
            self._send(signal.SIGKILL)
            return self._process.wait()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end; return the exit code, or None if time ran out."""
        deadline = Deadline.after(timeout)
        while (code := self.poll()) is None and not deadline.expired:
            time.sleep(min(_POLL_SECONDS, deadline.remaining))
        return code

    def stop(self, *, patience: float = 2.0) -> int:
        """Ask the group to end, ask again, then kill it; return the exit code.

        llama-server answers the first SIGTERM only when the running requests are
        done; the second one at once.
        """
        for number, seconds in (
            (signal.SIGTERM, patience),
            (signal.SIGTERM, patience / 2),
            (signal.SIGKILL, None),
        ):
            self._signal(number)
            if (code := self.wait(seconds)) is not None:
                self._wait_for_group()
                return code
        raise AssertionError("a killed process was waited for without end")

    def _wait_for_group(self) -> None:
        """Wait for what was killed with the program; a zombie may stay for ever."""
        deadline = Deadline.after(_GROUP_SECONDS)
        while group_members(self.pid) and not deadline.expired:
            time.sleep(_POLL_SECONDS)

    def _signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with self._lock:
                if self._process.returncode is None:
                    self._send(number)

    def _send(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return
