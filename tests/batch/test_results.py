"""Results: read from their file in order, by id, as a table, as text, as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydantic
import pytest
from client_tools import StandIn

from llamatelemetry.batch import Results, map_prompts
from llamatelemetry.batch._places import Places
from llamatelemetry.batch._schema import SchemaMismatchError
from llamatelemetry.batch.results import Tally


class Number(pydantic.BaseModel):
    """What an answer is."""

    x: int


def record(position: int, **changes: Any) -> dict[str, Any]:
    """Return a line of a file of results."""
    return {
        "id": f"row {position}",
        "key": "0" * 32,
        "position": position,
        "answer": f"answer {position}",
        "error": None,
        "finish_reason": "stop",
        "completion_tokens": 3,
        "seconds": 0.5,
        "attempts": 1,
        "time": 1_795_000_000.0 + position,
        **changes,
    }


def results_of(path: Path, records: list[dict[str, Any]], **options: Any) -> Results:
    """Write a file of results and return them."""
    places, offset = Places(), 0
    with path.open("wb") as file:
        for one in records:
            line = json.dumps(one).encode() + b"\n"
            failed = one["error"] is not None
            places.put(one["position"], one["id"], path, offset, failed=failed)
            file.write(line)
            offset += len(line)
    options = {"ended": "done", "left": 0, **options}
    tally = options.pop("tally", Tally(len(records), 2.0, 30, 6, 0))
    return Results(places, path, tally, **options)


@pytest.fixture
def mixed(tmp_path: Path) -> Results:
    """Three rows, written in another order; one of them failed."""
    error = {"type": "ClientError", "message": "<b>no</b> & no"}
    failed = record(1, answer=None, error=error, completion_tokens=None)
    return results_of(tmp_path / "results.jsonl", [record(2), failed, record(0)])


def test_rows_come_in_their_order(mixed: Results) -> None:
    """Whatever the order in which they were answered; counts and rates go with them."""
    assert [row.position for row in mixed] == [0, 1, 2]
    assert (len(mixed), mixed.done, mixed.failed) == (3, 2, 1)
    assert (mixed.rows_per_second, mixed.tokens_per_second) == (1.5, 3.0)
    assert [row.failed for row in mixed] == [False, True, False]


def test_a_row_is_found_by_its_id(mixed: Results) -> None:
    """One that there is not is a KeyError, as in a dictionary; a slice is none."""
    assert mixed["row 2"].answer == "answer 2"
    for missing in ("row 3", 2.5, None):
        with pytest.raises(KeyError, match=f"{missing}.*; ids are like 'row 0'; list"):
            mixed[missing]
    with pytest.raises(TypeError, match=r"a row's id, no slice; list\(results\)"):
        mixed[:2]  # type: ignore[index]


@pytest.mark.parametrize(
    ("id", "label"),
    [
        (3, np.int64(3)),
        (3, 3.0),
        ("x", np.str_("x")),
        ("0.5", 0.5),
        ("2026-01-02 00:00:00", pd.Timestamp("2026-01-02")),
        ("('a', 1)", ("a", 1)),
    ],
)
def test_a_row_is_found_by_its_entry_in_an_index(
    tmp_path: Path,
    id: Any,  # noqa: A002 - the record's own word
    label: Any,
) -> None:
    """What a DataFrame's index holds finds the row that it named."""
    results = results_of(tmp_path / "r.jsonl", [record(0, id=id)])
    assert results[label].id == id


def test_an_answer_that_fits_no_more_is_an_error_of_its_row(tmp_path: Path) -> None:
    """A validator was changed since: the others can be looked at."""

    def restore(text: str) -> str:
        if text == "answer 1":
            raise SchemaMismatchError("at x: no such label")
        return text.upper()

    records = [record(0), record(1, value="answer 1"), record(2)]
    records.append(record(3, error={"type": "Earlier", "message": "it failed"}))
    results = results_of(tmp_path / "r.jsonl", records, restore=restore)
    assert [row.value for row in results] == ["ANSWER 0", None, "ANSWER 2", None]
    assert results["row 1"].error == {
        "type": "SchemaError",
        "message": "at x: no such label",
    }
    errors = results.to_dataframe()["error"].dropna()
    assert list(errors) == ["SchemaError", "Earlier"]


def test_a_row_has_its_place_in_this_call(tmp_path: Path) -> None:
    """The line of an earlier call may say another."""
    path = tmp_path / "r.jsonl"
    error = {"type": "ClientError", "message": "no"}
    results_of(path, [record(5), record(7, error=error)])
    places, offset = Places(), len(path.read_bytes().splitlines(keepends=True)[0])
    places.put(1, "row 5", path, 0, failed=False)
    places.put(0, "row 7", path, offset, failed=True)
    results = Results(places, path, Tally(0, 0.1, 0, 0, 0), ended="done", left=0)
    assert [(row.id, row.position) for row in results] == [("row 7", 0), ("row 5", 1)]
    assert results["row 5"].position == 1
    assert [row.position for row in results.failures()] == [0]


def test_failures_are_told_apart(mixed: Results) -> None:
    """A list of only the rows with an error, with its type and words."""
    failures = mixed.failures()
    assert mixed.failures(most=0) == []
    (failure,) = failures
    assert isinstance(failures, list)
    assert failure.id == "row 1"
    assert failure.error == {"type": "ClientError", "message": "<b>no</b> & no"}


def test_it_says_what_was_asked_now_and_what_before(tmp_path: Path) -> None:
    """Rows of earlier calls are told apart, and a first call says nothing of it."""
    error = {"type": "ClientError", "message": "no"}
    records = [record(0), record(1), record(2, error=error)]
    results = results_of(tmp_path / "r.jsonl", records, tally=Tally(2, 1.0, 1, 1, 1))
    assert (results.done, results.kept, results.asked) == (2, 1, 2)
    assert repr(results).startswith(
        "Results: 2 rows answered (1 now, 1 before), 1 failed\nended     all rows done"
    )


def test_nothing_done_has_no_speed(tmp_path: Path) -> None:
    """A call that had nothing to do cannot tell how fast it is."""
    idle = results_of(
        tmp_path / "idle.jsonl", [record(0)], tally=Tally(0, 0.1, 0, 0, 1)
    )
    assert idle.rows_per_second is None
    assert idle.tokens_per_second is None
    assert "rows/s" not in repr(idle)
    mute = results_of(
        tmp_path / "mute.jsonl", [record(0)], tally=Tally(1, 0.1, 0, 0, 0)
    )
    assert "10.00 rows/s\n" in repr(mute)


def test_the_table_has_ids_and_columns(mixed: Results) -> None:
    """One line for each row, its error in two columns; empty results have columns."""
    frame = mixed.to_dataframe()
    assert list(frame.index) == ["row 0", "row 1", "row 2"]
    assert frame.loc["row 1", "error"] == "ClientError"
    assert frame.loc["row 2", "completion_tokens"] == 3
    assert frame["error_message"].notna().sum() == 1


def test_an_empty_table_has_its_columns(tmp_path: Path) -> None:
    """Without any row too."""
    empty = results_of(tmp_path / "empty.jsonl", [])
    with pytest.raises(KeyError, match="id 0: there are none"):
        empty[0]
    assert "answer" in empty.to_dataframe().columns


def test_keys_of_tomorrow_do_no_harm(tmp_path: Path) -> None:
    """A file of a later version, with more in a line, is read."""
    later = results_of(tmp_path / "later.jsonl", [record(0, colour="red")])
    assert later["row 0"].answer == "answer 0"


def test_it_shows_itself_and_escapes_what_is_hostile(mixed: Results) -> None:
    """Text and HTML say what is done, what failed and where the file is."""
    text = repr(mixed)
    assert text.startswith("Results: 2 rows answered, 1 failed\n")
    assert str(mixed.path) in text
    assert "row row 1: ClientError: <b>no</b>" in text
    html = mixed._repr_html_()
    assert "<b>no" not in html
    assert "&lt;b&gt;no" in html


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        ("budget", "budget was over"),
        ("interrupted", "interrupted"),
        ("failed", "error"),
    ],
)
def test_it_says_how_it_ended(tmp_path: Path, ended: str, words: str) -> None:
    """What is left is counted, and it is said that it can go on."""
    results = results_of(tmp_path / "r.jsonl", [record(0)], ended=ended, left=1234)
    assert words in repr(results)
    assert "goes on from here" in results._repr_html_()
    assert "1,234 left" in repr(results)
    assert "anew" not in repr(results)
    once = results_of(tmp_path / "r.jsonl", [record(0)], ended=ended, once=True)
    assert "the same call, with the rows given anew, goes on from here" in repr(once)


def test_the_picture_is_drawn(mixed: Results) -> None:
    """Rows that failed are in it; the title is how much is done."""
    figure = mixed.plot()
    assert figure.axes
    texts = [text.get_text() for text in figure.texts] + [
        axes.get_title(loc) for axes in figure.axes for loc in ("left", "center")
    ]
    texts.append(figure.get_suptitle())
    assert any("2 rows answered, 1 failed" in text for text in texts)


def test_a_model_class_gives_its_objects(stand_in: StandIn, tmp_path: Path) -> None:
    """Values are of the pydantic model; those that failed have none."""
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps({"good": '{"x": 7}'}))
    url = stand_in.url(texts=str(texts).replace("/", "%2F"))
    results = map_prompts(
        ["good", "bad"],
        "{row}",
        to=url,
        schema=Number,
        out=tmp_path / "out.jsonl",
        progress=False,
    )
    assert results[0].value == Number(x=7)
    assert isinstance(results[0].value, Number)
    assert (results[1].value, results[1].error["type"]) == (None, "SchemaError")  # type: ignore[index]
