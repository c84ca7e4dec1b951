"""Memory without a file: against exact sums, and against what cannot be meant."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shapes import read_shapes, write_shape

from llamatelemetry._units import GIB, MIB
from llamatelemetry.exceptions import ConfigurationError, OutOfMemoryError
from llamatelemetry.gguf.estimates import (
    CUDA_CONTEXT_BYTES,
    GPU_MARGIN_BYTES,
    GPU_MARGIN_SHARE,
    estimate_vram,
    get_quantization_info,
    recommend_quantization,
)
from llamatelemetry.gguf.memory import GPUMemory, plan_memory
from llamatelemetry.gguf.quantization import RECIPES, list_quantization_types
from llamatelemetry.gguf.reader import read_header
from llamatelemetry.server.config import ServerConfig

CONTEXTS = (2048, 8192, 32768)

# Dense models of the catalog, 8 heads of keys and values of 128 elements each: the
# weights people name, the file's bytes and recipe, layers, width, feed forward,
# vocabulary, and whether the output has weights of its own.
# Source: the catalog (bytes) and the models' own configurations.
DENSE_MODELS: dict[str, tuple[str, float, int, str, int, int, int, int, bool]] = {
    "Qwen3-0.6B": (
        "qwen3", 0.6e9, 639446688, "Q8_0", 28, 1024, 3072, 151936, False,
    ),
    "Llama-3.2-3B": (
        "llama", 3.2e9, 2019377696, "Q4_K_M", 28, 3072, 8192, 128256, False,
    ),
    "Phi-4-mini": (
        "phi3", 3.84e9, 2491874272, "Q4_K_M", 32, 3072, 8192, 200064, False,
    ),
    "Qwen3-4B": (
        "qwen3", 4.0e9, 2497280256, "Q4_K_M", 36, 2560, 9728, 151936, False,
    ),
    "Llama-3.1-8B": (
        "llama", 8.0e9, 4920739232, "Q4_K_M", 32, 4096, 14336, 128256, True,
    ),
    "Qwen3-8B": (
        "qwen3", 8.2e9, 5027783488, "Q4_K_M", 36, 4096, 12288, 151936, True,
    ),
    "Ministral-3-8B": (
        "mistral3", 8.0e9, 5198911904, "Q4_K_M", 34, 4096, 14336, 131072, True,
    ),
    "Qwen3-14B": (
        "qwen3", 14.8e9, 9001752960, "Q4_K_M", 40, 5120, 17408, 151936, True,
    ),
    "DeepSeek-R1-Distill-Qwen-14B": (
        "qwen2", 14.8e9, 8988110240, "Q4_K_M", 48, 5120, 13824, 152064, True,
    ),
    "Mistral-Small-3.2-24B": (
        "llama", 23.6e9, 14333922848, "Q4_K_M", 40, 5120, 32768, 131072, True,
    ),
    "Qwen3-32B": (
        "qwen3", 32.8e9, 19762149024, "Q4_K_M", 64, 5120, 25600, 151936, True,
    ),
}  # fmt: skip
HEADER_BYTES = 8e6  # of a file, for a vocabulary of this size


def exact_gib(name: str, context: int) -> float:
    """Return what the model's own numbers come to on one card."""
    _, _, size, recipe, layers, width, feed, vocabulary, untied = DENSE_MODELS[name]
    bits = {"Q8_0": 8.5, "Q4_K_M": 4.5}[recipe]
    on_host = vocabulary * width * bits / 8 if untied else 0
    cache = layers * context * 2 * 8 * 128 * 2
    compute = 512 * (4 * (3 * feed + 5 * width) + 2 * context)
    weights = size - HEADER_BYTES - on_host
    return (weights + cache + compute + CUDA_CONTEXT_BYTES) / GIB


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", DENSE_MODELS)
def test_dense_models_are_within_15_percent(name: str, context: int) -> None:
    """The plain call is within 15 % of each dense model of the catalog."""
    _, parameters, _, recipe, *_ = DENSE_MODELS[name]

    estimate = estimate_vram(parameters, recipe, context)

    assert exact_gib(name, context) == pytest.approx(estimate, rel=0.15)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", DENSE_MODELS)
def test_the_architecture_sharpens_the_estimate(name: str, context: int) -> None:
    """With the family named it is within 6 %, rounded weight counts included."""
    architecture, parameters, _, recipe, *_ = DENSE_MODELS[name]

    estimate = estimate_vram(parameters, recipe, context, architecture=architecture)

    assert exact_gib(name, context) == pytest.approx(estimate, rel=0.06)


@pytest.mark.parametrize(
    "name", ["llama-3.1-8b", "qwen3-4b", "phi-4-mini", "ministral-3-8b"]
)
def test_it_agrees_with_the_plan(name: str, tmp_path: Path) -> None:
    """From 2k to 32k it is within 15 % of the exact plan of a file of that kind."""
    shape = read_shapes()[name]
    path = write_shape(shape, tmp_path / "model.gguf")
    header = read_header(path)
    weights = sum(tensor.n_elements for tensor in header.tensors)
    for context, flash_attn in product(CONTEXTS, (True, False)):
        config = ServerConfig(
            str(path),
            n_gpu_layers=99,
            context_size=context,
            parallel=1,
            flash_attn=flash_attn,
        )
        plan = plan_memory(path, config, [GPUMemory(0)])
        plain = estimate_vram(weights, "Q4_K_M", context, flash_attn=flash_attn)
        sharp = estimate_vram(
            weights,
            "Q4_K_M",
            context,
            architecture=shape.architecture,
            flash_attn=flash_attn,
        )

        exact = plan.devices[0].needed / GIB
        assert exact == pytest.approx(plain, rel=0.15)
        assert exact == pytest.approx(sharp, rel=0.05)


def test_it_grows_with_the_context() -> None:
    """16 GiB of cache at 131,072 tokens are in the estimate; each token costs."""
    short = estimate_vram(7e9, "Q4_K_M", 4096)
    long = estimate_vram(7e9, "Q4_K_M", 131072)

    assert estimate_vram(7e9, "Q4_K_M") == short
    assert long - short > 15
    sizes = [estimate_vram(7e9, "Q4_K_M", context) for context in range(1, 9000, 97)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == len(sizes)


def test_it_grows_with_the_model_and_with_the_bits() -> None:
    """More weights, or more bits for each, never take less."""
    for context in (512, 4096, 131072):
        sizes = [
            estimate_vram(parameters, "Q4_K_M", context)
            for parameters in np.geomspace(1e7, 1e12, 200)
        ]
        assert sizes == sorted(sizes)
    recipes = sorted(RECIPES.values(), key=lambda one: one.layer_bits)
    layers_only = [
        estimate_vram(405e9, one.name)
        for one in recipes
        if (one.output_type, one.embedding_type) == ("Q6_K", one.tensor_type)
    ]
    assert layers_only == sorted(layers_only)


@pytest.mark.parametrize(
    ("architecture", "parameters", "quantization"),
    [
        ("gemma3", 12e9, "Q4_K_M"),
        ("gpt-oss", 20.9e9, "MXFP4_MOE"),
        ("qwen3moe", 30.5e9, "Q4_K_M"),
        ("qwen35", 9e9, "Q4_K_M"),
        ("mamba2", 7.2e9, "Q4_K_M"),
        ("deepseek2", 15.7e9, "Q4_K_M"),
        ("gemma4", 12e9, "Q4_0"),
        ("bert", 0.3e9, "Q8_0"),
    ],
)
def test_families_with_small_caches_take_less_at_long_contexts(
    architecture: str, parameters: float, quantization: str
) -> None:
    """Windows, states, compressed or few keys show when the family is named."""
    context = 65536
    plain = estimate_vram(parameters, quantization, context)
    sharp = estimate_vram(parameters, quantization, context, architecture=architecture)

    assert sharp < 0.8 * plain
    assert sharp > estimate_vram(
        parameters, quantization, 4096, architecture=architecture
    )


def test_the_window_s_cells_are_counted() -> None:
    """Gemma 3 12B at 8,192 tokens has 992 MiB of cache, as llama.cpp allocates."""

    def cache(kind: str) -> float:
        return estimate_vram(
            11.766e9, "Q4_K_M", 8192, architecture="gemma3", cache_type_k=kind,
            cache_type_v=kind,
        )  # fmt: skip

    # Half of an F32 cache is what F16 takes; only the cache differs.
    assert (cache("f32") - cache("f16")) * GIB / MIB == pytest.approx(992, abs=1)


def test_a_quantized_cache_and_more_cards() -> None:
    """A q8_0 cache takes 34/64 of f16; each card has its own buffers and context."""
    base = estimate_vram(8e9, "Q4_K_M", 32768)
    keys = estimate_vram(8e9, "Q4_K_M", 32768, cache_type_k="q8_0")
    both = estimate_vram(8e9, "Q4_K_M", 32768, cache_type_k="q8_0", cache_type_v="Q8_0")
    two_cards = estimate_vram(8e9, "Q4_K_M", 32768, gpus=2)

    assert base - both == pytest.approx(2 * (base - keys))
    whole_cache = (base - both) / (1 - 34 / 64)
    assert whole_cache == pytest.approx(32768 * 34 * 4096 / GIB, rel=0.01)
    assert two_cards - base > CUDA_CONTEXT_BYTES / GIB


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: estimate_vram(7, "Q4_K_M"), "did you mean 7e9"),
        (lambda: estimate_vram(0.6, "Q4_K_M"), "did you mean 0.6e9"),
        (lambda: estimate_vram(0, "Q4_K_M"), "above zero"),
        (lambda: estimate_vram(-7e9, "Q4_K_M"), "above zero"),
        (lambda: estimate_vram(math.nan, "Q4_K_M"), "not nan"),
        (lambda: estimate_vram(math.inf, "Q4_K_M"), "not inf"),
        (lambda: estimate_vram("7B", "Q4_K_M"), "not '7B'"),  # type: ignore[arg-type]
        (lambda: estimate_vram(True, "Q4_K_M"), "not True"),
        (lambda: estimate_vram(50_000, "Q4_K_M"), "too few for a model$"),
        (lambda: estimate_vram(1e15, "Q4_K_M"), "no model has"),
        (lambda: estimate_vram(7e9, "Q4_X_M"), "did you mean"),
        (lambda: estimate_vram(7e9, "Q4_K_M", 0), "context_size is a whole"),
        (lambda: estimate_vram(7e9, "Q4_K_M", -1), "not -1"),
        (lambda: estimate_vram(7e9, "Q4_K_M", 4096.5), "4096.5"),  # type: ignore[arg-type]
        (lambda: estimate_vram(7e9, "Q4_K_M", gpus=0), "gpus is a whole number"),
        (lambda: estimate_vram(7e9, "Q4_K_M", architecture="Qwen-3"), "'qwen3'"),
        (lambda: estimate_vram(7e9, "Q4_K_M", architecture="dense"), "known are"),
        (lambda: estimate_vram(7e9, "Q4_K_M", cache_type_k="q4"), "not 'q4'"),
        (lambda: recommend_quantization(7e9, 0), "above zero"),
        (lambda: recommend_quantization(7e9, math.nan), "not nan"),
        (lambda: recommend_quantization(7e9, 15360), "MiB, say 15$"),
        (lambda: recommend_quantization(7e9, 16e9), "bytes, say 14.9$"),
        (lambda: recommend_quantization(7, 15), "did you mean 7e9"),
    ],
)
def test_values_that_cannot_be_meant(call: Callable[[], Any], said: str) -> None:
    """Numbers in the wrong unit, or no numbers, are errors that say what was meant."""
    with pytest.raises(ConfigurationError, match=said):
        call()


def test_numbers_of_numpy_count_as_numbers() -> None:
    """Weights and contexts may come from numpy or be whole floats."""
    assert estimate_vram(np.int64(7_000_000_000), "Q4_K_M", np.int32(4096)) == (  # type: ignore[arg-type]
        estimate_vram(7e9, "Q4_K_M", 4096)
    )


@pytest.mark.parametrize("parameters", [1e9, 7e9, 14e9, 24e9, 32e9])
@pytest.mark.parametrize("memory", [8.0, 14.7, 29.4])
def test_the_recommendation_is_the_best_that_fits(
    parameters: float, memory: float
) -> None:
    """It leaves the stated margin, and the next better one would not."""
    usual = [name for name in list_quantization_types() if RECIPES[name].common]

    def needed(name: str) -> float:
        margin = GPU_MARGIN_BYTES / GIB
        return estimate_vram(parameters, name) * (1 + GPU_MARGIN_SHARE) + margin

    try:
        best = recommend_quantization(parameters, memory)
    except OutOfMemoryError:
        assert all(needed(name) > memory for name in usual)
        return

    assert needed(best) <= memory
    assert all(needed(name) > memory for name in usual[: usual.index(best)])


def test_nothing_fits() -> None:
    """The error says how much is missing; a shorter context is named if that helps."""
    with pytest.raises(OutOfMemoryError, match=r"5\.\d GiB more") as large:
        recommend_quantization(70e9, 15)
    with pytest.raises(OutOfMemoryError) as long:
        recommend_quantization(7e9, 6, context_size=131072)

    assert "smaller model" in str(large.value)
    assert large.value.needed is not None
    assert large.value.free == 15 * GIB
    assert large.value.needed > large.value.free
    assert long.value.suggestion == "IQ2_XXS with a context of 16,384 tokens"
    recommend_quantization(7e9, 6, context_size=16384)


def test_gpt_oss_is_recommended_as_it_was_trained() -> None:
    """Its experts are 4-bit floats already; no other recipe makes them better."""
    assert (
        recommend_quantization(20.9e9, 14.7, architecture="gpt-oss", context_size=8192)
        == "MXFP4_MOE"
    )


@pytest.mark.parametrize("name", list_quantization_types())
def test_info_of_every_recipe(name: str) -> None:
    """The information is the table's, and its 7B figure the estimate's."""
    info = get_quantization_info(name.lower())

    assert name == info.name
    assert RECIPES[name].bits_per_weight == info.bits_per_weight
    assert info.vram_7b_gb == pytest.approx(estimate_vram(7e9, name, 4096), abs=0.05)
    assert info.source


def test_info_of_an_unknown_recipe() -> None:
    """An unknown name raises and names the nearest."""
    with pytest.raises(ConfigurationError, match="Q4_K_M"):
        get_quantization_info("Q4_K_MM")
