"""How far a load is: a bar that counts its requests."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from llamatelemetry._progress import CountBar

__all__ = ["LoadBar"]

_INTERVAL = 0.2  # seconds between two pictures


class LoadBar:
    """A bar over the requests of one load.

    Args:
        name: What it says of the load.
        total: How many requests there are.
        shown: Whether there is a bar at all.
    """

    def __init__(self, name: str, total: int, *, shown: bool) -> None:
        self._name, self._total, self._done = name, total, 0
        self._bar = CountBar(total, shown=shown)
        self._shown_at = 0.0

    def advance(self) -> None:
        """Count one more; by the thread that waits."""
        self._done += 1
        now = time.monotonic()
        # Drawing takes longer than a small model's answer.
        if now - self._shown_at >= _INTERVAL or self._done == self._total:
            self._shown_at = now
            words = f"{self._name}: {self._done} of {self._total} requests"
            self._bar.show(self._done, words)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
