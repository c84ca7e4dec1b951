"""The gguf section of the API reference: signatures, and its examples as written."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from pathlib import Path

import pytest

import llamatelemetry.api.gguf as face
from llamatelemetry.api.gguf import (
    QUANT_TYPE_INFO,
    GGUFParser,
    estimate_vram,
    get_quantization_info,
    kaggle_t4_recommended_models,
    list_quantization_types,
    recommend_quantization,
)
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.gguf.quantization import find_recipe

EMPTY = inspect.Parameter.empty
DEMO = Path(__file__).parents[2] / "llamatelemetry" / "data" / "demo-q8_0.gguf"

# Name, parameters in order with their defaults, what it returns: as the reference says.
SIGNATURES: list[tuple[object, dict[str, object], str]] = [
    (GGUFParser.__init__, {"file_path": EMPTY}, "None"),
    (GGUFParser.get_metadata, {}, "dict[str, Any]"),
    (GGUFParser.get_architecture, {}, "str"),
    (GGUFParser.get_parameter_count, {}, "int"),
    (GGUFParser.get_quantization_type, {}, "str"),
    (GGUFParser.get_context_length, {}, "int"),
    (GGUFParser.get_vocab_size, {}, "int"),
    (get_quantization_info, {"name": EMPTY}, "QUANT_TYPE_INFO"),
    (list_quantization_types, {}, "list[str]"),
    (
        estimate_vram,
        {"parameter_count": EMPTY, "quantization": EMPTY, "context_size": 4096},
        "float",
    ),
    (
        recommend_quantization,
        {"parameter_count": EMPTY, "available_vram": EMPTY},
        "str",
    ),
    (kaggle_t4_recommended_models, {}, "list[RecommendedModel]"),
]

EXAMPLES = {
    "parser": """
from llamatelemetry.api.gguf import GGUFParser

parser = GGUFParser("model.gguf")
print(f"Architecture: {parser.get_architecture()}")
print(f"Parameters: {parser.get_parameter_count() / 1e9:.1f}B")
print(f"Quantization: {parser.get_quantization_type()}")
""",
    "quantization": """
from llamatelemetry.api.gguf import get_quantization_info, list_quantization_types

# Get info for specific type
info = get_quantization_info("Q4_K_M")
print(f"Bits: {info.bits_per_weight}")
print(f"VRAM (7B): {info.vram_7b_gb} GB")

# List all types
for quant in list_quantization_types():
    print(quant)
""",
    "helpers": """
from llamatelemetry.api.gguf import (
    estimate_vram,
    recommend_quantization,
    kaggle_t4_recommended_models,
)

# Estimate VRAM for model
vram = estimate_vram(
    parameter_count=7e9,
    quantization="Q4_K_M",
    context_size=4096
)
print(f"Estimated VRAM: {vram:.1f} GB")

# Get recommendation for VRAM budget
quant = recommend_quantization(
    parameter_count=7e9,
    available_vram=15  # GB
)
print(f"Recommended: {quant}")

# Kaggle-optimized recommendations
models = kaggle_t4_recommended_models()
for model in models:
    print(f"{model.name}: {model.quantization}")
""",
}
PRINTED = {
    "parser": "Architecture: llama\nParameters: 0.0B\nQuantization: Q8_0\n",
    "quantization": (
        r"Bits: 4\.8944\nVRAM \(7B\): 4\.\d GB\nF32\n[\s\S]*\nQ4_K_M\n[\s\S]*IQ2_XS\n"
    ),
    "helpers": (
        r"Estimated VRAM: 4\.\d GB\nRecommended: Q8_0\n[\s\S]*\nqwen3-4b: Q4_K_M\n"
    ),
}


@pytest.mark.parametrize(
    ("function", "parameters", "returned"),
    SIGNATURES,
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_signatures(
    function: object, parameters: dict[str, object], returned: str
) -> None:
    """The reference's parameters come first with its defaults; others need a name."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    found = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if name != "self"
    }

    positional = {
        name: parameter.default
        for name, parameter in found.items()
        if parameter.kind is not parameter.KEYWORD_ONLY
    }
    assert parameters == positional
    assert list(parameters) == list(positional)
    assert all(
        parameter.default is not EMPTY
        for parameter in found.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    )
    assert returned == signature.return_annotation


def test_the_dataclass_has_the_reference_s_fields() -> None:
    """Names, types and order are the reference's; more fields follow with defaults."""
    fields = dataclasses.fields(QUANT_TYPE_INFO)

    assert [(one.name, one.type) for one in fields[:5]] == [
        ("name", "str"),
        ("bits_per_weight", "float"),
        ("description", "str"),
        ("recommended_for", "str"),
        ("vram_7b_gb", "float"),
    ]
    assert all(one.default is not dataclasses.MISSING for one in fields[5:])
    assert QUANT_TYPE_INFO("a", 1.0, "b", "c", 2.0).vram_7b_gb == 2.0


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_as_written(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every example of the section prints what it should."""
    monkeypatch.chdir(tmp_path)
    os.symlink(DEMO, tmp_path / "model.gguf")

    exec(compile(EXAMPLES[name], name, "exec"), {})

    assert re.search(PRINTED[name], capsys.readouterr().out)


def test_the_face_names_what_the_reference_names() -> None:
    """`__all__` has every name of the section, and each can be imported."""
    assert set(face.__all__) == {
        "GGUFParser",
        "QUANT_TYPE_INFO",
        "RecommendedModel",
        "estimate_vram",
        "get_quantization_info",
        "kaggle_t4_recommended_models",
        "list_quantization_types",
        "recommend_quantization",
    }
    assert all(hasattr(face, name) for name in face.__all__)


def test_recommended_models_fit_the_cards() -> None:
    """One card gets a part of what two get; each model names a known quantization."""
    one = kaggle_t4_recommended_models(gpus=1)
    two = kaggle_t4_recommended_models()

    assert {model.name for model in one} < {model.name for model in two}
    assert all(model.gpus == 1 for model in one)
    assert all(model.size_bytes < 15e9 for model in one)
    for model in two:
        assert find_recipe(model.quantization)
        assert model.reference.startswith(f"{model.repo}")
        assert model.reference.endswith(f":{model.file}")
    by_name = {model.name: model for model in two}
    assert repr(by_name["qwen3-4b"]) == "<qwen3-4b: Q4_K_M, 2.5 GB, chat, one T4>"
    assert "two T4s" in repr(by_name["qwen3-32b"])
    with pytest.raises(ConfigurationError, match="gpus is 1 or 2, not 3"):
        kaggle_t4_recommended_models(gpus=3)  # type: ignore[arg-type]
