"""record(): follow a client, its servers and the cards, and note what they do."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from llamatelemetry._deadline import Deadline
from llamatelemetry.api._record import RequestRecord
from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.exceptions import ConfigurationError, ServerNotRunningError
from llamatelemetry.gpu.monitor import GPUMonitor, GPUSample
from llamatelemetry.server.events import Event, LoadProgress
from llamatelemetry.server.logs import LogPosition
from llamatelemetry.server.manager import ServerManager
from llamatelemetry.telemetry._entries import RequestEntry, entry_of, event_of
from llamatelemetry.telemetry._kept import Kept
from llamatelemetry.telemetry._slots import Measured, SlotFinder
from llamatelemetry.telemetry.timeline import Timeline

__all__ = ["Recorder", "Recorders", "record"]

# What only looks at a server, as panels do all the time.
_LOOKS = frozenset({"health", "models", "props", "slots", "metrics"})
_LATE_LINE = 0.05  # seconds that a server's log may be behind its answer
_LONGEST_DELAY = 5.0  # seconds from a reading of the cards to when we are told

Server = Any
"""A ServerManager, or a pool, which has several in ``servers``: it stands above."""


def record(
    target: Any,
    *,
    text: bool = False,
    server: Server | None = None,
    monitor: GPUMonitor | None = None,
    most: int = 100_000,
) -> AbstractContextManager[Timeline]:
    """Record every request of a client from here to the end of the ``with`` block.

    Nothing is recorded without this (or ``launch(telemetry=True)``). What is noted of
    a request is in :class:`RequestEntry`; what only looks at a server (its health,
    properties, slots, metrics) is left out.

    A reading of the cards has the time at which its last card was read, by the clock of
    the day; that is moved to the monotonic clock when the monitor hands it over, a
    moment later, so that setting the clock of the day moves nothing.

    Args:
        target: A session, a client, or a pool (then the client ``pool.client``).
        text: Whether to keep what was asked and what was answered, too. Pictures are
            left out in any case. Keys never stand in a record.
        server: What runs the server of a client: then there are events, and the slots
            that answered. A session and a pool have their own.
        monitor: Watches the cards; the caller starts it. A session has its own.
        most: How many requests are kept, and how many events and readings of the
            cards; a request takes about 1 kB, and 8 bytes for each token.

    Returns:
        A context manager that gives the :class:`Timeline`, which stays when it ends.

    Raises:
        ConfigurationError: There is nothing to record of the target.

    Examples:
        >>> from llamatelemetry import launch
        >>> from llamatelemetry.telemetry import record
        >>> with launch("qwen3-4b", progress=False) as session:
        ...     with record(session) as timeline:
        ...         question = [{"role": "user", "content": "What is GGUF?"}]
        ...         answer = session.client.chat_completion(question, temperature=0)
        >>> request = timeline.requests[0]
        >>> request.kind, request.completion_tokens, request.server == session.url
        ('chat', 45, True)
    """
    parts = _parts(target, server, monitor)
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ConfigurationError(f"most is {most!r}; it must be a number, at least 1")
    return _recorded(target, Recorder(text=text, most=most), parts)


_Parts = tuple[LlamaCppClient | None, Server | None, GPUMonitor | None]


def _parts(target: Any, server: Any, monitor: Any) -> _Parts:
    """Return the client, the server and the monitor of a target.

    Raises:
        ConfigurationError: It has no client, or these are something else.
    """
    if server is not None and not _managers(server):
        raise ConfigurationError(
            f"server is {server!r}; it must be a ServerManager or a ServerPool"
        )
    if monitor is not None and not isinstance(monitor, GPUMonitor):
        raise ConfigurationError(f"monitor is {monitor!r}; it must be a GPUMonitor")
    if isinstance(target, LlamaCppClient):
        return target, server, monitor
    if not hasattr(type(target), "client"):
        raise ConfigurationError(
            f"record() takes a session, a client or a pool, not {target!r}; for a "
            "server: record(LlamaCppClient(server.get_url()), server=server)"
        )
    if getattr(target, "closed", False):
        raise ConfigurationError(
            "the session is closed, so there is nothing to record; what it recorded "
            "itself stays in session.timeline"
        )
    client = None
    with contextlib.suppress(ServerNotRunningError):  # it was never ready
        client = target.client
    own = getattr(target, "server", target if _managers(target) else None)
    return client, server or own, monitor or getattr(target, "monitor", None)


@contextlib.contextmanager
def _recorded(target: Any, recorder: Recorder, parts: _Parts) -> Iterator[Timeline]:
    # A session tells these when it has another server.
    followers = getattr(target, "_recorders", None) or Recorders()
    recorder.follow(*parts)
    followers.add(recorder)
    try:
        yield recorder.timeline
    finally:
        followers.discard(recorder)
        recorder.close()


class Recorder:
    """Writes a timeline. Any thread may call anything.

    Args:
        text: Whether what was asked and answered is kept.
        most: How many requests, events and readings are kept.

    Attributes:
        timeline: What it writes.
    """

    def __init__(self, *, text: bool = False, most: int = 100_000) -> None:
        self._kept = Kept(most)
        self.timeline = Timeline(self._kept)
        self._kept.look, self._kept.catch_up = self._read_logs, self._catch_up
        self._text = text
        self._client: LlamaCppClient | None = None
        self._server: Server | None = None
        self._monitor: GPUMonitor | None = None
        self._ends: dict[str, list[Callable[[], None]]] = {}
        self._logs: tuple[_ServerLog, ...] = ()
        self._lock = threading.RLock()  # for what follow() and close() change

    def follow(
        self,
        client: LlamaCppClient | None,
        server: Server | None,
        monitor: GPUMonitor | None,
    ) -> None:
        """Record these from now on, and no others."""
        with self._lock:
            if monitor is not self._monitor:
                self._end("monitor")
                self._monitor = monitor
                if monitor is not None:
                    self._follow_monitor(monitor)
            if server is not self._server:
                self._read_logs()
                self._end("server")
                self._server = server
                self._follow_servers(_managers(server))
            if client is not self._client:
                self._end("client")
                self._client = client
                if client is not None:
                    self._follow_client(client)
            self._learn_cards()

    def close(self) -> None:
        """Read the cards once more, and record nothing from now on."""
        self._catch_up()
        with self._lock:
            for what in list(self._ends):
                self._end(what)
            self._client = self._server = self._monitor = None

    def _catch_up(self) -> None:
        """Have what is known of requests that are over: their last moments, slots."""
        monitor = self._monitor
        if monitor is not None and monitor.running:
            monitor.sample()
        patience = Deadline.after(_LATE_LINE)
        self._read_logs()
        while any(log.waits for log in self._logs) and not patience.expired:
            time.sleep(_LATE_LINE / 10)
            self._read_logs()

    def _end(self, what: str) -> None:
        for end in self._ends.pop(what, ()):
            end()

    # ── requests ─────────────────────────────────────────────────────────────────

    def _follow_client(self, client: LlamaCppClient) -> None:
        end = client.subscribe(self._on_request, chunk_times=True, text=self._text)
        self._ends["client"] = [end]

    def _on_request(self, record: RequestRecord) -> None:
        if record.kind in _LOOKS:
            return
        text = self._text
        entry = self._kept.add_request(
            lambda number: entry_of(number, record, text=text)
        )
        measured = _measured(record)
        log = self._log_of(entry)
        if log is not None and measured is not None and entry.slot is None:
            log.expect(entry.id, measured)
            self._kept.set_slots(log.read())

    def _log_of(self, entry: RequestEntry) -> _ServerLog | None:
        logs = self._logs
        if len(logs) == 1:  # whatever name its address is called by
            return logs[0]
        return next((log for log in logs if log.url == entry.server), None)

    def _read_logs(self) -> None:
        for log in self._logs:
            self._kept.set_slots(log.read())

    # ── servers ──────────────────────────────────────────────────────────────────

    def _follow_servers(self, managers: Sequence[ServerManager]) -> None:
        self._logs = tuple(map(_ServerLog, managers))
        self._ends["server"] = [
            log.manager.subscribe(self._on_event_of(log)) for log in self._logs
        ]

    def _on_event_of(self, log: _ServerLog) -> Callable[[Event], None]:
        def note(event: Event) -> None:
            if not isinstance(event, LoadProgress):  # a hundred for each start
                self._kept.add_event(event_of(event, time.monotonic(), log.url))
                self._learn_cards()

        return note

    def _learn_cards(self) -> None:
        """Note which cards the servers use, once both are known."""
        gpus = [] if self._monitor is None else self._monitor.gpus
        for log in self._logs:
            config, url = log.manager.config, log.url
            if url is None or config is None or config.visible_devices is None:
                continue
            names = [name for name in config.visible_devices.split(",") if name]
            used = [
                gpu.index for gpu in gpus if {gpu.uuid, str(gpu.index)} & set(names)
            ]
            if len(used) == len(names):
                self._kept.servers[url] = tuple(used)

    # ── cards ────────────────────────────────────────────────────────────────────

    def _follow_monitor(self, monitor: GPUMonitor) -> None:
        self._kept.interval = monitor.interval
        self._ends["monitor"] = [monitor.subscribe(self._on_samples)]
        latest = monitor.latest()
        if latest:
            self._on_samples(latest)
        elif monitor.running:  # the first request is covered from its beginning
            monitor.sample()

    def _on_samples(self, samples: tuple[GPUSample, ...]) -> None:
        now, monitor = time.monotonic(), self._monitor
        age = time.time() - max(sample.time for sample in samples)
        longest = _LONGEST_DELAY + 2 * self._kept.interval  # of the first ones
        # Unless the clock of the day was set in between.
        self._kept.add_tick(now - age if 0 <= age <= longest else now, samples)
        if monitor is not None and len(self._kept.cards) < len(samples):
            self._kept.cards.update({gpu.index: gpu.name or "" for gpu in monitor.gpus})
            self._learn_cards()


class Follower(Protocol):
    """What has to know when a session has another client, server or monitor."""

    def follow(
        self,
        client: LlamaCppClient | None,
        server: Server | None,
        monitor: GPUMonitor | None,
    ) -> None:
        """Record these from now on, and no others."""

    def close(self) -> None:
        """Record nothing from now on."""


class Recorders:
    """Those that record one session: its own recorder, and others that follow it."""

    def __init__(self) -> None:
        self._all: tuple[Follower, ...] = ()
        self._own: Recorder | None = None
        self._lock = threading.RLock()

    @property
    def timeline(self) -> Timeline | None:
        """What the session's own recorder writes; None where it has none."""
        own = self._own
        return None if own is None else own.timeline

    def add(self, recorder: Follower) -> None:
        """Have one follow what the session has, too."""
        with self._lock:
            self._all = (*self._all, recorder)

    def discard(self, recorder: Follower) -> None:
        """Leave one alone from now on."""
        with self._lock:
            self._all = tuple(one for one in self._all if one is not recorder)

    def follow(
        self,
        client: LlamaCppClient | None,
        server: Server | None,
        monitor: GPUMonitor | None,
        *,
        own: bool,
    ) -> None:
        """Have all follow what the session has now.

        Args:
            client: Its client.
            server: Its server or pool.
            monitor: Its monitor.
            own: Whether it has a recorder of its own.
        """
        with self._lock:
            if own and self._own is None:
                self._own = Recorder()
                self.add(self._own)
            elif not own and self._own is not None:
                self.discard(self._own)
                self._own.close()
                self._own = None
            for recorder in self._all:
                recorder.follow(client, server, monitor)

    def close(self) -> None:
        """End all; what they have written stays."""
        for recorder in self._all:
            recorder.close()


def _managers(server: Server | None) -> tuple[ServerManager, ...]:
    if isinstance(server, ServerManager):
        return (server,)
    return tuple(getattr(server, "servers", ()))


def _measured(record: RequestRecord) -> Measured | None:
    """Return what came with an answer and stands in the server's log too."""
    timings = record.timings
    if timings is None:
        return None
    parts = (
        timings.prompt_n, timings.prompt_ms, timings.predicted_n, timings.predicted_ms,
    )  # fmt: skip
    if None in parts:
        return None
    return Measured(*parts)  # type: ignore[arg-type] # looked at above


class _ServerLog:
    """One server's log from now on, and the answers that wait for their line."""

    def __init__(self, manager: ServerManager) -> None:
        self.manager = manager
        self._finder = SlotFinder()
        self._lock = threading.Lock()
        self._position: LogPosition | None
        self._position, _ = manager.read_logs()

    @property
    def url(self) -> str | None:
        """The server's address; None before it is known."""
        with contextlib.suppress(ServerNotRunningError):
            return self.manager.get_url()
        return None

    @property
    def waits(self) -> bool:
        """Whether the slot of an answer is not known yet."""
        return self._finder.waits

    def expect(self, number: int, measured: Measured) -> None:
        """Look for the slot of an answer."""
        with self._lock:
            self._finder.expect(number, measured)

    def read(self) -> dict[int, int]:
        """Read what is new, and return the slots that are known by that."""
        with self._lock:
            self._position, lines = self.manager.read_logs(self._position)
            self._finder.read(lines)
            return self._finder.found()
