"""Know the model before it loads: headers, quantization, and the memory it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamatelemetry._lazy import lazy

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

__getattr__, __dir__ = lazy(
    __name__,
    {
        "GGUFHeader": "reader",
        "GGUFParser": "parser",
        "GPUMemory": "memory",
        "MemoryPlan": "memory",
        "plan_memory": "memory",
        "read_header": "reader",
    },
)
