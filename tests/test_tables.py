"""Rows as CSV and DataFrame."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import pandas as pd
import pytest

from llamatelemetry._tables import to_csv_text, to_dataframe
from llamatelemetry.exceptions import LLCudaError, SetupError

COLUMNS = ("name", "size", "note")
ROWS = [
    {"name": "a", "size": 2**40 + 1, "note": 'with "quotes", and\nlines'},
    {"name": "ä\u2028€", "size": None, "note": "-1.5"},
    {"name": "c", "size": 3},
]


def test_csv_is_read_back() -> None:
    """The csv module reads what was written; None and what is missing are empty."""
    text = to_csv_text(ROWS, COLUMNS)

    assert text.startswith('name,size,note\na,1099511627777,"with ""quotes"", and\n')
    assert list(csv.DictReader(io.StringIO(text))) == [
        {name: "" if row.get(name) is None else str(row[name]) for name in COLUMNS}
        for row in ROWS
    ]
    assert to_csv_text([], COLUMNS) == "name,size,note\n"
    with pytest.raises(ValueError, match="extra"):
        to_csv_text([{"name": "a", "extra": 1}], COLUMNS)


def test_a_table_has_its_columns_and_its_numbers() -> None:
    """Missing values are missing, and no rows are a table without rows."""
    frame = to_dataframe(ROWS, COLUMNS)

    assert list(frame.columns) == list(COLUMNS)
    assert frame["size"].tolist()[::2] == [2**40 + 1, 3]
    assert frame["size"].isna().tolist() == [False, True, False]
    assert frame.note.isna().tolist() == [False, False, True]
    assert list(to_dataframe([], COLUMNS).columns) == list(COLUMNS)
    assert len(to_dataframe([], COLUMNS)) == 0


def test_a_column_without_values_can_be_computed_with() -> None:
    """Nothing but None is NaN, whose largest is NaN and no error."""
    frame = to_dataframe([{"size": None}, {"size": None}], ["size"])

    assert frame["size"].dtype == "float64"
    assert pd.isna(frame["size"].max())


def test_without_pandas_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A missing pandas, and one that does not load, are told with the remedy."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SetupError, match="run: pip install pandas") as caught:
        to_dataframe(ROWS, COLUMNS)
    assert isinstance(caught.value, LLCudaError)
    monkeypatch.undo()

    (tmp_path / "pandas.py").write_text("raise RuntimeError('built for numpy 1')")
    monkeypatch.delitem(sys.modules, "pandas")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SetupError, match="numpy 1.*--force-reinstall pandas"):
        to_dataframe(ROWS, COLUMNS)
