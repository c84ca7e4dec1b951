"""A real file system of a few MB, on which a disk can be full."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

# Some systems let only root mount, and CI's user become root without a password.
_AS_ROOT = [] if os.geteuid() == 0 else ["sudo", "-n"]


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """Mount a file system in memory at a folder, for as long as this lasts.

    Args:
        folder: Where; it is made.
        size: Its bytes.

    Yields:
        Whether that was allowed.
    """
    folder.mkdir(parents=True)
    options = f"size={size},uid={os.geteuid()},mode=700"
    command = [*_AS_ROOT, "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        yield False
        return
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run([*_AS_ROOT, "umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the room that a disk has left; return the file that takes it."""
    path = folder / "filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return path
