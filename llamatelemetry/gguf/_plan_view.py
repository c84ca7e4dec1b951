"""A memory plan for people: as text, as HTML, as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamatelemetry._units import format_memory
from llamatelemetry.gguf import _html
from llamatelemetry.gguf._placement import Place

if TYPE_CHECKING:
    from llamatelemetry.gguf.memory import MemoryPlan

# How the parts of a place are called, and in which colour they are drawn: the colours
# of Okabe and Ito, which all readers can tell apart (https://jfly.uni-koeln.de/color/).
PARTS = {
    "weights": ("weights", "#0072b2"),
    "kv_cache": ("KV cache", "#e69f00"),
    "compute": ("compute", "#009e73"),
    "output": ("output", "#56b4e9"),
    "context": ("CUDA", "#999999"),
    "projector": ("projector", "#cc79a7"),
    "adapters": ("adapters", "#d55e00"),
    "repacked": ("repacked", "#7fb8d8"),
    "prompt_cache": ("prompt cache", "#f0e442"),
}


def rows(plan: MemoryPlan) -> list[dict[str, Any]]:
    """Return one dictionary per device; bytes, None where there is no limit."""
    return [
        {
            "device": place.name,
            **{name: getattr(place, name) for name in PARTS},
            "needed": place.needed,
            "free": place.free,
            "left": place.left,
            "basis": _basis(place),
        }
        for place in (*plan.devices, plan.host)
    ]


def text(plan: MemoryPlan) -> str:
    """Return the plan as a table for a terminal, with its verdict and its notes."""
    names = _shown(plan)
    head = ["device", *(PARTS[name][0] for name in names), "needed", "free", "basis"]
    lines = [head]
    for place in (*plan.devices, plan.host):
        cells = [format_memory(getattr(place, name)) for name in names]
        free = "-" if place.free is None else format_memory(place.free)
        lines.append(
            [place.name, *cells, format_memory(place.needed), free, _basis(place)]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    table = "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, len(head) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
    notes = "".join(f"\n  - {note}" for note in plan.notes)
    return f"{title(plan)}\n\n{table}\n\n{plan.verdict}{notes}"


def title(plan: MemoryPlan) -> str:
    """Return what was planned, in a line."""
    config = plan.config
    slots = f"{config.parallel} slots" if config.parallel > 1 else "1 slot"
    cache = config.cache_type_k
    if config.cache_type_v != cache:
        cache = f"{cache}/{config.cache_type_v}"
    flash = "flash attention" if config.flash_attn else "no flash attention"
    return (
        f"{plan.model} ({plan.architecture}): {plan.context:,} tokens of context, "
        f"{slots}, {cache} cache, {flash}"
    )


def verdict(plan: MemoryPlan) -> str:
    """Return whether it fits, in a sentence."""
    limited = any(place.free is not None for place in (*plan.devices, plan.host))
    if not limited:
        return f"It needs {format_memory(plan.needed)}; no limit was given."
    largest = plan.max_context()
    if plan.fits:
        return f"It fits; up to {largest:,} tokens of context would."
    tight = plan.tightest
    lacking = f"It does not fit: {tight.name} needs {format_memory(tight.needed)}"
    if tight.is_gpu:
        lacking += " and a margin"
    lacking += f", {format_memory(tight.free or 0)} are free."
    if largest:
        return f"{lacking} Up to {largest:,} tokens of context would fit."
    return f"{lacking} No context would make it fit."


def html(plan: MemoryPlan) -> str:
    """Return the plan as HTML: a bar for each device, a verdict, the notes."""
    bars = [_bar(place) for place in (*plan.devices, plan.host)]
    rows = [[note] for note in plan.notes]
    return _html.panel(title(plan), plan.verdict, *bars, _html.table(rows))


def _bar(place: Place) -> str:
    """Draw what a device holds, over what it has."""
    whole = max(place.needed, place.free or 0, 1)
    segments = [
        _html.Segment(label, size / whole, colour, format_memory(size))
        for name, (label, colour) in PARTS.items()
        if (size := getattr(place, name))
    ]
    heading = f"{place.name}: {format_memory(place.needed)}"
    if place.free is not None:
        heading += f" of {format_memory(place.free)} that are free"
        if place.left and place.left > 0:
            left = format_memory(place.left)
            segments.append(_html.Segment("free", place.left / whole, _html.FREE, left))
    return _html.bar(segments, title=f"{heading} ({_basis(place)})")


def _shown(plan: MemoryPlan) -> list[str]:
    """Return the parts that some device has."""
    return [
        name
        for name in PARTS
        if any(getattr(place, name) for place in (*plan.devices, plan.host))
    ]


def _basis(place: Place) -> str:
    return "known" if place.known else "estimated"
