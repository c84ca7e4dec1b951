"""What a server's log says, as typed values. Reading a line is a pure function.

The texts are those of llama.cpp b7710 to b11434; a line that is not understood is no
event and is still in the log.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from llamatelemetry._units import MIB, format_memory


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a server."""


@dataclass(frozen=True, slots=True)
class Notice(Event):
    """Something that this package or the engine decided, in words.

    Attributes:
        text: What was decided, and why.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Loading(Event):
    """The server began to load a model.

    Attributes:
        path: The model file as the server names it.
    """

    path: str


@dataclass(frozen=True, slots=True)
class LoadProgress(Event):
    """How far loading is: an estimate from the bytes the process read or mapped.

    Attributes:
        fraction: From 0.0 to 1.0.
        bytes_loaded: Bytes read or mapped so far.
        seconds: Seconds since the start.
    """

    fraction: float
    bytes_loaded: int
    seconds: float


@dataclass(frozen=True, slots=True)
class BufferSize(Event):
    """The server allocated a buffer.

    Attributes:
        device: As the engine names it: "CUDA0", "CPU", "CPU_Mapped", ...
        kind: "model", "KV", "RS", "compute" or "output".
        size_bytes: Its size in bytes, to the 0.01 MiB the log prints.
    """

    device: str
    kind: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Listening(Event):
    """The server says it takes requests.

    Attributes:
        url: The address it names.
    """

    url: str


@dataclass(frozen=True, slots=True)
class Ready(Event):
    """The server has answered that it takes requests.

    Attributes:
        seconds: Seconds since the start.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class BindFailed(Event):
    """The server could not take its address.

    Attributes:
        host: The address asked for.
        port: The port asked for.
    """

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class OutOfMemory(Event):
    """A device had no room.

    Attributes:
        device: As the engine names it, or None if the line does not tell.
        needed: Bytes asked for in this one allocation, or None if not told.
    """

    device: str | None
    needed: int | None

    def __str__(self) -> str:
        needed = "memory" if self.needed is None else format_memory(self.needed)
        return f"{self.device or 'a device'} had no room for {needed}"


@dataclass(frozen=True, slots=True)
class UnknownFlag(Event):
    """The engine does not know an argument, or not this value of it.

    Attributes:
        flag: The argument.
        reason: What the engine said.
    """

    flag: str
    reason: str


@dataclass(frozen=True, slots=True)
class BadModel(Event):
    """The model cannot be loaded.

    Attributes:
        reason: What the engine said.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Exited(Event):
    """The server process ended.

    Attributes:
        exit_code: Its exit code; negative for a signal.
    """

    exit_code: int


def _mib(text: str) -> int:
    return round(float(text) * MIB)


_Maker = Callable[[re.Match[str]], Event]

# One pattern per kind of line, the first that matches counts. A plain substring is
# looked for first: most lines of a busy server have none of them.
_PATTERNS: tuple[tuple[str, re.Pattern[str], _Maker], ...] = (
    (
        "buffer size =",
        re.compile(
            r"(\S+)\s+(model|KV|RS|compute|output) buffer size =\s*([\d.]+) MiB"
        ),
        lambda match: BufferSize(match[1], match[2], _mib(match[3])),
    ),
    (
        "loading model '",
        re.compile(r"load_model: loading model '(.+)'"),
        lambda match: Loading(match[1]),
    ),
    (
        "listening on http",
        re.compile(r"listening on (https?://[^\s,]+)"),
        lambda match: Listening(match[1]),
    ),
    (
        "exceeds the training context",
        re.compile(
            r"the slot context \((\d+)\) exceeds the training context.*?\((\d+)\)"
        ),
        lambda match: Notice(
            f"context: a slot has {match[2]} tokens and not {match[1]}, which is more "
            "than the model was trained on"
        ),
    ),
    (
        "couldn't bind",
        re.compile(r"couldn't bind HTTP server socket, hostname: (\S+), port: (\d+)"),
        lambda match: BindFailed(match[1], int(match[2])),
    ),
    (
        "cudaMalloc failed",
        re.compile(r"allocating ([\d.]+) MiB on device (\d+): cudaMalloc failed"),
        lambda match: OutOfMemory(f"CUDA{match[2]}", _mib(match[1])),
    ),
    (
        "failed to allocate",
        re.compile(
            r"(?:(CPU|CUDA\d+)\S* )?.*failed to allocate buffer of size (\d+)"
            r"|failed to allocate (?:buffer for kv cache|compute \w+ buffers)"
        ),
        lambda match: OutOfMemory(match[1], int(match[2]) if match[2] else None),
    ),
    (
        "unable to allocate",
        re.compile(r"unable to allocate (\S+) buffer"),
        lambda match: OutOfMemory(match[1], None),
    ),
    (
        "out of memory",
        re.compile(r"CUDA error: out of memory"),
        lambda _: OutOfMemory(None, None),
    ),
    (
        "invalid argument:",
        re.compile(r"error: invalid argument: (\S+)"),
        lambda match: UnknownFlag(match[1], match[0]),
    ),
    (
        "error while handling",
        re.compile(
            r"error while handling (?:argument|environment variable) \"(.+?)\".*"
        ),
        lambda match: UnknownFlag(match[1], match[0]),
    ),
    (
        "the argument has been removed",
        re.compile(r".*the argument has been removed.*"),
        lambda match: UnknownFlag("", match[0].strip()),
    ),
    (
        "gguf_init_from",
        re.compile(r"gguf_init_from_\w+: (failed .+|invalid .+|tensor .+)"),
        lambda match: BadModel(match[1]),
    ),
    (
        "error loading model",
        re.compile(r"error loading model(?: \w+)?: (.+)"),
        lambda match: BadModel(match[1]),
    ),
    (
        "llama_adapter_lora_init",
        re.compile(r"llama_adapter_lora_init\w*: (failed .+|.*expect.+)"),
        lambda match: BadModel(f"LoRA adapter: {match[1]}"),
    ),
    (
        "failed to load multimodal",
        re.compile(r"failed to load multimodal model, '(.+)'"),
        lambda match: BadModel(f"multimodal projector {match[1]} cannot be loaded"),
    ),
)


# The patterns go back and forth on long lines; those that count are short.
_LONGEST_LINE = 1000


def read_event(line: str) -> Event | None:
    """Return what one line of a llama.cpp log says, or None."""
    if len(line) > _LONGEST_LINE:
        return None
    for clue, pattern, make in _PATTERNS:
        if clue in line and (match := pattern.search(line)):
            return make(match)
    return None
