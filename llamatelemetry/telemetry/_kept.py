"""What a timeline keeps, within bounds: the oldest goes, and is counted."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from llamatelemetry.gpu._samples import GPUSample
from llamatelemetry.telemetry._entries import RequestEntry, ServerEvent

__all__ = ["Kept", "Tick"]

MOST_CHUNK_TIMES = 4_000_000
"""Chunks whose time is kept, over all requests: 8 bytes each. The oldest requests lose
theirs first; what else is known of them stays."""

_LATE = 1000  # requests that are looked through

Tick = tuple[float, tuple[GPUSample, ...]]
"""When the cards were read, in seconds of ``time.monotonic()``, and what they said."""


class Kept:
    """Requests, events, and readings of the cards. Any thread may call anything.

    Attributes:
        most: How many of each are kept.
        began: When the timeline began, in seconds of ``time.monotonic()``.
        offset: What is added to that clock's seconds for those since 1970.
        interval: Seconds between two readings of the cards, as the monitor was told.
        cards: The names of the cards that were seen, by their index.
        servers: The cards that a server uses, by its base URL; what is not in here may
            use all of them.
        dropped: How many requests, events, samples and chunk times were let go.
        look: Called before somebody looks: brings what is late, such as slots.
        catch_up: Called to have all there is up to now: reads the cards.
    """

    def __init__(self, most: int, *, most_chunk_times: int = MOST_CHUNK_TIMES) -> None:
        self.most = most
        self.began = time.monotonic()
        self.offset = time.time() - self.began
        self.interval = 1.0
        self.cards: dict[int, str] = {}
        self.servers: dict[str, tuple[int, ...]] = {}
        self.dropped: Counter[str] = Counter()
        self.look: Callable[[], object] = lambda: None
        self.catch_up: Callable[[], object] = lambda: None
        self.changes = 0  # of what requests cost
        self._most_chunk_times = most_chunk_times
        self._lock = threading.RLock()
        self._requests: deque[RequestEntry] = deque()
        self._events: deque[ServerEvent] = deque()
        self._ticks: deque[Tick] = deque()
        self._numbered = 0  # requests so far
        self._chunk_times = 0
        self._stripped = 0  # requests before this one have no chunk times

    @property
    def requests(self) -> list[RequestEntry]:
        """The requests, in the order in which they ended."""
        with self._lock:
            return list(self._requests)

    @property
    def events(self) -> list[ServerEvent]:
        """The events, in order."""
        with self._lock:
            return sorted(self._events, key=lambda event: event.time)

    @property
    def ticks(self) -> list[Tick]:
        """The readings of the cards, in order."""
        with self._lock:
            return sorted(self._ticks, key=lambda tick: tick[0])

    def add_request(self, make: Callable[[int], RequestEntry]) -> RequestEntry:
        """Keep a request, which is made with its number."""
        with self._lock:
            entry = make(self._numbered)
            self._numbered += 1
            self._requests.append(entry)
            self._chunk_times += len(entry.chunk_times or ())
            self.changes += 1
            if len(self._requests) > self.most:
                gone = self._requests.popleft()
                self._chunk_times -= len(gone.chunk_times or ())
                self.dropped["requests"] += 1
            self._make_room()
        return entry

    def _make_room(self) -> None:
        first = self._requests[0].id
        self._stripped = max(self._stripped, first)
        while self._chunk_times > self._most_chunk_times:
            place = self._stripped - first
            entry = self._requests[place]
            count = len(entry.chunk_times or ())
            if count:
                self._requests[place] = replace(entry, chunk_times=None)
                self._chunk_times -= count
                self.dropped["tokens"] += count
            self._stripped += 1

    def find(self, start: float, end: float) -> RequestEntry | None:
        """Return the request that was sent and ended then, if it is a late one."""
        with self._lock:
            late = itertools.islice(reversed(self._requests), _LATE)
            return next(
                (one for one in late if (one.start, one.end) == (start, end)), None
            )

    def add_event(self, event: ServerEvent) -> None:
        """Keep an event."""
        with self._lock:
            self._events.append(event)
            if len(self._events) > self.most:
                self._events.popleft()
                self.dropped["events"] += 1

    def add_tick(self, now: float, samples: tuple[GPUSample, ...]) -> None:
        """Keep what the cards said."""
        with self._lock:
            self._ticks.append((now, samples))
            self.changes += 1
            if len(self._ticks) > self.most:
                self.dropped["samples"] += len(self._ticks.popleft()[1])

    def set_slots(self, slots: Mapping[int, int]) -> None:
        """Note which slots answered, by the requests' numbers."""
        with self._lock:
            for number, slot in slots.items():
                place = number - self._requests[0].id if self._requests else -1
                if place >= 0:
                    entry = self._requests[place]
                    self._requests[place] = replace(entry, slot=slot)

    def fill(
        self,
        requests: Iterable[RequestEntry],
        events: Sequence[ServerEvent],
        ticks: Sequence[Tick],
    ) -> None:
        """Take what was kept before, and was written somewhere."""
        with self._lock:
            self._requests.extend(requests)
            self._events.extend(events)
            self._ticks.extend(ticks)
            self.changes += 1
