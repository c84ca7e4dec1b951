"""Results for people: tables as text and as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llamatelemetry._units import printable
from llamatelemetry.bench._metrics import LoadResult, Statistics
from llamatelemetry.gguf import _html

__all__ = ["LOAD_HEADER", "html", "load_row", "spread_rows", "text"]

Rows = Sequence[Sequence[str]]
Table = tuple[Sequence[str], Rows]

UNKNOWN = "-"
LOAD_HEADER = (
    "load",
    "answered",
    "failed",
    "requests/s",
    "tokens/s out",
    "tokens/s in",
    "J/token out",
)
_STATISTICS = ("mean", "median", "p90", "p99", "std")
SPREAD_HEADER = ("milliseconds", *_STATISTICS)
RATE_HEADER = ("tokens per second", *_STATISTICS)

_TIMES = {
    "time_to_first_token": "time to first token",
    "inter_token_latency": "inter-token latency",
    "time_per_output_token": "time per output token",
    "end_to_end_latency": "end to end",
    "server_prompt_time": "server: prompt",
    "server_generation_time": "server: answer",
    "lateness": "sent late by",
}
_LEAST_SHOWN_WHOLE = 100.0
_WHY_TWO = (
    "The server counts from when a slot takes a request, so its times have neither "
    "the wait for a slot nor the way there and back in them."
)


def number(value: float | None) -> str:
    """Return a number with three digits or more; "-" where there is none."""
    if value is None:
        return UNKNOWN
    if abs(value) >= _LEAST_SHOWN_WHOLE:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"  # noqa: PLR2004 - a digit


def load_row(load: LoadResult) -> list[str]:
    """Return a load's row of the first table."""
    return [
        load.name,
        str(load.completed),
        failed(load.errors),
        number(load.requests_per_second),
        number(load.output_tokens_per_second),
        number(load.prompt_tokens_per_second),
        number(load.joules_per_output_token),
    ]


def failed(errors: Mapping[str, int]) -> str:
    """Return how many failed, and with what."""
    named = ", ".join(f"{count} {name}" for name, count in sorted(errors.items()))
    return printable(named) or "0"


def spread_rows(load: LoadResult) -> list[list[str]]:
    """Return the rows of the second table: a load's times, in milliseconds."""
    rows = []
    for name, words in _TIMES.items():
        spread: Statistics | None = getattr(load, name)
        if spread is not None:
            rows.append([f"{load.name}: {words}", *_shown(spread, 1000)])
    return rows


def rate_rows(loads: Sequence[LoadResult]) -> list[list[str]]:
    """Return the rows of the third table: how fast the server says an answer came."""
    return [
        [f"{load.name}: server", *_shown(load.server_tokens_per_second)]
        for load in loads
        if load.server_tokens_per_second is not None
    ]


def _shown(spread: Statistics, factor: float = 1) -> list[str]:
    return [number(getattr(spread, name) * factor) for name in _STATISTICS]


def tables_of(loads: Sequence[LoadResult]) -> list[Table]:
    """Return the tables of some loads."""
    spreads = [row for load in loads for row in spread_rows(load)]
    tables: list[Table] = [
        (LOAD_HEADER, [load_row(load) for load in loads]),
        (SPREAD_HEADER, spreads),
    ]
    rates = rate_rows(loads)
    return [*tables, (RATE_HEADER, rates)] if rates else tables


def notes_of(loads: Sequence[LoadResult]) -> list[str]:
    """Return what one should know about the tables."""
    told = any(load.server_prompt_time is not None for load in loads)
    return [_WHY_TWO] if told else []


def cut_notes(loads: Sequence[LoadResult], most: int) -> list[str]:
    """Return what is to be said of answers that were to have all their tokens.

    Where the server does not count, pieces were, and a piece may be several tokens.

    Args:
        loads: The loads.
        most: Tokens that each answer was to have.
    """
    short = [
        f"{load.output_tokens / load.completed:.4g} ({load.name})"
        for load in loads
        if load.prompt_tokens is not None and load.output_tokens < load.completed * most
    ]
    if not short:
        return []
    means = ", ".join(dict.fromkeys(short))
    return [
        f"answers were cut: {means} tokens in the mean, not {most}; the context is "
        "full, or the server ends answers though ignore_eos is asked for"
    ]


def text(title: str, lines: Sequence[str], tables: Sequence[Table]) -> str:
    """Return a result as lines of text: a title, sentences, tables."""
    parts = [title, *lines]
    for header, rows in tables:
        parts += ["", *_aligned([list(header), *map(list, rows)])]
    return "\n".join(parts)


def html(title: str, lines: Sequence[str], tables: Sequence[Table]) -> str:
    """Return a result as HTML, everything in it escaped."""
    first, *more = lines or [""]
    return _html.panel(
        title,
        first,
        *(_html.verdict(line, good=None) for line in more),
        *(_html.table(rows, header=header, whole=True) for header, rows in tables),
    )


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
