"""What a plan expects on each card, as bands of a chart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from llamatelemetry.gguf._places import Place
from llamatelemetry.gguf._plan_view import PARTS
from llamatelemetry.gguf.memory import MemoryPlan
from llamatelemetry.placement import Placement
from llamatelemetry.plots import Band

__all__ = [
    "HOST",
    "Expected",
    "Plan",
    "PlanSource",
    "bands_of",
    "before_bytes",
    "expected",
    "needed_bytes",
]

Plan: TypeAlias = MemoryPlan | Placement | None
PlanSource: TypeAlias = Plan | Callable[[], Plan]

HOST = -1
"""The host's number among the cards, which count from 0."""

Expected: TypeAlias = Mapping[int, tuple[Place, ...]]
"""What is expected on each card, by its index, and on the host."""

_HATCHES = {
    "kv_cache": "////",
    "compute": "\\\\\\\\",
    "output": "----",
    "cuda": "....",
    "projector": "xxxx",
    "adapters": "||||",
    "repacked": "++++",
    "prompt_cache": "oo",
}
"""Beside its colour each part has a pattern; the weights have none."""

_MARGIN = ("margin", "#9a9a9a", "//")


def expected(plan: Plan) -> Expected:
    """Return what is expected where.

    A placement's plans count the cards of their server from 0; those of a plan that
    stands alone have their own indices. One that fits nowhere expects nothing.
    """
    found: dict[int, tuple[Place, ...]] = {}
    for index, place in _places(plan):
        found[index] = (*found.get(index, ()), place)
    return found


def _places(plan: Plan) -> Iterable[tuple[int, Place]]:
    if isinstance(plan, Placement):
        # Where it fits nowhere, there is a plan that came nearest, and no cards.
        for cards, part in zip(plan.gpus, plan.plans, strict=False):
            for card, place in zip(cards, part.devices, strict=False):
                yield card.index, place
            yield HOST, part.host
    elif plan is not None:
        for place in plan.devices:
            yield int(place.name.removeprefix("CUDA")), place
        yield HOST, plan.host


def bands_of(places: Iterable[Place]) -> tuple[Band, ...]:
    """Return the bands of what lies on one device: each part once, a margin on top."""
    held = tuple(places)
    parts = [
        Band(label, size, colour, _HATCHES.get(name, ""))
        for name, (label, colour) in PARTS.items()
        if (size := sum(getattr(place, name) for place in held))
    ]
    margin = sum(place.margin for place in held)
    if margin:
        label, colour, hatch = _MARGIN
        parts.append(Band(label, margin, colour, hatch))
    return tuple(parts)


def needed_bytes(places: Iterable[Place]) -> int | None:
    """Return what is expected in sum, without a margin; None if nothing is planned."""
    held = tuple(places)
    return sum(place.needed for place in held) if held else None


def before_bytes(places: Iterable[Place], usable: int | None) -> int:
    """Return what was used before the model was loaded; 0 where that is not known.

    Args:
        places: What is planned there, by plans that were told what was free.
        usable: Bytes that can be used there at all.
    """
    free = [place.free for place in places if place.free is not None]
    if not free or usable is None:
        return 0
    return max(usable - max(free), 0)
