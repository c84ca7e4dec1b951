"""map_prompts() at its edges: odd tables, odd prompts, answers of another kind."""

from __future__ import annotations

import contextlib
import json
import pickle
import sqlite3
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from client_tools import StandIn

from llamatelemetry.batch import map_prompts
from llamatelemetry.exceptions import ConfigurationError, SetupWarning

NUMBER = {
    "type": "object",
    "properties": {"x": {"type": "integer"}},
    "required": ["x"],
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without a folder lie in the test's own."""
    monkeypatch.chdir(tmp_path)


def ask(to: Any, rows: Any, prompt: Any = "{row}", **options: Any) -> Any:
    """Ask without a bar."""
    return map_prompts(rows, prompt, to=to, **{"progress": False, **options})


def echo(stand_in: StandIn, **texts: str) -> str:
    """Return the address of a server that answers with these texts, or the prompt."""
    path = Path("texts.json").absolute()
    path.write_text(json.dumps(texts))
    return stand_in.url(texts=str(path).replace("/", "%2F"))


def chats(stand_in: StandIn, url: str) -> int:
    """Return how many chats an address was asked for."""
    return sum("/chat/" in one["target"] for one in stand_in.seen(url))


# ── tables ───────────────────────────────────────────────────────────────────────


def test_a_table_joins_with_its_own_answers(stand_in: StandIn) -> None:
    """An index with values twice is told where the call is; reset, rows fit answers."""
    url = echo(stand_in)
    frame = pd.concat([pd.DataFrame({"t": ["a", "b"]}), pd.DataFrame({"t": ["c"]})])
    with pytest.warns(SetupWarning, match="values twice") as told:
        ask(url, frame, "{t}")
    assert [one.filename for one in told] == [__file__]
    frame = frame.reset_index(drop=True)
    joined = frame.join(ask(url, frame, "{t}").to_dataframe())
    assert list(joined["answer"]) == list(joined["t"]) == ["a", "b", "c"]


def test_a_csv_and_what_pandas_reads_of_it_are_one_table(stand_in: StandIn) -> None:
    """Nothing is asked twice, and the answers join with the frame."""
    Path("n.csv").write_text("n,t\n10,a\n7,b\n")
    url = echo(stand_in)
    ask(url, "n.csv", "{t}", id="n")
    frame = pd.read_csv("n.csv")
    results = ask(url, frame, "{t}", id="n")
    assert chats(stand_in, url) == 2
    joined = frame.join(results.to_dataframe(), on="n")
    assert list(joined["answer"]) == list(joined["t"]) == ["a", "b"]


@pytest.mark.parametrize("name", ["labels.csv", "labels.TSV", "labels.parquet"])
def test_results_are_not_called_a_table(stand_in: StandIn, name: str) -> None:
    """They are lines of JSON: another name is told, and nothing is written or asked."""
    url = stand_in.url()
    with pytest.raises(ConfigurationError, match=r"JSON.*name it 'labels\.jsonl'"):
        ask(url, ["a"], out=name)
    assert not chats(stand_in, url)
    assert not Path(name).exists()


def test_an_iterator_that_is_used_up_is_not_all_done(stand_in: StandIn) -> None:
    """The same call with the same iterator has no rows, and says so."""
    rows = iter(["a"])
    url = stand_in.url()
    assert ask(url, rows).done == 1
    with pytest.raises(ConfigurationError, match="no row.*read only once"):
        ask(url, rows)


def test_rows_may_come_from_a_cursor_of_sqlite(stand_in: StandIn) -> None:
    """They are read in another thread, which the connection has to allow."""
    with contextlib.closing(sqlite3.connect(":memory:", check_same_thread=False)) as db:
        db.execute("CREATE TABLE t (name, text)")
        db.execute("INSERT INTO t VALUES ('x', 'a'), ('y', 'b')")
        rows = db.execute("SELECT * FROM t")
        results = ask(echo(stand_in), rows, "{row[1]}", id=lambda row: row[0])
    assert [(row.id, row.answer) for row in results] == [("x", "a"), ("y", "b")]


def test_rows_that_moved_have_their_new_places(stand_in: StandIn) -> None:
    """An answer of an earlier call is told with the row's place in this one."""
    rows = [{"name": "x", "t": "a"}, {"name": "y", "t": "b"}]
    url = stand_in.url()
    ask(url, rows, "{t}", id="name")
    again = ask(url, rows[::-1], "{t}", id="name")
    assert chats(stand_in, url) == 2
    assert [(row.id, row.position) for row in again] == [("y", 0), ("x", 1)]


# ── prompts ──────────────────────────────────────────────────────────────────────


def test_a_message_that_is_no_text_is_its_rows_own_error(stand_in: StandIn) -> None:
    """A function that gives a number for one row does not end the others."""
    results = ask(
        stand_in.url(),
        [5, "a"],
        lambda value: [{"role": "user", "content": value}],
    )
    assert (results.done, results.failed, results.ended) == (1, 1, "done")
    assert "content is a text or a list" in results[0].error["message"]


def test_a_field_in_the_systems_message_is_found_with_the_first_row(
    stand_in: StandIn,
) -> None:
    """An iterator's columns are not known before; nothing is asked."""
    url = stand_in.url()
    rows = iter([{"a": "x"}])
    with pytest.raises(ConfigurationError, match="system has {a}"):
        ask(url, rows, "{a}", system="about {a}")
    assert not chats(stand_in, url)


# ── answers ──────────────────────────────────────────────────────────────────────


def test_calls_of_tools_come_back(stand_in: StandIn) -> None:
    """A row's result has them, and so has the table."""
    tool = {"type": "function", "function": {"name": "look_up"}}
    results = ask(stand_in.url(calls=1), ["a"], tools=[tool])
    (call,) = results[0].tool_calls
    assert call["function"]["arguments"] == '{"a":1}'
    assert results.to_dataframe()["tool_calls"].loc[0] == [call]


def test_an_answer_that_fits_after_no_repair_is_recorded(stand_in: StandIn) -> None:
    """After one repair the last raw answer is kept, with what is wrong."""
    url = echo(stand_in, q="no JSON")
    row = ask(url, ["q"], schema=NUMBER)[0]
    assert chats(stand_in, url) == 2
    assert row.answer.startswith("This is not what was asked for")  # it is echoed
    assert (row.error["type"], row.repaired, row.attempts) == ("SchemaError", True, 1)
    assert "cut off" not in row.error["message"]


def test_an_answer_that_was_cut_off_and_fits_is_an_answer(stand_in: StandIn) -> None:
    """What the schema asks for is there: why it ended is no matter."""
    url = echo(stand_in, q='{"x": 1}').replace("/texts=", "/finish=length,texts=")
    results = ask(url, ["q"], schema=NUMBER)
    assert (results[0].value, results[0].finish_reason) == ({"x": 1}, "length")


def test_results_with_a_schema_can_be_pickled(stand_in: StandIn) -> None:
    """Values are checked by a schema that is made anew."""
    results = ask(echo(stand_in, q='{"x": 7}'), ["q"], schema=NUMBER)
    copy = pickle.loads(pickle.dumps(results))
    assert copy[0] == results[0]
    assert copy[0].value == {"x": 7}
