"""A timeline as rows and as JSON, and read back."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Literal

from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.gpu.monitor import GPUSample
from llamatelemetry.telemetry._attribution import Attribution
from llamatelemetry.telemetry._entries import RequestEntry, ServerEvent
from llamatelemetry.telemetry._kept import Kept

__all__ = ["COLUMNS", "Kind", "from_json_text", "rows", "to_json_text"]

Kind = Literal["requests", "samples", "events", "tokens"]

_FORMAT, _VERSION = "llamatelemetry timeline", 1

_REQUEST = tuple(
    item.name for item in fields(RequestEntry) if item.name != "chunk_times"
)
_EVENT = tuple(item.name for item in fields(ServerEvent) if item.name != "time")
_SAMPLE = tuple(item.name for item in fields(GPUSample) if item.name != "time")
_COSTS = ("joules", "own_joules", "joules_per_token", "peak_memory_bytes", "problem")

COLUMNS: Mapping[Kind, tuple[str, ...]] = {
    "requests": (
        *_REQUEST, "time", "duration", "tokens_per_second", *_COSTS,
    ),
    "samples": ("monotonic", "time", *_SAMPLE),
    "events": ("monotonic", "time", *_EVENT),
    "tokens": ("request", "chunk", "monotonic", "time", "since_start"),
}  # fmt: skip
"""The columns of each kind of rows."""


def rows(
    kept: Kept, kind: Kind, cost: Callable[[RequestEntry], Attribution]
) -> Iterator[dict[str, Any]]:
    """Return rows of plain values, oldest first.

    Args:
        kept: What there is.
        kind: Which rows.
        cost: What a request cost.

    Raises:
        ConfigurationError: There is no such kind.
    """
    makers: Mapping[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "requests": lambda: (
            _request(entry, kept.offset, cost(entry)) for entry in kept.requests
        ),
        "samples": lambda: _samples(kept),
        "events": lambda: (
            {
                "monotonic": event.time,
                "time": event.time + kept.offset,
                **{name: getattr(event, name) for name in _EVENT},
            }
            for event in kept.events
        ),
        "tokens": lambda: _tokens(kept),
    }
    if kind not in makers:
        raise ConfigurationError(
            f"kind is {kind!r}; it must be one of {', '.join(map(repr, makers))}"
        )
    return makers[kind]()


def _request(entry: RequestEntry, offset: float, cost: Attribution) -> dict[str, Any]:
    known = [each for each in cost.peak_memory_bytes.values() if each is not None]
    return {
        **{name: getattr(entry, name) for name in _REQUEST},
        "time": entry.start + offset,
        "duration": entry.duration,
        "tokens_per_second": entry.tokens_per_second,
        **{name: getattr(cost, name) for name in _COSTS},
        "peak_memory_bytes": sum(known) if known else None,
    }


def _samples(kept: Kept) -> Iterator[dict[str, Any]]:
    for now, samples in kept.ticks:
        for sample in samples:
            row = {name: getattr(sample, name) for name in _SAMPLE}
            reasons = sample.throttle_reasons
            if reasons is not None:
                row["throttle_reasons"] = "; ".join(reasons) or "none"
            yield {"monotonic": now, "time": sample.time, **row}


def _tokens(kept: Kept) -> Iterator[dict[str, Any]]:
    for entry in kept.requests:
        for chunk, when in enumerate(entry.chunk_times or ()):
            yield {
                "request": entry.id,
                "chunk": chunk,
                "monotonic": when,
                "time": when + kept.offset,
                "since_start": when - entry.start,
            }


def to_json_text(kept: Kept) -> str:
    """Return all that is kept as one JSON object."""
    whole = {
        "format": _FORMAT,
        "version": _VERSION,
        "began": kept.began,
        "offset": kept.offset,
        "interval": kept.interval,
        "cards": {str(index): name for index, name in kept.cards.items()},
        "servers": kept.servers,
        "dropped": kept.dropped,
        "requests": [
            {
                name: getattr(entry, name)
                for name in _REQUEST
                if getattr(entry, name) is not None
            }
            | {"chunk_times": _listed(entry.chunk_times)}
            for entry in kept.requests
        ],
        "events": [asdict(event) for event in kept.events],
        "samples": [
            {"monotonic": now, **asdict(sample)}
            for now, samples in kept.ticks
            for sample in samples
        ],
    }
    # Entries hold what JSON has a word for; what it has none for must not become text.
    return json.dumps(whole, allow_nan=False, ensure_ascii=False)


def _listed(times: Sequence[float] | None) -> list[float] | None:
    return None if times is None else list(times)


def from_json_text(text: str | bytes) -> Kept:
    """Return what :func:`to_json_text` has written.

    Args:
        text: That; or a file's bytes, whatever they are.

    Raises:
        ConfigurationError: It was not written by that.
    """
    try:
        return _read(json.loads(text))
    except ConfigurationError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"this is no timeline that to_json() has written ({error!r})"
        ) from error


def _read(whole: Mapping[str, Any]) -> Kept:
    if whole["format"] != _FORMAT or whole["version"] > _VERSION:
        raise ConfigurationError(
            f"this is version {whole['version']} of {whole['format']!r}, and "
            f"version {_VERSION} of {_FORMAT!r} is what can be read"
        )
    requests = [_entry(row) for row in whole["requests"]]
    events = [ServerEvent(**row) for row in whole["events"]]
    kept = Kept(max(len(requests), len(events), len(whole["samples"]), 1))
    kept.began, kept.offset = whole["began"], whole["offset"]
    kept.interval = whole["interval"]
    kept.cards = {int(index): name for index, name in whole["cards"].items()}
    kept.servers = {url: tuple(used) for url, used in whole["servers"].items()}
    kept.dropped.update(whole["dropped"])
    ticks: dict[float, list[GPUSample]] = {}
    for row in whole["samples"]:
        values = dict(row)
        if values["throttle_reasons"] is not None:
            values["throttle_reasons"] = tuple(values["throttle_reasons"])
        ticks.setdefault(values.pop("monotonic"), []).append(GPUSample(**values))
    kept.fill(requests, events, [(now, tuple(one)) for now, one in ticks.items()])
    return kept


def _entry(row: Mapping[str, Any]) -> RequestEntry:
    times = row["chunk_times"]
    held = {**row, "chunk_times": None if times is None else array("d", times)}
    return RequestEntry(**held)
