r"""Add an engine to the manifest, with the digest and the size of its archive.

    python binaries/record.py ID SOURCE --compute-capabilities 7.5 --license MIT \
        [--sha256 HEX] [--executable llama] [--arguments serve] [--build N] ...

SOURCE is one of
  an address       https://host/folder/engine.tar.gz
  a Hub reference  owner/repository:path, owner/repository@revision:path
  a folder         that bundle.py has filled: the facts are those of ID.json in it
  an archive       on this machine, with --url, or --repo and --path: where it will be

The archive is fetched and unpacked, to see that the program is in it. With --sha256 it
must have that digest, and the program is then run with --version to learn its build.
Without, the digest recorded is of whatever came just now, and nothing of it is run:
--run-unpinned says otherwise, and executes a program that nobody vouches for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from _engines import (
    UNKNOWN_REPOSITORY,
    add_entry_options,
    add_folder_option,
    add_manifest_option,
    add_place_options,
    build_said,
    check_place,
    engine_id,
    entry_values,
    fetch,
    make_parser,
    new_entry,
    put_entry,
    refuse_known,
    run_tool,
    show_bar,
    unpacked,
    work_folder,
)

from llamatelemetry._units import printable, without_secrets
from llamatelemetry.exceptions import (
    ChecksumError,
    ConfigurationError,
    EngineNotFoundError,
)
from llamatelemetry.setup._archive_bytes import content
from llamatelemetry.setup._checksums import checked_digest, mismatch, sha256_of
from llamatelemetry.setup._hub import parse_reference
from llamatelemetry.setup._manifest import EngineEntry, read_manifest

_ZSTANDARD = b"\x28\xb5\x2f\xfd"
_PROGRAMS = (b"\x7fELF", b"#!")
_TAR_MARK = slice(257, 262)  # of the first header; POSIX's and GNU's
_TAR_BLOCK_BYTES = 512


@dataclass(frozen=True, slots=True)
class Arrived:
    """An archive that is here.

    Attributes:
        archive: The file.
        entry: What is known of it; its digest is that of the file.
        stated: Who stated this digest too, in words; "" for nobody.
    """

    archive: Path
    entry: EngineEntry
    stated: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Record an engine; return the exit code."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "id", type=engine_id, metavar="ID", help="what the engine is to be called"
    )
    parser.add_argument("source", metavar="SOURCE", help="where it is")
    parser.add_argument(
        "--sha256", metavar="HEX", help="the digest it must have, as its maker says"
    )
    parser.add_argument(
        "--replace", action="store_true", help="replace an entry that has this id"
    )
    parser.add_argument(
        "--run-unpinned",
        action="store_true",
        help="run it with --version though no --sha256 was given",
    )
    add_entry_options(parser)
    parser.add_argument(
        "--url", metavar="URL", help="where an archive of this machine will be"
    )
    add_place_options(parser)
    add_folder_option(parser)
    add_manifest_option(parser)
    options = parser.parse_args(arguments)
    return run_tool("record", lambda: _record(options))


def _record(options: argparse.Namespace) -> int:
    known = read_manifest(options.manifest)
    # Before anything is fetched.
    refuse_known(options.manifest, known, options.id, replace=options.replace)
    if options.sha256 is not None:
        options.sha256 = checked_digest(options.sha256)
    with work_folder(options.folder) as folder:
        arrived = _arrive(options, folder)
        entry = replace(
            arrived.entry,
            bytes=arrived.archive.stat().st_size,
            archive=archive_kind(arrived.archive),
        )
        entry, said = _look_inside(options, entry, arrived.archive)
        if not Path(options.source).exists():
            arrived.archive.unlink()
    before = put_entry(options.manifest, entry, replace=options.replace)
    print(_report(options, entry, arrived.stated, said, before))
    return 0


# Where it comes from


def _arrive(options: argparse.Namespace, folder: Path) -> Arrived:
    place = Path(options.source)
    if place.is_dir():
        return _of_bundle(options, place)
    if place.exists():
        return _of_archive(options, place)
    if options.url or options.repo or options.path:
        raise ConfigurationError(
            f"{options.source}: there is no such file or folder; --url, --repo and "
            "--path say where an archive of this machine will be"
        )
    return _of_address(options, folder)


def _of_address(options: argparse.Namespace, folder: Path) -> Arrived:
    source = options.source
    place: dict[str, Any]
    reference = parse_reference(source)
    if reference is not None and reference.path is not None:
        place = {
            "repo": reference.repo,
            "path": reference.path,
            "revision": options.revision or reference.revision,
        }
    elif source.lower().startswith(("https://", "http://")):
        place = {"url": _publishable(source), "revision": options.revision}
    else:
        raise ConfigurationError(
            f"{printable(source)!r} is no engine: give an address, a file of the Hub "
            "as owner/repository:path/engine.tar.gz, a folder that bundle.py has "
            "filled, or an archive on this machine"
        )
    given = {"id": options.id, "confirmed_live": True}
    draft = new_entry(entry_values(options) | place | given)
    archive = folder / f"{options.id}.archive"
    with show_bar(draft) as bar:
        digest, by_hub = fetch(draft, archive, bar, sha256=options.sha256)
    stated = "The Hub states the same digest." if by_hub else ""
    return Arrived(archive, replace(draft, sha256=digest), stated)


def _publishable(url: str) -> str:
    """Return an address that may stand in a manifest, which everybody can read.

    Raises:
        ConfigurationError: It may hold a password or a signature.
    """
    if without_secrets(url) != url:
        raise ConfigurationError(
            f"{without_secrets(url)}: the address holds a query or a password, which "
            "would be published with the manifest; give it without"
        )
    return url


def _of_archive(options: argparse.Namespace, archive: Path) -> Arrived:
    draft = new_entry(
        entry_values(options) | {"id": options.id, **_place_said(options, archive)}
    )
    digest = sha256_of(archive)
    if options.sha256 not in (None, digest):
        raise _other_digest(str(archive), options.sha256, digest)
    return Arrived(archive, replace(draft, sha256=digest))


def _place_said(options: argparse.Namespace, archive: Path) -> dict[str, Any]:
    """Return where the user says that an archive of this machine will be."""
    repo, path, url = options.repo, options.path, options.url
    if url and not (repo or path):
        place = {"url": _publishable(url), "repo": None, "path": None}
    elif repo and path and not url:
        check_place(repo, path)
        place = {"url": None, "repo": repo, "path": path}
    else:
        raise ConfigurationError(
            f"{archive}: say where it will be: either --url, or --repo and --path"
        )
    return {**place, "revision": options.revision}


def _of_bundle(options: argparse.Namespace, folder: Path) -> Arrived:
    """Return the engine of a folder that bundle.py has filled.

    Raises:
        ConfigurationError: It is no such folder.
        ChecksumError: Its three files do not belong together.
    """
    facts = folder / f"{options.id}.json"
    archive = folder / f"{options.id}.tar.gz"
    checksum = folder / f"{options.id}.tar.gz.sha256"
    for file in (facts, archive, checksum):
        if not file.is_file():
            raise ConfigurationError(
                f"{folder} holds no bundle of {options.id}: {file.name} is missing; "
                "bundle.py makes such a folder of one that holds an engine"
            )
    entry = read_manifest(facts).find(options.id)
    if entry is None:
        raise ConfigurationError(f"{facts} has no engine {options.id!r}")
    digest = sha256_of(archive)
    first = checksum.read_text(encoding="utf-8").split(maxsplit=1)
    for expected in (entry.sha256, "".join(first[:1]), options.sha256):
        if expected not in (None, digest):
            raise _other_digest(str(archive), expected, digest)
    if options.url or options.repo or options.path:
        options.path = options.path or (entry.path if options.repo else None)
        entry = replace(entry, **_place_said(options, archive))
    if entry.repo == UNKNOWN_REPOSITORY:
        raise ConfigurationError(
            f"{facts} does not say which repository the archive will be in; give "
            "--repo OWNER/NAME"
        )
    return Arrived(
        archive, replace(entry, **entry_values(options), confirmed_live=False)
    )


def _other_digest(name: str, expected: str, actual: str) -> ChecksumError:
    return mismatch(
        name,
        expected=expected,
        actual=actual,
        advice="Nothing was recorded. Find out which one is right, and make or get "
        "the archive again.",
    )


# What it is


def archive_kind(archive: Path) -> Literal["zst", "tar", "file"]:
    """Return what kind of archive a file is, by its bytes.

    Raises:
        ConfigurationError: It is none.
        SetupError: It is cut off or damaged.
    """
    with archive.open("rb") as raw:
        start = raw.read(4)
        raw.seek(0)
        inside = b""
        for piece in content(raw, archive, "tar")[0]:
            inside += piece
            if len(inside) >= _TAR_BLOCK_BYTES:
                break
    if inside[_TAR_MARK] == b"ustar":
        return "tar"
    if inside.startswith(_PROGRAMS):
        if start == _ZSTANDARD:
            return "zst"
        if inside.startswith(start):
            return "file"
    raise ConfigurationError(
        f"{archive.name}: what came is neither a tar, nor a program, nor one program "
        f"compressed with zstandard; it begins with {start!r}. See that the source "
        "names the archive itself, and not a page about it."
    )


def _look_inside(
    options: argparse.Namespace, entry: EngineEntry, archive: Path
) -> tuple[EngineEntry, str]:
    """Return the entry with the program's build, and what was found, in a sentence.

    Raises:
        EngineNotFoundError: There is no such program in it.
        ConfigurationError: Its build is not the one that the user gives.
        SetupError: It cannot be unpacked.
    """
    with unpacked(entry, archive) as engine:
        if options.sha256 is None and not options.run_unpinned:
            return entry, (
                f"{entry.executable} is in it, and was not run: no --sha256 says what "
                "it should be."
            )
        try:
            build = build_said(entry, engine)
        except EngineNotFoundError as error:
            return entry, f"{error}. Its build is recorded as you gave it."
    if build is None:
        return entry, "--version names no build."
    if entry.build not in (None, build):
        raise ConfigurationError(
            f"{entry.id}: build {entry.build} was given, and --version says {build}; "
            f"give --build {build}, or the right archive. Nothing was recorded."
        )
    return replace(entry, build=build), f"--version says build {build}."


def _report(
    options: argparse.Namespace,
    entry: EngineEntry,
    stated: str,
    said: str,
    before: str | None,
) -> str:
    lines = [f"{entry.id}: {entry.bytes:,} bytes, sha256 {entry.sha256}", said]
    if options.sha256 is not None:
        lines.append("The digest is the one that you gave.")
    elif Path(options.source).exists():
        lines.append(
            "NOT PINNED BEFOREHAND: no --sha256 was given, so the digest recorded is "
            f"that of the file {options.source} as it is now."
        )
    else:
        lines.append(
            "NOT PINNED BEFOREHAND: no --sha256 was given, so the digest recorded is "
            f"of what came just now from {entry.origin}, whatever that was. "
            f"{stated or 'Nobody else states it.'} Compare it with what the engine's "
            "maker says before anybody uses this manifest."
        )
        if entry.origin.startswith("http://"):
            lines.append("It came over http: anybody between could have changed it.")
    order = f"tried after {before}" if before else "the first to be tried"
    lines.append(f"Recorded in {options.manifest}; {order}.")
    if not entry.confirmed_live:
        lines.append(
            "confirmed_live is false: when it has been uploaded, run verify.py "
            f"{entry.id}."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
