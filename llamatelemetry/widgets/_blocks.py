"""Where a text that still grows can be cut: what stands before will not change. Pure.

Only whole lines decide, as Markdown does; what a line that is still coming may become
is left open. markdown-it says where blocks begin.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it.token import Token

__all__ = [
    "LONGEST",
    "Cut",
    "Fence",
    "end_of_words",
    "forced_cut",
    "opened_fence",
    "settled_cut",
    "whole_lines",
]

_LONG_LIST = 800  # characters of a list or table before it is cut
_LONG = 1500  # of a paragraph
LONGEST = 4000
"""Characters of any block before it is cut."""

# What a line that is still coming may become the next item of a list with.
_MAYBE_ITEM = re.compile(r"\s|$|[-+*]($|\s)|\d{1,9}($|[.)]($|\s))")
_LISTS = frozenset(("bullet_list_open", "ordered_list_open"))
_FENCE = re.compile(r"( {0,3})(`{3,}(?=[^`\n]*\n)|~{3,})([^\n]*)\n")
_END_OF_SENTENCE = re.compile(r"[.!?…。]['\")\]]*\s")


@dataclass(frozen=True, slots=True)
class Cut:
    """A place to cut a text at.

    Attributes:
        length: Characters before it.
        items: Items of the list that is cut there; 0 where it is no list.
        repeat: What the rest has to begin with to be read as before: a table's head.
    """

    length: int
    items: int = 0
    repeat: str = ""


@dataclass(frozen=True, slots=True)
class Fence:
    """The first line of a code block.

    Attributes:
        marks: What it is fenced with.
        indent: Spaces before it, which its lines have too.
        info: What stands behind the marks.
        length: Characters of the line, its end included.
    """

    marks: str
    indent: int
    info: str
    length: int

    def closes(self, line: str) -> bool:
        """Return whether a line, without its end, ends the block."""
        marks = line.strip(" \t")
        return (
            len(line) - len(line.lstrip(" ")) < 4  # noqa: PLR2004 -- Markdown's rule
            and len(marks) >= len(self.marks)
            and not marks.strip(self.marks[0])
        )

    def may_close(self, line: str) -> bool:
        """Return whether a line that is still coming looks like the block's end."""
        return bool(line.strip()) and not line.strip().strip(self.marks[0])

    def content(self, line: str) -> str:
        """Return a line of the block without the spaces before the fence."""
        spaces = len(line) - len(line.lstrip(" "))
        return line[min(spaces, self.indent) :]


def opened_fence(text: str) -> Fence | None:
    """Return the fence that a text begins with once its line is whole, or None."""
    match = _FENCE.match(text)
    if match is None:
        return None
    indent, marks, info = match.groups()
    return Fence(marks, len(indent), info.strip(), match.end())


def settled_cut(text: str, tokens: Sequence[Token]) -> Cut | None:
    """Return where a text can be cut so that all before is finished, or None.

    Args:
        text: It begins where a block begins.
        tokens: The blocks of its whole lines (:func:`whole_lines`).
    """
    whole = whole_lines(text)
    blocks = _top(tokens)
    if not blocks:
        return Cut(len(whole)) if whole else None  # empty lines alone
    last = blocks[-1]
    if _ended(last.type, whole, text[len(whole) :]):
        return Cut(len(whole))
    start = _offset(whole, _lines(last)[0])
    return Cut(start) if start else None


def forced_cut(text: str, tokens: Sequence[Token]) -> Cut | None:
    """Return where to cut a text whose one block has become too long, or None.

    A list is cut before its last item, a table before its last row, a paragraph after
    a sentence, a line or a word; so is any other block, but much later, as what
    follows looks different then.

    Args:
        text: It begins where a block begins, which is the only one.
        tokens: The blocks of its whole lines.
    """
    whole = whole_lines(text)
    blocks = _top(tokens)
    kind = blocks[-1].type if blocks else "paragraph_open"
    if kind in _LISTS and len(text) > _LONG_LIST:
        items = [token for token in tokens if _is_item(token)]
        start = _offset(whole, _lines(items[-1])[0])
        if start:
            return Cut(start, items=len(items) - 1)
    if kind == "table_open" and len(text) > _LONG_LIST:
        head = whole[: _offset(whole, 2)]
        # A long head would be repeated more often than there are rows to show.
        if len(head) < _LONG_LIST / 4 and len(whole) > 2 * len(head):
            return Cut(len(whole), repeat=head)
    if len(text) > (_LONG if kind == "paragraph_open" else LONGEST):
        return Cut(end_of_words(text))
    return None


def end_of_words(text: str) -> int:
    """Return where a long text without any blocks is best cut."""
    part, least = text[:_LONG], _LONG // 2
    ends = [match.end() for match in _END_OF_SENTENCE.finditer(part, least)]
    for end in (ends[-1] if ends else 0, part.rfind("\n") + 1, part.rfind(" ") + 1):
        if end > least:
            return end
    return len(part)


def whole_lines(text: str) -> str:
    """Return a text without the line that is still coming."""
    return text[: text.rfind("\n") + 1]


def _top(tokens: Sequence[Token]) -> list[Token]:
    return [
        token
        for token in tokens
        if token.level == 0 and token.nesting >= 0 and token.map is not None
    ]


def _is_item(token: Token) -> bool:
    return token.type == "list_item_open" and token.level == 1


def _lines(token: Token) -> Sequence[int]:
    assert token.map is not None  # noqa: S101 -- _top() and items have one
    return token.map


def _ended(kind: str, whole: str, coming: str) -> bool:
    """Return whether a text's last block cannot go on."""
    if kind in {"heading_open", "hr"}:
        return True
    blank = not whole.split("\n")[-2].strip()
    if kind in {"paragraph_open", "table_open", "blockquote_open"}:
        return blank
    if kind in _LISTS:
        return blank and not _MAYBE_ITEM.match(coming)
    return kind == "code_block" and blank and not re.match(r"\s|$", coming)


def _offset(text: str, line: int) -> int:
    return sum(len(each) + 1 for each in text.split("\n")[:line])
