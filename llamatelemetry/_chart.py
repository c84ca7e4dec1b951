"""What a chart of memory is made of, as plain values: bands, lines, marks, sizes.

Nothing here draws; `llamatelemetry.plots` does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from llamatelemetry._units import GIB, printable

__all__ = [
    "PAST_NOW",
    "WIDTH",
    "Band",
    "Device",
    "Label",
    "Layout",
    "Trace",
    "duration",
    "labels_of",
    "scale_top",
]

WIDTH = 640
"""Pixels; with a panel's borders it fits a notebook of 700."""

PAST_NOW = 4
"""Pixels of a plot to the right of now, so that the line's end is seen whole."""

_LEFT, _RIGHT, _BETWEEN = 44, 12, 46
_TOP, _ROW_GAP, _BOTTOM = 20, 40, 38
_LEGEND_ROW = 15
_LONE, _PAIR, _MANY = 170, 150, 112  # a plot's height, for 1, 2 and more devices
_HEADROOM = 1.07  # above the limit
_MOST_LABEL = 18  # letters of a mark beside its line


@dataclass(frozen=True, slots=True)
class Band:
    """A part of what is expected to be held.

    Attributes:
        label: What it is.
        size_bytes: How much, in bytes.
        colour: Its colour, ``#0072b2``.
        hatch: Matplotlib's sign for a pattern, so that colour is not the only sign.

    Examples:
        >>> from llamatelemetry.plots import Band
        >>> Band("weights", 9 * 2**30, "#0072b2", hatch="//").size_bytes
        9663676416
    """

    label: str
    size_bytes: int
    colour: str
    hatch: str = ""


@dataclass(frozen=True, slots=True)
class Device:
    """What stands still in the plot of a device.

    Attributes:
        title: Its name.
        total_bytes: All its memory in bytes; None where it is not known.
        before_bytes: Bytes used before a model was loaded; the bands begin there.
        bands: What is expected, from below.

    Examples:
        >>> from llamatelemetry.plots import Band, Device
        >>> weights = Band("weights", 9 * 2**30, "#0072b2")
        >>> cache = Band("KV cache", 2**30, "#e69f00")
        >>> Device("GPU 0", 15 * 2**30, bands=(weights, cache)).top_bytes / 2**30
        10.0
    """

    title: str
    total_bytes: int | None
    before_bytes: int = 0
    bands: tuple[Band, ...] = ()

    @property
    def top_bytes(self) -> int:
        """Where the highest band ends."""
        return self.before_bytes + sum(band.size_bytes for band in self.bands)


@dataclass(frozen=True, slots=True)
class Label:
    """The name of one mark, or of several close together.

    Attributes:
        time: Where it stands, in the time of the marks.
        text: What it says.
    """

    time: float
    text: str


class Trace:
    """A line over time, with no more points than can be seen apart.

    Of the points within one step the highest is kept: a card is full at its peak.

    Args:
        step: Seconds within which points are one.
        gap: Seconds without a point after which the line is broken.

    Examples:
        >>> from llamatelemetry.plots import Trace
        >>> trace = Trace(step=1, gap=5)
        >>> for time, value in ((0, 2**30), (2, 3 * 2**30)):
        ...     trace.add(time, value)
        >>> trace.points(now=10)
        ([-10, -8], [1.0, 3.0])
    """

    def __init__(self, step: float, gap: float) -> None:
        self._step = step
        self._gap = gap
        self._points: deque[tuple[float, float]] = deque()
        self._last = -math.inf

    @property
    def last(self) -> float:
        """When the last point was; minus infinity before the first."""
        return self._last

    @property
    def highest(self) -> float:
        """The highest value; 0 without one."""
        return max(
            (value for _, value in self._points if not math.isnan(value)), default=0
        )

    def add(self, time: float, value: float | None) -> None:
        """Add a point; None where there is nothing to see.

        A clock that was set back begins a new line.

        Args:
            time: When, in seconds.
            value: How much, in bytes.
        """
        if time < self._last:
            self._points.clear()
        elif self._points and time - self._last > self._gap:
            self._points.append((self._last, math.nan))
        self._last = time
        new = math.nan if value is None else float(value)
        if self._points:
            before, old = self._points[-1]
            same = before // self._step == time // self._step
            if same and not math.isnan(old) and not math.isnan(new):
                if new >= old:
                    self._points[-1] = (time, new)
                return
        self._points.append((time, new))

    def forget(self, before: float) -> None:
        """Drop what is older than a time, but the point that the line comes from.

        Args:
            before: The time, in seconds.
        """
        points = self._points
        while len(points) > 1 and points[1][0] <= before:
            points.popleft()

    def points(self, now: float) -> tuple[list[float], list[float]]:
        """Return seconds before now, and GiB; NaN breaks the line.

        Args:
            now: The time at the right edge, in seconds.
        """
        if not self._points:
            return [], []
        times = [time - now for time, _ in self._points]
        values = [value / GIB for _, value in self._points]
        # Within a step the peak was kept: the line still ends where the last point was.
        if times[-1] != self._last - now:
            times.append(self._last - now)
            values.append(values[-1])
        return times, values


def labels_of(
    marks: Sequence[tuple[float, str]], apart: float, since: float, until: float
) -> list[Label]:
    """Return one label for all marks that are close together.

    Which marks are together depends on those before them only, so that nothing jumps
    when a chart moves.

    Args:
        marks: When, and what happened; in order.
        apart: Seconds between two labels, at least.
        since: Labels before this time are left out.
        until: Marks after this time are left out.
    """
    groups: list[tuple[float, list[str]]] = []
    for time, text in marks:
        if time > until:  # the clock was set back after it
            continue
        if groups and 0 <= time - groups[-1][0] < apart:
            groups[-1][1].append(text)
        else:
            groups.append((time, [text]))
    return [Label(time, _told(texts)) for time, texts in groups if time >= since]


def _told(texts: Sequence[str]) -> str:
    """Return what a label says: what happened first, and how much more did."""
    first = printable(texts[0], _MOST_LABEL)
    if len(texts) == 1:
        return first
    if len(set(texts)) == 1:
        return f"{first} ×{len(texts)}"  # noqa: RUF001 - it is the sign for times
    return f"{first} +{len(texts) - 1}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the plots of a chart are, in pixels.

    Attributes:
        count: How many plots.
        legend_rows: Rows of the legend at the foot.
    """

    count: int
    legend_rows: int = 1

    @property
    def columns(self) -> int:
        """Plots side by side."""
        return 1 if self.count == 1 else 2

    @property
    def rows(self) -> int:
        """Plots one above the other."""
        return -(-self.count // self.columns)

    @property
    def plot_width(self) -> int:
        """Width of a plot."""
        free = WIDTH - _LEFT - _RIGHT - _BETWEEN * (self.columns - 1)
        return free // self.columns

    @property
    def time_width(self) -> int:
        """Width of a plot from its left edge to now."""
        return self.plot_width - PAST_NOW

    @property
    def plot_height(self) -> int:
        """Height of a plot."""
        return {1: _LONE, 2: _PAIR}.get(self.count, _MANY)

    @property
    def height(self) -> int:
        """Height of the whole; its width is always the same."""
        plots = self.rows * self.plot_height + (self.rows - 1) * _ROW_GAP
        return _TOP + plots + _BOTTOM + self.legend_rows * _LEGEND_ROW

    def box(self, number: int) -> tuple[int, int, int, int]:
        """Return a plot's left edge, upper edge, width and height."""
        row, column = divmod(number, self.columns)
        left = _LEFT + column * (self.plot_width + _BETWEEN)
        top = _TOP + row * (self.plot_height + _ROW_GAP)
        return left, top, self.plot_width, self.plot_height

    def is_last(self, number: int) -> bool:
        """Whether no plot is below this one."""
        return number + self.columns >= self.count


def scale_top(device: Device, highest: float) -> float:
    """Return where the scale of a plot ends, in GiB.

    Where the memory is known it ends a little above; else above what is seen, at a
    round number, so that the scale changes seldom.
    """
    most = max(device.top_bytes, highest) / GIB
    total = (device.total_bytes or 0) / GIB
    if total and total >= most:
        return total * _HEADROOM
    power = 10.0 ** math.floor(math.log10(max(most, 0.1)))
    return next(
        power * step for step in (1, 1.5, 2, 3, 4, 6, 8, 10, 15) if power * step > most
    )


def duration(seconds: float) -> str:
    """Return a time in words: ``90 seconds``, ``5 minutes``, ``24 hours``."""
    minutes, rest = divmod(seconds, 60)
    hours, more = divmod(seconds, 3600)
    if hours > 1 and not more:
        return f"{hours:g} hours"
    if minutes and not rest:
        return "1 minute" if minutes == 1 else f"{minutes:g} minutes"
    return f"{seconds:g} seconds"
