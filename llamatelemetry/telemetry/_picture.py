"""A timeline as what its figure shows: lines of cards, bars in lanes, marks. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from llamatelemetry._timeline_chart import Bar, Line, timeline_figure
from llamatelemetry.telemetry._entries import COMPUTING, RequestEntry
from llamatelemetry.telemetry._kept import Kept, Tick

__all__ = ["figure", "lanes"]

_TOLD = frozenset({"Ready", "Exited", "OutOfMemory", "Loading", "mark"})
"""Events that are drawn: what happens once, and matters."""


def figure(kept: Kept) -> Any:
    """Return the figure of a timeline."""
    ticks = kept.ticks
    entries = [entry for entry in kept.requests if entry.kind in COMPUTING]
    moments = [entry.start for entry in entries] + [tick[0] for tick in ticks[:1]]
    begin = min([kept.began, *moments])
    marks = [
        (event.time - begin, event.text)
        for event in kept.events
        if event.kind in _TOLD and event.time >= begin
    ]
    return timeline_figure(
        memory=_lines(ticks, kept.cards, begin, "memory_used_bytes"),
        power=_lines(ticks, kept.cards, begin, "power_watts"),
        lanes=[
            (name, [_bar(entry, begin) for entry in lane])
            for name, lane in lanes(entries)
        ],
        marks=marks,
    )


def _lines(
    ticks: Sequence[Tick], cards: Mapping[int, str], begin: float, name: str
) -> list[Line]:
    """Return a line for each card that tells a value."""
    points: dict[int, list[tuple[float, float]]] = {}
    for now, samples in ticks:
        for sample in samples:
            value = getattr(sample, name)
            told = math.nan if value is None else float(value)
            points.setdefault(sample.index, []).append((now - begin, told))
    return [
        Line(f"GPU {index}  {cards.get(index, '')}".strip(), told)
        for index, told in sorted(points.items())
        if not all(math.isnan(value) for _, value in told)
    ]


def _bar(entry: RequestEntry, begin: float) -> Bar:
    first = entry.first_token
    if entry.error is not None:
        outcome = "failed"
    else:
        outcome = "cancelled" if entry.finish_reason == "cancelled" else "done"
    return Bar(
        start=entry.start - begin,
        end=entry.end - begin,
        first=None if first is None else first - begin,
        outcome=outcome,
    )


def lanes(entries: Sequence[RequestEntry]) -> list[tuple[str, list[RequestEntry]]]:
    """Return requests in rows, none over another: by server and slot, if known.

    Those whose slot is not known are put into the first row of theirs that is free.
    """
    servers = list(dict.fromkeys(entry.server for entry in entries))
    names = [(server or "").partition("//")[2] for server in servers]
    if len(servers) == 1:
        names = [""]
    rows: dict[tuple[int, int, int], list[RequestEntry]] = {}
    ends: dict[tuple[int, int, int], float] = {}
    for entry in sorted(entries, key=lambda one: one.start):
        server = servers.index(entry.server)
        if entry.slot is not None:
            key = (server, 0, entry.slot)
        else:
            keys = ((server, 1, row) for row in count())
            key = next(one for one in keys if ends.get(one, 0.0) <= entry.start)
        rows.setdefault(key, []).append(entry)
        ends[key] = entry.end
    return [(_name(names[key[0]], key), rows[key]) for key in sorted(rows)]


def _name(server: str, key: tuple[int, int, int]) -> str:
    _, unknown, number = key
    return " ".join(filter(None, [server, "slot ?" if unknown else f"slot {number}"]))
