"""The end of a server's log: what of it is shown, and what of that has changed."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, Protocol, get_args

from llamatelemetry._units import printable
from llamatelemetry.server.logs import LogPosition

__all__ = [
    "BLOCK_LINES",
    "LEVELS",
    "Level",
    "LogFilter",
    "LogTail",
    "Logged",
    "level_of",
]

Level = Literal["all", "warnings", "errors"]
LEVELS: tuple[Level, ...] = get_args(Level)

BLOCK_LINES = 25
"""Lines that are sent together: a new one costs its block, not the whole tail."""

BLOCKS = 8
"""How many of them are shown."""

_LONGEST_LINE = 500  # characters; a server logs whole prompts where it is told to
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_OF_POLLS = "update_slots: all slots are idle"
"""What an idle llama-server logs whenever it is asked for its slots, as panels do."""

# llama.cpp b7710 to b11434: "0.00.003.325 W srv  init: ...", older ones without letter.
_LETTER = re.compile(r"\s*(?:\[\d+\] )?[\d.]+ (?P<level>[A-Z]) ")
_BAD = re.compile(
    r"\b(?:error|failed|failure|fatal|abort(?:ed)?|exception|traceback|terminate called"
    r"|out of memory|ggml_assert|segmentation fault)\b",
    re.IGNORECASE,
)
_DOUBTFUL = re.compile(r"\bwarn(?:ing)?\b", re.IGNORECASE)


class Logged(Protocol):
    """What has a log: a ServerManager."""

    def read_logs(
        self, position: LogPosition | None = None
    ) -> tuple[LogPosition | None, list[str]]:
        """Return the lines since a position, and the position after them."""


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which lines are shown.

    Attributes:
        text: What they hold, in any case; "" for anything.
        level: "all"; "warnings", and errors with them; "errors".
    """

    text: str = ""
    level: Level = "all"

    def accepts(self, line: str) -> bool:
        """Whether a line is shown."""
        if self.text and self.text.lower() not in line.lower():
            return False
        if self.level == "all":
            return True
        return level_of(line) in ("errors", self.level)


def level_of(line: str) -> Level:
    """Return the filter that is just wide enough for a line.

    By the letter that llama.cpp writes; what has none, or only that of information, by
    its words.
    """
    found = _LETTER.match(line)
    letter = found["level"] if found else ""
    if letter == "E" or _BAD.search(line[:_LONGEST_LINE]):
        return "errors"
    if letter == "W" or _DOUBTFUL.search(line[:_LONGEST_LINE]):
        return "warnings"
    return "all"


class LogTail:
    """The last lines of the logs of one server or of several, in blocks.

    Blocks are numbered by the lines that passed the filter, so that only the last ones
    change when a line comes.
    """

    def __init__(self) -> None:
        self._filter = LogFilter()
        self._positions: list[LogPosition | None] = []
        self._kept: deque[str] = deque(maxlen=BLOCKS * BLOCK_LINES)
        self._count = 0  # lines that have passed the filter

    def read(self, servers: Sequence[Logged], chosen: LogFilter) -> bool:
        """Read what is new; return whether anything that is shown has changed.

        Args:
            servers: Whose logs; with several each line begins with its server's number.
            chosen: Which lines. Another one than before begins at the beginning.
        """
        before, old = self._count, self._positions
        if chosen != self._filter or len(old) != len(servers):
            self._filter, self._positions = chosen, [None] * len(servers)
            before = self._forget()
        for number, server in enumerate(servers):
            position = self._positions[number]
            self._positions[number], lines = server.read_logs(position)
            if len(servers) == 1 and _another(position, self._positions[number]):
                before = self._forget()  # only the last start is told of
            mark = f"[{number}] " if len(servers) > 1 else ""
            self._add(f"{mark}{line}" for line in lines)
        return self._count != before

    def _forget(self) -> int:
        """Begin anew; return what no count is equal to."""
        self._kept.clear()
        self._count = 0
        return -1

    def _add(self, lines: Iterable[str]) -> None:
        for line in lines:
            if self._filter.accepts(line) and _OF_POLLS not in line:
                self._kept.append(line)
                self._count += 1

    @property
    def lines(self) -> list[str]:
        """The lines, oldest first, as they are shown."""
        return [_shown(line) for line in self._kept]

    def blocks(self) -> Iterator[tuple[int, str]]:
        """Yield the number and the HTML of each block, the oldest first."""
        lines, start = list(self._kept), self._count - len(self._kept)
        for number in range(start // BLOCK_LINES, -(-self._count // BLOCK_LINES)):
            first = max(number * BLOCK_LINES - start, 0)
            last = (number + 1) * BLOCK_LINES - start
            # A block whose first lines are gone is not sent again without them.
            if number * BLOCK_LINES >= start:
                yield number, _html(lines[first:last])


def _another(before: LogPosition | None, after: LogPosition | None) -> bool:
    return before is not None and after is not None and before[0] != after[0]


def _shown(line: str) -> str:
    plain = _COLOURS.sub("", line).expandtabs(4).rstrip()
    return printable(plain, _LONGEST_LINE)


def _html(lines: Iterable[str]) -> str:
    """Return lines as a block, errors in bold; everything is escaped."""
    marked = []
    for line in lines:
        told = escape(_shown(line))
        marked.append(f"<b>{told}</b>" if level_of(line) == "errors" else told)
    return (
        '<pre style="margin:0;padding:0;border:0;background:none;color:inherit;'
        'font:12px/1.4 monospace;white-space:pre-wrap;overflow-wrap:anywhere">'
        + "\n".join(marked)
        + "</pre>"
    )
