"""SHA-256 of files, and the verdicts of those that were verified before.

A verdict is remembered by path, size and time of change, so that a model of 20 GB is
read once and not at each start. It says what a file's digest is; whether that is the
right one is asked anew each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamatelemetry._environment import cache_folder
from llamatelemetry.exceptions import ChecksumError, ConfigurationError, SetupError
from llamatelemetry.setup._disk import locked, write_json

__all__ = ["checked_digest", "known_digest", "mismatch", "remember", "sha256_of"]

_BLOCK_BYTES = 1 << 20
_MOST_VERDICTS = 1000
_DIGEST_LETTERS = frozenset("0123456789abcdef")
_DIGEST_LENGTH = 64


def checked_digest(sha256: str) -> str:
    """Return a digest that a user gave, in small letters.

    Raises:
        ConfigurationError: It is no SHA-256 in hex.
    """
    plain = sha256.strip().lower().removeprefix("sha256:")
    if len(plain) != _DIGEST_LENGTH or not _DIGEST_LETTERS.issuperset(plain):
        raise ConfigurationError(
            f"sha256={sha256!r} is no SHA-256; it has 64 digits of 0-9 and a-f, as "
            "sha256sum prints them"
        )
    return plain


def is_digest(text: str | None) -> bool:
    """Whether a text is a SHA-256 in hex."""
    return (
        text is not None
        and len(text) == _DIGEST_LENGTH
        and _DIGEST_LETTERS.issuperset(text)
    )


def sha256_of(path: Path, note: Callable[[int], None] = lambda _: None) -> str:
    """Return a file's SHA-256 in hex; remembers it.

    Args:
        path: The file.
        note: Called with the number of bytes that were read since the last call.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        while count := file.readinto(block):
            digest.update(block[:count])
            note(count)
    found = digest.hexdigest()
    remember(path, found, before)
    return found


def known_digest(path: Path) -> str | None:
    """Return the digest of a file that was read before and has not changed since."""
    try:
        real = path.resolve(strict=True)
        state = _state(real.stat())
    except OSError:
        return None
    entry = _verdicts().get(str(real))
    if isinstance(entry, dict) and entry.get("state") == state:
        digest = entry.get("sha256")
        return digest if isinstance(digest, str) else None
    return None


def remember(path: Path, sha256: str, status: os.stat_result | None = None) -> None:
    """Remember a file's digest.

    Args:
        path: The file.
        sha256: Its digest.
        status: What it was when it began to be read; nothing is remembered of a file
            that has changed since. None: what it is now.
    """
    # A cache that cannot be written costs time only.
    with contextlib.suppress(OSError, SetupError):
        real = path.resolve(strict=True)
        state = _state(real.stat())
        if status is not None and _state(status) != state:
            return
        place = _place()
        with locked(place.with_suffix(".lock")):
            known = _verdicts()
            known.pop(str(real), None)
            known[str(real)] = {"state": state, "sha256": sha256}
            while len(known) > _MOST_VERDICTS:
                known.pop(next(iter(known)))
            write_json(place, known)


def _state(status: os.stat_result) -> list[int]:
    # The inode too: a file that was replaced by one of the same size and time, as
    # unpacking with kept times does, is another one.
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _place() -> Path:
    return cache_folder() / "verified.json"


def _verdicts() -> dict[str, Any]:
    try:
        known = json.loads(_place().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def mismatch(name: str, *, expected: str, actual: str, advice: str) -> ChecksumError:
    """Return the error for bytes that are not the ones pinned."""
    return ChecksumError(
        f"{name}: the bytes are not the ones that were pinned: expected sha256 "
        f"{expected}, got {actual}. {advice}",
        expected=expected,
        actual=actual,
    )
