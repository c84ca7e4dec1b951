"""Tensor types and recipes: exact bits, sources, names in any spelling."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
from itertools import pairwise
from pathlib import Path

import gguf
import pytest
from shapes import read_shapes, write_shape

from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.gguf.quantization import (
    GGML_TYPES,
    RECIPES,
    file_type_name,
    find_recipe,
    ggml_type_by_id,
    list_quantization_types,
    tensor_bytes,
)

# block_q8_1 of llama.cpp's ggml-common.h is two halves and 32 int8: 36 bytes. The
# package still has the 40 of before, when the two were floats; llama-server refuses a
# file with those.
Q8_1_BYTES = 36


def test_the_type_table_is_the_gguf_package_s() -> None:
    """Every type of the installed gguf package is known, with its block and bytes.

    But for Q8_1, where the package is not what llama.cpp is.
    """
    for kind in gguf.GGMLQuantizationType:
        ours = ggml_type_by_id(kind.value)

        assert ours is not None, kind
        assert (kind.name, False) == (ours.name, ours.removed)
        block_size, type_bytes = gguf.GGML_QUANT_SIZES[kind]
        if kind.name == "Q8_1":
            type_bytes = Q8_1_BYTES
        assert (block_size, type_bytes) == (ours.block_size, ours.type_bytes), kind
        assert ours is GGML_TYPES[kind.name]


def test_types_beyond_the_gguf_package_are_few_and_named() -> None:
    """What the table has more is what llama.cpp has more; another one fails here."""
    package = {kind.name for kind in gguf.GGMLQuantizationType}

    assert set(GGML_TYPES) - package <= {"Q2_0"}


def test_removed_types_are_known_as_removed() -> None:
    """A retired number has its name, no size, and the type to use instead."""
    retired = {
        number: kind
        for number in range(64)
        if (kind := ggml_type_by_id(number)) is not None and kind.removed
    }

    assert sorted(retired) == [4, 5, 31, 32, 33, 36, 37, 38]
    for kind in retired.values():
        assert kind.name not in GGML_TYPES
        assert kind.replaced_by in GGML_TYPES
        assert kind.bits_per_weight == 0.0
        assert tensor_bytes(kind, [256, 4]) is None
    assert ggml_type_by_id(1000) is None


@pytest.mark.parametrize(
    ("name", "bits"),
    [("F32", 32), ("Q8_0", 8.5), ("Q4_K", 4.5), ("MXFP4", 4.25), ("TQ1_0", 1.6875)],
)
def test_bits_follow_from_block_and_bytes(name: str, bits: float) -> None:
    """Bits per weight are the bytes of a block over its weights, exactly."""
    assert GGML_TYPES[name].bits_per_weight == bits


def test_a_tensor_s_bytes_need_whole_blocks() -> None:
    """Rows divide into blocks or the tensor cannot be; a scalar is one weight."""
    assert tensor_bytes(GGML_TYPES["Q4_K"], [4096, 3]) == 3 * 4096 // 256 * 144
    assert tensor_bytes(GGML_TYPES["Q4_K"], [128, 4]) is None
    assert tensor_bytes(GGML_TYPES["F32"], []) == 4


def test_every_file_type_of_the_gguf_package_has_a_name() -> None:
    """`general.file_type` of any file that today's tools write is named."""
    for kind in gguf.LlamaFileType:
        if kind is gguf.LlamaFileType.GUESSED:  # a mark in memory, never in a file
            assert file_type_name(kind.value) is None
            continue
        name = kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
        assert name == file_type_name(kind.value)
        assert RECIPES[name].file_type == kind.value
    assert file_type_name(5) == "Q4_2"
    assert file_type_name(33) == "Q4_0_4_4"


def test_recipes_are_made_of_known_types() -> None:
    """Each recipe names living types, bits near its main type, and a source."""
    for recipe in RECIPES.values():
        assert {recipe.tensor_type, recipe.embedding_type, recipe.output_type} <= set(
            GGML_TYPES
        )
        main = GGML_TYPES[recipe.tensor_type].bits_per_weight
        assert 0.88 * main <= recipe.layer_bits <= 1.3 * main, recipe.name
        assert recipe.source
        assert recipe.description.endswith(".")
        assert recipe.recommended_for


def test_the_list_goes_from_best_to_smallest() -> None:
    """Recipes for any model get smaller, but for old ones kept behind better ones."""
    names = list_quantization_types()
    usual = [RECIPES[name].bits_per_weight for name in names if RECIPES[name].common]

    assert names[0] == "F32"
    assert len(names) == len(set(names)) == len(RECIPES)
    assert all(after < before + 0.3 for before, after in pairwise(usual))
    assert names is not list_quantization_types()


# From the table for Llama-3.1-8B in llama.cpp's tools/quantize/README.md (b11434).
README_BITS = {
    "IQ1_S": 2.0042,
    "IQ1_M": 2.1460,
    "IQ2_XXS": 2.3824,
    "IQ2_XS": 2.5882,
    "IQ2_S": 2.7403,
    "IQ2_M": 2.9294,
    "IQ3_XXS": 3.2548,
    "IQ3_XS": 3.4977,
    "IQ3_S": 3.6606,
    "IQ3_M": 3.7628,
    "IQ4_XS": 4.4597,
    "IQ4_NL": 4.6818,
    "Q2_K_S": 2.9697,
    "Q2_K": 3.1593,
    "Q3_K_S": 3.6429,
    "Q3_K_M": 3.9960,
    "Q3_K_L": 4.2979,
    "Q4_K_S": 4.6672,
    "Q4_K_M": 4.8944,
    "Q5_K_S": 5.5704,
    "Q5_K_M": 5.7036,
    "Q6_K": 6.5633,
    "Q8_0": 8.5008,
    "F16": 16.0005,
}


@pytest.mark.parametrize("name", README_BITS)
def test_measured_bits_are_those_llama_cpp_publishes(name: str) -> None:
    """The dry run's figures equal the published table of the real model."""
    assert README_BITS[name] == RECIPES[name].bits_per_weight


@pytest.mark.parametrize(
    "spelling",
    ["Q4_K_M", "q4_k_m", "Q4-K-M", "q4km", " Q4_K_M ", "UD-Q4_K_M", "MOSTLY_Q4_K_M"],
)
def test_names_in_any_spelling(spelling: str) -> None:
    """Case, separators, Unsloth's prefix and llama.cpp's own do not matter."""
    assert find_recipe(spelling).name == "Q4_K_M"


@pytest.mark.parametrize(
    ("alias", "name"),
    [("fp16", "F16"), ("MXFP4", "MXFP4_MOE"), ("q4_k", "Q4_K_M"), ("bf16", "BF16")],
)
def test_aliases(alias: str, name: str) -> None:
    """Usual other names lead to the recipe, and no alias hides a recipe."""
    assert find_recipe(alias).name == name
    for own in RECIPES:
        assert find_recipe(own).name == own


@pytest.mark.parametrize(
    ("unknown", "said"),
    [
        ("Q4_K_X", "did you mean .*Q4_K_M"),
        ("hello", "list_quantization_types"),
        ("", "list_quantization_types"),
        ("UD-Q8_K_XL", "no quantization known"),
        ("Q4_0_4_4", "no longer reads Q4_0_4_4; use Q4_0$"),
        (15, "a name such as"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest(unknown: str, said: str) -> None:
    """A misspelt or retired name raises, and says what was perhaps meant."""
    with pytest.raises(ConfigurationError, match=said):
        find_recipe(unknown)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K_M", "Q2_K", "IQ2_XXS"])
def test_llama_quantize_still_makes_the_same_sizes(
    name: str, llama_cpp_tools: Path, tmp_path: Path
) -> None:
    """A dry run of the real program comes to the recorded bits per weight."""
    program = llama_cpp_tools / "llama-quantize"
    shape = read_shapes()["llama-3.1-8b"]
    halves = {
        pattern: ("F32" if len(axes) == 1 else "F16", axes)
        for pattern, (_, axes) in shape.tensors.items()
    }
    model = write_shape(
        dataclasses.replace(shape, tensors=halves), tmp_path / "model.gguf"
    )
    weights = sum(
        math.prod(axes)
        for _, _, axes in dataclasses.replace(shape, tensors=halves).tensor_table()
    )

    done = subprocess.run(
        [program, "--dry-run", model, name], capture_output=True, text=True, check=True
    )

    found = re.search(r"quant size\s*=\s*([\d.]+) MiB", done.stdout + done.stderr)
    assert found is not None
    bits = float(found.group(1)) * 2**20 * 8 / weights
    assert RECIPES[name].bits_per_weight == pytest.approx(bits, abs=1e-4)
