"""Figures of measured loads, and of two things compared round by round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llamatelemetry import plots
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

__all__ = ["loads_figure", "rounds_figure"]

_HEIGHT = 260  # pixels, of which an inch has 100
_WIDTH_EACH = 290
_SPREAD = 0.18  # how strongly the space up to the 90th percentile is coloured
_ABOVE = 1.05  # room for the topmost point
_MOST_TICKS = 8  # loads that are named in a plot
_LONGEST_NAME = 18  # letters of what is compared
_ROOM = {"left": 0.06, "right": 0.985, "bottom": 0.17, "top": 0.89, "wspace": 0.24}

Times = Sequence[tuple[float, float] | None]


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


def rounds_figure(
    names: tuple[str, str],
    ratios: Sequence[tuple[str, Sequence[float], tuple[float, float] | None]],
) -> Any:
    """Return a figure with a plot for each metric: the ratio of each round.

    Args:
        names: What is compared, the first being what the ratio is of.
        ratios: The metric in words, its ratios, and where their median lies.
    """
    figure = plots.new_figure(max(2, len(ratios)) * _WIDTH_EACH, _HEIGHT)
    every = figure.subplots(1, len(ratios), squeeze=False, gridspec_kw=_ROOM)[0]
    one, other = (
        name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
        for name in names
    )
    for axes, (title, values, interval) in zip(every, ratios, strict=True):
        if interval is not None:
            axes.axhspan(*interval, color=USED, alpha=_SPREAD, linewidth=0)
        axes.axhline(1, color=LIMIT, linewidth=1, linestyle="--")
        x = range(1, len(values) + 1)
        axes.plot(x, values, **{**_line(USED), "linestyle": ""})
        _dress(
            axes,
            title.capitalize(),
            "round" if interval is None else "round; the band is the median's spread",
            f"{other} / {one}",
            from_0=False,
        )
        axes.xaxis.get_major_locator().set_params(integer=True)
    plots.plain_text(figure)
    return figure


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
    axes.set_title(plots.drawable(title), loc="left", fontsize=TITLE, color=INK, pad=4)
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
