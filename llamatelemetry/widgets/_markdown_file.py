"""Texts put into a Markdown file so that none reaches beyond its own place. Pure."""

from __future__ import annotations

import re

from llamatelemetry.widgets import _blocks, _markdown

__all__ = ["contained", "quoted"]

# What becomes HTML or an image outside code. Both stay readable when escaped.
_ACTIVE = re.compile(r"<(?=[A-Za-z/!?])(?!https?://[^\s<>]*>)|!(?=\[)")
_CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")


def contained(text: str) -> str:
    """Return Markdown without HTML and images, and with its code blocks ended.

    What is in code is left as it is where that is safe. Where nothing makes it safe,
    all of it becomes a code block.
    """
    clean = _markdown.readable(text).strip("\n")
    if len(clean) > 4 * _markdown.MOST_SHOWN:
        return _as_code(clean)  # is_contained() would not look at it either
    for spare_code in (True, False):
        escaped, closing = _escaped_text(clean, spare_code=spare_code)
        for tried in (escaped, f"{escaped}\n{closing}"):
            if _markdown.is_contained(tried):
                return tried
    return _as_code(clean)


def quoted(text: str) -> str:
    """Return the same as a quote."""
    return "\n".join(f"> {line}".rstrip() for line in contained(text).split("\n"))


def _escaped_text(text: str, *, spare_code: bool) -> tuple[str, str]:
    """Return a text escaped, and the line that would end its last code block."""
    lines: list[str] = []
    fence: _blocks.Fence | None = None
    for line in text.split("\n"):
        if fence is not None:
            lines.append(line)
            fence = None if fence.closes(line) else fence
            continue
        fence = _blocks.opened_fence(f"{line}\n")
        lines.append(line if fence else _escaped(line, spare_code=spare_code))
    closing = " " * fence.indent + fence.marks if fence is not None else ""
    return "\n".join(lines), closing


def _escaped(line: str, *, spare_code: bool) -> str:
    if not spare_code or "\\`" in line:
        return _ACTIVE.sub(_escape, line)
    parts, end = [], 0
    for span in _CODE_SPAN.finditer(line):
        parts += [_ACTIVE.sub(_escape, line[end : span.start()]), span[0]]
        end = span.end()
    return "".join([*parts, _ACTIVE.sub(_escape, line[end:])])


def _escape(match: re.Match[str]) -> str:
    return "&lt;" if match[0] == "<" else "&#33;"


def _as_code(text: str) -> str:
    longest = max((len(marks) for marks in re.findall("`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}text\n{text}\n{marks}"
