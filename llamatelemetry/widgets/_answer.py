"""One streamed answer: its text and its reasoning, and what to show of both. Pure."""

from __future__ import annotations

from enum import Enum, auto

from llamatelemetry.widgets import _markdown
from llamatelemetry.widgets._growing import Growing, StreamChanges

__all__ = ["AnswerView", "StreamChanges", "answer_html"]

_OPENING, _CLOSING = "<think>", "</think>"

# A message on its way to the page: its own bytes, and how many may be sent a second. At
# 40 tokens/s that is 120 kB for 1,024 tokens, and words are at most 0.2 s late.
_MESSAGE_BYTES = 450
_BYTES_PER_SECOND = 4500
_SHORTEST, _LONGEST = 0.1, 0.2


class _Where(Enum):
    """Which part of an answer the text that comes belongs to."""

    START = auto()  # may still begin with reasoning
    REASONING = auto()  # between the tags
    ANSWER = auto()


class AnswerView:
    """One answer while it comes.

    Feed it what the server streams, and ask ten times a second or less what is to be
    shown anew. Not locked: one thread feeds it and asks it.

    Reasoning that a server leaves in the answer, between ``<think>`` and ``</think>``
    at its beginning, counts as reasoning.
    """

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._held = ""  # may be the beginning of a tag
        self._where = _Where.START
        self._answer = Growing()
        self._thoughts = Growing()

    @property
    def content(self) -> str:
        """The answer as far as it has come, without its reasoning."""
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        """The reasoning as far as it has come."""
        return "".join(self._reasoning)

    @property
    def thinking(self) -> bool:
        """Whether it reasons, and the answer has not begun."""
        return bool(self._reasoning) and not self._content

    @property
    def interval(self) -> float:
        """Seconds to wait before asking again, by how long the live end is."""
        wanted = (_MESSAGE_BYTES + self._answer.tail_length) / _BYTES_PER_SECOND
        return min(max(wanted, _SHORTEST), _LONGEST)

    def feed(self, content: str = "", reasoning: str = "") -> None:
        """Add what a chunk brought.

        Args:
            content: More of the answer.
            reasoning: More of what the model thinks before.
        """
        self._think(reasoning)
        if reasoning and self._where is _Where.START:
            self._where = _Where.ANSWER  # the server parts them itself
        if not content:
            return
        text, self._held = self._held + content, ""
        if self._where is _Where.START:
            text = self._begun(text)
        if self._where is _Where.REASONING:
            text = self._thought(text)
        if self._where is _Where.ANSWER:
            self._say(text)

    def changes(self) -> StreamChanges:
        """Return what is to be shown anew of the answer since the last call."""
        return self._answer.changes()

    def reasoning_changes(self) -> StreamChanges:
        """Return the same for the reasoning.

        While it is folded away nobody sees it; asking once a second will do.
        """
        return self._thoughts.changes()

    def reasoning_title(self) -> str:
        """Return a line, as text, for what the reasoning is folded under."""
        if not self._reasoning:
            return ""
        words = len(self.reasoning.split())
        return f"{'Thinking …' if self.thinking else 'Reasoning,'} {words} words"

    def finish(self) -> str:
        """Return the whole answer as one HTML, reasoning folded away.

        It replaces the pieces, which can then be emptied and used for the next answer.
        """
        held, self._held = self._held, ""
        if self._where is _Where.REASONING:
            self._think(held)
        else:
            self._say(held)
        return answer_html(self.content, self.reasoning)

    def _begun(self, text: str) -> str:
        """Decide what an answer begins with; hold its text back until that is clear."""
        start = text.lstrip()
        if start.startswith(_OPENING):
            self._where = _Where.REASONING
            return start.removeprefix(_OPENING)
        if _OPENING.startswith(start):
            self._held = text
            return ""
        self._where = _Where.ANSWER
        return text

    def _thought(self, text: str) -> str:
        """Take what is reasoning; return what follows it."""
        before, closing, after = text.partition(_CLOSING)
        if closing:
            self._think(before)
            self._where = _Where.ANSWER
            return after
        kept = next(n for n in range(8, -1, -1) if text.endswith(_CLOSING[:n]))
        self._held = text[len(text) - kept :]
        self._think(text[: len(text) - kept])
        return ""

    def _think(self, text: str) -> None:
        if text:
            self._reasoning.append(text)
            self._thoughts.feed(text)

    def _say(self, text: str) -> None:
        if self._reasoning and not self._content:
            text = text.lstrip("\n")  # the lines that part the two
        if text:
            self._content.append(text)
            self._answer.feed(text)


def answer_html(content: str, reasoning: str = "") -> str:
    """Return a finished answer as HTML, its reasoning folded away.

    Args:
        content: The answer, in Markdown.
        reasoning: What the model thought before, in Markdown.
    """
    thoughts = ""
    if reasoning:
        thoughts = (
            f"<details><summary>Reasoning, {len(reasoning.split())} words</summary>"
            f"{_markdown.to_html(reasoning)}</details>"
        )
    return _markdown.wrapped(thoughts + _markdown.to_html(content))
