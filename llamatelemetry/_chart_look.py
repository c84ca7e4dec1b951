"""How the still parts of a chart look: colours, scales, bands.

Nothing is imported from matplotlib here: what is drawn on is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from llamatelemetry._chart import Band, Device
from llamatelemetry._units import GIB

SMALL, TITLE = 6.5, 8.0  # points
INK, FAINT, PAPER = "#1b1b1b", "#6b6b6b", "#ffffff"
LIMIT, USED, MARK, BEFORE = "#c0392b", "#0b1f3a", "#7a3e9d", "#e4e4e4"
HALO = 0.72  # how much of what is below a name is covered
_NAMED_FROM = 12  # pixels of height from which a band has room for its name
_IN_SECONDS = 180  # a longer window is counted in minutes
_MOST_STEPS = 6

PAPER_BEHIND: Mapping[str, Any] = {
    "facecolor": PAPER, "alpha": HALO, "edgecolor": "none", "pad": 0.8
}  # fmt: skip


def draw_scales(axes: Any, window: float, top: float, *, last: bool) -> None:
    """Draw a plot's two scales, and the lines they stand on.

    Args:
        axes: Where.
        window: Seconds from left to right.
        top: GiB from below to above.
        last: Whether no plot is below this one.
    """
    unit, unit_name = (
        (1, "seconds ago") if window <= _IN_SECONDS else (60, "minutes ago")
    )
    times = _round_steps(window / unit)
    heights = _round_steps(top)
    axes.set_xticks(
        [-time * unit for time in times], ["now", *(f"{time:g}" for time in times[1:])]
    )
    axes.set_yticks(heights, [f"{height:g}" for height in heights])
    axes.tick_params(
        labelsize=SMALL, length=2.5, width=0.6, pad=2, direction="out",
        color=FAINT, labelcolor=FAINT, which="both",
        top=False, right=False, bottom=True, left=True,
        labeltop=False, labelright=False, labelbottom=True, labelleft=True,
    )  # fmt: skip
    axes.minorticks_off()
    if last:
        axes.set_xlabel(unit_name, fontsize=SMALL, color=FAINT, labelpad=1)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(FAINT)
        spine.set_linewidth(0.6)


def _round_steps(most: float) -> list[float]:
    """Return round numbers from 0 to a number, at most seven."""
    power = 10.0 ** math.floor(math.log10(most / _MOST_STEPS))
    step = next(
        power * factor
        for factor in (1, 2, 4, 5, 10)
        if most <= power * factor * _MOST_STEPS
    )
    return [step * number for number in range(int(most / step + 1e-9) + 1)]


def draw_bands(
    axes: Any, device: Device, pixels: float, drawable: Callable[[str], str]
) -> None:
    """Draw what is expected, and the limit.

    Args:
        axes: Where.
        device: What.
        pixels: Pixels of height for a GiB.
        drawable: Makes a text one that the font has letters for.
    """
    low = device.before_bytes / GIB
    if low:
        axes.axhspan(0, low, facecolor=BEFORE, edgecolor="none", linewidth=0)
        _name_band(axes, low / 2, low * pixels, f"before {low:.1f}")
    for band in device.bands:
        size = band.size_bytes / GIB
        axes.axhspan(low, low + size, zorder=0.5, **band_style(band))
        told = drawable(f"{band.label} {size:.1f}")
        _name_band(axes, low + size / 2, size * pixels, told)
        low += size
    if device.total_bytes:
        total = device.total_bytes / GIB
        axes.axhline(
            total, color=LIMIT, linewidth=1, linestyle="--", marker="", zorder=1
        )


def _name_band(axes: Any, middle: float, height: float, text: str) -> None:
    if height >= _NAMED_FROM:
        axes.annotate(
            text, (0, middle), xycoords=("axes fraction", "data"),
            xytext=(3, 0), textcoords="offset points", fontsize=SMALL, color=INK,
            verticalalignment="center_baseline", zorder=2,
            bbox=PAPER_BEHIND,
        )  # fmt: skip


def band_style(band: Band) -> dict[str, Any]:
    """Return how a band is filled: light, so that a line over it is seen."""
    return {
        "facecolor": _mixed(band.colour, 0.38),
        "edgecolor": _mixed(band.colour, 0.7),
        "hatch": band.hatch or None,
        "linewidth": 0,
    }


def _mixed(colour: str, part: float) -> str:
    """Return a colour made lighter: so much of it, and the rest white."""
    channels = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    mixed = [round(255 - (255 - channel) * part) for channel in channels]
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
