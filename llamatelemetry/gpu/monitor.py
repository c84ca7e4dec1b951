"""GPUMonitor: what the cards are doing, seen again and again beside other work."""

from __future__ import annotations

import atexit
import logging
import math
import operator
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol, Self, overload

from llamatelemetry._files import write_whole
from llamatelemetry._tables import to_csv_text, to_dataframe
from llamatelemetry._units import GIB
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.gpu._own_processes import ProcessIds, own_bytes, own_processes
from llamatelemetry.gpu._readings import Reading, Readings
from llamatelemetry.gpu._samples import COLUMNS, GPUSample, Mark, Recording
from llamatelemetry.gpu.inventory import GPUInfo, detect_gpus, measure_driver

__all__ = ["GPUMonitor", "GPUSample", "Mark"]

_logger = logging.getLogger(__name__)

_LEAST_INTERVAL, _LONGEST_INTERVAL = 0.01, 86_400.0
_LONGEST_STOP = 5.0
"""Seconds a stop waits for a driver that does not answer."""
_LONGEST_LAST_STOP = 2.0
"""The same at the program's end."""
_NOT_LOOKED = "The cards were not looked for yet; start() does."

Callback = Callable[[tuple[GPUSample, ...]], object]
FilePath = str | os.PathLike[str]


class Clock(Protocol):
    """The time by which a monitor goes; a test drives one by hand."""

    def time(self) -> float:
        """Seconds since 1970."""

    def monotonic(self) -> float:
        """Seconds that only go forward."""

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for an event, no longer than so many seconds; whether it came."""


class _SystemClock:
    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait(seconds)


class _Subscriber:
    """One callback, which is complained about once."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self._has_failed = False

    def tell(self, samples: tuple[GPUSample, ...]) -> None:
        """Call it; what it raises is logged the first time."""
        try:
            self._callback(samples)
        except Exception:
            if not self._has_failed:
                self._has_failed = True
                _logger.exception(
                    "%r, which a GPUMonitor calls with each tick, has failed; it is "
                    "called again, and its next failures are not told",
                    self._callback,
                )


class GPUMonitor:
    """Samples of the cards this process may use, taken in a thread of its own.

    ::

        with GPUMonitor() as monitor:
            ...                                # the work
            monitor.mark("first request")
            ...
        monitor.to_dataframe().groupby("index").memory_used_bytes.max()

    The thread is a daemon, ``llamatelemetry-gpu-monitor``, which takes its first sample
    at once. Ticks keep their distance from the start: what takes long delays none of
    the later ones, and ticks that were missed are left out. Any thread may call any
    method. Without a driver or a card everything works and there is no sample.
    A fork has the history, and does not run.

    Args:
        interval: Seconds from tick to tick; at least 0.01, at most a day.
        history: How many ticks are kept; with one each second, 3600 are an hour. A
            tick takes less than 1 kB for each card.
        process_ids: The processes whose memory is `GPUSample.process_bytes`: ids, or a
            function that returns them, called at each tick. None: this Python process
            and its descendants, such as the servers it has started.

    Raises:
        ConfigurationError: A value cannot work.
    """

    def __init__(
        self,
        interval: float = 1.0,
        *,
        history: int = 3600,
        process_ids: ProcessIds | None = None,
        _clock: Clock | None = None,
    ) -> None:
        self._interval = _checked_interval(interval)
        self._recording = Recording(_checked_history(history))
        self._own = own_processes(process_ids)
        self._clock: Clock = _clock or _SystemClock()
        self._gpus: tuple[GPUInfo, ...] = ()
        self._problem: str | None = _NOT_LOOKED
        self._readings: Readings | None = None
        self._subscribers: list[_Subscriber] = []
        self._has_failed = False
        self._begin_anew()
        _monitors.add(self)

    def _begin_anew(self) -> None:
        """Be stopped, with locks that nobody holds: at first, and in a fork."""
        self._lock = threading.RLock()  # for what start, stop and subscribe change
        self._sampling = threading.RLock()  # one sample at a time, in order
        self._telling = threading.local()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._recording.begin_anew()

    @property
    def gpus(self) -> tuple[GPUInfo, ...]:
        """The cards as they were found at the start."""
        return self._gpus

    @property
    def problem(self) -> str | None:
        """Why there is no card, or which are left out; None if nothing is wrong."""
        return self._problem

    @property
    def interval(self) -> float:
        """Seconds from tick to tick."""
        return self._interval

    @property
    def running(self) -> bool:
        """Whether the thread takes samples."""
        with self._lock:
            thread = self._thread
        return thread is not None and thread.is_alive()

    def start(self) -> None:
        """Look for the cards and take samples from now on; nothing if it runs already.

        What was seen before is kept.

        Raises:
            SetupError: NVIDIA's nvidia-ml-py is missing.
        """
        if self.running:
            return
        self._find_cards()
        with self._lock:
            if self.running:  # another thread was faster
                return
            self._stopping = threading.Event()
            self._thread = threading.Thread(
                target=self._run,
                args=(self._stopping,),
                name="llamatelemetry-gpu-monitor",
                daemon=True,
            )
            # After NVML was opened, so that this comes before NVML is shut down.
            atexit.register(self._stop_at_exit)
            self._thread.start()

    def stop(self) -> None:
        """Take no more samples, and wait for the one that is being taken.

        Nothing if it does not run. A subscriber may call it; its thread then ends after
        it. A driver that does not answer is waited for 5 seconds.
        """
        self._stop(_LONGEST_STOP)

    def _stop(self, longest: float) -> None:
        with self._lock:
            thread, self._thread = self._thread, None
            self._stopping.set()
            atexit.unregister(self._stop_at_exit)
        others = thread is not None and thread is not threading.current_thread()
        if thread is not None and others and thread.is_alive():
            thread.join(longest)

    def _stop_at_exit(self) -> None:
        self._stop(_LONGEST_LAST_STOP)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def sample(self) -> tuple[GPUSample, ...]:
        """Take one sample now, in this thread, whether the monitor runs or not.

        It is kept and told to the subscribers like any other, but for one that calls
        this itself.

        Returns:
            One sample for each card; () if there is none.

        Raises:
            SetupError: NVIDIA's nvidia-ml-py is missing.
        """
        samples = self._take()
        self._tell(samples)
        return samples

    def latest(self) -> tuple[GPUSample, ...]:
        """Return the last sample of each card; () before the first."""
        return self._recording.latest

    def history(
        self, index: int | None = None, seconds: float | None = None
    ) -> list[GPUSample]:
        """Return what was seen, oldest first.

        Args:
            index: The card, in CUDA's order; None for all.
            seconds: Only the last so many seconds before the newest sample.

        Raises:
            ConfigurationError: The seconds are negative, or no number.
        """
        if seconds is not None and not seconds >= 0:
            raise ConfigurationError(f"seconds is {seconds!r}, and must be 0 or more")
        return self._recording.history(index, seconds)

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Have a function called with each tick's samples.

        It is called in the thread that takes the sample, the monitor's as a rule, and
        while it runs there is no next tick. What it raises is logged, once.

        Returns:
            What ends it; harmless when called again.

        Raises:
            ConfigurationError: It is no function.
        """
        if not callable(callback):
            raise ConfigurationError(
                f"callback is {callback!r}, and must be a function of the samples"
            )
        subscriber = _Subscriber(callback)
        with self._lock:
            self._subscribers = [*self._subscribers, subscriber]

        def unsubscribe() -> None:
            with self._lock:
                self._subscribers = [
                    one for one in self._subscribers if one is not subscriber
                ]

        return unsubscribe

    def mark(self, text: str) -> Mark:
        """Note that something happens now; the last 1000 marks are kept.

        Raises:
            ConfigurationError: It is no text.
        """
        if not isinstance(text, str):
            raise ConfigurationError(f"a mark is {text!r}, and must be a text")
        mark = Mark(self._clock.time(), text)
        self._recording.add_mark(self._clock.monotonic(), mark)
        return mark

    @property
    def marks(self) -> tuple[Mark, ...]:
        """The marks, oldest first."""
        return self._recording.marks

    def rows(self) -> list[dict[str, Any]]:
        """Return one row of plain values for each sample, oldest first.

        Beside the fields of `GPUSample` there is ``mark``: the texts of the marks made
        since the tick before, on the rows of all cards. ``throttle_reasons`` is one
        text, "none" where there is no reason.
        """
        return self._recording.rows()

    def to_dataframe(self) -> Any:
        """Return the rows as a ``pandas.DataFrame``, one column for each field.

        All marks, those after the last sample too, are in its ``attrs["marks"]``.

        Raises:
            SetupError: pandas is missing.
        """
        frame = to_dataframe(self.rows(), COLUMNS)
        frame.attrs["marks"] = [
            {"time": mark.time, "text": mark.text} for mark in self.marks
        ]
        return frame

    @overload
    def to_csv(self, path: None = None) -> str: ...
    @overload
    def to_csv(self, path: FilePath) -> None: ...
    def to_csv(self, path: FilePath | None = None) -> str | None:
        """Write the rows as CSV, or return them as text without a path.

        The file is the old one or the new one at any time, never half of it. None is
        an empty field.

        Raises:
            OSError: It cannot be written.
        """
        return _written(to_csv_text(self.rows(), COLUMNS), path)

    @overload
    def to_json(self, path: None = None) -> str: ...
    @overload
    def to_json(self, path: FilePath) -> None: ...
    def to_json(self, path: FilePath | None = None) -> str | None:
        """Write all as one JSON object, or return it as text without a path.

        It has the lists ``gpus``, ``samples`` and ``marks``, with the fields of
        `GPUInfo`, `GPUSample` and `Mark`. The file is never half written.

        Raises:
            OSError: It cannot be written.
        """
        return _written(self._recording.to_json(self._gpus), path)

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped"
        cards = ", ".join(map(_shown, self.latest()))
        count = f"{len(self._gpus)} card{'' if len(self._gpus) == 1 else 's'}"
        told = f"{count}: {cards}" if cards else count
        return f"<GPUMonitor every {self._interval:g} s, {state}, {told}>"

    def _find_cards(self) -> Readings:
        gpus = tuple(detect_gpus())
        problem = measure_driver().problem
        if not gpus and problem is None:
            problem = "CUDA_VISIBLE_DEVICES hides all cards."
        readings = Readings([(gpu.uuid, gpu.nvml_index or 0) for gpu in gpus])
        with self._sampling:
            self._gpus, self._problem, self._readings = gpus, problem, readings
        return readings

    def _take(self, stopping: threading.Event | None = None) -> tuple[GPUSample, ...]:
        """Ask the cards, and keep what they say unless it has come too late."""
        is_own = self._own_now()
        with self._sampling:
            readings = self._readings or self._find_cards()
            found = readings.read(self._clock.monotonic())
            now = self._clock.time()
            samples = tuple(
                _sample(gpu.index, now, reading, is_own)
                for gpu, reading in zip(self._gpus, found, strict=True)
            )
            if samples and not (stopping and stopping.is_set()):
                self._recording.add(self._clock.monotonic(), samples)
        return samples

    def _own_now(self) -> Callable[[int], bool]:
        try:
            return self._own()
        except Exception as error:  # noqa: BLE001 - theirs may be anything
            self._complain("the function that returns ids of processes failed", error)
            return frozenset[int]().__contains__

    def _tell(self, samples: tuple[GPUSample, ...]) -> None:
        if not samples or getattr(self._telling, "now", False):
            return
        self._telling.now = True
        try:
            for subscriber in self._subscribers:
                subscriber.tell(samples)
        finally:
            self._telling.now = False

    def _run(self, stopping: threading.Event) -> None:
        """Tick until it is time to stop."""
        began = self._clock.monotonic()
        number = 0
        # A fork out of a subscriber has another event, and is to end here.
        while stopping is self._stopping and not stopping.is_set():
            self._tick(stopping)
            passed = self._clock.monotonic() - began
            # A wait may end a moment too early, which is no reason for a tick more.
            number = max(number, math.floor(passed / self._interval)) + 1
            self._clock.wait(stopping, number * self._interval - passed)

    def _tick(self, stopping: threading.Event) -> None:
        try:
            samples = self._take(stopping)
        except Exception as error:  # noqa: BLE001 - the thread is not to end
            self._complain("a sample could not be taken", error)
            return
        if not stopping.is_set():
            self._tell(samples)

    def _complain(self, what: str, error: Exception) -> None:
        """Log an error, the first time."""
        if not self._has_failed:
            self._has_failed = True
            _logger.error("GPUMonitor: %s; it goes on", what, exc_info=error)


_monitors: weakref.WeakSet[GPUMonitor] = weakref.WeakSet()


def _begin_anew() -> None:
    for monitor in list(_monitors):
        monitor._begin_anew()  # noqa: SLF001 - the same module


os.register_at_fork(after_in_child=_begin_anew)


def _checked_interval(interval: float) -> float:
    try:
        seconds = float(interval)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    allowed = _LEAST_INTERVAL <= seconds <= _LONGEST_INTERVAL
    if isinstance(interval, (bool, str)) or not allowed:
        raise ConfigurationError(
            f"interval is {interval!r}; it must be seconds, from {_LEAST_INTERVAL} to "
            f"{_LONGEST_INTERVAL:.0f}"
        )
    return seconds


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


def _sample(
    index: int, now: float, reading: Reading, is_own: Callable[[int], bool]
) -> GPUSample:
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


def _shown(sample: GPUSample) -> str:
    used, total = sample.memory_used_bytes, sample.memory_total_bytes
    if used is None or total is None:
        return f"GPU {sample.index} {'lost' if sample.problem else 'memory unknown'}"
    return f"GPU {sample.index} {used / GIB:.1f} of {total / GIB:.1f} GiB"


def _written(text: str, path: FilePath | None) -> str | None:
    if path is None:
        return text
    write_whole(path, text)
    return None
