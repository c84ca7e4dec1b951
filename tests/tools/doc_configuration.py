"""The table of ServerConfig's fields: asked of the code, nothing of it is typed."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import griffe

from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.server import ServerConfig
from llamatelemetry.server.flags import (
    FLAG_OF_FIELD,
    TODAY,
    Capabilities,
    build_arguments,
    read_capabilities,
)

HELP = Path(__file__).resolve().parents[1] / "data" / "help"
OLD = "b5353"

# A value other than the default for each field, and what it needs beside it.
EXAMPLES: dict[str, Any] = {
    "model_path": "model.gguf",
    "host": "0.0.0.0",
    "port": 8081,
    "n_gpu_layers": 99,
    "main_gpu": 1,
    "tensor_split": "0.5,0.5",
    "split_mode": "none",
    "context_size": 8192,
    "n_batch": 2048,
    "flash_attn": True,
    "embeddings": True,
    "threads": 2,
    "api_key": "secret",
    "n_ubatch": 256,
    "threads_batch": 2,
    "parallel": 4,
    "lora_path": ["a.gguf", "b.gguf"],
    "mmproj_path": "mmproj.gguf",
    "mlock": True,
    "no_mmap": True,
    "cache_type_k": "q8_0",
    "cache_type_v": "q8_0",
    "pooling": "mean",
    "rerank": True,
    "alias": "name",
    "metrics": False,
    "slots": False,
    "jinja": False,
    "reasoning_format": "none",
    "slot_save_path": "slots",
    "device": "CUDA0",
    "fit": True,
    "cache_ram": 1024,
    "extra_args": ["--keep", "64"],
    "visible_devices": "0",
    "notes": ["why"],
}
NEEDS: dict[str, dict[str, Any]] = {"cache_type_v": {"flash_attn": True}}


def written(
    capabilities: Capabilities, field: str, value: Any, **beside: Any
) -> str | None:
    """Return the arguments that a value adds; None if the engine cannot have it."""
    plain = ServerConfig(None, **beside)
    try:
        with_value = build_arguments(plain.replace(**{field: value}), capabilities)
    except ConfigurationError:
        return None
    without = pairs(build_arguments(plain, capabilities))
    added = [pair for pair in pairs(with_value) if pair not in without]
    if field != "model_path":
        added = [pair for pair in added if not pair.startswith("--alias")] or added
    else:
        added = added[:1]
    return " ".join(added)


def pairs(arguments: list[str]) -> list[str]:
    """Join each flag with its value."""
    found: list[str] = []
    for argument in arguments:
        if argument.startswith("-") or not found:
            found.append(argument)
        else:
            found[-1] += f" {argument}"
    return found


def at_default(capabilities: Capabilities, field: str) -> str:
    """Return what is written for a field although it has its default."""
    flag = FLAG_OF_FIELD.get(field)
    spellings = flag.spellings if flag else ()
    for pair in pairs(build_arguments(ServerConfig(None), capabilities)):
        if pair.split()[0] in spellings:
            return pair
    return ""


def spelled(capabilities: Capabilities, field: str) -> str:
    """Return a table's cell: the default's arguments, and those of the example."""
    if field == "api_key":
        return "`LLAMA_API_KEY` in its environment"
    if field == "visible_devices":
        return "`CUDA_VISIBLE_DEVICES` in its environment"
    if field == "notes":
        return "nothing"
    beside = NEEDS.get(field, {})
    shown = written(capabilities, field, EXAMPLES[field], **beside)
    default = at_default(capabilities, field)
    parts = [f"`{default}`"] if default else []
    if shown is None:
        parts.append("ConfigurationError: it does not know the option")
    elif shown:
        parts.append(f"`{shown}`")
    else:
        value = EXAMPLES[field]
        parts.append(f"nothing for `{value!r}`")
    return "; ".join(parts)


def descriptions() -> dict[str, str]:
    """Return what the docstring says of each field, in a line."""
    text = inspect.cleandoc(ServerConfig.__doc__ or "")
    sections = griffe.Docstring(text, lineno=1).parse("google")
    found: dict[str, str] = {}
    for section in sections:
        if section.kind is griffe.DocstringSectionKind.attributes:
            for one in section.value:
                line = " ".join(one.description.split()).replace("``", "`")
                found[one.name] = re.sub(r":\w+:`([^`]+)`", r"`\1`", line)
    return found


def own_default(field: str) -> str:
    """Return llama-server's own default as its --help states it, or nothing."""
    flag = FLAG_OF_FIELD.get(field)
    found = re.search(r"\(default: ([^,)]+)", flag.help) if flag else None
    return f"`{found[1]}`" if found else ""


def table() -> str:
    """Return the table of all fields."""
    old = read_capabilities((HELP / f"{OLD}.txt").read_text(encoding="utf-8"))
    said = descriptions()
    lines = [
        "| field | what it is | default | llama-server's own | written for b11434 "
        f"| written for {OLD} |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for item in dataclasses.fields(ServerConfig):
        default = "" if item.name == "model_path" else f"`{item.default!r}`"
        today, before = spelled(TODAY, item.name), spelled(old, item.name)
        cells = [
            f"`{item.name}`",
            said[item.name],
            default,
            own_default(item.name),
            today,
            "the same" if before == today else before,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
