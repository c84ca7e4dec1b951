"""What a monitor has seen: samples and marks, kept up to a limit, and as tables."""

from __future__ import annotations

import json
import math
import operator
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from llamatelemetry._units import GIB
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.gpu._own_processes import own_bytes
from llamatelemetry.gpu._readings import Reading
from llamatelemetry.gpu.inventory import GPUInfo, as_number

__all__ = ["COLUMNS", "GPUSample", "Mark", "Recording", "sample_of", "shown"]

_MOST_MARKS = 1000
_BETWEEN_MARKS = "; "
_NO_REASON = "none"


@dataclass(frozen=True, slots=True)
class GPUSample:
    """What one card said at one time. None is what it cannot tell, never 0.

    Attributes:
        index: The card's place in CUDA's order, as in `detect_gpus`.
        time: Seconds since 1970, as ``time.time()`` counts them.
        memory_used_bytes: Bytes of its memory that processes hold; where the driver is
            older than 510, what the driver holds for itself too.
        memory_free_bytes: Bytes of it that neither a process nor the driver holds.
        memory_total_bytes: Bytes of it in all.
        utilization_percent: The part of the last moments (a sixth of a second to one)
            in which it computed, in percent.
        memory_utilization_percent: The part in which bytes of its memory were read or
            written, in percent; not how full it is.
        power_watts: What it draws, in watts.
        power_limit_watts: What it may draw.
        temperature_celsius: How warm its chip is, in degrees Celsius.
        graphics_clock_mhz: How fast its cores run, in MHz.
        memory_clock_mhz: How fast its memory runs, in MHz.
        throttle_reasons: Why it does not run faster: ``("software_power_cap",)``,
            ``("gpu_idle",)``; () for no reason.
        process_bytes: Bytes of its memory that our own processes hold. None where NVML
            does not tell, or names none of them: in most containers (Kaggle, Colab) it
            names processes by their ids outside, or not at all.
        problem: Why all the values are None, in a sentence; a lost card has one.

    Examples:
        >>> from llamatelemetry import GPUMonitor
        >>> sample = GPUMonitor().sample()[0]
        >>> sample.index, sample.memory_total_bytes, sample.power_limit_watts
        (0, 16106127360, 70.0)
        >>> sample.throttle_reasons
        ('gpu_idle',)
    """

    index: int
    time: float
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilization_percent: int | None = None
    memory_utilization_percent: int | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    temperature_celsius: int | None = None
    graphics_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    process_bytes: int | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened while cards were watched.

    Attributes:
        time: Seconds since 1970.
        text: What happened.

    Examples:
        >>> from llamatelemetry import GPUMonitor
        >>> GPUMonitor().mark("model loaded").text
        'model loaded'
    """

    time: float
    text: str


COLUMNS = (*(field.name for field in fields(GPUSample)), "mark")
"""The columns of a table of samples."""

Tick = tuple[GPUSample, ...]


def sample_of(
    index: int, now: float, reading: Reading, is_own: Callable[[int], bool]
) -> GPUSample:
    """Return what a card said as a sample.

    Args:
        index: The card's place in CUDA's order.
        now: Seconds since 1970.
        reading: What it said.
        is_own: Whether a process is one of ours.
    """
    return GPUSample(
        index=index,
        time=now,
        memory_used_bytes=reading.memory_used_bytes,
        memory_free_bytes=reading.memory_free_bytes,
        memory_total_bytes=reading.memory_total_bytes,
        utilization_percent=reading.utilization_percent,
        memory_utilization_percent=reading.memory_utilization_percent,
        power_watts=reading.power_watts,
        power_limit_watts=reading.power_limit_watts,
        temperature_celsius=reading.temperature_celsius,
        graphics_clock_mhz=reading.graphics_clock_mhz,
        memory_clock_mhz=reading.memory_clock_mhz,
        throttle_reasons=reading.throttle_reasons,
        process_bytes=own_bytes(reading.processes, is_own),
        problem=reading.problem,
    )


def shown(sample: GPUSample) -> str:
    """Return in a few words how full a card is: ``GPU 0: 6.7 of 15.0 GiB``."""
    used, total = sample.memory_used_bytes, sample.memory_total_bytes
    if used is None or total is None:
        return f"GPU {sample.index}: {'lost' if sample.problem else 'memory unknown'}"
    return f"GPU {sample.index}: {used / GIB:.1f} of {total / GIB:.1f} GiB"


class Recording:
    """Ticks and marks, each with the monotonic time by which they are put in order.

    Any thread may call anything.

    Args:
        history: How many ticks are kept; older ones go.

    Raises:
        ConfigurationError: That is no number of ticks.
    """

    def __init__(self, history: int) -> None:
        most = _checked_history(history)
        self._ticks: deque[tuple[float, Tick]] = deque(maxlen=most)
        self._marks: deque[tuple[float, Mark]] = deque(maxlen=_MOST_MARKS)
        self._dropped = -math.inf  # when the last tick was that has gone
        self._lock = threading.RLock()  # a finalizer may look while its thread adds

    def begin_anew(self) -> None:
        """Take a new lock, in a fork; another thread may have held the old one."""
        self._lock = threading.RLock()

    def add(self, now: float, tick: Tick) -> None:
        """Keep a tick; where there is no room, the oldest one goes."""
        with self._lock:
            if len(self._ticks) == self._ticks.maxlen:
                self._dropped = self._ticks[0][0]
            self._ticks.append((now, tick))

    def add_mark(self, now: float, mark: Mark) -> None:
        """Keep a mark."""
        with self._lock:
            self._marks.append((now, mark))

    @property
    def latest(self) -> Tick:
        """The last tick; () before the first."""
        with self._lock:
            return self._ticks[-1][1] if self._ticks else ()

    @property
    def marks(self) -> tuple[Mark, ...]:
        """The marks, oldest first."""
        with self._lock:
            return tuple(mark for _, mark in self._marks)

    def history(self, index: int | None, seconds: float | None) -> list[GPUSample]:
        """Return samples of all cards or of one, oldest first.

        Args:
            index: The card; None for all.
            seconds: Only what is no older than this, seen from the last tick.

        Raises:
            ConfigurationError: The seconds are negative, or no number.
        """
        longest = math.inf if seconds is None else as_number(seconds)
        if not longest >= 0:
            raise ConfigurationError(f"seconds is {seconds!r}, and must be 0 or more")
        with self._lock:
            ticks = list(self._ticks)
        since = ticks[-1][0] - longest if ticks else 0
        return [
            sample
            for now, tick in ticks
            if now >= since
            for sample in tick
            if index in (None, sample.index)
        ]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each sample; each mark stands on the tick after it.

        A mark whose tick has gone stands on none.
        """
        with self._lock:
            dropped, ticks = self._dropped, list(self._ticks)
            marks = [(now, mark) for now, mark in self._marks if now > dropped]
        return list(_rows(ticks, marks))

    def to_json(self, gpus: Sequence[GPUInfo]) -> str:
        """Return all as one JSON object."""
        with self._lock:
            ticks, marks = list(self._ticks), self.marks
        whole = {
            "gpus": [asdict(gpu) for gpu in gpus],
            "samples": [asdict(sample) for _, tick in ticks for sample in tick],
            "marks": [asdict(mark) for mark in marks],
        }
        return json.dumps(whole, allow_nan=False)


def _checked_history(history: int) -> int:
    try:
        ticks = operator.index(history)
    except TypeError:
        ticks = 0
    if isinstance(history, bool) or not 1 <= ticks <= sys.maxsize:
        raise ConfigurationError(
            f"history is {history!r}; it must be a number of ticks, at least 1"
        )
    return ticks


def _rows(
    ticks: Sequence[tuple[float, Tick]], marks: Sequence[tuple[float, Mark]]
) -> Iterator[dict[str, Any]]:
    waiting = deque(marks)
    for now, tick in ticks:
        texts = []
        while waiting and waiting[0][0] <= now:
            texts.append(waiting.popleft()[1].text)
        mark = _BETWEEN_MARKS.join(texts) if texts else None
        for sample in tick:
            yield _row(sample) | {"mark": mark}


def _row(sample: GPUSample) -> dict[str, Any]:
    """Return a sample as plain values; its reasons as one text."""
    row = {name: getattr(sample, name) for name in COLUMNS[:-1]}
    reasons = sample.throttle_reasons
    if reasons is not None:
        row["throttle_reasons"] = _BETWEEN_MARKS.join(reasons) or _NO_REASON
    return row
