"""The engine of a capsule: packed as plain files, made runnable again elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from llamatelemetry._demo import is_demo_mode
from llamatelemetry._environment import Token
from llamatelemetry._progress import FileBar, Shown
from llamatelemetry._units import without_secrets
from llamatelemetry.exceptions import (
    ConfigurationError,
    EngineNotFoundError,
)
from llamatelemetry.gpu._capability import ComputeCapability
from llamatelemetry.gpu.inventory import GPUInfo
from llamatelemetry.server._installed import RECORD_NAME, InstalledEngine
from llamatelemetry.server.engine import (
    EMBEDDED,
    Engine,
    embedded_engine,
    engine_of_record,
)
from llamatelemetry.setup._capsule_files import (
    check_inside,
    described,
    listing_digest,
)
from llamatelemetry.setup._checksums import mismatch
from llamatelemetry.setup._choose import find_installed
from llamatelemetry.setup._disk import disk_errors
from llamatelemetry.setup._fetch import verify
from llamatelemetry.setup._install import fetch_unpacked, install_copy
from llamatelemetry.setup._machine import Machine, measure_machine, why_not
from llamatelemetry.setup._manifest import EngineEntry, entry_of, manifest
from llamatelemetry.setup._sources import entry_of_folder, entry_of_source
from llamatelemetry.setup.engines import EMBEDDED_NOTE

__all__ = ["engine_entry", "open_engine", "pack_engine"]

_KAGGLE = Machine(
    "x86_64",
    "2.35",
    "570.172.08",
    (12, 8),
    (GPUInfo(0, "Tesla T4", 15.0, 14.7, ComputeCapability("7.5")),),
    "",
)
"""What a capsule is packed for: Kaggle's image and driver as seen in 2026."""

_FOLDER = "engine"


def engine_entry(
    engine: str | os.PathLike[str] | None,
    min_build: int | None,
    find_token: Callable[[], Token | None],
) -> EngineEntry | Path | None:
    """Return the engine to pack: an entry, the folder of one, or None: the embedded.

    Args:
        engine: What the user named; see :func:`~llamatelemetry.setup.capsule.pack`.
        min_build: The oldest build of llama.cpp that runs the model.
        find_token: Finds the token, where the Hub has to be asked.

    Raises:
        ConfigurationError: It is no engine, or none of the manifest will do.
    """
    if engine == EMBEDDED or (engine is None and is_demo_mode()):
        return None
    if engine is not None:
        folder = Path(engine).expanduser()
        if folder.is_dir():
            return folder
        entry = entry_of_source(os.fspath(engine), None, find_token)
        if entry is not None:
            return entry
        raise ConfigurationError(
            f"engine={os.fspath(engine)!r} is neither a name of the manifest "
            f"({', '.join(each.id for each in manifest().engines)}) nor a folder with "
            f"an engine, nor {EMBEDDED!r}"
        )
    reasons = []
    for entry in manifest().engines:
        problem = why_not(entry, _KAGGLE, min_build)
        if problem is None:
            return entry
        reasons.append(f"{entry.id}: {problem}")
    raise ConfigurationError(f"no engine of the manifest will do: {'; '.join(reasons)}")


def pack_engine(
    source: EngineEntry | Path | None,
    building: Path,
    find_token: Callable[[], Token | None],
    *,
    shown: bool,
) -> dict[str, Any]:
    """Put an engine into a capsule as plain files, and return what the lock says of it.

    Raises:
        SetupError: It cannot be fetched, or is not what was pinned.
    """
    if source is None:
        return {"id": EMBEDDED, "entry": None, "files": [], "links": {}}
    place = building / _FOLDER
    place.mkdir()
    entry = entry_of_folder(source) if isinstance(source, Path) else source
    with FileBar(entry.id, entry.bytes, shown=shown) as bar:
        record = None if isinstance(source, Path) else find_installed(entry)
        origin = source if record is None else record.folder
        if not isinstance(origin, Path):
            fetch_unpacked(entry, place, bar, find_token)
        else:
            shutil.copytree(
                origin,
                place,
                symlinks=True,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns(RECORD_NAME),
            )
        links = _take_out_links(place)
        files = [
            described(path, building, bar)
            for path in sorted(place.rglob("*"))
            if path.is_file()
        ]
        if record is not None:
            _check_unchanged(record, files)
    told = replace(entry, url=without_secrets(entry.url)) if entry.url else entry
    return {"id": entry.id, "entry": asdict(told), "files": files, "links": links}


def _check_unchanged(record: InstalledEngine, files: list[dict[str, Any]]) -> None:
    """Refuse to pack what is not what was verified when it was installed."""
    known = record.digests
    for file in files:
        name = file["path"].removeprefix(f"{_FOLDER}/")
        if known.get(name) != file["sha256"]:
            raise mismatch(
                f"{record.id}: {name}",
                expected=str(known.get(name)),
                actual=file["sha256"],
                advice="It has changed since it was installed; delete "
                f"{record.folder}.",
            )


def _take_out_links(folder: Path) -> dict[str, str]:
    """Delete the links below a folder and return them: a dataset does not keep them."""
    links = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            links[path.relative_to(folder).as_posix()] = os.readlink(path)  # noqa: PTH115 -- as it is written
            path.unlink()
    return links


def open_engine(values: dict[str, Any], capsule: Path, *, shown: Shown) -> Engine:
    """Return a capsule's engine, copied to where it can run; or the embedded one.

    Args:
        values: What the lock file says of it.
        capsule: The capsule.
        shown: Whether a bar is shown; or what is called instead.

    Raises:
        ChecksumError: A file is not the one that was packed.
        EngineNotFoundError: It cannot run here, and xllamacpp is not installed.
        ConfigurationError: The lock file names what lies outside of the capsule.
    """
    if values["entry"] is None:
        return _embedded(capsule, "")
    entry = _entry_of(values, capsule)
    record = find_installed(entry)
    if record is None:
        machine = measure_machine()
        problem = why_not(entry, machine, None)
        if entry.compute_capabilities and not machine.gpus:
            problem = machine.problem
        if problem is not None:
            return _embedded(capsule, f"{entry.id} of the capsule: {problem}")
        size = sum(int(file["bytes"]) for file in values["files"])
        with FileBar(entry.id, size, shown=shown) as bar:
            record = install_copy(
                entry, bar, lambda target: _copy(values, capsule, target, bar)
            )
    return engine_of_record(record, f"{entry.id}, from the capsule {capsule}")


def _entry_of(values: dict[str, Any], capsule: Path) -> EngineEntry:
    """Return the entry of a capsule's engine, under a name of its own.

    What the lock says of the archive's digest vouches for nothing in the folder. So the
    engine gets the digest of what is listed, and is never taken for the manifest's.
    """
    try:
        entry = entry_of(values["entry"])
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{capsule}: its engine is not understood ({error}); pack it anew"
        ) from error
    digest = listing_digest(values["files"], values["links"])
    return replace(entry, id=f"capsule-{entry.id}"[:100], sha256=digest)


def _copy(values: dict[str, Any], capsule: Path, target: Path, bar: FileBar) -> None:
    """Copy an engine's files, verify the copies, and make the links again."""
    for file in values["files"]:
        source = check_inside(capsule, file["path"])
        name = check_inside(target, file["path"]).relative_to(target / _FOLDER)
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        size = int(file["bytes"])
        with disk_errors(target, file["path"], partial(int, size)):
            shutil.copyfile(source, copy)
        verify(copy, file["sha256"], bar, str(source))
        copy.chmod(0o755)
    root = target.resolve()
    for name, goal in values["links"].items():
        link = check_inside(target, name)
        # Not through another link: then what is named would not be where it seems.
        if (root / name).parent != link.parent.resolve():
            raise _leads_out(capsule, name)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(goal)
        if not link.resolve().is_relative_to(root):
            raise _leads_out(capsule, name)


def _leads_out(capsule: Path, name: str) -> ConfigurationError:
    return ConfigurationError(
        f"{capsule}: the engine's link {name!r} lies outside of the capsule"
    )


def _embedded(capsule: Path, reason: str) -> Engine:
    engine = embedded_engine()
    if engine is None:
        why = f" ({reason})" if reason else ""
        raise EngineNotFoundError(
            f"the embedded engine would be used{why}, but xllamacpp is not installed: "
            f"pip install --no-index --find-links {capsule / 'wheels'} xllamacpp"
        )
    note = f"{EMBEDDED_NOTE}: {reason}" if reason else ""
    return replace(engine, note=note)
