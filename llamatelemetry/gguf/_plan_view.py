"""A memory plan for people: as text, as HTML, as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamatelemetry._units import GIB, format_file_size, format_memory
from llamatelemetry.gguf import _html
from llamatelemetry.gguf._places import Place

if TYPE_CHECKING:
    from llamatelemetry.gguf.memory import MemoryPlan

# How the parts of a place are called, and in which colour they are drawn: the colours
# of Okabe and Ito, which all readers can tell apart (https://jfly.uni-koeln.de/color/).
PARTS = {
    "weights": ("weights", "#0072b2"),
    "kv_cache": ("KV cache", "#e69f00"),
    "compute": ("compute", "#009e73"),
    "output": ("output", "#56b4e9"),
    "cuda": ("CUDA", "#5d5d5d"),
    "projector": ("projector", "#cc79a7"),
    "adapters": ("adapters", "#d55e00"),
    "repacked": ("repacked", "#7fb8d8"),
    "prompt_cache": ("prompt cache", "#f0e442"),
}

_MARGIN = (
    "repeating-linear-gradient(45deg,rgba(128,128,128,.7) 0 2px,transparent 2px 5px)"
)
_MUCH = 4 * GIB  # of the host's memory, beside cards: too much to leave unsaid


def rows(plan: MemoryPlan) -> list[dict[str, Any]]:
    """Return one dictionary per device; bytes, None where there is no limit."""
    return [
        {
            "device": place.name,
            **{name: getattr(place, name) for name in PARTS},
            "needed": place.needed,
            "margin": place.margin,
            "free": place.free,
            "left": place.left,
            "basis": _basis(place),
        }
        for place in plan.places
    ]


def as_dict(plan: MemoryPlan) -> dict[str, Any]:
    """Return a plan as plain values."""
    return {
        "model": plan.model,
        "architecture": plan.architecture,
        "known": plan.known,
        "context": plan.context,
        "config": plan.config.to_dict(),
        "fits": plan.fits,
        "limited": plan.limited,
        "max_context": plan.max_context(),
        "verdict": plan.verdict,
        "devices": rows(plan),
        "notes": list(plan.notes),
    }


def text(plan: MemoryPlan) -> str:
    """Return the plan as a table for a terminal, with its verdict and its notes."""
    names = _shown(plan)
    head = ["device", *(PARTS[name][0] for name in names)]
    head += ["needed", "margin", "free", "basis"]
    lines = [head]
    for place in plan.places:
        cells = [format_memory(getattr(place, name)) for name in names]
        cells += [format_memory(place.needed), format_memory(place.margin)]
        free = "-" if place.free is None else format_memory(place.free)
        lines.append([place.name, *cells, free, _basis(place)])
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
    size = format_file_size(plan.model_bytes)
    return f"{plan.model} ({plan.architecture}, {size}): {_configured(plan)}"


def _configured(plan: MemoryPlan) -> str:
    """Return what of a configuration decides how much memory it takes."""
    config = plan.config
    slots = "1 slot"
    if config.parallel > 1 and plan.slot_context < plan.context:
        slots = f"{config.parallel} slots of {plan.slot_context:,}"
    elif config.parallel > 1:
        slots = f"{config.parallel} slots that share them"
    cache = config.cache_type_k
    if config.cache_type_v != cache:
        cache = f"{cache}/{config.cache_type_v}"
    flash = "flash attention" if config.flash_attn else "no flash attention"
    kept = f"{cache} cache, " if any(place.kv_cache for place in plan.places) else ""
    return f"{plan.context:,} tokens of context, {slots}, {kept}{flash}"


def verdict(plan: MemoryPlan) -> str:
    """Return whether it fits, in a sentence."""
    if not plan.limited:
        return f"It needs {format_memory(plan.needed)}; no limit was given."
    largest = plan.max_context()
    if plan.fits and plan.context > largest:
        return f"It fits, but the model was made for {largest:,} tokens of context."
    if plan.fits:
        return f"It fits; up to {largest:,} tokens of context would.{_host_too(plan)}"
    tight = plan.tightest
    margin = f" and a margin of {format_memory(tight.margin)}" if tight.is_gpu else ""
    lacking = (
        f"It does not fit: {tight.name} needs {format_memory(tight.needed)}{margin}, "
        f"{format_memory(tight.free or 0)} are free."
    )
    if largest:
        return f"{lacking} Up to {largest:,} tokens of context would fit."
    return f"{lacking} No context would make it fit."


def _host_too(plan: MemoryPlan) -> str:
    """Say how much of the host is needed, where that was not compared with anything."""
    host = plan.host
    if host.free is not None or not plan.devices or host.needed < _MUCH:
        return ""
    return f" The host must have {format_memory(host.needed)}, too."


def html(plan: MemoryPlan, *, judged: bool = True) -> str:
    """Return the plan as HTML: a verdict, a bar for each device, the notes.

    Args:
        plan: The plan.
        judged: Whether there is a verdict; not where another one stands beside it,
            which knows of more than this one configuration.
    """
    scale = max(
        max(place.needed + place.margin, place.free or 0, 1) for place in plan.places
    )
    good = None if not plan.limited else plan.fits
    bars = [_bar(place, scale) for place in plan.places]
    lines = [[note] for note in plan.notes]
    verdict = _html.verdict(plan.verdict, good=good) if judged else ""
    size = format_file_size(plan.model_bytes)
    subtitle = f"{plan.architecture}, {size}, {_configured(plan)}"
    return _html.panel(plan.model, subtitle, verdict, *bars, _html.table(lines))


def _bar(place: Place, scale: int) -> str:
    """Draw what a device holds and has left; all devices on one scale."""
    segments = [
        _html.Segment(label, size / scale, colour, format_memory(size))
        for name, (label, colour) in PARTS.items()
        if (size := getattr(place, name))
    ]
    heading = f"{place.name}: {format_memory(place.needed)}"
    if place.free is None or place.left is None:
        return _html.bar(segments, title=f"{heading} ({_basis(place)})")
    heading += f" of {format_memory(place.free)} that are free"
    if place.left < 0:
        heading += f", {format_memory(-place.left)} short with its margin"
    if place.margin:
        told = format_memory(place.margin)
        segments.append(_html.Segment("margin", place.margin / scale, _MARGIN, told))
    if place.left > 0:
        told = format_memory(place.left)
        segments.append(_html.Segment("free", place.left / scale, _html.FREE, told))
    title = f"{heading} ({_basis(place)})"
    return _html.bar(segments, title=title, limit=place.free / scale)


def _shown(plan: MemoryPlan) -> list[str]:
    """Return the parts that some device has."""
    return [
        name for name in PARTS if any(getattr(place, name) for place in plan.places)
    ]


def _basis(place: Place) -> str:
    return "known" if place.known else "estimated"
