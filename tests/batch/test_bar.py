"""What a batch's bar says, where, how often, and in which thread."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, replace

import pytest

from llamatelemetry.batch._bar import BatchBar, BatchProgress, describe

# 2026-11-27 13:41:00 in the zone of the tests.
NOON = time.mktime((2026, 11, 27, 13, 41, 0, 0, 0, -1))


@dataclass
class Clock:
    """A clock that is set by hand."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def bars_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars are on, whatever this machine's settings are."""
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        monkeypatch.delenv(name, raising=False)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what was shown, one picture after the other."""
    shown = capsys.readouterr()
    assert shown.out == ""
    return [line.strip() for line in re.split(r"[\r\n]+", shown.err) if line.strip()]


def test_the_bar_says_how_far_how_fast_and_when_done(
    capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    """Rows, rows/s, tokens/s and the time of day, beside a bar."""
    with BatchBar(10_000, clock=clock, wall=lambda: NOON) as bar:
        for _ in range(412):
            clock.now += 1 / 3.1
            bar.add(1 / 3.1, tokens=69)
        bar.tick(1)

        (line,) = lines(capsys)
        assert line.endswith(
            "| 412/10,000 rows · 3.1 rows/s · 214 tokens/s · done 14:32 (in 52 min)"
        )
        assert line.startswith("4% |")
    assert lines(capsys)[-1].endswith("412/10,000 rows · 3.1 rows/s · 214 tokens/s")


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (BatchProgress(0, 10), "0/10 rows"),
        (BatchProgress(1234, None), "1,234 rows"),
        (BatchProgress(7, 10, failed=2), "7/10 rows · 2 failed"),
        (
            BatchProgress(7, 10, rows_per_second=0.05, tokens_per_second=12.34),
            "7/10 rows · 3.0 rows/min · 12 tokens/s",
        ),
        (
            BatchProgress(7, 10, rows_per_second=1234.5, tokens_per_second=0.0),
            "7/10 rows · 1,234 rows/s",
        ),
        (BatchProgress(7, 10, seconds_left=41.0), "7/10 rows · done 13:41 (in 41 s)"),
        (
            BatchProgress(7, 10, seconds_left=3 * 3600 + 240),
            "7/10 rows · done 16:45 (in 3 h 04 min)",
        ),
        (
            BatchProgress(7, 10, seconds_left=86_400 * 2),
            "7/10 rows · done Sun 29 Nov 13:41 (in 48 h 00 min)",
        ),
        (
            BatchProgress(7, 10, seconds_left=41.0, words="waiting for the server"),
            "7/10 rows · waiting for the server",
        ),
        (
            BatchProgress(7, 10, seconds_left=41.0, words="waiting", ended=True),
            "7/10 rows",
        ),
    ],
)
def test_what_is_said(progress: BatchProgress, words: str) -> None:
    """Only what can be told is said, in the unit in which it says most."""
    assert describe(progress, NOON)[0] == words


def test_what_matters_least_is_left_out_first() -> None:
    """The wait, failed rows, tokens and rows per second; how far it is stays."""
    progress = BatchProgress(
        10_412,
        100_000,
        failed=12,
        rows_per_second=12.3,
        tokens_per_second=1234.0,
        seconds_left=3 * 3600 + 240,
    )

    assert describe(progress, NOON) == [
        "10,412/100,000 rows · 12 failed · 12 rows/s · 1,234 tokens/s · "
        "done 16:45 (in 3 h 04 min)",
        "10,412/100,000 rows · 12 failed · 12 rows/s · 1,234 tokens/s · done 16:45",
        "10,412/100,000 rows · 12 rows/s · 1,234 tokens/s · done 16:45",
        "10,412/100,000 rows · 12 rows/s · done 16:45",
        "10,412/100,000 rows · done 16:45",
    ]
    waiting = replace(progress, failed=0, words="waiting for the server")
    assert describe(waiting, NOON)[-1] == "10,412/100,000 rows · waiting for the server"
    assert describe(BatchProgress(7, 10), NOON) == ["7/10 rows"]


@pytest.mark.parametrize("seconds_left", [41.0, 3 * 3600 + 240, 86_400 * 2])
def test_eighty_columns_have_room_for_what_matters(seconds_left: float) -> None:
    """Of a large table: rows, both rates and when it is done, beside the share."""
    progress = BatchProgress(
        10_412,
        100_000,
        rows_per_second=12.3,
        tokens_per_second=1234.0,
        seconds_left=seconds_left,
    )

    told = next(one for one in describe(progress, NOON) if len("100% " + one) < 80)

    assert "10,412/100,000 rows · 12 rows/s · 1,234 tokens/s · done" in told


def test_failed_rows_are_shown_and_move_the_bar(
    capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    """Two of ten failed: the bar is at its half, and four are done."""
    with BatchBar(10, clock=clock) as bar:
        bar.keep(2)
        bar.add(0.0, failed=True)
        for failed in (False, False, True):
            clock.now += 1
            bar.add(1.0, failed=failed)
        bar.tick()
        assert "60% |" in (line := lines(capsys)[-1])
        assert "4/10 rows · 2 failed · 1.0 rows/s · done" in line

        assert bar.progress.done == 4
        assert bar.progress.failed == 2
        assert bar.progress.kept == 2
        assert bar.progress.rows_per_second == pytest.approx(1.0)


def test_rows_of_an_iterator_have_no_end(
    capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    """Without a total no share and no time; once it is known there are both."""
    with BatchBar(None, clock=clock) as bar:
        clock.now += 2
        bar.add(2.0)
        bar.tick()
        assert lines(capsys) == ["1 rows · 0.5 rows/s"]
        bar.learn_total(4)
        clock.now += 1
        bar.tick()
        assert "25% |" in (line := lines(capsys)[-1])
        assert "1/4 rows · 0.3 rows/s · done" in line


def test_it_is_drawn_five_times_a_second_at_most(
    capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    """Of a hundred ticks in a second as many pictures are drawn as can be read."""
    with BatchBar(100, clock=clock) as bar:
        for _ in range(100):
            clock.now += 0.01
            bar.add(0.01)
            bar.tick()

        assert 4 <= len(lines(capsys)) <= 6


def test_a_function_takes_the_bars_place(
    capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    """It is called in the thread that waits, as often as a bar is drawn, and last."""
    told: list[tuple[int, BatchProgress]] = []

    def tell(progress: BatchProgress) -> None:
        told.append((threading.get_ident(), progress))

    def work() -> None:
        for _ in range(50):
            bar.add(0.02, tokens=3)
        bar.say("waiting for the server")

    with BatchBar(60, shown=tell, clock=clock) as bar:
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
        assert told == []
        bar.tick(4)
        bar.tick(4)
        clock.now += 0.2
        bar.say("")
        bar.tick(4)

    assert {thread for thread, _ in told} == {threading.get_ident()}
    assert [(one.done, one.words, one.ended) for _, one in told] == [
        (50, "waiting for the server", False),
        (50, "", False),
        (50, "", True),
    ]
    assert lines(capsys) == []


def test_after_ctrl_c_it_says_how_many_still_run(
    capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    """And what another one does; at the end nothing more is said of it."""
    with BatchBar(60, clock=clock) as bar:
        bar.add(1.0)
        bar.say("waiting for the server")
        bar.wind_up()
        bar.tick(4)
        assert lines(capsys)[-1].endswith(
            "· ending: 4 still running; Ctrl-C again drops them"
        )
    assert "ending" not in lines(capsys)[-1]


@pytest.mark.parametrize("variable", ["TQDM_DISABLE", None])
def test_turned_off_nothing_is_shown(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str | None,
) -> None:
    """By the environment or by progress=False; all is counted nevertheless."""
    if variable is not None:
        monkeypatch.setenv(variable, "1")
    with BatchBar(2, shown=variable is not None) as bar:
        bar.add(1.0)
        bar.tick()

    assert bar.progress.done == 1
    assert lines(capsys) == []


def test_threads_count_what_they_do() -> None:
    """Eight threads that add at once lose nothing."""
    with BatchBar(8000, shown=False) as bar:
        threads = [
            threading.Thread(target=lambda: [bar.add(0.1) for _ in range(1000)])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert bar.progress.done == 8000
