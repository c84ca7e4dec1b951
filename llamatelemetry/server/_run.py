"""One start of one engine: the process, its log, its events, the thread that reads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from llamatelemetry.server._linux import bytes_loaded, group_listens
from llamatelemetry.server._process import ServerProcess
from llamatelemetry.server.config import ServerConfig
from llamatelemetry.server.events import (
    Event,
    Listening,
    LoadProgress,
    read_event,
)
from llamatelemetry.server.logs import LogBuffer, read_lines

MAX_EVENTS = 4096
# Reading a pipe ends with the last process that holds it; the group is dead by then.
_JOIN_SECONDS = 5.0
_PROGRESS_STEP = 0.01


class Run:
    """A started engine.

    Attributes:
        config: What it was started with; its port is the real one.
        command: The program and its arguments.
        process: The process and its group.
        log: What it printed.
    """

    def __init__(
        self,
        config: ServerConfig,
        command: Sequence[str],
        process: ServerProcess,
        on_end: Callable[[Run], None],
    ) -> None:
        self.config = config
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
        self._on_end = on_end
        self._pump = threading.Thread(
            target=self._read_log, name=f"llamatelemetry-log-{process.pid}", daemon=True
        )

    def begin(self) -> None:
        """Start to read the log."""
        self._pump.start()

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened so far."""
        with self._news:
            return tuple(self._events)

    def add(self, event: Event) -> None:
        """Record an event and wake who waits for one."""
        with self._news:
            self._events.append(event)
            self._listening = self._listening or isinstance(event, Listening)
            self._news.notify_all()

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

    def finish(self) -> None:
        """Wait until the log is read to its end."""
        if threading.current_thread() is not self._pump:
            self._pump.join(_JOIN_SECONDS)

    def _read_log(self) -> None:
        with self.process.output as output:
            read_lines(output, self._take_line)
        self.process.wait()
        self._on_end(self)
        self.log.close()  # last: whoever follows the log then finds the error

    def _take_line(self, line: str) -> None:
        self.log.append(line)
        event = read_event(line)
        if event is not None:
            self.add(event)


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
