"""Files of results on the disk: the one that is locked and mended, and earlier ones."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from llamatelemetry.batch._lines import ForeignFileError, Line, read_lines
from llamatelemetry.batch._places import Index
from llamatelemetry.exceptions import ConfigurationError

__all__ = ["EarlierResults", "open_results", "read_earlier"]

EarlierResults = Sequence[Path]
"""Files, or folders to search."""

_LOCKS = Path("/proc/locks")
_NO_LOCKS_PLACES = (1, 4, 5)  # kind, pid and file in a line of /proc/locks


def open_results(
    path: Path, index: Index, *, may_hold: bool
) -> tuple[int, dict[Path, int]]:
    """Open, lock, read and mend the file that results are appended to.

    Args:
        path: The file; it and its folder are made if they are missing.
        index: Is given what the file holds.
        may_hold: Whether it may hold results already.

    Returns:
        The descriptor, which holds the lock, and the lines that cannot be read.

    Raises:
        ConfigurationError: It cannot be written, is another process's or not a file
            of results, or is not empty though it has to be.
    """
    if path.parent.exists() and not path.parent.is_dir():
        raise ConfigurationError(
            f"out={str(path)!r} cannot be written: {path.parent} is no folder"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise ConfigurationError(
            f"out={str(path)!r} cannot be written ({error.strerror}); name a file in a "
            "folder that can"
        ) from error
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConfigurationError(
                f"out={str(path)!r} is no file that can be read again; name one"
            )
        _lock(path, descriptor)
        if new:
            _sync_folder(path.parent)
        size = os.fstat(descriptor).st_size
        if size and not may_hold:
            raise ConfigurationError(
                f"out={str(path)!r} is not empty ({size:,} bytes): resume=True goes on "
                "with it; or name another file"
            )
        damaged, last = _read(path, index, "out")
        _mend(descriptor, last)
        stack.pop_all()
    return descriptor, damaged


def _mend(descriptor: int, last: Line | None) -> None:
    """Cut off a line that is not whole, or end it if only the line feed is missing."""
    if last is None or last.whole:
        return
    if last.record is None:
        os.ftruncate(descriptor, last.offset)
    else:
        os.write(descriptor, b"\n")


def _read(path: Path, index: Index, name: str) -> tuple[dict[Path, int], Line | None]:
    """Give the index what a file holds; return the lines that cannot be read."""
    damaged = 0
    last = None
    try:
        for line in read_lines(path):
            last = line
            if line.record is not None:
                index.put(path, line.offset, line.record)
            elif line.whole and not line.blank:
                damaged += 1
    except ForeignFileError:
        raise ConfigurationError(
            f"{name}={str(path)!r} is not a file of results, and was left as it is; "
            "name another file"
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"{name}={str(path)!r} cannot be read ({error.strerror})"
        ) from error
    return ({path: damaged} if damaged else {}), last


def _lock(path: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _lock_holder(os.fstat(descriptor).st_ino)
        if holder == os.getpid():
            who = "another call in this process"
        else:
            who = f"process {holder}" if holder else "another process"
        raise ConfigurationError(
            f"out={str(path)!r} is being written to by {who}; wait for its end, or "
            "name another file"
        ) from None
    except OSError:  # a file system without locks, as some that are mounted over HTTP
        return


def _lock_holder(inode: int) -> int | None:
    """Return the process that holds a lock on a file; None if that is not told.

    Format: https://man7.org/linux/man-pages/man5/proc_locks.5.html
    """
    try:
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return None
    kind, pid, file = _NO_LOCKS_PLACES
    for line in lines:
        fields = line.split()
        if fields[kind] == "FLOCK" and fields[file].split(":")[-1] == str(inode):
            return int(fields[pid]) or None
    return None


def _sync_folder(folder: Path) -> None:
    """Bring a new file's name to the disk, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_earlier(places: EarlierResults, out: Path, index: Index) -> dict[Path, int]:
    """Give an index what earlier files hold, which are only read.

    Args:
        places: Files, or folders that are searched for ``*.jsonl``.
        out: The file that is written to, which is left out.
        index: Is given what they hold.

    Returns:
        The lines that cannot be read, by file.

    Raises:
        ConfigurationError: One is missing, or holds no results.
    """
    damaged: dict[Path, int] = {}
    for place in places:
        if place.is_dir():
            damaged |= _read_folder(place, out, index)
        elif not place.exists():
            raise ConfigurationError(f"resume={str(place)!r}: there is no such file")
        elif not _same(place, out):
            damaged |= _read(place, index, "resume")[0]
    return damaged


def _read_folder(folder: Path, out: Path, index: Index) -> dict[Path, int]:
    damaged: dict[Path, int] = {}
    results = 0
    for path in _files_below(folder):
        if _same(path, out):
            results += 1
        elif _is_results(path):
            results += 1
            damaged |= _read(path, index, "resume")[0]
    if not results:
        raise ConfigurationError(
            f"resume={str(folder)!r}: there is no file of results (*.jsonl) in this "
            "folder, nor below it"
        )
    return damaged


def _files_below(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*.jsonl")) if path.is_file())


def _is_results(path: Path) -> bool:
    """Whether a file begins as one of ours."""
    try:
        return any(line.record is not None for line in read_lines(path))
    except (ForeignFileError, OSError):
        return False


def _same(path: Path, out: Path) -> bool:
    return out.exists() and path.samefile(out)
