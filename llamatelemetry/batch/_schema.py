"""What an answer must be: a JSON schema or a pydantic model, and the repair question.

The only import of jsonschema, which is loaded when a JSON schema is given.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Self

from llamatelemetry.api._requests import openai_format
from llamatelemetry.exceptions import ConfigurationError, SetupError

__all__ = ["Schema", "SchemaMismatchError"]

_MOST_PROBLEMS = 3
_LONGEST_PROBLEM = 600

_DATA = frozenset(("const", "default", "enum", "examples"))
"""Words of a schema below which are values."""

_NAMED = frozenset(
    ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
)
"""Words of a schema below which are names, and schemas below those."""


class SchemaMismatchError(Exception):
    """An answer that is not what the schema asks for.

    Attributes:
        problem: What is wrong with it, in words that a model can use.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class Schema:
    """What each answer must be.

    Attributes:
        response_format: What the server is sent, as OpenAI writes it.
        fingerprint: 32 hex digits that stand for it.
    """

    def __init__(self, response_format: dict[str, Any], model: Any) -> None:
        self.response_format = response_format
        canonical = json.dumps(response_format, sort_keys=True).encode()
        self.fingerprint = blake2b(canonical, digest_size=16).hexdigest()
        self._model = model
        described = response_format.get("json_schema", {}).get("schema")
        schema = {"type": "object"} if described is None else described
        self._validator: Any = None if model is not None else _validator(schema)

    @classmethod
    def of(cls, schema: Any) -> Self | None:
        """Return what a schema asks for; None for None.

        Args:
            schema: A JSON schema, OpenAI's dict with one, or a pydantic model class.

        Raises:
            ConfigurationError: It is none of them, or no schema that can be checked.
            SetupError: jsonschema is missing, or does not load.
        """
        if schema is None:
            return None
        response_format = _response_format(schema)
        return cls(response_format, schema if isinstance(schema, type) else None)

    def __reduce__(self) -> tuple[Any, ...]:
        # What checks values cannot be pickled: it is made anew.
        return type(self).of, (self._model or self.response_format,)

    def parse(self, text: str | None) -> Any:
        """Return what an answer holds, as plain values that JSON can hold.

        Raises:
            SchemaMismatchError: It is not what the schema asks for.
        """
        value = self.restore(text)
        return value if self._model is None else value.model_dump(mode="json")

    def restore(self, text: str | None) -> Any:
        """Return what an answer holds; an instance where the schema is a model.

        Raises:
            SchemaMismatchError: It is not what the schema asks for.
        """
        if not text or not text.strip():
            raise SchemaMismatchError("the answer is empty")
        if self._model is not None:
            return _instance(self._model, text)
        value = _loads(text)
        problems = list(self._problems(value))
        if problems:
            raise SchemaMismatchError("; ".join(problems)[:_LONGEST_PROBLEM])
        return value

    def _problems(self, value: Any) -> Iterator[str]:
        errors = sorted(self._validator.iter_errors(value), key=lambda one: one.path)
        for error in errors[:_MOST_PROBLEMS]:
            yield f"at {error.json_path}: {error.message[: _LONGEST_PROBLEM // 3]}"

    @staticmethod
    def repair(
        messages: Sequence[Mapping[str, Any]], answer: str, problem: str
    ) -> list[dict[str, Any]]:
        """Return the messages that ask for a better answer.

        Args:
            messages: What was asked.
            answer: What came.
            problem: What is wrong with it.
        """
        return [
            *map(dict, messages),
            {"role": "assistant", "content": answer},
            {
                "role": "user",
                "content": "This is not what was asked for: "
                f"{problem}. Answer again, with nothing but JSON that fits the schema.",
            },
        ]


def _response_format(schema: Any) -> dict[str, Any]:
    try:
        response_format = openai_format(schema)
        json.dumps(response_format, allow_nan=False)
    except ConfigurationError as error:
        raise ConfigurationError(
            str(error).replace("response_format", "schema")
        ) from None
    except Exception as error:  # pydantic's own, for a field that JSON cannot describe
        raise ConfigurationError(f"schema cannot be sent as JSON: {error}") from error
    if response_format["type"] == "text":
        raise ConfigurationError('schema={"type": "text"} asks for nothing; leave it')
    return response_format


def _loads(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise SchemaMismatchError(f"the answer is no JSON ({error})") from error


def _instance(model: Any, text: str) -> Any:
    try:
        return model.model_validate_json(text)
    except ValueError as error:
        describe = getattr(error, "errors", None)
        if describe is None:  # a validator's own
            raise SchemaMismatchError(str(error)[:_LONGEST_PROBLEM]) from error
        problems = [
            f"at {'.'.join(map(str, one['loc'])) or 'the top'}: {one['msg']}"
            for one in describe()[:_MOST_PROBLEMS]
        ]
        raise SchemaMismatchError("; ".join(problems)[:_LONGEST_PROBLEM]) from error


def _validator(schema: Any) -> Any:
    """Return what checks values against a schema, which is checked here itself."""
    jsonschema, referencing = _jsonschema()
    if not isinstance(schema, Mapping | bool):
        raise ConfigurationError(f"schema takes a dict, not {type(schema).__name__}")
    kind = jsonschema.validators.validator_for(
        schema, default=jsonschema.Draft202012Validator
    )
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ConfigurationError(
            f"schema is no JSON schema: at {error.json_path}: {error.message}"
        ) from error
    registry = referencing.Registry()  # an empty one: nothing is fetched
    _check_references(schema, registry, referencing)
    return kind(schema, registry=registry)


def _check_references(schema: Any, registry: Any, referencing: Any) -> None:
    resource = referencing.jsonschema.DRAFT202012.create_resource(schema)
    resolver = registry.with_resource("", resource).resolver("")
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except referencing.exceptions.Unresolvable as error:
            raise ConfigurationError(
                f"schema refers to {reference!r}, which is not in it; put it below "
                '"$defs" and refer to it as "#/$defs/NAME"'
            ) from error


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        reference = schema.get("$ref")
        if isinstance(reference, str):
            yield reference
        for word, value in schema.items():
            if word in _NAMED and isinstance(value, Mapping):
                yield from _references(list(value.values()))
            elif word not in _DATA:
                yield from _references(value)
    elif isinstance(schema, list | tuple):
        for value in schema:
            yield from _references(value)


def _jsonschema() -> tuple[Any, Any]:
    try:
        import jsonschema  # noqa: PLC0415 -- loaded when a schema is given
        import referencing.exceptions  # noqa: PLC0415 -- the same; jsonschema brings it
        import referencing.jsonschema  # noqa: PLC0415 -- the same
    except ModuleNotFoundError as error:
        raise SetupError(
            "a JSON schema needs jsonschema 4.18 or later, which is not installed; "
            "run: pip install --upgrade jsonschema. A pydantic model needs it not."
        ) from error
    except Exception as error:
        raise SetupError(
            f"jsonschema does not load ({type(error).__name__}: {error}); run: pip "
            "install --force-reinstall jsonschema. A pydantic model needs it not."
        ) from error
    return jsonschema, referencing
