"""Tables in files, of which no more is held than the row that is read."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llamatelemetry._tables import parquet_shape, read_parquet
from llamatelemetry.exceptions import ConfigurationError

__all__ = ["columns_of", "delimiter_hint", "holds_texts", "values_in"]

_OTHER_DELIMITERS = ";\t|"

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
            return tuple(next(_csv_records(path, file), (0, []))[1])
    return ()


def holds_texts(path: Path) -> bool:
    """Whether all values in a file are texts, numbers too, as in a CSV."""
    return path.suffix.lower() in _DELIMITERS


def delimiter_hint(names: Sequence[str]) -> str:
    """Return what to do where one column seems to hold several; "" where it does not.

    Args:
        names: The columns of a table.
    """
    mark = next((mark for mark in _OTHER_DELIMITERS if mark in "".join(names)), "")
    if len(names) != 1 or not mark:
        return ""
    return (
        f"If {mark!r} is what separates the columns, read the file with "
        f"pandas.read_csv(..., sep={mark!r})"
    )


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
    except OSError as error:
        raise ConfigurationError(
            f"rows={str(path)!r} cannot be read ({error.strerror or error})"
        ) from error


def _opened(path: Path) -> Any:
    return path.open(encoding="utf-8-sig", newline="")


_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def _csv_records(path: Path, file: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield the records of a CSV file, the first of them names, and where each ends."""
    delimiter = _DELIMITERS[path.suffix.lower()]
    # Strict: without it a quotation mark that is never closed swallows the other rows.
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    while True:
        begins = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ConfigurationError(
                f"rows={str(path)!r}: the row that begins in line {begins} cannot be "
                f"read as CSV ({error}); is a quotation mark missing? For fields that "
                "are long call csv.field_size_limit(10**9) before"
            ) from error
        yield reader.line_num, fields


def _csv_rows(path: Path) -> Iterator[dict[str, str | None]]:
    with _opened(path) as file:
        records = _csv_records(path, file)
        names = next(records, (0, []))[1]
        twice = [name for place, name in enumerate(names) if name in names[:place]]
        if twice:
            raise ConfigurationError(
                f"rows={str(path)!r} has the column {twice[0]!r} twice"
            )
        for line, fields in records:
            if len(fields) > len(names):
                raise ConfigurationError(
                    f"rows={str(path)!r}: line {line} has {len(fields)} "
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
