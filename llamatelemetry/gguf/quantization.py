"""How weights are stored: ggml's tensor types, and the recipes of whole files.

A *tensor type* (Q4_K) stores a block of weights in a fixed number of bytes, so its
bits per weight are exact. A *recipe* (Q4_K_M) is what ``llama-quantize`` makes of a
whole model: most tensors in one type, some in better ones, norms in F32. Its bits per
weight depend on the model: small ones spend more on their token embeddings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llamatelemetry.exceptions import ConfigurationError

__all__ = [
    "GGML_TYPES",
    "QUANT_TYPE_INFO",
    "RECIPES",
    "GGMLType",
    "Recipe",
    "file_type_name",
    "find_recipe",
    "ggml_type_by_id",
    "list_quantization_types",
    "tensor_bytes",
]


@dataclass(frozen=True, slots=True)
class GGMLType:
    """One way ggml stores a tensor.

    Attributes:
        id: Its number in a GGUF file.
        name: As ggml names it ("Q4_K", "F16", "MXFP4").
        block_size: Weights stored together; 0 for a removed type.
        type_bytes: Bytes for such a block; 0 for a removed type.
        replaced_by: For a type llama.cpp no longer reads, the one to convert the
            model to again; None for a living type.

    Examples:
        >>> from llamatelemetry.gguf.quantization import GGML_TYPES
        >>> kind = GGML_TYPES["Q4_K"]
        >>> kind.block_size, kind.type_bytes, kind.bits_per_weight
        (256, 144, 4.5)
    """

    id: int
    name: str
    block_size: int
    type_bytes: int
    replaced_by: str | None = None

    @property
    def removed(self) -> bool:
        """Whether llama.cpp no longer reads it; its name is all that is known."""
        return self.replaced_by is not None

    @property
    def bits_per_weight(self) -> float:
        """Bits for one weight, scales included; exact. 0.0 for a removed type."""
        return self.type_bytes * 8 / self.block_size if self.block_size else 0.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """What ``llama-quantize`` makes of a whole model.

    Attributes:
        name: As llama-quantize and file names have it ("Q4_K_M").
        file_type: ``general.file_type`` of such a file; None for a publisher's
            variant, whose files name the recipe it was made from.
        tensor_type: The type with the most bytes in the layers.
        embedding_type: The token embeddings' type, where the output has its own.
        output_type: The output's type, also that of embeddings that serve as output.
        layer_bits: Bits per weight of the layers.
        bits_per_weight: Bits per weight of the whole model that was measured.
        source: How the bits were found.
        common: Whether publishers usually offer it.
        needs_importance_matrix: Whether llama-quantize refuses to make it without.
        perplexity_increase: Against F16 on Llama-3-8B, as ``llama-quantize --help``
            says; None where it does not.
        description: One sentence.
        recommended_for: When to choose it.

    Examples:
        >>> from llamatelemetry.gguf.quantization import RECIPES
        >>> recipe = RECIPES["Q4_K_M"]
        >>> recipe.tensor_type, recipe.output_type, recipe.bits_per_weight
        ('Q4_K', 'Q6_K', 4.8944)
    """

    name: str
    file_type: int | None
    tensor_type: str
    embedding_type: str
    output_type: str
    layer_bits: float
    bits_per_weight: float
    source: str
    description: str
    recommended_for: str
    common: bool = False
    needs_importance_matrix: bool = False
    perplexity_increase: float | None = None


@dataclass(frozen=True)
class QUANT_TYPE_INFO:  # noqa: N801 - the API reference's name
    """What is to be known about one quantization before choosing it.

    Attributes:
        name: The recipe ("Q4_K_M").
        bits_per_weight: Bits per weight of a whole 8B model in this recipe (of
            gpt-oss-20b for MXFP4_MOE); what `source` says.
        description: What it is.
        recommended_for: When to choose it.
        vram_7b_gb: GiB of GPU memory of a dense model of 7e9 weights with a context
            of 4,096 tokens, as `estimate_vram` finds it.
        tensor_type: The type with the most bytes in the layers.
        perplexity_increase: Against F16 on Llama-3-8B; None where llama.cpp names
            none.
        needs_importance_matrix: Whether llama-quantize refuses to make it without.
        source: Where the bits per weight come from.

    Examples:
        >>> from llamatelemetry.gguf.estimates import get_quantization_info
        >>> info = get_quantization_info("Q4_K_M")
        >>> info.bits_per_weight, info.vram_7b_gb
        (4.8944, 4.7)
    """

    name: str
    bits_per_weight: float
    description: str
    recommended_for: str
    vram_7b_gb: float
    tensor_type: str = ""
    perplexity_increase: float | None = None
    needs_importance_matrix: bool = False
    source: str = field(default="", repr=False)


def _read_json(name: str) -> Any:
    return json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


_TYPE_BY_ID = {
    entry["id"]: GGMLType(**entry) for entry in _read_json("ggml_types.json")["types"]
}

GGML_TYPES: Mapping[str, GGMLType] = MappingProxyType(
    {one.name: one for one in _TYPE_BY_ID.values() if not one.removed}
)
"""Every type llama.cpp reads, by name."""


def ggml_type_by_id(number: int) -> GGMLType | None:
    """Return the tensor type with this number, or None if there never was one.

    A number that llama.cpp has retired gives a type whose ``removed`` is true.

    Args:
        number: The type's number in a GGUF file.

    Examples:
        >>> from llamatelemetry.gguf.quantization import ggml_type_by_id
        >>> ggml_type_by_id(12).name, ggml_type_by_id(4).replaced_by
        ('Q4_K', 'Q4_0')
    """
    return _TYPE_BY_ID.get(number)


def tensor_bytes(kind: GGMLType, shape: Sequence[int]) -> int | None:
    """Return the bytes of a tensor; None if its rows do not divide into blocks.

    Args:
        kind: The tensor's type.
        shape: Its axes, the fastest first, as a GGUF file names them.

    Examples:
        >>> from llamatelemetry.gguf.quantization import GGML_TYPES, tensor_bytes
        >>> tensor_bytes(GGML_TYPES["Q8_0"], (192, 1024))
        208896
    """
    row = shape[0] if shape else 1
    if kind.removed or row % kind.block_size:
        return None
    return prod(shape) // kind.block_size * kind.type_bytes


_TABLE = _read_json("recipes.json")

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        entry["name"]: Recipe(**{**entry, "source": _TABLE["sources"][entry["source"]]})
        for entry in _TABLE["recipes"]
    }
)
"""Every recipe by name, the best quality first."""

_RETIRED = {entry["name"]: entry["replaced_by"] for entry in _TABLE["removed"]}
_FILE_TYPES = {
    entry["file_type"]: entry["name"]
    for entry in [*_TABLE["recipes"], *_TABLE["removed"]]
    if entry["file_type"] is not None
}


def file_type_name(number: int) -> str | None:
    """Return the recipe that a header's ``general.file_type`` names, or None.

    Numbers that llama.cpp has retired have a name here too.

    Args:
        number: The value of ``general.file_type``.

    Examples:
        >>> from llamatelemetry.gguf.quantization import file_type_name
        >>> file_type_name(15)
        'Q4_K_M'
    """
    return _FILE_TYPES.get(number)


def list_quantization_types() -> list[str]:
    """Return the names of all recipes, from the best quality to the smallest.

    Recipes for models trained in few bits (ternary, one bit) stand last.

    Examples:
        >>> from llamatelemetry.gguf.quantization import list_quantization_types
        >>> list_quantization_types()[:4]
        ['F32', 'BF16', 'F16', 'Q8_0']
    """
    return list(RECIPES)


def _key(name: str) -> str:
    return re.sub(r"[\s_.-]", "", name).upper()


_BY_KEY = {
    _key(name): recipe
    for name, recipe in [
        *RECIPES.items(),
        *((alias, RECIPES[name]) for alias, name in _TABLE["aliases"].items()),
    ]
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe with this name.

    Args:
        name: In any case, with any of ``-``, ``_``, ``.`` and blanks, or none, between
            its parts. Unsloth's ``UD-`` before it is ignored: such a file spreads its
            bits in another way, but comes to about as many.

    Raises:
        ConfigurationError: There is no such recipe; the nearest ones are named.

    Examples:
        >>> from llamatelemetry.gguf.quantization import find_recipe
        >>> find_recipe("q4-k-m").name
        'Q4_K_M'
    """
    if not isinstance(name, str):
        raise ConfigurationError(
            f"a quantization is a name such as 'Q4_K_M', not {name!r}"
        )
    key = _key(name).removeprefix("MOSTLY")
    found = _BY_KEY.get(key) or _BY_KEY.get(key.removeprefix("UD"))
    if found is not None:
        return found
    for retired, replacement in _RETIRED.items():
        if key == _key(retired):
            raise ConfigurationError(
                f"llama.cpp no longer reads {retired}; use {replacement}"
            )
    near = get_close_matches(key.removeprefix("UD"), _BY_KEY, n=3, cutoff=0.5)
    names = list(dict.fromkeys(_BY_KEY[match].name for match in near))
    hint = f"did you mean {', '.join(names)}? " if names else ""
    raise ConfigurationError(
        f"{name!r} is no quantization known here; {hint}"
        "list_quantization_types() gives all"
    )
