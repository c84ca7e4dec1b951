"""GPUMonitor: what the cards are doing, seen again and again beside other work."""

from __future__ import annotations

import inspect
import logging
import operator
import os
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any, Self, overload

from llamatelemetry._files import write_whole
from llamatelemetry._tables import to_csv_text, to_dataframe
from llamatelemetry.exceptions import ConfigurationError, SetupWarning
from llamatelemetry.gpu._own_processes import ProcessIds, own_processes
from llamatelemetry.gpu._readings import Readings
from llamatelemetry.gpu._run import Clock, Run, SystemClock
from llamatelemetry.gpu._samples import (
    COLUMNS,
    GPUSample,
    Mark,
    Recording,
    sample_of,
    shown,
)
from llamatelemetry.gpu._visible import named_instances, nothing_shown
from llamatelemetry.gpu.inventory import (
    GPUInfo,
    as_number,
    measure_driver,
    visible_cards,
)

__all__ = ["GPUMonitor", "GPUSample", "Mark"]

_logger = logging.getLogger(__name__)

_LEAST_INTERVAL, _LONGEST_INTERVAL = 0.01, 86_400.0
_LONGEST_STOP = 5.0
"""Seconds a stop waits for a driver that does not answer."""
_NOT_LOOKED = "The cards were not looked for yet; start() does."

Callback = Callable[[tuple[GPUSample, ...]], object]
FilePath = str | os.PathLike[str]


class _Subscriber:
    """One callback, which is complained about once."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self._has_failed = False

    def tell(self, samples: tuple[GPUSample, ...], caught: type[BaseException]) -> None:
        """Call it; what it raises, if it is to be caught, is logged the first time."""
        try:
            self._callback(samples)
        except caught:
            if not self._has_failed:
                self._has_failed = True
                _logger.exception(
                    "%r, which a GPUMonitor calls with each tick, has failed; it is "
                    "called again, and its next failures are not told",
                    self._callback,
                )


class GPUMonitor:
    """Samples of the cards this process may use, taken in a thread of its own.

    The thread is a daemon, ``llamatelemetry-gpu-monitor``, which takes its first sample
    at once, and a last one when it is stopped. Ticks keep their distance from the
    start: what takes long delays none of the later ones, and ticks that were missed are
    left out. Any thread may call any method. Without a driver or a card everything
    works and there is no sample. A fork has the history, and does not run.

    A monitor that nobody holds any more ends, as when the cell of a notebook that made
    it is run again, and all end with the program; neither takes a last sample.

    Args:
        interval: Seconds from tick to tick; at least 0.01, at most a day.
        history: How many ticks are kept; with one each second, 3600 are an hour. A
            tick takes less than 1 kB for each card.
        process_ids: The processes whose memory is `GPUSample.process_bytes`: ids, or a
            function that returns them, called at each tick. None: this Python process
            and its descendants, such as the servers it has started.

    Raises:
        ConfigurationError: A value cannot work.

    Examples:
        >>> from llamatelemetry import GPUMonitor
        >>> with GPUMonitor(interval=0.5) as monitor:
        ...     mark = monitor.mark("first request")
        >>> frame = monitor.to_dataframe()
        >>> frame.groupby("index").memory_used_bytes.max().to_dict()
        {0: 3145728, 1: 3145728}
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
        self._recording = Recording(history)
        self._own = own_processes(process_ids)
        self._clock: Clock = _clock or SystemClock()
        self._gpus: tuple[GPUInfo, ...] = ()
        self._problem: str | None = _NOT_LOOKED
        self._readings: Readings | None = None
        self._subscribers: list[_Subscriber] = []
        self._complained: set[str] = set()
        self._run: Run | None = None
        self._begin_anew()
        _monitors.add(self)

    def _begin_anew(self) -> None:
        """Be stopped, with locks that nobody holds: at first, and in a fork."""
        self._lock = threading.RLock()  # for what start, stop and subscribe change
        self._sampling = threading.RLock()  # one sample at a time, in order
        self._telling = threading.local()
        run, self._run = self._run, None
        if run is not None:
            run.ending.set()
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
            run = self._run
        return run is not None and run.goes_on

    def start(self) -> None:
        """Look for the cards and take samples from now on; nothing if it runs already.

        What was seen before is kept.

        Raises:
            SetupError: NVIDIA's nvidia-ml-py is missing.

        Examples:
            >>> from llamatelemetry import GPUMonitor
            >>> monitor = GPUMonitor()
            >>> monitor.start()
            >>> monitor.running, len(monitor.gpus)
            (True, 2)
            >>> monitor.stop()
        """
        if self.running:
            return
        self._find_cards()
        with self._lock:
            if self.running:  # another thread was faster
                return
            self._run = Run(self._tick, self._clock, self._interval)
            self._run.start()

    def stop(self) -> None:
        """Have the thread take one last sample and end, and wait for that.

        The last sample is kept and told to the subscribers like any other, so that what
        was marked before is in the rows. There is none if the monitor does not run, or
        was stopped already. A driver or a subscriber that does not answer is waited for
        5 seconds; what comes later is not kept. A subscriber may call this: the last
        sample is then taken after it has returned, and it is told of that one too.

        Examples:
            >>> from llamatelemetry import GPUMonitor
            >>> monitor = GPUMonitor()
            >>> monitor.start()
            >>> monitor.stop()
            >>> monitor.running, len(monitor.latest())
            (False, 2)
        """
        with self._lock:
            run = self._run
        if run is not None:
            run.end(_LONGEST_STOP)

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

        Examples:
            >>> from llamatelemetry import GPUMonitor
            >>> for card in GPUMonitor().sample():
            ...     print(card.index, card.memory_used_bytes, card.temperature_celsius)
            0 3145728 38
            1 3145728 38
        """
        samples = self._take()
        self._tell(samples)
        return samples

    def latest(self) -> tuple[GPUSample, ...]:
        """Return the last sample of each card; () before the first.

        Examples:
            >>> from llamatelemetry import GPUMonitor
            >>> with GPUMonitor() as monitor:
            ...     pass
            >>> [card.index for card in monitor.latest()]
            [0, 1]
        """
        return self._recording.latest

    def history(
        self, index: int | None = None, seconds: float | None = None
    ) -> list[GPUSample]:
        """Return what was seen, oldest first.

        Args:
            index: The card, in CUDA's order; None for all.
            seconds: Only the last so many seconds before the newest sample.

        Raises:
            ConfigurationError: The seconds are negative, or no number; or the index is
                none, or that of no card, as far as the cards are known.

        Examples:
            >>> from llamatelemetry import GPUMonitor
            >>> monitor = GPUMonitor()
            >>> taken = [monitor.sample(), monitor.sample()]
            >>> len(monitor.history()), len(monitor.history(index=1))
            (4, 2)
        """
        if index is not None:
            index = self._checked_index(index)
        return self._recording.history(index, seconds)

    def _checked_index(self, index: int) -> int:
        try:
            number = -1 if isinstance(index, bool) else operator.index(index)
        except TypeError:
            number = -1
        if number < 0:
            raise ConfigurationError(
                f"index is {index!r}; it must be a card's number, from 0"
            )
        known = [gpu.index for gpu in self._gpus]
        # A card that was there before the last start still has its samples.
        if known and number not in known and not self._recording.history(number, None):
            raise ConfigurationError(
                f"index is {number}, and no card has it; the cards are "
                f"{', '.join(map(str, known))}"
            )
        return number

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Have a function called with each tick's samples.

        It is called in the thread that takes the sample, the monitor's as a rule, and
        while it runs there is no next tick. What it raises is logged, once, and the
        monitor goes on; SystemExit and KeyboardInterrupt too, but out of `sample` these
        come to who called that.

        Args:
            callback: Called with a tuple of :class:`GPUSample`, one for each card.

        Returns:
            What ends it; harmless when called again.

        Raises:
            ConfigurationError: It is no function.

        Examples:
            >>> from llamatelemetry import GPUMonitor
            >>> monitor = GPUMonitor()
            >>> end = monitor.subscribe(lambda samples: print(len(samples), "cards"))
            >>> taken = monitor.sample()
            2 cards
            >>> end()
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

        Args:
            text: What happens.

        Raises:
            ConfigurationError: It is no text.

        Examples:
            >>> from llamatelemetry import GPUMonitor
            >>> monitor = GPUMonitor()
            >>> mark = monitor.mark("model loaded")
            >>> [mark.text for mark in monitor.marks]
            ['model loaded']
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
        since the tick before, on the rows of all cards; a mark goes when the tick
        after it goes. ``throttle_reasons`` is one text, "none" where
        there is no reason.

        Examples:
            >>> from llamatelemetry import GPUMonitor
            >>> monitor = GPUMonitor()
            >>> taken = monitor.sample()
            >>> [(row["index"], row["throttle_reasons"]) for row in monitor.rows()]
            [(0, 'gpu_idle'), (1, 'gpu_idle')]
        """
        return self._recording.rows()

    def to_dataframe(self) -> Any:
        """Return the rows as a ``pandas.DataFrame``, one column for each field.

        All marks, those after the last sample too, are in its ``attrs["marks"]``.

        Raises:
            SetupError: pandas is missing.

        Examples:
            >>> from llamatelemetry import GPUMonitor
            >>> monitor = GPUMonitor()
            >>> taken = monitor.sample()
            >>> monitor.to_dataframe()[["index", "power_watts"]].values.tolist()
            [[0.0, 9.5], [1.0, 9.5]]
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

        Args:
            path: The file, which is replaced if it is there; None for none.

        Raises:
            OSError: It cannot be written.

        Examples:
            >>> from llamatelemetry import GPUMonitor
            >>> monitor = GPUMonitor()
            >>> taken = monitor.sample()
            >>> monitor.to_csv().splitlines()[0][:28]
            'index,time,memory_used_bytes'
            >>> monitor.to_csv("cards.csv")
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

        Args:
            path: The file, which is replaced if it is there; None for none.

        Raises:
            OSError: It cannot be written.

        Examples:
            >>> from llamatelemetry import GPUMonitor
            >>> monitor = GPUMonitor()
            >>> taken = monitor.sample()
            >>> import json
            >>> told = json.loads(monitor.to_json())
            >>> told["gpus"][0]["name"], len(told["samples"])
            ('Tesla T4', 2)
            >>> monitor.to_json("cards.json")
        """
        return _written(self._recording.to_json(self._gpus), path)

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped"
        cards = ", ".join(map(shown, self.latest()))
        count = f"{len(self._gpus)} card{'' if len(self._gpus) == 1 else 's'}"
        told = f"{count}: {cards}" if cards else count
        return f"<GPUMonitor every {self._interval:g} s, {state}, {told}>"

    def _find_cards(self) -> Readings:
        instances = named_instances(None)
        if instances is not None:
            warnings.warn(instances, SetupWarning, stacklevel=_levels_to_the_user())
        gpus = tuple(gpu for _, gpu in visible_cards())
        problem = measure_driver().problem
        if not gpus and problem is None:
            problem = nothing_shown(None, len(visible_cards({})))
        readings = Readings([(gpu.uuid, gpu.nvml_index or 0) for gpu in gpus])
        with self._sampling:
            self._gpus, self._problem, self._readings = gpus, problem, readings
        return readings

    def _take(self, run: Run | None = None) -> tuple[GPUSample, ...]:
        """Ask the cards, and keep what they say unless it has come too late."""
        is_own = self._own_now(Exception if run is None else BaseException)
        with self._sampling:
            readings = self._readings or self._find_cards()
            found = readings.read(self._clock.monotonic())
            now = self._clock.time()
            samples = tuple(
                sample_of(gpu.index, now, reading, is_own)
                for gpu, reading in zip(self._gpus, found, strict=True)
            )
            if samples and run is None:
                self._recording.add(self._clock.monotonic(), samples)
            elif samples and run is not None:
                run.keep(self._recording, self._clock.monotonic(), samples)
        return samples

    def _own_now(self, caught: type[BaseException]) -> Callable[[int], bool]:
        try:
            return self._own()
        except caught as error:
            self._complain("the function that returns ids of processes failed", error)
            return frozenset[int]().__contains__

    def _tell(
        self,
        samples: tuple[GPUSample, ...],
        caught: type[BaseException] = Exception,
    ) -> None:
        if not samples or getattr(self._telling, "now", False):
            return
        self._telling.now = True
        try:
            for subscriber in self._subscribers:
                subscriber.tell(samples, caught)
        finally:
            self._telling.now = False

    def _tick(self, run: Run) -> None:
        """Take a sample in the thread, which nothing but the end of the run ends."""
        try:
            samples = self._take(run)
        except BaseException as error:  # noqa: BLE001 - SystemExit would end it unseen
            self._complain("a sample could not be taken", error)
            return
        if not run.is_left:
            self._tell(samples, BaseException)

    def _complain(self, what: str, error: BaseException) -> None:
        """Log an error, the first time that this fails."""
        if what not in self._complained:
            self._complained.add(what)
            _logger.error("GPUMonitor: %s; it goes on", what, exc_info=error)


_monitors: weakref.WeakSet[GPUMonitor] = weakref.WeakSet()


def _begin_anew() -> None:
    for monitor in list(_monitors):
        monitor._begin_anew()  # noqa: SLF001 - the same module


os.register_at_fork(after_in_child=_begin_anew)


def _levels_to_the_user() -> int:
    """Return the level by which a warning of the caller is one of who uses this."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals is globals():
        frame, level = frame.f_back, level + 1
    return level


def _checked_interval(interval: float) -> float:
    seconds = as_number(interval)
    if not _LEAST_INTERVAL <= seconds <= _LONGEST_INTERVAL:
        raise ConfigurationError(
            f"interval is {interval!r}; it must be seconds, from {_LEAST_INTERVAL} to "
            f"{_LONGEST_INTERVAL:.0f}"
        )
    return seconds


def _written(text: str, path: FilePath | None) -> str | None:
    if path is None:
        return text
    write_whole(path, text)
    return None
