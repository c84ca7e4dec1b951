"""Requests and readings of the cards, joined: who ran when, on which card."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from llamatelemetry.telemetry._attribution import (
    Attribution,
    CardSeries,
    Ran,
    attribute,
)
from llamatelemetry.telemetry._entries import COMPUTING, RequestEntry
from llamatelemetry.telemetry._kept import Kept, Tick

__all__ = ["Joined"]

_LONGEST_GAP = 5.0
"""Seconds between two samples that are bridged at least; else three intervals."""


class Joined:
    """What a timeline held at one moment, ordered so that costs are found quickly.

    Args:
        kept: The timeline's.
    """

    def __init__(self, kept: Kept) -> None:
        self.changes = kept.changes
        self._servers = dict(kept.servers)
        self._gap = max(_LONGEST_GAP, 3 * kept.interval)
        self._series = _series(kept.ticks)
        entries = [entry for entry in kept.requests if entry.kind in COMPUTING]
        entries.sort(key=lambda entry: entry.start)
        self._entries = entries
        self._starts = [entry.start for entry in entries]
        self._longer = _longer([entry.end for entry in entries])

    def attribute(self, entry: RequestEntry) -> Attribution:
        """Return what a request cost."""
        cards = self._cards_of(entry)
        meanwhile = self._meanwhile(entry)
        others = {
            index: [
                _ran(other) for other in meanwhile if index in self._cards_of(other)
            ]
            for index in cards
        }
        return attribute(
            entry.id,
            _ran(entry),
            {index: self._series[index] for index in cards},
            others,
            tokens=entry.completion_tokens,
            longest_gap=self._gap,
        )

    def _cards_of(self, entry: RequestEntry) -> Sequence[int]:
        used = self._servers.get(entry.server or "")
        if used is None:
            return list(self._series)
        return [index for index in used if index in self._series]

    def _meanwhile(self, entry: RequestEntry) -> list[RequestEntry]:
        """Return the other requests that ran at the same time, if only for a moment."""
        found = []
        place = bisect_left(self._starts, entry.end) - 1
        while place >= 0:
            other = self._entries[place]
            if other.end <= entry.start:  # so do all up to the next that ends later
                place = self._longer[place]
                continue
            if other.id != entry.id:
                found.append(other)
            place -= 1
        return found


def _longer(ends: Sequence[float]) -> list[int]:
    """Return for each the place of the last one before it that ends later, or -1."""
    found: list[int] = []
    later: list[int] = []
    for place, end in enumerate(ends):
        while later and ends[later[-1]] <= end:
            later.pop()
        found.append(later[-1] if later else -1)
        later.append(place)
    return found


def _series(ticks: Sequence[Tick]) -> Mapping[int, CardSeries]:
    """Return what each card has said, by its index."""
    indices = sorted({sample.index for _, samples in ticks for sample in samples})
    told = {index: CardSeries([], [], []) for index in indices}
    for now, samples in ticks:
        for sample in samples:
            series = told[sample.index]
            series.times.append(now)  # type: ignore[attr-defined] # lists, made above
            series.watts.append(sample.power_watts)  # type: ignore[attr-defined] # as above
            series.used_bytes.append(sample.memory_used_bytes)  # type: ignore[attr-defined] # as above
    return told


def _ran(entry: RequestEntry) -> Ran:
    return Ran(
        start=entry.start,
        end=entry.end,
        first=entry.first_token,
        tokens=entry.completion_tokens or len(entry.chunk_times or ()),
        token_times=entry.chunk_times or (),
    )
