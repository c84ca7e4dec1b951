"""The members of a tar, one after the other, as its bytes come.

Python's tarfile is not used to read what others made. It reads headers about headers
into memory whole and calls itself for each, it follows sparse maps of any length, and
its safe filters came with 3.11.4 and were evaded since. Only what an engine's archive
needs is understood here: files, folders and links, in the formats of POSIX (ustar and
pax) and GNU. Anything else is refused by name.

The format: https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html and
https://www.gnu.org/software/tar/manual/html_node/Standard.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llamatelemetry._units import MIB, format_file_size, printable
from llamatelemetry.exceptions import UnsafeArchiveError
from llamatelemetry.setup._archive_rules import damage

__all__ = ["Member", "Stream", "members"]

_BLOCK = 512
_EMPTY = bytes(_BLOCK)
_MOST_EXTENSIONS = 16 * MIB
"""Bytes of all headers about headers, those of 10000 members with long names."""
_MOST_PADDING = 64 * MIB
"""Zeros behind the end; GNU tar fills up to 10 KiB, or what -b says."""
_OWNER_EXECUTES = 0o100

_FILES = (b"0", b"\0", b"7")
_FOLDER = b"5"
_HARD_LINK = b"1"
_LINK = b"2"
_SPARSE = b"S"
_EXTENSIONS = (b"x", b"g", b"X", b"L", b"K")
_OTHERS = {
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"D": "a folder's listing",
    b"M": "a part of a file in several archives",
    b"V": "a volume's label",
}


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a tar.

    Attributes:
        name: Its name, as it stands there.
        kind: What it is.
        size: Bytes of its content, which follow; 0 for all but files.
        executable: Whether its owner may execute it.
        target: What a link leads to, as it stands there.
    """

    name: str
    kind: Literal["file", "folder", "link", "hard link"]
    size: int
    executable: bool
    target: str


class Stream:
    """Bytes that come in pieces, taken by number.

    Args:
        pieces: The bytes.
        archive: Where they come from, for messages.
    """

    def __init__(self, pieces: Iterator[bytes], archive: Path) -> None:
        self.archive = archive
        self.taken = 0
        self._pieces = pieces
        self._held = memoryview(b"")

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Yield the next bytes in pieces as they come.

        Raises:
            SetupError: There are fewer.
        """
        while size:
            if not self._held:
                self._held = memoryview(next(self._pieces, b""))
                if not self._held:
                    raise damage(self.archive, "it ends in the middle")
            piece, self._held = self._held[:size], self._held[size:]
            size -= len(piece)
            self.taken += len(piece)
            yield piece

    def take(self, size: int) -> bytes:
        """Return the next bytes, which must be few.

        Raises:
            SetupError: There are fewer.
        """
        return b"".join(self.pieces(size))

    def finish(self) -> None:
        """Read to the end, so that checksums are compared.

        Raises:
            SetupError: Something else than zeros stands there.
        """
        left = _MOST_PADDING
        held: bytes | memoryview = self._held
        while held:
            left -= len(held)
            if bytes(held).strip(b"\0") or left < 0:
                raise damage(self.archive, "something stands behind the tar's end")
            held = next(self._pieces, b"")


@dataclass(slots=True)
class _Extension:
    """What headers about the next header say of it."""

    name: bytes = b""
    target: bytes = b""
    size: int | None = None
    sparse_size: int | None = None
    pending: bool = False


def members(
    stream: Stream, refusal: Callable[[str, str], UnsafeArchiveError]
) -> Iterator[Member]:
    """Yield the members of a tar; each file's content must be taken before the next.

    Args:
        stream: The tar, decompressed.
        refusal: Makes the error for a member's name and the rule it breaks.

    Raises:
        SetupError: It is no tar, or cut off.
        UnsafeArchiveError: A member is neither file, folder nor link, or its headers
            are of no reasonable size.
    """
    extension = _Extension()
    left = _MOST_EXTENSIONS
    while (block := stream.take(_BLOCK)) != _EMPTY:
        place = stream.taken - _BLOCK
        try:
            _check_sum(block)
            size = _number(block[124:136])
            if block[156:157] in _EXTENSIONS:
                left -= size + _BLOCK
                if left < 0:
                    name = _text(_until_zero(block[:100]))
                    raise refusal(name, "its headers are longer than any archive's")
                data = stream.take(size)
                stream.take(-size % _BLOCK)
                _extend(extension, block[156:157], data)
                continue
            member = _member(block, size, extension, refusal)
        except ValueError as error:
            start = printable(block[:16].decode("latin-1"))
            what = f"no tar header at byte {place}, but {start!r} ({error})"
            raise damage(stream.archive, what) from error
        extension = _Extension()
        yield member
        stream.take(-member.size % _BLOCK)
    if extension.pending:
        raise damage(stream.archive, "it ends behind a header about a header")
    stream.finish()


def _member(
    block: bytes,
    size: int,
    extension: _Extension,
    refusal: Callable[[str, str], UnsafeArchiveError],
) -> Member:
    name = _text(extension.name or _own_name(block))
    target = _text(extension.target or _until_zero(block[157:257]))
    letter = block[156:157]
    if letter == _SPARSE or extension.sparse_size is not None:
        real = extension.sparse_size or (
            _number(block[483:495]) if letter == _SPARSE else 0
        )
        rule = (
            f"it is a sparse file, said to be {format_file_size(real)}; pack it anew "
            "without --sparse"
        )
        raise refusal(name, rule)
    size = size if extension.size is None else extension.size
    executable = bool(_number(block[100:108]) & _OWNER_EXECUTES)
    if letter in _FILES and not name.endswith("/"):
        return Member(name, "file", size, executable, "")
    if size and letter in (*_FILES, _FOLDER, _HARD_LINK, _LINK):
        raise refusal(name, f"it is a link or a folder with {size} bytes in it")
    if letter == _HARD_LINK:
        return Member(name, "hard link", 0, executable, target)
    if letter == _LINK:
        return Member(name, "link", 0, executable, target)
    if letter == _FOLDER or letter in _FILES:  # the oldest tars end folders in a slash
        return Member(name, "folder", 0, executable, "")
    kind = _OTHERS.get(letter, f"of the unknown kind {letter!r}")
    raise refusal(name, f"it is {kind}; only files, folders and links are unpacked")


def _own_name(block: bytes) -> bytes:
    name = _until_zero(block[:100])
    if block[257:263] == b"ustar\0":  # GNU's own header has other things there
        prefix = _until_zero(block[345:500])
        return prefix + b"/" + name if prefix else name
    return name


def _extend(extension: _Extension, letter: bytes, data: bytes) -> None:
    """Take in a header about the next header, or about all."""
    if letter == b"L":
        extension.name = _until_zero(data)
    elif letter == b"K":
        extension.target = _until_zero(data)
    else:
        for key, value in _records(data):
            if letter == b"g" and key in (b"path", b"linkpath", b"size"):
                raise ValueError("one name or size for all members")
            _extend_by_record(extension, key, value)
    # git writes a header about all members, which need not follow.
    extension.pending |= letter != b"g"


def _extend_by_record(extension: _Extension, key: bytes, value: bytes) -> None:
    if key == b"path":
        extension.name = value
    elif key == b"linkpath":
        extension.target = value
    elif key == b"size":
        extension.size = _decimal(value)
    elif key in (b"GNU.sparse.realsize", b"GNU.sparse.size"):
        extension.sparse_size = _decimal(value)
    elif key.startswith(b"GNU.sparse."):
        extension.sparse_size = extension.sparse_size or 0
        if key == b"GNU.sparse.name":
            extension.name = value


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values: ``length key=value``, the length being that of all."""
    place = 0
    while place < len(data):
        space = data.find(b" ", place, place + 9)
        end = place + _decimal(data[place:space]) if space > 0 else 0
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or data[end - 1 : end] != b"\n":
            raise ValueError("a header about it cannot be read")
        yield key, value
        place = end


def _check_sum(block: bytes) -> None:
    # The sum is made with spaces where it stands.
    expected = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if _number(block[148:156]) != expected:
        raise ValueError("its checksum is wrong")


def _number(field: bytes) -> int:
    """Return an octal number, or GNU's binary one; those below zero are none."""
    if field[0] == 0x80:  # noqa: PLR2004 - the mark of a binary number
        return int.from_bytes(field[1:], "big")
    text = _until_zero(field).strip(b" ")
    if text.strip(b"01234567"):
        raise ValueError("a number in it is none")
    return int(text or b"0", 8)


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:  # noqa: PLR2004 - 2**64 has 20 digits
        raise ValueError("a number in a header about it is none")
    return int(text)


def _until_zero(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
