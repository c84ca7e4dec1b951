"""What a configuration's values must be: checked against what llama-server does not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.server.flags import FLAG_OF_SPELLING, normalize_spelling

if TYPE_CHECKING:
    from llamatelemetry.server.config import ServerConfig

__all__ = ["MAX_DEVICES", "check", "wrong_value"]

# Source: `--cache-type-k` in llama-server's --help (b11434).
CACHE_TYPES = (
    "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1",
)  # fmt: skip
SPLIT_MODES = ("none", "layer", "row", "tensor")
POOLING_TYPES = ("none", "mean", "cls", "last", "rank")
REASONING_FORMATS = ("none", "deepseek", "deepseek-legacy", "auto")
FLOAT_CACHE_TYPES = frozenset({"f32", "f16", "bf16"})


def wrong_value(name: str, value: object, allowed: str) -> ConfigurationError:
    """Return the error for a field that cannot have this value."""
    return ConfigurationError(f"{name} cannot be {value!r}; it must be {allowed}")


def check(config: ServerConfig) -> None:
    """Check every field of a configuration, and what cannot go together.

    Raises:
        ConfigurationError: A value cannot work; says which, and what is allowed.
    """
    _check_types(config)
    _check_ranges(config)
    _check_no_zero_bytes(config)
    _check_text(config)
    _check_combinations(config)


_INTEGERS = (
    "port", "n_gpu_layers", "main_gpu", "context_size", "n_batch", "threads",
    "n_ubatch", "threads_batch", "parallel", "cache_ram",
)  # fmt: skip
_BOOLEANS = (
    "flash_attn", "embeddings", "mlock", "no_mmap", "rerank", "metrics", "slots",
    "jinja", "fit",
)  # fmt: skip
_TEXTS = (
    "model_path", "host", "tensor_split", "split_mode", "api_key", "mmproj_path",
    "cache_type_k", "cache_type_v", "pooling", "alias", "reasoning_format",
    "slot_save_path", "device", "visible_devices",
)  # fmt: skip
# Fields that may be None, whatever their type is otherwise.
_OPTIONAL = frozenset({
    "model_path", "tensor_split", "api_key", "threads_batch", "mmproj_path", "pooling",
    "alias", "reasoning_format", "slot_save_path", "device", "cache_ram",
    "visible_devices",
})  # fmt: skip


def _check_types(config: ServerConfig) -> None:
    for names, kind, allowed in (
        (_INTEGERS, int, "a whole number"),
        (_BOOLEANS, bool, "True or False"),
        (_TEXTS, str, "text"),
    ):
        for name in names:
            value = getattr(config, name)
            if value is None and name in _OPTIONAL:
                continue
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                secret = "***" if name == "api_key" else value
                raise wrong_value(name, secret, allowed)
    for name in ("extra_args", "notes"):
        for text in getattr(config, name):
            if not isinstance(text, str):
                raise wrong_value(name, text, "a list of text")


_RANGES: dict[str, tuple[int, int, str]] = {
    "port": (0, 65535, "1 to 65535, or 0 for any free one"),
    "n_gpu_layers": (0, 2**31 - 1, "0 (none) or more; 99 is all of nearly any model"),
    "main_gpu": (0, 15, "0 to 15"),
    "context_size": (0, 2**31 - 1, "0 (the model's own) to 2,147,483,647"),
    "n_batch": (1, 2**31 - 1, "1 or more"),
    "n_ubatch": (1, 2**31 - 1, "1 or more"),
    "threads": (1, 4096, "1 or more"),
    "threads_batch": (1, 4096, "1 or more, or None"),
    "parallel": (
        1,
        256,
        "1 to 256",
    ),  # LLAMA_MAX_SEQ in llama.cpp's src/llama-cparams.h
    "cache_ram": (0, 2**31 - 1, "0 (none) or more MiB"),
}


def _check_ranges(config: ServerConfig) -> None:
    for name, (least, most, allowed) in _RANGES.items():
        value = getattr(config, name)
        if value is not None and not least <= value <= most:
            raise wrong_value(name, value, allowed)
    for name, choices in (
        ("split_mode", SPLIT_MODES),
        ("cache_type_k", CACHE_TYPES),
        ("cache_type_v", CACHE_TYPES),
        ("pooling", POOLING_TYPES),
        ("reasoning_format", REASONING_FORMATS),
    ):
        value = getattr(config, name)
        if value is not None and value not in choices:
            raise wrong_value(name, value, "one of " + ", ".join(choices))


# llama.cpp is built for at most this many devices: GGML_CUDA_MAX_DEVICES.
MAX_DEVICES = 16


def _check_no_zero_bytes(config: ServerConfig) -> None:
    for name in (*_TEXTS, "lora_path", "extra_args"):
        value = getattr(config, name)
        for text in (value,) if isinstance(value, str) else value or ():
            if "\0" in text:
                raise ConfigurationError(f"{name} holds a zero byte, which ends a text")


def _check_text(config: ServerConfig) -> None:
    # llama-server also takes lists and Unix sockets; this package speaks to one port.
    if not re.fullmatch(r"[\w.:%-]+", config.host):
        raise wrong_value("host", config.host, "one address like '127.0.0.1'")
    if config.model_path == "":
        raise wrong_value("model_path", "", "a path, or None until it is known")
    if config.alias is not None and (not config.alias or "," in config.alias):
        raise wrong_value("alias", config.alias, "a name without commas, or None")
    if config.api_key is not None and (
        not config.api_key or "," in config.api_key or not config.api_key.isprintable()
    ):
        raise ConfigurationError(
            "api_key must be printable text without commas: llama-server reads a "
            "comma as the end of one key and the start of another"
        )
    for path in config.lora_paths:
        if not path or "," in path:
            raise wrong_value(
                "lora_path", path, "a path without a comma (llama-server splits there)"
            )
    if config.tensor_split is not None:
        _check_tensor_split(config.tensor_split)
    if config.visible_devices is not None:
        _check_visible_devices(config.visible_devices)
    _check_extra_arguments(config.extra_args)


def _check_tensor_split(text: str) -> None:
    allowed = f"up to {MAX_DEVICES} numbers like '0.5,0.5', at least one above 0"
    try:
        shares = [float(part) for part in re.split(r"[,/]", text)]
    except ValueError:
        raise wrong_value("tensor_split", text, allowed) from None
    finite = all(0 <= share < float("inf") for share in shares)
    if not finite or not any(shares) or len(shares) > MAX_DEVICES:
        raise wrong_value("tensor_split", text, allowed)


_VISIBLE = re.compile(r"\d+|(GPU|MIG)-[\w/-]+")


def _check_visible_devices(text: str) -> None:
    names = text.split(",")
    # CUDA shows no card at all where one is named twice, and reads "foo" as no card.
    wrong = any(_VISIBLE.fullmatch(name) is None for name in names)
    if text not in ("", "-1") and (wrong or len(set(names)) < len(names)):
        raise wrong_value(
            "visible_devices",
            text,
            "UUIDs or indices, separated by commas, each once; or '' for no card",
        )


# The manager must know these: where the server listens, what it loads, and what it
# limits to the CPUs that are there.
_FIELDS_ONLY = {
    "--model": "model_path",
    "--host": "host",
    "--port": "port",
    "--threads": "threads",
    "--threads-batch": "threads_batch",
}
_SECRET = re.compile(r"-+(api-?keys?|hf-?token|hft)", re.IGNORECASE)


def _check_extra_arguments(arguments: Sequence[str]) -> None:
    is_value = False
    for argument in arguments:
        spelling = normalize_spelling(argument.partition("=")[0])
        if not is_value and _SECRET.fullmatch(spelling):
            raise ConfigurationError(
                f"extra_args must not hold {spelling}: everyone on the machine can "
                "read a program's arguments. Set api_key; a token for the Hub goes "
                "into ServerManager(environment={'HF_TOKEN': ...})"
            )
        flag = None if is_value else FLAG_OF_SPELLING.get(spelling)
        is_value = flag is not None and flag.takes_value and "=" not in argument
        if flag is not None and flag.flag in _FIELDS_ONLY:
            raise ConfigurationError(
                f"extra_args must not hold {argument}; set {_FIELDS_ONLY[flag.flag]}"
            )


def _check_combinations(config: ServerConfig) -> None:
    if config.cache_type_v not in FLOAT_CACHE_TYPES and not config.flash_attn:
        raise ConfigurationError(
            f"cache_type_v={config.cache_type_v!r} needs flash attention; "
            "set flash_attn=True, or a cache_type_v of f16, bf16 or f32"
        )
    if config.split_mode == "tensor" and not config.flash_attn:
        raise ConfigurationError(
            "split_mode='tensor' needs flash attention; set flash_attn=True"
        )
    if config.rerank and config.pooling not in (None, "rank"):
        raise ConfigurationError(
            f"rerank=True needs pooling='rank', not {config.pooling!r}"
        )
