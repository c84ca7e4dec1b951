"""Gets an engine and a model: fetched, verified, and found again without internet."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_HOMES = {
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
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
