"""Stops at the program's end what is still running then."""

from __future__ import annotations

import atexit
import os
from typing import Protocol


class Stoppable(Protocol):
    """Something that runs until it is stopped."""

    def stop(self) -> None:
        """Stop it; quiet when it does not run."""


# Held here so that what nobody names any more is still stopped.
_running: set[Stoppable] = set()
_registered_in: int | None = None


def add(one: Stoppable) -> None:
    """Have this stopped at the program's end."""
    global _registered_in  # noqa: PLW0603 - one handler per process, also after a fork
    if _registered_in != os.getpid():
        _registered_in = os.getpid()
        _running.clear()
        atexit.register(_stop_all, os.getpid())
    _running.add(one)


def discard(one: Stoppable) -> None:
    """Forget it: it has ended."""
    _running.discard(one)


def _stop_all(process: int) -> None:
    if process == os.getpid():  # a fork inherits the handler, not what runs
        for one in list(_running):
            one.stop()
