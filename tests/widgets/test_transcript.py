"""A conversation as values, JSON, Markdown and a cell."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from client_tools import StandIn
from hostile_answers import ANSWERS
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.widgets._markdown import is_contained
from llamatelemetry.widgets._transcript import (
    Turn,
    from_json,
    messages_for,
    to_cell,
    to_json,
    to_markdown,
)

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
ASKED = Turn(role="user", content="What is *this*?", images=(PICTURE,))
SAID = Turn(
    role="assistant",
    content="A cat.\n\n```py\ncat()\n```",
    reasoning="Four legs,\n\nand a tail.",
    model="tiny",
    sampling={"temperature": 0.5, "seed": 7, "max_tokens": 5, "stop": ["x"]},
    prompt_tokens=10,
    completion_tokens=5,
    context_size=512,
    seconds_to_first_token=0.25,
    tokens_per_second=12.34,
    finish_reason="length",
)
TALK = [ASKED, SAID, Turn(role="user", content="Sure?")]

TEXTS = st.text() | st.sampled_from(
    [text for text in ANSWERS.values() if len(text) < 2000]
)
TURNS = st.lists(
    st.builds(
        Turn,
        role=st.sampled_from(["user", "assistant"]),
        content=TEXTS,
        reasoning=st.text(),
        sampling=st.dictionaries(st.text(), st.integers() | st.text() | st.none()),
        tokens_per_second=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        finish_reason=st.none() | st.text(),
    ),
    max_size=4,
)


def test_the_messages_leave_reasoning_out() -> None:
    """What is sent again holds texts and images, and neither reasoning nor figures."""
    assert messages_for(TALK, "Be brief.") == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What is *this*?"}, PICTURE],
        },
        {"role": "assistant", "content": "A cat.\n\n```py\ncat()\n```"},
        {"role": "user", "content": "Sure?"},
    ]


def test_a_blank_system_prompt_is_no_message() -> None:
    """Blank system prompts are not sent, nor is an empty text beside an image."""
    image_alone = Turn(role="user", content="", images=(PICTURE,))
    assert messages_for([image_alone], " \n") == [
        {"role": "user", "content": [PICTURE]}
    ]


def test_json_comes_back_as_it_was() -> None:
    """A conversation read back from JSON equals the one that was written."""
    assert from_json(to_json(TALK, "Be brief.")) == (TALK, "Be brief.")


@given(TURNS, st.text())
@settings(deadline=None)
def test_any_conversation_comes_back(turns: list[Turn], system: str) -> None:
    """Whatever was said, JSON brings it back."""
    back, told = from_json(to_json(turns, system))
    assert [turn.content for turn in back] == [turn.content for turn in turns]
    assert [turn.reasoning for turn in back] == [turn.reasoning for turn in turns]
    assert told == system


def test_json_says_what_it_is() -> None:
    """The JSON names its format and version, and leaves out what is not known."""
    document = json.loads(to_json([Turn(role="user", content="")]))
    assert document == {
        "format": "llamatelemetry.chat",
        "version": 1,
        "system": "",
        "turns": [{"role": "user", "content": ""}],
    }


def test_json_leaves_out_what_cannot_be_kept() -> None:
    """A function or a class among the options does not stop the writing."""
    sampling = {"on_progress": print, "response_format": Turn, "x": [float("nan")]}
    turn = Turn(role="assistant", content="", sampling={**sampling, "seed": 1})
    assert from_json(to_json([turn]))[0][0].sampling == {"seed": 1}
    assert "print" not in to_cell([ASKED, turn]).partition("for question")[0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "other"}, "this is no llamatelemetry.chat of version 1"),
        ({"version": 2}, "of version 2"),
        ({"turns": {}}, "of no use"),
        ({"system": None}, "of no use"),
        ({"turns": [1]}, "turn 1 of the transcript is no object"),
        ({"turns": [{"role": "tool", "content": ""}]}, "a role that cannot be: 'tool'"),
        ({"turns": [{"role": "user", "content": 1}]}, "a content that cannot be: 1"),
        ({"turns": [{"role": "user"}]}, "no transcript of a chat"),
        ({"turns": [{"role": "user", "content": "", "images": [1]}]}, "images"),
        ({"turns": [{"role": "user", "content": "", "images": 1}]}, "no transcript"),
        ({"turns": [{"role": "user", "content": "", "sampling": 1}]}, "sampling"),
        ({"turns": [{"role": "user", "content": "", "model": 1}]}, "model"),
        ({"turns": [{"role": "user", "content": "", "prompt_tokens": "1"}]}, "tokens"),
    ],
)
def test_a_broken_transcript_is_refused(change: dict[str, Any], told: str) -> None:
    """What is no transcript is refused with a sentence that names the place."""
    document = {**json.loads(to_json(TALK)), **change}
    with pytest.raises(ConfigurationError, match=told):
        from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "1", "[]", "{}", "null", "{", "[" * 100_000])
def test_other_json_is_refused(text: str) -> None:
    """Other JSON, or none, is refused."""
    with pytest.raises(ConfigurationError, match="no transcript of a chat"):
        from_json(text)


def test_no_number_that_is_none() -> None:
    """NaN and infinity, which JSON does not have, are refused."""
    with pytest.raises(ConfigurationError, match="NaN"):
        from_json('{"version": NaN}')


def test_later_keys_are_passed_over() -> None:
    """A turn may hold more than is known here."""
    document = json.loads(to_json(TALK))
    document["turns"][0]["mood"] = "good"
    assert from_json(json.dumps(document))[0] == TALK


def test_markdown_reads_well() -> None:
    """The file shows who said what, quotes reasoning, and tells the figures."""
    assert to_markdown(TALK, "Be brief.") == (
        "# Conversation\n\n"
        "## System\n\nBe brief.\n\n"
        "## You\n\nWhat is *this*?\n\n*images: 1, kept in the JSON transcript*\n\n"
        "## Model\n\n> Reasoning:\n>\n> Four legs,\n>\n> and a tail.\n\n"
        "A cat.\n\n```py\ncat()\n```\n\n"
        "*`tiny`, 5 tokens, 12.3 tokens/s, first token after 0.25 s, "
        "ended by `length`*\n\n"
        "## You\n\nSure?\n"
    )


def test_markdown_leaves_code_as_it_is() -> None:
    """Tags in code stay as they are; tags outside are escaped, images are no images."""
    said = "`List<int>` and <b>\n\n```html\n<b>\n```\n![a](https://b.c) <https://d.e>"
    assert (
        "`List<int>` and &lt;b>\n\n```html\n<b>\n```\n&#33;[a](https://b.c) "
        "<https://d.e>"
    ) in to_markdown([Turn(role="user", content=said)])


def headings_and_active(text: str) -> tuple[list[str], set[str]]:
    """Return a document's top headings, and what of it is HTML or an image."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    headings = [
        tokens[index + 1].content
        for index, token in enumerate(tokens)
        if token.type == "heading_open" and token.level == 0
    ]
    inner = [token for each in tokens for token in each.children or ()]
    kinds = {token.type for token in [*tokens, *inner]}
    return headings, kinds & {"html_block", "html_inline", "image"}


@pytest.mark.parametrize("name", ANSWERS)
def test_markdown_keeps_every_turn_apart(name: str) -> None:
    """A hostile answer becomes no HTML, and what follows it is not drawn into it."""
    hostile = Turn(role="assistant", content=ANSWERS[name], reasoning=ANSWERS[name])
    written = to_markdown([hostile, Turn(role="user", content="after")])
    headings, active = headings_and_active(written)
    assert headings[-1] == "You"
    assert active == set()
    assert written.endswith("\n\n## You\n\nafter\n")


@given(TURNS)
@settings(max_examples=50, deadline=None)
def test_any_conversation_is_markdown(turns: list[Turn]) -> None:
    """Whatever was said, each turn has its heading and nothing is HTML."""
    headings, active = headings_and_active(to_markdown(turns))
    roles = ["You" if turn.role == "user" else "Model" for turn in turns]
    found = iter(headings)
    assert all(role in found for role in roles)
    assert active == set()


def test_markdown_without_a_library_is_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can tell what a text would become, it is kept as code."""
    monkeypatch.setitem(sys.modules, "markdown_it", None)
    written = to_markdown([Turn(role="user", content="a ``` <b>")])
    assert "````text\na ``` &lt;b>\n````" in written or "````text\na ``` <b>" in written


@pytest.mark.parametrize("name", ANSWERS)
def test_a_cell_holds_hostile_texts_as_literals(name: str) -> None:
    """Whatever was said, a cell is the same few statements around literals."""
    told = ANSWERS[name][:5000] + "\"\"\" ''' \\\n{0} \\N{BULLET} %s"
    turns = [Turn(role="user", content=told), Turn(role="assistant", content=told)]
    source = to_cell(turns, told, url=told)
    shape = [type(node).__name__ for node in ast.parse(source).body]
    assert shape == ["ImportFrom", "Assign", "Assign", "Assign", "For"]
    made = {
        node.targets[0].id: node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert ast.literal_eval(made["messages"]) == [{"role": "system", "content": told}]
    questions = ast.literal_eval(made["questions"])
    assert questions == [({"role": "user", "content": told}, {})]
    # The name of an attribute or a call comes from us alone.
    assert source.isascii() or all(map(str.isprintable, source.split("\n")))


def test_a_cell_asks_the_same_again(stand_in: StandIn) -> None:
    """Run as a program, a cell asks each question with its sampling and the answers."""
    turns = [
        Turn(role="user", content="One?"),
        Turn(role="assistant", content="1", sampling={"seed": 3, "max_tokens": 4}),
        Turn(role="user", content="Two?"),
    ]
    url = stand_in.url()
    result = subprocess.run(
        [sys.executable, "-c", to_cell(turns, "Count.", url=url)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    bodies = [entry["body"] for entry in stand_in.seen(url) if entry["body"]]
    first, second = bodies
    assert [message["content"] for message in first["messages"]] == ["Count.", "One?"]
    assert (first["seed"], first["max_tokens"]) == (3, 4)
    answer = result.stdout.split("\n")[0]
    assert [message["content"] for message in second["messages"]] == [
        *("Count.", "One?", answer, "Two?"),
    ]


def test_a_finish_reason_is_a_word_in_a_file() -> None:
    """What a server calls an answer's end becomes neither HTML nor an image."""
    for reason in ("<img src=//leak.example>", "![a](https://leak.example)", "`<b>`"):
        turn = Turn(role="assistant", content="Yes.", finish_reason=reason)
        assert is_contained(to_markdown([turn]))


def test_a_number_that_is_none_is_refused() -> None:
    """What JSON reads as infinite could not be written again."""
    text = to_json([Turn(role="user", content="a", tokens_per_second=1.5)])
    with pytest.raises(ConfigurationError, match="tokens_per_second that cannot be"):
        from_json(text.replace("1.5", "1e999"))


def test_a_cell_of_nothing_asks_nothing() -> None:
    """A conversation in which nothing was said is a cell too."""
    compile(to_cell([]), "cell", "exec")
    assert "questions = []" in to_cell([])
