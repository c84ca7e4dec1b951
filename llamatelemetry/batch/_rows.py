"""The rows of a call: a DataFrame, a list, an iterator or a file, read one by one."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NoReturn

from llamatelemetry.batch._row_files import (
    columns_of,
    delimiter_hint,
    holds_texts,
    values_in,
)
from llamatelemetry.exceptions import ConfigurationError, SetupWarning

__all__ = ["Row", "Rows", "label_of", "open_rows"]

_KINDS = (
    "rows takes a DataFrame, a list, an iterator, or the path of a .csv, .jsonl or "
    ".parquet file"
)
_NO_ROW = "rows holds no row; there is nothing to ask"
_MISSING = frozenset(("NAType", "NaTType"))  # pandas' own words for "no value"

_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,18}")
"""Not "007": what is written otherwise than a number is would lose that."""

_LARGEST = 2**63 - 1
"""What pandas and Parquet have room for."""

Identify = str | Callable[[Any], str | int] | None


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        position: Its place, from 0.
        id: What it is known by: text or a whole number.
        value: A dict of its columns, or what the list held.
    """

    position: int
    id: str | int
    value: Any


@dataclass(frozen=True, slots=True)
class _Source:
    """Where rows come from.

    Attributes:
        values: Begins anew each time, but for an iterator.
        labels: The ids that a table has itself; None: it has none.
        names: The columns, as far as the source itself tells them.
        once: Whether it can be read once only.
        flaw: Why its index cannot name rows, if it has one that cannot.
        texts: Whether numbers in it are texts.
    """

    values: Callable[[], Iterator[Any]]
    labels: Callable[[], Iterator[Any]] | None = None
    names: tuple[str, ...] = ()
    once: bool = False
    flaw: str = ""
    texts: bool = False


class Rows:
    """Rows with their ids.

    Attributes:
        count: How many; None if that is not known before they are read.
        names: The columns; none if the rows have none, or are not known before.
        once: Whether they can be read once only.
    """

    def __init__(self, source: _Source, identify: Identify) -> None:
        self._source = source
        self._identify = identify
        self.once = source.once
        self.count: int | None = None
        self.names = source.names
        if not self.once:
            self._look_through()

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows.

        Raises:
            ConfigurationError: A row of an iterator has no id, or another one's; or
                there is no row.
        """
        if not self.once:
            return self._rows()
        return self._checked_rows()

    def _rows(self) -> Iterator[Row]:
        labels = self._source.labels
        ids = labels() if labels is not None and self._identify is None else None
        for position, value in enumerate(self._source.values()):
            if ids is not None:
                yield Row(position, _as_id(next(ids), position, _FROM_INDEX), value)
            else:
                yield Row(position, self._id_of(value, position), value)

    def _checked_rows(self) -> Iterator[Row]:
        """Yield an iterator's rows, whose ids are checked as they come."""
        seen: dict[bytes, int] = {}
        row = None
        for row in self._rows():
            if self._identify is not None:
                before = seen.setdefault(_digest(row.id), row.position)
                if before != row.position:
                    _refuse_twice(row.id, before, row.position)
            yield row
        if row is None:  # as a list without rows is refused
            raise ConfigurationError(f"{_NO_ROW}; an iterator can be read only once")

    def _look_through(self) -> None:
        """Count the rows, collect their columns and find ids that occur twice."""
        named = self._identify is not None or self._source.labels is not None
        seen: set[bytes] = set()
        names = dict.fromkeys(self.names)
        count = 0
        for row in self._rows():
            count += 1
            if isinstance(row.value, Mapping) and not self.names:
                names.update(dict.fromkeys(map(str, row.value)))
            if not named:
                continue
            digest = _digest(row.id)
            if digest in seen:
                first = next(one.position for one in self._rows() if one.id == row.id)
                _refuse_twice(row.id, first, row.position)
            seen.add(digest)
        if not count:
            raise ConfigurationError(_NO_ROW)
        self.count = count
        self.names = tuple(names)

    def _id_of(self, value: Any, position: int) -> str | int:
        if self._identify is None:
            return position
        if isinstance(self._identify, str):
            if not isinstance(value, Mapping) or self._identify not in value:
                columns = tuple(value) if isinstance(value, Mapping) else ()
                raise ConfigurationError(
                    f"row {position}: {_no_column(self._identify, columns)}"
                )
            named = value[self._identify]
            return _as_id(_read(named) if self._source.texts else named, position)
        try:
            made = self._identify(value)
        except Exception as error:
            raise ConfigurationError(
                f"row {position}: the function for id failed ({type(error).__name__}: "
                f"{error})"
            ) from error
        return _as_id(made, position)


def open_rows(rows: Any, id: Identify = None) -> Rows:  # noqa: A002 -- what users call it
    """Return rows that can be walked through.

    Args:
        rows: A DataFrame, a list, an iterator, or the path of a file.
        id: The column that names each row, or a function of a row that does. None: a
            DataFrame's index if it has no value twice, else the position. A whole
            number in a CSV's column is one, as pandas reads it.

    Raises:
        ConfigurationError: They cannot be read, or two of them have one id.

    Warns:
        SetupWarning: A DataFrame's index was passed over.
    """
    if id is not None and not isinstance(id, str) and not callable(id):
        raise ConfigurationError(f"id takes a column or a function, not {id!r}")
    source = _source(rows)
    if id is None and source.flaw:
        warnings.warn(
            f"the DataFrame's index {source.flaw}, so rows are named by their place, "
            "and the results would join with other rows: call "
            "rows.reset_index(drop=True) before, or name a column with id=",
            SetupWarning,
            stacklevel=3,
        )
    return Rows(source, id)


def _source(rows: Any) -> _Source:
    if isinstance(rows, str | os.PathLike):
        path = Path(rows).expanduser()
        read = values_in(path)
        return _Source(
            lambda: _plain_values(read()),
            names=columns_of(path),
            texts=holds_texts(path),
        )
    return _frame(rows) or _iterable(rows)


def _iterable(rows: Any) -> _Source:
    if isinstance(rows, AbstractSet | Mapping):
        raise ConfigurationError(
            f"{_KINDS}; a {type(rows).__name__} has no rows in an order that lasts: "
            "give a list"
        )
    if isinstance(rows, bytes | bytearray) or not isinstance(rows, Iterable):
        raise ConfigurationError(f"{_KINDS}, not {type(rows).__name__}")
    once = isinstance(rows, Iterator) or not isinstance(rows, Sized)
    return _Source(lambda: _plain_values(rows), once=once)


def _frame(frame: Any) -> _Source | None:
    """Return the rows of a DataFrame, or of one column; None if it is none of them."""
    if hasattr(frame, "itertuples") and hasattr(frame, "columns"):
        return _columns(frame)
    if hasattr(frame, "iloc") and hasattr(frame, "index"):
        return _indexed(lambda: map(plain, frame), frame.index)
    if hasattr(frame, "iter_rows") and hasattr(frame, "columns"):  # polars
        names = tuple(map(str, frame.columns))
        return _Source(lambda: _plain_values(frame.iter_rows(named=True)), names=names)
    return None


def _columns(frame: Any) -> _Source:
    """Return a DataFrame's rows, which are read from its columns without a copy."""
    names = tuple(map(str, frame.columns))
    if len(set(names)) < len(names):
        raise ConfigurationError(f"rows has a column twice: {', '.join(names)}")

    def values() -> Iterator[Any]:
        for fields in frame.itertuples(index=False, name=None):
            yield dict(zip(names, map(plain, fields), strict=True))

    return _indexed(values, frame.index, names)


def _indexed(
    values: Callable[[], Iterator[Any]], index: Any, names: tuple[str, ...] = ()
) -> _Source:
    """Return rows that their index names, if it can."""
    if not index.is_unique:
        return _Source(values, names=names, flaw="has values twice")
    if index.nlevels == 1 and index.hasnans:
        return _Source(values, names=names, flaw="has missing values")
    return _Source(values, lambda: map(label_of, index), names)


def label_of(value: Any) -> str | int:
    """Return an index's entry as an id: what is no whole number is its text."""
    value = plain(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return str(value)


def _plain_values(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, Mapping):
            yield {name: plain(one) for name, one in value.items()}
        else:
            yield plain(value)


def plain(value: Any) -> Any:
    """Return a cell as Python has it; None for what numpy and pandas call missing."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    if type(value).__name__ in _MISSING:
        return None
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # numpy's
        return plain(value.tolist()) if value.ndim == 0 else value.tolist()
    return value


_FROM_INDEX = " from the DataFrame's index"


def _as_id(value: Any, position: int, whence: str = "") -> str | int:
    value = plain(value)
    if isinstance(value, float) and value.is_integer():  # a column that had gaps
        return int(value)
    if isinstance(value, int | str) and not isinstance(value, bool) and value != "":
        return value
    raise ConfigurationError(
        f"row {position} has the id {value!r}{whence}; an id is text that is not "
        "empty, or a whole number"
    )


def _read(text: str | None) -> str | int | None:
    """Return a CSV's text as the whole number that it stands for, if it does.

    So a row has one id, whether the file is given, or what pandas has read of it.
    """
    if text is None or not _WHOLE_NUMBER.fullmatch(text):
        return text
    return int(text) if abs(int(text)) <= _LARGEST else text


def _digest(id: str | int) -> bytes:  # noqa: A002 -- what users call it
    return blake2b(json.dumps(id).encode(), digest_size=16).digest()


def _refuse_twice(id: str | int, first: int, second: int) -> NoReturn:  # noqa: A002 -- what users call it
    raise ConfigurationError(
        f"the rows {first} and {second} (from 0) both have the id {id!r}; give "
        "id= a column without equal values, or leave it to name rows by their place "
        "(those of a DataFrame after reset_index(drop=True))"
    )


def _no_column(name: str, names: tuple[str, ...]) -> str:
    listed = ", ".join(map(repr, names[:20])) or "none"
    told = f"id={name!r}: there is no such column; there are: {listed}"
    hint = delimiter_hint(names)
    return f"{told}. {hint}" if hint else told
