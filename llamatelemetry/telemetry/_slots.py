"""Which slot answered a request: the server's log, joined with the server's timings.

llama-server does not say in its answer which slot gave it. But its log does, with the
same figures that come with the answer::

    slot print_timing: id  1 | task 0 | prompt eval time =       2.25 ms /    14 tokens
    slot print_timing: id  1 | task 0 |        eval time =       1.91 ms /     5 tokens

Builds before 2026 print both on lines of their own below the first part. Pure.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Measured", "SlotFinder"]

_MOST = 128  # answers that wait for their line, and lines that wait for their answer
_TOLERANCE = 0.0051  # milliseconds: the log has two decimals
_SLOT = re.compile(r"print_timing: id\s+(\d+) \|")
_TIME = re.compile(r"(prompt )?eval time =\s*([\d.]+) ms /\s*(\d+) (?:tokens|runs)")


@dataclass(frozen=True, slots=True)
class Measured:
    """What a server measured of one request.

    Attributes:
        prompt_tokens: Tokens of the prompt that were read, cached ones not counted.
        prompt_ms: Milliseconds for them.
        tokens: Tokens generated.
        ms: Milliseconds for them.
    """

    prompt_tokens: int
    prompt_ms: float
    tokens: int
    ms: float

    def is_same(self, other: Measured) -> bool:
        """Whether both are of one request, one of them having but two decimals."""
        return (
            (self.prompt_tokens, self.tokens) == (other.prompt_tokens, other.tokens)
            and abs(self.prompt_ms - other.prompt_ms) < _TOLERANCE
            and abs(self.ms - other.ms) < _TOLERANCE
        )


class SlotFinder:
    """Joins the lines of one server's log with the answers of that server.

    Both come in any order. Not locked.
    """

    def __init__(self) -> None:
        self._told: deque[tuple[int, Measured]] = deque(maxlen=_MOST)
        self._waiting: dict[int, Measured] = {}
        self._slot: int | None = None
        self._prompt: tuple[int, float] | None = None

    @property
    def waits(self) -> bool:
        """Whether an answer waits for its line."""
        return bool(self._waiting)

    def expect(self, number: int, measured: Measured) -> None:
        """Look for the slot of an answer.

        Args:
            number: The request's.
            measured: What came with the answer.
        """
        while len(self._waiting) >= _MOST:
            del self._waiting[next(iter(self._waiting))]
        self._waiting[number] = measured

    def read(self, lines: Iterable[str]) -> None:
        """Take lines of the log."""
        for line in lines:
            if "print_timing" in line:
                named = _SLOT.search(line)
                self._slot = int(named[1]) if named else None
            if "eval time" in line and self._slot is not None:
                self._take(self._slot, line)

    def _take(self, slot: int, line: str) -> None:
        found = _TIME.search(line)
        if found is None:
            return
        told = (int(found[3]), float(found[2]))
        if found[1]:
            self._prompt = told
        elif self._prompt is not None:
            self._told.append((slot, Measured(*self._prompt, *told)))
            self._prompt = None

    def found(self) -> dict[int, int]:
        """Return the slots that are known now, by the requests' numbers, each once.

        Where two slots have told the same figures, neither is taken.
        """
        slots = {}
        for number, measured in list(self._waiting.items()):
            told = [one for one in self._told if one[1].is_same(measured)]
            if not told:
                continue
            del self._waiting[number]
            if len({slot for slot, _ in told}) == 1:
                self._told.remove(told[0])
                slots[number] = told[0][0]
        return slots
