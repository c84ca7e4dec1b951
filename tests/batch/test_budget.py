"""How long a call may take."""

from __future__ import annotations

import math
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamatelemetry import _environment
from llamatelemetry.batch import _budget
from llamatelemetry.batch._budget import deadline_of, machine_age
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.server import _linux


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that is neither Kaggle nor Colab, whatever it is."""
    monkeypatch.setattr(_environment, "_ROOT", tmp_path)


def started(seconds_ago: float, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the first process seem to have started so long ago."""
    start = time.clock_gettime(time.CLOCK_BOOTTIME) - seconds_ago
    ticks = int(start * os.sysconf("SC_CLK_TCK"))
    before = " ".join(["S", *["0"] * 18])
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "stat").write_text(f"1 (a ) name) {before} {ticks} 0 0\n")
    monkeypatch.setattr(_linux, "_PROC", folder)


@pytest.mark.parametrize(
    ("budget", "seconds"),
    [
        (90, 90),
        (0.5, 0.5),
        (np.float32(2), 2),
        (timedelta(minutes=2), 120),
        ("8h30m", 30_600),
        (" 8 h 30 min ", 30_600),
        ("1.5 hours", 5400),
        ("90s", 90),
        ("1D", 86_400),
        ("1 day 1 second", 86_401),
    ],
)
def test_a_time_is_counted_from_now(budget: Any, seconds: float) -> None:
    """Numbers are seconds, and words are read."""
    before = time.monotonic()
    deadline = deadline_of(budget)

    assert before + seconds <= deadline.at <= time.monotonic() + seconds


def test_no_budget_never_ends() -> None:
    """None is infinite."""
    assert deadline_of(None).at == math.inf


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("soon", "cannot be read"),
        ("90", "cannot be read"),
        ("", "cannot be read"),
        ("8h30", "cannot be read"),
        ("-8h", "cannot be read"),
        ("8 parsecs", "cannot be read"),
        (0, "leaves no time"),
        (-1, "leaves no time"),
        ("0s", "leaves no time"),
        (math.nan, "leaves no time"),
        (math.inf, "None is without end"),
        (timedelta(0), "leaves no time"),
        (True, "not True"),
        ([1], r"not \[1\]"),
        ("session", "for Kaggle and Colab"),
    ],
)
def test_what_is_no_time_is_refused(budget: Any, message: str) -> None:
    """The error says what a budget may be."""
    with pytest.raises(ConfigurationError, match=message):
        deadline_of(budget)


@pytest.mark.parametrize("name", ["KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG"])
def test_a_session_ends_twelve_hours_after_the_machine_began(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A quarter of an hour of it is spared."""
    monkeypatch.setenv(name, "Interactive")
    started(3600, monkeypatch, tmp_path / "proc")

    assert deadline_of("session").remaining == pytest.approx(10.75 * 3600, abs=5)


def test_a_session_that_is_nearly_over_has_no_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error says how old the machine is."""
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    started(11.8 * 3600, monkeypatch, tmp_path / "proc")

    with pytest.raises(ConfigurationError, match=r"began 11.8 hours ago, of 12 .*Kag"):
        deadline_of("session")


def test_a_machine_that_does_not_tell_its_age_is_asked_for_a_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing is guessed: neither without the first process nor with a future start."""
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    monkeypatch.setattr(_linux, "_PROC", tmp_path / "nothing")
    with pytest.raises(ConfigurationError, match='does not tell.*"8h30m"'):
        deadline_of("session")

    started(-500, monkeypatch, tmp_path / "proc")
    assert machine_age() is None


def test_this_machine_is_older_than_this_process() -> None:
    """The first process began before us, and after the kernel."""
    age = machine_age()
    own = _linux.process_start_time(os.getpid())

    assert age is not None
    assert own is not None
    booted = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert booted - own / os.sysconf("SC_CLK_TCK") <= age + 1
    assert age <= booted
    assert _budget.SPARED_SECONDS == 900
