"""The types of a header's values: how many bytes they take, and how they are read.

The numbers are those of ``enum gguf_type`` in llama.cpp's ``ggml/include/gguf.h``.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Literal

ByteOrder = Literal["little", "big"]

STRING = 8
ARRAY = 9

MOST_BRIEF = 200
"""Characters of a string where it is not wanted whole."""


@dataclass(frozen=True, slots=True)
class NumberType:
    """A value of a fixed number of bytes.

    Attributes:
        name: As the GGUF specification names it, in lower case.
        code: The letter for it in :mod:`struct` and :mod:`array`.
        n_bytes: Bytes one value takes.
    """

    name: str
    code: str
    n_bytes: int


NUMBER_TYPES = {
    0: NumberType("uint8", "B", 1),
    1: NumberType("int8", "b", 1),
    2: NumberType("uint16", "H", 2),
    3: NumberType("int16", "h", 2),
    4: NumberType("uint32", "I", 4),
    5: NumberType("int32", "i", 4),
    6: NumberType("float32", "f", 4),
    7: NumberType("bool", "?", 1),
    10: NumberType("uint64", "Q", 8),
    11: NumberType("int64", "q", 8),
    12: NumberType("float64", "d", 8),
}


def in_order(order: ByteOrder, code: str) -> Struct:
    """Return how values are packed in a file of this byte order."""
    return Struct(("<" if order == "little" else ">") + code)


def decode_text(data: bytes | bytearray) -> str:
    """Return a string of a header; bytes that are no UTF-8 become U+FFFD.

    llama.cpp keeps strings as bytes and some models hold broken ones. U+FFFD can be
    printed, sent and shown anywhere, which a surrogate escape cannot.
    """
    return data.decode("utf-8", "replace")


def decode_beginning(data: bytes | bytearray | memoryview) -> str:
    """Return the first characters of a string of a header, and decode no more."""
    # A character has four bytes at most, so none of those kept is cut in two.
    text = decode_text(bytes(data[: 4 * MOST_BRIEF + 4]))
    return text if len(text) <= MOST_BRIEF else f"{text[:MOST_BRIEF]}…"
