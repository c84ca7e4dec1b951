"""What tests know of a page: the standard library's HTML parser, which judges it.

It shares nothing with what makes the HTML, and takes what a browser might.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from html.parser import HTMLParser

VOID = frozenset(("br", "hr"))
OURS = {
    "div": {"class", "dir", "style"},
    "details": set[str](),
    "summary": set[str](),
    "p": {"style"},
}
"""Elements that are put around a model's text, and what they may carry."""
MODELS = {
    **{
        tag: set[str]()
        for tag in (
            *("br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "li", "blockquote"),
            *("pre", "code", "small", "strong", "em", "s"),
            *("table", "thead", "tbody", "tr", "th", "td"),
        )
    },
    "ol": {"start"},
    "a": {"href", "rel", "target"},
}
"""Elements that a model's text may become."""
STYLES = frozenset(
    (
        "overflow-wrap:anywhere;unicode-bidi:isolate",
        "white-space:pre-wrap;overflow-wrap:anywhere;margin:0 0 .6em",
    )
)
CLASSES = frozenset(
    (
        "llamatelemetry-answer",
        "llamatelemetry-answer llamatelemetry-on",
        "llamatelemetry-answer llamatelemetry-open",
        "llamatelemetry-answer llamatelemetry-on llamatelemetry-open",
        "llamatelemetry-answer tex2jax_ignore mathjax_ignore",
    )
)


class Page(HTMLParser):
    """Reads HTML and notes everything that should not be there.

    Attributes:
        faults: What is wrong with it, in words.
        words: Its text.
        links: Where its links lead.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.faults: list[str] = []
        self.words = ""
        self.links: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        self.faults += [f"<{tag}> is not closed" for tag in self._open]
        if any("\ud800" <= letter <= "\udfff" for letter in html):
            self.faults.append("it cannot be sent as UTF-8")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        allowed: Mapping[str, set[str]] = {**MODELS, **OURS}
        if tag not in allowed:
            self.faults.append(f"<{tag}>")
        for name, value in attrs:
            known = name in allowed.get(tag, ())
            if not known or not self._may_be(name, value or ""):
                self.faults.append(f"<{tag} {name}={value!r}>")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1] != tag:
            self.faults.append(f"</{tag}> closes {self._open[-1:]}")
        else:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        self.words += data

    def handle_comment(self, data: str) -> None:
        self.faults.append(f"comment {data!r}")

    def handle_decl(self, decl: str) -> None:
        self.faults.append(f"declaration {decl!r}")

    def handle_pi(self, data: str) -> None:
        self.faults.append(f"instruction {data!r}")

    def unknown_decl(self, data: str) -> None:
        self.faults.append(f"declaration {data!r}")

    def _may_be(self, name: str, value: str) -> bool:
        if name == "href":
            self.links.append(value)
            return (
                re.match(r"https?://[^\s\x00-\x20]+\Z", value, re.IGNORECASE)
                is not None
            )
        known = {
            "rel": {"noopener noreferrer nofollow"},
            "target": {"_blank"},
            "dir": {"auto"},
            "style": STYLES,
            "class": CLASSES,
        }
        return value.isdecimal() if name == "start" else value in known[name]


def faults_of(html: str) -> list[str]:
    """Return what is wrong with HTML that was made of a model's text."""
    return Page(html).faults


def words_of(html: str) -> str:
    """Return the text of HTML, each run of white space as one space."""
    return " ".join(Page(html.replace("<", " <")).words.split())
