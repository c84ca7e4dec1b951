"""What the tests of the manager share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from llamatelemetry.server import ServerManager, _linux

STAND_IN = Path(__file__).with_name("stand_in_engine.py")
Make = Callable[..., ServerManager]


def wait_for(state: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until something holds; fail when it has not in time, as when it hangs."""
    deadline = time.monotonic() + seconds
    while not state():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def children() -> list[int]:
    """Return the ids of this process's running servers."""
    return [
        pid
        for pid in _linux.process_ids()
        if str(STAND_IN) in _linux.process_command(pid)
        and f"{os.getpid()}:"
        in (_linux.process_variable(pid, "LLAMATELEMETRY_OWNER") or "")
    ]
