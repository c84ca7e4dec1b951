"""The figure of a timeline: cards above, requests as bars in lanes below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llamatelemetry._chart_look import (
    FAINT,
    INK,
    LIMIT,
    MARK,
    PAPER,
    PAPER_BEHIND,
    SMALL,
    TITLE,
)
from llamatelemetry._units import GIB, MIB
from llamatelemetry.plots import drawable, new_figure, plain_text

__all__ = ["Bar", "Line", "timeline_figure"]

_WIDTH = 900  # pixels, with 100 for an inch
_PLOT, _LANE, _LEAST_LANES, _MOST_LANES = 130, 16, 60, 420
_LEFT, _RIGHT, _TOP, _BOTTOM, _BETWEEN = 110, 14, 26, 58, 12
_LONGEST_NAME = 24  # letters
_LETTER_PIXELS = 5.2  # of a mark's name, which is cut where its plot ends
_NAME_PIXELS = 11  # what an upright name takes from left to right
_LEAST_MARKED = 4  # pixels of a request whose first token is marked
_MOST_NAMES = 40  # of lanes, and of marks
_IN_SECONDS = 600  # a longer timeline is counted in minutes

# Blue, orange, green, rose: told apart by those who see fewer colours too.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_READING, _WRITING, _FIRST = "#9ecae1", "#3182bd", INK
_OUTCOMES = {"failed": LIMIT, "cancelled": "#969696"}


@dataclass(frozen=True, slots=True)
class Line:
    """What a card said.

    Attributes:
        name: The card's.
        points: Seconds, and a value; NaN where it said nothing.
    """

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Bar:
    """A request.

    Attributes:
        start: When it began, in seconds.
        end: When it ended.
        first: When its first token came; None if none came.
        outcome: "done", "failed" or "cancelled".
    """

    start: float
    end: float
    first: float | None
    outcome: str = "done"


def timeline_figure(
    *,
    memory: Sequence[Line],
    power: Sequence[Line],
    lanes: Sequence[tuple[str, Sequence[Bar]]],
    marks: Sequence[tuple[float, str]] = (),
) -> Any:
    """Return a figure: a plot of memory and one of power, if known, and the lanes.

    Args:
        memory: Used memory of each card, in bytes.
        power: What each card draws, in watts.
        lanes: A name, and the requests in that row; the first is drawn on top.
        marks: When something happened, in seconds, and what.

    Raises:
        SetupError: matplotlib is missing.
    """
    upper = [
        (lines, unit)
        for lines, unit in (_in_one_unit(memory), (power, "watts"))
        if lines
    ]
    room = min(max(len(lanes) * _LANE, _LEAST_LANES), _MOST_LANES)
    # Without cards the marks' names have a place of their own, not over the requests.
    above = len(upper) or min(len(marks), 1)
    heights = [_PLOT] * above + [room]
    whole = _TOP + sum(heights) + _BETWEEN * above + _BOTTOM
    figure = new_figure(_WIDTH, whole)
    last = _last_moment([lines for lines, _ in upper], lanes, marks)
    every = _plots(figure, heights, whole, last)
    for axes, (lines, unit) in zip(every, upper, strict=False):
        _draw_lines(axes, lines, unit)
    if above and not upper:
        every[0].set_axis_off()
    a_pixel = last / (_WIDTH - _LEFT - _RIGHT)
    _draw_lanes(every[-1], lanes, _LEAST_MARKED * a_pixel)
    _draw_marks(every, marks, _NAME_PIXELS * a_pixel, int(heights[0] / _LETTER_PIXELS))
    _draw_legends(figure, every, upper)
    plain_text(figure)
    return figure


def _in_one_unit(memory: Sequence[Line]) -> tuple[Sequence[Line], str]:
    """Return lines of bytes in GiB, or in MiB where there is little."""
    known = [
        value for line in memory for _, value in line.points if not math.isnan(value)
    ]
    size, unit = (GIB, "GiB") if max(known, default=0) >= GIB else (MIB, "MiB")
    return [
        Line(line.name, [(when, value / size) for when, value in line.points])
        for line in memory
    ], unit


def _last_moment(
    plots: Sequence[Sequence[Line]],
    lanes: Sequence[tuple[str, Sequence[Bar]]],
    marks: Sequence[tuple[float, str]],
) -> float:
    moments = [line.points[-1][0] for lines in plots for line in lines]
    moments += [bar.end for _, bars in lanes for bar in bars]
    return max([*moments, *(when for when, _ in marks)], default=0.0) or 1.0


def _plots(figure: Any, heights: Sequence[int], whole: int, last: float) -> list[Any]:
    """Return axes one below the other, with the same scale of time."""
    every: list[Any] = []
    upper = _TOP
    unit, name = (1, "seconds") if last <= _IN_SECONDS else (60, "minutes")
    for number, height in enumerate(heights):
        box = (
            _LEFT / _WIDTH,
            1 - (upper + height) / whole,
            (_WIDTH - _LEFT - _RIGHT) / _WIDTH,
            height / whole,
        )
        axes = figure.add_axes(box, sharex=every[0] if every else None)
        axes.set_facecolor(PAPER)
        axes.grid(visible=False)
        lowest = number == len(heights) - 1
        axes.tick_params(
            labelsize=SMALL, length=2.5, width=0.6, color=FAINT, labelcolor=FAINT,
            labelbottom=lowest,
        )  # fmt: skip
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(FAINT)
            spine.set_linewidth(0.6)
        every.append(axes)
        upper += height + _BETWEEN
    every[0].set_xlim(0, last * 1.01)
    every[-1].xaxis.set_major_formatter(lambda value, _: f"{value / unit:g}")
    every[-1].set_xlabel(name, fontsize=SMALL, color=FAINT)
    return every


def _draw_lines(axes: Any, lines: Sequence[Line], unit: str) -> None:
    for number, line in enumerate(lines):
        x, y = zip(*line.points, strict=True)
        axes.plot(
            x, y, color=_COLOURS[number % len(_COLOURS)], marker="",
            linewidth=max(1.4, 2.8 - 0.7 * number),  # equal ones show beside each other
            linestyle="-" if number < len(_COLOURS) else "--",
            label=drawable(line.name),
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_ylabel(unit, fontsize=SMALL, color=FAINT)


def _draw_lanes(
    axes: Any, lanes: Sequence[tuple[str, Sequence[Bar]]], least: float
) -> None:
    """Draw requests; the first token only of those that take so many seconds."""
    for row, (_, bars) in enumerate(lanes):
        box = (row - 0.36, 0.72)
        read = [(bar.start, (bar.first or bar.end) - bar.start) for bar in bars]
        axes.broken_barh(read, box, facecolor=_READING, linewidth=0)
        for outcome in ("done", *_OUTCOMES):
            # One that ended before its first token is told by its last moment too.
            told = [
                (bar.first or bar.end, bar.end - (bar.first or bar.end))
                for bar in bars
                if bar.outcome == outcome
            ]
            colour = _OUTCOMES.get(outcome, _WRITING)
            width = 0 if outcome == "done" else 1
            axes.broken_barh(
                told, box, facecolor=colour, edgecolor=colour, linewidth=width
            )
        first = [
            bar.first
            for bar in bars
            if bar.first is not None and bar.end - bar.start >= least
        ]
        axes.vlines(first, row - 0.45, row + 0.45, color=_FIRST, linewidth=0.7)
    axes.set_ylim(max(len(lanes), 1) - 0.4, -0.6)
    named = lanes if len(lanes) <= _MOST_NAMES else []
    axes.set_yticks(
        range(len(named)), [drawable(name[-_LONGEST_NAME:]) for name, _ in named]
    )
    axes.set_ylabel("requests", fontsize=SMALL, color=FAINT)


def _draw_marks(
    every: Sequence[Any],
    marks: Sequence[tuple[float, str]],
    apart: float,
    letters: int,
) -> None:
    """Draw a line for each mark, and names that have room beside each other."""
    for when, _ in marks:
        for axes in every:
            axes.axvline(when, color=MARK, linewidth=0.8, linestyle=":", marker="")
    for when, text in _named(marks, apart)[-_MOST_NAMES:]:
        name = text if len(text) <= letters else f"{text[: letters - 1]}…"
        every[0].annotate(
            drawable(name), (when, 1), xytext=(2, -2),
            xycoords=("data", "axes fraction"), textcoords="offset points",
            rotation=90, fontsize=SMALL, color=MARK, bbox=PAPER_BEHIND,
            horizontalalignment="left", verticalalignment="top",
            annotation_clip=True,
        )  # fmt: skip


def _named(marks: Sequence[tuple[float, str]], apart: float) -> list[tuple[float, str]]:
    """Return marks of which none covers another's name: close ones share one."""
    named: list[tuple[float, str]] = []
    for when, text in marks:
        if named and when - named[-1][0] < apart:
            named[-1] = (named[-1][0], f"{named[-1][1]}; {text}")
        else:
            named.append((when, text))
    return named


def _draw_legends(
    figure: Any,
    every: Sequence[Any],
    upper: Sequence[tuple[Sequence[Line], str]],
) -> None:
    look = {"frameon": False, "fontsize": SMALL, "labelcolor": INK}
    if upper:
        every[0].set_title(
            "Memory used, power, and requests"
            if len(upper) > 1
            else "Cards and requests",
            loc="left", fontsize=TITLE, color=INK, pad=4,
        )  # fmt: skip
        every[0].legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=4, borderaxespad=0.1, **look
        )
    # Drawn nowhere, for their looks alone: without matplotlib's classes, which only its
    # door may import.
    lowest, box = every[-1], (0, 1)
    lowest.broken_barh([], box, facecolor=_READING, label="until the first token")
    lowest.vlines([], 0, 1, color=_FIRST, linewidth=0.9, label="first token")
    lowest.broken_barh([], box, facecolor=_WRITING, label="writing")
    for outcome, colour in _OUTCOMES.items():
        lowest.broken_barh([], box, facecolor=colour, label=outcome)
    handles, names = lowest.get_legend_handles_labels()
    figure.legend(
        handles, names, loc="lower center", ncols=len(names), borderaxespad=0.2, **look
    )
