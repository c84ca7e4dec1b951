"""Bars of long work: what they show, and that they call work off."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from manager_tools import wait_for

from llamatelemetry._progress import (
    CancelledError,
    CountBar,
    FileBar,
    FileProgress,
    Relay,
)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars are on, whatever this machine's settings are."""
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def pty_of(columns: int) -> Iterator[tuple[int, Callable[[], str]]]:
    """Open a terminal of this width; yield it, and what returns what it has shown."""
    ours, terminal = pty.openpty()
    try:
        termios.tcsetwinsize(terminal, (24, columns))
        yield terminal, lambda: os.read(ours, 10_000).decode()
    finally:
        os.close(terminal)
        os.close(ours)


def test_a_bar_shows_name_bytes_and_total(capsys: pytest.CaptureFixture[str]) -> None:
    """What is being done is shown; at the end stand the file's name and its bytes."""
    with FileBar("m-Q4_K_M.gguf", 2_000_000) as bar:
        bar.advance(1_500_000)
        bar.advance(500_000)
        bar.say("verifying")

    shown = capsys.readouterr()
    assert shown.out == ""
    last = shown.err.strip().split("\r")[-1]
    assert "m-Q4_K_M.gguf verifying: 100%" in shown.err
    assert last.startswith("m-Q4_K_M.gguf: 100%")
    assert "2.00M/2.00M" in last
    assert bar.done == bar.farthest == 2_000_000


def test_bytes_in_vain_are_taken_back(capsys: pytest.CaptureFixture[str]) -> None:
    """A step back is shown, and what was reached is remembered."""
    with FileBar("m.gguf", 1000) as bar:
        bar.advance(800)
        bar.advance(-800)
        bar.move_to(200)
        assert (bar.done, bar.farthest) == (200, 800)
        bar.move_to(50)
        assert bar.done == 50

    last = capsys.readouterr().err.strip().split("\r")[-1]
    assert "50.0/1.00k" in last


def test_a_total_may_come_later(capsys: pytest.CaptureFixture[str]) -> None:
    """What is learnt on the way is shown; what was known stays."""
    with FileBar("m.gguf", None) as bar:
        bar.advance(500)
        bar.learn_total(1000)
        bar.learn_total(7)
        bar.say("")

    last = capsys.readouterr().err.strip().split("\r")[-1]
    assert last.startswith("m.gguf: ")
    assert "500/1.00k" in last


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "true"),
        ("TQDM_DISABLE", "yes"),
        (None, None),
    ],
)
def test_without_a_bar_all_is_still_counted(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str | None,
    value: str | None,
) -> None:
    """Turned off by a variable or by the caller, nothing is printed at all."""
    if variable is not None and value is not None:
        monkeypatch.setenv(variable, value)
    with FileBar("m.gguf", None, shown=variable is not None) as bar:
        bar.advance(7)
        bar.learn_total(10)
        bar.say("verifying")
        bar.move_to(3)

    assert (bar.done, bar.farthest) == (3, 7)
    assert capsys.readouterr() == ("", "")


def test_a_variable_that_says_no_turns_nothing_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_HUB_DISABLE_PROGRESS_BARS=0 leaves the bars on."""
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    with FileBar("m.gguf", 10) as bar:
        bar.advance(10)

    assert "m.gguf: 100%" in capsys.readouterr().err


def test_who_waits_calls_it_off() -> None:
    """Once the event is set each step raises, and nothing more is counted."""
    cancelled = threading.Event()
    with FileBar("m.gguf", 10, cancelled=cancelled, shown=False) as bar:
        bar.check()
        bar.advance(4)
        cancelled.set()
        for step in (bar.check, lambda: bar.advance(1), lambda: bar.move_to(9)):
            with pytest.raises(CancelledError):
                step()

    assert bar.done == 4
    assert not issubclass(CancelledError, Exception)


def test_bars_may_be_moved_from_any_thread(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two bars that many threads move show what came, each for itself."""

    def move(bar: FileBar) -> None:
        for _ in range(2000):
            bar.advance(1)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with FileBar("one", 8000) as one, FileBar("two", 8000) as two:
            threads = [
                threading.Thread(target=move, args=(bar,))
                for bar in (one, two)
                for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(before)

    assert (one.done, two.done) == (8000, 8000)
    shown = capsys.readouterr().err
    assert "one: 100%" in shown
    assert "two: 100%" in shown


def test_a_library_moves_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """A library's own bars are invisible and move this one, also when begun anew."""
    with FileBar("m.gguf", None) as bar:
        reporter = bar.reporting_class()
        with reporter(total=1000, initial=0, desc="theirs", unit="B") as theirs:
            theirs.update(300)
            theirs.update(None)
        # After a broken connection it begins another bar where the work stands.
        with reporter(total=1000, initial=100) as theirs:
            assert bar.done == 100
            theirs.update(900)
        with reporter() as theirs:
            assert bar.done == 0
            theirs.update(1000)

    shown = capsys.readouterr().err
    assert bar.farthest == bar.done == 1000
    assert "theirs" not in shown
    assert "m.gguf: 100%" in shown


def test_a_library_is_called_off_through_its_bar() -> None:
    """A library's bar raises in the middle of its work, past its own retries."""
    cancelled = threading.Event()
    with FileBar("m.gguf", 10, cancelled=cancelled, shown=False) as bar:
        theirs = bar.reporting_class()(total=10)
        theirs.update(5)
        cancelled.set()
        with pytest.raises(CancelledError):
            try:
                theirs.update(5)
            except Exception as error:  # what a library that tries again does
                raise AssertionError from error
        with pytest.raises(CancelledError):
            bar.reporting_class()(total=10)

    assert bar.done == 5


def test_a_function_takes_the_place_of_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told of each step, and of the end; nothing is printed, whatever is set."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    told: list[FileProgress] = []
    with pytest.raises(ValueError, match="broken"):  # noqa: SIM117 -- the bar is inside
        with FileBar("m.gguf", None, shown=told.append) as bar:
            bar.learn_total(10)
            bar.advance(4)
            bar.say("verifying")
            raise ValueError("broken")

    assert told == [
        FileProgress("m.gguf", 0, None),
        FileProgress("m.gguf", 0, 10),
        FileProgress("m.gguf", 4, 10),
        FileProgress("m.gguf", 4, 10, "verifying"),
        FileProgress("m.gguf", 4, 10, "verifying", ended=True),
    ]
    assert capsys.readouterr().err == ""


def test_a_relay_tells_in_the_thread_that_waits() -> None:
    """The newest of each file, again with each tick; what has ended once more only."""
    told: list[FileProgress] = []
    relay = Relay(told.append)

    def work() -> None:
        with FileBar("one", 10, shown=relay.note) as bar:
            bar.advance(4)
            bar.advance(5)
            relay_half.wait()

    relay_half = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    wait_for(lambda: relay._latest.get("one") == FileProgress("one", 9, 10))
    assert told == []
    relay.tick()
    relay.tick()
    relay_half.set()
    thread.join()
    relay.tick()
    relay.tick()
    assert told == [
        FileProgress("one", 9, 10),
        FileProgress("one", 9, 10),
        FileProgress("one", 9, 10, ended=True),
    ]


def test_a_bar_over_a_count_says_what_it_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A share, a bar and words; nothing before the first words; closing is harmless."""
    bar = CountBar(200)
    assert capsys.readouterr().err == ""
    bar.show(50, "50 of 200 rows")
    assert capsys.readouterr().err == "\r 25% |██▌       | 50 of 200 rows"
    bar.show(200, "all of them")
    bar.close()
    bar.close()

    last = capsys.readouterr().err.rstrip().split("\r")[-1]
    assert last.rstrip() == "100% |██████████| all of them"


def test_a_count_may_learn_its_total(capsys: pytest.CaptureFixture[str]) -> None:
    """Words alone at first, a bar once it is known how many there are."""
    bar = CountBar(None)
    bar.show(5, "5 rows")
    assert capsys.readouterr().err.strip() == "5 rows"
    bar.show(5, "5 of 10 rows", 10)
    bar.show(6, "6 of 10 rows")
    bar.close()

    assert "60% |██████    | 6 of 10 rows" in capsys.readouterr().err


WORDS = ["ten of a hundred rows, three a second", "ten of a hundred rows", "ten rows"]


@pytest.mark.parametrize(
    ("columns", "cells", "words"),
    [
        (100, {10}, WORDS[0]),
        (52, {6, 7}, WORDS[0]),
        (46, {0}, WORDS[0]),
        (40, {10}, WORDS[1]),
        (30, {0}, WORDS[1]),
        (18, {0}, WORDS[2]),
        (9, {0}, "ten"),
    ],
)
def test_words_fit_into_the_terminals_line(
    columns: int, cells: set[int], words: str
) -> None:
    """The first that fit are shown in a real one, and the bar makes room for them.

    Some versions of tqdm leave the last column free, and others do not.
    """
    code = (
        "from llamatelemetry._progress import CountBar; "
        f"CountBar(100).show(10, {WORDS!r})"
    )
    with pty_of(columns) as (terminal, shown):
        subprocess.run([sys.executable, "-c", code], stderr=terminal, check=True)
        line = shown().split("\r")[1].rstrip()

    found = re.fullmatch(r" 10% (?:\|(.*)\| )?(.*)", line)
    assert found is not None
    assert len(found[1] or "") in cells
    assert found[2] == words


def test_no_bar_over_a_count_is_shown_that_is_not_wanted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By who makes it, or by the environment."""
    quiet = CountBar(10, shown=False)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    for bar in (quiet, CountBar(10)):
        bar.show(5, "5 rows")
        bar.close()

    assert capsys.readouterr() == ("", "")
