"""How far a batch is, for people: one bar, or a function that is told.

The threads that do the work count; the thread that waits shows, so that neither a
notebook's widgets nor a user's function are touched from anywhere else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeAlias

from llamatelemetry._progress import CountBar
from llamatelemetry.batch._estimate import Estimator

__all__ = ["BatchBar", "BatchProgress", "Shown"]

_INTERVAL = 0.2  # seconds between two pictures
_DAY = 86_400
_HOUR = 3600
_MINUTE = 60
_SLOW = 0.1  # rows a second; below, rows a minute say more


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far a batch is.

    Attributes:
        done: Rows answered, those of earlier runs among them.
        total: Rows in all; None where that is not known.
        failed: Rows that failed in this run.
        kept: Rows answered in earlier runs.
        rows_per_second: Rows finished in a second; None before the first.
        tokens_per_second: Tokens generated in a second; None before the first row.
        seconds_left: Seconds until all is done; None where that cannot be told.
        words: What is being waited for, or ""; after Ctrl-C, how many still run.
        ended: Whether this is the last word.
    """

    done: int
    total: int | None
    failed: int = 0
    kept: int = 0
    rows_per_second: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    words: str = ""
    ended: bool = False


Shown: TypeAlias = bool | Callable[[BatchProgress], object]
"""Whether there is a bar; or what is called instead, in the thread that waits."""


class BatchBar:
    """A bar over the rows of a batch.

    Args:
        total: Rows in all; None where that is not known.
        shown: Whether there is a bar; or a function that is called instead, at most
            five times a second.
        clock: Tells seconds that only grow.
        wall: Tells the time of day, as seconds since 1970.
    """

    def __init__(
        self,
        total: int | None,
        *,
        shown: Shown = True,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._tell = shown if callable(shown) else None
        self._bar = CountBar(total, shown=self._tell is None and bool(shown))
        self._clock = clock
        self._wall = wall
        self._lock = threading.Lock()
        self._estimator = Estimator(total)
        self._kept = 0
        self._failed = 0
        self._running = 0
        self._words = ""
        self._winding_up = False
        self._next = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._running = 0
        # A function that fails must not hide what is on its way.
        with suppress(*() if error is None else (Exception,)):
            self._show(ended=True)
        self._bar.close()

    @property
    def progress(self) -> BatchProgress:
        """How far it is now."""
        return self._progress(ended=False)

    def keep(self, rows: int = 1) -> None:
        """Count rows that were answered in an earlier run; from any thread."""
        with self._lock:
            self._kept += rows
            self._estimator.keep(rows)

    def add(
        self, seconds: float, *, tokens: int = 0, failed: bool = False, rows: int = 1
    ) -> None:
        """Count what was finished just now; from any thread.

        Args:
            seconds: How long it took from its being asked.
            tokens: Tokens generated.
            failed: Whether it failed.
            rows: Rows that were asked for together.
        """
        with self._lock:
            self._failed += rows if failed else 0
            if failed and not seconds:  # never asked: it says nothing about the pace
                self._estimator.keep(rows)
            else:
                self._estimator.note(self._clock(), seconds, tokens=tokens, rows=rows)

    def say(self, words: str) -> None:
        """Show what is being waited for, "" for nothing; from any thread."""
        self._words = words

    def wind_up(self) -> None:
        """Show from now on that after Ctrl-C nothing new is begun."""
        self._winding_up = True

    def learn_total(self, total: int) -> None:
        """Show how many rows there are, now that it is known; from any thread."""
        with self._lock:
            self._estimator.total = total

    def tick(self, running: int = 0) -> None:
        """Show how far it is, if it is time to; from the thread that waits.

        Args:
            running: Rows that are being answered.
        """
        self._running = running
        if self._clock() >= self._next:
            self._show(ended=False)
            self._next = self._clock() + _INTERVAL

    def _progress(self, *, ended: bool) -> BatchProgress:
        with self._lock:
            told = self._estimator.estimate(self._clock(), self._running)
            words = self._words
            if self._winding_up and self._running:
                words = (
                    f"ending: {self._running:,} still running; Ctrl-C again drops them"
                )
            return BatchProgress(
                self._estimator.finished - self._failed,
                self._estimator.total,
                self._failed,
                self._kept,
                told.rows_per_second,
                told.tokens_per_second,
                told.seconds_left,
                words,
                ended,
            )

    def _show(self, *, ended: bool) -> None:
        progress = self._progress(ended=ended)
        if self._tell is not None:
            self._tell(progress)
        else:
            words = describe(progress, self._wall())
            self._bar.show(progress.done + progress.failed, words, progress.total)


def describe(progress: BatchProgress, now: float) -> list[str]:
    """Return in words how far a batch is: all of it, then ever less.

    What matters least goes first, for lines that are too short.

    Args:
        progress: How far it is.
        now: The time, as seconds since 1970.
    """
    of = "" if progress.total is None else f"/{progress.total:,}"
    told = {"rows": f"{progress.done:,}{of} rows"}
    shorter = {"failed": "", "tokens": "", "rate": ""}
    if progress.failed:
        told["failed"] = f"{progress.failed:,} failed"
    if progress.rows_per_second:
        told["rate"] = _rate(progress.rows_per_second)
    if progress.tokens_per_second:
        told["tokens"] = f"{_number(progress.tokens_per_second)} tokens/s"
    if progress.words and not progress.ended:
        told["end"] = progress.words
    elif progress.seconds_left and not progress.ended:
        finish = _finish(progress.seconds_left, now)
        told["end"] = f"{finish} (in {_wait(progress.seconds_left)})"
        shorter = {"end": finish} | shorter
    lines = [" · ".join(told.values())]
    for name, less in shorter.items():
        if name in told:
            told[name] = less
            lines.append(" · ".join(filter(None, told.values())))
    return lines


def _rate(rows: float) -> str:
    if rows < _SLOW:
        return f"{_number(rows * _MINUTE)} rows/min"
    return f"{_number(rows)} rows/s"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"  # noqa: PLR2004 -- two digits


def _finish(left: float, now: float) -> str:
    """Return at which time of day it will be done."""
    day = "%H:%M" if left < _DAY else "%a %d %b %H:%M"
    return time.strftime(f"done {day}", time.localtime(now + left))


def _wait(left: float) -> str:
    """Return in how long it will be done."""
    if left < _MINUTE:
        return f"{left:.0f} s"
    if left < _HOUR:
        return f"{left / _MINUTE:.0f} min"
    hours, minutes = divmod(round(left / _MINUTE), 60)
    return f"{hours} h {minutes:02} min"
