"""What an engine says of itself: its build, and the cards that it sees."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from llamatelemetry.exceptions import EngineNotFoundError
from llamatelemetry.server import _process
from llamatelemetry.server.engine import (
    Engine,
    FileIdentity,
    build_environment,
    identity_of,
)

__all__ = ["EngineFacts", "probe_engine", "read_build", "read_devices"]

# The first start on a cold disk opens the driver and may compile kernels for the card.
_TIMEOUT_SECONDS = 120.0
_BUILD = re.compile(r"^version: (?:(\d+) \(|.*\(build (\d+))", re.MULTILINE)
_DEVICE = re.compile(r"^ {2}(\w+): (.+)$", re.MULTILINE)
_MISSING_LIBRARY = re.compile(r"(\S+\.so[\w.]*): cannot open shared object file")
_OLD_LIBRARY = re.compile(r"version `(\w+_[\d.]+)' not found")
_ILLEGAL_INSTRUCTION = -4


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says of itself.

    Attributes:
        build: llama.cpp's build number (9940 for b9940), or None if it does not tell.
        devices: The cards it sees, as it lists them; ("CUDA0: Tesla T4 (...)",).
    """

    build: int | None
    devices: tuple[str, ...]


def read_build(text: str) -> int | None:
    """Return llama.cpp's build number from what ``--version`` prints."""
    match = _BUILD.search(text)
    number = int(match[1] or match[2]) if match else 0
    return number or None


def read_devices(text: str) -> tuple[str, ...]:
    """Return the cards that ``--list-devices`` prints."""
    _, _, listed = text.partition("Available devices:\n")
    return tuple(f"{match[1]}: {match[2]}" for match in _DEVICE.finditer(listed))


def probe_engine(engine: Engine) -> EngineFacts:
    """Run an engine with ``--version`` and ``--list-devices``.

    Once per process; again only when its file has changed, or if it failed.

    Raises:
        EngineNotFoundError: It cannot run here; says which library is missing or too
            old, where that is why.
    """
    return _probe(engine, identity_of(engine.command))


@lru_cache(maxsize=32)
def _probe(engine: Engine, identity: FileIdentity) -> EngineFacts:
    del identity  # part of the cache's key only
    version = _run(engine, "--version")
    devices = _run(engine, "--list-devices")
    return EngineFacts(read_build(version), read_devices(devices))


def _run(engine: Engine, flag: str) -> str:
    command = [*engine.command, flag]
    try:
        done = _process.run(
            command, environment=build_environment(engine), timeout=_TIMEOUT_SECONDS
        )
    except (OSError, TimeoutError) as error:
        raise EngineNotFoundError(f"{engine} does not run: {error}") from error
    output = f"{done.stdout}\n{done.stderr}"
    if done.returncode == 0:
        return output
    reason = _reason(done.returncode, output)
    tail = output.strip()[-1000:]
    name = _name(engine)
    raise EngineNotFoundError(
        f"{name} does not run here: {reason}\n{engine}\n{tail}".rstrip()
    )


def _name(engine: Engine) -> str:
    return str(engine) if engine.embedded else Path(engine.command[0]).name


def _reason(code: int, output: str) -> str:
    missing = _MISSING_LIBRARY.search(output)
    if missing is not None:
        advice = ""
        if missing[1].startswith("libcuda."):
            advice = " (it comes with NVIDIA's driver: is there a card?)"
        return f"the library {missing[1]} is missing{advice}"
    old = _OLD_LIBRARY.search(output)
    if old is not None:
        return f"this system's libraries are too old: {old[1]} is needed"
    if code == _ILLEGAL_INSTRUCTION:
        return "it was built for a newer CPU (illegal instruction)"
    return f"it ended with exit code {code}"
