"""A model's Markdown as HTML that can do nothing."""

from __future__ import annotations

import re
import sys

import pytest
from hostile_answers import ANSWERS, LEAK
from hypothesis import given, settings
from hypothesis import strategies as st
from page_tools import Page, faults_of, words_of

from llamatelemetry.widgets import _markdown

MISSING = [("markdown_it",), ("nh3",), ("markdown_it", "nh3")]


@pytest.mark.parametrize("name", ANSWERS)
def test_hostile_markdown_becomes_clean_html(name: str) -> None:
    """No hostile answer becomes an element or attribute that is not named."""
    assert faults_of(_markdown.wrapped(_markdown.to_html(ANSWERS[name]))) == []


@pytest.mark.parametrize("name", ANSWERS)
def test_hostile_text_is_escaped_without_a_library(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without nh3 a hostile answer is text alone, and all of it."""
    monkeypatch.setitem(sys.modules, "nh3", None)
    page = Page(_markdown.to_html(ANSWERS[name]))
    assert page.faults == []
    assert page.links == []
    shown = _markdown.readable(ANSWERS[name][: _markdown.MOST_SHOWN])
    assert page.words.startswith(shown)


@pytest.mark.parametrize("missing", MISSING)
def test_a_missing_library_means_escaped_text(
    missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever library is missing, the text is shown as written and never raw."""
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    html = _markdown.to_html("# a <b>\n\n**c**")
    assert "# a &lt;b&gt;\n\n**c**" in html
    assert html.startswith('<p style="white-space:pre-wrap')


def test_markdown_is_rendered() -> None:
    """What Markdown can say comes out as elements."""
    html = _markdown.to_html(
        "# one\n\n- a\n\n3. b\n\n|c|d|\n|-|-|\n|e|f|\n\n> g\n\n```py\nh\n```\n\n"
        "i\n***\n~~j~~ **k** *l* `m` [n](https://a.b/?c=1&d=2)"
    )
    for part in (
        "<h1>one</h1>",
        "<ul>\n<li>a</li>\n</ul>",
        '<ol start="3">',
        "<td>f</td>",
        "<blockquote>",
        "<small>py</small><pre><code>h\n</code></pre>",
        "<hr>",
        "<s>j</s> <strong>k</strong> <em>l</em> <code>m</code>",
        '<a target="_blank" href="https://a.b/?c=1&amp;d=2" '
        'rel="noopener noreferrer nofollow">n</a>',
    ):
        assert part in html


@pytest.mark.parametrize("name", [name for name in ANSWERS if "image" in name])
def test_no_image_is_left(name: str) -> None:
    """An image becomes text or a link that only a click follows."""
    html = _markdown.to_html(ANSWERS[name])
    assert "<img" not in html
    assert not re.search(rf"<[^a][^>]*{LEAK}", html)


def test_what_a_rule_or_a_source_would_hide_is_shown() -> None:
    """A line under a text makes no heading, and sources at the end are shown."""
    html = _markdown.to_html("a\n---\nb [1]\n\n[1]: https://a.b")
    assert words_of(html) == "a b [1] [1]: https://a.b"
    assert "<hr>" in html


@pytest.mark.parametrize("name", ANSWERS)
def test_no_text_is_lost(name: str) -> None:
    """Every letter of an answer is on the page, or the page says it is not."""
    page = Page(_markdown.to_html(ANSWERS[name]))
    if "the transcript has all of it" in page.words:
        return
    shown = page.words + "".join(page.links)
    text = _markdown.readable(ANSWERS[name])
    text = re.sub(r"&#?\w+;", "", text)  # an entity is shown as its character
    addresses = re.compile(r"\]\([^)]*\)?")  # in links, often encoded
    letters = [letter for letter in addresses.sub("", text) if letter.isalnum()]
    found = iter(shown)
    rest = [letter for letter in letters if letter not in found]
    # A number of a list, the language of a block once: no more is missing.
    assert len(rest) <= 2 or not addresses.sub("", text).strip("[a")


def test_deep_nesting_is_shown_as_text() -> None:
    """Quotes deeper than are drawn are shown as written, not left out."""
    html = _markdown.to_html("> " * 30 + "the end")
    assert words_of(html) == "> " * 30 + "the end"
    assert "the end" in _markdown.to_html("> " * 5 + "the end")


def test_no_more_cells_than_were_written() -> None:
    """A table's short rows are not filled up until a few bytes are a megabyte."""
    assert len(_markdown.to_html(ANSWERS["made_up_cells"])) < 200_000
    honest = "|a" * 30 + "|\n" + "|-" * 30 + "|\n" + ("|b" * 30 + "|\n") * 200
    assert _markdown.to_html(honest).count("<td>") == 6000


def test_a_megabyte_is_shortened() -> None:
    """Of a very long answer the beginning is shown, with a note about the rest."""
    for show in (_markdown.to_html, _markdown.to_plain_html):
        html = show("word " * 200_000)
        assert len(html) < _markdown.MOST_SHOWN + 500
        assert "shortened in the view; the transcript has all of it" in html


@pytest.mark.parametrize(
    "text",
    ["مرحبا", "שלום", "👩‍👩‍👧‍👦", "a\u200bb\u200d\u200c", "\u200f.\u061c", "a\tb\nc"],
)
def test_scripts_of_the_world_stay_as_they_are(text: str) -> None:
    """Joiners, marks of Arabic and Hebrew, tabs and lines are kept."""
    assert _markdown.readable(text) == text


@pytest.mark.parametrize("letter", "\x00\x07\x1b\x7f\x85\u202a\u202e\u2066\u2069\ud800")
def test_what_steers_a_page_is_made_visible(letter: str) -> None:
    """Controls, marks that turn what follows, and half letters become U+FFFD."""
    assert _markdown.readable(f"a{letter}b") == "a\ufffdb"


def test_all_line_ends_are_one() -> None:
    """Line ends of Windows and of old Macs become line feeds."""
    assert _markdown.readable("a\r\nb\rc\n") == "a\nb\nc\n"


def test_the_language_of_a_block_is_short_and_text() -> None:
    """What stands behind a fence is shown above the block, short and escaped."""
    html = _markdown.to_html(f"```{'x' * 200}\n```")
    assert f"<small>{'x' * 100}</small><pre>" in html
    assert "<small>&lt;b&gt; c</small><pre>" in _markdown.to_html("``` <b> c \n```")


def test_the_style_sheet_reaches_only_answers() -> None:
    """Every rule of the style sheet is about answers, and none loads anything."""
    rules = _markdown.STYLE.removeprefix("<style>").removesuffix("</style>")
    for rule in re.findall(r"([^{}]+)\{[^{}]*\}", rules):
        assert all(
            name.startswith(f".{_markdown.ANSWER_CLASS}") for name in rule.split(",")
        )
    assert "url" not in rules
    assert "<" not in rules
    assert re.sub(r"[^{}]+\{[^{}]*\}", "", rules) == ""


PIECES = st.sampled_from(
    [
        *"<>&\"'`*_[]()!#|-~:\\/= \t\n\r\x00\u202e",
        *("\n\n", "```", "~~~", "    ", "- ", "1. ", "> ", "](", "![", "<a ", "<b>"),
        *("javascript:", "https://", "onerror=", "</code>", "</pre>"),
        *(
            "|a|b|\n|-|-|\n",
            "word",
            "&lt;",
            "&#x3c;",
            "<!--",
            "<![CDATA[",
            "<?",
            "href",
            "\ud800",
        ),
    ]
)


@given(st.lists(PIECES, max_size=60).map("".join))
@settings(max_examples=300, deadline=None)
def test_nothing_made_of_such_pieces_is_harmful(text: str) -> None:
    """However the pieces of Markdown and HTML are put together, the page is clean."""
    assert faults_of(_markdown.wrapped(_markdown.to_html(text))) == []
