"""How fast rows are answered, and how long the rest will take.

From the times at which rows were finished, and from nothing else: the clock is handed
in. What was done in an earlier run counts as done and takes no time. The rate is that
of all rows since it last changed: a change is what chance cannot explain, so that
lengths that differ widely are averaged over as many rows as there are, and a server
that dies is noticed after some tens of rows.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

__all__ = ["Estimate", "Estimator"]

_BLOCK_ROWS = 16  # rows whose time is kept as one
_MOST_BLOCKS = 64
_FEWEST_ROWS = 48  # on each side of a change
_BEYOND_CHANCE = 5.0  # standard deviations
_LEAST_SPREAD = 0.25  # of the seconds of rows, squared and relative
_SAMPLE = 512  # rows whose seconds say how long the last ones take


@dataclass(frozen=True, slots=True)
class Estimate:
    """How fast it goes. None where that cannot be told.

    Attributes:
        rows_per_second: Rows finished in a second.
        tokens_per_second: Tokens generated in a second.
        seconds_left: Seconds until all rows are done.
    """

    rows_per_second: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None


@dataclass(slots=True)
class _Block:
    """Rows that were finished one after another, and how long that took."""

    start: float
    end: float
    rows: int = 0
    tokens: int = 0
    row_seconds: float = 0.0

    def joined(self, later: _Block) -> _Block:
        return _Block(
            self.start,
            later.end,
            self.rows + later.rows,
            self.tokens + later.tokens,
            self.row_seconds + later.row_seconds,
        )


class Estimator:
    """Tells how fast rows are answered; for one thread at a time.

    Args:
        total: Rows in all; None where it is not known.
    """

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.finished = 0
        self._blocks: list[_Block] = []
        self._sample: deque[float] = deque(maxlen=_SAMPLE)

    def keep(self, rows: int = 1) -> None:
        """Count rows that were done in an earlier run: they took no time in this."""
        self.finished += rows

    def note(
        self, now: float, seconds: float, *, tokens: int = 0, rows: int = 1
    ) -> None:
        """Count what was finished.

        Args:
            now: When.
            seconds: How long it took from its being asked.
            tokens: Tokens generated.
            rows: Rows that were asked for together.
        """
        self.finished += rows
        if not self._blocks:
            self._blocks.append(_Block(now - seconds, now))
        block = self._blocks[-1]
        if block.rows >= _BLOCK_ROWS and now > block.end:
            self._find_change()
            block = _Block(block.end, now)
            self._blocks.append(block)
        block.end = max(block.end, now)
        block.rows += rows
        block.tokens += tokens
        block.row_seconds += seconds * rows
        self._sample.append(seconds)

    def estimate(self, now: float, running: int = 0) -> Estimate:
        """Return how fast it goes.

        Args:
            now: The time.
            running: Rows that are being answered; 0 if that is not known.
        """
        if not self._blocks:
            return Estimate()
        whole = _joined(self._blocks)
        # The time since the last row counts: while nothing comes, the rate falls.
        took = max(now, whole.end) - whole.start
        if took <= 0:
            return Estimate()
        rate = whole.rows / took
        left = None
        if self.total is not None:
            at_once = running or round(whole.row_seconds / took)
            left = self._seconds_left(self.total - self.finished, rate, at_once)
        return Estimate(rate, whole.tokens / took, left)

    def _seconds_left(self, rows: int, rate: float, at_once: int) -> float:
        """Return the time of the rows that wait, then that of the last at once."""
        if rows <= 0:
            return 0.0
        last = max(1, min(rows, at_once))
        return (rows - last) / rate + _longest_rest(self._sample, last)

    def _find_change(self) -> None:
        """Forget what was before the rate changed, if it did."""
        if len(self._blocks) > _MOST_BLOCKS:
            self._blocks = _thinned(self._blocks)
        whole = _joined(self._blocks)
        if whole.end <= whole.start:
            return
        spread = max(_spread(self._sample), _LEAST_SPREAD)
        at_once = whole.row_seconds / (whole.end - whole.start)
        most, place = _BEYOND_CHANCE, 0
        before = self._blocks[0]
        for number, block in enumerate(self._blocks[1:], 1):
            doubt = _deviations(before, whole, spread, at_once)
            if doubt > most:
                most, place = doubt, number
            before = before.joined(block)
        del self._blocks[:place]


def _joined(blocks: Iterable[_Block]) -> _Block:
    return reduce(_Block.joined, blocks)


def _thinned(blocks: list[_Block]) -> list[_Block]:
    """Return the older half two by two, so that their number stays bounded."""
    half = len(blocks) // 2 & ~1
    older = zip(blocks[:half:2], blocks[1:half:2], strict=True)
    return [one.joined(two) for one, two in older] + blocks[half:]


def _deviations(before: _Block, whole: _Block, spread: float, at_once: float) -> float:
    """Return by how many standard deviations the rates before and after differ.

    Rows of independent lengths, so many at once, are renewal processes side by side:
    the variance of a count is its mean times the spread of the lengths; how far each of
    those that run has come adds to it.
    """
    rows, took = whole.rows - before.rows, whole.end - before.end
    spent = before.end - before.start
    if min(rows, before.rows) < _FEWEST_ROWS or min(took, spent) <= 0:
        return 0.0
    rate = whole.rows / (whole.end - whole.start)
    variance = sum(
        (rate * time * spread + at_once**2 / 12) / time**2 for time in (took, spent)
    )
    return abs(rows / took - before.rows / spent) / math.sqrt(variance)


def _spread(seconds: Iterable[float]) -> float:
    """Return the variance of lengths, relative to the square of their mean."""
    values = list(seconds)
    mean = math.fsum(values) / len(values)
    if mean <= 0:
        return 0.0
    return math.fsum((value / mean - 1) ** 2 for value in values) / len(values)


def _longest_rest(seconds: Iterable[float], count: int) -> float:
    """Return how long it takes until the last of so many rows that run is done.

    A row that is found running is likelier a long one, and may be anywhere in it: more
    than a time is left with the share of all seconds that lie beyond it. From that
    follows the mean of the longest of several, as the area under its curve.
    """
    values = sorted(seconds)
    whole = math.fsum(values)
    if whole <= 0:
        return 0.0
    beyond, time, area, share = whole, 0.0, 0.0, 1.0
    for number, value in enumerate(values):
        width = value - time
        if width <= 0:
            continue
        beyond -= (len(values) - number) * width
        then = min(share, max(0.0, beyond / whole))
        # The share falls evenly in between, so that this part has a formula.
        before, after = (1 - share) ** (count + 1), (1 - then) ** (count + 1)
        if share > then:
            area += width * (1 - (after - before) / ((share - then) * (count + 1)))
        time, share = value, then
    return area
