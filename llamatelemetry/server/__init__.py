"""Run it: configure, start, watch and stop a llama-server process."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
_HOMES = {
    "Engine": "engine",
    "ServerConfig": "config",
    "ServerManager": "manager",
    "ServerState": "state",
    "ServerStatus": "status",
    "StrayServer": "strays",
    "find_engine": "engine",
    "find_strays": "strays",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
