"""A model's Markdown as HTML that can do nothing and loads nothing. Pure.

markdown-it-py makes the HTML with tags in the text switched off; nh3 then lets through
only what TAGS names: no images, no styles, no scripts, no names, no classes. Where
either is missing, or a text is made to take long, the text is shown as it was written,
escaped. A link leads to http or https alone, and only when it is clicked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

__all__ = [
    "ANSWER_CLASS",
    "ATTRIBUTES",
    "MOST_SHOWN",
    "STYLE",
    "TAGS",
    "UNTYPESET",
    "block_tokens",
    "code_label",
    "is_contained",
    "readable",
    "to_code_html",
    "to_html",
    "to_plain_html",
    "wrapped",
]

ANSWER_CLASS = "llamatelemetry-answer"
"""The class of an element that holds a model's text; STYLE reaches nothing else."""

UNTYPESET = ("tex2jax_ignore", "mathjax_ignore")
"""Classes that keep MathJax away: a formula's ``\\href`` may run a script."""

MOST_SHOWN = 50_000
"""Characters of one text that are shown; a page of a megabyte is slow to lay out."""

TAGS = frozenset(
    (
        *("p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li"),
        *("blockquote", "pre", "code", "small", "strong", "em", "s", "a"),
        *("table", "thead", "tbody", "tr", "th", "td"),
    )
)
"""The elements that a model's text can become."""

ATTRIBUTES: dict[str, set[str]] = {"a": {"href"}, "ol": {"start"}, "*": set()}
"""Their attributes; a link gets ``rel`` and ``target`` from us besides.

Without a word about all elements nh3 would keep ``title`` and ``lang`` on each.
"""

_SHORTENED = "<p><em>… shortened in the view; the transcript has all of it</em></p>"
_DEEPEST = 20  # levels of quotes and lists; what lies deeper would be left out
_LINK = re.compile(r"https?://", re.IGNORECASE)
_EMPTY_LINE = re.compile(r"\n[ \t]*\n")
_DELIMITER_ROW = re.compile(r"^[ \t>]*[-:|][-:| \t]*$", re.MULTILINE)
_UNREADABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff"  # controls, halves of characters
    "\u202a-\u202e\u2066-\u2069\ufff9-\ufffb]"  # what turns the text around it
)

# Everything is said anew, as notebooks give widgets wide lines and outputs narrow ones.
_RULES = {
    "": "line-height:1.5;overflow:hidden;overflow-wrap:anywhere;unicode-bidi:isolate;"
    "font-size:14px",
    "p,{}ul,{}ol,{}blockquote,{}table,{}pre": "margin:0 0 .6em",
    "p,{}li,{}td,{}th": "unicode-bidi:plaintext;line-height:1.5",
    "ul,{}ol": "padding-left:2em",
    "h1,{}h2,{}h3,{}h4,{}h5,{}h6": "font-size:1.1em;font-weight:600;margin:.8em 0 .4em;"
    "line-height:1.3;unicode-bidi:plaintext",
    "h1": "font-size:1.3em",
    "h2": "font-size:1.2em",
    "hr": "border:0;border-top:1px solid rgba(128,128,128,.4);margin:.8em 0",
    "blockquote": "border-left:3px solid rgba(128,128,128,.4);padding:0 0 0 .8em",
    "code": "font-family:monospace;font-size:.93em;background:rgba(128,128,128,.16);"
    "color:inherit;padding:.1em .25em;border-radius:3px;unicode-bidi:isolate",
    "pre": "background:rgba(128,128,128,.13);color:inherit;padding:.5em .8em;"
    "border-radius:4px;overflow-x:auto;direction:ltr;text-align:left",
    "pre code": "background:none;padding:0;white-space:pre;line-height:1.4;"
    "overflow-wrap:normal",
    "small": "display:block;opacity:.7;font-size:.8em;line-height:1.3",
    "table": "display:block;overflow-x:auto;border-collapse:collapse;border:0",
    "th,{}td": "border:1px solid rgba(128,128,128,.4);padding:.2em .6em;"
    "text-align:start;background:none;min-width:3em",
    "a": "text-decoration:underline",
    "details": "margin:0 0 .6em;padding:.2em .8em;opacity:.85;"
    "border-left:3px solid rgba(128,128,128,.4)",
    "summary": "cursor:pointer;line-height:1.5",
}
_OPEN = f".{ANSWER_CLASS}.llamatelemetry-open>pre:last-child"
_ON = f".{ANSWER_CLASS}.llamatelemetry-on>pre:first-child"
_SEAMS = (  # a list in pieces looks like one, and so does a code block
    f".{ANSWER_CLASS}>ul+ul,.{ANSWER_CLASS}>ol+ol{{margin-top:-.6em}}"
    f"{_OPEN}{{margin-bottom:0;padding-bottom:0;border-bottom-left-radius:0;"
    "border-bottom-right-radius:0}"
    f"{_ON}{{margin-top:0;padding-top:0;border-top-left-radius:0;"
    "border-top-right-radius:0}"
    # Each piece would get a scroll bar of its own, in the middle of the block.
    f"{_OPEN} code,{_ON} code{{white-space:pre-wrap;overflow-wrap:anywhere}}"
)


def _style_sheet() -> str:
    inner = f".{ANSWER_CLASS} "
    rules = (
        f"{inner}{names.format(*[inner] * names.count('{}'))}{{{rule}}}"
        for names, rule in _RULES.items()
    )
    return f"<style>{''.join(rules)}{_SEAMS}</style>"


STYLE = _style_sheet()
"""How answers look, on light and dark ground; a panel shows it once."""


def to_html(text: str) -> str:
    """Return a model's Markdown as clean HTML.

    Args:
        text: The Markdown; what lies beyond MOST_SHOWN is left out, and said so.
    """
    shown = readable(text[:MOST_SHOWN])
    note = _SHORTENED if len(text) > MOST_SHOWN else ""
    html = _rendered(shown)
    return (_plain(shown) if html is None else html) + note


def to_plain_html(text: str) -> str:
    """Return a text as it was written, escaped, with its lines kept."""
    note = _SHORTENED if len(text) > MOST_SHOWN else ""
    return _plain(readable(text[:MOST_SHOWN])) + note


def to_code_html(code: str, label: str = "") -> str:
    """Return a code block, as :func:`to_html` makes one of a fence.

    Args:
        code: Its lines.
        label: The language it says it is in, or nothing.
    """
    head = f"<small>{escape(label)}</small>" if label else ""
    return f"{head}<pre><code>{escape(readable(code), quote=False)}</code></pre>"


def wrapped(html: str) -> str:
    """Return a model's finished HTML in an element that keeps it to itself.

    Its direction of writing, its long lines and its formulas reach nothing around it,
    even on a page without STYLE.

    Args:
        html: Made by the functions here.
    """
    return (
        f'<div class="{" ".join((ANSWER_CLASS, *UNTYPESET))}" dir="auto" '
        f'style="overflow-wrap:anywhere;unicode-bidi:isolate">{html}</div>'
    )


def readable(text: str) -> str:
    """Return a text without what steers a page, or cannot be sent to one.

    Controls, marks that turn the direction of the text around them, and lone halves of
    characters become U+FFFD. Lines, tabs, joiners of emoji, and the marks that Arabic
    and Hebrew are written with stay.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return _UNREADABLE.sub("\ufffd", lines)


def code_label(info: str) -> str:
    """Return what stands behind a fence's marks, which is the language as a rule."""
    return info.strip()[:100]


def block_tokens(text: str) -> Sequence[Token] | None:
    """Return a text's blocks, not what is in their lines.

    Returns:
        markdown-it's tokens, with the lines of each; None where Markdown is not shown.
    """
    parsers = _parsers()
    if parsers is None or _has_made_up_cells(text):
        return None
    return parsers[1].parse(text)


def is_contained(text: str) -> bool:
    """Return whether Markdown in a file keeps to itself, in readers that allow HTML.

    It holds neither HTML nor images, and what follows it is not drawn into it. False
    where that cannot be told: without markdown-it, in very long texts, and where blocks
    are so deep that what is in them is not looked at.
    """
    parsers = _parsers()
    if parsers is None or len(text) > 4 * MOST_SHOWN or _has_made_up_cells(text):
        return False
    reader = type(parsers[0])("commonmark").enable(["table"])
    try:
        tokens = reader.parse(f"{text}\n\n# What follows")
    except RecursionError:
        return False
    following = tokens[-3:][0]
    if following.type != "heading_open" or following.level:
        return False
    inner = [token for each in tokens for token in each.children or ()]
    active = {"html_block", "html_inline", "image"}
    return not any(
        token.type in active or (token.level >= _DEEPEST - 1 and token.block)
        for token in [*tokens, *inner]
    )


def _rendered(text: str) -> str | None:
    """Return readable Markdown as clean HTML; None where it is better left alone."""
    parsers = _parsers()
    if parsers is None or _has_made_up_cells(text):
        return None
    try:
        tokens = parsers[0].parse(text)
        # What lies deeper than its limit is not in the tokens, and would be lost.
        if any(token.level >= _DEEPEST - 1 for token in tokens):
            return None
        html: str = parsers[0].renderer.render(tokens, parsers[0].options, {})
    except RecursionError:
        return None
    # A "<" of the text is "&lt;" here, so this finds elements alone.
    return _cleaned(html).replace("<a ", '<a target="_blank" ')


def _has_made_up_cells(text: str) -> bool:
    """Return whether a table's rows would be filled with more cells than they have.

    Then a few bytes become a megabyte: a row of one letter has as many cells as the
    table's head.
    """
    cells = 0
    for block in _EMPTY_LINE.split(text):
        columns = (row.count("|") for row in _DELIMITER_ROW.findall(block))
        cells += max(columns, default=0) * (block.count("\n") + 1)
    return cells > len(text) + 1000


def _cleaned(html: str) -> str:
    import nh3  # noqa: PLC0415 -- tens of milliseconds, for a chat alone

    return nh3.clean(
        html,
        tags=set(TAGS),
        attributes=ATTRIBUTES,
        attribute_filter=_allowed,
        url_schemes={"http", "https"},
        link_rel="noopener noreferrer nofollow",
    )


def _allowed(_tag: str, name: str, value: str) -> str | None:
    """Return an attribute's value, or None to leave it out.

    An address without a scheme would lead into the notebook's own server.
    """
    if name == "href" and not _LINK.match(value):
        return None
    return value


def _plain(text: str) -> str:
    # A style of its own: this is what is left where nothing else can be trusted.
    return (
        '<p style="white-space:pre-wrap;overflow-wrap:anywhere;margin:0 0 .6em">'
        f"{escape(text, quote=False)}</p>"
    )


def _parsers() -> tuple[MarkdownIt, MarkdownIt] | None:
    """Return the parser, and one for blocks alone; None where a library is missing."""
    try:
        import nh3  # noqa: F401, PLC0415 -- without it no Markdown is shown
        from markdown_it import MarkdownIt  # noqa: PLC0415 -- 60 ms, for a chat alone
    except ImportError:
        return None
    return _built(MarkdownIt)


@cache
def _built(kind: type[MarkdownIt]) -> tuple[MarkdownIt, MarkdownIt]:
    whole = _configured(kind)
    blocks = _configured(kind)
    blocks.core.ruler.enableOnly(["normalize", "block"])
    return whole, blocks


def _configured(kind: type[MarkdownIt]) -> MarkdownIt:
    parser = kind("commonmark", {"html": False, "maxNesting": _DEEPEST})
    parser.enable(["table", "strikethrough"])
    # Models write "---" under a line to part it from what follows, not as a heading,
    # and list their sources as definitions, which would not be shown. Without both,
    # nothing that comes later changes how a finished block looks.
    parser.disable(["lheading", "reference", "image"])
    parser.validateLink = _is_link  # type: ignore[method-assign] # made to be replaced
    parser.add_render_rule("fence", _fence)
    return parser


def _is_link(url: str) -> bool:
    return bool(_LINK.match(url))


def _fence(
    _renderer: Any, tokens: Sequence[Token], index: int, _options: Any, _env: Any
) -> str:
    token = tokens[index]
    return to_code_html(token.content, code_label(token.info)) + "\n"
