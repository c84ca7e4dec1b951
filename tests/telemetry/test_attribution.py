"""What a request cost: against curves whose energy is known in closed form."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from llamatelemetry.telemetry._attribution import (
    Attribution,
    CardSeries,
    Ran,
    attribute,
)


def card(
    watts: Callable[[float], float | None], step: float = 1.0, until: float = 20.0
) -> CardSeries:
    """Return what a card says that draws this; its memory grows by a byte a second."""
    times = [step * number for number in range(int(until / step) + 1)]
    return CardSeries(times, [watts(time) for time in times], [int(t) for t in times])


def cost(ran: Ran, series: CardSeries, *others: Ran, tokens: int = 10) -> Attribution:
    """Return what a request cost on one card."""
    return attribute(7, ran, {0: series}, {0: others}, tokens=tokens, longest_gap=5.0)


def evenly(start: float, end: float, count: int) -> Ran:
    """Return a request whose tokens came at even distances."""
    each = (end - start) / count
    times = [start + each * (number + 0.5) for number in range(count)]
    return Ran(start, end, times[0], count, times)


def test_constant_power_costs_watts_times_seconds() -> None:
    """Whole or in parts of a second, and for each token."""
    found = cost(Ran(2.25, 7.75), card(lambda _: 40.0))
    assert found.joules == pytest.approx(40 * 5.5)
    assert found.own_joules == found.joules
    assert found.share == 1
    assert found.joules_per_token == pytest.approx(22)
    assert (found.request, found.seconds, found.samples) == (7, 5.5, 5)
    assert found.joules_by_card == {0: found.joules}
    assert found.problem is None


def test_a_ramp_is_integrated_exactly() -> None:
    """Power that grows evenly has the energy of a trapezoid, ends included."""
    found = cost(Ran(2.3, 9.1), card(lambda time: 10 + 3 * time))
    exact = 10 * (9.1 - 2.3) + 1.5 * (9.1**2 - 2.3**2)
    assert found.joules == pytest.approx(exact)


def test_between_two_samples_it_is_interpolated() -> None:
    """A request shorter than the distance of samples gets its part of the trapezoid."""
    found = cost(Ran(3.25, 3.75), card(lambda time: 10 * time))
    assert found.joules == pytest.approx(0.5 * 35)
    assert found.samples == 0
    assert found.peak_memory_bytes == {0: 4}


def test_a_curve_is_met_with_more_samples() -> None:
    """The error of a sine falls with the square of the distance."""
    exact = 30 * 10 - 20 * (math.cos(12) - math.cos(2))

    def error(step: float) -> float:
        found = cost(Ran(2, 12), card(lambda t: 30 + 20 * math.sin(t), step))
        return abs((found.joules or 0) - exact)

    errors = [error(step) for step in (0.5, 0.25, 0.125)]
    assert errors[0] < 0.03 * exact
    assert errors[1] == pytest.approx(errors[0] / 4, rel=0.1)
    assert errors[2] == pytest.approx(errors[1] / 4, rel=0.1)


def test_the_peak_is_of_its_own_time() -> None:
    """Neither before nor after; and of samples that tell it."""
    series = card(lambda _: 1.0)
    assert cost(Ran(2, 9.5), series).peak_memory_bytes == {0: 9}
    silent = CardSeries(series.times, series.watts, [None] * len(series.times))
    assert cost(Ran(2, 9.5), silent).peak_memory_bytes == {0: None}


@pytest.mark.parametrize(
    ("ran", "series", "words"),
    [
        (Ran(2, 4), card(lambda _: None), "not known"),
        (Ran(-1, 4), card(lambda _: 9.0), "before the request began"),
        (Ran(18, 21), card(lambda _: 9.0), "since the request's end"),
        (Ran(2, 12), card(lambda _: 9.0, 6.0), "told nothing for 6.0 s"),
        (
            Ran(2, 12),
            card(lambda t: None if 3 < t < 10 else 9.0),
            "told nothing for 7.0 s",
        ),
        (Ran(2, 4), CardSeries([], [], []), "not known"),
    ],
)
def test_what_is_not_covered_is_not_told(
    ran: Ran, series: CardSeries, words: str
) -> None:
    """No joules, and a sentence that says why."""
    found = cost(ran, series)
    assert found.problem is not None
    assert words in found.problem
    assert found.problem.startswith("GPU 0: ")
    told = (found.joules, found.own_joules, found.share, found.joules_per_token)
    assert told == (None,) * 4
    assert found.joules_by_card == {0: None}


def test_a_short_gap_is_bridged() -> None:
    """A card that did not tell once costs what the neighbours say."""
    found = cost(Ran(2.5, 12), card(lambda t: None if t in (2, 5, 6, 12) else 9.0))
    assert found.joules == pytest.approx(9 * 9.5)


def test_several_cards_are_added_up() -> None:
    """Each for itself, and none in all if one of them is not known."""
    found = attribute(
        0, Ran(2, 4), {0: card(lambda _: 10.0), 1: card(lambda _: 30.0)}, {},
        tokens=None, longest_gap=5,
    )  # fmt: skip
    assert found.joules_by_card == {0: 20, 1: 60}
    assert (found.joules, found.joules_per_token) == (80, None)
    partly = attribute(
        0, Ran(2, 4), {0: card(lambda _: 10.0), 1: card(lambda _: None)}, {},
        tokens=4, longest_gap=5,
    )  # fmt: skip
    assert partly.joules_by_card == {0: 20, 1: None}
    assert partly.joules is None
    none = attribute(0, Ran(2, 4), {}, {}, tokens=4, longest_gap=5)
    assert none.problem == "no card was watched that its server uses"
    assert none.samples == 0


def test_a_card_that_draws_nothing_has_no_share() -> None:
    """Zero joules are zero joules, and no part of them can be told."""
    found = cost(Ran(2, 4), card(lambda _: 0.0))
    assert (found.joules, found.own_joules, found.share) == (0, 0, None)


def test_two_at_once_pay_by_their_tokens() -> None:
    """Three times the tokens, three times the energy, while both run."""
    slow, quick = evenly(0, 10, 20), evenly(0, 10, 60)
    series = card(lambda _: 40.0)
    one, other = cost(slow, series, quick), cost(quick, series, slow)
    assert one.own_joules == pytest.approx(100, rel=0.03)
    assert other.own_joules == pytest.approx(300, rel=0.03)
    assert (one.joules, other.joules) == (400, 400)
    assert one.share == pytest.approx(0.25, rel=0.03)


def test_alone_one_pays_alone() -> None:
    """What is not shared is not split: the second half is its own."""
    long, short = evenly(0, 10, 100), evenly(0, 5, 50)
    found = cost(long, card(lambda _: 40.0), short)
    assert found.own_joules == pytest.approx(200 + 100, rel=0.02)


def test_without_tokens_it_is_split_evenly() -> None:
    """While both read their prompts each pays half."""
    found = cost(Ran(2, 4), card(lambda _: 40.0), Ran(0, 10))
    assert found.own_joules == pytest.approx(40)


def test_tokens_of_unknown_times_came_evenly_after_the_first() -> None:
    """Where nobody has noted the times, the first token's and the count decide."""
    ran = Ran(0, 10, first=5, tokens=50)
    assert ran.tokens_between(0, 5) == 0
    assert ran.tokens_between(5, 7.5) == pytest.approx(25)
    assert ran.tokens_between(0, 20) == pytest.approx(50)
    assert Ran(0, 10, tokens=10).tokens_between(0, 5) == pytest.approx(5)
    assert Ran(3, 3, tokens=10).tokens_between(3, 3) == 0
    merged = Ran(0, 4, 1, 8, [1.0, 2.0])  # two chunks, eight tokens
    assert merged.tokens_between(0, 1.5) == 4


@pytest.mark.parametrize("seed", range(5))
def test_the_parts_add_up_to_what_was_drawn(seed: int) -> None:
    """Whoever ran when: all parts together are the energy of the busy time."""
    chance = random.Random(seed)
    series = card(lambda t: 30 + 20 * math.sin(t), 0.5)
    requests = [
        evenly(start, start + chance.uniform(0.1, 6), chance.randrange(1, 40))
        for start in [1.0, *(chance.uniform(1, 12) for _ in range(7))]
    ]
    parts = [
        cost(one, series, *(other for other in requests if other is not one)).own_joules
        or 0.0
        for one in requests
    ]
    edges = sorted(edge for one in requests for edge in (one.start, one.end))
    busy = 0.0
    for begin, end in pairwise(edges):
        if any(one.start <= begin and one.end >= end for one in requests):
            busy += cost(Ran(begin, end), series).joules or 0.0
    assert sum(parts) == pytest.approx(busy)
    assert min(parts) >= 0


def test_the_others_are_gone_through_once() -> None:
    """However many pieces they cut a long request into."""

    class Counted(list[Ran]):
        times = 0

        def __iter__(self) -> Iterator[Ran]:
            self.times += 1
            return super().__iter__()

    others = Counted(Ran(n / 10, n / 10 + 0.2) for n in range(1, 150))
    series = {0: card(lambda _: 40.0)}
    found = attribute(7, Ran(0, 20), series, {0: others}, tokens=None, longest_gap=5.0)
    # Two others are there from 0.2 to 15.0, one for a tenth before and after it.
    assert found.own_joules == pytest.approx(40 * (14.8 / 3 + 0.2 / 2 + 5))
    assert others.times <= 2
