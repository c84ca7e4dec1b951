"""What the tools for engines share: the manifest's file, the transfer, the first run.

All that is hard (transfers, archives, digests, running a program) is the package's own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# The package of this checkout, not another one that is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llamatelemetry._progress import FileBar
from llamatelemetry._units import printable
from llamatelemetry.exceptions import (
    ConfigurationError,
    EngineNotFoundError,
    LLCudaError,
)
from llamatelemetry.server.engine import Engine
from llamatelemetry.server.probing import probe_engine
from llamatelemetry.setup._archive import unpack
from llamatelemetry.setup._checksums import is_digest, mismatch
from llamatelemetry.setup._disk import locked, remove_tree
from llamatelemetry.setup._download import PinnedFile, download, fetch_into
from llamatelemetry.setup._hub import resolve_file
from llamatelemetry.setup._install import program_in
from llamatelemetry.setup._manifest import EngineEntry, Manifest, read_manifest
from llamatelemetry.setup._names import HubReference, parse_reference

UNKNOWN_REPOSITORY = "OWNER/REPOSITORY"
"""What stands for a repository that nobody has named yet."""
MANIFEST = (
    Path(__file__).resolve().parents[1] / "llamatelemetry" / "setup" / "engines.json"
)
"""The package's own manifest."""

_FAILURE = 1
_INTERRUPTED = 130
"""What a shell calls a program that was ended by Ctrl-C."""
_LINES_DOWN_TO = 2
"""The deepest containers that stand over several lines; the file's own layout."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_VERSION = re.compile(r"\d+(?:\.\d+){1,3}")
_PROGRAM_MODE = 0o755


# The command line


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help begins with a module's docstring."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_manifest_option(parser: argparse.ArgumentParser) -> None:
    """Let the user name another manifest."""
    parser.add_argument(
        "--manifest",
        type=Path,
        default=MANIFEST,
        metavar="FILE",
        help="the manifest (llamatelemetry/setup/engines.json)",
    )


def add_folder_option(parser: argparse.ArgumentParser) -> None:
    """Let the user name the folder of the downloads."""
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="FOLDER",
        help="where to download to; what has come stays there if it breaks off, and "
        "the next run continues it (a temporary folder)",
    )


def add_entry_options(parser: argparse.ArgumentParser) -> None:
    """Let the user say what stands in an entry; what is not said is None."""
    parser.add_argument(
        "--executable",
        type=_file_name,
        metavar="NAME",
        help="the program's name in the archive (llama-server)",
    )
    parser.add_argument(
        "--arguments",
        nargs="*",
        metavar="WORD",
        help="its leading arguments: `serve` for llama (none)",
    )
    parser.add_argument(
        "--compute-capabilities",
        nargs="+",
        type=_version,
        metavar="X.Y",
        help="the cards it has code for: 7.5 is the T4",
    )
    for name, what in (("driver", "NVIDIA driver"), ("glibc", "glibc")):
        parser.add_argument(
            f"--least-{name}",
            type=_version,
            metavar="VERSION",
            help=f"the oldest {what} it runs with (not known)",
        )
    parser.add_argument(
        "--build",
        type=_build,
        metavar="N",
        help="llama.cpp's build number: 9940 for b9940 (not known)",
    )
    parser.add_argument("--license", metavar="NAME", help="its licence: MIT")
    parser.add_argument("--note", metavar="TEXT", help="what else one should know")


def add_place_options(parser: argparse.ArgumentParser) -> None:
    """Let the user say where on the Hub an archive is going to be."""
    parser.add_argument(
        "--repo", metavar="OWNER/NAME", help="the repository it will be uploaded to"
    )
    parser.add_argument("--path", metavar="PATH", help="the archive's path in it")
    parser.add_argument(
        "--revision", metavar="NAME", help="the branch, tag or commit (the main branch)"
    )


def entry_values(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the user says of an entry, by the names of its fields."""
    names = (
        "executable",
        "arguments",
        "compute_capabilities",
        "least_driver",
        "least_glibc",
        "build",
        "license",
        "note",
    )
    said = {name: getattr(options, name) for name in names}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in said.items()
        if value is not None
    }


def check_place(repo: str, path: str) -> None:
    """Refuse what can be no file of a repository on the Hub.

    Raises:
        ConfigurationError: It cannot; says how one is written.
    """
    if parse_reference(f"{repo}:{path}") != HubReference(repo, path, None):
        raise ConfigurationError(
            f"{printable(f'{repo}:{path}')!r} is no file of a repository on the Hub; "
            "write it as --repo OWNER/NAME --path FOLDER/FILE"
        )


def new_entry(values: dict[str, Any]) -> EngineEntry:
    """Return an entry of values, with what is usual for those not given.

    Raises:
        ConfigurationError: What cannot be guessed is missing.
    """
    for name, example in (("compute_capabilities", "7.5"), ("license", "MIT")):
        if name not in values:
            option = f"--{name.replace('_', '-')}"
            raise ConfigurationError(
                f"{values['id']}: {option} is missing, and nobody can guess it; give "
                f"it, as in {option} {example}"
            )
    usual: dict[str, Any] = {
        "url": None,
        "repo": None,
        "path": None,
        "revision": None,
        "sha256": "",
        "bytes": None,
        "archive": "tar",
        "executable": "llama-server",
        "arguments": (),
        "least_driver": None,
        "least_glibc": None,
        "build": None,
        "confirmed_live": False,
        "note": "",
    }
    return EngineEntry(**usual | values)


def engine_id(text: str) -> str:
    """Return the id of an engine; it becomes the name of folders and files."""
    if _ID.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no id for an engine: letters, digits and . _ + - only, "
            "as in t4-bundle-2.0.0"
        )
    return text


def _file_name(text: str) -> str:
    if "/" in text or text in ("", ".", "..") or not text.isprintable():
        raise argparse.ArgumentTypeError(
            f"{text!r} is no name of a program; give the name alone: llama-server"
        )
    return text


def _version(text: str) -> str:
    if _VERSION.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no version, as 7.5 is one")
    return text


def _build(text: str) -> int:
    digits = text.removeprefix("b")
    if not digits.isdecimal() or not int(digits):
        raise argparse.ArgumentTypeError(f"{text!r} is no build, as 9940 is one")
    return int(digits)


def run_tool(name: str, work: Callable[[], int]) -> int:
    """Do a tool's work; return its exit code, and say why it failed if it did."""
    try:
        return work()
    except LLCudaError as error:
        words = str(error)
    except OSError as error:
        words = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    shown = "\n  ".join(printable(line, len(line)) for line in words.splitlines())
    print(f"{name}: {shown}", file=sys.stderr)
    return _FAILURE


# The manifest's file


def manifest_text(values: dict[str, Any]) -> str:
    """Return a manifest in the layout of engines.json: one line for each fact."""
    return f"{_laid_out(values, 0)}\n"


def _laid_out(value: Any, depth: int) -> str:
    lines = isinstance(value, (dict, list)) and value and depth <= _LINES_DOWN_TO
    if not lines:
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        items = [
            f"{json.dumps(name, ensure_ascii=False)}: {_laid_out(item, depth + 1)}"
            for name, item in value.items()
        ]
        start, end = "{", "}"
    else:
        items = [_laid_out(item, depth + 1) for item in value]
        start, end = "[", "]"
    indent = " " * (depth + 1)
    joined = f",\n{indent}".join(items)
    return f"{start}\n{indent}{joined}\n{' ' * depth}{end}"


def write_whole(path: Path, text: str, *, check: bool = False) -> None:
    """Write a file so that a reader finds the old one or the new one, whole.

    Args:
        path: The file; where it is a link, what it leads to.
        text: Its content.
        check: Whether it must be a manifest to be written.

    Raises:
        ConfigurationError: It is none.
    """
    final = path.resolve()
    beside = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
    try:
        with beside.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if check:
            read_manifest(beside)
        if final.exists():
            shutil.copymode(final, beside)
        beside.replace(final)
    finally:
        beside.unlink(missing_ok=True)


def _read_values(path: Path) -> dict[str, Any]:
    """Return what a manifest's file holds, as it stands there; it was read before."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def update_entry(path: Path, entry: EngineEntry, changes: dict[str, Any]) -> bool:
    """Change facts of one entry in the manifest's file.

    The file is read anew, since a download may take long: an entry that has another
    digest by now is another engine, of which nothing was found out.

    Returns:
        Whether the file was written.
    """
    values = _read_values(path)
    changed = False
    for found in values["engines"]:
        if (found["id"], found["sha256"]) != (entry.id, entry.sha256):
            continue
        for name, value in changes.items():
            changed = changed or found.get(name) != value
            found[name] = value
    if changed:
        write_whole(path, manifest_text(values), check=True)
    return changed


def put_entry(path: Path, entry: EngineEntry, *, replace: bool) -> str | None:
    """Add an entry to the manifest's file, or replace the one of its id.

    Args:
        path: The manifest.
        entry: The entry.
        replace: Whether one that is there may be replaced; it keeps its place.

    Returns:
        The id of the engine that is tried just before it, or None if it is the first.

    Raises:
        ConfigurationError: There is one already.
    """
    values = _read_values(path)
    engines = values["engines"]
    ids = [found["id"] for found in engines]
    if entry.id in ids:
        refuse_known(path, read_manifest(path), entry.id, replace=replace)
        place = ids.index(entry.id)
        engines[place] = plain_values(entry)
    else:
        place = len(engines)
        engines.append(plain_values(entry))
    write_whole(path, manifest_text(values), check=True)
    return ids[place - 1] if place else None


def refuse_known(path: Path, known: Manifest, name: str, *, replace: bool) -> None:
    """Refuse to replace an entry that nobody asked to replace.

    Raises:
        ConfigurationError: There is one of this id.
    """
    found = known.find(name)
    if found is not None and not replace:
        raise ConfigurationError(
            f"{path} has an engine {name!r} already, with sha256 {found.sha256}. Give "
            "--replace to replace it knowingly, or choose another id."
        )


def plain_values(entry: EngineEntry) -> dict[str, Any]:
    """Return an entry as JSON has it, in the order of the file."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(entry).items()
    }


# The transfer


@contextlib.contextmanager
def work_folder(given: Path | None) -> Iterator[Path]:
    """Lend a folder to download to.

    A temporary one is deleted at the end, unless it holds part of a file that broke
    off: then it stays, and stderr says where.

    Args:
        given: The folder to use; it is made, and what is in it stays.
    """
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        with locked(given / ".lock"):
            yield given
        return
    folder = Path(tempfile.mkdtemp(prefix="engines-"))
    try:
        yield folder
    finally:
        if any(part.stat().st_size for part in folder.glob("*.part")):
            print(
                f"What has come is kept: go on with --folder {folder}", file=sys.stderr
            )
        else:
            remove_tree(folder)


def show_bar(entry: EngineEntry) -> FileBar:
    """Return the bar of a transfer, which also counts its bytes."""
    return FileBar(entry.id, entry.bytes, shown=sys.stderr.isatty())


def fetch(
    entry: EngineEntry, target: Path, bar: FileBar, *, sha256: str | None
) -> tuple[str, bool]:
    """Fetch an entry's archive, and compare its digest with one that is known.

    Args:
        entry: Says where it is. Its size is not used: what came is to be compared
            with it, whatever the size.
        target: Where to.
        bar: Shows the transfer, and counts.
        sha256: The digest it must have. None: any; of a repository on the Hub, the
            one that the Hub states.

    Returns:
        The digest of what came, and whether the Hub states the same one.

    Raises:
        ChecksumError: Other bytes came, which are deleted, or the Hub states others.
        LLCudaError: It cannot be fetched.
    """
    file, stated = _locate(entry, sha256)
    if file.sha256:
        download(file, target, bar)
        return file.sha256, stated
    # A part of an earlier try could be of another file, and nothing would tell.
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    actual = fetch_into(part, file, bar)
    part.replace(target)
    return actual, stated


def _locate(entry: EngineEntry, sha256: str | None) -> tuple[PinnedFile, bool]:
    """Return where the archive is and what it must be; whether the Hub says the same.

    A digest of "" is not known.
    """
    advice = "Find out why before you use it."
    if entry.url is not None:
        pinned = PinnedFile(entry.id, entry.url, sha256 or "", advice=advice)
        return pinned, False
    found = resolve_file(str(entry.repo), str(entry.path), entry.revision)
    stated = found.etag if is_digest(found.etag) else None
    if sha256 and stated and stated != sha256:
        raise mismatch(entry.id, expected=sha256, actual=stated, advice=advice)
    pinned = PinnedFile(
        entry.id,
        found.url,
        sha256 or stated or "",
        found.size,
        headers=found.headers,
        location=found.location,
        advice=advice,
    )
    return pinned, stated is not None


# The first run


@dataclass(frozen=True, slots=True)
class Unpacked:
    """An engine that lies unpacked in a folder, and was never run.

    Attributes:
        folder: The folder.
        program: The executable; it cannot be executed yet.
    """

    folder: Path
    program: Path


@contextlib.contextmanager
def unpacked(entry: EngineEntry, archive: Path) -> Iterator[Unpacked]:
    """Lend the files of an archive, unpacked beside it.

    Raises:
        EngineNotFoundError: There is no such program in it.
        SetupError: It cannot be unpacked, or must not be.
    """
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".unpacked-") as name:
        folder = Path(name)
        single = None if entry.archive == "tar" else entry.executable
        unpack(archive, folder, kind=entry.archive, name=single)
        yield Unpacked(folder, program_in(folder, entry))


def build_said(entry: EngineEntry, engine: Unpacked) -> int | None:
    """Run a program with --version; return the build that it names, if it does.

    To be called only for bytes that have the digest somebody stated beforehand.

    Raises:
        EngineNotFoundError: It does not run here; the message is one line.
    """
    engine.program.chmod(_PROGRAM_MODE)
    libraries = {str(found.parent) for found in engine.folder.rglob("lib*.so*")}
    command = (str(engine.program), *entry.arguments)
    try:
        facts = probe_engine(Engine(command, "argument", tuple(sorted(libraries))))
    except EngineNotFoundError as error:
        line = str(error).partition("\n")[0]
        line = line.replace(str(engine.program), entry.executable)
        raise EngineNotFoundError(printable(line, len(line))) from error
    return facts.build
