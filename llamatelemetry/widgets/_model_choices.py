"""Which models a panel offers: the catalog's, and those that lie on this machine."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamatelemetry._demo import DEMO_MODEL
from llamatelemetry._units import format_file_size, printable
from llamatelemetry.exceptions import LLCudaError
from llamatelemetry.gguf._cards import GPU
from llamatelemetry.server._linux import available_memory
from llamatelemetry.setup._hub_cache import cached_models
from llamatelemetry.setup._names import ModelFile, RepoFile, model_files
from llamatelemetry.setup._search import attached_models, caches
from llamatelemetry.setup.catalog import CatalogModel, catalog
from llamatelemetry.setup.recommend import may_fit, recommend_model

__all__ = [
    "DEMO",
    "FoundModels",
    "ModelChoice",
    "default_model",
    "find_models",
    "model_choices",
    "models_in",
]

DEMO = "demo"

_MOST_ENTRIES = 20_000
_MOST_SECONDS = 3.0
_MOST_FOLDERS_DEEP = 3
"""A working folder may hold a checkout with an environment; the look at it ends."""
_MOST_OF_A_KIND = 200
_LONGEST_NAME = 55


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """One line of the list of models.

    Attributes:
        label: What it is called there.
        name: What `launch` takes: a name of the catalog, a reference, a path, "demo".
    """

    label: str
    name: str


@dataclass(frozen=True, slots=True)
class FoundModels:
    """The models that lie on this machine, by name and bytes.

    Attributes:
        cached: In the Hub's cache, ``owner/repository:file.gguf``.
        attached: Paths below /kaggle/input.
        local: Paths below the working folder.
    """

    cached: tuple[tuple[str, int], ...] = ()
    attached: tuple[tuple[str, int], ...] = ()
    local: tuple[tuple[str, int], ...] = ()


def find_models(folder: Path | None = None) -> FoundModels:
    """Look for models on this machine; takes seconds at most.

    Args:
        folder: Where local files are looked for. None: the working folder.
    """
    place = _working_folder() if folder is None else folder
    return FoundModels(
        tuple(_cached()),
        tuple(_models(attached_models())),
        tuple(_models(models_in(place))),
    )


def _working_folder() -> Path:
    """Return the working folder, or its name if it was deleted."""
    try:
        return Path.cwd()
    except OSError:
        return Path()


def _cached() -> list[tuple[str, int]]:
    """Return the whole models of the Hub's caches, shards as one."""
    found: dict[str, dict[str, RepoFile]] = {}
    for cache in caches():
        for name, size in cached_models(cache):
            repo, _, path = name.partition(":")
            found.setdefault(repo, {})[path] = RepoFile(path, size, None)
    return [
        (f"{repo}:{model.paths[0]}", model.size)
        for repo, files in found.items()
        for model in model_files(files.values())
    ]


def models_in(folder: Path) -> list[Path]:
    """Return the GGUF files below a folder, as a bounded look finds them."""
    found: list[Path] = []
    entries, end = 0, time.monotonic() + _MOST_SECONDS
    for place, folders, files in os.walk(folder):
        entries += len(folders) + len(files)
        deep = len(Path(place).relative_to(folder).parts)
        folders[:] = sorted(
            name
            for name in folders
            if deep < _MOST_FOLDERS_DEEP and not name.startswith(".")
        )
        models = (name for name in files if name.lower().endswith(".gguf"))
        found += [Path(place, name) for name in models]
        if entries > _MOST_ENTRIES or time.monotonic() > end:
            break
    return sorted(path for path in found if path != DEMO_MODEL)


def _models(paths: Iterable[Path]) -> list[tuple[str, int]]:
    """Return the models among files, shards as one; projectors are none."""
    files = []
    for path in paths:
        with contextlib.suppress(OSError):
            files.append(RepoFile(str(path), path.stat().st_size, None))
    models: list[ModelFile] = sorted(model_files(files), key=lambda one: one.paths)
    return [(model.paths[0], model.size) for model in models[:_MOST_OF_A_KIND]]


def default_model(cards: Sequence[GPU]) -> str:
    """Return what is chosen at first: as `launch` would, the demo model without a card.

    Args:
        cards: The cards of this machine.
    """
    with contextlib.suppress(LLCudaError):
        if cards:
            return recommend_model(cards).id
    return DEMO


def model_choices(
    found: FoundModels,
    cards: Sequence[GPU],
    context: int,
    *,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
    flash_attn: bool = True,
    also: str | None = None,
) -> list[ModelChoice]:
    """Return the list of models; what lies here first, then the catalog.

    Args:
        found: What lies on this machine.
        cards: The cards it would run on; none for the host.
        context: Tokens of context over all slots.
        cache_type_k: The type of the cache's keys.
        cache_type_v: The type of its values.
        flash_attn: Whether flash attention is used.
        also: A model that must be in the list, whatever it is.
    """
    rooms = [card.free_bytes or 0 for card in cards] or [available_memory() or 0]

    def fits(entry: CatalogModel) -> bool:
        return may_fit(
            entry,
            rooms,
            min(context, entry.native_context),
            cache_type_k=cache_type_k,
            cache_type_v=cache_type_v,
            flash_attn=flash_attn,
        )

    cached = dict(found.cached)
    size = format_file_size(DEMO_MODEL.stat().st_size)
    choices = [ModelChoice(f"demo model · {size} · comes with the package", DEMO)]
    choices += _files("file", found.local)
    choices += _files("attached", found.attached)
    for entry in catalog():
        here = cached.pop(_place(entry), None) is not None
        choices.append(_of_catalog(entry, fits=fits(entry), here=here))
    choices += [
        ModelChoice(f"Hub's cache · {_short(name)} · {format_file_size(size)}", name)
        for name, size in list(cached.items())[:_MOST_OF_A_KIND]
    ]
    if also is not None and also not in {choice.name for choice in choices}:
        choices.append(ModelChoice(f"named · {_short(also)}", also))
    return choices


def _files(kind: str, models: Iterable[tuple[str, int]]) -> list[ModelChoice]:
    here = _working_folder()
    choices = []
    for name, size in models:
        path = Path(name)
        shown = path.relative_to(here) if path.is_relative_to(here) else path
        told = f"{kind} · {_short(str(shown))} · {format_file_size(size)}"
        choices.append(ModelChoice(told, name))
    return choices


def _of_catalog(entry: CatalogModel, *, fits: bool, here: bool) -> ModelChoice:
    """Return the line of a model of the catalog: what fits is said in words."""
    parts = [
        f"catalog · {entry.id}",
        entry.quantization or "",
        format_file_size(entry.total_bytes),
        "fits" if fits else "too large",
    ]
    if here:
        parts.append("downloaded")
    if entry.gated:
        parts.append("licence to be accepted")
    return ModelChoice(" · ".join(filter(None, parts)), entry.id)


def _place(entry: CatalogModel) -> str:
    return f"{entry.repo}:{entry.files[0].path}"


def _short(name: str) -> str:
    """Return a name's end, which tells more than its beginning."""
    shown = printable(name, len(name))
    return shown if len(shown) <= _LONGEST_NAME else f"…{shown[1 - _LONGEST_NAME :]}"
