"""BenchmarkResult: what was measured, under which loads, of what."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self, overload

from llamatelemetry import _bench_chart
from llamatelemetry._tables import to_dataframe
from llamatelemetry.bench import _stored, _view
from llamatelemetry.bench._metrics import SPREADS, LoadResult, Statistics
from llamatelemetry.bench._stored import FilePath

__all__ = ["BenchmarkResult"]

_SPREAD_NAMES = tuple(item.name for item in fields(Statistics) if item.name != "count")
_PLAIN = (
    "concurrency",
    "request_rate",
    "requests",
    "completed",
    "duration",
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
    "requests_per_second",
    "output_tokens_per_second",
    "prompt_tokens_per_second",
    "total_tokens_per_second",
    "joules",
    "joules_per_output_token",
    "watts",
)
COLUMNS = (
    *_PLAIN,
    "errors",
    *(f"{name}_{one}" for name in SPREADS for one in _SPREAD_NAMES),
)
"""The columns of a table of loads."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BenchmarkResult:
    """What :func:`~llamatelemetry.bench.benchmark` has measured, as values and tables.

    Attributes:
        loads: What each load has brought, in order.
        address: What was measured.
        model: The model's name; None where the server does not say.
        build: The engine's build, or None.
        slots: Requests the servers serve at once, or None.
        prompts: "made", or "given" by the caller.
        prompt_tokens: Tokens of a made prompt, without what the chat template adds;
            None for given ones.
        shared_prefix: Tokens at the beginning that all made prompts have in common.
        max_tokens: Tokens that an answer may have.
        ignore_eos: Whether each answer has all of them.
        sampling: What else was asked for, as JSON has it.
        seed: What prompts and arrivals were made from.
        burstiness: How requests of an open loop were spread; 1 is a Poisson process.
        cards: The cards that were watched.
        idle_watts: Watts that all cards drew together before, if they did nothing then;
            it is in the joules too.
        version: Of this package.
        time: When it began, in seconds since 1970.

    Example:
        >>> from llamatelemetry.bench import benchmark
        >>> result = benchmark(
        ...     client, concurrency=(1, 2), requests=2, max_tokens=8, progress=False
        ... )
        >>> result.model, result.slots, [load.completed for load in result.loads]
        ('model', 2, [2, 2])
        >>> print(result)
        Benchmark of model at http://127.0.0.1:...
        load  answered  failed  requests/s  tokens/s out  tokens/s in  J/token out
        1 at once ...
    """

    loads: tuple[LoadResult, ...]
    address: str
    model: str | None = None
    build: str | None = None
    slots: int | None = None
    prompts: str = "made"
    prompt_tokens: int | None = None
    shared_prefix: int = 0
    max_tokens: int
    ignore_eos: bool = True
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    burstiness: float = 1.0
    cards: tuple[str, ...] = ()
    idle_watts: float | None = None
    version: str
    time: float

    def rows(self) -> list[dict[str, Any]]:
        """Return one row of plain values for each load; times in seconds.

        Statistics have a column each: ``time_to_first_token_median``.

        Example:
            >>> from llamatelemetry.bench import benchmark
            >>> result = benchmark(
            ...     client, concurrency=1, requests=2, max_tokens=8, progress=False
            ... )
            >>> row = result.rows()[0]
            >>> row["output_tokens"], row["time_to_first_token_median"] < 10
            (16, True)
        """
        return [_row(load) for load in self.loads]

    def to_dataframe(self) -> Any:
        """Return the rows as a ``pandas.DataFrame``.

        Raises:
            SetupError: pandas is missing.

        Example:
            >>> from llamatelemetry.bench import benchmark
            >>> result = benchmark(
            ...     client, concurrency=1, requests=2, max_tokens=8, progress=False
            ... )
            >>> result.to_dataframe()[["concurrency", "completed"]].values.tolist()
            [[1, 2]]
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
            >>> from llamatelemetry.bench import BenchmarkResult, benchmark
            >>> result = benchmark(
            ...     client, concurrency=1, requests=2, max_tokens=8, progress=False
            ... )
            >>> result.to_json("bench.json")
            >>> BenchmarkResult.from_json("bench.json") == result
            True
        """
        return _stored.written("benchmark", _stored.plain(self), path)

    @classmethod
    def from_json(cls, source: FilePath) -> Self:
        """Return what :meth:`to_json` has written.

        Args:
            source: The file, or the text itself.

        Raises:
            ConfigurationError: It is something else.
            OSError: The file cannot be read.

        Example:
            >>> from llamatelemetry.bench import BenchmarkResult, benchmark
            >>> result = benchmark(
            ...     client, concurrency=1, requests=2, max_tokens=8, progress=False
            ... )
            >>> BenchmarkResult.from_json(result.to_json()).loads[0].completed
            2
        """
        return _stored.read("benchmark", source, cls.from_fields)

    @classmethod
    def from_fields(cls, value: Mapping[str, Any]) -> Self:
        """Return a result from its fields, as JSON has them.

        Args:
            value: The fields.

        Example:
            >>> import json
            >>> from llamatelemetry.bench import BenchmarkResult, benchmark
            >>> result = benchmark(
            ...     client, concurrency=1, requests=2, max_tokens=8, progress=False
            ... )
            >>> BenchmarkResult.from_fields(json.loads(result.to_json())) == result
            True
        """
        known = _stored.known_fields(cls, value)
        known["loads"] = tuple(map(_stored.load_from, known["loads"]))
        known["cards"] = tuple(known["cards"])
        return cls(**known)

    def plot(self) -> Any:
        """Return a ``matplotlib.figure.Figure``: tokens per second, and times, by load.

        Of times it shows medians, and how far the 90th percentile is above them.

        Raises:
            SetupError: matplotlib is missing.

        Example:
            >>> from llamatelemetry.bench import benchmark
            >>> result = benchmark(
            ...     client, concurrency=(1, 2), requests=2, max_tokens=8, progress=False
            ... )
            >>> [axes.get_title(loc="left") for axes in result.plot().axes]
            ['Tokens per second', 'Time to first token', 'Time per output token']
        """
        in_open_loop = any(load.concurrency is None for load in self.loads)
        places = [
            float((load.request_rate if in_open_loop else load.concurrency) or 0)
            for load in self.loads
        ]
        return _bench_chart.loads_figure(
            "requests per second" if in_open_loop else "requests at once",
            places,
            [load.output_tokens_per_second for load in self.loads],
            [_times(load.time_to_first_token) for load in self.loads],
            [_times(load.time_per_output_token) for load in self.loads],
        )

    def __repr__(self) -> str:
        return _view.text(*self._shown())

    def _repr_html_(self) -> str:
        return _view.html(*self._shown())

    def _shown(self) -> tuple[str, list[str], list[_view.Table]]:
        return self.title, self.lines, _view.tables_of(self.loads)

    @property
    def title(self) -> str:
        """What was measured, in a line."""
        return f"Benchmark of {self.model or 'a model'} at {self.address}"

    @property
    def lines(self) -> list[str]:
        """How it was measured, in sentences."""
        when = dt.datetime.fromtimestamp(self.time, dt.UTC)
        slots = None if self.slots is None else f"slots {self.slots}"
        asked = "prompts as given"
        if self.prompt_tokens is not None:
            asked = f"prompts of {self.prompt_tokens} tokens and the template's"
        if self.shared_prefix:
            asked += f", the first {self.shared_prefix} the same in all"
        most = "" if self.ignore_eos else "at most "
        told = [
            *filter(None, [self.build and f"build {self.build}", slots]),
            f"{asked}, answers of {most}{self.max_tokens}",
            f"llamatelemetry {self.version}, {when:%Y-%m-%d %H:%M} UTC",
        ]
        lines = ["; ".join(told)]
        if self.cards:
            idle = self.idle_watts
            known = "" if idle is None else f"; {idle:.1f} W at rest before"
            lines.append(f"cards: {', '.join(self.cards)}{known}")
        return [*lines, *self.cut_notes, *_view.notes_of(self.loads)]

    @property
    def cut_notes(self) -> list[str]:
        """What is to be said of answers shorter than they were to be, in sentences."""
        return _view.cut_notes(self.loads, self.max_tokens) if self.ignore_eos else []


def _times(spread: Statistics | None) -> tuple[float, float] | None:
    return None if spread is None else (spread.median, spread.p90)


def _row(load: LoadResult) -> dict[str, Any]:
    row = {name: getattr(load, name) for name in _PLAIN}
    row["errors"] = _view.failed(load.errors) if load.errors else None
    for name in SPREADS:
        spread = getattr(load, name)
        for one in _SPREAD_NAMES:
            row[f"{name}_{one}"] = None if spread is None else getattr(spread, one)
    return row
