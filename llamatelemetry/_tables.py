"""Rows of plain values as CSV, as Parquet or as pandas' DataFrame.

The only import of pandas and of pyarrow, which are loaded when they are asked for.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from llamatelemetry._files import write_whole
from llamatelemetry.exceptions import ConfigurationError, SetupError

__all__ = [
    "parquet_shape",
    "read_parquet",
    "to_csv_text",
    "to_dataframe",
    "write_parquet",
]

_ROWS_AT_ONCE = 1000


def to_csv_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return rows as CSV: a line of names, then one line each; None is empty.

    Args:
        rows: A value for each column, by its name; what is missing is empty.
        columns: The columns, in their order.

    Raises:
        ValueError: A row has a value for which there is no column.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_dataframe(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> Any:
    """Return rows as a ``pandas.DataFrame``, which has its columns without rows too.

    None is missing, and a column of nothing else is NaN, as in a CSV that is read.

    Args:
        rows: A value for each column, by its name.
        columns: The columns, in their order.

    Raises:
        SetupError: pandas is missing, or does not load.
    """
    try:
        import pandas as pd  # type: ignore[import-untyped,import-not-found,unused-ignore] # noqa: PLC0415 - loaded when asked for
    except ModuleNotFoundError as error:
        raise SetupError(
            "A DataFrame needs pandas, which is not installed; run: pip install "
            "pandas. CSV and JSON need nothing."
        ) from error
    except Exception as error:
        raise SetupError(
            f"pandas does not load ({type(error).__name__}: {error}); run: pip install "
            "--force-reinstall pandas. CSV and JSON need nothing."
        ) from error
    frame = pd.DataFrame.from_records(list(rows), columns=list(columns))
    return frame.astype({name: float for name in columns if frame[name].isna().all()})


def parquet_shape(path: str | os.PathLike[str]) -> tuple[tuple[str, ...], int]:
    """Return the columns of a Parquet file, and how many rows it has.

    Args:
        path: The file.

    Raises:
        ConfigurationError: It is no Parquet file, or not a whole one.
        SetupError: pyarrow is missing, or does not load.
    """
    _, parquet = _pyarrow()
    with _open_parquet(parquet, path) as file:
        return tuple(file.schema_arrow.names), file.metadata.num_rows


def read_parquet(
    path: str | os.PathLike[str], columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file; no more than a thousand are held at once.

    Args:
        path: The file.
        columns: Those to read. None: all.

    Raises:
        ConfigurationError: It is no Parquet file, or not a whole one.
        SetupError: pyarrow is missing, or does not load.
    """
    _, parquet = _pyarrow()
    with _open_parquet(parquet, path) as file:
        batches = file.iter_batches(_ROWS_AT_ONCE, columns=columns)
        while True:
            try:
                batch = next(batches, None)
            except (OSError, ValueError) as error:
                raise _no_parquet(path, error) from error
            if batch is None:
                return
            yield from batch.to_pylist()


def write_parquet(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    path: str | os.PathLike[str],
) -> None:
    """Write rows to a Parquet file: a reader finds the old file or the new one, whole.

    A column of numbers, of texts or of lists of one kind keeps that kind. What Parquet
    has no one kind for (objects, numbers beside texts) becomes JSON text, and a column
    without values is one of missing floating-point numbers.

    Args:
        rows: A value for each column, by its name; what is missing is None.
        columns: The columns, in their order.
        path: The file; its folder has to be there.

    Raises:
        SetupError: pyarrow is missing, or does not load.
        OSError: It cannot be written; the old file is as it was.
    """
    arrow, parquet = _pyarrow()
    held = list(rows)
    arrays = [_array(arrow, [row.get(name) for row in held]) for name in columns]
    table = arrow.Table.from_arrays(arrays, names=list(columns))
    content = io.BytesIO()
    parquet.write_table(table, content)
    write_whole(path, content.getvalue())


def _array(arrow: ModuleType, values: list[Any]) -> Any:
    """Return a column of the kind that its values have in common, else as JSON."""
    if not any(map(_has_fields, values)):
        try:
            array = arrow.array(values)
        except (ValueError, TypeError, OverflowError):  # pyarrow's errors are these too
            pass
        else:
            return (
                array.cast(arrow.float64()) if array.null_count == len(array) else array
            )
    return arrow.array(
        [
            None
            if value is None
            else json.dumps(value, ensure_ascii=False, default=str)
            for value in values
        ],
        arrow.string(),
    )


def _has_fields(value: Any) -> bool:
    """Whether a value is, or holds, an object: its fields may be others in each row."""
    if isinstance(value, list | tuple):
        return any(map(_has_fields, value))
    return isinstance(value, Mapping)


def _open_parquet(parquet: ModuleType, path: str | os.PathLike[str]) -> Any:
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise _no_parquet(path, error) from error


def _no_parquet(path: str | os.PathLike[str], error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"{os.fspath(path)} cannot be read as Parquet ({error}); write it again, or "
        "give the rows in another form: a DataFrame, .csv or .jsonl"
    )


def _pyarrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow as pa  # noqa: PLC0415 - loaded when asked for
        from pyarrow import parquet  # noqa: PLC0415 - the same
    except ModuleNotFoundError as error:
        raise SetupError(
            "Parquet needs pyarrow, which is not installed; run: pip install pyarrow. "
            "CSV and JSON need nothing."
        ) from error
    except Exception as error:
        raise SetupError(
            f"pyarrow does not load ({type(error).__name__}: {error}); run: pip "
            "install --force-reinstall pyarrow. CSV and JSON need nothing."
        ) from error
    return pa, parquet
