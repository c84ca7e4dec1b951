"""The lines of results.jsonl: how one is written, and how a file is read again. Pure.

A line is whole when its line feed is there. Nothing stands before a line's ``id``,
``key`` and ``position``, so that the beginning of a torn one is known as ours too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ForeignFileError", "Line", "encode_line", "own_record", "read_lines"]

_BEGINNING = b'{"id":'
_KEY_LENGTH = 32
_LINE_ENDS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""What JSON takes for letters, and readers of lines may not."""


class ForeignFileError(Exception):
    """A file that no batch has written."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file of results.

    Attributes:
        offset: Where it begins, in bytes.
        record: What it holds; None if it cannot be read.
        whole: Whether its line feed is there.
        blank: Whether nothing else is there.
    """

    offset: int
    record: dict[str, Any] | None
    whole: bool
    blank: bool


def encode_line(record: Mapping[str, Any]) -> bytes:
    """Return a record as the line that is written."""
    ordered = {name: record[name] for name in ("id", "key", "position")} | dict(record)
    try:
        text = _compact(ordered)
    except ValueError:  # NaN or infinite: JSON has no such numbers
        plain = json.loads(json.dumps(ordered), parse_constant=lambda _: None)
        text = _compact(plain)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half a character, which only an escape can hold
        return _compact(json.loads(text), ascii_only=True).encode() + b"\n"


def _compact(value: Any, *, ascii_only: bool = False) -> str:
    text = json.dumps(
        value, ensure_ascii=ascii_only, allow_nan=False, separators=(",", ":")
    )
    for mark, escape in _LINE_ENDS.items():
        text = text.replace(mark, escape)
    return text


def own_record(line: bytes) -> dict[str, Any] | None:
    """Return what a line holds; None if it cannot be read or is not ours."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    own = (
        isinstance(record.get("id"), str | int)
        and isinstance(record.get("key"), str)
        and len(record["key"]) == _KEY_LENGTH
        and isinstance(record.get("position"), int)
    )
    return record if own else None


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a file of results, one after the other.

    Lines that cannot be read, as after a power cut, come without a record.

    Raises:
        ForeignFileError: It begins with something that no batch has written.
        OSError: It cannot be read.
    """
    known = False
    offset = 0
    with path.open("rb") as file:
        for text in file:
            record = own_record(text)
            whole = text.endswith(b"\n")
            known = known or record is not None
            if not known and not _may_be_own(text, whole=whole):
                raise ForeignFileError
            yield Line(offset, record, whole, not text.strip())
            offset += len(text)


def _may_be_own(text: bytes, *, whole: bool) -> bool:
    """Whether a line without a record may have been the first of a file of ours."""
    rest = text.strip(b"\0\r\n ")
    if not rest:  # empty, or what a power cut leaves of a block
        return True
    return not whole and _is_torn(rest)


def _is_torn(text: bytes) -> bool:
    """Whether it is the beginning of a line of ours, and not a whole one of others."""
    length = min(len(text), len(_BEGINNING))
    if text[:length] != _BEGINNING[:length]:
        return False
    try:
        json.loads(text)
    except ValueError:
        return True
    return False
