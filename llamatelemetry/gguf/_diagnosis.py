"""Says what a file is that is no GGUF file, and what a wrong value in one is."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from llamatelemetry._units import printable

_SHOWN_TEXT = 120
_SHOWN_BYTES = 16
_LEAST_PRINTABLE = 32


def shown(value: object) -> str:
    """Return a value of a header as messages show it: short, whatever a file holds."""
    if isinstance(value, str):
        value = value[: _SHOWN_TEXT + 1]  # before its repr, which may be ten times it
    return printable(repr(value), _SHOWN_TEXT)


@cache
def _signatures() -> list[dict[str, Any]]:
    text = Path(__file__).with_name("signatures.json").read_text(encoding="utf-8")
    signatures: list[dict[str, Any]] = json.loads(text)["signatures"]
    return signatures


def describe_foreign_file(beginning: bytes) -> str:
    """Return what a file without GGUF's magic is, and what to do about it.

    Args:
        beginning: Its first bytes, 32 or more where it has them.
    """
    if not beginning:
        return "is empty: the download has not begun. Fetch it again."
    text = beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for entry in _signatures():
        wanted = bytes.fromhex(entry["hex"])
        skip = entry.get("skip", 0)
        # Texts may begin with blanks and in any case.
        found = beginning[skip:] if skip or not wanted.isascii() else text
        if found.startswith(wanted) or beginning.startswith(wanted, skip):
            return f"is no GGUF file but {entry['what']}. {entry['remedy']}"
    shown = beginning[:_SHOWN_BYTES]
    if all(byte >= _LEAST_PRINTABLE or byte in b"\t\r\n" for byte in shown):
        return (
            f"is no GGUF file but a text that begins with {shown!r}; most likely a "
            "server's error message. Fetch the file again."
        )
    return (
        f"is no GGUF file: it begins with {shown[:4]!r} instead of b'GGUF'. Give the "
        "path of a GGUF file."
    )
