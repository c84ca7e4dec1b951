"""Servers whose Python process is gone. There should be none; this finds them."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass

from llamatelemetry.server._linux import (
    process_command,
    process_ids,
    process_start_time,
    process_variable,
)
from llamatelemetry.server._process import OWNER_VARIABLE


@dataclass(frozen=True, slots=True)
class StrayServer:
    """A process started by this package whose owner has ended.

    Attributes:
        pid: Its process id.
        command: Its program and arguments.
        owner: The process id of the Python process that had started it.
        started: Its start time in clock ticks since boot, which with the id names it.

    Example:
        >>> from llamatelemetry.server import find_strays
        >>> for stray in find_strays():
        ...     print(stray.pid, stray.command)
        ...     stray.stop()
    """

    pid: int
    command: str
    owner: int
    started: int

    def stop(self) -> None:
        """Kill it, unless it has ended and its id names another process now."""
        if process_start_time(self.pid) == self.started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def find_strays() -> list[StrayServer]:
    """Return the servers of this user whose owner has ended.

    Every server dies with its owner by a signal of the kernel. A program that hides
    behind another one (a wrapper script, say) can escape that; it is found here by
    the mark that every server carries in its environment.

    Returns:
        One for each process, none where all is well.

    Example:
        >>> from llamatelemetry.server import find_strays
        >>> server.pid in [stray.pid for stray in find_strays()]  # it is ours
        False
    """
    strays = []
    for pid in process_ids():
        mark = process_variable(pid, OWNER_VARIABLE)
        if mark is None:
            continue
        owner, _, owner_started = mark.partition(":")
        started = process_start_time(pid)
        if started is None or not owner.isdecimal():
            continue
        if str(process_start_time(int(owner))) != owner_started:
            strays.append(StrayServer(pid, process_command(pid), int(owner), started))
    return strays
