"""Vectors in a .npy file, each written to its own place: the one door to numpy.

The file is what ``numpy.load`` opens, whatever is missing: a place without a vector
holds NaN. It is written to by system calls, so that a full disk is an error and not the
end of the process, which it would be for memory that is mapped.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llamatelemetry.exceptions import ConfigurationError, SetupError

__all__ = ["VectorFile", "digest_of", "open_vectors"]

_HEADER_BYTES = 128  # what numpy writes; it leaves room in it for more rows
_FILL_BYTES = 1 << 20
_VALUE_BYTES = 4


class VectorFile:
    """Vectors of one length, one for each row; written from several threads.

    Args:
        path: The file. What it holds is kept, and made longer if there are more rows.
        rows: How many rows there are.

    Attributes:
        path: The file.
        dimensions: Numbers in a vector; None before the first.

    Raises:
        ConfigurationError: It is another kind of file, or has more rows.
        SetupError: numpy is missing.
        OSError: It cannot be written, or the disk is full.
    """

    def __init__(self, path: Path, rows: int) -> None:
        _numpy()
        self.path = path
        self.dimensions: int | None = None
        self._rows = rows
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if os.fstat(self._descriptor).st_size >= _HEADER_BYTES:
                self._go_on()
        except BaseException:
            os.close(self._descriptor)
            raise

    def _go_on(self) -> None:
        dimensions, rows = _shape_in(os.pread(self._descriptor, _HEADER_BYTES, 0))
        if dimensions is None:
            raise ConfigurationError(
                f"out={str(self.path)!r} is not a file of vectors that a batch has "
                "written, and was left as it is; name another file"
            )
        if rows > self._rows:
            raise ConfigurationError(
                f"out={str(self.path)!r} has vectors of {rows:,} rows, and these are "
                f"{self._rows:,}; name another file, with this one as resume"
            )
        self._lay_out(dimensions)

    def needed(self, dimensions: int) -> int:
        """Return the bytes that the file is yet to grow by."""
        whole = _HEADER_BYTES + self._rows * dimensions * _VALUE_BYTES
        return max(0, whole - os.fstat(self._descriptor).st_size)

    def begin(self, dimensions: int) -> None:
        """Make the file, now that the length of the vectors is known.

        Raises:
            OSError: The disk is full; the file is empty again.
        """
        try:
            self._lay_out(dimensions)
        except OSError:
            os.ftruncate(self._descriptor, 0)
            raise

    def _lay_out(self, dimensions: int) -> None:
        """Write what is missing: rows without a vector, then how many there are."""
        whole = _HEADER_BYTES + self._rows * dimensions * _VALUE_BYTES
        header = _header(self._rows, dimensions)
        size = os.fstat(self._descriptor).st_size
        if size < _HEADER_BYTES:
            self._write(header, 0)
            size = _HEADER_BYTES
        size -= (size - _HEADER_BYTES) % _VALUE_BYTES  # a killed process stopped here
        nothing = _not_a_number(_FILL_BYTES // _VALUE_BYTES)
        for offset in range(size, whole, _FILL_BYTES):
            self._write(nothing[: whole - offset], offset)
        self._write(header, 0)
        self.dimensions = dimensions

    def put(self, row: int, vector: Sequence[float]) -> str:
        """Write a row's vector; return its digest."""
        data = _numpy().asarray(vector, "<f4").tobytes()
        self._write(data, self._offset(row))
        return digest_of(data)

    def take(self, row: int) -> bytes:
        """Return the bytes of a row's vector; none if there are no vectors yet."""
        if self.dimensions is None:
            return b""
        return os.pread(
            self._descriptor, self.dimensions * _VALUE_BYTES, self._offset(row)
        )

    def clear(self, row: int) -> None:
        """Take a row's vector away, if it has one."""
        if self.dimensions is not None:
            nothing = _not_a_number(self.dimensions)
            if self.take(row) != nothing:
                self._write(nothing, self._offset(row))

    def sync(self) -> None:
        """Bring all that was written to the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Bring all to the disk; harmless twice."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _offset(self, row: int) -> int:
        return _HEADER_BYTES + row * (self.dimensions or 0) * _VALUE_BYTES

    def _write(self, data: bytes, offset: int) -> None:
        rest = memoryview(data)
        while rest:  # once, but where the disk becomes full in the middle
            written = os.pwrite(self._descriptor, rest, offset)
            rest, offset = rest[written:], offset + written


def digest_of(data: bytes) -> str:
    """Return 16 hex digits that stand for a vector's bytes."""
    return blake2b(data, digest_size=8).hexdigest()


def open_vectors(path: Path) -> Any:
    """Return the vectors of a file as an array that stays on the disk.

    Raises:
        SetupError: numpy is missing.
        OSError: The file is gone.
    """
    return _numpy().load(path, mmap_mode="r")


def _shape_in(header: bytes) -> tuple[int | None, int]:
    """Return the length and the number of vectors; None for another kind of file."""
    formats = _numpy().lib.format
    try:
        stream = io.BytesIO(header)
        if formats.read_magic(stream) != (1, 0):
            return None, 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape, by_column, kind = formats.read_array_header_1_0(stream)
    except ValueError:
        return None, 0
    own = len(shape) == 2 and not by_column and kind.str == "<f4"  # noqa: PLR2004 -- rows and dimensions
    if not own or stream.tell() != _HEADER_BYTES:
        return None, 0
    return shape[1], shape[0]


def _header(rows: int, dimensions: int) -> bytes:
    stream = io.BytesIO()
    _numpy().lib.format.write_array_header_1_0(
        stream, {"descr": "<f4", "fortran_order": False, "shape": (rows, dimensions)}
    )
    # Beyond 128 bytes only with numbers of rows that no disk has room for.
    return stream.getvalue()


def _not_a_number(count: int) -> bytes:
    numpy = _numpy()
    return bytes(numpy.full(count, numpy.nan, "<f4").tobytes())


def _numpy() -> Any:
    try:
        import numpy as np  # noqa: PLC0415 - loaded when vectors are asked for
    except ImportError as error:
        raise SetupError(
            f"Embeddings are written by numpy, which does not load ({error}); run: pip "
            "install numpy"
        ) from error
    return np
