"""Plan, run, talk to and watch llama.cpp's server in Kaggle and Colab notebooks.

Nothing is loaded before it is used: importing this package touches no disk, network,
GPU, environment variable or third-party package.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamatelemetry.api.client import LlamaCppClient
    from llamatelemetry.api.multigpu import plan_placement
    from llamatelemetry.diagnosis import doctor
    from llamatelemetry.gguf.memory import plan_memory
    from llamatelemetry.gpu.inventory import detect_gpus
    from llamatelemetry.gpu.monitor import GPUMonitor
    from llamatelemetry.pool.server_pool import ServerPool
    from llamatelemetry.server import ServerConfig, ServerManager
    from llamatelemetry.session import launch
    from llamatelemetry.setup import ensure_engine, ensure_model, prepare

__version__ = "0.1.0"

__all__ = [
    "GPUMonitor",
    "LlamaCppClient",
    "ServerConfig",
    "ServerManager",
    "ServerPool",
    "__version__",
    "detect_gpus",
    "doctor",
    "ensure_engine",
    "ensure_model",
    "launch",
    "plan_memory",
    "plan_placement",
    "prepare",
]

_HOMES = {
    "GPUMonitor": "llamatelemetry.gpu.monitor",
    "LlamaCppClient": "llamatelemetry.api.client",
    "ServerConfig": "llamatelemetry.server.config",
    "ServerManager": "llamatelemetry.server.manager",
    "ServerPool": "llamatelemetry.pool.server_pool",
    "detect_gpus": "llamatelemetry.gpu.inventory",
    "doctor": "llamatelemetry.diagnosis",
    "ensure_engine": "llamatelemetry.setup.engines",
    "ensure_model": "llamatelemetry.setup.models",
    "launch": "llamatelemetry.session",
    "plan_memory": "llamatelemetry.gguf.memory",
    "plan_placement": "llamatelemetry.api.multigpu",
    "prepare": "llamatelemetry.setup._prepare",
}

_ROOMS = ("api", "exceptions", "gguf", "gpu", "pool", "server", "setup", "widgets")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message, name=name, obj=sys.modules[__name__])
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
