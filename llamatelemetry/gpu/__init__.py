"""Know the cards: what is here, what this process may use of it, how they are doing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamatelemetry._lazy import lazy
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
__getattr__, __dir__ = lazy(
    __name__,
    {
        "GPUMonitor": "monitor",
        "GPUSample": "_samples",
        "Mark": "_samples",
    },
)
