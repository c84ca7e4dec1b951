"""Run it: configure, start, watch and stop a llama-server process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamatelemetry._lazy import lazy

if TYPE_CHECKING:
    from llamatelemetry.server.config import ServerConfig
    from llamatelemetry.server.engine import Engine, find_engine
    from llamatelemetry.server.manager import ServerManager
    from llamatelemetry.server.state import ServerState
    from llamatelemetry.server.status import ServerStatus
    from llamatelemetry.server.strays import StrayServer, find_strays

__all__ = [
    "Engine",
    "ServerConfig",
    "ServerManager",
    "ServerState",
    "ServerStatus",
    "StrayServer",
    "find_engine",
    "find_strays",
]

# Lazy, so that `python -m llamatelemetry.server.embedded` loads none of it.
__getattr__, __dir__ = lazy(
    __name__,
    {
        "Engine": "engine",
        "ServerConfig": "config",
        "ServerManager": "manager",
        "ServerState": "state",
        "ServerStatus": "status",
        "StrayServer": "strays",
        "find_engine": "engine",
        "find_strays": "strays",
    },
)
