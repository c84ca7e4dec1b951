"""Archives of engines: unpacked without trust, packed the same way every time."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from llamatelemetry._units import GIB, format_file_size, printable
from llamatelemetry.exceptions import (
    ConfigurationError,
    DiskSpaceError,
    SetupError,
    UnsafeArchiveError,
)
from llamatelemetry.setup._archive_bytes import ArchiveKind, content
from llamatelemetry.setup._archive_rules import MOST_MEMBERS, Names
from llamatelemetry.setup._archive_tar import Stream, members

__all__ = ["ArchiveKind", "pack", "unpack"]

_MOST_BYTES = 8 * GIB
"""Of all files together; the largest bundle known has 1.4 GB compressed, and Kaggle's
working disk 20 GB."""
_PROGRAM = 0o755
_PLAIN = 0o644
_OWNER_EXECUTES = 0o100
_COMPRESSION = 6  # as the program gzip; Python's own choice, 9, is slow on programs


def unpack(
    archive: Path,
    folder: Path,
    *,
    kind: ArchiveKind,
    name: str | None = None,
    most_bytes: int = _MOST_BYTES,
    most_members: int = MOST_MEMBERS,
    note: Callable[[int], None] | None = None,
) -> list[Path]:
    """Unpack an archive that somebody else made into an empty folder.

    Nothing is written outside of the folder, whatever the archive says. Files become
    rwxr-xr-x or rw-r--r--, as their owner could execute them or not; owners, times and
    extended attributes are left out. Links within the folder are made after all files.
    What was written before an error or Ctrl-C stays for the caller to delete.

    Args:
        archive: The file.
        folder: An empty folder that nobody else writes to.
        kind: "tar", compressed with gzip, bzip2, xz, zstandard or not at all; "zst",
            one file compressed with zstandard; "file", one file as it is.
        name: What the one file is called; by default as the archive, without ``.zst``.
            A tar has its own names. The one file cannot be executed yet.
        most_bytes: Bytes of all files together that are allowed.
        most_members: Members of a tar that are allowed.
        note: Called with the bytes written so far, after at most 1 MiB each time.

    Returns:
        The files, in the archive's order; links are not among them.

    Raises:
        UnsafeArchiveError: A member leaves the folder, is of a kind that no engine
            needs, or there is more of it than is allowed.
        DiskSpaceError: There is not enough room in the folder.
        SetupError: The archive cannot be read, is damaged, cut off or of another kind,
            or zstandard is missing.
        ConfigurationError: The folder is not empty, or the name is no plain one.
    """
    if not folder.is_dir() or any(folder.iterdir()):
        raise ConfigurationError(f"{folder}: unpacking needs an empty folder.")
    if kind != "tar":
        name = _checked_name(
            archive.name.removesuffix(".zst") if name is None else name
        )
    with _opened(archive) as raw:
        pieces, total = content(raw, archive, kind)
        writer = _Writer(archive, folder, most_bytes, note)
        if name is not None and kind != "tar":
            return [writer.write(name, pieces, total, _PLAIN)]
        advice = "Do not use this archive; get it from a publisher you trust."
        names = Names(archive, advice, most_members)
        return _unpack_tar(Stream(pieces, archive), names, writer)


def _unpack_tar(stream: Stream, names: Names, writer: _Writer) -> list[Path]:
    files = []
    for member in members(stream, names.refusal):
        if member.kind == "hard link":
            target = names.file_behind(member.name, member.target)
            path = names.add(member.name, "file")
            files.append(writer.link_hard(path, target))
            continue
        path = names.add(member.name, member.kind, member.target)
        if member.kind == "file":
            mode = _PROGRAM if member.executable else _PLAIN
            pieces = stream.pieces(member.size)
            files.append(writer.write(path, pieces, member.size, mode))
        elif member.kind == "folder":
            writer.make_folder(path)
    # With no link in the folder until now, none could lead a file out of it.
    writer.finish(names.links(), names.folders)
    return files


def _checked_name(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        raise ConfigurationError(
            f"{printable(name)!r} is no name for a file: give one without slashes."
        )
    return name


@contextmanager
def _opened(archive: Path) -> Iterator[BinaryIO]:
    """Open an archive for reading; only a plain file, for a pipe could wait forever."""
    try:
        plain = stat.S_ISREG(archive.stat().st_mode)
        raw = archive.open("rb") if plain else None
    except OSError as error:
        raise SetupError(
            f"{archive}: the archive cannot be opened ({error.strerror}). Give the "
            "path of a file that is there and can be read."
        ) from error
    if raw is None:
        raise SetupError(f"{archive} is no file; give the path of an archive.")
    with raw:
        yield raw


class _Writer:
    """Writes into one folder, and counts."""

    def __init__(
        self,
        archive: Path,
        folder: Path,
        most_bytes: int,
        note: Callable[[int], None] | None,
    ) -> None:
        self._archive = archive
        self._folder = folder
        self._most = most_bytes
        self._written = 0
        self._note = note

    def write(
        self,
        name: str,
        pieces: Iterable[bytes | memoryview],
        size: int | None,
        mode: int,
    ) -> Path:
        """Write one file; its size is compared with what is allowed before it is made.

        Args:
            name: Its checked name.
            pieces: Its content.
            size: Bytes of it, or None if that is not known before.
            mode: Its permissions.
        """
        path = self._folder / name
        self._check(name, size or 0)
        with self._told(path, size or 0):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("xb", buffering=0)  # x: nothing that is there is opened
        with file:
            for piece in pieces:
                # Whatever was said of the size, the bytes themselves count.
                self._check(name, len(piece), look_at_disk=size is None)
                self._put(path, file, piece)
            with self._told(path, 0):
                # Not at the creation: there, the umask would have its say.
                os.fchmod(file.fileno(), mode)
        return path

    def link_hard(self, name: str, target: str) -> Path:
        """Give a file that is there a second name."""
        path = self._folder / name
        with self._told(path, 0):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(self._folder / target, path, follow_symlinks=False)
        return path

    def make_folder(self, name: str) -> None:
        """Make a folder, unless it is there."""
        with self._told(self._folder / name, 0):
            (self._folder / name).mkdir(parents=True, exist_ok=True)

    def finish(self, links: dict[str, str], folders: Iterable[str]) -> None:
        """Make the links, which were checked, and set the folders' permissions."""
        for name in folders:
            self.make_folder(name)  # one that holds nothing but links is not there yet
            with self._told(self._folder / name, 0):
                (self._folder / name).chmod(_PROGRAM)
        for name, target in links.items():
            with self._told(self._folder / name, 0):
                (self._folder / name).symlink_to(target)

    def _put(self, path: Path, file: FileIO, piece: bytes | memoryview) -> None:
        rest = memoryview(piece)
        with self._told(path, len(piece)):
            while rest:
                rest = rest[file.write(rest) :]
        self._written += len(piece)
        if self._note is not None:
            self._note(self._written)

    def _check(self, name: str, size: int, *, look_at_disk: bool = True) -> None:
        if size > self._most - self._written:
            raise UnsafeArchiveError(
                f"{self._archive}: with {printable(name)!r} it unpacks to "
                f"{format_file_size(self._written + size)} or more, and "
                f"{format_file_size(self._most)} are allowed. Do not use this archive; "
                "get it from a publisher you trust."
            )
        if not look_at_disk:
            return
        free = shutil.disk_usage(self._folder).free
        if size > free:
            raise _too_little_room(self._folder / name, size, free)

    @contextmanager
    def _told(self, path: Path, needed: int) -> Iterator[None]:
        """Tell what goes wrong while something is written in this package's errors."""
        try:
            yield
        except OSError as error:
            raise _failure(error, path, needed) from error


def _failure(error: OSError, path: Path, needed: int) -> SetupError:
    """Return this package's error for one of the system's."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _too_little_room(path, needed, shutil.disk_usage(path.parent).free)
    return SetupError(f"{path} cannot be read or written ({error.strerror or error}).")


def _too_little_room(path: Path, needed: int, free: int) -> DiskSpaceError:
    return DiskSpaceError(
        f"{path}: {format_file_size(needed)} are to be written, and the disk has "
        f"{format_file_size(free)} free. Delete what is not needed, or choose a folder "
        "on another disk.",
        needed=needed,
        free=free,
    )


def pack(folder: Path, archive: Path, *, top: str) -> None:
    """Pack a folder as a ``.tar.gz`` whose bytes depend on names and content alone.

    Times, owners and all permissions but "may be executed" are left out, so that two
    copies of a folder give the same archive, with the same version of zlib.

    Args:
        folder: What to pack. Links that stay within it are kept as links.
        archive: The file to write. It appears when it is whole, and replaces another.
        top: The name of the one folder in the archive under which all lies.

    Raises:
        UnsafeArchiveError: The folder holds a link that leaves it, or something that
            is neither file, folder nor link; ``unpack`` would refuse it.
        DiskSpaceError: There is not enough room for the archive.
        SetupError: Something cannot be read or written.
        ConfigurationError: The archive would lie in the folder, or the top's name is no
            plain one.
    """
    _checked_name(top)
    if archive.parent.resolve().is_relative_to(folder.resolve()):
        raise ConfigurationError(
            f"{archive} would be packed into itself: write it outside of {folder}."
        )
    needed = 0
    try:
        names = _listed(folder)
        needed = sum((folder / name).lstat().st_size for name in names)
        descriptor, partial = tempfile.mkstemp(
            dir=archive.parent, prefix=f".{archive.name}.", suffix=".part"
        )
        try:
            with os.fdopen(descriptor, "wb") as raw:
                _write_tar(raw, folder, names, top)
                os.fchmod(descriptor, _PLAIN)
            Path(partial).replace(archive)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        place = archive if error.filename is None else Path(error.filename)
        raise _failure(error, place, needed) from error


def _listed(folder: Path) -> list[str]:
    """Return the names of all that is in a folder, checked, in the order of packing."""
    names = Names(folder, "Take it out of the folder, or make it a plain file.")
    found = []
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            names.add(name, "link", str(path.readlink()))
        elif stat.S_ISDIR(mode):
            names.add(name, "folder")
        elif stat.S_ISREG(mode):
            names.add(name, "file")
        else:
            raise names.refusal(name, "it is neither a file nor a folder nor a link")
        found.append(name)
    names.links()
    # A folder before what is in it.
    return sorted(found, key=lambda name: name.split("/"))


def _walk(folder: Path) -> Iterator[Path]:
    """Yield all that is in a folder; what cannot be read is an error."""
    for path in folder.iterdir():
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _write_tar(raw: BinaryIO, folder: Path, names: list[str], top: str) -> None:
    with (
        gzip.GzipFile("", "wb", _COMPRESSION, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        tar.addfile(_entry(top, tarfile.DIRTYPE, _PROGRAM))
        for name in names:
            path, inner = folder / name, f"{top}/{name}"
            if path.is_symlink():
                link = _entry(inner, tarfile.SYMTYPE, 0o777)
                link.linkname = str(path.readlink())
                tar.addfile(link)
            elif path.is_dir():
                tar.addfile(_entry(inner, tarfile.DIRTYPE, _PROGRAM))
            else:
                with path.open("rb") as file:
                    facts = os.fstat(file.fileno())
                    executable = facts.st_mode & _OWNER_EXECUTES
                    mode = _PROGRAM if executable else _PLAIN
                    entry = _entry(inner, tarfile.REGTYPE, mode)
                    entry.size = facts.st_size
                    tar.addfile(entry, file)


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    """Return a member without owner and time; TarInfo's own values are zeros."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = kind, mode
    return entry
