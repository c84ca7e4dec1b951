"""From what happened to the error that says what to do."""

from __future__ import annotations

import pytest

from llamatelemetry._units import MIB
from llamatelemetry.exceptions import (
    ConfigurationError,
    LLCudaError,
    ModelError,
    OutOfMemoryError,
    PortInUseError,
    ServerStartError,
)
from llamatelemetry.server import ServerConfig
from llamatelemetry.server.events import (
    BadModel,
    BindFailed,
    Event,
    Listening,
    OutOfMemory,
    UnknownFlag,
)
from llamatelemetry.server.failures import explain_end

CONFIG = ServerConfig("m.gguf")


def explain(*events: Event, exit_code: int = 1, was_ready: bool = False) -> LLCudaError:
    """Explain an end with this story."""
    return explain_end(
        CONFIG,
        events,
        engine_name="the engine",
        command=["llama-server", "--model", "m.gguf"],
        exit_code=exit_code,
        log_tail="the last line",
        was_ready=was_ready,
    )


@pytest.mark.parametrize(
    ("event", "kind", "words"),
    [
        (
            OutOfMemory("CUDA1", 512 * MIB),
            OutOfMemoryError,
            "CUDA1 had no room for 512",
        ),
        (OutOfMemory("CPU", None), OutOfMemoryError, "cache_ram"),
        (BindFailed("127.0.0.1", 81), PortInUseError, "port 81 .*port=0"),
        (UnknownFlag("--x", "error: invalid argument: --x"), ConfigurationError, "--x"),
        (BadModel("it is cut"), ModelError, "m.gguf cannot be loaded: it is cut"),
        (Listening("http://x"), ServerStartError, "the last line"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value)[:20],
)
def test_each_cause_has_its_error_and_carries_the_evidence(
    event: Event, kind: type[LLCudaError], words: str
) -> None:
    """The type fits the cause, and command, code and log are attached."""
    error = explain(event)
    evidence = error if isinstance(error, ServerStartError) else error.__cause__

    assert type(error) is kind
    with pytest.raises(kind, match=words):
        raise error
    assert isinstance(evidence, ServerStartError)
    assert evidence.command[0] == "llama-server"
    assert evidence.exit_code == 1
    assert evidence.log_tail == "the last line"


def test_memory_figures_stay_on_the_error() -> None:
    """An out-of-memory error keeps device and bytes as values."""
    error = explain(OutOfMemory("CUDA0", 7), BadModel("unable to allocate buffer"))

    assert isinstance(error, OutOfMemoryError)
    assert (error.device, error.needed) == ("CUDA0", 7)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-9, "SIGKILL .*memory runs out"),
        (-11, "SIGSEGV"),
        (-99, "by signal 99"),
        (3, "exit code 3"),
    ],
)
def test_an_unexplained_end_says_how_it_ended(code: int, words: str) -> None:
    """Signal or exit code are named in words."""
    with pytest.raises(ServerStartError, match=words):
        raise explain(exit_code=code)


def test_an_end_after_ready_is_told_apart() -> None:
    """A server that ended while it served is not said to have failed to start."""
    assert "after it was ready" in str(explain(was_ready=True))
    assert "before it was ready" in str(explain())
