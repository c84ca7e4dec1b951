"""The thread that waits for a run: Ctrl-C, the budget's end, and the bar."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from llamatelemetry._deadline import Deadline
from llamatelemetry.exceptions import BatchError, SetupWarning

__all__ = ["Ended", "Run", "oversee", "warn_of_lost"]

Ended = Literal["done", "budget", "interrupted"]

_LOOK_SECONDS = 0.1
_JOIN_SECONDS = 2.0
_NEVER = Deadline(math.inf)


class Run(Protocol):
    """What can be waited for: a crew, or whatever works elsewhere."""

    @property
    def running(self) -> int:
        """How many items are being worked on."""

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to wait for."""

    @property
    def complete(self) -> bool:
        """Whether each item came to its end."""

    def start(self) -> None:
        """Begin."""

    def wait(self, seconds: float) -> None:
        """Wait for the end, at most this long."""

    def wind_up(self) -> None:
        """Begin nothing new; what runs comes to its end."""

    def call_off(self) -> None:
        """End all that runs; none of it is recorded."""

    def join(self, seconds: float) -> None:
        """Wait for the threads, and raise what the run ended with."""


def oversee(
    run: Run,
    *,
    deadline: Deadline = _NEVER,
    grace: float = 30.0,
    tick: Callable[[int], object] = lambda _: None,
    interrupted: Callable[[], object] = lambda: None,
) -> Ended:
    """Start a run, and wait for its end in this thread, in short waits.

    The first Ctrl-C, and the deadline, let what runs come to its end; a second one, and
    the end of the grace, call it off.

    Args:
        run: The run.
        deadline: When nothing new is begun any more.
        grace: Seconds that what runs then has to come to its end.
        tick: Called about ten times a second with how many items are worked on.
        interrupted: Called at the first Ctrl-C.

    Returns:
        "interrupted" after Ctrl-C; raising is the caller's, who closes files first.

    Raises:
        BaseException: What ended the run before its time.
    """
    ended: Ended = "done"
    until = deadline
    try:
        run.start()
        while True:
            try:  # around all of it: Ctrl-C comes at any moment
                if run.finished:
                    break
                run.wait(min(_LOOK_SECONDS, until.remaining))
                tick(run.running)
                if run.finished or not until.expired:
                    continue
                if ended != "done":
                    break
                ended, until = "budget", Deadline.after(grace)
                run.wind_up()
            except KeyboardInterrupt:
                stopping, ended = ended != "done", "interrupted"
                if stopping:
                    break
                until = Deadline(deadline.at + grace)
                run.wind_up()
                interrupted()
    except BaseException:
        run.call_off()
        with contextlib.suppress(Exception):  # what is raised is what happened first
            run.join(_JOIN_SECONDS)
        raise
    if not run.finished:
        run.call_off()
    run.join(_JOIN_SECONDS)
    return "done" if ended == "budget" and run.complete else ended


def warn_of_lost(lost: Sequence[BatchError]) -> None:
    """Tell who called that servers were not there, and others did their work."""
    for error in lost:
        message = f"other servers did the work of one: {error}"
        warnings.warn(message, SetupWarning, stacklevel=3)
