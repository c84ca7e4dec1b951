"""The picture of a batch: how fast it went over time, and how long its rows took."""

from __future__ import annotations

import bisect
import statistics
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from llamatelemetry._chart_look import (
    FAINT,
    INK,
    LIMIT,
    MARK,
    PAPER,
    SMALL,
    TITLE,
    USED,
)
from llamatelemetry.plots import drawable, new_figure, plain_text

__all__ = ["Answered", "batch_figure"]

_WIDTH, _HEIGHT = 640, 380  # pixels
_LEFT, _RIGHT, _TOP, _BOTTOM, _BETWEEN = 48, 52, 30, 38, 56
_STEPS = 60  # in which the time is counted
_FEW = 3  # rows in a step, at least, so that a short batch is no comb
_BINS = 40
_PAUSE_SECONDS = 300  # without a row: it was ended, and gone on with later
_PAUSE_TIMES = 50  # longer than usual
_BAR = "#9db7d5"
_ABOVE = 1.2  # room above the tokens
_IN_SECONDS, _IN_MINUTES = 180, 10_800


@dataclass(frozen=True, slots=True)
class Answered:
    """A row that was finished.

    Attributes:
        time: When, in seconds of any clock.
        seconds: How long it took; None if that is not known.
        tokens: Tokens generated; None if that is not known.
        failed: Whether it failed.
    """

    time: float
    seconds: float | None
    tokens: int | None
    failed: bool = False


def batch_figure(rows: Iterable[Answered], *, title: str = "", dpi: int = 200) -> Any:
    """Return a ``matplotlib.figure.Figure`` of a batch.

    Above, rows and tokens a second over the time it ran, pauses between runs cut out;
    below, how many rows took how long, or had how many tokens where no time is known.

    Args:
        rows: What was finished, in any order; walked once.
        title: What stands above it.
        dpi: Pixels for each inch.

    Raises:
        SetupError: matplotlib is missing.
    """
    finished = _Finished(rows)
    figure = new_figure(_WIDTH, _HEIGHT, dpi)
    half = (_HEIGHT - _TOP - _BOTTOM - _BETWEEN) / 2
    over_time = _axes(figure, _BOTTOM + half + _BETWEEN, half)
    over_time.set_title(drawable(title), loc="left", fontsize=TITLE, color=INK, pad=5)
    _draw_speed(over_time, finished)
    _draw_lengths(_axes(figure, _BOTTOM, half), finished)
    plain_text(figure)
    return figure


class _Finished:
    """Rows in the order in which they were finished, as arrays.

    Attributes:
        times: Seconds since the beginning, pauses left out.
        tokens: Of each.
        failed: The times of those that failed.
        seconds: How long rows took, of those of which that is known.
        lengths: Tokens of rows, of those of which that is known.
        pauses: When there was one.
        end: When the last was finished.
    """

    def __init__(self, rows: Iterable[Answered]) -> None:
        moments, tokens = array("d"), array("q")
        failed, lasted = bytearray(), array("d")
        self.lengths = array("q")
        for row in rows:
            moments.append(row.time)
            tokens.append(row.tokens or 0)
            failed.append(row.failed)
            lasted.append(-1.0 if row.seconds is None else row.seconds)
            if row.tokens is not None and not row.failed:
                self.lengths.append(row.tokens)
        order = sorted(range(len(moments)), key=moments.__getitem__)
        self.seconds = array(
            "d", (lasted[n] for n in order if lasted[n] >= 0 and not failed[n])
        )
        self.pauses: list[float] = []
        first = max(0.0, lasted[order[0]]) if order else 0.0
        self.times = self._without_pauses([moments[n] for n in order], first)
        self.tokens = array("q", (tokens[n] for n in order))
        self.failed = [
            time for time, n in zip(self.times, order, strict=True) if failed[n]
        ]
        self.end = self.times[-1] if order else 0.0

    def counted(self, count: int, step: float) -> tuple[list[int], ...]:
        """Return rows, tokens and failures of each of so many equal steps."""
        edges = [step * number for number in range(1, count)]
        rows, tokens, failed = [0] * count, [0] * count, [0] * count
        for time, generated in zip(self.times, self.tokens, strict=True):
            place = bisect.bisect_right(edges, time)
            rows[place] += 1
            tokens[place] += generated
        for time in self.failed:
            failed[bisect.bisect_right(edges, time)] += 1
        return rows, tokens, failed

    def _without_pauses(self, moments: Sequence[float], first: float) -> list[float]:
        if not moments:
            return []
        gaps = [later - sooner for sooner, later in pairwise(moments)]
        usual = statistics.median(gaps) if gaps else 0.0
        longest = max(_PAUSE_SECONDS, _PAUSE_TIMES * usual)
        time, times = first, [first]
        for gap in gaps:
            if gap > longest:
                self.pauses.append(time)
            else:
                time += gap
            times.append(time)
        return times


def _axes(figure: Any, bottom: float, height: float) -> Any:
    width = _WIDTH - _LEFT - _RIGHT
    axes = figure.add_axes(
        (_LEFT / _WIDTH, bottom / _HEIGHT, width / _WIDTH, height / _HEIGHT)
    )
    axes.set_facecolor(PAPER)
    _plain(axes, ("left", "bottom"))
    return axes


def _plain(axes: Any, sides: Sequence[str]) -> None:
    axes.grid(visible=False)
    right = "right" in sides
    axes.tick_params(
        labelsize=SMALL, length=2.5, width=0.6, pad=2, direction="out",
        color=FAINT, labelcolor=FAINT, which="both", top=False, labeltop=False,
        right=right, labelright=right, left=not right, labelleft=not right,
    )  # fmt: skip
    axes.minorticks_off()
    for name, spine in axes.spines.items():
        spine.set_visible(name in sides)
        spine.set_color(FAINT)
        spine.set_linewidth(0.6)


def _draw_speed(axes: Any, finished: _Finished) -> None:
    """Draw rows and tokens a second, what failed, and where it was gone on with."""
    unit, name = _time_unit(finished.end)
    axes.set_xlabel(name, fontsize=SMALL, color=FAINT, labelpad=1)
    axes.set_ylabel("rows/s", fontsize=SMALL, color=USED, labelpad=2)
    other = axes.twinx()
    _plain(other, ("right",))
    other.set_ylabel("tokens/s", fontsize=SMALL, color=MARK, labelpad=2)
    count = max(1, min(_STEPS, len(finished.times) // _FEW))
    step = (finished.end or 1.0) / count
    rows, tokens, failed = finished.counted(count, step)
    bounds = [step * number / unit for number in range(count + 1)]
    for place, values, colour, width in (
        (other, tokens, MARK, 1.0),
        (axes, rows, USED, 1.8),
    ):
        speeds = [value / step for value in values]
        place.stairs(speeds, bounds, color=colour, linewidth=width, baseline=None)
    if finished.failed:
        axes.stairs(
            [value / step for value in failed],
            bounds,
            color=LIMIT,
            fill=True,
            alpha=0.5,
        )
        axes.annotate(
            f"{len(finished.failed):,} failed", (1, 1), xycoords="axes fraction",
            horizontalalignment="right", verticalalignment="bottom", fontsize=SMALL,
            color=LIMIT,
        )  # fmt: skip
    for pause in finished.pauses:
        axes.axvline(pause / unit, color=FAINT, linewidth=0.8, linestyle=":")
    for one in (axes, other):
        one.set_xlim(0, bounds[-1])
        one.set_ylim(bottom=0)
    # Where all rows are of one length, the two lines would be one.
    other.set_ylim(top=other.get_ylim()[1] * _ABOVE)


def _time_unit(seconds: float) -> tuple[float, str]:
    if seconds <= _IN_SECONDS:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds <= _IN_MINUTES else (3600.0, "hours")


def _draw_lengths(axes: Any, finished: _Finished) -> None:
    """Draw how many rows took how long; the longest hundredth in the last bar."""
    by_time = bool(finished.seconds)
    values = sorted(finished.seconds if by_time else finished.lengths)
    name = "seconds a row took" if by_time else "tokens of a row"
    unit = " s" if by_time else ""
    axes.set_ylabel("rows", fontsize=SMALL, color=FAINT, labelpad=2)
    axes.set_xlabel(name, fontsize=SMALL, color=FAINT, labelpad=1)
    if not values:
        return
    top = values[len(values) * 99 // 100] or values[-1] or 1.0
    shown = [min(float(value), top) for value in values]
    axes.locator_params(axis="y", integer=True)  # there is no half a row
    axes.hist(shown, bins=min(_BINS, len(values)), range=(0, top), color=_BAR)
    middle = statistics.median(values)
    axes.axvline(min(middle, top), color=USED, linewidth=1, linestyle="--")
    axes.annotate(
        f"half below {middle:.3g}{unit}", (min(middle, top), 1),
        xycoords=("data", "axes fraction"), xytext=(3, 0), textcoords="offset points",
        verticalalignment="bottom", fontsize=SMALL, color=USED,
    )  # fmt: skip
    axes.set_xlim(0, top)
