"""Writes GGUF files by hand, right ones and wrong ones.

The `gguf` package writes only what is right. Here every number of a header has a name,
so that a test can find it and put another in its place.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = range(10)
UINT64, INT64, FLOAT64 = range(10, 13)
CODES = {
    UINT8: "B",
    INT8: "b",
    UINT16: "H",
    INT16: "h",
    UINT32: "I",
    INT32: "i",
    FLOAT32: "f",
    BOOL: "?",
    UINT64: "Q",
    INT64: "q",
    FLOAT64: "d",
}
F32, F16, Q4_0, Q8_0 = 0, 1, 2, 8
BLOCKS = {F32: (1, 4), F16: (1, 2), Q4_0: (32, 18), Q8_0: (32, 34)}


@dataclass
class Array:
    """An array value: the type of its elements, and the elements."""

    kind: int
    values: list[Any]


@dataclass
class Tensor:
    """A line of the tensor table; the offset follows from the others unless given."""

    name: str | bytes
    shape: tuple[int, ...] = (32,)
    kind: int = F32
    offset: int | None = None


@dataclass
class Number:
    """Where a count, length, type or size stands in a file."""

    name: str
    offset: int
    size: int


@dataclass
class File:
    """A file that is put together.

    Attributes:
        keys: Key, type and value, in order; the same key may come twice.
        tensors: The tensor table.
        order: "<" or ">".
        data: The file, once :meth:`build` has run.
        numbers: Every count, length, type and size in it.
    """

    keys: list[tuple[str | bytes, int, Any]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    order: str = "<"
    version: int = 3
    magic: bytes = b"GGUF"
    alignment: int = 32
    with_data: bool = True
    data: bytearray = field(default_factory=bytearray)
    numbers: list[Number] = field(default_factory=list)
    header_bytes: int = 0

    def build(self) -> bytes:
        """Return the file's bytes."""
        self.data = bytearray(self.magic)
        self.numbers = []
        self._number("version", "I", self.version)
        self._number("tensor count", "Q", len(self.tensors))
        self._number("key count", "Q", len(self.keys))
        for key, kind, value in self.keys:
            self._text(f"key {key!r}", key)
            self._number(f"type of {key!r}", "I", kind)
            self._value(f"{key!r}", kind, value)
        end = self._table()
        self.header_bytes = len(self.data)
        if self.with_data and self.tensors:
            self.data += bytes(-len(self.data) % self.alignment + end)
        return bytes(self.data)

    def write(self, path: Path) -> Path:
        """Write the file and return its path."""
        path.write_bytes(self.build())
        return path

    def _table(self) -> int:
        offset = end = 0
        for tensor in self.tensors:
            self._text(f"name of {tensor.name!r}", tensor.name)
            self._number(f"axes of {tensor.name!r}", "I", len(tensor.shape))
            elements = 1
            for size in tensor.shape:
                self._number(f"axis of {tensor.name!r}", "Q", size)
                elements *= size
            self._number(f"type of tensor {tensor.name!r}", "I", tensor.kind)
            placed = offset if tensor.offset is None else tensor.offset
            self._number(f"offset of {tensor.name!r}", "Q", placed)
            block, size = BLOCKS.get(tensor.kind, (1, 4))
            end = placed + elements // block * size
            offset = -(-end // self.alignment) * self.alignment
        return end

    def _number(self, name: str, code: str, value: int) -> None:
        packed = struct.pack(self.order + code, value)
        self.numbers.append(Number(name, len(self.data), len(packed)))
        self.data += packed

    def _text(self, name: str, text: str | bytes) -> None:
        raw = text.encode() if isinstance(text, str) else text
        self._number(f"length of {name}", "Q", len(raw))
        self.data += raw

    def _value(self, name: str, kind: int, value: Any) -> None:
        if kind == STRING:
            self._text(f"value of {name}", value)
        elif kind == ARRAY:
            self._number(f"element type of {name}", "I", value.kind)
            self._number(f"count of {name}", "Q", len(value.values))
            for element in value.values:
                self._value(name, value.kind, element)
        elif kind in CODES:
            self.data += struct.pack(self.order + CODES[kind], value)
        else:
            self.data += value  # an unknown type: the bytes as they are


def put(data: bytes, number: Number, value: int, order: str = "<") -> bytes:
    """Return a copy of a file with another number in one place."""
    code = {4: "I", 8: "Q"}[number.size]
    changed = bytearray(data)
    struct.pack_into(
        order + code, changed, number.offset, value % (1 << 8 * number.size)
    )
    return bytes(changed)


def small_file(order: str = "<", version: int = 3) -> File:
    """Return a file with a key of every type, arrays, and two tensors."""
    return File(
        keys=[
            ("general.architecture", STRING, "llama"),
            ("llama.context_length", UINT32, 4096),
            *((f"one.of.{kind}", kind, 1) for kind in CODES),
            (
                "tokenizer.ggml.tokens",
                ARRAY,
                Array(STRING, ["a", "", "\u00e9", "z" * 9]),
            ),
            ("tokenizer.ggml.scores", ARRAY, Array(FLOAT32, [0.5, -1.0])),
            ("flags", ARRAY, Array(BOOL, [True, False, True])),
            (
                "nested",
                ARRAY,
                Array(ARRAY, [Array(INT16, [1, -2]), Array(STRING, ["x"])]),
            ),
        ],
        tensors=[
            Tensor("token_embd.weight", (64, 4), Q8_0),
            Tensor("output_norm.weight", (64,)),
        ],
        order=order,
        version=version,
    )
