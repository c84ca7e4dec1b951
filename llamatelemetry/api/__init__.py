"""Talk to it: the HTTP client and its response types; the API reference's faces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamatelemetry._lazy import lazy

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

__getattr__, __dir__ = lazy(__name__, dict.fromkeys(__all__, "multigpu"))
