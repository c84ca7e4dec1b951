"""Reads what stands before the weights of a GGUF file: keys, values, tensor table.

Versions 2 and 3 of the format, in both byte orders, from a file, memory, or a server
(only as many bytes as the header has). Nothing in a file is believed before it was
compared with the file's own size and with the limits stated in this package, so that a
hostile file costs neither memory nor time.

Strings that are no UTF-8 come with U+FFFD in place of the broken bytes; keys and names
of tensors must be UTF-8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from llamatelemetry._units import printable
from llamatelemetry.exceptions import GGUFError, ModelError
from llamatelemetry.gguf._cursor import MOST_HEADER_BYTES, Cursor
from llamatelemetry.gguf._diagnosis import describe_foreign_file
from llamatelemetry.gguf._metadata import (
    LEAST_KEY_BYTES,
    MOST_KEYS,
    expected_key_bytes,
    read_metadata,
)
from llamatelemetry.gguf._shards import (
    ShardName,
    check_shard,
    check_sum,
    parse_shard_name,
    shard_count,
)
from llamatelemetry.gguf._source import GGUFSource, Source, open_source
from llamatelemetry.gguf._tensors import (
    DEFAULT_ALIGNMENT,
    LEAST_TENSOR_BYTES,
    MOST_TENSORS,
    TensorInfo,
    check_data,
    expected_table_bytes,
    read_tensors,
)
from llamatelemetry.gguf._values import ByteOrder
from llamatelemetry.gguf.arrays import GGUFArray

__all__ = [
    "MOST_HEADER_BYTES",
    "GGUFArray",
    "GGUFHeader",
    "TensorInfo",
    "read_header",
]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_PRELUDE_BYTES = 24  # the magic, the version, the numbers of tensors and keys
_LOOKED_AT = 64


@dataclass(frozen=True, repr=False)
class GGUFHeader:
    """What stands before the weights of a model; its shards are one model.

    Attributes:
        source: The file or URL it was read from: the first one of several.
        version: The format's version, 2 or 3.
        byte_order: "little" or "big".
        alignment: What offsets of tensors are multiples of, in bytes.
        metadata: The values by key, in the file's order: numbers, truth values,
            strings, and :class:`GGUFArray`.
        tensors: The tensors, in the order of the files.
        header_bytes: Bytes from the start to the end of the tensor table, or to where
            reading stopped; over all shards.
        file_bytes: Bytes of all files, or None if a server does not tell.
        shards: The files or URLs of all shards; one for a model in one file.
        complete: Whether the header was read to its end, and not stopped before a key.

    Examples:
        >>> from llamatelemetry.gguf import read_header
        >>> header = read_header("model.gguf")
        >>> header.version, header.byte_order, len(header.tensors)
        (3, 'little', 38)
        >>> header.metadata["general.architecture"]
        'llama'
    """

    source: str
    version: int
    byte_order: ByteOrder
    alignment: int
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    header_bytes: int
    file_bytes: int | None
    shards: tuple[str, ...]
    complete: bool

    def tensor(self, name: str) -> TensorInfo | None:
        """Return the tensor of this name, or None.

        Args:
            name: The tensor's name, ``token_embd.weight``.

        Examples:
            >>> from llamatelemetry.gguf import read_header
            >>> read_header("model.gguf").tensor("token_embd.weight").shape
            (192, 1024)
        """
        return self._tensor_by_name.get(name)

    @cached_property
    def _tensor_by_name(self) -> dict[str, TensorInfo]:
        return {tensor.name: tensor for tensor in self.tensors}

    def __repr__(self) -> str:
        return (
            f"<GGUFHeader {printable(self.source)}: version {self.version}, "
            f"{len(self.metadata)} keys, {len(self.tensors)} tensors, "
            f"{len(self.shards)} file{'s' * (len(self.shards) != 1)}>"
        )


def read_header(
    source: GGUFSource,
    *,
    stop_before: str | None = None,
    shards: bool = True,
    check_data: bool = True,
) -> GGUFHeader:
    """Read a model's header.

    Args:
        source: A path, bytes, an open binary file (read from its beginning, left where
            it was), an http(s) URL, or a file on the Hub as
            ``owner/repository:file.gguf`` or
            ``owner/repository@revision:file.gguf``. An existing path wins.
        stop_before: Stop before the first key that begins with this. "tokenizer."
            gives what the model is without its vocabulary, which makes up most of a
            header; there are no tensors then, and ``complete`` is false.
        shards: Read a model in several files as one, whichever of them is given. False
            reads the one file alone.
        check_data: Refuse files that end before their tensors do. False reads the
            beginning of a file, as long as the header is in it.

    Returns:
        The header.

    Raises:
        GGUFError: The bytes are no GGUF file, damaged, incomplete, or beyond a limit.
        ModelError: The file is missing or cannot be read, or a shard is missing.
        DownloadError: A remote file could not be read.

    Examples:
        >>> from llamatelemetry.gguf import read_header
        >>> read_header("model.gguf")
        <GGUFHeader model.gguf: version 3, 29 keys, 38 tensors, 1 file>
        >>> beginning = read_header("model.gguf", stop_before="tokenizer.")
        >>> beginning.complete, beginning.metadata["llama.context_length"]
        (False, 1024)
    """
    opened = open_source(source)
    try:
        name = parse_shard_name(opened.file_name) if shards else None
        if name is None or name.number == 1:
            first = _read_one(opened, (), stop_before, check_data)
        else:
            first = _read_shard(opened, name, (), stop_before, check_data)
        return _read_shards(opened, first, name, check_data) if shards else first
    finally:
        if opened is not source:
            opened.close()


def _read_one(
    source: Source,
    before: Sequence[GGUFHeader],
    stop_before: str | None,
    check_data: bool,
) -> GGUFHeader:
    """Read one file as a model of its own, within what the shards before it left."""
    cursor = Cursor(source, sum(part.header_bytes for part in before))
    version = _read_version(cursor)
    tensor_count = cursor.read_count(
        "tensors beside those of the shards before it" if before else "tensors",
        LEAST_TENSOR_BYTES,
        MOST_TENSORS - sum(len(part.tensors) for part in before),
    )
    key_count = cursor.read_count("keys", LEAST_KEY_BYTES, MOST_KEYS)
    cursor.behind = expected_key_bytes(key_count)
    if stop_before is None:
        cursor.behind += expected_table_bytes(tensor_count)
    metadata, complete = read_metadata(cursor, key_count, stop_before)
    tensors: list[TensorInfo] = []
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if complete:
        tensors, alignment = read_tensors(
            cursor, tensor_count, metadata, shard=len(before)
        )
        if check_data:
            _check_data(cursor, tensors)
    return GGUFHeader(
        source=source.name,
        version=version,
        byte_order=cursor.order,
        alignment=alignment,
        metadata=metadata,
        tensors=tuple(tensors),
        header_bytes=cursor.position,
        file_bytes=source.size,
        shards=(source.name,),
        complete=complete,
    )


_check_data = check_data  # read_header's argument has the better right to the name


def _read_version(cursor: Cursor) -> int:
    """Read the magic and the version, and learn the byte order from it."""
    source = cursor.source
    beginning = source.fetch(0, _LOOKED_AT, _LOOKED_AT)
    cursor.buffer += beginning
    if not beginning.startswith(_MAGIC):
        raise cursor.error(describe_foreign_file(beginning[:_LOOKED_AT]))
    cursor.position = len(_MAGIC)
    cursor.ensure(_PRELUDE_BYTES, "the numbers of tensors and keys")
    # A small number in the other byte order has nothing in its lower half.
    if not cursor.uint32(cursor.buffer, cursor.position)[0] & 0xFFFF:
        cursor.set_order("big")
    version = cursor.read_uint32("the version")
    if version not in _VERSIONS:
        if version == 1:
            remedy = "llama.cpp no longer reads that version of 2023; convert it again."
        else:
            remedy = "It is damaged, or newer than this reader."
        raise cursor.error(
            f"has version {version:,} of GGUF; 2 and 3 are read. {remedy}", 4
        )
    return version


def _read_shard(
    source: Source,
    name: ShardName,
    before: Sequence[GGUFHeader],
    stop_before: str | None,
    check_data: bool,
) -> GGUFHeader:
    """Read the shard that follows these; say which one is missing."""
    number = len(before) + 1
    wanted = name.of(number)
    try:
        beside = source.sibling(wanted)
        try:
            return _read_one(beside, before, stop_before, check_data)
        finally:
            beside.close()
    except GGUFError:
        raise
    except ModelError as error:
        raise ModelError(
            f"{source.name}: shard {number} of {name.count} is missing: "
            f"{printable(wanted)} cannot be read. Put all shards in one place. "
            f"({error})"
        ) from error


def _read_shards(
    source: Source, first: GGUFHeader, name: ShardName | None, check_data: bool
) -> GGUFHeader:
    """Put the other shards' tensors behind those of the first."""
    count = shard_count(first.metadata, first.source)
    if not first.complete or count == (name.count if name else 1) == 1:
        return first
    if name is None or (count != name.count and (count > 1 or name.number > 1)):
        raise GGUFError(
            f"{first.source}: says it is one of {count} shards, but its name does not. "
            f"Name the shards <model>-00001-of-{count:05}.gguf and so on, as they were "
            "when they were made; read_header(..., shards=False) reads one alone.",
            path=first.source,
        )
    if count == 1:
        return first  # llama.cpp too believes the header, not the name
    parts = [first]
    check_shard(first.metadata, first.source, number=0, count=count)
    while len(parts) < count:
        parts.append(_read_further(source, name, parts, check_data))
    return _joined(parts)


def _read_further(
    source: Source, name: ShardName, before: Sequence[GGUFHeader], check_data: bool
) -> GGUFHeader:
    """Read a shard behind the first, without its metadata once that is checked.

    Its metadata tells nothing new, and would keep all of its header in memory.
    """
    part = _read_shard(source, name, before, None, check_data)
    check_shard(part.metadata, part.source, number=len(before), count=name.count)
    return replace(part, metadata={})


def _joined(parts: list[GGUFHeader]) -> GGUFHeader:
    first = parts[0]
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    sources = tuple(part.source for part in parts)
    check_sum(first.metadata, [tensor.name for tensor in tensors], sources)
    sizes = [part.file_bytes for part in parts if part.file_bytes is not None]
    return GGUFHeader(
        source=first.source,
        version=first.version,
        byte_order=first.byte_order,
        alignment=first.alignment,
        metadata=first.metadata,
        tensors=tensors,
        header_bytes=sum(part.header_bytes for part in parts),
        file_bytes=sum(sizes) if len(sizes) == len(parts) else None,
        shards=sources,
        complete=True,
    )
