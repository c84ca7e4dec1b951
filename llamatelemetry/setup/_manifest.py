"""The manifest: prebuilt engines, each pinned by its digest."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from llamatelemetry._units import without_secrets
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.setup._checksums import checked_digest

__all__ = [
    "EngineEntry",
    "Manifest",
    "WheelIndex",
    "entry_of",
    "install_name",
    "manifest",
    "read_manifest",
]

MANIFEST_VARIABLE = "LLAMATELEMETRY_ENGINES"
"""The variable that names another manifest: a team's own builds, or a test's."""

_KINDS = ("zst", "tar", "file")
_DIGEST_SHOWN = 12
_OPTIONAL = ("url", "repo", "path", "revision", "least_driver", "least_glibc", "note")
_KINDS_OF: tuple[tuple[str, str], ...] = (
    *((name, "text") for name in ("id", "sha256", "archive", "executable")),
    *((name, "text or null") for name in _OPTIONAL),
    *((name, "texts") for name in ("arguments", "compute_capabilities")),
    *((name, "number or null") for name in ("bytes", "build")),
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """One prebuilt engine.

    Attributes:
        id: Its name.
        url: Its address, or None if it lies in a repository of the Hub.
        repo: ``owner/repository``, or None.
        path: The file's path in it.
        revision: A branch, tag or commit; None for the main branch.
        sha256: The digest of the archive, in hex.
        bytes: The archive's size, or None if not known.
        archive: "zst": one compressed file; "tar": an archive with any compression;
            "file": the executable itself.
        executable: The program's name; in an archive, the one in a folder ``bin``
            counts before others.
        arguments: Its leading arguments: ("serve",) for ``llama serve``.
        compute_capabilities: The cards it has code for: ("7.5",) is the T4. Empty for
            an engine that a user names, of which this is not known.
        least_driver: The oldest driver it runs with ("525.60.13"), or None.
        least_glibc: The oldest glibc it runs with ("2.35"), or None.
        build: llama.cpp's build number, or None if not known.
        license: Its licence.
        confirmed_live: Whether the digest was compared with what the server gives.
        note: What else one should know.
    """

    id: str
    url: str | None
    repo: str | None
    path: str | None
    revision: str | None
    sha256: str
    bytes: int | None
    archive: Literal["zst", "tar", "file"]
    executable: str
    arguments: tuple[str, ...]
    compute_capabilities: tuple[str, ...]
    least_driver: str | None
    least_glibc: str | None
    build: int | None
    license: str
    confirmed_live: bool
    note: str

    @property
    def origin(self) -> str:
        """Where it comes from, for messages; an address without its query."""
        return without_secrets(self.url) if self.url else f"{self.repo}:{self.path}"

    @property
    def source(self) -> str:
        """What names it to ``ensure_engine``: its name, if the manifest has it."""
        return self.id if manifest().find(self.id) is not None else self.origin


def install_name(entry: EngineEntry) -> str:
    """Return the name of the folder that an engine is installed in."""
    return f"{entry.id}-{entry.sha256[:_DIGEST_SHOWN]}"


@dataclass(frozen=True, slots=True)
class WheelIndex:
    """An index of Python wheels with an embedded engine for cards.

    Attributes:
        cuda: The version of CUDA that the driver must support.
        url: Its address.
        note: What one should know.
    """

    cuda: tuple[int, int]
    url: str
    note: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The engines there are, in the order in which they are tried.

    Attributes:
        engines: The prebuilt programs.
        package: The name of the wheel with an embedded engine.
        wheels: Where that wheel is, the newest CUDA first.
    """

    engines: tuple[EngineEntry, ...]
    package: str
    wheels: tuple[WheelIndex, ...]

    def find(self, name: str) -> EngineEntry | None:
        """Return the engine of this name, or None."""
        return next((entry for entry in self.engines if entry.id == name), None)


def manifest() -> Manifest:
    """Return the package's manifest, or the one LLAMATELEMETRY_ENGINES names.

    Raises:
        ConfigurationError: The one that is named cannot be read.
    """
    named = os.environ.get(MANIFEST_VARIABLE)
    return read_manifest(Path(named).expanduser()) if named else _own()


@cache
def _own() -> Manifest:
    place = Path(__file__).with_name("engines.json")
    return _manifest(json.loads(place.read_text(encoding="utf-8")))


def read_manifest(path: Path) -> Manifest:
    """Return the manifest in a file.

    Raises:
        ConfigurationError: It cannot be read, or an entry in it is none.
    """
    try:
        return _manifest(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigurationError(
            f"the manifest of engines {path} cannot be read: {error.strerror}"
        ) from error
    except (
        ValueError, TypeError, KeyError, AttributeError, RecursionError,
    ) as error:  # fmt: skip
        raise ConfigurationError(
            f"the manifest of engines {path} is none: {error}; see "
            "llamatelemetry/setup/engines.json for how one is written"
        ) from error


def _manifest(values: dict[str, Any]) -> Manifest:
    wheels = values.get("wheels", {})
    return Manifest(
        tuple(entry_of(entry) for entry in values["engines"]),
        wheels.get("package", "xllamacpp"),
        tuple(
            WheelIndex(
                (index["cuda"][0], index["cuda"][1]), index["url"], index["note"]
            )
            for index in wheels.get("indexes", ())
        ),
    )


def _is_of(value: object, kind: str) -> bool:
    """Whether a value that JSON held is of a kind."""
    if kind == "texts":
        return isinstance(value, tuple) and all(isinstance(x, str) for x in value)
    if kind == "number or null":
        return value is None or (type(value) is int and value >= 0)
    return isinstance(value, str) or (value is None and "null" in kind)


def entry_of(values: dict[str, Any]) -> EngineEntry:
    """Return the entry that somebody else wrote, once all its values are sound.

    Raises:
        TypeError: A value is missing, too much, or of another kind.
        ValueError: A name could lead out of a folder, or a value means nothing.
    """
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
    }
    entry = EngineEntry(**plain)
    kinds = [(name, getattr(entry, name), kind) for name, kind in _KINDS_OF]
    wrong = [name for name, value, kind in kinds if not _is_of(value, kind)]
    if wrong:
        raise TypeError(f"{', '.join(wrong)}: not of the kind it should be")
    if not _NAME.fullmatch(entry.id) or not _NAME.fullmatch(entry.executable):
        raise ValueError(
            f"id {entry.id!r} and executable {entry.executable!r} are names of "
            "letters, digits, '.', '_' and '-'"
        )
    places = (entry.url is None, entry.repo is not None, entry.path is not None)
    if entry.archive not in _KINDS or len(set(places)) > 1:
        raise ValueError(
            f"{entry.id}: archive is one of {', '.join(_KINDS)}, and either url or "
            "repo and path are given"
        )
    return replace(entry, sha256=checked_digest(entry.sha256))
