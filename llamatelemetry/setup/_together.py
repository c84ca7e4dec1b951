"""Several downloads at once, called off together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from llamatelemetry._deadline import Deadline
from llamatelemetry._progress import CancelledError

__all__ = ["run_both", "run_together"]

_Answer = TypeVar("_Answer")
_First = TypeVar("_First")
_Second = TypeVar("_Second")

_POLL_SECONDS = 0.1
_FAREWELL_SECONDS = 2.0


class _Task(threading.Thread):
    """One call in a thread of its own."""

    def __init__(
        self, call: Callable[[threading.Event], object], called_off: threading.Event
    ) -> None:
        super().__init__(name="llamatelemetry-download", daemon=True)
        self._call = call
        self._called_off = called_off
        self.ended = threading.Event()
        self.answer: object = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.answer = self._call(self._called_off)
        except BaseException as error:  # noqa: BLE001 -- raised again by who waits
            self.error = error
            self._called_off.set()
        finally:
            # Not is_alive(): before Python 3.13 an interrupted join() may take a thread
            # that runs for one that has ended, see bpo-45274.
            self.ended.set()


def run_together(
    calls: Sequence[Callable[[threading.Event], _Answer]],
    *,
    called_off: threading.Event | None = None,
    tick: Callable[[], object] | None = None,
) -> list[_Answer]:
    """Run calls at the same time and return their answers in order.

    The first error calls the others off, and is raised once they have ended. So does
    Ctrl-C, which strikes here and not in the threads.

    Args:
        calls: Each takes the event that says that it is called off.
        called_off: Of who waits for all this; what is set there is set here.
        tick: Called here ten times a second, and once at the end if all went well:
            for what only the thread that waits may do. What it raises calls all off.
    """
    event = threading.Event()
    tasks = [_Task(call, event) for call in calls]
    try:
        for task in tasks:
            task.start()
        for task in tasks:
            while not task.ended.wait(_POLL_SECONDS):
                if tick is not None:
                    tick()
                if called_off is not None and called_off.is_set():
                    event.set()
                if any(other.error is not None for other in tasks):
                    _say_farewell(tasks)
                    break
    except BaseException:
        event.set()
        _say_farewell(tasks)
        raise
    errors = [task.error for task in tasks if task.error is not None]
    # Those that were called off say nothing of why.
    for error in sorted(errors, key=lambda each: isinstance(each, CancelledError)):
        raise error
    if tick is not None:
        tick()
    return [task.answer for task in tasks]  # type: ignore[misc]


def _say_farewell(tasks: Sequence[_Task]) -> None:
    """Wait a little for those that were called off.

    One that waits for a byte ends with its own time limit, and writes no more.
    """
    deadline = Deadline.after(_FAREWELL_SECONDS)
    for task in tasks:
        if task.ident is not None:
            task.ended.wait(deadline.remaining)


def run_both(
    first: Callable[[threading.Event], _First],
    second: Callable[[threading.Event], _Second],
    *,
    tick: Callable[[], object] | None = None,
) -> tuple[_First, _Second]:
    """Run two calls at the same time; see :func:`run_together`."""
    calls: list[Callable[[threading.Event], Any]] = [first, second]
    one, other = run_together(calls, tick=tick)
    return one, other
