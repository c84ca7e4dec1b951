"""What a session's servers are doing, in words; how busy they are."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamatelemetry._units import format_memory
from llamatelemetry.pool.server_pool import ServerPool
from llamatelemetry.server.events import LoadProgress
from llamatelemetry.server.manager import ServerManager
from llamatelemetry.server.state import ALIVE, ServerState

if TYPE_CHECKING:
    from llamatelemetry.session import Session

__all__ = [
    "Activity",
    "Seen",
    "SpeedMeter",
    "first_line",
    "given_back",
    "hint_at_start",
    "host_given_back",
    "is_busy",
    "look",
    "servers_of",
    "told",
]

_MARKS = {
    ServerState.NEW: ("○", "not started"),
    ServerState.STARTING: ("◔", "loading"),
    ServerState.READY: ("●", "ready"),
    ServerState.STOPPING: ("◑", "stopping"),
    ServerState.STOPPED: ("■", "stopped"),
    ServerState.FAILED: ("✖", "failed"),
}
# What is said of several servers is what of this comes first; but see `look`.
_FOREMOST = (
    ServerState.STARTING,
    ServerState.STOPPING,
    ServerState.READY,
    ServerState.FAILED,
    ServerState.STOPPED,
    ServerState.NEW,
)
_SHORTEST = 0.001  # seconds between two looks
_PREDICTED = "llamacpp:tokens_predicted_total"
_PROCESSING = "llamacpp:requests_processing"


def hint_at_start(*, alive: bool, changed: bool, good: bool, over: bool) -> str:
    """Return why a button is off, or what it would do; "" if that is plain.

    Args:
        alive: Whether a server runs.
        changed: Whether the options are others than it has.
        good: Whether a server can be started with them.
        over: Whether the panel's session was closed.
    """
    if over:
        return "This session was closed; launch(...) makes another."
    if not good and not (alive and not changed):
        return "It cannot be started like this; the plan says why."
    return (
        "The options have changed: Restart makes them count."
        if alive and changed
        else ""
    )


def servers_of(server: ServerManager | ServerPool) -> tuple[ServerManager, ...]:
    """Return the managers of a server or of a pool."""
    return server.servers if isinstance(server, ServerPool) else (server,)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the servers of a session are doing.

    Attributes:
        state: What they are doing together.
        ready: How many take requests.
        count: How many there are.
        where: Their addresses and processes, in words.
        trouble: Why one has ended by itself, in a sentence; "" if none has.
        progress: How far loading is; None while nothing is loading.
        lines: For a pool a line for each server.
        command: How they were started; never holds a key.
    """

    state: ServerState = ServerState.NEW
    ready: int = 0
    count: int = 1
    where: str = ""
    trouble: str = ""
    progress: LoadProgress | None = None
    lines: tuple[str, ...] = ()
    command: tuple[tuple[str, ...], ...] = ()

    @property
    def alive(self) -> bool:
        """Whether a server runs, ready or still loading."""
        return self.state in ALIVE

    @property
    def mark(self) -> str:
        """The state as a symbol and words."""
        symbol, words = _MARKS[self.state]
        many = f": {self.ready} of {self.count} servers" if self.count > 1 else ""
        return f"{symbol} {words}{many}"


def look(server: ServerManager | ServerPool) -> Seen:
    """Return what a server or a pool is doing now."""
    managers = servers_of(server)
    states = [manager.state for manager in managers]
    errors = [error for manager in managers if (error := manager.error) is not None]
    lines: tuple[str, ...] = ()
    if isinstance(server, ServerPool):
        lines = tuple(repr(server.status()).splitlines())
    return Seen(
        state=min(states, key=_FOREMOST.index),
        ready=states.count(ServerState.READY),
        count=len(managers),
        where=_where(managers),
        trouble=first_line(errors[0]) if errors else "",
        progress=_progress(managers, states),
        lines=lines,
        command=tuple(one.command for one in managers if one.command),
    )


def given_back(session: Session) -> dict[int, int]:
    """Return what each card would have free again without the servers of a session.

    What they were planned to take, and no more than this process and all it has started
    hold, where the driver tells: other things of this notebook stay.
    """
    if not any(manager.is_running() for manager in servers_of(session.server)):
        return {}
    held = {sample.index: sample.process_bytes for sample in session.monitor.latest()}
    found = {}
    for index, planned in session.plan.expected_bytes.items():
        holds = held.get(index)
        found[index] = planned if holds is None else min(planned, holds)
    return found


def host_given_back(session: Session) -> int:
    """Return what of the host's memory the servers of a session take.

    Without weights that are mapped: those pages count as free already.
    """
    if not any(manager.is_running() for manager in servers_of(session.server)):
        return 0
    return sum(
        plan.host.needed - (0 if plan.config.no_mmap else plan.host.weights)
        for plan in session.plan.plans
    )


def first_line(error: BaseException) -> str:
    """Return the sentence that an error begins with; the rest is evidence."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _where(managers: Iterable[ServerManager]) -> str:
    told = []
    for manager in managers:
        pid, config = manager.pid, manager.config
        if pid is not None and config is not None:
            told.append(f"{config.url} (process {pid})")
    return ", ".join(told)


def _progress(
    managers: Sequence[ServerManager], states: Sequence[ServerState]
) -> LoadProgress | None:
    """Return how far those that load are, all servers of a pool as one."""
    if ServerState.STARTING not in states:
        return None
    steps = []
    for manager in managers:
        told = [one for one in manager.events if isinstance(one, LoadProgress)]
        steps.append(told[-1] if told else LoadProgress(0.0, 0, 0.0))
    return LoadProgress(
        fraction=sum(one.fraction for one in steps) / len(steps),
        bytes_loaded=sum(one.bytes_loaded for one in steps),
        seconds=max(one.seconds for one in steps),
    )


def told(progress: LoadProgress, of: int | None = None) -> str:
    """Return how far loading is, in words.

    Args:
        progress: How far it is.
        of: Bytes of all the servers' models; None if not known.
    """
    total = f" of {format_memory(of)}" if of else ""
    return (
        f"{progress.fraction:.0%}, {format_memory(progress.bytes_loaded)}{total}, "
        f"{progress.seconds:.1f} s"
    )


@dataclass(frozen=True, slots=True)
class Activity:
    """How busy servers are.

    Attributes:
        busy: Slots at work.
        slots: All slots; None where the server does not tell.
        tokens_per_second: Tokens decoded since the last look, in each second; None at
            the first.
    """

    busy: int
    slots: int | None
    tokens_per_second: float | None

    def __str__(self) -> str:
        total = "" if self.slots is None else f" of {self.slots}"
        noun = "slots busy" if self.slots is not None else "requests at work"
        speed = self.tokens_per_second
        rate = "" if speed is None else f" · {speed:.1f} tokens/s"
        return f"{self.busy}{total} {noun}{rate}"


class SpeedMeter:
    """Makes a speed of how many tokens were decoded so far.

    A server counts the tokens of a request when it is over, and a slot those of the one
    it works on: both together grow evenly.
    """

    def __init__(self) -> None:
        self._moment: float | None = None
        self._tokens: float | None = None  # None while nothing was to be counted
        self.was_busy = False
        """Whether a request was at work at the last look."""

    def forget(self) -> None:
        """Begin anew: with another server."""
        self._moment, self._tokens, self.was_busy = None, None, False

    def measure(
        self,
        slots: Sequence[Mapping[str, Any]] | None,
        metrics: Mapping[str, float] | None,
        now: float | None = None,
    ) -> Activity:
        """Return how busy the servers are.

        Args:
            slots: What ``/slots`` says; None if the server does not tell.
            metrics: What ``/metrics`` says; None if the server does not tell, and while
                nothing is at work.
            now: The time, in seconds; None for the monotonic clock.
        """
        moment = time.monotonic() if now is None else now
        before, self._moment = self._moment, moment
        told = metrics or {}
        working = [slot for slot in slots or () if slot.get("is_processing")]
        finished, busy = told.get(_PREDICTED, 0.0), len(working)
        if slots is None:
            busy = int(told.get(_PROCESSING, 0))
        tokens: float | None = finished + sum(map(_decoded, working))
        if metrics is None and not working:
            tokens = None
        # What has begun since an idle look has decoded all of its tokens since then.
        base = finished if self._tokens is None and slots is not None else self._tokens
        speed = None
        if before is not None and tokens is not None and base is not None:
            # A request that ends between the two answers is in neither of them.
            speed = max(tokens - base, 0.0) / max(moment - before, _SHORTEST)
        self.was_busy = busy > 0
        self._tokens = tokens if busy or slots is None else None
        return Activity(busy, None if slots is None else len(slots), speed)


def is_busy(slots: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a slot is at work."""
    return any(slot.get("is_processing") for slot in slots)


def _decoded(slot: Mapping[str, Any]) -> int:
    """Return how many tokens a slot has decoded for its request."""
    told = slot.get("next_token")
    steps = told if isinstance(told, list) else [told]  # an object in older builds
    counts = [one.get("n_decoded", 0) for one in steps if isinstance(one, dict)]
    return sum(count for count in counts if isinstance(count, int))
