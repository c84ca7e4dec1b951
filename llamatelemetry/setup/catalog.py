"""The catalog: models that are worth recommending for one T4 or two.

``catalog.json`` says where its figures come from. They were not checked against the
Hub itself, so what the Hub says of a file counts more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llamatelemetry._units import format_file_size
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.setup._names import (
    HubReference,
    nearest_names,
    parse_reference,
    quantization_label,
)

__all__ = ["CatalogFile", "CatalogModel", "catalog", "find_entry", "find_model"]

_MOST_NAMED = 8


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """One file of a model on the Hub.

    Attributes:
        path: Its path in the repository.
        bytes: Its size.
        sha256: The digest of its content in hex, or None if not known.
        revision: The commit at which all this was seen, or None for the main branch.

    Examples:
        >>> from llamatelemetry.setup.catalog import find_model
        >>> file = find_model("qwen3-4b").files[0]
        >>> file.path, file.bytes
        ('Qwen3-4B-Q4_K_M.gguf', 2497280256)
    """

    path: str
    bytes: int
    sha256: str | None
    revision: str | None


@dataclass(frozen=True, slots=True, repr=False)
class CatalogModel:
    """A model that is worth recommending.

    Attributes:
        id: Its name in the catalog ("qwen3-4b").
        tasks: What it is good for: "chat", "reasoning", "coder", "vision",
            "embedding"; the foremost first.
        repo: Its repository on the Hub, ``owner/repository``.
        files: The file, or its shards in order.
        mmproj: The vision projector that belongs to it, or None.
        architecture: As its GGUF file names it ("qwen3").
        parameters: The number of weights, rounded as its maker states it.
        active_parameters: Those that work on one token, for a mixture of experts; None
            where all do.
        native_context: Tokens of context it was trained for.
        native_context_confirmed: Whether that was seen in a source.
        license: The licence's name on the Hub.
        gated: Whether the licence must be accepted on its page before a download.
        fits: "t4", "t4x2": where it runs with a usable context, by a rule of thumb.
        min_llama_cpp: The oldest build of llama.cpp known to be enough, or None if not
            known as a number.
        min_llama_cpp_note: What is known instead of the number.
        runs_on_b7760: Whether llama.cpp of January 2026 runs it, by its merge dates.
        name_confirmed: Whether the file name was seen in a source.
        note: What else one should know.

    Examples:
        >>> from llamatelemetry.setup.catalog import find_model
        >>> model = find_model("qwen3-14b")
        >>> model.quantization, model.total_bytes, model.native_context
        ('Q4_K_M', 9001752960, 40960)
    """

    id: str
    tasks: tuple[str, ...]
    repo: str
    files: tuple[CatalogFile, ...]
    mmproj: CatalogFile | None
    architecture: str
    parameters: int
    active_parameters: int | None
    native_context: int
    native_context_confirmed: bool
    license: str
    gated: bool
    fits: tuple[str, ...]
    min_llama_cpp: int | None
    min_llama_cpp_note: str
    runs_on_b7760: bool
    name_confirmed: bool
    note: str

    def __repr__(self) -> str:
        size = format_file_size(self.total_bytes)
        fits = "one T4" if "t4" in self.fits else "two T4s" if self.fits else "no T4"
        return (
            f"<{self.id}: {self.quantization}, {size}, {'/'.join(self.tasks)}, {fits}>"
        )

    @property
    def quantization(self) -> str | None:
        """The quantization that the file's name tells ("Q4_K_M")."""
        return quantization_label(self.files[0].path)

    @property
    def total_bytes(self) -> int:
        """Bytes of all shards, without the vision projector."""
        return sum(file.bytes for file in self.files)

    @property
    def reference(self) -> str:
        """What names its first file on the Hub: ``owner/repository:file.gguf``."""
        first = self.files[0]
        return str(HubReference(self.repo, first.path, first.revision))


@cache
def catalog() -> tuple[CatalogModel, ...]:
    """Return the models of the catalog, the smallest chat models first.

    Examples:
        >>> from llamatelemetry.setup.catalog import catalog
        >>> [model.id for model in catalog() if "coder" in model.tasks][:2]
        ['qwen2.5-coder-14b', 'qwen3.6-27b']
    """
    place = Path(__file__).with_name("catalog.json")
    return tuple(map(_entry, json.loads(place.read_text(encoding="utf-8"))["models"]))


def find_model(name: str) -> CatalogModel:
    """Return the model of this name, in any case.

    Args:
        name: Its name in the catalog, "qwen3-4b".

    Raises:
        ConfigurationError: The catalog has none; names the nearest.

    Examples:
        >>> from llamatelemetry.setup.catalog import find_model
        >>> find_model("Qwen3-4B")
        <qwen3-4b: Q4_K_M, 2.5 GB, chat, one T4>
    """
    known = {model.id: model for model in catalog()}
    model = known.get(name.lower())
    if model is not None:
        return model
    near = nearest_names(name, known, most=_MOST_NAMED)
    instead = "the nearest are" if near else "it has, among others"
    names = near or list(known)[:_MOST_NAMED]
    raise ConfigurationError(
        f"the catalog has no model {name!r}; {instead}: {', '.join(names)}"
    )


def _entry(values: dict[str, Any]) -> CatalogModel:
    projector = values.pop("mmproj")
    return CatalogModel(
        tasks=tuple(values.pop("tasks")),
        files=tuple(CatalogFile(**file) for file in values.pop("files")),
        fits=tuple(values.pop("fits")),
        mmproj=CatalogFile(**projector) if projector else None,
        **values,
    )


def find_entry(text: str) -> CatalogModel | None:
    """Return the model that a name or a reference to the Hub means; None for another.

    Args:
        text: A name of the catalog in any case, or a reference to one of its files, to
            its quantization, or to its repository alone.

    Examples:
        >>> from llamatelemetry.setup.catalog import find_entry
        >>> find_entry("Qwen/Qwen3-4B-GGUF:Q4_K_M").id
        'qwen3-4b'
        >>> find_entry("model.gguf") is None
        True
    """
    named = next((model for model in catalog() if model.id == text.lower()), None)
    reference = parse_reference(text)
    if named is not None or reference is None:
        return named
    asked = (reference.path or "").lower()
    for model in catalog():
        known = {"", (model.quantization or "").lower()}
        known.update(file.path.lower() for file in model.files)
        if model.repo.lower() == reference.repo.lower() and asked in known:
            return model
    return None
