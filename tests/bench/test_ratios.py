"""Ratios of rounds, and what they tell."""

from __future__ import annotations

import random
import statistics

import pytest

from llamatelemetry.bench._metrics import LoadResult, Statistics
from llamatelemetry.bench._ratios import checked_metrics, ratio_of
from llamatelemetry.exceptions import ConfigurationError


def load(
    *, rate: int = 100, first: float | None = 1.0, tokens: int = 100, failed: int = 0
) -> LoadResult:
    """Return a load: tokens per second, seconds to the first, tokens of one answer."""
    spread = None if first is None else Statistics(first, first, first, first, 0, 1)
    return LoadResult(
        concurrency=1, requests=1 + failed, errors={"StreamError": failed},
        duration=tokens / rate, prompt_tokens=0, cached_tokens=0,
        output_tokens=tokens, time_to_first_token=spread,
    )  # fmt: skip


def rounds(*rates: int, **options: int) -> list[LoadResult]:
    """Return a load for each number of tokens per second."""
    return [load(rate=rate, **options) for rate in rates]


def test_a_clear_difference_is_told() -> None:
    """Six rounds on one side of 1 are a difference, and which side is better."""
    ratio = ratio_of(
        "output_tokens_per_second",
        rounds(*[100] * 6),
        rounds(110, 120, 130, 140, 115, 125),
    )

    assert ratio.median == pytest.approx(1.225)
    assert (ratio.least, ratio.most) == pytest.approx((1.1, 1.4))
    assert ratio.spread == pytest.approx((1.1, 1.4))
    assert ratio.level == pytest.approx(0.96875)
    assert ratio.is_different is True
    assert ratio.verdict == "better, 22.5%"


def test_less_time_is_better() -> None:
    """Of times, the smaller one wins; more of them is worse."""
    one, other = [load(first=1.0)] * 6, [load(first=2.0)] * 6

    assert ratio_of("time_to_first_token", one, other).verdict == "worse, 100.0%"
    assert ratio_of("time_to_first_token", other, one).verdict == "better, 50.0%"
    tokens = "output_tokens_per_second"
    assert ratio_of(tokens, rounds(*[2] * 6), rounds(*[1] * 6)).verdict.startswith(
        "worse"
    )


def test_a_spread_with_1_in_it_tells_no_difference() -> None:
    """One round on the other side of 1 is enough in six."""
    ratio = ratio_of(
        "output_tokens_per_second", rounds(*[100] * 6), rounds(99, *[150] * 5)
    )

    assert ratio.is_different is False
    assert ratio.verdict == "no difference can be told"


def test_few_rounds_tell_nothing() -> None:
    """Five equal rounds are no proof at 95 %."""
    ratio = ratio_of("output_tokens_per_second", rounds(*[1] * 5), rounds(*[9] * 5))

    assert ratio.level == 0.9375
    assert ratio.is_different is None
    assert "six are needed" in ratio.verdict


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": 102}, "answers of 100 and 102 tokens"),
        ({"failed": 1}, "0 and 6 requests failed"),
    ],
)
def test_unlike_work_has_no_verdict(options: dict[str, int], words: str) -> None:
    """Where one failed more, or answers differ by more than 1 %, nobody has won."""
    same, faster = rounds(*[100] * 6), rounds(*[150] * 6, **options)

    ratio = ratio_of("output_tokens_per_second", same, faster)
    assert ratio.median == pytest.approx(1.5)
    assert ratio.is_different is None
    assert ratio.verdict == f"not the same work: {words}"
    back = ratio_of("output_tokens_per_second", faster, same)
    assert back.is_different is None
    equal = ratio_of("output_tokens_per_second", rounds(*[100] * 6, **options), faster)
    assert equal.verdict == "better, 50.0%"


def test_answers_that_differ_by_little_are_the_same_work() -> None:
    """A token more in 100 is no other work."""
    ratio = ratio_of(
        "output_tokens_per_second", rounds(*[100] * 6), rounds(*[200] * 6, tokens=101)
    )

    assert ratio.is_different is True


def test_as_many_failures_in_other_rounds_are_unlike_work() -> None:
    """What counts is what was done in the same round."""
    one, other = load(failed=1), load(failed=0)
    ratio = ratio_of("requests_per_second", [one, other], [other, one])

    assert ratio.verdict == "not the same work: 1 and 1 requests failed"


def test_rounds_without_a_value_of_both_are_left_out() -> None:
    """A round in which one failed has no ratio; without any, nothing is known."""
    first = [load(first=None), load(first=2.0)]
    second = [load(first=1.0), load(first=1.0)]

    assert ratio_of("time_to_first_token", first, second).values == (0.5,)
    nothing = ratio_of("joules_per_output_token", first, second)
    assert nothing.median is None
    assert nothing.is_different is None
    assert nothing.verdict.startswith("not known")


def test_the_spread_holds_the_median_as_often_as_it_says() -> None:
    """Over 2,000 samples of 20 it misses the true median in at most 5 % and some."""
    chance = random.Random(8)
    missed = 0
    for _ in range(2000):
        values = [int(1e6 * chance.lognormvariate(0, 1)) for _ in range(20)]
        ratio = ratio_of(
            "output_tokens_per_second", rounds(*[1_000_000] * 20), rounds(*values)
        )
        assert ratio.spread is not None
        low, high = ratio.spread
        assert low > min(values) / 1e6
        assert low <= statistics.median(values) / 1e6 <= high
        missed += not low <= 1 <= high
    assert ratio.level == pytest.approx(0.9586, abs=1e-4)
    assert missed / 2000 < 0.06


def test_metrics_are_known_by_name() -> None:
    """One name or several; another one is refused with those that exist."""
    assert checked_metrics("requests_per_second") == ("requests_per_second",)
    assert len(checked_metrics(["requests_per_second", "time_to_first_token"])) == 2
    with pytest.raises(ConfigurationError, match="'speed'.*end_to_end_latency"):
        checked_metrics("speed")
    with pytest.raises(ConfigurationError, match="empty"):
        checked_metrics([])
    with pytest.raises(ConfigurationError, match="metrics is 5"):
        checked_metrics(5)  # type: ignore[arg-type]
