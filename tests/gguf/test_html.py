"""Pieces of HTML: well formed, escaped, whole."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from llamatelemetry.gguf._html import COLOURS, FREE, Segment, bar, panel, table

HOSTILE = '<script>alert("1")</script><img src=x onerror=\'y\'> & " onload="z'


class Reader(HTMLParser):
    """Collects tags and text, and fails where tags do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Reader:
    """Return what a browser would see."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


@pytest.mark.parametrize(
    "html",
    [
        panel(HOSTILE, HOSTILE),
        table([(HOSTILE, 1)], header=(HOSTILE, "n")),
        bar([Segment(HOSTILE, 0.5, HOSTILE, HOSTILE)], title=HOSTILE),
    ],
    ids=["panel", "table", "bar"],
)
def test_nothing_of_a_file_becomes_markup(html: str) -> None:
    """Hostile text is shown as text: no tag and no attribute comes from it."""
    seen = read(html)

    assert not {"script", "img"} & set(seen.tags)
    assert set(seen.attributes) <= {"style", "title", "role", "aria-label"}
    assert HOSTILE in seen.text


def test_a_bar_s_segments_have_their_shares() -> None:
    """Widths are the fractions, kept between nothing and the whole."""
    html = bar(
        [
            Segment("a", 0.25, COLOURS[0], "1 GB"),
            Segment("b", 2.0, COLOURS[1]),
            Segment("c", -1.0, FREE),
        ],
        title="bytes",
    )
    seen = read(html)

    assert re.findall(r"width:([\d.]+%)", html) == ["25.000%", "100.000%", "0.000%"]
    assert 'aria-label="a 1 GB; b; c"' in html
    assert "bytes" in seen.text
    assert "a 1 GB" in seen.text


def test_a_table_s_numbers_stand_on_the_right() -> None:
    """Columns of words are on the left; a head row is there only if asked for."""
    html = table([("x", "y", 3)], header=("one", "two", "three"), left=2)
    plain = table([("x", 3)])

    assert re.findall(r'<td style="text-align:(\w+)', html) == [
        "left", "left", "right",
    ]  # fmt: skip
    assert read(html).tags.count("th") == 3
    assert "thead" not in read(plain).tags


def test_a_panel_holds_its_parts_and_huge_texts_are_cut() -> None:
    """Finished parts go in as they are; a megabyte of title does not."""
    part = table([("a", 1)])
    html = panel("t" * 1_000_000, "sub", part)

    assert part in html
    assert len(html) < 3000
    assert read(html).text.count("t") < 400
