"""Charts of memory: what is drawn, how seldom, and that nothing disturbs them."""

from __future__ import annotations

import io
import math
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from PIL import Image

from llamatelemetry import plots
from llamatelemetry._chart import (
    WIDTH,
    Band,
    Device,
    Label,
    Layout,
    Trace,
    duration,
    labels_of,
    scale_top,
)
from llamatelemetry._units import GIB
from llamatelemetry.exceptions import SetupError
from llamatelemetry.plots import MemoryChart, figure_png, memory_figure

NOW, WINDOW = 1_700_000_000.0, 120.0
BANDS = (
    Band("weights", int(4.6 * GIB), "#0072b2"),
    Band("KV cache", 2 * GIB, "#e69f00", "////"),
    Band("compute", GIB // 2, "#009e73", "...."),
)
MARKS = [(NOW - 90, "model loaded"), (NOW - 60, "request"), (NOW - 58, "request")]


def device(number: int = 0, **changes: Any) -> Device:
    """Return a T4 with a plan."""
    return Device(**{
        "title": f"GPU {number}  Tesla T4",
        "total_bytes": 15 * GIB,
        "before_bytes": GIB // 4,
        "bands": BANDS,
    } | changes)  # fmt: skip


def trace(seconds: int = 120, until: float = NOW, level: float = 7.0) -> Trace:
    """Return a line that rises to a level and then waves."""
    line = Trace(WINDOW / 250, 5)
    for second in range(-seconds, 1):
        wave = level + math.sin(second / 7) / 3
        line.add(until + second, (wave if second > -80 else 0.2) * GIB)
    return line


def pixels(picture: Any) -> Any:
    """Return a picture, or the bytes of one, as an array of its colours."""
    if isinstance(picture, bytes):
        picture = Image.open(io.BytesIO(picture))
    return np.asarray(picture.convert("RGB")).astype(int)


def differing(one: Any, other: Any, above: int = 0) -> float:
    """Return the share of pixels of which some channel differs by more than this."""
    return float((np.abs(pixels(one) - pixels(other)).max(axis=2) > above).mean())


def has_colour(picture: Any, colour: str) -> bool:
    """Whether some pixel is of exactly this colour."""
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return bool((pixels(picture) == wanted).all(axis=2).any())


# What is drawn.


@pytest.mark.parametrize("count", range(1, 9))
def test_a_chart_has_a_plot_for_each_card(count: int) -> None:
    """One to eight cards are drawn, no two plots over one another, in one width."""
    chart = MemoryChart()
    devices = [device(number) for number in range(count)]

    png = chart.png(devices, [trace()] * count, MARKS, now=NOW, window=WINDOW)

    image = Image.open(io.BytesIO(png))
    assert (image.format, image.mode) == ("PNG", "P")
    assert image.size == chart.size
    assert image.width == WIDTH <= 660
    layout = Layout(count)
    covered = np.zeros((layout.height, WIDTH), dtype=int)
    for number in range(count):
        left, top, width, height = layout.box(number)
        covered[top : top + height, left : left + width] += 1
        shown = pixels(png)[top : top + height, left : left + width]
        assert has_colour(Image.fromarray(shown.astype("uint8")), plots.USED)
    assert covered.max() == 1
    assert covered.sum() == count * layout.plot_width * layout.plot_height


def test_what_matters_has_its_own_colour() -> None:
    """Paper, line, limit, mark and bands are in the picture exactly as they are set."""
    png = MemoryChart().png([device()], [trace()], MARKS, now=NOW, window=WINDOW)

    exact = [plots.PAPER, plots.USED, plots.LIMIT, plots.MARK]
    exact += [plots.band_style(band)["facecolor"] for band in BANDS]
    assert [colour for colour in exact if not has_colour(png, colour)] == []
    without = MemoryChart().png(
        [device(bands=(), total_bytes=None)], [trace()], now=NOW, window=WINDOW
    )
    assert [colour for colour in exact if has_colour(without, colour)] == exact[:2]


def test_the_same_is_the_same_picture() -> None:
    """A second drawing of the same values has the same bytes, in another chart too."""
    chart = MemoryChart()
    first, second = (
        chart.png([device()], [trace()], MARKS, now=NOW, window=WINDOW)
        for _ in range(2)
    )
    other = MemoryChart().png([device()], [trace()], MARKS, now=NOW, window=WINDOW)

    assert first == second == other


def test_an_update_is_what_a_whole_drawing_would_be() -> None:
    """Lines and marks over the kept background are the pixels of a full redraw."""
    chart = MemoryChart()
    devices = [device(0), device(1, bands=(), before_bytes=0)]
    marks = [(NOW + second, "") for second in (3, 10, 18)]
    for later in range(20):
        now = NOW + later
        traces = [trace(until=now), trace(until=now, level=14.9)]
        frame = chart._frame(devices, traces, marks, now, WINDOW)
        whole = memory_figure(
            devices, traces, marks, now=now, window=WINDOW, dpi=plots._DPI
        )

        assert differing(frame, figure_png(whole)) == 0, later


def test_names_of_marks_are_where_a_whole_drawing_has_them() -> None:
    """Names that are copied in differ from drawn ones in a few pixels at most."""
    chart = MemoryChart()
    bare = chart._frame([device()], [trace()], (), NOW, WINDOW)
    frame = chart._frame([device()], [trace()], MARKS, NOW, WINDOW)
    whole = memory_figure(
        [device()], [trace()], MARKS, now=NOW, window=WINDOW, dpi=plots._DPI
    )

    drawn = figure_png(whole)
    assert differing(frame, drawn, above=16) < 0.002
    assert differing(frame, drawn, above=16) < differing(frame, bare, above=16) / 10


def test_a_palette_changes_little() -> None:
    """The picture that is sent is close to the one with all colours."""
    chart = MemoryChart()
    png = chart.png([device()] * 2, [trace()] * 2, MARKS, now=NOW, window=WINDOW)
    frame = chart._frame([device()] * 2, [trace()] * 2, MARKS, NOW, WINDOW)

    assert differing(png, frame, above=48) < 0.005
    whole = io.BytesIO()
    frame.save(whole, "PNG")
    assert len(png) < len(whole.getvalue()) / 2


def test_what_stands_still_is_drawn_once() -> None:
    """Only another window, limit, plan or scale makes a new background."""
    chart = MemoryChart()

    def background(shown: Device, line: Trace, window: float = WINDOW) -> Any:
        chart.png([shown], [line], MARKS, now=NOW, window=window)
        return chart._background

    first = background(device(), trace())
    assert background(device(), trace(level=9)) is first
    assert background(device(), Trace(1, 5)) is first
    seen = [first]
    for changed in (
        background(device(), trace(), 300.0),
        background(device(total_bytes=24 * GIB), trace()),
        background(device(bands=BANDS[:1]), trace()),
        background(device(before_bytes=0), trace()),
        background(device(title="GPU 1"), trace()),
        background(device(), trace(level=17)),
    ):
        assert all(changed is not one for one in seen)
        seen.append(changed)


def test_the_users_style_changes_nothing() -> None:
    """A notebook with a dark style, grids, and TeX gets the same picture."""
    plain = MemoryChart().png([device()], [trace()], MARKS, now=NOW, window=WINDOW)
    fine = figure_png(memory_figure([device()], [trace()], now=NOW, window=WINDOW))
    dark = {
        "axes.facecolor": "black", "axes.grid": True, "axes.labelcolor": "white",
        "axes.linewidth": 5, "axes.spines.left": False, "figure.facecolor": "black",
        "figure.dpi": 50, "font.family": "serif", "font.size": 30, "grid.color": "red",
        "legend.frameon": True, "lines.linewidth": 9, "lines.linestyle": ":",
        "lines.marker": "o", "savefig.dpi": 30, "savefig.facecolor": "black",
        "text.color": "white", "text.usetex": True, "xtick.color": "white",
        "xtick.minor.visible": True, "ytick.left": False, "ytick.right": True,
    }  # fmt: skip

    with mpl.rc_context(dark):
        styled = MemoryChart().png([device()], [trace()], MARKS, now=NOW, window=WINDOW)
        styled_fine = figure_png(
            memory_figure([device()], [trace()], now=NOW, window=WINDOW)
        )

    assert differing(plain, styled) == 0
    assert differing(fine, styled_fine) == 0


@pytest.mark.parametrize(
    "text",
    ["$\\frac{1}$", "\N{ROCKET} \u6a21\u578b", "a\nb\x1b[31m", "$$", "", "x" * 100_000],
    ids=["mathtext", "letters", "controls", "dollars", "nothing", "long"],
)
def test_any_text_is_drawn_as_it_stands(text: str) -> None:
    """Names of cards and marks are no formulas; an unknown letter is a sign."""
    marks = [(NOW - 30, text)]

    shown = device(title=text)
    chart = MemoryChart()
    png = chart.png([shown], [trace()], marks, now=NOW, window=WINDOW)
    figure = memory_figure([shown], [trace()], marks, now=NOW, window=WINDOW)

    assert Image.open(io.BytesIO(png)).size == chart.size
    assert figure_png(figure).startswith(b"\x89PNG")
    assert plots.drawable("\N{ROCKET} ok") == "\N{REPLACEMENT CHARACTER} ok"


def test_gaps_and_unknown_values_are_drawn() -> None:
    """A card that was lost, one never seen, and one without a known limit are plots."""
    lost = trace()
    lost.add(NOW + 1, None)
    unknown = device(total_bytes=None)
    devices = [device(0), device(1), unknown]

    png = MemoryChart().png(
        devices, [lost, Trace(1, 5), trace()], now=NOW + 2, window=WINDOW
    )

    assert Image.open(io.BytesIO(png)).width == WIDTH


def test_names_of_marks_are_not_kept_for_ever() -> None:
    """A thousand different marks leave no thousand pictures behind."""
    chart = MemoryChart()
    for number in range(0, 1000, 8):
        marks = [(NOW - 100 + 12 * n, f"mark {number + n}") for n in range(8)]
        chart.png([device()], [trace(30)], marks, now=NOW, window=WINDOW)

    assert len(chart._masks) <= plots._MOST_MASKS


def test_many_threads_draw_at_once() -> None:
    """One chart in eight threads, and a chart in each, come out as in one thread."""
    shared = MemoryChart()

    def draw(number: int, chart: MemoryChart) -> bytes:
        shown, line = device(number % 4), trace(level=5 + number % 4)
        return chart.png([shown], [line], MARKS, now=NOW, window=WINDOW)

    expected = [draw(number, MemoryChart()) for number in range(4)]
    with ThreadPoolExecutor(8) as pool:
        apart = list(pool.map(lambda n: draw(n, MemoryChart()), range(12)))
        together = list(pool.map(lambda n: draw(n, shared), range(12)))

    assert apart == together == expected * 3


def test_a_figure_stands_for_itself() -> None:
    """The picture that is kept has twice the pixels, the line, and its marks' names."""
    figure = memory_figure([device()], [trace()], MARKS, now=NOW, window=WINDOW)

    image = Image.open(io.BytesIO(figure_png(figure)))
    assert image.size == (2 * WIDTH, 2 * Layout(1).height)
    assert has_colour(image, plots.USED)
    texts = [text.get_text() for text in figure.texts]
    assert texts == ["model loaded", "request ×2"]  # noqa: RUF001 - times


def test_nothing_heavy_is_loaded_before_it_is_needed() -> None:
    """The module loads no matplotlib, and drawing loads no pyplot."""
    program = (
        "import sys, llamatelemetry.plots as plots\n"
        "assert not {'matplotlib', 'PIL', 'numpy'} & set(sys.modules)\n"
        "plots.MemoryChart().png([plots.Device('x', 2**34)], [plots.Trace(1, 5)],\n"
        "                        now=0, window=60)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "print('fine')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout == "fine\n"


def test_without_matplotlib_there_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A missing matplotlib says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    with pytest.raises(SetupError, match="pip install matplotlib"):
        MemoryChart().png([device()], [trace()], now=NOW, window=WINDOW)


# Plain values.


def test_a_trace_keeps_the_peak_of_each_step() -> None:
    """Of a thousand points in ten steps ten are kept, each the highest of its step."""
    line = Trace(10, 100)
    for number in range(1000):
        line.add(1000 + number / 10, (number * 7919) % 1000)

    times, values = line.points(1100)

    assert len(times) <= 11
    assert times == sorted(times)
    assert times[-1] == pytest.approx(-0.1)
    peaks = [
        max((n * 7919) % 1000 for n in range(100 * step, 100 * step + 100))
        for step in range(10)
    ]
    assert [value * GIB for value in values[:10]] == pytest.approx(peaks)
    assert line.highest == max(peaks)


def test_a_trace_breaks_where_nothing_was_seen() -> None:
    """A lost card and a pause of the monitor are gaps, not straight lines."""
    line = Trace(1, 5)
    for time, value in ((0, 1), (1, 1), (2, None), (3, None), (4, 2), (60, 3)):
        line.add(time, value and value * GIB)

    times, values = line.points(60)

    shown = [None if math.isnan(value) else value for value in values]
    assert list(zip(times, shown, strict=True)) == [
        (-60, 1), (-59, 1), (-58, None), (-57, None), (-56, 2), (-56, None), (0, 3),
    ]  # fmt: skip


def test_a_trace_forgets_and_begins_anew() -> None:
    """What is too old goes but for one point; a clock set back clears the line."""
    line = Trace(1, 500)
    for time in range(100):
        line.add(time, GIB)

    line.forget(90)
    assert [time for time, _ in zip(*line.points(0), strict=True)] == [*range(90, 100)]
    line.add(5, GIB)
    assert line.points(5) == ([0], [1])
    assert (Trace(1, 5).highest, Trace(1, 5).points(0)) == (0, ([], []))


def test_marks_close_together_have_one_name() -> None:
    """Names say how many there are, and stay what they are while time goes on."""
    marks = [(10.0, "loaded"), (11.0, "request"), (12.0, "request")]
    marks += [(100.0 + number, "request") for number in range(5)] + [(105.0, "end")]

    labels = labels_of(marks, 5, 0, 300)

    assert labels == [
        Label(10, "loaded +2"),
        Label(100, "request ×5"),  # noqa: RUF001 - times
        Label(105, "end"),
    ]
    assert labels_of([*marks, (200.0, "more")], 5, 0, 300)[:3] == labels
    assert labels_of(marks, 5, 10.5, 104.5) == labels[1:2]
    assert labels_of(marks, 5, 0, 101)[1].text == "request ×2"  # noqa: RUF001 - times
    assert len(labels_of([(0.0, "x" * 50)], 5, 0, 1)[0].text) < 20


def test_a_clock_that_was_set_back_hides_no_mark() -> None:
    """Marks of a time that is yet to come are left out; those after them are not."""
    marks = [(10.0, "loaded"), (3600.0, "request"), (20.0, "again")]

    assert labels_of(marks, 5, 0, 30) == [Label(10, "loaded"), Label(20, "again")]


def test_only_the_newest_marks_have_names() -> None:
    """Of many lines the last eight are named, none to the left of its plot."""
    drawing = plots._Drawing([device()], [16.0], WINDOW, 100)
    marks = [(NOW - second, str(second)) for second in range(119, -1, -7)]

    places = drawing.places_of(marks, NOW)

    assert [text for _, _, text in places] == [str(n) for n in range(49, -1, -7)]
    assert drawing.places_of(marks[:1], NOW) == []
    left, _, width, _ = drawing.layout.box(0)
    assert all(left <= x <= left + width for x, _, _ in places)


@pytest.mark.parametrize(
    ("total", "before", "highest", "top"),
    [
        (15 * GIB, 0, 0, 15 * 1.07),
        (15 * GIB, 0, 15 * GIB, 15 * 1.07),
        (None, 0, 0, 0.1),
        (None, 0, 7 * GIB, 8),
        (None, 0, 8 * GIB, 10),
        (4 * GIB, 3 * GIB, 0, 15),  # the plan is larger than the card
    ],
)
def test_a_scale_ends_above_all_that_is_shown(
    total: int | None, before: int, highest: float, top: float
) -> None:
    """It ends above a known limit, else at a round number above what there is."""
    shown = device(
        total_bytes=total, before_bytes=before, bands=BANDS if before else ()
    )

    assert scale_top(shown, highest) == pytest.approx(top)


def test_times_are_said_in_words() -> None:
    """Whole minutes are minutes, and more than one whole hour are hours."""
    told = [duration(seconds) for seconds in (60, 120, 90, 3600, 7.5)]

    assert told == ["1 minute", "2 minutes", "90 seconds", "60 minutes", "7.5 seconds"]
    assert [duration(5400), duration(86_400)] == ["90 minutes", "24 hours"]


def test_a_notebook_shows_a_figure() -> None:
    """IPython shows it without pyplot, at its size of 100 pixels for an inch."""
    figure = memory_figure([device()], [trace()], now=NOW, window=WINDOW)

    shown, size = DisplayFormatter().format(pickle.loads(pickle.dumps(figure)))

    assert shown["image/png"] == figure_png(figure)
    assert size["image/png"] == {"width": 640, "height": 243}
