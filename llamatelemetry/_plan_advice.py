"""What would fit instead: words for a plan that does not."""

from __future__ import annotations

from llamatelemetry._units import MIB, format_file_size, format_memory
from llamatelemetry.exceptions import LLCudaError
from llamatelemetry.gguf._cards import GPUMemory
from llamatelemetry.gguf.memory import MemoryPlan
from llamatelemetry.setup._hub import list_files
from llamatelemetry.setup._names import ModelFile, model_files, parse_reference
from llamatelemetry.setup.catalog import catalog
from llamatelemetry.setup.recommend import may_fit

__all__ = ["instead", "largest_that_fits", "recommended"]

_MOST_NAMED = 3


def instead(model: str, plan: MemoryPlan) -> list[str]:
    """Return a sentence for each thing that would make a model fit.

    Args:
        model: What was asked for: a path, or a reference to the Hub, which is asked
            for other quantizations.
        plan: Its plan, which does not fit.
    """
    lines = [*_with_a_smaller_cache(plan), *_with_other_places(plan)]
    reference = parse_reference(model)
    if reference is None:
        named = ", ".join(recommended(plan)) or "none"
        return [
            *lines, f"Smaller models of the catalog that may fit (estimated): {named}.",
        ]  # fmt: skip
    try:
        files = list_files(reference.repo, reference.revision)
    except LLCudaError as error:
        return [*lines, f"Other quantizations could not be listed: {error}"]
    found = largest_that_fits(plan, model_files(files))
    if found is None:
        return [*lines, f"No quantization in {reference.repo} fits."]
    name = found.label or found.paths[0]
    size = format_file_size(found.size)
    where = f"Nearest that fits in {reference.repo}"
    return [*lines, f"{where}: {name}, {size} (estimated from its size)."]


def _with_a_smaller_cache(plan: MemoryPlan) -> list[str]:
    if not plan.config.flash_attn or plan.config.cache_type_k != "f16":
        return []
    smaller = plan.with_config(cache_type_k="q8_0", cache_type_v="q8_0")
    return ["With --cache-type q8_0 it fits."] if smaller.fits else []


def _with_other_places(plan: MemoryPlan) -> list[str]:
    """Say whether a second card or fewer layers on the cards would do."""
    lines = []
    free = plan.devices[0].free if len(plan.devices) == 1 else None
    if free is not None and plan.config.split_mode != "none":
        two = [GPUMemory(0, free), GPUMemory(1, free)]
        if plan.with_gpus(two).fits:
            lines.append("On two such cards it fits.")
    layers = plan.max_gpu_layers()
    if layers:
        fewer = plan.with_config(n_gpu_layers=layers)
        lines.append(
            f"With -ngl {layers} it fits, slower: the host then holds "
            f"{format_memory(fewer.host.needed)}."
        )
    return lines


def largest_that_fits(
    plan: MemoryPlan, candidates: list[ModelFile]
) -> ModelFile | None:
    """Return the largest of the files with which a plan would fit, or None."""
    for candidate in sorted(candidates, key=lambda each: each.size, reverse=True):
        if candidate.size > MIB and plan.for_size(candidate.size).fits:
            return candidate
    return None


def recommended(plan: MemoryPlan) -> list[str]:
    """Return the largest models of the catalog that may fit where a plan does not.

    Estimated from their sizes, for the plan's context, cache and cards. They are
    smaller than the plan's model, of its task, and made for as long a context.
    """
    task = "chat" if plan.generates else "embedding"
    config, places = plan.config, plan.devices or (plan.host,)
    free = [place.free or 0 for place in places]
    entries = sorted(catalog(), key=lambda each: each.total_bytes, reverse=True)
    names = [
        entry.id
        for entry in entries
        if task in entry.tasks
        and entry.total_bytes < plan.model_bytes
        and entry.native_context >= plan.slot_context
        and may_fit(
            entry,
            free,
            plan.context,
            cache_type_k=config.cache_type_k,
            cache_type_v=config.cache_type_v,
            flash_attn=config.flash_attn,
        )
    ]
    return names[:_MOST_NAMED]
