"""Where the bytes of a GGUF file come from: a file, memory, an open file, or a server.

A source is read with explicit offsets and never mapped into memory: a mapped file that
another program shortens kills the reading process with SIGBUS.
"""

from __future__ import annotations

import os
import re
import stat
import zlib
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from llamatelemetry._demo import DEMO_MODEL, is_demo_mode
from llamatelemetry._units import KIB, MIB
from llamatelemetry.exceptions import ModelError

__all__ = [
    "BytesSource",
    "FileSource",
    "GGUFSource",
    "LocalSource",
    "Source",
    "open_source",
]

# Reading ahead from a disk costs less than asking it twice. The upper bound keeps
# small what is held beside the header itself.
_LEAST_AHEAD = 64 * KIB
_MOST_AHEAD = 2 * MIB

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+([\w.-]*)", re.IGNORECASE)
_FILE_ERRORS = (OSError, ValueError, EOFError, zlib.error)
"""What an open file raises that is closed, compressed and broken, or on a bad disk."""


@runtime_checkable
class Source(Protocol):
    """What a header is read from.

    Attributes:
        name: The file or URL, for messages.
        file_name: The name it has in its folder; "" for what has none.
        size: Bytes of the whole file, or None while that is not known.
    """

    name: str
    file_name: str
    size: int | None

    def fetch(self, offset: int, length: int, expected: int) -> bytes:
        """Return bytes from an offset on.

        Args:
            offset: Where to begin, in bytes from the start of the file.
            length: Bytes that are needed; fewer come only where the file ends.
            expected: Bytes from the offset on that will be needed in the end, as an
                estimate. A source gives more than ``length`` where that is cheap.
        """
        ...

    def sibling(self, name: str) -> Source:
        """Return the file of this name beside this one: another shard."""
        ...

    def close(self) -> None:
        """Let go of the file or the connection."""
        ...


GGUFSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Source
"""Everything a GGUF file can be read from."""


def _reach(length: int, expected: int) -> int:
    """Return how many bytes to take from where bytes are cheap."""
    return max(length, _LEAST_AHEAD, min(expected, _MOST_AHEAD))


class LocalSource:
    """A file on this machine.

    Raises:
        ModelError: There is no such file, it is no regular file, or may not be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._descriptor = -1
        if not os.fspath(path):
            raise ModelError("an empty path names no file; give that of a GGUF file.")
        self._path = Path(_found_path(path))
        self.name = str(self._path)
        self.file_name = self._path.name
        try:
            # Opening a pipe waits for somebody to write, so it is looked at first.
            mode = self._path.stat().st_mode
            if stat.S_ISREG(mode):
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ModelError(
                f"{self.name}: no such file. Give the path of a GGUF file, a URL, or "
                "a file on the Hub as 'owner/repository:file.gguf' or "
                "'owner/repository:Q4_K_M'."
            ) from None
        except (OSError, ValueError) as error:
            raise ModelError(f"{self.name}: cannot be opened: {error}") from error
        if self._descriptor < 0:
            kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise ModelError(f"{self.name}: is {kind}; give the path of a GGUF file.")
        self.size: int | None = os.fstat(self._descriptor).st_size

    def fetch(self, offset: int, length: int, expected: int) -> bytes:
        """Return bytes from an offset on; see :class:`Source`."""
        wanted = _reach(length, expected)
        pieces: list[bytes] = []
        while wanted > 0:
            try:
                piece = os.pread(self._descriptor, wanted, offset)
            except OSError as error:
                raise ModelError(
                    f"{self.name}: cannot be read at byte {offset:,}: {error}"
                ) from error
            if not piece:
                break
            pieces.append(piece)
            offset += len(piece)
            wanted -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def sibling(self, name: str) -> Source:
        """Return the file of this name in the same folder."""
        return LocalSource(self._path.with_name(name))

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _refuse_sibling(source: Source, name: str) -> ModelError:
    return ModelError(
        f"{source.name}: is one shard of several, and {name} cannot be found from it. "
        "Give the path or URL of a shard; read_header(..., shards=False) reads it "
        "alone."
    )


class BytesSource:
    """A GGUF file, or the beginning of one, in memory."""

    name = "<bytes>"

    file_name = ""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = memoryview(data).cast("B")
        self.size: int | None = len(self._data)

    def fetch(self, offset: int, length: int, expected: int) -> bytes:
        """Return bytes from an offset on; see :class:`Source`."""
        return bytes(self._data[offset : offset + _reach(length, expected)])

    def sibling(self, name: str) -> Source:
        """Refuse: memory has no files beside it."""
        raise _refuse_sibling(self, name)

    def close(self) -> None:
        """Let go of the memory, so that a bytearray can change its size again."""
        self._data.release()


class FileSource:
    """An open binary file; it is left at the position where it was.

    Raises:
        ModelError: It is not open for reading bytes, or cannot go to a position.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        name = getattr(file, "name", None)
        if not isinstance(name, (str, bytes)) or not name:  # a number, or nothing
            name = "<open file>"
        self.name = os.fsdecode(name)
        self.file_name = Path(self.name).name
        try:
            if not isinstance(file.read(0), bytes):
                raise ModelError(f"{self.name}: is open as text; open it with 'rb'.")
            self._position = file.tell()
            file.seek(0, os.SEEK_END)  # before Python 3.13, a mapped file's gives None
            self.size: int | None = file.tell()
        except _FILE_ERRORS as error:  # io.UnsupportedOperation is one of them
            raise ModelError(
                f"{self.name}: cannot be read at any position ({error}). Read it "
                "whole and give the bytes."
            ) from error

    def fetch(self, offset: int, length: int, expected: int) -> bytes:
        """Return bytes from an offset on; see :class:`Source`."""
        wanted = _reach(length, expected)
        pieces: list[bytes] = []
        try:
            self._file.seek(offset)
            while wanted > 0 and (piece := self._file.read(wanted)):
                pieces.append(piece)
                wanted -= len(piece)
        except _FILE_ERRORS as error:
            raise ModelError(
                f"{self.name}: cannot be read at byte {offset:,}: {error}"
            ) from error
        return b"".join(pieces)

    def sibling(self, name: str) -> Source:
        """Refuse: an open file does not say where it lies."""
        raise _refuse_sibling(self, name)

    def close(self) -> None:
        """Go back to where the file was, if it still goes anywhere."""
        with suppress(*_FILE_ERRORS):
            self._file.seek(self._position)


def _found_path(path: str | os.PathLike[str]) -> str:
    """Return a path as the system knows it: as it is, or from the user's folder on.

    Raises:
        ModelError: It is an address, which a path cannot be. An address may hold a
            password or a signature, so that only its host is shown.
    """
    literal = os.fsdecode(path)
    if os.path.lexists(literal):
        return literal
    address = _ADDRESS.search(literal)
    if address is None:
        # pathlib's raises where there is no such user.
        return os.path.expanduser(literal)  # noqa: PTH111
    # What stands before an "@" is no host.
    host = "…" if "@" in literal else address[2]
    raise ModelError(
        f"{address[1]}://{host}: is an address, not a path. Give an http(s) URL as a "
        "plain text: 'https://host/model.gguf'."
    )


def _open_named(text: str) -> Source:
    """Open what is no file here: an address, a file on the Hub, a known name."""
    # Only here, so that reading a local file never loads an HTTP client.
    from llamatelemetry.setup._names import nearest_names, parse_reference  # noqa: PLC0415
    from llamatelemetry.setup.catalog import catalog, find_entry  # noqa: PLC0415

    web = text.lower().startswith(("http://", "https://"))
    if text == "demo":
        return LocalSource(DEMO_MODEL)
    entry = find_entry(text) if is_demo_mode() else None
    if entry is not None:
        from llamatelemetry.gguf._stored import StoredSource  # noqa: PLC0415

        return StoredSource(entry)
    references = {entry.id: entry.reference for entry in catalog()}
    text = references.get(text.lower(), text)
    if not web and parse_reference(text) is None:
        near = nearest_names(text, references)
        if near and not text.lower().endswith(".gguf"):
            raise ModelError(
                f"{text}: no such file, and the catalog has no such name; the nearest "
                f"are: {', '.join(near)}"
            )
        return LocalSource(text)
    from llamatelemetry.gguf._remote import open_reference, open_url  # noqa: PLC0415

    return open_url(text) if web else open_reference(text)


def _open_path(path: os.PathLike[str]) -> Source:
    """Open a file; for the demo model in another's place, the header of that one."""
    stands_for: str | None = getattr(path, "stands_for", None)  # of a LocalModel
    if stands_for is None:
        return LocalSource(path)
    from llamatelemetry.gguf._stored import StoredSource  # noqa: PLC0415
    from llamatelemetry.setup.catalog import find_model  # noqa: PLC0415

    return StoredSource(find_model(stands_for), os.fspath(path))


def open_source(source: GGUFSource) -> Source:
    """Return what a GGUF file is read from.

    Args:
        source: A path, bytes, an open binary file, an http(s) URL, or a file on the
            Hub as ``owner/repository:file.gguf``, ``owner/repository:Q4_K_M`` or
            ``owner/repository``, each with ``@revision`` where one is meant; a name of
            the catalog; or "demo". An existing path wins over all of them.

    Raises:
        ModelError: There is nothing to read, or it cannot be read.
    """
    if isinstance(source, str):
        if os.path.lexists(source) or source.startswith(("/", "./", "../", "~")):
            return LocalSource(source)
        return _open_named(source.strip())
    if isinstance(source, os.PathLike):
        return _open_path(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return BytesSource(source)
    if isinstance(source, Source):
        return source
    if hasattr(source, "read") and hasattr(source, "seek"):
        return FileSource(source)
    raise ModelError(
        f"cannot read a GGUF file from {type(source).__name__}; give a path, bytes, "
        "an open binary file, a URL, or 'owner/repository:file.gguf'."
    )
