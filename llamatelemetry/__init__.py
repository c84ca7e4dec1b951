"""Plan, run, talk to and watch llama.cpp's server in Kaggle and Colab notebooks.

Nothing is loaded before it is used: importing this package touches no disk, network,
GPU, environment variable or third-party package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamatelemetry._lazy import lazy

if TYPE_CHECKING:
    from llamatelemetry.api.client import LlamaCppClient
    from llamatelemetry.api.multigpu import plan_placement
    from llamatelemetry.batch import map_prompts
    from llamatelemetry.bench import benchmark
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
    "benchmark",
    "detect_gpus",
    "doctor",
    "ensure_engine",
    "ensure_model",
    "launch",
    "map_prompts",
    "plan_memory",
    "plan_placement",
    "prepare",
]

_HOMES = {
    "GPUMonitor": "gpu.monitor",
    "LlamaCppClient": "api.client",
    "ServerConfig": "server.config",
    "ServerManager": "server.manager",
    "ServerPool": "pool.server_pool",
    "benchmark": "bench",
    "detect_gpus": "gpu.inventory",
    "doctor": "diagnosis",
    "ensure_engine": "setup.engines",
    "ensure_model": "setup.models",
    "launch": "session",
    "map_prompts": "batch",
    "plan_memory": "gguf.memory",
    "plan_placement": "api.multigpu",
    "prepare": "setup._prepare",
}

_ROOMS = (
    *("api", "batch", "bench", "exceptions", "gguf", "gpu", "pool"),
    *("server", "setup", "telemetry", "widgets"),
)

__getattr__, __dir__ = lazy(__name__, _HOMES, _ROOMS)
