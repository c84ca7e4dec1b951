"""How new llama.cpp must be for a model."""

from __future__ import annotations

import os
from pathlib import Path

from llamatelemetry.exceptions import ConfigurationError, LLCudaError
from llamatelemetry.setup._fetch import LocalModel
from llamatelemetry.setup._names import parse_reference
from llamatelemetry.setup.catalog import CatalogModel, catalog, find_model

__all__ = ["ModelLike", "least_build"]

ModelLike = str | os.PathLike[str] | CatalogModel
_OLDEST_BUNDLE = 7760
"""The build of January 2026 that the T4 bundles have; the catalog says of each model
whether that one runs it."""


def least_build(model: ModelLike | None, min_build: int | None = None) -> int | None:
    """Return the oldest build of llama.cpp that will do, or None for any.

    By the model's entry in the catalog; for a file, by the entries of its architecture.
    Where the catalog knows only that January 2026 is too old, the next build is meant.

    Args:
        model: A name of the catalog, a reference, a file, or None.
        min_build: What the user demands beside that.

    Raises:
        ConfigurationError: The catalog has no model of this name.
    """
    needs = [0 if min_build is None else min_build, _need_of(model)]
    return max(needs) or None


def _need_of(model: ModelLike | None) -> int:
    if model is None:
        return 0
    entry = _entry_of(model)
    if entry is not None:
        return _need(entry)
    architecture = _architecture_of(model)
    same = [_need(each) for each in catalog() if each.architecture == architecture]
    return min(same, default=0)


def _entry_of(model: ModelLike) -> CatalogModel | None:
    if isinstance(model, CatalogModel):
        return model
    local = isinstance(model, LocalModel)
    name = model.name if isinstance(model, LocalModel) else os.fspath(model)
    reference = parse_reference(name)
    for entry in catalog():
        if entry.id == name or (reference is not None and entry.repo == reference.repo):
            return entry
    if local or reference is not None or name == "demo" or _is_path(name):
        return None
    return find_model(name)  # says which names are near


def _is_path(name: str) -> bool:
    return "/" in name or name.lower().endswith(".gguf") or Path(name).is_file()


def _need(entry: CatalogModel) -> int:
    known = entry.min_llama_cpp or 0
    return max(known, 0 if entry.runs_on_b7760 else _OLDEST_BUNDLE + 1)


def _architecture_of(model: ModelLike) -> str | None:
    if isinstance(model, CatalogModel) or not Path(model).is_file():
        return None
    from llamatelemetry.gguf.reader import read_header  # noqa: PLC0415 -- files only

    try:
        header = read_header(Path(model), check_data=False)
    except (LLCudaError, ConfigurationError):  # the server will say what is wrong
        return None
    return str(header.metadata.get("general.architecture"))
