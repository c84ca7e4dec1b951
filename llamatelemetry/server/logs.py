"""A server's log: read to the last byte, kept within bounds, readable at any time."""

from __future__ import annotations

import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator

MAX_LOG_BYTES = 4 * 2**20  # of memory, about 30,000 lines; the oldest are dropped
MAX_LINE_BYTES = 16 * 2**10  # a longer line is cut into several

LogPosition = tuple[int, int]
"""A place in one start's log: which log of this process, and the number of a line."""

_numbers = itertools.count(1)


class LogBuffer:
    """The last lines of a log. Any thread may read while one thread appends."""

    def __init__(self, max_bytes: int = MAX_LOG_BYTES) -> None:
        self._lines: deque[str] = deque()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._first = 0  # the number of the oldest line that is kept
        self._closed = False
        self._number = next(_numbers)  # no two logs of a process share it
        self._changed = threading.Condition()

    def append(self, line: str) -> None:
        """Add one line; drop the oldest ones beyond the bound."""
        with self._changed:
            self._lines.append(line)
            self._bytes += sys.getsizeof(line)
            while self._bytes > self._max_bytes and len(self._lines) > 1:
                self._bytes -= sys.getsizeof(self._lines.popleft())
                self._first += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Say that no line will come any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def dropped(self) -> int:
        """How many lines were dropped because of the bound."""
        return self._first

    def text(self) -> str:
        """Return everything that is kept."""
        with self._changed:
            lines = list(self._lines)
        return "".join(f"{line}\n" for line in lines)

    def tail(self, count: int = 20) -> str:
        """Return the last lines."""
        with self._changed:
            lines = list(self._lines)[-count:]
        return "\n".join(lines)

    def since(self, position: LogPosition | None) -> tuple[LogPosition, list[str]]:
        """Return the lines after a position, as far as they are kept, and the next one.

        Args:
            position: What an earlier call gave; None, or that of another log, for all.
        """
        number = position[1] if position and position[0] == self._number else 0
        with self._changed:
            end = self._first + len(self._lines)
            count = max(end - max(number, self._first), 0)
            # From the end: there are few new ones among many old ones.
            lines = list(itertools.islice(reversed(self._lines), count))[::-1]
        return (self._number, end), lines

    def follow(self) -> Iterator[str]:
        """Yield every line from the oldest kept on, then each as it comes.

        Ends when the log ends. A reader slower than the bound misses lines.
        """
        number = 0
        while True:
            with self._changed:
                while not self._closed and number >= self._first + len(self._lines):
                    self._changed.wait()
                start = max(number, self._first)
                # From the end: there are few new ones among many old ones.
                count = self._first + len(self._lines) - start
                lines = list(itertools.islice(reversed(self._lines), count))[::-1]
                if not lines and self._closed:
                    return
            number = start + len(lines)
            yield from lines


def read_lines(chunks: Iterable[bytes], take: Callable[[str], None]) -> None:
    """Split bytes into lines and hand over each one as soon as it is whole."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            _take_cut(line.rstrip(b"\r"), take)
        while len(rest) > MAX_LINE_BYTES:
            take(rest[:MAX_LINE_BYTES].decode("utf-8", "replace"))
            rest = rest[MAX_LINE_BYTES:]
    if rest:
        take(rest.decode("utf-8", "replace"))


def _take_cut(line: bytes, take: Callable[[str], None]) -> None:
    for start in range(0, max(len(line), 1), MAX_LINE_BYTES):
        take(line[start : start + MAX_LINE_BYTES].decode("utf-8", "replace"))
