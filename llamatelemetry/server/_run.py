"""One start of one engine: the process, its log, its events, the thread that reads."""

from __future__ import annotations

import logging
import math
import os
import re
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path

from llamatelemetry._deadline import Deadline
from llamatelemetry._http import HTTPClient
from llamatelemetry.exceptions import ClientError, ConfigurationError
from llamatelemetry.server._linux import bytes_loaded, group_listens
from llamatelemetry.server._process import ServerProcess
from llamatelemetry.server.config import ServerConfig
from llamatelemetry.server.events import (
    Event,
    Listening,
    LoadProgress,
    Ready,
    read_event,
)
from llamatelemetry.server.logs import LogBuffer, read_lines

MAX_EVENTS = 4096
# Reading a pipe ends with the last process that holds it; the group is dead by then.
_JOIN_SECONDS = 5.0
_READ_SECONDS = 0.2
_READ_BYTES = 64 * 2**10
_PROGRESS_STEP = 0.01
_HEALTH_TIMEOUT = 2.0
_SHORTEST_LOOK = 0.05

_logger = logging.getLogger(__name__)


class EventListeners:
    """Those who are told of each event of a server, over all its starts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: tuple[Callable[[Event], object], ...] = ()

    def subscribe(self, callback: Callable[[Event], object]) -> Callable[[], None]:
        """Have a function called with each event; return what ends that.

        Raises:
            ConfigurationError: It is no function.
        """
        if not callable(callback):
            raise ConfigurationError(
                f"callback is {callback!r}, and must be a function of an Event"
            )

        def tell(event: Event) -> None:  # each subscription is one of its own
            callback(event)

        with self._lock:
            self._all = (*self._all, tell)

        def unsubscribe() -> None:
            with self._lock:
                self._all = tuple(one for one in self._all if one is not tell)

        return unsubscribe

    def tell(self, event: Event) -> None:
        """Call everybody; what they raise must not end what the server needs."""
        for callback in self._all:
            try:
                callback(event)
            except Exception:
                # The user's own code, which may raise anything; logged with its
                # traceback, and the server's output is read on.
                _logger.exception("a subscriber to a server's events has failed")


class Run:
    """A started engine.

    Attributes:
        config: What it was started with; its port is the real one.
        engine_name: What messages call the engine.
        command: The program and its arguments.
        was_ready: Whether it has been ready.
        process: The process and its group.
        log: What it printed.
    """

    def __init__(
        self,
        config: ServerConfig,
        command: Sequence[str],
        process: ServerProcess,
        *,
        engine_name: str,
        on_end: Callable[[Run], None],
        on_event: Callable[[Event], None],
    ) -> None:
        self.config = config
        self.engine_name = engine_name
        self.command = tuple(command)
        self.process = process
        self.log = LogBuffer()
        self.was_ready = False
        self._started = time.monotonic()
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._news = threading.Condition()
        self._listening = False
        self._fraction = 0.0
        self._model_bytes = _model_bytes(config)
        self._on_end, self._on_event = on_end, on_event
        self._has_begun = threading.Event()
        self._pump = threading.Thread(
            target=self._read_log, name=f"llamatelemetry-log-{process.pid}", daemon=True
        )

    def begin(self) -> None:
        """Start to read the log."""
        self._pump.start()
        self._has_begun.set()

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened so far."""
        with self._news:
            return tuple(self._events)

    def add(self, event: Event) -> None:
        """Record an event, wake who waits for one, and tell it."""
        with self._news:
            self._events.append(event)
            self._listening = self._listening or isinstance(event, Listening)
            self._news.notify_all()
        self._on_event(event)

    def wait_for_event(self, seconds: float) -> None:
        """Wait until something is recorded, at most this long."""
        with self._news:
            self._news.wait(seconds)

    def listens(self) -> bool:
        """Whether the listening socket is this engine's own.

        An HTTP answer cannot tell: another server on the same port gives the same.
        """
        if not self._listening:
            self._listening = group_listens(self.process.pid, self.config.port)
        return self._listening

    def answers_ready(self, connection: HTTPClient, deadline: Deadline) -> bool:
        """Whether it answers now that it takes requests."""
        seconds = min(_HEALTH_TIMEOUT, max(_SHORTEST_LOOK, deadline.remaining))
        try:
            reply = connection.request(
                "GET",
                "/health",
                connect_timeout=seconds,
                silence_timeout=seconds,
            )
        except ClientError:
            return False
        return reply.status == HTTPStatus.OK

    def note_progress(self) -> LoadProgress | None:
        """Record and return how far loading is, if it has moved by a hundredth."""
        loaded = bytes_loaded(self.process.pid)
        fraction = min(1.0, loaded / max(1, self._model_bytes))
        if fraction < self._fraction + _PROGRESS_STEP:
            return None
        self._fraction = fraction
        progress = LoadProgress(fraction, loaded, time.monotonic() - self._started)
        self.add(progress)
        return progress

    def become_ready(self) -> None:
        """Record that it takes requests."""
        self.was_ready = True
        self.add(Ready(time.monotonic() - self._started))

    @property
    def latest_events(self) -> tuple[Event, ...]:
        """What happened since it was ready, or since the start if it never was."""
        events = self.events
        ready = [place for place, event in enumerate(events) if type(event) is Ready]
        return events[ready[-1] + 1 :] if ready else events

    def finish(self) -> None:
        """Wait until the log is read to its end."""
        if threading.current_thread() is not self._pump:
            self._has_begun.wait(_JOIN_SECONDS)  # another thread has just started it
            self._pump.join(_JOIN_SECONDS)

    def _read_log(self) -> None:
        with self.process.output:
            read_lines(self._output(), self._take_line)
        self.process.wait()
        self._on_end(self)
        self.log.close()  # last: whoever follows the log then finds the error

    def _output(self) -> Iterator[bytes]:
        """Yield what is printed, to the end; a daemon it left may hold the pipe."""
        descriptor = self.process.output.fileno()
        poller = select.poll()  # select() cannot take descriptors above 1023
        poller.register(descriptor, select.POLLIN)
        grace = Deadline.after(None)
        while not grace.expired:
            # Asked before the look: what it printed before its end is there by then.
            has_ended = self.process.poll() is not None
            if poller.poll(_READ_SECONDS * 1000):
                if not (chunk := os.read(descriptor, _READ_BYTES)):
                    return
                yield chunk
            elif has_ended:
                return
            if has_ended and grace.remaining == math.inf:
                grace = Deadline.after(_JOIN_SECONDS / 2)

    def _take_line(self, line: str) -> None:
        line = _without_key(line, self.config.api_key)
        self.log.append(line)
        event = read_event(line)
        if event is not None:
            self.add(event)


def _without_key(line: str, api_key: str | None) -> str:
    """Return the line without the key: llama-server logs its last characters."""
    if api_key is None:
        return line
    return re.sub(r"(api_keys: ).*", r"\1****", line).replace(api_key, "****")


def _model_bytes(config: ServerConfig) -> int:
    """Return the size of the model, with all its shards when it is split."""
    path = Path(config.model_path or "")
    stem, marker, count = path.stem.rpartition("-of-")
    first = stem.rpartition("-")[0]
    try:
        if marker and count.isdecimal():
            shards = path.parent.glob(f"{first}-*-of-{count}{path.suffix}")
            return sum(shard.stat().st_size for shard in shards)
        return path.stat().st_size
    except OSError:
        return 0
