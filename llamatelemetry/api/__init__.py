"""Talk to it: the HTTP client and its response types; the API reference's faces."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamatelemetry.api.multigpu import (
        GPUInfo,
        Placement,
        create_tensor_split_config,
        detect_gpus,
        kaggle_t4_dual_config,
        plan_placement,
    )

__all__ = [
    "GPUInfo",
    "Placement",
    "create_tensor_split_config",
    "detect_gpus",
    "kaggle_t4_dual_config",
    "plan_placement",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.multigpu"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
