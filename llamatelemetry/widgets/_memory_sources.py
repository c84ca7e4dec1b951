"""Whose memory a chart shows: the cards', or the host's where there is no card."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence

from llamatelemetry._chart import Layout, duration
from llamatelemetry._tables import to_csv_text
from llamatelemetry._units import GIB, format_memory, printable
from llamatelemetry.gpu._samples import GPUSample
from llamatelemetry.gpu.inventory import GPUInfo
from llamatelemetry.gpu.monitor import GPUMonitor
from llamatelemetry.plots import Device, Trace
from llamatelemetry.server._linux import available_memory, total_memory
from llamatelemetry.widgets._bands import (
    HOST,
    Expected,
    bands_of,
    before_bytes,
    needed_bytes,
)

__all__ = ["CardSource", "HostSource", "Source", "aligned"]

_NOT_TOLD = "not told"
_LEAST_GAP = 5.0  # seconds without a sample after which a line is broken
_HOST_HISTORY = 7200
_HOST_COLUMNS = ("time", "memory_used_bytes", "memory_total_bytes")

Marks = tuple[tuple[float, str], ...]
Row = tuple[str, ...]


class Source(ABC):
    """What a chart and its table show. Not for two threads at once.

    Attributes:
        now: When the newest sample was taken.
        window: Seconds that are shown.
        traces: The lines.
        marks: When, and what happened.
        header: The names of the table's columns.
    """

    header: Row

    def __init__(self) -> None:
        self.now = 0.0
        self.window = 0.0
        self.traces: list[Trace] = []
        self.marks: Marks = ()
        self._expected: Expected = {}
        self._devices: tuple[Device, ...] = ()

    @property
    def devices(self) -> tuple[Device, ...]:
        """What stands still in the chart."""
        return self._devices

    def look(self, window: float, expected: Expected) -> bool:
        """Take in what is new; return whether anything is."""
        changed = self._take_in(window) or expected != self._expected
        self._expected, self.window = expected, window
        if changed:
            self._devices = self._describe()
        return changed

    @abstractmethod
    def _take_in(self, window: float) -> bool:
        """Bring lines and marks up to date; return whether anything is new."""

    @abstractmethod
    def _describe(self) -> tuple[Device, ...]:
        """Return what stands still."""

    @property
    @abstractmethod
    def rows(self) -> list[Row]:
        """The table: one row for each device, as words."""

    @property
    @abstractmethod
    def sentences(self) -> list[str]:
        """What the table has no room for."""

    @property
    @abstractmethod
    def subject(self) -> str:
        """Whose memory it is, for a sentence."""

    @abstractmethod
    def csv(self) -> str:
        """Return everything that was seen, as CSV."""

    def caption(self) -> str:
        """Return what the chart shows, in words, for who does not see it."""
        told = f"Memory used {self.subject} over the last {duration(self.window)}"
        labels = dict.fromkeys(
            band.label for device in self.devices for band in device.bands
        )
        if not labels:
            return f"{told}."
        return f"{told}; the bands are what the plan expects: {', '.join(labels)}."

    def _new_traces(self, count: int, window: float, interval: float) -> None:
        step = window / Layout(max(count, 1)).plot_width
        gap = max(_LEAST_GAP, 4 * interval, 4 * step)
        self.traces = [Trace(step, gap) for _ in range(count)]


class CardSource(Source):
    """The cards that a monitor watches."""

    header = ("card", "used", "plan expects", "computing", "temperature", "power")

    def __init__(self, monitor: GPUMonitor) -> None:
        super().__init__()
        self._monitor = monitor
        self._gpus: tuple[GPUInfo, ...] = ()
        self._latest: Mapping[int, GPUSample] = {}
        self._totals: dict[int, int] = {}
        self._usable: dict[int, int] = {}

    @property
    def subject(self) -> str:
        """Whose memory it is, for a sentence."""
        count = len(self._gpus)
        return "on the GPU" if count == 1 else f"on {count} GPUs"

    def _take_in(self, window: float) -> bool:
        monitor = self._monitor
        latest = {sample.index: sample for sample in monitor.latest()}
        marks = _marks_of(monitor)
        if monitor.gpus != self._gpus:  # what was learnt is of other cards
            self._totals, self._usable = {}, {}
        anew = monitor.gpus != self._gpus or window != self.window
        if not anew and latest == self._latest and marks == self.marks:
            return False
        self._gpus, self._latest, self.marks = monitor.gpus, latest, marks
        if anew:
            self._new_traces(len(self._gpus), window, monitor.interval)
        self.now = max((sample.time for sample in latest.values()), default=self.now)
        self._follow(window)
        return True

    def _follow(self, window: float) -> None:
        """Add to the lines what has come since, and drop what is too old."""
        last = max((trace.last for trace in self.traces), default=-math.inf)
        if last > self.now:  # the clock was set back
            self._new_traces(len(self._gpus), window, self._monitor.interval)
            last = -math.inf
        traces = {
            gpu.index: trace for gpu, trace in zip(self._gpus, self.traces, strict=True)
        }
        # A little more than what is missing: the two clocks are not quite the same.
        since = min(window, self.now - last) + self._monitor.interval
        for sample in self._monitor.history(seconds=since):
            if sample.index in traces and sample.time > last:
                traces[sample.index].add(sample.time, sample.memory_used_bytes)
        for trace in self.traces:
            trace.forget(self.now - window)

    def _describe(self) -> tuple[Device, ...]:
        for sample in self._latest.values():
            if sample.memory_total_bytes is not None:
                self._totals[sample.index] = sample.memory_total_bytes
            used, free = sample.memory_used_bytes, sample.memory_free_bytes
            if used is not None and free is not None:
                # Once: a reserve that moves by a page would be another picture.
                self._usable.setdefault(sample.index, used + free)
        return tuple(self._device(gpu) for gpu in self._gpus)

    def _device(self, gpu: GPUInfo) -> Device:
        places = self._expected.get(gpu.index, ())
        sample = self._latest.get(gpu.index)
        lost = " (does not answer)" if sample and sample.problem else ""
        return Device(
            title=_name(gpu) + lost,
            total_bytes=self._totals.get(gpu.index),
            before_bytes=before_bytes(places, self._usable.get(gpu.index)),
            bands=bands_of(places),
        )

    @property
    def rows(self) -> list[Row]:
        """The table: one row for each card."""
        return [self._row(gpu) for gpu in self._gpus]

    def _row(self, gpu: GPUInfo) -> Row:
        sample = self._latest.get(gpu.index)
        needed = needed_bytes(self._expected.get(gpu.index, ()))
        plan = "-" if needed is None else format_memory(needed)
        if sample is None:
            return (_name(gpu), "not seen yet", plan, "", "", "")
        if sample.problem:
            return (_name(gpu), "does not answer", plan, "", "", "")
        used, total = sample.memory_used_bytes, sample.memory_total_bytes
        return (
            _name(gpu),
            _share(used, total),
            plan,
            _with_unit(sample.utilization_percent, " %"),
            _with_unit(sample.temperature_celsius, " °C"),
            _power(sample),
        )

    @property
    def sentences(self) -> list[str]:
        """Why cards do not answer."""
        return [
            f"GPU {sample.index}: {printable(sample.problem)}"
            for sample in self._latest.values()
            if sample.problem
        ]

    def csv(self) -> str:
        """Return all that the monitor remembers."""
        return self._monitor.to_csv()


class HostSource(Source):
    """The host's memory, sampled each time it is looked at.

    Args:
        monitor: Whose marks are shown.
        interval: Seconds between two looks, as a rule.
    """

    header = ("memory", "used", "plan expects")

    def __init__(self, monitor: GPUMonitor, interval: float) -> None:
        super().__init__()
        self._monitor = monitor
        self._interval = interval
        self._seen: deque[tuple[float, int | None]] = deque(maxlen=_HOST_HISTORY)
        self._total = total_memory()

    @property
    def subject(self) -> str:
        """Whose memory it is, for a sentence."""
        return "on the host"

    def _take_in(self, window: float) -> bool:
        free = available_memory()
        known = self._total is not None and free is not None
        used = max((self._total or 0) - (free or 0), 0) if known else None
        self.marks = _marks_of(self._monitor)
        self.now = time.time()
        self._seen.append((self.now, used))
        if window != self.window:
            self._new_traces(1, window, self._interval)
            for moment, bytes_used in self._seen:
                self.traces[0].add(moment, bytes_used)
        else:
            self.traces[0].add(self.now, used)
        self.traces[0].forget(self.now - window)
        return True

    def _describe(self) -> tuple[Device, ...]:
        places = self._expected.get(HOST, ())
        before = before_bytes(places, self._total)
        return (Device("Host memory", self._total, before, bands_of(places)),)

    @property
    def rows(self) -> list[Row]:
        """The table, of one row."""
        needed = needed_bytes(self._expected.get(HOST, ()))
        used = self._seen[-1][1] if self._seen else None
        plan = "-" if needed is None else format_memory(needed)
        return [("host", _share(used, self._total), plan)]

    @property
    def sentences(self) -> list[str]:
        """What counts as used."""
        return [
            "What the host only caches counts as free, such as a mapped model file."
        ]

    def csv(self) -> str:
        """Return all that was seen."""
        rows = [
            dict(zip(_HOST_COLUMNS, (moment, used, self._total), strict=True))
            for moment, used in self._seen
        ]
        return to_csv_text(rows, _HOST_COLUMNS)


def _marks_of(monitor: GPUMonitor) -> Marks:
    return tuple((mark.time, mark.text) for mark in monitor.marks)


def _name(gpu: GPUInfo) -> str:
    return f"GPU {gpu.index}  {printable(gpu.name)}".rstrip()


def _share(used: int | None, total: int | None) -> str:
    if used is None or total is None:
        return _NOT_TOLD
    share = 100 * used / max(total, 1)
    return f"{used / GIB:.1f} of {total / GIB:.1f} GiB ({share:.0f} %)"


def _with_unit(value: float | None, unit: str) -> str:
    return _NOT_TOLD if value is None else f"{value:.0f}{unit}"


def _power(sample: GPUSample) -> str:
    if sample.power_watts is None or sample.power_limit_watts is None:
        return _with_unit(sample.power_watts, " W")
    return f"{sample.power_watts:.0f} of {sample.power_limit_watts:.0f} W"


def aligned(header: Sequence[str], rows: Sequence[Row]) -> str:
    """Return a table as text."""
    lines = [tuple(header), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )
