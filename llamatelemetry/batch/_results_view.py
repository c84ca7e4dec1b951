"""The results of a batch for people: as text and as HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamatelemetry._units import printable
from llamatelemetry.gguf import _html

if TYPE_CHECKING:
    from llamatelemetry.batch.results import Results

__all__ = ["html", "text", "title"]

_INDENT = 10
_LONGEST = 300  # characters of a line
_MOST_FAILURES = 3

_ENDS = {
    "done": "all rows done",
    "budget": "its budget was over",
    "interrupted": "it was interrupted",
    "failed": "an error ended it",
}


def title(results: Results) -> str:
    """Return in words how much is done."""
    answered = f"{results.done:,} rows answered"
    if results.kept:
        now = results.done - results.kept
        answered += f" ({now:,} now, {results.kept:,} before)"
    told = [answered]
    if results.failed:
        told.append(f"{results.failed:,} failed")
    if results.left:
        told.append(f"{results.left:,} left")
    return ", ".join(told)


def text(results: Results) -> str:
    """Return results as lines."""
    lines = [f"Results: {title(results)}"]
    lines += [f"{name:{_INDENT}}{said}" for name, said in _rows(results)]
    return "\n".join(lines)


def html(results: Results) -> str:
    """Return results as HTML, everything in it escaped."""
    good = True if results.ended == "done" and not results.failed else None
    return _html.panel(
        "Results",
        str(results.path),
        _html.verdict(title(results), good=good),
        _html.table(_rows(results), left=2),
    )


def _end(results: Results) -> str:
    if results.ended == "done":
        return _ENDS["done"]
    anew = ", with the rows given anew," if results.once else ""
    return f"{_ENDS[results.ended]}; the same call{anew} goes on from here"


def _rows(results: Results) -> list[tuple[str, str]]:
    rows = [
        ("ended", _end(results)),
        ("file", printable(str(results.path), _LONGEST)),
        ("took", f"{results.seconds:,.1f} s"),
    ]
    if results.rows_per_second is not None:
        speed = f"{results.rows_per_second:,.2f} rows/s"
        if results.tokens_per_second:
            speed += f", {results.tokens_per_second:,.1f} tokens/s"
        tokens = f"{results.prompt_tokens:,} read, {results.completion_tokens:,} made"
        rows += [("speed", speed), ("tokens", tokens)]
    if results.failed:
        for row in results.failures(_MOST_FAILURES):
            error = row.error or {}
            said = f"row {row.id}: {error.get('type')}: {error.get('message')}"
            rows.append(("failed", printable(said, _LONGEST)))
    return rows
