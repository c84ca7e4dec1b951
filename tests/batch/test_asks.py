"""What is asked for a row: templates, messages, functions, and the key of it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from llamatelemetry.api.responses import Message
from llamatelemetry.batch import map_prompts
from llamatelemetry.batch._asks import _OWN_OPTIONS, NO_KEY, Asker, RowError
from llamatelemetry.batch._rows import Row
from llamatelemetry.batch._schema import Schema
from llamatelemetry.batch._texts import Texts
from llamatelemetry.exceptions import ConfigurationError

SCHEMA = {"type": "object"}


def row(value: Any, position: int = 0) -> Row:
    return Row(position, position, value)


def text_of(prompt: Any, value: Any, **options: Any) -> str:
    (message,) = Asker(prompt, **options).ask(row(value)).messages
    assert message["role"] == "user"
    content: str = message["content"]
    return content


def test_a_template_is_filled_from_the_columns() -> None:
    """Fields, formats, conversions, inner values and doubled braces work as usual."""
    value = {"n": 7, "text": "ä", "with blank": 1.23456, "inner": {"k": ["x"]}, "w": 4}

    assert text_of("{n:03d} {text!r:>5} {{}}", value) == "007   'ä' {}"
    assert text_of("{with blank:.2f} {inner[k][0]}", value) == "1.23 x"
    assert text_of("{n:>{w}}", value) == "   7"


def test_a_row_that_is_a_plain_value_is_the_field_row() -> None:
    """{row} and {} stand for it, also inside of what it holds."""
    assert text_of("Say {row} and {}", "hi") == "Say hi and hi"
    assert text_of("{row[1]}", ["a", "b"]) == "b"
    assert text_of("{row}", {"row": "a column"}) == "a column"


def test_a_missing_value_is_empty_as_in_a_csv() -> None:
    """None in one of several fields leaves nothing, whatever its format."""
    assert text_of("{a}|{b:>5}|{c:.2f}", {"a": "x", "b": None, "c": None}) == "x||"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Say {txt}", "no column 'txt'; they have 'text', 'n'. Braces that"),
        ('Answer like {"a": 1}', "no column '\"a\"'.*are doubled"),
        ("Say {text", "cannot be read as a template .*are doubled"),
        ("Say }", "cannot be read as a template"),
        ("Say {n:{width}}", "no column 'width'"),
        ("Say {text.__class__}", "looks inside of an object"),
        ("Say {text[__class__]}", "looks inside of an object"),
        ("Say {n:{text.__doc__}}", "looks inside of an object"),
        ("Say {[0]}", "names no column"),
        ("Say {}", "no column 'row'.*are for rows that are plain values.*: {text}$"),
        ("Say {row}", "no column 'row'.*are for rows that are plain values"),
        ("Say {0}", "no column '0'"),
        ("{} is {}", "{} more than once; {row} stands"),
        ("{:{}}", "{} more than once"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused_at_once(
    template: str, message: str
) -> None:
    """The error names the field, the columns, and how braces are written."""
    with pytest.raises(ConfigurationError, match=message):
        Asker(template, names=("text", "n"))


def test_a_number_is_a_column_of_that_name() -> None:
    """So are columns named in a table without a header, of a frame or of dicts."""
    for names in (("0", "1"), ()):
        asker = Asker("{1}, {0:>3}", names=names)
        assert asker.ask(row({"0": "x", "1": "y"})).messages[0]["content"] == "y,   x"
    assert text_of("{1[0]}{0}", {0: "x", 1: "y"}) == "yx"
    with pytest.raises(ConfigurationError, match=r"which \{row\} stands for"):
        text_of("{0}", "x")


@pytest.mark.parametrize("name", ["Sepal.Length", "Sepal: long", "Sepal[cm]"])
def test_a_column_that_cannot_be_a_field_is_told(name: str) -> None:
    """Its name means something else in a template, whether known before or not."""
    remedy = "cannot be a field: rename it, or use a function"

    with pytest.raises(ConfigurationError, match=remedy):
        Asker(f"How long? {{{name}}}", names=("n", name))
    with pytest.raises(ConfigurationError, match=remedy):
        text_of(f"How long? {{{name}}}", {"n": 1, name: 2})


def test_another_delimiter_of_a_csv_is_told() -> None:
    """One column with a semicolon in its name is seldom one column."""
    with pytest.raises(ConfigurationError, match=r"they have 'a;b'\. If ';' is what"):
        Asker("{a}", names=("a;b",))
    with pytest.raises(ConfigurationError, match=r"they have a;b\. If ';' is what"):
        Texts("a", ("a;b",))
    with pytest.raises(ConfigurationError, match="doubled"):
        Asker("{a}", names=("b;c", "d"))
    with pytest.raises(ConfigurationError, match="they have b, d$"):
        Texts("a", ("b", "d"))


def test_a_row_without_an_optional_column_is_its_own_error() -> None:
    """Where the columns of all rows are known, the first row is as any other."""
    lacking = row({"a": "x"})

    with pytest.raises(RowError, match="the row has 'a'"):
        Asker("{a} {b}", names=("a", "b")).ask(lacking)
    with pytest.raises(RowError, match="the row has 'a'"):
        Texts("{a} {b}", ("a", "b")).of(lacking)
    with pytest.raises(ConfigurationError, match="the row has 'a'"):
        Texts("{a} {b}", ()).of(lacking)


def test_a_long_list_of_columns_is_cut() -> None:
    """A message names twenty columns at most."""
    with pytest.raises(ConfigurationError) as caught:
        Asker("{x}", names=[f"column {n}" for n in range(30)])

    assert "'column 19', …" in str(caught.value)
    assert "column 20" not in str(caught.value)


def test_columns_that_are_not_known_before_are_checked_with_the_first_row() -> None:
    """The first row without a field ends the call; a later one is its own error."""
    asker = Asker("Say {text}")

    with pytest.raises(ConfigurationError, match=r"\{text\}; the row has 'txt'"):
        asker.ask(row({"txt": 1}))
    with pytest.raises(ConfigurationError, match="plain values of the kind str"):
        asker.ask(row("hello"))
    with pytest.raises(RowError, match="the row has 'txt'") as caught:
        asker.ask(row({"txt": 1}, 3))
    assert (caught.value.type, caught.value.key) == ("TemplateError", NO_KEY)


@pytest.mark.parametrize(
    ("prompt", "value", "kind", "message"),
    [
        ("Say {a}", {"a": ""}, "TemplateError", "empty in 'a'"),
        ("Say {a}{b}", {"a": None, "b": " "}, "TemplateError", "empty in 'a', 'b'"),
        ("{a:d}", {"a": "x"}, "TemplateError", "Unknown format code"),
        ("{a[k]}", {"a": {}}, "TemplateError", "cannot be filled: 'k'"),
        ("{a.real}", {"a": "x"}, "TemplateError", "no attribute 'real'"),
        (lambda value: " \n", 1, "EmptyPromptError", "the prompt is empty"),
        (lambda value: 1 / value, 0, "ZeroDivisionError", "function for prompt failed"),
        (lambda value: value["b"], {}, "KeyError", r"failed \(KeyError: 'b'\)"),
        (lambda value: None, 1, "TemplateError", "returned NoneType"),
        (lambda value: {}, 1, "TemplateError", "returned dict"),
        (lambda value: [], 1, "ConfigurationError", "messages is empty"),
        (lambda value: ["hi"], 1, "ConfigurationError", "a message is a dict"),
        (lambda value: 7, 1, "TypeError", "not iterable"),
        (
            lambda value: [{"role": "user", "content": [b"x"]}],
            1,
            "TypeError",
            "cannot be sent as JSON",
        ),
        (
            lambda value: [{"role": "user", "content": value}],
            5,
            "ConfigurationError",
            "content is a text or a list of parts",
        ),
    ],
)
def test_a_row_for_which_nothing_can_be_asked_is_its_own_error(
    prompt: Any, value: Any, kind: str, message: str
) -> None:
    """The others go on: the error has a type, a message and a key to be recorded."""
    with pytest.raises(RowError, match=message) as caught:
        Asker(prompt).ask(row(value))

    assert (caught.value.type, caught.value.key) == (kind, NO_KEY)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("  ", "name a column in single braces: {id}, {text}, {n}. If"),
        ("What is %s?", "same; name a column in single braces: {id}, {text}, {n}. If"),
        (
            "What is {{ text }}?",
            r"\{n\} \(doubled braces are not filled in\)\. If that",
        ),
        ('{{"a": 1}}', "{id}, {text}, {n}. If that is meant, give a function"),
    ],
)
def test_a_prompt_without_a_field_is_refused_at_once(text: str, hint: str) -> None:
    """Each row would be asked the same; messages and texts of vectors are alike."""
    names = ("id", "text", "n", "more")
    messages = [
        {"role": "system", "content": "Hello"},
        {"role": "user", "content": [{"type": "text", "text": text}]},
    ]

    for prompt in (text, messages):
        with pytest.raises(
            ConfigurationError, match="the prompt has no field.*" + hint
        ):
            Asker(prompt, names=names)
    with pytest.raises(ConfigurationError, match="or {row} where rows are plain"):
        Asker(text)
    if "{" in text:
        with pytest.raises(ConfigurationError, match="the text has no field.*" + hint):
            Texts(text, names)


def test_the_same_for_each_row_is_asked_where_a_function_says_so() -> None:
    """Who wants a hundred jokes has a hundred rows; one field anywhere is enough."""
    assert text_of(lambda _: "Tell a joke.", 1) == "Tell a joke."
    url = {"type": "image_url", "image_url": {"url": "{row}"}}
    Asker([{"role": "user", "content": [{"type": "text", "text": "What?"}, url]}])
    Asker([{"role": "system", "content": "{row}"}, {"role": "user", "content": "?"}])


def test_messages_have_templates_for_texts_and_addresses() -> None:
    """Roles, formats and all other parts pass through as they are."""
    sound = {"type": "input_audio", "input_audio": {"data": "{x}", "format": "wav"}}
    prompt = [
        {"role": "system", "content": "You see {kind}."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is {{this}} {kind}?"},
                {"type": "image_url", "image_url": {"url": "{url}", "detail": "{x}"}},
                sound,
            ],
        },
        {"role": "assistant", "content": None, "tool_calls": [{"id": "{x}"}]},
        Message(role="user", content="Say {kind}"),
    ]
    value = {"kind": "a cat", "url": "data:image/png;base64,AAAA"}

    asked = Asker(prompt, names=("kind", "url")).ask(row(value)).messages

    assert asked == [
        {"role": "system", "content": "You see a cat."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is {this} a cat?"},
                {
                    "type": "image_url",
                    "image_url": {"url": value["url"], "detail": "{x}"},
                },
                sound,
            ],
        },
        {"role": "assistant", "content": None, "tool_calls": [{"id": "{x}"}]},
        {"role": "user", "content": "Say a cat"},
    ]
    with pytest.raises(ConfigurationError, match="no column 'url'"):
        Asker(prompt, names=("kind",))


def test_an_image_alone_is_a_question() -> None:
    """A message of nothing but an image is not empty; one of empty texts is."""
    image = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}

    def messages(*parts: Any) -> Any:
        return [{"role": "user", "content": list(parts)}]

    def asked(prompt: Any) -> Any:
        return Asker(lambda _: prompt).ask(row(1)).messages

    assert asked(messages(image)) == messages(image)
    assert asked(messages("raw")) == messages("raw")
    with pytest.raises(RowError, match="the prompt is empty"):
        asked(messages({"type": "text", "text": " "}))
    with pytest.raises(RowError, match="the prompt is empty"):
        Asker([{"role": "system", "content": "You are {row}."}]).ask(row("kind"))


def test_a_function_gets_the_row_and_gives_a_text_or_messages() -> None:
    """What it returns is taken as it is: braces in it are no fields."""
    given = [Message(role="user", content="{hello}")]

    assert text_of(lambda value: f"{value['a']} {{x}}", {"a": 1}) == "1 {x}"
    assert text_of(lambda value: given, 1) == "{hello}"


def test_a_function_that_takes_a_row_for_an_object_ends_the_call() -> None:
    """A row of columns is a dict, so that none would be asked."""
    first, later = row({"text": "x"}), row({"text": "x"}, 3)

    for asked in (
        Asker(lambda value: value.text, names=("text",)).ask,
        Texts(lambda value: value.text, ("text",)).of,
    ):
        with pytest.raises(
            ConfigurationError, match=r"a row is a dict: row\['text'\]$"
        ):
            asked(first)
        with pytest.raises(RowError, match=r"a row is a dict: row\['text'\]$"):
            asked(later)
        with pytest.raises(RowError, match="no attribute 'text'.$"):
            asked(row("x"))  # the others may be of another kind
    inner = Asker(lambda value: value["inner"].text)
    with pytest.raises(RowError, match="no attribute 'text'.$"):
        inner.ask(row({"inner": {"text": "x"}}))


def test_errors_of_a_text_speak_of_the_text() -> None:
    """There is no prompt where vectors are asked for."""
    with pytest.raises(ConfigurationError, match="^the text has the field {b}"):
        Texts("{b}", ("a",))
    with pytest.raises(RowError, match="^the text has the field {b}"):
        Texts("{b}", ("a", "b")).of(row({"a": 1}))
    with pytest.raises(RowError, match="^the text is missing$"):
        Texts("a", ("a",)).of(row({"a": None}))
    with pytest.raises(RowError, match="^the text is no text but int$"):
        Texts("a", ("a",)).of(row({"a": 5}))


def test_the_system_message_comes_first_and_is_the_same_for_all() -> None:
    """It is no template; a column's field in it, or two of them, is refused."""
    messages = Asker("{row}", system='Answer {"a": 1}').ask(row("x")).messages

    assert messages[0] == {"role": "system", "content": 'Answer {"a": 1}'}
    assert messages[1] == {"role": "user", "content": "x"}
    Asker("{text}", system="About a text", names=("text",))
    with pytest.raises(ConfigurationError, match="system has {text}"):
        Asker("{text}", system="About {text}", names=("text",))
    with pytest.raises(ConfigurationError, match="system takes text, not int"):
        Asker("{text}", system=5)  # type: ignore[arg-type]
    unknown = Asker("{text}", system="About {text}")
    with pytest.raises(ConfigurationError, match="system has {text}"):
        unknown.ask(row({"text": "x"}))
    own = [{"role": "system", "content": "A"}, {"role": "user", "content": "{row}"}]
    with pytest.raises(ConfigurationError, match="leave one"):
        Asker(own, system="C")
    with pytest.raises(RowError, match="leave one"):
        Asker(lambda value: own, system="C").ask(row(1))
    assert len(Asker(own).ask(row(1)).messages) == 2
    assert len(Asker(own[1:], system="C").ask(row(1)).messages) == 2


@pytest.mark.parametrize("prompt", [None, 7, [], {"role": "user"}, b"x"])
def test_a_prompt_that_is_none_is_refused(prompt: Any) -> None:
    """The error says what a prompt may be."""
    with pytest.raises(ConfigurationError, match="template|takes a list"):
        Asker(prompt)


def test_a_message_that_is_none_is_refused_at_once() -> None:
    """A list of texts, a dict without a role, or with a number to say, are none."""
    number = {"role": "user", "content": 5}
    other = {"role": "user", "text": "{row}"}
    for prompt in (["Hello"], [{"content": "Hello"}], [number], [other]):
        with pytest.raises(ConfigurationError, match="a message is a dict"):
            Asker(prompt)


def test_the_key_is_of_all_that_is_asked_and_of_nothing_else() -> None:
    """Equal questions have one, whatever row, slot or order of options they have."""
    schema = Schema.of(SCHEMA)

    def key(
        prompt: Any = "Say {row}", value: Any = "x", at: int = 0, **more: Any
    ) -> str:
        return Asker(prompt, **more).ask(row(value, at)).key

    same = {
        key(),
        key(at=5),
        key(lambda _: "Say x"),
        key(lambda value: f"Say {value}"),
        key([{"content": "Say {row}", "role": "user"}]),
        key(sampling={"id_slot": 1, "cache_prompt": False, "seed": None}),
        key(sampling={"n": 1}),
    }
    others = [
        key("Say  {row}"),
        key(system="S"),
        key(schema=schema),
        key(sampling={"temperature": 0}),
        key(sampling={"temperature": 0, "max_tokens": 3}),
        key(sampling={"model": "another of a router"}),
        key(sampling={"extra_body": {"min_keep": 1}}),
    ]

    assert len(same) == 1
    assert len({*same, *others}) == len(others) + 1
    assert all(len(one) == 32 and int(one, 16) for one in (*same, *others))
    assert others[4] == key(sampling={"max_tokens": 3, "temperature": 0})
    assert others[3] == key(sampling={"temperature": 0.0})
    assert others[6] == key(sampling={"extra_body": {"min_keep": 1.0}})
    assert others[3] != key(sampling={"temperature": 0.5})
    bias = [key(sampling={"logit_bias": [[5, one]]}) for one in (1, 1.0, True)]
    assert bias[0] == bias[1] != bias[2]
    # What was asked by an earlier version has to be known again.
    assert same == {"2bf39a06f96b27f70be8094b4faab213"}


@pytest.mark.parametrize(
    ("sampling", "schema", "message"),
    [
        ({"n_predict": 3}, None, "did you mean max_tokens"),
        ({"stream": True}, None, "map_prompts has no option stream: each answer"),
        ({"timeout": 5}, None, r"no option timeout: .*LlamaCppClient\(url, timeout"),
        ({"scheme": {}}, None, r"map_prompts .* scheme \(did you mean schema\?\)"),
        ({"concurency": 3}, None, r"map_prompts .* \(did you mean concurrency\?\)"),
        ({"progres": 0}, None, r"map_prompts .* \(did you mean progress\?\)"),
        ({"temprature": 0}, None, r"chat has no .* \(did you mean temperature\?\)"),
        ({"n": 2}, None, "n has to be 1"),
        ({"response_format": SCHEMA}, None, "given as schema="),
        ({"extra_body": {"response_format": SCHEMA}}, None, "given as schema="),
        ({"extra_body": {"n": 2}}, None, "n has to be 1"),
        ({"logprobs": True}, None, "logprobs are not kept"),
        ({"top_logprobs": 3}, None, "logprobs are not kept"),
        ({"grammar": "root ::= x"}, SCHEMA, "grammar and schema exclude"),
        ({"extra_body": {"json_schema": {}}}, SCHEMA, "and schema exclude"),
        ({"logit_bias": object()}, None, "cannot be sent as JSON"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(
    sampling: dict[str, Any], schema: Any, message: str
) -> None:
    """A batch does not begin with what no answer can be had for."""
    with pytest.raises(ConfigurationError, match=message):
        Asker("{row}", sampling=sampling, schema=Schema.of(schema))


def test_the_arguments_that_may_be_meant_are_those_there_are() -> None:
    """An argument that is added is one that may be misspelt."""
    *own, sampling = inspect.signature(map_prompts).parameters

    assert (tuple(own), sampling) == (_OWN_OPTIONS, "sampling")


def test_options_that_suit_are_taken() -> None:
    """One answer, a grammar without a schema, and a callback are no trouble."""
    Asker("{row}", sampling={"n": 1, "grammar": "root ::= x", "on_progress": print})
    Asker("{row}", sampling={"logprobs": False, "extra_body": None})
