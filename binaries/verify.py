"""Fetch each engine of the manifest, and compare its digest with the one pinned there.

    python binaries/verify.py [ID ...] [--check] [--folder FOLDER] [--manifest FILE]

One line for each engine says how many bytes came, whether the digest is right, and what
its --version said here. What the comparison showed is written to the manifest:
confirmed_live, and the size where that was not known. A digest is never changed.

Only a program whose archive has the pinned digest is ever run. Why one does not run
here (no driver, say) is shown and changes nothing: confirmed_live is about the bytes.

The exit code is 1 if an archive has other bytes than the manifest says, cannot be
fetched, or cannot be unpacked to its program.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _engines import (
    add_folder_option,
    add_manifest_option,
    build_said,
    fetch,
    make_parser,
    run_tool,
    show_bar,
    unpacked,
    update_entry,
    work_folder,
)

from llamatelemetry._units import printable
from llamatelemetry.exceptions import (
    ChecksumError,
    ConfigurationError,
    EngineNotFoundError,
    LLCudaError,
)
from llamatelemetry.setup._manifest import EngineEntry, read_manifest
from llamatelemetry.setup._names import nearest_names

_DIGEST_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out about one engine.

    Attributes:
        words: It, in one line.
        right: Whether all that the manifest says of the bytes is so.
        changes: What the manifest should say instead, by the names of its facts.
    """

    words: str
    right: bool
    changes: dict[str, Any] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify the engines; return the exit code."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "ids", nargs="*", metavar="ID", help="the engines to verify (all of them)"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing to the manifest"
    )
    add_folder_option(parser)
    add_manifest_option(parser)
    options = parser.parse_args(arguments)
    return run_tool("verify", lambda: _verify(options))


def _verify(options: argparse.Namespace) -> int:
    entries = _chosen(options.manifest, options.ids)
    right = True
    with work_folder(options.folder) as folder:
        for entry in entries:
            found = look_at(entry, folder)
            right = right and found.right
            print(f"{entry.id}: {printable(found.words, len(found.words))}", flush=True)
            # After each: what is known is not lost if the next one is interrupted.
            if not options.check and found.changes:
                update_entry(options.manifest, entry, found.changes)
    return 0 if right else 1


def _chosen(manifest: Path, ids: Sequence[str]) -> list[EngineEntry]:
    """Return the engines to verify, in the order of the manifest.

    Raises:
        ConfigurationError: One that is named is not there.
    """
    known = read_manifest(manifest)
    names = [entry.id for entry in known.engines]
    for name in ids:
        if name not in names:
            near = ", ".join(nearest_names(name, names) or names) or "none at all"
            raise ConfigurationError(
                f"{manifest} has no engine {name!r}; it has {near}"
            )
    return [entry for entry in known.engines if not ids or entry.id in ids]


def look_at(entry: EngineEntry, folder: Path) -> Finding:
    """Fetch one engine, compare it, and run it once if it is the right one.

    Args:
        entry: What the manifest says of it.
        folder: Where to; of an archive that was fetched whole, nothing stays there.
    """
    archive = folder / f"{entry.id}-{entry.sha256[:_DIGEST_SHOWN]}.archive"
    # One that is here whole, from a run that was killed, says nothing of the server.
    archive.unlink(missing_ok=True)
    with show_bar(entry) as bar:
        try:
            fetch(entry, archive, bar, sha256=entry.sha256)
        except ChecksumError as error:
            return _other_bytes(entry, error, bar.done)
        except LLCudaError as error:
            line = str(error).partition("\n")[0].removeprefix(f"{entry.id}: ")
            return Finding(f"cannot be fetched, so nothing was compared: {line}", False)
    try:
        return _right_bytes(entry, archive)
    finally:
        archive.unlink(missing_ok=True)


def _other_bytes(entry: EngineEntry, error: ChecksumError, came: int) -> Finding:
    if came or entry.url is not None:
        what = f"{came:,} bytes; the sha256 differs"
    else:
        what = "nothing was fetched; the Hub states another sha256"
    words = (
        f"{what}: expected {error.expected}, actual {error.actual}. It was not run, "
        "and the manifest keeps its digest. Look at why it changed: ask who publishes "
        f"{entry.origin}. If it was replaced for a reason that you trust, record it "
        f"anew: record.py {entry.id} ... --replace --sha256 {error.actual}"
    )
    return Finding(words, False, {"confirmed_live": False})


def _right_bytes(entry: EngineEntry, archive: Path) -> Finding:
    size = archive.stat().st_size
    start = f"{size:,} bytes; the sha256 is right ({entry.sha256})"
    if entry.bytes not in (None, size):
        words = (
            f"{start}, but the manifest says {entry.bytes:,} bytes, which no file of "
            "this digest has; correct it there"
        )
        return Finding(words, False, {"confirmed_live": False})
    changes = {"confirmed_live": True, "bytes": size}
    try:
        with unpacked(entry, archive) as engine:
            try:
                said = _said(entry, build_said(entry, engine))
            except EngineNotFoundError as error:
                said = str(error)  # "llama-server does not run here: ..."
    except LLCudaError as error:
        line = str(error).partition("\n")[0]
        return Finding(f"{start}; but it is no engine: {line}", False, changes)
    return Finding(f"{start}; {said}", True, changes)


def _said(entry: EngineEntry, build: int | None) -> str:
    if build is None:
        return "--version names no build"
    if entry.build in (None, build):
        return f"--version says build {build}"
    return f"--version says build {build}, the manifest {entry.build}; correct it there"


if __name__ == "__main__":
    sys.exit(main())
