"""Two things measured round by round: the ratio of each round, and its spread. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llamatelemetry.bench._metrics import (
    CLIENT_TIMES,
    LoadResult,
    percentile,
)
from llamatelemetry.exceptions import ConfigurationError

__all__ = [
    "Ratio",
    "checked_metrics",
    "mean_answer",
    "ratio_of",
    "unequal_work",
    "value_of",
]

MORE_IS_BETTER = (
    "output_tokens_per_second",
    "prompt_tokens_per_second",
    "total_tokens_per_second",
    "requests_per_second",
)
LESS_IS_BETTER = (*CLIENT_TIMES, "joules_per_output_token")
METRICS = (*MORE_IS_BETTER, *LESS_IS_BETTER)
"""What two things can be compared by; of times, the median of a round."""

LEVEL = 0.95
"""How sure the spread has to be."""

_ALIKE = 0.01
"""The part by which mean answers may differ in length and be the same work."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times the second has what the first has, round by round.

    Attributes:
        metric: What is compared; of times, the median of each round.
        values: The second's value divided by the first's, for each round in which both
            have one.
        median: Their median; None without a round.
        least: The least of them.
        most: The most of them.
        spread: Where the true median lies, from and to, by the order of the values,
            which asks for no shape of their distribution; None without a round.
        level: How sure the spread is, 0 to 1: 0.95 or more from six rounds on.
        unequal: In what the two did not do the same work, in words; None if they did.
            A ratio of unlike work tells nothing of who is faster.

    Example:
        >>> from llamatelemetry.bench import compare
        >>> comparison = compare(
        ...     client, url, rounds=1, requests=1, max_tokens=4, progress=False
        ... )
        >>> ratio = comparison.ratios[0]
        >>> ratio.metric, len(ratio.values), ratio.is_different
        ('output_tokens_per_second', 1, None)
    """

    metric: str
    values: tuple[float, ...]
    median: float | None = None
    least: float | None = None
    most: float | None = None
    spread: tuple[float, float] | None = None
    level: float = 0.0
    unequal: str | None = None

    @property
    def is_different(self) -> bool | None:
        """Whether the spread leaves out 1; None where that cannot be told.

        So it is where it is not 95 % sure, and where the two did unlike work.
        """
        if self.unequal or self.spread is None or self.level < LEVEL:
            return None
        low, high = self.spread
        return not low <= 1 <= high

    @property
    def verdict(self) -> str:
        """What the rounds tell, in words, of the second."""
        if self.median is None:
            return "not known: no round has a value of both"
        if self.unequal is not None:
            return f"not the same work: {self.unequal}"
        if self.is_different is None:
            return "too few rounds to tell a difference: six are needed"
        if not self.is_different:
            return "no difference can be told"
        better = (self.median > 1) == (self.metric in MORE_IS_BETTER)
        return f"{'better' if better else 'worse'}, {abs(self.median - 1):.1%}"


def checked_metrics(metrics: str | Sequence[str]) -> tuple[str, ...]:
    """Return the metrics that are asked for.

    Raises:
        ConfigurationError: There is none of that name, or none at all.
    """
    if not isinstance(metrics, Iterable):
        raise ConfigurationError(
            f"metrics is {metrics!r}, and must be a name or a list of names: "
            f"{', '.join(METRICS)}"
        )
    names = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    for name in names:
        if name not in METRICS:
            raise ConfigurationError(
                f"metrics names {name!r}; it can name {', '.join(METRICS)}"
            )
    if not names:
        raise ConfigurationError(f"metrics is empty; name one of {', '.join(METRICS)}")
    return names


def value_of(load: LoadResult, metric: str) -> float | None:
    """Return what a load has of a metric; None or 0 where there is nothing of it."""
    value = getattr(load, metric)
    median: float | None = getattr(value, "median", value)
    return median


def ratio_of(
    metric: str, first: Sequence[LoadResult], second: Sequence[LoadResult]
) -> Ratio:
    """Return the ratio of a metric over rounds.

    Args:
        metric: What is compared.
        first: The rounds of the first.
        second: Those of the second.
    """
    values = []
    for one, other in zip(first, second, strict=True):
        below, above = value_of(one, metric), value_of(other, metric)
        if below and above:  # a round in which all failed has no figure
            values.append(above / below)
    if not values:
        return Ratio(metric, ())
    ordered = sorted(values)
    cut, level = _order(len(ordered))
    return Ratio(
        metric,
        tuple(values),
        median=percentile(ordered, 50),
        least=ordered[0],
        most=ordered[-1],
        spread=(ordered[cut], ordered[-1 - cut]),
        level=level,
        unequal=unequal_work(first, second),
    )


def mean_answer(loads: Sequence[LoadResult]) -> float | None:
    """Return the tokens of an answer in the mean; None without an answer."""
    answers = sum(load.completed for load in loads)
    return sum(load.output_tokens for load in loads) / answers if answers else None


def unequal_work(
    first: Sequence[LoadResult], second: Sequence[LoadResult]
) -> str | None:
    """Return in what two did not do the same work; None if they did.

    Args:
        first: The rounds of the first.
        second: Those of the second.
    """
    failed, others = (
        [load.requests - load.completed for load in loads] for loads in (first, second)
    )
    if failed != others:
        return f"{sum(failed)} and {sum(others)} requests failed"
    one, other = mean_answer(first), mean_answer(second)
    if one is None or other is None or abs(one - other) <= _ALIKE * max(one, other):
        return None
    return f"answers of {one:.4g} and {other:.4g} tokens"


def _order(count: int) -> tuple[int, float]:
    """Return how many values lie beyond each end of the median's interval.

    A value is below the true median as often as above it. So the chance that all but
    ``cut`` values at most are on one side is a binomial's, as in the sign test.
    """
    cut, tail = 0, 0.5**count
    while True:
        more = tail + math.comb(count, cut + 1) * 0.5**count
        if 1 - 2 * more < LEVEL:
            return cut, 1 - 2 * tail
        cut, tail = cut + 1, more
