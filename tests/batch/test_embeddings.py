"""One vector for each row: the right one, in its place, whatever happens on the way."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from client_tools import StandIn
from manager_tools import wait_for
from small_disk import fill, small_disk

from llamatelemetry.api.client import EmbeddingResponse, EmbeddingUsage, LlamaCppClient
from llamatelemetry.batch import _embeddings, _targets, map_embeddings
from llamatelemetry.batch._bar import BatchProgress
from llamatelemetry.batch._together import PROBES
from llamatelemetry.batch._vectors import VectorFile
from llamatelemetry.exceptions import (
    AuthenticationError,
    BatchError,
    ClientError,
    ConfigurationError,
    ConnectionFailedError,
    DiskSpaceError,
    NotSupportedError,
    SetupError,
    SetupWarning,
)
from llamatelemetry.server import ServerConfig, ServerManager
from tests.conftest import missing_part

TEXTS = [f"What is number {number}?" for number in range(40)]


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in a folder of its own, in which a call without `out` would write too."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "vectors.npy"


def embed(rows: Any, to: Any, out: Path, **options: Any) -> _embeddings.Embeddings:
    return map_embeddings(rows, to=to, out=out, progress=False, **options)


def texts_asked(stand_in: StandIn, url: str) -> list[str]:
    """Return all texts that a vector was asked for.

    Who is killed may have sent a request without its body.
    """
    return [
        text
        for one in stand_in.seen(url)
        if one["path"] == "/v1/embeddings" and one["body"] is not None
        for text in one["body"]["input"]
        if text not in PROBES
    ]


def test_each_row_has_its_own_vector(client: LlamaCppClient, out: Path) -> None:
    """The file has what the server says of each text alone, in the rows' order."""
    vectors = embed(TEXTS, client, out, batch_size=7)

    array = np.load(out, mmap_mode="r")
    assert array.shape == (40, 192)
    assert array.dtype == np.float32
    for number in (0, 6, 7, 39):
        alone = client.embeddings(TEXTS[number]).data[0].embedding
        assert array[number] == pytest.approx(alone, abs=1e-6)
    assert isinstance(vectors.array, np.memmap)
    assert not vectors.array.flags.writeable
    assert (vectors.done, vectors.left, vectors.kept, vectors.ended) == (
        40,
        0,
        0,
        "done",
    )
    assert repr(vectors) == "Embeddings(40 of 40 rows, 192 dimensions, vectors.npy)"
    assert len(vectors) == len(vectors.ids) == 40
    assert vectors.failures() == []
    assert vectors.seconds > 0


def test_slots_with_caches_of_their_own_are_gone_round(
    demo_model: Path, out: Path
) -> None:
    """llama.cpp gives other vectors when both work: that is noticed, and told."""
    config = ServerConfig(
        demo_model,
        port=0,
        parallel=2,
        embeddings=True,
        pooling="mean",
        threads=1,
        extra_args=["--no-kv-unified"],
    )
    with ServerManager(config, engine="embedded", timeout=60) as server:
        with pytest.warns(SetupWarning, match="wrong vectors when it works on several"):
            vectors = embed(TEXTS, server, out, batch_size=7)
        with LlamaCppClient(server.get_url()) as client:
            for number in (0, 6, 7, 39):
                alone = client.embeddings(TEXTS[number]).data[0].embedding
                assert vectors.array[number] == pytest.approx(alone, abs=1e-6)


def test_a_text_that_is_refused_fails_alone(client: LlamaCppClient, out: Path) -> None:
    """Too long, or empty: it has NaN and its error, and those beside it a vector."""
    rows = ["one", "x " * 3000, "two", " ", "three"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SetupWarning)
        vectors = embed(rows, client, out)
        again = embed(rows, client, out)

    assert (vectors.done, vectors.failed, vectors.left) == (3, 2, 0)
    assert np.isnan(vectors.array).all(axis=1).tolist() == [
        False,
        True,
        False,
        True,
        False,
    ]
    failures = {failure.id: failure for failure in vectors.failures()}
    assert "too large" in failures[1].message
    assert failures[3].type == "EmptyPromptError"
    assert "2 failed" in repr(vectors)
    assert (again.done, again.kept, again.failed) == (3, 3, 2)


def test_a_server_without_embeddings_is_told_at_once(
    tiny_model: Path, out: Path
) -> None:
    """The first refusal ends it, and says what to start the server with."""
    config = ServerConfig(tiny_model, port=0)
    with (
        ServerManager(config, engine="embedded", timeout=60) as server,
        pytest.raises(NotSupportedError, match="embeddings=True") as caught,
    ):
        embed(TEXTS, server, out)

    assert "0 of 40 rows are kept" in "".join(caught.value.__notes__)
    with pytest.raises(BatchError, match="no row has a vector"):
        _ = vars(caught.value)["results"].array


class Refusing(LlamaCppClient):
    """A client that is refused: with one text as it is with several, or otherwise."""

    several: ClientError
    single: ClientError

    def embeddings(self, input: Any, model: str | None = None) -> Any:  # noqa: A002 -- the client's own names
        if all(text in PROBES for text in input):
            return super().embeddings(input)
        raise self.several if len(input) > 1 else self.single


def test_what_is_done_is_not_asked_again(stand_in: StandIn, out: Path) -> None:
    """The same call twice asks once; a changed text and new rows are asked alone."""
    url = stand_in.url()
    embed(TEXTS, url, out)
    url = stand_in.url()

    again = embed(TEXTS, url, out)
    assert texts_asked(stand_in, url) == []
    assert (again.kept, again.done) == (40, 40)

    changed = ["another", *TEXTS[1:], "more", "and more"]
    grown = embed(changed, url, out)
    assert sorted(texts_asked(stand_in, url)) == ["and more", "another", "more"]
    assert grown.array.shape == (42, 3)
    assert not np.isnan(grown.array).any()


RUN = """
    import sys
    from llamatelemetry.batch import map_embeddings
    map_embeddings([f"text {number}" for number in range(200)], to=sys.argv[1],
        out=sys.argv[2], batch_size=2, concurrency=2, progress=False)
"""


def test_killed_it_goes_on_from_there(stand_in: StandIn, out: Path) -> None:
    """After two kills all rows have vectors, and only what ran was asked twice."""
    url = stand_in.url(before=0.02)
    for part in (40, 100):
        script = [sys.executable, "-c", textwrap.dedent(RUN), url, str(out)]
        with subprocess.Popen(script) as process:
            wait_for(lambda most=part: len(texts_asked(stand_in, url)) > most, 20)  # type: ignore[misc]
            process.kill()

    vectors = embed([f"text {number}" for number in range(200)], url, out)

    assert vectors.done == 200
    assert vectors.kept > 60
    assert np.load(out).tolist() == [[1.0, 2.0, 3.0]] * 200
    asked = texts_asked(stand_in, url)
    assert len(set(asked)) == 200
    # What was on its way at each kill: two requests of two texts, and one written.
    assert len(asked) <= 200 + 2 * 6


def test_a_vector_that_was_not_wholly_written_is_asked_again(
    stand_in: StandIn, out: Path
) -> None:
    """However its line says it is done: a power cut may lose either file's end."""
    embed(TEXTS, stand_in.url(), out)
    with out.open("r+b") as file:
        file.seek(128 + 5 * 12 + 4)
        file.write(b"\0\0\0\0")
        file.truncate(128 + 39 * 12 + 5)
    url = stand_in.url()

    vectors = embed(TEXTS, url, out)

    assert sorted(texts_asked(stand_in, url)) == sorted([TEXTS[5], TEXTS[39]])
    assert vectors.array.tolist() == [[1.0, 2.0, 3.0]] * 40
    out.unlink()
    assert embed(TEXTS, stand_in.url(), out).kept == 0
    assert np.load(out).tolist() == [[1.0, 2.0, 3.0]] * 40


def test_a_file_that_was_cut_anywhere_is_laid_out_again(out: Path) -> None:
    """In the middle of a number, of a row, or behind the header: the rest is NaN."""
    for size in (128 + 5, 128 + 3 * 12 + 6, 128, 60, 0):
        with VectorFile(out, 40) as file:
            file.begin(3)
            for row in range(40):
                file.put(row, [1.0, 2.0, 3.0])
        with out.open("r+b") as cut:
            cut.truncate(size)

        with VectorFile(out, 41) as file:
            file.begin(3)

        whole = max(0, size - 128) // 12
        array = np.load(out)
        assert array.shape == (41, 3)
        assert array[:whole].tolist() == [[1.0, 2.0, 3.0]] * whole
        assert np.isnan(array[whole:, 2]).all()
        out.unlink()


def test_rows_that_moved_are_asked_again(stand_in: StandIn, out: Path) -> None:
    """A row's vector stands where the row stands, also back in the old order."""
    ids: dict[str, Any] = {"id": lambda text: text}
    embed(TEXTS, stand_in.url(), out, **ids)
    url = stand_in.url()

    moved = embed(TEXTS[::-1], url, out, **ids)
    assert (moved.kept, moved.done, moved.ids[0]) == (0, 40, TEXTS[-1])
    assert len(texts_asked(stand_in, url)) == 40
    back = embed([TEXTS[-1], *TEXTS[1:-1], TEXTS[0]], url, out, **ids)
    assert back.done == 40
    assert back.kept == 2


def test_earlier_vectors_are_taken_over(stand_in: StandIn, out: Path) -> None:
    """From a file or a folder that is only read, into other places of a new file."""
    folder = out.parent / "input"
    folder.mkdir()
    embed(TEXTS[:30], stand_in.url(), folder / "old.npy", id=lambda text: text)
    for path in folder.iterdir():
        path.chmod(0o400)
    before = {path: path.read_bytes() for path in folder.iterdir()}

    for number, resume in enumerate((folder, folder / "old.npy", [str(folder)])):
        url = stand_in.url()
        to = out.with_name(f"new{number}.npy")
        vectors = embed(TEXTS[::-1], url, to, resume=resume, id=lambda text: text)
        assert sorted(texts_asked(stand_in, url)) == sorted(TEXTS[30:])
        assert (vectors.kept, vectors.done) == (30, 40)
        assert np.load(to).tolist() == [[1.0, 2.0, 3.0]] * 40
        again = embed(TEXTS[::-1], url, to, id=lambda text: text)
        assert again.kept == 40
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_an_earlier_file_without_its_vectors_is_no_loss(
    stand_in: StandIn, out: Path
) -> None:
    """Where only the lines came along, or the array is cut, all is asked again."""
    folder = out.parent / "input"
    embed(TEXTS, stand_in.url(), folder / "old.npy")
    shutil.copy(folder / "old.npy", out.with_name("whole"))
    np.save(folder / "old.npy", np.zeros((3, 3), np.float32))
    assert embed(TEXTS, stand_in.url(), out, resume=folder).kept == 0
    (folder / "old.npy").unlink()
    assert embed(TEXTS, stand_in.url(), out.with_name("b.npy"), resume=folder).kept == 0


@pytest.mark.parametrize(
    ("rows", "text", "expected"),
    [
        (["a", "b"], None, ["a", "b"]),
        ([{"body": "a"}, {"body": "b"}], "body", ["a", "b"]),
        ([{"x": 1, "y": "a"}, {"x": 2, "y": "b"}], "{x}: {y}", ["1: a", "2: b"]),
        ([3, 4], lambda number: "n" * number, ["nnn", "nnnn"]),
    ],
)
def test_a_rows_text(
    stand_in: StandIn,
    out: Path,
    rows: list[Any],
    text: str | Callable[[Any], str] | None,
    expected: list[str],
) -> None:
    """The row itself, a column, a template, or what a function makes of it."""
    url = stand_in.url()

    embed(rows, url, out, text=text)

    assert texts_asked(stand_in, url) == expected


def test_a_table_is_known_by_its_ids(stand_in: StandIn, out: Path) -> None:
    """A file's column names the rows, and a row without a text fails alone."""
    table = out.with_name("table.csv")
    table.write_text("name,body\na,one\nb,\nc,three\n")

    vectors = embed(table, stand_in.url(), out, text="body", id="name")

    assert vectors.ids == ("a", "b", "c")
    assert [failure.id for failure in vectors.failures()] == ["b"]


def test_a_row_that_has_no_text_fails_alone(stand_in: StandIn, out: Path) -> None:
    """Whatever a function raises or returns, and a field that one row lacks."""

    def text(number: int) -> Any:
        return "fine" if number else number

    def raising(number: int) -> str:
        return "x" * (10 // number)

    for name, function in (("a", text), ("b", raising)):
        vectors = embed(
            [0, 1], stand_in.url(), out.with_name(name + ".npy"), text=function
        )
        assert (vectors.done, vectors.failed) == (1, 1)
    kinds = [{"a": "x", "b": "y"}, {"a": "x"}, {"a": "", "b": None}]
    vectors = embed(kinds, stand_in.url(), out, text="{b}")
    assert [one.type for one in vectors.failures()] == ["TemplateError"] * 2


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (iter(["a"]), {}, "list\\(rows\\)"),
        ([{"a": "x"}], {}, "text says which"),
        ([{"a": "x"}], {"text": "b"}, "no column 'b'; they have a"),
        (["x"], {"text": "b"}, "no column 'b'; they have none"),
        ([{"a": "x"}], {"text": "{b}"}, "no column 'b'"),
        (["x"], {"text": "{b}"}, "{row}"),
        (["x"], {"text": 7}, "text takes a column"),
        (["x"], {"batch_size": 0}, "batch_size=0"),
        (["x"], {"concurrency": 0}, "concurrency=0"),
        (["x"], {"retries": -1}, "retries=-1"),
        (["x"], {"out": "vectors.jsonl"}, "ends with .npy"),
        (["x"], {"out": None}, "out takes the path of a file, not None"),
        (["x"], {"out": 7}, "out takes the path of a file, not 7"),
        (["x"], {"to": 7}, "to= takes"),
        (["x"], {"resume": "missing"}, "no such file"),
        (["x"], {"resume": 7}, "resume takes"),
        (["x"], {"resume": [None]}, "resume takes"),
        (["x"], {"resume": ""}, "resume takes"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(
    stand_in: StandIn,
    out: Path,
    rows: Any,
    options: dict[str, Any],
    words: str,
) -> None:
    """Each is told in words, and no text was sent and no vector written."""
    url = stand_in.url()
    given = {"to": url, "out": out, "progress": False, **options}

    with pytest.raises(ConfigurationError, match=words):
        map_embeddings(rows, **given)

    assert texts_asked(stand_in, url) == []
    assert not out.exists() or out.stat().st_size == 0


def test_rows_in_the_file_beside_the_vectors_are_refused(
    stand_in: StandIn, out: Path
) -> None:
    """A table of the vectors' name would get their lines; it stays as it is."""
    table, link = out.with_suffix(".jsonl"), out.with_name("rows.jsonl")
    table.write_text('"a"\n"b"\n')
    link.symlink_to(table)
    url = stand_in.url()

    for rows in (table, table.name, link):
        with pytest.raises(ConfigurationError, match="vectors.jsonl.*with out"):
            embed(rows, url, out)
        with pytest.raises(ConfigurationError, match="also given as earlier results"):
            embed(rows, url, out.with_name("new.npy"), resume=out)

    assert table.read_text() == '"a"\n"b"\n'
    assert {path.name for path in out.parent.iterdir()} == {table.name, link.name}
    assert texts_asked(stand_in, url) == []


def other_rows(out: Path) -> list[str]:
    return ["something", "", *("more" for _ in range(40))]


def fewer_rows(out: Path) -> list[str]:
    return TEXTS[:10]


def no_lines(out: Path) -> list[str]:
    out.with_suffix(".jsonl").unlink()
    return TEXTS


def other_numbers(out: Path) -> list[str]:
    np.save(out, np.zeros((40, 3)))
    return TEXTS


def newer_format(out: Path) -> list[str]:
    with out.open("wb") as file:
        np.lib.format.write_array(file, np.zeros((40, 3), np.float32), (2, 0))
    return TEXTS


def no_numbers(out: Path) -> list[str]:
    out.write_text("a picture of a cat\n" * 100)
    return TEXTS


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (other_rows, "vectors of other rows"),
        (fewer_rows, "has vectors of 40 rows, and these are 10"),
        (no_lines, "but not vectors.jsonl"),
        (other_numbers, "not a file of vectors"),
        (newer_format, "not a file of vectors"),
        (no_numbers, "not a file of vectors"),
    ],
)
def test_vectors_of_others_are_left_as_they_are(
    stand_in: StandIn, out: Path, spoil: Callable[[Path], list[str]], words: str
) -> None:
    """A file that is not gone on with is not written to; the message says why."""
    embed(TEXTS, stand_in.url(), out)
    rows = spoil(out)
    before = out.read_bytes()

    with pytest.raises(ConfigurationError, match=words):
        embed(rows, stand_in.url(), out)
    with pytest.raises(ConfigurationError, match="resume=True"):
        embed(rows, stand_in.url(), out, resume=False)

    if spoil is not other_rows:  # its places were made, and nothing was lost
        assert out.read_bytes() == before
    assert (
        out.read_bytes().startswith(before[128:400]) or before[128:] in out.read_bytes()
    )


def another_model(out: Path) -> None:
    lines = out.with_suffix(".jsonl")
    lines.write_text(lines.read_text().replace('"model":"m"', '"model":"other"'))


def another_length(out: Path) -> None:
    out.unlink()
    with VectorFile(out, 41) as file:
        file.begin(4)


@pytest.mark.parametrize("change", [another_model, another_length])
def test_vectors_of_two_models_are_not_mixed(
    stand_in: StandIn, out: Path, change: Callable[[Path], None]
) -> None:
    """Another model's name, or another number of dimensions, ends it with words."""
    embed(TEXTS, stand_in.url(), out)
    change(out)

    with pytest.raises(ConfigurationError, match="two models") as caught:
        embed([*TEXTS, "one more"], stand_in.url(), out)

    assert "go" in "".join(caught.value.__notes__)


def models_told(out: Path) -> list[str]:
    """Return the models of a file's vectors, in the order of their lines."""
    lines = out.with_suffix(".jsonl").read_text().splitlines()
    return [json.loads(line)["model"] for line in lines]


def test_another_models_vectors_are_refused_before_one_is_written(
    stand_in: StandIn, out: Path
) -> None:
    """However far behind the new rows those stand that are kept."""
    embed(TEXTS, stand_in.url(), out)
    another_model(out)
    url = stand_in.url()
    passes = []

    def text(row: str) -> str:
        if row == TEXTS[16]:
            passes.append(row)
            if len(passes) > 1:  # what comes before is answered before this is kept
                wait_for(lambda: texts_asked(stand_in, url))
        return row

    with pytest.raises(ConfigurationError, match="'other'.*'m'.*two models"):
        embed([f"new {n}" for n in range(16)] + TEXTS[16:], url, out, text=text)
    assert set(models_told(out)) == {"other"}


def test_a_file_that_has_two_models_is_refused(stand_in: StandIn, out: Path) -> None:
    """Kept rows are looked at too, and no row of these is asked again."""
    embed(TEXTS, stand_in.url(), out)
    lines = out.with_suffix(".jsonl")
    whole = lines.read_text()
    lines.write_text(whole.replace('"model":"m"', '"model":"other"', 20))
    url = stand_in.url()

    with pytest.raises(ConfigurationError, match="two models"):
        embed(TEXTS, url, out)
    assert texts_asked(stand_in, url) == []


def test_a_file_that_was_deleted_since_is_told(stand_in: StandIn, out: Path) -> None:
    """What it held is still told; its array is an error that says what to do."""
    vectors = embed(TEXTS, stand_in.url(), out)
    out.unlink()

    assert repr(vectors) == "Embeddings(40 of 40 rows, vectors.npy)"
    with pytest.raises(BatchError, match="is gone: put it back, or call again"):
        _ = vectors.array
    out.write_text("something else")
    assert repr(vectors) == "Embeddings(40 of 40 rows, vectors.npy)"


@pytest.mark.parametrize("status", [400, 500])
def test_a_server_that_fails_for_all_texts_ends_it(
    stand_in: StandIn, out: Path, status: int
) -> None:
    """After so many requests with the same words; the next call goes on behind them."""

    class Picky(LlamaCppClient):
        refusal = ClientError("cannot do this", status=status)

        def embeddings(self, input: Any, model: str | None = None) -> Any:  # noqa: A002 -- the client's own names
            if any("bad" in text for text in input):
                raise self.refusal
            return super().embeddings(input)

    client = Picky(stand_in.url())
    rows = [f"bad {number}" for number in range(42)] + TEXTS
    with pytest.raises(BatchError, match="first 20 .*cannot do this"):
        embed(rows, client, out, batch_size=2, retries=0)
    vectors = embed(rows, client, out, batch_size=2, retries=0)
    assert (vectors.done, vectors.failed, vectors.ended) == (40, 42, "done")
    assert {one.message for one in vectors.failures()} == {str(client.refusal)}


def test_only_what_was_opened_is_closed(
    stand_in: StandIn, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client made of a URL is, and one that was given goes on."""
    made: list[LlamaCppClient] = []

    class Noted(LlamaCppClient):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(_targets, "LlamaCppClient", Noted)
    mine = Noted(stand_in.url())
    embed(TEXTS, [mine, stand_in.url()], out)
    first, second = made
    assert first is mine
    assert mine.health() == {"status": "ok"}
    with pytest.raises(ConnectionFailedError, match="closed"):
        second.health()


def test_a_server_that_was_not_there_is_told(stand_in: StandIn, out: Path) -> None:
    """Where another did its work, that is a warning at the end."""
    urls = [stand_in.url(before=0.3), "http://127.0.0.1:9"]
    with pytest.warns(SetupWarning, match="127.0.0.1:9 did not answer") as told:
        assert embed(TEXTS, urls, out).done == 40
    assert len(told) == 1


def test_a_wrong_key_ends_it_with_what_there_is(stand_in: StandIn, out: Path) -> None:
    """The error has the results so far, and a note that says how to go on.

    A text that was changed has no vector then, and not that of the old text.
    """
    embed(TEXTS[:30], stand_in.url(), out)

    with pytest.raises(AuthenticationError) as caught:
        embed([*TEXTS[:29], "changed", *TEXTS[30:]], stand_in.url(status=401), out)

    results = vars(caught.value)["results"]
    assert (results.done, results.left, results.ended) == (29, 11, "failed")
    assert np.isnan(results.array[28:31, 0]).tolist() == [False, True, True]
    assert "29 of 40 rows are kept" in "".join(caught.value.__notes__)
    assert "11 left" in repr(results)


def test_a_text_refused_alone_is_that_rows_error(stand_in: StandIn, out: Path) -> None:
    """A single text of which the server says no is recorded, not raised."""
    vectors = embed(["a"], stand_in.url(status=400), out)

    assert [failure.type for failure in vectors.failures()] == ["ClientError"]
    assert (vectors.done, vectors.failed) == (0, 1)
    assert repr(vectors) == "Embeddings(0 of 1 rows, 1 failed, vectors.npy)"


def test_trouble_while_asking_alone_is_the_servers(
    stand_in: StandIn, out: Path
) -> None:
    """Refused together, and then the key is wrong: that ends it."""
    client = Refusing(stand_in.url())
    client.several = ClientError("no", status=400)
    client.single = AuthenticationError("no", status=401)

    with pytest.raises(AuthenticationError):
        embed(TEXTS, client, out)


def test_a_model_without_pooling_ends_it(stand_in: StandIn, out: Path) -> None:
    """It has no vector for any text: that is no row's error."""
    client = Refusing(stand_in.url())
    client.several = client.single = ClientError("needs pooling", status=400)

    with pytest.raises(ClientError, match="needs pooling"):
        embed(TEXTS, client, out)


def test_what_may_pass_is_asked_again(stand_in: StandIn, out: Path) -> None:
    """A request that was dropped costs a retry, and no row."""
    url = stand_in.url(drop=2)

    assert embed(TEXTS, url, out).done == 40


def test_retries_that_are_used_up_are_the_rows_error(
    stand_in: StandIn, out: Path
) -> None:
    """A server that fails each time: all texts of the request have its error."""
    client = Refusing(stand_in.url())
    client.several = client.single = ClientError("broken", status=500)

    vectors = embed(TEXTS[:3], client, out, retries=1)

    assert [failure.id for failure in vectors.failures()] == [0, 1, 2]


def test_trouble_while_trying_whether_texts_mix_is_tried_again(
    stand_in: StandIn, out: Path
) -> None:
    """The first requests of all are lost: what was tried is tried anew."""

    class Losing(LlamaCppClient):
        lost: ClassVar[list[int]] = []

        def embeddings(self, input: Any, model: str | None = None) -> Any:  # noqa: A002 -- the client's own names
            if len(self.lost) < 2:
                self.lost.append(1)
                raise ClientError("busy", status=429)
            return super().embeddings(input)

    assert embed(TEXTS, Losing(stand_in.url()), out).done == 40


def test_the_budget_ends_it(stand_in: StandIn, out: Path) -> None:
    """What was not begun is left, is NaN, and the next call does it."""
    url = stand_in.url(before=0.1)

    def show(_: object) -> None:  # holds up the budget's end until a row was asked
        wait_for(lambda: bool(texts_asked(stand_in, url)), 60)

    vectors = map_embeddings(
        TEXTS, to=url, out=out, budget=1.3, concurrency=1, batch_size=1, progress=show
    )

    assert vectors.ended == "budget"
    assert vectors.left > 0
    assert vectors.left == np.isnan(vectors.array).any(axis=1).sum()
    assert embed(TEXTS, stand_in.url(), out).kept == vectors.done


def test_what_the_users_function_raises_has_what_there_is(
    stand_in: StandIn, out: Path
) -> None:
    """Any error of the run carries the vectors so far."""

    def show(_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        map_embeddings(TEXTS, to=stand_in.url(before=0.05), out=out, progress=show)
    results = vars(caught.value)["results"]
    assert (len(results), results.ended) == (40, "failed")


def test_numpy_takes_them_as_an_array(stand_in: StandIn, out: Path) -> None:
    """Without .array, of the type that is asked for, and copied only where it must."""
    vectors = embed(TEXTS, stand_in.url(), out)
    assert np.asarray(vectors).shape == vectors.array.shape
    assert np.asarray(vectors, dtype=np.float64).dtype == np.float64
    assert np.array(vectors).flags.writeable
    with pytest.raises(ValueError, match="uncopied"):
        vectors.__array__(np.float64, copy=False)


def test_ctrl_c_keeps_what_ran(stand_in: StandIn, out: Path) -> None:
    """It is raised once what ran is written, and says how to go on."""
    pressed: list[int] = []

    def show(progress: BatchProgress) -> None:
        if progress.done and not pressed:
            pressed.append(progress.done)
            raise KeyboardInterrupt

    url = stand_in.url(before=0.05)
    with pytest.raises(KeyboardInterrupt) as caught:
        map_embeddings(
            TEXTS, to=url, out=out, batch_size=1, concurrency=1, progress=show
        )

    assert "the same call goes on" in str(caught.value)
    kept = int(str(caught.value).split()[0])
    results = vars(caught.value)["results"]
    assert (results.done, results.left, results.ended) == (
        kept,
        40 - kept,
        "interrupted",
    )
    assert 0 < kept < 40
    assert kept == len(texts_asked(stand_in, url))
    assert embed(TEXTS, stand_in.url(), out).kept == kept


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 1 << 20) as mounted:
        if not mounted:
            missing_part("the right to mount a file system", "run as root")
        yield tmp_path / "disk"


def test_a_disk_without_room_is_told_before_it_is_full(
    stand_in: StandIn, full_disk: Path
) -> None:
    """Once the length of a vector is known the bytes are; nothing of it is written."""
    out = full_disk / "vectors.npy"

    with pytest.raises(DiskSpaceError, match="vectors.npy needs") as caught:
        embed(TEXTS, stand_in.url(), out)

    assert caught.value.needed == 128 + 40 * 3 * 4
    assert out.stat().st_size == 0


def test_a_disk_that_fills_up_leaves_no_half_file(full_disk: Path) -> None:
    """Others may take the room meanwhile: then the file is empty again."""
    with VectorFile(full_disk / "vectors.npy", 1000) as file:
        fill(full_disk)
        with pytest.raises(OSError, match="No space"):
            file.begin(1000)

        assert file.path.stat().st_size == 0
        assert file.take(0) == b""
        file.close()


def test_an_output_that_cannot_be_written_is_told(stand_in: StandIn, out: Path) -> None:
    """A folder in the file's place is no crash of numpy's."""
    out.mkdir()

    with pytest.raises(ConfigurationError, match="vectors.npy"):
        embed(TEXTS, stand_in.url(), out)


def test_without_numpy_the_command_is_named(
    stand_in: StandIn, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SetupError says what to install."""
    monkeypatch.setitem(sys.modules, "numpy", None)

    with pytest.raises(SetupError, match="pip install numpy"):
        embed(TEXTS, stand_in.url(), out)


def test_an_answer_with_too_few_vectors_is_an_error() -> None:
    """A server that leaves one out is told of, and no vector goes astray."""
    response = EmbeddingResponse(
        data=[], model="m", usage=EmbeddingUsage(prompt_tokens=1, total_tokens=1)
    )

    with pytest.raises(ClientError, match="2 texts and answered with 0"):
        _embeddings._vectors_in(response, 2)


def test_the_bar_counts_rows(
    stand_in: StandIn, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows, not requests: those that were there, those that failed, and the others."""
    embed(TEXTS[:30], stand_in.url(), out)

    map_embeddings([*TEXTS, ""], to=stand_in.url(), out=out)

    assert "40/41 rows · 1 failed" in capsys.readouterr().err


def test_the_lines_say_which_rows_are_done(stand_in: StandIn, out: Path) -> None:
    """Each has the row's id, its place and the digest of text and vector."""
    embed(["a"], stand_in.url(), out)

    (line,) = out.with_suffix(".jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["id"] == record["position"] == 0
    assert len(record["key"]) == 32
    assert len(record["vector"]) == 16
    assert record["model"] == "m"
