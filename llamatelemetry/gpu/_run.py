"""A thread that ticks for a monitor which it does not keep alive."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

from llamatelemetry.gpu._samples import GPUSample, Recording

_LONGEST_LAST_STOP = 2.0
"""Seconds the program's end waits for a driver that does not answer."""


class Ending:
    """Like an Event for the one thread that waits for it; a finalizer may set it.

    The lock of an Event would stay closed for ever where the garbage collector runs in
    the middle of a wait, and what it finalizes sets the same Event.
    """

    def __init__(self) -> None:
        self._is_set = False
        # Its put may come in the middle of its get, in the same thread.
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()

    def is_set(self) -> bool:
        """Whether it is time to end."""
        return self._is_set

    def set(self) -> None:
        """Say that it is time to end."""
        self._is_set = True
        self._wakes.put(None)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for it, no longer than so many seconds; whether it is time to end."""
        if not self._is_set:
            with contextlib.suppress(queue.Empty):
                self._wakes.get(timeout=seconds)
        return self._is_set


class Clock(Protocol):
    """The time by which a monitor goes; a test drives one by hand."""

    def time(self) -> float:
        """Seconds since 1970."""

    def monotonic(self) -> float:
        """Seconds that only go forward."""

    def wait(self, event: Ending, seconds: float) -> bool:
        """Wait for the end, no longer than so many seconds; whether it came."""


class SystemClock:
    """The time of this machine."""

    def time(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that only go forward."""
        return time.monotonic()

    def wait(self, event: Ending, seconds: float) -> bool:
        """Wait for the end, no longer than so many seconds; whether it came."""
        return event.wait(seconds)


class Run:
    """One run of a monitor's thread, from a start to the end.

    It has the monitor only while it ticks: one that nobody else holds is gone after
    that, which ends the run.

    Args:
        tick: The monitor's method that takes a sample; it is given the run.
        clock: The time by which it goes.
        interval: Seconds from tick to tick.

    Attributes:
        ending: Set when it is time to end.
        is_left: Whether it was left alone because it did not end: what it brings then
            counts no more.
    """

    def __init__(
        self, tick: Callable[[Run], None], clock: Clock, interval: float
    ) -> None:
        ending = self.ending = Ending()
        self.is_left = False
        self._tick_of_monitor = weakref.WeakMethod(tick, lambda _: ending.set())
        self._clock, self._interval = clock, interval
        self._process = os.getpid()
        self._keeping = threading.RLock()
        self._takes_last = True
        self._thread = threading.Thread(
            target=self._work, name="llamatelemetry-gpu-monitor", daemon=True
        )

    @property
    def goes_on(self) -> bool:
        """Whether it ticks, and is to do so."""
        return self._thread.is_alive() and not self.ending.is_set()

    def start(self) -> None:
        """Begin."""
        # After NVML was opened, so that this comes before NVML is shut down.
        atexit.register(self._end_at_exit)
        self._thread.start()

    def end(self, longest: float) -> None:
        """Have it end, and wait for that, but not in its own thread."""
        self.ending.set()
        thread = self._thread
        if self.is_left or thread is threading.current_thread():
            return
        if thread.is_alive():
            thread.join(longest)
        if thread.is_alive():
            with self._keeping:
                self.is_left = True
        atexit.unregister(self._end_at_exit)

    def keep(
        self, recording: Recording, now: float, samples: tuple[GPUSample, ...]
    ) -> None:
        """Keep a tick, unless the run was left alone."""
        with self._keeping:
            if not self.is_left:
                recording.add(now, samples)

    def _end_at_exit(self) -> None:
        if self._process == os.getpid():
            self._takes_last = False  # the end of the program does not wait for it
            self.end(_LONGEST_LAST_STOP)

    def _work(self) -> None:
        began = self._clock.monotonic()
        number = 0
        while not self.ending.is_set():
            self._tick()
            passed = self._clock.monotonic() - began
            # A wait may end a moment too early, which is no reason for a tick more.
            number = max(number, math.floor(passed / self._interval)) + 1
            self._clock.wait(self.ending, max(0.0, number * self._interval - passed))
        if self._takes_last:
            self._tick()
        atexit.unregister(self._end_at_exit)

    def _tick(self) -> None:
        """Tick if there is a monitor, and not in a fork out of a subscriber."""
        tick = self._tick_of_monitor()
        if tick is not None and not self.is_left and self._process == os.getpid():
            tick(self)
