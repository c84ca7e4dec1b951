"""Gets an engine and a model: fetched, verified, and found again without internet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamatelemetry._lazy import lazy

if TYPE_CHECKING:
    from llamatelemetry.setup._fetch import LocalModel
    from llamatelemetry.setup._prepare import Prepared, prepare
    from llamatelemetry.setup._setup_plan import SetupPlan
    from llamatelemetry.setup.capsule import Capsule, open_capsule, pack
    from llamatelemetry.setup.engines import ensure_engine
    from llamatelemetry.setup.models import ensure_model
    from llamatelemetry.setup.recommend import recommend_model

__all__ = [
    "Capsule",
    "LocalModel",
    "Prepared",
    "SetupPlan",
    "ensure_engine",
    "ensure_model",
    "open_capsule",
    "pack",
    "prepare",
    "recommend_model",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "Capsule": "capsule",
        "LocalModel": "_fetch",
        "Prepared": "_prepare",
        "SetupPlan": "_setup_plan",
        "ensure_engine": "engines",
        "ensure_model": "models",
        "open_capsule": "capsule",
        "pack": "capsule",
        "prepare": "_prepare",
        "recommend_model": "recommend",
    },
)
