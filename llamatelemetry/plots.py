"""Charts of memory over time, as pictures: the one door to matplotlib and Pillow.

Both are loaded when something is drawn. Figures are made by matplotlib's object
interface and drawn by its Agg canvas; pyplot, which belongs to the notebook's main
thread, is never touched, nor are the user's styles followed.

A chart that lives is drawn in two layers. What stands still, all but the lines and
marks, is drawn once; for each update it is copied, the lines are drawn over it, and the
whole becomes a PNG with a palette. ``benchmarks/vram_chart.py`` measures that.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from llamatelemetry import _chart
from llamatelemetry._chart import Band, Device, Label, Layout, Trace
from llamatelemetry._chart_look import (
    BEFORE,
    FAINT,
    HALO,
    INK,
    LIMIT,
    MARK,
    PAPER,
    PAPER_BEHIND,
    SMALL,
    TITLE,
    USED,
    band_style,
    draw_bands,
    draw_scales,
)
from llamatelemetry._units import printable
from llamatelemetry.exceptions import SetupError

__all__ = ["Band", "Device", "MemoryChart", "Trace", "figure_png", "memory_figure"]

Marks = Sequence[tuple[float, str]]

_DPI = 100  # of the chart that lives: one of its pixels is one of the page
_FINE_DPI = 200
_FONT = "DejaVu Sans"  # matplotlib brings it along
_COLOURS = 32  # beside those that are exact
_TOO_CLOSE = 8
_COMPRESSION = 4  # six takes twice the time for a twentieth fewer bytes
_MOST_MASKS = 128
_LABEL_PIXELS = 14  # what one upright label takes from left to right
_LABEL_LENGTH = 110
_MOST_NAMES = 8  # of marks on one plot; older lines have none
_LINE_ORDER = 4  # above the frame, as in a chart that is drawn at once
_LEGEND_COLUMNS = 8

_UPRIGHT: Mapping[str, Any] = {
    "fontsize": SMALL, "rotation": 90,
    "horizontalalignment": "center", "verticalalignment": "top",
}  # fmt: skip


class MemoryChart:
    """A chart that is drawn again and again, cheaply.

    Any thread may call anything; one draws at a time.

    Examples:
        >>> from llamatelemetry.plots import Device, MemoryChart, Trace
        >>> device, trace = Device("GPU 0", 15 * 2**30), Trace(step=1, gap=5)
        >>> trace.add(0, 2**30)
        >>> chart = MemoryChart()
        >>> picture = chart.png([device], [trace], now=10, window=60)
        >>> picture[1:4], chart.size
        (b'PNG', (640, 243))
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: object = None
        self._drawing: _Drawing | None = None
        self._background: Any = None
        self._palette: Any = None
        self._masks: dict[str, tuple[Any, Any]] = {}

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the last picture, in pixels."""
        with self._lock:
            layout = self._drawing.layout if self._drawing else Layout(1)
        return _chart.WIDTH, layout.height

    def png(
        self,
        devices: Sequence[Device],
        traces: Sequence[Trace],
        marks: Marks = (),
        *,
        now: float,
        window: float,
    ) -> bytes:
        """Return the chart as it is now.

        Args:
            devices: What stands still, one for each plot; one or more.
            traces: A line for each.
            marks: When, and what happened; in order.
            now: The time at the right edge.
            window: Seconds from the left edge to the right.

        Raises:
            SetupError: matplotlib is missing.
        """
        with self._lock:
            picture = self._frame(devices, traces, marks, now, window)
            if self._palette is None:
                self._palette = _palette(picture, devices)
            return _png(picture.quantize(palette=self._palette, dither=0))

    def _frame(
        self,
        devices: Sequence[Device],
        traces: Sequence[Trace],
        marks: Marks,
        now: float,
        window: float,
    ) -> Any:
        """Return what moves drawn over what stands still, in all colours."""
        drawing = self._drawing_of(devices, traces, window)
        drawing.move(traces, marks, now)
        canvas = drawing.figure.canvas
        canvas.restore_region(self._background)
        for axes, *lines in drawing.moving:
            for line in lines:
                axes.draw_artist(line)
        picture = _picture(canvas)
        for x, y, text in drawing.places_of(marks, now):
            halo, ink = self._mask(text)
            picture.paste(PAPER, (x, y), halo)
            picture.paste(MARK, (x, y), ink)
        return picture

    def _drawing_of(
        self, devices: Sequence[Device], traces: Sequence[Trace], window: float
    ) -> _Drawing:
        """Return the drawing, made anew if what stands still has changed."""
        tops = _tops(devices, traces)
        key = (tuple(devices), tops, window)
        if self._drawing is None or key != self._key:
            drawing = _Drawing(devices, tops, window, _DPI)
            drawing.figure.canvas.draw()
            self._background = drawing.figure.canvas.copy_from_bbox(drawing.figure.bbox)
            self._drawing, self._key, self._palette = drawing, key, None
        return self._drawing

    def _mask(self, text: str) -> tuple[Any, Any]:
        """Return a label's masks, drawn once: a text takes 30 times a copy's time."""
        if text not in self._masks:
            if len(self._masks) >= _MOST_MASKS:
                self._masks.clear()
            self._masks[text] = _label_masks(text)
        return self._masks[text]


def memory_figure(
    devices: Sequence[Device],
    traces: Sequence[Trace],
    marks: Marks = (),
    *,
    now: float,
    window: float,
    dpi: int = _FINE_DPI,
) -> Any:
    """Return the same chart as a ``matplotlib.figure.Figure`` that stands for itself.

    Args:
        devices: What stands still, one for each plot.
        traces: A line for each.
        marks: When, and what happened.
        now: The time at the right edge.
        window: Seconds from the left edge to the right.
        dpi: Pixels for each inch; 100 gives the size of the chart that lives.

    Raises:
        SetupError: matplotlib is missing.

    Examples:
        >>> from llamatelemetry.plots import Device, Trace, memory_figure
        >>> device, trace = Device("GPU 0", 15 * 2**30), Trace(step=1, gap=5)
        >>> trace.add(0, 2**30)
        >>> figure = memory_figure([device], [trace], now=10, window=60)
        >>> figure.axes[0].get_title(loc="left")
        'GPU 0'
    """
    drawing = _Drawing(devices, _tops(devices, traces), window, dpi)
    drawing.move(traces, marks, now)
    drawing.write_labels(marks, now)
    for _, *lines in drawing.moving:
        for line in lines:
            line.set_animated(False)
    return drawing.figure


def new_figure(width: int, height: int, dpi: int = _FINE_DPI) -> Any:
    """Return an empty ``matplotlib.figure.Figure``, which no style has touched.

    A notebook shows it where it is a cell's value, as it does those of pyplot.

    Args:
        width: Pixels, with 100 for an inch.
        height: The same.
        dpi: Pixels for each inch when it is drawn.

    Raises:
        SetupError: matplotlib is missing.
    """
    figure_class, canvas_class = _classes()
    inches = (_inches(width), _inches(height))
    figure = figure_class(figsize=inches, dpi=dpi, facecolor=PAPER)
    canvas_class(figure)
    # Not of a class of our own, which pickle would not find: IPython asks the object.
    figure._repr_png_ = partial(_shown, figure)
    return figure


def figure_png(figure: Any) -> bytes:
    """Return a figure as a PNG, in its own resolution and all its colours.

    Args:
        figure: A ``matplotlib.figure.Figure``.

    Examples:
        >>> from llamatelemetry.plots import Device, Trace, figure_png, memory_figure
        >>> device, trace = Device("GPU 0", 15 * 2**30), Trace(step=1, gap=5)
        >>> figure_png(memory_figure([device], [trace], now=10, window=60))[1:4]
        b'PNG'
    """
    stream = io.BytesIO()
    canvas = figure.canvas
    if not hasattr(canvas, "print_png"):  # a figure that was pickled lost its own
        canvas = _classes()[1](figure)
    canvas.print_png(stream)
    return stream.getvalue()


def _shown(figure: Any) -> tuple[bytes, dict[str, int]]:
    """Return a figure's PNG, and its size on the page: with 100 pixels for an inch."""
    width, height = figure.get_size_inches()
    return figure_png(figure), {
        "width": round(width * _DPI),
        "height": round(height * _DPI),
    }


def _tops(devices: Sequence[Device], traces: Sequence[Trace]) -> tuple[float, ...]:
    return tuple(
        _chart.scale_top(device, trace.highest)
        for device, trace in zip(devices, traces, strict=True)
    )


class _Drawing:
    """A figure, and what moves in it.

    Attributes:
        figure: The whole.
        layout: Where its plots are.
        moving: For each plot its axes, the lines of its marks, and its line.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        tops: Sequence[float],
        window: float,
        dpi: int,
    ) -> None:
        legend = _legend_entries(devices)
        self.layout = Layout(len(devices), -(-len(legend) // _LEGEND_COLUMNS))
        self._window = window
        self._per_pixel = window / self.layout.time_width
        self.figure = new_figure(_chart.WIDTH, self.layout.height, dpi)
        self.moving = [
            self._plot(number, device, top)
            for number, (device, top) in enumerate(zip(devices, tops, strict=True))
        ]
        _draw_legend(self.figure, legend)
        plain_text(self.figure)

    def _plot(self, number: int, device: Device, top: float) -> tuple[Any, Any, Any]:
        left, upper, width, height = self.layout.box(number)
        whole = self.layout.height
        axes = self.figure.add_axes(
            (
                left / _chart.WIDTH,
                1 - (upper + height) / whole,
                width / _chart.WIDTH,
                height / whole,
            )
        )
        axes.set_facecolor(PAPER)
        axes.set_xlim(-self._window, self._per_pixel * _chart.PAST_NOW)
        axes.set_ylim(0, top)
        axes.set_autoscale_on(False)
        axes.grid(visible=False)
        draw_scales(axes, self._window, top, last=self.layout.is_last(number))
        axes.set_title(
            drawable(device.title), loc="left", fontsize=TITLE, color=INK, pad=4
        )
        if number % self.layout.columns == 0:
            axes.set_ylabel("GiB", fontsize=SMALL, color=FAINT, labelpad=2)
        draw_bands(axes, device, height / top, drawable)
        plain = {"animated": True, "solid_capstyle": "butt"}
        (marks,) = axes.plot(
            [], [], color=MARK, linewidth=0.8, linestyle=":", zorder=_LINE_ORDER,
            marker="", **plain,
        )  # fmt: skip
        (line,) = axes.plot(
            [], [], color=USED, linewidth=1.8, linestyle="-", zorder=_LINE_ORDER + 1,
            marker="o", markersize=3.2, markevery=[-1], **plain,
        )  # fmt: skip
        return axes, marks, line

    def move(self, traces: Sequence[Trace], marks: Marks, now: float) -> None:
        """Put the lines where they are now."""
        times = [label.time - now for label in self._labels(marks, now)]
        across = [moment for time in times for moment in (time, time, time)]
        for trace, (axes, mark_line, line) in zip(traces, self.moving, strict=True):
            top = axes.get_ylim()[1]
            mark_line.set_data(across, [0.0, top, float("nan")] * len(times))
            line.set_data(*trace.points(now))

    def _labels(self, marks: Marks, now: float) -> list[Label]:
        """Return the marks, those that are close together as one."""
        apart = _LABEL_PIXELS * self._per_pixel
        return _chart.labels_of(marks, apart, now - self._window, now)

    def places_of(self, marks: Marks, now: float) -> list[tuple[int, int, str]]:
        """Return the left and upper pixel of each name, and what it says."""
        places = []
        for label in self._labels(marks, now)[-_MOST_NAMES:]:
            x = self.layout.time_width + round((label.time - now) / self._per_pixel)
            if x < _LABEL_PIXELS:  # a name stands to the left of its line
                continue
            for number in range(self.layout.columns):  # the upper row
                left, upper, _, _ = self.layout.box(number)
                places.append((left + x - _LABEL_PIXELS, upper + 2, label.text))
        return places

    def write_labels(self, marks: Marks, now: float) -> None:
        """Write the labels as texts of the figure."""
        for x, y, text in self.places_of(marks, now):
            self.figure.text(
                (x + _LABEL_PIXELS / 2) / _chart.WIDTH,
                1 - (y + 1) / self.layout.height,
                drawable(text),
                color=MARK,
                bbox=PAPER_BEHIND,
                **_UPRIGHT,
            )
        plain_text(self.figure)


# ── what stands still ────────────────────────────────────────────────────────────


def _legend_entries(devices: Sequence[Device]) -> list[tuple[str, Band | None]]:
    """Return what the legend names: the two lines, and each kind of band once."""
    bands = {band.label: band for device in devices for band in device.bands}
    known = any(device.total_bytes for device in devices)
    limit = [("all there is", None)] if known else []
    return [("used", None), *limit, *bands.items()]


def _draw_legend(figure: Any, entries: Sequence[tuple[str, Band | None]]) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - loaded when something is drawn
    from matplotlib.patches import Patch  # noqa: PLC0415 - the same

    lines = {
        "used": Line2D([], [], color=USED, linewidth=1.8, linestyle="-", marker=""),
        "all there is": Line2D(
            [], [], color=LIMIT, linewidth=1, linestyle="--", marker=""
        ),
    }
    signs = [
        lines[name] if band is None else Patch(**band_style(band))
        for name, band in entries
    ]
    legend = figure.legend(
        signs, [drawable(name) for name, _ in entries],
        loc="lower center", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=SMALL,
        labelcolor=INK, handlelength=1.9, handleheight=1.0, handletextpad=0.5,
        columnspacing=1.3, borderaxespad=0.2, borderpad=0.1, labelspacing=0.3,
    )  # fmt: skip
    legend.set_zorder(0)


def plain_text(figure: Any) -> None:
    """Have all text be what it says, whatever the user's style is."""
    from matplotlib.text import Text  # noqa: PLC0415 - loaded when something is drawn

    for text in figure.findobj(Text):
        text.set_fontfamily(_FONT)
        text.set_usetex(False)
        text.set_parse_math(False)


def drawable(text: str) -> str:
    """Return a text with a sign in place of each letter that the font does not have."""
    shown = printable(text)
    if shown.isascii():
        return shown
    has = _letters()
    return "".join(
        letter if ord(letter) in has else "\N{REPLACEMENT CHARACTER}"
        for letter in shown
    )


@lru_cache(maxsize=1)
def _letters() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font  # noqa: PLC0415 - loaded when something is drawn

    return frozenset(get_font(findfont(FontProperties(family=[_FONT]))).get_charmap())


# ── pictures ─────────────────────────────────────────────────────────────────────


def _classes() -> tuple[Any, Any]:
    """Return matplotlib's Figure and its canvas that draws into memory."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - takes half a second, so only when something is drawn
        from matplotlib.figure import Figure  # noqa: PLC0415 - the same
    except ImportError as error:
        raise SetupError(
            f"A chart needs matplotlib, which does not load ({error}); run: pip "
            "install matplotlib"
        ) from error
    return Figure, FigureCanvasAgg


def _inches(pixels: int) -> float:
    """Return a length; a little more, which matplotlib before 3.11 cuts off."""
    return (pixels + 1e-3) / _DPI


def _picture(canvas: Any) -> Any:
    from PIL import Image  # noqa: PLC0415 - comes with matplotlib

    pixels = canvas.buffer_rgba()
    size = (pixels.shape[1], pixels.shape[0])
    whole = Image.frombuffer("RGBA", size, pixels, "raw", "RGBA", 0, 1)
    return whole.convert("RGB")


def _label_masks(text: str) -> tuple[Any, Any]:
    """Return an upright label as two masks: what is covered behind it, and its ink."""
    from PIL import Image, ImageOps  # noqa: PLC0415 - comes with matplotlib

    figure_class, canvas_class = _classes()
    inches = (_inches(_LABEL_PIXELS), _inches(_LABEL_LENGTH))
    figure = figure_class(figsize=inches, dpi=_DPI, facecolor=PAPER)
    canvas = canvas_class(figure)
    figure.text(
        0.5, 1 - 1 / _LABEL_LENGTH, drawable(text), color="#000000", **_UPRIGHT
    )  # fmt: skip
    plain_text(figure)
    canvas.draw()
    ink = ImageOps.invert(_picture(canvas).convert("L"))
    halo = Image.new("L", ink.size)
    box = ink.getbbox()
    if box is not None:
        left, upper, right, lower = box
        around = (left - 1, upper - 1, right + 1, lower + 1)
        halo.paste(round(255 * HALO), around)
    return halo, ink


def _palette(picture: Any, devices: Sequence[Device]) -> Any:
    """Return a palette for a picture, in which what fills areas and lines is exact."""
    from PIL import Image, ImageColor  # noqa: PLC0415 - comes with matplotlib

    styles = [
        band_style(band)[name]
        for _, band in _legend_entries(devices)
        for name in ("facecolor", "edgecolor")
        if band is not None
    ]
    exact = [
        ImageColor.getrgb(colour)
        for colour in (PAPER, INK, FAINT, USED, LIMIT, MARK, BEFORE, *styles)
    ]
    found = picture.quantize(_COLOURS, method=Image.Quantize.MEDIANCUT, dither=0)
    values = (found.getpalette() or [])[: 3 * _COLOURS]
    others = list(zip(values[::3], values[1::3], values[2::3], strict=True))
    # Pillow looks colours up in steps: one close to an exact one would be taken for it.
    apart = [other for other in others if all(_apart(other, one) for one in exact)]
    colours = [*exact, *apart]
    # What is left of the 256 is filled with the first: black would be a colour more.
    colours += colours[:1] * (256 - len(colours))
    holder = Image.new("P", (1, 1))
    holder.putpalette([value for colour in colours for value in colour[:3]])
    return holder


def _apart(one: Sequence[int], other: Sequence[int]) -> bool:
    return any(
        abs(mine - yours) > _TOO_CLOSE for mine, yours in zip(one, other, strict=False)
    )


def _png(picture: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=_COMPRESSION)
    return stream.getvalue()
