"""What a timeline knows of a request, in a few words: for panels and marks. Pure."""

from __future__ import annotations

from llamatelemetry._units import format_memory
from llamatelemetry.telemetry._attribution import Attribution
from llamatelemetry.telemetry._entries import RequestEntry

__all__ = ["summary"]

_WHOLE = 0.995  # a share from which the request had the cards for itself


def summary(entry: RequestEntry, cost: Attribution | None = None) -> str:
    """Return where a request ran and what it cost; "" if nothing is known.

    Args:
        entry: The request.
        cost: What it cost; None to say nothing about that.
    """
    parts = [] if entry.slot is None else [f"slot {entry.slot}"]
    if cost is not None and cost.own_joules is not None:
        parts.append(f"{_short(cost.own_joules)} J")
        share = cost.share
        if share is not None and share < _WHOLE:
            parts[-1] += f" of {_short(cost.joules or 0.0)} J"
        if cost.joules_per_token is not None:
            parts.append(f"{_short(cost.joules_per_token)} J/token")
    peaks = {} if cost is None else cost.peak_memory_bytes
    known = [used for used in peaks.values() if used is not None]
    if known:
        parts.append(f"peak {format_memory(sum(known))}")
    return " · ".join(parts)


def _short(number: float) -> str:
    """Return a number with about three digits, and without an exponent."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"  # noqa: PLR2004 - three digits
