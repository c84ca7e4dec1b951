"""ServerConfig: everything one server is started with, as a plain value.

A configuration is checked when it is made, against what llama-server itself does not
check. It never looks at a file or a card: those are checked when a server starts.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import PurePath
from typing import Any, Self, TypeVar

from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.server._config_checks import MAX_DEVICES, check, wrong_value
from llamatelemetry.server.flags import (
    FLAG_OF_SPELLING,
    build_arguments,
    normalize_spelling,
)

__all__ = ["MAX_DEVICES", "ServerConfig"]

PathValue = str | os.PathLike[str]


ConfigT = TypeVar("ConfigT")


def _with_hints(kind: type[ConfigT]) -> type[ConfigT]:
    """Name the field that was probably meant where the constructor is given another."""
    original = kind.__init__

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **values: Any) -> None:  # noqa: N807
        _refuse_unknown(values)
        original(self, *args, **values)

    kind.__init__ = __init__  # type: ignore[method-assign]
    return kind


@_with_hints
@dataclass(frozen=True)
class ServerConfig:
    """The configuration of one llama-server.

    The first thirteen fields are positional, all others keyword-only. Use
    :meth:`replace` for a changed copy.

    Attributes:
        model_path: The GGUF file, or the first of its shards. None until it is known;
            starting then raises ConfigurationError.
        host: The address to bind. The default is reachable from this machine only.
        port: 1 to 65535, or 0 for any free one.
        n_gpu_layers: Layers to put on the GPU. 0 is none, 99 is all.
        main_gpu: The GPU to use with ``split_mode="none"``, by its index.
        tensor_split: The share of each GPU, like "0.5,0.5". None: by free memory.
        split_mode: "none", "layer", "row" or "tensor" (the last in new engines only).
        context_size: Tokens of context over all slots together. 0: the model's own.
        n_batch: Tokens handed over at once at most.
        flash_attn: Flash attention on or off; off is said, not left to the engine.
        embeddings: Serve ``/v1/embeddings``. Several slots then share one KV cache.
        threads: CPU threads. What is passed is at most the CPUs usable here.
        api_key: The key clients must send. Travels in the environment only.
        n_ubatch: Tokens computed at once; never passed above n_batch.
        threads_batch: CPU threads for prompts. None: like ``threads``.
        parallel: Slots: requests served at once. Each has context_size / parallel,
            unless they share one cache.
        lora_path: One LoRA adapter or several.
        mmproj_path: The multimodal projector.
        mlock: Keep the model's pages in RAM.
        no_mmap: Read the file instead of mapping it.
        cache_type_k: Type of the KV cache's keys.
        cache_type_v: Type of the KV cache's values; quantized needs flash attention.
        pooling: How token embeddings become one: "mean", "cls", "last", "rank",
            "none". None: the model's own, or "mean" for a decoder with embeddings.
        rerank: Serve ``/v1/rerank``.
        alias: The model's name in answers. None: the file's stem.
        metrics: Serve ``/metrics``.
        slots: Serve ``/slots``.
        jinja: Use the model's own chat template; tools need it.
        reasoning_format: "none", "deepseek", "deepseek-legacy" or "auto".
        slot_save_path: An existing folder for saved slots.
        device: Devices to use, as the engine names them ("CUDA0,CUDA1"), or "none".
        fit: Let the engine change what is not set so that it fits. Off: what was
            asked for is taken literally.
        cache_ram: MiB of host memory for cached prompts. None: a tenth of what is
            available, at most 8192.
        extra_args: Further arguments, passed as they are. No keys.
        visible_devices: What the server gets as CUDA_VISIBLE_DEVICES: UUIDs or
            indices, separated by commas; "" for no card. Indices in other options
            then count among these. None: what this process has.
        notes: What was chosen for this configuration, and why, in sentences. Not
            passed to the engine, not compared, and dropped by :meth:`replace`.

    Raises:
        ConfigurationError: A value cannot work.

    Examples:
        >>> from llamatelemetry import ServerConfig
        >>> ServerConfig("model.gguf", n_gpu_layers=99, flash_attn=True).port
        8080
    """

    model_path: PathValue | None
    host: str = "127.0.0.1"
    port: int = 8080
    n_gpu_layers: int = 0
    main_gpu: int = 0
    tensor_split: str | None = None
    split_mode: str = "layer"
    context_size: int = 2048
    n_batch: int = 512
    flash_attn: bool = False
    embeddings: bool = False
    threads: int = 4
    api_key: str | None = field(default=None, repr=False)
    _: dataclasses.KW_ONLY
    n_ubatch: int = 512
    threads_batch: int | None = None
    parallel: int = 1
    lora_path: PathValue | Sequence[PathValue] | None = None
    mmproj_path: PathValue | None = None
    mlock: bool = False
    no_mmap: bool = False
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    pooling: str | None = None
    rerank: bool = False
    alias: str | None = None
    metrics: bool = True
    slots: bool = True
    jinja: bool = True
    reasoning_format: str | None = None
    slot_save_path: PathValue | None = None
    device: str | None = None
    fit: bool = False
    cache_ram: int | None = None
    extra_args: Sequence[str] = ()
    visible_devices: str | None = None
    notes: Sequence[str] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        _normalize(self)
        check(self)

    @property
    def model_alias(self) -> str | None:
        """The name answers carry: ``alias``, or the model file's stem."""
        if self.alias is not None or self.model_path is None:
            return self.alias
        stem = re.sub(r"-\d{5}-of-\d{5}$", "", PurePath(self.model_path).stem)
        return stem.replace(",", "_")  # llama-server takes commas for several names

    @property
    def lora_paths(self) -> tuple[str, ...]:
        """The LoRA adapters, however they were given."""
        if self.lora_path is None:
            return ()
        if isinstance(self.lora_path, (str, os.PathLike)):
            return (os.fspath(self.lora_path),)
        return tuple(os.fspath(path) for path in self.lora_path)

    @property
    def shares_cache(self) -> bool:
        """Whether all slots have one KV cache together, and so the whole context.

        ``--kv-unified`` or ``--no-kv-unified`` in ``extra_args`` decide it. Without
        them it is so for several slots with embeddings: where each slot has a cache
        of its own, llama.cpp gives texts that it works on at once wrong vectors
        (https://github.com/ggml-org/llama.cpp/issues/26282).

        Example:
            >>> from llamatelemetry import ServerConfig
            >>> config = ServerConfig("model.gguf", parallel=4, embeddings=True)
            >>> config.shares_cache, config.replace(embeddings=False).shares_cache
            (True, False)
        """
        flag = FLAG_OF_SPELLING["--kv-unified"]
        words = [normalize_spelling(word) for word in self.extra_args]
        said = [word for word in words if word in flag.spellings]
        if said:  # of two, llama-server takes the last
            return said[-1] not in flag.negated
        return self.embeddings and self.parallel > 1

    @property
    def url(self) -> str:
        """Where the server answers; with port 0 known only once it has started.

        An ``--api-prefix`` in ``extra_args`` is part of it.
        """
        prefix = ""
        if "--api-prefix" in self.extra_args[:-1]:
            prefix = self.extra_args[self.extra_args.index("--api-prefix") + 1]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - a comparison, no bind
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}{prefix}"

    def replace(self, **changes: Any) -> Self:
        """Return a copy with these fields changed, checked again.

        Notes are about the whole of a configuration, so they are dropped.

        Args:
            **changes: The fields to change, under their names.

        Raises:
            ConfigurationError: A field is unknown, or a value cannot work.

        Example:
            >>> from llamatelemetry import ServerConfig
            >>> ServerConfig("model.gguf").replace(context_size=8192)
            ServerConfig(model_path='model.gguf', context_size=8192)
        """
        _refuse_unknown(changes)
        return dataclasses.replace(self, **{"notes": (), **changes})

    def to_cli_args(self) -> str:
        """Return today's llama-server arguments, shell-quoted.

        Without the program and without the API key, which is never in argv.

        Example:
            >>> from llamatelemetry import ServerConfig
            >>> ServerConfig("model.gguf", n_gpu_layers=99).to_cli_args()
            '--model model.gguf --alias model ... --n-gpu-layers 99 ...'
        """
        return shlex.join(build_arguments(self))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values. The API key is left out."""
        return {
            item.name: _plain(getattr(self, item.name))
            for item in dataclasses.fields(self)
            if item.name != "api_key"
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make a configuration from :meth:`to_dict`'s result; takes a key too.

        Args:
            data: Fields and their values. Those left out have their defaults.

        Raises:
            ConfigurationError: A key is unknown, or a value cannot work.
        """
        _refuse_unknown(data)
        return cls(**{"model_path": None, **data})

    def __repr__(self) -> str:
        changed = [
            f"{item.name}={getattr(self, item.name)!r}"
            for item in dataclasses.fields(self)
            if item.repr and getattr(self, item.name) != item.default
        ]
        if self.api_key is not None:
            changed.append("api_key='***'")
        return f"ServerConfig({', '.join(changed)})"


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return list(value) if isinstance(value, tuple) else value


def _normalize(config: ServerConfig) -> None:
    """Make lists tuples and paths text, so that configurations compare and hash."""
    given: Any = config.lora_path
    paths = given if isinstance(given, (list, tuple)) else [given] if given else []
    if not all(isinstance(path, (str, os.PathLike)) for path in paths):
        raise wrong_value("lora_path", config.lora_path, "a path or a list of paths")
    for name in ("model_path", "mmproj_path", "slot_save_path"):
        value = getattr(config, name)
        if isinstance(value, os.PathLike):
            object.__setattr__(config, name, os.fspath(value))
    if isinstance(config.lora_path, os.PathLike):
        object.__setattr__(config, "lora_path", os.fspath(config.lora_path))
    elif isinstance(config.lora_path, Sequence) and not isinstance(
        config.lora_path, str
    ):
        object.__setattr__(config, "lora_path", config.lora_paths)
    for name, allowed in (
        ("extra_args", "a list of separate arguments"),
        ("notes", "a list of sentences"),
    ):
        value = getattr(config, name)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise wrong_value(name, value, allowed)
        object.__setattr__(config, name, tuple(value))


def _refuse_unknown(names: Mapping[str, Any]) -> None:
    if not isinstance(names, Mapping):
        raise ConfigurationError(
            f"from_dict takes a dictionary, not {type(names).__name__}"
        )
    known = [item.name for item in dataclasses.fields(ServerConfig)]
    for name in names:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            meant = _field_of_flag(str(name)) or (near[0] if near else None)
            hint = f"; did you mean {meant!r}?" if meant else ""
            raise ConfigurationError(f"ServerConfig has no field {name!r}{hint}")


def _field_of_flag(name: str) -> str | None:
    """Return the field behind llama.cpp's own name for it: "ctx_size", "ngl"."""
    spelling = name.replace("_", "-")
    for flag in (
        f"--{spelling}",
        f"-{spelling}",
        f"--{spelling.replace('n-', '')}-size",
    ):
        if flag in FLAG_OF_SPELLING:
            return FLAG_OF_SPELLING[flag].field
    return None
