"""Reads the keys and values of a header."""

from __future__ import annotations

import struct
from itertools import repeat
from operator import length_hint
from typing import Any

from llamatelemetry._units import KIB
from llamatelemetry.gguf._cursor import MOST_KEY_BYTES, Cursor
from llamatelemetry.gguf._diagnosis import shown
from llamatelemetry.gguf._values import ARRAY, NUMBER_TYPES, STRING, in_order
from llamatelemetry.gguf.arrays import (
    GGUFArray,
    NestedArray,
    NumberArray,
    StringArray,
)

LEAST_KEY_BYTES = 14  # length 8, one letter, type 4, the smallest value 1
MOST_KEYS = 16384
"""Known models have fewer than 100 keys. Each costs up to 400 bytes of memory."""
MOST_ARRAY_DEPTH = 4
"""Arrays in arrays. The specification allows them, llama.cpp and models have none."""
MOST_STRINGS = 2**21
"""Strings in all arrays of one header. gemma-4 has most, 777,050 tokens and merges.

Each is stepped over, which takes about 0.1 µs.
"""
MOST_INNER_ARRAYS = 4096
"""Arrays in arrays of one header, in sum; no known model has any."""

_EXPECTED_KEY_BYTES = 48
_TYPE_NAMES = {number: kind.name for number, kind in NUMBER_TYPES.items()}
_TYPE_NAMES |= {STRING: "string", ARRAY: "array"}


def read_metadata(
    cursor: Cursor, count: int, stop_before: str | None
) -> tuple[dict[str, Any], bool]:
    """Read the keys and values.

    Args:
        cursor: Stands before the first key.
        count: How many keys there are.
        stop_before: Stop before the first key that begins with this, if given.

    Returns:
        The values by key, in the file's order; and whether all were read.

    Raises:
        GGUFError: A key is empty, stands there twice or is no UTF-8, a type is
            unknown, or a length or count goes beyond the file or a limit.
    """
    reader = _ValueReader(cursor)
    values: dict[str, Any] = {}
    for index in range(count):
        cursor.behind = max(cursor.behind - _EXPECTED_KEY_BYTES, 0)
        start = cursor.position
        key = cursor.read_name(f"key {index + 1} of {count}", MOST_KEY_BYTES)
        if not key:
            raise cursor.error(
                f"key {index + 1} of {count} is empty: the file is damaged. Fetch it "
                "again.",
                start,
            )
        if key in values:
            raise cursor.error(
                f"the key {shown(key)} stands in the header twice. llama.cpp refuses "
                "such a file; convert the model again.",
                start,
            )
        if stop_before is not None and key.startswith(stop_before):
            cursor.position = start
            return values, False
        values[key] = reader.read(shown(key))
    return values, True


def expected_key_bytes(count: int) -> int:
    """Return the bytes that this many keys with single values take, as an estimate."""
    return count * _EXPECTED_KEY_BYTES


def _expected_end(start: int, position: int, done: int, todo: int) -> int:
    """Return where an array of strings will end, as far as that may be trusted.

    The first strings of a vocabulary are not like the rest, so an estimate reaches
    only so much farther than what it is made from. A quarter of the header, or half a
    MiB, is what a remote header may cost too much, so that much is always asked for.
    """
    walked = position - start
    rest = walked * todo // done if done else 16 * todo
    return position + min(rest, max(walked * 16, position // 4, 512 * KIB))


class _ValueReader:
    """Reads values of any type; counts what could take long."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._inner_arrays = 0
        self._strings = 0
        self._numbers = {
            number: in_order(cursor.order, kind.code).unpack_from
            for number, kind in NUMBER_TYPES.items()
        }

    def read(self, key: str) -> Any:
        """Read the type and the value behind a key, which is as messages show it."""
        cursor = self._cursor
        at = cursor.position
        number = cursor.read_uint32(f"the type of {key}")
        if number == STRING:
            return cursor.read_text(f"the value of {key}")
        if number == ARRAY:
            return self._read_array(key, 1)
        kind = NUMBER_TYPES.get(number)
        if kind is None:
            raise self._unknown_type(key, number, at)
        end = cursor.position + kind.n_bytes
        cursor.ensure(end, f"the value of {key}")
        value = self._numbers[number](cursor.buffer, cursor.position)[0]
        cursor.position = end
        return value

    def _unknown_type(self, key: str, number: int, at: int) -> Exception:
        known = ", ".join(f"{one} {_TYPE_NAMES[one]}" for one in sorted(_TYPE_NAMES))
        return self._cursor.error(
            f"the value of {key} has type {number}; known are {known}. The file is "
            "damaged, or newer than this reader.",
            at,
        )

    def _read_array(self, key: str, depth: int) -> GGUFArray:
        cursor = self._cursor
        at = cursor.position
        number = cursor.read_uint32(f"the element type of {key}")
        if number == ARRAY:
            return self._read_nested(key, depth)
        if number == STRING:
            left = MOST_STRINGS - self._strings
            count = cursor.read_count(f"strings of {key}", 8, left)
            self._strings += count
            return self._read_strings(key, count)
        kind = NUMBER_TYPES.get(number)
        if kind is None:
            raise self._unknown_type(key, number, at)
        count = cursor.read_count(f"elements of {key}", kind.n_bytes)
        start = cursor.position
        end = start + count * kind.n_bytes
        cursor.ensure(end, f"the {count:,} elements of {key}")
        cursor.position = end
        return NumberArray(kind, cursor.order, cursor.buffer, start, count)

    def _read_nested(self, key: str, depth: int) -> GGUFArray:
        cursor = self._cursor
        at = cursor.position
        if depth == MOST_ARRAY_DEPTH:
            raise cursor.error(
                f"{key} has arrays in arrays more than {MOST_ARRAY_DEPTH} deep; "
                "no known model has any. The file is damaged.",
                at,
            )
        # The smallest array is its element type and its count.
        count = cursor.read_count(f"arrays of {key}", 12)
        self._inner_arrays += count
        if self._inner_arrays > MOST_INNER_ARRAYS:
            raise cursor.error(
                f"{key} brings the arrays within arrays to {self._inner_arrays:,}; "
                f"at most {MOST_INNER_ARRAYS:,} are read. No known model has any.",
                at,
            )
        return NestedArray([self._read_array(key, depth + 1) for _ in range(count)])

    def _read_strings(self, key: str, count: int) -> GGUFArray:
        """Step over strings, as fast as can be, and keep where they are."""
        cursor = self._cursor
        buffer = cursor.buffer
        start = position = cursor.position
        unpack = cursor.uint64
        left = repeat(None, count)
        while True:
            try:
                for _ in left:
                    position += 8 + unpack(buffer, position)[0]
            except (struct.error, OverflowError):
                # The buffer ends before this string's length does.
                todo = length_hint(left) + 1
            else:
                todo = 0
            done = count - todo
            what = f"string {done + bool(todo):,} of the {count:,} of {key}"
            end = position + (8 if todo else 0)
            if end > len(buffer):
                self._check_reach(key, start, position)
                cursor.ensure(end, what, _expected_end(start, position, done, todo))
            if not todo:
                break
            left = repeat(None, todo)
        cursor.position = position
        return StringArray(cursor.order, buffer, start, position, count)

    def _check_reach(self, key: str, start: int, position: int) -> None:
        """Name the string whose length leads beyond the file, if there is one."""
        cursor = self._cursor
        size = cursor.source.size
        if size is None or position <= size:
            return
        index = 0
        while True:
            length: int = cursor.uint64(cursor.buffer, start)[0]
            if start + 8 + length == position:
                break
            start += 8 + length
            index += 1
        raise cursor.error(
            f"string {index + 1:,} of {key} is {length:,} bytes long, but only "
            f"{size - start - 8:,} are left of the file: the download is incomplete or "
            "the file is damaged. Fetch it again.",
            start,
        )
