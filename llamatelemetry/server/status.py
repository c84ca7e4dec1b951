"""What one server is doing, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from llamatelemetry.server.state import ServerState

__all__ = ["ServerStatus"]


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What one server is doing, alone or in a pool.

    Attributes:
        server: Its number: ``pool.servers[server]``; 0 for one alone.
        state: Where it is in its life.
        ready: Whether it takes requests; in a pool, whether the pool sends it any.
        url: Where it answers; None before its port is known.
        pid: Its process, or None while none runs.
        cards: What it sees as CUDA_VISIBLE_DEVICES; "" for no card, None for all.
        slots: Requests it serves at once.
        in_flight: The pool's requests that it has now, waiting ones included; None
            for one alone, whose requests nobody counts.
        requests: The pool's requests it was sent so far, or None likewise.
        restarts: How often the pool has started it again.
        error: Why it ended last or could not be started; None if all is well.

    Example:
        >>> status = server.status()
        >>> status.ready, status.slots, status.error
        (True, 2, None)
    """

    server: int
    state: ServerState
    ready: bool
    url: str | None
    pid: int | None
    cards: str | None
    slots: int
    in_flight: int | None = None
    requests: int | None = None
    restarts: int = 0
    error: Exception | None = None
