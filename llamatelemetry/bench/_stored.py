"""Results as JSON and back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from llamatelemetry._files import write_whole
from llamatelemetry.bench._metrics import SPREADS, LoadResult, Statistics
from llamatelemetry.exceptions import ConfigurationError

__all__ = ["FilePath", "known_fields", "load_from", "plain_json", "read", "written"]

FilePath = str | os.PathLike[str]
Value = TypeVar("Value")

_FORMAT = 1


def written(kind: str, value: Mapping[str, Any], path: FilePath | None) -> str | None:
    """Write a result as JSON, or return it as text without a path.

    Args:
        kind: What it is: "benchmark" or "comparison".
        value: Its fields.
        path: The file; None for none.

    Raises:
        OSError: It cannot be written; the old file is as it was.
    """
    head = {"llamatelemetry": kind, "format": _FORMAT}
    text = json.dumps({**head, **value}, indent=1)
    if path is None:
        return text
    write_whole(path, text + "\n")
    return None


def read(
    kind: str, source: FilePath, build: Callable[[Mapping[str, Any]], Value]
) -> Value:
    """Return a result: from its text, or from a file.

    Args:
        kind: What it is to be: "benchmark" or "comparison".
        source: The file, or the text itself.
        build: Makes it of its fields.

    Raises:
        ConfigurationError: It is no result of that kind, or a damaged one.
        OSError: The file cannot be read.
    """
    is_text = isinstance(source, str) and source.lstrip().startswith("{")
    what = "the text" if is_text else os.fspath(source)
    try:
        text = str(source) if is_text else Path(source).read_text(encoding="utf-8")
        value = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"{what} is no JSON: {error}") from None
    if not isinstance(value, dict) or value.get("llamatelemetry") != kind:
        raise ConfigurationError(
            f"{what} is no {kind} as to_json() of llamatelemetry writes it"
        )
    if value.get("format") != _FORMAT:
        raise ConfigurationError(
            f"{what} has the format {value.get('format')!r}, and this version of "
            f"llamatelemetry reads {_FORMAT}; a later version wrote it?"
        )
    try:
        return build(value)
    except ConfigurationError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{what} is a damaged {kind}: {type(error).__name__}: {error}"
        ) from error


def known_fields(kind: type, value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that this version knows; a later one may have written more."""
    names = {item.name for item in fields(kind)}
    return {name: one for name, one in value.items() if name in names}


def load_from(value: Mapping[str, Any]) -> LoadResult:
    """Return a load from its fields."""
    known = known_fields(LoadResult, value)
    for name in SPREADS:
        if known.get(name) is not None:
            spread = known_fields(Statistics, known[name])
            known[name] = Statistics(**spread)
    return LoadResult(**known)


def plain_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as they are once they were JSON: lists, texts, numbers.

    What JSON has no word for, such as a function, is told as text.
    """
    known: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return known


def plain(value: Any) -> dict[str, Any]:
    """Return a dataclass as dictionaries and lists."""
    return dict(asdict(value))
