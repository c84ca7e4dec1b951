"""The files of a capsule: how they are described, placed and read again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llamatelemetry._demo import DEMO_MODEL
from llamatelemetry._environment import detect_platform
from llamatelemetry._progress import FileBar
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.setup._checksums import sha256_of
from llamatelemetry.setup._disk import disk_errors, write_json
from llamatelemetry.setup._names import USUAL_QUANTIZATION, quantization_label
from llamatelemetry.setup._wanted import read_wanted

__all__ = [
    "LOCK_NAME",
    "attached_capsules",
    "check_inside",
    "described",
    "find_capsule",
    "holds",
    "listing_digest",
    "place_file",
    "read_lock",
    "write_metadata",
]

LOCK_NAME = "capsule.json"
_METADATA_NAME = "dataset-metadata.json"
_BLOCK_BYTES = 1 << 20
_DEEPEST = 3


def described(path: Path, folder: Path, bar: FileBar) -> dict[str, Any]:
    """Return what the lock file says of a file: path, size, digest."""
    bar.say("verifying")
    digest = sha256_of(path, lambda _: bar.check())
    return {
        "path": path.relative_to(folder).as_posix(),
        "bytes": path.stat().st_size,
        "sha256": digest,
    }


def place_file(source: Path, target: Path, bar: FileBar) -> None:
    """Put a file into the capsule: a second name for it where that is possible.

    Raises:
        DiskSpaceError: The disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    real = source.resolve()
    size = real.stat().st_size
    try:
        if real == DEMO_MODEL:  # not to be edited under a second name
            raise OSError  # noqa: TRY301 - as from another file system
        os.link(real, target)
    except OSError:  # another file system
        with (
            disk_errors(target.parent, target.name, lambda: size),
            real.open("rb") as reader,
            target.open("wb") as writer,
        ):
            while block := reader.read(_BLOCK_BYTES):
                writer.write(block)
                bar.advance(len(block))
        shutil.copymode(real, target)
    bar.move_to(size)


def listing_digest(files: list[dict[str, Any]], links: dict[str, str]) -> str:
    """Return the digest that names a set of files and links, whatever their order."""
    listed = [sorted([file["path"], file["sha256"]] for file in files), links]
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()


def check_inside(folder: Path, name: str) -> Path:
    """Return the path of a file that a lock file names, if it lies in the capsule.

    Raises:
        ConfigurationError: It lies elsewhere.
    """
    path = folder / name
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or not parts:
        raise ConfigurationError(
            f"{folder / LOCK_NAME}: {name!r} lies outside of the capsule"
        )
    return path


def read_lock(folder: Path) -> dict[str, Any]:
    """Return a capsule's lock file.

    Raises:
        ConfigurationError: There is none, or it is of another format.
    """
    place = folder / LOCK_NAME
    try:
        lock = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"{folder} is no capsule: {LOCK_NAME} cannot be read ({error.strerror}); "
            "make one with llamatelemetry pack"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{place} is no JSON: {error}") from error
    problem = _problem_of(lock)
    if problem:
        raise ConfigurationError(f"{place} is not understood: {problem}; pack it anew")
    found: dict[str, Any] = lock
    return found


def _problem_of(lock: Any) -> str:
    """Return what is wrong with a lock, which somebody else may have written."""
    try:
        if lock["format"] != 1:
            return f"its format is {lock['format']!r}, this version reads 1"
        model, engine = lock["model"], lock["engine"]
        files = [*model["files"], *engine["files"], *lock["wheels"]]
        if not all(map(_is_sound, files)) or not model["files"]:
            return "a file has no path, no size or no digest"
        inside = all(file["path"].startswith("engine/") for file in engine["files"])
        names = [model["name"], engine["id"], *engine["links"].items()]
        texts = all(isinstance(text, str) for text in _flat(names))
        entry = engine["entry"]
        if not inside or not texts or not isinstance(entry, dict | None):
            return "its engine or its names are not written as they should be"
    except KeyError as error:
        return f"{error} is missing"
    except (TypeError, AttributeError) as error:
        return str(error)
    return ""


def _is_sound(file: Any) -> bool:
    return (
        isinstance(file["path"], str)
        and isinstance(file["sha256"], str)
        and isinstance(file["bytes"], int)
    )


def _flat(names: list[Any]) -> list[Any]:
    flat: list[Any] = []
    for name in names:
        flat += name if isinstance(name, tuple) else [name]
    return flat


def write_metadata(folder: Path, title: str) -> None:
    """Write what Kaggle's command line asks of a folder that becomes a dataset.

    https://github.com/Kaggle/kaggle-api/blob/main/docs/datasets_metadata.md: a title of
    6 to 50 letters, an id of at most 50, one licence of its list. The weights have the
    licence of their maker, which is none of that list's names in general.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:50].strip("-")
    write_json(
        folder / _METADATA_NAME,
        {
            "title": title,
            "id": f"INSERT_YOUR_USER_NAME/{slug}",
            "licenses": [{"name": "other"}],
        },
    )


def find_capsule(model: str | None = None) -> Path | None:
    """Return the attached capsule that holds a model, or None.

    Args:
        model: The model; None for any.

    Raises:
        ConfigurationError: Several do.
    """
    found = [folder for folder, lock in attached_capsules() if holds(lock, model)]
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        raise ConfigurationError(
            f"several attached capsules will do: {listed}. Name one: capsule='…'"
        )
    return found[0] if found else None


def attached_capsules() -> list[tuple[Path, dict[str, Any]]]:
    """Return the attached capsules with what their locks say."""
    place = detect_platform().input
    if place is None or not place.is_dir():
        return []
    found = []
    for folder in _capsules_below(place, _DEEPEST):
        with contextlib.suppress(ConfigurationError):
            found.append((folder, read_lock(folder)))
    return found


def _capsules_below(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the folders that hold a lock file; datasets lie a few folders deep."""
    if (folder / LOCK_NAME).is_file():
        yield folder
        return
    if depth:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            inner = sorted(entry.path for entry in entries if entry.is_dir())
            for path in inner:
                yield from _capsules_below(Path(path), depth - 1)


def holds(lock: dict[str, Any], model: str | None) -> bool:
    """Whether a capsule holds the model that a name asks for.

    Args:
        lock: The capsule's lock.
        model: The name it was packed by, or another one for the same file.
    """
    told = lock["model"]
    if model is None or model.lower() == str(told["name"]).lower():
        return True
    first = Path(told["files"][0]["path"]).name
    if model == first:
        return True
    try:
        wanted = read_wanted(model)
    except ConfigurationError:
        return False
    if wanted.repo != told.get("repo"):
        return False
    if wanted.files:
        return any(Path(file.path).name == first for file in wanted.files)
    label = wanted.reference.path or USUAL_QUANTIZATION
    return quantization_label(first) == label.upper()
