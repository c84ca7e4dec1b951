"""The text of a row that a vector is asked for, and the digest of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, TypeAlias

from llamatelemetry.batch._asks import RowError, function_failure
from llamatelemetry.batch._row_files import delimiter_hint
from llamatelemetry.batch._rows import Row
from llamatelemetry.batch._templates import (
    MissingFieldError,
    Template,
    TemplateError,
    without_fields,
)
from llamatelemetry.exceptions import ConfigurationError

__all__ = ["Texts", "WhichText", "text_key"]

WhichText: TypeAlias = str | Callable[[Any], str] | None


class Texts:
    """Takes the text out of each row.

    Args:
        text: A column, a template, a function of the row's value, or None for rows
            that are texts themselves.
        names: The rows' columns, as far as they are known.

    Raises:
        ConfigurationError: It is none of these, or the rows have no such column.
    """

    def __init__(self, text: WhichText, names: Sequence[str]) -> None:
        self._names = names
        if text is None:
            if names:
                raise ConfigurationError(
                    "text says which text of a row is meant: a column like "
                    f"text={names[0]!r}, or a template like 'Title: {{title}}'"
                )
            self._take: Callable[[Any], Any] = lambda value: value
        elif isinstance(text, str):
            self._take = _column(text, names) or _template(text, names)
        elif callable(text):
            self._take = text
        else:
            raise ConfigurationError(
                "text takes a column, a template or a function of a row, not "
                f"{type(text).__name__}"
            )

    def of(self, row: Row) -> str:
        """Return a row's text.

        Raises:
            RowError: It has none.
            ConfigurationError: It is the first, and lacks what the template needs, or
                the function takes it for something else.
        """
        try:
            text = self._take(row.value)
        except MissingFieldError as error:
            if row.position == 0 and not self._names:  # they were not known before
                raise ConfigurationError(str(error)) from error
            raise RowError(str(error), "TemplateError") from error
        except TemplateError as error:
            raise RowError(str(error), "TemplateError") from error
        except Exception as error:  # the user's function may raise anything
            raise function_failure("text", error, row) from error
        if not isinstance(text, str):
            kind = "missing" if text is None else f"no text but {type(text).__name__}"
            raise RowError(f"the text is {kind}", "TypeError")
        if not text.strip():
            raise RowError("the text is empty", "EmptyPromptError")
        return text


def text_key(text: str) -> str:
    """Return 32 hex digits that stand for a text of which a vector is asked."""
    # Not what a chat with the same text has: their files may lie in one folder.
    digest = blake2b(digest_size=16, person=b"embeddings")
    digest.update(text.encode(errors="surrogatepass"))
    return digest.hexdigest()


def _template(text: str, names: Sequence[str]) -> Callable[[Any], str]:
    template = Template(text, names, "the text")
    if not template.fields:
        raise without_fields([text], names, "the text")
    return template.fill


def _column(text: str, names: Sequence[str]) -> Callable[[Any], Any] | None:
    """Return what takes one column; None if the text is a template."""
    if text not in names:
        if "{" in text:
            return None
        known = f"they have {', '.join(names)}" if names else "they have none"
        hint = f". {delimiter_hint(names)}" if delimiter_hint(names) else ""
        raise ConfigurationError(f"the rows have no column {text!r}; {known}{hint}")
    return lambda value: value.get(text)
