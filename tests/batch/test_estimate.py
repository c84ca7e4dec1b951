"""How long it will take: held against what rows of known lengths take."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from llamatelemetry.batch._estimate import Estimate, Estimator

MEAN = 2.0  # seconds a row
BEGAN = 1000.0


@dataclass
class Run:
    """Rows of known lengths on so many slots, noted in the order of their ends.

    Attributes:
        estimator: What each row is noted with.
        lengths: Seconds of each row.
        look: After so many rows the estimate is taken.
        slots: Of the rows done, how many run at once.
        end: When the last row was done.
        now: When it was looked.
        told: What was seen then.
    """

    estimator: Estimator
    lengths: list[float]
    look: int
    slots: Callable[[int], int] = lambda _: 16
    end: float = 0.0
    now: float = 0.0
    told: Estimate = field(default_factory=Estimate)

    def __post_init__(self) -> None:
        waiting = iter(self.lengths)
        running: list[tuple[float, float]] = []
        now = BEGAN
        for done in range(len(self.lengths)):
            while len(running) < self.slots(done):
                if (length := next(waiting, None)) is None:
                    break
                heapq.heappush(running, (now + length, now))
            now, began = heapq.heappop(running)
            self.estimator.note(now, now - began, tokens=10)
            if done + 1 == self.look:
                self.now, self.told = now, self.estimator.estimate(now, 16)
        self.end = now


def lengths(count: int, seed: int, sigma: float = 1.0) -> list[float]:
    chance = random.Random(seed)
    middle = math.log(MEAN) - sigma**2 / 2
    return [chance.lognormvariate(middle, sigma) for _ in range(count)]


def test_within_a_tenth_after_a_thousand_rows() -> None:
    """In 9 of 10 runs of log-normal lengths, after 5 % of the rows and 1,000."""
    good = 0
    for seed in range(10):
        run = Run(Estimator(4000), lengths(4000, seed), look=1000)
        left = run.told.seconds_left or 0.0
        good += abs(run.now + left - run.end) <= 0.1 * (run.end - run.now)

    assert good >= 9


def test_the_last_rows_take_as_long_as_the_longest() -> None:
    """With 16 of 16 rows running, what is told is a longest rest and no mean."""
    estimator = Estimator(10_000)
    for number in range(500):
        estimator.note(float(number), 1.0 if number % 10 else 30.0)
    estimator.total = 516

    left = estimator.estimate(500.0, 16).seconds_left

    assert left is not None
    assert 20 < left < 30


def test_even_lengths_are_told_exactly() -> None:
    """Without chance in it, the rate and the rest are right to a hundredth."""
    estimator = Estimator(1000)
    for number in range(1, 401):
        estimator.note(number * 0.5, 0.5, tokens=30)

    told = estimator.estimate(200.0, 1)

    assert told.rows_per_second == pytest.approx(2.0)
    assert told.tokens_per_second == pytest.approx(60.0)
    assert told.seconds_left == pytest.approx(300.0, rel=0.01)


@pytest.mark.parametrize("slots", [8, 32])
def test_another_rate_is_noticed(slots: int) -> None:
    """Half the servers die, or as many come: 400 rows later the rate is the new one."""
    good = 0
    for seed in range(5):
        run = Run(
            Estimator(3000),
            lengths(1500, seed),
            look=1400,
            slots=lambda done: slots if done >= 1000 else 16,
        )
        rate = run.told.rows_per_second or 0.0
        good += abs(rate / (slots / MEAN) - 1) < 0.25

    assert good >= 4


def test_chance_is_no_change() -> None:
    """At one rate nothing is forgotten: the first row still counts at the end."""
    for seed in range(5):
        run = Run(Estimator(3000), lengths(3000, seed), look=3000)
        rate = run.told.rows_per_second
        assert rate == pytest.approx(3000 / (run.end - BEGAN))


def test_what_was_done_before_takes_no_time() -> None:
    """7,000 kept rows leave the rate as it is, and 3,000 to do."""
    fresh, resumed = Estimator(3000), Estimator(10_000)
    resumed.keep(7000)
    for number in range(1, 101):
        for estimator in (fresh, resumed):
            estimator.note(number * 1.0, 1.0)

    assert resumed.estimate(100.0, 1) == fresh.estimate(100.0, 1)
    assert resumed.finished == 7100


def test_silence_lowers_the_rate() -> None:
    """While nothing comes, the finishing time moves away."""
    estimator = Estimator(200)
    for number in range(1, 101):
        estimator.note(number * 1.0, 1.0)

    assert estimator.estimate(100.0).rows_per_second == pytest.approx(1.0)
    assert estimator.estimate(300.0).rows_per_second == pytest.approx(1 / 3)


def test_what_cannot_be_told_is_none() -> None:
    """Before the first row nothing; without a total no end; at the end no rest."""
    assert Estimator(10).estimate(5.0) == Estimate()
    unknown = Estimator(None)
    unknown.note(5.0, 2.0, tokens=8)
    assert unknown.estimate(5.0) == Estimate(0.5, 4.0, None)
    at_once = Estimator(10)
    at_once.note(5.0, 0.0)
    assert at_once.estimate(5.0) == Estimate()
    assert at_once.estimate(6.0).seconds_left == pytest.approx(8.0)
    done = Estimator(1)
    done.note(5.0, 2.0)
    assert done.estimate(5.0).seconds_left == 0.0


def test_rows_asked_for_together_count_each() -> None:
    """Sixteen texts in a request are sixteen rows of one time."""
    estimator = Estimator(3200)
    for number in range(1, 101):
        estimator.note(number * 1.0, 1.0, rows=16)

    told = estimator.estimate(100.0, 16)

    assert told.rows_per_second == pytest.approx(16.0)
    assert told.seconds_left == pytest.approx(100.0, rel=0.02)


def test_rows_that_end_at_one_moment_are_no_change() -> None:
    """A clock that stands still, or rows that took no time, break nothing."""
    estimator = Estimator(1000)
    for number in range(400):
        estimator.note(float(number // 100), 0.0)

    rate = estimator.estimate(4.0).rows_per_second
    assert rate is not None
    assert 50 < rate < 200
