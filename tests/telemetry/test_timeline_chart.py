"""The figure of a timeline: what is drawn, where, and how much of it."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import pytest

from llamatelemetry._timeline_chart import Bar, Line, timeline_figure
from llamatelemetry.gpu.monitor import GPUSample
from llamatelemetry.plots import figure_png
from llamatelemetry.telemetry._entries import RequestEntry, ServerEvent
from llamatelemetry.telemetry._kept import Kept
from llamatelemetry.telemetry._picture import lanes
from llamatelemetry.telemetry.timeline import Timeline

MEMORY = [
    Line(f"GPU {n}  Tesla T4", [(0.0, 2.0**30), (10.0, (5.0 + n) * 2**30)])
    for n in range(2)
]
POWER = [Line("GPU 0  Tesla T4", [(0.0, 10.0), (5.0, math.nan), (10.0, 70.0)])]
LANES = [
    ("slot 0", [Bar(1, 4, 2), Bar(5, 6, None, "failed")]),
    ("slot 1", [Bar(2, 9, 3, "cancelled")]),
]


def request(number: int, start: float, end: float, **changes: Any) -> RequestEntry:
    """Return a request."""
    values = {"id": number, "kind": "chat", "start": start, "end": end} | changes
    return RequestEntry(**values)


def texts(figure: Any) -> list[str]:
    """Return all that is written in a figure."""
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def bars(axes: Any) -> list[tuple[float, float]]:
    """Return from when to when something is drawn as a bar."""
    boxes = [
        path.get_extents()
        for collection in axes.collections
        if type(collection).__name__ == "PolyCollection"
        for path in collection.get_paths()
    ]
    return sorted((box.x0, box.x1) for box in boxes)


def test_cards_are_above_and_requests_below() -> None:
    """On one scale of time, with units, names and a legend."""
    figure = timeline_figure(
        memory=MEMORY, power=POWER, lanes=LANES, marks=[(9.5, "ready after 1.0 s")]
    )
    memory, power, requests = figure.axes
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["GiB", "watts", "requests"]
    places = [axes.get_position().y0 for axes in figure.axes]
    assert places == sorted(places, reverse=True)
    assert memory.get_xlim() == power.get_xlim() == requests.get_xlim()
    assert memory.get_xlim() == pytest.approx((0, 10.1))
    assert [line.get_ydata().tolist() for line in memory.lines[:2]] == [
        [1, 5], [1, 6],
    ]  # fmt: skip
    assert bars(requests) == [
        (1, 2), (2, 3), (2, 4), (3, 9), (5, 6), (6, 6),
    ]  # fmt: skip
    ticks = [
        segment[0][0]
        for collection in requests.collections
        if type(collection).__name__ == "LineCollection"
        for segment in collection.get_segments()
    ]
    assert sorted(ticks) == [2, 3]
    assert [label.get_text() for label in requests.get_yticklabels()] == [
        "slot 0", "slot 1",
    ]  # fmt: skip
    told = texts(figure)
    for words in ("GPU 1  Tesla T4", "first token", "failed", "ready after 1.0 s"):
        assert words in told
    assert requests.get_xlabel() == "seconds"
    assert all(axes.lines[-1].get_xdata() == [9.5, 9.5] for axes in figure.axes)
    assert figure_png(figure)[1:4] == b"PNG"


def test_little_memory_is_counted_in_mib() -> None:
    """Below one GiB: a small model's lines have readable figures."""
    little = [Line("GPU 0", [(0.0, math.nan), (1.0, 3.0 * 2**20)])]
    axes = timeline_figure(memory=little, power=[], lanes=[]).axes[0]
    assert axes.get_ylabel() == "MiB"
    assert axes.lines[0].get_ydata().tolist() == pytest.approx(
        [math.nan, 3.0], nan_ok=True
    )


def test_names_of_marks_stay_within_their_plot() -> None:
    """A long one is cut, one at the beginning does not cover the scale."""
    long = "a mark with a name that has far more letters than there is room for"
    marks = [(0.0, "begin"), (1.0, long), (10.0, "end")]
    for memory in (MEMORY, []):
        figure = timeline_figure(memory=memory, power=[], lanes=LANES, marks=marks)
        figure.draw_without_rendering()
        room = figure.axes[0].get_window_extent()
        for name in figure.axes[0].texts:
            box = name.get_window_extent()
            assert room.x0 <= box.x0
            assert box.x1 <= figure.bbox.x1
            assert room.y0 <= box.y0 < box.y1 <= room.y1
        assert not figure.axes[1].texts
    assert figure.axes[0].texts[1].get_text().startswith("a mark with a name")
    assert not figure.axes[0].axison


def test_short_requests_have_no_line_over_them() -> None:
    """Where first tokens would be all there is to see, the bars are seen."""
    short = [Bar(n / 10, n / 10 + 0.05, n / 10 + 0.01) for n in range(1000)]
    lanes_of = [("slot 0", [*short, Bar(101, 110, 103)])]
    axes = timeline_figure(memory=[], power=[], lanes=lanes_of).axes[0]
    drawn = [
        segment[0][0]
        for collection in axes.collections
        if type(collection).__name__ == "LineCollection"
        for segment in collection.get_segments()
    ]
    assert drawn == [103]


def test_without_cards_there_are_requests_alone() -> None:
    """And nothing at all is still a figure."""
    (axes,) = timeline_figure(memory=[], power=[], lanes=LANES).axes
    assert axes.get_ylabel() == "requests"
    (axes,) = timeline_figure(memory=[], power=[], lanes=[]).axes
    assert axes.get_xlim() == pytest.approx((0, 1.01))
    memory, _ = timeline_figure(memory=MEMORY, power=[], lanes=[]).axes
    assert memory.get_title(loc="left") == "Cards and requests"


def test_a_long_timeline_is_counted_in_minutes() -> None:
    """From ten minutes on."""
    figure = timeline_figure(memory=[], power=[], lanes=[("", [Bar(0, 1800, 60)])])
    axes = figure.axes[0]
    assert axes.get_xlabel() == "minutes"
    assert axes.xaxis.get_major_formatter()(600) == "10"


def test_many_lanes_and_cards_stay_readable() -> None:
    """The height is bounded, names go, and lines differ by more than colour."""
    several = [(f"slot {n}", [Bar(0, 1, 0.5)]) for n in range(200)]
    cards = [Line(f"GPU {n}", [(0.0, float(n))]) for n in range(8)]
    figure = timeline_figure(
        memory=cards, power=[], lanes=several,
        marks=[(n / 50, f"mark {n}") for n in range(100)],
    )  # fmt: skip
    memory, requests = figure.axes
    assert figure.get_size_inches()[1] < 8
    assert len(requests.get_yticks()) == 0
    looks = {(line.get_color(), line.get_linestyle()) for line in memory.lines[:8]}
    assert len(looks) == 8
    told = texts(figure)
    assert "mark 98; mark 99" in told
    assert not any("mark 19" in text for text in told)
    close = [(0.5, "loads a model"), (0.501, "ready"), (0.9, "ended")]
    told = texts(timeline_figure(memory=cards, power=[], lanes=several, marks=close))
    assert "loads a model; ready" in told
    assert "ended" in told
    assert "ready" not in told


def test_no_style_of_the_user_gets_in() -> None:
    """Colours and fonts are the chart's, and no text is read as mathematics."""
    line = Line("$a$ 名", [(0.0, 1.0)])
    with mpl.rc_context({"text.usetex": True, "axes.facecolor": "black"}):
        figure = timeline_figure(memory=[line], power=[], lanes=LANES)
        assert figure_png(figure)[1:4] == b"PNG"
    assert figure.axes[0].get_facecolor() == (1, 1, 1, 1)
    assert any(text.startswith("$a$ ") for text in texts(figure))


def test_requests_stand_in_their_slots() -> None:
    """By server and slot; those of unknown slots where there is room."""
    found = lanes(
        [
            request(0, 0, 4, slot=1),
            request(1, 1, 3, slot=0),
            request(2, 0, 5),
            request(3, 2, 3),
            request(4, 3, 4),
            request(5, 5, 6),
        ]
    )
    assert [(name, [one.id for one in row]) for name, row in found] == [
        ("slot 0", [1]), ("slot 1", [0]), ("slot ?", [2, 5]), ("slot ?", [3, 4]),
    ]  # fmt: skip
    several = lanes(
        [
            request(0, 0, 1, slot=0, server="http://a:1"),
            request(1, 0, 1, server="http://b:2"),
        ]
    )
    assert [name for name, _ in several] == ["a:1 slot 0", "b:2 slot ?"]
    assert lanes([]) == []


def test_a_timeline_is_drawn_from_its_first_moment() -> None:
    """Times count from there; what only counts tokens is no bar."""
    kept = Kept(10)
    kept.began = 100.0
    kept.cards = {0: "Tesla T4"}
    kept.fill(
        [
            request(0, 101, 103, time_to_first_token=1.0, slot=0),
            request(1, 103, 104, error="StreamError", slot=0),
            request(2, 104, 105, finish_reason="cancelled", slot=0),
            request(3, 101, 103, kind="tokenize"),
        ],
        [
            ServerEvent(time=102, kind="Ready", text="ready"),
            ServerEvent(time=99, kind="Ready", text="long ago"),
            ServerEvent(time=102, kind="Notice", text="by the way"),
        ],
        [
            (99.5, (GPUSample(0, 5.0, memory_used_bytes=2**30), GPUSample(1, 5.0))),
            (104.5, (GPUSample(0, 9.0), GPUSample(1, 9.0))),
        ],
    )
    figure = Timeline(kept).plot()
    memory, requests = figure.axes  # no card tells its power
    assert [line.get_label() for line in memory.lines][:1] == ["GPU 0  Tesla T4"]
    assert memory.lines[0].get_xdata().tolist() == [0, 5]
    assert (1.5, 2.5) in bars(requests)
    assert len(requests.get_yticks()) == 1
    told = texts(figure)
    assert "ready" in told
    assert "long ago" not in told
    assert "by the way" not in told
