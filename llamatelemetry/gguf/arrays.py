"""Arrays of a header: counted at once, decoded when somebody looks.

A vocabulary of 250,000 tokens is 10 MB of header that most callers never look at.
"""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from itertools import repeat
from struct import Struct
from typing import Any, overload

from llamatelemetry.gguf._values import (
    ByteOrder,
    NumberType,
    decode_beginning,
    decode_text,
    in_order,
)

__all__ = ["GGUFArray"]

_SHOWN = 3


class GGUFArray(Sequence[Any]):
    """An array of a header, as a read-only sequence.

    The length is known at once. An element is decoded when it is asked for, a slice
    gives a list, and :meth:`tolist` gives everything. It equals any sequence of equal
    elements.

    Args:
        element_type: What it holds.
        count: How many elements.

    Attributes:
        element_type: "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32",
            "bool", "uint64", "int64", "float64", "string" or "array".

    Examples:
        >>> from llamatelemetry.gguf import read_header
        >>> tokens = read_header("model.gguf").metadata["tokenizer.ggml.tokens"]
        >>> len(tokens), tokens.element_type
        (1024, 'string')
        >>> tokens[2], tokens[:2]
        ('<|im_end|>', ['<|endoftext|>', '<|im_start|>'])
    """

    __slots__ = ("_count", "element_type")

    def __init__(self, element_type: str, count: int) -> None:
        self.element_type = element_type
        self._count = count

    @abstractmethod
    def _decode(self, start: int, stop: int) -> list[Any]:
        """Return the elements of a range that lies within the array."""

    def tolist(self) -> list[Any]:
        """Return every element; arrays within the array become lists too."""
        return self._decode(0, self._count)

    def brief(self, index: int) -> Any:
        """Return an element; of a long string its beginning only.

        Args:
            index: Its place, counted from 0.
        """
        return self[index]

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            wanted = range(self._count)[index]
            if not wanted:
                return []
            first, last = min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1])
            return self._decode(first, last + 1)[:: wanted.step]
        try:
            position = range(self._count)[index]
        except IndexError:
            raise IndexError(
                f"index {index} of an array of {self._count:,} elements"
            ) from None
        return self._decode(position, position + 1)[0]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._decode(0, self._count))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, GGUFArray):
            return self.tolist() == other.tolist()
        if isinstance(other, Sequence) and not isinstance(other, (str, bytes)):
            return len(other) == self._count and self.tolist() == list(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it equals lists, which have none

    def __repr__(self) -> str:
        first = range(min(self._count, _SHOWN))
        shown = ", ".join(repr(self.brief(index)) for index in first)
        rest = ", ..." if self._count > _SHOWN else ""
        return f"<GGUFArray: {self._count:,} of {self.element_type} [{shown}{rest}]>"


class NumberArray(GGUFArray):
    """Numbers or truth values, which stand one after the other."""

    __slots__ = ("_buffer", "_code", "_n_bytes", "_order", "_start")

    def __init__(
        self,
        kind: NumberType,
        order: ByteOrder,
        buffer: bytearray,
        start: int,
        count: int,
    ) -> None:
        super().__init__(kind.name, count)
        self._code = kind.code
        self._n_bytes = kind.n_bytes
        self._order = order
        self._buffer = buffer
        self._start = start

    def _decode(self, start: int, stop: int) -> list[Any]:
        begin = self._start + start * self._n_bytes
        data = self._buffer[begin : self._start + stop * self._n_bytes]
        if self._code == "?":
            return list(map(bool, data))
        return list(in_order(self._order, f"{stop - start}{self._code}").unpack(data))


class StringArray(GGUFArray):
    """Strings, each behind its length in bytes."""

    __slots__ = ("_buffer", "_end", "_order", "_start", "_starts")

    def __init__(
        self, order: ByteOrder, buffer: bytearray, start: int, end: int, count: int
    ) -> None:
        super().__init__("string", count)
        self._order = order  # no Struct, which could be neither copied nor pickled
        self._buffer = buffer
        self._start = start
        self._end = end
        self._starts: array[int] | None = None

    def _decode(self, start: int, stop: int) -> list[Any]:
        position = self._find(start)
        end = self._end if stop == self._count else self._find(stop)
        # Slices of bytes are decoded faster than slices of a bytearray.
        data = bytes(memoryview(self._buffer)[position:end])
        length = in_order(self._order, "Q")
        try:
            return _decode_strings(data, stop - start, length)
        except UnicodeDecodeError:
            return _decode_broken_strings(data, stop - start, length)

    def brief(self, index: int) -> str:
        """Return a string, counted from 0; of a long one its beginning only."""
        position = self._find(index)
        (size,) = in_order(self._order, "Q").unpack_from(self._buffer, position)
        start = position + 8
        return decode_beginning(memoryview(self._buffer)[start : start + size])

    def _find(self, index: int) -> int:
        """Return where a string's length stands; counts through once."""
        if index == 0:
            return self._start
        if self._starts is None:
            length = in_order(self._order, "Q")
            self._starts = _string_starts(
                self._buffer, self._start, self._count, length
            )
        return self._start + self._starts[index]


def _decode_strings(data: bytes, count: int, length: Struct) -> list[str]:
    """Decode strings that are valid UTF-8, as nearly all are; as fast as can be."""
    unpack = length.unpack_from
    strings: list[str] = []
    append = strings.append
    start = 0
    for _ in repeat(None, count):
        (size,) = unpack(data, start)
        start += 8
        end = start + size
        append(data[start:end].decode())
        start = end
    return strings


def _decode_broken_strings(data: bytes, count: int, length: Struct) -> list[str]:
    strings: list[str] = []
    start = 0
    for _ in range(count):
        end = start + 8 + length.unpack_from(data, start)[0]
        strings.append(decode_text(data[start + 8 : end]))
        start = end
    return strings


def _string_starts(
    buffer: bytearray, start: int, count: int, length: Struct
) -> array[int]:
    """Return where each string stands, from the first one on."""
    unpack = length.unpack_from
    starts = array("I")  # a header is far below 4 GiB
    append = starts.append
    position = start
    for _ in repeat(None, count):
        append(position - start)
        position += 8 + unpack(buffer, position)[0]
    return starts


class NestedArray(GGUFArray):
    """Arrays within an array."""

    __slots__ = ("_arrays",)

    def __init__(self, arrays: Sequence[GGUFArray]) -> None:
        super().__init__("array", len(arrays))
        self._arrays = tuple(arrays)

    def _decode(self, start: int, stop: int) -> list[Any]:
        return list(self._arrays[start:stop])

    def tolist(self) -> list[Any]:
        """Return every element as lists of lists."""
        return [inner.tolist() for inner in self._arrays]
