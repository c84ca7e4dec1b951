"""Joules of the cards while a load runs: their power over time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from llamatelemetry.gpu.monitor import GPUMonitor, GPUSample
from llamatelemetry.telemetry._attribution import joules_under

__all__ = ["Meter", "idle_watts_of", "joules_of"]

_INTERVAL = 0.2
"""Seconds between samples of a monitor of our own: NVML's power moves no faster."""

Tick = tuple[GPUSample, ...]


def joules_of(ticks: Sequence[tuple[float, Tick]]) -> float | None:
    """Return the energy of all cards from the first tick to the last.

    Between two samples of a card its power is taken to change evenly. None where a card
    did not tell its power at some tick, or there are no two ticks: a part of a sum
    would be taken for the whole.

    Args:
        ticks: Seconds that only go forward, and what all cards said then; oldest first.
            A sample's own time is of a clock that may be set, while a load runs too.
    """
    if len(ticks) < 2:  # noqa: PLR2004 - an interval has two ends
        return None
    curves: list[list[tuple[float, float]]] = [[] for _ in ticks[0][1]]
    for moment, tick in ticks:
        if not tick or len(tick) != len(curves):  # cards were looked for anew
            return None
        for curve, sample in zip(curves, tick, strict=True):
            if sample.power_watts is None:
                return None
            curve.append((moment, sample.power_watts))
    return sum(joules_under(curve) for curve in curves)


def idle_watts_of(samples: Sequence[GPUSample]) -> float | None:
    """Return what all cards drew together before, if all of them did nothing then."""
    powers = [one.power_watts for one in samples if one.utilization_percent == 0]
    known = [power for power in powers if power is not None]
    return sum(known) if samples and len(known) == len(samples) else None


class Meter:
    """Measures the energy of the cards that a monitor watches.

    A context: without a monitor it watches the cards of this machine itself, if it is
    asked to, and a monitor that stands still runs inside.

    Args:
        monitor: Watches the cards; None for one of our own.
        local: Whether the server is on this machine; the cards here say nothing of
            another.

    Attributes:
        cards: The cards' names.
        idle_watts: What the cards drew before, or None.
    """

    def __init__(self, monitor: GPUMonitor | None, *, local: bool) -> None:
        if monitor is None and local:
            monitor = GPUMonitor(_INTERVAL)
        self._monitor = monitor
        self._began_it = False
        self._end: Callable[[], None] = _nothing
        self._ticks: list[tuple[float, Tick]] = []
        self._lock = threading.Lock()
        self.cards: tuple[str, ...] = ()
        self.idle_watts: float | None = None

    def __enter__(self) -> Self:
        monitor = self._monitor
        if monitor is None:
            return self
        self._began_it = not monitor.running
        monitor.start()
        self.cards = tuple(gpu.name for gpu in monitor.gpus)
        self.idle_watts = idle_watts_of(monitor.sample())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
        if self._monitor is not None and self._began_it:
            self._monitor.stop()

    def begin(self) -> None:
        """Note that a load begins now."""
        with self._lock:
            self._ticks = []
        if self._monitor is None or not self.cards:
            return
        self._end = self._monitor.subscribe(self._note)
        self._monitor.sample()

    def end(self) -> float | None:
        """Return the joules since begin(); None where nobody can tell."""
        if self._monitor is None or not self.cards:
            return None
        self._monitor.sample()
        self._end()
        with self._lock:
            return joules_of(self._ticks)

    def _note(self, tick: Tick) -> None:
        with self._lock:  # so that they are in the order of their times
            self._ticks.append((time.monotonic(), tick))


def _nothing() -> None:
    """Do nothing: no load has begun."""
