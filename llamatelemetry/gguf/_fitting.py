"""What makes a plan fit: the micro-batch, the split over cards, a smaller context.

Pure functions on plans. A plan takes tens of milliseconds, so splits are computed from
the bytes of each layer and only checked by planning them: two or three plans are enough
where there are a hundred splits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

from llamatelemetry._units import MIB
from llamatelemetry.gguf._places import Request
from llamatelemetry.gguf._settings import CELL_STEP
from llamatelemetry.gguf._sizes import (
    cache_bytes,
    layer_of,
    split_layers,
    state_bytes,
)
from llamatelemetry.gguf.estimates import GPU_MARGIN_BYTES, GPU_MARGIN_SHARE
from llamatelemetry.gguf.memory import MemoryPlan
from llamatelemetry.gguf.memory import _last_with_room as last_with_room
from llamatelemetry.gguf.quantization import RECIPES, Recipe

__all__ = [
    "MEANINGFUL_BYTES",
    "SMALLEST_MICRO_BATCH",
    "best_fit",
    "best_split",
    "context_room",
    "divided_layers",
    "largest_context",
    "last_with_room",
    "layer_counts",
    "micro_batches",
    "model_file",
    "most_steps",
    "room",
    "what_would_fit",
]

SMALLEST_MICRO_BATCH = 64
"""Tokens. Below it a prompt is computed in so many pieces that the weights are read
more often than is worth it; a choice, not a measurement."""

MEANINGFUL_BYTES = 256 * MIB
"""How much more room another split must leave than even shares, to be preferred."""

# Only for models that were trained in so few bits; nothing is left of others.
_TRAINED_IN_FEW_BITS = frozenset({"TQ1_0", "TQ2_0", "Q1_0", "Q2_0"})

_UNCERTAIN_BYTES = 128 * MIB  # by which a computed split may differ from its plan
_MOST_PLANS = 3  # of one split; it settles after two or three
_HALVINGS = 40  # of a range of bytes, down to less than one


def divided_layers(plan: MemoryPlan) -> int:
    """Return what ``tensor_split`` divides: the layers, and the output as one more.

    Source: ``n_layer_all + 1`` in llama_model::load_tensors (b11434).
    """
    return _request(plan).shape.number("block_count") + 1


def model_file(plan: MemoryPlan) -> str | None:
    """Return the file on this machine that a plan was made from; None for another."""
    source = _request(plan).header.source
    return source if "://" not in source and Path(source).is_file() else None


def layer_counts(plan: MemoryPlan) -> tuple[int, ...]:
    """Return how many layers each card of a plan holds, the output counted as one."""
    split = plan.config.tensor_split
    shares = [float(share) for share in split.split(",")] if split else [1.0]
    homes = split_layers(
        divided_layers(plan) - 1, plan.config.n_gpu_layers, shares[: len(plan.devices)]
    )
    return tuple(homes.count(card) for card in range(len(plan.devices)))


def room(plan: MemoryPlan) -> int:
    """Return the bytes left on the tightest device, its margin kept; 0 for no limit."""
    return min(
        (place.left for place in plan.places if place.left is not None), default=0
    )


def micro_batches(plan: MemoryPlan) -> tuple[int, ...]:
    """Return the micro-batches that may be tried: the plan's own, and halves of it.

    Not below 64, nor below one token for each slot. Inputs to be embedded or ranked
    must fit into one micro-batch (llama-server refuses longer ones), so for those it
    stays as it is.
    """
    config = plan.config
    sizes = [config.n_ubatch]
    if config.embeddings or config.rerank or not plan.generates:
        return tuple(sizes)
    least = max(SMALLEST_MICRO_BATCH, config.parallel)
    while sizes[-1] // 2 >= least:
        sizes.append(sizes[-1] // 2)
    return tuple(sizes)


def best_fit(plan: MemoryPlan) -> MemoryPlan | None:
    """Return the plan with the largest micro-batch that fits, split as is best.

    Args:
        plan: A plan with all layers on its cards.

    Returns:
        The plan, changed in nothing but ``n_ubatch`` and ``tensor_split``; None if
        not even the smallest micro-batch fits.
    """
    first, *smaller = micro_batches(plan)
    fitted = best_split(_changed(plan, n_ubatch=first))
    if fitted.fits or not smaller:
        return fitted if fitted.fits else None
    # The last before those between: where it does not fit, none of them does.
    *between, last = smaller
    smallest = best_split(_changed(plan, n_ubatch=last))
    if not smallest.fits:
        return None
    for size in between:
        fitted = best_split(_changed(plan, n_ubatch=size))
        if fitted.fits:
            return fitted
    return smallest


def largest_context(plan: MemoryPlan) -> int:
    """Return the largest context that fits with any micro-batch and split.

    Over all slots, and for each slot at most what the model was made for, or what was
    planned if that is more; 0 if none.
    """

    def left(steps: int) -> int:
        return context_room(plan, steps * CELL_STEP)

    planned = plan.context // plan.config.parallel // CELL_STEP
    steps = last_with_room(left, max(most_steps(plan), planned))
    return steps * CELL_STEP * plan.config.parallel


def most_steps(plan: MemoryPlan) -> int:
    """Return the context a model was made for, in steps of 256 tokens; at least one."""
    return max(_request(plan).shape.training_context // CELL_STEP, 1)


def what_would_fit(
    plan: MemoryPlan, fits: Callable[[MemoryPlan], bool], largest: int
) -> list[str]:
    """Return in words what would fit instead of a plan that does not.

    Args:
        plan: The plan.
        fits: Whether another plan of the model does, its cache or size changed.
        largest: The largest context that fits, in tokens; 0 if none.
    """
    config = plan.config
    near = []
    if largest:
        near.append(f"a context of up to {largest:,} tokens fits")
    if config.flash_attn and config.cache_type_k == config.cache_type_v == "f16":
        packed = plan.with_config(cache_type_k="q8_0", cache_type_v="q8_0")
        if fits(packed):
            near.append("a q8_0 KV cache makes it fit")
    recipe = _smaller_recipe(plan, fits)
    if recipe is not None:
        near.append(f"quantized as {recipe.name} it fits (estimated)")
    return near


def _smaller_recipe(
    plan: MemoryPlan, fits: Callable[[MemoryPlan], bool]
) -> Recipe | None:
    """Return the best recipe that fits, of those that publishers usually offer first.

    Estimated: the file's bytes in proportion to the recipe's bits per weight, which
    were measured on another model (``recipes.json``).
    """
    weights = sum(prod(tensor.shape) for tensor in _request(plan).header.tensors)
    own = plan.model_bytes * 8 / max(weights, 1)

    def would(recipe: Recipe) -> bool:
        size = int(plan.model_bytes * recipe.bits_per_weight / own)
        return size >= MIB and fits(plan.for_size(size))

    for common in (True, False):
        smaller = [
            recipe
            for recipe in RECIPES.values()
            if recipe.common == common
            and recipe.bits_per_weight < own
            and recipe.tensor_type not in _TRAINED_IN_FEW_BITS
        ]
        smaller.sort(key=lambda recipe: recipe.bits_per_weight)
        if smaller and would(smaller[0]):
            first = bisect_left(smaller, True, key=lambda recipe: not would(recipe))
            return smaller[max(first - 1, 0)]
    return None


def context_room(plan: MemoryPlan, tokens: int) -> int:
    """Return the room that the best split leaves with so much context for each slot.

    Args:
        plan: The plan.
        tokens: Tokens of context of one slot.

    Returns:
        Bytes on the tightest device, with the smallest micro-batch; negative if it
        does not fit.
    """
    size = micro_batches(plan)[-1]
    context = tokens * plan.config.parallel
    return room(best_split(_changed(plan, context_size=context, n_ubatch=size)))


def best_split(plan: MemoryPlan) -> MemoryPlan:
    """Return the plan with the split that leaves most room on the tightest card.

    The split is written as numbers of layers. llama.cpp puts layer i of n on the first
    card whose cumulative share is above i/n (llama_model::load_tensors, b11434), so
    whole numbers that sum to n put exactly so many layers on each card. Cards with
    about the same room get even shares, unless another split leaves at least
    `MEANINGFUL_BYTES` more.

    Args:
        plan: A plan with all layers on its cards. With fewer than two cards, or with
            one that has no limit, it is returned as it is.
    """
    if len(plan.devices) < 2 or not _limited(plan):  # noqa: PLR2004 - nothing to split
        return plan
    costs = _layer_bytes(_request(plan))
    start = _start(plan)
    begun = plan.with_config(**start) if _differs(plan, start) else plan
    even = begun if start else None
    if even is not None and _as_good_as_any(even):
        return even
    tried: dict[tuple[int, ...], MemoryPlan] = {}
    counts, spared = _divided(costs, begun)
    if spared < -_UNCERTAIN_BYTES:
        return begun
    while counts not in tried and len(tried) < _MOST_PLANS:
        split = ",".join(map(str, counts))
        tried[counts] = plan.with_config(tensor_split=split)
        counts, _ = _divided(costs, tried[counts])
    best = max(tried.values(), key=_card_room)
    if even is not None and (
        _card_room(best) - _card_room(even) < MEANINGFUL_BYTES
        and (even.fits or not best.fits)
    ):
        return even
    return best


def _request(plan: MemoryPlan) -> Request:
    return plan._request  # noqa: SLF001 - the plan is of this room


def _limited(plan: MemoryPlan) -> bool:
    return all(place.free for place in plan.devices)


def _start(plan: MemoryPlan) -> dict[str, Any]:
    """Return the even split for cards with about the same room; nothing for others."""
    free = [place.free or 0 for place in plan.devices]
    if len(free) < 2 or max(free) - min(free) > MEANINGFUL_BYTES:  # noqa: PLR2004
        return {}
    return {"tensor_split": "0.5,0.5" if len(free) == 2 else ",".join("1" * len(free))}  # noqa: PLR2004


def _differs(plan: MemoryPlan, changes: dict[str, Any]) -> bool:
    return any(getattr(plan.config, name) != value for name, value in changes.items())


def _changed(plan: MemoryPlan, **changes: Any) -> MemoryPlan:
    """Return the plan with these changes, and the split it is begun with."""
    changes = {**changes, **_start(plan)}
    return plan.with_config(**changes) if _differs(plan, changes) else plan


def _lefts(plan: MemoryPlan) -> list[int]:
    return [place.left or 0 for place in plan.devices]


def _card_room(plan: MemoryPlan) -> int:
    return min(_lefts(plan))


def _as_good_as_any(plan: MemoryPlan) -> bool:
    """Whether no split could leave much more: no tightest card has more than the mean.

    The sum of what is left depends on the split by some of the compute buffer only.
    """
    lefts = _lefts(plan)
    return min(lefts) >= 0 and sum(lefts) / len(lefts) - min(lefts) < MEANINGFUL_BYTES


def _layer_bytes(request: Request) -> list[int]:
    """Return the bytes of each layer's weights and cache, and last of the output's.

    Without the paddings of a card: what they lack is in the plan that is compared.
    """
    shape, settings = request.shape, request.settings
    costs = [0] * (shape.number("block_count") + 1)
    for tensor in request.header.tensors:
        layer = layer_of(tensor)
        if layer is not None and layer < shape.layer_count:
            costs[layer] += tensor.n_bytes
    name = "output.weight" if "output.weight" in shape.tensors else "token_embd.weight"
    output = request.header.tensor(name)
    costs[-1] += 0 if output is None else output.n_bytes
    for each in shape.layers:
        costs[each.index] += cache_bytes(shape, each, settings)
        costs[each.index] += state_bytes(shape, each, settings)
    return costs


def _divided(costs: Sequence[int], plan: MemoryPlan) -> tuple[tuple[int, ...], float]:
    """Return the numbers of layers that leave the same room on all cards, nearly.

    Args:
        costs: The bytes of each layer.
        plan: A plan of some split, from which comes what a card holds besides.

    Returns:
        The numbers, and the bytes that the tightest card would have left.
    """
    planned = sum(place.weights + place.kv_cache for place in plan.devices)
    scale = planned / max(sum(costs), 1)  # paddings; experts that stay on the host
    scaled = [cost * scale for cost in costs]
    sums = [0.0, *accumulate(scaled)]
    budgets = []
    start = 0
    for place, count in zip(plan.devices, _planned_counts(plan), strict=True):
        beside = place.needed - (sums[start + count] - sums[start])
        most = ((place.free or 0) - GPU_MARGIN_BYTES) / (1 + GPU_MARGIN_SHARE)
        budgets.append(most - beside)
        start += count
    low, high = min(*budgets, 0.0) - sums[-1] - 1, max(budgets)
    counts = _filled(scaled, budgets, low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        filled = _filled(scaled, budgets, middle)
        if sum(filled) == len(costs):
            low, counts = middle, filled
        else:
            high = middle
    return counts, low


def _planned_counts(plan: MemoryPlan) -> tuple[int, ...]:
    """Return the layers of each card, by free memory where no split is given."""
    if plan.config.tensor_split:
        return layer_counts(plan)
    shares = [float(place.free or 0) for place in plan.devices]
    homes = split_layers(divided_layers(plan) - 1, plan.config.n_gpu_layers, shares)
    return tuple(homes.count(card) for card in range(len(shares)))


def _filled(
    costs: Sequence[float], budgets: Sequence[float], spared: float
) -> tuple[int, ...]:
    """Return how many layers go on each card, one after the other, to spare so much."""
    counts = []
    layer = 0
    for budget in budgets:
        first, held = layer, 0.0
        while layer < len(costs) and held + costs[layer] <= budget - spared:
            held += costs[layer]
            layer += 1
        counts.append(layer - first)
    return tuple(counts)
