"""A GGUF reader written straight from the specification: slow, trusting and short.

It shares no code with the reader of the package and checks nothing. The tests compare
it with `gguf.GGUFReader`, which takes 25 s for a large vocabulary, and then use it in
its place.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any, BinaryIO

_CODES = "BbHhIif?  Qqd"


def _take(file: BinaryIO, order: str, code: str) -> Any:
    packing = struct.Struct(order + code)
    return packing.unpack(file.read(packing.size))[0]


def _text(file: BinaryIO, order: str) -> str:
    return file.read(_take(file, order, "Q")).decode()


def _value(file: BinaryIO, order: str, kind: int) -> Any:
    if kind == 8:
        return _text(file, order)
    if kind == 9:
        inner = _take(file, order, "I")
        count = _take(file, order, "Q")
        if inner not in (8, 9):
            packing = struct.Struct(f"{order}{count}{_CODES[inner]}")
            return list(packing.unpack(file.read(packing.size)))
        return [_value(file, order, inner) for _ in range(count)]
    return _take(file, order, _CODES[kind])


def read_plainly(path: Path) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """Return the keys and values, and name, shape, type and offset of each tensor."""
    file = io.BytesIO(path.read_bytes())
    file.seek(4)
    order = ">" if file.read(2) == b"\0\0" else "<"
    file.seek(8)
    tensor_count = _take(file, order, "Q")
    key_count = _take(file, order, "Q")
    values = {}
    for _ in range(key_count):
        key = _text(file, order)
        values[key] = _value(file, order, _take(file, order, "I"))
    tensors = []
    for _ in range(tensor_count):
        name = _text(file, order)
        axes = _take(file, order, "I")
        shape = tuple(_take(file, order, "Q") for _ in range(axes))
        tensors.append((name, shape, _take(file, order, "I"), _take(file, order, "Q")))
    return values, tensors
