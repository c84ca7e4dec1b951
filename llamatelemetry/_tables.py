"""Rows of plain values as CSV or as pandas' DataFrame, and files written whole.

The only import of pandas, which is loaded when it is asked for.
"""

from __future__ import annotations

import csv
import io
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamatelemetry.exceptions import SetupError

__all__ = ["to_csv_text", "to_dataframe", "write_whole"]


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


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file so that a reader finds the old one or the new one, whole.

    What a link leads to is replaced, not the link; a device or a pipe is written to.

    Args:
        path: The file; its folder has to be there.
        text: Written as UTF-8.

    Raises:
        OSError: It cannot be written; the old file is as it was.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        with target.open("w", encoding="utf-8", newline="") as stream:
            stream.write(text)
        return
    beside = target.with_name(f".{target.name[:40]}.{uuid.uuid4().hex[:8]}")
    try:
        with beside.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            beside.chmod(target.stat().st_mode & 0o777)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
