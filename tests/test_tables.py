"""Rows as CSV and DataFrame, and files that are never half written."""

from __future__ import annotations

import csv
import io
import os
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest

from llamatelemetry._files import write_whole
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


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    """A reader that looks all the time finds the old text or the new one."""
    path = tmp_path / "table.csv"
    texts = [letter * 200_000 + "\n" for letter in "ab"]
    write_whole(path, texts[0])
    found: set[str] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            found.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(50):
        write_whole(path, texts[number % 2])
    done.set()
    reader.join()

    assert found <= set(texts)
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    """An error in the middle changes nothing and leaves nothing behind."""
    path = tmp_path / "table.csv"
    write_whole(path, "old\n")

    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new\n\ud800")
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "missing" / "table.csv", "new\n")
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path, "new\n")

    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_keeps_its_rights_and_a_link_stays_one(tmp_path: Path) -> None:
    """New files get what the umask leaves, old ones keep theirs, links lead on."""
    umask = os.umask(0o027)
    try:
        path, link = tmp_path / "table.csv", tmp_path / "link"
        write_whole(str(path), "one\n")
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o604)
        link.symlink_to(path)

        write_whole(link, "ä\r\n")
    finally:
        os.umask(umask)

    assert link.is_symlink()
    assert path.read_bytes() == "ä\r\n".encode()
    assert path.stat().st_mode & 0o777 == 0o604


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """What is no plain file, such as /dev/stdout, is written into."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, "through\n")
        assert os.read(reader, 100) == b"through\n"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
