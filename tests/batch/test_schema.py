"""What an answer must be: schemas, models, and the repair question."""

from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path
from typing import Any

import pydantic
import pytest

from llamatelemetry.batch._schema import Schema, SchemaMismatchError
from llamatelemetry.exceptions import ConfigurationError, SetupError

LABEL = {
    "type": "object",
    "properties": {
        "label": {"enum": ["good", "bad"]},
        "score": {"type": "number", "minimum": 0},
    },
    "required": ["label"],
    "additionalProperties": False,
}


class Review(pydantic.BaseModel):
    """What a model says of a text."""

    label: str
    score: float = 0.5
    tags: set[str] = set()

    @pydantic.field_validator("label")
    @classmethod
    def known(cls, label: str) -> str:
        if label not in {"good", "bad"}:
            raise ValueError("no such label")
        return label


def schema_of(schema: Any) -> Schema:
    made = Schema.of(schema)
    assert made is not None
    return made


def test_no_schema_asks_for_nothing() -> None:
    """None is None."""
    assert Schema.of(None) is None


def test_an_answer_is_checked_against_a_json_schema() -> None:
    """What fits is returned; what does not is told in words, with its place."""
    schema = schema_of(LABEL)

    assert schema.response_format["json_schema"]["schema"] == LABEL
    assert schema.parse('{"label": "good", "score": 1}') == {
        "label": "good",
        "score": 1,
    }
    assert schema.restore(' {"label": "bad"}\n') == {"label": "bad"}
    for text, problem in [
        ('{"label": "fine"}', r"at \$.label: 'fine' is not one of \['good', 'bad'\]"),
        ('{"score": -1}', r"at \$: 'label' is a required.*; at \$.score: -1 is less"),
        ("[]", "is not of type 'object'"),
        ('{"label": "good"', "the answer is no JSON"),
        ('{"label": "good", "score": NaN}', "NaN is no number of JSON"),
        ("[" * 100_000, "the answer is no JSON"),
        ("", "the answer is empty"),
        (" \n", "the answer is empty"),
        (None, "the answer is empty"),
    ]:
        with pytest.raises(SchemaMismatchError, match=problem) as caught:
            schema.parse(text)
        assert caught.value.problem == str(caught.value)


def test_what_is_wrong_is_told_briefly() -> None:
    """A long answer is not repeated in what is wrong with it; three faults are told."""
    many = {f"extra {n}": "x" * 5000 for n in range(50)}
    schema = schema_of({"additionalProperties": {"type": "number"}})

    with pytest.raises(SchemaMismatchError) as caught:
        schema.parse(str(many).replace("'", '"'))

    assert len(caught.value.problem) <= 600
    assert caught.value.problem.count("at $") <= 3


def test_a_pydantic_model_is_validated_by_itself() -> None:
    """The record has plain values, its own defaults included; restored, an instance."""
    schema = schema_of(Review)
    text = '{"label": "good", "tags": ["a", "a"]}'

    assert schema.parse(text) == {"label": "good", "score": 0.5, "tags": ["a"]}
    assert schema.restore(text) == Review(label="good", tags={"a"})
    for text, problem in [
        ('{"label": "fine"}', "at label: Value error, no such label"),
        ('{"label": "good", "score": "x"}', "at score: Input should be a valid number"),
        ('{"label": ', "at the top: Invalid JSON"),
        ("{}", "at label: Field required"),
        ("", "the answer is empty"),
    ]:
        with pytest.raises(SchemaMismatchError, match=problem):
            schema.parse(text)


def test_a_validator_of_its_own_may_raise_its_own_error() -> None:
    """A class that is no model of pydantic's, but acts as one, is asked too."""

    class Plain:
        @staticmethod
        def model_json_schema() -> dict[str, Any]:
            return {"type": "string"}

        @staticmethod
        def model_validate_json(text: str) -> str:
            raise ValueError(f"I do not like {text}")

    with pytest.raises(SchemaMismatchError, match="I do not like hello"):
        schema_of(Plain).parse("hello")


def test_the_forms_of_openai_are_taken() -> None:
    """Its dict with a schema is that schema, and any object is any object."""
    inner = {"type": "json_schema", "json_schema": {"name": "x", "schema": LABEL}}
    beside = {"type": "json_schema", "schema": LABEL}

    for form in (inner, beside):
        with pytest.raises(SchemaMismatchError, match="required"):
            schema_of(form).parse("{}")
    assert schema_of({"type": "json_object"}).parse('{"a": 1}') == {"a": 1}
    with pytest.raises(SchemaMismatchError, match="not of type 'object'"):
        schema_of({"type": "json_object"}).parse("[]")


def test_a_schema_may_say_its_own_draft() -> None:
    """An older draft's words mean what they meant there."""
    old = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "items": [{"type": "number"}],
    }

    with pytest.raises(SchemaMismatchError, match="not of type 'number'"):
        schema_of(old).parse('["x"]')
    with pytest.raises(ConfigurationError, match="no JSON schema"):
        schema_of({"items": [{"type": "number"}]})


def test_references_inside_are_followed_and_others_refused() -> None:
    """What a schema refers to has to be in it; nothing is fetched."""
    own = {"$defs": {"n": {"type": "number"}}, "anyOf": [{"$ref": "#/$defs/n"}]}

    assert schema_of(own).parse("1") == 1
    for reference in ("#/$defs/m", "https://example.org/schema.json"):
        with pytest.raises(
            ConfigurationError, match=f"{re.escape(reference)}.*not in it"
        ):
            schema_of({**own, "anyOf": [{"$ref": reference}]})
    # A property of that name is no reference, and neither is a value.
    assert schema_of({"properties": {"$ref": {"type": "string"}}}).parse("{}") == {}
    for word, value in (("enum", [{"$ref": "foo"}]), ("const", {"$ref": "foo"})):
        assert schema_of({word: value}).parse('{"$ref": "foo"}') == {"$ref": "foo"}
        with pytest.raises(ConfigurationError, match="not in it"):
            schema_of({"properties": {word: {"$ref": "#/$defs/m"}}})


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, r"no JSON schema: at \$.type: 'objekt'"),
        ({"type": "object", "required": "label"}, r"at \$.required"),
        ({"enum": {1}}, "cannot be sent as JSON"),
        ({"minimum": float("nan")}, "cannot be sent as JSON"),
        ({"type": "json_schema", "schema": 7}, "takes a dict, not int"),
        ({"type": "text"}, "asks for nothing"),
        (int, "schema=int is no pydantic model"),
        ("label", "schema takes a JSON schema"),
    ],
)
def test_a_schema_that_cannot_work_is_refused_at_once(
    schema: Any, message: str
) -> None:
    """The error says where, before anything is asked."""
    with pytest.raises(ConfigurationError, match=message):
        Schema.of(schema)


def test_a_model_that_json_cannot_describe_is_refused() -> None:
    """Pydantic's own error is told as ours."""

    class Odd(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        field: sys.flags.__class__ = None  # type: ignore[valid-type,assignment]

    with pytest.raises(ConfigurationError, match="schema cannot be sent as JSON"):
        Schema.of(Odd)


def test_the_fingerprint_is_of_what_is_sent() -> None:
    """Equal schemas have one, in whatever order they are written."""
    turned = dict(reversed(LABEL.items()))

    assert schema_of(LABEL).fingerprint == schema_of(turned).fingerprint
    assert schema_of(LABEL).fingerprint != schema_of(Review).fingerprint
    assert len(schema_of(LABEL).fingerprint) == 32


@pytest.mark.parametrize("asked", [LABEL, {"type": "json_object"}, Review])
def test_a_schema_can_be_pickled(asked: Any) -> None:
    """In another process it stands for the same, and checks the same."""
    schema = schema_of(asked)
    copy = pickle.loads(pickle.dumps(schema))

    assert copy.fingerprint == schema.fingerprint
    assert copy.response_format == schema.response_format
    text = '{"label": "good"}'
    assert copy.restore(text) == schema.restore(text)
    with pytest.raises(SchemaMismatchError):
        copy.restore("[]")


def test_the_repair_question_says_what_is_wrong() -> None:
    """The answer stands as the assistant's, and the question as it was."""
    asked = [{"role": "user", "content": "Label it."}]

    messages = Schema.repair(asked, "fine", "the answer is no JSON")

    assert messages[0] == asked[0]
    assert messages[0] is not asked[0]
    assert messages[1] == {"role": "assistant", "content": "fine"}
    assert messages[2]["role"] == "user"
    assert "the answer is no JSON. Answer again" in messages[2]["content"]
    assert len(asked) == 1


def test_without_jsonschema_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Missing or broken, it is told with the remedy; a pydantic model needs it not."""
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(SetupError, match="pip install --upgrade jsonschema"):
        Schema.of(LABEL)
    assert schema_of(Review).parse('{"label": "bad"}')["label"] == "bad"
    monkeypatch.undo()

    (tmp_path / "jsonschema.py").write_text("raise RuntimeError('built for attrs 1')")
    monkeypatch.delitem(sys.modules, "jsonschema")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SetupError, match="attrs 1.*--force-reinstall jsonschema"):
        Schema.of(LABEL)
