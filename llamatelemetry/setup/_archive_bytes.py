"""The bytes of an archive, decompressed piece by piece. The only import of zstandard.

However small a file is and whatever it says, what is held in memory is one piece and
the decoder's window: the windows that a file may ask for are limited too.
"""

from __future__ import annotations

import bz2
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from llamatelemetry._units import KIB, MIB, format_memory
from llamatelemetry.exceptions import SetupError, UnsafeArchiveError
from llamatelemetry.setup._archive_rules import damage

__all__ = ["ArchiveKind", "content"]

ArchiveKind = Literal["tar", "zst", "file"]

_PIECE = MIB
"""Bytes handed on at once, at most."""
_READ = 64 * KIB
"""Bytes read at once, at most."""
_MOST_WINDOW = 64 * MIB
"""What a decoder may remember. ``zstd -19``, which ggml-org uses, needs 8 MiB."""
_MOST_XZ_MEMORY = 96 * MIB
"""What an xz decoder may take; ``xz -9`` needs 65 MiB."""
_MOST_STREAMS = 100_000
"""Streams behind each other in one file; pbzip2 makes one of 0.9 MB."""
_MOST_BLOCKS = 2**20
"""Blocks of a zstandard file; one of the usual size holds 128 KiB."""

_ZSTANDARD = 0xFD2FB528
_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
_MOST_FRAME_HEADER = 18
_REPEATED = 1
"""The kind of a block that is one byte, many times."""


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, most: int, /) -> bytes: ...


class _Gzip:
    """zlib's decoder with the manners of those of bz2 and lzma."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, most: int, /) -> bytes:
        given = self._decoder.unconsumed_tail + data
        piece = self._decoder.decompress(given, most)
        self.needs_input = not self._decoder.unconsumed_tail
        return piece


def content(
    raw: BinaryIO, archive: Path, kind: ArchiveKind
) -> tuple[Iterator[bytes], int | None]:
    """Return the bytes of an archive, decompressed, and how many there are.

    Args:
        raw: The archive, opened at its begin.
        archive: Its path, for messages.
        kind: "tar" finds out by the first bytes how it is compressed, if at all.

    Returns:
        Pieces of at most 1 MiB, none of them empty, and their sum in bytes as far as
        the file tells: None if it does not.

    Raises:
        SetupError: It is cut off, damaged, or no such archive; zstandard is missing.
            While the pieces are taken, too.
        UnsafeArchiveError: Its decoder would need too much memory.
    """
    start = raw.read(6)
    raw.seek(0)
    zstandard = kind == "zst" or (kind == "tar" and _is_zstandard(start[:4]))
    if zstandard:
        total = _check_frames(raw, archive)
        return _told(_zstandard_pieces(raw, archive), archive), total
    makers: dict[bytes, Callable[[], _Decoder]] = {
        b"\x1f\x8b": _Gzip,
        b"BZh": bz2.BZ2Decompressor,
        b"\xfd7zXZ\0": _make_xz_decoder,
    }
    for magic, make in makers.items() if kind == "tar" else ():
        if start.startswith(magic):
            return _told(_pieces(raw, make), archive), None
    size = os.fstat(raw.fileno()).st_size
    return _told(iter(lambda: raw.read(_PIECE), b""), archive), size


def _told(pieces: Iterator[bytes], archive: Path) -> Iterator[bytes]:
    """Yield the pieces; what goes wrong on the way is told in this package's errors."""
    try:
        yield from pieces
    except EOFError:
        raise damage(archive, "it ends in the middle") from None
    except lzma.LZMAError as error:
        if "limit" in str(error):  # liblzma's word for it; it has no number
            raise _too_large_window(archive, None, _MOST_XZ_MEMORY) from None
        raise damage(archive, f"it cannot be decompressed ({error})") from error
    except (zlib.error, ValueError) as error:
        raise damage(archive, f"it cannot be decompressed ({error})") from error
    except OSError as error:
        if error.errno is None:  # bz2 has no error of its own
            raise damage(archive, f"it cannot be decompressed ({error})") from error
        raise SetupError(f"{archive}: reading failed ({error.strerror}).") from error


def _too_large_window(archive: Path, asked: int | None, most: int) -> SetupError:
    amount = f"{format_memory(asked)} of memory" if asked else "more memory"
    return UnsafeArchiveError(
        f"{archive}: unpacking would take {amount}, and {format_memory(most)} are "
        "allowed. Compress it anew without --ultra, --long or a large dictionary."
    )


def _make_xz_decoder() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_XZ_MEMORY)


def _pieces(raw: BinaryIO, make: Callable[[], _Decoder]) -> Iterator[bytes]:
    """Yield what the streams of a file hold, one behind the other."""
    held = raw.read(_READ)
    for _ in range(_MOST_STREAMS):
        decoder = make()
        while not decoder.eof:
            if decoder.needs_input and not held:
                held = raw.read(_READ)
                if not held:
                    raise EOFError
            piece = decoder.decompress(held, _PIECE)
            held = b""
            if piece:
                yield piece
        held = decoder.unused_data.lstrip(b"\0")
        while not held:  # zeros may fill a file up, or the space between streams
            more = raw.read(_READ)
            if not more:
                return
            held = more.lstrip(b"\0")
    raise ValueError(f"over {_MOST_STREAMS} streams")


def _is_zstandard(start: bytes) -> bool:
    number = int.from_bytes(start, "little")
    return number == _ZSTANDARD or number in _SKIPPABLE


def _zstandard_pieces(raw: BinaryIO, archive: Path) -> Iterator[bytes]:
    import zstandard  # noqa: PLC0415 - only this kind of archive needs it

    raw.seek(0)
    decoder = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW)
    reader = decoder.stream_reader(raw, read_across_frames=True, closefd=False)
    try:
        while piece := reader.read(_PIECE):
            yield piece
    except zstandard.ZstdError as error:
        raise damage(archive, f"it cannot be decompressed ({error})") from error


def _check_frames(raw: BinaryIO, archive: Path) -> int | None:
    """Walk through the frames of a zstandard file, without their content.

    The library takes an end in the middle of a frame for the end of the file and says
    nothing. https://github.com/facebook/zstd/blob/dev/doc/zstd_compression_format.md

    Returns:
        The bytes in all frames, or None if one of them does not tell.

    Raises:
        SetupError: The file ends elsewhere than a frame, or zstandard is missing.
        UnsafeArchiveError: A frame asks for too large a window.
    """
    try:
        import zstandard  # noqa: PLC0415 - as above
    except ImportError as error:
        raise SetupError(
            f"{archive} is compressed with zstandard, and the Python package for it is "
            "missing. Install it: pip install zstandard"
        ) from error
    end = os.fstat(raw.fileno()).st_size
    place, total, left = 0, 0, _MOST_BLOCKS
    while left and (place < end or not place):
        raw.seek(place)
        head = raw.read(_MOST_FRAME_HEADER)
        if int.from_bytes(head[:4], "little") in _SKIPPABLE:
            place, left = place + 8 + int.from_bytes(head[4:8], "little"), left - 1
            continue
        try:
            frame = zstandard.get_frame_parameters(head)
            place += zstandard.frame_header_size(head)
        except zstandard.ZstdError as error:
            raise damage(archive, f"no zstandard frame at byte {place}") from error
        if frame.window_size > _MOST_WINDOW:
            raise _too_large_window(archive, frame.window_size, _MOST_WINDOW)
        total += frame.content_size  # 2**64 - 1 if it does not tell
        place, left = _blocks_end(raw, place, end, left)
        place += 4 if frame.has_checksum else 0
    if place != end:
        what = "it ends in the middle" if left else "it is cut into too many blocks"
        raise damage(archive, what)
    return None if total >= zstandard.CONTENTSIZE_UNKNOWN else total


def _blocks_end(raw: BinaryIO, place: int, end: int, left: int) -> tuple[int, int]:
    """Return where a frame's blocks end, and how many more are allowed."""
    last = False
    while not last and place < end and left:
        raw.seek(place)
        header = int.from_bytes(raw.read(3), "little")
        last = bool(header & 1)
        # A block that repeats one byte has its length where others have their size.
        place += 3 + (1 if (header >> 1) & 3 == _REPEATED else header >> 3)
        left -= 1
    # An end in the middle becomes a place that is not the file's end.
    return place if last else end + 1, left
