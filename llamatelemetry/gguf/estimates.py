"""How much GPU memory a model takes when there is no file to look at.

From three numbers — weights, recipe, context — nothing can be said of heads, windows or
experts. So a *typical* dense model is assumed, or with ``architecture=`` a typical one
of that family, drawn through models that are known (``typical_models.json``). For a
file, local or remote, ``plan_memory`` gives the exact figures.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from llamatelemetry._units import GIB, MIB
from llamatelemetry.exceptions import ConfigurationError, OutOfMemoryError
from llamatelemetry.gguf._settings import CELL_STEP
from llamatelemetry.gguf.quantization import (
    GGML_TYPES,
    QUANT_TYPE_INFO,
    RECIPES,
    Recipe,
    find_recipe,
)

__all__ = ["estimate_vram", "get_quantization_info", "recommend_quantization"]

CUDA_CONTEXT_BYTES = 300 * MIB
"""What a CUDA context takes on each card. Not measured yet."""

GPU_MARGIN_SHARE = 0.05
"""The part of the estimate that must stay free, until CUDA was measured."""

GPU_MARGIN_BYTES = 300 * MIB
"""What must stay free on each card besides, until CUDA was measured."""

_DENSE = "dense"
_TOKENS_AT_ONCE = 512  # llama-server's --ubatch-size
_LARGEST_EMBEDDING_SHARE = 0.7  # of the weights, where the typical one would be larger
_FAMILY_RECIPES = {"gpt-oss": ("MXFP4_MOE",)}  # trained in it; others gain nothing


@dataclass(frozen=True, slots=True)
class _Typical:
    """A model of so many weights, as it usually is. Units: typical_models.json."""

    parameters: float
    output_weights: float
    host_weights: float
    cache_elements: float
    window_elements: float
    window: float
    state_bytes: float
    width: float
    feed_forward: float
    heads: float


@cache
def _families() -> dict[str, list[_Typical]]:
    text = Path(__file__).with_name("typical_models.json").read_text(encoding="utf-8")
    families: dict[str, list[_Typical]] = {}
    names = [item.name for item in fields(_Typical)]
    for entry in json.loads(text)["models"]:
        one = _Typical(**{name: entry[name] for name in names})
        families.setdefault(entry["architecture"], []).append(one)
    for family in families.values():
        family.sort(key=lambda one: one.parameters)
    return families


def _typical(parameters: float, architecture: str | None) -> _Typical:
    """Return the model of this size between the family's neighbours."""
    family = _families()[architecture or _DENSE]
    place = bisect_left([one.parameters for one in family], parameters)
    if place in (0, len(family)):  # smaller or larger than all
        return family[min(place, len(family) - 1)]
    below, above = family[place - 1], family[place]
    share = math.log(parameters / below.parameters) / math.log(
        above.parameters / below.parameters
    )
    between = {
        item.name: (1 - share) * getattr(below, item.name)
        + share * getattr(above, item.name)
        for item in fields(_Typical)
    }
    return _Typical(**between)


def estimate_vram(
    parameter_count: float,
    quantization: str,
    context_size: int = 4096,
    *,
    architecture: str | None = None,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
    flash_attn: bool = True,
    gpus: int = 1,
) -> float:
    """Estimate the GPU memory that a model takes, without a file to look at.

    The sum of four parts:

    - weights: the recipe's bits for the layers, its better type for the output. Where
      the output has weights of its own, from about 4 to 8 billion weights on, the token
      embeddings stay in the computer's memory;
    - KV cache, which grows with the context. Without `architecture` a dense model is
      assumed, with 8 heads of keys and values of 128 elements and the usual depth for
      its size. Models with sliding windows, recurrent layers or compressed keys take
      much less, old ones without shared heads more;
    - compute buffer of 512 tokens at once;
    - CUDA's own memory, 300 MiB a card, which is not measured yet.

    All layers are on the GPU. No projector for images, no draft model.

    Args:
        parameter_count: Weights, as in ``7e9``.
        quantization: A recipe's name ("Q4_K_M"), in any case.
        context_size: Tokens of all slots together, as of ``--ctx-size``.
        architecture: The family ("gemma3", "qwen3moe", "gpt-oss") as in the file's
            ``general.architecture``.
        cache_type_k: The type of the keys in the cache.
        cache_type_v: The type of the values.
        flash_attn: Whether attention is computed without its matrix of scores. Off,
            the compute buffer grows with the context by some GiB.
        gpus: Cards that share the layers. The result is the sum over all.

    Returns:
        GiB (2**30 bytes).

    Raises:
        ConfigurationError: A value that cannot be meant, an unknown quantization or
            architecture.

    Examples:
        >>> from llamatelemetry.gguf.estimates import estimate_vram
        >>> round(estimate_vram(7e9, "Q4_K_M"), 1)
        4.7
        >>> round(estimate_vram(14.8e9, "Q4_K_M", 8192, architecture="qwen3"), 1)
        9.7
    """
    _check_parameters(parameter_count)
    recipe = find_recipe(quantization)
    _check_whole("context_size", context_size, "tokens")
    _check_architecture(architecture)
    _check_whole("gpus", gpus, "cards")
    cache_bits = tuple(_bits_of_cache(name) for name in (cache_type_k, cache_type_v))
    if cache_bits[1] < GGML_TYPES["F16"].bits_per_weight and not flash_attn:
        raise ConfigurationError(
            f"cache_type_v={cache_type_v!r} needs flash attention; llama.cpp refuses "
            "it without"
        )
    typical = _typical(parameter_count, architecture)
    total = (
        _weight_bytes(parameter_count, recipe, typical)
        + _cache_bytes(context_size, typical, sum(cache_bits) / 2)
        + gpus
        * (_compute_bytes(context_size, typical, flash_attn) + CUDA_CONTEXT_BYTES)
    )
    return total / GIB


def _weight_bytes(parameters: float, recipe: Recipe, typical: _Typical) -> float:
    """Return the bytes of the weights that a GPU holds."""
    embeddings = typical.output_weights + typical.host_weights
    kept = min(1.0, _LARGEST_EMBEDDING_SHARE * parameters / embeddings)
    output = typical.output_weights * kept
    layers = parameters - embeddings * kept
    output_bits = GGML_TYPES[recipe.output_type].bits_per_weight
    return (layers * recipe.layer_bits + output * output_bits) / 8


def _cache_bytes(context: int, typical: _Typical, bits: float) -> float:
    """Return the bytes of the KV cache, and of recurrent states."""
    window = min(
        context,
        math.ceil((typical.window + _TOKENS_AT_ONCE) / CELL_STEP) * CELL_STEP,
    )
    elements = typical.cache_elements * context + typical.window_elements * window
    return elements * bits / 8 + typical.state_bytes


def _compute_bytes(context: int, typical: _Typical, flash_attn: bool) -> float:
    """Return the bytes of the compute buffer.

    Source of the rule: measured with llama-server b11434 on CPU. Sums of a batch in
    F32, and the attention mask in F16; without flash attention the mask in F32 and
    every head's scores.
    """
    width = 5 * typical.width
    sums = 4 * (3 * typical.feed_forward + width)
    if flash_attn or not typical.cache_elements:
        return _TOKENS_AT_ONCE * (sums + 2 * context)
    scores = 4 * (typical.heads * context + width + typical.width)
    return _TOKENS_AT_ONCE * (max(sums, scores) + 4 * context)


def recommend_quantization(
    parameter_count: float,
    available_vram: float,
    *,
    context_size: int = 4096,
    architecture: str | None = None,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
    flash_attn: bool = True,
    gpus: int = 1,
) -> str:
    """Return the best of the usual quantizations that fits into the memory.

    The best considered is Q8_0: F16 takes twice its memory for answers that can hardly
    be told apart. The estimate must leave 5 % of itself and 300 MiB a card free.

    Args:
        parameter_count: Weights, as in ``7e9``.
        available_vram: GiB free on all cards together.
        context_size: Tokens of all slots together.
        architecture: As for `estimate_vram`.
        cache_type_k: The type of the keys in the cache.
        cache_type_v: The type of the values.
        flash_attn: Whether flash attention is on.
        gpus: Cards that share the layers.

    Raises:
        ConfigurationError: A value that cannot be meant.
        OutOfMemoryError: Not even the smallest fits; says by how much, and what would.

    Examples:
        >>> from llamatelemetry.gguf.estimates import recommend_quantization
        >>> recommend_quantization(14.8e9, 14.7)
        'Q6_K'
    """
    _check_memory(available_vram)

    def needed(name: str, context: int = context_size) -> float:
        estimate = estimate_vram(
            parameter_count,
            name,
            context,
            architecture=architecture,
            cache_type_k=cache_type_k,
            cache_type_v=cache_type_v,
            flash_attn=flash_attn,
            gpus=gpus,
        )
        return estimate * (1 + GPU_MARGIN_SHARE) + gpus * GPU_MARGIN_BYTES / GIB

    usual = [recipe.name for recipe in RECIPES.values() if recipe.common]
    names = _FAMILY_RECIPES.get(architecture or "", usual)
    for name in names:
        if needed(name) <= available_vram:
            return name
    smallest = min(names, key=needed)
    raise _does_not_fit(smallest, needed, available_vram, context_size)


def _does_not_fit(
    smallest: str,
    needed: Callable[[str, int], float],
    available: float,
    context: int,
) -> OutOfMemoryError:
    """Say by how much the smallest quantization is too large, and what would fit."""
    shorter = 256
    while needed(smallest, shorter * 2) <= available:
        shorter *= 2
    if needed(smallest, shorter) <= available:
        suggestion = f"{smallest} with a context of {shorter:,} tokens"
    else:
        suggestion = "a smaller model, or fewer layers on the GPU"
    least = needed(smallest, context)
    return OutOfMemoryError(
        f"no usual quantization fits into {available:.1f} GiB with a context of "
        f"{context:,} tokens: {smallest}, the smallest, wants {least:.1f} GiB with its "
        f"margin, {least - available:.1f} GiB more; try {suggestion}",
        needed=int(least * GIB),
        free=int(available * GIB),
        suggestion=suggestion,
    )


def get_quantization_info(name: str) -> QUANT_TYPE_INFO:
    """Return what is to be known about a quantization before choosing it.

    Args:
        name: A recipe ("Q4_K_M") in any case, with or without its ``-`` and ``_``.

    Raises:
        ConfigurationError: There is no such recipe; the nearest ones are named.

    Examples:
        >>> from llamatelemetry.gguf.estimates import get_quantization_info
        >>> get_quantization_info("q4_k_m").recommended_for
        'most uses: the best balance of size, speed and quality'
    """
    recipe = find_recipe(name)
    return QUANT_TYPE_INFO(
        name=recipe.name,
        bits_per_weight=recipe.bits_per_weight,
        description=recipe.description,
        recommended_for=recipe.recommended_for,
        vram_7b_gb=round(estimate_vram(7e9, recipe.name, 4096), 1),
        tensor_type=recipe.tensor_type,
        perplexity_increase=recipe.perplexity_increase,
        needs_importance_matrix=recipe.needs_importance_matrix,
        source=recipe.source,
    )


def _is_number(value: Any) -> bool:
    # Real and Integral are also what numpy's numbers are.
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_parameters(value: Any) -> None:
    if not _is_number(value) or not 0 < value < math.inf:
        raise ConfigurationError(
            f"parameter_count is a number of weights above zero, such as 7e9; "
            f"not {value!r}"
        )
    if value < 1e6:  # noqa: PLR2004 - the smallest chat models have millions
        billions = f"; did you mean {value:g}e9?" if value < 1e4 else ""  # noqa: PLR2004
        raise ConfigurationError(
            f"parameter_count counts single weights, and {value:g} are too few for a "
            f"model{billions}"
        )
    if value > 1e14:  # noqa: PLR2004 - a hundred times the largest there is
        raise ConfigurationError(
            f"parameter_count={value:g}: no model has that many weights"
        )


def _check_memory(value: Any) -> None:
    if not _is_number(value) or not 0 < value < math.inf:
        raise ConfigurationError(
            f"available_vram is a number of GiB above zero, such as 15; not {value!r}"
        )
    if value > 2**13:
        unit, size = ("bytes", GIB) if value > 2**27 else ("MiB", 2**10)
        raise ConfigurationError(
            f"available_vram counts GiB; if {value:g} are {unit}, say "
            f"{value / size:.4g}"
        )


def _check_whole(name: str, value: Any, unit: str) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(
            f"{name} is a whole number of {unit}, 1 or more; not {value!r}"
        )


def _check_architecture(name: Any) -> None:
    families = sorted(set(_families()) - {_DENSE})
    if name is None or name in families:
        return
    near = get_close_matches(str(name).lower(), families, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigurationError(
        f"no typical model of architecture {name!r} is known; {hint}known are "
        f"{', '.join(families)}. Without one, a dense model is assumed"
    )


def _bits_of_cache(name: Any) -> float:
    found = GGML_TYPES.get(name.upper()) if isinstance(name, str) else None
    if found is None:
        raise ConfigurationError(
            f"a cache type is one of ggml's, such as 'f16' or 'q8_0'; not {name!r}"
        )
    return found.bits_per_weight
