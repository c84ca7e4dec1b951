"""Rows as CSV, Parquet and DataFrame."""

from __future__ import annotations

import csv
import gc
import io
import os
import sys
import tracemalloc
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet as pq
from small_disk import small_disk

from llamatelemetry._tables import (
    parquet_shape,
    read_parquet,
    to_csv_text,
    to_dataframe,
    write_parquet,
)
from llamatelemetry.exceptions import ConfigurationError, LLCudaError, SetupError
from tests.conftest import missing_part

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


def test_parquet_is_read_back(tmp_path: Path) -> None:
    """Each value is as it was; what is missing is None; the shape is told."""
    path = tmp_path / "rows.parquet"
    write_parquet(ROWS, COLUMNS, path)

    assert parquet_shape(path) == (COLUMNS, 3)
    assert list(read_parquet(path)) == [
        {name: row.get(name) for name in COLUMNS} for row in ROWS
    ]
    assert list(read_parquet(str(path), ["size"])) == [
        {"size": row["size"]} for row in ROWS
    ]
    # As others read it.
    assert pd.read_parquet(path)["name"].tolist() == [row["name"] for row in ROWS]


def test_a_column_of_parquet_has_one_kind(tmp_path: Path) -> None:
    """Numbers and lists keep theirs; what has none in common is JSON text."""
    path = tmp_path / "rows.parquet"
    rows = [
        {"n": 1, "times": [0.5, 1.5], "mixed": 1, "fields": {"a": 1}, "large": 2**70},
        {
            "n": 2.5,
            "times": [],
            "mixed": "ä",
            "fields": {},
            "inner": [{"b": Path("x")}],
        },
        {"n": None, "times": None, "mixed": None, "fields": None},
    ]
    columns = ["n", "times", "mixed", "fields", "inner", "large", "nothing"]
    write_parquet(iter(rows), columns, path)

    kinds = {field.name: str(field.type) for field in pq.read_schema(path)}
    assert kinds == {
        "n": "double",
        "times": "list<element: double>",
        "mixed": "string",
        "fields": "string",
        "inner": "string",
        "large": "string",
        "nothing": "double",
    }
    read = list(read_parquet(path))
    assert [row["n"] for row in read] == [1.0, 2.5, None]
    assert [row["times"] for row in read] == [[0.5, 1.5], [], None]
    assert [row["mixed"] for row in read] == ["1", '"ä"', None]
    assert [row["fields"] for row in read] == ['{"a": 1}', "{}", None]
    assert [row["inner"] for row in read] == [None, '[{"b": "x"}]', None]
    assert [row["large"] for row in read] == [str(2**70), None, None]
    assert [row["nothing"] for row in read] == [None] * 3


def test_no_rows_are_a_parquet_file_with_columns(tmp_path: Path) -> None:
    """A table without rows can be read too."""
    write_parquet([], COLUMNS, tmp_path / "rows.parquet")

    assert parquet_shape(tmp_path / "rows.parquet") == (COLUMNS, 0)
    assert list(read_parquet(tmp_path / "rows.parquet")) == []


def test_a_parquet_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """A disk that is full, and rows that fail, leave the old file and nothing else."""
    with small_disk(tmp_path / "little", 2 * 10**6) as allowed:
        if not allowed:
            missing_part("the right to mount a file system", "run as root")
        path = tmp_path / "little" / "rows.parquet"
        write_parquet(ROWS, COLUMNS, path)
        old = path.read_bytes()
        noise = [{"name": os.urandom(1000).hex()} for _ in range(4000)]

        with pytest.raises(OSError, match="No space left"):
            write_parquet(noise, COLUMNS, path)
        with pytest.raises(ZeroDivisionError):
            write_parquet(({"size": 1 // n} for n in (1, 0)), COLUMNS, path)

        assert path.read_bytes() == old
        assert os.listdir(tmp_path / "little") == ["rows.parquet"]
    with pytest.raises(FileNotFoundError):
        write_parquet(ROWS, COLUMNS, tmp_path / "nowhere" / "rows.parquet")


def test_a_link_to_a_parquet_file_stays_one(tmp_path: Path) -> None:
    """What it leads to is replaced."""
    link = tmp_path / "link.parquet"
    link.symlink_to(tmp_path / "rows.parquet")
    write_parquet(ROWS, COLUMNS, link)

    assert link.is_symlink()
    assert parquet_shape(tmp_path / "rows.parquet")[1] == 3


def test_a_parquet_file_keeps_its_rights(tmp_path: Path) -> None:
    """As other files that are written whole: a new one is as readable as the old."""
    path = tmp_path / "rows.parquet"
    write_parquet(ROWS, COLUMNS, path)
    path.chmod(0o604)
    write_parquet(ROWS, COLUMNS, path)

    assert path.stat().st_mode & 0o777 == 0o604


def test_what_is_no_parquet_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    """Neither another file, nor half of one, nor one damaged in the middle."""
    path = tmp_path / "rows.parquet"
    write_parquet([{"name": str(n) * 50} for n in range(5000)], ["name"], path)
    whole = path.read_bytes()
    for content in (b"", b"name\na\n", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(
            ConfigurationError, match="rows.parquet cannot be read as P"
        ):
            parquet_shape(path)
        with pytest.raises(
            ConfigurationError, match="rows.parquet cannot be read as P"
        ):
            next(read_parquet(path))

    path.write_bytes(whole[:4] + b"\xff" * 4000 + whole[4004:])
    assert parquet_shape(path) == (("name",), 5000)
    with pytest.raises(ConfigurationError, match="rows.parquet cannot be read as P"):
        list(read_parquet(path))


def test_parquet_is_read_in_pieces(tmp_path: Path) -> None:
    """Of 20 MB of rows, no more than a few are held by Python and by pyarrow."""
    path = tmp_path / "rows.parquet"
    text = "x" * 997
    write_parquet(({"text": f"{n:03d}{text}"} for n in range(20_000)), ["text"], path)
    gc.collect()
    before = pa.total_allocated_bytes()

    most = 0
    tracemalloc.start()
    for row in read_parquet(path):
        assert len(row["text"]) >= 1000
        most = max(most, pa.total_allocated_bytes() - before)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert held < 5_000_000
    assert most < 15_000_000


def test_without_pyarrow_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A missing pyarrow, and one that does not load, are told with the remedy."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SetupError, match="run: pip install pyarrow"):
        write_parquet(ROWS, COLUMNS, tmp_path / "rows.parquet")
    with pytest.raises(SetupError, match="run: pip install pyarrow"):
        parquet_shape(tmp_path / "rows.parquet")
    monkeypatch.undo()

    (tmp_path / "pyarrow.py").write_text("raise RuntimeError('built for numpy 1')")
    monkeypatch.delitem(sys.modules, "pyarrow")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SetupError, match="numpy 1.*--force-reinstall pyarrow"):
        next(read_parquet(tmp_path / "rows.parquet"))
