"""Rows of plain values as CSV or as pandas' DataFrame.

The only import of pandas, which is loaded when it is asked for.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llamatelemetry.exceptions import SetupError

__all__ = ["to_csv_text", "to_dataframe"]


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
