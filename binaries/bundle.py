r"""Pack a folder that holds an engine, ready to be uploaded and recorded.

    python binaries/bundle.py FOLDER OUTPUT --id ID --compute-capabilities 7.5 \
        --license MIT [--repo OWNER/NAME] [--path PATH] [--build N] ...

OUTPUT gets three files: ID.tar.gz, whose bytes depend on names, content and "may be
executed" alone, so that two runs give the same ones; ID.tar.gz.sha256, as sha256sum
writes it; and ID.json, a manifest with this one engine. Nothing is run and nothing is
uploaded: the commands that do are printed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from _engines import (
    UNKNOWN_REPOSITORY,
    add_entry_options,
    add_place_options,
    check_place,
    engine_id,
    entry_values,
    make_parser,
    manifest_text,
    new_entry,
    plain_values,
    run_tool,
    write_whole,
)

from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.setup._archive import pack
from llamatelemetry.setup._checksums import sha256_of
from llamatelemetry.setup._manifest import EngineEntry
from llamatelemetry.setup._sources import entry_of_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack an engine; return the exit code."""
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the engine's")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="a folder; is made")
    parser.add_argument(
        "--id", required=True, type=engine_id, help="what the engine is to be called"
    )
    add_entry_options(parser)
    add_place_options(parser)
    options = parser.parse_args(arguments)
    return run_tool("bundle", lambda: _bundle(options))


def _bundle(options: argparse.Namespace) -> int:
    folder, output, name = options.folder, options.output, options.id
    _check_places(folder, output)
    draft = _draft(options)
    output.mkdir(parents=True, exist_ok=True)
    archive = output / f"{name}.tar.gz"
    pack(folder, archive, top=name)
    digest = sha256_of(archive)
    entry = replace(draft, sha256=digest, bytes=archive.stat().st_size)
    checksum = output / f"{name}.tar.gz.sha256"
    write_whole(checksum, f"{digest}  {archive.name}\n")
    values = {
        "about": f"The engine {name} alone; record.py adds it to a manifest.",
        "engines": [plain_values(entry)],
    }
    write_whole(output / f"{name}.json", manifest_text(values), check=True)
    print(_report(entry, archive, checksum))
    return 0


def _check_places(folder: Path, output: Path) -> None:
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is no folder; give the one of the engine")
    if output.resolve().is_relative_to(folder.resolve()):
        raise ConfigurationError(
            f"{output} would be packed into itself: write it outside of {folder}"
        )


def _draft(options: argparse.Namespace) -> EngineEntry:
    """Return the entry as far as it is known before packing.

    Raises:
        ConfigurationError: There is no such program in the folder.
    """
    values = entry_values(options)
    wanted = values.get("executable")
    if wanted is None:
        found = entry_of_folder(options.folder)
        values = {
            "executable": found.executable,
            "arguments": found.arguments,
        } | values
    elif not any(place.is_file() for place in options.folder.rglob(wanted)):
        raise ConfigurationError(
            f"{options.folder} holds no program {wanted!r}; see --executable"
        )
    place = {
        "id": options.id,
        "repo": options.repo or UNKNOWN_REPOSITORY,
        "path": options.path or f"{options.id}.tar.gz",
        "revision": options.revision,
    }
    check_place(place["repo"], place["path"])
    return new_entry(values | place)


def _report(entry: EngineEntry, archive: Path, checksum: Path) -> str:
    repo, path = str(entry.repo), str(entry.path)
    revision = ["--revision", entry.revision] if entry.revision else []
    uploads = [
        shlex.join(["hf", "upload", repo, str(file), where, *revision])
        for file, where in ((archive, path), (checksum, f"{path}.sha256"))
    ]
    record = ["python", "binaries/record.py", entry.id, str(archive.parent)]
    place = ["--repo", repo] if repo == UNKNOWN_REPOSITORY else []
    lines = [
        f"{archive}: {entry.bytes:,} bytes, sha256 {entry.sha256}",
        "Upload it:",
        *(f"  {line}" for line in uploads),
        "Then record and verify it:",
        f"  {shlex.join([*record, '--sha256', entry.sha256, *place])}",
        f"  {shlex.join(['python', 'binaries/verify.py', entry.id])}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
