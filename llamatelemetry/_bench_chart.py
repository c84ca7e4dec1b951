"""Figures of measured loads, and of two things compared round by round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llamatelemetry import plots
from llamatelemetry._chart_look import (
    FAINT,
    INK,
    LIMIT,
    MARK,
    PAPER,
    PAPER_BEHIND,
    SMALL,
    TITLE,
    USED,
)

__all__ = ["Rounds", "loads_figure", "rounds_figure"]

_HEIGHT = 260  # pixels, of which an inch has 100
_WIDTH_EACH = 290
_SPREAD = 0.18  # how strongly the space up to the 90th percentile is coloured
_ABOVE = 1.05  # room for the topmost point
_MOST_TICKS = 8  # loads that are named in a plot
_LONGEST_NAME = 18  # letters of what is compared
_ROOM = {"left": 0.06, "right": 0.985, "bottom": 0.17, "top": 0.89, "wspace": 0.24}
_LEFT = 60  # pixels, for the names at the first axis
_BEYOND = 0.1  # of the height: room above the highest ratio, and below the lowest
_LEAST_SPAN = 1.1  # the highest place over the lowest, where ratios are all but equal
_FEW_TIMES = 3.0  # up to here ratios are named at equal steps
_MOST_RATIOS = 8  # that are named
_PARTS = ((1, 1.5, 2, 3, 5, 7), (1, 2, 5))  # of a power of 10
_POWERS = tuple(((1,), every) for every in range(1, 100))

Times = Sequence[tuple[float, float] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """A metric of two things, round by round.

    Attributes:
        title: What it is, in words.
        more_is_better: Whether more of it is better, or less.
        values: The ratio of each round; all are above 0.
        median: Their median; None without a round.
        spread: Where the true median lies; None without a round.
    """

    title: str
    more_is_better: bool
    values: Sequence[float]
    median: float | None = None
    spread: tuple[float, float] | None = None


def loads_figure(
    across: str,
    places: Sequence[float],
    rates: Sequence[float],
    first: Times,
    each: Times,
) -> Any:
    """Return a figure of three plots: tokens per second, and two times, by load.

    Args:
        across: What the loads are counted in.
        places: The loads.
        rates: Output tokens per second of each.
        first: Seconds to the first token of each: the median and the 90th percentile.
        each: Seconds per output token, likewise.
    """
    figure = plots.new_figure(3 * _WIDTH_EACH, _HEIGHT)
    order = sorted(range(len(places)), key=places.__getitem__)
    through, waits, paces = figure.subplots(1, 3, gridspec_kw=_ROOM)
    through.plot(
        [places[one] for one in order], [rates[one] for one in order], **_line(USED)
    )
    _dress(through, "Tokens per second", across, "")
    _by_load(through, places)
    for axes, title, times in (
        (waits, "Time to first token", first),
        (paces, "Time per output token", each),
    ):
        known = [(places[one], times[one]) for one in order]
        points = [(place, *time) for place, time in known if time is not None]
        x = [place for place, _, _ in points]
        middle = [1000 * median for _, median, _ in points]
        upper = [1000 * high for _, _, high in points]
        axes.fill_between(x, middle, upper, color=MARK, alpha=_SPREAD, linewidth=0)
        axes.plot(x, middle, **_line(MARK))
        _dress(axes, title, across, "ms, median to p90")
        _by_load(axes, places)
    plots.plain_text(figure)
    return figure


def rounds_figure(names: tuple[str, str], metrics: Sequence[Rounds]) -> Any:
    """Return a figure with a plot for each metric: the ratio of each round.

    Args:
        names: What is compared, the first being what the ratio is of.
        metrics: What they are compared by.
    """
    width = max(2, len(metrics)) * _WIDTH_EACH
    figure = plots.new_figure(width, _HEIGHT)
    room = {**_ROOM, "left": _LEFT / width, "top": 0.84}  # titles have two lines
    every = figure.subplots(1, len(metrics), squeeze=False, gridspec_kw=room)[0]
    one, other = (
        name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
        for name in names
    )
    for axes, metric in zip(every, metrics, strict=True):
        known_median = "" if metric.median is None else f"median {metric.median:.3f} "
        better = f"({'more' if metric.more_is_better else 'less'} is better)"
        known = metric.spread is not None
        _dress(
            axes,
            f"{metric.title.capitalize()}\n{known_median}{better}",
            "round; the band is the spread of the median" if known else "round",
            f"{other} / {one}",
            from_0=False,
        )
        _draw_rounds(axes, metric)
    plots.plain_text(figure)
    return figure


def _draw_rounds(axes: Any, metric: Rounds) -> None:
    """Draw ratios so that twice as much is as far from 1 as half as much."""
    axes.set_yscale("log")
    axes.minorticks_off()
    lowest, highest = min(metric.values, default=1), max(metric.values, default=1)
    lowest, highest = min(lowest, 1 / _LEAST_SPAN), max(highest, _LEAST_SPAN)
    room = (highest / lowest) ** _BEYOND
    axes.set_ylim(lowest / room, highest * room)
    ticks = _ratios_named(lowest, highest)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    if metric.spread is not None:
        axes.axhspan(*metric.spread, color=USED, alpha=_SPREAD, linewidth=0)
    axes.axhline(1, color=LIMIT, linewidth=1, linestyle="--", marker="")
    is_above = metric.median is not None and metric.median >= 1
    _name_line(axes, 1, "no difference", LIMIT, at_left=True, above=not is_above)
    if metric.median is not None:
        axes.axhline(metric.median, color=USED, linewidth=1.2, linestyle="-", marker="")
        _name_line(axes, metric.median, "median", USED, at_left=False, above=is_above)
    x = range(1, len(metric.values) + 1)
    axes.plot(x, metric.values, **{**_line(USED), "linestyle": "", "zorder": 4})
    axes.xaxis.get_major_locator().set_params(integer=True)


def _name_line(
    axes: Any, height: float, text: str, colour: str, *, at_left: bool, above: bool
) -> None:
    """Name a line, on the side of it that is told."""
    axes.annotate(
        text, (0.01 if at_left else 0.99, height), xytext=(0, 2 if above else -2),
        xycoords=("axes fraction", "data"), textcoords="offset points",
        fontsize=SMALL, color=colour, bbox=PAPER_BEHIND, zorder=3,
        horizontalalignment="left" if at_left else "right",
        verticalalignment="bottom" if above else "top",
    )  # fmt: skip


def _ratios_named(lowest: float, highest: float) -> list[float]:
    """Return the ratios that are named at an axis, 1 among them: not too many."""
    if highest / lowest <= _FEW_TIMES:
        for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
            first, last = math.ceil(lowest / step), math.floor(highest / step)
            if last - first < _MOST_RATIOS:
                break
        return [round(place * step, 2) for place in range(first, last + 1)]
    powers = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1)
    # The first that are not too many; in the end each second, third, ... power of 10.
    for parts, every in (*((parts, 1) for parts in _PARTS), *_POWERS):
        found = [
            part * 10.0**power
            for power in powers
            if power % every == 0
            for part in parts
            if lowest <= part * 10.0**power <= highest
        ]
        if len(found) <= _MOST_RATIOS:
            break
    return found


def _by_load(axes: Any, places: Sequence[float]) -> None:
    """Have each doubling of the load as wide; name those that have room."""
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
    named: list[float] = []
    for place in sorted(set(places)):
        apart = math.log(max(places) / min(places)) / _MOST_TICKS
        if not named or math.log(place / named[-1]) >= apart:
            named.append(place)
    axes.set_xticks(named, [f"{place:g}" for place in named])


def _line(colour: str) -> dict[str, Any]:
    return {
        "color": colour, "linewidth": 1.8, "linestyle": "-", "marker": "o",
        "markersize": 3.2,
    }  # fmt: skip


def _dress(
    axes: Any, title: str, across: str, unit: str, *, from_0: bool = True
) -> None:
    lines = "\n".join(map(plots.drawable, title.split("\n")))
    axes.set_title(lines, loc="left", fontsize=TITLE, color=INK, pad=4)
    axes.set_xlabel(across, fontsize=SMALL, color=FAINT)
    axes.set_ylabel(plots.drawable(unit), fontsize=SMALL, color=FAINT)
    axes.tick_params(labelsize=SMALL, color=FAINT, labelcolor=FAINT, width=0.6)
    axes.grid(visible=False)
    axes.set_facecolor(PAPER)
    if from_0:
        axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * _ABOVE)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(FAINT)
        spine.set_linewidth(0.6)
