"""GGUF files, quantizations and memory, by the names of the API reference.

The parts are in `llamatelemetry.gguf`; the catalog is in `llamatelemetry.setup`. For an
exact plan of one file's memory see `llamatelemetry.gguf.memory.plan_memory`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llamatelemetry._units import format_file_size
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.gguf.estimates import (
    estimate_vram,
    get_quantization_info,
    recommend_quantization,
)
from llamatelemetry.gguf.parser import GGUFParser
from llamatelemetry.gguf.quantization import QUANT_TYPE_INFO, list_quantization_types
from llamatelemetry.setup.catalog import CatalogModel, catalog

__all__ = [
    "QUANT_TYPE_INFO",
    "GGUFParser",
    "RecommendedModel",
    "estimate_vram",
    "get_quantization_info",
    "kaggle_t4_recommended_models",
    "list_quantization_types",
    "recommend_quantization",
]


def __dir__() -> list[str]:
    return sorted(__all__)


@dataclass(frozen=True, slots=True, repr=False)
class RecommendedModel:
    """A model that runs on Kaggle's T4 cards.

    Attributes:
        name: Its name in the catalog ("qwen3-4b").
        quantization: The recipe of its file ("Q4_K_M").
        repo: Its repository on the Hugging Face Hub.
        file: Its file in the repository; the first one of several shards.
        reference: The file on the Hub, as `GGUFParser` and others take it
            ("owner/repo:file.gguf").
        size_bytes: Bytes to download, without a projector for images.
        parameters: The number of weights, rounded.
        architecture: Its family, as llama.cpp names it.
        context: Tokens it was trained for.
        license: The licence as the Hub names it.
        gated: Whether the licence must be accepted on its page before.
        tasks: What it is good for ("chat", "coder", "vision", "embedding", ...).
        gpus: The least number of T4 cards it runs on.
        note: What else one should know.

    Example:
        >>> from llamatelemetry.api.gguf import kaggle_t4_recommended_models
        >>> model = kaggle_t4_recommended_models(gpus=1)[0]
        >>> model.gpus, model.reference.startswith(model.repo)
        (1, True)
    """

    name: str
    quantization: str
    repo: str
    file: str
    reference: str
    size_bytes: int
    parameters: int
    architecture: str
    context: int
    license: str
    gated: bool
    tasks: tuple[str, ...]
    gpus: int
    note: str

    def __repr__(self) -> str:
        cards = "one T4" if self.gpus == 1 else "two T4s"
        return (
            f"<{self.name}: {self.quantization}, "
            f"{format_file_size(self.size_bytes)}, {'/'.join(self.tasks)}, {cards}>"
        )


def kaggle_t4_recommended_models(*, gpus: Literal[1, 2] = 2) -> list[RecommendedModel]:
    """Return models that are worth running on Kaggle's T4 cards.

    Taken from the catalog of this package, whose figures were collected from public
    lists and not checked against the Hub.

    Args:
        gpus: How many cards there are: 2, as Kaggle lends them, or 1, as Colab does.

    Raises:
        ConfigurationError: Another number of cards.

    Returns:
        The models, in the catalog's order.

    Example:
        >>> from llamatelemetry.api.gguf import kaggle_t4_recommended_models
        >>> names = [model.name for model in kaggle_t4_recommended_models()]
        >>> "qwen3-4b" in names, "qwen3-14b" in names
        (True, True)
    """
    if gpus not in (1, 2):
        raise ConfigurationError(f"gpus is 1 or 2, not {gpus!r}")
    wanted = "t4" if gpus == 1 else "t4x2"
    return [_recommended(model) for model in catalog() if wanted in model.fits]


def _recommended(model: CatalogModel) -> RecommendedModel:
    return RecommendedModel(
        name=model.id,
        quantization=model.quantization or "unknown",
        repo=model.repo,
        file=model.files[0].path,
        reference=model.reference,
        size_bytes=model.total_bytes,
        parameters=model.parameters,
        architecture=model.architecture,
        context=model.native_context,
        license=model.license,
        gated=model.gated,
        tasks=model.tasks,
        gpus=1 if "t4" in model.fits else 2,
        note=model.note,
    )
