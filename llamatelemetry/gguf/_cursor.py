"""Walks through a header: reads no more than needed, and never past a limit.

Every count and length of a header is compared with what is left of the file before
anything is read or set aside for it.
"""

from __future__ import annotations

from llamatelemetry._units import MIB, format_file_size, format_memory
from llamatelemetry.exceptions import GGUFError
from llamatelemetry.gguf._source import Source
from llamatelemetry.gguf._values import ByteOrder, decode_text, in_order

MOST_HEADER_BYTES = 32 * MIB
"""Twice the largest header known: gemma-4's vocabulary of 262,144 tokens, 15.8 MB.

llama.cpp allows 1 GiB in one string (GGUF_MAX_STRING_LENGTH in ggml/src/gguf.cpp);
what a stranger's file may cost here is bounded more tightly.
"""
MOST_TEXT_BYTES = 3 * MIB
"""Bytes of all keys and single strings of a header. Long chat templates take 20 kB."""
MOST_KEY_BYTES = 65535
"""The longest key the GGUF specification allows (docs/gguf.md of ggml)."""


class Cursor:
    """A position in a header, and the bytes read so far.

    Args:
        source: The file.
        spent: Header bytes of the shards before it, which count for the limit too.

    Attributes:
        buffer: The file's first bytes; it only grows.
        position: Where the next value stands, in bytes from the file's start.
        order: The file's byte order, once it is known.
        behind: Bytes expected behind what is being read, as an estimate: keys that are
            left, and the tensor table.
    """

    def __init__(self, source: Source, spent: int = 0) -> None:
        self.source = source
        self.buffer = bytearray()
        self.position = 0
        self.behind = 0
        self._limit = MOST_HEADER_BYTES - spent
        self._limit_words = format_memory(MOST_HEADER_BYTES)
        if spent:
            self._limit_words += " together with the shards before it"
        self._text_bytes = 0
        self.order: ByteOrder = "little"
        self.set_order("little")

    def set_order(self, order: ByteOrder) -> None:
        """Read everything from here on in this byte order."""
        self.order = order
        self.uint32 = in_order(order, "I").unpack_from
        self.uint64 = in_order(order, "Q").unpack_from

    def error(self, message: str, offset: int | None = None) -> GGUFError:
        """Return the error that says where the file is wrong."""
        at = self.position if offset is None else offset
        return GGUFError(
            f"{self.source.name}: {message}", path=self.source.name, offset=at
        )

    @property
    def room(self) -> int:
        """Bytes the rest of the header can have at most."""
        size = self.source.size
        end = self._limit if size is None else min(size, self._limit)
        return end - self.position

    def ensure(self, end: int, what: str, expected_end: int = 0) -> None:
        """Have the buffer hold everything up to a position.

        Args:
            end: The position, in bytes from the file's start.
            what: What is read, for the message ("the length of key 3").
            expected_end: Up to where the present value is thought to reach.

        Raises:
            GGUFError: The file ends before, or the header would be too large.
        """
        while end > len(self.buffer):
            size = self.source.size
            if size is not None and end > size:
                raise self._truncated(end, what)
            if end > self._limit:
                raise self.error(
                    f"the header is larger than {self._limit_words}: "
                    f"{what} ends at byte {end:,}. No known model has such a header, "
                    "so the file is damaged or made to do harm."
                )
            start = len(self.buffer)
            expected = max(end, expected_end) + self.behind
            if size is not None:
                expected = min(expected, size)
            piece = self.source.fetch(
                start, end - start, min(expected, self._limit) - start
            )
            self.buffer += piece
            if not piece:
                raise self._truncated(end, what)

    def _truncated(self, end: int, what: str) -> GGUFError:
        size = self.source.size
        if size is None:
            size = len(self.buffer)
        if end > MOST_HEADER_BYTES:
            # Nobody's download lacks that much of a header: the length is wrong.
            return self.error(
                f"{what} would end at byte {end:,}, but the file has {size:,} bytes: "
                "a length or count in it is wrong. Fetch the file again."
            )
        missing = format_file_size(end - size)
        return self.error(
            f"the file ends at byte {size:,}, at least {missing} before the end of "
            f"{what}: the download is incomplete. Fetch it again."
        )

    def read_uint32(self, what: str) -> int:
        """Read a number of four bytes."""
        self.ensure(self.position + 4, what)
        value: int = self.uint32(self.buffer, self.position)[0]
        self.position += 4
        return value

    def read_uint64(self, what: str) -> int:
        """Read a number of eight bytes."""
        self.ensure(self.position + 8, what)
        value: int = self.uint64(self.buffer, self.position)[0]
        self.position += 8
        return value

    def read_count(self, what: str, least_bytes: int, most: int | None = None) -> int:
        """Read how many things follow.

        Args:
            what: What is counted ("tensors").
            least_bytes: Bytes the smallest of these things takes.
            most: How many are allowed, or None for as many as the file can hold.

        Raises:
            GGUFError: There are too many, or the file cannot hold them.
        """
        at = self.position
        count = self.read_uint64(f"the number of {what}")
        if most is not None and count > most:
            raise self.error(
                f"the header says {count:,} {what}; at most {most:,} are read. The "
                "file is damaged: fetch it again.",
                at,
            )
        if count * least_bytes > self.room:
            if self.room + self.position == self._limit:
                holder = f"a header of at most {self._limit_words}"
            else:
                holder = f"the {max(self.room, 0):,} bytes left of the file"
            raise self.error(
                f"{count:,} {what} of at least {least_bytes} bytes each cannot be in "
                f"{holder}: the download is incomplete or the file is damaged. Fetch "
                "it again.",
                at,
            )
        return count

    def read_bytes(self, what: str, most: int | None = None) -> bytes:
        """Read a string that is decoded by the caller.

        Args:
            what: What the string is ("key 3").
            most: Bytes it may have, or None for what the limit of all texts leaves.

        Raises:
            GGUFError: It is too long, or the file ends before it does.
        """
        at = self.position
        length = self.read_uint64(f"the length of {what}")
        if most is not None and length > most:
            raise self.error(
                f"{what} is {length:,} bytes long; at most {most:,} are allowed. The "
                "file is damaged: fetch it again.",
                at,
            )
        end = self.position + length
        if self._text_bytes + length > MOST_TEXT_BYTES and (
            self.source.size is None or end <= self.source.size
        ):
            raise self.error(
                f"{what} is {length:,} bytes long; a header's keys and single strings "
                f"may have {format_memory(MOST_TEXT_BYTES)} in sum. No known model "
                "needs more.",
                at,
            )
        self.ensure(end, what)
        self._text_bytes += length
        value = bytes(self.buffer[self.position : end])
        self.position = end
        return value

    def read_name(self, what: str, most: int) -> str:
        """Read a key or a tensor's name, which must be UTF-8."""
        at = self.position
        data = self.read_bytes(what, most)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self.error(
                f"{what} is {data[:64]!r}, which is no UTF-8: the file is damaged. "
                "Fetch it again.",
                at,
            ) from None

    def read_text(self, what: str) -> str:
        """Read a string value."""
        return decode_text(self.read_bytes(what))
