"""Rows: what they may be, their ids, and what is refused."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from llamatelemetry._tables import write_parquet
from llamatelemetry.batch._rows import Row, open_rows, plain
from llamatelemetry.exceptions import ConfigurationError, SetupWarning

TABLE = [{"name": "a", "text": "one"}, {"name": "b", "text": "zwö\n2"}]


def write_csv(path: Path) -> None:
    path.write_text('name,text\na,one\n\nb,"zwö\n2"\n', encoding="utf-8-sig")


def write_tsv(path: Path) -> None:
    path.write_text('name\ttext\na\tone\nb\t"zwö\n2"\n')


def write_lines(path: Path) -> None:
    path.write_text("\n\n".join(map(json.dumps, TABLE)), encoding="utf-8-sig")


def write_list(path: Path) -> None:
    path.write_text(json.dumps(TABLE))


FILES: dict[str, Callable[[Path], None]] = {
    "rows.csv": write_csv,
    "rows.TSV": write_tsv,
    "rows.jsonl": write_lines,
    "rows.ndjson": write_lines,
    "rows.json": write_list,
    "rows.parquet": lambda path: write_parquet(TABLE, ["name", "text"], path),
    "rows.pq": lambda path: write_parquet(TABLE, ["name", "text"], path),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_row_by_row_as_often_as_wanted(
    name: str, tmp_path: Path
) -> None:
    """Each form gives the same rows, count and columns; ids are positions."""
    FILES[name](tmp_path / name)

    for path in (tmp_path / name, str(tmp_path / name)):
        rows = open_rows(path)

        assert (rows.count, rows.names, rows.once) == (2, ("name", "text"), False)
        assert list(rows) == list(rows) == [Row(0, 0, TABLE[0]), Row(1, 1, TABLE[1])]
    assert [row.id for row in open_rows(path, id="name")] == ["a", "b"]


def test_a_list_may_hold_tables_or_plain_values() -> None:
    """Columns are those of all rows; a plain value is the row; a function names it."""
    rows = open_rows([{"a": 1}, {"b": None, "a": float("nan")}])
    plain_rows = open_rows(("x", "y"), id=lambda text: f"id of {text}")

    assert rows.names == ("a", "b")
    assert [row.value for row in rows] == [{"a": 1}, {"b": None, "a": None}]
    assert plain_rows.names == ()
    assert list(plain_rows) == [Row(0, "id of x", "x"), Row(1, "id of y", "y")]


def test_a_dataframe_has_its_index_as_ids_and_plain_values() -> None:
    """What numpy holds becomes Python's, and what is missing None."""
    frame = pd.DataFrame(
        {"size": [1, 2], "share": [0.5, np.nan], "when": [pd.Timestamp(0), pd.NaT]},
        index=pd.Index([7, 3]),
    )
    frame["kind"] = pd.array(["x", pd.NA], dtype="string")
    rows = open_rows(frame)

    first, second = rows
    assert (first.id, second.id, rows.count) == (7, 3, 2)
    assert first.value == {
        "size": 1,
        "share": 0.5,
        "when": pd.Timestamp(0),
        "kind": "x",
    }
    assert second.value == {"size": 2, "share": None, "when": None, "kind": None}
    assert [type(first.value[name]) for name in ("size", "share", "kind")] == [
        int,
        float,
        str,
    ]
    assert type(first.id) is int


def test_what_an_index_cannot_name_is_named_by_position() -> None:
    """An index with equal or missing entries gives way, which is told once."""
    twice = pd.DataFrame({"a": [1, 2]}, index=["x", "x"])
    missing = pd.DataFrame({"a": [1, 2]}, index=[1.0, np.nan])

    for frame, flaw in ((twice, "values twice"), (missing, "missing values")):
        for table in (frame, frame["a"]):
            with pytest.warns(SetupWarning, match=f"{flaw}.*reset_index") as told:
                rows = open_rows(table)
            assert len(told) == 1
            assert [row.id for row in rows] == [0, 1]
        # Who names a column, or resets the index as it says, is told nothing.
        assert [row.id for row in open_rows(frame, id="a")] == [1, 2]
        assert [row.id for row in open_rows(frame.reset_index(drop=True))] == [0, 1]


@pytest.mark.parametrize(
    ("index", "ids"),
    [
        ([pd.Timestamp("2026-01-02")], ["2026-01-02 00:00:00"]),
        (pd.MultiIndex.from_tuples([("x", 1)]), ["('x', 1)"]),
        ([1.0, 2.0], [1, 2]),
        ([0.5, 2.0, np.inf], ["0.5", 2, "inf"]),
        ([True, False], ["True", "False"]),
        ([7, "7"], [7, "7"]),
    ],
)
def test_an_entry_of_an_index_is_a_number_or_text(index: Any, ids: Any) -> None:
    """What is no whole number is named as it is shown."""
    frame = pd.DataFrame({"a": range(len(ids))}, index=index)

    assert [row.id for row in open_rows(frame)] == ids
    assert [type(row.id) for row in open_rows(frame)] == list(map(type, ids))


def test_an_index_that_cannot_name_a_row_is_called_by_its_name() -> None:
    """Nobody gave an id: the error says where it comes from."""
    with pytest.raises(ConfigurationError, match="'' from the DataFrame's index"):
        open_rows(pd.DataFrame({"a": [1, 2]}, index=["", "x"]))
    gaps = pd.DataFrame({"a": [1.0, 2.0]}, index=[5, 6])
    assert [row.id for row in open_rows(gaps, id="a")] == [1, 2]


def test_one_column_of_a_dataframe_is_rows_too() -> None:
    """A Series gives plain values under its index."""
    rows = open_rows(pd.Series(["x", None], index=["one", "two"]))

    assert list(rows) == [Row(0, "one", "x"), Row(1, "two", None)]


class OtherFrame:
    """A table with the methods that polars gives its own."""

    columns = ("a", "b")

    def iter_rows(self, *, named: bool) -> Iterator[Any]:
        assert named
        yield {"a": 1, "b": float("nan")}


def test_a_table_of_polars_is_read_by_its_own_method() -> None:
    """Rows come as dicts, with the columns it names."""
    rows = open_rows(OtherFrame())

    assert rows.names == ("a", "b")
    assert list(rows) == [Row(0, 0, {"a": 1, "b": None})]


def test_an_iterator_is_read_once_and_lazily() -> None:
    """Nothing is taken before it is wanted, and the count is not known."""
    taken = []

    def endless() -> Iterator[str]:
        while True:
            taken.append(len(taken))
            yield f"row {len(taken)}"

    rows = open_rows(endless())

    assert (rows.count, rows.names, rows.once, taken) == (None, (), True, [])
    walk = iter(rows)
    assert next(walk) == Row(0, 0, "row 1")
    assert next(walk) == Row(1, 1, "row 2")
    assert taken == [0, 1]


def test_an_iterator_without_rows_is_refused_as_a_list_is() -> None:
    """One that was read before is empty: nothing asked is not all done."""
    for rows, named in ((iter([]), None), (iter([]), "k")):
        with pytest.raises(ConfigurationError, match="no row.*only once"):
            list(open_rows(rows, named))


def test_equal_ids_are_refused_at_once_where_rows_can_be_seen() -> None:
    """The error names the id and both rows."""
    rows = [{"k": "x"}, {"k": "y"}, {"k": "x"}]
    message = r"rows 0 and 2 \(from 0\) both have the id 'x'"

    with pytest.raises(ConfigurationError, match=message):
        open_rows(rows, id="k")
    with pytest.raises(ConfigurationError, match=message):
        open_rows(pd.DataFrame(rows), id="k")
    walk = iter(open_rows(iter(rows), id="k"))
    assert [next(walk).id, next(walk).id] == ["x", "y"]
    with pytest.raises(ConfigurationError, match=message):
        next(walk)
    assert [row.id for row in open_rows(iter(rows[:2]), id="k")] == ["x", "y"]
    assert [row.id for row in open_rows([{"k": 1}, {"k": "1"}], id="k")] == [1, "1"]


def failing(value: object) -> str:
    raise KeyError("nothing there")


@pytest.mark.parametrize(
    ("rows", "named", "message"),
    [
        ([], None, "no row"),
        (pd.DataFrame({"a": []}), None, "no row"),
        ({"a": 1}, None, "a dict has no rows in an order"),
        ({"a", "b"}, None, "a set has no rows in an order"),
        (b"text", None, "not bytes"),
        (7, None, "not int"),
        (None, None, "not NoneType"),
        ("nowhere.csv", None, "'nowhere.csv': there is no such file"),
        ("Summarise this.", None, "ends in .csv, .tsv"),
        ([{"a": 1}], "b", "no such column; there are: 'a'$"),
        ([{"a;b": 1}], "b", r"are: 'a;b'. If ';' is what .*read_csv\(..., sep=';'\)"),
        (pd.DataFrame({"a": [1]}), "b", "no such column; there are: 'a'"),
        (["x"], "b", "no such column; there are: none"),
        ([{"a": None}], "a", "row 0 has the id None"),
        ([{"a": True}], "a", "row 0 has the id True"),
        ([{"a": ""}], "a", "row 0 has the id ''"),
        ([{"a": 1.5}], "a", "row 0 has the id 1.5"),
        ([{"a": 1}], 5, "id takes a column or a function, not 5"),
        ([{"a": 1}], failing, r"row 0: .* failed \(KeyError: 'nothing there'\)"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), None, "a column twice: a, a"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_at_once(
    rows: Any, named: Any, message: str
) -> None:
    """The error says what is wrong and what would do."""
    with pytest.raises(ConfigurationError, match=message):
        open_rows(rows, named)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "no row"),
        ("a.csv", b"a,b\n", "no row"),
        ("a.csv", b"a,a\n1,2\n", "the column 'a' twice"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "line 3 has 3 fields, .* 2 columns"),
        ("a.csv", b"a\n\xe4\xff\n", "no UTF-8 .*encoding"),
        ("a.csv", b"a\n" + b"x" * 200_000, "line 2 .*field_size_limit"),
        ("a.csv", b'a,b\n1,2\n3,"4\n5,6\n', "line 3 .*quotation mark missing"),
        ("a.csv", b'a,b\n1,"2\n3,"4"\n', "line 2 .*quotation mark missing"),
        ("a.csv", b'"a,b\n1,2\n', "line 1 .*quotation mark missing"),
        ("a.jsonl", b'{"a":1}\n{"a":', "line 2 .the last, which may be torn. is no"),
        ("a.jsonl", b'{"a":1}\n{"a":\n{"a":2}\n', "line 2 is no JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1 .the last.* is no JSON"),
        ("a.jsonl", b'"\xff"\n', "no UTF-8"),
        ("a.json", b'{"a":1}\n', "holds no list; one value a line is .jsonl"),
        ("a.json", b'{"a":1}\n{"a":1}\n', "no JSON .*one value a line is .jsonl"),
        ("a.json", b'["\xff"]', "no UTF-8"),
        ("a.parquet", b"PAR1 is not enough", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_is_no_table_is_refused_at_once(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    """The error names the file, where the trouble is, and what to do."""
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ConfigurationError, match=message):
        open_rows(tmp_path / name)


def test_a_file_that_goes_away_is_an_error_of_the_package(tmp_path: Path) -> None:
    """What is gone between two walks is told with its name."""
    write_lines(tmp_path / "a.jsonl")
    rows = open_rows(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").unlink()

    with pytest.raises(ConfigurationError, match="a.jsonl' cannot be read"):
        list(rows)


def test_short_lines_of_a_csv_have_missing_values(tmp_path: Path) -> None:
    """A line with fewer fields than columns has None in the others."""
    (tmp_path / "a.csv").write_text("a,b\n1\n")

    assert [row.value for row in open_rows(tmp_path / "a.csv")] == [
        {"a": "1", "b": None}
    ]


def test_a_number_in_a_csv_names_a_row_as_in_any_other_form(tmp_path: Path) -> None:
    """What pandas reads of the file has the same ids; values stay texts."""
    path = tmp_path / "a.csv"
    path.write_text(f"n,t\n10,1\n-3,2\n0,3\n{2**63 - 1},4\n")
    rows, frame = open_rows(path, "n"), open_rows(pd.read_csv(path), "n")

    assert (
        [row.id for row in rows] == [row.id for row in frame] == [10, -3, 0, 2**63 - 1]
    )
    assert {type(row.id) for row in rows} == {int}
    assert next(iter(rows)).value == {"n": "10", "t": "1"}
    assert next(iter(open_rows(path, lambda row: row["n"]))).id == "10"
    path.with_suffix(".tsv").write_text("n\tt\n7\tx\n")
    assert [row.id for row in open_rows(path.with_suffix(".tsv"), "n")] == [7]


def test_a_text_in_a_csv_that_is_no_plain_number_stays_one(tmp_path: Path) -> None:
    """A number would lose how it is written, or not fit where others keep it."""
    texts = [
        "007",
        "7",
        "-0",
        "1.0",
        "1e3",
        " 5",
        "+5",
        "٣",
        "1_0",
        "9" * 19,
        "9" * 5000,
    ]
    path = tmp_path / "a.csv"
    path.write_text("n\n" + "\n".join(texts) + "\n")

    assert [row.id for row in open_rows(path, "n")] == ["007", 7, *texts[2:]]
    (tmp_path / "b.json").write_text('[{"n": "7"}]')
    assert [row.id for row in open_rows(tmp_path / "b.json", "n")] == ["7"]
    path.write_text('n,m\n"",1\n')
    with pytest.raises(ConfigurationError, match="row 0 has the id ''"):
        open_rows(path, "n")


def test_arrays_become_lists() -> None:
    """An array in a cell, a number of numpy and an array of rows are Python's."""
    assert plain(np.float64("nan")) is None
    assert plain(np.array(3)) == 3
    assert plain(np.array([1, 2])) == [1, 2]
    assert plain(np.bool_(True)) is True
    kept = object()
    assert plain(kept) is kept
    assert [row.value for row in open_rows(np.array(["x", "y"]))] == ["x", "y"]


def test_a_large_file_is_not_held(tmp_path: Path) -> None:
    """Walking through 5,000 rows of 1 kB takes under a fifth of their size."""
    path = tmp_path / "large.csv"
    path.write_text("id,text\n" + "".join(f"{n},{'x' * 1000}\n" for n in range(5000)))

    tracemalloc.start()
    rows = open_rows(path)
    assert sum(1 for _ in rows) == rows.count == 5000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 1_000_000
