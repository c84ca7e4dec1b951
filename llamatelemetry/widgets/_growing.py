"""A text that grows, as few and short pieces of HTML that are sent again. Pure.

What is finished lies in sections of about two thousand characters; only the last of
them grows, block by block. The live end is what a page is sent ten times a second, so
it is kept short: a block, or in a code block or long list its last lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from llamatelemetry.widgets import _blocks, _markdown

__all__ = ["Growing", "StreamChanges"]

_SECTION = 2000  # characters of HTML after which a section is left as it is
_CODE = 400  # characters of code after which whole lines are finished
_HIDDEN = "<p><em>… more came than is shown; the transcript has all of it</em></p>"
_LIST = re.compile(r'\A<ol(?: start="\d+")?>')


@dataclass(frozen=True, slots=True)
class StreamChanges:
    """What a page has to show anew.

    Attributes:
        sections: A section's number, from 0 at the top, to its whole HTML. A number
            that was not there before is the next one.
        tail: The live end's HTML, below the sections; None where it is as it was.
    """

    sections: Mapping[int, str] = field(default_factory=dict)
    tail: str | None = None


@dataclass(slots=True)
class _Section:
    """Finished pieces that are shown by one element.

    Attributes:
        html: The pieces before the last.
        code: Lines of a code block that is the last piece; None for none.
        label: That block's language.
        joins: Whether it begins inside a code block.
        goes_on: Whether it ends inside one.
    """

    html: str = ""
    code: str | None = None
    label: str = ""
    joins: bool = False
    goes_on: bool = False

    def length(self) -> int:
        return len(self.html) + len(self.code or "")

    def add(self, html: str) -> None:
        if self.code is not None:
            self.html += _markdown.to_code_html(self.code, self.label)
            self.code = None
        self.html += html

    def shown(self) -> str:
        html = self.html
        if self.code is not None:
            html += _markdown.to_code_html(self.code, self.label)
        return _sealed(html, joins=self.joins, goes_on=self.goes_on)


class Growing:
    """A text as it comes; feed it, and ask now and then what to show anew."""

    def __init__(self) -> None:
        self._rest = ""  # what lies in no section yet
        self._fence: _blocks.Fence | None = None  # the code block the rest is in
        self._number = 0  # the rest's list begins with this number; 0: as it says
        self._held = ""  # a carriage return that may be half a line end
        self._room = _markdown.MOST_SHOWN
        self._hidden = False
        self._sections: list[_Section] = []
        self._changed: set[int] = set()
        self._tail = ""

    def feed(self, text: str) -> None:
        """Add text to the end."""
        if not self._room:
            self._hidden = self._hidden or bool(text)
            return
        text = self._held + text
        self._held = "\r" if text.endswith("\r") else ""
        shown = _markdown.readable(text.removesuffix("\r"))
        self._hidden = len(shown) > self._room
        shown = shown[: self._room]
        self._room -= len(shown)
        self._rest += shown

    def changes(self) -> StreamChanges:
        """Return what is to be shown anew since this was called before."""
        while self._settle():
            pass
        tail = self._tail_html()
        changed = {number: self._sections[number].shown() for number in self._changed}
        self._changed.clear()
        if tail == self._tail:
            return StreamChanges(dict(sorted(changed.items())))
        self._tail = tail
        return StreamChanges(dict(sorted(changed.items())), tail)

    @property
    def tail_length(self) -> int:
        """Characters of the live end as it was shown last."""
        return len(self._tail)

    def _settle(self) -> bool:
        """Move what is finished from the rest to a section; return whether any was."""
        if self._fence is not None:
            return self._settle_code(self._fence)
        window = self._rest[: _blocks.LONGEST + 1]
        tokens = _markdown.block_tokens(_blocks.whole_lines(window))
        if tokens is None:
            return self._settle_plain(window)
        fence = _blocks.opened_fence(self._rest)
        if fence is not None:
            self._open(fence)
            return True
        cut = _blocks.settled_cut(window, tokens)
        cut = cut or _blocks.forced_cut(window, tokens)
        if cut is None:
            return False
        self._add(self._markdown_html(window[: cut.length]))
        first = _first_number(window) if cut.items else 0
        self._number = (self._number or first) + cut.items if first else 0
        self._rest = cut.repeat + self._rest[cut.length :]
        return True

    def _settle_plain(self, window: str) -> bool:
        paragraphs = window.rfind("\n\n")
        if paragraphs < 0 and len(window) <= _blocks.LONGEST:
            return False
        cut = _blocks.end_of_words(window) if paragraphs < 0 else paragraphs + 2
        self._add(_markdown.to_plain_html(window[:cut]))
        self._rest = self._rest[cut:]
        return True

    def _settle_code(self, fence: _blocks.Fence) -> bool:
        *whole, coming = self._rest.split("\n")
        for number, line in enumerate(whole):
            if fence.closes(line):
                self._add_code(whole[:number], fence)
                self._sections[-1].goes_on = False
                self._changed.add(len(self._sections) - 1)
                self._fence = None
                self._rest = "\n".join([*whole[number + 1 :], coming])
                return True
        if sum(map(len, whole)) + len(coming) < _CODE:
            return False
        self._add_code(whole, fence)
        self._rest = coming
        if len(coming) > _blocks.LONGEST:  # a line without end
            self._add_code([coming[: _blocks.LONGEST]], fence, end="")
            self._rest = coming[_blocks.LONGEST :]
        return len(self._rest) > _blocks.LONGEST

    def _open(self, fence: _blocks.Fence) -> None:
        section = self._section(inside=False)
        section.add("")
        section.code, section.label = "", _markdown.code_label(fence.info)
        section.goes_on = True
        self._fence, self._number = fence, 0
        self._rest = self._rest[fence.length :]

    def _add(self, html: str) -> None:
        if html:
            self._section(inside=False).add(html)

    def _add_code(
        self, lines: list[str], fence: _blocks.Fence, *, end: str = "\n"
    ) -> None:
        if lines:
            section = self._section(inside=True)
            code = "".join(fence.content(line) + end for line in lines)
            section.code = (section.code or "") + code

    def _section(self, *, inside: bool) -> _Section:
        """Return the section that the next piece belongs to."""
        if not self._sections or self._sections[-1].length() > _SECTION:
            self._sections.append(_Section(joins=inside, goes_on=inside))
        self._changed.add(len(self._sections) - 1)
        return self._sections[-1]

    def _markdown_html(self, text: str) -> str:
        html = _markdown.to_html(text)
        if self._number:
            html = _LIST.sub(f'<ol start="{self._number}">', html, count=1)
        return html

    def _tail_html(self) -> str:
        note = _HIDDEN if self._hidden else ""
        if self._fence is not None:
            return self._code_tail(self._fence, note)
        if not self._rest.strip():
            return note and _sealed(note)
        return _sealed(self._markdown_html(self._rest) + note)

    def _code_tail(self, fence: _blocks.Fence, note: str) -> str:
        lines = self._rest.split("\n")
        if fence.may_close(lines[-1]):
            lines.pop()
        code = "\n".join(map(fence.content, lines))
        return _sealed(_markdown.to_code_html(code) + note, joins=True)


def _first_number(text: str) -> int:
    match = re.match(r" {0,3}(\d{1,9})[.)]", text)
    return int(match[1]) if match else 0


def _sealed(html: str, *, joins: bool = False, goes_on: bool = False) -> str:
    """Return a piece in its element; shorter than wrapped(), as it is sent often."""
    names = _markdown.ANSWER_CLASS
    names += " llamatelemetry-on" * joins + " llamatelemetry-open" * goes_on
    return f'<div class="{names}" dir="auto">{html}</div>'
