"""The command an engine is started with, and what it means when that fails."""

from __future__ import annotations

import errno

from llamatelemetry.exceptions import (
    ConfigurationError,
    EngineNotFoundError,
    LLCudaError,
)
from llamatelemetry.server._preflight import Decisions
from llamatelemetry.server.config import ServerConfig
from llamatelemetry.server.engine import Engine
from llamatelemetry.server.flags import build_arguments


def write_command(
    engine: Engine, config: ServerConfig, decisions: Decisions
) -> list[str]:
    """Return the engine's command with all its arguments; the key is not among them."""
    return [
        *engine.command,
        *build_arguments(
            config,
            engine.capabilities(),
            engine_name=str(engine),
            threads=decisions.threads,
            threads_batch=decisions.threads_batch,
            cache_ram=decisions.cache_ram,
            pooling=decisions.pooling,
            memory_log=True,
        ),
    ]


def explain_no_start(engine_name: str, error: OSError) -> LLCudaError:
    """Return the error for a program that the system did not start."""
    if error.errno == errno.E2BIG:
        return ConfigurationError(
            "the arguments, or the environment with the key, are longer than the "
            "system allows; shorten extra_args or api_key"
        )
    return EngineNotFoundError(f"{engine_name} cannot be started: {error}")
