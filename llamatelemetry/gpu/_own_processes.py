"""Which of the processes on a card are ours.

Asked at every tick of a monitor: /proc is read here without pathlib, which interns each
part of each path.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from llamatelemetry.exceptions import ConfigurationError

__all__ = ["ProcessIds", "own_bytes", "own_processes"]

ProcessIds = Iterable[int] | Callable[[], Iterable[int]]

_MOST_ANCESTORS = 100
_MOST_REMEMBERED = 10_000
# Places in /proc/PID/stat, counted from the field after the name.
_PARENT, _START_TIME = 1, 19


def own_processes(
    process_ids: ProcessIds | None,
) -> Callable[[], Callable[[int], bool]]:
    """Return what gives, for each look, the test of whether a process is ours.

    Args:
        process_ids: The ids of our processes, or what returns them; None for this
            process and its descendants.

    Raises:
        ConfigurationError: They are no ids.
    """
    if process_ids is None:
        family = _Family()
        return lambda: family.holds
    if callable(process_ids):
        give = process_ids
        return lambda: frozenset(map(operator.index, give())).__contains__
    try:
        known = frozenset(map(operator.index, process_ids))
    except TypeError as error:
        raise ConfigurationError(
            f"process_ids is {process_ids!r}; it must be ids of processes, or a "
            "function that returns them"
        ) from error
    return lambda: known.__contains__


def own_bytes(
    processes: Iterable[tuple[int, int | None]] | None, is_own: Callable[[int], bool]
) -> int | None:
    """Return what our processes hold of a card.

    None where one of them is not told of, or none is named: NVML may mean the ids of
    another namespace, so that this is not 0.
    """
    held = [size for pid, size in processes or () if is_own(pid)]
    known = [size for size in held if size is not None]
    return sum(known) if known and len(known) == len(held) else None


class _Family:
    """This process and its descendants.

    What was found out is remembered for each id and start time: a descendant stays one
    when the process between ends.
    """

    def __init__(self) -> None:
        self._of = 0
        self._known: dict[tuple[int, int], bool] = {}

    def holds(self, pid: int) -> bool:
        """Whether a process is this one or descends from it."""
        if self._of != os.getpid() or len(self._known) > _MOST_REMEMBERED:
            self._of, self._known = os.getpid(), {}
        if pid == self._of:
            return True
        found = _look(pid)
        if found is None:  # it is gone, or in another namespace
            return False
        key = (pid, found.started)
        if key not in self._known:
            self._known[key] = self._descends(found.parent)
        return self._known[key]

    def _descends(self, pid: int) -> bool:
        """Whether a process is this one, or comes from it."""
        for _ in range(_MOST_ANCESTORS):  # ids that are used again could make a ring
            found = _look(pid) if pid not in (self._of, 0) else None
            if found is None:
                break
            pid = found.parent
        return pid == self._of


class _Process(NamedTuple):
    parent: int
    started: int


def _look(pid: int) -> _Process | None:
    """Return a process's parent and when it started; None if it cannot be seen."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123
            told = file.read()
        # The name before it may hold anything.
        fields = told.rpartition(b")")[2].split()
        return _Process(int(fields[_PARENT]), int(fields[_START_TIME]))
    except (OSError, IndexError, ValueError):
        return None
