"""Know the model before it loads: headers, quantization, and the memory it takes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamatelemetry.gguf.memory import GPUMemory, MemoryPlan, plan_memory
    from llamatelemetry.gguf.parser import GGUFParser
    from llamatelemetry.gguf.reader import GGUFHeader, read_header

__all__ = [
    "GGUFHeader",
    "GGUFParser",
    "GPUMemory",
    "MemoryPlan",
    "plan_memory",
    "read_header",
]

_HOMES = {
    "GGUFHeader": "reader",
    "GGUFParser": "parser",
    "GPUMemory": "memory",
    "MemoryPlan": "memory",
    "plan_memory": "memory",
    "read_header": "reader",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
