"""What is checked and decided just before a server starts: files, address, threads."""

from __future__ import annotations

import errno
import random
import socket
from dataclasses import dataclass
from pathlib import Path

from llamatelemetry._units import MIB, format_memory
from llamatelemetry.exceptions import (
    ConfigurationError,
    GGUFError,
    ModelError,
    PortInUseError,
)
from llamatelemetry.gguf.reader import read_header
from llamatelemetry.server._linux import available_memory, port_holder, usable_cpus
from llamatelemetry.server.config import ServerConfig
from llamatelemetry.server.failures import port_in_use

GGUF_MAGIC = b"GGUF"
# Magic, version and two counts: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
_SMALLEST_HEADER_BYTES = 24
# Small metadata comes before the vocabulary in files written by llama.cpp's tools.
MOST_CACHE_MIB = 8192  # llama-server's own default
# Below the kernel's range for outgoing connections (32768 on), so that none of them
# takes the port between the test and the server's own bind.
_FREE_PORTS = range(20000, 32000)
_PORT_TRIES = 200


@dataclass(frozen=True, slots=True)
class Decisions:
    """What is passed to the engine instead of, or beside, the configuration.

    Attributes:
        threads: CPU threads, at most the usable CPUs.
        threads_batch: The same for prompts, or None.
        cache_ram: MiB of host memory for cached prompts.
        pooling: The pooling type, or None for the model's own.
        notices: What differs from the configuration, and why, in words.
    """

    threads: int
    threads_batch: int | None
    cache_ram: int
    pooling: str | None
    notices: tuple[str, ...]


def with_absolute_paths(config: ServerConfig) -> ServerConfig:
    """Return the configuration with paths that a change of folder cannot break."""
    lora = tuple(str(Path(path).absolute()) for path in config.lora_paths)
    changes: dict[str, object] = {"lora_path": lora or None, "notes": config.notes}
    for name in ("model_path", "mmproj_path", "slot_save_path"):
        path = getattr(config, name)
        if path is not None:
            changes[name] = str(Path(path).absolute())
    return config.replace(**changes)


def check_files(config: ServerConfig) -> None:
    """Check every file the configuration names.

    Raises:
        ConfigurationError: No model is named, or a named folder or file is missing.
        ModelError: The model is missing, empty, cut off or not GGUF.
    """
    if config.model_path is None:
        raise ConfigurationError(
            "no model: set model_path, as in config.replace(model_path='model.gguf'); "
            "for a placement, plan that of prepare(name).model"
        )
    _check_gguf(Path(config.model_path))
    for name, path in (
        *(("lora_path", path) for path in config.lora_paths),
        ("mmproj_path", config.mmproj_path),
    ):
        if path is not None and not Path(path).is_file():
            raise ConfigurationError(f"{name}: there is no file {path}")
    if config.slot_save_path is not None and not Path(config.slot_save_path).is_dir():
        raise ConfigurationError(
            f"slot_save_path: there is no folder {config.slot_save_path}; make it first"
        )


def _check_gguf(path: Path) -> None:
    if path.is_dir():
        raise ModelError(f"{path} is a folder; name the GGUF file in it")
    try:
        with path.open("rb") as file:
            start = file.read(_SMALLEST_HEADER_BYTES)
    except FileNotFoundError:
        hint = "; download it first, this takes files" if ":/" in str(path) else ""
        raise ModelError(f"there is no model file {path}{hint}") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if not start:
        raise ModelError(f"{path} is empty; the download did not finish?")
    if not start.startswith(GGUF_MAGIC):
        raise ModelError(
            f"{path} is not a GGUF file: it starts with {start[:4]!r}, not b'GGUF'"
        )
    if len(start) < _SMALLEST_HEADER_BYTES:
        raise ModelError(f"{path} is cut off: {len(start)} bytes are not even a header")


def resolve_port(config: ServerConfig) -> ServerConfig:
    """Return the configuration with a port that can be bound now.

    Raises:
        PortInUseError: The port is taken.
        ConfigurationError: The address cannot be bound at all.
    """
    if config.port != 0:
        _test_bind(config.host, config.port)
        return config
    # Not the shared generator: a seeded one would give everybody the same port.
    for port in random.SystemRandom().sample(_FREE_PORTS, _PORT_TRIES):
        try:
            _test_bind(config.host, port)
        except PortInUseError:
            continue
        return config.replace(port=port, notes=config.notes)
    raise ConfigurationError(f"no free port found on {config.host}; name one")


def _test_bind(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do it: a port in TIME_WAIT is free, one that is listened on is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise port_in_use(host, port, port_holder(port)) from error
            raise ConfigurationError(
                f"cannot bind {host}:{port}: {error.strerror}; "
                "use host='127.0.0.1' and a port above 1023"
            ) from error


def decide(config: ServerConfig) -> Decisions:
    """Decide what depends on this machine and on the model's own header."""
    notices = []
    cpus = usable_cpus()
    threads = min(config.threads, cpus)
    if threads < config.threads:
        notices.append(
            f"threads={config.threads}, passed as {threads}: {cpus} CPUs can be used "
            "here, and more threads than CPUs make an engine many times slower"
        )
    batch = config.threads_batch
    cache_ram = config.cache_ram
    if cache_ram is None:
        memory = available_memory()
        cache_ram = MOST_CACHE_MIB
        if memory is not None:
            cache_ram = min(MOST_CACHE_MIB, memory // 10 // MIB)
            notices.append(
                f"prompt cache: {format_memory(cache_ram * MIB)} of host memory at "
                f"most ({format_memory(memory)} are available)"
            )
    pooling = config.pooling
    if config.embeddings and pooling is None and not _names_pooling(config):
        pooling = "mean"
        notices.append(
            "embeddings: the model names no pooling type, as a decoder does; "
            "passed --pooling mean, without which /v1/embeddings answers 400"
        )
    return Decisions(
        threads=threads,
        threads_batch=None if batch is None else min(batch, cpus),
        cache_ram=cache_ram,
        pooling=pooling,
        notices=tuple(notices),
    )


def _names_pooling(config: ServerConfig) -> bool:
    """Whether the model's header has a pooling type, as encoders' headers do."""
    if config.rerank or config.model_path is None:
        return True
    try:
        header = read_header(config.model_path, stop_before="tokenizer.", shards=False)
    except GGUFError:  # the engine says better what is wrong with its model
        return True
    return any(key.endswith(".pooling_type") for key in header.metadata)
