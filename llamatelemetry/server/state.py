"""The states of a server's life, and what may follow what."""

from __future__ import annotations

import enum


class ServerState(enum.Enum):
    """Where a server is in its life.

    Attributes:
        NEW: Nothing was started yet.
        STARTING: The process runs and loads the model.
        READY: It has answered that it takes requests.
        STOPPING: ``stop()`` is at work.
        STOPPED: It ended because ``stop()`` was called.
        FAILED: It ended by itself; the manager's ``error`` says why.

    Example:
        >>> from llamatelemetry.server import ServerState
        >>> server.state is ServerState.READY
        True
    """

    NEW = "new"  # nothing was started yet
    STARTING = "starting"  # the process runs and loads the model
    READY = "ready"  # it has answered that it takes requests
    STOPPING = "stopping"  # stop() is at work
    STOPPED = "stopped"  # ended because stop() was called
    FAILED = "failed"  # ended by itself; `error` says why


ALIVE = (ServerState.STARTING, ServerState.READY)
NEXT: dict[ServerState, tuple[ServerState, ...]] = {
    ServerState.NEW: (ServerState.STARTING,),
    ServerState.STARTING: (
        ServerState.READY,
        ServerState.STOPPING,
        ServerState.FAILED,
    ),
    ServerState.READY: (ServerState.STOPPING, ServerState.FAILED),
    ServerState.STOPPING: (ServerState.STOPPED,),
    ServerState.STOPPED: (ServerState.STARTING,),
    ServerState.FAILED: (ServerState.STARTING,),
}
