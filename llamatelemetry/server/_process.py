"""The one place that starts programs. Each server dies with its parent.

A server is started through ``_run_with_parent.py``, which asks the kernel to kill it
when its parent dies. The kernel means the parent *thread*
(https://man7.org/linux/man-pages/man2/pr_set_pdeathsig.2const.html), so all servers
are started from one thread that lives as long as this process. That thread is also
where Ctrl-C cannot strike between a start and the note that something was started.
What a server has started itself is killed by ``_guard.py``.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from llamatelemetry._deadline import Deadline
from llamatelemetry.server._linux import group_members, process_start_time

OWNER_VARIABLE = "LLAMATELEMETRY_OWNER"

_LAUNCHER = Path(__file__).with_name("_run_with_parent.py")
_GUARD = Path(__file__).with_name("_guard.py")
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
    variables = dict(os.environ if environment is None else environment)
    with subprocess.Popen(
        _tied_to_parent(command, variables),
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"{command[0]} did not end in {timeout:g} s") from error
        finally:
            if process.returncode is None:
                _send(process.pid, signal.SIGKILL)
    return Completed(process.returncode, stdout, stderr)


def _tied_to_parent(
    command: Sequence[str], environment: Mapping[str, str]
) -> list[str]:
    """Return the command that runs this one and dies with the calling thread."""
    program = shutil.which(command[0], path=environment.get("PATH"))
    if program is None:
        raise FileNotFoundError(f"no program {command[0]!r} that can be executed")
    argv = [program, *command[1:]]
    if sys.platform != "linux" or not sys.executable:
        return argv
    return [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), *argv]


def owner_mark() -> str:
    """Return what names this process for good: its id and its start time."""
    return f"{os.getpid()}:{process_start_time(os.getpid())}"


def start(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    note: Callable[[ServerProcess], None] = lambda _: None,
) -> ServerProcess:
    """Start a server in a process group of its own, its output in one pipe.

    Args:
        command: The program and its arguments.
        environment: The whole environment.
        note: Called with the process as soon as it runs, in the starting thread: an
            interrupt of the caller cannot come between.

    Raises:
        OSError: The program is not there or cannot be executed.
    """
    argv = _tied_to_parent(command, environment)
    request = _Request(argv, {**environment, OWNER_VARIABLE: owner_mark()}, note)
    _starter.hand_over(request)
    try:
        return request.result.result()
    except BaseException:
        # Interrupted: it is noted in a moment, or is not begun at all.
        if not request.result.cancel():
            wait([request.result])
        raise


@dataclass(frozen=True)
class _Request:
    """A start that was asked for."""

    argv: list[str]
    environment: dict[str, str]
    note: Callable[[ServerProcess], None]
    result: Future[ServerProcess] = field(default_factory=Future)


class _Starter:
    """The thread that starts all servers, and the guard of what they start."""

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def hand_over(self, request: _Request) -> None:
        """Put a request in line; start the thread if there is none yet."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._serve, name="llamatelemetry-starter", daemon=True
                )
                self._thread.start()
        self._requests.put(request)

    def _serve(self) -> None:
        while True:
            request = self._requests.get()
            if not request.result.set_running_or_notify_cancel():
                continue
            try:
                process = self._start(request)
                try:
                    request.note(process)
                except BaseException:
                    process.stop(patience=0)
                    raise
            except Exception as error:  # noqa: BLE001 - raised again by the caller
                request.result.set_exception(error)
            else:
                request.result.set_result(process)

    def _start(self, request: _Request) -> ServerProcess:
        self._ensure_guard()
        process = subprocess.Popen(
            request.argv,
            env=request.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,
        )
        self.tell_guard(f"+{process.pid}")
        return ServerProcess(process)

    def _ensure_guard(self) -> None:
        if sys.platform != "linux" or not sys.executable:
            return
        if self._guard is not None and self._guard.poll() is None:
            return
        if self._guard is None:
            atexit.register(self.close)
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid())],
            env=_few_variables(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )

    def close(self) -> None:
        """Let the guard end, at the end of the program."""
        guard, self._guard = self._guard, None
        if guard is not None and guard.stdin is not None:
            guard.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                guard.wait(_GROUP_SECONDS)

    def tell_guard(self, line: str) -> None:
        """Tell the guard of a group that has begun or ended."""
        guard = self._guard
        if guard is not None and guard.stdin is not None:
            with contextlib.suppress(OSError):  # it was killed; a start renews it
                guard.stdin.write(f"{line}\n".encode())


def _few_variables() -> dict[str, str]:
    """Return what Python itself may need to start; nothing that is secret."""
    names = ("PATH", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in names if name in os.environ}


_starter = _Starter()


_of_parents: list[_Starter] = []


def _begin_anew() -> None:
    """Begin anew in a fork, which has neither the thread nor the guard."""
    global _starter  # noqa: PLW0603 - one for each process
    atexit.unregister(_starter.close)
    _of_parents.append(_starter)  # its processes are not ours to collect
    _starter = _Starter()


os.register_at_fork(after_in_child=_begin_anew)


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
            _send(self.pid, signal.SIGKILL)
            _starter.tell_guard(f"-{self.pid}")
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
        done; the second one at once. Interrupted, it is killed at once.
        """
        try:
            for seconds in (patience, patience / 2):
                self._signal(signal.SIGTERM)
                if self.wait(seconds) is not None:
                    break
        finally:
            self._signal(signal.SIGKILL)
            code = self.wait()
        self._wait_for_group()
        return cast("int", code)

    def _wait_for_group(self) -> None:
        """Wait for what was killed with the program; a zombie may stay for ever."""
        deadline = Deadline.after(_GROUP_SECONDS)
        while group_members(self.pid) and not deadline.expired:
            time.sleep(_POLL_SECONDS)

    def _signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with self._lock:
                if self._process.returncode is None:
                    _send(self.pid, number)


def _send(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
