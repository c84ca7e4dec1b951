"""Tables in files, of which no more is held than the row that is read."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llamatelemetry._tables import parquet_shape, read_parquet
from llamatelemetry.exceptions import ConfigurationError

__all__ = ["columns_of", "values_in"]

_FORMS = ".csv, .tsv, .jsonl, .ndjson, .json (a list) or .parquet"


def values_in(path: Path) -> Callable[[], Iterator[Any]]:
    """Return the function that reads a file's rows, each time from the beginning.

    Raises:
        ConfigurationError: There is no such file, or none that can be read.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigurationError(
            f"rows={str(path)!r}: a file of rows ends in {_FORMS}; a single row is "
            "given as a list"
        )
    if not path.is_file():
        raise ConfigurationError(f"rows={str(path)!r}: there is no such file")
    return lambda: _reading(path, reader)


def columns_of(path: Path) -> tuple[str, ...]:
    """Return the columns that a file names itself, rows or not; none if it does not."""
    if path.suffix.lower() in {".parquet", ".pq"}:
        return parquet_shape(path)[0]
    if path.suffix.lower() in _DELIMITERS:
        with _errors_named(path), _opened(path) as file:
            return tuple(next(_csv_reader(path, file), ()))
    return ()


def _reading(path: Path, read: Callable[[Path], Iterator[Any]]) -> Iterator[Any]:
    with _errors_named(path):
        yield from read(path)


@contextlib.contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"rows={str(path)!r} is no UTF-8 ({error.reason} at byte {error.start}); "
            "save it as UTF-8, or read it with pandas.read_csv(..., encoding=...)"
        ) from error
    except csv.Error as error:
        raise ConfigurationError(
            f"rows={str(path)!r} cannot be read as CSV ({error}); for longer fields "
            "call csv.field_size_limit(10**9) before"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"rows={str(path)!r} cannot be read ({error.strerror or error})"
        ) from error


def _opened(path: Path) -> Any:
    return path.open(encoding="utf-8-sig", newline="")


_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def _csv_reader(path: Path, file: Any) -> Any:
    return csv.reader(file, delimiter=_DELIMITERS[path.suffix.lower()])


def _csv_rows(path: Path) -> Iterator[dict[str, str | None]]:
    with _opened(path) as file:
        reader = _csv_reader(path, file)
        names: list[str] = next(reader, [])
        twice = [name for place, name in enumerate(names) if name in names[:place]]
        if twice:
            raise ConfigurationError(
                f"rows={str(path)!r} has the column {twice[0]!r} twice"
            )
        for fields in reader:
            if len(fields) > len(names):
                raise ConfigurationError(
                    f"rows={str(path)!r}: line {reader.line_num} has {len(fields)} "
                    f"fields, but there are {len(names)} columns; is a comma or a "
                    "quotation mark missing?"
                )
            if fields:
                missing = [None] * (len(names) - len(fields))
                yield dict(zip(names, [*fields, *missing], strict=True))


def _json_lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                torn = "" if line.endswith("\n") else " (the last, which may be torn)"
                raise ConfigurationError(
                    f"rows={str(path)!r}: line {number}{torn} is no JSON ({error})"
                ) from error
            yield value


def _json_list(path: Path) -> Iterator[Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"rows={str(path)!r} is no JSON ({error}); one value a line is .jsonl"
        ) from error
    if not isinstance(values, list):
        raise ConfigurationError(
            f"rows={str(path)!r} holds no list; one value a line is .jsonl"
        )
    yield from values


_READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_list,
    ".parquet": read_parquet,
    ".pq": read_parquet,
}
