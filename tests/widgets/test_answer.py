"""A streamed answer: its pieces on the page, its reasoning, its bytes."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from hostile_answers import ANSWERS
from hypothesis import given, settings
from hypothesis import strategies as st
from page_tools import Page, faults_of, words_of

from llamatelemetry.widgets import _markdown
from llamatelemetry.widgets._answer import AnswerView, StreamChanges, answer_html

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "chat_rendering.py"


class Shown:
    """A page that shows an answer's pieces as it is told."""

    def __init__(self) -> None:
        self.sections: list[str] = []
        self.tail = ""
        self.sent: list[str] = []

    def apply(self, changes: StreamChanges) -> None:
        for number, html in changes.sections.items():
            assert number <= len(self.sections), "a section was left out"
            self.sections[number : number + 1] = [html]
        if changes.tail is not None:
            self.tail = changes.tail
        self.sent += changes.sections.values()
        self.sent += [changes.tail] if changes.tail else []

    @property
    def html(self) -> str:
        return "\n".join([*self.sections, self.tail])


def streamed(text: str, pieces: Sequence[int]) -> Shown:
    """Return a page that was shown a text in pieces of these lengths, then the rest."""
    view, shown, start = AnswerView(), Shown(), 0
    for length in [*pieces, len(text)]:
        view.feed(text[start : start + length])
        start += length
        shown.apply(view.changes())
    return shown


def pieces_of(text: str, seed: int) -> list[int]:
    chance = random.Random(seed)
    return chance.choices((1, 2, 3, 7, 40, 400), k=max(10, len(text) // 8))


LENGTHS = st.lists(st.integers(1, 60), max_size=40)
BLOCK = st.sampled_from(
    [
        "# Heading\n",
        "Words of **one** paragraph\nin two lines.\n\n",
        "Before a list:\n- a\n- b\n\n  more of b\n- c\n\n",
        "1. one\n2. two\n\n3. three\n   ```py\n   x = 1\n\n   y\n   ```\n\n",
        "7) seven\n8) eight\n",
        "* star\n\n",
        "---\n",
        "> quote\nlazily\n\n",
        "|a|b|\n|:-|-:|\n|1|`2`|\n\n",
        "```python\ndef f():\n\n    return 1\n```\n",
        "~~~\n```\ninside\n~~~~\n",
        "   ````js x\n   a\n     b\n   ```\n  c\n   ````\n",
        "    indented\n\n    code\n\n",
        "text\n    goes on\n\n",
        "[link](https://a.b) and ![image](https://c.d)\n\n",
        "\n\n",
        "<b>not bold</b>\n\n",
        "-\n- \n\n",
        "1\n\n",
    ]
)


@given(st.lists(BLOCK, max_size=12).map("".join), LENGTHS)
@settings(max_examples=300, deadline=None)
def test_pieces_say_what_the_whole_says(text: str, lengths: list[int]) -> None:
    """However an answer comes, its pieces show the words that the whole shows."""
    shown = streamed(text, lengths)
    assert words_of(shown.html) == words_of(answer_html(text))
    assert faults_of(shown.html) == []


@given(st.lists(BLOCK, max_size=12).map("".join), LENGTHS)
@settings(max_examples=100, deadline=None)
def test_a_finished_piece_never_changes(text: str, lengths: list[int]) -> None:
    """What a section shows only grows at its end, and older sections are left alone."""
    view, words, start = AnswerView(), dict[int, str](), 0
    for length in [*lengths, len(text)]:
        view.feed(text[start : start + length])
        start += length
        changes = view.changes()
        for number, html in changes.sections.items():
            assert number >= len(words) - 1
            assert words_of(html).startswith(words.get(number, ""))
            words[number] = words_of(html)


@pytest.mark.parametrize("name", ANSWERS)
def test_hostile_answers_are_clean_at_every_step(name: str) -> None:
    """Each piece of a hostile answer is clean and closed, wherever it was cut."""
    text = ANSWERS[name]
    shown = streamed(text, pieces_of(text[:1000], seed=len(text)))
    for html in shown.sent:
        assert faults_of(html) == []


@pytest.mark.parametrize("name", ANSWERS)
def test_hostile_answers_cost_few_bytes(name: str) -> None:
    """A hostile answer cannot make a page be sent megabytes, or hold many widgets."""
    text = ANSWERS[name]
    shown = streamed(text, [max(7, len(text) // 25)] * 25)
    assert sum(map(len, shown.sent)) < 700_000
    assert len(shown.sections) < 200
    assert len(answer_html(text)) < 500_000


@given(st.text(max_size=300), LENGTHS)
@settings(deadline=None)
def test_any_text_is_clean_at_every_step(text: str, lengths: list[int]) -> None:
    """Whatever characters come, each piece is clean and closed."""
    for html in streamed(text, lengths).sent:
        assert faults_of(html) == []


def test_without_a_library_pieces_are_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nh3 the pieces together are the text as it was written."""
    monkeypatch.setitem(sys.modules, "nh3", None)
    text = "# a <b>\n\n1. **c**\n\n" + "word " * 3000 + "\n\n```\nd"
    shown = streamed(text, pieces_of(text, seed=1))
    page = Page("".join([*shown.sections, shown.tail]))
    assert page.words == text
    assert page.faults == []


def test_a_code_block_is_left_line_by_line() -> None:
    """In a code block that goes on only the last lines are sent again."""
    lines = [f"line_{number} = compute({number})\n" for number in range(300)]
    view, shown = AnswerView(), Shown()
    view.feed("Look:\n\n```python\n")
    for line in lines:
        view.feed(line)
        shown.apply(view.changes())
        assert len(shown.tail) < 600
    assert words_of(shown.html) == f"Look: python {' '.join(''.join(lines).split())}"
    assert shown.sections[1].startswith(
        '<div class="llamatelemetry-answer llamatelemetry-on llamatelemetry-open"'
    )
    view.feed("```\nAfter.")
    shown.apply(view.changes())
    assert "open" not in shown.sections[-1].partition(">")[0]
    assert shown.tail == (
        '<div class="llamatelemetry-answer" dir="auto"><p>After.</p>\n</div>'
    )


def test_the_end_of_a_code_block_is_not_shown_as_code() -> None:
    """The marks that end a block are not seen while they come."""
    view, shown = AnswerView(), Shown()
    for piece in ("```\n", "a\n", "`", "``"):
        view.feed(piece)
        shown.apply(view.changes())
    assert words_of(shown.html) == "a"


def test_a_long_list_keeps_its_numbers() -> None:
    """A list that is cut goes on with the number that comes next."""
    items = "".join(f"1. item {'of some length ' * 3}\n" for _ in range(60))
    shown = streamed(items, [30] * 200)
    starts = [int(part.split('"')[1]) for part in shown.html.split("<ol start=")[1:]]
    assert starts == sorted(set(starts))
    counts = [part.count("<li>") for part in shown.html.split("<ol")[1:]]
    assert starts == [sum(counts[:n]) + 1 for n in range(1, len(counts))]
    assert sum(counts) == 60


def test_a_long_table_keeps_its_head() -> None:
    """A table that is cut shows its head again, and every row once."""
    rows = [f"|row {number}|value|\n" for number in range(200)]
    shown = streamed("|name|what|\n|-|-|\n" + "".join(rows), [25] * 200)
    assert shown.html.count("<table>") > 2
    assert shown.html.count("<table>") == shown.html.count("<th>name</th>")
    assert [shown.html.count(f"<td>row {n}</td>") for n in range(200)] == [1] * 200


def test_a_very_long_answer_is_shortened_on_the_page_alone() -> None:
    """What is not shown is kept, and the page says so."""
    text = "word " * 40_000
    view, shown = AnswerView(), Shown()
    for start in range(0, len(text), 1000):
        view.feed(text[start : start + 1000])
        shown.apply(view.changes())
    assert "more came than is shown" in shown.tail
    assert len(shown.html) < 1.2 * _markdown.MOST_SHOWN
    assert "the transcript has all of it" in view.finish()
    assert view.content == text


def test_nothing_new_is_nothing_to_send() -> None:
    """Asking twice gives no changes the second time."""
    view = AnswerView()
    assert view.changes() == StreamChanges()
    view.feed("a\n\nb")
    assert view.changes() != StreamChanges()
    assert view.changes() == StreamChanges()


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_tags_around_reasoning_are_understood(size: int) -> None:
    """Reasoning between tags at the beginning of an answer is told apart from it."""
    view = AnswerView()
    text = "\n <think>\nFirst </thin </b> this.\n</think>\n\nThe <think> answer."
    for start in range(0, len(text), size):
        view.feed(text[start : start + size])
    html = view.finish()
    assert view.reasoning == "\nFirst </thin </b> this.\n"
    assert view.content == "The <think> answer."
    assert "<details><summary>Reasoning, 4 words</summary>" in html
    assert faults_of(html) == []


@pytest.mark.parametrize(
    ("text", "content", "reasoning"),
    [
        ("<thi", "<thi", ""),
        ("<think>a</thi", "", "a</thi"),
        ("<thinking>a", "<thinking>a", ""),
        ("  ", "  ", ""),
        ("a <think>b</think>", "a <think>b</think>", ""),
        ("", "", ""),
    ],
)
def test_what_only_looks_like_a_tag_is_kept(
    text: str, content: str, reasoning: str
) -> None:
    """Text that is held back until it is clear what it is comes at the end."""
    view = AnswerView()
    for letter in text:
        view.feed(letter)
    view.finish()
    assert (view.content, view.reasoning) == (content, reasoning)


def test_reasoning_that_the_server_parts_is_shown_apart() -> None:
    """Reasoning has pieces of its own, and an answer may then begin with any text."""
    view, shown, thoughts = AnswerView(), Shown(), Shown()
    view.feed(reasoning="Let me **see**.")
    assert view.thinking
    assert view.reasoning_title() == "Thinking … 3 words"
    view.feed(content="<think>is a tag")
    assert not view.thinking
    assert view.reasoning_title() == "Reasoning, 3 words"
    shown.apply(view.changes())
    thoughts.apply(view.reasoning_changes())
    assert words_of(shown.html) == "<think>is a tag"
    assert "<strong>see</strong>" in thoughts.html
    assert words_of(view.finish()) == "Reasoning, 3 words Let me see . <think>is a tag"
    assert AnswerView().reasoning_title() == ""


def test_a_line_end_cut_in_two_is_one() -> None:
    """A line end of two characters that comes in two pieces is one line end."""
    view, shown = AnswerView(), Shown()
    for piece in ("```\r", "\na\r", "\nb\r\n"):
        view.feed(piece)
        shown.apply(view.changes())
    assert "<code>a\nb" in shown.html


def test_longer_ends_are_sent_less_often() -> None:
    """The wait until the next look grows with what would be sent, within bounds."""
    view = AnswerView()
    assert view.interval == pytest.approx(0.1)
    view.feed("word " * 30)
    view.changes()
    assert 0.1 < view.interval < 0.2
    view.feed("word " * 200)
    view.changes()
    assert view.interval == pytest.approx(0.2)


def benchmark() -> ModuleType:
    """Return the benchmark as a module."""
    found = importlib.util.spec_from_file_location("chat_rendering", BENCHMARK)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("shape", "most"), [("paragraphs", 200_000), ("code", 400_000), ("items", 250_000)]
)
def test_an_answer_costs_few_bytes(shape: str, most: int) -> None:
    """Answers of 1,024 tokens at 40 tokens/s stay within the bounds for bytes sent."""
    measured = benchmark()
    tokens = getattr(measured, shape)()
    sent, messages = measured.as_the_panel(tokens)
    assert len(tokens) == 1024
    assert sent <= most
    assert messages <= 10 * 1024 / 40


def test_pieces_can_be_sent_as_json() -> None:
    """Every piece of answers with broken characters can be sent to a page."""
    for name in ("surrogates", "controls", "right_to_left"):
        for html in streamed(ANSWERS[name], [1] * 100).sent:
            json.dumps(html, ensure_ascii=False).encode()
