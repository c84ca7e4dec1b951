"""Puts an engine into its folder: fetched, verified, unpacked, run once, then renamed.

Nothing is made executable before its digest is right, and nothing has its final name
before it has run. All that happens under one lock for each engine, so that two
notebooks fetch it once; what a killed process left behind is deleted by the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llamatelemetry._environment import Token
from llamatelemetry._internet import offline_variable
from llamatelemetry._progress import FileBar
from llamatelemetry.exceptions import EngineNotFoundError, OfflineError
from llamatelemetry.server._installed import (
    RECORD_NAME,
    InstalledEngine,
    engines_folder,
    read_record,
    state_of,
)
from llamatelemetry.server.engine import engine_of_record
from llamatelemetry.server.probing import probe_engine
from llamatelemetry.setup._archive import unpack
from llamatelemetry.setup._checksums import is_digest, mismatch, sha256_of
from llamatelemetry.setup._disk import locked, remove_tree, write_json
from llamatelemetry.setup._download import PinnedFile, download
from llamatelemetry.setup._hub import resolve_file
from llamatelemetry.setup._manifest import EngineEntry, install_name

__all__ = ["fetch_unpacked", "files_of", "install", "install_copy", "program_in"]

_RUNNABLE = 0o755


def install(
    entry: EngineEntry, bar: FileBar, find_token: Callable[[], Token | None]
) -> InstalledEngine:
    """Return the engine of an entry, fetched if it is not installed yet.

    Args:
        entry: The engine; its digest is the one that must come.
        bar: Shows the download; its cancelling ends it.
        find_token: Finds the token; called only if the Hub has to be asked.

    Raises:
        ChecksumError: Other bytes came, or the Hub states others.
        UnsafeArchiveError: The archive wants to write elsewhere, or too much.
        EngineNotFoundError: The program cannot run here.
        SetupError: It cannot be fetched.
    """
    forbidden = offline_variable()
    if forbidden is not None:
        raise OfflineError(
            f"{entry.id}: {forbidden} is set, so nothing is fetched. Unset it, or name "
            "an engine on this machine."
        )

    def fill(staging: Path, archive: Path) -> None:
        _fetch_unpacked(entry, staging, archive, bar, find_token)

    return _install(install_name(entry), entry, bar, fill)


def fetch_unpacked(
    entry: EngineEntry,
    folder: Path,
    bar: FileBar,
    find_token: Callable[[], Token | None],
) -> None:
    """Put an engine's files into a folder, verified; nothing is run.

    Raises:
        SetupError: See :func:`install`.
    """
    root, name = engines_folder(), install_name(entry)
    with locked(root / ".locks" / f"{name}.lock", waiting=bar.check):
        archive = root / ".staging" / f"{name}.archive"
        _fetch_unpacked(entry, folder, archive, bar, find_token)
        program_in(folder, entry).chmod(_RUNNABLE)
        archive.unlink(missing_ok=True)


def _fetch_unpacked(
    entry: EngineEntry,
    folder: Path,
    archive: Path,
    bar: FileBar,
    find_token: Callable[[], Token | None],
) -> None:
    if not _is_right(archive, entry.sha256):
        download(_pinned(entry, find_token), archive, bar)
    bar.say("unpacking")
    unpack(archive, folder, kind=entry.archive, name=_file_name(entry))


def install_copy(
    entry: EngineEntry, bar: FileBar, copy: Callable[[Path], None]
) -> InstalledEngine:
    """Return an engine that lies unpacked elsewhere, copied to where it can run.

    Args:
        entry: The engine; the digest is of what it was made from.
        bar: Says what is being done.
        copy: Puts the engine's files, verified, into the folder that it is given.

    Raises:
        EngineNotFoundError: There is no such program in it, or it cannot run here.
        DiskSpaceError: There is no room for it.
    """

    def fill(staging: Path, _archive: Path) -> None:
        bar.say("copying")
        copy(staging)

    return _install(install_name(entry), entry, bar, fill)


def _install(
    name: str, entry: EngineEntry, bar: FileBar, fill: Callable[[Path, Path], None]
) -> InstalledEngine:
    root = engines_folder()
    final = root / name
    with locked(root / ".locks" / f"{name}.lock", waiting=bar.check):
        found = read_record(final)
        if (
            found is not None and found.sha256 == entry.sha256
        ):  # another process has done it meanwhile
            return found
        staging, archive = (
            root / ".staging" / name,
            root / ".staging" / f"{name}.archive",
        )
        remove_tree(staging)
        staging.mkdir(parents=True)
        try:
            fill(staging, archive)
            record = _prove(entry, staging, bar)
            write_json(staging / RECORD_NAME, record.to_json())
            remove_tree(final)  # a broken one, kept until there is another
            staging.rename(final)
        except BaseException:
            remove_tree(staging)
            raise
        archive.unlink(missing_ok=True)
    bar.say("")
    return replace(record, folder=final)


def _is_right(archive: Path, sha256: str) -> bool:
    """Whether an earlier try, which ended between download and unpacking, left it."""
    return archive.is_file() and sha256_of(archive) == sha256


def _file_name(entry: EngineEntry) -> str | None:
    return None if entry.archive == "tar" else entry.executable


def _pinned(entry: EngineEntry, find_token: Callable[[], Token | None]) -> PinnedFile:
    """Return where the archive is, and what it must be."""
    advice = (
        "The file was replaced, or changed on the way. If you trust who replaced it, "
        f"take it knowingly: ensure_engine({entry.source!r}, sha256='{{actual}}')"
    )
    if entry.url is not None:
        return PinnedFile(entry.id, entry.url, entry.sha256, entry.bytes, advice=advice)
    repo, path = str(entry.repo), str(entry.path)
    found = resolve_file(repo, path, entry.revision, token=find_token())
    if is_digest(found.etag) and found.etag != entry.sha256:
        actual = str(found.etag)
        raise mismatch(
            entry.id,
            expected=entry.sha256,
            actual=actual,
            advice="Nothing was fetched. " + advice.replace("{actual}", actual),
        )
    return PinnedFile(
        entry.id,
        found.url,
        entry.sha256,
        found.size,
        headers=found.headers,
        location=found.location,
        advice=advice,
    )


def _prove(entry: EngineEntry, folder: Path, bar: FileBar) -> InstalledEngine:
    """Make the program executable, run it, and return its record."""
    bar.say("starting once")
    program = program_in(folder, entry)
    program.chmod(_RUNNABLE)
    libraries = sorted(
        {str(place.parent.relative_to(folder)) for place in folder.rglob("lib*.so*")}
    )
    record = InstalledEngine(
        folder,
        entry.id,
        entry.sha256,
        entry.build,
        str(program.relative_to(folder)),
        entry.arguments,
        tuple(libraries),
        None,
        files_of(folder),
    )
    facts = probe_engine(engine_of_record(record))
    if entry.compute_capabilities and not facts.devices:
        raise EngineNotFoundError(
            f"{entry.id} runs, but sees none of the cards; is the driver older than "
            "what it was built with?"
        )
    return replace(record, build=facts.build or entry.build, devices=facts.devices)


def files_of(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Return size, time of change and SHA-256 of each file below a folder."""
    return {
        path.relative_to(folder).as_posix(): (*state_of(path), sha256_of(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def program_in(folder: Path, entry: EngineEntry) -> Path:
    """Return an engine's program below a folder; one in a ``bin`` before others.

    Raises:
        EngineNotFoundError: There is none of that name.
    """
    found = [
        place for place in folder.rglob(Path(entry.executable).name) if place.is_file()
    ]
    if not found:
        raise EngineNotFoundError(
            f"{entry.id}: there is no program {entry.executable!r} in what was "
            f"unpacked from {entry.origin}"
        )
    return min(found, key=lambda place: (place.parent.name != "bin", len(place.parts)))
