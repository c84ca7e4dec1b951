"""Comparison: two things measured in turn, and the ratio of each round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, overload

from llamatelemetry import _bench_chart
from llamatelemetry._tables import to_dataframe
from llamatelemetry._units import printable
from llamatelemetry.bench import _stored, _view
from llamatelemetry.bench._ratios import (
    METRICS,
    MORE_IS_BETTER,
    Ratio,
    checked_metrics,
    mean_answer,
    ratio_of,
    value_of,
)
from llamatelemetry.bench._stored import FilePath
from llamatelemetry.bench.results import BenchmarkResult

__all__ = ["Comparison"]

_HEADER = ("metric", "median ratio", "least", "most", "spread of the median", "verdict")
_WORK_HEADER = ("work", "answered", "failed", "tokens of an answer")
COLUMNS = (
    "round",
    "first",
    *(f"{name}_{of}" for name in METRICS for of in ("a", "b", "ratio")),
)
"""The columns of a table of rounds."""


@dataclass(frozen=True, slots=True, repr=False)
class Comparison:
    """What :func:`~llamatelemetry.bench.compare` has measured; shows itself as a table.

    Attributes:
        a: The first; its loads are the rounds.
        b: The second, likewise.
        names: What they are called.
        metrics: What they are compared by.
        differs: What the configuration of the second has otherwise than that of the
            first, by name; empty where the two are not configurations.

    Example:
        >>> from llamatelemetry.bench import compare
        >>> comparison = compare(
        ...     client, url, rounds=2, requests=2, max_tokens=4, progress=False
        ... )
        >>> len(comparison.a.loads), [ratio.metric for ratio in comparison.ratios]
        (2, ['output_tokens_per_second', 'time_to_first_token', ...])
        >>> print(comparison)
        b against a: 2 rounds, a b b a
        ...
    """

    a: BenchmarkResult
    b: BenchmarkResult
    names: tuple[str, str]
    metrics: tuple[str, ...]
    differs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratios(self) -> tuple[Ratio, ...]:
        """How many times the second has what the first has, for each metric."""
        return tuple(
            ratio_of(metric, self.a.loads, self.b.loads) for metric in self.metrics
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each round: every metric of both, and the ratio.

        Example:
            >>> from llamatelemetry.bench import compare
            >>> comparison = compare(
            ...     client, url, rounds=2, requests=1, max_tokens=4, progress=False
            ... )
            >>> [(row["round"], row["first"]) for row in comparison.rows()]
            [(1, 'a'), (2, 'b')]
        """
        rows = []
        pairs = zip(self.a.loads, self.b.loads, strict=True)
        for number, (one, other) in enumerate(pairs):
            row: dict[str, Any] = {
                "round": number + 1,
                "first": self.names[number % 2],
            }
            for metric in METRICS:
                below, above = value_of(one, metric), value_of(other, metric)
                ratio = above / below if below and above else None
                row |= {
                    f"{metric}_a": below,
                    f"{metric}_b": above,
                    f"{metric}_ratio": ratio,
                }
            rows.append(row)
        return rows

    def to_dataframe(self) -> Any:
        """Return the rows as a ``pandas.DataFrame``.

        Raises:
            SetupError: pandas is missing.

        Example:
            >>> from llamatelemetry.bench import compare
            >>> comparison = compare(
            ...     client, url, rounds=1, requests=1, max_tokens=4, progress=False
            ... )
            >>> comparison.to_dataframe()["round"].tolist()
            [1]
        """
        return to_dataframe(self.rows(), COLUMNS)

    @overload
    def to_json(self, path: None = None) -> str: ...
    @overload
    def to_json(self, path: FilePath) -> None: ...
    def to_json(self, path: FilePath | None = None) -> str | None:
        """Write all as JSON, or return it as text without a path.

        Args:
            path: The file, which is never half written; None for none.

        Raises:
            OSError: It cannot be written.

        Example:
            >>> from llamatelemetry.bench import Comparison, compare
            >>> comparison = compare(
            ...     client, url, rounds=1, requests=1, max_tokens=4, progress=False
            ... )
            >>> Comparison.from_json(comparison.to_json()) == comparison
            True
        """
        return _stored.written("comparison", _stored.plain(self), path)

    @classmethod
    def from_json(cls, source: FilePath) -> Self:
        """Return what :meth:`to_json` has written.

        Args:
            source: The file, or the text itself.

        Raises:
            ConfigurationError: It is something else.
            OSError: The file cannot be read.

        Example:
            >>> from llamatelemetry.bench import Comparison, compare
            >>> comparison = compare(
            ...     client, url, rounds=1, requests=1, max_tokens=4, progress=False
            ... )
            >>> comparison.to_json("comparison.json")
            >>> Comparison.from_json("comparison.json").names
            ('a', 'b')
        """
        return _stored.read("comparison", source, cls._from_fields)

    @classmethod
    def _from_fields(cls, value: Mapping[str, Any]) -> Self:
        first, second = value["names"]
        return cls(
            a=BenchmarkResult.from_fields(value["a"]),
            b=BenchmarkResult.from_fields(value["b"]),
            names=(first, second),
            metrics=checked_metrics(value["metrics"]),
            differs=dict(value.get("differs", {})),
        )

    def plot(self) -> Any:
        """Return a ``matplotlib.figure.Figure``: the ratio of each round, by metric.

        Twice as much is as far from 1 as half as much. The line is the median, the
        band its spread, and the dashed line at 1 is where there is no difference.

        Raises:
            SetupError: matplotlib is missing.

        Example:
            >>> from llamatelemetry.bench import compare
            >>> comparison = compare(
            ...     client, url, rounds=1, requests=1, max_tokens=4, progress=False
            ... )
            >>> len(comparison.plot().axes) == len(comparison.metrics)
            True
        """
        return _bench_chart.rounds_figure(
            self.names,
            [
                _bench_chart.Rounds(
                    title=_words(ratio.metric),
                    more_is_better=ratio.metric in MORE_IS_BETTER,
                    values=ratio.values,
                    median=ratio.median,
                    spread=ratio.spread,
                )
                for ratio in self.ratios
            ],
        )

    def __repr__(self) -> str:
        return _view.text(*self._shown())

    def _repr_html_(self) -> str:
        return _view.html(*self._shown())

    def _shown(self) -> tuple[str, list[str], list[_view.Table]]:
        first, second = (printable(name) for name in self.names)
        order = f"{first} {second} {second} {first}"
        title = f"{second} against {first}: {len(self.a.loads)} rounds, {order}"
        lines = [
            f"{first}: {self.a.title}; {self.a.lines[0]}",
            f"{second}: {self.b.title}; {self.b.lines[0]}",
        ]
        if self.differs:
            told = [f"{name}={value!r}" for name, value in self.differs.items()]
            lines.append(f"{second} differs: {printable(', '.join(told))}")
        sides = ((first, self.a), (second, self.b))
        lines += [f"{name}: {note}" for name, side in sides for note in side.cut_notes]
        work = [_work(name, side) for name, side in sides]
        ratios = list(map(_row, self.ratios))
        return title, lines, [(_HEADER, ratios), (_WORK_HEADER, work)]


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _row(ratio: Ratio) -> list[str]:
    shown = [_number(value) for value in (ratio.median, ratio.least, ratio.most)]
    spread = _view.UNKNOWN
    if ratio.spread is not None:
        low, high = ratio.spread
        spread = f"{low:.3f} to {high:.3f} ({ratio.level:.0%})"
    return [_words(ratio.metric), *shown, spread, ratio.verdict]


def _work(name: str, side: BenchmarkResult) -> list[str]:
    """Return what one side has done: without it a ratio says little."""
    errors: Counter[str] = Counter()
    for load in side.loads:
        errors.update(load.errors)
    answered = sum(load.completed for load in side.loads)
    tokens = mean_answer(side.loads)
    return [name, str(answered), _view.failed(errors), _view.number(tokens)]


def _number(value: float | None) -> str:
    return _view.UNKNOWN if value is None else f"{value:.3f}"
