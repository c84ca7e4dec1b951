"""The picture of a batch: speed over time, and how long rows took."""

from __future__ import annotations

from typing import Any

import pytest

from llamatelemetry._batch_chart import Answered, batch_figure
from llamatelemetry.plots import figure_png

START = 1_795_000_000.0


def steady(count: int, *, start: float = START, every: float = 1.0) -> list[Answered]:
    """Return rows that came at even intervals, each after 2 s with 30 tokens."""
    return [
        Answered(start + every * number, 2.0 * every, 30)
        for number in range(1, count + 1)
    ]


def steps(axes: Any) -> list[Any]:
    """Return the lines and areas of a plot over time."""
    return list(axes.patches)


def test_the_speed_over_time_is_drawn() -> None:
    """One row a second with 30 tokens is drawn as that, from the first row's begin."""
    figure = batch_figure(steady(601), title="results.jsonl")

    speed, tokens, lengths = figure.axes
    assert speed.get_title(loc="left") == "results.jsonl"
    assert speed.get_xlabel() == "minutes"
    (rows,), (generated,) = steps(speed), steps(tokens)
    values, edges, _ = rows.get_data()
    assert edges[-1] == pytest.approx(602 / 60)
    assert sum(values) * 602 / 60 == pytest.approx(601)
    assert values[10:-1] == pytest.approx(1.0, abs=0.15)
    assert generated.get_data()[0] == pytest.approx(30 * values)
    assert lengths.get_xlabel() == "seconds a row took"
    assert figure_png(figure)[1:4] == b"PNG"


def test_the_order_of_the_rows_does_not_matter() -> None:
    """Rows come in the order of the table; the picture is of the time."""
    rows = steady(100)

    one, other = batch_figure(rows), batch_figure(iter(reversed(rows)))

    assert list(steps(one.axes[0])[0].get_data()[0]) == list(
        steps(other.axes[0])[0].get_data()[0]
    )


def test_pauses_between_runs_are_cut_out() -> None:
    """A batch that was gone on with the next day has no night in its picture."""
    rows = steady(100) + steady(100, start=START + 86_400)

    speed = batch_figure(rows).axes[0]

    assert speed.get_xlim()[1] == pytest.approx(201 / 60, rel=0.02)
    (pause,) = speed.lines
    assert pause.get_xdata()[0] == pytest.approx(101 / 60)
    assert steps(speed)[0].get_data()[0].min() > 0


def test_rows_that_are_always_slow_have_no_pauses() -> None:
    """Ten minutes a row are a pace, and the time is told in hours."""
    speed = batch_figure(steady(60, every=600.0)).axes[0]

    assert not speed.lines
    assert speed.get_xlabel() == "hours"
    assert speed.get_xlim()[1] == pytest.approx(61 * 600 / 3600)


def test_failed_rows_are_marked_and_not_measured() -> None:
    """They are counted in red, and their seconds are not among those of the others."""
    failed = [Answered(START + 50 + part, 500.0, None, failed=True) for part in (0, 1)]

    speed, _, lengths = batch_figure(steady(100) + failed).axes

    assert [text.get_text() for text in speed.texts] == ["2 failed"]
    red = steps(speed)[1].get_data()[0]
    assert sum(red) * 102 / len(red) == pytest.approx(2, rel=0.05)
    assert lengths.get_xlim()[1] == pytest.approx(2.0)


def test_the_longest_hundredth_stands_in_the_last_bar() -> None:
    """One row of an hour does not make all others one bar; half are below the mark."""
    rows = [Answered(START + n, 1.0 + n % 4, 5) for n in range(400)]
    rows[0] = Answered(START, 3600.0, 5)

    lengths = batch_figure(rows).axes[2]

    assert lengths.get_xlim()[1] == pytest.approx(4.0)
    assert sum(bar.get_height() for bar in lengths.patches) == 400
    assert lengths.texts[0].get_text() == "half below 3 s"


def test_rows_are_counted_in_whole_numbers() -> None:
    """No tick is at half a row, be they as few as they are."""
    lengths = batch_figure(steady(1)).axes[2]

    assert [tick for tick in lengths.get_yticks() if tick % 1] == []


def test_without_seconds_tokens_are_drawn() -> None:
    """Where no time of a row is known, the histogram is of its tokens."""
    rows = [Answered(START + n, None, 10 * n) for n in range(1, 50)]

    lengths = batch_figure(rows).axes[2]

    assert lengths.get_xlabel() == "tokens of a row"
    assert lengths.texts[0].get_text() == "half below 250"


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [Answered(START, 0.0, 0)],
        [Answered(START, None, None)],
        [Answered(START, 1.0, None, failed=True)],
    ],
)
def test_next_to_nothing_is_drawn_all_the_same(rows: list[Answered]) -> None:
    """A batch of no row, or of one of which nothing is known, has a picture."""
    assert figure_png(batch_figure(rows, dpi=50))[1:4] == b"PNG"


def test_a_title_is_what_it_says() -> None:
    """No dollar is read as mathematics, no letter is missing in the font."""
    figure = batch_figure(steady(3), title="a$b_1$ \U00013000")

    assert figure.axes[0].get_title(loc="left") == "a$b_1$ \N{REPLACEMENT CHARACTER}"
    assert not figure.axes[0].title.get_parse_math()
