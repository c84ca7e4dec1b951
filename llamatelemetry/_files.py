"""Files that are written whole: a reader finds the old one or the new one."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file so that a reader finds the old one or the new one, whole.

    What a link leads to is replaced, not the link; a device or a pipe is written to.

    Args:
        path: The file; its folder has to be there.
        content: Bytes, or text that is written as UTF-8.

    Raises:
        OSError: It cannot be written; the old file is as it was. It names the file, or
            the folder where that is missing.
    """
    data = content.encode() if isinstance(content, str) else content
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        target.write_bytes(data)
        return
    if not target.parent.is_dir():
        folder = os.fspath(target.parent)
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", folder)
    beside = target.with_name(f".{target.name[:40]}.{uuid.uuid4().hex[:8]}")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            beside.chmod(target.stat().st_mode & 0o777)
        beside.replace(target)
    except OSError as error:
        # What is beside it for a moment says nothing to whoever has named the file.
        error.filename, error.filename2 = os.fspath(target), None
        raise
    finally:
        beside.unlink(missing_ok=True)
