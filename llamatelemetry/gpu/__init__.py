"""Know the cards: what is here, what this process may use of it, how they are doing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llamatelemetry.gpu.inventory import (
    ComputeCapability,
    GPUInfo,
    detect_gpus,
    visible_devices_text,
)

if TYPE_CHECKING:
    from llamatelemetry.gpu._samples import GPUSample, Mark
    from llamatelemetry.gpu.monitor import GPUMonitor

__all__ = [
    "ComputeCapability",
    "GPUInfo",
    "GPUMonitor",
    "GPUSample",
    "Mark",
    "detect_gpus",
    "visible_devices_text",
]

# Lazy, so that who only counts cards loads no monitor.
_HOMES = {
    "GPUMonitor": "monitor",
    "GPUSample": "_samples",
    "Mark": "_samples",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
