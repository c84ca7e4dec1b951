"""The engines that setup has installed, each with its record beside it.

A folder of engines holds a folder for each; ``engine.json`` in it says what it is. The
record is written before the folder gets its final name, so that there is none without.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llamatelemetry._environment import cache_folder

__all__ = [
    "InstalledEngine",
    "engines_folder",
    "installed_engines",
    "read_any_record",
    "read_record",
    "state_of",
]

RECORD_NAME = "engine.json"


@dataclass(frozen=True, slots=True)
class InstalledEngine:
    """An engine on this machine that was verified and has run here.

    Attributes:
        folder: Its folder.
        id: Its name in the manifest, or what it was fetched from.
        sha256: The digest of the archive that it came in.
        build: llama.cpp's build number; None if it does not tell.
        program: The executable, relative to the folder; "" for a Python module.
        arguments: The program's leading arguments.
        libraries: Folders of its shared libraries, relative to the folder.
        modules: The folder of its Python modules, relative to the folder; None for a
            program.
        files: Of each file its size, time of change and SHA-256, by its name below
            the folder.
        devices: The cards it saw when it was installed.
    """

    folder: Path
    id: str
    sha256: str
    build: int | None
    program: str
    arguments: tuple[str, ...]
    libraries: tuple[str, ...]
    modules: str | None
    files: Mapping[str, tuple[int, int, str]] = field(repr=False)
    devices: tuple[str, ...] = ()

    @property
    def executable(self) -> Path:
        """The program."""
        return self.folder / self.program

    @property
    def library_path(self) -> tuple[str, ...]:
        """Folders of its shared libraries."""
        return tuple(str(self.folder / name) for name in self.libraries)

    @property
    def module_path(self) -> Path | None:
        """The folder of its Python modules."""
        return None if self.modules is None else self.folder / self.modules

    @property
    def whole(self) -> bool:
        """Whether every file is there, of the size and time it was installed with."""
        return all(
            state_of(self.folder / name) == known[:2]
            for name, known in self.files.items()
        )

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each file when it was installed, by its name."""
        return {name: known[2] for name, known in self.files.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the record, without the folder: it may be moved."""
        record = asdict(self)
        del record["folder"]
        return record


def state_of(path: Path) -> tuple[int, int]:
    """Return a file's size and time of change; (0, 0) if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_size, status.st_mtime_ns)


def engines_folder() -> Path:
    """Return the folder that engines are installed in; it may not exist yet."""
    return cache_folder() / "engines"


def read_record(folder: Path) -> InstalledEngine | None:
    """Return the engine in a folder, or None if it holds no whole one."""
    record = read_any_record(folder)
    return record if record is not None and record.whole else None


def read_any_record(folder: Path) -> InstalledEngine | None:
    """Return the engine in a folder, also if its files have changed since."""
    try:
        values = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        plain["files"] = {name: tuple(known) for name, known in plain["files"].items()}
        record = InstalledEngine(folder, **plain)
        # Whatever cannot be looked at is no record.
        _ = record.whole, record.digests, record.executable, record.module_path
    except (OSError, ValueError, TypeError, AttributeError, LookupError):
        return None  # cut off, or of another version of this package
    return record


def installed_engines(folder: Path | None = None) -> list[InstalledEngine]:
    """Return the engines that are installed, the one installed last first.

    Args:
        folder: The folder of engines. None: the usual one.
    """
    place = folder or engines_folder()
    try:
        found = [entry for entry in place.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return []
    records = [record for entry in found if (record := read_record(entry)) is not None]
    return sorted(records, key=_age)


def _age(record: InstalledEngine) -> float:
    # By its record's time; one that another process removes meanwhile has none.
    return -state_of(record.folder / RECORD_NAME)[1]
