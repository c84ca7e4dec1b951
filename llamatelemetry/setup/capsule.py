"""Capsules: engine, model and wheels in one folder, for notebooks without internet.

``pack`` makes the folder where there is internet; it is ready to be a Kaggle dataset.
In the notebook ``prepare(capsule=...)`` verifies every file against ``capsule.json``
and copies the engine to scratch, because an attached dataset is read-only and has lost
its run bits and links. The model is used where it lies. Nothing is connected to.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from llamatelemetry import __version__
from llamatelemetry._demo import DEMO_VARIABLE, is_demo_mode
from llamatelemetry._progress import FileBar, Shown
from llamatelemetry._units import format_file_size
from llamatelemetry.exceptions import (
    ConfigurationError,
    ModelError,
)
from llamatelemetry.server.engine import Engine
from llamatelemetry.setup._capsule_engine import (
    engine_entry,
    open_engine,
    pack_engine,
)
from llamatelemetry.setup._capsule_files import (
    LOCK_NAME,
    check_inside,
    described,
    holds,
    place_file,
    read_lock,
    write_metadata,
)
from llamatelemetry.setup._capsule_wheels import check_wheels, pack_wheels
from llamatelemetry.setup._checksums import mismatch
from llamatelemetry.setup._disk import remove_tree, require_space, write_json
from llamatelemetry.setup._fetch import LocalModel, ModelFetch, verify
from llamatelemetry.setup._hub import token_finder
from llamatelemetry.setup._needs import least_build
from llamatelemetry.setup._wanted import read_wanted
from llamatelemetry.setup.catalog import catalog
from llamatelemetry.setup.engines import warn
from llamatelemetry.setup.models import get_model

__all__ = ["Capsule", "open_capsule", "open_model", "pack"]

_FORMAT = 1
_DEMO_NOTICE = (
    f"{DEMO_VARIABLE} is set: the demo model and the embedded engine are packed, which "
    "has no files of its own, and no wheels but those that are named"
)


@dataclass(frozen=True, slots=True, repr=False)
class Capsule:
    """A capsule that was packed.

    Attributes:
        folder: Where it is.
        model: The model's name.
        engine: The engine's name.
        size: Bytes of all its files.
        files: How many there are.

    Examples:
        >>> from llamatelemetry.setup import pack
        >>> capsule = pack(
        ...     "capsule", "model.gguf", engine="embedded", wheels=[], progress=False
        ... )
        >>> capsule.model, capsule.engine, capsule.files
        ('model.gguf', 'embedded', 3)
    """

    folder: Path
    model: str
    engine: str
    size: int
    files: int

    def __repr__(self) -> str:
        return (
            f"{self.folder}: {self.model} with {self.engine}, {self.files} files, "
            f"{format_file_size(self.size)}"
        )


def pack(
    folder: str | os.PathLike[str],
    model: str | os.PathLike[str],
    *,
    engine: str | os.PathLike[str] | None = None,
    wheels: Sequence[str | os.PathLike[str]] | None = None,
    python_version: str = "3.12",
    title: str | None = None,
    token: str | None = None,
    progress: bool = True,
) -> Capsule:
    """Build a folder that holds all that a notebook without internet needs.

    Upload it with ``kaggle datasets create -p FOLDER --dir-mode zip``, after putting
    your user name into ``dataset-metadata.json``; without that option Kaggle's program
    leaves folders out.

    Args:
        folder: Where to; must be empty or not exist yet.
        model: See :func:`ensure_model`.
        engine: A name of the manifest, a URL or Hub file that the manifest names, the
            folder of an unpacked engine, or "embedded". None: the first of the
            manifest for a T4 that is new enough for the model.
        wheels: Wheel files, or requirements that pip downloads. None: this package and
            what Kaggle's image lacks of its dependencies.
        python_version: The notebook's Python: 3.12 on Kaggle.
        title: The dataset's title, 6 to 50 letters.
        token: The Hub's token; see :func:`ensure_model`.
        progress: Whether bars are shown.

    Returns:
        What was packed.

    Raises:
        ConfigurationError: The folder is not empty, or an argument is no engine.
        SetupError: Something cannot be fetched, or there is no room.
        ModelError: See :func:`ensure_model`.

    Examples:
        >>> from llamatelemetry.setup import pack
        >>> capsule = pack("capsule", "model.gguf", engine="embedded", wheels=[])
        >>> sorted(path.name for path in capsule.folder.iterdir())
        ['capsule.json', 'dataset-metadata.json', 'model', 'wheels']
    """
    find_token = token_finder(token)
    del token  # no traceback shows it
    place = Path(folder).expanduser().absolute()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ConfigurationError(f"{place} is not empty; name a new folder")
    check_wheels(wheels)
    found = get_model(model, ModelFetch(find_token=find_token, shown=progress))
    if is_demo_mode() and (engine is None or wheels is None):
        wheels = [] if wheels is None else wheels
        warn([_DEMO_NOTICE])
    place.parent.mkdir(parents=True, exist_ok=True)
    require_space(place, found.size, f"the capsule of {found.name}")
    building = Path(mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    building.chmod(0o755)
    try:
        lock: dict[str, Any] = {
            "format": _FORMAT,
            "made_by": f"llamatelemetry {__version__}",
            "model": _pack_model(found, building, shown=progress),
            "engine": pack_engine(
                engine_entry(engine, least_build(found), find_token),
                building,
                find_token,
                shown=progress,
            ),
            "wheels": pack_wheels(wheels, building, python_version),
        }
        write_metadata(building, title or f"llamatelemetry capsule {found.name}"[:50])
        write_json(building / LOCK_NAME, lock)
        _put(building, place)
    except BaseException:
        remove_tree(building)
        raise
    files = [each for each in place.rglob("*") if each.is_file()]
    size = sum(each.stat().st_size for each in files)
    return Capsule(place, found.name, lock["engine"]["id"], size, len(files))


def _put(building: Path, place: Path) -> None:
    """Give a capsule its name, unless somebody else has filled the folder meanwhile."""
    try:
        building.rename(place)  # over an empty folder, too
    except OSError as error:
        raise ConfigurationError(
            f"{place} is not empty, or cannot be written ({error.strerror}); name a "
            "new folder"
        ) from error


def _check_catalog(lock: dict[str, Any], place: Path) -> None:
    """Refuse a capsule that calls another file by a name of the catalog.

    Raises:
        ChecksumError: It does.
    """
    told = lock["model"]
    known = {entry.id: entry for entry in catalog()}.get(str(told["name"]).lower())
    if known is None:
        return
    pinned = [file.sha256 for file in known.files]
    packed = [file["sha256"] for file in told["files"]]
    for expected, actual in zip_longest(pinned, packed):
        if expected not in (None, actual):
            raise mismatch(
                f"{told['name']} in the capsule {place}",
                expected=str(expected),
                actual=str(actual),
                advice="It is not the model that the catalog has by this name.",
            )


def _pack_model(model: LocalModel, building: Path, *, shown: bool) -> dict[str, Any]:
    files = []
    for path in model.files:
        target = building / "model" / path.name
        with FileBar(path.name, path.stat().st_size, shown=shown) as bar:
            place_file(path, target, bar)
            files.append(described(target, building, bar))
    return {"name": model.name, "repo": _repo_of(model.name), "files": files}


def _repo_of(name: str) -> str | None:
    """Return the repository that a model came from, by what it was asked for."""
    try:
        return read_wanted(name).repo
    except ConfigurationError:  # a file of this machine
        return None


def open_capsule(
    folder: str | os.PathLike[str], *, model: str | None = None, progress: Shown = True
) -> tuple[Engine, LocalModel]:
    """Return the engine and the model of a capsule, verified. Connects to nothing.

    Args:
        folder: The capsule: the folder with ``capsule.json``.
        model: The model it must hold, or None.
        progress: Whether bars are shown; or what is called instead.

    Raises:
        ConfigurationError: The folder is no capsule, or holds another model.
        ChecksumError: A file is not the one that was packed.
        ModelError: A file of the model is missing.
        SetupError: The engine cannot be copied.

    Examples:
        >>> from llamatelemetry.setup import open_capsule, pack
        >>> capsule = pack("capsule", "model.gguf", engine="embedded", wheels=[])
        >>> engine, model = open_capsule("capsule", progress=False)
        >>> print(engine, model.name, sep=", ")
        the embedded engine (xllamacpp), model.gguf
    """
    place = Path(folder).expanduser().absolute()
    lock = read_lock(place)
    local = open_model(place, model=model, progress=progress)
    return open_engine(lock["engine"], place, shown=progress), local


def open_model(
    folder: str | os.PathLike[str], *, model: str | None = None, progress: Shown = True
) -> LocalModel:
    """Return the model of a capsule, verified; see :func:`open_capsule`.

    Args:
        folder: The capsule: the folder with ``capsule.json``.
        model: The model it must hold, or None.
        progress: Whether bars are shown; or what is called instead.

    Raises:
        ConfigurationError: The folder is no capsule, or holds another model.
        ChecksumError: A file is not the one that was packed.
        ModelError: A file of the model is missing.

    Examples:
        >>> from llamatelemetry.setup import pack
        >>> from llamatelemetry.setup.capsule import open_model
        >>> capsule = pack("capsule", "model.gguf", engine="embedded", wheels=[])
        >>> open_model("capsule", progress=False)
        <LocalModel model.gguf: model.gguf, 1.9 MB>
    """
    place = Path(folder).expanduser().absolute()
    lock = read_lock(place)
    name = str(lock["model"]["name"])
    if not holds(lock, model):
        raise ConfigurationError(f"the capsule {place} holds {name}, not {model}")
    _check_catalog(lock, place)
    paths = []
    for entry in lock["model"]["files"]:
        path = check_inside(place, entry["path"])
        if not path.is_file():
            raise ModelError(f"the capsule {place} lacks its file {entry['path']!r}")
        with FileBar(path.name, path.stat().st_size, shown=progress) as bar:
            verify(path, entry["sha256"], bar, str(path))
        paths.append(path)
    size = sum(path.stat().st_size for path in paths)
    digest = lock["model"]["files"][0]["sha256"]
    return LocalModel(paths[0], name, tuple(paths), size, digest)
