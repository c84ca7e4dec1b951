"""Know the cards: what is here, and what this process may use of it."""

from __future__ import annotations

from llamatelemetry.gpu.inventory import GPUInfo, detect_gpus

__all__ = ["GPUInfo", "detect_gpus"]
