"""Texts with fields, as ``str.format`` has them, read once and filled for each row."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llamatelemetry.batch._row_files import delimiter_hint
from llamatelemetry.exceptions import ConfigurationError

__all__ = ["MissingFieldError", "Template", "TemplateError", "without_fields"]

_DOUBLED = "Braces that are no field are doubled: {{ and }}"
_OWN_MARKS = (".", ":", "[", "!")
"""What means something of its own in a field, and may be in a column's name."""

_WHOLE_ROW = "row"
_DOUBLED_FIELD = re.compile(r"\{\{ *\w+ *\}\}")
"""What is a field in other languages of templates."""

_FEW = 3
"""Columns that are named as examples."""


class TemplateError(Exception):
    """A row that a template cannot be filled with."""


class MissingFieldError(TemplateError):
    """A row without a column that the template needs."""


class _Filler(string.Formatter):
    """``str.format`` with None as nothing, as an empty cell of a CSV is.

    {} is the row, and a number is a column's name, as of a table without a header.
    """

    def get_value(self, key: Any, args: Any, kwargs: Any) -> Any:  # noqa: ARG002 -- so it is called
        return kwargs[str(key)]

    def parse(self, format_string: Any) -> Any:
        for literal, field, specification, conversion in super().parse(format_string):
            named = _WHOLE_ROW if field == "" else field
            yield literal, named, specification, conversion

    def format_field(self, value: Any, format_spec: str) -> Any:
        return "" if value is None else super().format_field(value, format_spec)


_FILLER = _Filler()


class Template:
    """One text with fields.

    Args:
        text: The text.
        names: The rows' columns, as far as they are known.
        what: What it is called in errors.

    Attributes:
        fields: The columns it needs; "row" stands for a whole row of one value.
    """

    def __init__(
        self, text: str, names: Sequence[str] = (), what: str = "the prompt"
    ) -> None:
        self._text = text
        self._what = what
        self.fields = frozenset(self._checked(names))
        self._constant = None if self.fields else text.format()

    def _checked(self, names: Sequence[str]) -> Iterator[str]:
        try:
            found = list(_fields(self._text))
        except ValueError as error:
            raise ConfigurationError(
                f"{self._what} cannot be read as a template ({error}). {_DOUBLED}"
            ) from error
        if found.count("") > 1:
            raise ConfigurationError(
                f"{self._what} has the field {{}} more than once; {{row}} stands for "
                f"the whole row, and {{row[0]}} for the first value in it. {_DOUBLED}"
            )
        for field in found:
            name = _checked_name(field or _WHOLE_ROW, self._what)
            if names and name not in names:
                raise ConfigurationError(
                    f"{self._what} has the field {{{field}}}, but the rows have no "
                    f"column {name!r}; they have {_listed(names)}. "
                    f"{_advice(name, names)}"
                )
            yield name

    def fill(self, value: Any) -> str:
        """Return the text for one row.

        Raises:
            MissingFieldError: The row lacks a field.
            TemplateError: Its fields are empty, or a value does not suit.
        """
        if self._constant is not None:
            return self._constant
        values = {_WHOLE_ROW: value}
        if isinstance(value, Mapping):
            values = {str(name): one for name, one in value.items()}
        missing = sorted(self.fields - values.keys())
        if missing:
            raise MissingFieldError(_lacking(missing[0], value, self._what))
        if all(_is_empty(values[name]) for name in self.fields):
            raise TemplateError(
                f"the row is empty in {_listed(sorted(self.fields))}, and "
                f"{self._what} has no other field"
            )
        try:
            return _FILLER.vformat(self._text, (), values)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise TemplateError(f"{self._what} cannot be filled: {error}") from error


def without_fields(
    texts: Sequence[str], names: Sequence[str], what: str = "the prompt"
) -> ConfigurationError:
    """Return the error for what would be the same for each row.

    Args:
        texts: Its texts, none of which has a field.
        names: The rows' columns, as far as they are known.
        what: What it is called.
    """
    examples = ", ".join(f"{{{name}}}" for name in names[:_FEW])
    remedy = (
        f"name a column in single braces: {examples}"
        if names
        else "name a column in single braces, or {row} where rows are plain values"
    )
    if any(_DOUBLED_FIELD.search(text) for text in texts):
        remedy += " (doubled braces are not filled in)"
    return ConfigurationError(
        f"{what} has no field, so each row would be asked the same; {remedy}. If that "
        "is meant, give a function of the row"
    )


def _fields(text: str) -> Iterator[str]:
    """Yield the fields of a text, those inside of others' format included."""
    for _, field, specification, _ in string.Formatter().parse(text):
        if field is not None:
            yield field
            yield from _fields(specification or "")


def _checked_name(field: str, what: str) -> str:
    """Return the column a field is filled from.

    Raises:
        ConfigurationError: It looks inside of objects.
    """
    name = field.partition(".")[0].partition("[")[0]
    if "._" in field or "[_" in field:
        raise ConfigurationError(
            f"{what}'s field {{{field}}} looks inside of an object, which no field "
            f"may; use a function for {what}. {_DOUBLED}"
        )
    if not name:
        raise ConfigurationError(
            f"{what}'s field {{{field}}} names no column. {_DOUBLED}"
        )
    return name


def _lacking(field: str, value: Any, what: str) -> str:
    if not isinstance(value, Mapping):
        return (
            f"{what} has the field {{{field}}}, but the rows are plain values of "
            f"the kind {type(value).__name__}, which {{row}} stands for. {_DOUBLED}"
        )
    names = list(map(str, value))
    return (
        f"{what} has the field {{{field}}}; the row has {_listed(names)}. "
        f"{_advice(field, names)}"
    )


def _advice(field: str, names: Sequence[str]) -> str:
    """Return what may help where there is no column that a field names."""
    if any(
        name.startswith(field) and name[len(field) :][:1] in _OWN_MARKS
        for name in names
    ):
        return (
            "A column with . : [ or ! in its name cannot be a field: rename it, or use "
            "a function"
        )
    if field == _WHOLE_ROW:
        return (
            "{row} and {} are for rows that are plain values; name a column: "
            f"{{{names[0]}}}"
        )
    return delimiter_hint(names) or _DOUBLED


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:20])) + (", …" if len(names) > 20 else "")  # noqa: PLR2004 -- what fits into a message
