"""Reads the tensor table of a header, and checks where the data should lie."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from operator import attrgetter
from typing import Any

from llamatelemetry._units import format_file_size
from llamatelemetry.gguf._cursor import Cursor
from llamatelemetry.gguf._diagnosis import shown
from llamatelemetry.gguf._values import in_order
from llamatelemetry.gguf.quantization import GGMLType, ggml_type_by_id

LEAST_TENSOR_BYTES = 24  # length of the name 8, axes 4, type 4, offset 8
MOST_TENSORS = 32768
"""Ten times the largest table known. Each costs about 500 bytes of memory."""
MOST_AXES = 4
"""GGML_MAX_DIMS in ggml/include/ggml.h."""
MOST_NAME_BYTES = 63
"""GGML_MAX_NAME in ggml/include/ggml.h is 64, the closing zero byte included."""
MOST_ELEMENTS = 2**63 - 1
"""INT64_MAX, to which ggml/src/gguf.cpp holds the product of all axes."""
DEFAULT_ALIGNMENT = 32
"""GGUF_DEFAULT_ALIGNMENT in ggml/include/gguf.h."""

_EXPECTED_TENSOR_BYTES = 80


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a model, without its data.

    Attributes:
        name: Its name ("blk.0.attn_q.weight").
        shape: Elements along each axis, the fastest first (ggml's ``ne``).
        type: How it is stored ("Q4_K"), a name of
            :data:`~llamatelemetry.gguf.quantization.GGML_TYPES`.
        n_bytes: Bytes of its data.
        offset: Where its data begins, in bytes from the start of its shard's file.
        shard: Which shard holds it, counted from 0.

    Examples:
        >>> from llamatelemetry.gguf import read_header
        >>> tensor = read_header("model.gguf").tensors[0]
        >>> tensor.name, tensor.shape, tensor.type, tensor.n_bytes
        ('token_embd.weight', (192, 1024), 'Q8_0', 208896)
        >>> tensor.n_elements == 192 * 1024
        True
    """

    name: str
    shape: tuple[int, ...]
    type: str
    n_bytes: int
    offset: int
    shard: int = 0

    @property
    def n_elements(self) -> int:
        """The number of weights: the product of the shape."""
        return prod(self.shape)


def expected_table_bytes(count: int) -> int:
    """Return the bytes of a table of this many tensors, as an estimate."""
    return count * _EXPECTED_TENSOR_BYTES


def read_tensors(
    cursor: Cursor, count: int, metadata: dict[str, Any], shard: int
) -> tuple[list[TensorInfo], int]:
    """Read the tensor table.

    Args:
        cursor: Stands before the first tensor.
        count: How many tensors there are.
        metadata: The keys and values that stood before, for the alignment.
        shard: The number of this file, counted from 0.

    Returns:
        The tensors in the file's order, and the alignment in bytes.

    Raises:
        GGUFError: The table is damaged, or breaks a rule of llama.cpp's.
    """
    alignment = _alignment(cursor, metadata)
    tails = [in_order(cursor.order, f"{axes}QIQ") for axes in range(MOST_AXES + 1)]
    entries = deque(
        _read_entry(cursor, f"tensor {index + 1} of {count}", tails, alignment)
        for index in range(count)
    )
    start = -(-cursor.position // alignment) * alignment
    tensors = []
    while entries:  # each goes as its tensor comes: both lists whole are much memory
        name, shape, kind, n_bytes, offset = entries.popleft()
        tensors.append(TensorInfo(name, shape, kind, n_bytes, start + offset, shard))
    _refuse_twins(cursor, (tensor.name for tensor in tensors))
    _refuse_overlaps(cursor, tensors)
    return tensors, alignment


def _alignment(cursor: Cursor, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or value < 1 or value & (value - 1):
        raise cursor.error(
            f"'general.alignment' is {shown(value)}, which is no power of two. "
            "Convert the model again."
        )
    return value


def _read_entry(
    cursor: Cursor, what: str, tails: list[Any], alignment: int
) -> tuple[str, tuple[int, ...], str, int, int]:
    """Read one line of the table; the offset is counted from the data's start."""
    start = cursor.position
    name = cursor.read_name(f"the name of {what}", MOST_NAME_BYTES)
    axes = cursor.read_uint32(f"the number of axes of {name!r}")
    if axes > MOST_AXES:
        raise cursor.error(
            f"tensor {name!r} has {axes:,} axes; ggml knows at most {MOST_AXES}. The "
            "file is damaged: fetch it again.",
            start,
        )
    tail = tails[axes]
    cursor.ensure(cursor.position + tail.size, f"the entry of tensor {name!r}")
    *shape, number, offset = tail.unpack_from(cursor.buffer, cursor.position)
    kind = _checked_type(cursor, name, number, start)
    n_bytes = _checked_bytes(cursor, name, shape, kind, start)
    if offset % alignment:
        raise cursor.error(
            f"the data of tensor {name!r} is said to lie at {offset:,}, which is no "
            f"multiple of the alignment {alignment}. Convert the model again.",
            start,
        )
    cursor.position += tail.size
    cursor.behind = max(cursor.behind - _EXPECTED_TENSOR_BYTES, 0)
    return name, tuple(shape), kind.name, n_bytes, offset


def _checked_type(cursor: Cursor, name: str, number: int, at: int) -> GGMLType:
    kind = ggml_type_by_id(number)
    if kind is None:
        raise cursor.error(
            f"tensor {name!r} has type {number:,}, which ggml does not have. The file "
            "is damaged, or newer than this reader.",
            at,
        )
    if kind.removed:
        raise cursor.error(
            f"tensor {name!r} has type {kind.name}, which llama.cpp no longer reads. "
            f"Get the model in {kind.replaced_by}.",
            at,
        )
    return kind


def _checked_bytes(
    cursor: Cursor, name: str, shape: list[int], kind: GGMLType, at: int
) -> int:
    """Return the bytes of a tensor's data."""
    # Each axis by itself too: with an axis of 0 the product says nothing of the rest.
    elements = prod(shape)
    if max(elements, *shape, 0) > MOST_ELEMENTS:
        raise cursor.error(
            f"tensor {name!r} of shape {tuple(shape)} has more elements than ggml can "
            "count (2^63 - 1). The file is damaged: fetch it again.",
            at,
        )
    row = shape[0] if shape else 1
    if row % kind.block_size:
        raise cursor.error(
            f"tensor {name!r} has rows of {row:,} elements, but {kind.name} stores "
            f"blocks of {kind.block_size}. Convert the model again.",
            at,
        )
    return elements // kind.block_size * kind.type_bytes


def _refuse_twins(cursor: Cursor, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise cursor.error(
                f"tensor {name!r} stands in the table twice. llama.cpp refuses such a "
                "file; convert the model again."
            )
        seen.add(name)


def _refuse_overlaps(cursor: Cursor, tensors: list[TensorInfo]) -> None:
    before: TensorInfo | None = None
    for tensor in sorted(tensors, key=attrgetter("offset", "n_bytes")):
        if before is not None and before.offset + before.n_bytes > tensor.offset:
            raise cursor.error(
                f"the data of {before.name!r} reaches to byte "
                f"{before.offset + before.n_bytes:,}, but that of {tensor.name!r} "
                f"begins at {tensor.offset:,}. The table is damaged: fetch the file "
                "again.",
                tensor.offset,
            )
        before = tensor


def check_data(cursor: Cursor, tensors: list[TensorInfo]) -> None:
    """Refuse a file that ends before its tensors do.

    Raises:
        GGUFError: A tensor's data does not lie within the file.
    """
    size = cursor.source.size
    if size is None or not tensors:
        return
    last = max(tensors, key=lambda tensor: tensor.offset + tensor.n_bytes)
    end = last.offset + last.n_bytes
    if end > size:
        raise cursor.error(
            f"the file has {size:,} bytes and ends {format_file_size(end - size)} "
            f"before the end of tensor {last.name!r} (byte {end:,}): the download is "
            "incomplete. Fetch it again.",
            size,
        )
