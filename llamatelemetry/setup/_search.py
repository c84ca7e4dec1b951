"""Where a model's files lie on this machine already. Nothing is asked of the Hub."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from llamatelemetry._environment import detect_platform
from llamatelemetry.exceptions import ModelError
from llamatelemetry.setup._disk import free_bytes
from llamatelemetry.setup._hub import cached_file, default_cache
from llamatelemetry.setup._hub_cache import cached_snapshot
from llamatelemetry.setup._names import (
    USUAL_QUANTIZATION,
    RepoFile,
    choose_model,
    model_files,
    quantization_label,
    shard_names,
)
from llamatelemetry.setup._wanted import WantedModel, belongs_to, with_files

__all__ = ["ModelSearch", "attached_models", "cache_for", "caches", "look_for"]

_MOST_ENTRIES = 200_000
_MOST_SECONDS = 10.0
"""A competition's dataset may have millions of files; the look at it ends."""


@dataclass(frozen=True, slots=True)
class ModelSearch:
    """What of a model is here, and what is missing.

    Attributes:
        wanted: What was asked for; its files are known if any of them is here.
        here: The files that are here, by their path in the repository. Not verified.
    """

    wanted: WantedModel
    here: dict[str, Path]

    @property
    def missing(self) -> tuple[RepoFile, ...]:
        """The files that have to be fetched, as far as they are known."""
        return tuple(file for file in self.wanted.files if file.path not in self.here)

    @property
    def complete(self) -> bool:
        """Whether everything is here."""
        return bool(self.wanted.files) and not self.missing


def caches(named: Path | None = None) -> list[Path]:
    """Return the cache folders to look in; the first one is the one to write to.

    Args:
        named: The one the user names.
    """
    if named is not None:
        return [named]
    usual = default_cache()
    scratch = _scratch_cache()
    return [usual] if scratch is None or scratch == usual else [usual, scratch]


def _scratch_cache() -> Path | None:
    platform = detect_platform()
    if platform.name != "kaggle":
        return None
    return platform.scratch / "huggingface" / "hub"


def cache_for(size: int, named: Path | None = None) -> Path:
    """Return the cache folder for a download: the first that has room for it.

    On Kaggle a cache below /kaggle/working has no room for a large model, since what
    lies there is kept as output, up to 20 GB; scratch has.

    Args:
        size: Bytes to download.
        named: The one the user names.
    """
    places = caches(named)
    for place in places:
        if free_bytes(place) > size:
            return place
    return places[0]


def look_for(wanted: WantedModel, named: Path | None = None) -> ModelSearch:
    """Look for a model's files in attached datasets and in the Hub's cache.

    Args:
        wanted: What is looked for.
        named: The cache folder the user names.
    """
    for cache in caches(named):
        found = _in_cache(wanted, cache)
        if found.complete:
            return found
    attached = _attached(wanted)
    # Shards must lie in one folder: some here and some there are no model.
    if attached.complete:
        return attached
    return _in_cache(wanted, caches(named)[0])


def _in_cache(wanted: WantedModel, cache: Path) -> ModelSearch:
    # By their names in small letters: names on the Hub change their case.
    places: dict[str, Path] = {}
    for path in cached_snapshot(cache, wanted.repo, wanted.revision):
        place = cached_file(wanted.repo, path, wanted.revision, cache=cache)
        if place is not None:
            places[path.lower()] = place
    if not wanted.files:
        label = wanted.reference.path or USUAL_QUANTIZATION
        known = [
            RepoFile(path, place.stat().st_size, None) for path, place in places.items()
        ]
        try:
            choose_model(wanted.repo, model_files(known), label)
            wanted = with_files(wanted, known)
        except ModelError:  # not here, or not said well enough
            return ModelSearch(wanted, {})
    here = {}
    for file in wanted.files:
        found = places.get(file.path.lower())
        if found is not None and file.size in (None, found.stat().st_size):
            here[file.path] = found
    return ModelSearch(wanted, here)


def _attached(wanted: WantedModel) -> ModelSearch:
    """Look for the files in attached datasets, all of them in one folder."""
    nothing = ModelSearch(wanted, {})
    if not wanted.files:
        return _attached_by_label(wanted) or nothing
    names = {Path(file.path).name.lower(): file for file in wanted.files}
    by_folder: dict[Path, dict[str, Path]] = {}
    for path in attached_models():
        file = names.get(path.name.lower())
        if file is None or file.size not in (None, path.stat().st_size):
            continue
        if file.sha256 is not None or belongs_to(wanted.repo, file.path):
            by_folder.setdefault(path.parent, {})[file.path] = path
    complete = (here for here in by_folder.values() if len(here) == len(names))
    return ModelSearch(wanted, next(complete, {}))


def _attached_by_label(wanted: WantedModel) -> ModelSearch | None:
    """Return the one attached file of a repository's name and quantization."""
    label = wanted.reference.path or USUAL_QUANTIZATION
    found = [
        path
        for path in attached_models()
        if belongs_to(wanted.repo, path.name)
        and quantization_label(path.name) == label.upper()
    ]
    if len(found) != 1 or len(shard_names(found[0].name)) > 1:
        return None
    file = RepoFile(found[0].name, found[0].stat().st_size, wanted.digest)
    return ModelSearch(replace(wanted, files=(file,)), {file.path: found[0]})


def attached_models() -> list[Path]:
    """Return the GGUF files below /kaggle/input, as a bounded look finds them."""
    folder = detect_platform().input
    if folder is None:
        return []
    found: list[Path] = []
    entries, end = 0, time.monotonic() + _MOST_SECONDS
    for place, folders, files in os.walk(folder):
        entries += len(folders) + len(files)
        models = (name for name in files if name.lower().endswith(".gguf"))
        found += [Path(place, name) for name in models]
        if entries > _MOST_ENTRIES or time.monotonic() > end:
            break
    return sorted(found)
