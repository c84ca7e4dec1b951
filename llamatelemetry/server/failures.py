"""Why a server ended: from its events and exit code to the error that says what to do.

Every error carries the whole evidence (command, exit code, the last
log lines): a ServerStartError itself, any other one as its ``__cause__``.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence

from llamatelemetry.exceptions import (
    ConfigurationError,
    LLCudaError,
    ModelError,
    OutOfMemoryError,
    PortInUseError,
    ServerStartError,
)
from llamatelemetry.server._linux import port_holder
from llamatelemetry.server.config import ServerConfig
from llamatelemetry.server.events import (
    BadModel,
    BindFailed,
    Event,
    OutOfMemory,
    UnknownFlag,
)


def explain_end(
    config: ServerConfig,
    events: Iterable[Event],
    *,
    engine_name: str,
    command: Sequence[str],
    exit_code: int,
    log_tail: str,
    was_ready: bool,
) -> LLCudaError:
    """Return the error that says why the server ended, with its evidence attached.

    Args:
        config: What it was started with.
        events: What happened; when it had been ready, only what happened after that:
            a problem that it got over while loading is not what ended it.
        engine_name: What messages call the engine.
        command: The program and its arguments.
        exit_code: Its exit code; negative for a signal.
        log_tail: The last lines of its log.
        was_ready: Whether it had been ready.
    """
    evidence = ServerStartError(
        _describe_end(engine_name, exit_code, log_tail, was_ready=was_ready),
        command=command,
        exit_code=exit_code,
        log_tail=log_tail,
    )
    cause = _explain(config, list(events), engine_name)
    if cause is None:
        return evidence
    cause.__cause__ = evidence
    return cause


def _explain(
    config: ServerConfig, events: Sequence[Event], engine_name: str
) -> LLCudaError | None:
    for event in events:
        if isinstance(event, OutOfMemory):
            # The line with the figures comes first; the ones after it repeat it.
            return OutOfMemoryError(
                f"{event} for {config.model_path}. {_ADVICE[event.device == 'CPU']}",
                device=event.device,
                needed=event.needed,
            )
        if isinstance(event, BindFailed):
            return port_in_use(config.host, event.port, port_holder(event.port))
        if isinstance(event, UnknownFlag):
            return ConfigurationError(
                f"{engine_name} refuses an argument: {event.reason}. "
                "Leave it out, or use an engine that has it"
            )
        if isinstance(event, BadModel):
            return ModelError(f"{config.model_path} cannot be loaded: {event.reason}")
    return None


_COLABS_PORT = 8080
_SHOWN = 90  # characters of a command

_ADVICE = {
    False: (
        "Lower context_size or n_gpu_layers, take a smaller quantization, or use "
        "cache_type_k='q8_0', cache_type_v='q8_0' with flash_attn=True"
    ),
    True: "Lower context_size or cache_ram, or take a smaller quantization",
}


def _describe_end(
    engine_name: str, exit_code: int, log_tail: str, *, was_ready: bool
) -> str:
    when = "after it was ready" if was_ready else "before it was ready"
    how = f"with exit code {exit_code}"
    if exit_code < 0:
        how = f"by signal {_signal_name(-exit_code)}"
        if exit_code == -signal.SIGKILL:
            how += (
                " (the kernel does that when the machine's memory runs out; a smaller "
                "context_size, cache_ram or model needs less)"
            )
    last = f"\nIts last log lines:\n{log_tail}" if log_tail else " and logged nothing"
    return f"{engine_name} ended {when}, {how}.{last}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def port_in_use(host: str, port: int, holder: str | None) -> PortInUseError:
    """Return the error for a port that something else holds."""
    who = "by another program" if holder is None else f"by {_shortened(holder)}"
    colab = " (on Colab the runtime itself holds it)" if port == _COLABS_PORT else ""
    return PortInUseError(
        f"port {port} on {host} is taken {who}{colab}. Take any free port: "
        "config = config.replace(port=0), then use server.get_url()",
        port=port,
        holder=holder,
    )
