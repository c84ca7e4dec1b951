"""Room on disks, and files that others may be writing at the same time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from llamatelemetry._environment import CACHE_VARIABLE, detect_platform
from llamatelemetry._files import write_whole
from llamatelemetry._units import format_file_size
from llamatelemetry.exceptions import DiskSpaceError, SetupError

__all__ = [
    "bytes_in",
    "disk_errors",
    "existing_parent",
    "free_bytes",
    "locked",
    "no_space",
    "remove_tree",
    "require_space",
    "write_json",
]

KAGGLE_OUTPUT_BYTES = 20 * 10**9
"""What a notebook may leave in /kaggle/working. Not what its disk has: ``df`` shows the
host's, with terabytes free. From Kaggle's documentation of notebooks; not measured."""

_SPARE_BYTES = 64 * 10**6
"""Kept free beside what is written: caches, logs, the notebook itself."""

_POLL_SECONDS = 0.1
_OWN = 0o700


def existing_parent(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def free_bytes(folder: Path) -> int:
    """Return the bytes that may still be written below a folder.

    On Kaggle, below /kaggle/working, no more than is left of the quota of outputs.

    Args:
        folder: Where to; it need not exist yet.
    """
    place = existing_parent(folder.absolute()).resolve()
    free = shutil.disk_usage(place).free
    output = detect_platform().output
    if output is not None and place.is_relative_to(output.resolve()):
        free = min(free, max(0, KAGGLE_OUTPUT_BYTES - bytes_in(output)))
    return free


def bytes_in(folder: Path) -> int:
    """Return the bytes that the files below a folder take on the disk."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(place, name).lstat().st_blocks * 512
    return total


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what a disk has no room for.

    Args:
        folder: Where it would be written.
        needed: Bytes.
        what: What it is, for the message.

    Raises:
        DiskSpaceError: There is less room than that.
    """
    free = free_bytes(folder)
    if needed + _SPARE_BYTES <= free:
        return
    raise no_space(folder, what, needed=needed, free=free)


def no_space(folder: Path, what: str, *, needed: int, free: int) -> DiskSpaceError:
    """Return the error that says how much room is missing, and where."""
    return DiskSpaceError(
        f"{what} needs {format_file_size(needed)} in {folder}, where "
        f"{format_file_size(free)} are free{_quota_words(folder)}. Delete what is no "
        "longer needed there, name another folder, or take a smaller model.",
        needed=needed,
        free=free,
    )


def _quota_words(folder: Path) -> str:
    output = detect_platform().output
    if output is None:
        return ""
    place = existing_parent(folder.absolute()).resolve()
    if place.is_relative_to(output.resolve()):
        quota = format_file_size(KAGGLE_OUTPUT_BYTES)
        return f" of the {quota} that Kaggle keeps as output"
    return ""


@contextlib.contextmanager
def disk_errors(
    folder: Path,
    what: str,
    needed: Callable[[], int],
    full: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Turn the system's "no space left" into the error that says what to do.

    Args:
        folder: Where it is written.
        what: What it is, for the message.
        needed: Tells the bytes, as far as they are known by then.
        full: Called when the disk is full, after the free bytes were counted.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = free_bytes(folder)
        full()
    else:
        return
    raise no_space(folder, what, needed=needed(), free=free)


@contextlib.contextmanager
def locked(path: Path, *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock that other processes and threads respect, however long it takes.

    The kernel gives it back when its holder dies, however it dies. The file stays: to
    delete it would let two hold it.

    Args:
        path: The lock's file; its folder is made.
        waiting: Called now and then while another one holds it; may raise.

    Raises:
        SetupError: The folder cannot be written, or has no locks.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("a"))
            while not _takes_lock(file):
                waiting()
                time.sleep(_POLL_SECONDS)
        except OSError as error:
            raise SetupError(
                f"{path.parent} cannot be used ({error.strerror}); name another folder "
                f"in the variable {CACHE_VARIABLE}"
            ) from error
        yield


def _takes_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a reader finds the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(value, indent=1))


def remove_tree(folder: Path) -> None:
    """Delete a folder with all in it, if it is there; read-only ones in it too."""
    if not folder.is_dir():
        return
    with contextlib.suppress(OSError):
        folder.chmod(_OWN)
    for place, inner, _ in os.walk(folder):
        for name in inner:
            below = Path(place, name)
            if not below.is_symlink():
                with contextlib.suppress(OSError):
                    below.chmod(_OWN)
    shutil.rmtree(folder, ignore_errors=True)
